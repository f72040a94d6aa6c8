//! Direct messages by the reference client, at real relays.

use undertone_tests::{Backend, Build, Person, Relay, Store, on_both, take_all};

on_both!(two_people_write_to_each_other_and_the_relay_keeps_nothing);

async fn two_people_write_to_each_other_and_the_relay_keeps_nothing(backend: Backend) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::new(folder.path(), backend).await;
    let mut relay = Relay::start(&store, Build::Workspace).await;
    let alice = Person::register(folder.path(), "alice", &relay.url()).await;
    let bob = Person::register(folder.path(), "bob", &relay.url()).await;

    alice.ok(&["send", "@bob", "hello"]).await;
    alice.ok(&["sync"]).await;
    assert_eq!(store.number("SELECT COUNT(*) FROM queue").await, 1, "alice has taken hers");
    let events = bob.ok(&["listen", "--count", "1", "--for", "60"]).await;
    assert!(events.iter().any(|event| event["event"] == "requested" && event["username"] == "alice"), "{events:?}");
    let message = events.iter().find(|event| event["event"] == "message").unwrap();
    assert_eq!((&message["text"], &message["from"]), (&"hello".into(), &"alice".into()));
    assert_eq!(message["account_id"], message["from_account"], "it stands in the conversation with alice");
    assert!(message.get("group_id").is_none());

    bob.ok(&["send", "@alice", "hello yourself"]).await;
    alice.ok(&["sync"]).await;
    let texts = async |person: &Person, with: &str| {
        let history = person.ok(&["history", with]).await;
        history.iter().map(|message| message["text"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(texts(&alice, "@bob").await, ["hello", "hello yourself"]);
    assert_eq!(texts(&bob, "@alice").await, ["hello", "hello yourself"]);
    let found = bob.ok(&["search", "yours", "--in", "@alice"]).await;
    assert_eq!(found.len(), 1);

    let mut chat = alice.start(&["chat", "@bob"]);
    for number in 0..20 {
        chat.type_line(&format!("message {number}")).await;
    }
    assert!(chat.end().await.0.success());
    bob.ok(&["sync"]).await;
    assert_eq!(texts(&bob, "@alice").await.len(), 22);
    take_all(&store, &[&alice, &bob]).await;
    assert_eq!(store.number("SELECT COUNT(*) FROM envelopes").await, 0, "what was delivered is gone");
    relay.stop().await;
    assert_eq!(texts(&bob, "@alice").await.len(), 22, "the history asks nobody");
}
