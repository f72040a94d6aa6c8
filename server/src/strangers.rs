//! Strangers: requests of those who have no session yet, counted by the address from which they come.
//!
//! Invariant: addresses are kept in memory, as long as their count lasts, and nowhere else.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use axum::extract::{ConnectInfo, FromRequestParts};
use http::request::Parts;
use undertone_wire::{ErrorCode, LimitReached, Limits};

use crate::{clock::Clock, error::Error, node::Node, rates::Rate};

/// Counts requests of strangers.
pub(crate) struct Strangers {
    of_address: Rate<IpAddr>,
    max: u64,
}

impl Strangers {
    /// Counters at zero.
    pub(crate) fn new(limits: &Limits, clock: &Arc<dyn Clock>) -> Self {
        let max = limits.stranger_requests_minute_max;
        Self { of_address: Rate::per_minute(max, clock), max }
    }

    /// Counts a request from this address.
    fn check(&self, client: IpAddr) -> Result<(), Error> {
        if self.of_address.allow(&household(client)) {
            return Ok(());
        }
        let limit = LimitReached { name: "stranger_requests_minute_max".to_owned(), value: self.max };
        Err(Error::OverLimit(ErrorCode::TooManyRequests, limit))
    }

    /// Forgets those whose count is back at zero.
    pub(crate) fn tidy(&self) {
        self.of_address.tidy();
    }
}

/// Whoever has one IPv6 address has the rest of its 64-bit network as well (RFC 6177).
fn household(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => ip,
        IpAddr::V6(ip) => Ipv6Addr::from(u128::from(ip) & !u128::from(u64::MAX)).into(),
    }
}

/// A request that anybody may make, counted. Handlers that answer strangers take it before the body.
pub(crate) struct Stranger;

impl FromRequestParts<Node> for Stranger {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, node: &Node) -> Result<Self, Error> {
        let Some(ConnectInfo(peer)) = parts.extensions.get::<ConnectInfo<SocketAddr>>() else {
            return Err(Error::Failed("a request without a connection"));
        };
        node.trusted_proxies.note(peer.ip(), &parts.headers);
        match node.trusted_proxies.client(peer.ip(), &parts.headers) {
            // Who is on this machine, and asks for nobody else, is no stranger.
            None => {}
            Some(client) => node.strangers.check(client)?,
        }
        Ok(Self)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::clock::ManualClock;

    #[test]
    fn each_household_has_its_count_which_time_lowers() {
        let manual = Arc::new(ManualClock::at(1_000_000));
        let clock: Arc<dyn Clock> = manual.clone();
        let limits = Limits { stranger_requests_minute_max: 2, ..Limits::default() };
        let strangers = Strangers::new(&limits, &clock);
        let ask = |from: &str| strangers.check(from.parse().unwrap()).is_ok();
        assert_eq!([ask("192.0.2.1"), ask("192.0.2.1"), ask("192.0.2.1")], [true, true, false]);
        assert!(ask("192.0.2.2"), "a neighbour");
        assert_eq!([ask("2001:db8::1"), ask("2001:db8::2"), ask("2001:db8::ffff:3")], [true, true, false]);
        assert!(ask("2001:db8:0:1::1"), "another network");
        manual.advance(Duration::from_secs(30));
        assert_eq!([ask("192.0.2.1"), ask("192.0.2.1")], [true, false]);
        manual.advance(Duration::from_secs(120));
        strangers.tidy();
        assert_eq!(strangers.of_address.kept(), 0, "whose count is back at zero is forgotten");
    }
}
