//! Envelopes, the rows that point at them, and cursors.
//!
//! Invariant: the numbers of a device's queue are consecutive, because taking one and adding its row is one transaction.
//! `pointers` of an envelope equals the rows of `queue` and `commits` that point at it; it drops only by rows that a
//! DELETE returned, and the payload goes in the transaction that takes the last one.

use std::collections::BTreeMap;

use undertone_wire::{Bytes, Delivery, DeviceId, Envelope, GroupId, Hash, UnackedCommit};

use super::{Conn, StoreError, Tx, hash_bytes, number, on, parsed, parsed_devices, stored};

/// Takes the next number in the queue of every member device of a group; answers the devices.
const NUMBER_MEMBERS: &str = "
    UPDATE cursors SET next_seq = next_seq + 1 WHERE device_id IN (
        SELECT device_id FROM group_members WHERE group_id = $1 AND ended_commit IS NULL
    ) RETURNING device_id";

/// Adds a row at the number just taken to the queue of every member device of a group.
const APPEND_TO_MEMBERS: &str = "
    INSERT INTO queue (device_id, seq, envelope_id)
    SELECT c.device_id, c.next_seq - 1, $2
    FROM group_members m JOIN cursors c ON c.device_id = m.device_id
    WHERE m.group_id = $1 AND m.ended_commit IS NULL";

/// Takes the next number in one device's queue.
const NUMBER_ONE: &str = "UPDATE cursors SET next_seq = next_seq + 1 WHERE device_id = $1 RETURNING next_seq - 1";

/// Adds a row to one device's queue.
const APPEND_TO_ONE: &str = "INSERT INTO queue (device_id, seq, envelope_id, own_part) VALUES ($1, $2, $3, $4)";

/// Stores a payload with the number of rows that will point at it.
const ADD_ENVELOPE: &str = "
    INSERT INTO envelopes (kind, group_id, number, posted_hour_ms, pointers, payload)
    VALUES ($1, $2, $3, $4, $5, $6) RETURNING envelope_id";

/// The page of a device's queue after `$2` (after what it acked, if that is more): at most `$3` rows and `$4` bytes of
/// payload, but one row if there is any. With it, on each row, the cursor and the ends of the queue as of the same
/// moment, and whether the session `$5` holds at `$6`. One row without an entry if there is none; no row at all if
/// there is no such device. One statement, because two would see two moments and report holes that are none.
/// What is measured is materialised without the payloads; only those of the page are read.
pub(super) const PAGE: &str = "
    WITH sized AS MATERIALIZED (
        SELECT q.seq, q.envelope_id, LENGTH(e.payload) AS bytes
        FROM queue q JOIN envelopes e ON e.envelope_id = q.envelope_id
        WHERE q.device_id = $1 AND q.seq > $2 ORDER BY q.seq LIMIT $3
    ), page AS (
        SELECT seq, envelope_id, bytes, SUM(bytes) OVER (ORDER BY seq) AS bytes_so_far FROM sized
    )
    SELECT c.next_seq, c.acked_seq, c.stream,
           (SELECT MIN(seq) FROM queue WHERE device_id = c.device_id),
           (SELECT MAX(seq) FROM queue WHERE device_id = c.device_id),
           CAST(CASE WHEN EXISTS (
               SELECT 1 FROM sessions WHERE token_hash = $5 AND device_id = c.device_id AND expires_ms > $6
           ) THEN 1 ELSE 0 END AS BIGINT),
           p.seq, q.own_part, e.kind, e.group_id, e.number, e.payload
    FROM cursors c
    LEFT JOIN page p ON p.bytes_so_far <= $4 OR p.bytes_so_far = p.bytes
    LEFT JOIN queue q ON q.device_id = c.device_id AND q.seq = p.seq
    LEFT JOIN envelopes e ON e.envelope_id = p.envelope_id
    WHERE c.device_id = $1 ORDER BY p.seq";

/// A device's cursor and the oldest number in its queue.
const CURSOR: &str = "
    SELECT next_seq, acked_seq, stream, (SELECT MIN(seq) FROM queue WHERE device_id = c.device_id)
    FROM cursors c WHERE device_id = $1";

/// Opens a device's next stream.
const NEXT_STREAM: &str = "UPDATE cursors SET stream = stream + 1 WHERE device_id = $1";

/// Moves what a device has acked forward, never back.
const ACK: &str = "UPDATE cursors SET acked_seq = $2 WHERE device_id = $1 AND acked_seq < $2";

/// Deletes a device's rows up to a number; answers what they pointed at.
const DELETE_UP_TO: &str = "DELETE FROM queue WHERE device_id = $1 AND seq <= $2 RETURNING envelope_id";

/// Deletes up to `$2` rows of envelopes posted before the hour `$1`; answers what they pointed at.
pub(super) const EXPIRE: &str = "
    DELETE FROM queue WHERE (device_id, seq) IN (
        SELECT q.device_id, q.seq FROM envelopes e JOIN queue q ON q.envelope_id = e.envelope_id
        WHERE e.posted_hour_ms < $1 LIMIT $2
    ) RETURNING envelope_id";

/// Lowers the pointers of envelopes: `$1` is a JSON array of [envelope, by how many].
const RELEASE_SQLITE: &str = "
    UPDATE envelopes SET pointers = pointers - released.how_many
    FROM (SELECT json_extract(value, '$[0]') AS id, json_extract(value, '$[1]') AS how_many FROM json_each($1))
         AS released
    WHERE envelope_id = released.id";

/// Deletes those envelopes of `$1` (as above) at which nothing points any more.
const DELETE_RELEASED_SQLITE: &str = "
    DELETE FROM envelopes
    WHERE pointers = 0 AND envelope_id IN (SELECT json_extract(value, '$[0]') FROM json_each($1))";

/// Where a device's queue holds commits of a group, oldest first, at most `$3`.
const UNACKED_COMMITS: &str = "
    SELECT e.number, q.seq FROM queue q JOIN envelopes e ON e.envelope_id = q.envelope_id
    WHERE q.device_id = $1 AND e.group_id = $2 AND e.kind = 2 ORDER BY q.seq LIMIT $3";

/// What an envelope is. The numbers are stored; they never change their meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// An application message; its number is 0.
    Message = 1,
    /// A commit; its number is its `commit_seq`.
    Commit = 2,
    /// A Welcome's shared part; its number is the `commit_seq` that added the joiners.
    Welcome = 3,
    /// Members are gone without a commit; its number is the group's `members_version`. No payload.
    MembersGone = 4,
}

/// An envelope to be stored.
pub(crate) struct NewEnvelope<'a> {
    pub(crate) kind: Kind,
    pub(crate) group: GroupId,
    pub(crate) number: u64,
    pub(crate) posted_hour_ms: u64,
    pub(crate) payload: &'a [u8],
}

/// What a device's queue looked like at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Page {
    pub(crate) deliveries: Vec<Delivery>,
    pub(crate) next_seq: u64,
    pub(crate) acked_seq: u64,
    /// The number of the newest stream.
    pub(crate) stream: u64,
    /// The oldest number held, if any is.
    pub(crate) oldest: Option<u64>,
    /// The newest number held, if any is.
    pub(crate) newest: Option<u64>,
    /// Whether the session held.
    pub(crate) authenticated: bool,
}

/// What to read of a queue.
pub(crate) struct PageRequest {
    pub(crate) device: DeviceId,
    pub(crate) token_hash: Hash,
    pub(crate) after: u64,
    pub(crate) entries_max: u64,
    pub(crate) bytes_max: u64,
}

/// A device's cursor.
pub(crate) struct Cursor {
    pub(crate) next_seq: u64,
    pub(crate) acked_seq: u64,
    pub(crate) stream: u64,
    pub(crate) oldest: Option<u64>,
}

/// Appends an envelope to the queues of all member devices of its group, who are woken; `held_by_commits` says whether a
/// row of `commits` will point at it too. Answers the envelope, or `None` if nobody is there to have it.
pub(crate) async fn append_to_members(
    tx: &mut Tx,
    envelope: &NewEnvelope<'_>,
    held_by_commits: bool,
) -> Result<Option<i64>, StoreError> {
    let group = envelope.group.as_bytes().as_slice();
    let numbered = on!(**tx, db => sqlx::query_as(NUMBER_MEMBERS).bind(group).fetch_all(db).await)?;
    let devices = parsed_devices(numbered)?;
    let pointers = devices.len() as u64 + u64::from(held_by_commits);
    if pointers == 0 {
        return Ok(None);
    }
    let id = add_envelope(tx, envelope, pointers).await?;
    on!(**tx, db => sqlx::query(APPEND_TO_MEMBERS).bind(group).bind(id).execute(db).await)?;
    devices.into_iter().for_each(|device| tx.wake_after(device));
    Ok(Some(id))
}

/// Appends an envelope to the queues of some devices, in ascending order, each with a part of its own.
pub(crate) async fn append_to(
    tx: &mut Tx,
    envelope: &NewEnvelope<'_>,
    receivers: &[(DeviceId, Bytes)],
) -> Result<(), StoreError> {
    let id = add_envelope(tx, envelope, receivers.len() as u64).await?;
    for (device, own_part) in receivers {
        let bytes = device.as_bytes().as_slice();
        let (seq,): (i64,) = on!(**tx, db => sqlx::query_as(NUMBER_ONE).bind(bytes).fetch_one(db).await)?;
        on!(**tx, db => sqlx::query(APPEND_TO_ONE)
            .bind(bytes).bind(seq).bind(id).bind(own_part.as_slice()).execute(db).await)?;
        tx.wake_after(*device);
    }
    Ok(())
}

async fn add_envelope(tx: &mut Tx, envelope: &NewEnvelope<'_>, pointers: u64) -> Result<i64, StoreError> {
    let (id,): (i64,) = on!(**tx, db => sqlx::query_as(ADD_ENVELOPE)
        .bind(envelope.kind as i64).bind(envelope.group.as_bytes().as_slice()).bind(stored(envelope.number))
        .bind(stored(envelope.posted_hour_ms)).bind(stored(pointers)).bind(envelope.payload).fetch_one(db).await)?;
    Ok(id)
}

/// Cursor, ends of the queue and session, then the entry, if there is one.
type PageRow = (
    i64,
    i64,
    i64,
    Option<i64>,
    Option<i64>,
    i64,
    Option<i64>,
    Option<Vec<u8>>,
    Option<i64>,
    Option<Vec<u8>>,
    Option<i64>,
    Option<Vec<u8>>,
);

/// A page of a device's queue; `None` if there is no such device.
pub(crate) async fn page(conn: &mut Conn, request: &PageRequest, now_ms: u64) -> Result<Option<Page>, StoreError> {
    let rows: Vec<PageRow> = on!(*conn, db => sqlx::query_as(PAGE)
        .bind(request.device.as_bytes().as_slice()).bind(stored(request.after)).bind(stored(request.entries_max))
        .bind(stored(request.bytes_max)).bind(hash_bytes(&request.token_hash)).bind(stored(now_ms))
        .fetch_all(db).await)?;
    let Some(first) = rows.first() else { return Ok(None) };
    let mut page = Page {
        deliveries: Vec::with_capacity(rows.len()),
        next_seq: number(first.0)?,
        acked_seq: number(first.1)?,
        stream: number(first.2)?,
        oldest: first.3.map(number).transpose()?,
        newest: first.4.map(number).transpose()?,
        authenticated: first.5 == 1,
    };
    for (_, _, _, _, _, _, seq, own_part, kind, group, count, payload) in rows {
        if let (Some(seq), Some(kind), Some(group), Some(count), Some(payload)) = (seq, kind, group, count, payload) {
            let envelope = envelope(kind, parsed(&group)?, number(count)?, payload, own_part)?;
            page.deliveries.push(Delivery { seq: number(seq)?, envelope });
        }
    }
    Ok(Some(page))
}

fn envelope(
    kind: i64,
    group_id: GroupId,
    number: u64,
    payload: Vec<u8>,
    own_part: Option<Vec<u8>>,
) -> Result<Envelope, StoreError> {
    const MESSAGE: i64 = Kind::Message as i64;
    const COMMIT: i64 = Kind::Commit as i64;
    const WELCOME: i64 = Kind::Welcome as i64;
    const MEMBERS_GONE: i64 = Kind::MembersGone as i64;
    match kind {
        MESSAGE => Ok(Envelope::GroupMessage { group_id, message: payload.into() }),
        COMMIT => Ok(Envelope::GroupCommit { group_id, commit_seq: number, commit: payload.into() }),
        WELCOME => {
            let secrets = own_part.ok_or(StoreError::Corrupt("a Welcome without secrets"))?.into();
            Ok(Envelope::Welcome { group_id, commit_seq: number, group_info: payload.into(), secrets })
        }
        MEMBERS_GONE => Ok(Envelope::MembersGone { group_id, members_version: number }),
        _ => Err(StoreError::Corrupt("a kind of envelope")),
    }
}

/// A device's cursor; `None` if there is no such device.
pub(crate) async fn cursor(conn: &mut Conn, device: &DeviceId) -> Result<Option<Cursor>, StoreError> {
    let device = device.as_bytes().as_slice();
    let row: Option<(i64, i64, i64, Option<i64>)> =
        on!(*conn, db => sqlx::query_as(CURSOR).bind(device).fetch_optional(db).await)?;
    row.map(|(next_seq, acked_seq, stream, oldest)| {
        Ok(Cursor {
            next_seq: number(next_seq)?,
            acked_seq: number(acked_seq)?,
            stream: number(stream)?,
            oldest: oldest.map(number).transpose()?,
        })
    })
    .transpose()
}

/// Opens a device's next stream; whoever holds an older one is woken to learn of it.
pub(crate) async fn next_stream(tx: &mut Tx, device: &DeviceId) -> Result<(), StoreError> {
    on!(**tx, db => sqlx::query(NEXT_STREAM).bind(device.as_bytes().as_slice()).execute(db).await)?;
    tx.wake_after(*device);
    Ok(())
}

/// Notes that a device has everything up to `up_to`, and deletes it.
pub(crate) async fn ack(tx: &mut Tx, device: &DeviceId, up_to: u64) -> Result<(), StoreError> {
    let bytes = device.as_bytes().as_slice();
    on!(**tx, db => sqlx::query(ACK).bind(bytes).bind(stored(up_to)).execute(db).await)?;
    delete_up_to(tx, device, up_to).await
}

/// Deletes a device's whole queue.
pub(crate) async fn delete_all(tx: &mut Tx, device: &DeviceId) -> Result<(), StoreError> {
    delete_up_to(tx, device, u64::MAX).await
}

async fn delete_up_to(tx: &mut Tx, device: &DeviceId, up_to: u64) -> Result<(), StoreError> {
    let device = device.as_bytes().as_slice();
    let deleted = on!(**tx, db => sqlx::query_as(DELETE_UP_TO).bind(device).bind(stored(up_to)).fetch_all(db).await)?;
    release(tx, deleted).await
}

/// Deletes up to `batch` rows of envelopes posted before an hour; answers how many went.
pub(crate) async fn expire(tx: &mut Tx, before_hour_ms: u64, batch: u64) -> Result<u64, StoreError> {
    let (before, batch) = (stored(before_hour_ms), stored(batch));
    let deleted: Vec<(i64,)> = on!(**tx, db => sqlx::query_as(EXPIRE).bind(before).bind(batch).fetch_all(db).await)?;
    let count = deleted.len() as u64;
    release(tx, deleted).await?;
    Ok(count)
}

/// Lowers the pointers of envelopes by the rows that were just deleted, and deletes those that nothing points at.
pub(super) async fn release(tx: &mut Tx, deleted: Vec<(i64,)>) -> Result<(), StoreError> {
    if deleted.is_empty() {
        return Ok(());
    }
    let mut released = BTreeMap::<i64, u64>::new();
    for (envelope,) in deleted {
        *released.entry(envelope).or_default() += 1;
    }
    match &mut **tx {
        Conn::Sqlite(db) => {
            let pairs: Vec<String> = released.iter().map(|(envelope, rows)| format!("[{envelope},{rows}]")).collect();
            let released = format!("[{}]", pairs.join(","));
            sqlx::query(RELEASE_SQLITE).bind(&released).execute(&mut **db).await?;
            sqlx::query(DELETE_RELEASED_SQLITE).bind(&released).execute(&mut **db).await?;
        }
    }
    Ok(())
}

/// Where a device's queue holds commits of a group, oldest first, at most `max`.
pub(crate) async fn unacked_commits(
    conn: &mut Conn,
    device: &DeviceId,
    group: &GroupId,
    max: u64,
) -> Result<Vec<UnackedCommit>, StoreError> {
    let rows: Vec<(i64, i64)> = on!(*conn, db => sqlx::query_as(UNACKED_COMMITS)
        .bind(device.as_bytes().as_slice()).bind(group.as_bytes().as_slice()).bind(stored(max)).fetch_all(db).await)?;
    rows.into_iter()
        .map(|(commit_seq, seq)| Ok(UnackedCommit { commit_seq: number(commit_seq)?, seq: number(seq)? }))
        .collect()
}
