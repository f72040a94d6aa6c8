//! The local database: one file, encrypted as a whole, with one thread that owns the only connection.
//!
//! [`Store::with_tx`] is the only way to read or write. Whatever belongs to one step (ratchet or MLS state, the
//! message, the cursor, the outbox, the event for the app) is written in one of its transactions, or not at all.
//!
//! Invariant: nothing leaves the device before the transaction that made it has committed, and one process at a time
//! has the file open.

mod aside;
mod contacts;
mod conversations;
mod devices;
mod events;
mod groups;
mod healings;
mod held;
mod key_packages;
mod loaded;
mod messages;
mod mls;
mod outbox;
pub(crate) mod points;
mod prekeys;
mod profile;
mod publications;
mod receipts;
mod recoveries;
mod requests;
mod search;
mod sessions;
mod trust;

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    fs::{self, File, TryLockError},
    ops::Deref,
    panic::{self, AssertUnwindSafe},
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
};

use openmls_rust_crypto::RustCrypto;
use openmls_sqlite_storage::SqliteStorageProvider;
use rusqlite::{Connection, OpenFlags, Params, Row, TransactionBehavior};
use tokio::sync::{oneshot, watch};
use undertone_wire::Encoding;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::{Error, crypto::CryptoError};

pub(crate) use aside::Aside;
pub(crate) use contacts::Listed;
pub(crate) use groups::{GroupRow, GroupState};
pub(crate) use healings::Healing;
pub(crate) use key_packages::LastResort;
use loaded::Loaded;
pub(crate) use messages::{HistoryPage, MessageRow};
pub use messages::{MessageStatus, SendFailure};
pub(crate) use outbox::{OutboxRow, OutboxState, Task};
use points::Points;
pub(crate) use profile::Profile;
pub(crate) use publications::Publication;
pub(crate) use receipts::Said;
pub(crate) use recoveries::{Recovery, RecoveryStep, Successor, Why};
pub(crate) use requests::Standing;
pub(crate) use search::{WORDS_MAX, Words};
pub(crate) use sessions::SessionRow;

const DATABASE: &str = "undertone.db";
const LOCK: &str = "lock";

/// So many statements are kept ready; there are fewer.
const STATEMENTS_MAX: usize = 512;

/// Each file raises `user_version` by one. A shipped file is never edited.
const MIGRATIONS: &[&str] = &[
    include_str!("schema/0001_init.sql"),
    include_str!("schema/0002_relays.sql"),
    include_str!("schema/0003_refusals.sql"),
    include_str!("schema/0004_recoveries.sql"),
    include_str!("schema/0005_successors_and_updates.sql"),
    include_str!("schema/0006_receipts.sql"),
    include_str!("schema/0007_instances.sql"),
    include_str!("schema/0008_requests.sql"),
    include_str!("schema/0009_at_size.sql"),
    include_str!("schema/0010_search.sql"),
    include_str!("schema/0011_prekeys.sql"),
    include_str!("schema/0012_conversations.sql"),
    include_str!("schema/0013_sessions.sql"),
    include_str!("schema/0014_healings.sql"),
    include_str!("schema/0015_devices.sql"),
    include_str!("schema/0016_trust.sql"),
    include_str!("schema/0017_suites.sql"),
    include_str!("schema/0018_untrusted.sql"),
    include_str!("schema/0019_leaf_keys.sql"),
];

/// The one after which the history is to be found by its words.
const SEARCH: usize = 10;

/// What a local store is encrypted with.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
#[non_exhaustive]
pub enum StoreKey {
    /// A passphrase, stretched by SQLCipher (PBKDF2, 256,000 rounds).
    Passphrase(String),
    /// 32 random bytes, kept by the app where the platform keeps secrets.
    Raw32([u8; 32]),
}

impl std::fmt::Debug for StoreKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("StoreKey(..)")
    }
}

impl StoreKey {
    /// The value of `PRAGMA key`. A passphrase is marked as one, because SQLCipher takes text of the form `x'..'` for a
    /// raw key.
    fn pragma(&self) -> Zeroizing<String> {
        Zeroizing::new(match self {
            Self::Passphrase(passphrase) => format!("passphrase {passphrase}"),
            Self::Raw32(key) => {
                let hex: Zeroizing<String> = Zeroizing::new(key.iter().map(|byte| format!("{byte:02x}")).collect());
                format!("x'{}'", *hex)
            }
        })
    }
}

/// Why the local database did not do what it should.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("the store is in use by another process")]
    InUse,
    #[error("the store cannot be opened with this key")]
    WrongKey,
    #[error("a passphrase has at least one character, and no NUL")]
    BadPassphrase,
    #[error("the store was written by a newer version")]
    Newer,
    #[error("the store cannot be used: {0}")]
    Io(#[from] std::io::Error),
    #[error("the local database failed: {0}")]
    Sqlite(#[from] rusqlite::Error),
    #[error("the local database holds what it should not: {0}")]
    Corrupt(String),
    #[error("the store is closed")]
    Closed,
}

impl From<CryptoError> for StoreError {
    fn from(error: CryptoError) -> Self {
        Self::Corrupt(error.to_string())
    }
}

type Work = Box<dyn FnOnce(&mut Connection, &Around, &mut Watchers) + Send>;

/// What the store's thread has beside the connection.
struct Around {
    crypto: RustCrypto,
    loaded: Loaded,
    points: Points,
}

/// What the store's thread is asked to do.
enum Job {
    Run(Work),
    /// Close the file and tell when it is free.
    Close(oneshot::Sender<()>),
}

type Outcome = Result<(), Error>;

/// A handle to the store; cheap to clone. The file is closed when the last one is dropped, or by [`Store::close`].
#[derive(Clone)]
pub(crate) struct Store {
    jobs: mpsc::Sender<Job>,
    events: watch::Receiver<()>,
    work: watch::Receiver<()>,
}

/// Whom the store's thread tells that a transaction has committed.
struct Watchers {
    events: watch::Sender<()>,
    work: watch::Sender<()>,
    tasks: HashMap<i64, oneshot::Sender<Outcome>>,
}

/// What a transaction has changed, as far as somebody waits for it.
#[derive(Default)]
struct Changes {
    events: Cell<bool>,
    work: Cell<bool>,
    finished: RefCell<Vec<(i64, Outcome)>>,
    watched: RefCell<Vec<(i64, oneshot::Sender<Outcome>)>>,
}

impl Watchers {
    fn tell(&mut self, changes: Changes) {
        self.tasks.extend(changes.watched.into_inner());
        for (id, outcome) in changes.finished.into_inner() {
            // Whoever waited may have stopped waiting.
            drop(self.tasks.remove(&id).map(|waiting| waiting.send(outcome)));
        }
        if changes.events.get() {
            self.events.send_replace(());
        }
        if changes.work.get() {
            self.work.send_replace(());
        }
    }
}

impl Store {
    /// Opens the store in the folder `path`, which is made if it is not there.
    pub(crate) async fn open(path: &Path, key: StoreKey) -> Result<Self, StoreError> {
        let (jobs, inbox) = mpsc::channel::<Job>();
        let (opened, ready) = oneshot::channel();
        let (events, events_changed) = watch::channel(());
        let (work, work_changed) = watch::channel(());
        let mut watchers = Watchers { events, work, tasks: HashMap::new() };
        let path = path.to_owned();
        thread::Builder::new().name("undertone-store".into()).spawn(move || match open_connection(&path, &key) {
            Ok((mut connection, lock)) => {
                drop(key);
                let (crypto, loaded) = (RustCrypto::default(), Loaded::default());
                let around = Around { crypto, loaded, points: Points::of(&path) };
                // If nobody waits any more, nothing comes in either.
                drop(opened.send(Ok(())));
                let mut closed = None;
                for job in &inbox {
                    match job {
                        Job::Run(work) => work(&mut connection, &around, &mut watchers),
                        Job::Close(tell) => {
                            closed = Some(tell);
                            break;
                        }
                    }
                }
                drop((inbox, connection, lock));
                if let Some(tell) = closed {
                    // Whoever asked may have stopped waiting.
                    tell.send(()).unwrap_or_default();
                }
            }
            Err(error) => drop(opened.send(Err(error))),
        })?;
        ready.await.map_err(|_| StoreError::Closed)??;
        Ok(Self { jobs, events: events_changed, work: work_changed })
    }

    /// Runs `work` in a transaction: committed if it answers `Ok`, rolled back otherwise. It runs to its end even if
    /// the caller stops waiting.
    pub(crate) async fn with_tx<T, E>(
        &self,
        work: impl FnOnce(&Tx<'_>) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        let (done, result) = oneshot::channel();
        let work: Work = Box::new(move |connection, around, watchers| {
            let outcome = run(connection, around, watchers, work);
            // The caller may have stopped waiting; the transaction stands either way.
            drop(done.send(outcome));
        });
        self.jobs.send(Job::Run(work)).map_err(|_| StoreError::Closed)?;
        result.await.map_err(|_| StoreError::Closed)?
    }

    /// Closes the file, whoever else has a handle; what they ask for then is [`StoreError::Closed`]. When this returns,
    /// the store can be opened again.
    pub(crate) async fn close(&self) {
        let (tell, closed) = oneshot::channel();
        if self.jobs.send(Job::Close(tell)).is_ok() {
            // An error means that it was closed before.
            drop(closed.await);
        }
    }

    /// Changes whenever an event was added.
    pub(crate) fn events_changed(&self) -> watch::Receiver<()> {
        self.events.clone()
    }

    /// Changes whenever there may be something to do: the outbox has changed, or what it waits for has come, or a group
    /// has, or who is to be looked at.
    pub(crate) fn work_changed(&self) -> watch::Receiver<()> {
        self.work.clone()
    }
}

fn run<T, E: From<StoreError>>(
    connection: &mut Connection,
    Around { crypto, loaded, points }: &Around,
    watchers: &mut Watchers,
    work: impl FnOnce(&Tx<'_>) -> Result<T, E>,
) -> Result<T, E> {
    if points.is_over() {
        return Err(StoreError::Closed.into());
    }
    loaded.drop_used();
    let before = connection.total_changes();
    let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(StoreError::from)?;
    let tx = Tx { tx, crypto, loaded, points, changes: Changes::default() };
    let value = work(&tx)?;
    let writes = tx.total_changes() > before;
    if writes {
        points.pass()?;
    }
    tx.tx.commit().map_err(StoreError::from)?;
    loaded.committed();
    if writes {
        points.pass()?;
    }
    watchers.tell(tx.changes);
    Ok(value)
}

impl Tx<'_> {
    /// Executes a statement that writes.
    fn execute(&self, sql: &str, values: impl Params) -> Result<usize, StoreError> {
        self.points.pass()?;
        Ok(self.tx.prepare_cached(sql)?.execute(values)?)
    }

    /// Reads a row. In place of the connection's own method, which prepares the statement each time.
    fn query_row<T>(
        &self,
        sql: &str,
        values: impl Params,
        read: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<T> {
        self.tx.prepare_cached(sql)?.query_row(values, read)
    }

    /// Does something that a message from outside may make impossible: then nothing of it is kept, and the transaction
    /// goes on without it. `None` says so. A panic in a library is taken for the same.
    pub(crate) fn attempt<T>(&self, work: impl FnOnce() -> Result<T, CryptoError>) -> Result<Option<T>, StoreError> {
        self.execute_batch("SAVEPOINT attempt")?;
        let reason = match panic::catch_unwind(AssertUnwindSafe(work)) {
            Ok(Ok(value)) => {
                self.execute_batch("RELEASE attempt")?;
                return Ok(Some(value));
            }
            Ok(Err(CryptoError::Invalid(reason))) => reason,
            Ok(Err(error @ CryptoError::Storage(_))) => return Err(error.into()),
            Err(_) => "a library panicked".to_owned(),
        };
        tracing::debug!(%reason, "not possible");
        self.execute_batch("ROLLBACK TO attempt; RELEASE attempt")?;
        self.loaded.drop_used();
        Ok(None)
    }
}

/// An open transaction. Its methods are in the rooms of this folder, one for each table.
pub(crate) struct Tx<'a> {
    tx: rusqlite::Transaction<'a>,
    crypto: &'a RustCrypto,
    loaded: &'a Loaded,
    points: &'a Points,
    changes: Changes,
}

impl Deref for Tx<'_> {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.tx
    }
}

fn open_connection(path: &Path, key: &StoreKey) -> Result<(Connection, File), StoreError> {
    if let StoreKey::Passphrase(passphrase) = key
        && (passphrase.is_empty() || passphrase.contains('\0'))
    {
        return Err(StoreError::BadPassphrase);
    }
    create_private_folder(path)?;
    let lock = File::create(path.join(LOCK))?;
    lock.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => StoreError::InUse,
        TryLockError::Error(error) => StoreError::Io(error),
    })?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path.join(DATABASE), flags)?;
    connection.pragma_update(None, "key", key.pragma().as_str())?;
    // SQLCipher would write its own account of a wrong key to stderr.
    connection.pragma_update(None, "cipher_log_level", "NONE")?;
    // The first read tells whether the key fits.
    match connection.query_row("SELECT count(*) FROM sqlite_master", [], |_| Ok(())) {
        Err(rusqlite::Error::SqliteFailure(error, _)) if error.code == rusqlite::ErrorCode::NotADatabase => {
            return Err(StoreError::WrongKey);
        }
        other => other?,
    }
    connection.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
    for (pragma, value) in
        [("journal_mode", "WAL"), ("synchronous", "FULL"), ("secure_delete", "ON"), ("foreign_keys", "ON")]
    {
        connection.pragma_update(None, pragma, value)?;
    }
    migrate(&mut connection)?;
    Ok((connection, lock))
}

fn migrate(connection: &mut Connection) -> Result<(), StoreError> {
    let version: usize = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if version > MIGRATIONS.len() {
        return Err(StoreError::Newer);
    }
    for (number, migration) in (1..).zip(MIGRATIONS).skip(version) {
        let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        tx.execute_batch(migration)?;
        if number == SEARCH {
            search::fill(&tx)?;
        }
        tx.pragma_update(None, "user_version", number)?;
        tx.commit()?;
    }
    SqliteStorageProvider::<mls::Cbor, _>::new(connection)
        .run_migrations()
        .map_err(|error| StoreError::Corrupt(error.to_string()))
}

fn create_private_folder(path: &Path) -> Result<(), StoreError> {
    let mut folder = fs::DirBuilder::new();
    folder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut folder, 0o700);
    Ok(folder.create(path)?)
}

/// Whether a store has been made in the folder `path`.
pub(crate) fn exists(path: &Path) -> bool {
    PathBuf::from(path).join(DATABASE).exists()
}

/// A column with an id or another type made of bytes.
fn bytes<T: for<'a> TryFrom<&'a [u8]>>(row: &Row<'_>, column: usize) -> rusqlite::Result<T> {
    let value = row.get_ref(column)?.as_blob()?;
    T::try_from(value).map_err(|_| not_expected(column, "bytes of another kind"))
}

/// The same, if it is not NULL.
fn bytes_if_any<T: for<'a> TryFrom<&'a [u8]>>(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<T>> {
    if row.get_ref(column)?.as_blob_or_null()?.is_some() { bytes(row, column).map(Some) } else { Ok(None) }
}

/// A column with a value in CBOR.
fn cbor<T: serde::de::DeserializeOwned>(row: &Row<'_>, column: usize) -> rusqlite::Result<T> {
    Encoding::Cbor.decode(row.get_ref(column)?.as_blob()?).map_err(|error| not_expected(column, &error.to_string()))
}

fn not_expected(column: usize, reason: &str) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Blob, reason.into())
}
