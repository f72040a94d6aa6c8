//! Rates: how often something may happen, counted in memory, on this node only, by the clock that is passed in.

use std::{
    hash::Hash,
    num::NonZeroU32,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use governor::{
    Quota, RateLimiter, clock::Clock as GovernorClock, middleware::NoOpMiddleware, nanos::Nanos,
    state::keyed::HashMapStateStore,
};

use crate::clock::Clock;

/// Counts for each `K` by itself.
pub(crate) struct Rate<K: Clone + Eq + Hash>(
    Option<RateLimiter<K, HashMapStateStore<K>, PassedIn, NoOpMiddleware<Nanos>>>,
);

/// The clock that is passed in, as the counters read it: if it is set back, time goes on from where it was.
#[derive(Clone)]
struct PassedIn(Arc<(Arc<dyn Clock>, Mutex<Read>)>);

/// What was read last, and by how much the clock has been set back since the beginning, in milliseconds.
#[derive(Default)]
struct Read {
    last_ms: u64,
    set_back_ms: u64,
}

impl GovernorClock for PassedIn {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        let (clock, read) = &*self.0;
        let mut read = read.lock().unwrap_or_else(PoisonError::into_inner);
        let now_ms = clock.now_ms();
        read.set_back_ms = read.set_back_ms.saturating_add(read.last_ms.saturating_sub(now_ms));
        read.last_ms = now_ms;
        Duration::from_millis(now_ms.saturating_add(read.set_back_ms)).into()
    }
}

impl<K: Clone + Eq + Hash> Rate<K> {
    /// So many in an hour, of which all may come at once.
    pub(crate) fn per_hour(max: u64, clock: &Arc<dyn Clock>) -> Self {
        Self::new(max, Quota::per_hour, clock)
    }

    /// So many in a minute, of which all may come at once.
    pub(crate) fn per_minute(max: u64, clock: &Arc<dyn Clock>) -> Self {
        Self::new(max, Quota::per_minute, clock)
    }

    fn new(max: u64, quota: fn(NonZeroU32) -> Quota, clock: &Arc<dyn Clock>) -> Self {
        let max = NonZeroU32::new(u32::try_from(max).unwrap_or(u32::MAX));
        let clock = PassedIn(Arc::new((Arc::clone(clock), Mutex::default())));
        Self(max.map(|max| RateLimiter::new(quota(max), HashMapStateStore::default(), clock)))
    }

    /// Counts one; whether it is within the rate. A rate of zero allows nothing.
    pub(crate) fn allow(&self, of: &K) -> bool {
        self.0.as_ref().is_some_and(|limiter| limiter.check_key(of).is_ok())
    }

    /// How many counts are kept.
    #[cfg(test)]
    pub(crate) fn kept(&self) -> usize {
        self.0.as_ref().map_or(0, RateLimiter::len)
    }

    /// Forgets those whose count is back at zero.
    pub(crate) fn tidy(&self) {
        if let Some(limiter) = &self.0 {
            limiter.retain_recent();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    /// A clock that somebody sets.
    struct Set(AtomicU64);

    impl Clock for Set {
        fn now_ms(&self) -> u64 {
            self.0.load(Ordering::Relaxed)
        }
    }

    #[test]
    fn a_clock_that_is_set_back_keeps_nobody_out() {
        let set = Arc::new(Set(AtomicU64::new(1_000_000_000)));
        let clock: Arc<dyn Clock> = set.clone();
        let rate = Rate::per_minute(1, &clock);
        assert_eq!([rate.allow(&1), rate.allow(&1)], [true, false]);
        set.0.store(5_000, Ordering::Relaxed);
        assert!(!rate.allow(&1), "no time has passed");
        set.0.store(65_000, Ordering::Relaxed);
        assert_eq!([rate.allow(&1), rate.allow(&1)], [true, false], "a minute has");
    }
}
