//! Time and randomness: the only room that asks the machine for either. Everyone else is handed them.
//!
//! Invariant: whatever depends on time or chance can be repeated by a test with [`ManualClock`] and a [`Random`] of
//! its own.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

const HOUR_MS: u64 = 60 * 60 * 1_000;

/// What time it is.
pub trait Clock: Send + Sync + 'static {
    /// Milliseconds since the Unix epoch.
    fn now_ms(&self) -> u64;
}

/// The machine's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the clock that is passed in")]
    fn now_ms(&self) -> u64 {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX)
    }
}

/// A clock that stands still until it is moved, for tests.
#[derive(Debug)]
pub struct ManualClock(AtomicU64);

impl ManualClock {
    /// A clock that shows `now_ms`.
    pub fn at(now_ms: u64) -> Self {
        Self(AtomicU64::new(now_ms))
    }

    /// Moves the clock forward.
    pub fn advance(&self, by: Duration) {
        let by_ms = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
        self.0.fetch_add(by_ms, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now_ms(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

/// Where unpredictable bytes come from.
pub trait Random: Send + Sync + 'static {
    /// Fills `bytes`.
    fn fill(&self, bytes: &mut [u8]) -> Result<(), RandomError>;
}

/// The machine has no randomness to give.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the operating system gives no random bytes")]
pub struct RandomError;

/// The operating system's randomness.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemRandom;

impl Random for SystemRandom {
    fn fill(&self, bytes: &mut [u8]) -> Result<(), RandomError> {
        getrandom::fill(bytes).map_err(|_| RandomError)
    }
}

/// `N` random bytes.
pub(crate) fn random_bytes<const N: usize>(random: &dyn Random) -> Result<[u8; N], RandomError> {
    let mut bytes = [0; N];
    random.fill(&mut bytes)?;
    Ok(bytes)
}

/// The hour in which `time_ms` lies: as fine as times on messages are stored.
pub(crate) fn hour_of(time_ms: u64) -> u64 {
    time_ms - time_ms % HOUR_MS
}

/// The first full hour at or after `time_ms`.
pub(crate) fn hour_after(time_ms: u64) -> u64 {
    time_ms.checked_next_multiple_of(HOUR_MS).unwrap_or(time_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_on_messages_are_whole_hours() {
        assert_eq!((hour_of(0), hour_after(0)), (0, 0));
        assert_eq!((hour_of(HOUR_MS + 1), hour_after(HOUR_MS + 1)), (HOUR_MS, 2 * HOUR_MS));
        assert_eq!((hour_of(HOUR_MS), hour_after(HOUR_MS)), (HOUR_MS, HOUR_MS));
    }
}
