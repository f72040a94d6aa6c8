//! Prekeys and sealing keys: there from the start, topped up, and replaced each week.

use undertone::Client;
use undertone_wire::{DeviceList, Encoding};

use crate::world::{World, builder_at, online, standing, wait_until};

const WEEK_MS: u64 = 7 * 24 * 60 * 60 * 1_000;

/// All of a device's keys are at the relay, and nothing waits that would keep it from telling when they run out.
async fn has_all_prekeys(world: &World, client: &Client) {
    let device = client.device_id();
    wait_until("100 prekeys, a fallback one, a sealing key and an empty queue", async || {
        let all = world.relay.prekeys(&device) == (100, true) && world.relay.sealing_key(&device).is_some();
        (all && world.relay.queue_len(&device) == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_device_has_prekeys_and_a_sealing_key_that_its_listed_key_vouches_for() {
    let world = World::new();
    let alice = world.register("alice").await;
    has_all_prekeys(&world, &alice).await;
    let (account, device) = (alice.account().account_id, alice.device_id());
    let list = world.relay.device_list(&account).unwrap();
    let list: DeviceList = Encoding::Cbor.decode(list.list.as_slice()).unwrap();
    let device_key = list.devices[0].key_set().unwrap().device_key;
    let handed_out = world.relay.hand_out_prekeys(account, 3);
    assert!(handed_out.iter().all(|prekey| prekey.is_of(device, &device_key) && !prekey.fallback));
    assert!(world.relay.fallback(&device).unwrap().is_of(device, &device_key));
    assert!(world.relay.sealing_key(&device).unwrap().is_of(device, &device_key));
}

#[tokio::test]
async fn a_device_that_is_told_that_few_prekeys_are_left_publishes_more() {
    let world = World::new();
    let alice = world.register("alice").await;
    has_all_prekeys(&world, &alice).await;
    let (account, device) = (alice.account().account_id, alice.device_id());
    let fallback = world.relay.fallback(&device);
    world.relay.hand_out_prekeys(account, 79);
    assert_eq!(world.relay.prekeys(&device), (21, true), "alice has not been told anything");
    world.relay.hand_out_prekeys(account, 1);
    has_all_prekeys(&world, &alice).await;
    world.relay.hand_out_prekeys(account, 101);
    has_all_prekeys(&world, &alice).await;
    assert_eq!(world.relay.fallback(&device), fallback, "it is not replaced for being used");
}

#[tokio::test]
async fn the_fallback_prekey_and_the_sealing_key_are_replaced_each_week() {
    let (world, clock) = (World::new(), standing());
    let alice = world.register_by(&clock, "alice").await;
    has_all_prekeys(&world, &alice).await;
    let device = alice.device_id();
    let now = || (world.relay.fallback(&device).unwrap(), world.relay.sealing_key(&device).unwrap());
    let opened_again = async |alice: Client| {
        alice.shutdown().await;
        let alice = builder_at(&world.relay, world.store("alice")).clock(clock.clone()).open().await.unwrap();
        online(&alice).await;
        alice
    };
    let first = now();
    clock.pass(&world, WEEK_MS - 60_000);
    let alice = opened_again(alice).await;
    // Whoever tops up has looked at both.
    world.relay.hand_out_prekeys(alice.account().account_id, 80);
    has_all_prekeys(&world, &alice).await;
    assert_eq!(now(), first);
    clock.pass(&world, 60_000);
    let _alice = opened_again(alice).await;
    wait_until("others", async || (now().0 != first.0 && now().1 != first.1).then_some(())).await;
    assert!(now().1.not_after_ms > first.1.not_after_ms, "the newer ends later");
    assert_eq!(world.relay.prekeys(&device), (100, true), "and nothing else was made");
}

#[tokio::test]
async fn prekeys_that_may_have_been_handed_out_before_are_published_no_more() {
    let world = World::new();
    let alice = world.register("alice").await;
    has_all_prekeys(&world, &alice).await;
    let account = alice.account().account_id;
    let before = world.relay.hand_out_prekeys(account, 1).remove(0);
    world.relay.restore();
    has_all_prekeys(&world, &alice).await;
    let since = world.relay.hand_out_prekeys(account, 100);
    assert!(since.iter().all(|prekey| !prekey.fallback && prekey.key != before.key));
}
