//! A world for end-to-end tests: real relay processes and real command-line clients in a folder that goes away.
//!
//! Nothing here sleeps for a fixed time: [`wait_until`] looks again until a condition holds, and gives up loudly.
//! The binaries are those that the build left beside the test; if they are missing, the test says what to build.
#![expect(clippy::panic, clippy::expect_used, reason = "a test that cannot go on says so")]

mod chance;
mod files;
mod https;
mod machine;
mod namespace;
mod person;
mod proxy;
mod relay;
mod store;

use std::{
    fmt::Display,
    path::{Path, PathBuf},
    time::Duration,
};

pub use chance::{Chance, seed};
pub use files::{blocks, containing, copy_folder};
pub use https::{ask, certificate_of, connect, connect_tls};
pub use machine::{There, on_a_machine_of_its_own, program};
pub use namespace::{Ids, command, inside, said};
pub use person::{Done, Person, Running, take_all};
pub use proxy::{Faults, Held, Proxy};
pub use relay::{Build, Launch, Relay};
pub use store::{Backend, Store};

/// How long a condition may take to hold. Generous: the machine may be busy, and a test that passes never waits it out.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `look` finds something, and gives it back.
///
/// # Panics
/// If it does not within a minute.
pub async fn wait_until<T>(what: impl Display, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let mut tick = tokio::time::interval(Duration::from_millis(20));
    let found = async {
        loop {
            tick.tick().await;
            if let Some(found) = look().await {
                return found;
            }
        }
    };
    tokio::time::timeout(PATIENCE, found).await.unwrap_or_else(|_| panic!("waited in vain: {what}"))
}

/// How much of a heavy test is done: its short form, or its long one if `tests/run --soak` asked for it.
pub fn scaled(short: usize, soak: usize) -> usize {
    if std::env::var_os("TEST_SOAK").is_some() { soak } else { short }
}

/// The repository's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate is in the repository").to_owned()
}

/// A binary of the workspace, as the build left it beside this test.
///
/// # Panics
/// If it is not there.
pub fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a test knows where it is");
    let folder = test.ancestors().nth(2).expect("tests are built into target/PROFILE/deps");
    let path = folder.join(name);
    assert!(path.exists(), "{} is missing: run cargo build --workspace --all-targets", path.display());
    path
}
