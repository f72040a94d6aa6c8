//! What is needed to replace sessions that are broken: what was sent in which ciphertext, and when that was last done.

use rusqlite::{OptionalExtension as _, Row, params};
use undertone_wire::{Hash, MessageId};

use super::{StoreError, Tx, bytes};
use crate::{conversation_id::ConversationId, crypto::Member};

/// That the sessions with a device were replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Healing {
    pub(crate) began_ms: u64,
    /// For how many messages the device was asked again since.
    pub(crate) asked: u64,
    /// Whether that was done already, or is to be done with the next message that asks.
    pub(crate) replaced: bool,
}

impl Tx<'_> {
    /// A message is sent to a device in this ciphertext.
    pub(crate) fn note_written(
        &self,
        to: Member,
        ciphertext: &Hash,
        (conversation, content_id): (ConversationId, MessageId),
        now_ms: u64,
    ) -> Result<(), StoreError> {
        const INSERT: &str = "INSERT INTO written (account, device, hash, conversation, content_id, written_ms)
            VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT DO NOTHING";
        let key = (to.account.as_bytes(), to.device.as_bytes(), ciphertext.as_bytes());
        let message = (conversation.as_bytes(), content_id.as_bytes());
        self.execute(INSERT, params![key.0, key.1, key.2, message.0, message.1, now_ms])?;
        Ok(())
    }

    /// Which message a device was sent in a ciphertext. It is told once.
    pub(crate) fn take_written(
        &self,
        to: Member,
        ciphertext: &Hash,
    ) -> Result<Option<(ConversationId, MessageId)>, StoreError> {
        const TAKE: &str = "DELETE FROM written WHERE account = ?1 AND device = ?2 AND hash = ?3
            RETURNING conversation, content_id";
        let key = params![to.account.as_bytes(), to.device.as_bytes(), ciphertext.as_bytes()];
        Ok(self.query_row(TAKE, key, |row| Ok((bytes(row, 0)?, bytes(row, 1)?))).optional()?)
    }

    /// Forgets what was sent before then.
    pub(crate) fn forget_written(&self, before_ms: u64) -> Result<(), StoreError> {
        self.execute("DELETE FROM written WHERE written_ms < ?1", [before_ms])?;
        Ok(())
    }

    /// When the sessions with a device were last replaced.
    pub(crate) fn healing(&self, of: Member) -> Result<Option<Healing>, StoreError> {
        const SELECT: &str = "SELECT began_ms, asked, replaced FROM healings WHERE account = ?1 AND device = ?2";
        let healing = |row: &Row<'_>| Ok(Healing { began_ms: row.get(0)?, asked: row.get(1)?, replaced: row.get(2)? });
        Ok(self.query_row(SELECT, params![of.account.as_bytes(), of.device.as_bytes()], healing).optional()?)
    }

    pub(crate) fn set_healing(&self, of: Member, healing: Healing) -> Result<(), StoreError> {
        const UPSERT: &str =
            "INSERT INTO healings (account, device, began_ms, asked, replaced) VALUES (?1, ?2, ?3, ?4, ?5)
            ON CONFLICT DO UPDATE SET began_ms = ?3, asked = ?4, replaced = ?5";
        let (account, device) = (of.account.as_bytes(), of.device.as_bytes());
        self.execute(UPSERT, params![account, device, healing.began_ms, healing.asked, healing.replaced])?;
        Ok(())
    }
}
