//! Stays of devices in groups: who is in which, who was, and whose leaf still stands.
//!
//! Invariant: a device has at most one stay in a group that has not ended, and at most one that awaits removal.

use std::collections::{BTreeMap, BTreeSet};

use undertone_wire::{AccountId, DeviceId, GroupId, GroupMember, GroupSummary};

use super::parsed_position;
use crate::store::{
    Conn, StoreError, Tx,
    bulk::{Pair, Rows, pair},
    execute, number, on, parsed, stored,
};

/// The stays of devices in groups: whether one lasts, whether one awaits removal, whether one lasts since the group's
/// creation. No row: the device never was a member.
const STANDINGS: Pair = pair!(
    "SELECT m.group_id, m.device_id, CAST(MAX(CASE WHEN ended_commit IS NULL THEN 1 ELSE 0 END) AS BIGINT),
            CAST(MAX(awaits_removal) AS BIGINT),
            CAST(MAX(CASE WHEN ended_commit IS NULL AND began_commit = 0 THEN 1 ELSE 0 END) AS BIGINT)
     FROM " (rows group_id bytes, device_id bytes)
    " JOIN group_members m ON m.group_id = rows.group_id AND m.device_id = rows.device_id
     GROUP BY m.group_id, m.device_id"
);

/// The member devices of groups, in ascending order.
const MEMBERS_OF: Pair = pair!(
    "SELECT group_id, device_id FROM group_members WHERE ended_commit IS NULL AND group_id IN " ids
    " ORDER BY device_id"
);

/// In how many groups each of these devices is a member, of those who are in any.
const GROUP_COUNTS: Pair = pair!(
    "SELECT device_id, COUNT(*) FROM group_members WHERE ended_commit IS NULL AND device_id IN " ids
    " GROUP BY device_id"
);

/// Whether an account has a device in a group.
const ACCOUNT_IS_IN: &str = "
    SELECT CAST(1 AS BIGINT) FROM group_members m JOIN devices d ON d.device_id = m.device_id
    WHERE m.group_id = $1 AND m.ended_commit IS NULL AND d.account_id = $2 LIMIT 1";

/// A group's member devices with their accounts, in ascending order of devices.
const MEMBERS: &str = "
    SELECT m.device_id, d.account_id FROM group_members m JOIN devices d ON d.device_id = m.device_id
    WHERE m.group_id = $1 AND m.ended_commit IS NULL ORDER BY m.device_id";

/// The groups in which a device is a member, in ascending order, with where they stand.
const GROUPS_OF: &str = "
    SELECT g.group_id, g.epoch, g.commit_seq, g.members_version
    FROM group_members m JOIN groups g ON g.group_id = m.group_id
    WHERE m.device_id = $1 AND m.ended_commit IS NULL ORDER BY g.group_id";

/// Begins stays.
const BEGIN: Pair = pair!(
    "INSERT INTO group_members (group_id, device_id, began_commit)
     SELECT group_id, device_id, began_commit FROM " (rows group_id bytes, device_id bytes, began_commit number)
);

/// Ends stays that last; `awaits_removal` is 1 if a commit must still remove the leaf.
const END: Pair = pair!(
    "UPDATE group_members SET ended_commit = rows.ended_commit, ended_hour_ms = rows.ended_hour_ms,
                              awaits_removal = rows.awaits_removal FROM "
    (rows group_id bytes, device_id bytes, ended_commit number, ended_hour_ms number, awaits_removal number)
    " WHERE group_members.group_id = rows.group_id AND group_members.device_id = rows.device_id
            AND group_members.ended_commit IS NULL"
);

/// Notes that a commit removed the leaves of devices whose stay had ended before, at the number it has.
const LEAVES_REMOVED: Pair = pair!(
    "UPDATE group_members SET ended_hour_ms = rows.ended_hour_ms, awaits_removal = 0 FROM "
    (rows group_id bytes, device_id bytes, ended_hour_ms number)
    " WHERE group_members.group_id = rows.group_id AND group_members.device_id = rows.device_id
            AND group_members.awaits_removal = 1"
);

/// Forgets devices' stays but those for which a leaf still stands.
const FORGET: Pair = pair!("DELETE FROM group_members WHERE awaits_removal = 0 AND device_id IN " ids);

/// The groups in which devices are members, and which of them is in which.
const STAYS_OF: Pair = pair!(
    "SELECT group_id, device_id FROM group_members WHERE ended_commit IS NULL AND device_id IN " ids
    " ORDER BY group_id, device_id"
);

/// Deletes up to `$2` stays that ended before the hour `$1` and await no removal. One that others have in hand is passed
/// over.
const EXPIRE_STAYS: Pair = pair!(
    "WITH expired AS MATERIALIZED (
         SELECT group_id, device_id, began_commit FROM group_members WHERE ended_hour_ms < $1 AND awaits_removal = 0 ORDER BY ended_hour_ms LIMIT $2"
    (lock "FOR UPDATE SKIP LOCKED")
    ") DELETE FROM group_members WHERE (group_id, device_id, began_commit) IN (SELECT group_id, device_id, began_commit FROM expired)"
);

/// What a device is to a group.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Standing {
    /// It is a member now.
    pub(crate) member: bool,
    /// A stay of it ended without a commit, and its leaf still stands.
    pub(crate) awaits_removal: bool,
    /// It has been a member ever since the group was created.
    pub(crate) founder: bool,
}

impl Standing {
    fn from_flags(member: i64, awaits_removal: i64, founder: i64) -> Self {
        Self { member: member == 1, awaits_removal: awaits_removal == 1, founder: founder == 1 }
    }
}

/// How a stay ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// By a commit, which also removes the leaf.
    ByCommit,
    /// Without one; the leaf stands until a commit removes it.
    WithoutCommit,
}

/// Group and device, then the three flags of a [`Standing`].
type StandingRow = (Vec<u8>, Vec<u8>, i64, i64, i64);

/// What devices are to groups. Who never was a member is left out.
pub(crate) async fn standings(
    conn: &mut Conn,
    asked: &BTreeSet<(GroupId, DeviceId)>,
) -> Result<BTreeMap<(GroupId, DeviceId), Standing>, StoreError> {
    let rows = Rows::of(asked.iter().map(|(group, _)| group)).bytes(asked.iter().map(|(_, device)| device));
    let rows: Vec<StandingRow> = conn.select(&STANDINGS, rows).await?;
    let standing = |(group, device, member, awaits_removal, founder): StandingRow| {
        Ok(((parsed(&group)?, parsed(&device)?), Standing::from_flags(member, awaits_removal, founder)))
    };
    rows.into_iter().map(standing).collect()
}

/// The member devices of groups, each in ascending order.
pub(crate) async fn members_of(
    conn: &mut Conn,
    groups: &BTreeSet<GroupId>,
) -> Result<BTreeMap<GroupId, Vec<DeviceId>>, StoreError> {
    by_group(conn.select(&MEMBERS_OF, Rows::of(groups)).await?)
}

fn by_group(rows: Vec<(Vec<u8>, Vec<u8>)>) -> Result<BTreeMap<GroupId, Vec<DeviceId>>, StoreError> {
    let mut devices = BTreeMap::<_, Vec<_>>::new();
    for (group, device) in rows {
        devices.entry(parsed(&group)?).or_default().push(parsed(&device)?);
    }
    Ok(devices)
}

/// In how many groups each of some devices is a member; those in none are left out.
pub(crate) async fn group_counts(
    conn: &mut Conn,
    devices: &BTreeSet<DeviceId>,
) -> Result<BTreeMap<DeviceId, u64>, StoreError> {
    let rows: Vec<(Vec<u8>, i64)> = conn.select(&GROUP_COUNTS, Rows::of(devices)).await?;
    rows.into_iter().map(|(device, count)| Ok((parsed(&device)?, number(count)?))).collect()
}

/// What a device is to a group; `None` if it never was a member.
pub(crate) async fn standing(
    conn: &mut Conn,
    group: &GroupId,
    device: &DeviceId,
) -> Result<Option<Standing>, StoreError> {
    Ok(standings(conn, &BTreeSet::from([(*group, *device)])).await?.into_values().next())
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

/// Begins stays of devices with commit `began`.
pub(crate) async fn begin_stays(
    tx: &mut Tx,
    group: &GroupId,
    devices: &[DeviceId],
    began: u64,
) -> Result<(), StoreError> {
    let rows = in_group(group, devices).numbers(devices.iter().map(|_| stored(began)));
    tx.execute(&BEGIN, rows).await?;
    Ok(())
}

/// Ends stays of devices at commit `ended`. A commit also ends the wait for the removal of their leaves.
pub(crate) async fn end_stays(
    tx: &mut Tx,
    group: &GroupId,
    devices: &[DeviceId],
    ended: u64,
    hour_ms: u64,
    ending: Ending,
) -> Result<(), StoreError> {
    let awaits = i64::from(ending == Ending::WithoutCommit);
    let every = |number: i64| devices.iter().map(move |_| number);
    let rows = in_group(group, devices).numbers(every(stored(ended))).numbers(every(stored(hour_ms)));
    tx.execute(&END, rows.numbers(every(awaits))).await?;
    if ending == Ending::ByCommit {
        tx.execute(&LEAVES_REMOVED, in_group(group, devices).numbers(every(stored(hour_ms)))).await?;
    }
    Ok(())
}

fn in_group(group: &GroupId, devices: &[DeviceId]) -> Rows {
    Rows::of(devices.iter().map(|_| group)).bytes(devices)
}

/// The groups in which devices are members, and which of them is in which.
pub(crate) async fn stays_of(
    conn: &mut Conn,
    devices: &BTreeSet<DeviceId>,
) -> Result<BTreeMap<GroupId, Vec<DeviceId>>, StoreError> {
    by_group(conn.select(&STAYS_OF, Rows::of(devices)).await?)
}

/// Forgets devices' stays but those for which a leaf still stands.
pub(crate) async fn forget_devices(tx: &mut Tx, devices: &BTreeSet<DeviceId>) -> Result<(), StoreError> {
    tx.execute(&FORGET, Rows::of(devices)).await?;
    Ok(())
}

/// Deletes up to `batch` stays that ended before an hour; answers how many went.
pub(crate) async fn expire_stays(tx: &mut Tx, before_hour_ms: u64, batch: u64) -> Result<u64, StoreError> {
    let (statement, before, batch) = (tx.words(&EXPIRE_STAYS), stored(before_hour_ms), stored(batch));
    Ok(execute!(**tx, statement, before, batch)?)
}
