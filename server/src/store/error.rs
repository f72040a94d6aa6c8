//! Why the store could not do what it was asked, and what of it passes by itself.
//!
//! Invariant: what comes from a database that is away, overloaded or in the way of itself is [`StoreError::Busy`]. Whether
//! what was asked was done may then be unknown, and whoever asked asks again.

use std::path::PathBuf;

use undertone_wire::{IdError, LengthError};

use crate::clock::RandomError;

/// What Postgres says when it ends a connection: a shutdown, a crash, not yet up, the database is dropped, or idle for too
/// long, in a transaction or outside.
const ENDED: [&str; 6] = ["57P01", "57P02", "57P03", "57P04", "57P05", "25P03"];

/// What it says on a connection that goes on, when trying again helps: too many connections, waited too long for a lock,
/// a deadlock, no serial order, took too long.
const PASSING: [&str; 5] = ["53300", "55P03", "40P01", "40001", "57014"];

/// The class of what it says about connections.
const CONNECTION: &str = "08";

/// Why the store could not do what it was asked. Says nothing about whose data it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Too many wait for the database, or it is away, or it went away in the middle, so that it is not known whether what
    /// was asked was done. Asking again is right.
    #[error("the database is busy or away")]
    Busy,
    /// The database's URL cannot be read.
    #[error("the database is given as postgres://USER:PASSWORD@HOST/DATABASE")]
    Url,
    /// Nothing is heard from other nodes, not even what this one says.
    #[error("nothing is heard on the channel of the nodes")]
    Deaf,
    /// Another process has it open.
    #[error("another relay is running on {}", .0.display())]
    InUse(PathBuf),
    /// What should be a SQLite store is something else.
    #[error("{} is not a SQLite database", .0.display())]
    NotSqlite(PathBuf),
    /// The file of a SQLite store is damaged.
    #[error(
        "{file} is damaged. If a copy was put there beside the {file}-wal and {file}-shm of another state, they do not \
         belong together: with the relay stopped, delete {file}-wal and {file}-shm, put the copy back, and start",
        file = .0.display()
    )]
    Damaged(PathBuf),
    /// The server answers commits before they are durable.
    #[error(
        "synchronous_commit is off: a crash of the database would take back what the relay has promised. Set it for this \
         database to on, or to anything else but off"
    )]
    NotDurable,
    /// A file or folder cannot be made or opened.
    #[error("cannot use {}: {error}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// The schema is not one that this version can continue.
    #[error("cannot migrate the database: {0}")]
    Migration(#[from] sqlx::migrate::MigrateError),
    /// The database refused a statement, or the first connection.
    #[error("the database failed: {0}")]
    Database(sqlx::Error),
    /// A stored value is not what this version wrote.
    #[error("the database holds a value that cannot be: {0}")]
    Corrupt(&'static str),
    /// The work broke off; nothing of it was kept.
    #[error("work in the database broke off")]
    Interrupted,
    /// The operating system gives no random bytes.
    #[error(transparent)]
    Random(#[from] RandomError),
}

impl StoreError {
    /// What whoever starts a relay can do about it, as a sentence; nothing if the error says so itself.
    pub(crate) fn fix(&self) -> &'static str {
        match self {
            Self::Busy | Self::Database(_) => ". See that it runs, that the URL is right, and that the user may use it",
            Self::InUse(_) => ". Stop it, or name another database, or another data folder",
            Self::NotSqlite(_) | Self::File { .. } => {
                ". Name a place where the relay may read and write, as database or as data"
            }
            _ => "",
        }
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        let passes = matches!(error, sqlx::Error::PoolTimedOut) || is_lost(&error) || is_said(&error, &PASSING);
        if !passes {
            return Self::Database(error);
        }
        tracing::debug!(%error, "the database is busy or away");
        Self::Busy
    }
}

impl From<IdError> for StoreError {
    fn from(_: IdError) -> Self {
        Self::Corrupt("an id")
    }
}

impl From<LengthError> for StoreError {
    fn from(_: LengthError) -> Self {
        Self::Corrupt("a byte string of fixed length")
    }
}

/// Whether the connection on which this was said, or came of itself, is of no use any more.
pub(super) fn is_lost(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::Protocol(_) | sqlx::Error::BeginFailed | sqlx::Error::PoolClosed => true,
        sqlx::Error::Database(said) => {
            is_said(error, &ENDED) || said.code().is_some_and(|code| code.len() == 5 && code.starts_with(CONNECTION))
        }
        _ => false,
    }
}

fn is_said(error: &sqlx::Error, codes: &[&str]) -> bool {
    let code = error.as_database_error().and_then(|said| said.code());
    code.is_some_and(|code| codes.contains(&code.as_ref()))
}
