//! A cluster of a test's own: what a test may do to a Postgres, from outside of it.
//!
//! Invariant: nothing here blocks the runtime, and nothing belongs to it: a cluster may be made in one runtime and used in
//! another.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::process::Command;
use url::Url;

use crate::{
    blocking,
    keeper::without_settings,
    server::{Server, USER},
};

/// What kind of cluster.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Whether a commit is on disk before it is answered: Postgres's own settings. Otherwise `fsync`
    /// and `full_page_writes` are off, which is faster, and survives the server's death but not the machine's.
    pub durable: bool,
}

/// A running Postgres server with a data folder of its own, that disappears when this is dropped and when the process ends
/// in any way.
///
/// Its superuser is `undertone`, who needs no password: as long as it runs, whoever is on this machine can connect to its
/// port. Encoding UTF-8, locale C, time zone UTC, at most 300 connections. As root it runs as the user `postgres` or
/// `nobody`.
pub struct Cluster {
    server: Arc<Server>,
}

impl Cluster {
    /// Makes a new cluster and starts it. This takes one to two seconds.
    ///
    /// # Panics
    /// If there is no Postgres 15 or newer, or it does not start.
    pub async fn new(options: Options) -> Self {
        Self::of(blocking(move || Server::new(options)).await)
    }

    /// Makes a copy of this cluster that goes on to stream from it, under the `application_name` `standby`, and answers
    /// queries that only read. Its settings are this cluster's. It has what is committed here when `replay_lsn` in
    /// `pg_stat_replication` has reached `pg_current_wal_insert_lsn()`; `pg_current_wal_lsn()` is behind what is committed
    /// unless the cluster is durable.
    ///
    /// # Panics
    /// If this cluster is stopped.
    pub async fn standby(&self) -> Self {
        Self::of(self.blocking(Server::standby).await)
    }

    /// Makes a standby a primary with a timeline of its own, and waits until it is.
    ///
    /// # Panics
    /// If it is no standby, or stopped.
    pub async fn promote(&self) {
        self.order("promote").await;
    }

    /// Stops the server in an orderly way: open transactions are rolled back, connections closed, everything written.
    ///
    /// # Panics
    /// If it is stopped.
    pub async fn stop(&self) {
        self.order("stop fast").await;
    }

    /// Stops the server at once and without writing anything, so that the next start recovers from the log of changes. The
    /// operating system goes on: what it was told to write, it has.
    ///
    /// # Panics
    /// If it is stopped.
    pub async fn crash(&self) {
        self.order("stop immediate").await;
    }

    /// Starts a stopped server again on the same data, socket and port, and waits until it answers.
    ///
    /// # Panics
    /// If it runs, or does not come up.
    pub async fn start(&self) {
        done(self.blocking(Server::start).await);
    }

    /// The URL of a database of this cluster, over its Unix socket. `postgres` exists.
    pub fn url(&self, database: &str) -> String {
        done(self.server.url(database)).into()
    }

    /// The URL of a database of this cluster over TCP, at an address that leads to [`Cluster::address`]: a proxy, say.
    pub fn url_through(&self, address: SocketAddr, database: &str) -> String {
        through(done(self.server.url(database)), address)
    }

    /// Where the server listens on TCP. It stays the same over restarts.
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// Everything the server has logged in all its starts. A deadlock is `deadlock detected`; a lock waited for longer than
    /// 200 ms is `still waiting for`.
    pub fn log(&self) -> String {
        self.server.log()
    }

    /// The data folder. As root one can read it; otherwise it is one's own.
    pub fn data_dir(&self) -> PathBuf {
        self.server.data_dir()
    }

    /// The folder that holds the data folder and the Unix socket, and disappears with the cluster.
    pub fn dir(&self) -> &Path {
        self.server.dir()
    }

    /// A command that runs one of Postgres's tools, of this cluster's version, as the present user against a database of this
    /// cluster, found by `PGHOST` and the like. The caller adds arguments.
    pub fn tool(&self, name: &str, database: &str) -> Command {
        let mut command = std::process::Command::new(self.server.bin(name));
        without_settings(&mut command);
        command.env("PGHOST", self.dir()).env("PGPORT", self.address().port().to_string());
        command.env("PGUSER", USER).env("PGDATABASE", database);
        command.into()
    }

    pub(crate) fn of(server: Result<Server, String>) -> Self {
        Self { server: Arc::new(done(server)) }
    }

    async fn order(&self, order: &'static str) {
        done(self.blocking(move |server| server.order(order)).await);
    }

    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce(&Server) -> T + Send + 'static) -> T {
        let server = Arc::clone(&self.server);
        blocking(move || work(&server)).await
    }
}

/// A database's URL, with the server looked for at `address` instead.
pub(crate) fn through(mut url: Url, address: SocketAddr) -> String {
    let others: Vec<_> = url.query_pairs().into_owned().filter(|(name, _)| !name.starts_with("host")).collect();
    url.set_query(None);
    if !others.is_empty() {
        url.query_pairs_mut().extend_pairs(others);
    }
    done(url.set_ip_host(address.ip()).map_err(|()| format!("{address} has no place in the URL")));
    done(url.set_port(Some(address.port())).map_err(|()| format!("{address} has no place in the URL")));
    url.into()
}

pub(crate) fn done<T>(outcome: Result<T, String>) -> T {
    outcome.unwrap_or_else(|said| panic!("{said}"))
}
