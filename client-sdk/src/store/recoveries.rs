//! Groups that cannot go on here: what is known of why, and what is done to go on.
//!
//! Invariant: a request is never changed before the relay has said yes or no, or that it no longer knows.

use rusqlite::{OptionalExtension as _, Row, params};
use undertone_wire::{AccountId, Bytes, Encoding, GroupId, Hash};

use super::{StoreError, Tx, bytes, cbor, not_expected};

/// More accounts than this need not be known to have asked.
const OTHERS_MAX: usize = 16;

/// What is done next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RecoveryStep {
    /// Join on one's own.
    Rejoin,
    /// The relay has accepted that; the device's own row is still to come.
    Accepted,
    /// Ask the members.
    Ask,
    /// One of them may answer.
    Wait,
    /// Look whether another group goes on, or make one.
    Succeed,
    /// That one is made, and is to be recorded.
    Found,
    /// Another group goes on, and its members have to let this device in.
    Follow,
}

/// Another group that goes on, by the relay's word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Successor {
    pub(crate) group: GroupId,
    /// From which commit.
    pub(crate) at: u64,
}

/// One group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Recovery {
    pub(crate) group_id: GroupId,
    /// Under which the relay knows it.
    pub(crate) live: GroupId,
    pub(crate) step: RecoveryStep,
    pub(crate) attempts: u32,
    /// The exact request of this step, in CBOR, once it is made.
    pub(crate) request: Option<Vec<u8>>,
    pub(crate) why: Why,
    /// When the members were first asked.
    pub(crate) asked_ms: Option<u64>,
    /// Accounts of which a device has asked the members meanwhile.
    pub(crate) others: Vec<AccountId>,
    pub(crate) successor: Option<Successor>,
    /// Who posted the newest commit, by the relay's word.
    pub(crate) culprit: Option<AccountId>,
    /// A successor that is none.
    pub(crate) unfit: Option<GroupId>,
}

/// Why a group cannot go on here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Why {
    /// The state here, or a commit, is lost.
    Lost,
    /// A commit came that cannot be applied.
    Refused {
        /// It, or one after it, has taken this device out, by its own word.
        removes: bool,
    },
}

impl RecoveryStep {
    const ALL: [Self; 7] =
        [Self::Rejoin, Self::Accepted, Self::Ask, Self::Wait, Self::Succeed, Self::Found, Self::Follow];

    fn as_str(self) -> &'static str {
        match self {
            Self::Rejoin => "rejoin",
            Self::Accepted => "accepted",
            Self::Ask => "ask",
            Self::Wait => "wait",
            Self::Succeed => "succeed",
            Self::Found => "found",
            Self::Follow => "follow",
        }
    }

    fn from_row(row: &Row<'_>, column: usize) -> rusqlite::Result<Self> {
        let text = row.get_ref(column)?.as_str()?;
        let step = Self::ALL.into_iter().find(|step| step.as_str() == text);
        step.ok_or_else(|| not_expected(column, "a step that this version does not know"))
    }
}

impl Why {
    /// What is done first. The newest group info is that of the commit which cannot be applied, if there is one: it is
    /// not joined by.
    pub(crate) fn first_step(self) -> RecoveryStep {
        match self {
            Self::Lost => RecoveryStep::Rejoin,
            Self::Refused { .. } => RecoveryStep::Ask,
        }
    }

    fn columns(self) -> (bool, bool) {
        match self {
            Self::Lost => (false, false),
            Self::Refused { removes } => (true, removes),
        }
    }
}

const SELECT: &str = "SELECT group_id, step, attempts, request, refused, removed, asked_ms, others, successor,
    successor_at, culprit, unfit, (SELECT live FROM groups WHERE id = group_id) FROM recoveries";

impl Tx<'_> {
    /// From when on a group was last to be recovered; `None` if never.
    pub(crate) fn recovery_began_ms(&self, group: GroupId) -> Result<Option<u64>, StoreError> {
        const SELECT: &str = "SELECT began_ms FROM recoveries WHERE group_id = ?1";
        Ok(self.query_row(SELECT, [group.as_bytes()], |row| row.get(0)).optional()?)
    }

    /// The group cannot go on from now on: what is done about it begins at a time.
    pub(crate) fn begin_recovery(&self, group: GroupId, why: Why, not_before_ms: u64) -> Result<(), StoreError> {
        const REPLACE: &str = "INSERT OR REPLACE INTO recoveries
                (group_id, step, not_before_ms, attempts, began_ms, refused, removed)
            VALUES (?1, ?2, ?3, 0, ?3, ?4, ?5)";
        let (refused, removed) = why.columns();
        let step = why.first_step().as_str();
        self.execute(REPLACE, params![group.as_bytes(), step, not_before_ms, refused, removed])?;
        self.changes.work.set(true);
        Ok(())
    }

    /// A group's recovery, if one is going on.
    pub(crate) fn recovery(&self, group: GroupId) -> Result<Option<Recovery>, StoreError> {
        let select = format!("{SELECT} WHERE group_id = ?1 AND step <> 'none'");
        Ok(self.query_row(&select, [group.as_bytes()], recovery_from).optional()?)
    }

    /// The recovery of which this group may be the end, as another one that goes on.
    pub(crate) fn recovery_towards(&self, successor: GroupId) -> Result<Option<Recovery>, StoreError> {
        let select = format!("{SELECT} WHERE successor = ?1 AND step <> 'none'");
        Ok(self.query_row(&select, [successor.as_bytes()], recovery_from).optional()?)
    }

    /// Whether a commit by which this device joins on its own may have been accepted.
    pub(crate) fn may_have_rejoined(&self, group: GroupId) -> Result<bool, StoreError> {
        const SELECT: &str = "SELECT EXISTS (SELECT 1 FROM recoveries WHERE group_id = ?1 AND wire_hash IS NOT NULL)";
        Ok(self.query_row(SELECT, [group.as_bytes()], |row| row.get(0))?)
    }

    /// The next recovery whose time has come and that does not wait for its own row.
    pub(crate) fn next_recovery(&self, now_ms: u64) -> Result<Option<Recovery>, StoreError> {
        let select = format!(
            "{SELECT} WHERE step NOT IN ('none', 'accepted') AND not_before_ms <= ?1
               AND group_id NOT IN (SELECT id FROM conversations WHERE requested_by IS NOT NULL) ORDER BY not_before_ms LIMIT 1"
        );
        Ok(self.query_row(&select, [now_ms], recovery_from).optional()?)
    }

    /// When the next recovery's time comes; `None` if none waits for a time.
    pub(crate) fn next_recovery_at_ms(&self, now_ms: u64) -> Result<Option<u64>, StoreError> {
        const SELECT: &str = "SELECT min(not_before_ms) FROM recoveries
            WHERE step NOT IN ('none', 'accepted') AND not_before_ms > ?1";
        Ok(self.query_row(SELECT, [now_ms], |row| row.get(0))?)
    }

    /// The group of which this is the hash of the commit by which this device joins on its own, with the group as it is
    /// then.
    pub(crate) fn rejoined_by(&self, hash: &Hash) -> Result<Option<(GroupId, Bytes)>, StoreError> {
        const SELECT: &str = "SELECT group_id, aside FROM recoveries WHERE step <> 'none' AND wire_hash = ?1";
        let rejoined = |row: &Row<'_>| Ok((bytes(row, 0)?, row.get::<_, Vec<u8>>(1)?.into()));
        Ok(self.query_row(SELECT, [hash.as_bytes()], rejoined).optional()?)
    }

    /// The commit by which this device joins on its own is made and about to be posted.
    pub(crate) fn set_rejoin(
        &self,
        group: GroupId,
        request: &[u8],
        commit: &Bytes,
        aside: &Bytes,
    ) -> Result<(), StoreError> {
        const UPDATE: &str = "UPDATE recoveries SET request = ?2, wire_hash = ?3, aside = ?4 WHERE group_id = ?1";
        let hash = Hash::of(commit.as_slice());
        self.execute(UPDATE, params![group.as_bytes(), request, hash.as_bytes(), aside.as_slice()])?;
        self.changes.work.set(true);
        Ok(())
    }

    /// A request of another kind is made and about to be posted.
    pub(crate) fn set_recovery_request(&self, group: GroupId, request: &[u8]) -> Result<(), StoreError> {
        self.execute("UPDATE recoveries SET request = ?2 WHERE group_id = ?1", params![group.as_bytes(), request])?;
        self.changes.work.set(true);
        Ok(())
    }

    /// The relay did not decide: the same at a time.
    pub(crate) fn put_off(&self, group: GroupId, not_before_ms: u64) -> Result<(), StoreError> {
        const UPDATE: &str = "UPDATE recoveries SET attempts = attempts + 1, not_before_ms = ?2 WHERE group_id = ?1";
        self.execute(UPDATE, params![group.as_bytes(), not_before_ms])?;
        self.changes.work.set(true);
        Ok(())
    }

    /// The relay has said no to what was posted, or it did not work: the same step again at a time, with a new request.
    pub(crate) fn again_at(&self, group: GroupId, not_before_ms: u64) -> Result<(), StoreError> {
        const UPDATE: &str = "UPDATE recoveries SET attempts = attempts + 1, not_before_ms = ?2, request = NULL,
            wire_hash = NULL, aside = NULL WHERE group_id = ?1";
        self.execute(UPDATE, params![group.as_bytes(), not_before_ms])?;
        self.changes.work.set(true);
        Ok(())
    }

    /// The next step, at a time. What was made for [`RecoveryStep::Rejoin`] stays until its own row has come.
    pub(crate) fn set_step(&self, group: GroupId, step: RecoveryStep, not_before_ms: u64) -> Result<(), StoreError> {
        const NEXT: &str = "UPDATE recoveries SET step = ?2, attempts = 0, not_before_ms = ?3, request = NULL
            WHERE group_id = ?1";
        self.execute(NEXT, params![group.as_bytes(), step.as_str(), not_before_ms])?;
        if step != RecoveryStep::Accepted {
            const DROP: &str = "UPDATE recoveries SET wire_hash = NULL, aside = NULL WHERE group_id = ?1";
            self.execute(DROP, [group.as_bytes()])?;
        }
        self.changes.work.set(true);
        Ok(())
    }

    /// The members were asked.
    pub(crate) fn note_asked(&self, group: GroupId, now_ms: u64) -> Result<(), StoreError> {
        const UPDATE: &str = "UPDATE recoveries SET asked_ms = coalesce(asked_ms, ?2) WHERE group_id = ?1";
        self.execute(UPDATE, params![group.as_bytes(), now_ms])?;
        Ok(())
    }

    /// A device of this account has asked the members too.
    pub(crate) fn note_other(&self, recovery: &Recovery, account: AccountId) -> Result<(), StoreError> {
        let mut others = recovery.others.clone();
        if others.len() < OTHERS_MAX && !others.contains(&account) {
            others.push(account);
            let (group, others) = (recovery.group_id.as_bytes(), Encoding::Cbor.encode(&others));
            self.execute("UPDATE recoveries SET others = ?2 WHERE group_id = ?1", params![group, others])?;
        }
        Ok(())
    }

    /// A commit that cannot be applied has taken this device out, by its own word.
    pub(crate) fn note_removal(&self, group: GroupId) -> Result<(), StoreError> {
        const UPDATE: &str = "UPDATE recoveries SET removed = 1 WHERE group_id = ?1 AND refused = 1";
        self.execute(UPDATE, [group.as_bytes()])?;
        Ok(())
    }

    /// Another group goes on, by the relay's word. `None` takes that back.
    pub(crate) fn note_successor(&self, group: GroupId, successor: Option<Successor>) -> Result<(), StoreError> {
        const UPDATE: &str = "UPDATE recoveries SET successor = ?2, successor_at = ?3 WHERE group_id = ?1";
        let (id, at) = (successor.as_ref().map(|one| one.group.as_bytes()), successor.map(|one| one.at));
        self.execute(UPDATE, params![group.as_bytes(), id, at])?;
        Ok(())
    }

    /// Who posted the newest commit, by the relay's word.
    pub(crate) fn note_culprit(&self, group: GroupId, culprit: Option<AccountId>) -> Result<(), StoreError> {
        let culprit = culprit.as_ref().map(AccountId::as_bytes);
        self.execute("UPDATE recoveries SET culprit = ?2 WHERE group_id = ?1", params![group.as_bytes(), culprit])?;
        Ok(())
    }

    /// A successor turned out to be none.
    pub(crate) fn note_unfit(&self, group: GroupId, unfit: GroupId) -> Result<(), StoreError> {
        const UPDATE: &str = "UPDATE recoveries SET unfit = ?2 WHERE group_id = ?1";
        self.execute(UPDATE, params![group.as_bytes(), unfit.as_bytes()])?;
        self.note_successor(group, None)
    }

    /// The groups that this device has joined on its own, by the relay's word, and whose own row is still to come.
    pub(crate) fn rejoined_without_row(&self) -> Result<Vec<GroupId>, StoreError> {
        let mut select = self.prepare_cached("SELECT group_id FROM recoveries WHERE step = 'accepted'")?;
        let groups = select.query_map([], |row| bytes(row, 0))?.collect::<Result<_, _>>()?;
        Ok(groups)
    }

    /// That row was missed: it is done again, if it is waited for still.
    pub(crate) fn rejoin_again(&self, group: GroupId) -> Result<(), StoreError> {
        const UPDATE: &str = "UPDATE recoveries SET step = 'rejoin', request = NULL, wire_hash = NULL, aside = NULL
            WHERE group_id = ?1 AND step = 'accepted'";
        self.execute(UPDATE, [group.as_bytes()])?;
        self.changes.work.set(true);
        Ok(())
    }

    /// The group can be used again, or is over. What was kept of one that might have gone on in its place is of no use.
    pub(crate) fn end_recovery(&self, group: GroupId) -> Result<(), StoreError> {
        const DROP: &str = "DELETE FROM held WHERE live = (SELECT successor FROM recoveries WHERE group_id = ?1)";
        self.execute(DROP, [group.as_bytes()])?;
        const UPDATE: &str = "UPDATE recoveries SET step = 'none', request = NULL, wire_hash = NULL, aside = NULL
            WHERE group_id = ?1";
        self.execute(UPDATE, [group.as_bytes()])?;
        self.changes.work.set(true);
        Ok(())
    }

    /// Another group goes on in its place: what was the matter with this one is of no interest there.
    pub(crate) fn forget_recovery(&self, group: GroupId) -> Result<(), StoreError> {
        self.execute("DELETE FROM recoveries WHERE group_id = ?1", [group.as_bytes()])?;
        self.changes.work.set(true);
        Ok(())
    }
}

fn recovery_from(row: &Row<'_>) -> rusqlite::Result<Recovery> {
    let is_there = |column| Ok::<_, rusqlite::Error>(row.get_ref(column)?.as_blob_or_null()?.is_some());
    let why = if row.get(4)? { Why::Refused { removes: row.get(5)? } } else { Why::Lost };
    Ok(Recovery {
        group_id: bytes(row, 0)?,
        live: bytes(row, 12)?,
        step: RecoveryStep::from_row(row, 1)?,
        attempts: row.get(2)?,
        request: row.get(3)?,
        why,
        asked_ms: row.get(6)?,
        others: if is_there(7)? { cbor(row, 7)? } else { vec![] },
        successor: if is_there(8)? { Some(Successor { group: bytes(row, 8)?, at: row.get(9)? }) } else { None },
        culprit: if is_there(10)? { Some(bytes(row, 10)?) } else { None },
        unfit: if is_there(11)? { Some(bytes(row, 11)?) } else { None },
    })
}
