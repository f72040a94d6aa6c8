//! Groups with post-quantum keys: they do what others do, by key packages of their own.

use undertone::{Client, Event, Group};
use undertone_wire::suite;

use crate::world::{World, event, has_texts, joined, wait_until};

/// All key packages of the hybrid suite are at the relay.
async fn has_all_keys(world: &World, client: &Client) {
    let device = client.device_id();
    wait_until("40 hybrid key packages, a last-resort one and an empty queue", async || {
        let all = world.relay.key_packages_of(&device, suite::HYBRID) == (40, true);
        (all && world.relay.queue_len(&device) == 0).then_some(())
    })
    .await;
}

/// A post-quantum group with both in it, seen from each of them.
async fn group(alice: &Client, bob: &Client) -> [Group; 2] {
    let group = alice.create_group("ski trip").post_quantum().await.unwrap();
    group.add(bob.account().account_id).await.unwrap();
    joined(bob, group.id()).await;
    let at_bob = bob.group(group.id());
    at_bob.accept().await.unwrap();
    [group, at_bob]
}

#[tokio::test]
async fn a_post_quantum_group_is_joined_by_key_packages_of_its_own_and_used_as_others() {
    let world = World::new();
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    has_all_keys(&world, &bob).await;
    let before = world.relay.key_packages(&bob.device_id());
    let [at_alice, at_bob] = group(&alice, &bob).await;
    assert_eq!(world.relay.key_packages_of(&bob.device_id(), suite::HYBRID), (39, true));
    assert_eq!(world.relay.key_packages(&bob.device_id()), before);
    at_alice.send("from alice").await.unwrap();
    has_texts(&at_bob, &["from alice"]).await;
    at_bob.send("from bob").await.unwrap();
    has_texts(&at_alice, &["from alice", "from bob"]).await;
    at_bob.rename("sea trip").await.unwrap();
    wait_until("the new name", async || (at_alice.summary().await.unwrap().name == "sea trip").then_some(())).await;
    at_alice.remove(bob.account().account_id).await.unwrap();
    wait_until("bob to be out", async || (!at_bob.summary().await.unwrap().active).then_some(())).await;
    at_alice.add(bob.account().account_id).await.unwrap();
    joined(&bob, at_bob.id()).await;
    at_alice.send("again").await.unwrap();
    has_texts(&at_bob, &["from alice", "from bob", "again"]).await;
    for summary in [at_alice.summary().await.unwrap(), at_bob.summary().await.unwrap()] {
        assert!(summary.post_quantum);
    }
    assert!(!alice.create_group("another").await.unwrap().summary().await.unwrap().post_quantum);
}

#[tokio::test]
async fn key_packages_for_post_quantum_groups_do_not_run_out() {
    let world = World::new();
    let alice = world.register("alice").await;
    has_all_keys(&world, &alice).await;
    let (account, device) = (alice.account().account_id, alice.device_id());
    let classic = world.relay.key_packages(&device);
    world.relay.hand_out_of(account, suite::HYBRID, 19);
    assert_eq!(world.relay.key_packages_of(&device, suite::HYBRID), (21, true), "alice has not been told anything");
    world.relay.hand_out_of(account, suite::HYBRID, 1);
    has_all_keys(&world, &alice).await;
    let before = world.relay.hand_out_of(account, suite::HYBRID, 41).pop().unwrap();
    assert!(before.last_resort);
    wait_until("another last-resort key package", async || {
        let now = world.relay.last_resort_of(&device, suite::HYBRID);
        (now.is_some() && now != before.key_package).then_some(())
    })
    .await;
    has_all_keys(&world, &alice).await;
    let renewed = world.relay.hand_out_of(account, suite::HYBRID, 41).pop().unwrap();
    assert!(renewed.last_resort && renewed.key_package != before.key_package, "it was handed out, and replaced");
    assert_eq!(world.relay.key_packages(&device), classic);
}

#[tokio::test]
async fn who_has_missed_too_much_comes_back_into_a_post_quantum_group_on_their_own() {
    let world = World::new();
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let [at_alice, at_bob] = group(&alice, &bob).await;
    let device = bob.device_id();
    bob.shutdown().await;
    at_alice.rename("sea trip").await.unwrap();
    world.relay.expire_queue(&device, u64::MAX);
    world.relay.expire_commits(&at_alice.id());
    let bob = world.open("bob").await;
    let id = at_bob.id();
    event(&bob, |event| matches!(event, Event::GroupRecovered { group_id, .. } if group_id == id).then_some(())).await;
    let at_bob = bob.group(id);
    at_bob.send("back").await.unwrap();
    has_texts(&at_alice, &["back"]).await;
    at_alice.send("welcome").await.unwrap();
    has_texts(&at_bob, &["back", "welcome"]).await;
    assert!(at_bob.summary().await.unwrap().post_quantum);
}
