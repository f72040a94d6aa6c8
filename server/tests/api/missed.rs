//! What a device misses, and how it is told: retention, time to live, and what a group displaces of its own.

use std::time::Duration;

use undertone_server::{Clock as _, ManualClock};
use undertone_wire::{CommitResponse, ErrorCode, GroupId, Limits, SendResponse, ServerFrame, Span};

use crate::support::{Backend, Device, Message, TestRelay, both, direct_in};

both! {
    time_to_live_counts_whole_hours_rounded_up_and_never_beyond_retention,
    what_is_over_is_missed_in_place_by_fetch_and_by_stream,
    a_time_to_live_is_part_of_what_makes_a_request_the_same,
    a_device_that_returns_after_retention_misses_that_and_gets_everything_after,
    a_group_displaces_its_own_oldest_and_tells_what_is_missed,
    each_group_may_always_have_a_part_however_full_the_queue,
    the_newest_of_a_group_stays_however_large_it_is,
}

const HOUR_MS: u64 = 60 * 60 * 1_000;

fn hour_after(time_ms: u64) -> u64 {
    time_ms.next_multiple_of(HOUR_MS)
}

/// Moves the clock to half past some hour, from where it is clear which hour comes next.
fn to_half_past(clock: &ManualClock) -> u64 {
    let next_ms = hour_after(clock.now_ms()) + HOUR_MS / 2;
    clock.advance(Duration::from_millis(next_ms - clock.now_ms()));
    next_ms
}

fn span(from: u64, to: u64) -> Span {
    Span { from, to }
}

async fn sends(device: &Device, group: GroupId, ttl_s: Option<u64>) {
    let message = Message { ttl_s, ..Message::at(group, 0) };
    device.send_message(&message).await.yes::<SendResponse>();
}

async fn time_to_live_counts_whole_hours_rounded_up_and_never_beyond_retention(on: Backend) {
    let relay = TestRelay::with_limits(on, Limits { retention_s: 3 * 60 * 60, ..Limits::default() }).await;
    let alice = relay.device().await;
    let group = alice.create_group().await;
    let now_ms = to_half_past(&relay.clock);
    for ttl_s in [Some(0), Some(1), Some(60 * 60), Some(60 * 60 * 24 * 365), Some(u64::MAX), None] {
        sends(&alice, group, ttl_s).await;
    }
    let stored: Vec<(i64,)> =
        relay.select("SELECT expires_hour_ms FROM envelopes WHERE kind = 1 ORDER BY envelope_id").await;
    let (next, retained) = (hour_after(now_ms), hour_after(now_ms + 3 * HOUR_MS));
    let expected = [next, next, next + HOUR_MS, retained, retained, retained];
    assert!(stored.iter().map(|(hour_ms,)| u64::try_from(*hour_ms).unwrap()).eq(expected), "{stored:?}");

    let mut direct = alice.direct(&[], b"short-lived");
    direct.ttl_s = Some(1);
    alice.send_direct(&direct).await.yes::<SendResponse>();
    let stored: Vec<(i64,)> = relay.select("SELECT expires_hour_ms FROM envelopes WHERE kind = 5").await;
    assert!(stored.iter().map(|(hour_ms,)| u64::try_from(*hour_ms).unwrap()).eq([next]), "{stored:?}");
}

async fn what_is_over_is_missed_in_place_by_fetch_and_by_stream(on: Backend) {
    let relay = TestRelay::start(on).await;
    let alice = relay.device().await;
    let group = alice.create_group().await;
    to_half_past(&relay.clock);
    for ttl_s in [None, Some(1), Some(1), None, Some(1)] {
        sends(&alice, group, ttl_s).await;
    }
    relay.clock.advance(Duration::from_secs(30 * 60 - 1));
    relay.upkeep.run().await.unwrap();
    assert_eq!(alice.fetch(0).await.missed, [], "nothing goes before its time");

    relay.clock.advance(Duration::from_secs(1));
    relay.upkeep.run().await.unwrap();
    let fetched = alice.fetch(0).await;
    assert_eq!(fetched.missed, [span(2, 3), span(5, 5)]);
    assert!(fetched.deliveries.iter().map(|entry| entry.seq).eq([1, 4]));
    assert_eq!((fetched.next_seq, fetched.oldest_available), (6, 1));
    assert_eq!(alice.fetch(2).await.missed, [span(3, 3), span(5, 5)]);
    assert_eq!((relay.rows("envelopes").await, relay.rows("queue").await), (2, 2));

    let frames = alice.stream(0).await.until_caught_up().await;
    assert!(
        matches!(
            &frames[..],
            [
                ServerFrame::Delivery { delivery: first },
                ServerFrame::Missed { span: Span { from: 2, to: 3 } },
                ServerFrame::Delivery { delivery: second },
                ServerFrame::Missed { span: Span { from: 5, to: 5 } },
            ] if first.seq == 1 && second.seq == 4
        ),
        "{frames:?}"
    );
    alice.ack(5).await.done();
    assert_eq!(alice.fetch(0).await.missed, [], "what was acked is not missed");
}

async fn a_time_to_live_is_part_of_what_makes_a_request_the_same(on: Backend) {
    let relay = TestRelay::start(on).await;
    let alice = relay.device().await;
    let group = alice.create_group().await;
    let message = Message { ttl_s: Some(60), ..Message::at(group, 0) };
    alice.send_message(&message).await.yes::<SendResponse>();
    alice.send_message(&message).await.yes::<SendResponse>();
    alice.send_message(&Message { ttl_s: None, ..message }).await.no(ErrorCode::MessageIdReused);
    assert_eq!(alice.fetch(0).await.next_seq, 2);
}

async fn a_device_that_returns_after_retention_misses_that_and_gets_everything_after(on: Backend) {
    let limits = Limits { retention_s: 2 * 60 * 60, ..Limits::default() };
    let relay = TestRelay::with_limits(on, limits).await;
    let (alice, bob) = (relay.device().await, relay.device().await);
    let group = alice.create_group_with(&[&bob]).await;
    to_half_past(&relay.clock);
    for _ in 0..9 {
        alice.says(group, 1).await;
    }
    bob.ack(4).await.done();
    relay.clock.advance(Duration::from_secs(2 * 60 * 60));
    for _ in 0..5 {
        alice.says(group, 1).await;
    }
    relay.clock.advance(Duration::from_secs(60 * 60));
    relay.upkeep.run().await.unwrap();

    let fetched = bob.fetch(4).await;
    assert_eq!(fetched.missed, [span(5, 10)]);
    assert!(fetched.deliveries.iter().map(|entry| entry.seq).eq(11..=15));
    let frames = bob.stream(4).await.until_caught_up().await;
    assert_eq!(frames[0], ServerFrame::Missed { span: span(5, 10) });
    let delivered = frames[1..].iter().filter_map(|frame| match frame {
        ServerFrame::Delivery { delivery } => Some(delivery.seq),
        _ => None,
    });
    assert!(delivered.eq(11..=15));
}

/// Room for 20 entries of groups, of which each may always have 5, and for 10 direct messages.
fn small_queue() -> Limits {
    Limits { queue_entries_max: 30, queue_direct_entries_max: 10, queue_group_entries_min: 5, ..Limits::default() }
}

async fn a_group_displaces_its_own_oldest_and_tells_what_is_missed(on: Backend) {
    let relay = TestRelay::with_limits(on, small_queue()).await;
    let (alice, bob) = (relay.device().await, relay.device().await);
    let quiet = alice.create_group_with(&[&bob]).await;
    for _ in 0..8 {
        alice.says(quiet, 1).await;
    }
    let loud = alice.create_group_with(&[&bob]).await;
    for _ in 0..30 {
        alice.says(loud, 1).await;
        alice.ack_all().await;
    }
    let fetched = bob.fetch(0).await;
    assert_eq!(fetched.missed, [span(10, 29)], "the loud group's own, its Welcome included");
    assert!(fetched.deliveries.iter().map(|entry| entry.seq).eq((1..=9).chain(30..=40)));
    let frames = bob.stream(9).await.until_caught_up().await;
    assert_eq!(frames[0], ServerFrame::Missed { span: span(10, 29) });

    for _ in 0..30 {
        alice.says(quiet, 1).await;
        alice.ack_all().await;
    }
    let fetched = bob.fetch(0).await;
    assert_eq!(fetched.missed, [span(1, 29), span(41, 61)], "now the other pays with its own");
    assert!(fetched.deliveries.iter().map(|entry| entry.seq).eq((30..=40).chain(62..=70)));
    let counted: Vec<(i64, i64)> = relay
        .select("SELECT group_entries, group_bytes FROM cursors WHERE group_entries > 0 ORDER BY group_entries DESC")
        .await;
    let held: Vec<(i64, i64)> = relay.select("SELECT COUNT(*), CAST(SUM(bytes) AS BIGINT) FROM queue").await;
    assert_eq!(counted, held, "what is counted is what is there");
    assert_eq!(relay.rows("envelopes WHERE kind = 1").await, 20);
}

async fn each_group_may_always_have_a_part_however_full_the_queue(on: Backend) {
    let relay = TestRelay::with_limits(on, small_queue()).await;
    let (alice, bob) = (relay.device().await, relay.device().await);
    let full = alice.create_group_with(&[&bob]).await;
    for _ in 0..25 {
        alice.says(full, 1).await;
        alice.ack_all().await;
    }
    let late = alice.create_group_with(&[&bob]).await;
    for _ in 0..7 {
        alice.says(late, 1).await;
    }
    let fetched = bob.fetch(0).await;
    assert_eq!(fetched.missed, [span(1, 6), span(27, 29)]);
    assert!(fetched.deliveries.iter().map(|entry| entry.seq).eq((7..=26).chain(30..=34)));

    alice.ack_all().await;
    for nth in 0..10 {
        alice.tells(&[&bob.account], &[nth]).await;
    }
    alice.ack_all().await;
    alice.send_direct(&alice.direct(&[&bob.account], b"one too many")).await.no(ErrorCode::QueueFull);
    let fetched = bob.fetch(0).await;
    assert_eq!(direct_in(&fetched).len(), 10, "direct messages have their own part");
    assert_eq!(fetched.missed, [span(1, 6), span(27, 29)], "and displace nothing");
}

async fn the_newest_of_a_group_stays_however_large_it_is(on: Backend) {
    let limits = Limits {
        queue_bytes_max: 3_000,
        queue_direct_bytes_max: 1_000,
        queue_group_bytes_min: 100,
        queue_group_entries_min: 0,
        ..Limits::default()
    };
    let relay = TestRelay::with_limits(on, limits).await;
    let (alice, bob) = (relay.device().await, relay.device().await);
    let group = alice.create_group_with(&[&bob]).await;
    for bytes in [500, 500, 10_000, 500] {
        alice.send_message(&Message::at(group, 1).saying(&vec![7; bytes])).await.yes::<SendResponse>();
        alice.ack_all().await;
    }
    let fetched = bob.fetch(0).await;
    assert_eq!(fetched.missed, [span(1, 4)]);
    assert!(fetched.deliveries.iter().map(|entry| entry.seq).eq([5]));
    alice.send_message(&Message::at(group, 1).saying(&[7; 10_000])).await.yes::<SendResponse>();
    assert!(bob.fetch(0).await.deliveries.iter().map(|entry| entry.seq).eq([6]));
    bob.ack(6).await.done();
    alice.commit(&Message::at(group, 1)).await.yes::<CommitResponse>();
    assert_eq!(bob.fetch(6).await.deliveries.len(), 1);
}
