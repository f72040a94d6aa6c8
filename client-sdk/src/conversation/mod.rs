//! Conversations: the app's verbs. They write to the local store and return; the engine does the rest.
//!
//! Invariant: nothing here awaits the network, except where a person waits for the outcome of a change of members.

mod group;

pub(crate) use group::summary;
pub use group::{Group, NewGroup};

use undertone_wire::{AccountId, GroupId, MessageId};

use crate::{
    Client, Error,
    conversation_id::ConversationId,
    event::Contact,
    message::{Body, Content, DIRECT_TEXT_BYTES_MAX, Message, MessageBody, TEXT_BYTES_MAX},
    store::{
        GroupState, HistoryPage, MessageRow, MessageStatus, OutboxState, Standing, Store, StoreError, Task, Tx,
        WORDS_MAX, Words,
    },
    sync::{
        Engine,
        ephemeral::{self, Passing},
        receipts,
    },
};

/// Longest text to search for, in bytes.
const SEARCH_BYTES_MAX: usize = 1_024;

/// Most messages in one page of history, or found at once.
const PAGE_MAX: usize = 1_000;

/// A handle to a conversation; cheap to clone. What only groups have is in [`Group`].
#[derive(Clone)]
pub struct Conversation {
    client: Client,
    id: ConversationId,
}

impl Conversation {
    pub(crate) fn new(client: Client, id: ConversationId) -> Self {
        Self { client, id }
    }

    fn engine(&self) -> &Engine {
        self.client.engine()
    }

    /// The conversation's id.
    pub fn id(&self) -> ConversationId {
        self.id
    }

    /// What to call it: a group's name, or `@` and the name of the account with which it is.
    pub async fn name(&self) -> Result<String, Error> {
        let id = self.id;
        let name = self.engine().store.with_tx(move |tx| match id {
            ConversationId::Group(group) => Ok(tx.group(group)?.ok_or(Error::UnknownGroup)?.name),
            ConversationId::Direct(account) => Ok::<_, Error>(format!("@{}", contact(tx, account)?.name())),
        });
        name.await
    }

    /// Sends text to all who are in it. Returns at once, online or not; [`Event::MessageStatus`](crate::Event::MessageStatus)
    /// tells when the relay has it.
    ///
    /// # Errors
    /// [`Error::NotMember`] or [`Error::GroupStuck`] if it is a group that cannot be used, [`Error::Invalid`] if the text is
    /// empty or longer than 240 KiB (16 KiB in a direct conversation), or the account is blocked.
    pub async fn send(&self, text: impl Into<String>) -> Result<MessageId, Error> {
        let text = text.into();
        let bytes_max = if self.id.account().is_some() { DIRECT_TEXT_BYTES_MAX } else { TEXT_BYTES_MAX };
        if text.is_empty() || text.len() > bytes_max {
            return Err(Error::Invalid(format!("a message has 1 to {bytes_max} bytes of text")));
        }
        if self.id == self.engine().identity().account().into() {
            return Err(Error::Invalid("a direct message is to another account".into()));
        }
        let draft = self.draft()?;
        let (id, sender, message_id) = (self.id, draft.author, draft.id);
        self.engine()
            .store
            .with_tx(move |tx| {
                usable(tx, id)?;
                begin(tx, id)?;
                accept(tx, id)?;
                let content = draft.content(tx, Body::Text { text })?;
                let encoded = content.encode();
                let row = MessageRow {
                    conversation: id,
                    content_id: content.id,
                    sender,
                    sent_at_ms: content.sent_at_ms,
                    status: MessageStatus::Queued,
                    content: encoded.clone(),
                };
                tx.add_message(&row)?;
                tx.add_task(id, &Task::Send { content: encoded }, Some(content.id), 0)?;
                Ok::<_, Error>(())
            })
            .await?;
        Ok(message_id)
    }

    /// Tells the others who are there that this account is writing a message here, by
    /// [`Event::Typing`](crate::Event::Typing). Now or never: nothing is kept for who is not there. While somebody
    /// writes, once in a few seconds is enough. In a direct conversation the other's devices are told to which this one has
    /// written before.
    ///
    /// # Errors
    /// [`Error::Offline`] if the relay cannot be reached.
    pub async fn typing(&self) -> Result<(), Error> {
        ephemeral::say(self.engine(), self.id, Passing::Typing {}).await
    }

    /// Accepts what a stranger has begun by adding this account to a group ([`GroupSummary::requested_by`]); that one is no
    /// stranger from now on. Sending something, or changing the group, does the same.
    ///
    /// # Errors
    /// [`Error::UnknownGroup`] if there is no such conversation.
    pub async fn accept(&self) -> Result<(), Error> {
        let id = self.id;
        self.engine()
            .store
            .with_tx(move |tx| {
                if !tx.has_conversation(id)? {
                    return Err(Error::UnknownGroup);
                }
                Ok(accept(tx, id)?)
            })
            .await
    }

    /// Declines that, which is to leave a group; who writes directly again asks again. Who should not add this account
    /// again is blocked ([`Client::block`]).
    ///
    /// # Errors
    /// As for [`Group::leave`].
    pub async fn decline(&self) -> Result<(), Error> {
        match self.id {
            ConversationId::Group(group) => self.client.group(group).leave().await,
            id @ ConversationId::Direct(_) => {
                self.engine().store.with_tx(move |tx| decline(tx, id).map_err(Error::from)).await
            }
        }
    }

    /// A page of the history, oldest first: the newest `limit` messages, or those before the message `before`.
    ///
    /// # Errors
    /// [`Error::UnknownMessage`] if `before` is not in it.
    pub async fn history(&self, limit: usize, before: Option<MessageId>) -> Result<Vec<Message>, Error> {
        let id = self.id;
        let page = HistoryPage { limit: limit.min(PAGE_MAX), before };
        self.engine()
            .store
            .with_tx(move |tx| {
                let rows = tx.history(id, page)?.ok_or(Error::UnknownMessage)?;
                rows.into_iter().map(|row| message(tx, row).map_err(Error::from)).collect()
            })
            .await
    }

    /// The messages that have all of these words, or words that begin with them, the newest first: at most `limit`, and
    /// 1,000. Without a connection. Upper case and accents do not matter. Where a script has no spaces between words, the
    /// beginning of each run of letters is found.
    ///
    /// # Errors
    /// [`Error::Invalid`] if there is no word, or more than 16, or more than 1,024 bytes of them.
    pub async fn search(&self, words: &str, limit: usize) -> Result<Vec<Message>, Error> {
        search(&self.engine().store, words, Some(self.id), limit).await
    }

    /// Sends a message after all that has failed ([`MessageStatus::Failed`]), as the newest. It keeps its id.
    ///
    /// # Errors
    /// [`Error::UnknownMessage`] if there is no such message, and as for [`Conversation::send`].
    pub async fn retry(&self, message: MessageId) -> Result<(), Error> {
        let id = self.id;
        self.engine()
            .store
            .with_tx(move |tx| {
                usable(tx, id)?;
                accept(tx, id)?;
                let content = tx.queue_again(id, message)?.ok_or(Error::UnknownMessage)?;
                tx.add_task(id, &Task::Send { content }, Some(message), 0)?;
                Ok::<_, Error>(())
            })
            .await
    }

    /// Forgets a message that has failed ([`MessageStatus::Failed`]): it is in the history no more.
    ///
    /// # Errors
    /// [`Error::UnknownMessage`] if there is no such message.
    pub async fn discard(&self, message: MessageId) -> Result<(), Error> {
        let id = self.id;
        let forgotten = self.engine().store.with_tx(move |tx| tx.forget_failed(id, message).map_err(Error::from));
        if forgotten.await? { Ok(()) } else { Err(Error::UnknownMessage) }
    }

    /// Says that all messages up to this one, and this one, were read. Their authors are told, unless it is a
    /// group with more than 32 devices. An app that does not want that does not call this.
    ///
    /// # Errors
    /// [`Error::UnknownMessage`] if it is not in this history.
    pub async fn mark_read(&self, message: MessageId) -> Result<(), Error> {
        let (id, now_ms) = (self.id, self.engine().clock.now_ms());
        self.engine()
            .store
            .with_tx(move |tx| {
                if tx.note_read(id, message)?.ok_or(Error::UnknownMessage)? && usable(tx, id).is_ok() {
                    receipts::plan(tx, id, now_ms)?;
                }
                Ok(())
            })
            .await
    }

    fn draft(&self) -> Result<Draft, Error> {
        let engine = self.engine();
        let author = engine.identity().account();
        Ok(Draft { id: engine.message_id()?, author, sent_at_ms: engine.clock.now_ms() })
    }
}

impl std::fmt::Debug for Conversation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Conversation").field("id", &self.id).finish_non_exhaustive()
    }
}

/// What this device is about to write.
struct Draft {
    id: MessageId,
    author: AccountId,
    sent_at_ms: u64,
}

impl Draft {
    fn content(&self, tx: &Tx<'_>, body: Body) -> Result<Content, StoreError> {
        let list_version = tx.list_version(self.author)?;
        Ok(Content { id: self.id, sent_at_ms: self.sent_at_ms, list_version, body })
    }
}

/// Who is written to is known from then on.
pub(crate) fn begin(tx: &Tx<'_>, conversation: ConversationId) -> Result<(), StoreError> {
    match conversation {
        ConversationId::Group(_) => Ok(()),
        ConversationId::Direct(account) => {
            tx.add_conversation(conversation)?;
            know(tx, account)
        }
    }
}

/// Whoever has begun the conversation is known now.
pub(crate) fn accept(tx: &Tx<'_>, conversation: ConversationId) -> Result<(), StoreError> {
    if let Some(by) = tx.requested_by(conversation)? {
        know(tx, by)?;
        tx.set_requested(conversation, None)?;
    }
    Ok(())
}

/// What was planned in a conversation that is requested is not wanted by who leaves it.
fn decline(tx: &Tx<'_>, conversation: ConversationId) -> Result<(), StoreError> {
    if tx.requested_by(conversation)?.is_some() {
        for row in tx.tasks(conversation)?.iter().filter(|row| row.state == OutboxState::Waiting) {
            tx.finish_task(row.id, Err(Error::NotMember))?;
        }
        tx.set_requested(conversation, None)?;
    }
    Ok(())
}

/// The user has to do with this account by their own will. A blocked one stays so.
fn know(tx: &Tx<'_>, account: AccountId) -> Result<(), StoreError> {
    match tx.standing(account)? {
        Standing::Stranger => tx.set_standing(account, Standing::Known),
        Standing::Known | Standing::Blocked => Ok(()),
    }
}

fn usable(tx: &Tx<'_>, conversation: ConversationId) -> Result<(), Error> {
    let group = match conversation {
        ConversationId::Group(group) => group,
        ConversationId::Direct(account) if tx.standing(account)? == Standing::Blocked => {
            return Err(Error::Invalid("this account is blocked: unblock it first".into()));
        }
        ConversationId::Direct(_) => return Ok(()),
    };
    match tx.group(group)?.map(|group| group.state) {
        Some(GroupState::Active | GroupState::Recovering) => Ok(()),
        Some(GroupState::Stuck) => Err(Error::GroupStuck),
        Some(GroupState::Left | GroupState::Removed) => Err(Error::NotMember),
        None => Err(Error::UnknownGroup),
    }
}

/// What an account is called here, even if it was never looked up.
pub(crate) fn contact(tx: &Tx<'_>, account_id: AccountId) -> Result<Contact, StoreError> {
    Ok(tx.contact(account_id)?.unwrap_or(Contact { account_id, username: None }))
}

/// A message as an app sees it.
pub(crate) fn message(tx: &Tx<'_>, row: MessageRow) -> Result<Message, StoreError> {
    let body = Content::decode(row.content.as_slice()).map_or(MessageBody::Unsupported, |content| content.body.into());
    Ok(Message {
        conversation: row.conversation,
        message_id: row.content_id,
        from: contact(tx, row.sender)?,
        sent_at_ms: row.sent_at_ms,
        status: row.status,
        body,
    })
}

/// The messages that have these words, in one conversation or all, the newest first.
pub(crate) async fn search(
    store: &Store,
    typed: &str,
    within: Option<ConversationId>,
    limit: usize,
) -> Result<Vec<Message>, Error> {
    if typed.len() > SEARCH_BYTES_MAX {
        return Err(Error::Invalid(format!("what is searched for has at most {SEARCH_BYTES_MAX} bytes")));
    }
    let none = || Error::Invalid(format!("what is searched for is 1 to {WORDS_MAX} words"));
    let words = Words::new(typed).ok_or_else(none)?;
    let found = store.with_tx(move |tx| {
        let rows = tx.search(&words, within, limit.min(PAGE_MAX))?;
        rows.into_iter().map(|row| message(tx, row).map_err(Error::from)).collect()
    });
    found.await
}

/// What a list of direct conversations shows.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DirectSummary {
    /// The account with which it is.
    pub with: Contact,
    /// Whether that is a stranger, who has begun it and is told nothing until the app accepts or declines that.
    pub requested: bool,
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
    /// Whether it is post-quantum ([`NewGroup::post_quantum`]).
    pub post_quantum: bool,
}
