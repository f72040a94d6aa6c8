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
