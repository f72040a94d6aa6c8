//! SQLite: one file, one connection that writes, a few that read.
//!
//! Invariant: exactly one connection does every write and every checkpoint, and all others are read-only (SQLite before
//! 3.51.3 may corrupt a WAL that two connections reset). A lock file beside the database keeps other processes out.

use std::{
    fs::{DirBuilder, File, OpenOptions, TryLockError},
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use sqlx::{
    ConnectOptions as _, SqlSafeStr as _, SqlitePool, Transaction,
    migrate::{Migration, MigrationType, Migrator},
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

use super::StoreError;

const READERS: u32 = 4;

/// Longest wait for a connection before the caller is told to come again.
const BUSY_AFTER: Duration = Duration::from_secs(30);

/// How long a checkpoint may wait for readers, and every writer with it. Nothing else waits for a lock in here.
const CHECKPOINT_WAIT: Duration = Duration::from_millis(200);

/// The migrations, oldest first; see `migrations/README.md`.
const MIGRATIONS: &[(i64, &str, &str)] = &[(1, "init", include_str!("../../../migrations/sqlite/0001_init.sql"))];

/// Truncates the write-ahead log, so that deleted bytes are in no file. Answers 1 first if a reader stands in the way.
const CHECKPOINT: &str = "PRAGMA wal_checkpoint(TRUNCATE)";

/// An open file.
#[derive(Clone)]
pub(super) struct Sqlite {
    writer: SqlitePool,
    readers: SqlitePool,
    _lock: Arc<File>,
}

impl Sqlite {
    /// Opens the file, makes what is missing, for the owner's eyes only, and migrates.
    pub(super) async fn open(path: &Path) -> Result<Self, StoreError> {
        make_folder(path.parent().unwrap_or(Path::new(".")))?;
        let lock = lock(path)?;
        make_file(path)?;

        let options = SqliteConnectOptions::new()
            .filename(path)
            .foreign_keys(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .pragma("secure_delete", "ON")
            .pragma("temp_store", "MEMORY")
            .busy_timeout(CHECKPOINT_WAIT)
            .disable_statement_logging();
        let writer = pool(1).connect_with(options).await?;
        migrator().run(&writer).await?;

        let options = SqliteConnectOptions::new()
            .filename(path)
            .read_only(true)
            .pragma("query_only", "ON")
            .pragma("temp_store", "MEMORY")
            .disable_statement_logging();
        let readers = pool(READERS).connect_with(options).await?;
        Ok(Self { writer, readers, _lock: Arc::new(lock) })
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
        self.readers.close().await;
        let emptied = self.checkpoint().await;
        self.writer.close().await;
        emptied.map(|_| ())
    }
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

fn migrator() -> Migrator {
    let migrations = MIGRATIONS.iter().map(|&(version, name, sql)| {
        Migration::new(version, name.into(), MigrationType::Simple, sql.into_sql_str(), false)
    });
    Migrator::with_migrations(migrations.collect())
}

fn lock(database: &Path) -> Result<File, StoreError> {
    let mut path = database.as_os_str().to_owned();
    path.push(".lock");
    let path = PathBuf::from(path);
    let file = private_file().open(&path).map_err(at(&path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::InUse(database.to_owned())),
        Err(TryLockError::Error(error)) => Err(StoreError::File { path, error }),
    }
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

fn private_file() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    |error| StoreError::File { path, error }
}
