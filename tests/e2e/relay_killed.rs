//! The relay is killed at random moments while messages are sent.

use std::{
    hash::{BuildHasher as _, Hasher as _, RandomState},
    time::Duration,
};

use sqlx::{
    Connection as _,
    sqlite::{SqliteConnectOptions, SqliteConnection},
};
use undertone_tests::{Build, Person, Relay, scaled};

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_or_doubled_when_the_relay_is_killed() {
    survives(Build::Workspace).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_or_doubled_when_the_relay_that_ships_is_killed() {
    survives(Build::Alone).await;
}

async fn survives(build: Build) {
    let folder = tempfile::tempdir().unwrap();
    let mut relay = Relay::start(folder.path(), build).await;
    let alice = Person::register(folder.path(), "alice", &relay.url()).await;
    let bob = Person::register(folder.path(), "bob", &relay.url()).await;
    alice.ok(&["group", "create", "trip", "--add", "bob"]).await;
    bob.ok(&["sync"]).await;

    let messages = scaled(40, 1_000);
    let seed = seed();
    let mut random = seed;
    let sending = tokio::spawn(send_all(alice.clone(), messages));
    let mut kills = 0;
    while !sending.is_finished() {
        a_moment(&mut random).await;
        relay.kill().await;
        kills += 1;
        a_moment(&mut random).await;
        relay.restart().await;
    }
    let queued = sending.await.unwrap();
    println!("{build:?}: {messages} messages, {queued} queued at first, {kills} kills, seed {seed}");
    assert!(kills > 1, "the relay was killed while messages were sent");

    alice.ok(&["sync"]).await;
    bob.ok(&["sync"]).await;
    let written: Vec<_> = (0..messages).map(|number| ("alice".to_owned(), format!("message {number}"))).collect();
    assert_eq!(bob.history("trip").await, written, "each once, in order (seed {seed})");
    assert_eq!(alice.history("trip").await, written);

    relay.kill().await;
    let options = SqliteConnectOptions::new().filename(relay.data().join("undertone.db"));
    let mut database = SqliteConnection::connect_with(&options).await.unwrap();
    let verdict: (String,) = sqlx::query_as("PRAGMA integrity_check").fetch_one(&mut database).await.unwrap();
    assert_eq!(verdict.0, "ok");
}

/// A moment that nobody chose, up to 0.3 seconds: the timeout of something that never happens.
async fn a_moment(random: &mut u64) {
    *random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    let moment = Duration::from_millis((*random >> 33) % 300);
    drop(tokio::time::timeout(moment, std::future::pending::<()>()).await);
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

/// The run's seed: `UNDERTONE_SEED` if it is set, so that a run can be repeated, and random otherwise.
fn seed() -> u64 {
    match std::env::var("UNDERTONE_SEED") {
        Ok(seed) => seed.parse().unwrap(),
        Err(_) => RandomState::new().build_hasher().finish(),
    }
}
