//! Envelopes, the rows that point at them, and cursors. `append` adds, `remove` takes away, this file reads and locks.
//!
//! Invariant: the numbers of a device's queue are consecutive, because whoever takes one holds the cursor's lock until its
//! row is committed. A cursor's counts are those of its rows, and `pointers` of an envelope is how many rows of `queue` and
//! `commits` point at it: both change only with rows, in their transaction and by what a statement returned. A payload
//! goes with its last pointer, when the transaction commits.

mod append;
mod remove;

use std::collections::{BTreeMap, BTreeSet};

use undertone_wire::{Bytes, Delivery, DeviceId, Envelope, GroupId, Hash, InstanceId, UnackedCommit};

pub(crate) use append::{NewEnvelope, Receiver, Room, append};
#[cfg(test)]
pub(super) use remove::EXPIRED;
pub(super) use remove::lower_pointers;
pub(crate) use remove::{ack, delete_all, expire};

use super::{
    Conn, StoreError, Tx,
    bulk::{Pair, Rows, pair},
    execute, number, on, parsed, stored,
};

/// The page of a device's queue after `$2`: at most `$3` rows and `$4` bytes, but one row if there is any. With it, on
/// each row, the cursor and the ends of the queue as of the same moment, and whether the session `$5` holds at `$6`. One
/// row without an entry if there is none; no row at all if there is no such device. One statement, because two would see
/// two moments and report holes that are none. What is measured is materialised without the payloads; only those of
/// the page are read.
pub(super) const PAGE: &str = "
    WITH sized AS MATERIALIZED (
        SELECT seq, envelope_id, bytes FROM queue WHERE device_id = $1 AND seq > $2 ORDER BY seq LIMIT $3
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

/// The cursors of devices, ascending, which nobody else moves while the transaction lasts.
const LOCK: Pair = pair!(
    "SELECT device_id, next_seq, acked_seq, stream, group_entries, group_bytes, direct_entries, direct_bytes
     FROM cursors WHERE device_id IN " ids " ORDER BY device_id" (lock "FOR UPDATE")
);

/// Moves cursors.
const SAVE: Pair = pair!(
    "UPDATE cursors SET next_seq = rows.next_seq, acked_seq = rows.acked_seq,
         group_entries = rows.group_entries, group_bytes = rows.group_bytes,
         direct_entries = rows.direct_entries, direct_bytes = rows.direct_bytes
     FROM "
    (rows device_id bytes, next_seq number, acked_seq number, group_entries number, group_bytes number,
          direct_entries number, direct_bytes number)
    " WHERE cursors.device_id = rows.device_id"
);

/// Where some devices' queues and streams stand, for who waits for them to move; with it how many sessions hold.
const STATES: Pair = pair!(
    "SELECT c.device_id, c.next_seq, c.stream,
            (SELECT COUNT(*) FROM sessions s WHERE s.device_id = c.device_id AND s.expires_ms > rows.now_ms)
     FROM " (rows device_id bytes, now_ms number) " JOIN cursors c ON c.device_id = rows.device_id"
);

/// Opens a device's next stream.
const NEXT_STREAM: &str = "UPDATE cursors SET stream = stream + 1 WHERE device_id = $1";

/// Which copy of a device's store takes from its queue.
const INSTANCE: &str = "SELECT instance FROM cursors WHERE device_id = $1";
const SET_INSTANCE: &str = "UPDATE cursors SET instance = $2 WHERE device_id = $1";

/// Moves a device's rows, and its next number, up by `$2`.
const MOVE_ROWS: &str = "UPDATE queue SET seq = seq + $2 WHERE device_id = $1";
const MOVE_CURSOR: &str = "UPDATE cursors SET next_seq = next_seq + $2 WHERE device_id = $1";

/// Where a device's queue holds commits of the group `$2`, oldest first, at most `$3`.
const UNACKED_COMMITS: &str = "
    SELECT e.number, q.seq FROM queue q JOIN envelopes e ON e.envelope_id = q.envelope_id
    WHERE q.device_id = $1 AND q.share = $2 AND e.kind = 2 ORDER BY q.seq LIMIT $3";

/// Whether a device's queue holds a notice of the relay of kind `$3` and number `$4`; its share is `$2`.
const NOTICE_WAITS: &str = "
    SELECT CAST(1 AS BIGINT) FROM queue q JOIN envelopes e ON e.envelope_id = q.envelope_id
    WHERE q.device_id = $1 AND q.share = $2 AND e.kind = $3 AND e.number = $4 LIMIT 1";

/// How far the numbers of a device jump that is ahead of its queue. All that waits is written anew for it, so a device
/// that makes this up must not get far: it runs into the largest number it may name after some two thousand times.
pub(crate) const JUMP_AHEAD: u64 = 1 << 40;

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
    /// A direct message to one device; its number is 0.
    Direct = 5,
    /// One-time key packages run out; its number is their suite, its payload how many are left (8 bytes).
    KeysLow = 6,
    /// The last-resort key package was handed out; its number is the suite. No payload.
    LastResortUsed = 7,
    /// A device asks to be let into a group again; its number is 0, its payload account and device (16 bytes each).
    RejoinWanted = 8,
    /// Another group goes on from a commit, which is its number; its payload is that group (16 bytes).
    Successor = 9,
}

/// Whose part of a queue an entry takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Share {
    /// A group's.
    Group(GroupId),
    /// That of direct messages.
    Direct,
    /// None: what the relay itself has to say, which is never much.
    Relay,
}

impl Share {
    fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Group(group) => group.as_bytes(),
            Self::Direct => &[],
            Self::Relay => &[0],
        }
    }

    fn parse(bytes: &[u8]) -> Result<Self, StoreError> {
        match bytes {
            [] => Ok(Self::Direct),
            [0] => Ok(Self::Relay),
            group => Ok(Self::Group(parsed(group)?)),
        }
    }
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

/// Where a device's queue and stream stand, and how many of its sessions hold: when one of them changes, there is
/// something to look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct State {
    next_seq: i64,
    stream: i64,
    sessions: i64,
}

/// Cursors that this transaction has locked.
#[derive(Debug, Default)]
pub(crate) struct Cursors(BTreeMap<DeviceId, LockedCursor>);

/// A cursor that this transaction has locked, with what waits in the queue.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LockedCursor {
    pub(crate) next_seq: u64,
    pub(crate) acked_seq: u64,
    pub(crate) stream: u64,
    pub(crate) groups: Waiting,
    pub(crate) direct: Waiting,
}

/// How much waits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Waiting {
    pub(crate) entries: u64,
    pub(crate) bytes: u64,
}

impl Cursors {
    /// The cursor of a device, if it has one.
    pub(crate) fn get(&self, device: &DeviceId) -> Option<&LockedCursor> {
        self.0.get(device)
    }

    fn get_mut(&mut self, device: &DeviceId) -> Result<&mut LockedCursor, StoreError> {
        self.0.get_mut(device).ok_or(StoreError::Corrupt("a device without a cursor"))
    }
}

impl LockedCursor {
    fn waiting(&mut self, share: &Share) -> Option<&mut Waiting> {
        match share {
            Share::Group(_) => Some(&mut self.groups),
            Share::Direct => Some(&mut self.direct),
            Share::Relay => None,
        }
    }
}

impl Waiting {
    fn add(&mut self, bytes: u64) {
        self.entries += 1;
        self.bytes = self.bytes.saturating_add(bytes);
    }

    fn take(&mut self, bytes: u64) {
        self.entries = self.entries.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

/// A device as its id, and six numbers more than that.
type CursorRow = (Vec<u8>, i64, i64, i64, i64, i64, i64, i64);

/// Locks the cursors of devices, ascending, until the transaction ends. Who has none is left out.
pub(crate) async fn lock(tx: &mut Tx, devices: &BTreeSet<DeviceId>) -> Result<Cursors, StoreError> {
    let rows: Vec<CursorRow> = tx.select(&LOCK, Rows::of(devices)).await?;
    let cursor = |row: CursorRow| {
        let cursor = LockedCursor {
            next_seq: number(row.1)?,
            acked_seq: number(row.2)?,
            stream: number(row.3)?,
            groups: Waiting { entries: number(row.4)?, bytes: number(row.5)? },
            direct: Waiting { entries: number(row.6)?, bytes: number(row.7)? },
        };
        Ok((parsed(&row.0)?, cursor))
    };
    Ok(Cursors(rows.into_iter().map(cursor).collect::<Result<_, StoreError>>()?))
}

/// Writes back the cursors of some devices.
async fn save(tx: &mut Tx, cursors: &Cursors, devices: &BTreeSet<DeviceId>) -> Result<(), StoreError> {
    let moved: Vec<_> = devices.iter().filter_map(|device| Some((device, cursors.get(device)?))).collect();
    let number = |of: fn(&LockedCursor) -> u64| moved.iter().map(move |(_, cursor)| stored(of(cursor)));
    let rows = Rows::of(moved.iter().map(|(device, _)| device))
        .numbers(number(|cursor| cursor.next_seq))
        .numbers(number(|cursor| cursor.acked_seq))
        .numbers(number(|cursor| cursor.groups.entries))
        .numbers(number(|cursor| cursor.groups.bytes))
        .numbers(number(|cursor| cursor.direct.entries))
        .numbers(number(|cursor| cursor.direct.bytes));
    tx.execute(&SAVE, rows).await?;
    Ok(())
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
        .bind(stored(request.bytes_max)).bind(request.token_hash.as_bytes().as_slice()).bind(stored(now_ms))
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
        if let (Some(seq), Some(kind), Some(count), Some(payload)) = (seq, kind, count, payload) {
            let group = group.as_deref().map(parsed).transpose()?;
            let envelope = envelope(kind, group, number(count)?, payload, own_part)?;
            page.deliveries.push(Delivery { seq: number(seq)?, envelope });
        }
    }
    Ok(Some(page))
}

fn envelope(
    kind: i64,
    group: Option<GroupId>,
    number: u64,
    payload: Vec<u8>,
    own_part: Option<Vec<u8>>,
) -> Result<Envelope, StoreError> {
    const MESSAGE: i64 = Kind::Message as i64;
    const COMMIT: i64 = Kind::Commit as i64;
    const WELCOME: i64 = Kind::Welcome as i64;
    const MEMBERS_GONE: i64 = Kind::MembersGone as i64;
    const DIRECT: i64 = Kind::Direct as i64;
    const KEYS_LOW: i64 = Kind::KeysLow as i64;
    const LAST_RESORT_USED: i64 = Kind::LastResortUsed as i64;
    const REJOIN_WANTED: i64 = Kind::RejoinWanted as i64;
    const SUCCESSOR: i64 = Kind::Successor as i64;
    let suite = || u16::try_from(number).map_err(|_| StoreError::Corrupt("a cipher suite"));
    let group_id = || group.ok_or(StoreError::Corrupt("an envelope without its group"));
    Ok(match kind {
        MESSAGE => Envelope::GroupMessage { group_id: group_id()?, message: payload.into() },
        COMMIT => Envelope::GroupCommit { group_id: group_id()?, commit_seq: number, commit: payload.into() },
        WELCOME => {
            let secrets = own_part.ok_or(StoreError::Corrupt("a Welcome without secrets"))?.into();
            let group_info: Bytes = payload.into();
            Envelope::Welcome { group_id: group_id()?, commit_seq: number, group_info, secrets }
        }
        MEMBERS_GONE => Envelope::MembersGone { group_id: group_id()?, members_version: number },
        DIRECT => Envelope::DirectMessage { ciphertext: payload.into() },
        KEYS_LOW => {
            let left = payload.try_into().map_err(|_| StoreError::Corrupt("a count of keys"))?;
            Envelope::KeysLow { suite: suite()?, one_time: u64::from_be_bytes(left) }
        }
        LAST_RESORT_USED => Envelope::LastResortUsed { suite: suite()? },
        REJOIN_WANTED => {
            let (account, device) = payload.split_at_checked(16).ok_or(StoreError::Corrupt("who wants to rejoin"))?;
            Envelope::RejoinWanted { group_id: group_id()?, account_id: parsed(account)?, device_id: parsed(device)? }
        }
        SUCCESSOR => Envelope::Successor { group_id: group_id()?, at: number, successor: parsed(&payload)? },
        _ => return Err(StoreError::Corrupt("a kind of envelope")),
    })
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

/// Where the queues and streams of some devices stand. Who is not listed is left out.
pub(crate) async fn states(
    conn: &mut Conn,
    devices: &[DeviceId],
    now_ms: u64,
) -> Result<BTreeMap<DeviceId, State>, StoreError> {
    let now = devices.iter().map(|_| stored(now_ms));
    let rows = Rows::of(devices).numbers(now);
    let rows: Vec<(Vec<u8>, i64, i64, i64)> = conn.select(&STATES, rows).await?;
    rows.into_iter()
        .map(|(device, next_seq, stream, sessions)| Ok((parsed(&device)?, State { next_seq, stream, sessions })))
        .collect()
}

/// Which copy of a device's store took from its queue last, if that is known.
pub(crate) async fn instance(tx: &mut Tx, device: &DeviceId) -> Result<Option<InstanceId>, StoreError> {
    let device = device.as_bytes().as_slice();
    let found: Option<(Option<Vec<u8>>,)> =
        on!(**tx, db => sqlx::query_as(INSTANCE).bind(device).fetch_optional(db).await)?;
    found.and_then(|(instance,)| instance).map(|instance| parsed(&instance)).transpose()
}

/// From now on this copy of a device's store takes from its queue.
pub(crate) async fn set_instance(tx: &mut Tx, device: &DeviceId, instance: &InstanceId) -> Result<(), StoreError> {
    execute!(**tx, SET_INSTANCE, device.as_bytes().as_slice(), instance.as_bytes().as_slice())?;
    Ok(())
}

/// Opens a device's next stream; whoever holds an older one is woken to learn of it.
pub(crate) async fn next_stream(tx: &mut Tx, device: &DeviceId) -> Result<(), StoreError> {
    execute!(**tx, NEXT_STREAM, device.as_bytes().as_slice())?;
    tx.wake_after(*device);
    Ok(())
}

/// Moves a device's numbers beyond one that the device has, those of waiting rows with them: what waits has not been
/// taken under the numbers that the device knows. The cursor is locked.
pub(crate) async fn jump_beyond(tx: &mut Tx, device: &DeviceId, seq: u64) -> Result<(), StoreError> {
    let cursor = cursor(tx, device).await?.ok_or(StoreError::Corrupt("a device without a cursor"))?;
    let oldest = cursor.oldest.unwrap_or(cursor.next_seq);
    let (device, by) = (device.as_bytes().as_slice(), stored(seq + 1 + JUMP_AHEAD - oldest.min(seq)));
    execute!(**tx, MOVE_ROWS, device, by)?;
    execute!(**tx, MOVE_CURSOR, device, by)?;
    Ok(())
}

/// Where a device's queue holds commits of a group, oldest first, at most `max`.
pub(crate) async fn unacked_commits(
    conn: &mut Conn,
    device: &DeviceId,
    group: &GroupId,
    max: u64,
) -> Result<Vec<UnackedCommit>, StoreError> {
    let share = Share::Group(*group);
    let rows: Vec<(i64, i64)> = on!(*conn, db => sqlx::query_as(UNACKED_COMMITS)
        .bind(device.as_bytes().as_slice()).bind(share.as_bytes()).bind(stored(max)).fetch_all(db).await)?;
    rows.into_iter()
        .map(|(commit_seq, seq)| Ok(UnackedCommit { commit_seq: number(commit_seq)?, seq: number(seq)? }))
        .collect()
}

/// Whether a notice of the relay of this kind and number waits for a device.
pub(crate) async fn notice_waits(
    conn: &mut Conn,
    device: &DeviceId,
    kind: Kind,
    number: u64,
) -> Result<bool, StoreError> {
    let row: Option<(i64,)> = on!(*conn, db => sqlx::query_as(NOTICE_WAITS)
        .bind(device.as_bytes().as_slice()).bind(Share::Relay.as_bytes()).bind(kind as i64).bind(stored(number))
        .fetch_optional(db).await)?;
    Ok(row.is_some())
}
