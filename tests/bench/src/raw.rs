//! The raw limit: the rows that a send or an ack makes, by a bare loop, one transaction each, with the relay's schema,
//! widths and durability. It checks nothing, and nobody else could rely on what it writes.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use sqlx::{
    PgPool, SqlitePool,
    postgres::PgPoolOptions,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use tokio::task::JoinSet;
use undertone_test_client::random;

use crate::{
    relay::Store,
    scenes::Group,
    sender::PAYLOAD_BYTES,
    window::{Window, per_second},
};

const REMEMBER: &str =
    "INSERT INTO message_ids (id_hash, body_hash, expires_hour_ms, status) VALUES ($1, $2, 1800000000000, 200)";
const NUMBER: &str = "
    UPDATE cursors SET next_seq = next_seq + 1, group_entries = group_entries + 1, group_bytes = group_bytes + $2
    WHERE device_id IN (SELECT device_id FROM group_members WHERE group_id = $1 AND ended_commit IS NULL)";
const ADD_ENVELOPE: &str = "
    INSERT INTO envelopes (kind, group_id, number, expires_hour_ms, pointers, payload)
    VALUES (1, $1, 0, 1800000000000, $2, $3) RETURNING envelope_id";
const ADD_ROWS: &str = "
    INSERT INTO queue (device_id, seq, envelope_id, share, bytes)
    SELECT c.device_id, c.next_seq - 1, $2, $1, $3
    FROM group_members m JOIN cursors c ON c.device_id = m.device_id
    WHERE m.group_id = $1 AND m.ended_commit IS NULL";
const READ: &str = "
    SELECT q.seq, q.envelope_id, e.payload FROM queue q JOIN envelopes e ON e.envelope_id = q.envelope_id
    WHERE q.device_id = $1 AND q.seq > $2 ORDER BY q.seq LIMIT 64";
const ACK: &str = "UPDATE cursors SET acked_seq = $2 WHERE device_id = $1";
const DELETE: &str = "DELETE FROM queue WHERE device_id = $1 AND seq <= $2";
const RELEASE: &str = "
    UPDATE envelopes SET pointers = pointers - 1
    WHERE envelope_id IN (SELECT envelope_id FROM queue WHERE device_id = $1 AND seq <= $2)";

/// A database without a relay.
#[derive(Clone)]
enum Raw {
    Sqlite(SqlitePool),
    Postgres(PgPool),
}

macro_rules! on {
    ($raw:expr, $db:ident => $work:expr) => {
        match $raw {
            Raw::Sqlite(pool) => {
                let mut $db = pool.begin_with("BEGIN IMMEDIATE").await.unwrap();
                let done = $work;
                $db.commit().await.unwrap();
                done
            }
            Raw::Postgres(pool) => {
                let mut $db = pool.begin().await.unwrap();
                let done = $work;
                $db.commit().await.unwrap();
                done
            }
        }
    };
}

impl Raw {
    async fn open(store: &Store) -> Self {
        if store.is_postgres() {
            let pool = PgPoolOptions::new().max_connections(64).connect(&store.url()).await.unwrap();
            return Self::Postgres(pool);
        }
        let options = SqliteConnectOptions::new()
            .filename(store.sqlite())
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .pragma("secure_delete", "ON")
            .pragma("temp_store", "MEMORY");
        Self::Sqlite(SqlitePoolOptions::new().max_connections(1).connect_with(options).await.unwrap())
    }

    /// The rows of one message.
    async fn send(&self, group: &Group) {
        let (id, payload) = (random::<32>(), [7_u8; PAYLOAD_BYTES + 90]);
        let (group_id, bytes) = (group.id.as_bytes().as_slice(), payload.len() as i64);
        let pointers = group.devices.len() as i64;
        on!(self, db => {
            sqlx::query(REMEMBER).bind(&id[..]).bind(&id[..]).execute(&mut *db).await.unwrap();
            sqlx::query(NUMBER).bind(group_id).bind(bytes).execute(&mut *db).await.unwrap();
            let envelope: i64 = sqlx::query_scalar(ADD_ENVELOPE)
                .bind(group_id).bind(pointers).bind(&payload[..]).fetch_one(&mut *db).await.unwrap();
            sqlx::query(ADD_ROWS).bind(group_id).bind(envelope).bind(bytes).execute(&mut *db).await.unwrap();
        });
    }

    /// Reads a page of a device's queue and deletes it. Answers the last number, and how many there were.
    async fn take(&self, group: &Group, after: i64) -> (i64, u64) {
        let device = group.devices[1].id();
        let device = device.as_bytes().as_slice();
        on!(self, db => {
            let page: Vec<(i64, i64, Vec<u8>)> =
                sqlx::query_as(READ).bind(device).bind(after).fetch_all(&mut *db).await.unwrap();
            let Some(&(last, ..)) = page.last() else { return (after, 0) };
            for statement in [ACK, RELEASE, DELETE] {
                sqlx::query(statement).bind(device).bind(last).execute(&mut *db).await.unwrap();
            }
            (last, page.len() as u64)
        })
    }
}

/// One sender for each group, for some time.
pub(crate) async fn sends(store: &Store, groups: &Arc<[Group]>, time: Duration) -> f64 {
    over_time(Raw::open(store).await, groups, time, Work::Send).await
}

/// One sender and taker for each group, who takes what was sent a few at a time.
pub(crate) async fn live(store: &Store, groups: &Arc<[Group]>, time: Duration) -> f64 {
    over_time(Raw::open(store).await, groups, time, Work::SendAndTake).await
}

/// Fills the queues of the first group.
pub(crate) async fn fill(store: &Store, groups: &Arc<[Group]>, messages: usize) {
    let raw = Raw::open(store).await;
    for _ in 0..messages {
        raw.send(&groups[0]).await;
    }
}

/// Takes all that waits for the second device of a group.
pub(crate) async fn drain(store: &Store, group: &Group) -> f64 {
    let raw = Raw::open(store).await;
    let (began, mut after, mut count) = (Instant::now(), 0, 0);
    loop {
        let (last, taken) = raw.take(group, after).await;
        if taken == 0 {
            return per_second(count, began.elapsed());
        }
        (after, count) = (last, count + taken);
    }
}

/// What is done again and again.
#[derive(Clone, Copy)]
enum Work {
    Send,
    SendAndTake,
}

impl Work {
    /// Does it once; answers how many messages that were.
    async fn once(self, raw: &Raw, group: &Group, taken: &mut i64) -> u64 {
        const FEW: u64 = 8;
        match self {
            Self::Send => {
                raw.send(group).await;
                1
            }
            Self::SendAndTake => {
                for _ in 0..FEW {
                    raw.send(group).await;
                }
                *taken = raw.take(group, *taken).await.0;
                FEW
            }
        }
    }
}

/// How many messages a second some work comes to, done by one task for each group.
async fn over_time(raw: Raw, groups: &Arc<[Group]>, time: Duration, work: Work) -> f64 {
    let (window, mut tasks) = (Window::new(time), JoinSet::new());
    for nth in 0..groups.len() {
        let (raw, groups, mut taken) = (raw.clone(), Arc::clone(groups), 0);
        tasks.spawn(window.count(async move || work.once(&raw, &groups[nth], &mut taken).await));
    }
    window.rate(tasks).await
}
