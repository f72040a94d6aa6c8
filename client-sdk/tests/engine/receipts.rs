//! What authors are told of their messages: who has them, who has read them, and why one was not sent.

use undertone::{Client, Error, Event, MessageId, MessageStatus, SendFailure};

use crate::world::{World, event, has_commits, has_failed, has_texts, is_sent, joined, texts, wait_until};

async fn has_status(client: &Client, message: MessageId, status: MessageStatus) {
    wait_until(format!("{status:?}"), async || (client.message_status(message).await.unwrap() == status).then_some(()))
        .await;
}

#[tokio::test]
async fn an_author_learns_who_has_a_message_and_who_has_read_it() {
    let world = World::new();
    let (alice, bob, carol) =
        (world.register("alice").await, world.register("bob").await, world.register("carol").await);
    let groups = world.group(&[&alice, &bob, &carol]).await;
    carol.shutdown().await;
    let first = groups[0].send("first").await.unwrap();
    has_status(&alice, first, MessageStatus::Delivered { to: 1, of: 2 }).await;
    let carol = world.open("carol").await;
    has_status(&alice, first, MessageStatus::Delivered { to: 2, of: 2 }).await;
    groups[1].mark_read(first).await.unwrap();
    has_status(&alice, first, MessageStatus::Read { by: 1, of: 2 }).await;
    let second = groups[0].send("second").await.unwrap();
    has_texts(&groups[1], &["first", "second"]).await;
    has_status(&alice, second, MessageStatus::Delivered { to: 2, of: 2 }).await;
    // What stands before what was read was read too.
    carol.group(groups[0].id()).mark_read(second).await.unwrap();
    has_status(&alice, first, MessageStatus::Read { by: 2, of: 2 }).await;
    has_status(&alice, second, MessageStatus::Read { by: 1, of: 2 }).await;
    groups[1].mark_read(first).await.unwrap();
    let told = event(&alice, |event| match event {
        Event::MessageStatus { message_id, status: MessageStatus::Read { by, of }, .. } => Some((message_id, by, of)),
        _ => None,
    });
    assert_eq!(told.await, (first, 1, 2));
    for group in &groups[..2] {
        assert_eq!(texts(group).await, ["first", "second"], "receipts are no messages");
    }
}

#[tokio::test]
async fn many_messages_are_confirmed_by_few_receipts() {
    const MESSAGES: u64 = 100;
    let world = World::new();
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let groups = world.group(&[&alice, &bob]).await;
    let before = world.relay.next_seq(&bob.device_id()).unwrap();
    bob.shutdown().await;
    let mut sent = Vec::new();
    for n in 0..MESSAGES {
        sent.push(groups[0].send(n.to_string()).await.unwrap());
    }
    is_sent(&alice, sent[99]).await;
    let bob = world.open("bob").await;
    for message in sent {
        has_status(&alice, message, MessageStatus::Delivered { to: 1, of: 1 }).await;
    }
    let receipts = world.relay.next_seq(&bob.device_id()).unwrap() - before - MESSAGES;
    assert!((1..=5).contains(&receipts), "{receipts} receipts");
}

#[tokio::test]
async fn what_a_device_has_missed_is_not_said_to_be_delivered() {
    let world = World::new();
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let groups = world.group(&[&alice, &bob]).await;
    let here = groups[0].send("here").await.unwrap();
    has_status(&alice, here, MessageStatus::Delivered { to: 1, of: 1 }).await;
    let device = bob.device_id();
    bob.shutdown().await;
    let missed = groups[0].send("missed").await.unwrap();
    is_sent(&alice, missed).await;
    world.relay.expire_queue(&device, u64::MAX);
    let later = groups[0].send("later").await.unwrap();
    is_sent(&alice, later).await;
    let bob = world.open("bob").await;
    has_status(&alice, later, MessageStatus::Delivered { to: 1, of: 1 }).await;
    bob.group(groups[0].id()).mark_read(later).await.unwrap();
    has_status(&alice, later, MessageStatus::Read { by: 1, of: 1 }).await;
    assert_eq!(alice.message_status(missed).await.unwrap(), MessageStatus::Sent);
}

#[tokio::test]
async fn a_message_that_failed_can_be_sent_again_or_forgotten() {
    let world = World::new();
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let groups = world.group(&[&alice, &bob]).await;
    let account = bob.account().account_id;
    world.relay.hold_deliveries();
    let meanwhile = async {
        has_commits(&world, &groups[0], 2).await;
        let sent = (groups[1].send("after all").await.unwrap(), groups[1].send("never mind").await.unwrap());
        world.relay.release_deliveries();
        sent
    };
    let (removed, (kept, dropped)) = tokio::join!(groups[0].remove(account), meanwhile);
    removed.unwrap();
    has_failed(&bob, kept).await;
    has_failed(&bob, dropped).await;
    assert_eq!(bob.message_status(kept).await.unwrap(), MessageStatus::Failed(SendFailure::NotMember));
    assert!(matches!(groups[1].retry(kept).await, Err(Error::NotMember)));
    assert_eq!(bob.search("never", 10).await.unwrap().len(), 1);
    groups[1].discard(dropped).await.unwrap();
    assert_eq!(bob.search("never", 10).await.unwrap(), []);
    assert!(matches!(groups[1].discard(dropped).await, Err(Error::UnknownMessage)));
    groups[0].add(account).await.unwrap();
    joined(&bob, groups[1].id()).await;
    groups[1].retry(kept).await.unwrap();
    is_sent(&bob, kept).await;
    has_texts(&groups[0], &["after all"]).await;
    assert_eq!(texts(&groups[1]).await, ["after all"]);
    assert_eq!(bob.search("after", 10).await.unwrap(), groups[1].history(10, None).await.unwrap());
    assert!(matches!(groups[1].retry(kept).await, Err(Error::UnknownMessage)), "it did not fail");
    assert!(matches!(groups[1].mark_read(dropped).await, Err(Error::UnknownMessage)));
}
