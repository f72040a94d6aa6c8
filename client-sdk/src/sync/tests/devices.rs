//! Devices of one account among themselves, and what one that was stolen can do with what it has, while it is listed and
//! afterwards.

use openmls_rust_crypto::OpenMlsRustCrypto;
use undertone_api::RelayApi as _;
use undertone_wire::{AccountId, CommitRequest, DeviceId, GroupId, Hash, public_key};

use super::{
    now_ms, told, until,
    world::{World, is_in, online, reads},
};
use crate::{
    Client, Error, Event,
    crypto::{
        Member, Suite,
        group::{self, Change},
        key_package,
    },
    message::{Body, Content},
    store::{GroupRow, StoreError, Task},
};

/// Links a device to somebody's account.
async fn link(world: &World, name: &str, to: &Client) -> Client {
    let linking = world.builder(name).link(name).await.unwrap();
    let (code, by) = (linking.code(), to.clone());
    let approving = tokio::spawn(async move { by.approve_link(&code).await });
    let linked = linking.approved().await.unwrap().join().await.unwrap();
    approving.await.unwrap().unwrap();
    online(&linked).await;
    linked
}

/// What an account has of devices now.
async fn kept(client: &Client) -> Vec<DeviceId> {
    client.devices().await.unwrap().into_iter().map(|one| one.device_id).collect()
}

/// A device says something that no app says.
async fn says(device: &Client, to: AccountId, list_version: u64, body: Body) {
    let (id, sent_at_ms) = (device.engine().message_id().unwrap(), device.engine().clock.now_ms());
    let content = Content { id, sent_at_ms, list_version, body };
    let said = device.engine().store.with_tx(move |tx| {
        tx.add_conversation(to.into())?;
        tx.add_task(to, &Task::Send { content: content.encode() }, None, 0)?;
        Ok::<_, Error>(())
    });
    said.await.unwrap();
    assert_eq!(device.outbox_empty(super::PATIENCE).await.unwrap(), 0);
}

async fn execute(client: &Client, sql: &'static str) {
    let done =
        client.engine().store.with_tx(move |tx| tx.execute_batch(sql).map_err(|error| StoreError::from(error).into()));
    done.await.map_err(|error: Error| error).unwrap();
}

async fn said(client: &Client, with: AccountId) -> Vec<String> {
    let history = client.direct(with).history(10, None).await.unwrap();
    history.iter().map(|message| message.text().to_owned()).collect()
}

#[tokio::test]
async fn between_devices_of_one_account_a_broken_session_is_replaced_too() {
    let world = World::new();
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let of_bob = bob.account().account_id;
    let phone = link(&world, "phone", &alice).await;
    alice.direct(of_bob).send("one").await.unwrap();
    phone.direct(of_bob).send("two").await.unwrap();
    until("both to have both", async || said(&alice, of_bob).await.len() == 2 && said(&phone, of_bob).await.len() == 2)
        .await;
    until("nothing more to be on its way", async || {
        world.relay.queue_len(&alice.device_id()) + world.relay.queue_len(&phone.device_id()) == 0
    })
    .await;
    execute(&phone, "DELETE FROM sessions").await;
    alice.direct(of_bob).send("three").await.unwrap();
    until("the phone to show it", async || said(&phone, of_bob).await.contains(&"three".to_owned())).await;
    phone.direct(of_bob).send("four").await.unwrap();
    until("the other to show it", async || said(&alice, of_bob).await.len() == 4).await;
    assert!(alice.directs().await.unwrap().iter().all(|one| one.with == bob.account()), "that is nothing to be seen");
}

#[tokio::test]
async fn a_device_that_cannot_be_asked_holds_nobody_up() {
    let world = World::new();
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let (own, of_bob) = (alice.account().account_id, bob.account().account_id);
    let phone = link(&world, "phone", &alice).await;
    bob.direct(own).send("hello").await.unwrap();
    until("both to have it", async || said(&alice, of_bob).await.len() + said(&phone, of_bob).await.len() == 2).await;
    // The phone goes for so long that it has no keys left at the relay.
    let lost = phone.device_id();
    phone.shutdown().await;
    world.relay.forget_keys(&lost);
    execute(&bob, "DELETE FROM sessions; DELETE FROM seals").await;
    let of_phone = Member { account: own, device: lost };
    let asked = bob.engine().store.with_tx(move |tx| {
        let hashes = vec![Hash::of(b"something")];
        tx.add_task(own, &Task::AskAgain { of: of_phone, hashes }, None, 0)?;
        Ok::<_, Error>(())
    });
    asked.await.unwrap();
    bob.direct(own).send("can you hear me?").await.unwrap();
    until("alice to hear it", async || said(&alice, of_bob).await == ["hello", "can you hear me?"]).await;
}

#[tokio::test]
async fn the_identity_key_that_comes_next_is_never_one_that_others_have_told_of() {
    let world = World::new();
    let alice = world.register("alice").await;
    let phone = link(&world, "phone", &alice).await;
    let own = alice.account().account_id;
    let seed = [7; 32];
    for _ in 0..20 {
        says(&phone, own, 1, Body::IdentityKey { seed: seed.as_slice().into() }).await;
    }
    until("alice to have taken them", async || world.relay.queue_len(&alice.device_id()) == 0).await;
    alice.remove_stolen_device(phone.device_id(), &kept(&alice).await, None).await.unwrap();
    let list = world.relay.device_list(&own).unwrap().verify(&own).unwrap();
    assert_eq!(list.generation(), 1);
    assert_ne!(list.identity_key(), public_key(&seed));
    assert!(alice.engine().identity().has_identity_key_of(&list));
    // She goes on with the key that is her own now.
    link(&world, "tablet", &alice).await;
}

/// A device commits what no app commits.
async fn commits(device: &Client, id: GroupId, change: Change) {
    let engine = device.engine();
    let (identity, message_id) = (engine.identity(), engine.message_id().unwrap());
    let staged = engine.store.with_tx(move |tx| {
        let row = tx.group(id)?.unwrap();
        let staged = group::stage(&tx.mls(), &identity, id, row.commit_seq, &row.rejoin_key, &change, now_ms())?;
        let now = group::merge_pending(&tx.mls(), id)?.now.unwrap();
        let rejoin_key = now.rejoin_key.unwrap_or_else(|| row.rejoin_key.clone());
        tx.save_group(&GroupRow { commit_seq: row.commit_seq + 1, rejoin_key, ..row })?;
        Ok::<_, Error>(staged.unwrap())
    });
    let group::Staged { commit, welcome, sealed_group_info } = staged.await.unwrap();
    let request = &CommitRequest { message_id, commit, welcome, sealed_group_info };
    engine.signed_in(|token| async move { engine.api.commit(&token, id, request).await }).await.unwrap();
}

#[tokio::test]
async fn a_leaf_that_has_the_name_of_another_device_is_taken_out() {
    let world = World::new();
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let group = world.group(&[&alice, &bob]).await;
    let id = group[0].id();
    let (phone, tablet) = (link(&world, "phone", &alice).await, link(&world, "tablet", &alice).await);
    for device in [&phone, &tablet] {
        is_in(device, id).await;
    }
    until("all to be members", async || world.relay.group_members(&id).len() == 4).await;
    until("the phone to know", async || world.relay.queue_len(&phone.device_id()) == 0).await;
    phone.engine().stop();
    // Who has stolen the phone takes the tablet out, and in its place comes somebody with the tablet's name.
    let named = Member { account: alice.account().account_id, device: tablet.device_id() };
    commits(&phone, id, Change { remove: vec![named.device], ..Change::default() }).await;
    let impostor = phone.engine().identity().in_the_name_of(named.device);
    let made = key_package::make(&OpenMlsRustCrypto::default(), &impostor, Suite::Classic, now_ms(), false).unwrap();
    commits(&phone, id, Change { add: vec![(named, made)], ..Change::default() }).await;
    let key = impostor.mls_key();
    told(&bob, "a device that is not listed", |event| matches!(event, Event::UnlistedDevice { .. })).await;
    until("it to be taken out", async || {
        let leaves = bob.engine().store.with_tx(move |tx| Ok::<_, Error>(group::members(&tx.mls(), id)?));
        leaves.await.unwrap().get(&named) != Some(&key)
    })
    .await;
}

#[tokio::test]
async fn what_a_stolen_device_claims_of_lists_to_come_ends_with_it() {
    let world = World::new();
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let (own, of_bob) = (alice.account().account_id, bob.account().account_id);
    let group = world.group(&[&alice, &bob]).await;
    let phone = link(&world, "phone", &alice).await;
    is_in(&phone, group[0].id()).await;
    until("the phone to be a member", async || world.relay.group_members(&group[0].id()).len() == 3).await;
    let is_behind = async || {
        let known = bob.engine().store.with_tx(move |tx| tx.list_is_behind(own).map_err(Error::from));
        known.await.unwrap()
    };
    for (claimed, text, believed) in [(u64::MAX, "from never", false), (900, "from the future", true)] {
        says(&phone, of_bob, claimed, Body::Text { text: text.into() }).await;
        until("bob to have it", async || said(&bob, own).await.last().is_some_and(|last| last == text)).await;
        assert_eq!(is_behind().await, believed, "{text}");
    }
    alice.remove_device(phone.device_id()).await.unwrap();
    until("the phone's leaf to be gone", async || {
        let id = group[1].id();
        let members = bob.engine().store.with_tx(move |tx| Ok::<_, Error>(tx.members(id)?.len()));
        members.await.unwrap() == 2
    })
    .await;
    bob.direct(own).send("can you hear me?").await.unwrap();
    until("alice to hear it", async || {
        said(&alice, of_bob).await.last().is_some_and(|last| last == "can you hear me?")
    })
    .await;
    alice.direct(of_bob).send("yes").await.unwrap();
    until("bob to hear it", async || said(&bob, own).await.len() == 4).await;
    group[0].send("in the group as well").await.unwrap();
    reads(&group[1], "in the group as well").await;
}
