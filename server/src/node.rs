//! What every request is handed: the store, the clock, chance, the limits and the wakes of one running relay.
//!
//! Invariant: nothing here remembers what a restart would lose.

use std::{ops::Deref, sync::Arc};

use tokio::sync::watch;
use undertone_wire::Limits;

use crate::{
    clock::{Clock, Random},
    store::{Db, Identity},
    wake::Wake,
};

/// One running relay; cheap to clone.
#[derive(Clone)]
pub(crate) struct Node(Arc<Parts>);

/// The parts of a [`Node`].
pub(crate) struct Parts {
    pub(crate) db: Db,
    pub(crate) wake: Arc<Wake>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) random: Arc<dyn Random>,
    pub(crate) limits: Limits,
    pub(crate) identity: Identity,
    stopping: watch::Sender<bool>,
}

impl Node {
    /// A node over an open store.
    pub(crate) fn new(
        db: Db,
        wake: Arc<Wake>,
        clock: Arc<dyn Clock>,
        random: Arc<dyn Random>,
        limits: Limits,
        identity: Identity,
    ) -> Self {
        Self(Arc::new(Parts { db, wake, clock, random, limits, identity, stopping: watch::Sender::new(false) }))
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
        let db = Db::open(&Place::Sqlite(folder.join("undertone.db")), Arc::clone(&wake)).await.unwrap();
        let identity = db.identity(&SystemRandom).await.unwrap();
        let clock = Arc::new(ManualClock::at(0));
        Node::new(db, wake, clock, Arc::new(SystemRandom), Limits::default(), identity)
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
