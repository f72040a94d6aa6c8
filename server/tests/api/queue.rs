//! Queues: numbers, pages, long poll, acks, and what retention takes.

use std::time::Duration;

use undertone_wire::{CommitResponse, Envelope, ErrorCode, FetchResponse, Limits, SendResponse, Span, path};

use crate::support::{Backend, Message, TestRelay, both, bytes_of};

both! {
    what_is_sent_comes_in_order_with_consecutive_numbers,
    many_senders_at_once_leave_no_gap_and_keep_their_own_order,
    pages_are_bounded_by_entries_and_by_bytes_but_hold_one_entry,
    an_ack_deletes_up_to_it_and_the_last_ack_the_payload,
    numbers_go_on_beyond_what_a_device_says_it_has,
    a_long_poll_is_woken_by_mail,
    a_long_poll_of_an_empty_queue_ends_empty,
    what_retention_takes_is_told_as_missed,
}

async fn what_is_sent_comes_in_order_with_consecutive_numbers(on: Backend) {
    let relay = TestRelay::start(on).await;
    let (alice, bob) = (relay.device().await, relay.device().await);
    let group = alice.create_group_with(&[&bob]).await;
    let mut sent = Vec::new();
    for turn in 0..10 {
        sent.push(if turn % 2 == 0 { alice.says(group, 1).await } else { bob.says(group, 1).await });
    }
    for device in [&alice, &bob] {
        let fetched = device.fetch(1).await;
        assert_eq!((fetched.next_seq, fetched.oldest_available, fetched.missed), (12, 1, vec![]));
        let got: Vec<_> = fetched.deliveries.iter().map(|entry| (entry.seq, bytes_of(&entry.envelope))).collect();
        let expected: Vec<_> = (2..).zip(sent.iter().map(|message| message.as_slice())).collect();
        assert_eq!(got, expected);
    }
}

async fn many_senders_at_once_leave_no_gap_and_keep_their_own_order(on: Backend) {
    let relay = TestRelay::start(on).await;
    let devices = relay.account(4).await;
    let group = devices[0].create_group_with(&[&devices[1], &devices[2], &devices[3]]).await;
    let senders = devices.iter().cloned().map(|device| {
        tokio::spawn(async move {
            let mut sent = Vec::new();
            for _ in 0..15 {
                sent.push(device.says(group, 1).await);
            }
            sent
        })
    });
    let senders: Vec<_> = senders.collect();
    let mut sent = Vec::new();
    for sender in senders {
        sent.push(sender.await.unwrap());
    }
    for device in &devices {
        let deliveries = device.fetch(0).await.deliveries;
        assert!(deliveries.iter().map(|entry| entry.seq).eq(1..=61));
        let position = |message: &undertone_wire::Bytes| {
            deliveries.iter().position(|entry| bytes_of(&entry.envelope) == message.as_slice()).expect("it arrived")
        };
        for one in &sent {
            assert!(one.iter().map(position).is_sorted(), "each sender's own order is kept");
        }
    }
}

async fn pages_are_bounded_by_entries_and_by_bytes_but_hold_one_entry(on: Backend) {
    let relay = TestRelay::with_limits(on, Limits { fetch_bytes_max: 1_000, ..Limits::default() }).await;
    let alice = relay.device().await;
    let group = alice.create_group().await;
    for bytes in [300, 300, 2_000, 10, 10, 10] {
        let message = Message::at(group, 0).saying(&vec![0; bytes]);
        alice.send_message(&message).await.yes::<SendResponse>();
    }
    let seqs = async |query: &str| {
        let fetched: FetchResponse = alice.get(&format!("{}?{query}", path::QUEUE)).await.yes();
        assert_eq!((fetched.missed, fetched.next_seq), (vec![], 7));
        fetched.deliveries.iter().map(|entry| entry.seq).collect::<Vec<_>>()
    };
    assert_eq!(seqs("after=0").await, [1, 2]);
    assert_eq!(seqs("after=2").await, [3]);
    assert_eq!(seqs("after=3").await, [4, 5, 6]);
    assert_eq!(seqs("after=3&limit=2").await, [4, 5]);
    assert_eq!(seqs("after=3&limit=0").await, [4]);
}

async fn an_ack_deletes_up_to_it_and_the_last_ack_the_payload(on: Backend) {
    let relay = TestRelay::start(on).await;
    let (alice, bob) = (relay.device().await, relay.device().await);
    let group = alice.create_group_with(&[&bob]).await;
    for _ in 0..3 {
        alice.says(group, 1).await;
    }
    // The commit is also held by the list of commits, and the Welcome has one reader.
    assert_eq!((relay.rows("envelopes").await, relay.rows("queue").await), (5, 8));

    alice.ack(4).await.done();
    assert_eq!((relay.rows("envelopes").await, relay.rows("queue").await), (5, 4));
    bob.ack(3).await.done();
    assert_eq!((relay.rows("envelopes").await, relay.rows("queue").await), (2, 1));
    bob.ack(4).await.done();
    assert_eq!((relay.rows("envelopes").await, relay.rows("queue").await), (1, 0));
    let left: Vec<(i64, i64)> = relay.select("SELECT kind, pointers FROM envelopes").await;
    assert_eq!(left, [(2, 1)], "the commit is kept for those who may have missed it");

    bob.ack(4).await.done();
    bob.ack(2).await.done();
    let fetched: FetchResponse = bob.get(path::QUEUE).await.yes();
    assert_eq!(
        (fetched.deliveries, fetched.missed, fetched.next_seq, fetched.oldest_available),
        (vec![], vec![], 5, 5)
    );
}

async fn numbers_go_on_beyond_what_a_device_says_it_has(on: Backend) {
    let relay = TestRelay::start(on).await;
    let (alice, bob) = (relay.device().await, relay.device().await);
    let group = alice.create_group_with(&[&bob]).await;
    alice.says(group, 1).await;
    // The relay has numbered 1 and 2; the device took 9 from it before it lost them.
    let fetched = alice.fetch(9).await;
    let seqs: Vec<_> = fetched.deliveries.iter().map(|entry| entry.seq).collect();
    assert!(seqs.len() == 2 && seqs[0] > 9 && seqs[1] == seqs[0] + 1, "what waits comes under new numbers: {seqs:?}");
    assert_eq!(fetched.missed, [Span { from: 10, to: seqs[0] - 1 }]);
    assert_eq!((fetched.next_seq, fetched.oldest_available), (seqs[1] + 1, seqs[0]));
    assert_eq!(alice.fetch(seqs[0]).await.deliveries.len(), 1);

    bob.ack(7).await.done();
    let fetched = bob.fetch(7).await;
    assert_eq!(fetched.deliveries.len(), 2, "an ack of what the relay does not know deletes nothing");
    assert!(fetched.deliveries[0].seq > 7);
    let largest = 1 << 51;
    bob.get(&format!("{}?after={}", path::QUEUE, largest + 1)).await.no(ErrorCode::Malformed);
    bob.ack(largest + 1).await.no(ErrorCode::Malformed);
    assert_eq!(bob.fetch(7).await, fetched, "a refusal changes nothing");
    let fetched = bob.fetch(largest).await;
    assert_eq!(fetched.deliveries.len(), 2);
    bob.ack(fetched.next_seq - 1).await.done();
    assert_eq!(bob.fetch(0).await.oldest_available, fetched.next_seq, "its new numbers can be acked");
}

async fn a_long_poll_is_woken_by_mail(on: Backend) {
    let relay = TestRelay::start(on).await;
    let (alice, bob) = (relay.device().await, relay.device().await);
    let group = alice.create_group_with(&[&bob]).await;
    let polling = bob.polling(1);
    let sent = alice.says(group, 1).await;
    let fetched = polling.await.expect("it does not wait to the end");
    assert_eq!(bytes_of(&fetched.deliveries[0].envelope), sent.as_slice());
}

async fn a_long_poll_of_an_empty_queue_ends_empty(on: Backend) {
    let relay = TestRelay::start(on).await;
    let alice = relay.device().await;
    let fetched: FetchResponse = alice.get(&format!("{}?wait=1", path::QUEUE)).await.yes();
    assert_eq!((fetched.deliveries, fetched.missed), (vec![], vec![]));
}

async fn what_retention_takes_is_told_as_missed(on: Backend) {
    let retention = Duration::from_secs(Limits::default().retention_s);
    let relay = TestRelay::start(on).await;
    let (alice, bob) = (relay.device().await, relay.device().await);
    let group = alice.create_group_with(&[&bob]).await;
    alice.says(group, 1).await;
    relay.clock.advance(retention / 2);
    let commit = Message { id: Message::id(undertone_server::Clock::now_ms(&*relay.clock)), ..Message::at(group, 1) };
    let bob = bob.account.log_in_all(&relay.api()).await.remove(0);
    bob.commit(&commit).await.yes::<CommitResponse>();
    relay.upkeep.run().await.unwrap();
    assert_eq!(bob.fetch(0).await.missed, [], "nothing goes before its time");

    relay.clock.advance(retention / 2 + Duration::from_secs(3_600));
    relay.upkeep.run().await.unwrap();
    let bob = bob.account.log_in_all(&relay.api()).await.remove(0);
    let fetched = bob.fetch(0).await;
    assert_eq!(fetched.missed, [Span { from: 1, to: 2 }]);
    assert_eq!((fetched.oldest_available, fetched.next_seq), (3, 4));
    assert!(matches!(fetched.deliveries[0].envelope, Envelope::GroupCommit { commit_seq: 2, .. }));
    assert_eq!((relay.rows("envelopes").await, relay.rows("commits").await), (1, 1));

    relay.clock.advance(retention);
    relay.upkeep.run().await.unwrap();
    let bob = bob.account.log_in_all(&relay.api()).await.remove(0);
    let fetched = bob.fetch(1).await;
    assert_eq!((fetched.deliveries, fetched.missed), (vec![], vec![Span { from: 2, to: 3 }]));
    assert_eq!((relay.rows("envelopes").await, relay.rows("commits").await), (0, 0));
    let wait: FetchResponse = bob.get(&format!("{}?after=0&wait=50", path::QUEUE)).await.yes();
    assert_eq!(wait.missed, [Span { from: 1, to: 3 }], "what is missed is not waited for");
}

#[tokio::test]
async fn acked_ciphertext_leaves_the_files() {
    let relay = TestRelay::start(Backend::Sqlite).await;
    let (alice, bob) = (relay.device().await, relay.device().await);
    let group = alice.create_group_with(&[&bob]).await;
    let needle = b"ciphertext to look for, long enough to be found";
    let message = Message::at(group, 1).saying(&needle.repeat(200));
    alice.send_message(&message).await.yes::<SendResponse>();
    let in_files = || {
        ["undertone.db", "undertone.db-wal"].iter().any(|name| {
            let bytes = std::fs::read(relay.store.file().with_file_name(name)).unwrap_or_default();
            bytes.windows(needle.len()).any(|window| window == needle)
        })
    };
    assert!(in_files(), "it is there to be found");
    relay.upkeep.run().await.unwrap();
    assert!(in_files(), "and stays while somebody needs it");

    alice.ack(2).await.done();
    bob.ack(2).await.done();
    relay.upkeep.run().await.unwrap();
    assert!(!in_files());
}
