//! Connections that say nothing, break off, or are too many.

use std::{future::pending, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use undertone_server::{Config, Relay, SystemClock, SystemRandom, Tls};

use crate::support::{Backend, SOON, Store, TestRelay, both};

both! {
    those_that_do_not_say_what_they_want_are_closed,
    those_that_do_not_come_to_speak_tls_are_closed,
    one_too_many_waits_for_a_place_and_streams_take_places,
    a_body_that_breaks_off_is_malformed_and_not_too_large,
    a_body_without_a_length_is_measured_as_it_comes,
}

const SHORT: Duration = Duration::from_millis(250);

/// What comes until the relay closes the connection.
async fn rest(connection: &mut TcpStream) -> String {
    let mut rest = Vec::new();
    tokio::time::timeout(SOON, connection.read_to_end(&mut rest)).await.expect("closed in time").unwrap();
    String::from_utf8(rest).unwrap()
}

async fn those_that_do_not_say_what_they_want_are_closed(on: Backend) {
    let relay = TestRelay::with(on, |config| config.header_timeout = SHORT).await;
    let mut idle = relay.connection().await;
    idle.write_all(b"GET /healthz HTTP/1.1\r\nhost: relay\r\n\r\n").await.unwrap();
    let mut half = relay.connection().await;
    half.write_all(b"GET /healthz HTTP/1.1\r\nhost: relay\r\nx-").await.unwrap();
    let mut silent = relay.connection().await;
    rest(&mut silent).await;
    rest(&mut half).await;
    let answer = rest(&mut idle).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("ok\n"), "{answer}");
}

async fn those_that_do_not_come_to_speak_tls_are_closed(on: Backend) {
    let (store, folder) = (Store::new(on).await, tempfile::tempdir().unwrap());
    let mut config = Config::new(store.place(), "127.0.0.1:0".parse().unwrap());
    (config.tls, config.data, config.header_timeout) = (Tls::SelfMade, folder.path().to_owned(), SHORT);
    let relay = Relay::bind(config, Arc::new(SystemClock), Arc::new(SystemRandom)).await.unwrap();
    let address = relay.local_addr();
    let serving = tokio::spawn(relay.serve(pending()));
    // The second begins a handshake and does not go on.
    for begun in [&[][..], &[22, 3, 1, 0]] {
        let mut connection = TcpStream::connect(address).await.unwrap();
        connection.write_all(begun).await.unwrap();
        assert_eq!(rest(&mut connection).await, "");
    }
    serving.abort();
}

async fn one_too_many_waits_for_a_place_and_streams_take_places(on: Backend) {
    let relay = TestRelay::start(on).await;
    let mut devices = [relay.device().await, relay.device().await];
    let relay = relay.restart_with(|config| config.limits.connections_max = 2).await;
    devices.iter_mut().for_each(|device| *device = device.at(&relay));
    let streams = [devices[0].stream(0).await, devices[1].stream(0).await];
    let mut third = relay.connection().await;
    third.write_all(b"GET /healthz HTTP/1.1\r\nhost: relay\r\nconnection: close\r\n\r\n").await.unwrap();
    let early = tokio::time::timeout(Duration::from_millis(100), third.readable()).await;
    assert!(early.is_err(), "there is no place for it");
    drop(streams);
    assert!(rest(&mut third).await.starts_with("HTTP/1.1 200 "));
}

async fn a_body_that_breaks_off_is_malformed_and_not_too_large(on: Backend) {
    let relay = TestRelay::start(on).await;
    let mut connection = relay.connection().await;
    let request = "POST /v1/auth/login HTTP/1.1\r\nhost: relay\r\ncontent-type: application/json\r\n\
                   transfer-encoding: chunked\r\n\r\n2\r\n{}\r\nno length\r\n";
    connection.write_all(request.as_bytes()).await.unwrap();
    let answer = rest(&mut connection).await;
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("the body broke off"), "{answer}");
}

async fn a_body_without_a_length_is_measured_as_it_comes(on: Backend) {
    let relay = TestRelay::start(on).await;
    let mut connection = relay.connection().await;
    let head = "POST /v1/auth/login HTTP/1.1\r\nhost: relay\r\ncontent-type: application/json\r\n\
                transfer-encoding: chunked\r\n\r\n4001\r\n";
    connection.write_all(head.as_bytes()).await.unwrap();
    connection.write_all(&[b' '; 0x4001]).await.unwrap();
    let answer = rest(&mut connection).await;
    assert!(answer.starts_with("HTTP/1.1 413 ") && answer.contains("login_body_bytes_max"), "{answer}");
}
