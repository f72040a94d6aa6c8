//! The binary: arguments in, one command, an exit status out. What commands do lives in `commands`.

mod args;
mod commands;
mod error;
mod output;
mod resolve;
mod store;

use std::process::ExitCode;

use clap::Parser as _;
use tracing_subscriber::{EnvFilter, filter::ParseError};

use crate::{args::Arguments, output::hint};

/// Parts that would log what passes through them. They stay silent at every level.
const SILENT: [&str; 5] = ["hyper=off", "hyper_util=off", "openmls=off", "reqwest=off", "tungstenite=off"];

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(filter) = &arguments.log
        && let Err(error) = log_to_stderr(filter)
    {
        hint(&format!("--log is not a filter: {error}"));
        return ExitCode::from(2);
    }
    match commands::run(arguments).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if let Some(reason) = failure.reason() {
                hint(&reason);
            }
            failure.exit_code()
        }
    }
}

fn log_to_stderr(filter: &str) -> Result<(), ParseError> {
    let wanted = EnvFilter::try_new(filter)?;
    let filter =
        SILENT.iter().try_fold(wanted, |filter, part| Ok::<_, ParseError>(filter.add_directive(part.parse()?)))?;
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    Ok(())
}
