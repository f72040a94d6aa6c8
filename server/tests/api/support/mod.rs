//! A relay in process; those who talk to it are `undertone-test-client`'s.

pub(crate) mod relay;
mod store;

pub(crate) use relay::TestRelay;
pub(crate) use store::{Backend, Store, both, connect, postgres};
pub(crate) use undertone_test_client::{
    Account, Api, Device, Keys, Message, Reply, SOON, Socket, bytes_of, ciphertext_for, direct_in, log_in,
    login_request, private_message, random, text_of,
};

/// How much of a heavy test is done: its short form, or its long one if `tests/run --soak` asked for it.
pub(crate) fn scaled(short: u64, soak: u64) -> u64 {
    if std::env::var_os("UNDERTONE_SOAK").is_some() { soak } else { short }
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
