//! Adding to queues: one payload, one thin row per device, each at the device's next number.
//!
//! Invariant: the groups' part of a queue never takes more than its room, but for what each group may always have. A group
//! pays with its own oldest rows, and with nobody else's; the newest row of a group is never given up.

use std::collections::{BTreeMap, BTreeSet};

use undertone_wire::{Bytes, DeviceId, GroupId};

use super::{Cursors, Kind, Share, remove, save};
use crate::store::{
    Conn, StoreError, Tx,
    bulk::{Pair, Rows, pair},
    number, on, parsed,
    pool::bounded,
    stored,
};

/// Stores a payload with the number of rows that will point at it.
const ADD_ENVELOPE: &str = "
    INSERT INTO envelopes (kind, group_id, number, expires_hour_ms, pointers, payload)
    VALUES ($1, $2, $3, $4, $5, $6) RETURNING envelope_id";

/// The same for many. The ids ascend in the order of the rows.
const ADD_ENVELOPES_POSTGRES: &str = "
    INSERT INTO envelopes (kind, group_id, number, expires_hour_ms, pointers, payload)
    SELECT kind, group_id, number, expires_hour_ms, pointers, payload
    FROM unnest($1::bigint[], $2::bytea[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bytea[]) WITH ORDINALITY
         AS rows (kind, group_id, number, expires_hour_ms, pointers, payload, nth)
    ORDER BY nth RETURNING envelope_id";

/// Adds rows to queues.
const ADD_ROWS: Pair = pair!(
    "INSERT INTO queue (device_id, seq, envelope_id, share, bytes, own_part)
     SELECT device_id, seq, envelope_id, share, bytes, own_part FROM "
    (rows device_id bytes, seq number, envelope_id number, share bytes, bytes number, own_part bytes)
);

/// Which rows of a group go from a device's queue: its oldest, until `entries_over` entries and `bytes_over` bytes are
/// gone, but none of those that a group may always have, and not its newest.
const DISPLACED: Pair = pair!(
    "SELECT device_id, seq FROM (
         SELECT q.device_id, q.seq, rows.entries_over, rows.bytes_over, rows.entries_min, rows.bytes_min,
                ROW_NUMBER() OVER older AS nth_oldest, SUM(q.bytes) OVER older - q.bytes AS bytes_older,
                ROW_NUMBER() OVER newer AS nth_newest, SUM(q.bytes) OVER newer AS bytes_newest
         FROM "
    (rows device_id bytes, share bytes, entries_over number, bytes_over number, entries_min number, bytes_min number)
    " JOIN queue q ON q.device_id = rows.device_id AND q.share = rows.share
         WINDOW older AS (PARTITION BY q.device_id ORDER BY q.seq),
                newer AS (PARTITION BY q.device_id ORDER BY q.seq DESC)
     ) AS held
     WHERE (nth_oldest <= entries_over OR bytes_older < bytes_over)
           AND nth_newest > 1 AND (nth_newest > entries_min OR bytes_newest > bytes_min)"
);

/// How much more than needed a group gives up at a time, as a part of its room: looking costs more than deleting.
const STEP: u64 = 100;

/// An envelope to be stored, and who gets it.
pub(crate) struct NewEnvelope<'a> {
    pub(crate) kind: Kind,
    /// Its group, if it belongs to one.
    pub(crate) group: Option<GroupId>,
    pub(crate) number: u64,
    pub(crate) expires_hour_ms: u64,
    pub(crate) payload: &'a [u8],
    /// Whether a row of `commits` will point at it too.
    pub(crate) held_by_commits: bool,
    pub(crate) receivers: Vec<Receiver>,
}

/// Who gets an envelope, perhaps with a part that only this one gets.
pub(crate) struct Receiver {
    pub(crate) device: DeviceId,
    pub(crate) own_part: Option<Bytes>,
}

/// How much of groups may wait for a device, and how much each group may always have.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Room {
    pub(crate) entries_max: u64,
    pub(crate) bytes_max: u64,
    pub(crate) group_entries_min: u64,
    pub(crate) group_bytes_min: u64,
}

/// A row that is added.
struct Row<'a> {
    device: DeviceId,
    seq: u64,
    envelope: usize,
    share: Share,
    bytes: u64,
    own_part: Option<&'a Bytes>,
}

impl NewEnvelope<'_> {
    fn share(&self) -> Share {
        match (self.kind, self.group) {
            (Kind::Direct, _) => Share::Direct,
            (_, Some(group)) => Share::Group(group),
            (_, None) => Share::Relay,
        }
    }

    fn pointers(&self) -> u64 {
        self.receivers.len() as u64 + u64::from(self.held_by_commits)
    }
}

impl From<DeviceId> for Receiver {
    fn from(device: DeviceId) -> Self {
        Self { device, own_part: None }
    }
}

/// Appends envelopes in their order to the queues of their receivers, whose cursors are locked and who are woken.
/// Answers the ids of the envelopes. One that nobody would have is not stored, and has id 0.
pub(crate) async fn append(
    tx: &mut Tx,
    mut cursors: Cursors,
    room: &Room,
    envelopes: &[NewEnvelope<'_>],
) -> Result<Vec<i64>, StoreError> {
    let rows = number_rows(&mut cursors, envelopes)?;
    let ids = add_envelopes(tx, envelopes).await?;
    add_rows(tx, &rows, &ids).await?;

    let mut devices = BTreeSet::new();
    let mut groups_of = BTreeMap::<DeviceId, BTreeSet<GroupId>>::new();
    for row in &rows {
        devices.insert(row.device);
        if let Share::Group(group) = row.share {
            groups_of.entry(row.device).or_default().insert(group);
        }
    }
    displace(tx, &mut cursors, room, groups_of).await?;
    save(tx, &cursors, &devices).await?;
    devices.into_iter().for_each(|device| tx.wake_after(device));
    Ok(ids)
}

/// Takes a number for each row.
fn number_rows<'a>(cursors: &mut Cursors, envelopes: &'a [NewEnvelope<'_>]) -> Result<Vec<Row<'a>>, StoreError> {
    let mut rows = Vec::new();
    for (nth, envelope) in envelopes.iter().enumerate() {
        let share = envelope.share();
        for Receiver { device, own_part } in &envelope.receivers {
            let bytes = envelope.payload.len() as u64 + own_part.as_ref().map_or(0, |own| own.len() as u64);
            let cursor = cursors.get_mut(device)?;
            let seq = cursor.next_seq;
            cursor.next_seq += 1;
            if let Some(waiting) = cursor.waiting(&share) {
                waiting.add(bytes);
            }
            rows.push(Row { device: *device, seq, envelope: nth, share, bytes, own_part: own_part.as_ref() });
        }
    }
    Ok(rows)
}

async fn add_envelopes(tx: &mut Tx, envelopes: &[NewEnvelope<'_>]) -> Result<Vec<i64>, StoreError> {
    let wanted: Vec<_> = envelopes.iter().filter(|envelope| envelope.pointers() > 0).collect();
    let mut added = match &mut **tx {
        // One by one, so that payloads are bound as they are.
        Conn::Sqlite(_) => add_one_by_one(tx, &wanted).await?,
        Conn::Postgres(link) => {
            let query = sqlx::query_as(ADD_ENVELOPES_POSTGRES)
                .bind(wanted.iter().map(|envelope| envelope.kind as i64).collect::<Vec<_>>())
                .bind(wanted.iter().map(|envelope| group_bytes(envelope)).collect::<Vec<_>>())
                .bind(wanted.iter().map(|envelope| stored(envelope.number)).collect::<Vec<_>>())
                .bind(wanted.iter().map(|envelope| stored(envelope.expires_hour_ms)).collect::<Vec<_>>())
                .bind(wanted.iter().map(|envelope| stored(envelope.pointers())).collect::<Vec<_>>())
                .bind(wanted.iter().map(|envelope| envelope.payload).collect::<Vec<_>>());
            let rows: Vec<(i64,)> = bounded!(link, db => query.fetch_all(db).await)?;
            rows.into_iter().map(|(id,)| id).collect()
        }
    };
    added.sort_unstable();
    let mut added = added.into_iter();
    let id = |envelope: &NewEnvelope<'_>| match envelope.pointers() {
        0 => Ok(0),
        _ => added.next().ok_or(StoreError::Corrupt("fewer envelopes than were added")),
    };
    envelopes.iter().map(id).collect()
}

async fn add_one_by_one(tx: &mut Tx, envelopes: &[&NewEnvelope<'_>]) -> Result<Vec<i64>, StoreError> {
    let mut ids = Vec::with_capacity(envelopes.len());
    for envelope in envelopes {
        let (id,): (i64,) = on!(**tx, db => sqlx::query_as(ADD_ENVELOPE)
            .bind(envelope.kind as i64).bind(group_bytes(envelope)).bind(stored(envelope.number))
            .bind(stored(envelope.expires_hour_ms)).bind(stored(envelope.pointers())).bind(envelope.payload)
            .fetch_one(db).await)?;
        ids.push(id);
    }
    Ok(ids)
}

fn group_bytes<'a>(envelope: &'a NewEnvelope<'_>) -> Option<&'a [u8]> {
    envelope.group.as_ref().map(|group| group.as_bytes().as_slice())
}

async fn add_rows(tx: &mut Tx, rows: &[Row<'_>], ids: &[i64]) -> Result<(), StoreError> {
    let rows = Rows::of(rows.iter().map(|row| &row.device))
        .numbers(rows.iter().map(|row| stored(row.seq)))
        .numbers(rows.iter().map(|row| ids.get(row.envelope).copied().unwrap_or_default()))
        .bytes(rows.iter().map(|row| row.share.as_bytes()))
        .numbers(rows.iter().map(|row| stored(row.bytes)))
        .maybe_bytes(rows.iter().map(|row| row.own_part.map(Bytes::as_slice)));
    tx.execute(&ADD_ROWS, rows).await?;
    Ok(())
}

/// Makes room in overfull queues: each group that just got something gives up its own oldest, one group of a device after
/// the other.
async fn displace(
    tx: &mut Tx,
    cursors: &mut Cursors,
    room: &Room,
    mut groups_of: BTreeMap<DeviceId, BTreeSet<GroupId>>,
) -> Result<(), StoreError> {
    loop {
        let mut over = Vec::new();
        groups_of.retain(|device, groups| {
            let Some(cursor) = cursors.get(device) else { return false };
            let entries = cursor.groups.entries.saturating_sub(room.entries_max);
            let bytes = cursor.groups.bytes.saturating_sub(room.bytes_max);
            let full = entries > 0 || bytes > 0;
            match groups.pop_first() {
                Some(group) if full => {
                    let entries = if entries > 0 { entries + room.entries_max / STEP } else { 0 };
                    let bytes = if bytes > 0 { bytes + room.bytes_max / STEP } else { 0 };
                    over.push((*device, Share::Group(group), entries, bytes));
                    true
                }
                _ => false,
            }
        });
        if over.is_empty() {
            return Ok(());
        }
        let rows = Rows::of(over.iter().map(|(device, ..)| device))
            .bytes(over.iter().map(|(_, share, ..)| share.as_bytes()))
            .numbers(over.iter().map(|(_, _, entries, _)| stored(*entries)))
            .numbers(over.iter().map(|(.., bytes)| stored(*bytes)))
            .numbers(over.iter().map(|_| stored(room.group_entries_min)))
            .numbers(over.iter().map(|_| stored(room.group_bytes_min)));
        let displaced: Vec<(Vec<u8>, i64)> = tx.select(&DISPLACED, rows).await?;
        let displaced = displaced.into_iter().map(|(device, seq)| Ok((parsed(&device)?, number(seq)?)));
        remove::delete_rows(tx, cursors, displaced.collect::<Result<_, StoreError>>()?).await?;
    }
}
