//! Message ids: one effect and one answer for the same request.

use std::time::Duration;

use undertone_server::Clock as _;
use undertone_wire::{CommitResponse, ErrorCode, Limits, SendResponse, path};

use crate::support::{Backend, Message, TestRelay, both};

both! {
    the_same_request_has_one_effect_and_one_answer,
    another_body_group_or_path_under_the_same_id_is_refused,
    refusals_are_not_remembered,
    ids_from_the_future_and_from_before_the_window_are_told_the_time,
    a_stub_outlives_the_window_and_then_goes,
}

async fn the_same_request_has_one_effect_and_one_answer(on: Backend) {
    let relay = TestRelay::start(on).await;
    let alice = relay.device().await;
    let group = alice.create_group().await;
    let commit = Message::at(group, 0);
    assert_eq!(alice.commit(&commit).await.yes::<CommitResponse>().commit_seq, 1);
    let message = Message::at(group, 1);
    alice.send_message(&message).await.yes::<SendResponse>();
    alice.commit(&Message::at(group, 1)).await.yes::<CommitResponse>();

    // Both are of an epoch that is over, and still get their first answer.
    assert_eq!(alice.commit(&commit).await.yes::<CommitResponse>().commit_seq, 1);
    alice.send_message(&message).await.yes::<SendResponse>();
    assert_eq!(alice.fetch(0).await.next_seq, 4);
    assert_eq!(relay.rows("message_ids").await, 3);
}

async fn another_body_group_or_path_under_the_same_id_is_refused(on: Backend) {
    let relay = TestRelay::start(on).await;
    let alice = relay.device().await;
    let (group, other) = (alice.create_group().await, alice.create_group().await);
    let message = Message::at(group, 0);
    alice.send_message(&message).await.yes::<SendResponse>();
    alice.send_message(&message.clone().saying(b"something else")).await.no(ErrorCode::MessageIdReused);
    alice.send_message(&Message { group: other, ..message.clone() }).await.no(ErrorCode::MessageIdReused);
    alice.leave(&message).await.no(ErrorCode::MessageIdReused);
    alice.commit(&message).await.no(ErrorCode::MessageIdReused);
    assert_eq!(alice.fetch(0).await.next_seq, 2);
}

async fn refusals_are_not_remembered(on: Backend) {
    let relay = TestRelay::start(on).await;
    let alice = relay.device().await;
    let group = alice.create_group().await;
    let early = Message::at(group, 1);
    alice.send_message(&early).await.no(ErrorCode::StaleGroup);
    assert_eq!(relay.rows("message_ids").await, 0);
    alice.commit(&Message::at(group, 0)).await.yes::<CommitResponse>();
    alice.send_message(&early).await.yes::<SendResponse>();
}

async fn ids_from_the_future_and_from_before_the_window_are_told_the_time(on: Backend) {
    let relay = TestRelay::start(on).await;
    let limits = Limits::default();
    let alice = relay.device().await;
    let group = alice.create_group().await;
    let at = |time_ms| Message { id: Message::id(time_ms), ..Message::at(group, 0) };
    let now_ms = relay.clock.now_ms();

    let ahead_ms = limits.clock_ahead_s_max * 1_000;
    alice.send_message(&at(now_ms + ahead_ms)).await.yes::<SendResponse>();
    let skewed = alice.send_message(&at(now_ms + ahead_ms + 1)).await.no(ErrorCode::ClockSkew);
    assert_eq!(skewed.time_ms, Some(now_ms));

    let window_ms = limits.idempotency_window_s * 1_000;
    alice.send_message(&at(now_ms - window_ms)).await.yes::<SendResponse>();
    let lost = alice.send_message(&at(now_ms - window_ms - 1)).await.no(ErrorCode::OutcomeUnknown);
    assert_eq!(lost.time_ms, Some(now_ms));
}

async fn a_stub_outlives_the_window_and_then_goes(on: Backend) {
    let relay = TestRelay::start(on).await;
    let alice = relay.device().await;
    let group = alice.create_group().await;
    let message = Message::at(group, 0);
    alice.send_message(&message).await.yes::<SendResponse>();

    relay.clock.advance(Duration::from_secs(Limits::default().idempotency_window_s));
    relay.upkeep.run().await.unwrap();
    assert_eq!(relay.rows("message_ids").await, 1);
    relay.clock.advance(Duration::from_secs(1));
    alice.send_message(&message).await.no(ErrorCode::OutcomeUnknown);
    relay.clock.advance(Duration::from_secs(3 * 60 * 60));
    relay.upkeep.run().await.unwrap();
    assert_eq!(relay.rows("message_ids").await, 0);
    alice.get(path::QUEUE).await.yes::<undertone_wire::FetchResponse>();
}
