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
use tracing_subscriber::{EnvFilter, filter::ParseError, layer::SubscriberExt as _, util::SubscriberInitExt as _};
use undertone_server::{Arguments, Config, Relay, SystemClock, SystemRandom};

/// Parts that would log what passes through them. They stay silent at every level.
const SILENT: [&str; 5] = ["sqlx=off", "hyper=off", "hyper_util=off", "tungstenite=off", "openmls=off"];

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let config = match Config::try_from(&arguments) {
        Ok(config) => config,
        Err(error) => return fail(2, &error.to_string()),
    };
    match log_filter(&arguments.log) {
        Ok(filter) => log_to_stderr(filter),
        Err(error) => return fail(2, &format!("--log is not a filter: {error}")),
    }
    match run(config).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(1, &error.to_string()),
    }
}

async fn run(config: Config) -> Result<(), Box<dyn std::error::Error>> {
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

fn log_filter(filter: &str) -> Result<EnvFilter, ParseError> {
    let wanted = EnvFilter::try_new(filter)?;
    SILENT.iter().try_fold(wanted, |filter, part| Ok(filter.add_directive(part.parse()?)))
}

fn log_to_stderr(filter: EnvFilter) {
    let lines =
        tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    tracing_subscriber::registry().with(filter).with(lines).init();
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
