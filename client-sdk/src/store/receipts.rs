//! Who has got and read what: of this account's messages, as others say; of others' messages, as they are to be told.
//!
//! Invariant: a device counts once for a message, and only for what it says itself.

use rusqlite::{OptionalExtension as _, Row, params};
use undertone_wire::{AccountId, DeviceId, MessageId};

use super::{StoreError, Tx, bytes};
use crate::{conversation_id::ConversationId, message::Mark};

/// Of so many messages an app is told at most when one receipt concerns them, the newest.
const TOLD_MAX: u32 = 100;

/// What a device may say of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Said {
    Delivered,
    Read,
}

impl Said {
    /// The column in which it is counted, and kept for each device.
    fn column(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Read => "read",
        }
    }
}

impl Tx<'_> {
    /// Another device says that it has this account's messages from one to another, or that they were read. Gives those
    /// for which that is new.
    pub(crate) fn count_receipt(
        &self,
        conversation: ConversationId,
        device: DeviceId,
        own: AccountId,
        said: Said,
        mark: &Mark,
    ) -> Result<Vec<MessageId>, StoreError> {
        let column = said.column();
        let (Some(from), Some(to)) =
            (self.placed(conversation, own, mark.from)?, self.placed(conversation, own, mark.to)?)
        else {
            return Ok(vec![]);
        };
        let select = format!("SELECT {column} FROM receipts WHERE conversation = ?1 AND device = ?2");
        let mut select = self.prepare_cached(&select)?;
        let key = params![conversation.as_bytes(), device.as_bytes()];
        let known: i64 = select.query_row(key, |row| row.get(0)).optional()?.unwrap_or(0);
        if to <= known {
            return Ok(vec![]);
        }
        const UPSERT: &str = "INSERT INTO receipts (conversation, device, delivered, read) VALUES (?1, ?2, ?3, ?4)
            ON CONFLICT DO UPDATE SET delivered = max(delivered, ?3), read = max(read, ?4)";
        let (delivered, read) = if said == Said::Delivered { (to, 0) } else { (0, to) };
        self.execute(UPSERT, params![conversation.as_bytes(), device.as_bytes(), delivered, read])?;
        let count = format!(
            "UPDATE messages SET {column} = {column} + 1
             WHERE conversation = ?1 AND sender = ?2 AND position >= ?3 AND position <= ?4 AND devices > {column}"
        );
        let first = from.max(known + 1);
        let range = params![conversation.as_bytes(), own.as_bytes(), first, to];
        self.execute(&count, range)?;
        const NEW: &str = "SELECT content_id FROM messages
            WHERE conversation = ?1 AND sender = ?2 AND position >= ?3 AND position <= ?4 AND devices IS NOT NULL
            ORDER BY position DESC LIMIT ?5";
        let mut select = self.prepare_cached(NEW)?;
        let range = params![conversation.as_bytes(), own.as_bytes(), first, to, TOLD_MAX];
        let mut told: Vec<_> = select.query_map(range, |row| bytes(row, 0))?.collect::<Result<_, _>>()?;
        told.reverse();
        Ok(told)
    }

    /// Where one of this account's messages stands, if it has its place among the others.
    fn placed(
        &self,
        conversation: ConversationId,
        own: AccountId,
        message: MessageId,
    ) -> Result<Option<i64>, StoreError> {
        const SELECT: &str = "SELECT position FROM messages
            WHERE conversation = ?1 AND sender = ?2 AND content_id = ?3 AND devices IS NOT NULL";
        let key = params![conversation.as_bytes(), own.as_bytes(), message.as_bytes()];
        Ok(self.query_row(SELECT, key, |row| row.get(0)).optional()?)
    }

    /// What of others' messages they are to be told, and have not been: delivered, and read.
    pub(crate) fn receipt(&self, conversation: ConversationId) -> Result<(Vec<Mark>, Vec<Mark>), StoreError> {
        const STANDS: &str = "SELECT whole_from, told_delivered, told_read, read_to,
                (SELECT coalesce(max(position), 0) FROM messages WHERE conversation = ?1) FROM conversations WHERE id = ?1";
        let stands = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?));
        let (whole, told_delivered, told_read, read_to, newest): (i64, i64, i64, i64, i64) =
            self.query_row(STANDS, [conversation.as_bytes()], stands)?;
        const TELLING: &str = "UPDATE conversations SET telling_delivered = ?2, telling_read = ?3 WHERE id = ?1";
        self.execute(TELLING, params![conversation.as_bytes(), newest, read_to])?;
        Ok((
            self.marks(conversation, whole, told_delivered, newest)?,
            self.marks(conversation, whole, told_read, read_to)?,
        ))
    }

    /// For each author of something after `told`: what is there of it from `whole` on, up to `to`.
    fn marks(&self, conversation: ConversationId, whole: i64, told: i64, to: i64) -> Result<Vec<Mark>, StoreError> {
        const SENDERS: &str = "SELECT DISTINCT sender FROM messages
            WHERE conversation = ?1 AND position > ?2 AND position <= ?3 AND status = 'received'";
        const FIRST: &str = "SELECT content_id FROM messages
            WHERE conversation = ?1 AND sender = ?2 AND position > ?3 AND status = 'received' ORDER BY position LIMIT 1";
        const LAST: &str = "SELECT content_id FROM messages
            WHERE conversation = ?1 AND sender = ?2 AND position <= ?3 AND status = 'received'
            ORDER BY position DESC LIMIT 1";
        let mut senders = self.prepare_cached(SENDERS)?;
        let senders = senders.query_map(params![conversation.as_bytes(), told.max(whole), to], |row| bytes(row, 0))?;
        let mut marks = Vec::new();
        for account in senders {
            let account: AccountId = account?;
            let message = |select: &str, at: i64| {
                let key = params![conversation.as_bytes(), account.as_bytes(), at];
                self.query_row(select, key, |row| bytes(row, 0))
            };
            marks.push(Mark { account, from: message(FIRST, whole)?, to: message(LAST, to)? });
        }
        Ok(marks)
    }

    /// The receipt that is under way has arrived.
    pub(crate) fn receipt_told(&self, conversation: ConversationId) -> Result<(), StoreError> {
        const UPDATE: &str = "UPDATE conversations SET told_delivered = telling_delivered, told_read = telling_read
            WHERE id = ?1";
        self.execute(UPDATE, [conversation.as_bytes()])?;
        Ok(())
    }

    /// Something of a conversation was missed: nobody is told that what comes from now on follows what was there before.
    pub(crate) fn note_gap(&self, conversation: impl Into<ConversationId>) -> Result<(), StoreError> {
        const UPDATE: &str = "UPDATE conversations SET
            whole_from = (SELECT coalesce(max(position), 0) FROM messages WHERE conversation = ?1) WHERE id = ?1";
        self.execute(UPDATE, [conversation.into().as_bytes()])?;
        Ok(())
    }

    /// Another device of this account has said that everything of an account up to a message was read. `false` if that was
    /// known, or there is no such message.
    pub(crate) fn note_read_elsewhere(&self, conversation: ConversationId, mark: &Mark) -> Result<bool, StoreError> {
        const SELECT: &str =
            "SELECT position FROM messages WHERE conversation = ?1 AND sender = ?2 AND content_id = ?3";
        let key = params![conversation.as_bytes(), mark.account.as_bytes(), mark.to.as_bytes()];
        let position: Option<i64> = self.query_row(SELECT, key, |row| row.get(0)).optional()?;
        let Some(position) = position else { return Ok(false) };
        // Its author was told by that device.
        const UPDATE: &str = "UPDATE conversations SET read_to = ?2, told_read = max(told_read, ?2)
            WHERE id = ?1 AND read_to < ?2";
        Ok(self.execute(UPDATE, params![conversation.as_bytes(), position])? > 0)
    }

    /// The last message of others up to which all was read.
    pub(crate) fn read_up_to(&self, conversation: ConversationId) -> Result<Option<MessageId>, StoreError> {
        const SELECT: &str = "SELECT content_id FROM messages
            WHERE conversation = ?1 AND status = 'received'
              AND position <= (SELECT read_to FROM conversations WHERE id = ?1) ORDER BY position DESC LIMIT 1";
        Ok(self.query_row(SELECT, [conversation.as_bytes()], |row| bytes(row, 0)).optional()?)
    }

    /// Everything up to a message was read. `None` if there is no such message, `false` if that was known.
    pub(crate) fn note_read(
        &self,
        conversation: ConversationId,
        message: MessageId,
    ) -> Result<Option<bool>, StoreError> {
        const SELECT: &str = "SELECT max(position) FROM messages WHERE conversation = ?1 AND content_id = ?2";
        let key = params![conversation.as_bytes(), message.as_bytes()];
        let position: Option<i64> = self.query_row(SELECT, key, |row| row.get(0))?;
        let Some(position) = position else { return Ok(None) };
        const UPDATE: &str = "UPDATE conversations SET read_to = ?2 WHERE id = ?1 AND read_to < ?2";
        Ok(Some(self.execute(UPDATE, params![conversation.as_bytes(), position])? > 0))
    }
}
