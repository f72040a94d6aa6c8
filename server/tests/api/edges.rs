//! The edges of HTTP: encodings, media types, sizes, and what is answered where nothing is.

use http::{Method, StatusCode, header};
use undertone_wire::{
    Challenge, ClaimResponse, CommitResponse, Encoding, ErrorCode, FetchResponse, GroupList, KeyCounts, Limits, Relay,
    SendResponse, path,
};

use crate::support::{Backend, Device, Message, Reply, TestRelay, both, plain_http};

both! {
    both_encodings_say_the_same,
    json_is_spoken_to_those_who_ask_for_nothing,
    requests_that_cannot_be_understood_are_told_why,
    bodies_are_measured_before_they_are_read,
    tokens_that_are_none_are_refused,
    it_tells_that_it_lives,
}

async fn both_encodings_say_the_same(on: Backend) {
    // No notices about keys, so that queues hold what is sent and no more.
    let relay = TestRelay::with_limits(on, Limits { keys_low_at: 0, ..Limits::default() }).await;
    for encoding in [Encoding::Json, Encoding::Cbor] {
        let api = relay.api().speaking(encoding);
        let alice = api.device().await;
        let bob = api.device().await;
        bob.publish(vec![bob.key_package(false), bob.key_package(false)], None).await.yes::<KeyCounts>();
        assert!(alice.claim(bob.account_id()).await.key_packages[0].key_package.is_some());
        let group = alice.create_group_with(&[&bob]).await;
        alice.says(group, 1).await;
        assert_eq!(bob.get(path::GROUPS).await.yes::<GroupList>().groups.len(), 1);

        let json: FetchResponse = bob.speaking(Encoding::Json).get(path::QUEUE).await.yes();
        let cbor: FetchResponse = bob.speaking(Encoding::Cbor).get(path::QUEUE).await.yes();
        assert_eq!(json, cbor);
        assert_eq!(json.deliveries.len(), 2);
    }
}

async fn json_is_spoken_to_those_who_ask_for_nothing(on: Backend) {
    let relay = TestRelay::start(on).await;
    let answer = plain_http().get(format!("{}{}", relay.url, path::RELAY)).send().await.unwrap();
    assert_eq!(answer.headers()[header::CONTENT_TYPE], "application/json");
    let described: Relay = Reply::read(answer).await.unwrap().yes();
    assert_eq!(described.limits, Limits::default());
    assert_eq!(described.suites, [0x0003, 0x004F]);
}

async fn requests_that_cannot_be_understood_are_told_why(on: Backend) {
    let relay = TestRelay::start(on).await;
    let alice = relay.device().await;
    let http = plain_http();
    let login = format!("{}{}", relay.url, path::LOGIN);

    relay.api().get("/nowhere").await.no(ErrorCode::NotFound);
    relay.api().delete(path::RELAY).await.no(ErrorCode::MethodNotAllowed);
    alice.get(&path::fill(path::GROUP, "not-an-id")).await.no(ErrorCode::Malformed);
    alice.get(&path::fill(path::USERNAME, "x")).await.no(ErrorCode::Malformed);
    alice.get(&format!("{}?after=minus", path::QUEUE)).await.no(ErrorCode::Malformed);
    let problem = relay.api().post(path::LOGIN, &"not a log-in").await.no(ErrorCode::Malformed);
    assert!(problem.detail.is_some());
    let trailing = [Encoding::Cbor.encode(&undertone_wire::AckRequest { up_to: 0 }), vec![0]].concat();
    alice.send(Method::POST, path::ACK, Some(trailing)).await.no(ErrorCode::Malformed);

    let text = http.post(&login).header(header::CONTENT_TYPE, "text/plain").body("{}").send().await.unwrap();
    Reply::read(text).await.unwrap().no(ErrorCode::UnsupportedMediaType);
    let none = http.post(&login).body("{}").send().await.unwrap();
    Reply::read(none).await.unwrap().no(ErrorCode::UnsupportedMediaType);
    let html = http.get(format!("{}{}", relay.url, path::RELAY)).header(header::ACCEPT, "text/html").send().await;
    Reply::read(html.unwrap()).await.unwrap().no(ErrorCode::NotAcceptable);
}

async fn bodies_are_measured_before_they_are_read(on: Backend) {
    let limits = Limits { body_bytes_max: 20_000, commit_body_bytes_max: 40_000, ..Limits::default() };
    let relay = TestRelay::with_limits(on, limits).await;
    let alice = relay.device().await;
    let group = alice.create_group().await;
    let of = |bytes: usize| Message::at(group, 0).saying(&vec![0; bytes]);
    let limit_of = |reply: Reply| {
        let limit = reply.no(ErrorCode::TooLarge).limit.unwrap();
        (limit.name, limit.value)
    };
    alice.send_message(&of(19_000)).await.yes::<SendResponse>();
    assert_eq!(limit_of(alice.send_message(&of(20_000)).await), ("body_bytes_max".into(), 20_000));
    assert_eq!(limit_of(alice.commit(&of(40_000)).await), ("commit_body_bytes_max".into(), 40_000));
    alice.commit(&of(39_000)).await.yes::<CommitResponse>();
}

async fn tokens_that_are_none_are_refused(on: Backend) {
    let relay = TestRelay::start(on).await;
    let alice = relay.device().await;
    let http = plain_http();
    let queue = format!("{}{}", relay.url, path::QUEUE);
    for value in ["", "Bearer", "Bearer ", "Bearer !!!", "Basic YWxpY2U6eA", "Bearer \"\""] {
        let answer = http.get(&queue).header(header::AUTHORIZATION, value).send().await.unwrap();
        Reply::read(answer).await.unwrap().no(ErrorCode::Unauthenticated);
    }
    let other = Device { api: alice.api.with_token(&vec![7; 32].into()), ..alice };
    other.get(path::QUEUE).await.no(ErrorCode::Unauthenticated);
    other
        .post(path::CLAIM, &undertone_wire::ClaimRequest { account_id: other.account_id(), suite: 3 })
        .await
        .no(ErrorCode::Unauthenticated);
}

async fn it_tells_that_it_lives(on: Backend) {
    let relay = TestRelay::start(on).await;
    let answer = relay.api().get(path::HEALTH).await;
    assert_eq!((answer.status, answer.body), (StatusCode::OK, b"ok\n".to_vec()));
    relay.api().post(path::CHALLENGE, &()).await.yes::<Challenge>();
    let alice = relay.device().await;
    assert_eq!(
        alice.claim(alice.account_id()).await,
        ClaimResponse {
            key_packages: vec![undertone_wire::ClaimedKeyPackage {
                device_id: alice.id(),
                key_package: None,
                last_resort: false
            }],
        }
    );
}

/// `spec/openapi.json` is a copy of what the code says. To renew it: `UPDATE=1 cargo test -p undertone-server openapi`.
#[test]
fn the_committed_openapi_is_what_the_code_says() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../spec/openapi.json");
    let said = undertone_server::openapi().unwrap() + "\n";
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(path, &said).unwrap();
    }
    let committed = std::fs::read_to_string(path).unwrap();
    assert!(said == committed, "run `UPDATE=1 cargo test -p undertone-server openapi` and look at the difference");
}
