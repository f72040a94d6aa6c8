//! Sending, receiving, and what stays of it.

use undertone::{Error, Event, MessageStatus};

use crate::world::{PATIENCE, World, event, has_failed, has_texts, is_sent, joined, texts, wait_until};

#[tokio::test]
async fn a_message_arrives_with_its_author_and_the_same_id() {
    let world = World::new();
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let groups = world.group(&[&alice, &bob]).await;
    let joined = event(&bob, |event| match event {
        Event::Joined { name, by, .. } => Some((name, by)),
        _ => None,
    });
    assert_eq!(joined.await, ("ski trip".into(), alice.account()));
    let id = groups[0].send("snow!").await.unwrap();
    let message = event(&bob, |event| match event {
        Event::MessageReceived(message) => Some(message),
        _ => None,
    })
    .await;
    assert_eq!((message.message_id, message.text()), (id, "snow!"));
    assert_eq!(message.from, alice.account());
    is_sent(&alice, id).await;
    event(&alice, |event| match event {
        Event::MessageStatus { message_id, status: MessageStatus::Sent, .. } => (message_id == id).then_some(()),
        _ => None,
    })
    .await;
}

#[tokio::test]
async fn histories_have_one_order_on_all_devices() {
    let world = World::new();
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let groups = world.group(&[&alice, &bob]).await;
    for number in 0..20 {
        let (one, two) = (groups[0].send(format!("a{number}")), groups[1].send(format!("b{number}")));
        tokio::try_join!(one, two).unwrap();
    }
    wait_until("both to have everything, in one order", async || {
        let (one, two) = (texts(&groups[0]).await, texts(&groups[1]).await);
        (one.len() == 40 && one == two).then_some(())
    })
    .await;
    let theirs: Vec<_> = texts(&groups[1]).await.into_iter().filter(|text| text.starts_with('a')).collect();
    assert_eq!(theirs, (0..20).map(|number| format!("a{number}")).collect::<Vec<_>>());
}

#[tokio::test]
async fn history_is_paged_and_stays_after_removal() {
    let world = World::new();
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let groups = world.group(&[&alice, &bob]).await;
    let all: Vec<_> = (0..10).map(|number| number.to_string()).collect();
    for text in &all {
        groups[0].send(text).await.unwrap();
    }
    has_texts(&groups[1], &all).await;
    groups[0].remove(bob.account().account_id).await.unwrap();
    event(&bob, |event| matches!(event, Event::Removed { .. }).then_some(())).await;

    let newest = groups[1].history(4, None).await.unwrap();
    assert_eq!(newest.iter().map(|message| message.text()).collect::<Vec<_>>(), ["6", "7", "8", "9"]);
    let older = groups[1].history(4, Some(newest[0].message_id)).await.unwrap();
    assert_eq!(older.iter().map(|message| message.text()).collect::<Vec<_>>(), ["2", "3", "4", "5"]);
    let stranger = world.register("stranger").await;
    let elsewhere = stranger.create_group("elsewhere").await.unwrap();
    let unknown = elsewhere.history(1, Some(newest[0].message_id)).await;
    assert!(matches!(unknown, Err(Error::UnknownMessage)));
}

#[tokio::test]
async fn a_removed_member_cannot_send_and_reads_nothing_more() {
    let world = World::new();
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let groups = world.group(&[&alice, &bob]).await;
    groups[0].remove(bob.account().account_id).await.unwrap();
    groups[0].send("alone").await.unwrap();
    let by = event(&bob, |event| match event {
        Event::Removed { by, .. } => Some(by),
        _ => None,
    });
    assert_eq!(by.await, Some(alice.account()));
    assert!(matches!(groups[1].send("hello?").await, Err(Error::NotMember)));
    assert!(texts(&groups[1]).await.is_empty());
}

#[tokio::test]
async fn what_was_queued_before_a_removal_fails_and_says_so() {
    let world = World::new();
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let groups = world.group(&[&alice, &bob]).await;
    world.relay.hold_deliveries();
    groups[0].send("so that bob lags behind").await.unwrap();
    let removal = {
        let group = groups[0].clone();
        let bob = bob.account().account_id;
        tokio::spawn(async move { group.remove(bob).await })
    };
    wait_until("the relay to have the removal", async || {
        (world.relay.group_position(&groups[0].id()).unwrap().commit_seq == 2).then_some(())
    })
    .await;
    let late = groups[1].send("too late").await.unwrap();
    world.relay.release_deliveries();
    removal.await.unwrap().unwrap();
    has_failed(&bob, late).await;
    assert_eq!(bob.outbox_empty(PATIENCE).await.unwrap(), 0);
}

#[tokio::test]
async fn a_newcomer_reads_only_what_comes_after() {
    let world = World::new();
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let group = alice.create_group("ski trip").await.unwrap();
    group.send("before").await.unwrap();
    group.add(bob.account().account_id).await.unwrap();
    group.send("after").await.unwrap();
    joined(&bob, group.id()).await;
    has_texts(&bob.group(group.id()), &["after"]).await;
}
