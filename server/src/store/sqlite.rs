//! SQLite: one file, one connection that writes, a few that read.
//!
//! Invariant: exactly one connection does every write and every checkpoint, and all others are read-only (SQLite before
//! 3.51.3 may corrupt a WAL that two connections reset). A lock file beside the database keeps other processes out.

use std::{
    fs::{DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use sqlx::{
    ConnectOptions as _, Connection as _, SqliteConnection, SqlitePool, Transaction,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

use super::{
    Conn, StoreError, Tx,
    mark::{self, Judgement, Marker},
    migrations, relay,
};
use crate::{clock::Random, kill};

const READERS: u32 = 4;

/// Longest wait for a connection before the caller is told to come again.
const BUSY_AFTER: Duration = Duration::from_secs(30);

/// How long a checkpoint may wait for readers, and every writer with it. Nothing else waits for a lock in here.
const CHECKPOINT_WAIT: Duration = Duration::from_millis(200);

/// Looks whether the file is whole, as far as that can be seen without comparing its indexes; `ok` if it is.
const QUICK_CHECK: &str = "PRAGMA quick_check(1)";

/// Codes of SQLite for a file that is damaged, and for one that is no database.
const DAMAGED: [&str; 2] = ["11", "26"];

/// With what the file of a SQLite database begins.
const HEAD: &[u8] = b"SQLite format 3\0";

/// Truncates the write-ahead log, so that deleted bytes are in no file. Answers 1 first if a reader stands in the way.
const CHECKPOINT: &str = "PRAGMA wal_checkpoint(TRUNCATE)";

/// An open file.
#[derive(Clone)]
pub(super) struct Sqlite {
    writer: SqlitePool,
    readers: SqlitePool,
    marker: Arc<Mutex<Marker>>,
    /// Held while the mark is renewed: of two at a time, each would keep another mark as good than is seen.
    renewing: Arc<tokio::sync::Mutex<()>>,
    random: Arc<dyn Random>,
    _lock: Arc<File>,
}

impl Sqlite {
    /// Opens the file, makes what is missing, for the owner's eyes only, migrates, and settles which incarnation of the
    /// store this is.
    pub(super) async fn open(path: &Path, random: Arc<dyn Random>, judgement: Judgement) -> Result<Self, StoreError> {
        make_folder(path.parent().unwrap_or(Path::new(".")))?;
        check_kind(path)?;
        let lock = lock(path)?;
        make_file(path)?;
        let marker = Marker::open(path)?;
        check_copy(path, marker.seen(), judgement).await?;

        let options = SqliteConnectOptions::new()
            .filename(path)
            .foreign_keys(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .pragma("secure_delete", "ON")
            .pragma("temp_store", "MEMORY")
            .busy_timeout(CHECKPOINT_WAIT)
            .disable_statement_logging();
        let writer = pool(1).after_release(|connection, _| Box::pin(is_idle(connection)));
        let writer = writer.connect_with(options).await?;
        migrations::sqlite().run(&writer).await?;
        kill::point("migration", kill::HALFWAY);

        let options = SqliteConnectOptions::new()
            .filename(path)
            .read_only(true)
            .pragma("query_only", "ON")
            .pragma("temp_store", "MEMORY")
            .disable_statement_logging();
        let readers = pool(READERS).connect_with(options).await?;
        let (marker, renewing) = (Arc::new(Mutex::new(marker)), Arc::default());
        let sqlite = Self { writer, readers, marker, renewing, random, _lock: Arc::new(lock) };
        sqlite.settle(judgement).await?;
        Ok(sqlite)
    }

    async fn settle(&self, judgement: Judgement) -> Result<(), StoreError> {
        let seen = self.marker().seen().to_owned();
        let mut tx = Tx::on_sqlite(self.begin_write().await?);
        mark::settle(&mut tx, &*self.random, &seen, judgement).await?;
        tx.commit().await?;
        self.renew_mark().await
    }

    /// Gives the store a new mark, so that copies made before are noticed. A crash in between leaves both good.
    pub(super) async fn renew_mark(&self) -> Result<(), StoreError> {
        let _alone = self.renewing.lock().await;
        let (seen, next) = {
            let marker = self.marker();
            (marker.seen().to_owned(), marker.next(&*self.random)?)
        };
        let mut tx = Tx::on_sqlite(self.begin_write().await?);
        relay::remark(&mut tx, &seen, next.seen()).await?;
        tx.commit().await?;
        kill::point("mark", kill::HALFWAY);
        self.marker().become_next(next)
    }

    fn marker(&self) -> MutexGuard<'_, Marker> {
        self.marker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A transaction of the one connection that writes. It is the only one at a time.
    pub(super) async fn begin_write(&self) -> Result<Transaction<'static, sqlx::Sqlite>, StoreError> {
        Ok(self.writer.begin_with("BEGIN IMMEDIATE").await?)
    }

    /// A transaction that reads.
    pub(super) async fn read(&self) -> Result<Transaction<'static, sqlx::Sqlite>, StoreError> {
        Ok(self.readers.begin().await?)
    }

    /// Empties the write-ahead log; `false` if a reader stands in the way.
    pub(super) async fn checkpoint(&self) -> Result<bool, StoreError> {
        let (busy, _, _): (i64, i64, i64) = sqlx::query_as(CHECKPOINT).fetch_one(&self.writer).await?;
        Ok(busy == 0)
    }

    /// How many connections may write.
    #[cfg(test)]
    pub(super) fn writers_max(&self) -> u32 {
        self.writer.options().get_max_connections()
    }

    /// Closes all connections, the readers first, so that the last checkpoint finds nobody in its way.
    pub(super) async fn close(&self) -> Result<(), StoreError> {
        self.renew_mark().await?;
        self.readers.close().await;
        let emptied = self.checkpoint().await;
        self.writer.close().await;
        emptied.map(|_| ())
    }
}

/// Refuses what is no SQLite database before anything is made beside it.
fn check_kind(path: &Path) -> Result<(), StoreError> {
    let mut head = Vec::new();
    match File::open(path).and_then(|file| file.take(HEAD.len() as u64).read_to_end(&mut head)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(at(path)(error)),
        // What was made and never written is empty.
        Ok(_) if head.is_empty() || head == HEAD => Ok(()),
        Ok(_) => Err(StoreError::NotSqlite(path.to_owned())),
    }
}

/// Looks whether a file that is not known by its mark, and so is a copy or was just made, is whole. A copy that was put
/// beside the log of another state is not: SQLite lays the one over the other. Nothing is written, so that a copy that was
/// put there stays as it is.
async fn check_copy(path: &Path, seen: &str, judgement: Judgement) -> Result<(), StoreError> {
    let damaged = |error: StoreError| match &error {
        StoreError::Database(sqlx::Error::Database(said))
            if said.code().is_some_and(|code| DAMAGED.contains(&code.as_ref())) =>
        {
            StoreError::Damaged(path.to_owned())
        }
        _ => error,
    };
    let options = SqliteConnectOptions::new().filename(path).read_only(true).disable_statement_logging();
    let pool = pool(1).connect_with(options).await.map_err(|error| damaged(error.into()))?;
    let checked = async {
        let mut conn = Conn::Sqlite(pool.begin().await?);
        // Whatever stands in the way of reading the mark, it is not known.
        if judgement.is_copy() && mark::is_known(&mut conn, seen).await.unwrap_or(false) {
            return Ok(());
        }
        let Conn::Sqlite(mut transaction) = conn else { return Err(StoreError::Interrupted) };
        let said: String = sqlx::query_scalar(QUICK_CHECK).fetch_one(&mut *transaction).await?;
        if said == "ok" { Ok(()) } else { Err(StoreError::Damaged(path.to_owned())) }
    };
    let checked = checked.await.map_err(damaged);
    pool.close().await;
    checked
}

fn pool(connections: u32) -> SqlitePoolOptions {
    SqlitePoolOptions::new()
        .min_connections(1)
        .max_connections(connections)
        .acquire_timeout(BUSY_AFTER)
        .idle_timeout(None)
        .max_lifetime(None)
        .test_before_acquire(false)
}

/// Whether a connection is of further use. A transaction that SQLite ended by itself, as it does when the disk is full,
/// may stand as open in the connection's books, and no other would ever begin on it.
async fn is_idle(connection: &mut SqliteConnection) -> Result<bool, sqlx::Error> {
    // What was asked of it before is done when this is.
    connection.ping().await?;
    Ok(!connection.is_in_transaction())
}

fn lock(database: &Path) -> Result<File, StoreError> {
    let path = beside(database, ".lock");
    let file = private_file().open(&path).map_err(at(&path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::InUse(database.to_owned())),
        Err(TryLockError::Error(error)) => Err(StoreError::File { path, error }),
    }
}

/// The path of a file that belongs to a database.
pub(super) fn beside(database: &Path, suffix: &str) -> PathBuf {
    let mut path = database.as_os_str().to_owned();
    path.push(suffix);
    PathBuf::from(path)
}

fn make_folder(folder: &Path) -> Result<(), StoreError> {
    if folder.as_os_str().is_empty() || folder.is_dir() {
        return Ok(());
    }
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder).map_err(at(folder))
}

fn make_file(path: &Path) -> Result<(), StoreError> {
    private_file().open(path).map(|_| ()).map_err(at(path))
}

pub(super) fn private_file() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

pub(super) fn at(path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    |error| StoreError::File { path, error }
}
