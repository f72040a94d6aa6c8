//! Three people talk at once; one is removed, another one comes.

use std::collections::BTreeSet;

use undertone_tests::{Backend, Build, Person, Relay, Store, on_both};

const EACH: usize = 20;

on_both!(three_people_talk_at_once_and_all_histories_are_the_same);

async fn three_people_talk_at_once_and_all_histories_are_the_same(backend: Backend) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::new(folder.path(), backend).await;
    let relay = Relay::start(&store, Build::Workspace).await;
    let mut people = Vec::new();
    for name in ["alice", "bob", "carol"] {
        people.push(Person::register(folder.path(), name, &relay.url()).await);
    }
    let [alice, bob, _] = people.as_slice() else { panic!("three people") };
    alice.ok(&["group", "create", "trip", "--add", "bob", "--add", "carol"]).await;
    for person in &people {
        person.ok(&["sync"]).await;
    }

    let talks = people.iter().map(|person| {
        let person = person.clone();
        tokio::spawn(async move {
            let mut chat = person.start(&["chat", "trip"]);
            for number in 0..EACH {
                chat.type_line(&format!("{} {number}", person.name)).await;
            }
            chat.end().await
        })
    });
    for talk in talks.collect::<Vec<_>>() {
        let (status, _) = talk.await.unwrap();
        assert!(status.success(), "chat ended with {status}");
    }

    let mut histories = Vec::new();
    for person in &people {
        person.ok(&["sync"]).await;
        histories.push(person.history("trip").await);
    }
    let [first, rest @ ..] = histories.as_slice() else { panic!("three histories") };
    for history in rest {
        assert_eq!(first, history, "all members see the same order");
    }
    assert_eq!(first.len(), 3 * EACH);
    assert_eq!(first.iter().collect::<BTreeSet<_>>().len(), 3 * EACH, "each text once");
    for person in &people {
        let theirs: Vec<_> = first.iter().filter(|(from, _)| *from == person.name).map(|(_, text)| text).collect();
        let written: Vec<_> = (0..EACH).map(|number| format!("{} {number}", person.name)).collect();
        assert_eq!(theirs, written.iter().collect::<Vec<_>>(), "in the order of writing");
    }

    removed_and_added(folder.path(), &relay, alice, bob).await;
}

async fn removed_and_added(folder: &std::path::Path, relay: &Relay, alice: &Person, bob: &Person) {
    alice.ok(&["group", "remove", "trip", "bob"]).await;
    alice.ok(&["send", "trip", "without bob"]).await;
    let refused = bob.run(&["send", "trip", "still here?"]).await;
    assert_eq!(refused.status.code(), Some(1), "{}", refused.stderr);
    assert!(refused.stderr.contains("not a member"), "{}", refused.stderr);
    bob.ok(&["sync"]).await;
    let texts = bob.history("trip").await;
    assert_eq!(texts.len(), 3 * EACH, "the history stays, and nothing was added to it");

    let dave = Person::register(folder, "dave", &relay.url()).await;
    alice.ok(&["group", "add", "trip", "dave"]).await;
    alice.ok(&["send", "trip", "welcome, dave"]).await;
    let events = dave.ok(&["listen", "--count", "1", "--for", "60"]).await;
    assert!(events.iter().any(|event| event["event"] == "joined" && event["name"] == "trip" && event["by"] == "alice"));
    assert_eq!(dave.history("trip").await, [("alice".to_owned(), "welcome, dave".to_owned())]);
}
