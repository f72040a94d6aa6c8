//! Whom the user knows, who is blocked, and groups into which a stranger has added this device.
//!
//! Invariant: in a group that is requested nothing is done that others could see, until the user accepts it or does
//! something there.

use rusqlite::{OptionalExtension as _, params};
use undertone_wire::{AccountId, GroupId};

use super::{StoreError, Tx, bytes};

/// What the user has said of an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Nothing.
    Stranger,
    /// The user knows it.
    Known,
    /// Nothing of it is to be seen.
    Blocked,
}

impl Tx<'_> {
    /// What the user has said of an account.
    pub(crate) fn standing(&self, account: AccountId) -> Result<Standing, StoreError> {
        const SELECT: &str = "SELECT blocked FROM standings WHERE account = ?1";
        Ok(match self.query_row(SELECT, [account.as_bytes()], |row| row.get(0)).optional()? {
            None => Standing::Stranger,
            Some(false) => Standing::Known,
            Some(true) => Standing::Blocked,
        })
    }

    /// The user says something else of an account.
    pub(crate) fn set_standing(&self, account: AccountId, standing: Standing) -> Result<(), StoreError> {
        const UPSERT: &str = "INSERT INTO standings (account, blocked) VALUES (?1, ?2)
            ON CONFLICT (account) DO UPDATE SET blocked = ?2";
        match standing {
            Standing::Stranger => self.execute("DELETE FROM standings WHERE account = ?1", [account.as_bytes()])?,
            said => self.execute(UPSERT, params![account.as_bytes(), said == Standing::Blocked])?,
        };
        Ok(())
    }

    /// The accounts that are blocked, in ascending order.
    pub(crate) fn blocked(&self) -> Result<Vec<AccountId>, StoreError> {
        let mut select = self.prepare_cached("SELECT account FROM standings WHERE blocked = 1 ORDER BY account")?;
        let blocked = select.query_map([], |row| bytes(row, 0))?.collect::<Result<_, _>>()?;
        Ok(blocked)
    }

    /// The stranger who has added this device to a group that the user has not accepted.
    pub(crate) fn requested_by(&self, group: GroupId) -> Result<Option<AccountId>, StoreError> {
        const SELECT: &str = "SELECT requested_by FROM groups WHERE id = ?1 AND requested_by IS NOT NULL";
        Ok(self.query_row(SELECT, [group.as_bytes()], |row| bytes(row, 0)).optional()?)
    }

    /// A group is requested by a stranger, or accepted. What waits for that goes on.
    pub(crate) fn set_requested(&self, group: GroupId, by: Option<AccountId>) -> Result<(), StoreError> {
        const UPDATE: &str = "UPDATE groups SET requested_by = ?2 WHERE id = ?1 AND requested_by IS NOT ?2";
        let by = by.as_ref().map(|by| by.as_bytes().as_slice());
        if self.execute(UPDATE, params![group.as_bytes(), by])? > 0 {
            self.changes.work.set(true);
        }
        Ok(())
    }
}
