//! How long to wait before trying again: longer each time, never in step with others.

use std::time::Duration;

use crate::crypto::Entropy;

const FIRST: Duration = Duration::from_millis(250);
const LONGEST: Duration = Duration::from_secs(30);

/// Waiting times that double, each cut by a random part of up to one half.
pub(super) struct Backoff {
    next: Duration,
    entropy: Entropy,
}

impl Backoff {
    pub(super) fn new(entropy: Entropy) -> Self {
        Self { next: FIRST, entropy }
    }

    /// It worked: start small again.
    pub(super) fn reset(&mut self) {
        self.next = FIRST;
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
}
