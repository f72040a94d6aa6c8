//! The shared server: clones of one template, from many runtimes at once, on our cluster and on one that is named.
#![expect(clippy::unwrap_used, clippy::panic, reason = "this crate is tests")]

mod support;

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use sqlx::{Connection as _, PgConnection};
use tokio::process::Child;
use undertone_test_postgres::{Cluster, Database, Options, database};

use self::support::{in_process, told_by, wait_until};

/// Set in the process that uses a named server: what it is to do with its database.
const ROLE: &str = "TEST_POSTGRES_ROLE";
static PREPARED: AtomicUsize = AtomicUsize::new(0);

async fn connect(url: &str) -> PgConnection {
    PgConnection::connect(url).await.unwrap()
}

/// A clone of a template with a table and one row. The connection that made it stays open, as a pool's might.
async fn clone_of_template() -> Database {
    database(async |template| {
        PREPARED.fetch_add(1, Ordering::SeqCst);
        let mut connection = connect(&template).await;
        let sql = "CREATE TABLE letter (body TEXT); INSERT INTO letter VALUES ('from the template')";
        sqlx::raw_sql(sql).execute(&mut connection).await.unwrap();
        std::mem::forget(connection);
    })
    .await
}

async fn count(database: &Database) -> i64 {
    let mut connection = connect(database.url()).await;
    let count = sqlx::query_scalar("SELECT count(*) FROM letter").fetch_one(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    count
}

async fn add(database: &Database) {
    sqlx::query("INSERT INTO letter VALUES ('mine')").execute(&mut connect(database.url()).await).await.unwrap();
}

#[tokio::test]
async fn clones_are_independent() {
    let (one, two) = (clone_of_template().await, clone_of_template().await);
    add(&one).await;
    assert_eq!((count(&one).await, count(&two).await), (2, 1));
}

#[test]
fn many_runtimes_at_once_share_one_template() {
    let in_a_runtime = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let database = clone_of_template().await;
            add(&database).await;
            assert_eq!(count(&database).await, 2);
            database.name().to_owned()
        })
    };
    let threads: Vec<_> = (0..8).map(|_| thread::spawn(in_a_runtime)).collect();
    let mut names: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 8);
    assert_eq!(PREPARED.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn removed_database_is_gone_with_its_connections() {
    let (mut connection, url) = {
        let database = clone_of_template().await;
        let connection = connect(database.url()).await;
        let url = database.url().to_owned();
        database.remove().await;
        (connection, url)
    };
    assert!(connection.ping().await.is_err());
    assert!(PgConnection::connect(&url).await.is_err());
}

#[tokio::test]
async fn named_server_is_swept_after_a_killed_process() {
    match std::env::var(ROLE).as_deref() {
        Ok("stay") => {
            let database = clone_of_template().await;
            println!("\ndatabase {}", database.name());
            return std::future::pending().await;
        }
        Ok("remove") => return clone_of_template().await.remove().await,
        _ => {}
    }
    let cluster = Cluster::new(Options::default()).await;
    let mut stays = user_of(&cluster, "stay");
    let kept = told_by(&mut stays, "database ").await;
    let mut killed = user_of(&cluster, "stay");
    let lost = told_by(&mut killed, "database ").await;
    assert_eq!(made_here(&cluster).await.len(), 4, "two templates, two clones");
    killed.kill().await.unwrap();

    wait_until("the killed process's databases are swept", async || {
        assert!(user_of(&cluster, "remove").wait().await.unwrap().success());
        !made_here(&cluster).await.contains(&lost)
    })
    .await;
    assert!(made_here(&cluster).await.contains(&kept), "a living process keeps its database");
}

/// The test above in another process, with `cluster` as the named server.
fn user_of(cluster: &Cluster, role: &str) -> Child {
    let url = cluster.url_through(cluster.address(), "postgres");
    in_process("named_server_is_swept_after_a_killed_process", &[(ROLE, role), ("TEST_POSTGRES_URL", &url)])
}

async fn made_here(cluster: &Cluster) -> Vec<String> {
    let mut connection = connect(&cluster.url("postgres")).await;
    let sql = "SELECT datname::text FROM pg_database WHERE datname LIKE 'undertone\\_test\\_%'";
    sqlx::query_scalar(sql).fetch_all(&mut connection).await.unwrap()
}
