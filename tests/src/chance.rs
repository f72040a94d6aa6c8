//! Chance that can be repeated: a seed, and moments that nobody chose.

use std::{
    hash::{BuildHasher as _, Hasher as _, RandomState},
    time::Duration,
};

/// A sequence of numbers that look random and follow from a seed. Nothing secret depends on it.
#[derive(Debug, Clone)]
pub struct Chance(u64);

/// The run's seed: `TEST_SEED` if it is set, so that a run can be repeated, and random otherwise.
///
/// # Panics
/// If it is set to something that is no number.
pub fn seed() -> u64 {
    match std::env::var("TEST_SEED") {
        Ok(seed) => seed.parse().expect("TEST_SEED is a number"),
        Err(_) => RandomState::new().build_hasher().finish(),
    }
}

impl Chance {
    /// The sequence of a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Another sequence, that goes on by itself.
    pub fn fork(&mut self) -> Self {
        Self(self.next())
    }

    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// A place in something that long.
    ///
    /// # Panics
    /// If it is empty.
    pub fn index(&mut self, length: usize) -> usize {
        usize::try_from(self.below(length as u64)).expect("lengths fit")
    }

    /// Whether something happens that happens once in `many` times.
    pub fn one_in(&mut self, many: u64) -> bool {
        self.below(many) == 0
    }

    /// Waits for a moment that nobody chose: the timeout of something that never happens.
    pub async fn moment(&mut self, longest: Duration) {
        let longest_ms = u64::try_from(longest.as_millis()).unwrap_or(u64::MAX).max(1);
        let moment = Duration::from_millis(self.below(longest_ms));
        drop(tokio::time::timeout(moment, std::future::pending::<()>()).await);
    }

    /// The next number (SplitMix64).
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}
