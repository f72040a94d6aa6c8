//! Taking events: in order, each once, over restarts.
//!
//! Invariant: an event is forgotten only when the app asks for the one after it, or says that it is done with it. An
//! app that dies while it handles one gets it again.

use std::time::Duration;

use futures_util::{Stream, stream};
use tokio::sync::{
    broadcast::{self, error::RecvError},
    watch,
};

use crate::{
    Client, Error,
    conversation::{contact, message},
    event::{Connection, Contact, Event, StoredEvent},
    store::{StoreError, Tx},
    sync::{
        Engine,
        ephemeral::{Notice, Passing},
    },
};

/// How long an event may wait for the names of those in it.
const LOOK_UP_MAX: Duration = Duration::from_secs(3);

/// The client's events. All handles take from the same queue.
#[derive(Clone)]
pub struct Events {
    client: Client,
}

/// How far the app is.
pub(crate) struct Place {
    /// The event that the app was given last, not yet forgotten.
    in_hand: i64,
    connection: watch::Receiver<Connection>,
    added: watch::Receiver<()>,
    passing: broadcast::Receiver<Notice>,
}

impl Place {
    pub(crate) fn new(engine: &Engine) -> Self {
        let mut connection = engine.connection();
        connection.mark_changed();
        Self { in_hand: 0, connection, added: engine.store.events_changed(), passing: engine.passing() }
    }
}

impl Events {
    pub(crate) fn new(client: Client) -> Self {
        Self { client }
    }

    fn engine(&self) -> &Engine {
        self.client.engine()
    }

    /// The next event. `None` once the client has been shut down, or its store has failed. Asking for it forgets the one
    /// before. Cancel safe.
    pub async fn next(&self) -> Option<Event> {
        let mut place = self.client.place().lock().await;
        loop {
            place.added.mark_unchanged();
            let after = place.in_hand;
            let next = self.engine().store.with_tx(move |tx| {
                tx.drop_events(after)?;
                tx.next_event(after).map_err(Error::from)
            });
            if let Some((number, stored)) = next.await.ok()? {
                let told = self.tell(stored).await.ok()?;
                // Only now is it given: whoever stops waiting before this gets it the next time.
                place.in_hand = number;
                match told {
                    Some(event) => return Some(event),
                    // What it was about is gone.
                    None => continue,
                }
            }
            let Place { connection, added, passing, .. } = &mut *place;
            tokio::select! {
                changed = connection.changed() => {
                    changed.ok()?;
                    return Some(Event::Connection(*connection.borrow_and_update()));
                }
                changed = added.changed() => changed.ok()?,
                said = passing.recv() => match said {
                    Ok(notice) => match self.tell_in_passing(notice).await.ok()? {
                        Some(event) => return Some(event),
                        None => continue,
                    },
                    // What an app that does not look has not heard is of no use any more.
                    Err(RecvError::Lagged(_)) => continue,
                    Err(RecvError::Closed) => return None,
                },
                () = self.engine().stopped() => return None,
            }
        }
    }

    /// Says that the last event has been handled, without asking for the next.
    pub async fn done(&self) -> Result<(), Error> {
        let after = self.client.place().lock().await.in_hand;
        self.engine().store.with_tx(move |tx| tx.drop_events(after).map_err(Error::from)).await
    }

    /// The same as a `Stream`.
    pub fn into_stream(self) -> impl Stream<Item = Event> + Send + Unpin {
        Box::pin(stream::unfold(self, |events| async move { Some((events.next().await?, events)) }))
    }

    /// What was said in passing, if it is still true and of a kind that is known.
    async fn tell_in_passing(&self, notice: Notice) -> Result<Option<Event>, Error> {
        let Notice { conversation, by, what: Passing::Typing {}, .. } = notice else { return Ok(None) };
        if !notice.is_fresh(self.engine()) {
            return Ok(None);
        }
        let by = self.engine().store.with_tx(move |tx| contact(tx, by).map_err(Error::from)).await?;
        Ok(Some(Event::Typing { conversation, by }))
    }

    /// The event with names and messages in place of ids. Accounts never looked up are looked up now, if possible.
    async fn tell(&self, stored: StoredEvent) -> Result<Option<Event>, Error> {
        let accounts = stored.accounts();
        let unknown = self.engine().store.with_tx(move |tx| {
            let mut unknown = Vec::new();
            for account in accounts {
                if tx.device_list(account)?.is_none() {
                    unknown.push(account);
                }
            }
            Ok::<_, Error>(unknown)
        });
        let unknown = unknown.await?;
        let look = async {
            for account in unknown {
                // Without an answer the account goes by its id.
                drop(self.engine().learn(account).await);
            }
        };
        if matches!(self.client.connection(), Connection::CatchingUp | Connection::Online) {
            drop(tokio::time::timeout(LOOK_UP_MAX, look).await);
        }
        self.engine().store.with_tx(move |tx| event(tx, stored).map_err(Error::from)).await
    }
}

fn event(tx: &Tx<'_>, stored: StoredEvent) -> Result<Option<Event>, StoreError> {
    let all = |accounts: Vec<_>| {
        accounts.into_iter().map(|account| contact(tx, account)).collect::<Result<Vec<Contact>, _>>()
    };
    Ok(Some(match stored {
        StoredEvent::Message { conversation, sender, message_id } => {
            match tx.message(conversation, sender, message_id)? {
                Some(row) => Event::MessageReceived(message(tx, row)?),
                None => return Ok(None),
            }
        }
        StoredEvent::Status { conversation, message_id, status } => {
            Event::MessageStatus { conversation, message_id, status }
        }
        StoredEvent::Undecryptable { conversation } => Event::Undecryptable { conversation },
        StoredEvent::Joined { group_id, name, by, requested } => {
            Event::Joined { group_id, name, by: contact(tx, by)?, requested }
        }
        StoredEvent::Requested { by } => Event::Requested { by: contact(tx, by)? },
        StoredEvent::SessionReplaced { with } => Event::SessionReplaced { with: contact(tx, with)? },
        StoredEvent::Members { group_id, by, added, removed } => {
            let by = by.map(|account| contact(tx, account)).transpose()?;
            Event::MembersChanged { group_id, by, added: all(added)?, removed: all(removed)? }
        }
        StoredEvent::Renamed { group_id, name, by } => {
            let by = by.map(|account| contact(tx, account)).transpose()?;
            Event::GroupRenamed { group_id, name, by }
        }
        StoredEvent::Removed { group_id, by } => {
            Event::Removed { group_id, by: by.map(|account| contact(tx, account)).transpose()? }
        }
        StoredEvent::Left { group_id } => Event::Left { group_id },
        StoredEvent::Recovering { group_id } => Event::GroupRecovering { group_id },
        StoredEvent::AskedIn { group_id } => Event::GroupAskedIn { group_id },
        StoredEvent::Recovered { group_id, how } => Event::GroupRecovered { group_id, how },
        StoredEvent::Stuck { group_id } => Event::GroupStuck { group_id },
        StoredEvent::Missed { from, to } => Event::Missed { from, to },
        StoredEvent::Copied => Event::StoreCopied,
        StoredEvent::Dropped { events } => Event::Dropped { events },
        StoredEvent::OtherRelay { url } => Event::OtherRelay { url },
        StoredEvent::RecoveryKey => Event::RecoveryKeySet,
        StoredEvent::Devices { added, removed } => Event::DevicesChanged { added, removed },
        StoredEvent::ReadElsewhere { conversation, up_to } => Event::ReadElsewhere { conversation, up_to },
        StoredEvent::Identity { account } => Event::IdentityChanged { account: contact(tx, account)? },
        StoredEvent::StaleList { account } => Event::StaleDeviceList { account: contact(tx, account)? },
        StoredEvent::Unlisted { group_id, account } => {
            Event::UnlistedDevice { group_id, account: contact(tx, account)? }
        }
    }))
}
