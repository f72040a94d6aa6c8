//! Which copy of a device's store takes from its queue: each swaps the id of its last life for that of the next.

use undertone_wire::{ErrorCode, InstanceId, InstanceRequest, InstanceResponse, path};

use crate::support::{Backend, Device, TestRelay, both};

both! {
    each_life_names_the_one_before_and_may_say_so_twice,
    another_copy_is_refused_until_it_takes_over,
    of_copies_that_come_at_once_one_is_taken,
    a_new_incarnation_knows_of_none,
    who_is_no_longer_listed_swaps_nothing,
}

fn id(byte: u8) -> InstanceId {
    InstanceId::from_random([byte; 16])
}

fn opened(previous: Option<u8>, instance: u8) -> InstanceRequest {
    InstanceRequest { previous: previous.map(id), instance: id(instance), takes_over: false }
}

async fn is_taken(device: &Device, request: &InstanceRequest, acked_seq: u64) {
    let answer: InstanceResponse = device.post(path::INSTANCE, request).await.yes();
    assert_eq!(answer, InstanceResponse { acked_seq });
}

async fn is_refused(device: &Device, request: &InstanceRequest) {
    device.post(path::INSTANCE, request).await.no(ErrorCode::OtherInstance);
}

async fn each_life_names_the_one_before_and_may_say_so_twice(on: Backend) {
    let relay = TestRelay::start(on).await;
    let (alice, bob) = (relay.device().await, relay.device().await);
    is_taken(&alice, &opened(None, 1), 0).await;
    is_taken(&alice, &opened(None, 1), 0).await;
    let group = alice.create_group_with(&[&bob]).await;
    alice.says(group, 1).await;
    alice.ack(2).await.done();
    is_taken(&alice, &opened(Some(1), 2), 2).await;
    is_taken(&alice, &opened(Some(1), 2), 2).await;
    is_taken(&alice, &opened(Some(2), 3), 2).await;
    // Another device has its own.
    is_taken(&bob, &opened(None, 1), 0).await;
}

async fn another_copy_is_refused_until_it_takes_over(on: Backend) {
    let relay = TestRelay::start(on).await;
    let alice = relay.device().await;
    is_taken(&alice, &opened(None, 1), 0).await;
    is_taken(&alice, &opened(Some(1), 2), 0).await;
    for copy in [opened(Some(1), 3), opened(None, 4), opened(Some(9), 5)] {
        is_refused(&alice, &copy).await;
    }
    is_taken(&alice, &InstanceRequest { takes_over: true, ..opened(Some(1), 3) }, 0).await;
    is_refused(&alice, &opened(Some(2), 6)).await;
    is_taken(&alice, &opened(Some(3), 7), 0).await;
}

async fn of_copies_that_come_at_once_one_is_taken(on: Backend) {
    let relay = TestRelay::start(on).await;
    let alice = relay.device().await;
    is_taken(&alice, &opened(None, 1), 0).await;
    let copies = (10..18).map(|copy| {
        let alice = alice.clone();
        tokio::spawn(async move { alice.post(path::INSTANCE, &opened(Some(1), copy)).await })
    });
    let mut taken = 0;
    for copy in copies.collect::<Vec<_>>() {
        let answer = copy.await.unwrap();
        if answer.status.is_success() {
            taken += 1;
        } else {
            answer.no(ErrorCode::OtherInstance);
        }
    }
    assert_eq!(taken, 1);
}

async fn a_new_incarnation_knows_of_none(on: Backend) {
    let relay = TestRelay::start(on).await;
    let alice = relay.device().await;
    is_taken(&alice, &opened(None, 1), 0).await;
    let stopped = relay.stop().await;
    undertone_server::restore(&stopped.config.place).await.unwrap();
    let relay = stopped.start().await;
    let alice = alice.account.log_in_all(&relay.api()).await.remove(0);
    is_taken(&alice, &opened(Some(9), 2), 0).await;
    is_refused(&alice, &opened(Some(1), 3)).await;
}

async fn who_is_no_longer_listed_swaps_nothing(on: Backend) {
    let relay = TestRelay::start(on).await;
    let alice = relay.device().await;
    alice.delete(path::OWN_ACCOUNT).await.done();
    alice.post(path::INSTANCE, &opened(None, 1)).await.no(ErrorCode::Unauthenticated);
}
