//! A relay process over a durable store of its own.

use std::{path::Path, process::Stdio};

use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
};
use undertone_test_postgres::{Cluster, Options};

/// Where the relay keeps what it has.
pub(crate) struct Store {
    folder: TempDir,
    cluster: Option<Cluster>,
}

impl Store {
    /// A new one. Postgres writes as durably as it does by default, and so does SQLite.
    pub(crate) async fn new(postgres: bool) -> Self {
        let cluster = match postgres {
            true => Some(Cluster::new(Options { durable: true }).await),
            false => None,
        };
        Self { folder: tempfile::tempdir().unwrap(), cluster }
    }

    /// The database, as the relay takes it.
    pub(crate) fn url(&self) -> String {
        match &self.cluster {
            Some(cluster) => cluster.url("postgres"),
            None => format!("sqlite:{}", self.sqlite().display()),
        }
    }

    /// The SQLite file.
    pub(crate) fn sqlite(&self) -> std::path::PathBuf {
        self.folder.path().join("undertone.db")
    }

    /// Whether it is on Postgres.
    pub(crate) fn is_postgres(&self) -> bool {
        self.cluster.is_some()
    }
}

/// A relay that runs until it is stopped.
pub(crate) struct Relay {
    child: Child,
    pub(crate) url: String,
}

impl Relay {
    /// Starts it without limits that a bench would run into.
    pub(crate) async fn start(binary: &Path, store: &Store) -> Self {
        let none = "=1000000000000";
        let limits = ["queue_entries_max", "queue_bytes_max", "claims_per_pair_hour_max", "session_requests_max"];
        let limits = limits.map(|limit| format!("--limit={limit}{none}"));
        let mut child = Command::new(binary)
            .args(["--listen", "127.0.0.1:0", "--log", "warn", "--database", &store.url()])
            .args(limits)
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let ready = BufReader::new(child.stdout.take().unwrap()).lines().next_line().await.unwrap();
        let ready = ready.expect("the relay says where it is");
        let url = ready.split_whitespace().find(|word| word.starts_with("http://")).unwrap().to_owned();
        Self { child, url }
    }

    /// Stops it.
    pub(crate) async fn stop(mut self) {
        let pid = self.child.id().unwrap().to_string();
        Command::new("kill").arg(pid).status().await.unwrap();
        self.child.wait().await.unwrap();
    }
}
