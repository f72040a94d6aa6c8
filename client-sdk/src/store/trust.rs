//! What the user has said of identity keys: that one was compared, or that one which has changed is taken.

use rusqlite::{OptionalExtension as _, params};
use undertone_wire::{AccountId, PublicKey};

use super::{StoreError, Tx, bytes};
use crate::crypto::link::Trust;

impl Tx<'_> {
    /// The identity key of an account that the user has compared.
    pub(crate) fn verified_key(&self, account: AccountId) -> Result<Option<PublicKey>, StoreError> {
        const SELECT: &str = "SELECT verified FROM contacts WHERE account = ?1 AND verified IS NOT NULL";
        Ok(self.query_row(SELECT, [account.as_bytes()], |row| bytes(row, 0)).optional()?)
    }

    /// The user has compared this identity key of an account.
    pub(crate) fn set_verified(&self, account: AccountId, key: &PublicKey) -> Result<(), StoreError> {
        const UPDATE: &str = "UPDATE contacts SET verified = ?2 WHERE account = ?1";
        self.execute(UPDATE, params![account.as_bytes(), key.as_bytes()])?;
        self.take_identity(account)
    }

    /// An account's identity key has changed.
    pub(crate) fn note_changed_identity(&self, account: AccountId) -> Result<(), StoreError> {
        self.execute("UPDATE contacts SET changed = 1 WHERE account = ?1", [account.as_bytes()])?;
        Ok(())
    }

    /// The user takes it. What waits for that goes on.
    pub(crate) fn take_identity(&self, account: AccountId) -> Result<(), StoreError> {
        self.execute("UPDATE contacts SET changed = 0 WHERE account = ?1 AND changed = 1", [account.as_bytes()])?;
        self.changes.work.set(true);
        Ok(())
    }

    /// Whether the user has still to say something to an account's new identity key.
    pub(crate) fn has_changed_identity(&self, account: AccountId) -> Result<bool, StoreError> {
        const SELECT: &str = "SELECT EXISTS (SELECT 1 FROM contacts WHERE account = ?1 AND changed = 1)";
        Ok(self.query_row(SELECT, [account.as_bytes()], |row| row.get(0))?)
    }

    /// All that was said of identity keys, or is still to be said.
    pub(crate) fn trust(&self) -> Result<Vec<Trust>, StoreError> {
        let mut select = self.prepare_cached(
            "SELECT account, verified, changed FROM contacts WHERE verified IS NOT NULL OR changed = 1 ORDER BY account",
        )?;
        let trust = select.query_map([], |row| {
            let verified = row.get_ref(1)?.as_bytes_or_null()?.is_some().then(|| bytes(row, 1)).transpose()?;
            Ok(Trust { account: bytes(row, 0)?, verified, changed: row.get(2)? })
        })?;
        Ok(trust.collect::<Result<_, _>>()?)
    }

    /// It was said on another device, of an account that is known here.
    pub(crate) fn set_trust(&self, said: &Trust) -> Result<(), StoreError> {
        const UPDATE: &str = "UPDATE contacts SET verified = ?2, changed = ?3 WHERE account = ?1";
        let verified = said.verified.as_ref().map(PublicKey::as_bytes);
        self.execute(UPDATE, params![said.account.as_bytes(), verified, said.changed])?;
        Ok(())
    }

    /// Whether messages to an account wait for that.
    pub(crate) fn waits_for_user(&self, account: AccountId) -> Result<bool, StoreError> {
        const SELECT: &str = "SELECT hold_changed FROM profile";
        let holds = self.query_row(SELECT, [], |row| row.get(0)).optional()?.unwrap_or(false);
        Ok(holds && self.has_changed_identity(account)?)
    }

    /// Whether messages to such accounts wait for that.
    pub(crate) fn hold_changed(&self, hold: bool) -> Result<(), StoreError> {
        self.execute("UPDATE profile SET hold_changed = ?1 WHERE hold_changed <> ?1", [hold])?;
        Ok(())
    }
}
