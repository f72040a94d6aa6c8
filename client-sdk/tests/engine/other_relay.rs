//! Another relay at the relay's address for a while: nothing goes there, nothing is given up, and all goes on by itself.

use std::sync::{Arc, atomic::Ordering::SeqCst};

use undertone::{Client, Connection, Error, Event, MessageStatus, api::fake::FakeRelay};

use crate::{
    liar::{Call, Lie, lied_to, lost},
    world::{World, count_events, has_commits, has_texts, is_sent, joined, online, wait_until},
};

/// Waits until the other relay has been looked at so often, and the client has taken it for no relay.
async fn is_looked_at(other: &FakeRelay, client: &Client, times: u64) {
    let before = other.times_asked_who_it_is();
    wait_until("the other relay to be looked at", async || {
        let often = other.times_asked_who_it_is() >= before + times;
        (often && client.connection() == Connection::Offline).then_some(())
    })
    .await;
}

#[tokio::test]
async fn messages_wait_until_the_relay_is_back() {
    let (world, other) = (World::new(), FakeRelay::new());
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let groups = world.group(&[&alice, &bob]).await;
    let told = count_events(&alice, |event| matches!(event, Event::OtherRelay { .. }));
    for round in 0..2 {
        world.relay.replace_by(&other);
        // What was on its way when it came is heard there.
        is_looked_at(&other, &alice, 2).await;
        let heard = other.tokens_heard();
        let id = groups[0].send(round.to_string()).await.unwrap();
        is_looked_at(&other, &alice, 5).await;
        assert_eq!(other.tokens_heard(), heard, "it is told nothing once it is known for another");
        assert_eq!(alice.message_status(id).await.unwrap(), MessageStatus::Queued);
        world.relay.take_its_place_again();
        is_sent(&alice, id).await;
        online(&alice).await;
        wait_until("it to be told", async || (told.load(SeqCst) > round).then_some(())).await;
        assert_eq!(told.load(SeqCst), round + 1, "once each time it comes, not once each time it is looked at");
    }
    has_texts(&groups[1], &["0", "1"]).await;
    assert_ne!(world.relay.tokens_heard(), 0, "which would be noticed");
}

#[tokio::test]
async fn a_pending_commit_is_kept_until_the_relay_is_back() {
    let (world, other) = (World::new(), FakeRelay::new());
    let (liar, alice) = lied_to(&world, "alice").await;
    let (bob, carol) = (world.register("bob").await, world.register("carol").await);
    let groups = world.group(&[&alice, &bob]).await;
    world.relay.hold_deliveries();
    let (relay, instead) = (Arc::clone(&world.relay), Arc::clone(&other));
    // The relay has the commit; when alice hears that its answer was lost, another relay is there.
    liar.tell(move |call| (call == Call::Commit(0)).then(|| Lie::AfterActing(lost())));
    let adding = {
        let (group, carol) = (groups[0].clone(), carol.account().account_id);
        tokio::spawn(async move { group.add(carol).await })
    };
    has_commits(&world, &groups[0], 2).await;
    relay.replace_by(&instead);
    is_looked_at(&other, &alice, 5).await;
    world.relay.release_deliveries();
    world.relay.take_its_place_again();
    adding.await.unwrap().unwrap();
    joined(&carol, groups[0].id()).await;
    groups[0].send("one group").await.unwrap();
    has_texts(&groups[1], &["one group"]).await;
    has_texts(&carol.group(groups[0].id()), &["one group"]).await;
}

#[tokio::test]
async fn a_call_that_needs_the_relay_now_says_that_another_one_is_there() {
    let (world, other) = (World::new(), FakeRelay::new());
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let groups = world.group(&[&alice, &bob]).await;
    let carol = world.register("carol").await.account();
    world.relay.replace_by(&other);
    is_looked_at(&other, &alice, 2).await;
    assert!(matches!(groups[0].add(carol.account_id).await, Err(Error::OtherRelay)));
    assert!(matches!(alice.find("carol").await, Err(Error::OtherRelay)));
    assert_eq!(alice.find("bob").await.unwrap(), bob.account(), "who is known is found");
    world.relay.take_its_place_again();
    online(&alice).await;
    assert!(!alice.meets_other_relay());
    assert_eq!(alice.find("carol").await.unwrap(), carol);
}

#[tokio::test]
async fn a_relay_that_comes_after_the_address_was_looked_at_signs_nobody_out() {
    let (world, other) = (World::new(), FakeRelay::new());
    let (liar, alice) = lied_to(&world, "alice").await;
    let (relay, instead) = (Arc::clone(&world.relay), Arc::clone(&other));
    // It comes at the very moment at which the stream is asked for: the token goes there and is not known.
    liar.tell(move |call| {
        if call == Call::Open(0) {
            relay.replace_by(&instead);
        }
        None
    });
    world.relay.cut_streams();
    is_looked_at(&other, &alice, 3).await;
    world.relay.take_its_place_again();
    online(&alice).await;
}
