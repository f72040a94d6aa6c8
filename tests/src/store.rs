//! Where a relay keeps what it knows: a SQLite file or a Postgres database, the same to most tests.
//!
//! Invariant: no store is shared by two tests. What looks into it from outside only reads, unless its name says otherwise.

use std::path::{Path, PathBuf};

use sqlx::{AssertSqlSafe, Connection as _, PgConnection, SqliteConnection, sqlite::SqliteConnectOptions};
use undertone_server::{Place, PostgresConfig};
use undertone_test_postgres::{Cluster, Database, Options, database};

/// Which of the two databases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// A file in the relay's data folder.
    Sqlite,
    /// A database on a server.
    Postgres,
}

/// Two tests out of a function that takes a [`Backend`]: `on_both!(name)` makes `name::on_sqlite` and `name::on_postgres`.
#[macro_export]
macro_rules! on_both {
    ($($name:ident),+ $(,)?) => {$(
        mod $name {
            use $crate::Backend;

            #[tokio::test(flavor = "multi_thread")]
            async fn on_sqlite() {
                super::$name(Backend::Sqlite).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn on_postgres() {
                super::$name(Backend::Postgres).await;
            }
        }
    )+};
}

/// A store for one relay, or for several nodes.
pub struct Store {
    folder: PathBuf,
    database: Held,
}

/// What holds the rows, for as long as the store is used.
enum Held {
    Sqlite,
    Postgres(Database),
    Elsewhere(String),
}

impl Store {
    /// A new store. What belongs to it on disk is in `folder`; a Postgres database is on the server that tests share.
    pub async fn new(folder: &Path, backend: Backend) -> Self {
        let database = match backend {
            Backend::Sqlite => Held::Sqlite,
            Backend::Postgres => Held::Postgres(database(prepare).await),
        };
        Self { folder: folder.to_owned(), database }
    }

    /// A new store that shares nothing with other tests, and its cluster if it has one.
    pub async fn alone(folder: &Path, backend: Backend) -> (Self, Option<Cluster>) {
        match backend {
            Backend::Sqlite => (Self::new(folder, backend).await, None),
            Backend::Postgres => {
                let cluster = Cluster::new(Options::default()).await;
                (Self::on_cluster(folder, &cluster), Some(cluster))
            }
        }
    }

    /// A store in a cluster of the test's own, in the database `postgres`.
    pub fn on_cluster(folder: &Path, cluster: &Cluster) -> Self {
        Self::at_url(folder, &cluster.url("postgres"))
    }

    /// A store in a Postgres database.
    pub fn at_url(folder: &Path, url: &str) -> Self {
        Self { folder: folder.to_owned(), database: Held::Elsewhere(url.to_owned()) }
    }

    /// The folder for what belongs to the store.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The data folder of the relays. On Postgres nothing is written there.
    pub fn data(&self) -> PathBuf {
        self.folder.join("relay")
    }

    /// Which database it is.
    pub fn backend(&self) -> Backend {
        if self.url().is_some() { Backend::Postgres } else { Backend::Sqlite }
    }

    /// The URL of the Postgres database, if it is one.
    pub fn url(&self) -> Option<&str> {
        match &self.database {
            Held::Sqlite => None,
            Held::Postgres(database) => Some(database.url()),
            Held::Elsewhere(url) => Some(url),
        }
    }

    /// The SQLite file.
    pub fn file(&self) -> PathBuf {
        self.data().join("undertone.db")
    }

    /// The number that a statement without parameters answers.
    ///
    /// # Panics
    /// If it answers anything else.
    pub async fn number(&self, statement: &str) -> i64 {
        let statement = AssertSqlSafe(statement.to_owned());
        let number = match self.url() {
            None => sqlx::query_scalar(statement).fetch_one(&mut self.sqlite(true).await).await,
            Some(url) => sqlx::query_scalar(statement).fetch_one(&mut postgres(url).await).await,
        };
        number.expect("a number")
    }

    /// The byte strings that a statement without parameters answers.
    ///
    /// # Panics
    /// If it answers anything else.
    pub async fn blobs(&self, statement: &str) -> Vec<Vec<u8>> {
        let statement = AssertSqlSafe(statement.to_owned());
        let blobs = match self.url() {
            None => sqlx::query_scalar(statement).fetch_all(&mut self.sqlite(true).await).await,
            Some(url) => sqlx::query_scalar(statement).fetch_all(&mut postgres(url).await).await,
        };
        blobs.expect("byte strings")
    }

    /// Changes the store behind the relay's back. On SQLite no relay may be running.
    ///
    /// # Panics
    /// If the statement is refused.
    pub async fn change(&self, statement: &str) {
        let statement = AssertSqlSafe(statement.to_owned());
        let done = match self.url() {
            None => sqlx::raw_sql(statement).execute(&mut self.sqlite(false).await).await.map(drop),
            Some(url) => sqlx::raw_sql(statement).execute(&mut postgres(url).await).await.map(drop),
        };
        done.expect("the statement is accepted");
    }

    /// Asserts that a SQLite file is whole, by looking at a copy of it. No relay may be running. Postgres looks by itself.
    ///
    /// # Panics
    /// If it is not.
    pub async fn assert_whole(&self) {
        if self.backend() == Backend::Postgres {
            return;
        }
        let copy = self.folder.join("looked-at");
        std::fs::create_dir_all(&copy).expect("a folder can be made");
        for suffix in ["", "-wal"] {
            let name = format!("undertone.db{suffix}");
            let (from, to) = (self.data().join(&name), copy.join(&name));
            if from.exists() {
                std::fs::copy(from, to).expect("a file can be copied");
            }
        }
        let options = SqliteConnectOptions::new().filename(copy.join("undertone.db"));
        let mut looking = SqliteConnection::connect_with(&options).await.expect("the copy can be opened");
        let verdict = sqlx::query_scalar::<_, String>("PRAGMA integrity_check").fetch_all(&mut looking).await;
        assert_eq!(verdict.expect("the copy can be read"), ["ok"]);
        looking.close().await.expect("the copy can be closed");
        std::fs::remove_dir_all(copy).expect("the copy can be removed");
    }

    async fn sqlite(&self, read_only: bool) -> SqliteConnection {
        let options = SqliteConnectOptions::new().filename(self.file()).read_only(read_only);
        SqliteConnection::connect_with(&options).await.expect("the file can be opened")
    }
}

async fn postgres(url: &str) -> PgConnection {
    PgConnection::connect(url).await.expect("the database can be reached")
}

/// Makes the schema, and no identity: each database begins as a relay of its own.
async fn prepare(template: String) {
    let place = Place::Postgres(PostgresConfig::new(template.as_str()));
    undertone_server::migrate(&place).await.expect("the template can be migrated");
    let forgotten = sqlx::query("DELETE FROM relay").execute(&mut postgres(&template).await).await;
    forgotten.expect("the identity can be forgotten");
}
