//! Migrations: the same on both databases, and run once however many nodes begin at a time.

use super::*;
use crate::store::{execute, migrations, relay};

/// A column: table, name, type in SQLite's words, whether it must have a value, whether it is part of the key.
type Column = (String, String, String, bool, bool);

/// An index: its name, and table and columns in their order.
type Index = (String, String, Vec<String>);

const SQLITE_COLUMNS: &str = r#"
    SELECT t.name, c.name, c.type, c."notnull", c.pk > 0 FROM sqlite_schema t, pragma_table_info(t.name) c
    WHERE t.type = 'table' AND t.name NOT LIKE 'sqlite%' AND t.name NOT LIKE '\_%' ESCAPE '\' ORDER BY t.name, c.cid"#;

const POSTGRES_COLUMNS: &str = r#"
    SELECT c.relname::text, a.attname::text, format_type(a.atttypid, a.atttypmod), a.attnotnull,
           EXISTS (SELECT 1 FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary AND a.attnum = ANY (i.indkey))
    FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
    WHERE c.relkind = 'r' AND c.relnamespace = 'public'::regnamespace AND c.relname NOT LIKE '\_%'
          AND a.attnum > 0 AND NOT a.attisdropped
    ORDER BY c.relname COLLATE "C", a.attnum"#;

const SQLITE_INDEXES: &str = "
    SELECT i.name, i.tbl_name, c.name FROM sqlite_schema i, pragma_index_info(i.name) c
    WHERE i.type = 'index' AND i.sql IS NOT NULL ORDER BY i.name, c.seqno";

const POSTGRES_INDEXES: &str = r#"
    SELECT i.indexrelid::regclass::text, i.indrelid::regclass::text, pg_get_indexdef(i.indexrelid, k, true)
    FROM pg_index i JOIN pg_class t ON t.oid = i.indrelid, generate_series(1, i.indnkeyatts) AS k
    WHERE t.relnamespace = 'public'::regnamespace AND t.relname NOT LIKE '\_%' AND NOT i.indisunique
    ORDER BY i.indexrelid::regclass::text COLLATE "C", k"#;

async fn rows<R>(fresh: &Fresh, sqlite: &'static str, postgres: &'static str) -> Vec<R>
where
    R: for<'r> sqlx::FromRow<'r, sqlx::sqlite::SqliteRow> + for<'r> sqlx::FromRow<'r, sqlx::postgres::PgRow>,
    R: Send + Unpin,
{
    let mut conn = fresh.db.read().await.unwrap();
    let statement = if matches!(conn, Conn::Sqlite(_)) { sqlite } else { postgres };
    on!(conn, db => sqlx::query_as(statement).fetch_all(db).await).unwrap()
}

async fn columns(fresh: &Fresh) -> Vec<Column> {
    let in_sqlites_words = |of: &str| match of {
        "bytea" => "BLOB".to_owned(),
        "bigint" => "INTEGER".to_owned(),
        "text" => "TEXT".to_owned(),
        other => other.to_owned(),
    };
    let columns: Vec<Column> = rows(fresh, SQLITE_COLUMNS, POSTGRES_COLUMNS).await;
    columns.into_iter().map(|(table, name, of, must, key)| (table, name, in_sqlites_words(&of), must, key)).collect()
}

async fn indexes(fresh: &Fresh) -> Vec<Index> {
    let rows: Vec<(String, String, String)> = rows(fresh, SQLITE_INDEXES, POSTGRES_INDEXES).await;
    let mut indexes = Vec::<Index>::new();
    for (name, table, column) in rows {
        match indexes.last_mut() {
            Some((last, _, columns)) if *last == name => columns.push(column),
            _ => indexes.push((name, table, vec![column])),
        }
    }
    indexes
}

#[tokio::test]
async fn both_databases_get_the_same_tables() {
    let (sqlite, postgres) = (fresh_sqlite().await, fresh_postgres().await);
    let (of_sqlite, of_postgres) = (columns(&sqlite).await, columns(&postgres).await);
    assert!(of_sqlite.len() > 50 && of_sqlite.iter().any(|(table, name, ..)| table == "queue" && name == "own_part"));
    assert_eq!(of_sqlite, of_postgres);
    let (of_sqlite, of_postgres) = (indexes(&sqlite).await, indexes(&postgres).await);
    assert!(of_sqlite.iter().any(|(_, table, columns)| table == "queue" && columns.len() == 3), "{of_sqlite:?}");
    assert_eq!(of_sqlite, of_postgres);
    postgres.remove().await;
}

/// What lies in the folders is what is built in, under the same numbers and names on both sides.
#[test]
fn both_folders_hold_the_same_migrations() {
    let in_folder = |database: &str| {
        let folder = format!("{}/../migrations/{database}", env!("CARGO_MANIFEST_DIR"));
        let files = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap());
        files
            .map(|file| (file.file_name().into_string().unwrap(), std::fs::read_to_string(file.path()).unwrap()))
            .collect()
    };
    for (database, migrator) in [(SQLITE, migrations::sqlite()), (POSTGRES, migrations::postgres())] {
        let files: BTreeMap<String, String> = in_folder(database);
        let built_in = migrator.iter().map(|migration| {
            let name = format!("{:04}_{}.sql", migration.version, migration.description);
            (name, migration.sql.as_str().to_owned())
        });
        assert_eq!(files, built_in.collect(), "{database}");
        assert!(!files.is_empty());
    }
    let names = |database| in_folder(database).into_keys().collect::<Vec<_>>();
    assert_eq!(names(SQLITE), names(POSTGRES));
}

#[tokio::test]
async fn eight_nodes_migrate_at_once() {
    let fresh = fresh_postgres().await;
    // As empty as it was made.
    done(&fresh.db, |tx| {
        Box::pin(async move {
            let db = on_postgres(tx);
            sqlx::raw_sql("DROP SCHEMA public CASCADE; CREATE SCHEMA public").execute(db).await?;
            Ok(())
        })
    })
    .await;
    let opened = futures_util::future::join_all((0..8).map(async |_| {
        let (db, _) = open(&fresh.place).await;
        let conn = &mut db.read().await.unwrap();
        let identity = relay::identity(conn).await.unwrap();
        let applied = count(conn, "SELECT COUNT(*) FROM _sqlx_migrations").await;
        (identity.relay_id, identity.incarnation, applied)
    }));
    let opened: BTreeSet<_> = opened.await.into_iter().collect();
    let all = i64::try_from(migrations::postgres().iter().count()).unwrap();
    assert_eq!(opened.into_iter().map(|(.., applied)| applied).collect::<Vec<_>>(), [all], "all see one store");
    fresh.remove().await;
}

/// Opens a store again after its list of migrations was changed.
async fn opened_after(fresh: &Fresh, change: &'static str) -> Result<Db, StoreError> {
    let place = fresh.another_place();
    let (db, _) = open(&place).await;
    done(&db, move |tx| {
        Box::pin(async move {
            assert_eq!(execute!(**tx, change)?, 1);
            Ok(())
        })
    })
    .await;
    db.close().await.unwrap();
    drop(db);
    Db::open(&place, Arc::default(), Arc::new(SystemRandom)).await
}

pub(super) async fn what_a_newer_version_added_does_not_disturb(fresh: &Fresh) {
    const NEWER: &str = "
        INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
        SELECT version + 1000, 'newer', success, checksum, 1 FROM _sqlx_migrations WHERE version = 1";
    let db = opened_after(fresh, NEWER).await.unwrap();
    done(&db, |tx| Box::pin(async move { add_account(tx, &[1]).await })).await;
    db.close().await.unwrap();
}

pub(super) async fn a_past_that_was_rewritten_is_refused(fresh: &Fresh) {
    const REWRITTEN: &str = "
        UPDATE _sqlx_migrations SET checksum = (SELECT relay_id FROM relay) WHERE version = 1";
    let refused = opened_after(fresh, REWRITTEN).await.err();
    assert!(matches!(refused, Some(StoreError::Migration(_))), "{refused:?}");
}
