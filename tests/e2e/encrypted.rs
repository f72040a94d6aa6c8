//! A relay with a key and a certificate of its own making: known by its fingerprint, and by nothing else.

use undertone_tests::{Backend, Launch, Person, Relay, Store, on_both};

on_both! {
    people_who_paste_the_connection_string_chat,
    whoever_shows_another_key_is_told_nothing,
    the_relay_is_healthy_and_passes_its_own_test,
}

/// As a relay is that others can reach, but on loopback.
async fn relay(store: &Store) -> Relay {
    Launch::over(store).arguments(&["--tls", "self-made", "--registration", "invite"]).start().await
}

async fn people_who_paste_the_connection_string_chat(backend: Backend) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::new(folder.path(), backend).await;
    let mut relay = relay(&store).await;
    let invited = relay.command(&["invite", "create", "--uses", "2"]).await;
    assert!(invited.starts_with("undertone://127.0.0.1:") && invited.contains("&invite="), "{invited}");
    let alice = Person::register(folder.path(), "alice", &invited).await;
    let bob = Person::register(folder.path(), "bob", &invited).await;
    alice.ok(&["group", "create", "trip", "--add", "bob"]).await;
    alice.ok(&["send", "trip", "snow!"]).await;
    let heard = bob.ok(&["listen", "--count", "1", "--for", "30"]).await;
    assert!(heard.iter().any(|line| line["text"] == "snow!"), "{heard:?}");

    let late = Person::new(folder.path(), "carol");
    let refused = late.run(&["register", "--relay", &invited, "--username", "carol"]).await;
    assert_eq!(refused.status.code(), Some(1), "{}", refused.stderr);
    assert!(refused.stderr.contains("invite"), "a third use of an invite for two: {}", refused.stderr);

    // The key stays, and with it what people have pinned.
    relay.stop().await;
    relay.restart().await;
    bob.ok(&["send", "trip", "more snow!"]).await;
    let heard = alice.ok(&["listen", "--count", "1", "--for", "30"]).await;
    assert!(heard.iter().any(|line| line["text"] == "more snow!"), "{heard:?}");
}

async fn whoever_shows_another_key_is_told_nothing(backend: Backend) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::new(folder.path(), backend).await;
    let relay = relay(&store).await;
    let invited = relay.command(&["invite", "create"]).await;
    let (place, _) = invited.split_once('#').unwrap();
    let port = relay.address().port();
    let elsewhere = tempfile::tempdir().unwrap();
    let other = Store::new(elsewhere.path(), backend).await;
    let plain = Launch::over(&other).start().await;
    let plain_port = plain.address().port();
    let fingerprint = "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc";
    let mallory = Person::new(folder.path(), "mallory");
    for (there, words) in [
        (format!("{place}#{fingerprint}"), "another key than the one in the connection string"),
        (format!("https://127.0.0.1:{port}"), "not one that this machine accepts"),
        (format!("http://127.0.0.1:{port}"), "cannot be reached"),
        (format!("undertone://127.0.0.1:{plain_port}/#{fingerprint}"), "does not speak TLS"),
        ("http://192.0.2.1:7611".to_owned(), "cross the network in clear"),
    ] {
        let refused = mallory.run(&["register", "--relay", &there, "--username", "mallory"]).await;
        assert!(!refused.status.success() && refused.stderr.contains(words), "{there}: {}", refused.stderr);
    }
    mallory.ok(&["register", "--relay", &invited, "--username", "mallory"]).await;
}

async fn the_relay_is_healthy_and_passes_its_own_test(backend: Backend) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::new(folder.path(), backend).await;
    let mut relay = Launch::over(&store).arguments(&["--tls", "self-made"]).start().await;
    assert_eq!(relay.command(&["health"]).await, "ready");
    // By its connection string, for no address is given: the key is pinned, as people pin it.
    let said = relay.command(&["test"]).await;
    assert!(said.lines().all(|line| line.ends_with(" ms")), "{said}");
    for step in ["reach", "register", "receive by long poll", "receive by stream", "remove the accounts"] {
        assert!(said.lines().any(|line| line.starts_with(step)), "{step}: {said}");
    }
    for table in ["accounts", "devices", "queue", "invites"] {
        assert_eq!(store.number(&format!("SELECT COUNT(*) FROM {table}")).await, 0, "{table}");
    }
    relay.stop().await;
    let gone = relay.says(&["health"]).await;
    assert!(gone.status.code() == Some(1) && gone.stdout.is_empty(), "{gone:?}");
}
