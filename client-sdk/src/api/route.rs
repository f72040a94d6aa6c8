//! Which of a relay's addresses is asked next: the rules, without a socket, a clock or a retry.
//!
//! It stays with the address that works, and moves on when told that it does not. Reports may come late, from requests
//! that began before it moved: only one about the present address moves it away. An address of another relay is one that
//! does not work: its turn comes again, since the relay may be there again.
//!
//! Invariant: an address is taken for the relay's only from when it was confirmed until it next fails.

/// The addresses of one relay, by their numbers from 0, and where it is with them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Route {
    strange: Vec<bool>,
    at: usize,
    confirmed: bool,
    heard: usize,
    /// The one that was left last because it did not work.
    failed: Option<usize>,
}

impl Route {
    /// A route over `count` addresses that begins with the first.
    pub(super) fn new(count: usize) -> Self {
        Self { strange: vec![false; count], at: 0, confirmed: false, heard: 0, failed: None }
    }

    /// The address to ask, and whether it is confirmed.
    pub(super) fn next(&self) -> (usize, bool) {
        (self.at, self.confirmed)
    }

    /// How many addresses there are that were not another relay's when last heard.
    pub(super) fn ways(&self) -> usize {
        self.strange.iter().filter(|strange| !**strange).count()
    }

    /// The address that answered last; the first before any has.
    pub(super) fn heard(&self) -> usize {
        self.heard
    }

    /// This address has answered.
    pub(super) fn answered(&mut self, address: usize) {
        self.heard = address;
    }

    /// This address answers as the relay: it is asked from now on, unless another one is confirmed already.
    pub(super) fn take(&mut self, address: usize) {
        if !self.confirmed && address < self.strange.len() {
            (self.at, self.confirmed) = (address, true);
        }
    }

    /// This address does not work: the next one is asked, or the same if there is no other. Whoever answers there is
    /// looked at anew.
    pub(super) fn failed(&mut self, address: usize) {
        if address == self.at {
            self.at = (self.at + 1) % self.strange.len().max(1);
            self.confirmed = false;
            self.failed = Some(address);
        }
    }

    /// The address that was left last because it did not work: its turn comes when no other answers.
    pub(super) fn failed_last(&self) -> Option<usize> {
        self.failed
    }

    /// This address answers as another relay. Says whether that is news.
    pub(super) fn is_strange(&mut self, address: usize) -> bool {
        self.failed(address);
        self.strange.get_mut(address).is_some_and(|strange| !std::mem::replace(strange, true))
    }

    /// A stream at this address has greeted as the relay. Only that ends its being strange: what says one thing in an
    /// answer and another in a greeting is no news each time.
    pub(super) fn is_own(&mut self, address: usize) {
        if let Some(strange) = self.strange.get_mut(address) {
            *strange = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Clone, Copy)]
    enum Told {
        Confirmed(usize),
        Answered(usize),
        Failed(usize),
        Strange(usize),
        Own(usize),
    }
    use Told::{Answered, Confirmed, Failed, Own, Strange};

    type Next = (usize, bool);

    fn after(count: usize, told: &[Told]) -> Route {
        let mut route = Route::new(count);
        for one in told {
            match *one {
                Confirmed(address) => route.take(address),
                Answered(address) => route.answered(address),
                Failed(address) => route.failed(address),
                Strange(address) => drop(route.is_strange(address)),
                Own(address) => route.is_own(address),
            }
        }
        route
    }

    #[test]
    fn it_stays_with_what_works_and_moves_on_from_what_does_not() {
        let table: &[(usize, &[Told], Next)] = &[
            (1, &[], (0, false)),
            (1, &[Confirmed(0), Answered(0)], (0, true)),
            (1, &[Confirmed(0), Failed(0)], (0, false)),
            (1, &[Confirmed(0), Strange(0)], (0, false)),
            (1, &[Strange(0), Confirmed(0)], (0, true)),
            (3, &[Confirmed(0), Answered(0), Answered(0)], (0, true)),
            (3, &[Confirmed(0), Failed(0)], (1, false)),
            (3, &[Failed(0), Failed(1)], (2, false)),
            (3, &[Failed(0), Failed(1), Failed(2)], (0, false)),
            (3, &[Failed(0), Confirmed(1), Answered(1)], (1, true)),
            // What is said late about an address it has left changes nothing.
            (3, &[Failed(0), Failed(0), Failed(0)], (1, false)),
            // Of those that are asked at once the first to answer is taken.
            (3, &[Confirmed(2)], (2, true)),
            (3, &[Confirmed(2), Confirmed(0)], (2, true)),
            (3, &[Failed(0), Confirmed(0)], (0, true)),
            (3, &[Failed(0), Confirmed(1), Strange(0)], (1, true)),
            // Another relay's is left, and looked at again in its turn.
            (3, &[Strange(0)], (1, false)),
            (3, &[Strange(0), Confirmed(1), Answered(1)], (1, true)),
            (3, &[Strange(0), Strange(1), Strange(2)], (0, false)),
            (3, &[Strange(0), Strange(1), Strange(2), Confirmed(0), Own(0)], (0, true)),
        ];
        for (count, told, next) in table {
            assert_eq!(after(*count, told).next(), *next, "{count} addresses, {told:?}");
        }
    }

    #[test]
    fn each_address_is_tried_once_in_as_many_failures_as_there_are_ways() {
        for count in 1..6 {
            let mut route = Route::new(count);
            let mut tried: Vec<_> = (0..route.ways())
                .map(|_| {
                    let (address, _) = route.next();
                    route.failed(address);
                    address
                })
                .collect();
            tried.sort_unstable();
            assert_eq!(tried, (0..count).collect::<Vec<_>>());
        }
    }

    #[test]
    fn that_an_address_is_strange_is_news_once_until_a_stream_there_greets_as_the_relay() {
        let mut route = Route::new(2);
        assert!(route.is_strange(1));
        route.take(1);
        assert!(!route.is_strange(1));
        assert_eq!((route.ways(), route.next()), (1, (0, false)));
        route.is_own(1);
        assert_eq!(route.ways(), 2);
        assert!(route.is_strange(1));
    }

    #[test]
    fn the_one_that_failed_last_is_remembered() {
        assert_eq!(after(3, &[Confirmed(0)]).failed_last(), None);
        assert_eq!(after(3, &[Confirmed(0), Failed(0)]).failed_last(), Some(0));
        assert_eq!(after(3, &[Confirmed(0), Failed(0), Failed(0), Failed(1)]).failed_last(), Some(1));
    }

    #[test]
    fn the_one_heard_last_is_remembered_while_it_moves() {
        assert_eq!(after(2, &[]).heard(), 0);
        assert_eq!(after(2, &[Failed(0), Answered(1), Failed(1)]).heard(), 1);
    }
}
