//! Clusters of a test's own: started, stopped, crashed, failed over, and gone with the process.
#![expect(clippy::unwrap_used, clippy::panic, reason = "this crate is tests")]

mod support;

use std::{
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
};

use sqlx::{Connection as _, PgConnection, Row as _, postgres::PgRow};
use undertone_test_postgres::{Cluster, Options};

use self::support::{in_process, told_by, wait_until};

/// Set in the process that is to be killed.
const DOOMED: &str = "TEST_POSTGRES_DOOMED";

async fn query(url: &str, sql: &'static str) -> Vec<PgRow> {
    let mut connection = PgConnection::connect(url).await.unwrap();
    let rows = sqlx::query(sql).fetch_all(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    rows
}

async fn letters(cluster: &Cluster) -> Vec<String> {
    let rows = query(&cluster.url("postgres"), "SELECT body FROM letter ORDER BY body").await;
    rows.iter().map(|row| row.get(0)).collect()
}

async fn write_letter(cluster: &Cluster) {
    query(&cluster.url("postgres"), "CREATE TABLE letter (body TEXT)").await;
    query(&cluster.url("postgres"), "INSERT INTO letter VALUES ('dear')").await;
}

#[tokio::test]
async fn restart_keeps_data_and_address() {
    let cluster = Cluster::new(Options::default()).await;
    let address = cluster.address();
    write_letter(&cluster).await;
    cluster.stop().await;
    assert!(TcpStream::connect(address).is_err(), "a stopped server listens");
    cluster.start().await;
    assert_eq!(letters(&cluster).await, ["dear"]);
    assert_eq!(cluster.address(), address);
    assert_eq!(cluster.log().matches("ready to accept connections").count(), 2);
}

#[tokio::test]
async fn durable_cluster_recovers_from_a_crash() {
    let cluster = Cluster::new(Options { durable: true }).await;
    let fsync: String = query(&cluster.url("postgres"), "SHOW fsync").await[0].get(0);
    assert_eq!(fsync, "on");
    write_letter(&cluster).await;
    cluster.crash().await;
    cluster.start().await;
    assert_eq!(letters(&cluster).await, ["dear"]);
    assert!(cluster.log().contains("was not properly shut down; automatic recovery in progress"));
}

#[tokio::test]
async fn cluster_is_reached_over_tcp_and_by_tools() {
    let cluster = Cluster::new(Options::default()).await;
    write_letter(&cluster).await;
    let over_tcp = query(&cluster.url_through(cluster.address(), "postgres"), "SELECT inet_server_port()").await;
    assert_eq!(over_tcp[0].get::<Option<i32>, _>(0), Some(i32::from(cluster.address().port())));
    let over_socket = query(&cluster.url("postgres"), "SELECT inet_server_port()").await;
    assert_eq!(over_socket[0].get::<Option<i32>, _>(0), None);
    let dump = cluster.tool("pg_dump", "postgres").arg("--data-only").output().await.unwrap();
    assert!(String::from_utf8(dump.stdout).unwrap().contains("\ndear\n"));
    assert!(cluster.data_dir().join("PG_VERSION").exists());
}

#[tokio::test]
async fn deadlock_is_in_the_log() {
    let cluster = Cluster::new(Options::default()).await;
    let url = cluster.url("postgres");
    let (mut one, mut two) = (PgConnection::connect(&url).await.unwrap(), PgConnection::connect(&url).await.unwrap());
    sqlx::query("SELECT pg_advisory_lock(1)").execute(&mut one).await.unwrap();
    sqlx::query("SELECT pg_advisory_lock(2)").execute(&mut two).await.unwrap();
    assert!(!cluster.log().contains("deadlock detected"));
    let crossed = tokio::join!(
        lock_and_leave(one, "SELECT pg_advisory_lock(2)"),
        lock_and_leave(two, "SELECT pg_advisory_lock(1)")
    );
    assert!(crossed.0 != crossed.1, "one of two is refused");
    assert!(cluster.log().contains("deadlock detected"));
}

#[tokio::test]
async fn promoted_standby_has_the_data_and_a_higher_timeline() {
    const TIMELINE: &str = "SELECT substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)";
    let primary = Cluster::new(Options::default()).await;
    let standby = primary.standby().await;
    write_letter(&primary).await;
    let at = "SELECT count(*) FROM pg_stat_replication WHERE replay_lsn >= pg_current_wal_insert_lsn()";
    wait_until("the standby has it all", async || query(&primary.url("postgres"), at).await[0].get::<i64, _>(0) == 1)
        .await;
    assert_eq!(letters(&standby).await, ["dear"]);
    let before: String = query(&primary.url("postgres"), TIMELINE).await[0].get(0);
    primary.crash().await;
    standby.promote().await;
    let after: String = query(&standby.url("postgres"), TIMELINE).await[0].get(0);
    assert!(after > before, "{after} comes after {before}");
    query(&standby.url("postgres"), "INSERT INTO letter VALUES ('sincerely')").await;
    assert_eq!(letters(&standby).await, ["dear", "sincerely"]);
}

#[tokio::test]
async fn dropped_cluster_is_gone() {
    let cluster = Cluster::new(Options::default()).await;
    let (dir, address) = (cluster.dir().to_owned(), cluster.address());
    assert!(is_there(&dir, address));
    drop(cluster);
    wait_until("the cluster is gone", async || !is_there(&dir, address) && !dir.exists()).await;
}

#[tokio::test]
async fn killed_process_leaves_nothing() {
    if std::env::var_os(DOOMED).is_some() {
        let cluster = Cluster::new(Options::default()).await;
        println!("\ncluster {} {}", cluster.address(), cluster.dir().display());
        return std::future::pending().await;
    }
    let mut doomed = in_process("killed_process_leaves_nothing", &[(DOOMED, "1")]);
    let told = told_by(&mut doomed, "cluster ").await;
    let (address, dir) = told.split_once(' ').unwrap();
    let (address, dir) = (address.parse().unwrap(), PathBuf::from(dir));
    assert!(is_there(&dir, address));
    doomed.kill().await.unwrap();
    wait_until("the cluster is gone", async || !is_there(&dir, address) && !dir.exists()).await;
}

/// Whether a lock is granted. The connection is closed either way, so that whoever waits for its other locks goes on.
async fn lock_and_leave(mut connection: PgConnection, sql: &'static str) -> bool {
    let granted = sqlx::query(sql).execute(&mut connection).await.is_ok();
    connection.close().await.unwrap();
    granted
}

/// Whether a cluster has a folder and listens.
fn is_there(dir: &Path, address: SocketAddr) -> bool {
    dir.join("data").exists() && TcpStream::connect(address).is_ok()
}
