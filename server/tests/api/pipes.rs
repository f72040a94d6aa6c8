//! Pipes: what a new device and one that links it pass each other, once, for a while.

use std::time::Duration;

use http::StatusCode;
use undertone_wire::{ErrorCode, Hash, Limits, PIPE_PARTS_MAX, PipeId, PipePart, path};

use crate::support::{Api, Backend, Device, Reply, TestRelay, both, random};

both! {
    a_new_device_and_one_that_links_it_pass_each_other_what_it_takes,
    a_part_is_written_once_and_may_be_repeated,
    nobody_answers_without_a_session,
    a_pipe_that_nobody_began_is_not_there,
    a_pipe_that_is_over_is_as_none,
    upkeep_deletes_what_is_over_and_no_more,
    a_part_has_a_size_and_a_number,
    so_many_pipes_live_at_a_time_and_no_more,
    all_pipes_together_hold_so_many_bytes_and_no_more,
    of_two_who_answer_at_once_one_does,
    of_many_who_begin_pipes_at_once_as_many_do_as_may,
    nothing_in_the_store_names_who_answered,
    after_a_restore_there_are_no_pipes,
}

fn new_pipe() -> PipeId {
    PipeId::from_random(random())
}

#[track_caller]
fn content(reply: Reply) -> Vec<u8> {
    reply.yes::<PipePart>().content.into_vec()
}

/// What is asked of a pipe that is not there, or no more; but for what begins one.
async fn is_not_there(stranger: &Api, listed: &Device, pipe: PipeId) {
    for number in 0..PIPE_PARTS_MAX {
        stranger.pipe_request(pipe, number).await.no(ErrorCode::NotFound);
        stranger.pipe_answer(pipe, number).await.no(ErrorCode::NotFound);
        listed.put_pipe_answer(pipe, number, b"answer").await.no(ErrorCode::NotFound);
    }
    stranger.put_pipe_request(pipe, 1, b"request 1").await.no(ErrorCode::NotFound);
}

async fn a_new_device_and_one_that_links_it_pass_each_other_what_it_takes(on: Backend) {
    let relay = TestRelay::start(on).await;
    let (new, alice, pipe) = (relay.api(), relay.device().await, new_pipe());
    new.put_pipe_request(pipe, 0, b"request 0").await.done();
    assert_eq!(content(alice.pipe_request(pipe, 0).await), b"request 0");
    new.pipe_answer(pipe, 0).await.no(ErrorCode::NotFound);
    alice.put_pipe_answer(pipe, 0, b"answer 0").await.done();
    assert_eq!(content(new.pipe_answer(pipe, 0).await), b"answer 0");
    alice.pipe_request(pipe, 1).await.no(ErrorCode::NotFound);
    new.put_pipe_request(pipe, 1, b"request 1").await.done();
    assert_eq!(content(alice.pipe_request(pipe, 1).await), b"request 1");
    alice.put_pipe_answer(pipe, 1, b"answer 1").await.done();
    assert_eq!(content(new.pipe_answer(pipe, 1).await), b"answer 1");
    assert_eq!(content(new.pipe_answer(pipe, 0).await), b"answer 0", "reading takes nothing away");
    is_not_there(&new, &alice, new_pipe()).await;
}

async fn a_part_is_written_once_and_may_be_repeated(on: Backend) {
    let relay = TestRelay::start(on).await;
    let (new, pipe) = (relay.api(), new_pipe());
    let (alice, bob) = (relay.device().await, relay.device().await);
    for number in 0..PIPE_PARTS_MAX {
        for _ in 0..2 {
            new.put_pipe_request(pipe, number, b"request").await.done();
            alice.put_pipe_answer(pipe, number, b"answer").await.done();
        }
        new.put_pipe_request(pipe, number, b"another").await.no(ErrorCode::PartTaken);
        alice.put_pipe_answer(pipe, number, b"another").await.no(ErrorCode::PartTaken);
        bob.put_pipe_answer(pipe, number, b"another").await.no(ErrorCode::PartTaken);
        bob.put_pipe_answer(pipe, number, b"answer").await.done();
        assert_eq!(content(new.pipe_request(pipe, number).await), b"request");
        assert_eq!(content(new.pipe_answer(pipe, number).await), b"answer");
    }
    assert_eq!(relay.rows("pipe_parts").await, 4);
}

async fn nobody_answers_without_a_session(on: Backend) {
    let relay = TestRelay::start(on).await;
    let (new, alice, pipe) = (relay.api(), relay.device().await, new_pipe());
    new.put_pipe_request(pipe, 0, b"request").await.done();
    new.put_pipe_answer(pipe, 0, b"answer").await.no(ErrorCode::Unauthenticated);
    alice.post(path::LOGOUT, &()).await.done();
    alice.put_pipe_answer(pipe, 0, b"answer").await.no(ErrorCode::Unauthenticated);
    new.pipe_answer(pipe, 0).await.no(ErrorCode::NotFound);
}

async fn a_pipe_that_nobody_began_is_not_there(on: Backend) {
    let relay = TestRelay::start(on).await;
    is_not_there(&relay.api(), &relay.device().await, new_pipe()).await;
    assert_eq!(relay.rows("pipe_parts").await, 0);
}

async fn a_pipe_that_is_over_is_as_none(on: Backend) {
    let relay = TestRelay::start(on).await;
    let (new, alice, pipe) = (relay.api(), relay.device().await, new_pipe());
    let life = Duration::from_secs(Limits::default().pipe_ttl_s);
    new.put_pipe_request(pipe, 0, b"request 0").await.done();
    relay.clock.advance(life / 2);
    alice.put_pipe_answer(pipe, 0, b"answer 0").await.done();
    new.put_pipe_request(pipe, 0, b"request 0").await.done();
    relay.clock.advance(life / 2 - Duration::from_millis(1));
    new.put_pipe_request(pipe, 1, b"request 1").await.done();
    assert_eq!(content(new.pipe_answer(pipe, 0).await), b"answer 0");
    relay.clock.advance(Duration::from_millis(1));
    is_not_there(&new, &alice, pipe).await;
    assert_eq!(relay.rows("pipe_parts").await, 3, "nothing has been deleted yet");

    new.put_pipe_request(pipe, 0, b"anew").await.done();
    new.pipe_answer(pipe, 0).await.no(ErrorCode::NotFound);
    alice.pipe_request(pipe, 1).await.no(ErrorCode::NotFound);
    alice.put_pipe_answer(pipe, 0, b"answer anew").await.done();
    assert_eq!(content(alice.pipe_request(pipe, 0).await), b"anew");
    assert_eq!(content(new.pipe_answer(pipe, 0).await), b"answer anew");
}

async fn upkeep_deletes_what_is_over_and_no_more(on: Backend) {
    let relay = TestRelay::start(on).await;
    let (new, alice, old, young) = (relay.api(), relay.device().await, new_pipe(), new_pipe());
    let life = Duration::from_secs(Limits::default().pipe_ttl_s);
    new.put_pipe_request(old, 0, b"request").await.done();
    relay.clock.advance(life / 2);
    alice.put_pipe_answer(old, 0, b"answer").await.done();
    new.put_pipe_request(young, 0, b"request").await.done();
    relay.upkeep.run().await.unwrap();
    assert_eq!(relay.rows("pipe_parts").await, 3);
    relay.clock.advance(life / 2);
    relay.upkeep.run().await.unwrap();
    assert_eq!(relay.rows("pipe_parts").await, 1);
    assert_eq!(content(alice.pipe_request(young, 0).await), b"request");
}

async fn a_part_has_a_size_and_a_number(on: Backend) {
    let limits = Limits { pipe_request_bytes_max: 100, pipe_answer_bytes_max: 200, ..Limits::default() };
    let relay = TestRelay::with_limits(on, limits).await;
    let (new, alice, pipe) = (relay.api(), relay.device().await, new_pipe());
    let limit_of = |reply: Reply| {
        let limit = reply.no(ErrorCode::TooLarge).limit.unwrap();
        (limit.name, limit.value)
    };
    let too_large = new.put_pipe_request(pipe, 0, &[0; 101]).await;
    assert_eq!(limit_of(too_large), ("pipe_request_bytes_max".into(), 100));
    new.put_pipe_request(pipe, 0, &[0; 100]).await.done();
    let too_large = alice.put_pipe_answer(pipe, 0, &[0; 201]).await;
    assert_eq!(limit_of(too_large), ("pipe_answer_bytes_max".into(), 200));
    alice.put_pipe_answer(pipe, 0, &[0; 200]).await.done();

    for number in [PIPE_PARTS_MAX, u64::MAX] {
        new.pipe_request(pipe, number).await.no(ErrorCode::Malformed);
        new.put_pipe_request(pipe, number, b"request").await.no(ErrorCode::Malformed);
        new.pipe_answer(pipe, number).await.no(ErrorCode::Malformed);
        alice.put_pipe_answer(pipe, number, b"answer").await.no(ErrorCode::Malformed);
    }
    let of_pipe = path::fill(path::PIPE_REQUESTS, pipe);
    for query in ["", "?number=", "?number=-1", "?number=one"] {
        new.get(&format!("{of_pipe}{query}")).await.no(ErrorCode::Malformed);
    }
    new.get(&format!("{}?number=0", path::fill(path::PIPE_REQUESTS, "no-pipe"))).await.no(ErrorCode::Malformed);
}

async fn so_many_pipes_live_at_a_time_and_no_more(on: Backend) {
    let limits = Limits { pipes_max: 2, pipe_ttl_s: 60, ..Limits::default() };
    let relay = TestRelay::with_limits(on, limits).await;
    let (new, alice, pipe) = (relay.api(), relay.device().await, new_pipe());
    new.put_pipe_request(pipe, 0, b"request").await.done();
    relay.clock.advance(Duration::from_secs(30));
    new.put_pipe_request(new_pipe(), 0, b"request").await.done();
    let refused = new.put_pipe_request(new_pipe(), 0, b"request").await.no(ErrorCode::Unavailable);
    assert!(refused.detail.is_some_and(|detail| detail.contains("try again")));

    // Those that there are go on.
    new.put_pipe_request(pipe, 0, b"request").await.done();
    new.put_pipe_request(pipe, 0, b"another").await.no(ErrorCode::PartTaken);
    alice.put_pipe_answer(pipe, 0, b"answer").await.done();
    new.put_pipe_request(pipe, 1, b"request").await.done();
    relay.clock.advance(Duration::from_secs(30));
    new.put_pipe_request(new_pipe(), 0, b"request").await.done();
    new.put_pipe_request(new_pipe(), 0, b"request").await.no(ErrorCode::Unavailable);
}

async fn all_pipes_together_hold_so_many_bytes_and_no_more(on: Backend) {
    let limits = Limits { pipes_bytes_max: 100, pipe_ttl_s: 60, ..Limits::default() };
    let relay = TestRelay::with_limits(on, limits).await;
    let (new, alice, pipe) = (relay.api(), relay.device().await, new_pipe());
    new.put_pipe_request(pipe, 0, &[1; 40]).await.done();
    alice.put_pipe_answer(pipe, 0, &[2; 61]).await.no(ErrorCode::Unavailable);
    new.put_pipe_request(new_pipe(), 0, &[3; 61]).await.no(ErrorCode::Unavailable);
    alice.put_pipe_answer(pipe, 0, &[2; 60]).await.done();
    alice.put_pipe_answer(pipe, 0, &[2; 60]).await.done();
    new.put_pipe_request(pipe, 1, b"request").await.no(ErrorCode::Unavailable);
    alice.put_pipe_answer(new_pipe(), 1, b"answer").await.no(ErrorCode::NotFound);

    // What is over makes room.
    relay.clock.advance(Duration::from_secs(60));
    new.put_pipe_request(pipe, 0, &[1; 100]).await.done();
}

async fn of_two_who_answer_at_once_one_does(on: Backend) {
    let relay = TestRelay::start(on).await;
    let (new, alice, bob) = (relay.api(), relay.device().await, relay.device().await);
    for _ in 0..10 {
        let pipe = new_pipe();
        new.put_pipe_request(pipe, 0, b"request").await.done();
        let (of_alice, of_bob) =
            tokio::join!(alice.put_pipe_answer(pipe, 0, b"alice"), bob.put_pipe_answer(pipe, 0, b"bob"));
        let there = content(new.pipe_answer(pipe, 0).await);
        let (first, second) = if there == b"alice" { (of_alice, of_bob) } else { (of_bob, of_alice) };
        first.done();
        second.no(ErrorCode::PartTaken);
    }
    assert_eq!(relay.rows("pipe_parts").await, 20);
}

async fn of_many_who_begin_pipes_at_once_as_many_do_as_may(on: Backend) {
    let relay = TestRelay::with_limits(on, Limits { pipes_max: 5, ..Limits::default() }).await;
    let new = relay.api();
    let begun = (0..32).map(|_| new.put_pipe_request(new_pipe(), 0, b"request"));
    let (begun, refused): (Vec<_>, Vec<_>) = futures_util::future::join_all(begun)
        .await
        .into_iter()
        .partition(|reply| reply.status == StatusCode::NO_CONTENT);
    assert_eq!((begun.len(), relay.rows("pipe_parts").await), (5, 5));
    for reply in refused {
        reply.no(ErrorCode::Unavailable);
    }
}

async fn nothing_in_the_store_names_who_answered(on: Backend) {
    let relay = TestRelay::start(on).await;
    let (new, alice, pipe) = (relay.api(), relay.device().await, new_pipe());
    new.put_pipe_request(pipe, 0, b"the request").await.done();
    let token_hash = Hash::of(alice.api.token.as_ref().unwrap().as_slice());
    let where_alice_is = async || {
        let (device, account) = (alice.id(), alice.account_id());
        let mut found = Vec::new();
        for bytes in [device.as_bytes().as_slice(), account.as_bytes(), token_hash.as_bytes()] {
            found.push(relay.store.found(bytes).await);
        }
        found
    };
    let before = where_alice_is().await;
    assert!(before.iter().all(|found| !found.is_empty()), "she is to be found: {before:?}");
    for number in 0..PIPE_PARTS_MAX {
        alice.put_pipe_answer(pipe, number, b"the answer").await.done();
    }
    assert_eq!(where_alice_is().await, before);

    let of_pipe = |rows, column: &str| [(format!("pipe_parts.{column}"), rows)].into();
    assert_eq!(relay.store.found(b"the answer").await, of_pipe(2, "content"));
    assert_eq!(relay.store.found(Hash::of(pipe.as_bytes()).as_bytes()).await, of_pipe(3, "pipe_hash"));
    assert!(relay.store.found(pipe.as_bytes()).await.is_empty(), "nor does anything give the pipe away");
}

async fn after_a_restore_there_are_no_pipes(on: Backend) {
    let relay = TestRelay::start(on).await;
    let (alice, pipe) = (relay.device().await, new_pipe());
    relay.api().put_pipe_request(pipe, 0, b"request").await.done();
    alice.put_pipe_answer(pipe, 0, b"answer").await.done();
    let stopped = relay.stop().await;
    undertone_server::restore(&stopped.config.place).await.unwrap();
    let relay = stopped.start().await;
    is_not_there(&relay.api(), &alice.at(&relay).logged_in_again().await, pipe).await;
    assert_eq!(relay.rows("pipe_parts").await, 0);
    relay.api().put_pipe_request(pipe, 0, b"request").await.done();
}
