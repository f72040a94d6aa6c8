//! What only SQLite must be told: one connection writes, and what is deleted is gone.

use super::*;
use crate::store::{Conn, on};

async fn pragma(conn: &mut Conn, statement: &'static str) -> String {
    let row: sqlx::sqlite::SqliteRow = on!(*conn, db => sqlx::query(statement).fetch_one(db).await).unwrap();
    let text = sqlx::Row::try_get::<String, _>(&row, 0);
    text.or_else(|_| sqlx::Row::try_get::<i64, _>(&row, 0).map(|number| number.to_string())).unwrap()
}

#[tokio::test]
async fn the_writer_is_durable_and_forgets() {
    let fresh = fresh_sqlite().await;
    let pragmas = fresh.db.write(|tx| {
        Box::pin(async move {
            let mut values = Vec::new();
            for name in [
                "PRAGMA journal_mode",
                "PRAGMA synchronous",
                "PRAGMA secure_delete",
                "PRAGMA foreign_keys",
                "PRAGMA temp_store",
            ] {
                values.push(pragma(tx, name).await);
            }
            Ok::<_, StoreError>(values)
        })
    });
    assert_eq!(pragmas.await.unwrap(), ["wal", "2", "1", "1", "2"]);
}

/// SQLite before 3.51.3 may corrupt a log that two connections reset. Until the one in the lockfile is newer, no
/// connection but one may write, a checkpoint included.
#[tokio::test]
async fn all_connections_but_one_are_read_only() {
    let fresh = fresh_sqlite().await;
    let mut readers = Vec::new();
    for _ in 0..4 {
        readers.push(fresh.db.read().await.unwrap());
    }
    for reader in &mut readers {
        let Conn::Sqlite(db) = reader;
        let written = sqlx::query("DELETE FROM challenges").execute(&mut **db).await;
        assert!(written.unwrap_err().to_string().contains("readonly"));
        assert_eq!(pragma(reader, "PRAGMA query_only").await, "1");
        assert_eq!(pragma(reader, "PRAGMA temp_store").await, "2", "nothing is written beside the database");
    }
    let Db { backend: crate::store::Backend::Sqlite(sqlite), .. } = &fresh.db;
    assert_eq!(sqlite.writers_max(), 1);
}

#[tokio::test]
async fn a_checkpoint_empties_the_log_unless_a_reader_stands_in_the_way() {
    let fresh = fresh_sqlite().await;
    let log_bytes = || std::fs::metadata(fresh.folder.path().join("undertone.db-wal")).unwrap().len();
    let mut reader = fresh.db.read().await.unwrap();
    pragma(&mut reader, "SELECT COUNT(*) FROM accounts").await;
    fresh.db.write(|tx| Box::pin(async move { add_account(tx, &[1]).await })).await.unwrap();
    assert!(log_bytes() > 0);
    assert!(!fresh.db.checkpoint().await.unwrap());
    drop(reader);
    while !fresh.db.checkpoint().await.unwrap() {
        tokio::task::yield_now().await;
    }
    assert_eq!(log_bytes(), 0);
}

/// How SQLite goes about a statement.
async fn plan(statement: &str) -> String {
    let fresh = fresh_sqlite().await;
    let explained = sqlx::AssertSqlSafe(format!("EXPLAIN QUERY PLAN {statement}"));
    let Conn::Sqlite(db) = &mut fresh.db.read().await.unwrap();
    let steps: Vec<(i64, i64, i64, String)> = sqlx::query_as(explained).fetch_all(&mut **db).await.unwrap();
    steps.into_iter().map(|(.., step)| step + "\n").collect()
}

#[tokio::test]
async fn pages_are_measured_before_payloads_are_read_and_expiring_sorts_nothing() {
    for page in [queue::PAGE, groups::COMMITS_AFTER] {
        let plan = plan(page).await;
        assert!(plan.contains("MATERIALIZE sized"), "{plan}");
    }
    let plan = plan(queue::EXPIRE).await;
    assert!(plan.contains("envelopes_by_hour") && !plan.contains("TEMP B-TREE"), "{plan}");
}
