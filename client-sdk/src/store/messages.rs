//! The history: messages in the order of the relay.
//!
//! Invariant: a content id of one sender stands in a conversation once, however often it arrives. A message is found by its words
//! wherever it stands.

use rusqlite::{OptionalExtension as _, Row, params};
use undertone_wire::{AccountId, Bytes, MessageId};

use super::{StoreError, Tx, bytes, not_expected};
use crate::{Error, conversation_id::ConversationId};

/// Where a message stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum MessageStatus {
    /// Written here; the relay has not said yes.
    Queued,
    /// The relay has it, for every member.
    Sent,
    /// Devices of others have it, by their own word. In groups of more than 32 devices none of them says so.
    Delivered {
        /// So many of them.
        to: u32,
        /// Of so many that it was sent to.
        of: u32,
    },
    /// The apps on devices of others have said that it was read.
    Read {
        /// So many of them.
        by: u32,
        /// Of so many that it was sent to.
        of: u32,
    },
    /// It was not sent, and will not be unless that is asked for ([`Conversation::retry`](crate::Conversation::retry)).
    Failed(SendFailure),
    /// Another member wrote it.
    Received,
}

/// Why a message was not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum SendFailure {
    /// This device is no longer a member of the group.
    NotMember,
    /// The relay has lost the group.
    GroupStuck,
    /// What the relay says of the receiver's devices or keys does not verify, or is not the newest.
    Untrusted,
    /// The relay has refused it.
    Refused,
}

/// A message in the history.
#[derive(Debug, Clone)]
pub(crate) struct MessageRow {
    pub(crate) conversation: ConversationId,
    pub(crate) content_id: MessageId,
    pub(crate) sender: AccountId,
    pub(crate) sent_at_ms: u64,
    pub(crate) status: MessageStatus,
    /// Encoded, as it came.
    pub(crate) content: Bytes,
}

/// Which part of a conversation's history.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HistoryPage {
    /// At most so many, the newest.
    pub(crate) limit: usize,
    /// Only what stands before this message.
    pub(crate) before: Option<MessageId>,
}

impl MessageStatus {
    /// As shown to scripts.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Sent => "sent",
            Self::Delivered { .. } => "delivered",
            Self::Read { .. } => "read",
            Self::Failed(_) => "failed",
            Self::Received => "received",
        }
    }

    /// Whether it is this account's own, and the relay has it.
    pub fn is_sent(self) -> bool {
        matches!(self, Self::Sent | Self::Delivered { .. } | Self::Read { .. })
    }

    /// As it is stored: what others have said of it stands beside it.
    fn stored(self) -> (&'static str, Option<&'static str>) {
        match self {
            Self::Delivered { .. } | Self::Read { .. } => ("sent", None),
            Self::Failed(why) => ("failed", Some(why.as_str())),
            status => (status.as_str(), None),
        }
    }

    /// From the columns of [`STATUS`], the first of which is at a place.
    fn from_row(row: &Row<'_>, column: usize) -> rusqlite::Result<Self> {
        let unknown = || not_expected(column, "a message status that this version does not know");
        match row.get_ref(column)?.as_str()? {
            "queued" => Ok(Self::Queued),
            "sent" => {
                let of = row.get::<_, Option<u32>>(column + 2)?.unwrap_or(0);
                Ok(match (row.get(column + 3)?, row.get(column + 4)?) {
                    (_, by) if by > 0 => Self::Read { by, of },
                    (to, _) if to > 0 => Self::Delivered { to, of },
                    _ => Self::Sent,
                })
            }
            "failed" => {
                let why = row.get_ref(column + 1)?.as_str_or_null()?;
                let known = SendFailure::ALL.into_iter().find(|one| why == Some(one.as_str()));
                // Before reasons were kept, none was.
                Ok(Self::Failed(known.unwrap_or(SendFailure::Refused)))
            }
            "received" => Ok(Self::Received),
            _ => Err(unknown()),
        }
    }
}

impl SendFailure {
    const ALL: [Self; 4] = [Self::NotMember, Self::GroupStuck, Self::Untrusted, Self::Refused];

    /// As stored and as shown to scripts.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotMember => "not_member",
            Self::GroupStuck => "group_stuck",
            Self::Untrusted => "untrusted",
            Self::Refused => "refused",
        }
    }

    /// What an error means for a message.
    pub(crate) fn of(error: &Error) -> Self {
        match error {
            Error::NotMember | Error::UnknownGroup => Self::NotMember,
            Error::GroupStuck => Self::GroupStuck,
            Error::Untrusted(_) => Self::Untrusted,
            _ => Self::Refused,
        }
    }
}

/// The columns of a status, and of a whole message.
const STATUS: &str = "status, failure, devices, delivered, read";
pub(super) const COLUMNS: &str =
    "conversation, content_id, sender, sent_at_ms, content, status, failure, devices, delivered, read";

impl Tx<'_> {
    /// Adds a message at the end of the history. `false` if it stands there already.
    pub(crate) fn add_message(&self, message: &MessageRow) -> Result<bool, StoreError> {
        const INSERT: &str = "INSERT INTO messages (conversation, content_id, sender, sent_at_ms, status, content)
            VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT DO NOTHING";
        let added = self.execute(
            INSERT,
            params![
                message.conversation.as_bytes(),
                message.content_id.as_bytes(),
                message.sender.as_bytes(),
                message.sent_at_ms,
                message.status.stored().0,
                message.content.as_slice(),
            ],
        )?;
        if added == 1 {
            self.add_words(self.last_insert_rowid(), message.content.as_slice())?;
        }
        Ok(added == 1)
    }

    /// Sets the status of this account's own message. `false` if it had that status already.
    pub(crate) fn set_status(&self, content_id: MessageId, status: MessageStatus) -> Result<bool, StoreError> {
        const UPDATE: &str = "UPDATE messages SET status = ?2, failure = ?3
            WHERE content_id = ?1 AND status <> ?2 AND status <> 'received'";
        let (status, failure) = status.stored();
        Ok(self.execute(UPDATE, params![content_id.as_bytes(), status, failure])? > 0)
    }

    /// Moves this account's own message to the end: its own row has come, and that is its place among the others. It
    /// went to so many devices of others.
    pub(crate) fn confirm_place(&self, content_id: MessageId, devices: u64) -> Result<(), StoreError> {
        const SELECT: &str = "SELECT position, content FROM messages WHERE content_id = ?1 AND status <> 'received'";
        let own = self.query_row(SELECT, [content_id.as_bytes()], place_from).optional()?;
        if let Some((position, content)) = own {
            let position = self.move_to_end(position, &content)?;
            self.execute("UPDATE messages SET devices = ?2 WHERE position = ?1", params![position, devices])?;
        }
        Ok(())
    }

    /// Moves a message behind all others, if it is not the last. Answers with its position then.
    fn move_to_end(&self, position: i64, content: &[u8]) -> Result<i64, StoreError> {
        const MOVE: &str = "UPDATE messages SET position = ?2 WHERE position = ?1";
        let last: i64 = self.query_row("SELECT max(position) FROM messages", [], |row| row.get(0))?;
        if position == last {
            return Ok(position);
        }
        let end = last + 1;
        self.execute(MOVE, [position, end])?;
        self.forget_words(position, content)?;
        self.add_words(end, content)?;
        Ok(end)
    }

    /// This account's own message is to be sent after all, as the newest. `None` if it is none that has failed.
    pub(crate) fn queue_again(
        &self,
        conversation: ConversationId,
        content_id: MessageId,
    ) -> Result<Option<Bytes>, StoreError> {
        const QUEUE: &str = "UPDATE messages SET status = 'queued', failure = NULL WHERE position = ?1";
        let Some((position, content)) = self.failed(conversation, content_id)? else { return Ok(None) };
        let position = self.move_to_end(position, &content)?;
        self.execute(QUEUE, [position])?;
        Ok(Some(content.into()))
    }

    /// Forgets this account's own message. `false` if it is none that has failed.
    pub(crate) fn forget_failed(
        &self,
        conversation: ConversationId,
        content_id: MessageId,
    ) -> Result<bool, StoreError> {
        let Some((position, content)) = self.failed(conversation, content_id)? else { return Ok(false) };
        self.forget_words(position, &content)?;
        self.execute("DELETE FROM messages WHERE position = ?1", [position])?;
        Ok(true)
    }

    /// Where a message stands that has failed, and what is in it.
    fn failed(
        &self,
        conversation: ConversationId,
        content_id: MessageId,
    ) -> Result<Option<(i64, Vec<u8>)>, StoreError> {
        const SELECT: &str = "SELECT position, content FROM messages
            WHERE conversation = ?1 AND content_id = ?2 AND status = 'failed'";
        Ok(self.query_row(SELECT, params![conversation.as_bytes(), content_id.as_bytes()], place_from).optional()?)
    }

    /// The status of this account's own message; `None` if there is no such message.
    pub(crate) fn status(&self, content_id: MessageId) -> Result<Option<MessageStatus>, StoreError> {
        let select = format!("SELECT {STATUS} FROM messages WHERE content_id = ?1 AND status <> 'received'");
        let status = self.query_row(&select, [content_id.as_bytes()], |row| MessageStatus::from_row(row, 0));
        Ok(status.optional()?)
    }

    /// One message.
    pub(crate) fn message(
        &self,
        conversation: ConversationId,
        sender: AccountId,
        content_id: MessageId,
    ) -> Result<Option<MessageRow>, StoreError> {
        let select =
            format!("SELECT {COLUMNS} FROM messages WHERE conversation = ?1 AND sender = ?2 AND content_id = ?3");
        let key = params![conversation.as_bytes(), sender.as_bytes(), content_id.as_bytes()];
        Ok(self.query_row(&select, key, message_from).optional()?)
    }

    /// A part of a conversation's history, oldest first. `None` if `before` is not in it.
    pub(crate) fn history(
        &self,
        conversation: ConversationId,
        page: HistoryPage,
    ) -> Result<Option<Vec<MessageRow>>, StoreError> {
        const PLACE: &str = "SELECT min(position) FROM messages WHERE conversation = ?1 AND content_id = ?2";
        let select = format!(
            "SELECT {COLUMNS} FROM messages WHERE conversation = ?1 AND position < ?2 ORDER BY position DESC LIMIT ?3"
        );
        let below: Option<i64> = match page.before {
            None => Some(i64::MAX),
            Some(id) => self.query_row(PLACE, params![conversation.as_bytes(), id.as_bytes()], |row| row.get(0))?,
        };
        let Some(below) = below else { return Ok(None) };
        let mut statement = self.prepare_cached(&select)?;
        let mut messages: Vec<_> = statement
            .query_map(params![conversation.as_bytes(), below, page.limit], message_from)?
            .collect::<Result<_, _>>()?;
        messages.reverse();
        Ok(Some(messages))
    }
}

fn place_from(row: &Row<'_>) -> rusqlite::Result<(i64, Vec<u8>)> {
    Ok((row.get(0)?, row.get(1)?))
}

pub(super) fn message_from(row: &Row<'_>) -> rusqlite::Result<MessageRow> {
    Ok(MessageRow {
        conversation: bytes(row, 0)?,
        content_id: bytes(row, 1)?,
        sender: bytes(row, 2)?,
        sent_at_ms: row.get(3)?,
        content: row.get::<_, Vec<u8>>(4)?.into(),
        status: MessageStatus::from_row(row, 5)?,
    })
}
