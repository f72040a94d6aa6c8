//! Slow readers: who does not take what is said is cut, and goes on from the store.

use std::time::Duration;

use undertone_server::Config;
use undertone_wire::{SendResponse, ServerFrame, path};

use crate::{
    stopping::ask,
    support::{Backend, Message, TestRelay, both},
};

both! {
    one_who_stalls_is_cut_and_the_rest_stays_in_the_store,
}

/// Together ten times what the system takes for a connection on which nobody reads, so the rest is held by the relay or
/// not read at all.
const MESSAGES: u64 = 10_000;
const MESSAGE_BYTES: usize = 10 * 1024;

/// One who does not read for a moment is too slow, and one connection takes all places.
fn impatient(config: &mut Config) {
    config.write_timeout = Duration::from_millis(300);
    config.limits.connections_max = 1;
}

/// Fills the only queue with more of the only entry that it has.
async fn fill(relay: &TestRelay) {
    let point = format!(
        "INSERT INTO queue (device_id, seq, envelope_id, share, bytes)
         WITH RECURSIVE more (seq) AS (
             SELECT CAST(2 AS BIGINT) UNION ALL SELECT seq + 1 FROM more WHERE seq < {MESSAGES}
         )
         SELECT q.device_id, more.seq, q.envelope_id, q.share, q.bytes FROM queue q, more"
    );
    let hold = format!("UPDATE envelopes SET pointers = {MESSAGES}");
    let count = format!(
        "UPDATE cursors SET next_seq = {MESSAGES} + 1, group_entries = {MESSAGES}, group_bytes = group_bytes * {MESSAGES}"
    );
    for statement in [point, hold, count] {
        relay.store.change(&statement).await;
    }
}

async fn one_who_stalls_is_cut_and_the_rest_stays_in_the_store(on: Backend) {
    let relay = TestRelay::start(on).await;
    let bob = relay.device().await;
    let group = bob.create_group().await;
    let message = Message::at(group, 0).saying(&[7; MESSAGE_BYTES]);
    bob.send_message(&message).await.yes::<SendResponse>();
    fill(&relay).await;
    let relay = relay.restart_with(impatient).await;
    let bob = bob.at(&relay);
    let mut stalled = bob.stream(0).await;
    // Who comes now has a place as soon as the one who stalls has been cut.
    ask(relay.connection().await, &format!("GET {} HTTP/1.1\r\nconnection: close\r\n\r\n", path::HEALTH)).await;
    let mut taken = 0;
    while let Some(frame) = stalled.next().await {
        let ServerFrame::Delivery { delivery } = frame else { panic!("{frame:?}") };
        assert_eq!(delivery.seq, taken + 1);
        taken = delivery.seq;
    }
    assert!(taken < MESSAGES / 2, "it was cut on the way, at {taken}");
    drop(stalled);
    assert!(bob.stream(taken).await.catches_up_to(MESSAGES + 1).await.into_iter().eq(taken + 1..=MESSAGES));
}
