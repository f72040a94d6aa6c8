//! The engine against the fake relay: what goes wrong on the way changes nothing at the end.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on says so")]

mod changes;
mod contradictions;
mod convergence;
mod copies;
mod direct;
mod faults;
mod keys;
mod liar;
mod linking;
mod messages;
mod nodes;
mod other_relay;
mod passing;
mod post_quantum;
mod prekeys;
mod receipts;
mod requests;
mod search;
mod set_back;
mod store;
mod world;
