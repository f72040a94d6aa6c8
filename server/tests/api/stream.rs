//! The stream over real sockets; `stream/session.rs` has the rules as tables.

use http::StatusCode;
use tokio_tungstenite::tungstenite::{self, Message as Frame};
use undertone_wire::{
    Account as WireAccount, ByeReason, Encoding, ErrorCode, Limits, PROBLEM_MEDIA_TYPE, Problem, ServerFrame, path,
};

use crate::support::{Device, TestRelay, bytes_of};

fn bye(reason: ByeReason) -> Option<ServerFrame> {
    Some(ServerFrame::Bye { reason })
}

#[tokio::test]
async fn it_says_hello_then_what_is_there_then_caught_up_then_what_comes() {
    let relay = TestRelay::start().await;
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

#[tokio::test]
async fn a_long_queue_comes_whole_and_a_broken_stream_goes_on_where_it_broke() {
    let relay = TestRelay::start().await;
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

#[tokio::test]
async fn acks_on_the_stream_delete() {
    let relay = TestRelay::start().await;
    let (alice, bob) = (relay.device().await, relay.device().await);
    let group = alice.create_group_with(&[&bob]).await;
    let mut socket = bob.stream(0).await;
    assert_eq!(socket.catches_up_to(2).await, [1]);
    socket.ack(1).await;
    alice.says(group, 1).await;
    assert_eq!(socket.catches_up_to(3).await, [2]);
    // The frame that acked stood before the one that answers this, so it has been dealt with.
    socket.ack(9).await;
    assert_eq!(socket.next().await, bye(ByeReason::Malformed));
    assert_eq!(bob.fetch(0).await.oldest_available, 2);
}

#[tokio::test]
async fn a_newer_stream_replaces_the_older() {
    let relay = TestRelay::start().await;
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

#[tokio::test]
async fn a_session_that_ends_ends_its_stream() {
    let relay = TestRelay::start().await;
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

#[tokio::test]
async fn what_is_no_frame_ends_the_stream() {
    let relay = TestRelay::start().await;
    let bob = relay.device().await;
    for nonsense in [Frame::Binary(b"nonsense"[..].into()), Frame::Text("{}".into())] {
        let mut socket = bob.stream(0).await;
        socket.catches_up_to(1).await;
        socket.say(nonsense).await;
        assert_eq!(socket.next().await, bye(ByeReason::Malformed));
    }
}

#[tokio::test]
async fn a_frame_beyond_the_limit_ends_the_stream_unread() {
    let relay = TestRelay::start().await;
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

#[tokio::test]
async fn a_stream_is_refused_like_any_request() {
    let relay = TestRelay::start().await;
    let bob = relay.device().await;
    let nobody = Device { api: relay.api(), ..bob.clone() };
    assert_eq!(refusal(nobody.try_stream(0, None).await), ErrorCode::Unauthenticated);
    assert_eq!(refusal(bob.try_stream(7, None).await), ErrorCode::Malformed);
    bob.get(path::STREAM).await.no(ErrorCode::Malformed);
    assert_eq!(relay.look_stream(&bob).await, 0, "a refused stream replaces none");
}

fn refusal(opened: Result<crate::support::Socket, tungstenite::Error>) -> ErrorCode {
    let Err(tungstenite::Error::Http(response)) = opened else { panic!("it was not refused") };
    assert_ne!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    assert_eq!(response.headers()["content-type"], PROBLEM_MEDIA_TYPE);
    let problem: Problem = Encoding::Json.decode(response.body().as_ref().unwrap()).unwrap();
    problem.code
}

impl TestRelay {
    async fn look_stream(&self, device: &Device) -> i64 {
        sqlx::query_scalar("SELECT stream FROM cursors WHERE device_id = $1")
            .bind(device.id().as_bytes().to_vec())
            .fetch_one(&mut self.look().await)
            .await
            .unwrap()
    }
}
