//! What is to be done at the relay, in order within each conversation.
//!
//! A row is `waiting` (nothing made yet, or refused), `posted` (the exact request is stored; whether the relay has it
//! may be unknown) or `accepted` (its row in this device's own queue is still to come). It is deleted when done.
//!
//! Invariant: a request is never changed while its outcome may still be unknown.

use rusqlite::{OptionalExtension as _, Row, params};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use undertone_wire::{AccountId, Bytes, DeviceId, Encoding, GroupId, Hash, MessageId};

use super::{StoreError, Tx, bytes, bytes_if_any, cbor, not_expected};
use crate::{Error, conversation_id::ConversationId, crypto::Member};

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Task {
    /// Create the group at the relay.
    Create {
        /// Its group info at epoch 0.
        sealed_group_info: Bytes,
    },
    /// Send the content.
    Send {
        /// Encoded.
        content: Bytes,
    },
    /// Tell the others what has come of theirs, and what was read, as of when it is encrypted.
    Receipt,
    /// Tell a device that these ciphertexts of it could not be read, so that it sends again what was in them.
    AskAgain {
        /// Which.
        of: Member,
        /// Their SHA-256.
        hashes: Vec<Hash>,
    },
    /// Send a device again what it could not read.
    SendAgain {
        /// Which.
        to: Member,
        /// Encoded.
        content: Bytes,
    },
    /// Leave, telling the others by this content.
    Leave {
        /// Encoded.
        content: Bytes,
    },
    /// Add all devices of an account.
    Add {
        /// Whom.
        account: AccountId,
    },
    /// Remove all devices of an account.
    Remove {
        /// Whom.
        account: AccountId,
    },
    /// Add all devices of these accounts, as far as that is possible, for they were in the group that this one
    /// continues.
    Gather {
        /// Whom.
        accounts: Vec<AccountId>,
    },
    /// Give the group another name.
    Rename {
        /// Which.
        name: String,
    },
    /// Replace this device's keys in the group.
    Update,
    /// Remove the leaves of devices that are gone.
    Tidy,
    /// Swap the leaf of a device that cannot come back by itself.
    LetIn {
        /// Its account.
        account: AccountId,
        /// The device.
        device: DeviceId,
    },
}

impl Task {
    /// Whether it is done by a commit.
    pub(crate) fn commits(&self) -> bool {
        self.is_awaited() && !matches!(self, Self::Create { .. } | Self::Leave { .. })
    }

    /// Whether later ones wait until it is done, not only accepted.
    fn is_awaited(&self) -> bool {
        !matches!(self, Self::Send { .. } | Self::Receipt | Self::AskAgain { .. } | Self::SendAgain { .. })
    }

    /// The device for which alone it is, of all to which it goes.
    pub(crate) fn only_for(&self) -> Option<Member> {
        match self {
            Self::AskAgain { of: only, .. } | Self::SendAgain { to: only, .. } => Some(*only),
            _ => None,
        }
    }
}

/// How far a row is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OutboxState {
    Waiting,
    Posted,
    Accepted,
}

/// One thing to be done.
#[derive(Debug, Clone)]
pub(crate) struct OutboxRow {
    pub(crate) id: i64,
    pub(crate) conversation: ConversationId,
    /// Under which the relay knows the group, if it is one.
    live: Option<GroupId>,
    pub(crate) task: Task,
    pub(crate) content_id: Option<MessageId>,
    pub(crate) state: OutboxState,
    /// How often it was put off, for whatever reason.
    pub(crate) attempts: u32,
    /// How often the relay has refused it for a reason that should pass.
    pub(crate) refusals: u32,
    /// How often, since it was last started over, the relay did not know of commits that were applied here.
    pub(crate) setbacks: u32,
    /// Of a posted row: its id at the relay and the exact request, in CBOR.
    pub(crate) posted: Option<(MessageId, Vec<u8>)>,
}

impl OutboxRow {
    /// The group, whose conversation it must be.
    pub(crate) fn group(&self) -> Result<GroupId, StoreError> {
        self.conversation.group().ok_or_else(no_group)
    }

    /// Under which id the relay knows that group.
    pub(crate) fn live(&self) -> Result<GroupId, StoreError> {
        self.live.ok_or_else(no_group)
    }
}

fn no_group() -> StoreError {
    StoreError::Corrupt("a task of groups in another conversation".into())
}

impl OutboxState {
    fn from_row(row: &Row<'_>, column: usize) -> rusqlite::Result<Self> {
        match row.get_ref(column)?.as_str()? {
            "waiting" => Ok(Self::Waiting),
            "posted" => Ok(Self::Posted),
            "accepted" => Ok(Self::Accepted),
            _ => Err(not_expected(column, "an outbox state that this version does not know")),
        }
    }
}

const COLUMNS: &str = "id, conversation, task, content_id, state, attempts, message_id, request, refusals, setbacks,
    (SELECT live FROM groups WHERE groups.id = conversation)";

/// The rows that the relay has not accepted, those left out that are planned for a later time, or wait for the user.
const LEFT: &str = "FROM outbox
    WHERE (blocks = 1 OR state <> 'accepted') AND (attempts > 0 OR not_before_ms <= ?1)
      AND conversation NOT IN (SELECT id FROM conversations WHERE requested_by IS NOT NULL)";

impl Tx<'_> {
    /// Adds a row at the end of its conversation's queue.
    pub(crate) fn add_task(
        &self,
        conversation: impl Into<ConversationId>,
        task: &Task,
        content_id: Option<MessageId>,
        not_before_ms: u64,
    ) -> Result<i64, StoreError> {
        const INSERT: &str = "INSERT INTO outbox (conversation, task, content_id, state, blocks, not_before_ms)
            VALUES (?1, ?2, ?3, 'waiting', ?4, ?5)";
        let content_id = content_id.as_ref().map(|id| id.as_bytes().as_slice());
        let (task, blocks) = (Encoding::Cbor.encode(task), task.is_awaited());
        self.execute(INSERT, params![conversation.into().as_bytes(), task, content_id, blocks, not_before_ms])?;
        self.changes.work.set(true);
        Ok(self.last_insert_rowid())
    }

    /// A row that is not posted is to do something else.
    pub(crate) fn set_task(&self, id: i64, task: &Task) -> Result<(), StoreError> {
        self.execute("UPDATE outbox SET task = ?2 WHERE id = ?1", params![id, Encoding::Cbor.encode(task)])?;
        Ok(())
    }

    /// Adds a row before all others of its conversation.
    pub(crate) fn add_first_task(
        &self,
        conversation: impl Into<ConversationId>,
        task: &Task,
    ) -> Result<(), StoreError> {
        let id = self.add_task(conversation, task, None, 0)?;
        self.execute("UPDATE outbox SET first = 1 WHERE id = ?1", [id])?;
        Ok(())
    }

    /// Leaves that are gone are removed before anything else is done in the group.
    pub(crate) fn tidy_first(&self, group: GroupId) -> Result<(), StoreError> {
        const FIRST: &str = "UPDATE outbox SET first = 1, not_before_ms = 0 WHERE id = ?1";
        let planned = self.tasks(group)?.into_iter().find(|row| row.task == Task::Tidy);
        match planned {
            Some(row) => {
                self.execute(FIRST, [row.id])?;
                self.changes.work.set(true);
                Ok(())
            }
            None => self.add_first_task(group, &Task::Tidy),
        }
    }

    /// The oldest row that can go on now: the first of its conversation whose time has come, not waiting for the queue. While
    /// one of a conversation's rows is posted, or an accepted one blocks, none of the others can; one that was put off keeps
    /// its place, one planned for a later time has none yet. While a group is being recovered, or requested, all wait; messages
    /// do as long as the user has not taken the new identity key of somebody whom they would reach, if the app wants that.
    pub(crate) fn next_task(&self, now_ms: u64) -> Result<Option<OutboxRow>, StoreError> {
        // The conversations are gone through one after the other, by an index that leads to the row of each whose turn it is.
        // However many wait behind it, they are not looked at.
        let select = format!(
            "WITH RECURSIVE these (conversation) AS (
                 SELECT min(conversation) FROM outbox
                 UNION ALL
                 SELECT (SELECT min(conversation) FROM outbox WHERE conversation > these.conversation) FROM these
                     WHERE these.conversation IS NOT NULL),
             turns (id) AS (
                 SELECT coalesce(
                     (SELECT id FROM outbox AS o WHERE o.conversation = these.conversation AND state = 'posted' LIMIT 1),
                     (SELECT id FROM outbox AS o WHERE o.conversation = these.conversation AND state = 'waiting'
                          AND (not_before_ms <= ?1 OR attempts > 0)
                          AND (o.content_id IS NULL OR (SELECT hold_changed FROM profile) = 0 OR NOT EXISTS (
                              SELECT 1 FROM contacts AS c WHERE c.changed = 1 AND (c.account = o.conversation
                                  OR EXISTS (SELECT 1 FROM members AS m
                                      WHERE m.group_id = o.conversation AND m.account = c.account))))
                      ORDER BY first DESC, id LIMIT 1)) FROM these)
             SELECT {COLUMNS} FROM outbox AS o
             WHERE id IN turns AND not_before_ms <= ?1 AND wait_for_seq <= (SELECT cursor FROM profile)
               AND NOT EXISTS (SELECT 1 FROM recoveries AS r WHERE r.group_id = o.conversation AND r.step <> 'none')
               AND NOT EXISTS (SELECT 1 FROM conversations AS c WHERE c.id = o.conversation AND c.requested_by IS NOT NULL)
               AND NOT EXISTS (SELECT 1 FROM outbox AS other
                   WHERE other.conversation = o.conversation AND other.state = 'accepted' AND other.blocks = 1)
             ORDER BY first DESC, id LIMIT 1"
        );
        Ok(self.query_row(&select, [now_ms], row_from).optional()?)
    }

    /// When the next row's time comes; `None` if no row waits for a time.
    pub(crate) fn next_task_at_ms(&self, now_ms: u64) -> Result<Option<u64>, StoreError> {
        const SELECT: &str = "SELECT min(not_before_ms) FROM outbox WHERE not_before_ms > ?1";
        Ok(self.query_row(SELECT, [now_ms], |row| row.get(0))?)
    }

    /// How many rows the relay has not accepted, those left out that are planned for a later time.
    pub(crate) fn outbox_len(&self, now_ms: u64) -> Result<u64, StoreError> {
        Ok(self.query_row(&format!("SELECT count(*) {LEFT}"), [now_ms], |row| row.get(0))?)
    }

    /// Whether that is none.
    pub(crate) fn outbox_is_empty(&self, now_ms: u64) -> Result<bool, StoreError> {
        Ok(self.query_row(&format!("SELECT NOT EXISTS (SELECT 1 {LEFT})"), [now_ms], |row| row.get(0))?)
    }

    /// A row, if it is still there.
    pub(crate) fn task(&self, id: i64) -> Result<Option<OutboxRow>, StoreError> {
        Ok(self.query_row(&format!("SELECT {COLUMNS} FROM outbox WHERE id = ?1"), [id], row_from).optional()?)
    }

    /// The row whose ciphertext this is.
    pub(crate) fn task_by_hash(&self, hash: &Hash) -> Result<Option<OutboxRow>, StoreError> {
        let select = format!("SELECT {COLUMNS} FROM outbox WHERE wire_hash = ?1");
        Ok(self.query_row(&select, [hash.as_bytes()], row_from).optional()?)
    }

    /// The rows of a conversation, oldest first.
    pub(crate) fn tasks(&self, conversation: impl Into<ConversationId>) -> Result<Vec<OutboxRow>, StoreError> {
        let select = format!("SELECT {COLUMNS} FROM outbox WHERE conversation = ?1 ORDER BY id");
        let mut statement = self.prepare_cached(&select)?;
        let rows = statement.query_map([conversation.into().as_bytes()], row_from)?.collect::<Result<_, _>>()?;
        Ok(rows)
    }

    /// Whether the relay is still to hear of a group.
    pub(crate) fn is_to_be_created(&self, conversation: impl Into<ConversationId>) -> Result<bool, StoreError> {
        Ok(self.tasks(conversation)?.iter().any(|row| matches!(row.task, Task::Create { .. })))
    }

    /// Whether a conversation has such a task that waits, which sends no message.
    pub(crate) fn is_planned(&self, conversation: impl Into<ConversationId>, task: &Task) -> Result<bool, StoreError> {
        const SELECT: &str = "SELECT EXISTS (SELECT 1 FROM outbox
            WHERE conversation = ?1 AND task = ?2 AND content_id IS NULL AND state = 'waiting')";
        Ok(self.query_row(SELECT, params![conversation.into().as_bytes(), Encoding::Cbor.encode(task)], |row| {
            row.get(0)
        })?)
    }

    /// The request is made and about to be posted.
    pub(crate) fn set_posted(
        &self,
        id: i64,
        message_id: MessageId,
        request: &[u8],
        ciphertext: &Bytes,
    ) -> Result<(), StoreError> {
        const UPDATE: &str = "UPDATE outbox SET state = 'posted', wait_for_seq = 0, message_id = ?2, request = ?3,
            wire_hash = ?4 WHERE id = ?1";
        let hash = Hash::of(ciphertext.as_slice());
        self.execute(UPDATE, params![id, message_id.as_bytes(), request, hash.as_bytes()])?;
        Ok(())
    }

    /// The relay has said yes; the row in this device's own queue is still to come.
    pub(crate) fn set_accepted(&self, id: i64) -> Result<(), StoreError> {
        self.execute("UPDATE outbox SET state = 'accepted', request = NULL WHERE id = ?1", [id])?;
        self.changes.work.set(true);
        Ok(())
    }

    /// The relay has said no, or can only say no: start over once the queue entry `wait_for_seq` was applied.
    pub(crate) fn set_waiting(&self, id: i64, wait_for_seq: u64) -> Result<(), StoreError> {
        const UPDATE: &str = "UPDATE outbox SET state = 'waiting', wait_for_seq = ?2, setbacks = 0,
            message_id = NULL, request = NULL WHERE id = ?1";
        self.execute(UPDATE, params![id, wait_for_seq])?;
        self.changes.work.set(true);
        Ok(())
    }

    /// Whether a row waits for a queue entry up to this one.
    pub(super) fn is_waited_for(&self, seq: u64) -> Result<bool, StoreError> {
        const SELECT: &str = "SELECT EXISTS (SELECT 1 FROM outbox WHERE wait_for_seq > 0 AND wait_for_seq <= ?1)";
        Ok(self.query_row(SELECT, [seq], |row| row.get(0))?)
    }

    /// It did not work, for a reason of this row alone: count it, and try again at a later time.
    pub(crate) fn defer_task(&self, id: i64, not_before_ms: u64) -> Result<(), StoreError> {
        const UPDATE: &str = "UPDATE outbox SET attempts = attempts + 1, not_before_ms = ?2 WHERE id = ?1";
        self.execute(UPDATE, params![id, not_before_ms])?;
        Ok(())
    }

    /// The relay has refused it for a reason that should pass: count that, and try again at a later time.
    pub(crate) fn count_refusal(&self, id: i64, not_before_ms: u64) -> Result<(), StoreError> {
        self.execute("UPDATE outbox SET refusals = refusals + 1 WHERE id = ?1", [id])?;
        self.defer_task(id, not_before_ms)
    }

    /// The relay does not know of commits that were applied here: count that, and try again at a later time.
    pub(crate) fn count_setback(&self, id: i64, not_before_ms: u64) -> Result<(), StoreError> {
        self.execute("UPDATE outbox SET setbacks = setbacks + 1 WHERE id = ?1", [id])?;
        self.defer_task(id, not_before_ms)
    }

    /// The rows that were accepted and for whose own row others wait.
    pub(crate) fn awaiting_own_row(&self) -> Result<Vec<i64>, StoreError> {
        let mut select = self.prepare_cached("SELECT id FROM outbox WHERE state = 'accepted' AND blocks = 1")?;
        let rows = select.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
        Ok(rows)
    }

    /// The own row of one that was accepted was missed: start over, if it waits for it still.
    pub(crate) fn start_over(&self, id: i64) -> Result<(), StoreError> {
        self.execute("UPDATE outbox SET state = 'waiting' WHERE id = ?1 AND state = 'accepted'", [id])?;
        self.changes.work.set(true);
        Ok(())
    }

    /// The row is done, one way or the other. Whoever waits for it is told once the transaction has committed.
    pub(crate) fn finish_task(&self, id: i64, outcome: Result<(), Error>) -> Result<(), StoreError> {
        self.execute("DELETE FROM outbox WHERE id = ?1", [id])?;
        self.changes.work.set(true);
        self.changes.finished.borrow_mut().push((id, outcome));
        Ok(())
    }

    /// Tells how a row of this transaction ends.
    pub(crate) fn watch_task(&self, id: i64) -> oneshot::Receiver<Result<(), Error>> {
        let (sender, receiver) = oneshot::channel();
        self.changes.watched.borrow_mut().push((id, sender));
        receiver
    }
}

fn row_from(row: &Row<'_>) -> rusqlite::Result<OutboxRow> {
    let content_id = bytes_if_any(row, 3)?;
    let posted = match row.get::<_, Option<Vec<u8>>>(7)? {
        Some(request) => Some((bytes(row, 6)?, request)),
        None => None,
    };
    let live = bytes_if_any(row, 10)?;
    Ok(OutboxRow {
        id: row.get(0)?,
        conversation: bytes(row, 1)?,
        live,
        task: cbor(row, 2)?,
        content_id,
        state: OutboxState::from_row(row, 4)?,
        attempts: row.get(5)?,
        refusals: row.get(8)?,
        setbacks: row.get(9)?,
        posted,
    })
}
