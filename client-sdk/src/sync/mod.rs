//! The engine: keeps the local store and the relay in step.
//!
//! Six tasks share it. [`stream`] receives and applies what the queue brings, and hears what passes it by
//! ([`ephemeral`]); [`outbox`] does what is to be done at the relay, [`recovery`] brings the device back into groups
//! that cannot go on for it, [`directory`] looks at the device lists of others, [`key_upkeep`] keeps keys at
//! the relay, [`network`] notices that it may be within reach again. They meet only in the store: each step is one
//! transaction, and the next step is found by reading it, so that a restart goes on where the last one stopped.
//!
//! None of them but the first asks the relay for anything before that has made sure that this store is not an old copy
//! ([`instance`]).
//!
//! Another relay at the relay's address is to all of them as no relay: once that is seen it is asked for nothing but
//! which relay it is, and nothing is given up.
//!
//! Invariant: what was posted is not given up before the relay's word on it is known, from its answer or from this
//! device's own queue.

mod backoff;
mod claims;
mod content;
mod direct;
mod directory;
pub(crate) mod ephemeral;
mod inbox;
mod instance;
mod key_upkeep;
mod missed;
mod network;
mod outbox;
pub(crate) mod receipts;
mod recovery;
pub(crate) mod rotation;
mod session;
mod stream;
mod successor;
#[cfg(test)]
mod tests;
mod updates;
mod welcome;

use std::{
    future::Future,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Mutex, broadcast, watch},
    task::JoinSet,
};
use undertone_api::{ApiError, RelayApi as _};
use undertone_wire::{Account, AccountId, Bytes, DeviceList, Incarnation, MessageId, RelayId};

use self::instance::Newest;
use crate::{
    Error,
    api::{Addresses, Whose},
    clock::Clock,
    crypto::{Entropy, Identity},
    event::{Connection, Contact, StoredEvent},
    store::Store,
};

/// What all tasks of a client share.
pub(crate) struct Engine {
    pub(crate) api: Addresses,
    pub(crate) store: Store,
    /// Changes with the account's identity key.
    identity: RwLock<Arc<Identity>>,
    reloading: Mutex<()>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) entropy: Entropy,
    relay_id: RelayId,
    connection: watch::Sender<Connection>,
    /// Raised when key packages may have been used up.
    keys_wanted: watch::Sender<()>,
    /// Raised when the network has changed.
    network: watch::Sender<()>,
    /// Whether this store is the newest of this device.
    newest: watch::Sender<Newest>,
    /// Which life of the relay's store it is, as the newest stream has said.
    incarnation: watch::Sender<Option<Incarnation>>,
    stopping: watch::Sender<bool>,
    session: session::Session,
    key_upkeep: Mutex<key_upkeep::Kept>,
    /// What others say in passing.
    passing: broadcast::Sender<ephemeral::Notice>,
    received: AtomicU64,
    sent: AtomicU64,
}

/// The tasks of an engine. Dropping it stops them at once.
pub(crate) type Tasks = JoinSet<()>;

impl Engine {
    pub(crate) fn new(
        api: Addresses,
        store: Store,
        identity: Arc<Identity>,
        relay_id: RelayId,
        clock: Arc<dyn Clock>,
        entropy: Entropy,
    ) -> Arc<Self> {
        Arc::new(Self {
            api,
            store,
            identity: RwLock::new(identity),
            reloading: Mutex::default(),
            clock,
            entropy,
            relay_id,
            connection: watch::Sender::new(Connection::Connecting),
            keys_wanted: watch::Sender::new(()),
            network: watch::Sender::new(()),
            newest: watch::Sender::new(Newest::Untold),
            incarnation: watch::Sender::new(None),
            stopping: watch::Sender::new(false),
            session: session::Session::default(),
            key_upkeep: Mutex::default(),
            passing: ephemeral::channel(),
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
        })
    }

    /// Starts the tasks.
    pub(crate) fn start(self: &Arc<Self>) -> Tasks {
        let mut tasks = JoinSet::new();
        tasks.spawn(stream::run(Arc::clone(self)));
        tasks.spawn(outbox::run(Arc::clone(self)));
        tasks.spawn(recovery::run(Arc::clone(self)));
        tasks.spawn(directory::run(Arc::clone(self)));
        tasks.spawn(key_upkeep::run(Arc::clone(self)));
        tasks.spawn(network::run(Arc::clone(self)));
        tasks
    }

    /// Asks the tasks to end after what they are doing.
    pub(crate) fn stop(&self) {
        self.stopping.send_replace(true);
    }

    /// What was found of the network holds no more.
    pub(crate) fn network_changed(&self) {
        self.network.send_replace(());
    }

    /// The state of the connection, as it changes.
    pub(crate) fn connection(&self) -> watch::Receiver<Connection> {
        self.connection.subscribe()
    }

    /// What is said in passing from now on.
    pub(crate) fn passing(&self) -> broadcast::Receiver<ephemeral::Notice> {
        self.passing.subscribe()
    }

    /// How many messages came and how many were accepted by the relay since the client was opened.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.received.load(Ordering::Relaxed), self.sent.load(Ordering::Relaxed))
    }

    /// The relay's time as this device knows it.
    pub(crate) fn relay_now_ms(&self) -> u64 {
        self.clock.now_ms().saturating_add_signed(self.api.clock_offset_ms())
    }

    /// A new message id, from the relay's time.
    pub(crate) fn message_id(&self) -> Result<MessageId, Error> {
        Ok(MessageId::from_parts(self.relay_now_ms(), self.entropy.bytes()?))
    }

    /// Does a request that needs a session, at each address of the relay in turn until one answers. It may arrive more
    /// than once.
    pub(crate) async fn signed_in<T, F>(&self, request: impl Fn(Bytes) -> F) -> Result<T, ApiError>
    where
        F: Future<Output = Result<T, ApiError>>,
    {
        let answer = in_turn(&self.api, || self.signed_in_at_one(&request)).await;
        self.tell_whose_addresses().await;
        answer
    }

    /// Logs in first if there is no session, and once again if it has ended.
    async fn signed_in_at_one<T, F>(&self, request: impl Fn(Bytes) -> F) -> Result<T, ApiError>
    where
        F: Future<Output = Result<T, ApiError>>,
    {
        let token = self.session.token(self).await?;
        match request(token.clone()).await {
            Err(error) if session::has_ended(&error) => {
                let answer = request(self.session.renew(self, &token).await?).await;
                if answer.as_ref().is_err_and(session::has_ended) {
                    // Another relay may have come in between. What it refuses says nothing of this device.
                    self.api.is_still_itself().await?;
                    // It has just let this device in, and has lost that again: it was restored, say.
                    return Err(ApiError::Unreachable("the session has ended as soon as it began".into()));
                }
                answer
            }
            answer => answer,
        }
    }

    /// Notes whose the addresses turned out to be. That one is another relay's is told once, until it is the relay's
    /// again.
    pub(crate) async fn tell_whose_addresses(&self) {
        for (url, whose) in self.api.take_found() {
            let told = self.store.with_tx(move |tx| {
                match whose {
                    Whose::Own => tx.note_own(&url)?,
                    Whose::Strange if tx.note_strange(&url)? => tx.add_event(&StoredEvent::OtherRelay { url })?,
                    Whose::Strange => {}
                }
                Ok::<_, Error>(())
            });
            if let Err(error) = told.await {
                tracing::debug!(%error, "whose an address is could not be noted");
            }
        }
    }

    /// Asks the relay about an account, verifies what it says and remembers it.
    pub(crate) async fn learn(&self, account: AccountId) -> Result<(Contact, DeviceList), Error> {
        let answer = self.signed_in(|token| async move { self.api.account(&token, account).await }).await;
        self.remember(account, answer.map_err(unknown_account)?).await
    }

    /// Verifies and remembers what the relay says of an account.
    pub(crate) async fn remember(&self, asked: AccountId, said: Account) -> Result<(Contact, DeviceList), Error> {
        if said.account_id != asked {
            return Err(Error::Untrusted("the relay answered about another account".into()));
        }
        let list = said.device_list.verify(&asked)?;
        let contact = Contact { account_id: asked, username: said.username.clone() };
        let (verified, own) = (list.clone(), self.identity().account());
        if asked == own {
            self.remember_own(said, verified).await?;
        } else {
            self.store.with_tx(move |tx| inbox::remember(tx, &said, &verified)).await?;
        }
        Ok((contact, list))
    }

    /// The same of this account, which may have other devices then, or another identity key.
    async fn remember_own(&self, said: Account, list: DeviceList) -> Result<(), Error> {
        let (message_id, now_ms) = (self.message_id()?, self.clock.now_ms());
        let changed = self.store.with_tx(move |tx| {
            let own = said.account_id;
            let before = tx.verified_list(own)?;
            inbox::remember(tx, &said, &list)?;
            // One's own waits for nobody.
            tx.take_identity(own)?;
            if let Some(before) = before {
                directory::tell_own(tx, &before, &list)?;
            }
            rotation::follow(tx, message_id, now_ms)
        });
        if changed.await? {
            self.reload_identity().await?;
        }
        Ok(())
    }

    /// Who this device is may have changed in the store.
    pub(crate) async fn reload_identity(&self) -> Result<(), Error> {
        // One after the other: who read first must not write last.
        let _turn = self.reloading.lock().await;
        let identity = self.store.with_tx(|tx| tx.identity().map_err(Error::from)).await?;
        *self.identity.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(identity);
        // Key packages carry the certificate.
        self.keys_wanted.send_replace(());
        Ok(())
    }

    /// Who this device is.
    pub(crate) fn identity(&self) -> Arc<Identity> {
        Arc::clone(&self.identity.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Publishes the keys that are missing at the relay. Answers with the time until that should be done again.
    pub(crate) async fn publish_keys(&self) -> Result<Duration, Error> {
        key_upkeep::top_up(self, &mut *self.key_upkeep.lock().await).await
    }

    /// Completes when no device list is left to look at.
    pub(crate) async fn looked_up(&self) {
        let own = self.identity().account();
        let mut changed = self.store.work_changed();
        loop {
            changed.mark_unchanged();
            match self.store.with_tx(move |tx| tx.next_look(own).map_err(Error::from)).await {
                Ok(Some(_)) if changed.changed().await.is_ok() => {}
                _ => return,
            }
        }
    }

    /// Completes when this store is known to be the newest of this device.
    pub(crate) async fn confirmed(&self) {
        drop(self.newest.subscribe().wait_for(|newest| *newest == Newest::Confirmed).await);
    }

    /// Whether it is known to be.
    fn is_confirmed(&self) -> bool {
        *self.newest.borrow() == Newest::Confirmed
    }

    /// Another copy of the store may go on: nothing more is sent before the relay was asked.
    fn doubt_newest(&self) {
        self.newest.send_if_modified(|newest| {
            let confirmed = *newest == Newest::Confirmed;
            if confirmed {
                *newest = Newest::Doubted;
            }
            confirmed
        });
    }

    /// Completes when the engine is to stop.
    pub(crate) async fn stopped(&self) {
        // An error means that the engine is gone, which is as good as stopped.
        drop(self.stopping.subscribe().wait_for(|stopping| *stopping).await);
    }

    pub(crate) fn set_connection(&self, state: Connection) {
        self.connection.send_if_modified(|current| std::mem::replace(current, state) != state);
    }
}

/// Asks at each address of the relay once, until one answers.
pub(crate) async fn in_turn<T, F>(api: &Addresses, ask: impl Fn() -> F) -> Result<T, ApiError>
where
    F: Future<Output = Result<T, ApiError>>,
{
    for _ in 1..api.ways() {
        match ask().await {
            Err(error) if error.may_do_elsewhere() => {
                tracing::debug!(%error, "another address of the relay is tried");
            }
            answer => return answer,
        }
    }
    ask().await
}

/// What can only be done now cannot be done.
pub(crate) fn no_connection() -> Error {
    Error::Offline(ApiError::Unreachable("there is no connection".into()))
}

/// "Not found" of an account, as what it means to an app.
pub(crate) fn unknown_account(error: ApiError) -> Error {
    match error.code() {
        Some(undertone_wire::ErrorCode::NotFound) => Error::UnknownAccount,
        _ => error.into(),
    }
}
