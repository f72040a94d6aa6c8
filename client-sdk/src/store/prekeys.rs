//! What others need to write to this device: its Olm account, which of its prekeys are at large, and its sealing keys.
//!
//! Invariant: a prekey has a row as long as its private half is in the account.

use rusqlite::{OptionalExtension as _, params};
use undertone_wire::{Hash, Prekey, X25519Key};
use zeroize::Zeroizing;

use super::{StoreError, Tx, bytes};
use crate::crypto::{session::OlmAccount, xwing::SealingSecret};

/// When the newest of what is replaced every so often was made; `None` if there is none.
pub(crate) struct PrekeyAges {
    pub(crate) fallback_ms: Option<u64>,
    pub(crate) sealing_key_ms: Option<u64>,
}

impl Tx<'_> {
    /// The device's Olm account.
    pub(crate) fn olm_account(&self) -> Result<OlmAccount, StoreError> {
        let pickle: Vec<u8> = self.query_row("SELECT pickle FROM olm_account", [], |row| row.get(0))?;
        Ok(OlmAccount::from_pickle(&Zeroizing::new(pickle))?)
    }

    /// Stores the account as it is now.
    pub(crate) fn save_olm_account(&self, account: &OlmAccount) -> Result<(), StoreError> {
        const UPSERT: &str = "INSERT INTO olm_account (id, pickle) VALUES (1, ?1)
            ON CONFLICT (id) DO UPDATE SET pickle = ?1";
        self.execute(UPSERT, params![*account.pickle()])?;
        Ok(())
    }

    /// A prekey was made.
    pub(crate) fn add_prekey(&self, hash_ref: Hash, prekey: &Prekey, made_ms: u64) -> Result<(), StoreError> {
        const INSERT: &str = "INSERT INTO prekeys (hash_ref, key, fallback, not_after_ms, made_ms)
            VALUES (?1, ?2, ?3, ?4, ?5)";
        let (hash_ref, key) = (hash_ref.as_bytes(), prekey.key.as_bytes());
        self.execute(INSERT, params![hash_ref, key, prekey.fallback, prekey.not_after_ms, made_ms])?;
        Ok(())
    }

    /// A fallback prekey was made: all but the newest two are gone with it.
    pub(crate) fn drop_old_fallbacks(&self) -> Result<(), StoreError> {
        const DELETE: &str = "DELETE FROM prekeys WHERE fallback = 1 AND hash_ref NOT IN
            (SELECT hash_ref FROM prekeys WHERE fallback = 1 ORDER BY not_after_ms DESC, hash_ref LIMIT 2)";
        const FORGET: &str = "DELETE FROM begun_by_fallback WHERE prekey NOT IN (SELECT key FROM prekeys)";
        self.execute(DELETE, [])?;
        self.execute(FORGET, [])?;
        Ok(())
    }

    /// A session has begun with a prekey. `false` if it is one that is used again and again.
    pub(crate) fn spend_prekey(&self, key: X25519Key) -> Result<bool, StoreError> {
        Ok(self.execute("DELETE FROM prekeys WHERE key = ?1 AND fallback = 0", [key.as_bytes()])? > 0)
    }

    /// Drops the rows of one-time prekeys whose lifetime was over then, and answers which those are.
    pub(crate) fn take_expired_prekeys(&self, now_ms: u64) -> Result<Vec<X25519Key>, StoreError> {
        let mut select = self.prepare_cached("SELECT key FROM prekeys WHERE fallback = 0 AND not_after_ms < ?1")?;
        let expired: Vec<X25519Key> = select.query_map([now_ms], |row| bytes(row, 0))?.collect::<Result<_, _>>()?;
        if !expired.is_empty() {
            self.execute("DELETE FROM prekeys WHERE fallback = 0 AND not_after_ms < ?1", [now_ms])?;
        }
        Ok(expired)
    }

    /// By what the relay knows the prekeys and sealing keys whose private halves are here.
    pub(crate) fn prekey_refs(&self) -> Result<Vec<Hash>, StoreError> {
        let mut select =
            self.prepare_cached("SELECT hash_ref FROM prekeys UNION ALL SELECT hash_ref FROM sealing_keys")?;
        let refs = select.query_map([], |row| bytes(row, 0))?.collect::<Result<_, _>>()?;
        Ok(refs)
    }

    /// How old the fallback prekey and the sealing key are.
    pub(crate) fn prekey_ages(&self) -> Result<PrekeyAges, StoreError> {
        const SELECT: &str = "SELECT (SELECT max(made_ms) FROM prekeys WHERE fallback = 1),
            (SELECT made_ms FROM sealing_keys WHERE replaced_ms IS NULL)";
        let ages =
            self.query_row(SELECT, [], |row| Ok(PrekeyAges { fallback_ms: row.get(0)?, sealing_key_ms: row.get(1)? }));
        Ok(ages?)
    }

    /// A new sealing key takes the place of the one before.
    pub(crate) fn add_sealing_key(
        &self,
        hash_ref: Hash,
        secret: &SealingSecret,
        made_ms: u64,
    ) -> Result<(), StoreError> {
        const REPLACE: &str = "UPDATE sealing_keys SET replaced_ms = ?1 WHERE replaced_ms IS NULL";
        const INSERT: &str = "INSERT INTO sealing_keys (hash_ref, secret, made_ms) VALUES (?1, ?2, ?3)";
        self.execute(REPLACE, [made_ms])?;
        self.execute(INSERT, params![hash_ref.as_bytes(), secret.as_bytes(), made_ms])?;
        Ok(())
    }

    /// The private halves of the sealing keys, the newest first.
    pub(crate) fn sealing_secrets(&self) -> Result<Vec<SealingSecret>, StoreError> {
        const SELECT: &str = "SELECT secret FROM sealing_keys ORDER BY replaced_ms IS NOT NULL, replaced_ms DESC";
        let mut select = self.prepare_cached(SELECT)?;
        let secrets = select.query_map([], |row| row.get::<_, [u8; 32]>(0))?;
        secrets.map(|secret| Ok(SealingSecret::from_bytes(secret?))).collect()
    }

    /// Forgets the sealing keys that were replaced before then.
    pub(crate) fn forget_sealing_keys(&self, replaced_before_ms: u64) -> Result<(), StoreError> {
        const SELECT: &str = "SELECT 1 FROM sealing_keys WHERE replaced_ms < ?1 LIMIT 1";
        if self.query_row(SELECT, [replaced_before_ms], |_| Ok(())).optional()?.is_some() {
            self.execute("DELETE FROM sealing_keys WHERE replaced_ms < ?1", [replaced_before_ms])?;
        }
        Ok(())
    }

    /// The fallback prekey and the sealing key are to be replaced at the next occasion.
    pub(crate) fn renew_prekeys_now(&self) -> Result<(), StoreError> {
        self.execute("UPDATE prekeys SET made_ms = 0 WHERE fallback = 1", [])?;
        self.execute("UPDATE sealing_keys SET made_ms = 0 WHERE replaced_ms IS NULL", [])?;
        Ok(())
    }
}
