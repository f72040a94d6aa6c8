//! Databases for tests: each a clone of one template, alone on a server that the process's tests share.
//!
//! Invariant: no connection outlives a call. Every test has a runtime of its own, and none may wait for another's.

use std::{net::SocketAddr, sync::OnceLock, thread};

use url::Url;

use crate::{
    Cluster, blocking,
    cluster::{done, through},
    shared::{Shared, in_runtime},
};

/// A database that nobody else uses.
///
/// On the process's own cluster it stays until that disappears. On a server named by `TEST_POSTGRES_URL` it is dropped soon
/// after this is, connections included; what the end of the process cuts short, the next process to use the same server
/// drops.
pub struct Database {
    shared: &'static Shared,
    url: Url,
    name: String,
    left: bool,
}

/// A fresh database on the server that all tests of this process share: the one named by `TEST_POSTGRES_URL` if that is set
/// (the URL of a database to which a user connects who may create others), otherwise a [`Cluster`] that is not durable.
///
/// The first call in a process starts the server and has `prepare` make a template, given its URL; the `prepare` of later
/// calls is not used. It runs in a runtime of its own, and its connections are closed when it is done. Any number of calls
/// may run at once, in any runtimes.
///
/// # Panics
/// If there is no Postgres 15 or newer, or if `prepare` has panicked, in this call or an earlier one.
pub async fn database(prepare: impl AsyncFnOnce(String) + Send + 'static) -> Database {
    static SHARED: OnceLock<Result<Shared, String>> = OnceLock::new();
    let shared = blocking(|| SHARED.get_or_init(|| Shared::new(prepare))).await;
    let shared = done(shared.as_ref().map_err(Clone::clone));
    let name = done(shared.clone_template().await);
    Database { shared, url: shared.url(&name), name, left: true }
}

impl Database {
    /// Where to connect to. On the process's own cluster this is its Unix socket.
    pub fn url(&self) -> &str {
        self.url.as_str()
    }

    /// Where to connect to by way of `address`, which leads to the server: a proxy, say.
    pub fn url_through(&self, address: SocketAddr) -> String {
        through(self.url.clone(), address)
    }

    /// The database's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The cluster it is on, with the databases of all other tests of this process; `None` if `TEST_POSTGRES_URL` is set.
    pub fn cluster(&self) -> Option<&'static Cluster> {
        self.shared.cluster()
    }

    /// Drops the database now, and closes the connections to it.
    ///
    /// # Panics
    /// If the server refuses.
    pub async fn remove(mut self) {
        self.left = false;
        done(self.shared.remove(&self.name).await);
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        if self.left && self.cluster().is_none() {
            let (shared, name) = (self.shared, std::mem::take(&mut self.name));
            thread::spawn(move || in_runtime(async move || shared.remove(&name).await));
        }
    }
}
