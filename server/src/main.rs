//! The binary: arguments in, one ready line out, a relay in between. Rules live in the library.
//!
//! It exits 0 after a clean stop, 1 when the relay cannot run, 2 when the arguments do not go together.

use std::{
    io::{IsTerminal as _, Write as _},
    process::ExitCode,
    sync::Arc,
};

use clap::Parser as _;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::{EnvFilter, filter::filter_fn, layer::SubscriberExt as _, util::SubscriberInitExt as _};
use undertone_server::{Arguments, Command, Config, Relay, SystemClock, SystemRandom};

/// Parts that would log what passes through them. They stay silent whatever the filter says.
const SILENT: [&str; 9] = [
    "sqlx",
    "sqlx_core",
    "sqlx_postgres",
    "sqlx_sqlite",
    "hyper",
    "hyper_util",
    "tungstenite",
    "tokio_tungstenite",
    "openmls",
];

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let config = match Config::try_from(&arguments) {
        Ok(config) => config,
        Err(error) => return fail(2, &error.to_string()),
    };
    match EnvFilter::try_new(&arguments.log) {
        Ok(filter) => log_to_stderr(filter),
        Err(error) => return fail(2, &format!("--log is not a filter: {error}")),
    }
    let done = match arguments.command.unwrap_or(Command::Serve) {
        Command::Serve => serve(config).await,
        Command::Migrate => undertone_server::migrate(&config.place).await.map_err(Into::into),
        Command::Restore => undertone_server::restore(&config.place).await.map_err(Into::into),
        Command::Moved => undertone_server::moved(&config.place).await.map_err(Into::into),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(1, &error.to_string()),
    }
}

async fn serve(config: Config) -> Result<(), Box<dyn std::error::Error>> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let relay = Relay::bind(config, Arc::new(SystemClock), Arc::new(SystemRandom)).await?;
    say_ready(&relay)?;
    relay
        .serve(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            tracing::info!("stopping");
        })
        .await?;
    Ok(())
}

fn say_ready(relay: &Relay) -> std::io::Result<()> {
    let url = format!("http://{}", relay.local_addr());
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "Undertone relay on {url} · next: undertone register --relay {url} --username alice")?;
    stdout.flush()
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
    eprintln!("undertone-server: {reason}");
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
