//! A relay that was set back to an earlier state: what it has lost is told, and groups it has lost commits of end.

use undertone::{Client, Error, Event, Group, MessageId, MessageStatus};

use crate::world::{
    PATIENCE, Standing, World, event, has_texts, is_sent, joined, members, online_by_another_stream, standing,
    wait_until,
};

/// Passes time until a message is no longer queued. In another group, something goes out each time.
async fn pass_time_until_settled(
    world: &World,
    clock: &Standing,
    elsewhere: &Group,
    client: &Client,
    message: MessageId,
) {
    let mut tries = 0;
    while client.message_status(message).await.unwrap() == MessageStatus::Queued {
        assert!(tries < 12, "it ends after a few tries");
        tries += 1;
        clock.pass(world, 33_000);
        let id = elsewhere.send("still here").await.unwrap();
        is_sent(client, id).await;
    }
    assert!(tries > 4, "it was tried again, with pauses in between");
}

#[tokio::test]
async fn a_group_of_which_the_relay_has_lost_commits_ends_and_no_other() {
    let world = World::new();
    let clock = standing();
    let alice = world.register_by(&clock, "alice").await;
    let (bob, carol) = (world.register("bob").await, world.register("carol").await);
    let (one, two) = (world.group(&[&alice, &bob]).await, world.group(&[&alice, &bob]).await);
    let backup = world.relay.backup();
    one[0].add(carol.account().account_id).await.unwrap();
    joined(&carol, one[0].id()).await;
    wait_until("bob to know", async || (members(&one[1]).await.len() == 3).then_some(())).await;
    wait_until("alice to have taken all", async || (world.relay.queue_len(&alice.device_id()) == 0).then_some(()))
        .await;

    world.relay.restore_from(&backup);
    let lost = one[0].send("lost").await.unwrap();
    let missed = event(&alice, |event| match event {
        Event::Missed { from, to } => Some(to - from + 1),
        _ => None,
    });
    let numbers = missed.await;
    assert!(numbers > 1 << 31 && numbers < 1 << 32, "alice is ahead of the copy: {numbers}");
    pass_time_until_settled(&world, &clock, &two[0], &alice, lost).await;
    assert!(matches!(alice.message_status(lost).await.unwrap(), MessageStatus::Failed(_)));
    let stuck = event(&alice, |event| match event {
        Event::GroupStuck { group_id } => Some(group_id),
        _ => None,
    });
    assert_eq!(stuck.await, one[0].id());
    assert!(matches!(one[0].send("again").await, Err(Error::GroupStuck)));
    assert!(!one[0].summary().await.unwrap().active);

    assert_eq!(one[0].history(10, None).await.unwrap().len(), 1, "the history stays");
    two[0].send("goes on").await.unwrap();
    let texts = crate::world::texts(&two[0]).await;
    has_texts(&two[1], &texts).await;
    two[0].add(carol.account().account_id).await.unwrap();
    joined(&carol, two[0].id()).await;
}

#[tokio::test]
async fn a_group_that_the_relay_has_lost_ends_and_a_change_that_waits_is_told_so() {
    let world = World::new();
    let clock = standing();
    let alice = world.register_by(&clock, "alice").await;
    let bob = world.register("bob").await;
    let kept = alice.create_group("kept").await.unwrap();
    assert_eq!(alice.outbox_empty(PATIENCE).await.unwrap(), 0);
    let (backup, streams) = (world.relay.backup(), world.relay.streams_opened(&alice.device_id()));
    let lost = alice.create_group("lost").await.unwrap();
    lost.add(bob.account().account_id).await.unwrap();
    joined(&bob, lost.id()).await;

    world.relay.restore_from(&backup);
    assert_eq!(world.relay.group_position(&lost.id()), None);
    online_by_another_stream(&world, &alice, streams).await;
    let message = lost.send("to nobody").await.unwrap();
    let removing = {
        let (group, bob) = (lost.clone(), bob.account().account_id);
        tokio::spawn(async move { group.remove(bob).await })
    };
    pass_time_until_settled(&world, &clock, &kept, &alice, message).await;
    assert!(matches!(alice.message_status(message).await.unwrap(), MessageStatus::Failed(_)));
    assert!(matches!(removing.await.unwrap(), Err(Error::GroupStuck)));
    let id = kept.send("goes on").await.unwrap();
    is_sent(&alice, id).await;
}
