//! Two machines on one network, made of network namespaces: a relay on one, a person on the other who has nothing but the
//! connection string.
//!
//! The test runs itself again in a namespace of its own, so that nothing of it is left when that process ends. Who is not
//! root gets one by a user namespace.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path, process::Stdio};

use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
};
use undertone_tests::{Person, binary, wait_until};

/// Set in the process that is in the first machine's namespace.
const INSIDE: &str = "UNDERTONE_TEST_TWO_HOSTS";
const NAME: &str = "two_hosts::a_person_on_another_machine_needs_the_connection_string_and_nothing_else";

const RELAY: [&str; 4] = ["--listen", "0.0.0.0:7611", "--log", "warn"];

/// Does a command that must succeed, and answers what it says.
async fn said(mut command: Command) -> String {
    let done = command.output().await.unwrap();
    let [stdout, stderr] = [&done.stdout, &done.stderr].map(|said| String::from_utf8_lossy(said).trim().to_owned());
    assert!(done.status.success(), "{:?}: {stdout} {stderr}", command.as_std());
    stdout
}

fn command(words: &str) -> Command {
    let mut words = words.split_whitespace();
    let mut command = Command::new(words.next().unwrap());
    command.args(words);
    command
}

/// The other machine.
struct There {
    // It goes with its standard input.
    _holds_it: Child,
    pid: u32,
}

impl There {
    /// A machine that reaches this one, 10.77.0.1, as 10.77.0.2.
    async fn beside_here() -> Self {
        let held = command("unshare --net cat").stdin(Stdio::piped()).kill_on_drop(true).spawn();
        let held = held.unwrap();
        let pid = held.id().unwrap();
        let namespace = |process: &str| fs::read_link(format!("/proc/{process}/ns/net")).ok();
        wait_until("the other machine is another", async || {
            (namespace(&pid.to_string()) != namespace("self")).then_some(())
        })
        .await;
        let there = Self { _holds_it: held, pid };
        for words in [
            "ip link set lo up".to_owned(),
            format!("ip link add here type veth peer name there netns {pid}"),
            "ip addr add 10.77.0.1/24 dev here".to_owned(),
            "ip link set here up".to_owned(),
        ] {
            said(command(&words)).await;
        }
        for words in ["ip addr add 10.77.0.2/24 dev there", "ip link set there up"] {
            said(there.on_it(&command(words))).await;
        }
        there
    }

    /// The same command on this machine.
    fn on_it(&self, command: &Command) -> Command {
        let command = command.as_std();
        let mut there = Command::new("nsenter");
        there.args(["--target", &self.pid.to_string(), "--net", "--"]).arg(command.get_program());
        there.args(command.get_args()).stdin(Stdio::null());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => there.env(name, value),
                None => there.env_remove(name),
            };
        }
        there
    }
}

fn relay(data: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(binary("undertone-server"));
    command.args(RELAY).arg("--data").arg(data).args(arguments);
    command
}

#[tokio::test]
async fn a_person_on_another_machine_needs_the_connection_string_and_nothing_else() {
    if std::env::var_os(INSIDE).is_none() {
        let root = fs::metadata("/proc/self").unwrap().uid() == 0;
        let mut inside = command(if root { "unshare --net" } else { "unshare --user --map-root-user --net" });
        inside.arg(std::env::current_exe().unwrap()).args([NAME, "--exact", "--nocapture"]).env(INSIDE, "1");
        let said = said(inside).await;
        assert!(said.contains("1 passed"), "{said}");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let there = There::beside_here().await;
    let mut serving = relay(&data, &[]).stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    let ready = BufReader::new(serving.stdout.take().unwrap()).lines().next_line().await.unwrap().unwrap();
    assert!(ready.contains("undertone://10.77.0.1:7611/#"), "{ready}");
    assert!(!ready.contains("invite="), "nobody sits at a terminal: {ready}");

    let for_alice = said(relay(&data, &["invite", "create"])).await;
    let for_bob = said(relay(&data, &["invite", "create"])).await;
    let (alice, bob) = (Person::new(folder.path(), "alice"), Person::new(folder.path(), "bob"));
    alice.ok(&["register", "--relay", &for_alice, "--username", "alice"]).await;
    said(there.on_it(&bob.command(&["register", "--relay", &for_bob, "--username", "bob"]))).await;
    alice.ok(&["group", "create", "trip", "--add", "bob"]).await;
    alice.ok(&["send", "trip", "snow!"]).await;
    let heard = said(there.on_it(&bob.command(&["listen", "--count", "1", "--for", "30"]))).await;
    assert!(heard.contains("snow!"), "{heard}");
    said(there.on_it(&bob.command(&["send", "trip", "skis packed"]))).await;
    alice.ok(&["listen", "--count", "1", "--for", "30"]).await;

    let mallory = Person::new(folder.path(), "mallory");
    let (place, _) = for_bob.split_once('#').unwrap();
    for (address, words) in [
        (for_bob.clone(), "invite"),
        (format!("{place}#BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc"), "another key than the one"),
        ("http://10.77.0.1:7611".to_owned(), "cross the network in clear"),
        ("https://10.77.0.1:7611".to_owned(), "not one that this machine accepts"),
    ] {
        let mut refused = there.on_it(&mallory.command(&["register", "--relay", &address, "--username", "mallory"]));
        let refused = refused.output().await.unwrap();
        let stderr = String::from_utf8_lossy(&refused.stderr);
        assert!(!refused.status.success() && stderr.contains(words), "{address}: {stderr}");
    }
}
