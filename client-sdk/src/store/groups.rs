//! Groups and their members, as far as they are kept outside of MLS.
//!
//! Invariant: `members` mirrors the leaves of the tree; one function writes it, after every commit and join.

use rusqlite::{OptionalExtension as _, Row, params};
use undertone_wire::{AccountId, DeviceId, GroupId, PublicKey};

use super::{StoreError, Tx, bytes, bytes_if_any, not_expected};
use crate::crypto::{Member, Members, Suite, group::RejoinKey};

/// Whether a group can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GroupState {
    /// This device is a member.
    Active,
    /// This account has left.
    Left,
    /// Another member has removed this device.
    Removed,
    /// This device belongs in it, but what it has of the group is of no use: it is about to be in it again.
    Recovering,
    /// It cannot go on here.
    Stuck,
}

/// A group, or a chain of them that is one conversation.
#[derive(Clone)]
pub(crate) struct GroupRow {
    /// By which the app knows it.
    pub(crate) id: GroupId,
    /// The newest of the chain, by which the relay and MLS know it.
    pub(crate) live: GroupId,
    pub(crate) suite: Suite,
    pub(crate) name: String,
    pub(crate) state: GroupState,
    /// The number of the last commit that was applied.
    pub(crate) commit_seq: u64,
    pub(crate) rejoin_key: RejoinKey,
}

impl GroupState {
    /// Whether the device is in it no longer, and is not about to be again.
    pub(crate) fn is_over(self) -> bool {
        !matches!(self, Self::Active | Self::Recovering)
    }

    fn as_str(self) -> &'static str {
        match self {
            // Whether it is the one or the other, `recoveries` knows.
            Self::Active | Self::Recovering => "active",
            Self::Left => "left",
            Self::Removed => "removed",
            Self::Stuck => "stuck",
        }
    }

    fn from_row(row: &Row<'_>, column: usize) -> rusqlite::Result<Self> {
        match row.get_ref(column)?.as_str()? {
            "active" => Ok(Self::Active),
            "recovering" => Ok(Self::Recovering),
            "left" => Ok(Self::Left),
            "removed" => Ok(Self::Removed),
            "stuck" => Ok(Self::Stuck),
            _ => Err(not_expected(column, "a group state that this version does not know")),
        }
    }
}

const SELECT: &str = "SELECT id, name,
        CASE WHEN state = 'active' AND EXISTS (SELECT 1 FROM recoveries WHERE group_id = id AND step <> 'none')
             THEN 'recovering' ELSE state END,
        commit_seq, rejoin_key, live, suite FROM groups";

impl Tx<'_> {
    /// A group, in whatever state.
    pub(crate) fn group(&self, group: GroupId) -> Result<Option<GroupRow>, StoreError> {
        Ok(self.query_row(&format!("{SELECT} WHERE id = ?1"), [group.as_bytes()], group_from).optional()?)
    }

    /// A group by the id under which the relay knows it now.
    pub(crate) fn group_by_live(&self, live: GroupId) -> Result<Option<GroupRow>, StoreError> {
        Ok(self.query_row(&format!("{SELECT} WHERE live = ?1"), [live.as_bytes()], group_from).optional()?)
    }

    /// A group that can be used.
    pub(crate) fn active_group(&self, group: GroupId) -> Result<Option<GroupRow>, StoreError> {
        Ok(self.group(group)?.filter(|group| group.state == GroupState::Active))
    }

    /// All groups, by name.
    pub(crate) fn groups(&self) -> Result<Vec<GroupRow>, StoreError> {
        let mut statement = self.prepare_cached(&format!("{SELECT} ORDER BY name, id"))?;
        let groups = statement.query_map([], group_from)?.collect::<Result<_, _>>()?;
        Ok(groups)
    }

    /// Writes a group, new or not.
    pub(crate) fn save_group(&self, group: &GroupRow) -> Result<(), StoreError> {
        const UPDATE: &str =
            "UPDATE groups SET name = ?2, state = ?3, commit_seq = ?4, rejoin_key = ?5, live = ?6, suite = ?7
            WHERE id = ?1";
        const INSERT: &str = "INSERT INTO groups (id, name, state, commit_seq, rejoin_key, live, suite)
            VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
        let values = params![
            group.id.as_bytes(),
            group.name,
            group.state.as_str(),
            group.commit_seq,
            group.rejoin_key.as_bytes(),
            group.live.as_bytes(),
            group.suite.number(),
        ];
        if self.execute(UPDATE, values)? == 0 {
            self.add_conversation(group.id.into())?;
            self.execute(INSERT, values)?;
        }
        self.changes.work.set(true);
        Ok(())
    }

    /// The groups that can be used in which this device's keys are to be replaced now, or it is not known when; each
    /// with that time, and the number of its members.
    pub(crate) fn groups_to_update(&self, now_ms: u64) -> Result<Vec<(GroupId, Option<u64>, u64)>, StoreError> {
        const SELECT: &str = "SELECT id, update_at_ms, (SELECT count(*) FROM members WHERE group_id = id) FROM groups
            WHERE state = 'active' AND id NOT IN (SELECT id FROM conversations WHERE requested_by IS NOT NULL)
              AND (update_at_ms IS NULL OR update_at_ms <= ?1 OR update_unless_ms <= ?1)";
        let mut statement = self.prepare_cached(SELECT)?;
        let group = |row: &Row<'_>| Ok((bytes(row, 0)?, row.get(1)?, row.get(2)?));
        let groups = statement.query_map([now_ms], group)?.collect::<Result<_, _>>()?;
        Ok(groups)
    }

    /// When the next of them is to be done; `None` if none is.
    pub(crate) fn next_update_ms(&self) -> Result<Option<u64>, StoreError> {
        const SELECT: &str = "SELECT min(min(update_at_ms, coalesce(update_unless_ms, update_at_ms))) FROM groups
            WHERE state = 'active' AND id NOT IN (SELECT id FROM conversations WHERE requested_by IS NOT NULL)";
        Ok(self.query_row(SELECT, [], |row| row.get(0))?)
    }

    /// This device's keys in a group are to be replaced at a time, unless somebody commits before; earlier if that was
    /// said.
    pub(crate) fn update_unless(&self, group: GroupId, at_ms: u64) -> Result<(), StoreError> {
        const UPDATE: &str =
            "UPDATE groups SET update_unless_ms = min(coalesce(update_unless_ms, ?2), ?2) WHERE id = ?1";
        self.execute(UPDATE, params![group.as_bytes(), at_ms])?;
        self.changes.work.set(true);
        Ok(())
    }

    /// Somebody has committed.
    pub(crate) fn no_update_needed(&self, group: GroupId) -> Result<(), StoreError> {
        const UPDATE: &str = "UPDATE groups SET update_unless_ms = NULL
            WHERE id = ?1 AND update_unless_ms IS NOT NULL";
        self.execute(UPDATE, [group.as_bytes()])?;
        Ok(())
    }

    /// When this device's keys in a group are to be replaced.
    pub(crate) fn update_at(&self, group: GroupId, at_ms: u64) -> Result<(), StoreError> {
        const UPDATE: &str = "UPDATE groups SET update_at_ms = ?2, update_unless_ms = NULL WHERE id = ?1";
        self.execute(UPDATE, params![group.as_bytes(), at_ms])?;
        self.changes.work.set(true);
        Ok(())
    }

    /// Makes `members` mirror the tree. Who is marked gone stays so for as long as its leaf does: who is `fresh` has a
    /// new leaf. A key that was not stored yet is a reason to look at the account's list.
    pub(crate) fn save_members(
        &self,
        group: GroupId,
        members: &Members,
        fresh: impl Fn(&Member) -> bool,
    ) -> Result<(), StoreError> {
        const ADD: &str = "INSERT INTO members (group_id, account, device, mls_key) VALUES (?1, ?2, ?3, ?4)
            ON CONFLICT DO UPDATE SET mls_key = excluded.mls_key, looks = looks + 1 WHERE mls_key IS NULL";
        const DROP: &str = "DELETE FROM members WHERE group_id = ?1 AND account = ?2 AND device = ?3";
        for old in self.members(group)?.iter().filter(|old| !members.contains_key(old) || fresh(old)) {
            self.execute(DROP, params![group.as_bytes(), old.account.as_bytes(), old.device.as_bytes()])?;
        }
        for (member, key) in members {
            let (account, device) = (member.account.as_bytes(), member.device.as_bytes());
            self.execute(ADD, params![group.as_bytes(), account, device, key.as_bytes()])?;
        }
        self.changes.work.set(true);
        Ok(())
    }

    /// The devices in the tree, in ascending order.
    pub(crate) fn members(&self, group: GroupId) -> Result<Vec<Member>, StoreError> {
        const SELECT: &str = "SELECT account, device FROM members WHERE group_id = ?1 ORDER BY account, device";
        let mut statement = self.prepare_cached(SELECT)?;
        let member = |row: &Row<'_>| Ok(Member { account: bytes(row, 0)?, device: bytes(row, 1)? });
        let members = statement.query_map([group.as_bytes()], member)?.collect::<Result<_, _>>()?;
        Ok(members)
    }

    /// The devices of an account in the tree, each with the key of its leaf; `None` for one stored before keys were, until
    /// the group's next commit.
    pub(crate) fn leaves(
        &self,
        group: GroupId,
        account: AccountId,
    ) -> Result<Vec<(Member, Option<PublicKey>)>, StoreError> {
        const SELECT: &str = "SELECT device, mls_key FROM members WHERE group_id = ?1 AND account = ?2 ORDER BY device";
        let mut statement = self.prepare_cached(SELECT)?;
        let leaf = |row: &Row<'_>| Ok((Member { account, device: bytes(row, 0)? }, bytes_if_any(row, 1)?));
        let leaves = statement.query_map([group.as_bytes(), account.as_bytes()], leaf)?.collect::<Result<_, _>>()?;
        Ok(leaves)
    }

    /// Whether more devices than this are in the tree.
    pub(crate) fn has_more_devices(&self, group: GroupId, than: usize) -> Result<bool, StoreError> {
        const SELECT: &str = "SELECT EXISTS (SELECT 1 FROM members WHERE group_id = ?1 LIMIT 1 OFFSET ?2)";
        Ok(self.query_row(SELECT, params![group.as_bytes(), than], |row| row.get(0))?)
    }

    /// How many devices in the tree are others' than this account's.
    pub(crate) fn devices_of_others(&self, group: GroupId, own: AccountId) -> Result<u64, StoreError> {
        const SELECT: &str = "SELECT count(*) FROM members WHERE group_id = ?1 AND account <> ?2";
        Ok(self.query_row(SELECT, params![group.as_bytes(), own.as_bytes()], |row| row.get(0))?)
    }

    /// The accounts that are members, those marked gone left out, in ascending order.
    pub(crate) fn member_accounts(&self, group: GroupId) -> Result<Vec<AccountId>, StoreError> {
        const SELECT: &str = "SELECT DISTINCT account FROM members WHERE group_id = ?1 AND gone = 0 ORDER BY account";
        let mut statement = self.prepare_cached(SELECT)?;
        let accounts = statement.query_map([group.as_bytes()], |row| bytes(row, 0))?.collect::<Result<_, _>>()?;
        Ok(accounts)
    }

    /// Whether an account is a member and not marked gone.
    pub(crate) fn has_member(&self, group: GroupId, account: AccountId) -> Result<bool, StoreError> {
        const SELECT: &str = "SELECT EXISTS (SELECT 1 FROM members WHERE group_id = ?1 AND account = ?2 AND gone = 0)";
        Ok(self.query_row(SELECT, params![group.as_bytes(), account.as_bytes()], |row| row.get(0))?)
    }

    /// Marks an account's devices, or some of them, as gone: their leaves are to be removed by somebody's next commit.
    pub(crate) fn mark_gone(&self, group: GroupId, gone: &[Member]) -> Result<(), StoreError> {
        const MARK: &str = "UPDATE members SET gone = 1 WHERE group_id = ?1 AND account = ?2 AND device = ?3";
        for member in gone {
            self.execute(MARK, params![group.as_bytes(), member.account.as_bytes(), member.device.as_bytes()])?;
        }
        Ok(())
    }

    /// Nobody is marked gone any more.
    pub(crate) fn forget_gone(&self, group: GroupId) -> Result<(), StoreError> {
        self.execute("UPDATE members SET gone = 0 WHERE group_id = ?1", [group.as_bytes()])?;
        Ok(())
    }

    /// There is a reason to look at the device lists: of one member of a group, or of all.
    pub(crate) fn look_at(&self, group: GroupId, account: Option<AccountId>) -> Result<(), StoreError> {
        const UPDATE: &str = "UPDATE members SET looks = looks + 1
            WHERE group_id = ?1 AND (?2 IS NULL OR account = ?2)";
        let account = account.as_ref().map(|account| account.as_bytes().as_slice());
        self.execute(UPDATE, params![group.as_bytes(), account])?;
        self.changes.work.set(true);
        Ok(())
    }

    /// Some account whose device list is to be looked at, for itself or as a member of a group that can be used, and how many
    /// reasons there are. That `own` is a member is no reason.
    pub(crate) fn next_look(&self, own: AccountId) -> Result<Option<(AccountId, u64)>, StoreError> {
        const SELECT: &str = "SELECT account FROM contacts WHERE looks > 0
            UNION ALL SELECT account FROM members JOIN groups ON groups.id = members.group_id
            WHERE looks > 0 AND account <> ?1 AND state = 'active' LIMIT 1";
        let account = self.query_row(SELECT, [own.as_bytes()], |row| bytes(row, 0)).optional()?;
        account.map(|account| Ok((account, self.looks(account)?))).transpose()
    }

    /// The account's device list has been looked at for so many reasons. Those that came meanwhile stay.
    pub(crate) fn looked_at(&self, account: AccountId, looks: u64) -> Result<(), StoreError> {
        if self.looks(account)? == looks {
            self.execute("UPDATE members SET looks = 0 WHERE account = ?1", [account.as_bytes()])?;
            self.execute("UPDATE contacts SET looks = 0 WHERE account = ?1", [account.as_bytes()])?;
            self.changes.work.set(true);
        }
        Ok(())
    }

    fn looks(&self, account: AccountId) -> Result<u64, StoreError> {
        const SELECT: &str = "SELECT (SELECT coalesce(sum(looks), 0) FROM members WHERE account = ?1 AND looks > 0)
            + coalesce((SELECT looks FROM contacts WHERE account = ?1), 0)";
        Ok(self.query_row(SELECT, [account.as_bytes()], |row| row.get(0))?)
    }

    /// The groups that can be used and have a device of the account.
    pub(crate) fn groups_with(&self, account: AccountId) -> Result<Vec<GroupId>, StoreError> {
        const SELECT: &str = "SELECT DISTINCT group_id FROM members JOIN groups ON groups.id = members.group_id
            WHERE account = ?1 AND state = 'active' ORDER BY group_id";
        let mut statement = self.prepare_cached(SELECT)?;
        let groups = statement.query_map([account.as_bytes()], |row| bytes(row, 0))?.collect::<Result<_, _>>()?;
        Ok(groups)
    }

    /// The devices marked gone.
    pub(crate) fn gone(&self, group: GroupId) -> Result<Vec<DeviceId>, StoreError> {
        const SELECT: &str = "SELECT device FROM members WHERE group_id = ?1 AND gone = 1 ORDER BY device";
        let mut statement = self.prepare_cached(SELECT)?;
        let devices = statement.query_map([group.as_bytes()], |row| bytes(row, 0))?.collect::<Result<_, _>>()?;
        Ok(devices)
    }
}

fn group_from(row: &Row<'_>) -> rusqlite::Result<GroupRow> {
    Ok(GroupRow {
        id: bytes(row, 0)?,
        live: bytes(row, 5)?,
        suite: Suite::try_from(row.get::<_, u16>(6)?).map_err(|error| not_expected(6, &error))?,
        name: row.get(1)?,
        state: GroupState::from_row(row, 2)?,
        commit_seq: row.get(3)?,
        rejoin_key: RejoinKey::from_bytes(row.get(4)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Error,
        store::{Store, StoreKey},
    };

    #[tokio::test]
    async fn a_key_that_an_older_store_has_not_is_a_reason_to_look() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), StoreKey::Raw32([1; 32])).await.unwrap();
        let id = GroupId::from_random([1; 16]);
        let account = AccountId::from_identity_key(&PublicKey::from([2; 32]));
        let member = Member { account, device: DeviceId::from_random([3; 16]) };
        let own = AccountId::from_identity_key(&PublicKey::from([4; 32]));
        let seen = store.with_tx(move |tx| {
            let (name, rejoin_key) = ("trip".to_owned(), RejoinKey::from_bytes(vec![]));
            let state = GroupState::Active;
            tx.save_group(&GroupRow { id, live: id, suite: Suite::Classic, name, state, commit_seq: 0, rejoin_key })?;
            let members = Members::from([(member, PublicKey::from([5; 32]))]);
            let mut seen = vec![];
            for is_older in [false, true, false] {
                if is_older {
                    tx.execute("UPDATE members SET mls_key = NULL", [])?;
                    tx.looked_at(account, 1)?;
                }
                seen.push((tx.leaves(id, account)?, tx.next_look(own)?));
                tx.save_members(id, &members, |_| false)?;
            }
            seen.push((tx.leaves(id, account)?, tx.next_look(own)?));
            Ok::<_, Error>(seen)
        });
        let known = vec![(member, Some(PublicKey::from([5; 32])))];
        let once = Some((account, 1));
        let expected = [(vec![], None), (vec![(member, None)], None), (known.clone(), once), (known, once)];
        assert_eq!(seen.await.unwrap(), expected);
    }
}
