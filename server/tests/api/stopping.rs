//! A node that is told to stop: it takes nothing new, says bye, and finishes what it holds.

use http::header;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use undertone_wire::{ByeReason, path};

use crate::{
    stream::bye,
    support::{Backend, Device, SOON, TestRelay, both, text_of, until},
};

both! {
    streams_are_told_bye_and_polls_end,
    a_request_in_flight_is_answered_and_nothing_new_is_taken,
}

async fn streams_are_told_bye_and_polls_end(on: Backend) {
    let relay = TestRelay::start(on).await;
    let (alice, bob, carol) = (relay.device().await, relay.device().await, relay.device().await);
    let mut streams = [alice.stream(0).await, bob.stream(0).await];
    for stream in &mut streams {
        stream.catches_up_to(1).await;
    }
    let polling = carol.polling(0);
    // A poll that came after the one that waits is answered after that one waits.
    carol.fetch(0).await;
    let [mut one, mut two] = streams;
    let said = tokio::spawn(async move { [one.next().await, two.next().await, one.next().await, two.next().await] });
    relay.stop().await;
    assert_eq!(said.await.unwrap(), [bye(ByeReason::Shutdown), bye(ByeReason::Shutdown), None, None]);
    let fetched = polling.await.expect("it does not wait to the end");
    assert_eq!((fetched.deliveries, fetched.next_seq), (vec![], 1));
}

/// Sends a request in raw bytes, whose head ends here, and reads the answer until the connection is closed.
pub(crate) async fn ask(mut connection: TcpStream, rest: &str) -> String {
    connection.write_all(rest.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    tokio::time::timeout(SOON, connection.read_to_end(&mut answer)).await.expect("closed in time").unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

/// The head of a request for the stream, but for its last line.
fn stream_head(device: &Device) -> String {
    let token = text_of(device.token.as_ref().unwrap());
    format!(
        "GET {} HTTP/1.1\r\nhost: relay\r\n{}: Bearer {token}\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n",
        path::STREAM,
        header::AUTHORIZATION
    )
}

async fn a_request_in_flight_is_answered_and_nothing_new_is_taken(on: Backend) {
    let relay = TestRelay::start(on).await;
    let bob = relay.device().await;
    let (mut wants_stream, mut wants_ready) = (relay.connection().await, relay.connection().await);
    wants_stream.write_all(stream_head(&bob).as_bytes()).await.unwrap();
    wants_ready.write_all(format!("GET {} HTTP/1.1\r\nhost: relay\r\n", path::READY).as_bytes()).await.unwrap();
    // Connections are taken in their order, so those before are taken too when this is answered.
    let mut in_flight = relay.connection().await;
    let head = "POST /v1/auth/login HTTP/1.1\r\nhost: relay\r\ncontent-type: application/json\r\n\
                content-length: 2\r\nexpect: 100-continue\r\n\r\n";
    in_flight.write_all(head.as_bytes()).await.unwrap();
    let mut interim = [0; 25];
    in_flight.read_exact(&mut interim).await.unwrap();
    assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n", "the handler waits for the body");

    let url = relay.url.clone();
    let stopping = tokio::spawn(relay.stop());
    until("it takes no connections any more", async || {
        TcpStream::connect(url.trim_start_matches("http://")).await.is_err()
    })
    .await;
    let refused = ask(wants_stream, "\r\n").await;
    assert!(refused.starts_with("HTTP/1.1 503 ") && refused.contains("\"unavailable\""), "{refused}");
    let not_ready = ask(wants_ready, "\r\n").await;
    assert!(not_ready.starts_with("HTTP/1.1 503 ") && not_ready.contains("\"unavailable\""), "{not_ready}");
    let answered = ask(in_flight, "{}").await;
    assert!(answered.starts_with("HTTP/1.1 400 ") && answered.contains("malformed"), "{answered}");
    stopping.await.unwrap();
}
