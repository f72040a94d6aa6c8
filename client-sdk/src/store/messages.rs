//! The history: messages in the order of the relay.
//!
//! Invariant: a content id of one sender stands in a group once, however often it arrives.

use rusqlite::{OptionalExtension as _, Row, params};
use undertone_wire::{AccountId, Bytes, GroupId, MessageId};

use super::{StoreError, Tx, bytes, not_expected};

/// Where a message stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum MessageStatus {
    /// Written here; the relay has not said yes.
    Queued,
    /// The relay has it, for every member.
    Sent,
    /// It will not be sent.
    Failed,
    /// Another member wrote it.
    Received,
}

/// A message in the history.
#[derive(Debug, Clone)]
pub(crate) struct MessageRow {
    pub(crate) group_id: GroupId,
    pub(crate) content_id: MessageId,
    pub(crate) sender: AccountId,
    pub(crate) sent_at_ms: u64,
    pub(crate) status: MessageStatus,
    /// Encoded, as it came.
    pub(crate) content: Bytes,
}

/// Which part of a group's history.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HistoryPage {
    /// At most so many, the newest.
    pub(crate) limit: usize,
    /// Only what stands before this message.
    pub(crate) before: Option<MessageId>,
}

impl MessageStatus {
    /// As stored and as shown to scripts.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Sent => "sent",
            Self::Failed => "failed",
            Self::Received => "received",
        }
    }

    fn from_row(row: &Row<'_>, column: usize) -> rusqlite::Result<Self> {
        let text = row.get_ref(column)?.as_str()?;
        [Self::Queued, Self::Sent, Self::Failed, Self::Received]
            .into_iter()
            .find(|status| status.as_str() == text)
            .ok_or_else(|| not_expected(column, "a message status that this version does not know"))
    }
}

impl Tx<'_> {
    /// Adds a message at the end of the history. `false` if it stands there already.
    pub(crate) fn add_message(&self, message: &MessageRow) -> Result<bool, StoreError> {
        const INSERT: &str = "INSERT INTO messages (group_id, content_id, sender, sent_at_ms, status, content)
            VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT DO NOTHING";
        let added = self.execute(
            INSERT,
            params![
                message.group_id.as_bytes(),
                message.content_id.as_bytes(),
                message.sender.as_bytes(),
                message.sent_at_ms,
                message.status.as_str(),
                message.content.as_slice(),
            ],
        )?;
        Ok(added == 1)
    }

    /// Sets the status of this account's own message. `false` if it had that status already.
    pub(crate) fn set_status(&self, content_id: MessageId, status: MessageStatus) -> Result<bool, StoreError> {
        const UPDATE: &str = "UPDATE messages SET status = ?2
            WHERE content_id = ?1 AND status <> ?2 AND status <> 'received'";
        Ok(self.execute(UPDATE, params![content_id.as_bytes(), status.as_str()])? > 0)
    }

    /// Moves this account's own message to the end: its own row has come, and that is its place among the others.
    pub(crate) fn confirm_place(&self, content_id: MessageId) -> Result<(), StoreError> {
        const UPDATE: &str = "UPDATE messages SET position = (SELECT max(position) + 1 FROM messages)
            WHERE content_id = ?1 AND status <> 'received'";
        self.execute(UPDATE, [content_id.as_bytes()])?;
        Ok(())
    }

    /// The status of this account's own message; `None` if there is no such message.
    pub(crate) fn status(&self, content_id: MessageId) -> Result<Option<MessageStatus>, StoreError> {
        const SELECT: &str = "SELECT status FROM messages WHERE content_id = ?1 AND status <> 'received'";
        let status = self.query_row(SELECT, [content_id.as_bytes()], |row| MessageStatus::from_row(row, 0));
        Ok(status.optional()?)
    }

    /// One message.
    pub(crate) fn message(
        &self,
        group: GroupId,
        sender: AccountId,
        content_id: MessageId,
    ) -> Result<Option<MessageRow>, StoreError> {
        const SELECT: &str = "SELECT group_id, content_id, sender, sent_at_ms, status, content FROM messages
            WHERE group_id = ?1 AND sender = ?2 AND content_id = ?3";
        let key = params![group.as_bytes(), sender.as_bytes(), content_id.as_bytes()];
        Ok(self.query_row(SELECT, key, message_from).optional()?)
    }

    /// A part of a group's history, oldest first. `None` if `before` is not in it.
    pub(crate) fn history(&self, group: GroupId, page: HistoryPage) -> Result<Option<Vec<MessageRow>>, StoreError> {
        const PLACE: &str = "SELECT min(position) FROM messages WHERE group_id = ?1 AND content_id = ?2";
        const PAGE: &str = "SELECT group_id, content_id, sender, sent_at_ms, status, content FROM messages
            WHERE group_id = ?1 AND position < ?2 ORDER BY position DESC LIMIT ?3";
        let below: Option<i64> = match page.before {
            None => Some(i64::MAX),
            Some(id) => self.query_row(PLACE, params![group.as_bytes(), id.as_bytes()], |row| row.get(0))?,
        };
        let Some(below) = below else { return Ok(None) };
        let mut statement = self.prepare_cached(PAGE)?;
        let mut messages: Vec<_> = statement
            .query_map(params![group.as_bytes(), below, page.limit], message_from)?
            .collect::<Result<_, _>>()?;
        messages.reverse();
        Ok(Some(messages))
    }
}

fn message_from(row: &Row<'_>) -> rusqlite::Result<MessageRow> {
    Ok(MessageRow {
        group_id: bytes(row, 0)?,
        content_id: bytes(row, 1)?,
        sender: bytes(row, 2)?,
        sent_at_ms: row.get(3)?,
        status: MessageStatus::from_row(row, 4)?,
        content: row.get::<_, Vec<u8>>(5)?.into(),
    })
}
