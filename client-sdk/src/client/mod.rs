//! The client: finding people, groups and conversations, what happens, and shutting down; [`devices`] and [`trust`] are its
//! further verbs.

mod devices;
mod trust;

use std::{path::Path, sync::Arc, time::Duration};

use tokio::sync::Mutex;
use undertone_api::RelayApi as _;
use undertone_wire::{AccountId, DeviceId, GroupId, MessageId, Username};

use crate::{
    ClientBuilder, Error,
    api::Addresses,
    clock::Clock,
    conversation::{self, Conversation, DirectSummary, Group, GroupSummary, NewGroup},
    conversation_id::ConversationId,
    crypto::Entropy,
    event::{Connection, Contact},
    events::{Events, Place},
    message::Message,
    store::{MessageStatus, Profile, Standing, Store, StoreKey},
    sync::{Engine, Tasks, unknown_account},
};

/// How long catching up waits for the names of those who are new.
const LOOK_UP_MAX: Duration = Duration::from_secs(2);

/// This device's account at a relay; cheap to clone. It stops at once when the last clone is dropped, and every
/// [`Group`] and [`Events`] made from it; [`Client::shutdown`] stops it in order.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    engine: Arc<Engine>,
    profile: Profile,
    events: Mutex<Place>,
    tasks: Mutex<Tasks>,
}

impl Client {
    /// Starts building a client for the relay at `relay`: a connection string as the relay shows it (`undertone://...`,
    /// with an invite or without), an `https://` URL, or for a relay on this machine an `http://` URL.
    pub fn builder(relay: impl Into<String>) -> ClientBuilder {
        ClientBuilder::at(vec![relay.into()])
    }

    /// Opens the store of an account that was registered before, at the relay it was registered at.
    ///
    /// # Errors
    /// [`Error::NotRegistered`] if the store holds no account, [`Error::WrongKey`], [`Error::StoreInUse`].
    pub async fn open(path: impl AsRef<Path>, key: StoreKey) -> Result<Self, Error> {
        ClientBuilder::at(vec![]).store(path, key).open().await
    }

    /// Opens the store of an account for reading, without a connection: the engine is not started, so that nothing is
    /// received, and what is written waits until the store is opened otherwise.
    ///
    /// # Errors
    /// As for [`Client::open`].
    pub async fn open_offline(path: impl AsRef<Path>, key: StoreKey) -> Result<Self, Error> {
        ClientBuilder::at(vec![])
            .store(path, key)
            .open_with(|engine| {
                engine.set_connection(Connection::Offline);
                Tasks::new()
            })
            .await
    }

    /// Who this is.
    pub fn account(&self) -> Contact {
        Contact { account_id: self.engine().identity().account(), username: self.inner.profile.username.clone() }
    }

    /// This device.
    pub fn device_id(&self) -> DeviceId {
        self.engine().identity().device()
    }

    /// Finds an account by its username or the text of its id. Offline, accounts seen before are found.
    ///
    /// # Errors
    /// [`Error::UnknownAccount`] if the relay knows no such account.
    pub async fn find(&self, who: &str) -> Result<Contact, Error> {
        match self.find_online(who).await {
            Err(error @ (Error::Offline(_) | Error::OtherRelay)) => {
                let known = self.contacts().await?;
                known.into_iter().find(|contact| is_called(contact, who)).ok_or(error)
            }
            found => found,
        }
    }

    async fn find_online(&self, who: &str) -> Result<Contact, Error> {
        let engine = self.engine();
        if let Ok(account) = who.parse::<AccountId>() {
            return Ok(engine.learn(account).await?.0);
        }
        let username = &who.parse::<Username>().map_err(|error| Error::Invalid(error.to_string()))?;
        let found = engine.signed_in(|token| async move { engine.api.account_by_username(&token, username).await });
        let account = found.await.map_err(unknown_account)?;
        if account.username.as_ref() != Some(username) {
            return Err(Error::Untrusted("the relay answered about another name".into()));
        }
        Ok(engine.remember(account.account_id, account).await?.0)
    }

    /// All accounts this device has seen, by name.
    pub async fn contacts(&self) -> Result<Vec<Contact>, Error> {
        self.engine().store.with_tx(|tx| tx.contacts().map_err(Error::from)).await
    }

    /// Says that this account is known: that it adds this one to a group is no request. [`Group::add`] and
    /// [`Conversation::accept`] say so too. Ends [`Client::block`].
    pub async fn know(&self, account: AccountId) -> Result<(), Error> {
        self.set_standing(account, Standing::Known).await
    }

    /// From now on nothing of this account is to be seen: groups to which it adds this one are passed over, and so is
    /// what it writes elsewhere. It is not told: at the relay, this account is a member of such a group all the same,
    /// which counts for the relay's limit of groups. This holds on this device: tell the account's others the same.
    pub async fn block(&self, account: AccountId) -> Result<(), Error> {
        self.set_standing(account, Standing::Blocked).await
    }

    /// Ends [`Client::block`]: the account is a stranger again.
    pub async fn unblock(&self, account: AccountId) -> Result<(), Error> {
        self.set_standing(account, Standing::Stranger).await
    }

    /// The accounts that are blocked.
    pub async fn blocked(&self) -> Result<Vec<Contact>, Error> {
        let store = &self.engine().store;
        store.with_tx(|tx| tx.blocked()?.into_iter().map(|one| Ok(conversation::contact(tx, one)?)).collect()).await
    }

    async fn set_standing(&self, account: AccountId, standing: Standing) -> Result<(), Error> {
        self.engine().store.with_tx(move |tx| tx.set_standing(account, standing).map_err(Error::from)).await
    }

    /// Creates a group with this account as its only member, when it is awaited. Works offline.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the name is empty or longer than 256 bytes.
    pub fn create_group<'a>(&'a self, name: &'a str) -> NewGroup<'a> {
        NewGroup::new(self, name)
    }

    /// The messages of all conversations that have all of these words, or words that begin with them, the newest first: at most
    /// `limit`, and 1,000. Without a connection.
    ///
    /// # Errors
    /// As for [`Conversation::search`].
    pub async fn search(&self, words: &str, limit: usize) -> Result<Vec<Message>, Error> {
        conversation::search(&self.engine().store, words, None, limit).await
    }

    /// All groups in the store, those left included, by name.
    pub async fn groups(&self) -> Result<Vec<GroupSummary>, Error> {
        self.engine()
            .store
            .with_tx(|tx| tx.groups()?.into_iter().map(|group| conversation::summary(tx, group)).collect())
            .await
    }

    /// A handle to a group.
    pub fn group(&self, id: GroupId) -> Group {
        Group::new(self.clone(), id)
    }

    /// A handle to the direct conversation with an account. Who is written to is no stranger from then on.
    pub fn direct(&self, account: AccountId) -> Conversation {
        self.conversation(account.into())
    }

    /// The direct conversations in the store, by the names of the accounts.
    pub async fn directs(&self) -> Result<Vec<DirectSummary>, Error> {
        let own = self.engine().identity().account();
        self.engine()
            .store
            .with_tx(move |tx| {
                let summary =
                    |(account, requested)| Ok(DirectSummary { with: conversation::contact(tx, account)?, requested });
                // Among themselves the devices of this account are nothing to show.
                tx.directs()?.into_iter().filter(|(account, _)| *account != own).map(summary).collect()
            })
            .await
    }

    /// A handle to a conversation.
    pub fn conversation(&self, id: ConversationId) -> Conversation {
        Conversation::new(self.clone(), id)
    }

    /// What happens, in order. Whoever calls takes events from the same queue.
    pub fn events(&self) -> Events {
        Events::new(self.clone())
    }

    /// The state of the connection.
    pub fn connection(&self) -> Connection {
        *self.engine().connection().borrow()
    }

    /// The network has changed, as the operating system says: connected again, or by another way. An app that is told
    /// so passes it on, and the relay is tried at once instead of when its turn comes; a stream that is open is opened
    /// anew. While there is no connection, that the device has other addresses is noticed within a second without it.
    pub fn network_changed(&self) {
        self.engine().network_changed();
    }

    /// Whether what answers, at every address there is, is another relay than the one where the account is registered.
    /// The connection is then [`Connection::Offline`], and goes on when the relay is there again.
    pub fn meets_other_relay(&self) -> bool {
        self.engine().api.all_strange()
    }

    /// Waits until everything that was at the relay is here, with the names of those who are new, or `patience` ends,
    /// or the relay cannot be reached. Answers with the state of the connection then.
    pub async fn caught_up(&self, patience: Duration) -> Connection {
        let mut connection = self.engine().connection();
        let settled = connection.wait_for(|state| !matches!(state, Connection::Connecting | Connection::CatchingUp));
        let settled = tokio::time::timeout(patience, settled).await.is_ok_and(|state| state.is_ok());
        if settled && self.connection() == Connection::Online {
            // Who is new in a group has been looked up too, if the relay answers.
            drop(tokio::time::timeout(LOOK_UP_MAX, self.engine().looked_up()).await);
        }
        self.connection()
    }

    /// Waits until the relay has all that was to be sent, or `patience` ends. Answers with how much is left. What is
    /// done at a later time, as telling others what has come, does not count before that.
    pub async fn outbox_empty(&self, patience: Duration) -> Result<u64, Error> {
        let mut changed = self.engine().store.work_changed();
        let empty = async {
            loop {
                changed.mark_unchanged();
                let now_ms = self.engine().clock.now_ms();
                let empty = self.engine().store.with_tx(move |tx| tx.outbox_is_empty(now_ms).map_err(Error::from));
                if empty.await? {
                    return Ok(0);
                }
                if changed.changed().await.is_err() {
                    return self.outbox_len().await;
                }
            }
        };
        match tokio::time::timeout(patience, empty).await {
            Ok(left) => left,
            Err(_) => self.outbox_len().await,
        }
    }

    async fn outbox_len(&self) -> Result<u64, Error> {
        let now_ms = self.engine().clock.now_ms();
        self.engine().store.with_tx(move |tx| tx.outbox_len(now_ms).map_err(Error::from)).await
    }

    /// Where one of this account's messages stands.
    ///
    /// # Errors
    /// [`Error::UnknownMessage`] if there is no such message.
    pub async fn message_status(&self, message: MessageId) -> Result<MessageStatus, Error> {
        let status = self.engine().store.with_tx(move |tx| tx.status(message).map_err(Error::from)).await?;
        status.ok_or(Error::UnknownMessage)
    }

    /// Waits until one of this account's messages is no longer queued, or `patience` ends. Answers with where it stands
    /// then. Takes no events.
    ///
    /// # Errors
    /// As for [`Client::message_status`].
    pub async fn message_settled(&self, message: MessageId, patience: Duration) -> Result<MessageStatus, Error> {
        let mut changed = self.engine().store.work_changed();
        let settled = async {
            loop {
                changed.mark_unchanged();
                let status = self.message_status(message).await?;
                if status != MessageStatus::Queued || changed.changed().await.is_err() {
                    return Ok(status);
                }
            }
        };
        match tokio::time::timeout(patience, settled).await {
            Ok(status) => status,
            Err(_) => self.message_status(message).await,
        }
    }

    /// How many messages were received, and how many of this device's the relay accepted, since this client was made.
    pub fn counts(&self) -> (u64, u64) {
        self.engine().counts()
    }

    /// Deletes the account at the relay, with all its devices, keys and memberships, at once. What is in the local
    /// store stays until its folder is deleted.
    ///
    /// # Errors
    /// [`Error::Offline`] if the relay cannot be reached; whether the account is gone is then unknown.
    pub async fn delete_account(&self) -> Result<(), Error> {
        let engine = self.engine();
        Ok(engine.signed_in(|token| async move { engine.api.delete_account(&token).await }).await?)
    }

    /// Stops in order: what is under way is finished, what was received is acked, the store is closed and free for
    /// another process. Clones, groups and events of this client stop working.
    pub async fn shutdown(self) {
        self.engine().stop();
        while self.inner.tasks.lock().await.join_next().await.is_some() {}
        self.engine().store.close().await;
    }

    pub(crate) fn engine(&self) -> &Arc<Engine> {
        &self.inner.engine
    }

    pub(crate) fn place(&self) -> &Mutex<Place> {
        &self.inner.events
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Client(..)")
    }
}

impl Client {
    /// A client whose device is new at the relay. Others can reach it from then on; without an answer, that comes when the relay
    /// can be reached again.
    pub(crate) async fn begin(
        api: Addresses,
        store: Store,
        profile: Profile,
        clock: Arc<dyn Clock>,
        entropy: Entropy,
    ) -> Self {
        let client = Self::start(api, store, profile, clock, entropy, Engine::start);
        if let Err(error) = client.engine().publish_keys().await {
            tracing::debug!(%error, "no keys are published yet");
        }
        client
    }

    pub(crate) fn start(
        api: Addresses,
        store: Store,
        profile: Profile,
        clock: Arc<dyn Clock>,
        entropy: Entropy,
        tasks: impl FnOnce(&Arc<Engine>) -> Tasks,
    ) -> Self {
        let engine = Engine::new(api, store, Arc::new(profile.identity.clone()), profile.relay_id, clock, entropy);
        let tasks = Mutex::new(tasks(&engine));
        let events = Mutex::new(Place::new(&engine));
        Self { inner: Arc::new(Inner { engine, profile, events, tasks }) }
    }
}

/// Whether `who` is the contact's username or id.
fn is_called(contact: &Contact, who: &str) -> bool {
    contact.account_id.to_string() == who
        || contact.username.as_ref().is_some_and(|name| name.as_str().eq_ignore_ascii_case(who))
}
