//! What is said in passing: who is there hears it, and no message is lost by it.

use std::{sync::atomic::Ordering::SeqCst, time::Duration};

use undertone::{Client, Conversation, Event, Group};

use crate::world::{World, count_events, has_texts, standing, wait_until};

const MESSAGES: usize = 1_000;

async fn hears_typing(client: &Client, from: &Client, group: &Group) {
    let event = crate::world::event(client, |event| match event {
        Event::Typing { conversation, by } => Some((conversation.group()?, by.account_id)),
        _ => None,
    });
    assert_eq!(event.await, (group.id(), from.account().account_id));
}

#[tokio::test]
async fn members_who_are_there_hear_that_somebody_is_typing() {
    let world = World::new();
    let [alice, bob, carol] =
        [world.register("alice").await, world.register("bob").await, world.register("carol").await];
    let groups = world.group(&[&alice, &bob, &carol]).await;
    groups[0].typing().await.unwrap();
    hears_typing(&bob, &alice, &groups[0]).await;
    hears_typing(&carol, &alice, &groups[0]).await;
    // In the next epoch as well.
    groups[0].remove(carol.account().account_id).await.unwrap();
    groups[1].typing().await.unwrap();
    hears_typing(&alice, &bob, &groups[0]).await;
}

#[tokio::test]
async fn who_writes_directly_is_heard_typing_by_those_who_know_them() {
    let world = World::new();
    let [alice, bob] = [world.register("alice").await, world.register("bob").await];
    let [carol, mallory] = [world.register("carol").await, world.register("mallory").await];
    let (to_bob, to_alice) = (alice.direct(bob.account().account_id), bob.direct(alice.account().account_id));
    let said = async |conversation: &Conversation, count| {
        wait_until("what was written", async || {
            (conversation.history(10, None).await.unwrap().len() == count).then_some(())
        })
        .await;
    };
    to_bob.send("hello").await.unwrap();
    said(&to_alice, 1).await;
    let typing = count_events(&bob, |event| matches!(event, Event::Typing { .. }));
    // bob has not said yet that he knows her, nor mallory.
    mallory.direct(bob.account().account_id).send("hello").await.unwrap();
    said(&bob.direct(mallory.account().account_id), 1).await;
    let (to_carol, from_carol) = (bob.direct(carol.account().account_id), carol.direct(bob.account().account_id));
    to_carol.send("hello").await.unwrap();
    said(&from_carol, 1).await;
    from_carol.send("hello").await.unwrap();
    said(&to_carol, 2).await;
    for conversation in [&to_bob, &mallory.direct(bob.account().account_id)] {
        conversation.typing().await.unwrap();
    }
    // Whom he knows comes last.
    from_carol.typing().await.unwrap();
    wait_until("carol to be heard", async || (typing.load(SeqCst) > 0).then_some(())).await;
    assert_eq!(typing.load(SeqCst), 1);
    to_alice.send("hello yourself").await.unwrap();
    said(&to_bob, 2).await;
    to_bob.typing().await.unwrap();
    wait_until("it to be heard", async || (typing.load(SeqCst) == 2).then_some(())).await;
    to_alice.typing().await.unwrap();
    let heard = crate::world::event(&alice, |event| match event {
        Event::Typing { conversation, by } => Some((conversation, by.account_id)),
        _ => None,
    });
    assert_eq!(heard.await, (bob.account().account_id.into(), bob.account().account_id));
}

#[tokio::test]
async fn what_was_said_a_while_ago_is_not_told() {
    let world = World::new();
    let clock = standing();
    let (alice, bob) = (world.register_by(&clock, "alice").await, world.register_by(&clock, "bob").await);
    let groups = world.group(&[&alice, &bob]).await;
    let typing = count_events(&bob, |event| matches!(event, Event::Typing { .. }));
    world.relay.hold_deliveries();
    groups[0].typing().await.unwrap();
    clock.pass(&world, 11_000);
    world.relay.release_deliveries();
    groups[0].send("after").await.unwrap();
    has_texts(&groups[1], &["after"]).await;
    // What is said now comes after what was said then.
    groups[0].typing().await.unwrap();
    wait_until("it", async || (typing.load(SeqCst) > 0).then_some(())).await;
    assert_eq!(typing.load(SeqCst), 1);
}

#[tokio::test]
async fn beside_many_notices_every_message_is_read() {
    let world = World::new();
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let groups = world.group(&[&alice, &bob]).await;
    let typing = count_events(&bob, |event| matches!(event, Event::Typing { .. }));
    let all: Vec<_> = (0..MESSAGES).map(|number| number.to_string()).collect();
    for text in &all {
        groups[0].send(text).await.unwrap();
    }
    let notices = async {
        let mut ten_a_second = tokio::time::interval(Duration::from_millis(100));
        loop {
            ten_a_second.tick().await;
            groups[0].typing().await.unwrap();
        }
    };
    let all_and_one_of_them = async {
        has_texts(&groups[1], &all).await;
        // Who has messages waiting is not told.
        wait_until("a notice", async || (typing.load(SeqCst) > 0).then_some(())).await;
    };
    tokio::select! {
        () = all_and_one_of_them => {}
        () = notices => {}
    }
}
