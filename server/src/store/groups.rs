//! Groups, stays of devices in them, and their commits.
//!
//! Invariant: a device has at most one stay in a group that has not ended, and at most one that awaits removal. A row of
//! `commits` is one of the pointers of its envelope.

use undertone_wire::{AccountId, DeviceId, GroupCommit, GroupId, GroupMember, GroupPosition, GroupSummary};

use super::{Conn, StoreError, Tx, number, on, parsed, parsed_devices, queue, stored};

/// Adds a group.
const ADD: &str = "
    INSERT INTO groups (group_id, epoch, commit_seq, members_version, newest_commit_account, sealed_group_info)
    VALUES ($1, 0, 0, 0, $2, $3)";

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

/// A device's stays: whether one lasts, whether one awaits removal, whether one lasts since the group's creation. No
/// row: it never was a member.
const STANDING: &str = "
    SELECT CAST(MAX(CASE WHEN ended_commit IS NULL THEN 1 ELSE 0 END) AS BIGINT), CAST(MAX(awaits_removal) AS BIGINT),
           CAST(MAX(CASE WHEN ended_commit IS NULL AND began_commit = 0 THEN 1 ELSE 0 END) AS BIGINT)
    FROM group_members WHERE group_id = $1 AND device_id = $2 HAVING COUNT(*) > 0";

/// Whether an account has a device in a group.
const ACCOUNT_IS_IN: &str = "
    SELECT CAST(1 AS BIGINT) FROM group_members m JOIN devices d ON d.device_id = m.device_id
    WHERE m.group_id = $1 AND m.ended_commit IS NULL AND d.account_id = $2 LIMIT 1";

/// A group's member devices with their accounts, in ascending order of devices.
const MEMBERS: &str = "
    SELECT m.device_id, d.account_id FROM group_members m JOIN devices d ON d.device_id = m.device_id
    WHERE m.group_id = $1 AND m.ended_commit IS NULL ORDER BY m.device_id";

/// How many devices are members.
const MEMBER_COUNT: &str = "SELECT COUNT(*) FROM group_members WHERE group_id = $1 AND ended_commit IS NULL";

/// An account's devices in a group, in ascending order.
const MEMBERS_OF_ACCOUNT: &str = "
    SELECT m.device_id FROM group_members m JOIN devices d ON d.device_id = m.device_id
    WHERE m.group_id = $1 AND m.ended_commit IS NULL AND d.account_id = $2 ORDER BY m.device_id";

/// The groups in which a device is a member, in ascending order, with where they stand.
const GROUPS_OF: &str = "
    SELECT g.group_id, g.epoch, g.commit_seq, g.members_version
    FROM group_members m JOIN groups g ON g.group_id = m.group_id
    WHERE m.device_id = $1 AND m.ended_commit IS NULL ORDER BY g.group_id";

/// Begins a device's stay.
const BEGIN: &str = "INSERT INTO group_members (group_id, device_id, began_commit) VALUES ($1, $2, $3)";

/// Ends a device's stay, if it lasts; `$5` is 1 if a commit must still remove its leaf.
const END: &str = "
    UPDATE group_members SET ended_commit = $3, ended_hour_ms = $4, awaits_removal = $5
    WHERE group_id = $1 AND device_id = $2 AND ended_commit IS NULL";

/// Notes that a commit removed the leaf of a device whose stay had ended before.
const LEAF_REMOVED: &str = "
    UPDATE group_members SET ended_commit = $3, ended_hour_ms = $4, awaits_removal = 0
    WHERE group_id = $1 AND device_id = $2 AND awaits_removal = 1";

/// Forgets a device's stays but those for which a leaf still stands.
const FORGET: &str = "DELETE FROM group_members WHERE device_id = $1 AND awaits_removal = 0";

/// Forgets that an account posted the newest commit of any group.
const FORGET_ACCOUNT: &str = "UPDATE groups SET newest_commit_account = NULL WHERE newest_commit_account = $1";

/// Adds a commit.
const ADD_COMMIT: &str = "
    INSERT INTO commits (group_id, commit_seq, envelope_id, added, removed, posted_hour_ms)
    VALUES ($1, $2, $3, $4, $5, $6)";

/// Commits of a group after number `$2`, oldest first: at most `$3` of them and `$4` bytes, but one if there is any.
/// What is measured is materialised without the payloads; only those of the page are read.
pub(super) const COMMITS_AFTER: &str = "
    WITH sized AS MATERIALIZED (
        SELECT c.commit_seq, c.envelope_id, LENGTH(e.payload) AS bytes
        FROM commits c JOIN envelopes e ON e.envelope_id = c.envelope_id
        WHERE c.group_id = $1 AND c.commit_seq > $2 ORDER BY c.commit_seq LIMIT $3
    ), page AS (
        SELECT commit_seq, envelope_id, bytes, SUM(bytes) OVER (ORDER BY commit_seq) AS bytes_so_far FROM sized
    )
    SELECT p.commit_seq, (SELECT payload FROM envelopes WHERE envelope_id = p.envelope_id)
    FROM page p WHERE p.bytes_so_far <= $4 OR p.bytes_so_far = p.bytes ORDER BY p.commit_seq";

/// Deletes a group's commits; answers the envelopes they pointed at.
const DELETE_COMMITS: &str = "DELETE FROM commits WHERE group_id = $1 RETURNING envelope_id";

/// Deletes all stays in a group.
const DELETE_STAYS: &str = "DELETE FROM group_members WHERE group_id = $1";

/// Deletes a group; nothing may point at it any more.
const DELETE: &str = "DELETE FROM groups WHERE group_id = $1";

/// Deletes up to `$2` commits posted before the hour `$1`; answers the envelopes they pointed at.
const EXPIRE_COMMITS: &str = "
    DELETE FROM commits WHERE (group_id, commit_seq) IN (
        SELECT group_id, commit_seq FROM commits WHERE posted_hour_ms < $1 ORDER BY posted_hour_ms LIMIT $2
    ) RETURNING envelope_id";

/// Deletes up to `$2` stays that ended before the hour `$1` and await no removal.
const EXPIRE_STAYS: &str = "
    DELETE FROM group_members WHERE (group_id, device_id, began_commit) IN (
        SELECT group_id, device_id, began_commit FROM group_members
        WHERE ended_hour_ms < $1 AND awaits_removal = 0 ORDER BY ended_hour_ms LIMIT $2
    )";

/// Up to `$2` groups that nobody has been in since the hour `$1`. The last to go went without a commit, so a stay that
/// awaits removal still tells of each.
const DESERTED: &str = "
    SELECT DISTINCT group_id FROM group_members last WHERE ended_hour_ms < $1 AND awaits_removal = 1 AND NOT EXISTS (
        SELECT 1 FROM group_members m
        WHERE m.group_id = last.group_id AND (m.ended_hour_ms IS NULL OR m.ended_hour_ms >= $1)
    ) LIMIT $2";

/// What a device is to a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Standing {
    /// It is a member now.
    pub(crate) member: bool,
    /// A stay of it ended without a commit, and its leaf still stands.
    pub(crate) awaits_removal: bool,
    /// It has been a member ever since the group was created.
    pub(crate) founder: bool,
}

/// A commit to be added.
pub(crate) struct NewCommit<'a> {
    pub(crate) group: GroupId,
    pub(crate) commit_seq: u64,
    pub(crate) envelope: i64,
    pub(crate) added: &'a [DeviceId],
    pub(crate) removed: &'a [DeviceId],
    pub(crate) posted_hour_ms: u64,
}

/// How a stay ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// By a commit, which also removes the leaf.
    ByCommit,
    /// Without one; the leaf stands until a commit removes it.
    WithoutCommit,
}

/// Adds a group at epoch 0 without members.
pub(crate) async fn add(
    tx: &mut Tx,
    group: &GroupId,
    founder: &AccountId,
    sealed_group_info: &[u8],
) -> Result<(), StoreError> {
    let (group, founder) = (group.as_bytes().as_slice(), founder.as_bytes().as_slice());
    on!(**tx, db => sqlx::query(ADD).bind(group).bind(founder).bind(sealed_group_info).execute(db).await)?;
    Ok(())
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
    on!(**tx, db => sqlx::query(ADVANCE).bind(group).bind(account).bind(sealed_group_info).execute(db).await)?;
    Ok(())
}

/// Notes that a group's members changed without a commit; answers the new version.
pub(crate) async fn bump_members(tx: &mut Tx, group: &GroupId) -> Result<u64, StoreError> {
    let group = group.as_bytes().as_slice();
    let (version,): (i64,) = on!(**tx, db => sqlx::query_as(BUMP_MEMBERS).bind(group).fetch_one(db).await)?;
    number(version)
}

/// What a device is to a group; `None` if it never was a member.
pub(crate) async fn standing(
    conn: &mut Conn,
    group: &GroupId,
    device: &DeviceId,
) -> Result<Option<Standing>, StoreError> {
    let (group, device) = (group.as_bytes().as_slice(), device.as_bytes().as_slice());
    let row: Option<(i64, i64, i64)> =
        on!(*conn, db => sqlx::query_as(STANDING).bind(group).bind(device).fetch_optional(db).await)?;
    Ok(row.map(|(member, awaits_removal, founder)| Standing {
        member: member == 1,
        awaits_removal: awaits_removal == 1,
        founder: founder == 1,
    }))
}

/// Whether an account has a device in a group.
pub(crate) async fn account_is_in(conn: &mut Conn, group: &GroupId, account: &AccountId) -> Result<bool, StoreError> {
    let (group, account) = (group.as_bytes().as_slice(), account.as_bytes().as_slice());
    let row: Option<(i64,)> =
        on!(*conn, db => sqlx::query_as(ACCOUNT_IS_IN).bind(group).bind(account).fetch_optional(db).await)?;
    Ok(row.is_some())
}

/// A group's member devices, in ascending order.
pub(crate) async fn members(conn: &mut Conn, group: &GroupId) -> Result<Vec<GroupMember>, StoreError> {
    let group = group.as_bytes().as_slice();
    let rows: Vec<(Vec<u8>, Vec<u8>)> = on!(*conn, db => sqlx::query_as(MEMBERS).bind(group).fetch_all(db).await)?;
    rows.iter()
        .map(|(device, account)| Ok(GroupMember { device_id: parsed(device)?, account_id: parsed(account)? }))
        .collect()
}

/// How many devices are members.
pub(crate) async fn member_count(conn: &mut Conn, group: &GroupId) -> Result<u64, StoreError> {
    let group = group.as_bytes().as_slice();
    let (count,): (i64,) = on!(*conn, db => sqlx::query_as(MEMBER_COUNT).bind(group).fetch_one(db).await)?;
    number(count)
}

/// An account's devices in a group, in ascending order.
pub(crate) async fn members_of_account(
    conn: &mut Conn,
    group: &GroupId,
    account: &AccountId,
) -> Result<Vec<DeviceId>, StoreError> {
    let (group, account) = (group.as_bytes().as_slice(), account.as_bytes().as_slice());
    parsed_devices(on!(*conn, db => sqlx::query_as(MEMBERS_OF_ACCOUNT).bind(group).bind(account).fetch_all(db).await)?)
}

/// The groups in which a device is a member, in ascending order.
pub(crate) async fn groups_of(conn: &mut Conn, device: &DeviceId) -> Result<Vec<GroupSummary>, StoreError> {
    let device = device.as_bytes().as_slice();
    let rows: Vec<(Vec<u8>, i64, i64, i64)> =
        on!(*conn, db => sqlx::query_as(GROUPS_OF).bind(device).fetch_all(db).await)?;
    rows.iter()
        .map(|(group, epoch, commit_seq, version)| {
            Ok(GroupSummary { group_id: parsed(group)?, position: parsed_position(*epoch, *commit_seq, *version)? })
        })
        .collect()
}

/// Begins a device's stay with commit `began`.
pub(crate) async fn begin_stay(tx: &mut Tx, group: &GroupId, device: &DeviceId, began: u64) -> Result<(), StoreError> {
    let (group, device) = (group.as_bytes().as_slice(), device.as_bytes().as_slice());
    on!(**tx, db => sqlx::query(BEGIN).bind(group).bind(device).bind(stored(began)).execute(db).await)?;
    Ok(())
}

/// Ends a device's stay at commit `ended`. A commit also ends the wait for the removal of its leaf.
pub(crate) async fn end_stay(
    tx: &mut Tx,
    group: &GroupId,
    device: &DeviceId,
    ended: u64,
    hour_ms: u64,
    ending: Ending,
) -> Result<(), StoreError> {
    let (group, device) = (group.as_bytes().as_slice(), device.as_bytes().as_slice());
    let (ended, hour, awaits) = (stored(ended), stored(hour_ms), i64::from(ending == Ending::WithoutCommit));
    on!(**tx, db => sqlx::query(END)
        .bind(group).bind(device).bind(ended).bind(hour).bind(awaits).execute(db).await)?;
    if ending == Ending::ByCommit {
        on!(**tx, db => sqlx::query(LEAF_REMOVED)
            .bind(group).bind(device).bind(ended).bind(hour).execute(db).await)?;
    }
    Ok(())
}

/// Forgets a device's stays but those for which a leaf still stands.
pub(crate) async fn forget_device(tx: &mut Tx, device: &DeviceId) -> Result<(), StoreError> {
    on!(**tx, db => sqlx::query(FORGET).bind(device.as_bytes().as_slice()).execute(db).await)?;
    Ok(())
}

/// Forgets that an account posted the newest commit of any group.
pub(crate) async fn forget_account(tx: &mut Tx, account: &AccountId) -> Result<(), StoreError> {
    on!(**tx, db => sqlx::query(FORGET_ACCOUNT).bind(account.as_bytes().as_slice()).execute(db).await)?;
    Ok(())
}

/// Adds a commit; its envelope counts it as one of its pointers.
pub(crate) async fn add_commit(tx: &mut Tx, commit: &NewCommit<'_>) -> Result<(), StoreError> {
    let (added, removed) = (concatenated(commit.added), concatenated(commit.removed));
    on!(**tx, db => sqlx::query(ADD_COMMIT)
        .bind(commit.group.as_bytes().as_slice()).bind(stored(commit.commit_seq)).bind(commit.envelope)
        .bind(added).bind(removed).bind(stored(commit.posted_hour_ms)).execute(db).await)?;
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

/// Deletes a group with its commits and stays. What stands in queues stays there.
pub(crate) async fn delete(tx: &mut Tx, group: &GroupId) -> Result<(), StoreError> {
    let group = group.as_bytes().as_slice();
    let deleted = on!(**tx, db => sqlx::query_as(DELETE_COMMITS).bind(group).fetch_all(db).await)?;
    queue::release(tx, deleted).await?;
    for statement in [DELETE_STAYS, DELETE] {
        on!(**tx, db => sqlx::query(statement).bind(group).execute(db).await)?;
    }
    Ok(())
}

/// Deletes up to `batch` each of commits posted and stays ended before an hour, and of groups that nobody has been in
/// since; answers how many went.
pub(crate) async fn expire(tx: &mut Tx, before_hour_ms: u64, batch: u64) -> Result<u64, StoreError> {
    let (before, batch) = (stored(before_hour_ms), stored(batch));
    let commits: Vec<(i64,)> =
        on!(**tx, db => sqlx::query_as(EXPIRE_COMMITS).bind(before).bind(batch).fetch_all(db).await)?;
    let deserted: Vec<(Vec<u8>,)> =
        on!(**tx, db => sqlx::query_as(DESERTED).bind(before).bind(batch).fetch_all(db).await)?;
    let mut count = (commits.len() + deserted.len()) as u64;
    queue::release(tx, commits).await?;
    for (group,) in deserted {
        delete(tx, &parsed(&group)?).await?;
    }
    count += on!(**tx, db => sqlx::query(EXPIRE_STAYS)
        .bind(before).bind(batch).execute(db).await.map(|done| done.rows_affected()))?;
    Ok(count)
}
