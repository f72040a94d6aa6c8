//! A group, as an app handles it.

use undertone_wire::{AccountId, GroupId, MessageId};

use super::{GroupSummary, PAGE_MAX, contact, message, search};
use crate::{
    Client, Error,
    crypto::Member,
    crypto::group::{self, NAME_BYTES_MAX, Profile},
    event::Connection,
    message::{Body, Content, Message, TEXT_BYTES_MAX},
    store::{
        GroupRow, GroupState, HistoryPage, MessageRow, MessageStatus, OutboxState, Standing, StoreError, Task, Tx,
    },
    sync::{
        Engine,
        ephemeral::{self, Passing},
        no_connection, receipts,
    },
};

/// A handle to a group; cheap to clone.
#[derive(Clone)]
pub struct Group {
    client: Client,
    id: GroupId,
}

impl Group {
    pub(crate) fn new(client: Client, id: GroupId) -> Self {
        Self { client, id }
    }

    fn engine(&self) -> &Engine {
        self.client.engine()
    }

    pub(crate) async fn create(client: Client, name: &str) -> Result<Self, Error> {
        let name = checked_name(name)?;
        let engine = client.engine();
        let id = GroupId::from_random(engine.entropy.bytes()?);
        let identity = engine.identity.clone();
        engine
            .store
            .with_tx(move |tx| {
                let created =
                    group::create(&tx.mls(), &identity, id, &Profile { name: name.clone(), continues: None })?;
                let rejoin_key = created.rejoin_key;
                let state = GroupState::Active;
                tx.save_group(&GroupRow { id, live: id, name, state, commit_seq: 0, rejoin_key })?;
                let own = Member { account: identity.account(), device: identity.device() };
                tx.save_members(id, &[own], &[])?;
                let sealed_group_info = created.sealed_group_info;
                tx.add_task(id, &Task::Create { sealed_group_info }, None, 0)?;
                Ok::<_, Error>(())
            })
            .await?;
        Ok(Self { client, id })
    }

    /// The group's id.
    pub fn id(&self) -> GroupId {
        self.id
    }

    /// The group's name, members and whether it can be used.
    pub async fn summary(&self) -> Result<GroupSummary, Error> {
        let id = self.id;
        self.engine().store.with_tx(move |tx| summary(tx, tx.group(id)?.ok_or(Error::UnknownGroup)?)).await
    }

    /// Sends text to all members. Returns at once, online or not; [`Event::MessageStatus`](crate::Event::MessageStatus)
    /// tells when the relay has it.
    ///
    /// # Errors
    /// [`Error::NotMember`] or [`Error::GroupStuck`] if the group cannot be used, [`Error::Invalid`] if the text is
    /// empty or longer than 240 KiB.
    pub async fn send(&self, text: impl Into<String>) -> Result<MessageId, Error> {
        let text = text.into();
        if text.is_empty() || text.len() > TEXT_BYTES_MAX {
            return Err(Error::Invalid(format!("a message has 1 to {TEXT_BYTES_MAX} bytes of text")));
        }
        let content = self.content(Body::Text { text })?;
        let (id, sender, message_id) = (self.id, self.engine().identity.account(), content.id);
        self.engine()
            .store
            .with_tx(move |tx| {
                usable(tx, id)?;
                accept(tx, id)?;
                let encoded = content.encode();
                let row = MessageRow {
                    group_id: id,
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

    /// Tells the members who are there that this account is writing a message here, by
    /// [`Event::Typing`](crate::Event::Typing). Now or never: nothing is kept for who is not there. While somebody
    /// writes, once in a few seconds is enough.
    ///
    /// # Errors
    /// [`Error::Offline`] if the relay cannot be reached.
    pub async fn typing(&self) -> Result<(), Error> {
        ephemeral::say(self.engine(), self.id, Passing::Typing {}).await
    }

    /// Adds all devices of an account, and returns once they are members.
    ///
    /// # Errors
    /// [`Error::NoKeyPackages`] if none of its devices can be added now, [`Error::Offline`] if the relay is away when
    /// this is called, [`Error::OtherRelay`] if another one is in its place. If it goes away later, this waits for its
    /// return.
    pub async fn add(&self, who: AccountId) -> Result<(), Error> {
        self.change_with(Task::Add { account: who }, move |tx, id| {
            accept(tx, id)?;
            know(tx, who)
        })
        .await
    }

    /// Removes all devices of an account, and returns once they are no longer members.
    ///
    /// # Errors
    /// [`Error::NoSuchMember`] if the account is not a member, and as for [`Group::add`].
    pub async fn remove(&self, who: AccountId) -> Result<(), Error> {
        let id = self.id;
        if !self.engine().store.with_tx(move |tx| tx.has_member(id, who).map_err(Error::from)).await? {
            return Err(Error::NoSuchMember);
        }
        if who == self.engine().identity.account() {
            return Err(Error::Invalid("to remove yourself, leave the group".into()));
        }
        self.change(Task::Remove { account: who }).await
    }

    /// Gives the group another name, and returns once all have it.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the name is empty or longer than 256 bytes, and as for [`Group::add`].
    pub async fn rename(&self, name: &str) -> Result<(), Error> {
        self.change(Task::Rename { name: checked_name(name)? }).await
    }

    /// Accepts that a stranger has added this account ([`GroupSummary::requested_by`]); that one is no stranger from
    /// now on. Sending something, or changing the group, does the same.
    ///
    /// # Errors
    /// [`Error::UnknownGroup`] if there is no such group.
    pub async fn accept(&self) -> Result<(), Error> {
        let id = self.id;
        self.engine()
            .store
            .with_tx(move |tx| {
                tx.group(id)?.ok_or(Error::UnknownGroup)?;
                Ok(accept(tx, id)?)
            })
            .await
    }

    /// Declines that, which is to leave. Who should not add this account again is blocked ([`Client::block`]).
    ///
    /// # Errors
    /// As for [`Group::leave`].
    pub async fn decline(&self) -> Result<(), Error> {
        self.leave().await
    }

    /// Leaves with all devices of this account, and returns once that is done. The history stays.
    ///
    /// # Errors
    /// As for [`Group::add`].
    pub async fn leave(&self) -> Result<(), Error> {
        let content = self.content(Body::Leave {})?.encode();
        self.change_with(Task::Leave { content }, decline).await
    }

    /// A page of the history, oldest first: the newest `limit` messages, or those before the message `before`.
    ///
    /// # Errors
    /// [`Error::UnknownMessage`] if `before` is not in this group's history.
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
    /// [`Error::UnknownMessage`] if there is no such message, and as for [`Group::send`].
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

    /// Says that all messages up to this one, and this one, were read. Their authors are told, unless the group has
    /// more than 32 devices. An app that does not want that does not call this.
    ///
    /// # Errors
    /// [`Error::UnknownMessage`] if it is not in this group's history.
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

    async fn change(&self, task: Task) -> Result<(), Error> {
        self.change_with(task, accept).await
    }

    async fn change_with(
        &self,
        task: Task,
        before: impl FnOnce(&Tx<'_>, GroupId) -> Result<(), StoreError> + Send + 'static,
    ) -> Result<(), Error> {
        // Decided on what the group is now, not on what it was when this device last looked.
        let mut connection = self.engine().connection();
        let settled = connection.wait_for(|state| !matches!(state, Connection::Connecting | Connection::CatchingUp));
        let online = tokio::select! {
            state = settled => state.is_ok_and(|state| *state == Connection::Online),
            () = self.engine().stopped() => return Err(Error::Closed),
        };
        if !online && self.engine().api.all_strange() {
            return Err(Error::OtherRelay);
        }
        if !online {
            return Err(no_connection());
        }
        let id = self.id;
        let outcome = self
            .engine()
            .store
            .with_tx(move |tx| {
                usable(tx, id)?;
                before(tx, id)?;
                let row = tx.add_task(id, &task, None, 0)?;
                Ok::<_, Error>(tx.watch_task(row))
            })
            .await?;
        outcome.await.map_err(|_| Error::Closed)?
    }

    fn content(&self, body: Body) -> Result<Content, Error> {
        let engine = self.engine();
        let list_version = engine.identity.list_version()?;
        Ok(Content { id: engine.message_id()?, sent_at_ms: engine.clock.now_ms(), list_version, body })
    }
}

fn checked_name(name: &str) -> Result<String, Error> {
    let name = name.trim();
    if name.is_empty() || name.len() > NAME_BYTES_MAX {
        return Err(Error::Invalid(format!("a group's name has 1 to {NAME_BYTES_MAX} bytes")));
    }
    Ok(name.to_owned())
}

impl std::fmt::Debug for Group {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Group").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Whoever asked by adding this account is known now.
fn accept(tx: &Tx<'_>, group: GroupId) -> Result<(), StoreError> {
    if let Some(by) = tx.requested_by(group)? {
        know(tx, by)?;
        tx.set_requested(group, None)?;
    }
    Ok(())
}

/// What was planned in a group that is requested is not wanted by who leaves it.
fn decline(tx: &Tx<'_>, group: GroupId) -> Result<(), StoreError> {
    if tx.requested_by(group)?.is_some() {
        for row in tx.tasks(group)?.iter().filter(|row| row.state == OutboxState::Waiting) {
            tx.finish_task(row.id, Err(Error::NotMember))?;
        }
        tx.set_requested(group, None)?;
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

fn usable(tx: &Tx<'_>, group: GroupId) -> Result<(), Error> {
    match tx.group(group)?.map(|group| group.state) {
        Some(GroupState::Active | GroupState::Recovering) => Ok(()),
        Some(GroupState::Stuck) => Err(Error::GroupStuck),
        Some(GroupState::Left | GroupState::Removed) => Err(Error::NotMember),
        None => Err(Error::UnknownGroup),
    }
}

pub(crate) fn summary(tx: &Tx<'_>, group: GroupRow) -> Result<GroupSummary, Error> {
    let accounts = tx.member_accounts(group.id)?;
    let members = accounts.into_iter().map(|account| contact(tx, account)).collect::<Result<_, _>>()?;
    let requested_by = tx.requested_by(group.id)?.map(|by| contact(tx, by)).transpose()?;
    Ok(GroupSummary {
        group_id: group.id,
        name: group.name,
        active: matches!(group.state, GroupState::Active | GroupState::Recovering),
        requested_by,
        members,
    })
}
