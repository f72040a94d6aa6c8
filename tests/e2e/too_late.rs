//! Somebody was away for longer than the relay keeps what waits, and than it keeps commits.

use undertone_tests::{Backend, Build, Person, Relay, Store, on_both, wait_until};

on_both!(
    who_comes_too_late_joins_the_group_on_its_own,
    who_comes_after_a_removal_too_is_let_in_by_a_member,
    who_missed_commits_that_the_relay_still_has_fetches_them,
);

/// alice has a group with bob, who was there once and is away.
async fn trip(store: &Store) -> (Relay, Person, Person) {
    let relay = Relay::start(store, Build::Workspace).await;
    let alice = Person::register(store.folder(), "alice", &relay.url()).await;
    let bob = Person::register(store.folder(), "bob", &relay.url()).await;
    Person::register(store.folder(), "carol", &relay.url()).await;
    alice.ok(&["group", "create", "trip", "--add", "bob"]).await;
    bob.ok(&["sync"]).await;
    bob.ok(&["group", "accept", "trip"]).await;
    (relay, alice, bob)
}

/// Lets a time pass after which nothing of these tables is kept; the relay finds that when it starts.
async fn outlast(relay: &mut Relay, store: &Store, tables: &[&str]) {
    relay.stop().await;
    for table in tables {
        let column = if *table == "commits" { "posted_hour_ms" } else { "expires_hour_ms" };
        store.change(&format!("UPDATE {table} SET {column} = 0")).await;
    }
    relay.restart().await;
    for table in tables {
        let left = format!("SELECT COUNT(*) FROM {}", if *table == "envelopes" { "queue" } else { table });
        wait_until("the relay to have forgotten", async || (store.number(&left).await == 0).then_some(())).await;
    }
}

/// Waits until somebody reads a text.
async fn reads(person: &Person, text: &str) {
    wait_until(text, async || {
        person.ok(&["sync"]).await;
        person.history("trip").await.iter().any(|(_, said)| said == text).then_some(())
    })
    .await;
}

/// What somebody is told of the group's recovery, until it is over, each in a word.
async fn told(person: &Person) -> Vec<String> {
    let mut told = Vec::new();
    wait_until("a recovery to be over", async || {
        for event in person.ok(&["listen", "--for", "1"]).await {
            match event["event"].as_str().unwrap() {
                "recovered" => told.push(event["how"].as_str().unwrap().to_owned()),
                kind @ ("recovering" | "asked_in" | "stuck" | "removed") => told.push(kind.to_owned()),
                _ => {}
            }
        }
        told.last().is_some_and(|last| !["recovering", "asked_in"].contains(&last.as_str())).then_some(())
    })
    .await;
    told
}

async fn both_are_heard(alice: &Person, bob: &Person) {
    alice.ok(&["send", "trip", "you are back"]).await;
    reads(bob, "you are back").await;
    let (at_alice, at_bob) = (alice.ok(&["group", "show", "trip"]).await, bob.ok(&["group", "show", "trip"]).await);
    assert_eq!(at_alice[0]["members"], at_bob[0]["members"]);
}

async fn commits(store: &Store) -> i64 {
    store.number("SELECT commit_seq FROM groups").await
}

/// bob comes back when carol has been added and the relay has forgotten these tables. What he is told, and how many commits
/// it took.
async fn bob_returns(backend: Backend, forgotten: &[&str]) -> (Vec<String>, i64) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::new(folder.path(), backend).await;
    let (mut relay, alice, bob) = trip(&store).await;
    alice.ok(&["group", "add", "trip", "carol"]).await;
    alice.ok(&["send", "trip", "lost on bob"]).await;
    alice.ok(&["sync"]).await;
    outlast(&mut relay, &store, forgotten).await;
    let before = commits(&store).await;
    bob.ok(&["send", "trip", "what did I miss?"]).await;
    let told = told(&bob).await;
    reads(&alice, "what did I miss?").await;
    let took = commits(&store).await - before;
    both_are_heard(&alice, &bob).await;
    (told, took)
}

async fn who_comes_too_late_joins_the_group_on_its_own(backend: Backend) {
    let (told, took) = bob_returns(backend, &["envelopes", "commits"]).await;
    assert_eq!((told, took), (vec!["recovering".to_owned(), "rejoined".to_owned()], 1));
}

async fn who_missed_commits_that_the_relay_still_has_fetches_them(backend: Backend) {
    let (told, took) = bob_returns(backend, &["envelopes"]).await;
    assert_eq!((told, took), (vec!["missed_commits".to_owned()], 0));
}

async fn who_comes_after_a_removal_too_is_let_in_by_a_member(backend: Backend) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::new(folder.path(), backend).await;
    let (mut relay, alice, bob) = trip(&store).await;
    alice.ok(&["group", "add", "trip", "carol"]).await;
    alice.ok(&["group", "remove", "trip", "carol"]).await;
    alice.ok(&["sync"]).await;
    outlast(&mut relay, &store, &["envelopes", "commits"]).await;
    let listening = alice.start(&["listen", "--for", "120"]);
    bob.ok(&["send", "trip", "is there anybody?"]).await;
    assert_eq!(told(&bob).await, ["recovering", "asked_in", "let_in"]);
    drop(listening);
    bob.ok(&["sync"]).await;
    reads(&alice, "is there anybody?").await;
    both_are_heard(&alice, &bob).await;
}
