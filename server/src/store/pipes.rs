//! Pipes: what a device that is to be linked, and one that links it, put down for each other.
//!
//! Invariant: a part is written once while its pipe lives, and no column says who wrote it. A pipe is known by the hash of
//! its id only. It lives as long as its first request does; all its parts end with it, and one whose time is over is as
//! none, whether it is deleted or not.

use undertone_wire::Hash;

use super::{
    Conn, StoreError, Tx,
    bulk::{Pair, pair},
    execute, on, stored,
};

/// Has those who write wait for each other until they commit, so that each counts those before it. It is said to Postgres
/// only: SQLite has one writer.
const TAKE_TURN: &str = "SELECT pg_advisory_xact_lock(CAST('pipe_parts'::regclass AS BIGINT))";

/// Begins a pipe with its first request, if fewer than `$5` pipes live and their parts stay within `$6` bytes. Changes
/// nothing if it lives already.
const BEGIN: &str = "
    INSERT INTO pipe_parts (pipe_hash, is_answer, number, content, expires_ms)
    SELECT $1, 0, 0, $2, $3
    WHERE (SELECT COUNT(*) FROM pipe_parts WHERE expires_ms > $4 AND is_answer = 0 AND number = 0) < $5
    AND (SELECT COALESCE(SUM(LENGTH(content)), 0) FROM pipe_parts WHERE expires_ms > $4) + LENGTH($2) <= $6
    ON CONFLICT (pipe_hash, is_answer, number) DO UPDATE
    SET content = EXCLUDED.content, expires_ms = EXCLUDED.expires_ms WHERE pipe_parts.expires_ms <= $4";

/// Adds a part to a pipe, if the parts of all that live stay within `$6` bytes. Changes nothing if the pipe does not live,
/// or has that part already. One of an earlier life of the pipe, which has expired, is replaced.
const ADD: &str = "
    INSERT INTO pipe_parts (pipe_hash, is_answer, number, content, expires_ms)
    SELECT pipe_hash, $2, $3, $4, expires_ms FROM pipe_parts AS begun
    WHERE pipe_hash = $1 AND is_answer = 0 AND number = 0 AND expires_ms > $5
    AND (SELECT COALESCE(SUM(LENGTH(content)), 0) FROM pipe_parts WHERE expires_ms > $5) + LENGTH($4) <= $6
    ON CONFLICT (pipe_hash, is_answer, number) DO UPDATE
    SET content = EXCLUDED.content, expires_ms = EXCLUDED.expires_ms WHERE pipe_parts.expires_ms <= $5";

/// What is in a part that has not expired.
const CONTENT: &str = "
    SELECT content FROM pipe_parts WHERE pipe_hash = $1 AND is_answer = $2 AND number = $3 AND expires_ms > $4";

/// Deletes up to `$2` parts that expired by `$1`. One that others have in hand is passed over.
const EXPIRE: Pair = pair!(
    "WITH expired AS MATERIALIZED (
         SELECT pipe_hash, is_answer, number FROM pipe_parts WHERE expires_ms <= $1 ORDER BY expires_ms LIMIT $2"
    (lock "FOR UPDATE SKIP LOCKED")
    ") DELETE FROM pipe_parts
       WHERE (pipe_hash, is_answer, number) IN (SELECT pipe_hash, is_answer, number FROM expired)"
);

/// Which part of which pipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) pipe_hash: Hash,
    pub(crate) is_answer: bool,
    pub(crate) number: u64,
}

/// How much there may be in all pipes together.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Room {
    /// Pipes that live.
    pub(crate) pipes_max: u64,
    /// Bytes in all their parts.
    pub(crate) bytes_max: u64,
}

impl Part {
    /// The one that begins this part's pipe.
    pub(crate) fn first(&self) -> Self {
        Self { is_answer: false, number: 0, ..*self }
    }

    /// Whether it begins its pipe.
    pub(crate) fn begins(&self) -> bool {
        *self == self.first()
    }
}

/// Begins a pipe that lives until `expires_ms`. `false` if it lives at `now_ms` already, and is as it was, or if there is no
/// room.
pub(crate) async fn begin(
    tx: &mut Tx,
    pipe_hash: &Hash,
    content: &[u8],
    expires_ms: u64,
    now_ms: u64,
    room: Room,
) -> Result<bool, StoreError> {
    take_turn(tx).await?;
    let (pipe, pipes_max, bytes_max) =
        (pipe_hash.as_bytes().as_slice(), stored(room.pipes_max), stored(room.bytes_max));
    Ok(execute!(**tx, BEGIN, pipe, content, stored(expires_ms), stored(now_ms), pipes_max, bytes_max)? == 1)
}

/// Adds a part to a pipe that lives at `now_ms`; `false` if it does not, or if the part is there, and is as it was, or if
/// there is no room.
pub(crate) async fn add(tx: &mut Tx, part: &Part, content: &[u8], now_ms: u64, room: Room) -> Result<bool, StoreError> {
    take_turn(tx).await?;
    let (pipe, is_answer) = (part.pipe_hash.as_bytes().as_slice(), i64::from(part.is_answer));
    let (number, bytes_max) = (stored(part.number), stored(room.bytes_max));
    Ok(execute!(**tx, ADD, pipe, is_answer, number, content, stored(now_ms), bytes_max)? == 1)
}

async fn take_turn(tx: &mut Tx) -> Result<(), StoreError> {
    if let Conn::Postgres(_) = **tx {
        execute!(**tx, TAKE_TURN)?;
    }
    Ok(())
}

/// What is in a part at `now_ms`, if it is there.
pub(crate) async fn content(conn: &mut Conn, part: &Part, now_ms: u64) -> Result<Option<Vec<u8>>, StoreError> {
    let (pipe, is_answer) = (part.pipe_hash.as_bytes().as_slice(), i64::from(part.is_answer));
    let row: Option<(Vec<u8>,)> = on!(*conn, db => sqlx::query_as(CONTENT)
        .bind(pipe).bind(is_answer).bind(stored(part.number)).bind(stored(now_ms))
        .fetch_optional(db).await)?;
    Ok(row.map(|(content,)| content))
}

/// Deletes up to `batch` parts that have expired; answers how many went.
pub(crate) async fn expire(tx: &mut Tx, now_ms: u64, batch: u64) -> Result<u64, StoreError> {
    let statement = tx.words(&EXPIRE);
    Ok(execute!(**tx, statement, stored(now_ms), stored(batch))?)
}
