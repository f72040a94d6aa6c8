//! The bench: how fast a relay process is over HTTP, and beside it, in the same run, how fast a bare loop writes the same
//! rows to the same database; and how fast clients with the SDK join, send and receive, beside bare MLS with one durable row
//! for each message.
//!
//! Build both with `cargo build --release -p undertone-server -p undertone-bench`, and run
//! `target/release/undertone-bench`. Figures of two runs, or of two machines, say little about each other; the
//! ratios do.
#![expect(clippy::expect_used, clippy::unwrap_used, reason = "a bench that cannot go on says so")]
#![expect(clippy::disallowed_methods, reason = "a bench takes the time")]

mod bare;
mod raw;
mod relay;
mod scenes;
mod sdk;
mod sender;
mod window;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Parser, ValueEnum};

use crate::{relay::Store, scenes::Figure};

/// Measures a relay and the SDK, and beside them the raw limits.
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
    /// How many devices are in the groups in which the SDK is measured.
    #[arg(long, value_delimiter = ',', default_values_t = [3, 100, 1_000], value_parser = group_devices)]
    groups: Vec<usize>,
    /// How many messages the SDK sends and receives; a tenth of them in a group of more than 10 devices.
    #[arg(long, default_value_t = 10_000)]
    messages: usize,
    /// A quick look: a second for each measurement of the relay, 500 messages and groups of 3 and 50 for the SDK.
    #[arg(long, conflicts_with_all = ["seconds", "groups", "messages"])]
    short: bool,
}

impl Arguments {
    fn shortened(self) -> Self {
        if self.short { Self { seconds: 1, groups: vec![3, 50], messages: 500, ..self } } else { self }
    }
}

fn group_devices(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(devices @ 2..=1_000) => Ok(devices),
        _ => Err("from 2 to 1000".to_owned()),
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Backend {
    Sqlite,
    Postgres,
    Both,
}

#[tokio::main]
async fn main() {
    let arguments = Arguments::parse().shortened();
    let binary = arguments.relay.clone().unwrap_or_else(beside);
    assert!(binary.exists(), "{} is missing: cargo build --release -p undertone-server", binary.display());
    relays(&arguments, &binary).await;
    clients(&arguments, &binary).await;
}

/// The relay's scenes.
async fn relays(arguments: &Arguments, binary: &Path) {
    let time = Duration::from_secs(arguments.seconds);
    let scenes: Vec<_> = scenes::ALL.iter().filter(|(name, _)| name.contains(&arguments.only)).collect();
    if !scenes.is_empty() {
        println!("{:<9} {:<22} {:>12} {:>12} {:>7}", "", "", "relay /s", "raw /s", "ratio");
    }
    for backend in [Backend::Sqlite, Backend::Postgres] {
        if arguments.backend != Backend::Both && arguments.backend != backend {
            continue;
        }
        for (name, scene) in &scenes {
            let store = Store::new(backend == Backend::Postgres).await;
            show(backend, name, scenes::measure(*scene, binary, store, time).await);
        }
    }
}

/// The SDK's scenes, at a relay on SQLite.
async fn clients(arguments: &Arguments, binary: &Path) {
    let named = |devices: &usize| (*devices, format!("sdk, group of {devices}"));
    let mut groups: Vec<_> = arguments.groups.iter().map(named).collect();
    groups.retain(|(_, name)| name.contains(&arguments.only));
    if groups.is_empty() || arguments.backend == Backend::Postgres {
        return;
    }
    println!("{:<32} {:>12} {:>12} {:>7} {:>12}", "", "sdk /s", "raw /s", "ratio", "mls alone /s");
    for (devices, name) in groups {
        for sdk::Figure { what, sdk, raw, mls } in sdk::measure(binary, devices, arguments.messages).await {
            let name = format!("{name}, {what}");
            println!("{name:<32} {sdk:>12.1} {raw:>12.1} {:>7.2} {mls:>12.1}", sdk / raw);
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
