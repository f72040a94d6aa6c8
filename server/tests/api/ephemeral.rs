//! Ephemeral content: for who is there and has caught up, never stored, never waited for.

use std::collections::BTreeMap;

use http::StatusCode;
use undertone_wire::{
    CommitResponse, DirectCiphertext, DirectEphemeralRequest, ErrorCode, GroupEphemeralRequest, ServerFrame, path,
};

use crate::support::{Backend, Device, Message, Reply, TestRelay, both};

both! {
    it_reaches_streams_that_have_caught_up_and_nobody_else,
    it_is_not_stored_and_does_not_end_a_long_poll,
    who_stands_elsewhere_is_refused_like_for_a_message,
    it_has_limits_and_needs_a_session,
}

fn accepted(reply: Reply) {
    assert_eq!((reply.status, reply.body.len()), (StatusCode::ACCEPTED, 0), "{reply:?}");
}

fn in_group(group_id: undertone_wire::GroupId, epoch: u64, what: &[u8]) -> Option<ServerFrame> {
    Some(ServerFrame::GroupEphemeral { group_id, epoch, ciphertext: what.into() })
}

fn direct(what: &[u8]) -> Option<ServerFrame> {
    Some(ServerFrame::DirectEphemeral { ciphertext: what.into() })
}

async fn it_reaches_streams_that_have_caught_up_and_nobody_else(on: Backend) {
    let relay = TestRelay::start(on).await;
    let (alice, bob, eve) = (relay.device().await, relay.device().await, relay.device().await);
    let group = alice.create_group_with(&[&bob]).await;
    let mut streams = [alice.stream(0).await, bob.stream(0).await, eve.stream(0).await];
    for stream in &mut streams {
        stream.until_caught_up().await;
    }
    accepted(alice.types_in(group, 1, b"typing").await);
    let [alices, bobs, eves] = &mut streams;
    for members in [alices, &mut *bobs] {
        assert_eq!(members.next().await, in_group(group, 1, b"typing"), "the sending device included");
    }
    accepted(alice.types_to(&eve, b"to eve").await);
    assert_eq!(eves.next().await, direct(b"to eve"), "the group's did not reach who is no member");
    accepted(alice.types_to(&bob, b"to bob").await);
    assert_eq!(bobs.next().await, direct(b"to bob"));

    let offline = relay.device().await;
    accepted(alice.types_to(&offline, b"to nobody").await);
    let frames = offline.stream(0).await.until_caught_up().await;
    assert_eq!(frames, [], "who comes later does not get it");
}

async fn it_is_not_stored_and_does_not_end_a_long_poll(on: Backend) {
    let relay = TestRelay::start(on).await;
    let (alice, bob) = (relay.device().await, relay.device().await);
    let group = alice.create_group_with(&[&bob]).await;
    let needle = b"bytes to look for";
    let polling = bob.polling(1);
    accepted(alice.types_in(group, 1, needle).await);
    accepted(alice.types_to(&bob, needle).await);
    assert_eq!(bob.fetch(0).await.next_seq, 2);
    assert_eq!(relay.store.found(needle).await, BTreeMap::new());
    alice.send_message(&Message::at(group, 1).saying(needle)).await.yes::<undertone_wire::SendResponse>();
    let stored = BTreeMap::from([("envelopes.payload".to_owned(), 1)]);
    assert_eq!(relay.store.found(needle).await, stored, "what is stored would be found");
    let fetched = polling.await.unwrap();
    assert!(fetched.deliveries.iter().map(|entry| entry.seq).eq([2]), "the poll ended by the message");
}

async fn who_stands_elsewhere_is_refused_like_for_a_message(on: Backend) {
    let relay = TestRelay::start(on).await;
    let (alice, bob, eve) = (relay.device().await, relay.device().await, relay.device().await);
    let group = alice.create_group_with(&[&bob]).await;
    let mut stream = bob.stream(0).await;
    stream.until_caught_up().await;
    alice.commit(&Message::at(group, 1)).await.yes::<CommitResponse>();
    stream.until_caught_up().await;
    let stale = alice.types_in(group, 1, b"typing").await.no(ErrorCode::StaleGroup).stale_group.unwrap();
    assert_eq!((stale.position.commit_seq, stale.member), (2, true));
    let wrong_epoch = GroupEphemeralRequest { at: 2, epoch: 1, ciphertext: b"typing"[..].into() };
    alice.post(&path::fill(path::GROUP_EPHEMERAL, group), &wrong_epoch).await.no(ErrorCode::StaleGroup);
    eve.types_in(group, 2, b"typing").await.no(ErrorCode::NotFound);
    accepted(alice.types_in(group, 2, b"now").await);
    assert_eq!(stream.next().await, in_group(group, 2, b"now"), "nothing of what was refused came");
}

async fn it_has_limits_and_needs_a_session(on: Backend) {
    let relay = TestRelay::start(on).await;
    let (alice, bob) = (relay.device().await, relay.device().await);
    let group = alice.create_group().await;
    let mut stream = bob.stream(0).await;
    stream.until_caught_up().await;
    for reply in [alice.types_in(group, 0, &[0; 4_097]).await, alice.types_to(&bob, &[0; 4_097]).await] {
        let problem = reply.no(ErrorCode::TooLarge);
        assert_eq!(problem.limit.map(|limit| limit.name), Some("ephemeral_bytes_max".into()));
    }
    let to_bob = DirectCiphertext { device_id: bob.id(), ciphertext: b"x"[..].into() };
    let twice = DirectEphemeralRequest { ciphertexts: vec![to_bob.clone(), to_bob.clone()] };
    alice.post(path::EPHEMERAL, &twice).await.no(ErrorCode::Malformed);
    let nobody = Device { api: relay.api(), ..alice.clone() };
    nobody.types_to(&bob, b"x").await.no(ErrorCode::Unauthenticated);
    nobody.types_in(group, 0, b"x").await.no(ErrorCode::Unauthenticated);
    accepted(alice.types_to(&bob, &[1; 4_096]).await);
    assert_eq!(stream.next().await, direct(&[1; 4_096]), "the largest passes, and nothing of what was refused");
}

#[tokio::test]
async fn it_reaches_streams_on_other_nodes_that_stand_where_the_sender_stands() {
    let one = TestRelay::start(Backend::Postgres).await;
    let two = one.second_node().await;
    let (alice, bob) = (one.device().await, one.device().await.at(&two));
    let group = alice.create_group_with(&[&bob]).await;
    let mut stream = bob.stream(0).await;
    stream.until_caught_up().await;
    accepted(alice.types_in(group, 1, &[7; 4_096]).await);
    assert_eq!(stream.next().await, in_group(group, 1, &[7; 4_096]));
    accepted(alice.types_to(&bob, &[8; 4_096]).await);
    assert_eq!(stream.next().await, direct(&[8; 4_096]));

    // On its way between nodes the group moves on: what comes late is dropped.
    let late = format!(r#"{{"say":"group","group_id":"{group}","at":0,"epoch":0,"ciphertext":"AAAA"}}"#);
    one.store.change(&format!("SELECT pg_notify('undertone', '{late}')")).await;
    let known = format!(r#"{{"say":"group","group_id":"{group}","at":1,"epoch":1,"ciphertext":"AAAA"}}"#);
    one.store.change(&format!("SELECT pg_notify('undertone', '{known}')")).await;
    assert_eq!(stream.next().await, in_group(group, 1, &[0; 3]));
}
