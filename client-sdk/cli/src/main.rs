//! The binary: arguments in, one command, an exit status out. What commands do lives in `commands`.

mod args;
mod commands;
mod error;
mod output;
mod resolve;
mod store;

use std::process::ExitCode;

use clap::Parser as _;
use tracing_subscriber::EnvFilter;

use crate::{args::Arguments, output::hint};

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(filter) = &arguments.log {
        match EnvFilter::try_new(filter) {
            Ok(filter) => {
                tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
            }
            Err(error) => {
                hint(&format!("--log is not a filter: {error}"));
                return ExitCode::from(2);
            }
        }
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
