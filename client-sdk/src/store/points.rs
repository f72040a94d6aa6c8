//! The points at which a write may fail, or the process may die: before each statement that writes, before each commit
//! and after it. Tests number them, and let a store die at one. Outside of tests there is nothing here.
//!
//! Invariant: a store that has died answers nothing any more, as a process that is gone.

#[cfg(not(test))]
pub(super) use nothing::Points;
#[cfg(test)]
pub(crate) use numbered::Points;

#[cfg(not(test))]
mod nothing {
    use std::path::Path;

    use crate::store::StoreError;

    /// Counts nothing.
    #[derive(Clone)]
    pub(in crate::store) struct Points;

    #[expect(clippy::unused_self, clippy::unnecessary_wraps, reason = "in tests it has something to say")]
    impl Points {
        pub(in crate::store) fn of(_: &Path) -> Self {
            Self
        }

        pub(in crate::store) fn pass(&self) -> Result<(), StoreError> {
            Ok(())
        }

        pub(in crate::store) fn is_over(&self) -> bool {
            false
        }
    }
}

#[cfg(test)]
mod numbered {
    use std::{
        collections::HashMap,
        path::{Path, PathBuf},
        sync::{
            Arc, LazyLock, Mutex, PoisonError,
            atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
        },
    };

    use crate::store::StoreError;

    static STORES: LazyLock<Mutex<HashMap<PathBuf, Points>>> = LazyLock::new(Mutex::default);

    /// The points of a store, over all the times it is opened.
    #[derive(Clone, Default)]
    pub(crate) struct Points {
        passed: Arc<AtomicU64>,
        /// The number of the point at which it dies; 0 for none.
        dies_at: Arc<AtomicU64>,
        /// How often it was opened before it died.
        dead: Arc<AtomicU64>,
        /// Whether points are passed without being counted.
        paused: Arc<AtomicBool>,
        opened: u64,
    }

    impl Points {
        /// From now on the points of the store in this folder are counted.
        pub(crate) fn count(path: &Path) -> Self {
            let points = Self::default();
            STORES.lock().unwrap_or_else(PoisonError::into_inner).insert(path.to_owned(), points.clone());
            points
        }

        /// The points of a store that is being opened.
        pub(in crate::store) fn of(path: &Path) -> Self {
            let mut stores = STORES.lock().unwrap_or_else(PoisonError::into_inner);
            let points = stores.entry(path.to_owned()).or_default();
            points.opened += 1;
            points.clone()
        }

        /// Lets the store die at the point that will have this number, counted from 1.
        pub(crate) fn die_at(&self, number: u64) {
            self.dies_at.store(number, SeqCst);
        }

        /// What is written from now on is the test's own, or the store's again.
        pub(crate) fn pause(&self, paused: bool) {
            self.paused.store(paused, SeqCst);
        }

        /// How many were passed.
        pub(crate) fn passed(&self) -> u64 {
            self.passed.load(SeqCst)
        }

        /// Whether the store has died.
        pub(crate) fn has_died(&self) -> bool {
            self.dead.load(SeqCst) > 0
        }

        pub(in crate::store) fn pass(&self) -> Result<(), StoreError> {
            if self.is_over() {
                return Err(StoreError::Closed);
            }
            if self.paused.load(SeqCst) {
                return Ok(());
            }
            if self.passed.fetch_add(1, SeqCst) + 1 == self.dies_at.load(SeqCst) {
                self.dead.store(self.opened, SeqCst);
                return Err(StoreError::Closed);
            }
            Ok(())
        }

        /// Whether it died since it was opened this time.
        pub(in crate::store) fn is_over(&self) -> bool {
            self.opened > 0 && self.dead.load(SeqCst) == self.opened
        }
    }
}
