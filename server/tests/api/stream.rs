//! The stream over real sockets; `stream/session.rs` has the rules as tables.

use http::StatusCode;
use tokio_tungstenite::tungstenite::{self, Message as Frame};
use undertone_wire::{
    Account as WireAccount, ByeReason, Encoding, ErrorCode, Limits, PROBLEM_MEDIA_TYPE, Problem, SendResponse,
    ServerFrame, path,
};

use crate::support::{Backend, Device, Message, TestRelay, both, bytes_of};

both! {
    it_says_hello_then_what_is_there_then_caught_up_then_what_comes,
    a_long_queue_comes_whole_and_a_broken_stream_goes_on_where_it_broke,
    acks_on_the_stream_delete,
    a_newer_stream_replaces_the_older,
    a_session_that_ends_ends_its_stream,
    what_is_no_frame_ends_the_stream,
    a_frame_beyond_the_limit_ends_the_stream_unread,
    a_stream_is_refused_like_any_request,
    the_largest_message_passes_however_small_other_limits_are,
}

pub(crate) fn bye(reason: ByeReason) -> Option<ServerFrame> {
    Some(ServerFrame::Bye { reason })
}

async fn it_says_hello_then_what_is_there_then_caught_up_then_what_comes(on: Backend) {
    let relay = TestRelay::start(on).await;
    for encoding in [Some(Encoding::Cbor), Some(Encoding::Json), None] {
        let (alice, bob) = (relay.device().await, relay.device().await);
        let group = alice.create_group_with(&[&bob]).await;
        let first = alice.says(group, 1).await;

        let mut socket = bob.try_stream(0, encoding).await.unwrap();
        let hello = socket.next().await;
        let Some(ServerFrame::Hello { stream, next_seq, oldest_available, time_ms, .. }) = hello else {
            panic!("{hello:?}")
        };
        assert_eq!((stream, next_seq, oldest_available), (1, 3, 1));
        assert_eq!(time_ms, undertone_server::Clock::now_ms(&*relay.clock));
        let welcome = socket.next().await;
        assert!(matches!(&welcome, Some(ServerFrame::Delivery { delivery }) if delivery.seq == 1), "{welcome:?}");
        let Some(ServerFrame::Delivery { delivery }) = socket.next().await else { panic!() };
        assert_eq!((delivery.seq, bytes_of(&delivery.envelope)), (2, first.as_slice()));
        assert_eq!(socket.next().await, Some(ServerFrame::CaughtUp { next_seq: 3 }));

        let live = alice.says(group, 1).await;
        let Some(ServerFrame::Delivery { delivery }) = socket.next().await else { panic!() };
        assert_eq!((delivery.seq, bytes_of(&delivery.envelope)), (3, live.as_slice()));
        assert_eq!(socket.next().await, Some(ServerFrame::CaughtUp { next_seq: 4 }));
    }
}

async fn a_long_queue_comes_whole_and_a_broken_stream_goes_on_where_it_broke(on: Backend) {
    let relay = TestRelay::start(on).await;
    let (alice, bob) = (relay.device().await, relay.device().await);
    let group = alice.create_group_with(&[&bob]).await;
    for _ in 0..149 {
        alice.says(group, 1).await;
    }
    let mut socket = bob.stream(0).await;
    for expected in 1..=70 {
        let Some(ServerFrame::Delivery { delivery }) = socket.next().await else { panic!() };
        assert_eq!(delivery.seq, expected);
    }
    drop(socket);
    assert!(bob.stream(70).await.catches_up_to(151).await.into_iter().eq(71..=150));
}

async fn acks_on_the_stream_delete(on: Backend) {
    let relay = TestRelay::start(on).await;
    let (alice, bob) = (relay.device().await, relay.device().await);
    let group = alice.create_group_with(&[&bob]).await;
    let mut socket = bob.stream(0).await;
    assert_eq!(socket.catches_up_to(2).await, [1]);
    socket.ack(1).await;
    alice.says(group, 1).await;
    assert_eq!(socket.catches_up_to(3).await, [2]);
    // The frame that acked stood before the one that answers this, so it has been dealt with.
    socket.ack((1 << 51) + 1).await;
    assert_eq!(socket.next().await, bye(ByeReason::Malformed));
    assert_eq!(bob.fetch(0).await.oldest_available, 2);
}

async fn a_newer_stream_replaces_the_older(on: Backend) {
    let relay = TestRelay::start(on).await;
    let bob = relay.device().await;
    let mut older = bob.stream(0).await;
    older.catches_up_to(1).await;
    let mut newer = bob.stream(0).await;
    assert_eq!(older.next().await, bye(ByeReason::Replaced));
    assert_eq!(older.next().await, None);
    newer.catches_up_to(1).await;
    let group = bob.create_group().await;
    bob.says(group, 0).await;
    assert_eq!(newer.catches_up_to(2).await, [1]);
}

async fn a_session_that_ends_ends_its_stream(on: Backend) {
    let relay = TestRelay::start(on).await;
    let mut devices = relay.account(3).await;
    let (kept, unlinked, logged_out) = (devices.remove(0), devices.remove(0), devices.remove(0));
    let mut streams = [unlinked.stream(0).await, logged_out.stream(0).await];
    for stream in &mut streams {
        stream.catches_up_to(1).await;
    }
    logged_out.post(path::LOGOUT, &()).await.done();
    assert_eq!(streams[1].next().await, bye(ByeReason::Unauthenticated));
    let next = kept.account.next(vec![kept.keys.clone(), logged_out.keys.clone()]);
    kept.put_list(&next).await.yes::<WireAccount>();
    assert_eq!(streams[0].next().await, bye(ByeReason::Unauthenticated));
}

async fn what_is_no_frame_ends_the_stream(on: Backend) {
    let relay = TestRelay::start(on).await;
    let bob = relay.device().await;
    for nonsense in [Frame::Binary(b"nonsense"[..].into()), Frame::Text("{}".into())] {
        let mut socket = bob.stream(0).await;
        socket.catches_up_to(1).await;
        socket.say(nonsense).await;
        assert_eq!(socket.next().await, bye(ByeReason::Malformed));
    }
}

async fn a_frame_beyond_the_limit_ends_the_stream_unread(on: Backend) {
    let relay = TestRelay::start(on).await;
    let bob = relay.device().await;
    let max = usize::try_from(Limits::default().client_frame_bytes_max).unwrap();
    // Spaces around a frame are part of its size and change nothing else.
    let ack_of = |bytes| Frame::Text(format!("{:bytes$}", r#"{"type":"ack","up_to":0}"#).into());
    let mut socket = bob.try_stream(0, Some(Encoding::Json)).await.unwrap();
    socket.next().await;
    socket.catches_up_to(1).await;
    socket.say(ack_of(max)).await;
    let group = bob.create_group().await;
    bob.says(group, 0).await;
    assert_eq!(socket.catches_up_to(2).await, [1], "one that fits is taken");
    socket.say(ack_of(max + 1)).await;
    assert_eq!(socket.next().await, None);
}

async fn a_stream_is_refused_like_any_request(on: Backend) {
    let relay = TestRelay::start(on).await;
    let bob = relay.device().await;
    let nobody = Device { api: relay.api(), ..bob.clone() };
    assert_eq!(refusal(nobody.try_stream(0, None).await), ErrorCode::Unauthenticated);
    assert_eq!(refusal(bob.try_stream((1 << 51) + 1, None).await), ErrorCode::Malformed);
    bob.get(path::STREAM).await.no(ErrorCode::Malformed);
    assert_eq!(newest_stream(&relay, &bob).await, 0, "a refused stream replaces none");
}

async fn the_largest_message_passes_however_small_other_limits_are(on: Backend) {
    const BYTES: usize = 600_000;
    let limits = Limits {
        envelope_bytes_max: BYTES as u64 + 200,
        commit_bytes_max: 200,
        welcome_bytes_max: 20,
        welcome_secrets_bytes_max: 20,
        ..Limits::default()
    };
    let relay = TestRelay::with_limits(on, limits).await;
    let bob = relay.device().await;
    let group = bob.create_group().await;
    for _ in 0..3 {
        let message = Message::at(group, 0).saying(&[7; BYTES]);
        bob.send_message(&message).await.yes::<SendResponse>();
    }
    for encoding in [Encoding::Json, Encoding::Cbor] {
        let mut socket = bob.try_stream(0, Some(encoding)).await.unwrap();
        socket.next().await;
        assert_eq!(socket.catches_up_to(4).await, [1, 2, 3]);
    }
}

fn refusal(opened: Result<crate::support::Socket, tungstenite::Error>) -> ErrorCode {
    let Err(tungstenite::Error::Http(response)) = opened else { panic!("it was not refused") };
    assert_ne!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    assert_eq!(response.headers()["content-type"], PROBLEM_MEDIA_TYPE);
    let problem: Problem = Encoding::Json.decode(response.body().as_ref().unwrap()).unwrap();
    problem.code
}

/// The number of a device's newest stream.
pub(crate) async fn newest_stream(relay: &TestRelay, device: &Device) -> i64 {
    let cursors: Vec<(Vec<u8>, i64)> = relay.select("SELECT device_id, stream FROM cursors").await;
    let own = cursors.into_iter().find(|(id, _)| id == device.id().as_bytes());
    own.expect("a cursor").1
}
