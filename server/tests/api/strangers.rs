//! Who has no session is counted by address: the connection's, or the one that a trusted proxy names.

use std::net::Ipv4Addr;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpSocket,
};
use undertone_wire::{AccountId, PipeId, PublicKey, path};

use crate::support::{Backend, TestRelay, both, random};

both! {
    each_address_has_a_count_and_only_a_trusted_proxy_names_it,
    whoever_asks_for_pipes_or_recovers_without_a_session_is_counted,
}

const PROXY: Ipv4Addr = Ipv4Addr::LOCALHOST;
const NO_PROXY: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// The answer's status, and the whole of it, to a request without a body from `from` that names `client`.
async fn ask(relay: &TestRelay, what: &str, from: Ipv4Addr, client: &str) -> (u16, String) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((from, 0).into()).unwrap();
    let address = relay.url.trim_start_matches("http://").parse().unwrap();
    let mut connection = socket.connect(address).await.unwrap();
    let request = format!(
        "{what} HTTP/1.1\r\nhost: relay\r\nx-forwarded-for: {client}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    );
    connection.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.unwrap();
    (answer.split(' ').nth(1).unwrap().parse().unwrap(), answer)
}

/// The same of a log-in's first step.
async fn challenge(relay: &TestRelay, from: Ipv4Addr, client: &str) -> (u16, String) {
    ask(relay, &format!("POST {}", path::CHALLENGE), from, client).await
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

async fn whoever_asks_for_pipes_or_recovers_without_a_session_is_counted(on: Backend) {
    let relay = TestRelay::with(on, |config| {
        config.trusted_proxies = "127.0.0.1".parse().unwrap();
        config.limits.stranger_requests_minute_max = 2;
    })
    .await;
    let pipe = PipeId::from_random(random());
    let paths = [path::PIPE_REQUESTS, path::PIPE_ANSWERS].map(|path| format!("{}?number=0", path::fill(path, pipe)));
    let [requests, answers] = paths;
    let recovery = path::fill(path::RECOVERY, AccountId::from_identity_key(&PublicKey::from(random())));
    // Who has nothing to say is refused as well, after it was counted.
    let asked = [
        (format!("GET {requests}"), 404),
        (format!("GET {answers}"), 404),
        (format!("POST {requests}"), 415),
        (format!("POST {recovery}"), 415),
    ];
    for (nth, (what, status)) in asked.iter().enumerate() {
        let client = format!("203.0.113.{nth}");
        for status in [*status, *status, 429] {
            assert_eq!(ask(&relay, what, PROXY, &client).await.0, status, "{what}");
        }
    }
}
