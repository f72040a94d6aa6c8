//! Groups whose state here is of no use, and what is done to be in them again.
//!
//! Invariant: a request is never changed before the relay has said yes or no, or that it no longer knows.

use rusqlite::{OptionalExtension as _, Row, params};
use undertone_wire::{Bytes, GroupId, Hash};

use super::{StoreError, Tx, bytes, not_expected};

/// What is done next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RecoveryStep {
    /// Join on one's own.
    Rejoin,
    /// The relay has accepted that; the device's own row is still to come.
    Accepted,
    /// Ask the members; after that the first one again, in due time.
    Ask,
}

/// One group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Recovery {
    pub(crate) group_id: GroupId,
    pub(crate) step: RecoveryStep,
    pub(crate) attempts: u32,
    /// The exact request of this step, in CBOR, once it is made.
    pub(crate) request: Option<Vec<u8>>,
}

impl RecoveryStep {
    const ALL: [Self; 3] = [Self::Rejoin, Self::Accepted, Self::Ask];

    fn as_str(self) -> &'static str {
        match self {
            Self::Rejoin => "rejoin",
            Self::Accepted => "accepted",
            Self::Ask => "ask",
        }
    }

    fn from_row(row: &Row<'_>, column: usize) -> rusqlite::Result<Self> {
        let text = row.get_ref(column)?.as_str()?;
        let step = Self::ALL.into_iter().find(|step| step.as_str() == text);
        step.ok_or_else(|| not_expected(column, "a step that this version does not know"))
    }
}

impl Tx<'_> {
    /// From when on a group was last to be recovered; `None` if never.
    pub(crate) fn recovery_began_ms(&self, group: GroupId) -> Result<Option<u64>, StoreError> {
        const SELECT: &str = "SELECT began_ms FROM recoveries WHERE group_id = ?1";
        Ok(self.query_row(SELECT, [group.as_bytes()], |row| row.get(0)).optional()?)
    }

    /// The group's state is of no use from now on: it is to be joined anew, at a time.
    pub(crate) fn begin_recovery(&self, group: GroupId, not_before_ms: u64) -> Result<(), StoreError> {
        const UPSERT: &str = "INSERT INTO recoveries (group_id, step, not_before_ms, attempts, began_ms)
            VALUES (?1, 'rejoin', ?2, 0, ?2)
            ON CONFLICT (group_id) DO UPDATE SET step = 'rejoin', not_before_ms = ?2, attempts = 0, began_ms = ?2,
                request = NULL, wire_hash = NULL, aside = NULL";
        self.execute(UPSERT, params![group.as_bytes(), not_before_ms])?;
        self.changes.work.set(true);
        Ok(())
    }

    /// A group's recovery, if one is going on.
    pub(crate) fn recovery(&self, group: GroupId) -> Result<Option<Recovery>, StoreError> {
        const SELECT: &str = "SELECT group_id, step, attempts, request FROM recoveries
            WHERE group_id = ?1 AND step <> 'none'";
        Ok(self.query_row(SELECT, [group.as_bytes()], recovery_from).optional()?)
    }

    /// Whether a commit by which this device joins on its own may have been accepted.
    pub(crate) fn may_have_rejoined(&self, group: GroupId) -> Result<bool, StoreError> {
        const SELECT: &str = "SELECT EXISTS (SELECT 1 FROM recoveries WHERE group_id = ?1 AND wire_hash IS NOT NULL)";
        Ok(self.query_row(SELECT, [group.as_bytes()], |row| row.get(0))?)
    }

    /// The next recovery whose time has come and that does not wait for its own row.
    pub(crate) fn next_recovery(&self, now_ms: u64) -> Result<Option<Recovery>, StoreError> {
        const SELECT: &str = "SELECT group_id, step, attempts, request FROM recoveries
            WHERE step NOT IN ('none', 'accepted') AND not_before_ms <= ?1 ORDER BY not_before_ms LIMIT 1";
        Ok(self.query_row(SELECT, [now_ms], recovery_from).optional()?)
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

    /// The group can be used again, or is over.
    pub(crate) fn end_recovery(&self, group: GroupId) -> Result<(), StoreError> {
        const UPDATE: &str = "UPDATE recoveries SET step = 'none', request = NULL, wire_hash = NULL, aside = NULL
            WHERE group_id = ?1";
        self.execute(UPDATE, [group.as_bytes()])?;
        self.changes.work.set(true);
        Ok(())
    }
}

fn recovery_from(row: &Row<'_>) -> rusqlite::Result<Recovery> {
    Ok(Recovery {
        group_id: bytes(row, 0)?,
        step: RecoveryStep::from_row(row, 1)?,
        attempts: row.get(2)?,
        request: row.get(3)?,
    })
}
