//! Stores that are copies of an earlier state: they are noticed, come back with new keys, and use none of the old ones.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use undertone::{Client, Connection, Conversation, Event, Recovered, api::RelayApi};
use undertone_wire::{ByeReason, ServerFrame};

use crate::liar::{Call, Liar, Lie, lied_to, lost};
use crate::world::{World, builder_at, count_events, event, has_texts, joined, key, online, wait_until};

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    std::fs::copy(from.join("undertone.db"), to.join("undertone.db")).unwrap();
}

async fn opened_copy(world: &World) -> Client {
    builder_at(&world.relay, world.store("copy")).open().await.unwrap()
}

async fn is_told(client: &Client) {
    event(client, |event| matches!(event, Event::StoreCopied).then_some(())).await;
    let how = event(client, |event| match event {
        Event::GroupRecovered { how, .. } => Some(how),
        _ => None,
    });
    assert_eq!(how.await, Recovered::Rejoined);
}

#[tokio::test]
async fn a_restored_store_comes_back_with_new_keys_before_it_sends() {
    let world = World::new();
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let groups = world.group(&[&alice, &bob]).await;
    groups[0].send("before").await.unwrap();
    has_texts(&groups[1], &["before"]).await;
    alice.shutdown().await;
    copy(&world.store("alice"), &world.store("copy"));

    let alice = world.open("alice").await;
    let at_alice = alice.group(groups[0].id());
    at_alice.send("of the other life").await.unwrap();
    has_texts(&groups[1], &["before", "of the other life"]).await;
    groups[1].send("to the other life").await.unwrap();
    has_texts(&at_alice, &["before", "of the other life", "to the other life"]).await;
    alice.shutdown().await;

    world.relay.go_offline();
    let copied = opened_copy(&world).await;
    let at_copy = copied.group(groups[0].id());
    at_copy.send("of this life").await.unwrap();
    let epoch = world.relay.group_position(&groups[0].id()).unwrap().epoch;
    world.relay.come_back();
    is_told(&copied).await;
    has_texts(&groups[1], &["before", "of the other life", "to the other life", "of this life"]).await;
    assert!(world.relay.group_position(&groups[0].id()).unwrap().epoch > epoch, "it came by a commit of its own");
    groups[1].send("back").await.unwrap();
    has_texts(&at_copy, &["before", "of this life", "back"]).await;
}

#[tokio::test]
async fn of_two_copies_the_newer_goes_on_anew() {
    let world = World::new();
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let groups = world.group(&[&alice, &bob]).await;
    alice.shutdown().await;
    copy(&world.store("alice"), &world.store("copy"));
    let alice = world.open("alice").await;
    online(&alice).await;
    let copied = opened_copy(&world).await;
    is_told(&copied).await;
    wait_until("the first to be replaced", async || (alice.connection() == Connection::Replaced).then_some(())).await;
    copied.group(groups[0].id()).send("who am I?").await.unwrap();
    has_texts(&groups[1], &["who am I?"]).await;
}

#[tokio::test]
async fn who_is_replaced_without_a_newer_store_goes_on() {
    let world = World::new();
    let (liar, alice) = lied_to(&world, "alice").await;
    let bob = world.register("bob").await;
    let groups = world.group(&[&alice, &bob]).await;
    let told = count_events(&alice, |event| matches!(event, Event::StoreCopied | Event::GroupRecovering { .. }));
    // As if a request for a stream that was lost on its way had arrived after the newest.
    let replaced = AtomicUsize::new(0);
    liar.rewrite(move |frame| match frame {
        ServerFrame::Delivery { .. } if replaced.fetch_add(1, SeqCst) < 2 => {
            ServerFrame::Bye { reason: ByeReason::Replaced }
        }
        frame => frame,
    });
    groups[1].send("are you there?").await.unwrap();
    has_texts(&groups[0], &["are you there?"]).await;
    groups[0].send("I am").await.unwrap();
    has_texts(&groups[1], &["are you there?", "I am"]).await;
    assert_eq!(told.load(SeqCst), 0, "it is no copy");
}

#[tokio::test]
async fn a_store_that_was_away_while_a_copy_went_on_does_not_go_on() {
    let world = World::new();
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let groups = world.group(&[&alice, &bob]).await;
    alice.shutdown().await;
    copy(&world.store("alice"), &world.store("copy"));
    let liar = Liar::new(world.relay.connect());
    let way = Arc::clone(&liar) as Arc<dyn RelayApi>;
    let alice = Client::builder("http://localhost").api(way).store(world.store("alice"), key()).open().await.unwrap();
    online(&alice).await;
    liar.tell(|call| matches!(call, Call::Open(_)).then(|| Lie::Now(lost())));
    world.relay.cut_streams();
    wait_until("alice to be away", async || (alice.connection() == Connection::Offline).then_some(())).await;

    let copied = opened_copy(&world).await;
    is_told(&copied).await;
    groups[1].send("to the copy").await.unwrap();
    has_texts(&copied.group(groups[0].id()), &["to the copy"]).await;
    copied.shutdown().await;
    liar.tell(|_| None);
    wait_until("alice to notice it", async || (alice.connection() == Connection::Replaced).then_some(())).await;
}

#[tokio::test]
async fn a_store_from_before_the_newest_key_packages_is_not_added_by_those() {
    let world = World::new();
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    alice.shutdown().await;
    copy(&world.store("alice"), &world.store("copy"));
    let alice = world.open("alice").await;
    online(&alice).await;
    // All that the copy has is handed out, and the other life makes more.
    world.relay.hand_out(alice.account().account_id, 60);
    let device = alice.device_id();
    wait_until("more to be made", async || (world.relay.key_packages(&device).0 >= 100).then_some(())).await;
    alice.shutdown().await;

    let copied = opened_copy(&world).await;
    online(&copied).await;
    wait_until("new ones to be there", async || (world.relay.key_packages(&device).0 >= 100).then_some(())).await;
    let group = bob.create_group("ski trip").await.unwrap();
    group.add(copied.account().account_id).await.unwrap();
    joined(&copied, group.id()).await;
}

#[tokio::test]
async fn a_store_that_is_opened_again_is_no_copy() {
    let world = World::new();
    let (mut alice, bob) = (world.register("alice").await, world.register("bob").await);
    let groups = world.group(&[&alice, &bob]).await;
    let mut told = vec![];
    for lost in 0..4 {
        alice.shutdown().await;
        world.relay.drop_answers(lost);
        alice = world.open("alice").await;
        let is_one = |event: &Event| matches!(event, Event::StoreCopied | Event::GroupRecovering { .. });
        told.push(count_events(&alice, is_one));
        alice.group(groups[0].id()).send("again").await.unwrap();
        has_texts(&groups[1], &vec!["again"; lost as usize + 1]).await;
        world.relay.restore();
    }
    assert_eq!(told.iter().map(|times| times.load(SeqCst)).sum::<usize>(), 0);
}

#[tokio::test]
async fn a_restored_store_writes_directly_by_sessions_of_its_own() {
    let world = World::new();
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let (account, to_alice) = (bob.account().account_id, bob.direct(alice.account().account_id));
    alice.know(account).await.unwrap();
    bob.know(alice.account().account_id).await.unwrap();
    let said = async |conversation: &Conversation| {
        let history = conversation.history(100, None).await.unwrap();
        history.iter().map(|message| message.text().to_owned()).collect::<Vec<_>>()
    };
    let has_said = async |conversation: &Conversation, texts: &[&str]| {
        wait_until(format!("{texts:?}"), async || (said(conversation).await == texts).then_some(())).await;
    };
    let to_bob = alice.direct(account);
    to_bob.send("before").await.unwrap();
    has_said(&to_alice, &["before"]).await;
    to_alice.send("answered").await.unwrap();
    has_said(&to_bob, &["before", "answered"]).await;
    alice.shutdown().await;
    copy(&world.store("alice"), &world.store("copy"));

    let alice = world.open("alice").await;
    alice.direct(account).send("of the other life").await.unwrap();
    has_said(&to_alice, &["before", "answered", "of the other life"]).await;
    alice.shutdown().await;

    world.relay.go_offline();
    let copied = opened_copy(&world).await;
    let to_bob = copied.direct(account);
    to_bob.send("of this life").await.unwrap();
    world.relay.come_back();
    has_said(&to_alice, &["before", "answered", "of the other life", "of this life"]).await;
    to_alice.send("welcome back").await.unwrap();
    wait_until("the answer", async || said(&to_bob).await.contains(&"welcome back".to_owned()).then_some(())).await;
    to_bob.send("and on").await.unwrap();
    wait_until("the last", async || said(&to_alice).await.contains(&"and on".to_owned()).then_some(())).await;
}
