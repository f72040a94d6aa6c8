//! Lost answers, lost streams, lost processes.

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use undertone::{Clock, Connection, Event, MessageStatus, SystemClock};
use undertone_wire::ServerFrame;

use crate::liar::lied_to;
use crate::world::{
    PATIENCE, World, builder_at, event, has_commits, has_texts, is_sent, joined, members, online,
    online_by_another_stream, registered, wait_until,
};

#[tokio::test]
async fn what_is_written_offline_goes_out_later_once() {
    let world = World::new();
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let groups = world.group(&[&alice, &bob]).await;
    world.relay.go_offline();
    let mut sent = Vec::new();
    for number in 0..5 {
        sent.push(groups[0].send(number.to_string()).await.unwrap());
    }
    assert_eq!(alice.message_status(sent[0]).await.unwrap(), MessageStatus::Queued);
    world.relay.come_back();
    has_texts(&groups[1], &["0", "1", "2", "3", "4"]).await;
    is_sent(&alice, sent[4]).await;
}

#[tokio::test]
async fn a_group_can_be_made_and_filled_with_text_offline() {
    let world = World::new();
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    world.relay.go_offline();
    wait_until("alice to notice", async || (alice.connection() == Connection::Offline).then_some(())).await;
    let group = alice.create_group("ski trip").await.unwrap();
    group.send("nobody reads this").await.unwrap();
    assert_eq!(group.add(bob.account().account_id).await.unwrap_err().kind(), undertone::ErrorKind::Offline);
    world.relay.come_back();
    online(&alice).await;
    group.add(bob.account().account_id).await.unwrap();
    group.send("but this").await.unwrap();
    joined(&bob, group.id()).await;
    has_texts(&bob.group(group.id()), &["but this"]).await;
}

#[tokio::test]
async fn a_lost_answer_to_a_message_doubles_nothing() {
    let world = World::new();
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let groups = world.group(&[&alice, &bob]).await;
    let mut all = Vec::new();
    for number in 0..10 {
        world.relay.drop_answers(1);
        all.push(number.to_string());
        let id = groups[0].send(number.to_string()).await.unwrap();
        is_sent(&alice, id).await;
    }
    has_texts(&groups[1], &all).await;
    has_texts(&groups[0], &all).await;
}

#[tokio::test]
async fn a_lost_answer_to_a_commit_forks_nothing() {
    let world = World::new();
    let (alice, bob, carol) =
        (world.register("alice").await, world.register("bob").await, world.register("carol").await);
    let groups = world.group(&[&alice, &bob]).await;
    for _ in 0..3 {
        world.relay.drop_answers(2);
        groups[0].add(carol.account().account_id).await.unwrap();
        world.relay.drop_answers(2);
        groups[0].remove(carol.account().account_id).await.unwrap();
    }
    world.relay.drop_answers(0);
    groups[1].send("one group").await.unwrap();
    has_texts(&groups[0], &["one group"]).await;
    wait_until("two members", async || (members(&groups[1]).await.len() == 2).then_some(())).await;
}

#[tokio::test]
async fn a_send_that_is_refused_waits_until_all_before_it_is_read() {
    const UNREAD: usize = 30;
    let world = World::new();
    let (alice, bob, carol) =
        (world.register("alice").await, world.register("bob").await, world.register("carol").await);
    let groups = world.group(&[&alice, &bob]).await;
    world.relay.hold_deliveries();
    let mut unread: Vec<_> = (0..UNREAD).map(|n| format!("unread {n}")).collect();
    for text in &unread {
        groups[1].send(text).await.unwrap();
    }
    let adding = {
        let (group, carol) = (groups[1].clone(), carol.account().account_id);
        tokio::spawn(async move { group.add(carol).await })
    };
    has_commits(&world, &groups[0], 2).await;
    let refused = groups[0].send("after all of it").await.unwrap();
    // The refusal is there when the next thing that alice asks of the relay is answered.
    alice.find("bob").await.unwrap();
    assert_eq!(alice.message_status(refused).await.unwrap(), MessageStatus::Queued);
    world.relay.release_deliveries();
    adding.await.unwrap().unwrap();
    is_sent(&alice, refused).await;
    unread.push("after all of it".into());
    for group in &groups {
        has_texts(group, &unread).await;
    }
}

#[tokio::test]
async fn a_late_stream_loses_no_message_of_the_epoch_before() {
    let world = World::new();
    let (alice, bob, carol) =
        (world.register("alice").await, world.register("bob").await, world.register("carol").await);
    let groups = world.group(&[&alice, &bob]).await;
    world.relay.hold_deliveries();
    groups[1].send("of the epoch before").await.unwrap();
    wait_until("the relay to have it", async || (world.relay.queue_len(&alice.device_id()) > 0).then_some(())).await;
    // alice's commit is accepted while bob's message still stands before it in her queue.
    let adding = {
        let (group, carol) = (groups[0].clone(), carol.account().account_id);
        tokio::spawn(async move { group.add(carol).await })
    };
    wait_until("the relay to have the commit", async || {
        (world.relay.group_position(&groups[0].id()).unwrap().commit_seq == 2).then_some(())
    })
    .await;
    // bob, who does not know of it yet, is refused, drains and sends again.
    groups[1].send("refused at first").await.unwrap();
    world.relay.release_deliveries();
    adding.await.unwrap().unwrap();
    has_texts(&groups[0], &["of the epoch before", "refused at first"]).await;
    joined(&carol, groups[0].id()).await;
    has_texts(&carol.group(groups[0].id()), &["refused at first"]).await;
}

#[tokio::test]
async fn a_process_that_dies_goes_on_where_it_stopped() {
    let world = World::new();
    let (mut alice, bob) = (world.register("alice").await, world.register("bob").await);
    let at_bob = world.group(&[&alice, &bob]).await.remove(1);
    let mut all = Vec::new();
    for round in 0..8 {
        // Dropped without shutdown, at another point each time.
        match round % 4 {
            0 => world.relay.drop_answers(1),
            1 => world.relay.refuse_connections(1),
            2 => world.relay.cut_streams(),
            _ => {}
        }
        for part in 0..3 {
            let text = format!("{round}.{part}");
            alice.group(at_bob.id()).send(text.clone()).await.unwrap();
            all.push(text);
        }
        drop(alice);
        alice = world.open("alice").await;
    }
    has_texts(&at_bob, &all).await;
    has_texts(&alice.group(at_bob.id()), &all).await;
    assert_eq!(alice.outbox_empty(PATIENCE).await.unwrap(), 0);
}

#[tokio::test]
async fn a_receiver_that_dies_shows_each_message_once() {
    let world = World::new();
    let (alice, mut bob) = (world.register("alice").await, world.register("bob").await);
    let at_alice = world.group(&[&alice, &bob]).await.remove(0);
    let all: Vec<_> = (0..40).map(|number| number.to_string()).collect();
    for chunk in all.chunks(5) {
        for text in chunk {
            at_alice.send(text).await.unwrap();
        }
        drop(bob);
        bob = world.open("bob").await;
    }
    has_texts(&bob.group(at_alice.id()), &all).await;
    let mut seen = Vec::new();
    while seen.len() < all.len() {
        seen.push(
            event(&bob, |event| match event {
                Event::MessageReceived(message) => Some(message.text().to_owned()),
                _ => None,
            })
            .await,
        );
    }
    assert_eq!(seen, all, "each event once, over all those restarts");
    wait_until("everything to be acked", async || (world.relay.queue_len(&bob.device_id()) == 0).then_some(())).await;
}

#[tokio::test]
async fn what_was_not_taken_in_time_is_told() {
    let world = World::new();
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let groups = world.group(&[&alice, &bob]).await;
    wait_until("bob's queue to be drained", async || (world.relay.queue_len(&bob.device_id()) == 0).then_some(()))
        .await;
    let (device, group) = (bob.device_id(), groups[0].clone());
    drop(groups);
    bob.shutdown().await;
    for number in 0..4 {
        let id = group.send(number.to_string()).await.unwrap();
        is_sent(&alice, id).await;
    }
    let first = world.relay.queue(&device)[0].seq;
    world.relay.expire_queue(&device, first + 1);
    let bob = world.open("bob").await;
    let missed = event(&bob, |event| match event {
        Event::Missed { from, to } => Some((from, to)),
        _ => None,
    });
    assert_eq!(missed.await, (first, first + 1));
    has_texts(&bob.group(group.id()), &["2", "3"]).await;
}

#[tokio::test]
async fn a_restored_relay_is_one_event_and_nothing_else() {
    let world = World::new();
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let groups = world.group(&[&alice, &bob]).await;
    groups[0].send("before").await.unwrap();
    has_texts(&groups[1], &["before"]).await;
    let device = bob.device_id();
    wait_until("bob's queue to be drained", async || (world.relay.queue_len(&device) == 0).then_some(())).await;
    let first = world.relay.next_seq(&device).unwrap();
    for round in 0..3 {
        world.relay.restore();
        let text = format!("after {round}");
        let id = groups[0].send(&text).await.unwrap();
        is_sent(&alice, id).await;
    }
    has_texts(&groups[1], &["before", "after 0", "after 1", "after 2"]).await;
    let id = groups[1].send("from bob").await.unwrap();
    is_sent(&bob, id).await;
    has_texts(&groups[0], &["before", "after 0", "after 1", "after 2", "from bob"]).await;
    // Each jump is told once, whatever came between them.
    let (mut missed, mut texts) = (vec![], 0);
    while texts < 4 {
        let (span, text) = event(&bob, |event| match event {
            Event::Missed { from, to } => Some((Some((from, to)), 0)),
            Event::MessageReceived(_) => Some((None, 1)),
            _ => None,
        })
        .await;
        missed.extend(span);
        texts += text;
    }
    assert_eq!(missed.first().map(|(from, _)| *from), Some(first));
    assert!(missed.windows(2).all(|pair| pair[0].1 < pair[1].0), "none is told twice: {missed:?}");
    let numbers: u64 = missed.iter().map(|(from, to)| to - from + 1).sum();
    assert_eq!(numbers, 3 << 32);
    wait_until("everything to be acked", async || (world.relay.queue_len(&device) == 0).then_some(())).await;
}

#[tokio::test]
async fn a_relay_that_knows_less_of_a_queue_than_its_device_changes_nothing() {
    let world = World::new();
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let groups = world.group(&[&alice, &bob]).await;
    groups[0].send("before").await.unwrap();
    has_texts(&groups[1], &["before"]).await;
    wait_until("bob's queue to be drained", async || (world.relay.queue_len(&bob.device_id()) == 0).then_some(()))
        .await;
    world.relay.forget_numbers(&bob.device_id());
    world.relay.cut_streams();
    let missed = event(&bob, |event| match event {
        Event::Missed { from, to } => Some(to - from + 1),
        _ => None,
    });
    assert_eq!(missed.await, 1 << 32);
    groups[0].send("after").await.unwrap();
    has_texts(&groups[1], &["before", "after"]).await;
}

/// A clock by which no time passes, so that who waits waits for ever.
struct Stopped;

impl Clock for Stopped {
    fn now_ms(&self) -> u64 {
        SystemClock.now_ms()
    }

    fn pass(&self, _: Duration) -> BoxFuture<'static, ()> {
        Box::pin(std::future::pending())
    }
}

#[tokio::test]
async fn a_relay_is_tried_at_once_when_the_network_has_changed() {
    let world = World::new();
    let alice = registered(builder_at(&world.relay, world.store("alice")).clock(Arc::new(Stopped)), "alice").await;
    let device = alice.device_id();
    world.relay.go_offline();
    wait_until("the relay to be gone", async || (alice.connection() == Connection::Offline).then_some(())).await;
    world.relay.come_back();
    alice.network_changed();
    online(&alice).await;
    // A way that is open may be gone with the network.
    let streams = world.relay.streams_opened(&device);
    alice.network_changed();
    online_by_another_stream(&world, &alice, streams).await;
}

#[tokio::test]
async fn a_long_outbox_goes_out_in_order() {
    let world = World::new();
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let groups = world.group(&[&alice, &bob]).await;
    world.relay.go_offline();
    let all: Vec<_> = (0..500).map(|number| number.to_string()).collect();
    for text in &all {
        groups[0].send(text).await.unwrap();
    }
    world.relay.come_back();
    has_texts(&groups[1], &all).await;
}

#[tokio::test]
async fn what_is_missed_after_catching_up_is_told_and_looked_into_on_one_more_stream() {
    let world = World::new();
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let groups = world.group(&[&alice, &bob]).await;
    let device = bob.device_id();
    wait_until("bob's queue to be drained", async || (world.relay.queue_len(&device) == 0).then_some(())).await;
    let streams = world.relay.streams_opened(&device);
    world.relay.hold_deliveries();
    for number in 0..4 {
        let id = groups[0].send(number.to_string()).await.unwrap();
        is_sent(&alice, id).await;
    }
    let first = world.relay.queue(&device)[0].seq;
    world.relay.expire_queue(&device, first + 1);
    world.relay.release_deliveries();
    let missed = event(&bob, |event| match event {
        Event::Missed { from, to } => Some((from, to)),
        _ => None,
    });
    assert_eq!(missed.await, (first, first + 1));
    has_texts(&groups[1], &["2", "3"]).await;
    groups[0].send("4").await.unwrap();
    has_texts(&groups[1], &["2", "3", "4"]).await;
    online(&bob).await;
    assert_eq!(world.relay.streams_opened(&device), streams + 1);
}

#[tokio::test]
async fn a_relay_that_closes_each_stream_once_it_has_caught_up_is_asked_ever_less() {
    let world = World::new();
    let (liar, alice) = lied_to(&world, "alice").await;
    let relay = Arc::clone(&world.relay);
    liar.rewrite(move |frame| {
        if let ServerFrame::CaughtUp { .. } = frame {
            relay.cut_streams();
        }
        frame
    });
    let (device, began) = (alice.device_id(), tokio::time::Instant::now());
    let before = world.relay.streams_opened(&device);
    world.relay.cut_streams();
    wait_until("five more streams", async || (world.relay.streams_opened(&device) >= before + 5).then_some(())).await;
    // The pauses are at least half of 250, 500, 1000, 2000 and 4000 ms; without growing they are at most 250 each.
    assert!(began.elapsed() > Duration::from_millis(1_800), "{:?}", began.elapsed());
}
