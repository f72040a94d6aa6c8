//! The relay is killed at random moments while messages are sent.

use std::time::Duration;

use undertone_tests::{Backend, Build, Chance, Person, Relay, Store, on_both, scaled, seed};

/// The longest that the relay is up, and the longest that it is down.
const MOMENT: Duration = Duration::from_millis(300);

on_both!(
    nothing_is_lost_or_doubled_when_the_relay_is_killed,
    nothing_is_lost_or_doubled_when_the_relay_that_ships_is_killed,
);

async fn nothing_is_lost_or_doubled_when_the_relay_is_killed(backend: Backend) {
    survives(backend, Build::Workspace).await;
}

async fn nothing_is_lost_or_doubled_when_the_relay_that_ships_is_killed(backend: Backend) {
    survives(backend, Build::Alone).await;
}

async fn survives(backend: Backend, build: Build) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::new(folder.path(), backend).await;
    let mut relay = Relay::start(&store, build).await;
    let alice = Person::register(folder.path(), "alice", &relay.url()).await;
    let bob = Person::register(folder.path(), "bob", &relay.url()).await;
    alice.ok(&["group", "create", "trip", "--add", "bob"]).await;
    bob.ok(&["sync"]).await;

    let messages = scaled(40, 1_000);
    let seed = seed();
    let mut chance = Chance::new(seed);
    let sending = tokio::spawn(send_all(alice.clone(), messages));
    let mut kills = 0;
    while !sending.is_finished() {
        chance.moment(MOMENT).await;
        relay.kill().await;
        kills += 1;
        chance.moment(MOMENT).await;
        relay.restart().await;
    }
    let queued = sending.await.unwrap();
    println!("{backend:?}, {build:?}: {messages} messages, {queued} queued at first, {kills} kills, seed {seed}");
    assert!(kills > 1, "the relay was killed while messages were sent");

    alice.ok(&["sync"]).await;
    bob.ok(&["sync"]).await;
    let written: Vec<_> = (0..messages).map(|number| ("alice".to_owned(), format!("message {number}"))).collect();
    assert_eq!(bob.history("trip").await, written, "each once, in order (seed {seed})");
    // What she sent last may have come back to her since.
    alice.ok(&["sync"]).await;
    assert_eq!(alice.history("trip").await, written);

    relay.kill().await;
    store.assert_whole().await;
}

/// Sends one message after the other, each by a command of its own. Answers with how many were only queued at first.
async fn send_all(person: Person, messages: usize) -> usize {
    let mut queued = 0;
    for number in 0..messages {
        let lines = person.ok(&["send", "trip", &format!("message {number}")]).await;
        match lines[0]["status"].as_str() {
            Some("sent") => {}
            Some("queued") => queued += 1,
            other => panic!("a message was {other:?}"),
        }
    }
    queued
}
