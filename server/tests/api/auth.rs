//! Log-in and sessions.

use std::time::Duration;

use undertone_wire::{Challenge, ErrorCode, FetchResponse, Limits, Relay, Session, path};

use crate::support::{Account, Backend, Keys, TestRelay, both, log_in, login_request};

both! {
    a_challenge_is_used_up_by_its_first_use,
    challenges_and_sessions_end,
    only_a_listed_device_with_its_key_gets_a_session,
    logging_out_ends_one_session,
    a_new_session_beyond_the_limit_ends_the_oldest,
    a_token_is_not_stored,
}

async fn a_challenge_is_used_up_by_its_first_use(on: Backend) {
    let relay = TestRelay::start(on).await;
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

async fn challenges_and_sessions_end(on: Backend) {
    let limits = Limits::default();
    let relay = TestRelay::start(on).await;
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

async fn only_a_listed_device_with_its_key_gets_a_session(on: Backend) {
    let relay = TestRelay::start(on).await;
    log_in(&relay.api(), &Account::new(1).keys[0]).await.no(ErrorCode::BadSignature);
    assert_eq!(relay.rows("sessions").await, 0);
}

async fn logging_out_ends_one_session(on: Backend) {
    let relay = TestRelay::start(on).await;
    let one = relay.device().await;
    let two = one.account.log_in_all(&relay.api()).await.remove(0);
    one.post(path::LOGOUT, &()).await.done();
    one.get(path::QUEUE).await.no(ErrorCode::Unauthenticated);
    two.get(path::QUEUE).await.yes::<FetchResponse>();
}

async fn a_new_session_beyond_the_limit_ends_the_oldest(on: Backend) {
    let relay = TestRelay::with_limits(on, Limits { device_sessions_max: 2, ..Limits::default() }).await;
    let first = relay.device().await;
    relay.clock.advance(Duration::from_millis(1));
    let second = first.account.log_in_all(&relay.api()).await.remove(0);
    relay.clock.advance(Duration::from_millis(1));
    let third = first.account.log_in_all(&relay.api()).await.remove(0);
    first.get(path::QUEUE).await.no(ErrorCode::Unauthenticated);
    second.get(path::QUEUE).await.yes::<FetchResponse>();
    third.get(path::QUEUE).await.yes::<FetchResponse>();
}

async fn a_token_is_not_stored(on: Backend) {
    let relay = TestRelay::start(on).await;
    let alice = relay.device().await;
    let token = alice.token.clone().unwrap();
    let stored: Vec<(Vec<u8>,)> = relay.select("SELECT token_hash FROM sessions").await;
    assert_eq!(stored, [(undertone_wire::Hash::of(token.as_slice()).as_bytes().to_vec(),)]);
}
