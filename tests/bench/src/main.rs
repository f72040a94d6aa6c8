//! The bench: how fast a relay process is over HTTP, and beside it, in the same run, how fast a bare loop writes the same
//! rows to the same database.
//!
//! Build both with `cargo build --release -p undertone-server -p undertone-bench`, and run
//! `target/release/undertone-bench`. Figures of two runs, or of two machines, say little about each other; the ratio of
//! the last column does.
#![expect(clippy::expect_used, clippy::unwrap_used, reason = "a bench that cannot go on says so")]
#![expect(clippy::disallowed_methods, reason = "a bench takes the time")]

mod raw;
mod relay;
mod scenes;
mod sender;
mod window;

use std::{path::PathBuf, time::Duration};

use clap::{Parser, ValueEnum};

use crate::{relay::Store, scenes::Figure};

/// Measures a relay, and the raw limit of its database beside it.
#[derive(Parser)]
struct Arguments {
    /// Which database.
    #[arg(long, value_enum, default_value = "both")]
    backend: Backend,
    /// How many seconds each measurement takes.
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// The relay's binary; the one beside this if absent.
    #[arg(long)]
    relay: Option<PathBuf>,
    /// Only scenes whose name contains this.
    #[arg(long, default_value = "")]
    only: String,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Backend {
    Sqlite,
    Postgres,
    Both,
}

#[tokio::main]
async fn main() {
    let arguments = Arguments::parse();
    let binary = arguments.relay.clone().unwrap_or_else(beside);
    assert!(binary.exists(), "{} is missing: cargo build --release -p undertone-server", binary.display());
    let time = Duration::from_secs(arguments.seconds);
    println!("{:<9} {:<22} {:>12} {:>12} {:>7}", "", "", "relay /s", "raw /s", "ratio");
    for backend in [Backend::Sqlite, Backend::Postgres] {
        if arguments.backend != Backend::Both && arguments.backend != backend {
            continue;
        }
        for (name, scene) in scenes::ALL {
            if name.contains(&arguments.only) {
                let store = Store::new(backend == Backend::Postgres).await;
                show(backend, name, scenes::measure(*scene, &binary, store, time).await);
            }
        }
    }
}

fn show(backend: Backend, name: &str, figure: Figure) {
    let backend = if backend == Backend::Postgres { "postgres" } else { "sqlite" };
    let Figure { relay, raw } = figure;
    println!("{backend:<9} {name:<22} {relay:>12.0} {raw:>12.0} {:>7.2}", relay / raw);
}

fn beside() -> PathBuf {
    std::env::current_exe().expect("a path of one's own").with_file_name("undertone-server")
}
