//! Key packages that run out: the relay tells the device in its queue, and it publishes others.

use std::sync::{Arc, Mutex};

use undertone::Client;
use undertone_wire::{Bytes, Envelope, suite};

use crate::{
    liar::{Call, Lie, lied_to, unknown},
    world::{World, standing, wait_until},
};

/// All key packages are at the relay, and nothing waits that would keep it from telling when they run out.
async fn has_all_keys(world: &World, client: &Client) {
    let device = client.device_id();
    wait_until("100 key packages, a last-resort one and an empty queue", async || {
        (world.relay.key_packages(&device) == (100, true) && world.relay.queue_len(&device) == 0).then_some(())
    })
    .await;
}

/// The last-resort key package, which is reached by claiming all others.
fn last_resort(world: &World, client: &Client) -> Bytes {
    let claimed = world.relay.hand_out(client.account().account_id, 101);
    let last = claimed.into_iter().find(|claim| claim.last_resort).unwrap();
    last.key_package.unwrap()
}

#[tokio::test]
async fn a_device_that_is_told_that_few_key_packages_are_left_publishes_more() {
    let world = World::new();
    let alice = world.register("alice").await;
    has_all_keys(&world, &alice).await;
    world.relay.hand_out(alice.account().account_id, 79);
    assert_eq!(world.relay.key_packages(&alice.device_id()), (21, true), "alice has not been told anything");
    world.relay.hand_out(alice.account().account_id, 1);
    has_all_keys(&world, &alice).await;
}

#[tokio::test]
async fn a_last_resort_key_package_that_was_handed_out_is_replaced() {
    let world = World::new();
    let alice = world.register("alice").await;
    has_all_keys(&world, &alice).await;
    let device = alice.device_id();
    alice.shutdown().await;
    let alice = Client::open_offline(world.store("alice"), crate::world::key()).await.unwrap();
    let first = last_resort(&world, &alice);
    let told: Vec<_> = world.relay.queue(&device).into_iter().map(|delivery| delivery.envelope).collect();
    let suite = suite::DEFAULT;
    assert_eq!(told, [Envelope::KeysLow { suite, one_time: 20 }, Envelope::LastResortUsed { suite }]);
    alice.shutdown().await;
    let alice = world.open("alice").await;
    has_all_keys(&world, &alice).await;
    assert_ne!(last_resort(&world, &alice), first);
}

#[tokio::test]
async fn a_last_resort_key_package_is_replaced_once_an_hour_however_often_it_is_handed_out() {
    let (world, clock) = (World::new(), standing());
    let alice = world.register_by(&clock, "alice").await;
    let (account, device) = (alice.account().account_id, alice.device_id());
    let other_than = async |before: &Option<Bytes>| {
        wait_until("another last-resort key package", async || {
            Some(world.relay.last_resort(&device)).filter(|now| now.is_some() && now != before)
        })
        .await
    };
    has_all_keys(&world, &alice).await;
    let first = world.relay.last_resort(&device);
    world.relay.hand_out(account, 101);
    let second = other_than(&first).await;
    has_all_keys(&world, &alice).await;
    for _ in 0..3 {
        world.relay.hand_out(account, 101);
        has_all_keys(&world, &alice).await;
        assert_eq!(world.relay.last_resort(&device), second);
    }
    // The wish has been kept.
    clock.pass(&world, 60 * 60 * 1_000);
    world.relay.hand_out(account, 80);
    other_than(&second).await;
}

#[tokio::test]
async fn a_batch_is_posted_again_as_it_was_after_a_problem_that_is_no_refusal() {
    let world = World::new();
    let (liar, alice) = lied_to(&world, "alice").await;
    has_all_keys(&world, &alice).await;
    let posted = Arc::new(Mutex::new(vec![]));
    let ids = Arc::clone(&posted);
    liar.tell(move |call| match call {
        Call::Publish(id, number) => {
            ids.lock().unwrap().push(id);
            (number == 0).then(|| Lie::Now(unknown(507)))
        }
        _ => None,
    });
    world.relay.hand_out(alice.account().account_id, 80);
    has_all_keys(&world, &alice).await;
    let posted = posted.lock().unwrap().clone();
    assert_eq!(posted, [posted[0]; 2]);
}
