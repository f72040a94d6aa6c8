//! Conversations: the app's verbs. They write to the local store and return; the engine does the rest.
//!
//! Invariant: nothing here awaits the network, except where a person waits for the outcome of a change of members.

mod group;

pub use group::Group;
pub(crate) use group::summary;

use undertone_wire::{AccountId, GroupId};

use crate::{
    Error,
    event::Contact,
    message::{Content, Message, MessageBody},
    store::{MessageRow, Store, StoreError, Tx, WORDS_MAX, Words},
};

/// What an account is called here, even if it was never looked up.
pub(crate) fn contact(tx: &Tx<'_>, account_id: AccountId) -> Result<Contact, StoreError> {
    Ok(tx.contact(account_id)?.unwrap_or(Contact { account_id, username: None }))
}

/// A message as an app sees it.
pub(crate) fn message(tx: &Tx<'_>, row: MessageRow) -> Result<Message, StoreError> {
    let body = Content::decode(row.content.as_slice()).map_or(MessageBody::Unsupported, |content| content.body.into());
    Ok(Message {
        group_id: row.group_id,
        message_id: row.content_id,
        from: contact(tx, row.sender)?,
        sent_at_ms: row.sent_at_ms,
        status: row.status,
        body,
    })
}

/// Longest text to search for, in bytes.
const SEARCH_BYTES_MAX: usize = 1_024;

/// Most messages in one page of history, or found at once.
const PAGE_MAX: usize = 1_000;

/// The messages that have these words, in one group or all, the newest first.
pub(crate) async fn search(
    store: &Store,
    typed: &str,
    group: Option<GroupId>,
    limit: usize,
) -> Result<Vec<Message>, Error> {
    if typed.len() > SEARCH_BYTES_MAX {
        return Err(Error::Invalid(format!("what is searched for has at most {SEARCH_BYTES_MAX} bytes")));
    }
    let none = || Error::Invalid(format!("what is searched for is 1 to {WORDS_MAX} words"));
    let words = Words::new(typed).ok_or_else(none)?;
    let found = store.with_tx(move |tx| {
        let rows = tx.search(&words, group, limit.min(PAGE_MAX))?;
        rows.into_iter().map(|row| message(tx, row).map_err(Error::from)).collect()
    });
    found.await
}

/// What a list of groups shows.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct GroupSummary {
    /// The group.
    pub group_id: GroupId,
    /// Its name.
    pub name: String,
    /// Whether this device is a member and can send.
    pub active: bool,
    /// The stranger who has added this account, until the app accepts or declines that.
    pub requested_by: Option<Contact>,
    /// The accounts that are members, as of the last thing this device knows.
    pub members: Vec<Contact>,
}
