//! Paths to Postgres that die in silence or lead somewhere else, and what the store makes of a database that is away.

use std::net::SocketAddr;

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::{oneshot, watch},
    task::AbortHandle,
    time::{Instant, timeout},
};
use undertone_test_postgres::Options;

use super::{
    incarnations::{assert_begun_anew, read_standing, standing},
    postgres::{DATABASE, caught_up, furnished},
    *,
};
use crate::store::relay;

/// Longer than anything that ends by itself takes.
const SOON: Duration = Duration::from_secs(60);

/// What a transaction may take in these tests.
const BOUND: Duration = Duration::from_secs(2);

/// A way to a server that can be changed.
struct Way {
    address: SocketAddr,
    to: Arc<Mutex<SocketAddr>>,
    /// How often the connections that there were have died.
    deaths: watch::Sender<u32>,
    running: AbortHandle,
}

impl Way {
    async fn new(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, to, deaths) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(to)), watch::Sender::new(0));
        let serve = {
            let (to, deaths) = (Arc::clone(&to), deaths.subscribe());
            async move {
                loop {
                    let (mut near, _) = listener.accept().await.unwrap();
                    let (to, mut deaths) = (*to.lock().unwrap(), deaths.clone());
                    deaths.mark_unchanged();
                    tokio::spawn(async move {
                        let Ok(mut far) = TcpStream::connect(to).await else { return };
                        tokio::select! {
                            _ = copy_bidirectional(&mut near, &mut far) => {}
                            // Nothing comes through any more, and nobody is told.
                            Ok(()) = deaths.changed() => std::future::pending().await,
                        }
                    });
                }
            }
        };
        let running = tokio::spawn(serve).abort_handle();
        Self { address, to, deaths, running }
    }

    /// From now on nothing comes through on the connections that there are. New ones are as good as ever.
    fn kill_connections(&self) {
        self.deaths.send_modify(|deaths| *deaths += 1);
    }

    /// Where new connections lead.
    fn lead_to(&self, to: SocketAddr) {
        *self.to.lock().unwrap() = to;
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        self.running.abort();
    }
}

fn place_through(url: String) -> Place {
    Place::Postgres(PostgresConfig { transaction_max: BOUND, ..PostgresConfig::new(url) })
}

fn address(fresh: &Fresh) -> SocketAddr {
    let database = fresh.database.as_ref().unwrap();
    match database.cluster() {
        Some(cluster) => cluster.address(),
        None => {
            let url = database.url().split('@').next_back().unwrap();
            std::net::ToSocketAddrs::to_socket_addrs(url.split('/').next().unwrap()).unwrap().next().unwrap()
        }
    }
}

#[tokio::test]
async fn a_path_that_dies_in_silence_is_given_up() {
    let fresh = fresh_postgres().await;
    let way = Way::new(address(&fresh)).await;
    let place = place_through(fresh.database.as_ref().unwrap().url_through(way.address));
    let (db, _) = open(&place).await;
    done(&db, |tx| Box::pin(async move { add_group(tx, &[1]).await })).await;
    for round in 1..=2 {
        // Some connections are in hand, some are kept.
        let mut readers = Vec::new();
        for _ in 0..6 {
            readers.push(db.read().await.unwrap());
        }
        let mut reader = readers.pop().unwrap();
        drop(readers);
        let [(begun, has_begun), (go, wait)] = [oneshot::channel(), oneshot::channel()];
        let writing = tokio::spawn({
            let db = db.clone();
            async move {
                db.write(|tx| {
                    Box::pin(async move {
                        append(tx, b"x").await?;
                        begun.send(()).unwrap();
                        wait.await.unwrap();
                        append(tx, b"y").await
                    })
                })
                .await
            }
        });
        has_begun.await.unwrap();
        let mut listener = db.listen().await.unwrap().unwrap();

        way.kill_connections();
        let died = Instant::now();
        go.send(()).unwrap();
        let write = || db.write(|tx| Box::pin(async move { append(tx, b"z").await }));
        let all = async {
            // What is locked on a connection that died stays so until the server notices; here it is told.
            let written = writing.await.unwrap();
            assert!(matches!(written, Err(StoreError::Busy)), "{written:?}");
            assert!(matches!(relay::identity(&mut reader).await, Err(StoreError::Busy)));
            db.notify(&["heard by others".to_owned()]).await.unwrap();
            db.look().await.unwrap();
            read_identity(&db).await;
            end_other_sessions(&fresh).await;
            while let Err(error) = write().await {
                assert!(matches!(error, StoreError::Busy), "{error:?}");
            }
        };
        timeout(4 * BOUND + Duration::from_secs(10), all).await.expect("the node answers again");
        println!("round {round}: answered {:?} after the path died", died.elapsed());
        assert!(timeout(Duration::from_millis(1), listener.hear()).await.is_err(), "it hears nothing and says nothing");
        let next_seq = queue::cursor(&mut db.read().await.unwrap(), &device_id(1)).await.unwrap().unwrap().next_seq;
        assert_eq!(next_seq, round + 1, "what was not committed is not there");
    }
    timeout(SOON, db.close()).await.expect("it closes").unwrap();
    fresh.remove().await;
}

async fn read_identity(db: &Db) {
    relay::identity(&mut db.read().await.unwrap()).await.unwrap();
}

/// Has the server notice what it would by itself after a minute: that who holds locks is not heard of any more.
async fn end_other_sessions(fresh: &Fresh) {
    const END: &str = "
        SELECT COUNT(pg_terminate_backend(pid)) FROM pg_stat_activity
        WHERE datname = current_database() AND state LIKE 'idle in transaction%' AND pid <> pg_backend_pid()";
    count(&mut fresh.db.read().await.unwrap(), END).await;
}

#[tokio::test]
async fn a_reader_whom_nobody_waits_for_takes_no_connection_for_ever() {
    let fresh = fresh_postgres().await;
    let way = Way::new(address(&fresh)).await;
    let url = fresh.database.as_ref().unwrap().url_through(way.address);
    let config = PostgresConfig { transaction_max: BOUND, connections: 3, ..PostgresConfig::new(url) };
    let (db, _) = open(&Place::Postgres(config)).await;
    let readers = [db.read().await.unwrap(), db.read().await.unwrap()];
    way.kill_connections();
    // A rollback is on its way, which nobody will answer.
    drop(readers);
    timeout(SOON, read_identity(&db)).await.expect("their places are free again");
    fresh.remove().await;
}

#[tokio::test]
async fn while_the_database_is_away_callers_are_told_at_once() {
    let (cluster, db, before) = furnished(Options { durable: true }).await;
    cluster.stop().await;
    let all = async {
        for nth in 0..10 {
            let written = db.write(|tx| Box::pin(async move { append(tx, b"x").await })).await;
            assert!(matches!(written, Err(StoreError::Busy)), "{nth}: {written:?}");
            let read = read_standing(&db).await;
            assert!(matches!(read, Err(StoreError::Busy)), "{nth}: {read:?}");
            assert!(matches!(db.look().await, Err(StoreError::Busy)));
            assert!(matches!(db.notify(&["x".to_owned()]).await, Err(StoreError::Busy)));
        }
        assert!(matches!(db.listen().await.err(), Some(StoreError::Busy)));
    };
    timeout(Duration::from_secs(20), all).await.expect("nobody waits long");
    cluster.start().await;
    assert_eq!(standing(&db).await, before, "the first who comes finds it");
}

#[tokio::test]
async fn while_nobody_answers_one_caller_waits_and_the_others_are_told_at_once() {
    let fresh = fresh_postgres().await;
    let way = Way::new(address(&fresh)).await;
    let (db, _) = open(&place_through(fresh.database.as_ref().unwrap().url_through(way.address))).await;
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    way.lead_to(silent.local_addr().unwrap());
    way.kill_connections();
    let refused = async |_: usize| assert!(matches!(db.read().await.err(), Some(StoreError::Busy)));
    timeout(3 * BOUND, refused(0)).await.expect("it is given up");
    let all = futures_util::future::join_all((0..100).map(refused));
    timeout(2 * BOUND, all).await.expect("they do not wait one after the other");
    way.lead_to(address(&fresh));
    timeout(BOUND, read_identity(&db)).await.expect("the first who comes finds it");
    fresh.remove().await;
}

/// With an old primary and a new one both there, what was found at one says nothing about the other.
#[tokio::test]
async fn each_connection_is_looked_at_by_itself() {
    let (primary, db, _) = furnished(Options::default()).await;
    db.close().await.unwrap();
    let standby = primary.standby().await;
    caught_up(&primary, 1).await;
    let way = Way::new(primary.address()).await;
    let (db, _) = open(&place_through(primary.url_through(way.address, DATABASE))).await;
    let before = standing(&db).await;
    standby.promote().await;
    way.lead_to(standby.address());

    let mut to_old = db.read().await.unwrap();
    let mut readers = Vec::new();
    for _ in 0..3 {
        let mut to_new = db.read().await.unwrap();
        let incarnations = [relay::identity(&mut to_old).await.unwrap(), relay::identity(&mut to_new).await.unwrap()];
        assert_ne!(incarnations[0].incarnation, incarnations[1].incarnation, "before anything else was read there");
        readers.push(to_new);
    }
    drop(to_old);
    drop(readers);
    let (newcomer, _) = open(&place_through(standby.url(DATABASE))).await;
    assert_begun_anew(&before, &standing(&newcomer).await);
}

#[tokio::test]
async fn what_passes_is_told_apart_from_what_does_not() {
    let fresh = fresh_postgres().await;
    let said = async |code: &str| {
        let raise = format!("DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '{code}'; END $$");
        let mut conn = fresh.db.read().await.unwrap();
        StoreError::from(sqlx::raw_sql(sqlx::AssertSqlSafe(raise)).execute(on_postgres(&mut conn)).await.unwrap_err())
    };
    let passing = [
        "57P01", "57P02", "57P03", "57P04", "57P05", "53300", "55P03", "40P01", "40001", "08000", "08003", "08006",
        "08P01", "57014", "25P03",
    ];
    for code in passing {
        assert!(matches!(said(code).await, StoreError::Busy), "{code}");
    }
    for code in ["23505", "23514", "22003", "42601", "42P01", "XX000", "XX001", "53100", "57000", "28P01"] {
        assert!(matches!(said(code).await, StoreError::Database(_)), "{code}");
    }
    let io = || std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into();
    for error in [sqlx::Error::PoolTimedOut, sqlx::Error::PoolClosed, io(), sqlx::Error::Protocol("cut".to_owned())] {
        assert!(matches!(StoreError::from(error), StoreError::Busy));
    }
    for error in [sqlx::Error::RowNotFound, sqlx::Error::WorkerCrashed] {
        assert!(matches!(StoreError::from(error), StoreError::Database(_)));
    }
    fresh.remove().await;
}

/// Two that let go of the same envelopes, each in two steps and in the opposite order.
#[tokio::test]
async fn whoever_lets_go_of_envelopes_in_steps_waits_for_nobody_who_waits_for_him() {
    let fresh = fresh_postgres().await;
    done(&fresh.db, |tx| {
        Box::pin(async move {
            add_group(tx, &[1, 2, 3, 4]).await?;
            let [one, other] = [[1, 4], [2, 3]].map(|to| to.map(device_id));
            let envelopes = [&one, &other].map(|to| message(&group_id(), b"x", u64::MAX, to));
            append_all(tx, &ROOM, &envelopes).await.map(|_| ())
        })
    })
    .await;
    let halfway = Arc::new(tokio::sync::Barrier::new(2));
    let clear = |devices: [u8; 2]| {
        let halfway = Arc::clone(&halfway);
        fresh.db.write(move |tx| {
            Box::pin(async move {
                let mut cursors = queue::lock(tx, &devices.map(device_id).into()).await?;
                queue::delete_all(tx, &mut cursors, &[device_id(devices[0])].into()).await?;
                halfway.wait().await;
                queue::delete_all(tx, &mut cursors, &[device_id(devices[1])].into()).await?;
                queue::append(tx, cursors, &ROOM, &devices.map(|_| message(&group_id(), b"y", u64::MAX, &[])))
                    .await
                    .map(|_| ())
            })
        })
    };
    let (one, other) = tokio::join!(clear([1, 2]), clear([3, 4]));
    one.unwrap();
    other.unwrap();
    assert_eq!(count(&mut fresh.db.read().await.unwrap(), counts::ENVELOPES).await, 0);
    concurrency::no_deadlock(&fresh);
    fresh.remove().await;
}
