//! A group, as an app handles it.

use std::ops::Deref;

use futures_util::future::BoxFuture;
use undertone_wire::{AccountId, GroupId};

use super::{Conversation, GroupSummary, accept, contact, decline, know, usable};
use crate::{
    Client, Error,
    crypto::{
        Members, Suite,
        group::{self, NAME_BYTES_MAX, Profile},
    },
    event::Connection,
    message::Body,
    store::{GroupRow, GroupState, StoreError, Task, Tx},
    sync::no_connection,
};

/// A handle to a group; cheap to clone. What it has in common with other conversations is in [`Conversation`].
#[derive(Clone)]
pub struct Group {
    conversation: Conversation,
    id: GroupId,
}

/// A group that is to be created; it is when this is awaited ([`Client::create_group`]).
#[must_use = "a group is created when this is awaited"]
pub struct NewGroup<'a> {
    client: &'a Client,
    name: &'a str,
    suite: Suite,
}

impl<'a> NewGroup<'a> {
    pub(crate) fn new(client: &'a Client, name: &'a str) -> Self {
        Self { client, name, suite: Suite::default() }
    }

    /// Its keys are agreed on with ML-KEM-768 beside X25519 (suite 0x004F of draft-ietf-mls-pq-ciphersuites), so that who
    /// records its messages now cannot read them by a quantum computer later. Signatures stay as they are. It has at most 100
    /// devices, and its commits are some twenty times as large.
    pub fn post_quantum(self) -> Self {
        Self { suite: Suite::Hybrid, ..self }
    }
}

impl<'a> IntoFuture for NewGroup<'a> {
    type Output = Result<Group, Error>;
    type IntoFuture = BoxFuture<'a, Result<Group, Error>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(Group::create(self.client.clone(), self.name, self.suite))
    }
}

impl Deref for Group {
    type Target = Conversation;

    fn deref(&self) -> &Conversation {
        &self.conversation
    }
}

impl Group {
    pub(crate) fn new(client: Client, id: GroupId) -> Self {
        Self { conversation: Conversation::new(client, id.into()), id }
    }

    async fn create(client: Client, name: &str, suite: Suite) -> Result<Self, Error> {
        let name = checked_name(name)?;
        let engine = client.engine();
        let id = GroupId::from_random(engine.entropy.bytes()?);
        engine
            .store
            .with_tx(move |tx| {
                let identity = tx.identity()?;
                let profile = Profile { name: name.clone(), continues: None };
                let created = group::create(&tx.mls(), &identity, suite, id, &profile)?;
                let rejoin_key = created.rejoin_key;
                let state = GroupState::Active;
                tx.save_group(&GroupRow { id, live: id, suite, name, state, commit_seq: 0, rejoin_key })?;
                tx.save_members(id, &Members::from([(identity.member(), identity.mls_key())]), |_| true)?;
                let sealed_group_info = created.sealed_group_info;
                tx.add_task(id, &Task::Create { sealed_group_info }, None, 0)?;
                let account = identity.account();
                if tx.listed(account)?.is_some_and(|listed| listed.devices.len() > 1) {
                    tx.add_task(id, &Task::Add { account }, None, 0)?;
                }
                Ok::<_, Error>(())
            })
            .await?;
        Ok(Self::new(client, id))
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

    /// Adds all devices of an account, and returns once they are members.
    ///
    /// # Errors
    /// [`Error::NoKeyPackages`] if none of its devices can be added now, [`Error::Offline`] if the relay is away when
    /// this is called, [`Error::OtherRelay`] if another one is in its place. If it goes away later, this waits for its
    /// return.
    pub async fn add(&self, who: AccountId) -> Result<(), Error> {
        self.change_with(Task::Add { account: who }, move |tx, id| {
            accept(tx, id.into())?;
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
        if who == self.engine().identity().account() {
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

    /// Leaves with all devices of this account, and returns once that is done. The history stays.
    ///
    /// # Errors
    /// As for [`Group::add`].
    pub async fn leave(&self) -> Result<(), Error> {
        let draft = self.draft()?;
        let content =
            self.engine().store.with_tx(move |tx| Ok::<_, Error>(draft.content(tx, Body::Leave {})?.encode())).await?;
        self.change_with(Task::Leave { content }, |tx, id| decline(tx, id.into())).await
    }

    async fn change(&self, task: Task) -> Result<(), Error> {
        self.change_with(task, |tx, id| accept(tx, id.into())).await
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
                usable(tx, id.into())?;
                before(tx, id)?;
                let row = tx.add_task(id, &task, None, 0)?;
                Ok::<_, Error>(tx.watch_task(row))
            })
            .await?;
        outcome.await.map_err(|_| Error::Closed)?
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
        post_quantum: group.suite == Suite::Hybrid,
    })
}
