//! Groups: where they stand, and what they leave. `stays` has who is in them, `commits` what moved them, `successors` what
//! goes on in their place.
//!
//! Invariant: a group moves, changes its members and goes only in a transaction that has locked its row.

mod commits;
mod stays;
mod successors;

use std::collections::{BTreeMap, BTreeSet};

use undertone_wire::{AccountId, GroupId, GroupPosition};

#[cfg(test)]
pub(super) use commits::COMMITS_AFTER;
pub(crate) use commits::{NewCommit, add_commit, commits_after, expire_commits};
pub(crate) use stays::{
    Ending, Standing, account_is_in, begin_stays, end_stays, expire_stays, forget_devices, group_counts, groups_of,
    members, members_of, standing, standings, stays_of,
};
pub(crate) use successors::{
    expire_successors, members_at, newest_commit_account, record_successor, successor, was_member_at,
};

use super::{
    Conn, StoreError, Tx,
    bulk::{Pair, Rows, pair},
    execute, number, on, parsed, stored,
};

/// Adds a group. Changes nothing if it is there; one that is just being added is waited for.
const ADD: &str = "
    INSERT INTO groups (group_id, epoch, commit_seq, members_version, newest_commit_account, sealed_group_info)
    VALUES ($1, 0, 0, 0, $2, $3) ON CONFLICT DO NOTHING";

/// Locks groups, and answers where they stand.
const LOCK: Pair = pair!(
    "SELECT group_id, epoch, commit_seq, members_version FROM groups WHERE group_id IN " ids
    " ORDER BY group_id" (lock "FOR UPDATE")
);

/// Where a group stands.
const POSITION: &str = "SELECT epoch, commit_seq, members_version FROM groups WHERE group_id = $1";

/// The newest sealed group info.
const SEALED_GROUP_INFO: &str = "SELECT sealed_group_info FROM groups WHERE group_id = $1";

/// Moves a group on by one commit.
const ADVANCE: &str = "
    UPDATE groups SET epoch = epoch + 1, commit_seq = commit_seq + 1, members_version = members_version + 1,
                      newest_commit_account = $2, sealed_group_info = $3
    WHERE group_id = $1";

/// Notes that a group's members changed without a commit; answers the new version.
const BUMP_MEMBERS: &str = "
    UPDATE groups SET members_version = members_version + 1 WHERE group_id = $1 RETURNING members_version";

/// The groups whose newest commit is an account's.
const COMMITTED_BY: &str = "SELECT group_id FROM groups WHERE newest_commit_account = $1";

/// Forgets that an account posted the newest commit of any group.
const FORGET_ACCOUNT: &str = "UPDATE groups SET newest_commit_account = NULL WHERE newest_commit_account = $1";

/// Deletes a group's commits; answers the envelopes they pointed at.
const DELETE_COMMITS: &str = "DELETE FROM commits WHERE group_id = $1 RETURNING envelope_id";

/// Forgets all successors of a group.
const DELETE_SUCCESSORS: &str = "DELETE FROM successors WHERE group_id = $1";

/// Deletes all stays in a group.
const DELETE_STAYS: &str = "DELETE FROM group_members WHERE group_id = $1";

/// Deletes a group; nothing may point at it any more.
const DELETE: &str = "DELETE FROM groups WHERE group_id = $1";

/// Up to `$2` groups that nobody has been in since the hour `$1`. The last to go went without a commit, so a stay that
/// awaits removal still tells of each.
const DESERTED: &str = "
    WITH gone AS MATERIALIZED (
        SELECT group_id FROM group_members WHERE ended_hour_ms < $1 AND awaits_removal = 1
    )
    SELECT DISTINCT group_id FROM gone WHERE NOT EXISTS (
        SELECT 1 FROM group_members m
        WHERE m.group_id = gone.group_id AND (m.ended_hour_ms IS NULL OR m.ended_hour_ms >= $1)
    ) LIMIT $2";

/// Adds a group at epoch 0 without members; `false` if it is there.
pub(crate) async fn add(
    tx: &mut Tx,
    group: &GroupId,
    founder: &AccountId,
    sealed_group_info: &[u8],
) -> Result<bool, StoreError> {
    let (group, founder) = (group.as_bytes().as_slice(), founder.as_bytes().as_slice());
    let added = execute!(**tx, ADD, group, founder, sealed_group_info)?;
    Ok(added == 1)
}

/// Locks groups, so that nobody else moves them or changes their members until the transaction ends; answers where they
/// stand. Groups that do not exist are left out.
pub(crate) async fn lock(
    tx: &mut Tx,
    groups: &BTreeSet<GroupId>,
) -> Result<BTreeMap<GroupId, GroupPosition>, StoreError> {
    let rows: Vec<(Vec<u8>, i64, i64, i64)> = tx.select(&LOCK, Rows::of(groups)).await?;
    let position = |(group, epoch, commit_seq, version): (Vec<u8>, i64, i64, i64)| {
        Ok((parsed(&group)?, parsed_position(epoch, commit_seq, version)?))
    };
    rows.into_iter().map(position).collect()
}

/// Where a group stands; `None` if there is none.
pub(crate) async fn position(conn: &mut Conn, group: &GroupId) -> Result<Option<GroupPosition>, StoreError> {
    let group = group.as_bytes().as_slice();
    let row: Option<(i64, i64, i64)> = on!(*conn, db => sqlx::query_as(POSITION).bind(group).fetch_optional(db).await)?;
    row.map(|(epoch, commit_seq, version)| parsed_position(epoch, commit_seq, version)).transpose()
}

fn parsed_position(epoch: i64, commit_seq: i64, version: i64) -> Result<GroupPosition, StoreError> {
    Ok(GroupPosition { epoch: number(epoch)?, commit_seq: number(commit_seq)?, members_version: number(version)? })
}

/// The newest sealed group info; `None` if there is no such group.
pub(crate) async fn sealed_group_info(conn: &mut Conn, group: &GroupId) -> Result<Option<Vec<u8>>, StoreError> {
    let group = group.as_bytes().as_slice();
    let row: Option<(Vec<u8>,)> =
        on!(*conn, db => sqlx::query_as(SEALED_GROUP_INFO).bind(group).fetch_optional(db).await)?;
    Ok(row.map(|(info,)| info))
}

/// Moves a group on by one commit of `account`.
pub(crate) async fn advance(
    tx: &mut Tx,
    group: &GroupId,
    account: &AccountId,
    sealed_group_info: &[u8],
) -> Result<(), StoreError> {
    let (group, account) = (group.as_bytes().as_slice(), account.as_bytes().as_slice());
    execute!(**tx, ADVANCE, group, account, sealed_group_info)?;
    Ok(())
}

/// Notes that a group's members changed without a commit; answers the new version.
pub(crate) async fn bump_members(tx: &mut Tx, group: &GroupId) -> Result<u64, StoreError> {
    let group = group.as_bytes().as_slice();
    let (version,): (i64,) = on!(**tx, db => sqlx::query_as(BUMP_MEMBERS).bind(group).fetch_one(db).await)?;
    number(version)
}

/// The groups whose newest commit is an account's.
pub(crate) async fn committed_by(conn: &mut Conn, account: &AccountId) -> Result<Vec<GroupId>, StoreError> {
    let account = account.as_bytes().as_slice();
    let rows: Vec<(Vec<u8>,)> = on!(*conn, db => sqlx::query_as(COMMITTED_BY).bind(account).fetch_all(db).await)?;
    rows.iter().map(|(group,)| parsed(group)).collect()
}

/// Forgets that an account posted the newest commit of any group.
pub(crate) async fn forget_account(tx: &mut Tx, account: &AccountId) -> Result<(), StoreError> {
    execute!(**tx, FORGET_ACCOUNT, account.as_bytes().as_slice())?;
    Ok(())
}

/// Deletes a group with its commits and stays. What stands in queues stays there.
pub(crate) async fn delete(tx: &mut Tx, group: &GroupId) -> Result<(), StoreError> {
    let group = group.as_bytes().as_slice();
    let deleted: Vec<(i64,)> = on!(**tx, db => sqlx::query_as(DELETE_COMMITS).bind(group).fetch_all(db).await)?;
    deleted.into_iter().for_each(|(envelope,)| tx.release(envelope));
    for statement in [DELETE_SUCCESSORS, DELETE_STAYS, DELETE] {
        execute!(**tx, statement, group)?;
    }
    Ok(())
}

/// Deletes up to `batch` groups that nobody has been in since an hour; answers how many went.
pub(crate) async fn expire_deserted(tx: &mut Tx, before_hour_ms: u64, batch: u64) -> Result<u64, StoreError> {
    let (before, batch) = (stored(before_hour_ms), stored(batch));
    let deserted: Vec<(Vec<u8>,)> =
        on!(**tx, db => sqlx::query_as(DESERTED).bind(before).bind(batch).fetch_all(db).await)?;
    let deserted: BTreeSet<GroupId> = deserted.iter().map(|(group,)| parsed(group)).collect::<Result<_, _>>()?;
    // Nobody is in it, so nobody can have joined since: for that, a member must be there.
    lock(tx, &deserted).await?;
    for group in &deserted {
        delete(tx, group).await?;
    }
    Ok(deserted.len() as u64)
}
