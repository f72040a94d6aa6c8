//! A relay in process; those who talk to it are `undertone-test-client`'s.

mod front;
pub(crate) mod relay;
mod store;

use std::process::{Command, Stdio};

pub(crate) use front::{Fault, in_front_of};
pub(crate) use relay::TestRelay;
pub(crate) use store::{Backend, Store, both, connect, postgres};
pub(crate) use undertone_test_client::{
    Account, Api, Device, Keys, Message, Reply, SOON, Socket, bytes_of, ciphertext_for, direct_in, log_in,
    login_request, plain_http, private_message, random, text_of,
};

/// The relay's program, which knows of no configuration but these arguments.
pub(crate) fn server(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_undertone-server"));
    command.args(arguments).stdin(Stdio::null());
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("UNDERTONE_")) {
        command.env_remove(name);
    }
    command
}

/// How much of a heavy test is done: its short form, or its long one if `tests/run --soak` asked for it.
pub(crate) fn scaled(short: u64, soak: u64) -> u64 {
    if std::env::var_os("TEST_SOAK").is_some() { soak } else { short }
}

/// Waits until a condition holds. Asks again and again, so it is for what has no better way to be waited for.
pub(crate) async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let waited = async {
        while !holds().await {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, waited).await.unwrap_or_else(|_| panic!("in vain: {what}"));
}
