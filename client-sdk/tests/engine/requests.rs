//! Requests of strangers: they learn nothing before the user accepts, and nothing of who is blocked is shown.

use std::sync::atomic::Ordering::SeqCst;

use undertone::{Client, Error, Event, Group, MessageStatus};

use crate::world::{World, count_events, event, has_texts, joined, online, texts, wait_until};

/// A group that `founder` makes, to which `guest` is added; seen from both.
async fn added(founder: &Client, guest: &Client) -> [Group; 2] {
    let group = founder.create_group("ski trip").await.unwrap();
    group.add(guest.account().account_id).await.unwrap();
    joined(guest, group.id()).await;
    let at_guest = guest.group(group.id());
    [group, at_guest]
}

async fn is_requested(group: &Group) -> bool {
    group.summary().await.unwrap().requested_by.is_some()
}

/// Waits until a message is on all devices of others.
async fn is_delivered(client: &Client, message: undertone::MessageId) {
    wait_until("a receipt", async || {
        let status = client.message_status(message).await.unwrap();
        matches!(status, MessageStatus::Delivered { .. } | MessageStatus::Read { .. }).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_stranger_learns_nothing_before_the_request_is_accepted() {
    let world = World::new();
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let [group, at_bob] = added(&alice, &bob).await;
    let by = event(&bob, |event| match event {
        Event::Joined { by, requested: true, .. } => Some(by),
        _ => None,
    });
    assert_eq!(by.await.account_id, alice.account().account_id);
    let message = group.send("do you know me?").await.unwrap();
    has_texts(&at_bob, &["do you know me?"]).await;
    at_bob.mark_read(message).await.unwrap();
    at_bob.typing().await.unwrap();
    // To somebody whom he knows he says later what he would have said to her by now.
    let carol = world.register("carol").await;
    let [of_carol, at_bob_too] = added(&carol, &bob).await;
    at_bob_too.accept().await.unwrap();
    let next = world.relay.next_seq(&alice.device_id()).unwrap();
    is_delivered(&carol, of_carol.send("do you?").await.unwrap()).await;
    assert!(is_requested(&at_bob).await);
    assert_eq!(bob.outbox_empty(crate::world::PATIENCE).await.unwrap(), 0);
    assert_eq!(world.relay.next_seq(&alice.device_id()).unwrap(), next, "nothing has come to alice");
    assert!(alice.message_status(message).await.unwrap() == MessageStatus::Sent);

    at_bob.accept().await.unwrap();
    is_delivered(&alice, message).await;
    assert!(!is_requested(&at_bob).await);
    // Who was accepted is no stranger in the next group.
    let [_, at_bob] = added(&alice, &bob).await;
    assert!(!is_requested(&at_bob).await);
}

#[tokio::test]
async fn to_send_something_accepts_and_whom_one_adds_one_knows() {
    let world = World::new();
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let [group, at_bob] = added(&alice, &bob).await;
    at_bob.send("hello").await.unwrap();
    has_texts(&group, &["hello"]).await;
    assert!(!is_requested(&at_bob).await);
    let [_, at_alice] = added(&bob, &alice).await;
    assert!(!is_requested(&at_alice).await, "alice has added bob before");
}

#[tokio::test]
async fn a_request_that_is_declined_is_left() {
    let world = World::new();
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let [group, at_bob] = added(&alice, &bob).await;
    let message = group.send("join us").await.unwrap();
    has_texts(&at_bob, &["join us"]).await;
    at_bob.decline().await.unwrap();
    let summary = at_bob.summary().await.unwrap();
    assert!(!summary.active && summary.requested_by.is_none());
    wait_until("bob to be gone", async || (group.summary().await.unwrap().members.len() == 1).then_some(())).await;
    assert!(!matches!(alice.message_status(message).await.unwrap(), MessageStatus::Delivered { .. }));
    assert!(matches!(at_bob.send("after all?").await, Err(Error::NotMember)));
    // It can be asked again.
    group.add(bob.account().account_id).await.unwrap();
    joined(&bob, group.id()).await;
    assert!(is_requested(&at_bob).await);
}

#[tokio::test]
async fn nothing_of_who_is_blocked_is_shown() {
    let world = World::new();
    let [alice, bob, carol] =
        [world.register("alice").await, world.register("bob").await, world.register("carol").await];
    let groups = world.group(&[&alice, &bob, &carol]).await;
    let mallory = alice.account().account_id;
    bob.block(mallory).await.unwrap();
    assert_eq!(bob.blocked().await.unwrap().iter().map(|one| one.account_id).collect::<Vec<_>>(), [mallory]);
    let received = count_events(&bob, |event| matches!(event, Event::MessageReceived(_) | Event::Typing { .. }));

    let other = alice.create_group("come back").await.unwrap();
    other.add(bob.account().account_id).await.unwrap();
    other.send("please").await.unwrap();
    groups[0].typing().await.unwrap();
    groups[0].send("you there?").await.unwrap();
    has_texts(&groups[2], &["you there?"]).await;
    groups[2].send("yes").await.unwrap();
    has_texts(&groups[1], &["yes"]).await;
    wait_until("the event", async || (received.load(SeqCst) == 1).then_some(())).await;
    assert_eq!(bob.groups().await.unwrap().len(), 1, "the other group is passed over");

    bob.unblock(mallory).await.unwrap();
    groups[0].send("and now?").await.unwrap();
    has_texts(&groups[1], &["yes", "and now?"]).await;
    let [_, at_bob] = added(&alice, &bob).await;
    assert!(is_requested(&at_bob).await, "a stranger again");
}

#[tokio::test]
async fn a_request_outlives_a_restart_and_the_other_groups_go_on() {
    let world = World::new();
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let [group, at_bob] = added(&alice, &bob).await;
    let id = at_bob.id();
    bob.shutdown().await;
    let bob = world.open("bob").await;
    online(&bob).await;
    let at_bob = bob.group(id);
    assert!(is_requested(&at_bob).await);
    let own = bob.create_group("diary").await.unwrap();
    own.send("asked again").await.unwrap();
    assert_eq!(bob.outbox_empty(crate::world::PATIENCE).await.unwrap(), 0);
    let message = group.send("well?").await.unwrap();
    has_texts(&at_bob, &["well?"]).await;
    at_bob.accept().await.unwrap();
    is_delivered(&alice, message).await;
    assert_eq!(texts(&own).await, ["asked again"]);
}
