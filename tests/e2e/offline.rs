//! Somebody is away while messages come. What the relay holds for them, and when it lets go.

use std::path::PathBuf;

use undertone_tests::{Backend, Build, Person, Relay, Store, containing, on_both, take_all, wait_until};

const MESSAGES: usize = 200;

on_both!(
    what_came_while_away_is_delivered_in_order_and_then_gone_from_the_relay,
    what_is_sent_while_the_relay_is_away_goes_out_later_once,
    who_leaves_keeps_the_history_and_is_removed_by_the_others,
);

async fn what_came_while_away_is_delivered_in_order_and_then_gone_from_the_relay(backend: Backend) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::new(folder.path(), backend).await;
    let mut relay = Relay::start(&store, Build::Workspace).await;
    let alice = Person::register(folder.path(), "alice", &relay.url()).await;
    let bob = Person::register(folder.path(), "bob", &relay.url()).await;
    let carol = Person::register(folder.path(), "carol", &relay.url()).await;
    alice.ok(&["group", "create", "trip", "--add", "bob", "--add", "carol"]).await;
    bob.ok(&["sync"]).await;
    carol.ok(&["sync"]).await;

    let mut chat = alice.start(&["chat", "trip"]);
    for number in 0..MESSAGES {
        chat.type_line(&format!("message {number}")).await;
    }
    assert!(chat.end().await.0.success());

    let held = payloads(&store).await;
    assert_eq!(held.len(), MESSAGES, "each is held once, for all who have not taken it");
    if backend == Backend::Sqlite {
        for payload in held.iter().step_by(20) {
            assert!(!containing(&store.data(), &payload[..64]).is_empty(), "the ciphertext is in the relay's files");
        }
    }

    let events = carol.ok(&["listen", "--count", &MESSAGES.to_string(), "--for", "120"]).await;
    let texts: Vec<_> = events.iter().filter(|event| event["event"] == "message").map(|event| &event["text"]).collect();
    let written: Vec<_> = (0..MESSAGES).map(|number| format!("message {number}")).collect();
    assert_eq!(texts, written.iter().collect::<Vec<_>>());
    let again = carol.ok(&["listen", "--for", "1"]).await;
    assert!(again.iter().all(|event| event["event"] != "message"), "nothing is shown twice");

    let found = carol.ok(&["search", "MESSAGE", "17", "--in", "trip", "--limit", "3"]).await;
    let found: Vec<_> = found.iter().map(|message| &message["text"]).collect();
    assert_eq!(found, ["message 179", "message 178", "message 177"], "the newest first");

    // carol's device has told alice that it has them, which bob's gets too.
    alice.ok(&["sync"]).await;
    let bobs = "SELECT max(waiting) FROM (SELECT COUNT(*) AS waiting FROM queue GROUP BY device_id) AS devices";
    assert!(store.number(bobs).await >= i64::try_from(MESSAGES).unwrap(), "bob has not taken his");

    take_all(&store, &[&bob, &alice, &carol]).await;
    assert!(payloads(&store).await.is_empty(), "the last ack took the payloads");
    relay.stop().await;
    if backend == Backend::Sqlite {
        // On Postgres the bytes are gone when its vacuum has come by.
        for payload in held {
            assert_eq!(containing(&store.data(), &payload[..64]), Vec::<PathBuf>::new());
        }
    }
}

async fn what_is_sent_while_the_relay_is_away_goes_out_later_once(backend: Backend) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::new(folder.path(), backend).await;
    let mut relay = Relay::start(&store, Build::Workspace).await;
    let alice = Person::register(folder.path(), "alice", &relay.url()).await;
    let bob = Person::register(folder.path(), "bob", &relay.url()).await;
    alice.ok(&["group", "create", "trip", "--add", "bob"]).await;
    bob.ok(&["sync"]).await;
    relay.stop().await;

    let sent = alice.ok(&["send", "trip", "into the dark"]).await;
    assert_eq!(sent[0]["status"], "queued");
    assert!(sent[0]["message_id"].is_string());
    let unreachable = alice.run(&["group", "add", "trip", "carol"]).await;
    assert_eq!(unreachable.status.code(), Some(3), "{}", unreachable.stderr);
    assert_eq!(alice.run(&["sync"]).await.status.code(), Some(3));
    assert_eq!(alice.history("trip").await, [("alice".to_owned(), "into the dark".to_owned())]);

    relay.restart().await;
    let synced = alice.ok(&["sync"]).await;
    assert_eq!(synced[0]["sent"], 1);
    alice.ok(&["sync"]).await;
    let events = bob.ok(&["listen", "--count", "1", "--for", "60"]).await;
    let message = events.iter().find(|event| event["event"] == "message").unwrap();
    assert_eq!(message["message_id"], sent[0]["message_id"], "the same id for sender and receivers");
    assert_eq!(bob.history("trip").await.len(), 1);
}

async fn who_leaves_keeps_the_history_and_is_removed_by_the_others(backend: Backend) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::new(folder.path(), backend).await;
    let relay = Relay::start(&store, Build::Workspace).await;
    let alice = Person::register(folder.path(), "alice", &relay.url()).await;
    let bob = Person::register(folder.path(), "bob", &relay.url()).await;
    let carol = Person::register(folder.path(), "carol", &relay.url()).await;
    alice.ok(&["group", "create", "trip", "--add", "bob", "--add", "carol"]).await;
    alice.ok(&["send", "trip", "one"]).await;
    bob.ok(&["sync"]).await;
    bob.ok(&["group", "leave", "trip"]).await;
    assert_eq!(bob.history("trip").await.len(), 1);
    assert_eq!(bob.run(&["send", "trip", "two"]).await.status.code(), Some(1));

    wait_until("the others to be two", async || {
        alice.ok(&["sync"]).await;
        carol.ok(&["sync"]).await;
        let group = &carol.ok(&["group", "show", "trip"]).await[0];
        (group["members"].as_array().unwrap().len() == 2).then_some(())
    })
    .await;
    wait_until("a commit to remove bob's leaf", async || {
        alice.ok(&["sync"]).await;
        let waiting = store.number("SELECT COUNT(*) FROM group_members WHERE awaits_removal = 1").await;
        (waiting == 0).then_some(())
    })
    .await;
    carol.ok(&["send", "trip", "three"]).await;
    alice.ok(&["sync"]).await;
    assert_eq!(alice.history("trip").await.len(), 2);
    alice.ok(&["group", "add", "trip", "bob"]).await;
    alice.ok(&["send", "trip", "four"]).await;
    let events = bob.ok(&["listen", "--count", "1", "--for", "60"]).await;
    assert!(events.iter().any(|event| event["event"] == "joined"), "who left can come back");
}

/// The payloads that the relay holds for queues only. Commits stay longer, for members who missed them.
async fn payloads(store: &Store) -> Vec<Vec<u8>> {
    let statement = "SELECT payload FROM envelopes WHERE envelope_id NOT IN (SELECT envelope_id FROM commits)
        AND envelope_id IN (SELECT envelope_id FROM queue)";
    store.blobs(statement).await
}
