//! Whom the user knows, who is blocked, and conversations that a stranger has begun.
//!
//! Invariant: in a conversation that is requested nothing is done that others could see, until the user accepts it or
//! does something there.

use rusqlite::{OptionalExtension as _, params};
use undertone_wire::AccountId;

use super::{StoreError, Tx, bytes};
use crate::conversation_id::ConversationId;

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

    /// What the user has said of accounts: that they are known (`false`), or blocked (`true`).
    pub(crate) fn standings(&self) -> Result<Vec<(AccountId, bool)>, StoreError> {
        let mut select = self.prepare_cached("SELECT account, blocked FROM standings ORDER BY account")?;
        let said = select.query_map([], |row| Ok((bytes(row, 0)?, row.get(1)?)))?.collect::<Result<_, _>>()?;
        Ok(said)
    }

    /// Whether an account has written so many messages in a conversation, or so many bytes, or more.
    pub(crate) fn has_written_so_much(
        &self,
        conversation: impl Into<ConversationId>,
        account: AccountId,
        messages: u64,
        bytes: u64,
    ) -> Result<bool, StoreError> {
        const SELECT: &str = "SELECT count(*) >= ?3 OR coalesce(sum(length(content)), 0) >= ?4 FROM messages
            WHERE conversation = ?1 AND sender = ?2";
        let conversation = conversation.into();
        let of = params![conversation.as_bytes(), account.as_bytes(), messages, bytes];
        Ok(self.query_row(SELECT, of, |row| row.get(0))?)
    }

    /// The accounts that are blocked, in ascending order.
    pub(crate) fn blocked(&self) -> Result<Vec<AccountId>, StoreError> {
        let mut select = self.prepare_cached("SELECT account FROM standings WHERE blocked = 1 ORDER BY account")?;
        let blocked = select.query_map([], |row| bytes(row, 0))?.collect::<Result<_, _>>()?;
        Ok(blocked)
    }

    /// The stranger who has begun a conversation that the user has not accepted.
    pub(crate) fn requested_by(
        &self,
        conversation: impl Into<ConversationId>,
    ) -> Result<Option<AccountId>, StoreError> {
        const SELECT: &str = "SELECT requested_by FROM conversations WHERE id = ?1 AND requested_by IS NOT NULL";
        Ok(self.query_row(SELECT, [conversation.into().as_bytes()], |row| bytes(row, 0)).optional()?)
    }

    /// A conversation is requested by a stranger, or accepted. What waits for that goes on.
    pub(crate) fn set_requested(
        &self,
        conversation: impl Into<ConversationId>,
        by: Option<AccountId>,
    ) -> Result<(), StoreError> {
        const UPDATE: &str = "UPDATE conversations SET requested_by = ?2 WHERE id = ?1 AND requested_by IS NOT ?2";
        let by = by.as_ref().map(|by| by.as_bytes().as_slice());
        if self.execute(UPDATE, params![conversation.into().as_bytes(), by])? > 0 {
            self.changes.work.set(true);
        }
        Ok(())
    }
}
