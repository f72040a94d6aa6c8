//! Where a test's relay keeps what it keeps, and how a test looks into it from outside.
//!
//! Invariant: what holds on one database is tested on the other: [`both!`] names each test once and makes two of it, and a
//! test that it does not name is dead code, which the lints refuse.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use sqlx::{
    AssertSqlSafe, ConnectOptions as _, Connection as _, FromRow, PgConnection, SqliteConnection,
    postgres::PgRow,
    sqlite::{SqliteConnectOptions, SqliteRow},
};
use tempfile::TempDir;
use undertone_server::{Place, PostgresConfig};
use undertone_test_postgres::Database;

/// Connections of a node: all tests of the process share one server.
const CONNECTIONS: u32 = 6;

/// Makes two tests of each of these functions, one for each database, in modules of their names.
macro_rules! both {
    ($($name:ident,)+) => {
        mod sqlite {
            $(#[tokio::test]
            async fn $name() {
                super::$name($crate::support::Backend::Sqlite).await;
            })+
        }
        mod postgres {
            $(#[tokio::test]
            async fn $name() {
                super::$name($crate::support::Backend::Postgres).await;
            })+
        }
    };
}

pub(crate) use both;

/// Which database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Backend {
    Sqlite,
    Postgres,
}

/// A store of a test's own, that disappears with this.
pub(crate) enum Store {
    Sqlite(TempDir),
    Postgres(Database),
}

/// What a row must be to be read from either database.
pub(crate) trait Row: for<'r> FromRow<'r, SqliteRow> + for<'r> FromRow<'r, PgRow> + Send + Unpin {}

impl<T> Row for T where T: for<'r> FromRow<'r, SqliteRow> + for<'r> FromRow<'r, PgRow> + Send + Unpin {}

impl Store {
    /// A store that no relay has seen yet. On Postgres it has the schema and nothing more.
    pub(crate) async fn new(on: Backend) -> Self {
        match on {
            Backend::Sqlite => Self::Sqlite(tempfile::tempdir().unwrap()),
            Backend::Postgres => Self::Postgres(undertone_test_postgres::database(prepare).await),
        }
    }

    pub(crate) fn place(&self) -> Place {
        match self {
            Self::Sqlite(_) => Place::Sqlite(self.file()),
            Self::Postgres(database) => Place::Postgres(postgres(database.url())),
        }
    }

    /// The folder with the SQLite file.
    pub(crate) fn folder(&self) -> &Path {
        match self {
            Self::Sqlite(folder) => folder.path(),
            Self::Postgres(_) => panic!("Postgres has no file of one's own"),
        }
    }

    /// The SQLite file.
    pub(crate) fn file(&self) -> PathBuf {
        self.folder().join("undertone.db")
    }

    /// The Postgres database.
    pub(crate) fn database(&self) -> &Database {
        match self {
            Self::Sqlite(_) => panic!("there is no Postgres"),
            Self::Postgres(database) => database,
        }
    }

    /// What a query answers.
    pub(crate) async fn select<T: Row>(&self, statement: &str) -> Vec<T> {
        let statement = AssertSqlSafe(statement.to_owned());
        match self {
            Self::Sqlite(_) => sqlx::query_as(statement).fetch_all(&mut self.sqlite(true).await).await.unwrap(),
            Self::Postgres(database) => {
                sqlx::query_as(statement).fetch_all(&mut connect(database.url()).await).await.unwrap()
            }
        }
    }

    /// Changes what is stored, behind the relay's back.
    pub(crate) async fn change(&self, statement: &str) {
        let statement = AssertSqlSafe(statement.to_owned());
        match self {
            Self::Sqlite(_) => sqlx::raw_sql(statement).execute(&mut self.sqlite(false).await).await.map(drop).unwrap(),
            Self::Postgres(database) => {
                sqlx::raw_sql(statement).execute(&mut connect(database.url()).await).await.map(drop).unwrap();
            }
        }
    }

    /// How many rows a table has.
    pub(crate) async fn rows(&self, table: &str) -> i64 {
        let counted: Vec<(i64,)> = self.select(&format!("SELECT COUNT(*) FROM {table}")).await;
        counted[0].0
    }

    /// The tables' columns with their types, as `table`, `column`, `type`.
    pub(crate) async fn columns(&self) -> Vec<(String, String, String)> {
        let statement = match self {
            Self::Sqlite(_) => {
                "SELECT m.name, c.name, lower(c.type) FROM sqlite_schema m JOIN pragma_table_info(m.name) c
                 WHERE m.type = 'table' AND m.name NOT LIKE 'sqlite_%' AND m.name NOT LIKE '\\_sqlx%' ESCAPE '\\'"
            }
            Self::Postgres(_) => {
                "SELECT table_name::text, column_name::text, data_type::text FROM information_schema.columns
                 WHERE table_schema = 'public' AND table_name NOT LIKE '\\_sqlx%'"
            }
        };
        self.select(statement).await
    }

    /// In which columns these bytes are, as `table.column`, and in how many rows of each.
    pub(crate) async fn found(&self, bytes: &[u8]) -> BTreeMap<String, i64> {
        let mut found = BTreeMap::new();
        for (table, column, of) in self.columns().await {
            if ["blob", "bytea"].contains(&of.as_str()) {
                found.insert(format!("{table}.{column}"), self.rows_with(&table, &column, bytes).await);
            }
        }
        found.retain(|_, rows| *rows > 0);
        found
    }

    async fn rows_with(&self, table: &str, column: &str, bytes: &[u8]) -> i64 {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let found = match self {
            Self::Sqlite(_) => format!("instr(\"{column}\", x'{hex}') > 0"),
            Self::Postgres(_) => format!("position('\\x{hex}'::bytea IN \"{column}\") > 0"),
        };
        self.rows(&format!("\"{table}\" WHERE {found}")).await
    }

    async fn sqlite(&self, read_only: bool) -> SqliteConnection {
        SqliteConnectOptions::new().filename(self.file()).read_only(read_only).connect().await.unwrap()
    }
}

/// How a test's relay uses a database.
pub(crate) fn postgres(url: &str) -> PostgresConfig {
    let mut config = PostgresConfig::new(url);
    config.connections = CONNECTIONS;
    config
}

/// A connection to a database.
pub(crate) async fn connect(url: &str) -> PgConnection {
    PgConnection::connect(url).await.unwrap()
}

/// Brings the schema into the template, and leaves to each database that is cloned from it to become a relay of its own.
async fn prepare(url: String) {
    undertone_server::migrate(&Place::Postgres(postgres(&url))).await.unwrap();
    let mut connection = connect(&url).await;
    sqlx::query("DELETE FROM relay").execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
}
