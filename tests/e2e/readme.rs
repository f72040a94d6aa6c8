//! The chat in the README, as written there: one block per terminal.

use tokio::process::Command;
use undertone_tests::{Running, binary, blocks, root, wait_until};

/// The shell blocks of the README's chat, in order: the relay, bob, alice.
fn terminals() -> Vec<String> {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let chat = readme.split("\n## ").find(|section| section.starts_with("A chat to paste")).unwrap();
    blocks(chat, "sh")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_chat_in_the_readme_works_as_written() {
    let folder = tempfile::tempdir().unwrap();
    let bin = binary("undertone");
    let path = format!("{}:{}", bin.parent().unwrap().display(), std::env::var("PATH").unwrap());
    let terminal = |block: &str| {
        let mut command = Command::new("bash");
        command
            .args(["-euo", "pipefail", "-c", block])
            .current_dir(folder.path())
            .env("PATH", &path)
            .env("HOME", folder.path())
            .env_remove("XDG_CONFIG_HOME")
            .env_remove("XDG_DATA_HOME")
            .env_remove("UNDERTONE_PASSPHRASE")
            // The reader's own relay may run on the default port.
            .env("UNDERTONE_LISTEN", "127.0.0.1:0");
        Running::spawn(&mut command)
    };
    let terminals = terminals();
    let [relay, bob, alice] = terminals.as_slice() else { panic!("three terminals, found {}", terminals.len()) };

    let mut relay = terminal(relay);
    let ready = relay.line(|line| line.contains("http://127.0.0.1:")).await;
    let address = ready.split("http://").nth(1).unwrap().split_whitespace().next().unwrap();
    let here = |block: &str| block.replace("127.0.0.1:7611", address);

    let mut bob = terminal(&here(bob));
    bob.line(|line| line.contains("bob")).await;
    let mut alice = terminal(&here(alice));
    bob.line(|line| line.contains("snow!")).await;
    bob.type_line("how deep?").await;
    alice.line(|line| line.contains("how deep?")).await;
    alice.type_line("to the knees").await;
    bob.line(|line| line.contains("to the knees")).await;
    for person in [bob, alice] {
        let (status, _) = person.end().await;
        assert!(status.success(), "ended with {status}");
    }
    wait_until("the stores to be where the README says", async || {
        ["alice", "bob"].iter().all(|name| folder.path().join(name).is_dir()).then_some(())
    })
    .await;
}
