//! What comes in the place of a relay: an earlier state of itself, or another relay at its addresses.
//!
//! Invariant: faults and ways stay where they are; only who answers changes.

use std::sync::{Arc, PoisonError, atomic::Ordering::Relaxed};

use super::{FakeRelay, state::State};

/// A copy of everything that a relay held.
pub struct Backup(Box<State>);

impl std::fmt::Debug for Backup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Backup(..)")
    }
}

impl FakeRelay {
    /// Copies everything that the relay holds.
    pub fn backup(&self) -> Backup {
        Backup(Box::new(self.look(State::clone)))
    }

    /// The relay goes on from a copy: what came after it is lost. For the rest as [`Self::restore`].
    pub fn restore_from(&self, backup: &Backup) {
        self.change(|state| {
            let mut restored = State::clone(&backup.0);
            restored.go_on_after(state);
            *state = restored;
        });
        self.restore();
    }

    /// From now on another relay answers at all addresses of this one, whose streams break.
    pub fn replace_by(&self, other: &Arc<Self>) {
        *self.in_its_place.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(other));
        self.cut_streams();
    }

    /// Ends [`Self::replace_by`].
    pub fn take_its_place_again(&self) {
        let other = self.in_its_place.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(other) = other {
            other.cut_streams();
        }
    }

    /// How often the relay has looked up a token, whoever it is of: for each request that carries one, and for an open
    /// stream time and again. 0 if it has heard none.
    pub fn tokens_heard(&self) -> u64 {
        self.look(|state| state.tokens_heard.load(Relaxed))
    }

    /// How often somebody asked the relay which one it is.
    pub fn times_asked_who_it_is(&self) -> u64 {
        self.look(|state| state.descriptions_given.load(Relaxed))
    }
}
