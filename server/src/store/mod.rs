//! The store: the only room that knows SQL, one file for each room that keeps something.
//!
//! A statement is a constant with its contract in the doc comment, written once for all databases; where they must
//! differ, the variants stand side by side. Rules are not decided here: a statement says what is so, the room says what
//! that means.
//!
//! Invariant: all that a request changes, it changes in one transaction, which no request's future owns
//! ([`Db::write`]), and whoever has mail by it is woken after the commit.

pub(crate) mod accounts;
pub(crate) mod groups;
pub(crate) mod keys;
pub(crate) mod message_ids;
pub(crate) mod queue;
mod relay;
pub(crate) mod sessions;
mod sqlite;
#[cfg(test)]
mod tests;

use std::{ops, path::PathBuf, sync::Arc};

use futures_util::future::BoxFuture;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use undertone_wire::{DeviceId, Hash, IdError, LengthError};

pub(crate) use relay::Identity;

use crate::{
    clock::{Random, RandomError},
    wake::Wake,
};

/// Most writes that wait or run. Beyond that a caller is better told to come again than made to wait.
const WRITES_MAX: usize = 512;

/// Most of them that are for somebody without a session: challenges, log-ins, registrations.
const STRANGERS_MAX: usize = 64;

/// Where the store is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In one SQLite file, made if it is missing.
    Sqlite(PathBuf),
}

/// The database.
pub(crate) struct Db {
    backend: Backend,
    /// A permit for each write that waits or runs.
    writes: Arc<Semaphore>,
    /// A permit for each of them that is for somebody without a session.
    strangers: Arc<Semaphore>,
    wake: Arc<Wake>,
}

enum Backend {
    Sqlite(sqlite::Sqlite),
}

/// A connection inside a transaction: what it reads is of one moment.
pub(crate) enum Conn {
    /// On SQLite.
    Sqlite(sqlx::Transaction<'static, sqlx::Sqlite>),
}

/// A connection that may also write.
pub(crate) struct Tx {
    conn: Conn,
    mail_for: Vec<DeviceId>,
}

/// Evaluates an expression with `$db` as the connection of whichever database it is.
macro_rules! on {
    ($conn:expr, $db:ident => $expression:expr) => {
        match &mut $conn {
            $crate::store::Conn::Sqlite(transaction) => {
                let $db = &mut **transaction;
                $expression
            }
        }
    };
}
use on;

impl Db {
    /// Opens the store, makes what is missing and migrates. A store is open once at a time.
    pub(crate) async fn open(place: &Place, wake: Arc<Wake>) -> Result<Self, StoreError> {
        let backend = match place {
            Place::Sqlite(path) => Backend::Sqlite(sqlite::Sqlite::open(path).await?),
        };
        let [writes, strangers] = [WRITES_MAX, STRANGERS_MAX].map(|max| Arc::new(Semaphore::new(max)));
        Ok(Self { backend, writes, strangers, wake })
    }

    /// Which relay this is. The first time, it becomes one.
    pub(crate) async fn identity(&self, random: &dyn Random) -> Result<Identity, StoreError> {
        let fresh = Identity::fresh(random)?;
        self.write(move |tx| Box::pin(relay::identity(tx, fresh))).await
    }

    /// A connection to read with.
    pub(crate) async fn read(&self) -> Result<Conn, StoreError> {
        match &self.backend {
            Backend::Sqlite(sqlite) => Ok(Conn::Sqlite(sqlite.read().await?)),
        }
    }

    /// Does `work` in one transaction: all of it if it answers `Ok`, nothing of it if it answers an error. It runs to its
    /// end even if the caller does not wait for it. Afterwards those who got mail are woken. [`StoreError::Busy`] at once
    /// if too many wait already.
    pub(crate) async fn write<T, E, W>(&self, work: W) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
        W: for<'tx> FnOnce(&'tx mut Tx) -> BoxFuture<'tx, Result<T, E>> + Send + 'static,
    {
        self.run(vec![slot(&self.writes)?], work).await
    }

    /// The same for somebody without a session. Of those fewer may wait, so that they never fill what members wait in.
    pub(crate) async fn write_for_stranger<T, E, W>(&self, work: W) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
        W: for<'tx> FnOnce(&'tx mut Tx) -> BoxFuture<'tx, Result<T, E>> + Send + 'static,
    {
        self.run(vec![slot(&self.strangers)?, slot(&self.writes)?], work).await
    }

    /// Does `work`, which keeps its slots to its end.
    async fn run<T, E, W>(&self, slots: Vec<OwnedSemaphorePermit>, work: W) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
        W: for<'tx> FnOnce(&'tx mut Tx) -> BoxFuture<'tx, Result<T, E>> + Send + 'static,
    {
        let wake = Arc::clone(&self.wake);
        let task = match &self.backend {
            Backend::Sqlite(sqlite) => {
                let sqlite = sqlite.clone();
                tokio::spawn(async move {
                    let _slots = slots;
                    let mut tx = Tx { conn: Conn::Sqlite(sqlite.begin_write().await?), mail_for: Vec::new() };
                    let answer = work(&mut tx).await?;
                    wake.wake(&tx.commit().await?);
                    Ok(answer)
                })
            }
        };
        task.await.unwrap_or_else(|_| Err(StoreError::Interrupted.into()))
    }

    /// Takes what was deleted out of the files as well. `false` if a reader stands in the way; try again.
    pub(crate) async fn checkpoint(&self) -> Result<bool, StoreError> {
        match &self.backend {
            Backend::Sqlite(sqlite) => sqlite.checkpoint().await,
        }
    }

    /// Closes the store after the last checkpoint.
    pub(crate) async fn close(&self) -> Result<(), StoreError> {
        match &self.backend {
            Backend::Sqlite(sqlite) => sqlite.close().await,
        }
    }
}

/// A slot among the writes that may wait, if one is free.
fn slot(slots: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, StoreError> {
    Arc::clone(slots).try_acquire_owned().map_err(|_| StoreError::Busy)
}

impl Tx {
    /// Notes that a device has something to look at once this is committed.
    pub(crate) fn wake_after(&mut self, device: DeviceId) {
        self.mail_for.push(device);
    }

    async fn commit(self) -> Result<Vec<DeviceId>, StoreError> {
        match self.conn {
            Conn::Sqlite(transaction) => transaction.commit().await?,
        }
        Ok(self.mail_for)
    }
}

impl ops::Deref for Tx {
    type Target = Conn;

    fn deref(&self) -> &Conn {
        &self.conn
    }
}

impl ops::DerefMut for Tx {
    fn deref_mut(&mut self) -> &mut Conn {
        &mut self.conn
    }
}

/// Why the store could not do what it was asked. Says nothing about whose data it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Too many wait for the database.
    #[error("the database is busy")]
    Busy,
    /// Another process has it open.
    #[error("another relay is running on {}", .0.display())]
    InUse(PathBuf),
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
    /// The database refused a statement.
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

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        match error {
            sqlx::Error::PoolTimedOut => Self::Busy,
            error => Self::Database(error),
        }
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

/// A number as the database holds it. Those beyond its range are as good as its largest.
fn stored(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// A number from the database.
fn number(stored: i64) -> Result<u64, StoreError> {
    u64::try_from(stored).map_err(|_| StoreError::Corrupt("a negative number"))
}

/// An id or byte string of fixed length from the database.
fn parsed<'a, T>(bytes: &'a [u8]) -> Result<T, StoreError>
where
    T: TryFrom<&'a [u8]>,
    StoreError: From<T::Error>,
{
    Ok(T::try_from(bytes)?)
}

/// Device ids, one after the other.
fn parsed_devices(rows: Vec<(Vec<u8>,)>) -> Result<Vec<DeviceId>, StoreError> {
    rows.iter().map(|(device,)| parsed(device)).collect()
}

/// Hashes as the database takes them.
fn hash_bytes(hash: &Hash) -> &[u8] {
    hash.as_bytes().as_slice()
}
