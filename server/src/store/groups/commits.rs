//! Commits of groups, kept for who missed them.
//!
//! Invariant: a row of `commits` is one of the pointers of its envelope.

use undertone_wire::{DeviceId, GroupCommit, GroupId};

use crate::store::{
    Conn, StoreError, Tx,
    bulk::{Pair, pair},
    execute, number, on, stored,
};

/// Adds a commit.
const ADD_COMMIT: &str = "
    INSERT INTO commits (group_id, commit_seq, envelope_id, added, removed, posted_hour_ms)
    VALUES ($1, $2, $3, $4, $5, $6)";

/// Commits of a group after number `$2`, oldest first: at most `$3` of them and `$4` bytes, but one if there is any.
/// What is measured is materialised without the payloads; only those of the page are read.
pub(in crate::store) const COMMITS_AFTER: &str = "
    WITH sized AS MATERIALIZED (
        SELECT c.commit_seq, c.envelope_id, LENGTH(e.payload) AS bytes
        FROM commits c JOIN envelopes e ON e.envelope_id = c.envelope_id
        WHERE c.group_id = $1 AND c.commit_seq > $2 ORDER BY c.commit_seq LIMIT $3
    ), page AS (
        SELECT commit_seq, envelope_id, bytes, SUM(bytes) OVER (ORDER BY commit_seq) AS bytes_so_far FROM sized
    )
    SELECT p.commit_seq, (SELECT payload FROM envelopes WHERE envelope_id = p.envelope_id)
    FROM page p WHERE p.bytes_so_far <= $4 OR p.bytes_so_far = p.bytes ORDER BY p.commit_seq";

/// Deletes up to `$2` commits posted before the hour `$1`; answers the envelopes they pointed at. One that others have in
/// hand is passed over.
const EXPIRE_COMMITS: Pair = pair!(
    "WITH expired AS MATERIALIZED (
         SELECT group_id, commit_seq FROM commits WHERE posted_hour_ms < $1 ORDER BY posted_hour_ms LIMIT $2"
    (lock "FOR UPDATE SKIP LOCKED")
    ") DELETE FROM commits WHERE (group_id, commit_seq) IN (SELECT group_id, commit_seq FROM expired) RETURNING envelope_id"
);

/// A commit to be added.
pub(crate) struct NewCommit<'a> {
    pub(crate) group: GroupId,
    pub(crate) commit_seq: u64,
    pub(crate) envelope: i64,
    pub(crate) added: &'a [DeviceId],
    pub(crate) removed: &'a [DeviceId],
    pub(crate) posted_hour_ms: u64,
}

/// Adds a commit; its envelope counts it as one of its pointers.
pub(crate) async fn add_commit(tx: &mut Tx, commit: &NewCommit<'_>) -> Result<(), StoreError> {
    let (added, removed) = (concatenated(commit.added), concatenated(commit.removed));
    execute!(
        **tx,
        ADD_COMMIT,
        commit.group.as_bytes().as_slice(),
        stored(commit.commit_seq),
        commit.envelope,
        added,
        removed,
        stored(commit.posted_hour_ms)
    )?;
    Ok(())
}

fn concatenated(devices: &[DeviceId]) -> Vec<u8> {
    devices.iter().flat_map(|device| *device.as_bytes()).collect()
}

/// Commits of a group after a number, oldest first: as many as fit, but one if there is any.
pub(crate) async fn commits_after(
    conn: &mut Conn,
    group: &GroupId,
    after: u64,
    entries_max: u64,
    bytes_max: u64,
) -> Result<Vec<GroupCommit>, StoreError> {
    let rows: Vec<(i64, Vec<u8>)> = on!(*conn, db => sqlx::query_as(COMMITS_AFTER)
        .bind(group.as_bytes().as_slice()).bind(stored(after)).bind(stored(entries_max)).bind(stored(bytes_max))
        .fetch_all(db).await)?;
    rows.into_iter()
        .map(|(commit_seq, commit)| Ok(GroupCommit { commit_seq: number(commit_seq)?, commit: commit.into() }))
        .collect()
}

/// Deletes up to `batch` commits posted before an hour; answers how many went.
pub(crate) async fn expire_commits(tx: &mut Tx, before_hour_ms: u64, batch: u64) -> Result<u64, StoreError> {
    let (statement, before, batch) = (tx.words(&EXPIRE_COMMITS), stored(before_hour_ms), stored(batch));
    let commits: Vec<(i64,)> = on!(**tx, db => sqlx::query_as(statement).bind(before).bind(batch).fetch_all(db).await)?;
    let count = commits.len() as u64;
    commits.into_iter().for_each(|(envelope,)| tx.release(envelope));
    Ok(count)
}
