//! Which group goes on for the members of an epoch whose group cannot.
//!
//! Invariant: there is one for an epoch at a time, and who founded it is not kept.

use std::collections::BTreeSet;

use undertone_wire::{AccountId, DeviceId, GroupId};

use crate::store::{
    Conn, StoreError, Tx,
    bulk::{Pair, pair},
    execute, on, parsed, stored,
};

/// The successor of a group from the commit `$2` on.
const SUCCESSOR: &str = "SELECT successor FROM successors WHERE group_id = $1 AND at_commit = $2";

/// Records a successor; in the place of the one before, if there is one.
const RECORD: &str = "
    INSERT INTO successors (group_id, at_commit, successor, posted_hour_ms) VALUES ($1, $2, $3, $4)
    ON CONFLICT (group_id, at_commit) DO UPDATE
    SET successor = EXCLUDED.successor, posted_hour_ms = EXCLUDED.posted_hour_ms";

/// The listed devices that were members after the commit `$2` and before the next, ascending. A stay that ended by a commit
/// lasted up to the one before it.
const MEMBERS_AT: &str = "
    SELECT DISTINCT m.device_id FROM group_members m JOIN devices d ON d.device_id = m.device_id
    WHERE m.group_id = $1 AND m.began_commit <= $2 AND (m.ended_commit IS NULL OR m.ended_commit > $2)
    ORDER BY m.device_id";

/// Whether a device was a member after the commit `$3` and before the next.
const WAS_MEMBER_AT: &str = "
    SELECT CAST(1 AS BIGINT) FROM group_members
    WHERE group_id = $1 AND device_id = $2 AND began_commit <= $3 AND (ended_commit IS NULL OR ended_commit > $3) LIMIT 1";

/// The account that posted the newest commit.
const NEWEST_COMMIT_ACCOUNT: &str = "SELECT newest_commit_account FROM groups WHERE group_id = $1";

/// Deletes up to `$2` successors recorded before the hour `$1`. One that others have in hand is passed over.
const EXPIRE: Pair = pair!(
    "WITH expired AS MATERIALIZED (
         SELECT group_id, at_commit FROM successors WHERE posted_hour_ms < $1 ORDER BY posted_hour_ms LIMIT $2"
    (lock "FOR UPDATE SKIP LOCKED")
    ") DELETE FROM successors WHERE (group_id, at_commit) IN (SELECT group_id, at_commit FROM expired)"
);

/// The successor of a group from a commit on, if one is recorded.
pub(crate) async fn successor(conn: &mut Conn, group: &GroupId, at: u64) -> Result<Option<GroupId>, StoreError> {
    let row: Option<(Vec<u8>,)> = on!(*conn, db => sqlx::query_as(SUCCESSOR)
        .bind(group.as_bytes().as_slice()).bind(stored(at)).fetch_optional(db).await)?;
    row.map(|(successor,)| parsed(&successor)).transpose()
}

/// Records the successor of a group, which is locked, from a commit on; it takes the place of one recorded before.
pub(crate) async fn record_successor(
    tx: &mut Tx,
    group: &GroupId,
    at: u64,
    successor: &GroupId,
    posted_hour_ms: u64,
) -> Result<(), StoreError> {
    let (group, successor) = (group.as_bytes().as_slice(), successor.as_bytes().as_slice());
    execute!(**tx, RECORD, group, stored(at), successor, stored(posted_hour_ms))?;
    Ok(())
}

/// The listed devices that were members in the epoch that a commit began, whatever became of them since.
pub(crate) async fn members_at(conn: &mut Conn, group: &GroupId, at: u64) -> Result<BTreeSet<DeviceId>, StoreError> {
    let rows: Vec<(Vec<u8>,)> = on!(*conn, db => sqlx::query_as(MEMBERS_AT)
        .bind(group.as_bytes().as_slice()).bind(stored(at)).fetch_all(db).await)?;
    rows.iter().map(|(device,)| parsed(device)).collect()
}

/// Whether a device was a member in the epoch that a commit began.
pub(crate) async fn was_member_at(
    conn: &mut Conn,
    group: &GroupId,
    device: &DeviceId,
    at: u64,
) -> Result<bool, StoreError> {
    let row: Option<(i64,)> = on!(*conn, db => sqlx::query_as(WAS_MEMBER_AT)
        .bind(group.as_bytes().as_slice()).bind(device.as_bytes().as_slice()).bind(stored(at))
        .fetch_optional(db).await)?;
    Ok(row.is_some())
}

/// The account that posted the newest commit of a group; `None` if it is gone, or there is no such group.
pub(crate) async fn newest_commit_account(conn: &mut Conn, group: &GroupId) -> Result<Option<AccountId>, StoreError> {
    let group = group.as_bytes().as_slice();
    let row: Option<(Option<Vec<u8>>,)> =
        on!(*conn, db => sqlx::query_as(NEWEST_COMMIT_ACCOUNT).bind(group).fetch_optional(db).await)?;
    row.and_then(|(account,)| account).map(|account| parsed(&account)).transpose()
}

/// Deletes up to `batch` successors recorded before an hour; answers how many went.
pub(crate) async fn expire_successors(tx: &mut Tx, before_hour_ms: u64, batch: u64) -> Result<u64, StoreError> {
    let (statement, before, batch) = (tx.words(&EXPIRE), stored(before_hour_ms), stored(batch));
    Ok(execute!(**tx, statement, before, batch)?)
}
