//! Two machines on one network, made of network namespaces: a relay on one, a person on the other who has nothing but the
//! connection string.

use std::{path::Path, process::Stdio};

use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::Command,
};
use undertone_tests::{Person, There, binary, on_a_machine_of_its_own, said};

const NAME: &str = "two_hosts::a_person_on_another_machine_needs_the_connection_string_and_nothing_else";

const RELAY: [&str; 4] = ["--listen", "0.0.0.0:7611", "--log", "warn"];

fn relay(data: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(binary("undertone-server"));
    command.args(RELAY).arg("--data").arg(data).args(arguments);
    command
}

#[tokio::test]
async fn a_person_on_another_machine_needs_the_connection_string_and_nothing_else() {
    if !on_a_machine_of_its_own(NAME, &[], &[]).await {
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

    // The relay passes its own test, here, where it makes an invite for that, and there, with one.
    assert_eq!(said(relay(&data, &["health"])).await, "ready");
    let tested = said(relay(&data, &["test"])).await;
    assert!(tested.contains("make an invite") && tested.contains("remove the accounts"), "{tested}");
    let for_two = said(relay(&data, &["invite", "create", "--uses", "2"])).await;
    let mut tests = Command::new(binary("undertone-server"));
    tests.args(["test", "--relay", &for_two]);
    let tested = said(there.on_it(&tests)).await;
    assert!(!tested.contains("make an invite") && tested.contains("remove the accounts"), "{tested}");

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
