//! Nodes: what relays over one Postgres database tell each other, what is healed when they do not hear it, and the look
//! that heals it, on SQLite too.

use std::{collections::HashSet, time::Duration};

use http::StatusCode;
use undertone_server::Config;
use undertone_wire::{
    Account as WireAccount, ByeReason, CommitResponse, Envelope, ErrorCode, Limits, SendResponse, ServerFrame, path,
};

use crate::{
    stream::{bye, newest_stream},
    support::{Backend, Message, TestRelay, both, bytes_of, connect, until},
};

both! {
    mail_of_which_no_wake_came_is_found_by_a_look,
    a_newer_stream_of_which_no_wake_came_is_found_by_a_look,
    the_end_of_a_session_of_which_no_wake_came_is_found_by_a_look,
    a_replaced_streams_acks_do_not_count,
}

fn look_often(config: &mut Config) {
    config.look_every = Duration::from_millis(200);
}

/// Appends a direct message to the queue of the only device, and wakes nobody.
async fn append_in_silence(relay: &TestRelay) {
    let add = "INSERT INTO envelopes (kind, group_id, number, expires_hour_ms, pointers, payload)
               SELECT 5, NULL, 0, 9000000000000, 1, relay_id FROM relay";
    let point = "INSERT INTO queue (device_id, seq, envelope_id, share, bytes)
                 SELECT device_id, next_seq, envelope_id, SUBSTR(payload, 1, 0), 16 FROM cursors, envelopes";
    let count = "UPDATE cursors SET next_seq = next_seq + 1, direct_entries = 1, direct_bytes = 16";
    relay.store.change(&format!("BEGIN; {add}; {point}; {count}; COMMIT")).await;
}

async fn mail_of_which_no_wake_came_is_found_by_a_look(on: Backend) {
    let relay = TestRelay::with(on, look_often).await;
    let alice = relay.device().await;
    let mut stream = alice.stream(0).await;
    stream.catches_up_to(1).await;
    append_in_silence(&relay).await;
    assert_eq!(stream.catches_up_to(2).await, [1]);

    alice.ack(1).await.done();
    let polling = alice.polling(1);
    append_in_silence(&relay).await;
    let fetched = polling.await.expect("it does not wait to the end");
    assert!(matches!(fetched.deliveries[0].envelope, Envelope::DirectMessage { .. }));
}

async fn a_newer_stream_of_which_no_wake_came_is_found_by_a_look(on: Backend) {
    let relay = TestRelay::with(on, look_often).await;
    let alice = relay.device().await;
    let mut stream = alice.stream(0).await;
    stream.catches_up_to(1).await;
    relay.store.change("UPDATE cursors SET stream = stream + 1").await;
    assert_eq!(stream.next().await, bye(ByeReason::Replaced));
}

async fn the_end_of_a_session_of_which_no_wake_came_is_found_by_a_look(on: Backend) {
    let relay = TestRelay::with(on, look_often).await;
    let alice = relay.device().await;
    let mut stream = alice.stream(0).await;
    stream.catches_up_to(1).await;
    relay.store.change("DELETE FROM sessions").await;
    assert_eq!(stream.next().await, bye(ByeReason::Unauthenticated));
}

async fn a_replaced_streams_acks_do_not_count(on: Backend) {
    let relay = TestRelay::start(on).await;
    let alice = relay.device().await;
    let group = alice.create_group().await;
    for _ in 0..3 {
        alice.says(group, 0).await;
    }
    let mut stream = alice.stream(0).await;
    assert_eq!(stream.catches_up_to(4).await, [1, 2, 3]);
    stream.ack(1).await;
    until("an ack of the newest stream counts", async || alice.fetch(0).await.oldest_available == 2).await;
    relay.store.change("UPDATE cursors SET stream = stream + 1").await;
    stream.ack(3).await;
    assert_eq!(stream.next().await, bye(ByeReason::Replaced));
    assert_eq!(alice.fetch(0).await.oldest_available, 2);
}

#[tokio::test]
async fn mail_posted_on_one_node_arrives_on_streams_and_polls_of_another_by_a_wake() {
    let one = TestRelay::start(Backend::Postgres).await;
    let two = one.second_node().await;
    let (alice, bob, carol) = (one.device().await, one.device().await, one.device().await);
    let (bob, carol) = (bob.at(&two), carol.at(&two));
    let group = alice.create_group_with(&[&bob, &carol]).await;
    let mut stream = bob.stream(0).await;
    assert_eq!(stream.catches_up_to(2).await, [1]);
    let polling = carol.polling(1);
    let sent = alice.says(group, 1).await;
    let Some(ServerFrame::Delivery { delivery }) = stream.next().await else { panic!("no delivery") };
    assert_eq!((delivery.seq, bytes_of(&delivery.envelope)), (2, sent.as_slice()));
    let fetched = polling.await.expect("it does not wait to the end");
    assert_eq!(bytes_of(&fetched.deliveries[0].envelope), sent.as_slice());
    stream.catches_up_to(3).await;
    alice.tells(&[&bob.account], b"to one").await;
    assert_eq!(stream.catches_up_to(4).await, [3]);
}

#[tokio::test]
async fn a_newer_stream_on_another_node_replaces_the_older() {
    let one = TestRelay::start(Backend::Postgres).await;
    let two = one.second_node().await;
    let bob = one.device().await;
    let mut older = bob.stream(0).await;
    older.catches_up_to(1).await;
    let mut newer = bob.at(&two).stream(0).await;
    newer.catches_up_to(1).await;
    assert_eq!(older.next().await, bye(ByeReason::Replaced));
    assert_eq!(newest_stream(&one, &bob).await, 2);
    let group = bob.create_group().await;
    bob.says(group, 0).await;
    assert_eq!(newer.catches_up_to(2).await, [1]);
    newer.ack(1).await;
    until("the newer one's ack counts", async || bob.fetch(0).await.oldest_available == 2).await;
}

/// Puts something else in the place of what nodes say, as far as they say it over connections that they have yet to make.
async fn instead_of_saying(relay: &TestRelay, body: &str) {
    let name = relay.store.database().name();
    for statement in [
        format!(
            "CREATE FUNCTION public.pg_notify(channel text, said text) RETURNS void LANGUAGE plpgsql AS $$
             BEGIN {body} END $$"
        ),
        format!(r#"ALTER DATABASE "{name}" SET search_path = public, pg_catalog"#),
    ] {
        relay.store.change(&statement).await;
    }
}

#[tokio::test]
async fn what_a_node_does_whose_wakes_are_lost_is_found_by_a_look_of_another() {
    let one = TestRelay::with(Backend::Postgres, look_often).await;
    let (alice, bob, carol) = (one.device().await, one.device().await, one.device().await);
    let group = alice.create_group_with(&[&bob, &carol]).await;
    alice.says(group, 1).await;
    let (mut older, mut carols) = (bob.stream(0).await, carol.stream(0).await);
    older.catches_up_to(3).await;
    carols.catches_up_to(3).await;
    instead_of_saying(&one, "").await;
    let two = one.second_node_with(|config| config.look_every = Duration::from_secs(60 * 60)).await;

    let mut newer = bob.at(&two).stream(0).await;
    newer.catches_up_to(3).await;
    older.ack(2).await;
    assert_eq!(older.next().await, bye(ByeReason::Replaced));
    assert_eq!(bob.fetch(0).await.oldest_available, 1, "no ack of the older one counts");
    newer.ack(1).await;
    until("the newer one's ack counts", async || bob.fetch(0).await.oldest_available == 2).await;

    alice.at(&two).says(group, 1).await;
    assert_eq!(carols.catches_up_to(4).await, [3]);
}

#[tokio::test]
async fn ephemeral_content_never_overtakes_a_message_that_was_answered_before() {
    let one = TestRelay::start(Backend::Postgres).await;
    let (alice, bob) = (one.device().await, one.device().await);
    let group = alice.create_group_with(&[&bob]).await;
    let mut stream = bob.stream(0).await;
    stream.until_caught_up().await;
    // Wakes take their time, and what is ephemeral does not.
    let slow =
        "IF said LIKE '%mail%' THEN PERFORM pg_sleep(0.01); END IF; PERFORM pg_catalog.pg_notify(channel, said);";
    instead_of_saying(&one, slow).await;
    let two = one.second_node().await;
    let alice = alice.at(&two);
    for nth in 0..200_u64 {
        // While one wake is on its way, the next waits together with what is ephemeral.
        for _ in 0..2 {
            alice.says(group, 1).await;
        }
        let (in_group, what) = (nth % 2 == 0, nth.to_be_bytes());
        let reply = if in_group { alice.types_in(group, 1, &what).await } else { alice.types_to(&bob, &what).await };
        assert_eq!(reply.status, StatusCode::ACCEPTED);
        let mut delivered = Vec::new();
        let came = loop {
            match stream.next().await.expect("an open stream") {
                ServerFrame::Delivery { delivery } => delivered.push(delivery.seq),
                ServerFrame::CaughtUp { .. } => {}
                ServerFrame::GroupEphemeral { ciphertext, .. } if in_group => break ciphertext,
                ServerFrame::DirectEphemeral { ciphertext } if !in_group => break ciphertext,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(came.as_slice(), what);
        assert_eq!(delivered, [2 + 2 * nth, 3 + 2 * nth], "before it came both messages");
    }
}

#[tokio::test]
async fn an_unlisted_devices_stream_on_another_node_is_closed() {
    let one = TestRelay::start(Backend::Postgres).await;
    let two = one.second_node().await;
    let devices = one.account(3).await;
    let mut unlisted = devices[1].at(&two).stream(0).await;
    let mut logged_out = devices[2].at(&two).stream(0).await;
    unlisted.catches_up_to(1).await;
    logged_out.catches_up_to(1).await;
    let next = devices[0].account.next(vec![devices[0].keys.clone(), devices[2].keys.clone()]);
    devices[0].put_list(&next).await.yes::<WireAccount>();
    assert_eq!(unlisted.next().await, bye(ByeReason::Unauthenticated));
    devices[1].at(&two).get(path::QUEUE).await.no(ErrorCode::Unauthenticated);
    devices[2].post(path::LOGOUT, &()).await.done();
    assert_eq!(logged_out.next().await, bye(ByeReason::Unauthenticated));
}

#[tokio::test]
async fn any_node_serves_any_device() {
    let one = TestRelay::start(Backend::Postgres).await;
    let two = one.second_node().await;
    let (alice, bob) = (one.device().await, two.device().await);
    let group = alice.create_group_with(&[&bob]).await;
    bob.says(group, 1).await;
    assert_eq!(alice.at(&two).fetch(0).await, alice.fetch(0).await);
    let stale = Message::at(group, 0);
    alice.at(&two).send_message(&stale).await.no(ErrorCode::StaleGroup);
    alice.at(&two).commit(&Message::at(group, 1)).await.yes::<CommitResponse>();
    alice.says(group, 2).await;
    bob.at(&one).ack(4).await.done();
    assert_eq!(bob.fetch(0).await.oldest_available, 5);
}

#[tokio::test]
async fn the_same_request_on_two_nodes_at_once_has_one_effect_and_one_answer() {
    let one = TestRelay::start(Backend::Postgres).await;
    let two = one.second_node().await;
    let (alice, bob) = (one.device().await, one.device().await);
    let group = alice.create_group_with(&[&bob]).await;
    let (here, there) = (alice.clone(), alice.at(&two));
    for nth in 0..20_u8 {
        let at = 1 + u64::from(nth);
        let (message, direct) = (Message::at(group, at), alice.direct(&[&bob.account], &[nth]));
        let (a, b, c, d) = tokio::join!(
            here.send_message(&message),
            there.send_message(&message),
            there.send_direct(&direct),
            here.send_direct(&direct),
        );
        for reply in [a, b, c, d] {
            reply.yes::<SendResponse>();
        }
        let commit = Message::at(group, at);
        let (a, b) = tokio::join!(there.commit(&commit), here.commit(&commit));
        assert_eq!([a, b].map(|reply| reply.yes::<CommitResponse>().commit_seq), [at + 1; 2]);
    }
    assert_eq!((alice.fetch(0).await.next_seq, bob.fetch(0).await.next_seq), (62, 62));
}

#[tokio::test]
async fn thirty_two_claimers_on_two_nodes_get_each_key_once_and_then_the_last_resort() {
    let limits = Limits { claims_per_pair_hour_max: 10_000, claims_per_account_hour_max: 10_000, ..Limits::default() };
    let one = TestRelay::with_limits(Backend::Postgres, limits).await;
    let two = one.second_node().await;
    let alice = one.device().await;
    alice.stock(200).await;
    let mut claimers = Vec::new();
    for nth in 0..32 {
        let claimer = if nth % 2 == 0 { one.device().await } else { two.device().await };
        let account = alice.account_id();
        claimers.push(tokio::spawn(async move {
            let mut claimed = Vec::new();
            for _ in 0..8 {
                claimed.push(claimer.claim(account).await.key_packages.remove(0));
            }
            claimed
        }));
    }
    let (mut one_time, mut last_resort) = (Vec::new(), Vec::new());
    for claimer in claimers {
        let claimed = claimer.await.unwrap();
        assert!(claimed.is_sorted_by_key(|entry| entry.last_resort), "after the last resort comes nothing else");
        for entry in claimed {
            let key_package = entry.key_package.expect("no empty answer");
            if entry.last_resort { last_resort.push(key_package) } else { one_time.push(key_package) }
        }
    }
    assert_eq!((one_time.len(), last_resort.len()), (200, 56));
    assert_eq!(one_time.into_iter().collect::<HashSet<_>>().len(), 200);
    assert_eq!(last_resort.into_iter().collect::<HashSet<_>>().len(), 1);
}

#[tokio::test]
async fn a_node_that_loses_its_listener_says_so_and_listens_anew() {
    let one = TestRelay::start(Backend::Postgres).await;
    let two = one.second_node().await;
    let (alice, bob) = (one.device().await, one.device().await.at(&two));
    let group = alice.create_group_with(&[&bob]).await;
    let mut stream = bob.stream(0).await;
    stream.catches_up_to(2).await;

    let cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
               WHERE datname = current_database() AND query LIKE 'LISTEN%'";
    let mut database = connect(one.store.database().url()).await;
    let cut: Vec<(bool,)> = sqlx::query_as(cut).fetch_all(&mut database).await.unwrap();
    assert_eq!(cut, [(true,), (true,)], "each node listens");
    // What is posted while nobody hears it is found when they listen again.
    let sent = alice.says(group, 1).await;
    for node in [&one, &two] {
        until("a node that is cut off says so", async || !node.is_ready().await).await;
    }
    for node in [&one, &two] {
        until("a node listens anew", async || node.is_ready().await).await;
    }
    let Some(ServerFrame::Delivery { delivery }) = stream.next().await else { panic!("no delivery") };
    assert_eq!(bytes_of(&delivery.envelope), sent.as_slice());
    stream.catches_up_to(3).await;
    alice.says(group, 1).await;
    assert_eq!(stream.catches_up_to(4).await, [3]);
}

#[tokio::test]
async fn what_nodes_of_other_versions_say_does_no_harm() {
    let relay = TestRelay::start(Backend::Postgres).await;
    let alice = relay.device().await;
    let mut stream = alice.stream(0).await;
    stream.catches_up_to(1).await;
    for said in ["", "nonsense", r#"{"say":"more"}"#, r#"{"say":"mail","devices":["not an id"]}"#, r#"{"say":"mail"}"#]
    {
        relay.store.change(&format!("SELECT pg_notify('undertone', '{said}')")).await;
    }
    let group = alice.create_group().await;
    alice.says(group, 0).await;
    assert_eq!(stream.catches_up_to(2).await, [1]);
    assert!(relay.is_ready().await);
}
