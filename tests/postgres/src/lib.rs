//! Throw-away Postgres for tests: clusters of one's own, and databases cloned from a template.
//!
//! [`database()`] is what most tests want: a fresh database with the schema in it, on a server that all tests of the process
//! share. [`Cluster`] is for tests that stop Postgres, kill it, fail over or read its log. Clusters are made from the
//! system's Postgres (15 or newer) and are gone when the process that asked for them is, however that ends, `SIGKILL`
//! included. Like all of a test's tools, these functions panic when they cannot do what they say.
//!
//! ```
//! use sqlx::Connection as _;
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
//! let database = undertone_test_postgres::database(async |template| {
//!     let mut connection = sqlx::PgConnection::connect(&template).await.unwrap();
//!     sqlx::query("CREATE TABLE letter (body TEXT)").execute(&mut connection).await.unwrap();
//!     connection.close().await.unwrap();
//! })
//! .await;
//! let mut connection = sqlx::PgConnection::connect(database.url()).await.unwrap();
//! sqlx::query("INSERT INTO letter VALUES ('hello')").execute(&mut connection).await.unwrap();
//! # });
//! ```
#![expect(clippy::panic, reason = "a test that cannot go on says so")]

mod binaries;
mod cluster;
mod database;
mod keeper;
mod server;
mod shared;

pub use cluster::{Cluster, Options};
pub use database::{Database, database};

use std::panic::resume_unwind;

/// Does what blocks on a thread where it may. A panic there goes on here.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| resume_unwind(e.into_panic()))
}
