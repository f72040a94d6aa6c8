//! Waking: "this device has mail", said after a commit to whoever waits for it on this node, and noted for the others.
//!
//! A wake carries nothing and decides nothing: the one who is woken reads the store. Ephemeral content goes the same way
//! and is not kept. Nothing here outlives a restart, and a wake that is lost is healed by a look at the store
//! ([`nodes`](crate::nodes)).
//!
//! Invariant: one who registers, then reads, then waits, misses no wake: a wake between registering and waiting is kept.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{Notify, broadcast, watch};
use undertone_wire::{DeviceId, ServerFrame};

use crate::store::queue::State;

/// Ephemeral frames that wait for a stream; with more, the oldest are dropped.
const EPHEMERAL_MAX: usize = 16;

/// Ephemeral content that waits to be told to other nodes; what comes beyond is lost, as it may be.
const UNTOLD_MAX: usize = 256;

/// Who waits for mail on this node, and what other nodes are to be told.
#[derive(Debug, Default)]
pub(crate) struct Wake {
    waiting: Mutex<HashMap<DeviceId, Waiting>>,
    untold: Mutex<Untold>,
    telling: Notify,
}

/// What other nodes are to be told: first who has mail, so that nothing ephemeral overtakes it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Untold {
    pub(crate) devices: BTreeSet<DeviceId>,
    pub(crate) ephemeral: Vec<String>,
}

#[derive(Debug)]
struct Waiting {
    /// How many wait.
    interested: usize,
    woken: watch::Sender<()>,
    ephemeral: broadcast::Sender<Arc<ServerFrame>>,
    /// Where the device's queue stood when somebody last looked for all who wait.
    seen: Option<State>,
}

impl Wake {
    /// Registers interest in a device's mail, until the answer is dropped.
    pub(crate) fn register(self: &Arc<Self>, device: DeviceId) -> Interest {
        let mut waiting = self.waiting();
        let entry = waiting.entry(device).or_insert_with(|| Waiting {
            interested: 0,
            woken: watch::channel(()).0,
            ephemeral: broadcast::channel(EPHEMERAL_MAX).0,
            seen: None,
        });
        entry.interested += 1;
        let (woken, ephemeral) = (entry.woken.subscribe(), entry.ephemeral.subscribe());
        Interest { wake: Arc::clone(self), device, woken, ephemeral }
    }

    /// Wakes everyone who waits for one of `devices` here, and notes them for the other nodes.
    pub(crate) fn wake(&self, devices: &[DeviceId]) {
        if devices.is_empty() {
            return;
        }
        self.wake_here(devices);
        self.untold().devices.extend(devices);
        self.telling.notify_one();
    }

    /// Notes ephemeral content for all nodes, behind the mail that is noted.
    pub(crate) fn tell(&self, ephemeral: impl IntoIterator<Item = String>) {
        let mut untold = self.untold();
        let room = UNTOLD_MAX.saturating_sub(untold.ephemeral.len());
        untold.ephemeral.extend(ephemeral.into_iter().take(room));
        self.telling.notify_one();
    }

    /// Wakes everyone who waits for one of `devices` here.
    pub(crate) fn wake_here(&self, devices: &[DeviceId]) {
        let waiting = self.waiting();
        for entry in devices.iter().filter_map(|device| waiting.get(device)) {
            entry.woken.send_replace(());
        }
    }

    /// Hands a frame to the streams of a device here. Who does not wait for it does not get it.
    pub(crate) fn say_here(&self, device: &DeviceId, frame: &Arc<ServerFrame>) {
        if let Some(entry) = self.waiting().get(device) {
            // Nobody listening is no failure.
            let _ = entry.ephemeral.send(Arc::clone(frame));
        }
    }

    /// Waits until there is something to tell other nodes, and takes it. Cancel safe.
    pub(crate) async fn untold_yet(&self) -> Untold {
        loop {
            let untold = std::mem::take(&mut *self.untold());
            if untold != Untold::default() {
                return untold;
            }
            self.telling.notified().await;
        }
    }

    /// Who waits here.
    pub(crate) fn devices(&self) -> Vec<DeviceId> {
        self.waiting().keys().copied().collect()
    }

    /// Takes note of where the queues of `asked` stand, and wakes those for whom something has changed since the last time.
    /// One that has no queue any more has changed.
    pub(crate) fn compare(&self, asked: &[DeviceId], states: &BTreeMap<DeviceId, State>) {
        let mut waiting = self.waiting();
        for device in asked {
            let Some(entry) = waiting.get_mut(device) else { continue };
            let (before, now) = (entry.seen, states.get(device).copied());
            entry.seen = now;
            // What changed before the first look may have been before the one who waits read, or after it.
            if before != now || now.is_none() {
                entry.woken.send_replace(());
            }
        }
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<DeviceId, Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn untold(&self) -> MutexGuard<'_, Untold> {
        self.untold.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Interest in one device's mail.
pub(crate) struct Interest {
    wake: Arc<Wake>,
    device: DeviceId,
    woken: watch::Receiver<()>,
    ephemeral: broadcast::Receiver<Arc<ServerFrame>>,
}

impl Interest {
    /// Waits for a wake since the last one that was seen. Cancel safe.
    pub(crate) async fn woken(&mut self) {
        woken(&mut self.woken).await;
    }

    /// Waits for that, or for an ephemeral frame, which is answered; a wake comes first. Cancel safe.
    pub(crate) async fn woken_or_told(&mut self) -> Option<Arc<ServerFrame>> {
        tokio::select! {
            biased;
            () = woken(&mut self.woken) => None,
            frame = told(&mut self.ephemeral) => Some(frame),
        }
    }
}

async fn woken(receiver: &mut watch::Receiver<()>) {
    if receiver.changed().await.is_err() {
        // The sender stays in the map as long as an interest lives, so this is not reached; waiting is harmless.
        std::future::pending::<()>().await;
    }
}

async fn told(receiver: &mut broadcast::Receiver<Arc<ServerFrame>>) -> Arc<ServerFrame> {
    loop {
        match receiver.recv().await {
            Ok(frame) => return frame,
            Err(broadcast::error::RecvError::Lagged(_)) => {}
            Err(broadcast::error::RecvError::Closed) => std::future::pending::<()>().await,
        }
    }
}

impl Drop for Interest {
    fn drop(&mut self) {
        let mut waiting = self.wake.waiting();
        if let Some(entry) = waiting.get_mut(&self.device) {
            entry.interested -= 1;
            if entry.interested == 0 {
                waiting.remove(&self.device);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;

    fn device(byte: u8) -> DeviceId {
        DeviceId::from_random([byte; 16])
    }

    #[test]
    fn a_wake_before_the_wait_is_not_lost_and_is_seen_once() {
        let wake = Arc::new(Wake::default());
        let mut interest = wake.register(device(1));
        assert_eq!(interest.woken().now_or_never(), None);
        wake.wake(&[device(1)]);
        wake.wake(&[device(1)]);
        assert_eq!(interest.woken().now_or_never(), Some(()));
        assert_eq!(interest.woken().now_or_never(), None);
    }

    #[test]
    fn a_wake_reaches_everyone_who_waits_for_the_device_and_nobody_else() {
        let wake = Arc::new(Wake::default());
        let (mut one, mut two, mut other) =
            (wake.register(device(1)), wake.register(device(1)), wake.register(device(2)));
        wake.wake(&[device(1), device(3)]);
        assert!(one.woken().now_or_never().is_some() && two.woken().now_or_never().is_some());
        assert!(other.woken().now_or_never().is_none());
    }

    #[test]
    fn a_wake_comes_before_what_is_ephemeral_here_and_on_other_nodes() {
        let wake = Arc::new(Wake::default());
        let mut interest = wake.register(device(1));
        let frame = Arc::new(ServerFrame::DirectEphemeral { ciphertext: vec![7].into() });
        for _ in 0..20 {
            wake.say_here(&device(1), &frame);
            wake.wake(&[device(1)]);
            assert_eq!(interest.woken_or_told().now_or_never(), Some(None));
            assert_eq!(interest.woken_or_told().now_or_never(), Some(Some(Arc::clone(&frame))));
        }
        wake.tell(vec!["typing".to_owned(); UNTOLD_MAX + 1]);
        let untold = wake.untold_yet().now_or_never().unwrap();
        assert_eq!((untold.devices, untold.ephemeral.len()), (BTreeSet::from([device(1)]), UNTOLD_MAX));
        assert!(wake.untold_yet().now_or_never().is_none());
    }

    #[test]
    fn nothing_is_kept_when_nobody_waits() {
        let wake = Arc::new(Wake::default());
        let (one, two) = (wake.register(device(1)), wake.register(device(1)));
        drop(one);
        assert_eq!(wake.waiting().len(), 1);
        drop(two);
        assert!(wake.waiting().is_empty());
    }
}
