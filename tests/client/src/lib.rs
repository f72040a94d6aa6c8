//! A raw client of the relay for tests: accounts, devices, messages, streams, and as much MLS as the relay can see.
//!
//! It has no SDK in it and no state beyond keys and a session, so that a test decides what is sent, repeated, taken and
//! acked. What must survive a bad network is sent by [`Api::insist`]: the same bytes, until the relay says yes or no.
//! Like all of a test's tools, these functions panic when they cannot do what they say.
#![expect(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test that cannot go on says so")]

mod account;
mod api;
mod direct;
mod message;
mod pipe;
mod socket;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub use account::{Account, Device, Keys, log_in, login_request};
pub use api::{Api, Reply, plain_http, text_of};
pub use direct::{ciphertext_for, direct_in};
pub use message::{Message, Parsed, bytes_of, private_message};
pub use socket::Socket;

/// A moment by which something that is under way must have happened.
pub const SOON: Duration = Duration::from_secs(30);

/// Random bytes.
///
/// # Panics
/// If the operating system has none.
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).unwrap();
    bytes
}

/// The machine's time in milliseconds since the Unix epoch.
#[expect(clippy::disallowed_methods, reason = "the relay's process keeps the machine's time too")]
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
