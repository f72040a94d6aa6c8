//! The relay is killed at random moments while messages are sent.

use std::{
    hash::{BuildHasher as _, Hasher as _, RandomState},
    time::Duration,
};

use sqlx::{
    Connection as _,
    sqlite::{SqliteConnectOptions, SqliteConnection},
};
use undertone_tests::{Build, Person, Relay};

const MESSAGES: usize = 40;
const KILLS: usize = 12;

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

    let seed = seed();
    println!("seed {seed}");
    let sender = alice.clone();
    let sending = tokio::spawn(async move {
        let mut statuses = Vec::new();
        let mut chat = sender.start(&["chat", "trip"]);
        for number in 0..MESSAGES {
            chat.type_line(&format!("message {number}")).await;
            let status = chat.line(|line| line.contains("\"status\"") || line.contains("\"queued\"")).await;
            statuses.push(status);
        }
        let (status, _) = chat.end().await;
        assert!(status.success());
        statuses
    });
    let mut random = seed;
    for _ in 0..KILLS {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // A moment nobody chose: the timeout of something that never happens.
        let moment = Duration::from_millis(random >> 33 & 255);
        drop(tokio::time::timeout(moment, std::future::pending::<()>()).await);
        relay.kill().await;
        relay.restart().await;
    }
    sending.await.unwrap();

    alice.ok(&["sync"]).await;
    bob.ok(&["sync"]).await;
    let written: Vec<_> = (0..MESSAGES).map(|number| ("alice".to_owned(), format!("message {number}"))).collect();
    assert_eq!(bob.history("trip").await, written, "each once, in order (seed {seed})");
    assert_eq!(alice.history("trip").await, written);

    relay.kill().await;
    let options = SqliteConnectOptions::new().filename(relay.data().join("undertone.db"));
    let mut database = SqliteConnection::connect_with(&options).await.unwrap();
    let verdict: (String,) = sqlx::query_as("PRAGMA integrity_check").fetch_one(&mut database).await.unwrap();
    assert_eq!(verdict.0, "ok");
}

/// The run's seed: `UNDERTONE_SEED` if it is set, so that a run can be repeated, and random otherwise.
fn seed() -> u64 {
    match std::env::var("UNDERTONE_SEED") {
        Ok(seed) => seed.parse().unwrap(),
        Err(_) => RandomState::new().build_hasher().finish(),
    }
}
