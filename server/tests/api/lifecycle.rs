//! Starting, stopping, starting again; and the binary from outside.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    os::unix::fs::PermissionsExt as _,
    process::{Child, Command, Output, Stdio},
    sync::Arc,
};

use undertone_server::{Config, Place, Relay as TheRelay, SystemClock, SystemRandom};
use undertone_wire::{ByeReason, FetchResponse, GroupMembers, KeyCounts, Relay, SendResponse, ServerFrame, path};

use crate::support::{Message, SOON, TestRelay};

#[tokio::test]
async fn a_restart_keeps_everything() {
    let relay = TestRelay::start().await;
    let (mut alice, mut bob) = (relay.device().await, relay.device().await);
    alice.stock(2).await;
    let group = alice.create_group_with(&[&bob]).await;
    let message = Message::at(group, 1);
    alice.send_message(&message).await.yes::<SendResponse>();
    let before = (bob.fetch(0).await, relay.api().get(path::RELAY).await.yes::<Relay>());

    let relay = relay.restart().await;
    for device in [&mut alice, &mut bob] {
        device.api.url.clone_from(&relay.url);
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
async fn stopping_says_bye_to_streams_and_answers_those_who_wait() {
    let relay = TestRelay::start().await;
    let (alice, bob) = (relay.device().await, relay.device().await);
    let mut stream = alice.stream(0).await;
    stream.catches_up_to(1).await;
    let mut polling = bob.stream(0).await;
    polling.catches_up_to(1).await;
    let waiting = tokio::spawn(async move { bob.get(&format!("{}?wait=50", path::QUEUE)).await });
    let said_bye = tokio::spawn(async move { (stream.next().await, polling.next().await) });
    let folder = relay.stop().await;
    let bye = Some(ServerFrame::Bye { reason: ByeReason::Shutdown });
    assert_eq!(said_bye.await.unwrap(), (bye.clone(), bye));
    // The poll either came in before the end and is answered, or found nobody.
    if let Ok(answer) = waiting.await {
        answer.yes::<FetchResponse>();
    }
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().any(|name| name == "undertone.db"));
    assert!(!left.iter().any(|name| name == "undertone.db-wal"), "the last checkpoint leaves no log: {left:?}");
}

#[tokio::test]
async fn a_store_is_open_once_at_a_time() {
    let relay = TestRelay::start().await;
    let config = Config::new(Place::Sqlite(relay.database()), "127.0.0.1:0".parse().unwrap());
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
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(place.parent().unwrap()), mode(&place)), (0o700, 0o600));
    assert_eq!(mode(&place.with_file_name("undertone.db-wal")), 0o600);
    drop(relay);
}

fn server(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_undertone-server"));
    command.args(arguments).stdin(Stdio::null());
    for name in ["LISTEN", "DATA", "DATABASE", "LOG"] {
        command.env_remove(format!("UNDERTONE_{name}"));
    }
    command
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

    refused(&["--data", &data, "--listen", "0.0.0.0:0"], 2, "--insecure-plain-http");
    refused(&["--data", &data, "--database", "postgres://u@h/d"], 2, "later");
    refused(&["--data", &data, "--log", "=="], 2, "--log");
    assert!(!folder.path().join("data").exists(), "nothing is made before the arguments hold");
    refused(&["--data", &data, "--listen", &taken], 1, "cannot listen on");
    refused(&["--data", file.join("under").to_str().unwrap(), "--listen", "127.0.0.1:0"], 1, "cannot use");
}

#[test]
fn the_binary_says_when_it_is_ready_and_stops_when_it_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    for signal in ["TERM", "INT"] {
        let mut child = server(&["--data", data.to_str().unwrap(), "--listen", "127.0.0.1:0"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut ready = String::new();
        stdout.read_line(&mut ready).unwrap();
        let url = ready.split_whitespace().find(|word| word.starts_with("http://")).expect("an address").to_owned();
        assert!(ready.contains(&format!("undertone register --relay {url} --username ")), "{ready}");
        assert!(!url.ends_with(":0"), "the port is the real one");

        let told = Command::new("kill").args(["-s", signal, &child.id().to_string()]).status().unwrap();
        assert!(told.success());
        assert_eq!(ended(&mut child), Some(0));
        let mut rest = String::new();
        stdout.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "", "one line and no more");
    }
}

fn ended(child: &mut Child) -> Option<i32> {
    let (sender, receiver) = std::sync::mpsc::channel();
    let id = child.id();
    let guard = std::thread::spawn(move || {
        if receiver.recv_timeout(SOON).is_err() {
            let _ = Command::new("kill").args(["-s", "KILL", &id.to_string()]).status();
        }
    });
    let status = child.wait().unwrap();
    let _ = sender.send(());
    guard.join().unwrap();
    status.code()
}
