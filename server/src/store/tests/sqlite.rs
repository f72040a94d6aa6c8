//! What only SQLite must be told: one connection writes, what is deleted is gone, and a file that was put in the place of
//! another is noticed.

use std::{
    fs,
    path::{Path, PathBuf},
};

use futures_util::FutureExt as _;

use super::{
    incarnations::{assert_begun_anew, assert_furnished, furnish, standing},
    *,
};
use crate::store::relay;

async fn pragma(conn: &mut Conn, statement: &'static str) -> String {
    let Conn::Sqlite(db) = conn else { panic!("not SQLite") };
    let row = sqlx::query(statement).fetch_one(&mut **db).await.unwrap();
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
        let Conn::Sqlite(db) = reader else { panic!("not SQLite") };
        let written = sqlx::query("DELETE FROM challenges").execute(&mut **db).await;
        assert!(written.unwrap_err().to_string().contains("readonly"));
        assert_eq!(pragma(reader, "PRAGMA query_only").await, "1");
        assert_eq!(pragma(reader, "PRAGMA temp_store").await, "2", "nothing is written beside the database");
    }
    let Db { backend: crate::store::Backend::Sqlite(sqlite), .. } = &fresh.db else { panic!("not SQLite") };
    assert_eq!(sqlite.writers_max(), 1);
}

#[tokio::test]
async fn a_checkpoint_empties_the_log_unless_a_reader_stands_in_the_way() {
    let fresh = fresh_sqlite().await;
    let Place::Sqlite(path) = &fresh.place else { panic!("not SQLite") };
    let log_bytes = || fs::metadata(path.with_extension("db-wal")).unwrap().len();
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
    let Conn::Sqlite(db) = &mut fresh.db.read().await.unwrap() else { panic!("not SQLite") };
    let steps: Vec<(i64, i64, i64, String)> = sqlx::query_as(explained).fetch_all(&mut **db).await.unwrap();
    steps.into_iter().map(|(.., step)| step + "\n").collect()
}

#[tokio::test]
async fn pages_are_measured_before_payloads_are_read_and_expiring_sorts_nothing() {
    for page in [queue::PAGE, groups::COMMITS_AFTER] {
        let plan = plan(page).await;
        assert!(plan.contains("MATERIALIZE sized"), "{plan}");
    }
    let plan = plan(queue::EXPIRED).await;
    assert!(plan.contains("envelopes_by_expiry") && !plan.contains("TEMP B-TREE"), "{plan}");
}

/// A furnished store that runs in a folder.
async fn furnished(folder: &Path) -> Db {
    let db = open_in(folder).await;
    furnish(&db).await;
    assert_furnished(&standing(&db).await);
    db
}

async fn open_in(folder: &Path) -> Db {
    open(&Place::Sqlite(folder.join("undertone.db"))).await.0
}

/// Makes a copy of the database's files, as backups do.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for suffix in ["", "-wal"] {
        let name = format!("undertone.db{suffix}");
        fs::copy(from.join(&name), to.join(&name)).unwrap();
    }
}

/// Removes what a closed database leaves beside the file, for another file to take its place.
fn clear(folder: &Path) {
    for suffix in ["-wal", "-shm"] {
        let _ = fs::remove_file(folder.join(format!("undertone.db{suffix}")));
    }
}

/// Puts a copy in the place of the files.
type Putting = fn(&Path, &Path);

fn by_rename(copy: &Path, folder: &Path) {
    for suffix in ["", "-wal"] {
        let name = format!("undertone.db{suffix}");
        fs::rename(copy.join(&name), folder.join(&name)).unwrap();
    }
}

fn in_place(copy: &Path, folder: &Path) {
    for suffix in ["", "-wal"] {
        let name = format!("undertone.db{suffix}");
        // The file stays the same one, with other bytes.
        let bytes = fs::read(copy.join(&name)).unwrap();
        fs::write(folder.join(&name), bytes).unwrap();
    }
}

#[tokio::test]
async fn an_older_copy_in_the_files_place_begins_anew() {
    for (put, looks_before, looks_after) in
        [(by_rename as Putting, 0, 1), (by_rename, 2, 0), (in_place, 0, 3), (in_place, 1, 0)]
    {
        let (folder, backup) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let db = furnished(folder.path()).await;
        for _ in 0..looks_before {
            db.look().await.unwrap();
        }
        let before = standing(&db).await;
        copy(folder.path(), backup.path());
        done(&db, |tx| Box::pin(async move { append(tx, b"not in the copy").await })).await;
        for _ in 0..looks_after {
            db.look().await.unwrap();
        }
        db.close().await.unwrap();
        drop(db);
        clear(folder.path());
        put(backup.path(), folder.path());

        let db = open_in(folder.path()).await;
        let now = standing(&db).await;
        assert_begun_anew(&before, &now);
        db.look().await.unwrap();
        assert_eq!(standing(&db).await, now, "once");
        db.close().await.unwrap();
        drop(db);
        assert_eq!(standing(&open_in(folder.path()).await).await, now, "once");
    }
}

#[tokio::test]
async fn a_copy_restored_after_a_crash_begins_anew_if_there_was_a_look_between() {
    let (folder, backup) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let db = furnished(folder.path()).await;
    let before = standing(&db).await;
    copy(folder.path(), backup.path());
    db.look().await.unwrap();
    // No close: as if it had been killed.
    drop(db);
    clear(folder.path());
    by_rename(backup.path(), folder.path());
    assert_begun_anew(&before, &standing(&open_in(folder.path()).await).await);
}

#[tokio::test]
async fn a_copied_folder_begins_anew_and_a_moved_one_goes_on() {
    let base = tempfile::tempdir().unwrap();
    let [here, copied, moved] = ["here", "copied", "moved"].map(|name| base.path().join(name));
    let db = furnished(&here).await;
    let before = standing(&db).await;
    db.close().await.unwrap();
    drop(db);
    fs::create_dir(&copied).unwrap();
    let mut names = Vec::new();
    for file in fs::read_dir(&here).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), copied.join(file.file_name())).unwrap();
        names.push(file.file_name().into_string().unwrap());
    }
    assert!(names.contains(&"undertone.db.mark".to_owned()), "the marker was copied too: {names:?}");
    assert_begun_anew(&before, &standing(&open_in(&copied).await).await);
    assert_eq!(standing(&open_in(&here).await).await, before, "the first one is what it was");
    fs::rename(&here, &moved).unwrap();
    assert_eq!(standing(&open_in(&moved).await).await, before);
}

/// The marker of now is overwritten by that of then, and is another file all the same.
#[tokio::test]
async fn a_folder_copied_back_over_itself_begins_anew() {
    let base = tempfile::tempdir().unwrap();
    let [here, backup] = ["here", "backup"].map(|name| base.path().join(name));
    let copy_all = |from: &Path, to: &Path| {
        for file in fs::read_dir(from).unwrap() {
            let file = file.unwrap();
            fs::write(to.join(file.file_name()), fs::read(file.path()).unwrap()).unwrap();
        }
    };
    let db = furnished(&here).await;
    let before = standing(&db).await;
    db.close().await.unwrap();
    drop(db);
    fs::create_dir(&backup).unwrap();
    copy_all(&here, &backup);
    let db = open_in(&here).await;
    done(&db, |tx| Box::pin(async move { append(tx, b"not in the copy").await })).await;
    db.close().await.unwrap();
    drop(db);
    copy_all(&backup, &here);
    assert_begun_anew(&before, &standing(&open_in(&here).await).await);
}

/// As when the disk is full: SQLite has ended the transaction, and whoever began it does not know.
#[tokio::test]
async fn a_commit_that_fails_stands_in_nobodys_way() {
    let fresh = fresh_sqlite().await;
    let failed = fresh.db.write(|tx| {
        Box::pin(async move {
            append(tx, b"lost").await?;
            let Conn::Sqlite(db) = &mut **tx else { panic!("not SQLite") };
            sqlx::query("ROLLBACK").execute(&mut **db).await?;
            Ok::<_, StoreError>(())
        })
    });
    assert!(failed.await.is_err(), "there is nothing to commit");
    done(&fresh.db, |tx| Box::pin(async move { append(tx, b"kept").await })).await;
}

#[tokio::test]
async fn without_its_marker_a_store_begins_anew() {
    for forge in [|marker: PathBuf| fs::remove_file(marker), |marker: PathBuf| fs::write(marker, "0".repeat(32))] {
        let folder = tempfile::tempdir().unwrap();
        let db = furnished(folder.path()).await;
        let before = standing(&db).await;
        db.close().await.unwrap();
        drop(db);
        forge(folder.path().join("undertone.db.mark")).unwrap();
        assert_begun_anew(&before, &standing(&open_in(folder.path()).await).await);
    }
}

/// A new mark is written to the database first and to the marker then.
#[tokio::test]
async fn a_crash_while_the_mark_is_renewed_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let marker = folder.path().join("undertone.db.mark");
    let db = furnished(folder.path()).await;
    let before = standing(&db).await;
    // Between the steps: the database knows the next mark, and the one that is still seen.
    let token = fs::read_to_string(&marker).unwrap();
    done(&db, |tx| {
        Box::pin(async move {
            let (seen, _) = relay::marks(tx).await?.unwrap();
            relay::remark(tx, &seen, "a mark that was never written").await
        })
    })
    .await;
    drop(db);
    assert_eq!(fs::read_to_string(&marker).unwrap(), token);
    let db = open_in(folder.path()).await;
    assert_eq!(standing(&db).await, before);
    assert_ne!(fs::read_to_string(&marker).unwrap(), token, "it was renewed");
    // After both, and before anything else.
    db.look().await.unwrap();
    drop(db);
    assert_eq!(standing(&open_in(folder.path()).await).await, before);
}

/// Whoever renews the mark while another does, waits: what is seen is always known.
#[tokio::test]
async fn marks_are_renewed_one_after_the_other() {
    let folder = tempfile::tempdir().unwrap();
    let db = furnished(folder.path()).await;
    let token = || fs::read_to_string(folder.path().join("undertone.db.mark")).unwrap();
    let Db { backend: crate::store::Backend::Sqlite(sqlite), .. } = &db else { panic!("not SQLite") };
    let writer = sqlite.begin_write().await.unwrap();
    let [mut first, mut second] = [Box::pin(db.look()), Box::pin(db.look())];
    for look in [&mut first, &mut second] {
        assert!(look.now_or_never().is_none(), "it has begun and waits");
    }
    drop(writer);
    first.await.unwrap();
    let seen_between = token();
    second.await.unwrap();
    let (mark, mark_before) = relay::marks(&mut db.read().await.unwrap()).await.unwrap().unwrap();
    assert!(mark.ends_with(&token()));
    assert!(mark_before.ends_with(&seen_between), "what was seen when the second wrote to the database");
}

/// A copy beside the log of another state is laid over by it.
#[tokio::test]
async fn a_copy_beside_a_log_that_is_not_its_own_is_refused() {
    let (folder, backup) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let file = folder.path().join("undertone.db");
    let db = furnished(folder.path()).await;
    let before = standing(&db).await;
    while !db.checkpoint().await.unwrap() {
        tokio::task::yield_now().await;
    }
    copy(folder.path(), backup.path());
    let grow = || {
        done(&db, |tx| {
            Box::pin(async move {
                for _ in 0..200 {
                    append(tx, &[7; 5_000]).await?;
                }
                Ok(())
            })
        })
    };
    grow().await;
    while !db.checkpoint().await.unwrap() {
        tokio::task::yield_now().await;
    }
    grow().await;
    let log = fs::read(file.with_extension("db-wal")).unwrap();
    assert!(!log.is_empty());
    db.close().await.unwrap();
    drop(db);
    clear(folder.path());
    let put_back = || {
        fs::copy(backup.path().join("undertone.db"), &file).unwrap();
    };
    put_back();
    fs::write(file.with_extension("db-wal"), log).unwrap();

    let copied = fs::read(&file).unwrap();
    for _ in 0..2 {
        let refused = Db::open(&Place::Sqlite(file.clone()), Arc::default(), Arc::new(SystemRandom)).await.err();
        let Some(StoreError::Damaged(damaged)) = &refused else { panic!("{refused:?}") };
        assert_eq!(*damaged, file);
        assert!(refused.unwrap().to_string().contains("undertone.db-wal and "), "it says what to do");
        assert!(fs::read(&file).unwrap() == copied, "the copy is as it was put there");
    }
    clear(folder.path());
    put_back();
    assert_begun_anew(&before, &standing(&open_in(folder.path()).await).await);
}
