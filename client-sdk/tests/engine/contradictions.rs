//! Answers and frames that come too late, twice, or should not be: nothing is lost, doubled, forked or asked without end.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

use undertone::{Client, Clock as _, Connection, Error, Event, Group, SystemClock, api::ApiError};
use undertone_wire::{Delivery, Envelope, ErrorCode, Problem, ServerFrame, StaleGroup, UnackedCommit};

use crate::{
    liar::{Call, Liar, Lie, lied_to, lost, refused, register_at, unknown},
    world::{
        PATIENCE, Standing, World, event, has_commits, has_failed, has_texts, is_sent, joined, key, members, online,
        online_by_another_stream, standing, wait_until,
    },
};

/// The third has left; the first, whose turn it is to tidy, is away; the second has planned to tidy later.
async fn somebody_left(world: &World) -> (Client, Arc<Standing>, Client, Group) {
    let mut three = Vec::new();
    for name in ["anna", "bert", "cleo"] {
        let clock = standing();
        three.push((world.register_by(&clock, name).await, clock));
    }
    three.sort_by_key(|(client, _)| client.account().account_id);
    let id = world.group(&[&three[0].0, &three[1].0, &three[2].0]).await[0].id();
    let [(first, _), (second, clock), (third, _)] = three.try_into().ok().unwrap();
    first.shutdown().await;
    third.group(id).leave().await.unwrap();
    let gone = third.account();
    event(&second, |event| match event {
        Event::MembersChanged { removed, .. } => (removed == [gone.clone()]).then_some(()),
        _ => None,
    })
    .await;
    let group = second.group(id);
    (second, clock, third, group)
}

#[tokio::test]
async fn a_tidying_whose_time_comes_does_not_replace_a_commit_in_flight() {
    let world = World::new();
    let (actor, clock, _, group) = somebody_left(&world).await;
    let dave = world.register("dave").await;
    let elsewhere = actor.create_group("elsewhere").await.unwrap();
    world.relay.hold_deliveries();
    let adding = {
        let (group, dave) = (group.clone(), dave.account().account_id);
        tokio::spawn(async move { group.add(dave).await })
    };
    has_commits(&world, &group, 3).await;
    clock.0.fetch_add(10_000, SeqCst);
    // The outbox has looked at what is due by the time it has sent this.
    let id = elsewhere.send("looked").await.unwrap();
    is_sent(&actor, id).await;
    world.relay.release_deliveries();
    adding.await.unwrap().unwrap();
    joined(&dave, group.id()).await;
    assert!(members(&group).await.contains(&dave.account().account_id));
    group.send("one group").await.unwrap();
    has_texts(&dave.group(group.id()), &["one group"]).await;
}

#[tokio::test]
async fn who_left_can_be_added_again_by_one_whose_turn_to_tidy_is_later() {
    let world = World::new();
    let (_, _, leaver, group) = somebody_left(&world).await;
    group.add(leaver.account().account_id).await.unwrap();
    assert!(members(&group).await.contains(&leaver.account().account_id));
    joined(&leaver, group.id()).await;
}

#[tokio::test]
async fn an_unknown_outcome_of_a_commit_is_not_taken_for_a_no() {
    let world = World::new();
    let liar = Liar::new(world.relay.connect_with_clock(Arc::new(|| SystemClock.now_ms())));
    let alice = register_at(&world, &liar, Arc::new(SystemClock), "alice").await;
    let (bob, carol) = (world.register("bob").await, world.register("carol").await);
    let groups = world.group(&[&alice, &bob]).await;
    world.relay.hold_deliveries();
    liar.tell(|call| (call == Call::Commit(0)).then(|| Lie::AfterActing(lost())));
    let adding = {
        let (group, carol) = (groups[0].clone(), carol.account().account_id);
        tokio::spawn(async move { group.add(carol).await })
    };
    has_commits(&world, &groups[0], 2).await;
    world.relay.set_time_ms(world.relay.time_ms() + 2 * 24 * 3_600 * 1_000);
    wait_until("the commit to be posted again, and again under a new id", async || (liar.commits() >= 3).then_some(()))
        .await;
    world.relay.release_deliveries();
    adding.await.unwrap().unwrap();
    groups[0].send("still here").await.unwrap();
    has_texts(&groups[1], &["still here"]).await;
}

#[tokio::test]
async fn a_client_without_a_connection_says_so() {
    let world = World::new();
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let id = world.group(&[&alice, &bob]).await[0].id();
    alice.shutdown().await;
    let alice = Client::open_offline(world.store("alice"), key()).await.unwrap();
    let removed = alice.group(id).remove(bob.account().account_id).await;
    assert!(matches!(removed, Err(Error::Offline(_))), "{removed:?}");
}

#[tokio::test]
async fn shutting_down_ends_a_change_that_waits_for_the_connection() {
    let world = World::new();
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let id = world.group(&[&alice, &bob]).await[0].id();
    alice.shutdown().await;
    world.relay.hold_deliveries();
    let alice = world.open("alice").await;
    let (group, bob) = (alice.group(id), bob.account().account_id);
    let removing = tokio::spawn(async move { group.remove(bob).await });
    wait_until("to catch up", async || (alice.connection() == Connection::CatchingUp).then_some(())).await;
    alice.shutdown().await;
    assert!(matches!(removing.await.unwrap(), Err(Error::Closed)));
}

#[tokio::test]
async fn a_commit_whose_own_row_was_missed_is_found_among_the_groups_commits() {
    let world = World::new();
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let groups = world.group(&[&alice, &bob]).await;
    let carol = world.register("carol").await.account().account_id;
    world.relay.hold_deliveries();
    let group = groups[0].clone();
    let adding = tokio::spawn(async move { group.add(carol).await });
    has_commits(&world, &groups[0], 2).await;
    let device = alice.device_id();
    world.relay.expire_queue(&device, world.relay.next_seq(&device).unwrap() - 1);
    world.relay.release_deliveries();
    adding.await.unwrap().unwrap();
    assert_eq!(members(&groups[0]).await.len(), 3);
    has_commits(&world, &groups[0], 2).await;
}

#[tokio::test]
async fn what_was_applied_is_acked_by_the_next_stream() {
    let world = World::new();
    let alice = world.register("alice").await;
    let (liar, bob) = lied_to(&world, "bob").await;
    let groups = world.group(&[&alice, &bob]).await;
    wait_until("all to be acked", async || (world.relay.queue_len(&bob.device_id()) == 0).then_some(())).await;
    liar.tell(|call| (call == Call::Ack(0)).then(|| Lie::Now(lost())));
    groups[0].send("taken").await.unwrap();
    wait_until("an ack to be lost", async || (liar.acks() > 0).then_some(())).await;
    wait_until("another to come", async || (world.relay.queue_len(&bob.device_id()) == 0).then_some(())).await;
    has_texts(&groups[1], &["taken"]).await;
}

#[tokio::test]
async fn a_relay_that_contradicts_itself_is_not_asked_in_a_loop_and_holds_up_no_other_group() {
    let world = World::new();
    let liar = Liar::new(world.relay.connect());
    // Its clock stands still, so that what was put off stays so.
    let alice = register_at(&world, &liar, standing(), "alice").await;
    let bob = world.register("bob").await;
    let (one, two) = (world.group(&[&alice, &bob]).await, world.group(&[&alice, &bob]).await);
    let (bad, position) = (one[0].id(), world.relay.group_position(&one[0].id()).unwrap());
    liar.tell(move |call| {
        let stale_group = Some(StaleGroup { position, member: true, unacked: vec![] });
        let problem = Problem { stale_group, ..Problem::new(ErrorCode::StaleGroup) };
        matches!(call, Call::Send(group, _) if group == bad).then(|| Lie::Now(ApiError::Refused(Box::new(problem))))
    });
    one[0].send("refused").await.unwrap();
    let other = two[0].send("hello").await.unwrap();
    is_sent(&alice, other).await;
    assert_eq!(liar.sends(), 2, "once each");
}

#[tokio::test]
async fn a_relay_that_fails_for_one_group_holds_up_no_other() {
    let world = World::new();
    let (liar, alice) = lied_to(&world, "alice").await;
    let bob = world.register("bob").await;
    let (one, two) = (world.group(&[&alice, &bob]).await, world.group(&[&alice, &bob]).await);
    let bad = one[0].id();
    liar.tell(move |call| match call {
        Call::Send(group, number) if group == bad && number < 3 => Some(Lie::Now(refused(ErrorCode::Internal))),
        _ => None,
    });
    let late = one[0].send("late").await.unwrap();
    let other = two[0].send("hello").await.unwrap();
    is_sent(&alice, other).await;
    is_sent(&alice, late).await;
}

#[tokio::test]
async fn a_task_that_is_put_off_keeps_its_place() {
    let world = World::new();
    let (liar, alice) = lied_to(&world, "alice").await;
    liar.tell(|call| matches!(call, Call::Create(0 | 1)).then(|| Lie::Now(refused(ErrorCode::Internal))));
    let group = alice.create_group("late").await.unwrap();
    let message = group.send("after the group").await.unwrap();
    is_sent(&alice, message).await;
}

#[tokio::test]
async fn numbers_too_large_for_the_store_block_nothing() {
    let world = World::new();
    let (liar, alice) = lied_to(&world, "alice").await;
    let (at_bob, bob) = lied_to(&world, "bob").await;
    let (one, two) = (world.group(&[&alice, &bob]).await, world.group(&[&alice, &bob]).await);
    let (bad, position) = (one[0].id(), world.relay.group_position(&one[0].id()).unwrap());
    liar.tell(move |call| {
        let unacked = vec![UnackedCommit { commit_seq: 9, seq: u64::MAX }];
        let stale_group = Some(StaleGroup { position, member: false, unacked });
        let problem = Problem { stale_group, ..Problem::new(ErrorCode::StaleGroup) };
        matches!(call, Call::Send(group, _) if group == bad).then(|| Lie::Now(ApiError::Refused(Box::new(problem))))
    });
    at_bob.rewrite(|frame| match frame {
        ServerFrame::Delivery {
            delivery: Delivery { seq, envelope: Envelope::Welcome { group_id, group_info, secrets, .. } },
        } => {
            let envelope = Envelope::Welcome { group_id, commit_seq: u64::MAX, group_info, secrets };
            ServerFrame::Delivery { delivery: Delivery { seq, envelope } }
        }
        frame => frame,
    });
    one[0].send("refused").await.unwrap();
    let third = alice.create_group("third").await.unwrap();
    third.add(bob.account().account_id).await.unwrap();
    two[0].send("behind it").await.unwrap();
    has_texts(&two[1], &["behind it"]).await;
}

#[tokio::test]
async fn a_log_in_that_took_too_long_fails_no_message_and_signs_nobody_out() {
    let world = World::new();
    let (liar, alice) = lied_to(&world, "alice").await;
    let bob = world.register("bob").await;
    let groups = world.group(&[&alice, &bob]).await;
    // The session has ended; the challenge of the first log-in is over before it arrives.
    liar.tell(|call| {
        let ended = matches!(call, Call::Send(_, 0) | Call::Open(0) | Call::Login(0));
        ended.then(|| Lie::Now(refused(ErrorCode::Unauthenticated)))
    });
    world.relay.cut_streams();
    let id = groups[0].send("hello").await.unwrap();
    assert!(alice.message_settled(id, PATIENCE).await.unwrap().is_sent());
    online(&alice).await;
}

#[tokio::test]
async fn a_session_that_ends_as_soon_as_it_began_signs_nobody_out() {
    let world = World::new();
    let (liar, alice) = lied_to(&world, "alice").await;
    let streams = world.relay.streams_opened(&alice.device_id());
    // With the session before, and with a new one: the relay was restored twice.
    liar.tell(|call| matches!(call, Call::Open(0 | 1)).then(|| Lie::Now(refused(ErrorCode::Unauthenticated))));
    world.relay.cut_streams();
    online_by_another_stream(&world, &alice, streams).await;
}

#[tokio::test]
async fn a_deleted_account_is_signed_out() {
    let world = World::new();
    let alice = world.register("alice").await;
    alice.delete_account().await.unwrap();
    wait_until("to be signed out", async || (alice.connection() == Connection::SignedOut).then_some(())).await;
}

#[tokio::test]
async fn that_members_are_gone_is_not_forgotten() {
    let world = World::new();
    let (liar, alice) = lied_to(&world, "alice").await;
    let bob = world.register("bob").await;
    let id = world.group(&[&alice, &bob]).await[0].id();
    liar.tell(|call| (call == Call::Account).then(|| Lie::Now(lost())));
    bob.delete_account().await.unwrap();
    wait_until("alice to have been told", async || (world.relay.queue_len(&alice.device_id()) == 0).then_some(()))
        .await;
    alice.shutdown().await;
    let alice = world.open("alice").await;
    let group = alice.group(id);
    wait_until("bob's leaf to be removed", async || (members(&group).await.len() == 1).then_some(())).await;
}

#[tokio::test]
async fn a_final_no_does_not_unsend_what_the_queue_has_confirmed() {
    let world = World::new();
    let (liar, alice) = lied_to(&world, "alice").await;
    let bob = world.register("bob").await;
    let groups = world.group(&[&alice, &bob]).await;
    liar.tell(|call| match call {
        Call::Send(_, 0) => Some(Lie::AfterActing(lost())),
        Call::Send(_, 1) => Some(Lie::AtTheGate(refused(ErrorCode::NotFound))),
        _ => None,
    });
    world.relay.hold_deliveries();
    let first = groups[0].send("hello").await.unwrap();
    wait_until("it to be posted again", async || (liar.sends() == 2).then_some(())).await;
    world.relay.release_deliveries();
    is_sent(&alice, first).await;
    liar.open_gate();
    let second = groups[0].send("again").await.unwrap();
    is_sent(&alice, second).await;
    assert!(alice.message_status(first).await.unwrap().is_sent());
    has_texts(&groups[1], &["hello", "again"]).await;
}

#[tokio::test]
async fn a_problem_of_a_later_version_is_read_by_its_status() {
    let world = World::new();
    let (liar, alice) = lied_to(&world, "alice").await;
    let bob = world.register("bob").await;
    let groups = world.group(&[&alice, &bob]).await;
    liar.tell(|call| match call {
        Call::Send(_, 0) => Some(Lie::Now(unknown(507))),
        Call::Send(_, 2) => Some(Lie::Now(unknown(418))),
        _ => None,
    });
    let repeated = groups[0].send("repeated").await.unwrap();
    is_sent(&alice, repeated).await;
    wait_until("it to be posted again", async || (liar.sends() == 2).then_some(())).await;
    let refused = groups[0].send("refused").await.unwrap();
    has_failed(&alice, refused).await;
    has_texts(&groups[1], &["repeated"]).await;
}

#[tokio::test]
async fn what_was_put_off_all_day_is_posted_anew_when_its_outcome_is_not_known() {
    for code in [ErrorCode::OutcomeUnknown, ErrorCode::ClockSkew, ErrorCode::UnknownDevice] {
        let (world, clock) = (World::new(), standing());
        let liar = Liar::new(world.relay.connect());
        let alice = register_at(&world, &liar, Arc::<Standing>::clone(&clock), "alice").await;
        let bob = world.register("bob").await;
        let (one, two) = (world.group(&[&alice, &bob]).await, world.group(&[&alice, &bob]).await);
        let (late, tried, said) = (one[0].id(), Arc::new(AtomicUsize::new(0)), code.clone());
        let counted = Arc::clone(&tried);
        liar.tell(move |call| match call {
            Call::Send(group, _) if group == late => match counted.fetch_add(1, SeqCst) {
                0..30 => Some(Lie::Now(refused(ErrorCode::Unavailable))),
                30 => Some(Lie::Now(refused(said.clone()))),
                _ => None,
            },
            _ => None,
        });
        let id = one[0].send("late").await.unwrap();
        for round in 1..=30 {
            wait_until(format!("try {round}"), async || (tried.load(SeqCst) >= round).then_some(())).await;
            clock.pass(&world, 33_000);
            // The outbox looks at what is due when there is something to do.
            two[0].send("look").await.unwrap();
        }
        is_sent(&alice, id).await;
        has_texts(&one[1], &["late"]).await;
    }
}
