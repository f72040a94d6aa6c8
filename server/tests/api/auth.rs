//! Log-in and sessions.

use std::time::Duration;

use undertone_wire::{Challenge, ErrorCode, FetchResponse, Limits, Relay, Session, path};

use crate::support::{Account, Keys, TestRelay, log_in, login_request};

#[tokio::test]
async fn a_challenge_is_used_up_by_its_first_use() {
    let relay = TestRelay::start().await;
    let (api, alice) = (relay.api(), relay.device().await);
    let described: Relay = api.get(path::RELAY).await.yes();
    let challenge: Challenge = api.post(path::CHALLENGE, &()).await.yes();
    let request = login_request(&described, &alice.keys, &challenge);
    let session: Session = api.post(path::LOGIN, &request).await.yes();
    api.with_token(&session.token).get(path::QUEUE).await.yes::<FetchResponse>();
    api.post(path::LOGIN, &request).await.no(ErrorCode::Unauthenticated);

    // A wrong answer uses it up as well.
    let challenge: Challenge = api.post(path::CHALLENGE, &()).await.yes();
    let wrong = Keys::renewed(&alice.keys);
    api.post(path::LOGIN, &login_request(&described, &wrong, &challenge)).await.no(ErrorCode::BadSignature);
    let right = login_request(&described, &alice.keys, &challenge);
    api.post(path::LOGIN, &right).await.no(ErrorCode::Unauthenticated);
}

#[tokio::test]
async fn challenges_and_sessions_end() {
    let limits = Limits::default();
    let relay = TestRelay::start().await;
    let (api, alice) = (relay.api(), relay.device().await);
    let described: Relay = api.get(path::RELAY).await.yes();
    let challenge: Challenge = api.post(path::CHALLENGE, &()).await.yes();
    relay.clock.advance(Duration::from_secs(limits.challenge_ttl_s));
    let late = login_request(&described, &alice.keys, &challenge);
    api.post(path::LOGIN, &late).await.no(ErrorCode::Unauthenticated);

    alice.get(path::QUEUE).await.yes::<FetchResponse>();
    relay.clock.advance(Duration::from_secs(limits.session_ttl_s));
    alice.get(path::QUEUE).await.no(ErrorCode::Unauthenticated);
}

#[tokio::test]
async fn only_a_listed_device_with_its_key_gets_a_session() {
    let relay = TestRelay::start().await;
    log_in(&relay.api(), &Account::new(1).keys[0]).await.no(ErrorCode::BadSignature);
    assert_eq!(relay.rows("sessions").await, 0);
}

#[tokio::test]
async fn logging_out_ends_one_session() {
    let relay = TestRelay::start().await;
    let one = relay.device().await;
    let two = one.account.log_in_all(&relay.api()).await.remove(0);
    one.post(path::LOGOUT, &()).await.done();
    one.get(path::QUEUE).await.no(ErrorCode::Unauthenticated);
    two.get(path::QUEUE).await.yes::<FetchResponse>();
}

#[tokio::test]
async fn a_new_session_beyond_the_limit_ends_the_oldest() {
    let relay = TestRelay::with_limits(Limits { device_sessions_max: 2, ..Limits::default() }).await;
    let first = relay.device().await;
    relay.clock.advance(Duration::from_millis(1));
    let second = first.account.log_in_all(&relay.api()).await.remove(0);
    relay.clock.advance(Duration::from_millis(1));
    let third = first.account.log_in_all(&relay.api()).await.remove(0);
    first.get(path::QUEUE).await.no(ErrorCode::Unauthenticated);
    second.get(path::QUEUE).await.yes::<FetchResponse>();
    third.get(path::QUEUE).await.yes::<FetchResponse>();
}

#[tokio::test]
async fn a_token_is_not_stored() {
    let relay = TestRelay::start().await;
    let alice = relay.device().await;
    let token = alice.token.clone().unwrap();
    let stored: Vec<Vec<u8>> =
        sqlx::query_scalar("SELECT token_hash FROM sessions").fetch_all(&mut relay.look().await).await.unwrap();
    assert_eq!(stored, [undertone_wire::Hash::of(token.as_slice()).as_bytes().to_vec()]);
}
