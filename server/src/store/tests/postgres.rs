//! What only Postgres must be told: many nodes over one database, and that what was restored or promoted is noticed.

use futures_util::future::join_all;
use sqlx::{Connection as _, Executor as _, PgConnection};
use undertone_test_postgres::{Cluster, Options};

use super::{
    incarnations::{Standing, assert_begun_anew, assert_furnished, furnish, read_standing, standing},
    *,
};

pub(super) const DATABASE: &str = "undertone";

/// A cluster with a furnished store, and how it stands.
pub(super) async fn furnished(options: Options) -> (Cluster, Db, Standing) {
    let cluster = Cluster::new(options).await;
    admin(&cluster, "CREATE DATABASE undertone").await;
    let db = node(&cluster).await;
    furnish(&db).await;
    let before = standing(&db).await;
    assert_furnished(&before);
    (cluster, db, before)
}

/// Another node over a cluster's store.
async fn node(cluster: &Cluster) -> Db {
    open(&place(cluster)).await.0
}

fn place(cluster: &Cluster) -> Place {
    Place::Postgres(PostgresConfig::new(cluster.url(DATABASE)))
}

pub(super) async fn admin(cluster: &Cluster, statement: &'static str) {
    let mut connection = PgConnection::connect(&cluster.url("postgres")).await.unwrap();
    connection.execute(statement).await.unwrap();
    connection.close().await.unwrap();
}

async fn tool(cluster: &Cluster, name: &str, arguments: &[&str], dump: &std::path::Path) {
    let output = cluster.tool(name, DATABASE).args(arguments).arg(dump).output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

async fn dump(cluster: &Cluster, dump: &std::path::Path) {
    tool(cluster, "pg_dump", &["--format=custom", "--file"], dump).await;
}

async fn restore(cluster: &Cluster, options: &[&str], dump: &std::path::Path) {
    tool(cluster, "pg_restore", &[&["--dbname", DATABASE, "--exit-on-error"], options].concat(), dump).await;
}

/// How a store stands as soon as it can be read again.
async fn standing_again(db: &Db) -> Standing {
    let read = async {
        loop {
            match read_standing(db).await {
                Ok(standing) => return standing,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), read).await.expect("the database comes back")
}

#[tokio::test]
async fn a_restarted_cluster_goes_on() {
    let (cluster, db, before) = furnished(Options { durable: true }).await;
    for crash in [false, true] {
        match crash {
            true => cluster.crash().await,
            false => cluster.stop().await,
        }
        assert!(read_standing(&db).await.is_err(), "it is away");
        cluster.start().await;
        assert_eq!(standing_again(&db).await, before, "for a node that stays");
        assert_eq!(standing(&node(&cluster).await).await, before, "for one that comes");
    }
}

#[tokio::test]
async fn tables_that_were_restored_begin_anew() {
    let (cluster, db, before) = furnished(Options::default()).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("dump");
    dump(&cluster, &file).await;
    done(&db, |tx| Box::pin(async move { append(tx, b"not in the dump").await })).await;
    restore(&cluster, &["--clean", "--if-exists"], &file).await;

    db.look().await.unwrap();
    let now = standing(&db).await;
    assert_begun_anew(&before, &now);
    let newcomer = node(&cluster).await;
    for db in [&db, &newcomer] {
        assert_eq!(standing(db).await, now, "once");
        db.look().await.unwrap();
    }
    assert_eq!(standing(&newcomer).await, now, "once");

    // No mark shows that the rows are others; who restores says so.
    restore(&cluster, &["--clean", "--if-exists"], &file).await;
    let declared = Db::open_restored(&place(&cluster), Arc::new(SystemRandom)).await.unwrap();
    let restored = standing(&declared).await;
    assert_begun_anew(&before, &restored);
    assert_eq!(standing(&node(&cluster).await).await, restored, "once");
}

#[tokio::test]
async fn a_database_that_was_made_again_begins_anew_for_nodes_that_stay() {
    let (cluster, db, before) = furnished(Options::default()).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("dump");
    dump(&cluster, &file).await;
    let nodes = [db, node(&cluster).await];
    admin(&cluster, "DROP DATABASE undertone WITH (FORCE)").await;
    admin(&cluster, "CREATE DATABASE undertone").await;
    restore(&cluster, &[], &file).await;
    // Nobody asks them to look: they do it because their connections are new.
    let now = standing_again(&nodes[0]).await;
    assert_begun_anew(&before, &now);
    let written = async {
        while nodes[1].write(|tx| Box::pin(async move { append(tx, b"x").await })).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), written).await.expect("the database comes back");
    assert_eq!(standing(&nodes[1]).await.next_seqs, now.next_seqs.map(|next_seq| next_seq + 1));
}

#[tokio::test]
async fn a_dump_in_another_cluster_begins_anew_once_however_many_nodes_begin() {
    let (cluster, _, before) = furnished(Options::default()).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("dump");
    dump(&cluster, &file).await;
    let other = Cluster::new(Options::default()).await;
    admin(&other, "CREATE DATABASE undertone").await;
    restore(&other, &[], &file).await;
    let nodes = join_all((0..8).map(|_| node(&other))).await;
    for db in &nodes {
        assert_begun_anew(&before, &standing(db).await);
    }
    assert!(!other.log().contains("deadlock detected"));
    assert_eq!(standing(&node(&cluster).await).await, before, "the first one is what it was");
}

#[tokio::test]
async fn a_promoted_standby_begins_anew_unless_it_lost_nothing() {
    let (primary, db, _) = furnished(Options::default()).await;
    let (one, two) = tokio::join!(primary.standby(), primary.standby());
    done(&db, |tx| Box::pin(async move { append(tx, b"after the copy").await })).await;
    let before = standing(&db).await;
    assert_eq!(before.next_seqs, [5, 5]);
    caught_up(&primary, 2).await;
    primary.crash().await;
    tokio::join!(one.promote(), two.promote());

    let lossless = PostgresConfig { lossless_failover: true, ..PostgresConfig::new(one.url(DATABASE)) };
    let (db, _) = open(&Place::Postgres(lossless)).await;
    assert_eq!(standing(&db).await, before);
    db.look().await.unwrap();
    assert_eq!(standing(&node(&one).await).await, before, "the later timeline is known by now");

    let now = standing(&node(&two).await).await;
    assert_begun_anew(&before, &now);
    assert_eq!(standing(&node(&two).await).await, now, "once");
}

/// Waits until all standbys have what is committed.
pub(super) async fn caught_up(primary: &Cluster, standbys: i64) {
    const CAUGHT_UP: &str = "SELECT COUNT(*) FROM pg_stat_replication WHERE replay_lsn >= pg_current_wal_insert_lsn()";
    let mut connection = PgConnection::connect(&primary.url("postgres")).await.unwrap();
    let caught_up = async {
        while sqlx::query_scalar::<_, i64>(CAUGHT_UP).fetch_one(&mut connection).await.unwrap() < standbys {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), caught_up).await.expect("standbys catch up");
}

async fn shown(conn: &mut Conn, setting: &'static str) -> String {
    sqlx::query_scalar("SELECT current_setting($1)").bind(setting).fetch_one(on_postgres(conn)).await.unwrap()
}

#[tokio::test]
async fn readers_see_one_moment_and_nobody_waits_for_ever() {
    let fresh = fresh_postgres().await;
    let mut reader = fresh.db.read().await.unwrap();
    let of_reader =
        [shown(&mut reader, "transaction_isolation").await, shown(&mut reader, "transaction_read_only").await];
    assert_eq!(of_reader, ["repeatable read", "on"]);
    let of_writer = done(&fresh.db, |tx| {
        Box::pin(async move {
            let mut values = Vec::new();
            for setting in [
                "transaction_isolation",
                "transaction_read_only",
                "lock_timeout",
                "statement_timeout",
                "idle_in_transaction_session_timeout",
            ] {
                values.push(shown(tx, setting).await);
            }
            Ok(values)
        })
    });
    assert_eq!(of_writer.await, ["read committed", "off", "30s", "1min", "1min"]);
    drop(reader);
    fresh.remove().await;
}

/// What an operator may have set for all databases does not change what a node relies on.
#[tokio::test]
async fn the_servers_defaults_are_not_relied_on() {
    let cluster = Cluster::new(Options::default()).await;
    admin(&cluster, "ALTER ROLE undertone SET default_transaction_isolation = 'serializable'").await;
    let url = cluster.url("postgres");
    let db = open(&Place::Postgres(PostgresConfig::new(url.clone()))).await.0;
    let of_writer = done(&db, |tx| Box::pin(async move { Ok(shown(tx, "transaction_isolation").await) }));
    assert_eq!(of_writer.await, "read committed");
    db.close().await.unwrap();

    let mut connection = PgConnection::connect(&url).await.unwrap();
    connection.execute("ALTER ROLE undertone SET synchronous_commit = off").await.unwrap();
    let place = Place::Postgres(PostgresConfig::new(url));
    let opened = Db::open(&place, Arc::default(), Arc::new(SystemRandom)).await;
    assert!(matches!(opened, Err(StoreError::NotDurable)), "{:?}", opened.err());
}

#[tokio::test]
async fn what_one_node_says_all_hear() {
    let fresh = fresh_postgres().await;
    let other = fresh.another_node().await;
    let mut listeners = [fresh.db.listen().await.unwrap().unwrap(), other.listen().await.unwrap().unwrap()];
    fresh.db.notify(&["one".to_owned(), "two".to_owned()]).await.unwrap();
    for listener in &mut listeners {
        assert_eq!([listener.hear().await.unwrap(), listener.hear().await.unwrap()], ["one", "two"]);
    }
    assert!(fresh.db.has_other_nodes());
    drop(listeners);
    fresh.remove().await;
}
