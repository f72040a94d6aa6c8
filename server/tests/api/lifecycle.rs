//! Starting, stopping, starting again; and the binary from outside.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Child, ChildStdout, Command, Output, Stdio},
    sync::Arc,
};

use undertone_server::{Config, Place, Relay as TheRelay, SystemClock, SystemRandom};
use undertone_wire::{ByeReason, ErrorCode, GroupMembers, KeyCounts, Relay, SendResponse, path};

use crate::{
    stream::bye,
    support::{Account, Api, Backend, Message, TestRelay, both, server, text_of},
};

both! {
    a_restart_keeps_everything,
}

async fn a_restart_keeps_everything(on: Backend) {
    let relay = TestRelay::start(on).await;
    let (mut alice, mut bob) = (relay.device().await, relay.device().await);
    alice.stock(2).await;
    let group = alice.create_group_with(&[&bob]).await;
    let message = Message::at(group, 1);
    alice.send_message(&message).await.yes::<SendResponse>();
    let before = (bob.fetch(0).await, relay.api().get(path::RELAY).await.yes::<Relay>());

    let relay = relay.restart().await;
    for device in [&mut alice, &mut bob] {
        *device = device.at(&relay);
    }
    let after = (bob.fetch(0).await, relay.api().get(path::RELAY).await.yes::<Relay>());
    assert_eq!((&before.0, before.1.relay_id, before.1.incarnation), (&after.0, after.1.relay_id, after.1.incarnation));
    assert_eq!(alice.get(path::KEYS).await.yes::<KeyCounts>().key_packages[0].one_time, 2);
    alice.send_message(&message).await.yes::<SendResponse>();
    assert_eq!(bob.fetch(0).await, after.0, "a repeated send is still known");
    let members: GroupMembers = bob.get(&path::fill(path::GROUP_MEMBERS, group)).await.yes();
    assert_eq!(members.members.len(), 2);
    alice.says(group, 1).await;
    assert_eq!(bob.fetch(0).await.next_seq, 4);
}

#[tokio::test]
async fn stopping_says_bye_to_streams_and_leaves_no_log() {
    let relay = TestRelay::start(Backend::Sqlite).await;
    let (alice, bob) = (relay.device().await, relay.device().await);
    let mut streams = [alice.stream(0).await, bob.stream(0).await];
    for stream in &mut streams {
        stream.catches_up_to(1).await;
    }
    let [mut one, mut two] = streams;
    let said = tokio::spawn(async move { [one.next().await, two.next().await] });
    let stopped = relay.stop().await;
    assert_eq!(said.await.unwrap(), [bye(ByeReason::Shutdown), bye(ByeReason::Shutdown)]);
    let left: Vec<_> =
        std::fs::read_dir(stopped.store.folder()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().any(|name| name == "undertone.db"));
    assert!(!left.iter().any(|name| name == "undertone.db-wal"), "the last checkpoint leaves no log: {left:?}");
    assert!(!left.iter().any(|name| name == "undertone.db.admin"), "nobody listens any more: {left:?}");
}

#[tokio::test]
async fn a_store_is_open_once_at_a_time() {
    let relay = TestRelay::start(Backend::Sqlite).await;
    let config = Config::new(relay.store.place(), "127.0.0.1:0".parse().unwrap());
    let second = TheRelay::bind(config, Arc::new(SystemClock), Arc::new(SystemRandom)).await;
    let error = second.err().expect("a second relay is refused").to_string();
    assert!(error.contains("another relay is running"), "{error}");
}

#[tokio::test]
async fn the_files_are_for_their_owner_only() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("data/deep/undertone.db");
    let config = Config::new(Place::Sqlite(place.clone()), "127.0.0.1:0".parse().unwrap());
    let relay = TheRelay::bind(config, Arc::new(SystemClock), Arc::new(SystemRandom)).await.unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(place.parent().unwrap()), mode(&place)), (0o700, 0o600));
    assert_eq!(mode(&place.with_file_name("undertone.db-wal")), 0o600);
    drop(relay);
}

fn refused(arguments: &[&str], status: i32, reason: &str) {
    let Output { status: ended, stdout, stderr } = server(arguments).output().unwrap();
    let stderr = String::from_utf8(stderr).unwrap();
    assert_eq!(ended.code(), Some(status), "{arguments:?}: {stderr}");
    assert!(stdout.is_empty());
    assert!(stderr.contains(reason), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
}

#[test]
fn the_binary_says_in_one_line_why_it_does_not_start() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data").to_str().unwrap().to_owned();
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();

    refused(&["--data", &data, "--listen", "0.0.0.0:0", "--tls", "off"], 2, "trusted_proxies");
    refused(&["--data", &data, "--database", "mysql://h/d"], 2, "postgres://");
    refused(&["--data", &data, "--log", "=="], 2, "--log: log: ");
    refused(&["--data", &data, "--config", file.with_extension("toml").to_str().unwrap()], 2, "it cannot be read");
    assert!(!folder.path().join("data").exists(), "nothing is made before the arguments hold");
    refused(&["--data", &data, "--listen", &taken], 1, "cannot listen on");
    refused(&["--data", file.join("under").to_str().unwrap(), "--listen", "127.0.0.1:0"], 1, "cannot use");
}

/// A relay in a process of its own, with what it said first.
fn launched(data: &Path, log: &str) -> (Child, BufReader<ChildStdout>, String) {
    let mut child = server(&["--data", data.to_str().unwrap(), "--listen", "127.0.0.1:0", "--log", log])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut ready = String::new();
    stdout.read_line(&mut ready).unwrap();
    (child, stdout, ready)
}

/// Sends a signal and waits for the end; answers the status and the log.
fn ended(child: Child, signal: &str) -> (Option<i32>, String) {
    let told = Command::new("kill").args(["-s", signal, &child.id().to_string()]).status().unwrap();
    assert!(told.success());
    let Output { status, stderr, .. } = child.wait_with_output().unwrap();
    (status.code(), String::from_utf8(stderr).unwrap())
}

fn url_in(ready: &str) -> &str {
    ready.split_whitespace().find(|word| word.starts_with("http://")).expect("an address")
}

#[test]
fn the_binary_says_when_it_is_ready_and_stops_when_it_is_told() {
    let folder = tempfile::tempdir().unwrap();
    for signal in ["TERM", "INT"] {
        let (child, mut stdout, ready) = launched(&folder.path().join("data"), "info");
        let url = url_in(&ready);
        assert!(ready.contains(&format!("undertone register --relay {url} --username ")), "{ready}");
        assert!(!url.ends_with(":0"), "the port is the real one");
        assert_eq!(ended(child, signal).0, Some(0));
        let mut rest = String::new();
        stdout.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "", "one line and no more");
    }
}

/// Asks by name for what must stay silent too.
const LOUDEST: &str =
    "trace,sqlx::query=trace,hyper::proto=trace,hyper_util=trace,tungstenite::protocol=trace,openmls=trace";

#[tokio::test]
async fn no_level_of_the_log_names_anybody() {
    let folder = tempfile::tempdir().unwrap();
    let (child, _stdout, ready) = launched(&folder.path().join("data"), LOUDEST);
    let api = Api::new(url_in(&ready));
    let username = "a-name-to-look-for";
    let alice = Account::new(1).named(username).register(&api).await.remove(0);
    let bob = api.device().await;
    let group = alice.create_group_with(&[&bob]).await;
    let message = Message::at(group, 1).saying(b"a ciphertext to look for");
    alice.send_message(&message).await.yes::<SendResponse>();
    bob.get(&path::fill(path::USERNAME, username)).await.yes::<undertone_wire::Account>();
    bob.stock(1).await;
    bob.stream(0).await.catches_up_to(3).await;
    bob.ack(2).await.done();
    bob.get(&path::fill(path::GROUP, "an-id-to-look-for")).await.no(ErrorCode::Malformed);

    let (status, log) = ended(child, "TERM");
    assert_eq!(status, Some(0));
    assert!(log.contains("/v1/groups/{group}/messages") && log.contains("DEBUG"), "the log has what it may have");
    assert!([" sqlx", " hyper", " tungstenite", " openmls"].iter().all(|part| !log.contains(part)), "{log}");
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let secrets = [
        username.to_owned(),
        "to look for".to_owned(),
        "to-look-for".to_owned(),
        alice.account_id().to_string(),
        alice.id().to_string(),
        group.to_string(),
        message.id.to_string(),
        text_of(bob.token.as_ref().unwrap()),
    ];
    let bytes = [hex(alice.account_id().as_bytes()), hex(alice.id().as_bytes()), hex(group.as_bytes())];
    for secret in secrets.iter().chain(&bytes) {
        assert!(!log.contains(secret.as_str()), "{secret}");
    }
}
