//! The store: the only room that knows SQL, one file for each room that keeps something.
//!
//! A statement is a constant with its contract in the doc comment, written once for both databases ([`bulk`] has the few
//! words in which they differ). Rules are not decided here: a statement says what is so, the room says what that means.
//!
//! Invariant: all that a request changes, it changes in one transaction, which no request's future owns
//! ([`Db::write`]), and whoever has mail by it is woken after the commit.
//!
//! Invariant: every transaction locks in this order, each kind ascending and all of a kind at once: message ids, device
//! lists, groups, devices, cursors, queue rows, key packages, invites, the turn to begin a pipe, parts of pipes, envelopes.
//! So none waits for one that waits for it. Envelopes come last of all, just before the commit, whatever let go of them
//! ([`Tx::release`]).
//! Who only relies on a row locks it as one who changes it does: of those who may share a lock there can always be one,
//! and who wants it alone would wait without end.

pub(crate) mod accounts;
mod bulk;
mod error;
pub(crate) mod groups;
pub(crate) mod invites;
pub(crate) mod keys;
mod mark;
pub(crate) mod message_ids;
mod migrations;
pub(crate) mod pipes;
mod pool;
mod postgres;
pub(crate) mod queue;
pub(crate) mod relay;
pub(crate) mod sessions;
mod sqlite;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, ops, path::PathBuf, sync::Arc};

use futures_util::future::BoxFuture;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use undertone_wire::DeviceId;

use mark::Judgement;

pub use error::StoreError;
pub(crate) use postgres::Listener;
pub use postgres::PostgresConfig;

use crate::{clock::Random, kill, wake::Wake};

/// Most writes that wait or run. Beyond that a caller is better told to come again than made to wait.
const WRITES_MAX: usize = 512;

/// Most of them that are for somebody without a session: challenges, log-ins, registrations, recoveries, parts of
/// pipes.
const STRANGERS_MAX: usize = 64;

/// Where the store is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In one SQLite file, made if it is missing.
    Sqlite(PathBuf),
    /// In a Postgres database, which other nodes may use at the same time.
    Postgres(PostgresConfig),
}

/// The database; cheap to clone.
#[derive(Clone)]
pub(crate) struct Db {
    backend: Backend,
    /// A permit for each write that waits or runs.
    writes: Arc<Semaphore>,
    /// A permit for each of them that is for somebody without a session.
    strangers: Arc<Semaphore>,
    wake: Arc<Wake>,
}

#[derive(Clone)]
enum Backend {
    Sqlite(sqlite::Sqlite),
    Postgres(postgres::Postgres),
}

/// A connection inside a transaction: what it reads is of one moment.
pub(crate) enum Conn {
    /// On SQLite.
    Sqlite(sqlx::Transaction<'static, sqlx::Sqlite>),
    /// On Postgres.
    Postgres(pool::Link),
}

/// A connection that may also write.
pub(crate) struct Tx {
    conn: Conn,
    mail_for: Vec<DeviceId>,
    /// How many rows that pointed at an envelope are gone.
    released: BTreeMap<i64, i64>,
}

/// Evaluates an expression with `$db` as the connection of whichever database it is.
macro_rules! on {
    ($conn:expr, $db:ident => $expression:expr) => {
        match &mut $conn {
            $crate::store::Conn::Sqlite(transaction) => {
                let $db = &mut **transaction;
                $expression
            }
            $crate::store::Conn::Postgres(link) => $crate::store::pool::bounded!(link, $db => $expression),
        }
    };
}

/// Executes a statement with these parameters; evaluates to how many rows it changed.
macro_rules! execute {
    ($conn:expr, $statement:expr $(, $parameter:expr)* $(,)?) => {
        $crate::store::on!($conn, db => {
            let done = sqlx::query($statement)$(.bind($parameter))*.execute(db).await;
            done.map(|done| done.rows_affected())
        })
    };
}

use {execute, on};

impl Db {
    /// Opens the store, makes what is missing, migrates, and looks whether it is the one that it says it is. A SQLite
    /// store is open once at a time, a Postgres store as often as there are nodes.
    pub(crate) async fn open(place: &Place, wake: Arc<Wake>, random: Arc<dyn Random>) -> Result<Self, StoreError> {
        let lossless_failover = match place {
            Place::Sqlite(_) => false,
            Place::Postgres(config) => config.lossless_failover,
        };
        Self::open_as(place, wake, random, Judgement::Copy { lossless_failover }).await
    }

    /// Opens a store that was restored from a backup: it begins a new incarnation.
    pub(crate) async fn open_restored(place: &Place, random: Arc<dyn Random>) -> Result<Self, StoreError> {
        Self::open_as(place, Arc::default(), random, Judgement::Restored).await
    }

    /// Opens a store that was moved here whole, and is not used where it was any more: it goes on.
    pub(crate) async fn open_moved(place: &Place, random: Arc<dyn Random>) -> Result<Self, StoreError> {
        Self::open_as(place, Arc::default(), random, Judgement::Moved).await
    }

    async fn open_as(
        place: &Place,
        wake: Arc<Wake>,
        random: Arc<dyn Random>,
        judgement: Judgement,
    ) -> Result<Self, StoreError> {
        let backend = match place {
            Place::Sqlite(path) => Backend::Sqlite(sqlite::Sqlite::open(path, random, judgement).await?),
            Place::Postgres(config) => Backend::Postgres(postgres::Postgres::open(config, random, judgement).await?),
        };
        let [writes, strangers] = [WRITES_MAX, STRANGERS_MAX].map(|max| Arc::new(Semaphore::new(max)));
        Ok(Self { backend, writes, strangers, wake })
    }

    /// A connection to read with.
    pub(crate) async fn read(&self) -> Result<Conn, StoreError> {
        Ok(match &self.backend {
            Backend::Sqlite(sqlite) => Conn::Sqlite(sqlite.read().await?),
            Backend::Postgres(postgres) => Conn::Postgres(postgres.read().await?),
        })
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

    /// A place among the writes that may wait, for work that waits elsewhere before it comes here.
    pub(crate) fn slot(&self) -> Result<OwnedSemaphorePermit, StoreError> {
        slot(&self.writes)
    }

    /// Does `work`, which keeps its slots to its end.
    pub(crate) async fn run<T, E, W>(&self, slots: Vec<OwnedSemaphorePermit>, work: W) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
        W: for<'tx> FnOnce(&'tx mut Tx) -> BoxFuture<'tx, Result<T, E>> + Send + 'static,
    {
        let (wake, backend) = (Arc::clone(&self.wake), self.backend.clone());
        let task = tokio::spawn(async move {
            let _slots = slots;
            let conn = match &backend {
                Backend::Sqlite(sqlite) => Conn::Sqlite(sqlite.begin_write().await?),
                Backend::Postgres(postgres) => Conn::Postgres(postgres.begin_write().await?),
            };
            let mut tx = Tx::new(conn);
            let answer = work(&mut tx).await?;
            let mail_for = tx.commit().await?;
            if !mail_for.is_empty() {
                kill::point("mail", kill::BEFORE_WAKE);
            }
            wake.wake(&mail_for);
            Ok(answer)
        });
        task.await.unwrap_or_else(|_| Err(StoreError::Interrupted.into()))
    }

    /// Whether other nodes may be over the same store.
    pub(crate) fn has_other_nodes(&self) -> bool {
        matches!(self.backend, Backend::Postgres(_))
    }

    /// Says something to all nodes, this one included. Where there are no others, nothing is said.
    pub(crate) async fn notify(&self, said: &[String]) -> Result<(), StoreError> {
        match &self.backend {
            Backend::Sqlite(_) => Ok(()),
            Backend::Postgres(postgres) => postgres.notify(said).await,
        }
    }

    /// Hears what nodes say from now on, where there may be others.
    pub(crate) async fn listen(&self) -> Result<Option<Listener>, StoreError> {
        match &self.backend {
            Backend::Sqlite(_) => Ok(None),
            Backend::Postgres(postgres) => postgres.listen().await.map(Some),
        }
    }

    /// How many transactions of one kind this database takes at a time with profit.
    pub(crate) fn writers(&self) -> usize {
        match &self.backend {
            Backend::Sqlite(_) => 1,
            Backend::Postgres(postgres) => postgres.writers(),
        }
    }

    /// Looks again whether the store is the one it was, and on SQLite makes copies made before noticeable.
    pub(crate) async fn look(&self) -> Result<(), StoreError> {
        match &self.backend {
            Backend::Sqlite(sqlite) => sqlite.renew_mark().await,
            Backend::Postgres(postgres) => postgres.look().await,
        }
    }

    /// Takes what was deleted out of the files as well. `false` if a reader stands in the way; try again.
    pub(crate) async fn checkpoint(&self) -> Result<bool, StoreError> {
        match &self.backend {
            Backend::Sqlite(sqlite) => sqlite.checkpoint().await,
            // Its own vacuum does; see the settings of the tables.
            Backend::Postgres(_) => Ok(true),
        }
    }

    /// Closes the store after the last checkpoint.
    pub(crate) async fn close(&self) -> Result<(), StoreError> {
        match &self.backend {
            Backend::Sqlite(sqlite) => sqlite.close().await,
            Backend::Postgres(postgres) => postgres.close().await,
        }
    }
}

/// A slot among the writes that may wait, if one is free.
fn slot(slots: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, StoreError> {
    Arc::clone(slots).try_acquire_owned().map_err(|_| StoreError::Busy)
}

impl Tx {
    fn new(conn: Conn) -> Self {
        Self { conn, mail_for: Vec::new(), released: BTreeMap::new() }
    }

    fn on_sqlite(transaction: sqlx::Transaction<'static, sqlx::Sqlite>) -> Self {
        Self::new(Conn::Sqlite(transaction))
    }

    fn on_postgres(link: pool::Link) -> Self {
        Self::new(Conn::Postgres(link))
    }

    /// Notes that a device has something to look at once this is committed.
    pub(crate) fn wake_after(&mut self, device: DeviceId) {
        self.mail_for.push(device);
    }

    /// Notes that a row is gone that pointed at an envelope. Until the commit the envelope counts it still, and stays, so
    /// that all envelopes of a transaction are locked at once: who only reads goes by the rows.
    fn release(&mut self, envelope: i64) {
        *self.released.entry(envelope).or_default() += 1;
    }

    /// Has envelopes count what points at them.
    async fn settle_released(&mut self) -> Result<(), StoreError> {
        let released = std::mem::take(&mut self.released);
        queue::lower_pointers(self, &released).await
    }

    async fn commit(mut self) -> Result<Vec<DeviceId>, StoreError> {
        self.settle_released().await?;
        match self.conn {
            Conn::Sqlite(transaction) => transaction.commit().await?,
            Conn::Postgres(mut link) => link.commit().await?,
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
