//! Being added by a stranger, through a real relay: accepted, declined, blocked; and who is typing.

use undertone::{Client, Event, StoreKey};
use undertone_tests::{Backend, Build, Person, Relay, Store, on_both, wait_until};

on_both!(a_request_is_shown_and_can_be_accepted_declined_or_blocked, who_is_there_hears_that_somebody_is_typing,);

async fn a_request_is_shown_and_can_be_accepted_declined_or_blocked(backend: Backend) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::new(folder.path(), backend).await;
    let relay = Relay::start(&store, Build::Workspace).await;
    let alice = Person::register(folder.path(), "alice", &relay.url()).await;
    let bob = Person::register(folder.path(), "bob", &relay.url()).await;
    let asked = async |group: &str| {
        alice.ok(&["group", "create", group, "--add", "bob"]).await;
        bob.ok(&["sync"]).await;
        bob.ok(&["group", "list"]).await.into_iter().find(|one| one["name"] == group)
    };
    let members = async |group: &str| {
        alice.ok(&["sync"]).await;
        alice.ok(&["group", "show", group]).await[0]["members"].as_array().unwrap().len()
    };
    assert_eq!(asked("spam").await.unwrap()["requested"], true);
    bob.ok(&["group", "decline", "spam"]).await;
    wait_until("bob to be gone", async || (members("spam").await == 1).then_some(())).await;

    bob.ok(&["block", "alice"]).await;
    assert_eq!(asked("more spam").await, None);
    bob.ok(&["unblock", "alice"]).await;
    assert_eq!(asked("sorry").await.unwrap()["requested"], true);
    bob.ok(&["group", "accept", "sorry"]).await;
    assert_eq!(asked("thanks").await.unwrap()["requested"], false);
}

async fn who_is_there_hears_that_somebody_is_typing(backend: Backend) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::new(folder.path(), backend).await;
    let relay = Relay::start(&store, Build::Workspace).await;
    let register = async |name: &str| {
        let place = folder.path().join(name);
        Client::builder(relay.url()).store(place, StoreKey::Raw32([7; 32])).register(name).await.unwrap()
    };
    let (alice, bob) = (register("alice").await, register("bob").await);
    let group = alice.create_group("trip").await.unwrap();
    group.add(bob.account().account_id).await.unwrap();
    let events = bob.events();
    let heard = async {
        while let Some(event) = events.next().await {
            if let Event::Typing { conversation, by } = event {
                return (conversation.group(), by.account_id);
            }
        }
        panic!("the client runs");
    };
    // Before bob is there nobody hears it.
    let says = async {
        let mut again = tokio::time::interval(std::time::Duration::from_millis(50));
        loop {
            again.tick().await;
            group.typing().await.unwrap();
        }
    };
    let heard = tokio::select! {
        heard = heard => heard,
        () = says => unreachable!("it goes on for ever"),
    };
    assert_eq!(heard, (Some(group.id()), alice.account().account_id));
    for client in [alice, bob] {
        client.shutdown().await;
    }
}
