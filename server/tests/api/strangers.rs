//! Who has no session is counted by address: the connection's, or the one that a trusted proxy names.

use std::net::Ipv4Addr;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpSocket,
};
use undertone_wire::path;

use crate::support::{Backend, TestRelay, both};

both! {
    each_address_has_a_count_and_only_a_trusted_proxy_names_it,
}

const PROXY: Ipv4Addr = Ipv4Addr::LOCALHOST;
const NO_PROXY: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// The status of a log-in's first step and the answer's body, for a request from `from` that names `client`.
async fn challenge(relay: &TestRelay, from: Ipv4Addr, client: &str) -> (u16, String) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((from, 0).into()).unwrap();
    let address = relay.url.trim_start_matches("http://").parse().unwrap();
    let mut connection = socket.connect(address).await.unwrap();
    let request = format!(
        "POST {} HTTP/1.1\r\nhost: relay\r\nx-forwarded-for: {client}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
        path::CHALLENGE
    );
    connection.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.unwrap();
    (answer.split(' ').nth(1).unwrap().parse().unwrap(), answer)
}

async fn each_address_has_a_count_and_only_a_trusted_proxy_names_it(on: Backend) {
    let relay = TestRelay::with(on, |config| {
        config.trusted_proxies = "127.0.0.1".parse().unwrap();
        config.limits.stranger_requests_minute_max = 2;
    })
    .await;
    for _ in 0..2 {
        assert_eq!(challenge(&relay, PROXY, "203.0.113.9").await.0, 200);
    }
    let (status, answer) = challenge(&relay, PROXY, "203.0.113.9").await;
    assert_eq!(status, 429, "{answer}");
    assert!(answer.contains("too_many_requests") && answer.contains("stranger_requests_minute_max"), "{answer}");
    assert_eq!(challenge(&relay, PROXY, "192.0.2.1, 203.0.113.9").await.0, 429, "what the client made up");
    assert_eq!(challenge(&relay, PROXY, "203.0.113.10").await.0, 200, "another client");
    assert_eq!(challenge(&relay, NO_PROXY, "203.0.113.9").await.0, 200, "nobody else names addresses");
    assert_eq!(challenge(&relay, NO_PROXY, "203.0.113.9").await.0, 200);
    let (status, _) = challenge(&relay, NO_PROXY, "203.0.113.10").await;
    assert_eq!(status, 429, "whoever forwards without being trusted is one stranger");
    relay.clock.advance(std::time::Duration::from_secs(30));
    assert_eq!(challenge(&relay, PROXY, "203.0.113.9").await.0, 200, "time lowers it");
}
