//! Somebody is away while messages come. What the relay holds for them, and when it lets go.

use std::{collections::BTreeMap, path::Path};

use sqlx::{
    Connection as _,
    sqlite::{SqliteConnectOptions, SqliteConnection},
};
use undertone_tests::{Build, Person, Relay, containing, wait_until};

const MESSAGES: usize = 200;

#[tokio::test(flavor = "multi_thread")]
async fn what_came_while_away_is_delivered_in_order_and_then_gone_from_the_relay() {
    let folder = tempfile::tempdir().unwrap();
    let mut relay = Relay::start(folder.path(), Build::Workspace).await;
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

    assert_eq!(payloads(relay.data()).await.len(), MESSAGES, "each is held once, for all who have not taken it");
    let held = payloads(relay.data()).await;
    for payload in held.iter().step_by(20) {
        assert!(!containing(relay.data(), &payload[..64]).is_empty(), "the ciphertext is in the relay's files");
    }

    let events = carol.ok(&["listen", "--count", &MESSAGES.to_string(), "--for", "120"]).await;
    let texts: Vec<_> = events.iter().filter(|event| event["event"] == "message").map(|event| &event["text"]).collect();
    let written: Vec<_> = (0..MESSAGES).map(|number| format!("message {number}")).collect();
    assert_eq!(texts, written.iter().collect::<Vec<_>>());
    let again = carol.ok(&["listen", "--for", "1"]).await;
    assert!(again.iter().all(|event| event["event"] != "message"), "nothing is shown twice");

    alice.ok(&["sync"]).await;
    let rows = queue_rows(relay.data()).await;
    assert_eq!(rows.len(), 1, "only bob has not taken his: {rows:?}");
    assert_eq!(rows.values().copied().collect::<Vec<_>>(), [i64::try_from(MESSAGES).unwrap()]);

    bob.ok(&["sync"]).await;
    assert!(queue_rows(relay.data()).await.is_empty());
    assert!(payloads(relay.data()).await.is_empty(), "the last ack took the payloads");
    relay.stop().await;
    for payload in held {
        assert_eq!(containing(relay.data(), &payload[..64]), Vec::<std::path::PathBuf>::new());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sent_while_the_relay_is_away_goes_out_later_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut relay = Relay::start(folder.path(), Build::Workspace).await;
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

#[tokio::test(flavor = "multi_thread")]
async fn who_leaves_keeps_the_history_and_is_removed_by_the_others() {
    let folder = tempfile::tempdir().unwrap();
    let relay = Relay::start(folder.path(), Build::Workspace).await;
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
        let sql = "SELECT CAST(count(*) AS INTEGER) FROM group_members WHERE awaits_removal = 1";
        let waiting: (i64,) = sqlx::query_as(sql).fetch_one(&mut open(relay.data()).await).await.unwrap();
        (waiting.0 == 0).then_some(())
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

async fn open(data: &Path) -> SqliteConnection {
    let options = SqliteConnectOptions::new().filename(data.join("undertone.db")).read_only(true);
    SqliteConnection::connect_with(&options).await.unwrap()
}

/// How many queue rows each device has.
async fn queue_rows(data: &Path) -> BTreeMap<Vec<u8>, i64> {
    let sql = "SELECT device_id, count(*) FROM queue GROUP BY device_id";
    sqlx::query_as(sql).fetch_all(&mut open(data).await).await.unwrap().into_iter().collect()
}

/// The payloads that the relay holds for queues only. Commits stay longer, for members who missed them.
async fn payloads(data: &Path) -> Vec<Vec<u8>> {
    let sql = "SELECT payload FROM envelopes WHERE envelope_id NOT IN (SELECT envelope_id FROM commits)
        AND envelope_id IN (SELECT envelope_id FROM queue)";
    let rows: Vec<(Vec<u8>,)> = sqlx::query_as(sql).fetch_all(&mut open(data).await).await.unwrap();
    rows.into_iter().map(|(payload,)| payload).collect()
}
