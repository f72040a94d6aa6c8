//! The binary: arguments in, one ready line out, a relay in between. Rules live in the library.
//!
//! It exits 0 after a clean stop, 1 when the relay cannot run, 2 when the configuration is wrong.

use std::{
    io::{IsTerminal as _, Write as _},
    process::ExitCode,
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use clap::Parser as _;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::{EnvFilter, filter::filter_fn, layer::SubscriberExt as _, util::SubscriberInitExt as _};
use undertone_server::{
    AdminAnswer, AdminRequest, Arguments, Command, Config, Invite, Relay, Settings, SystemClock, SystemRandom,
};

/// Parts that would log what passes through them. They stay silent whatever the filter says.
const SILENT: [&str; 11] = [
    "sqlx",
    "sqlx_core",
    "sqlx_postgres",
    "sqlx_sqlite",
    "hyper",
    "hyper_util",
    "reqwest",
    "rustls",
    "tungstenite",
    "tokio_tungstenite",
    "openmls",
];

/// How many may register with the invite of the first start, and for how long.
const FIRST_INVITE_USES: u64 = 10;
const FIRST_INVITE_S: u64 = 24 * 60 * 60;

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) if error.use_stderr() => return fail(2, &in_a_line(&error)),
        Err(shown) => shown.exit(),
    };
    if arguments.command == Some(Command::Config { template: true }) {
        return written(&Settings::template());
    }
    let settings = match Settings::read(&arguments, std::env::vars_os()) {
        Ok(settings) => settings,
        Err(error) => return fail(2, &error.to_string()),
    };
    log_to_stderr(EnvFilter::new(&settings.log));
    let place = settings.config.place.clone();
    let done = match arguments.command.unwrap_or(Command::Serve) {
        Command::Serve => serve(settings.config).await,
        Command::Config { .. } => return written(&settings.show()),
        Command::Invite(invite) => tend(&settings.config, invite).await,
        Command::Health => health(&settings.config).await,
        Command::Test { relay } => test(&settings.config, relay.as_deref()).await,
        Command::Migrate => undertone_server::migrate(&place).await.map_err(Into::into),
        Command::Restore => undertone_server::restore(&place).await.map_err(Into::into),
        Command::Moved => undertone_server::moved(&place).await.map_err(Into::into),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(1, &error.to_string()),
    }
}

/// What is wrong with a command line, and what may be meant, without the usage.
fn in_a_line(error: &clap::Error) -> String {
    let said = error.to_string();
    let lines = said.lines().map(str::trim).filter(|line| !line.is_empty());
    let telling = lines.take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more information"));
    let told = telling.map(|line| line.trim_start_matches("error: ")).collect::<Vec<_>>().join("; ");
    format!("{told}; --help shows what there is")
}

/// Writes to stdout. Whoever does not read it to the end has seen enough.
fn written(text: &str) -> ExitCode {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => fail(1, &format!("cannot write: {error}")),
        _ => ExitCode::SUCCESS,
    }
}

async fn serve(config: Config) -> Result<(), Box<dyn std::error::Error>> {
    let told_to_stop = told_to_stop()?;
    let relay = Relay::bind(config, Arc::new(SystemClock), Arc::new(SystemRandom)).await?;
    say_ready(&relay).await?;
    relay
        .serve(async move {
            told_to_stop.await;
            tracing::info!("stopping");
        })
        .await?;
    Ok(())
}

/// Ends when the process is told to stop. From now on that does nothing else.
fn told_to_stop() -> std::io::Result<impl Future<Output = ()> + Send> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// Says whether the relay is ready.
async fn health(config: &Config) -> Result<(), Box<dyn std::error::Error>> {
    undertone_server::health(config).await?;
    Ok(writeln!(std::io::stdout(), "ready")?)
}

/// Lets two guests talk to each other, and says how long each step took.
async fn test(config: &Config, relay: Option<&str>) -> Result<(), Box<dyn std::error::Error>> {
    let told_to_stop = told_to_stop()?;
    let chance = (Arc::new(SystemClock) as _, &SystemRandom as _);
    let mut unsaid = None;
    let round = undertone_server::round_trip(config, relay, chance, told_to_stop, |step, took| {
        // Whoever reads no further is told at the end; the accounts are removed all the same.
        unsaid = writeln!(std::io::stdout(), "{step:<20} {:>6} ms", took.as_millis()).err().or(unsaid.take());
    });
    round.await?;
    unsaid.map_or(Ok(()), |error| Err(error.into()))
}

/// Makes, lists and revokes invites.
async fn tend(config: &Config, invite: Invite) -> Result<(), Box<dyn std::error::Error>> {
    let request = match invite {
        Invite::Create { uses, expires } => AdminRequest::CreateInvite { uses, life_s: expires.as_secs() },
        Invite::List => AdminRequest::ListInvites,
        Invite::Revoke { id } => AdminRequest::RevokeInvite { id },
    };
    request.check()?;
    // Before it is made: its code is told now or never.
    let connection = match request {
        AdminRequest::CreateInvite { .. } => undertone_server::connection_string(config)?,
        _ => None,
    };
    let mut stdout = std::io::stdout().lock();
    let end = |expires_ms| humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_millis(expires_ms));
    match undertone_server::ask(&config.place, request).await? {
        AdminAnswer::Created { code, invite } => {
            match connection {
                Some(connection) => writeln!(stdout, "{}", connection.with_invite(code))?,
                None => writeln!(stdout, "{code}")?,
            }
            eprintln!("invite {}: {} use(s), until {}", invite.id, invite.uses_left, end(invite.expires_ms));
        }
        AdminAnswer::Invites { invites } => {
            for invite in invites {
                writeln!(stdout, "{}  {} use(s) left, until {}", invite.id, invite.uses_left, end(invite.expires_ms))?;
            }
        }
        AdminAnswer::Refused { why } => return Err(why.into()),
        _ => {}
    }
    Ok(stdout.flush()?)
}

/// Says where the relay is, and what to do next. What lets others in is shown to somebody at a terminal only, since what is
/// written elsewhere is a log.
async fn say_ready(relay: &Relay) -> Result<(), Box<dyn std::error::Error>> {
    let line = match relay.connection_string() {
        None if relay.takes_invites() => format!(
            "Undertone relay on http://{} · next: say by --address where others reach it, then undertone-server invite create",
            relay.local_addr()
        ),
        None => {
            let url = format!("http://{}", relay.local_addr());
            format!("Undertone relay on {url} · next: undertone register --relay {url} --username alice")
        }
        Some(connection) if relay.takes_invites() && std::io::stdout().is_terminal() && relay.is_unused().await? => {
            let request = AdminRequest::CreateInvite { uses: FIRST_INVITE_USES, life_s: FIRST_INVITE_S };
            let AdminAnswer::Created { code, .. } = relay.admin().ask(request).await? else {
                return Err("the first invite was refused".into());
            };
            let invited = connection.clone().with_invite(code);
            format!(
                "Undertone relay on {connection} · next, for {FIRST_INVITE_USES} people within 24 hours: \
                 undertone register --relay '{invited}' --username alice"
            )
        }
        Some(connection) if relay.takes_invites() => {
            format!("Undertone relay on {connection} · next: undertone-server invite create")
        }
        Some(connection) => {
            format!(
                "Undertone relay on {connection} · next: undertone register --relay '{connection}' --username alice"
            )
        }
    };
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{line}")?;
    Ok(stdout.flush()?)
}

/// Whether a target is none of the [`SILENT`] parts and in none of them.
fn may_speak(target: &str) -> bool {
    let part = target.split_once("::").map_or(target, |(part, _)| part);
    !SILENT.contains(&part)
}

fn log_to_stderr(filter: EnvFilter) {
    let lines =
        tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    let audible = filter_fn(|metadata| may_speak(metadata.target()));
    tracing_subscriber::registry().with(filter).with(audible).with(lines).init();
    // A panic's message may hold what was being worked on; its place is enough.
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(place, "panicked");
    }));
}

fn fail(status: u8, reason: &str) -> ExitCode {
    // What somebody else said may be part of it.
    let line: String = reason.chars().map(|said| if said.is_control() { ' ' } else { said }).collect();
    eprintln!("undertone-server: {line}");
    ExitCode::from(status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silent_parts_are_silent_down_to_their_modules() {
        for part in SILENT {
            assert!(!may_speak(part), "{part}");
            assert!(!may_speak(&format!("{part}::some::module")), "{part}");
        }
        for target in ["undertone_server::jobs", "hyperion", "tower_http::trace"] {
            assert!(may_speak(target), "{target}");
        }
    }
}
