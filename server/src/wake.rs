//! Waking: "this device has mail", said in process after a commit to whoever waits for it.
//!
//! A wake carries nothing and decides nothing: the one who is woken reads the store. Nothing here outlives a restart.
//!
//! Invariant: one who registers, then reads, then waits, misses no wake: a wake between registering and waiting is kept.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;
use undertone_wire::DeviceId;

/// Who waits for mail.
#[derive(Debug, Default)]
pub(crate) struct Wake {
    waiting: Mutex<HashMap<DeviceId, watch::Sender<()>>>,
}

impl Wake {
    /// Registers interest in a device's mail, until the answer is dropped.
    pub(crate) fn register(self: &Arc<Self>, device: DeviceId) -> Interest {
        let woken = self.waiting().entry(device).or_insert_with(|| watch::channel(()).0).subscribe();
        Interest { wake: Arc::clone(self), device, woken }
    }

    /// Wakes everyone who waits for one of `devices`.
    pub(crate) fn wake(&self, devices: &[DeviceId]) {
        let waiting = self.waiting();
        for sender in devices.iter().filter_map(|device| waiting.get(device)) {
            sender.send_replace(());
        }
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<DeviceId, watch::Sender<()>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Interest in one device's mail.
pub(crate) struct Interest {
    wake: Arc<Wake>,
    device: DeviceId,
    woken: watch::Receiver<()>,
}

impl Interest {
    /// Waits for a wake since the last one that was seen. Cancel safe.
    pub(crate) async fn woken(&mut self) {
        if self.woken.changed().await.is_err() {
            // The sender stays in the map as long as an interest lives, so this is not reached; waiting is harmless.
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for Interest {
    fn drop(&mut self) {
        let mut waiting = self.wake.waiting();
        if waiting.get(&self.device).is_some_and(|sender| sender.receiver_count() <= 1) {
            waiting.remove(&self.device);
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
    fn nothing_is_kept_when_nobody_waits() {
        let wake = Arc::new(Wake::default());
        let (one, two) = (wake.register(device(1)), wake.register(device(1)));
        drop(one);
        assert_eq!(wake.waiting().len(), 1);
        drop(two);
        assert!(wake.waiting().is_empty());
    }
}
