//! How long to wait before trying again: longer each time, never in step with others. And how often, since it last
//! worked, it may be tried without waiting at all.
//!
//! Invariant: what lasts is taken for working only when it has lasted for a while, so that one which works and breaks at
//! once is not begun anew without end.

use std::time::Duration;

use crate::crypto::Entropy;

const FIRST: Duration = Duration::from_millis(250);
const LONGEST: Duration = Duration::from_secs(30);

/// What has worked for so long may break as if for the first time.
const STEADY_MS: u64 = 2_000;

/// Waiting times that double, each cut by a random part of up to one half.
pub(super) struct Backoff {
    next: Duration,
    /// How often it was tried again at once since it last worked.
    at_once: usize,
    /// Since when that which lasts has worked.
    works_since_ms: Option<u64>,
    entropy: Entropy,
}

impl Backoff {
    pub(super) fn new(entropy: Entropy) -> Self {
        Self { next: FIRST, at_once: 0, works_since_ms: None, entropy }
    }

    /// It worked: start small again.
    pub(super) fn reset(&mut self) {
        self.next = FIRST;
        self.at_once = 0;
    }

    /// What lasts works now.
    pub(super) fn works(&mut self, now_ms: u64) {
        self.works_since_ms.get_or_insert(now_ms);
    }

    /// What lasts has ended: it starts small again if that has worked for a while.
    pub(super) fn ended(&mut self, now_ms: u64) {
        if self.works_since_ms.take().is_some_and(|since_ms| now_ms.saturating_sub(since_ms) >= STEADY_MS) {
            self.reset();
        }
    }

    /// Whether it may be tried again without waiting, which it may `most` times until it works.
    pub(super) fn at_once(&mut self, most: usize) -> bool {
        let may = self.at_once < most;
        self.at_once += usize::from(may);
        may
    }

    /// How long to wait this time.
    pub(super) fn wait(&mut self) -> Duration {
        let whole = self.next;
        self.next = (whole * 2).min(LONGEST);
        let [random] = self.entropy.bytes().unwrap_or([0]);
        whole - whole / 2 * u32::from(random) / 255
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_bound_and_never_shrink_below_half() {
        let mut backoff = Backoff::new(Entropy::system());
        let mut whole = FIRST;
        for _ in 0..20 {
            let wait = backoff.wait();
            assert!(wait <= whole && wait >= whole / 2, "{wait:?} of {whole:?}");
            whole = (whole * 2).min(LONGEST);
        }
        backoff.reset();
        assert!(backoff.wait() <= FIRST);
    }

    #[test]
    fn what_breaks_as_soon_as_it_works_is_waited_for_longer_each_time() {
        let mut backoff = Backoff::new(Entropy::system());
        for now_ms in [1_000, 2_000, 3_000] {
            backoff.wait();
            backoff.works(now_ms);
            backoff.ended(now_ms + STEADY_MS - 1);
        }
        assert!(backoff.wait() >= FIRST * 4, "it did not work for long enough");
        backoff.works(9_000);
        backoff.works(9_000 + STEADY_MS);
        backoff.ended(9_000 + STEADY_MS);
        assert!(backoff.wait() <= FIRST);
        backoff.ended(99_000);
        assert!(backoff.wait() > FIRST / 2, "it has not worked again");
        assert_eq!(backoff.next, FIRST * 4);
    }

    #[test]
    fn it_is_tried_at_once_so_often_until_it_works() {
        let mut backoff = Backoff::new(Entropy::system());
        assert!(!backoff.at_once(0));
        assert_eq!([(); 4].map(|()| backoff.at_once(2)), [true, true, false, false]);
        backoff.wait();
        assert!(!backoff.at_once(2), "waiting does not make it work");
        backoff.reset();
        assert!(backoff.at_once(1));
    }
}
