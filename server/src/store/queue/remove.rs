//! Taking from queues: what was acked, displaced, or is over, and whole queues of devices that are gone.
//!
//! Invariant: whoever deletes rows has locked their cursors first, and lowers counts by the rows that the DELETE returned.
//! So rows of the queue may go in several statements and in any order: whoever else wants them waits for the cursor, and
//! holds none of them. Envelopes have many cursors, and are therefore settled at once, before the commit.

use std::collections::{BTreeMap, BTreeSet};

use undertone_wire::DeviceId;

use super::{Cursors, Share, lock, save};
use crate::store::{
    StoreError, Tx,
    bulk::{Pair, Rows, pair},
    number, on, parsed, stored,
};

/// Deletes rows by their keys; answers whose they were, what they pointed at, and what they took.
const DELETE_ROWS: Pair = pair!(
    "DELETE FROM queue WHERE (device_id, seq) IN (SELECT device_id, seq FROM " (rows device_id bytes, seq number)
    ") RETURNING device_id, envelope_id, share, bytes"
);

/// Deletes the rows of devices up to a number; answers the same.
const DELETE_UP_TO: Pair = pair!(
    "DELETE FROM queue WHERE (device_id, seq) IN (
         SELECT q.device_id, q.seq FROM " (rows device_id bytes, up_to number)
    " JOIN queue q ON q.device_id = rows.device_id AND q.seq <= rows.up_to
     ) RETURNING device_id, envelope_id, share, bytes"
);

/// Up to `$2` rows of envelopes that expired by `$1`, the oldest first.
pub(crate) const EXPIRED: &str = "
    SELECT q.device_id, q.seq FROM envelopes e JOIN queue q ON q.envelope_id = e.envelope_id
    WHERE e.expires_hour_ms <= $1 ORDER BY e.expires_hour_ms LIMIT $2";

/// How many rows point at envelopes, ascending; nobody else changes that while the transaction lasts.
const LOCK_ENVELOPES: Pair = pair!(
    "SELECT envelope_id, pointers FROM envelopes WHERE envelope_id IN (SELECT envelope_id FROM "
    (rows envelope_id number) ") ORDER BY envelope_id" (lock "FOR UPDATE")
);

/// Lowers the pointers of envelopes.
const LOWER: Pair = pair!(
    "UPDATE envelopes SET pointers = pointers - rows.gone FROM " (rows envelope_id number, gone number)
    " WHERE envelopes.envelope_id = rows.envelope_id"
);

/// Deletes envelopes.
const DELETE_ENVELOPES: Pair = pair!(
    "DELETE FROM envelopes WHERE envelope_id IN (SELECT envelope_id FROM " (rows envelope_id number) ")"
);

/// A row that was deleted: device, envelope, share, bytes.
type Deleted = (Vec<u8>, i64, Vec<u8>, i64);

/// Notes that devices have everything up to a number, and deletes it. Their cursors are locked.
pub(crate) async fn ack(tx: &mut Tx, mut cursors: Cursors, acked: &BTreeMap<DeviceId, u64>) -> Result<(), StoreError> {
    for (device, up_to) in acked {
        let cursor = cursors.get_mut(device)?;
        cursor.acked_seq = cursor.acked_seq.max(*up_to);
    }
    let deleted = delete_up_to(tx, acked).await?;
    settle(tx, &mut cursors, deleted)?;
    save(tx, &cursors, &acked.keys().copied().collect()).await
}

/// Deletes the whole queues of devices, whose cursors are locked and will be deleted.
pub(crate) async fn delete_all(
    tx: &mut Tx,
    cursors: &mut Cursors,
    devices: &BTreeSet<DeviceId>,
) -> Result<(), StoreError> {
    let all = devices.iter().map(|device| (*device, u64::MAX)).collect();
    let deleted = delete_up_to(tx, &all).await?;
    settle(tx, cursors, deleted)
}

async fn delete_up_to(tx: &mut Tx, up_to: &BTreeMap<DeviceId, u64>) -> Result<Vec<Deleted>, StoreError> {
    let rows = Rows::of(up_to.keys()).numbers(up_to.values().map(|up_to| stored(*up_to)));
    tx.select(&DELETE_UP_TO, rows).await
}

/// Deletes up to `batch` rows of envelopes that expired by a time; answers how many went.
pub(crate) async fn expire(tx: &mut Tx, now_ms: u64, batch: u64) -> Result<u64, StoreError> {
    let expired: Vec<(Vec<u8>, i64)> = on!(**tx, db => sqlx::query_as(EXPIRED)
        .bind(stored(now_ms)).bind(stored(batch)).fetch_all(db).await)?;
    let expired = expired.into_iter().map(|(device, seq)| Ok((parsed(&device)?, number(seq)?)));
    let expired = expired.collect::<Result<Vec<(DeviceId, u64)>, StoreError>>()?;
    let devices: BTreeSet<_> = expired.iter().map(|(device, _)| *device).collect();
    let mut cursors = lock(tx, &devices).await?;
    let count = delete_rows(tx, &mut cursors, expired).await?;
    save(tx, &cursors, &devices).await?;
    devices.into_iter().for_each(|device| tx.wake_after(device));
    Ok(count)
}

/// Deletes rows, whose cursors are locked and yet to be saved; answers how many were still there.
pub(super) async fn delete_rows(
    tx: &mut Tx,
    cursors: &mut Cursors,
    rows: Vec<(DeviceId, u64)>,
) -> Result<u64, StoreError> {
    let rows = Rows::of(rows.iter().map(|(device, _)| device)).numbers(rows.iter().map(|(_, seq)| stored(*seq)));
    let deleted: Vec<Deleted> = tx.select(&DELETE_ROWS, rows).await?;
    let count = deleted.len() as u64;
    settle(tx, cursors, deleted)?;
    Ok(count)
}

/// Lowers what cursors count by rows that were deleted, and lets go of their envelopes.
fn settle(tx: &mut Tx, cursors: &mut Cursors, deleted: Vec<Deleted>) -> Result<(), StoreError> {
    for (device, envelope, share, bytes) in deleted {
        let cursor = cursors.get_mut(&parsed(&device)?)?;
        if let Some(waiting) = cursor.waiting(&Share::parse(&share)?) {
            waiting.take(number(bytes)?);
        }
        tx.release(envelope);
    }
    Ok(())
}

/// Lowers the pointers of envelopes, by how many are gone of each, and deletes those that nothing points at any more.
pub(in crate::store) async fn lower_pointers(tx: &mut Tx, gone: &BTreeMap<i64, i64>) -> Result<(), StoreError> {
    let held: Vec<(i64, i64)> = tx.select(&LOCK_ENVELOPES, Rows::default().numbers(gone.keys().copied())).await?;
    let by = |envelope: &i64| gone.get(envelope).copied().unwrap_or_default();
    let (last, lowered): (Vec<_>, Vec<_>) =
        held.into_iter().partition(|(envelope, pointers)| *pointers <= by(envelope));
    let lowered = Rows::default()
        .numbers(lowered.iter().map(|(envelope, _)| *envelope))
        .numbers(lowered.iter().map(|(envelope, _)| by(envelope)));
    tx.execute(&LOWER, lowered).await?;
    tx.execute(&DELETE_ENVELOPES, Rows::default().numbers(last.iter().map(|(envelope, _)| *envelope))).await?;
    Ok(())
}
