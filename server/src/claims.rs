//! Claims: how often key packages of an account are handed out, counted in memory and on this node only.
//!
//! Nothing about who asks for whose keys is stored. Over the limit a claim is not refused: it gets the last-resort key.

use std::sync::Arc;

use undertone_wire::{AccountId, Limits};

use crate::{clock::Clock, rates::Rate};

/// Counts claims.
pub(crate) struct Claims {
    of_pair: Rate<(AccountId, AccountId)>,
    of_account: Rate<AccountId>,
}

impl Claims {
    /// Counters at zero.
    pub(crate) fn new(limits: &Limits, clock: &Arc<dyn Clock>) -> Self {
        Self {
            of_pair: Rate::per_hour(limits.claims_per_pair_hour_max, clock),
            of_account: Rate::per_hour(limits.claims_per_account_hour_max, clock),
        }
    }

    /// Counts a claim of `target`'s keys by `asking`; whether it is within the limits. Only for accounts that exist, so
    /// that nobody fills the memory with others.
    pub(crate) fn allow(&self, asking: AccountId, target: AccountId) -> bool {
        // What one asker is not allowed does not count for all.
        self.of_pair.allow(&(asking, target)) && self.of_account.allow(&target)
    }

    /// How many counts are kept: of pairs, and of accounts.
    #[cfg(test)]
    pub(crate) fn kept(&self) -> (usize, usize) {
        (self.of_pair.kept(), self.of_account.kept())
    }

    /// Forgets those whose count is back at zero.
    pub(crate) fn tidy(&self) {
        self.of_pair.tidy();
        self.of_account.tidy();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::clock::ManualClock;
    use undertone_wire::PublicKey;

    fn account(byte: u8) -> AccountId {
        AccountId::from_identity_key(&PublicKey::from([byte; 32]))
    }

    #[test]
    fn each_pair_and_each_account_has_its_count_which_time_lowers() {
        let manual = Arc::new(ManualClock::at(1_000_000));
        let clock: Arc<dyn Clock> = manual.clone();
        let limits = Limits { claims_per_pair_hour_max: 2, claims_per_account_hour_max: 3, ..Limits::default() };
        let claims = Claims::new(&limits, &clock);
        let (a, b, c) = (account(1), account(2), account(3));
        assert_eq!([claims.allow(a, c), claims.allow(a, c), claims.allow(a, c)], [true, true, false]);
        assert_eq!([claims.allow(b, c), claims.allow(b, c)], [true, false], "the account's own count is full");
        assert!(claims.allow(a, b), "another account");
        manual.advance(Duration::from_secs(3_600));
        assert_eq!(claims.kept(), (3, 2));
        claims.tidy();
        assert!(claims.allow(a, c) && claims.allow(b, c));
        manual.advance(Duration::from_secs(2 * 3_600));
        claims.tidy();
        assert_eq!(claims.kept(), (0, 0), "whose count is back at zero is forgotten");
    }

    #[test]
    fn a_limit_of_zero_allows_nothing() {
        let clock: Arc<dyn Clock> = Arc::new(ManualClock::at(0));
        let limits = Limits { claims_per_pair_hour_max: 0, ..Limits::default() };
        assert!(!Claims::new(&limits, &clock).allow(account(1), account(2)));
    }
}
