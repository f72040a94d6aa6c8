//! Turns: how many requests a session has open at a time, so that no device takes the places of all others.
//!
//! Counted in memory and on this node only, by the token's hash, whether it is one or not.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use undertone_wire::Hash;

/// Who has how many requests open.
#[derive(Clone, Default)]
pub(crate) struct Turns(Arc<Mutex<HashMap<Hash, u64>>>);

/// A request that is open until this is dropped.
pub(crate) struct Turn {
    turns: Turns,
    token_hash: Hash,
}

impl Turns {
    /// Opens a request, unless as many are open already.
    pub(crate) fn begin(&self, token_hash: Hash, max: u64) -> Option<Turn> {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(token_hash).or_default();
        if *count >= max {
            return None;
        }
        *count += 1;
        Some(Turn { turns: self.clone(), token_hash })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut open = self.turns.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.token_hash) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.token_hash);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_has_so_many_turns_and_gets_them_back() {
        let (turns, one, two) = (Turns::default(), Hash::of(b"one"), Hash::of(b"two"));
        let held = [turns.begin(one, 2), turns.begin(one, 2)];
        assert!(held.iter().all(Option::is_some) && turns.begin(one, 2).is_none());
        let other = turns.begin(two, 2);
        assert!(other.is_some(), "another session");
        drop(held);
        assert!(turns.begin(one, 1).is_some() && turns.begin(one, 1).is_some(), "what is done does not count");
        drop(other);
        assert!(turns.0.lock().unwrap().is_empty(), "nobody is remembered");
    }
}
