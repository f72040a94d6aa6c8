//! What the tests of this crate share: waiting for a condition, and tests that do a part of their work in another process.

use std::{process::Stdio, time::Duration};

use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
};

/// Waits until a condition holds.
pub(crate) async fn wait_until(what: &str, mut look: impl AsyncFnMut() -> bool) {
    let mut tick = tokio::time::interval(Duration::from_millis(20));
    let met = async {
        while !look().await {
            tick.tick().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), met).await.unwrap_or_else(|_| panic!("waited in vain: {what}"));
}

/// One test of this binary in another process, which knows by these variables that it is one. Dropping it kills it.
pub(crate) fn in_process(test: &str, variables: &[(&str, &str)]) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([test, "--exact", "--nocapture"]).envs(variables.iter().copied());
    command.stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap()
}

/// What a process says after these words, at the beginning of a line.
pub(crate) async fn told_by(process: &mut Child, words: &str) -> String {
    let mut lines = BufReader::new(process.stdout.as_mut().unwrap()).lines();
    loop {
        if let Some(told) = lines.next_line().await.unwrap().unwrap().strip_prefix(words) {
            return told.to_owned();
        }
    }
}
