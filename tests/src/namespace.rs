//! A machine of a test's own: the test runs itself again in namespaces, so that nothing of what it does to the machine is
//! left when that process ends. Who is not root gets them by a user namespace.

use std::{borrow::BorrowMut, fs, os::unix::fs::MetadataExt as _};

use tokio::process::Command;

/// Set in the process that is inside.
const INSIDE: &str = "TEST_INSIDE";

/// As whom the test works inside, if it is not root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ids {
    /// As root, and there is nobody else.
    Root,
    /// As root, beside users and groups up to 65535: their ids are those that `/etc/subuid` and `/etc/subgid` give away.
    Many,
}

/// Whether this process is inside. If it is not, it has run the test there, which has passed.
///
/// `test` is the test's name as the harness has it, `namespaces` are options of `unshare`.
///
/// # Panics
/// If the test did not pass inside.
pub async fn inside(test: &str, namespaces: &str, ids: Ids) -> bool {
    if std::env::var_os(INSIDE).is_some_and(|name| name == test) {
        return true;
    }
    let root = fs::metadata("/proc/self").expect("the system tells of its processes").uid() == 0;
    let user = match ids {
        _ if root => "",
        Ids::Root => "--user --map-root-user",
        Ids::Many => "--user --map-root-user --map-auto",
    };
    let mut again = command(&format!("unshare {user} {namespaces}"));
    again.arg(std::env::current_exe().expect("a test knows where it is"));
    again.args([test, "--exact", "--nocapture"]).env(INSIDE, test);
    let said = said(again).await;
    assert!(said.contains("1 passed"), "{said}");
    false
}

/// A command out of words without spaces in them.
///
/// # Panics
/// If there are none.
pub fn command(words: &str) -> Command {
    let mut words = words.split_whitespace();
    let mut command = Command::new(words.next().expect("a program"));
    command.args(words).kill_on_drop(true);
    command
}

/// Does a command that must succeed, and answers what it says.
///
/// # Panics
/// If it does not succeed.
pub async fn said(mut command: impl BorrowMut<Command>) -> String {
    let command = command.borrow_mut();
    let done = command.output().await.unwrap_or_else(|error| panic!("{:?}: {error}", command.as_std()));
    let [stdout, stderr] = [&done.stdout, &done.stderr].map(|said| String::from_utf8_lossy(said).trim().to_owned());
    assert!(done.status.success(), "{:?}: {stdout} {stderr}", command.as_std());
    stdout
}
