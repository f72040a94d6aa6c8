//! What every request is handed: the store, the clock, chance, the limits and the wakes of one running relay.
//!
//! Invariant: nothing here remembers what a restart would lose.

use std::{
    net::SocketAddr,
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::sync::watch;
use undertone_wire::{Limits, Registration, RelayId};

use crate::{
    batch::Batch,
    claims::Claims,
    clock::{Clock, Random},
    config::Config,
    groups::Recoveries,
    messages::Message,
    proxies::TrustedProxies,
    queue::Ack,
    store::{Db, StoreError, relay},
    strangers::Strangers,
    turns::Turns,
    wake::Wake,
};

/// How soon the store must answer for the node to count as ready.
const READY_WITHIN: Duration = Duration::from_secs(5);

/// One running relay; cheap to clone.
#[derive(Clone)]
pub(crate) struct Node(Arc<Parts>);

/// The parts of a [`Node`].
pub(crate) struct Parts {
    pub(crate) db: Db,
    /// Messages that wait to be written.
    pub(crate) messages: Batch<Message>,
    /// Acks that wait to be written.
    pub(crate) acks: Batch<Ack>,
    pub(crate) wake: Arc<Wake>,
    pub(crate) claims: Claims,
    pub(crate) strangers: Strangers,
    pub(crate) recoveries: Recoveries,
    pub(crate) turns: Turns,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) random: Arc<dyn Random>,
    pub(crate) limits: Limits,
    pub(crate) registration: Registration,
    /// Where it listens, as configured.
    pub(crate) listen: SocketAddr,
    pub(crate) trusted_proxies: TrustedProxies,
    pub(crate) relay_id: RelayId,
    /// How often to look for mail of which no wake came.
    pub(crate) look_every: Duration,
    /// How long the reader of a stream may take for a page.
    pub(crate) write_timeout: Duration,
    /// Whether other nodes can be heard.
    pub(crate) hears: AtomicBool,
    stopping: watch::Sender<bool>,
}

impl Node {
    /// A node over an open store, on which it listens already if there may be other nodes.
    pub(crate) async fn new(
        db: Db,
        wake: Arc<Wake>,
        clock: Arc<dyn Clock>,
        random: Arc<dyn Random>,
        config: &Config,
    ) -> Result<Self, StoreError> {
        let relay_id = relay::identity(&mut db.read().await?).await?.relay_id;
        Ok(Self(Arc::new(Parts {
            messages: Batch::new(&db),
            acks: Batch::new(&db),
            db,
            wake,
            claims: Claims::new(&config.limits, &clock),
            strangers: Strangers::new(&config.limits, &clock),
            recoveries: Recoveries::new(&config.limits, &clock),
            turns: Turns::default(),
            clock,
            random,
            limits: config.limits.clone(),
            registration: config.registration,
            listen: config.listen,
            trusted_proxies: config.trusted_proxies.clone(),
            relay_id,
            look_every: config.look_every,
            write_timeout: config.write_timeout,
            hears: AtomicBool::new(true),
            stopping: watch::Sender::new(false),
        })))
    }

    /// Whether it can serve: it hears other nodes, its store answers, and it does not stop.
    pub(crate) async fn is_ready(&self) -> bool {
        let answers = async { relay::identity(&mut self.db.read().await?).await };
        self.hears.load(Ordering::SeqCst)
            && !*self.0.stopping.borrow()
            && matches!(tokio::time::timeout(READY_WITHIN, answers).await, Ok(Ok(_)))
    }

    /// The time.
    pub(crate) fn now_ms(&self) -> u64 {
        self.clock.now_ms()
    }

    /// For whoever waits long: tells when the relay stops, and holds up the end until dropped.
    pub(crate) fn stopping(&self) -> Stopping {
        Stopping(self.0.stopping.subscribe())
    }

    /// Tells everyone that the relay stops.
    pub(crate) fn stop(&self) {
        self.0.stopping.send_replace(true);
    }

    /// Waits until everyone who had asked has finished.
    pub(crate) async fn stopped(&self) {
        self.0.stopping.closed().await;
    }
}

impl Deref for Node {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

/// Tells when the relay stops; see [`Node::stopping`].
#[derive(Clone)]
pub(crate) struct Stopping(watch::Receiver<bool>);

impl Stopping {
    /// Whether the relay stops.
    pub(crate) fn has_begun(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits until the relay stops. Cancel safe.
    pub(crate) async fn wait(&mut self) {
        // An error means that the node itself is gone, which is a stop as well.
        let _ = self.0.wait_for(|stopping| *stopping).await;
    }
}

#[cfg(test)]
pub(crate) mod testing {
    //! A node without sockets, at time 0, for tests of rooms.

    use undertone_wire::{AccountId, DeviceId, Hash, PublicKey, Signature, SignedDeviceList};

    use super::*;
    use crate::{
        auth::Caller,
        clock::{ManualClock, SystemRandom},
        store::{Place, StoreError, accounts, sessions},
    };

    /// A node on a new store in a folder.
    pub(crate) async fn node(folder: &std::path::Path) -> Node {
        let wake = Arc::new(Wake::default());
        let (clock, random) = (Arc::new(ManualClock::at(0)), Arc::new(SystemRandom));
        let place = Place::Sqlite(folder.join("undertone.db"));
        let db = Db::open(&place, Arc::clone(&wake), random.clone()).await.unwrap();
        let config = Config::new(place, ([127, 0, 0, 1], 0).into());
        Node::new(db, wake, clock, random, &config).await.unwrap()
    }

    /// A device with an account and a session of its own.
    pub(crate) async fn caller(node: &Node, byte: u8) -> Caller {
        let key = PublicKey::from([byte; 32]);
        let (account, device) = (AccountId::from_identity_key(&key), DeviceId::from_random([byte; 16]));
        let caller = Caller { device, account, token_hash: Hash::of(&[byte]) };
        let added = node.db.write(move |tx| {
            Box::pin(async move {
                let list = SignedDeviceList { list: vec![].into(), signature: Signature::from([0; 64]) };
                accounts::add(tx, &account, None, 1, &list).await?;
                let stored = accounts::StoredDevice { account, device_key: key, certificate_hash: Hash::of(b"") };
                accounts::put_device(tx, &device, &stored).await?;
                sessions::add(tx, &caller.token_hash, &device, 10, 1).await?;
                Ok::<_, StoreError>(())
            })
        });
        added.await.unwrap();
        caller
    }
}
