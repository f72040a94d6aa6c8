//! A hostile relay: it serves devices, keys and lists that it has made up, or that are not the newest. Each time the message
//! fails with an error of its own, nothing reaches whom the relay wants it to, and once it is honest again nothing is lost.
//!
//! `tests/unchecked/run` takes out each check in turn, and shows by these tests that what it is for succeeds then.

use undertone_wire::{
    DeviceEntry, DeviceId, DeviceList, Encoding, Envelope, KeySet, Prekey, SealingKey, SignedDeviceList, X25519Key,
};

use super::{PATIENCE, told, until, world::World};
use crate::{
    Client, Conversation, Event, MessageStatus, SendFailure,
    crypto::{
        Entropy,
        envelope::{self, Letter},
        session::OlmAccount,
        xwing::SealingSecret,
    },
};

const DAY_MS: u64 = 24 * 60 * 60 * 1_000;

/// Whether this check is taken out, so that what it is for is to succeed.
pub(super) fn is_unchecked(check: &str) -> bool {
    std::env::var_os("TEST_UNCHECKED").is_some_and(|unchecked| unchecked == check)
}

/// A device that the relay has made, with all its secrets.
struct Spy {
    device: DeviceId,
    device_seed: [u8; 32],
    sealing: SealingSecret,
    olm: OlmAccount,
    mls_seed: [u8; 32],
}

impl Spy {
    fn new() -> Self {
        let (sealing, olm) = (SealingSecret::new(Entropy::system()).unwrap(), OlmAccount::new());
        Self { device: DeviceId::from_random([0xEE; 16]), device_seed: [3; 32], sealing, olm, mls_seed: [4; 32] }
    }

    /// As it would be listed, certified by whoever has this seed.
    fn entry(&self, list: &DeviceList, identity: &[u8; 32]) -> DeviceEntry {
        let key_set = KeySet { device_key: undertone_wire::public_key(&self.device_seed), olm_key: self.olm.olm_key() };
        DeviceEntry::issue(list.account, identity, self.device, &key_set, &self.mls_seed)
    }

    /// Its keys, published as those of a device, signed by its own key.
    fn publish_as(&mut self, world: &World, device: DeviceId) {
        let not_after_ms = world.relay.time_ms() + 60 * DAY_MS;
        let key = self.olm.make_prekeys(1)[0];
        world.relay.serve_prekey(&device, &Prekey::sign(device, key, not_after_ms, true, &self.device_seed));
        let sealing_key = SealingKey::sign(device, self.sealing.public().unwrap(), not_after_ms, &self.device_seed);
        world.relay.serve_sealing_key(&device, &sealing_key);
    }

    /// Who writes, of what is in a device's queue, if the envelope opens with its key; and whether it can be decrypted.
    fn reads(&mut self, world: &World, device: DeviceId, olm_key_of_author: X25519Key) -> Vec<bool> {
        let queue = world.relay.queue(&device).into_iter().filter_map(|delivery| match delivery.envelope {
            Envelope::DirectMessage { ciphertext } => Some(ciphertext),
            _ => None,
        });
        let letters = queue.filter_map(|sealed| envelope::open(&self.sealing, device, sealed.as_slice()).ok());
        letters
            .filter_map(|letter| match letter {
                Letter::Session { message, .. } => Some(message),
                _ => None,
            })
            .map(|message| self.olm.accept(olm_key_of_author, &message.read().unwrap()).is_ok())
            .collect()
    }
}

fn decoded(list: &SignedDeviceList) -> DeviceList {
    Encoding::Cbor.decode(list.list.as_slice()).unwrap()
}

fn olm_key(client: &Client, world: &World) -> X25519Key {
    let list = decoded(&world.relay.device_list(&client.account().account_id).unwrap());
    list.devices[0].key_set().unwrap().olm_key
}

async fn said(conversation: &Conversation) -> Vec<String> {
    let history = conversation.history(100, None).await.unwrap();
    history.iter().map(|message| message.text().to_owned()).collect()
}

/// alice and bob, who have nothing to do with each other yet but for their names.
async fn two(world: &World) -> (Client, Client, Conversation, Conversation) {
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    for client in [&alice, &bob] {
        until("their keys", async || world.relay.prekeys(&client.device_id()) == (100, true)).await;
    }
    let (to_bob, to_alice) = (alice.direct(bob.account().account_id), bob.direct(alice.account().account_id));
    (alice, bob, to_bob, to_alice)
}

/// Somebody writes, and nothing is amiss.
async fn is_sent(author: &Client, to: &Conversation, text: &str) {
    let id = to.send(text).await.unwrap();
    assert!(author.message_settled(id, PATIENCE).await.unwrap().is_sent());
}

/// alice writes to bob, which fails as untrusted, until the relay is honest: then it arrives.
async fn fails_until_honest(
    alice: &Client,
    (to_bob, to_alice): (&Conversation, &Conversation),
    text: &str,
    be_honest: impl FnOnce(),
) {
    let id = to_bob.send(text).await.unwrap();
    let failed = MessageStatus::Failed(SendFailure::Untrusted);
    assert_eq!(alice.message_settled(id, PATIENCE).await.unwrap(), failed);
    be_honest();
    to_bob.retry(id).await.unwrap();
    until("it to arrive", async || said(to_alice).await.last().is_some_and(|last| last == text)).await;
}

#[tokio::test]
async fn a_device_that_the_relay_adds_is_not_written_to() {
    let world = World::new();
    let (alice, bob, to_bob, to_alice) = two(&world).await;
    let honest = world.relay.device_list(&bob.account().account_id).unwrap();
    let mut spy = Spy::new();
    let mut list = decoded(&honest);
    (list.version, list.previous) = (list.version + 1, Some(honest.hash()));
    list.devices.push(spy.entry(&list, &[9; 32]));
    list.devices.sort_by_key(|entry| entry.certificate.unverified().unwrap().device);
    world.relay.serve_list(&SignedDeviceList::sign(&list, &[9; 32]));
    spy.publish_as(&world, spy.device);
    if is_unchecked("list-signature") {
        is_sent(&alice, &to_bob, "hello").await;
        assert_eq!(spy.reads(&world, spy.device, olm_key(&alice, &world)), [true]);
        return;
    }
    let honest = || world.relay.serve_list(&honest);
    fails_until_honest(&alice, (&to_bob, &to_alice), "hello", honest).await;
    assert!(world.relay.queue(&spy.device).is_empty());
}

/// bob has listed a device that a spy got hold of, and has removed it. The list before that and the one since.
async fn removed(world: &World, bob: &Client, spy: &Spy) -> [SignedDeviceList; 2] {
    let identity = bob.engine().identity();
    let first = world.relay.device_list(&bob.account().account_id).unwrap();
    let seed = identity.seed().to_bytes().as_slice().try_into().unwrap();
    let entry = spy.entry(&decoded(&first), &seed);
    let with = identity.next_list(&first, |devices| devices.push(entry)).unwrap();
    let without = identity.next_list(&with, |devices| devices.retain(|one| !one.is_of(spy.device))).unwrap();
    [with, without]
}

#[tokio::test]
async fn a_device_that_was_removed_is_not_written_to_by_an_older_list() {
    let world = World::new();
    let (alice, bob, to_bob, to_alice) = two(&world).await;
    let mut spy = Spy::new();
    let [with, without] = removed(&world, &bob, &spy).await;
    world.relay.serve_list(&without);
    to_bob.send("hello").await.unwrap();
    until("the first", async || said(&to_alice).await == ["hello"]).await;
    world.relay.serve_list(&with);
    spy.publish_as(&world, spy.device);
    if is_unchecked("list-version") {
        is_sent(&alice, &to_bob, "secret").await;
        assert_eq!(spy.reads(&world, spy.device, olm_key(&alice, &world)), [true]);
        return;
    }
    fails_until_honest(&alice, (&to_bob, &to_alice), "secret", || world.relay.serve_list(&without)).await;
    assert!(world.relay.queue(&spy.device).is_empty());
}

#[tokio::test]
async fn a_device_that_comes_again_with_other_keys_is_not_written_to() {
    let world = World::new();
    let (alice, bob, to_bob, to_alice) = two(&world).await;
    let (lost, mut spy) = (Spy { device_seed: [6; 32], mls_seed: [7; 32], ..Spy::new() }, Spy::new());
    let [with, without] = removed(&world, &bob, &lost).await;
    world.relay.serve_list(&with);
    to_bob.send("hello").await.unwrap();
    until("the first", async || said(&to_alice).await == ["hello"]).await;
    // Whoever has bob's identity key lists it again, and has the relay keep the list in between from alice.
    let identity = bob.engine().identity();
    let seed = identity.seed().to_bytes().as_slice().try_into().unwrap();
    let entry = spy.entry(&decoded(&without), &seed);
    world.relay.serve_list(&identity.next_list(&without, |devices| devices.push(entry)).unwrap());
    spy.publish_as(&world, spy.device);
    let learned = alice.engine().learn(bob.account().account_id).await;
    if is_unchecked("device-keys") {
        assert!(learned.is_ok());
        is_sent(&alice, &to_bob, "secret").await;
        assert_eq!(spy.reads(&world, spy.device, olm_key(&alice, &world)), [true]);
        return;
    }
    assert!(learned.is_err());
    fails_until_honest(&alice, (&to_bob, &to_alice), "secret", || world.relay.serve_list(&without)).await;
    assert!(world.relay.queue(&spy.device).is_empty());
}

#[tokio::test]
async fn a_list_that_is_withheld_is_asked_for_until_it_comes() {
    let world = World::new();
    let (alice, bob, to_bob, to_alice) = two(&world).await;
    let mut spy = Spy::new();
    let [with, without] = removed(&world, &bob, &spy).await;
    world.relay.serve_list(&with);
    spy.publish_as(&world, spy.device);
    to_bob.send("hello").await.unwrap();
    until("the first", async || said(&to_alice).await == ["hello"]).await;
    // bob's stolen device is off his list, and what he writes says which list that is; the relay keeps the list from alice.
    world.relay.hold_deliveries();
    world.relay.serve_list(&without);
    bob.engine().learn(bob.account().account_id).await.unwrap();
    is_sent(&bob, &to_alice, "I have other devices now").await;
    world.relay.serve_list(&with);
    spy.publish_as(&world, spy.device);
    world.relay.release_deliveries();
    until("the second", async || said(&to_bob).await.len() == 2).await;
    if is_unchecked("list-withheld") {
        is_sent(&alice, &to_bob, "secret").await;
        assert_eq!(spy.reads(&world, spy.device, olm_key(&alice, &world)), [true]);
        return;
    }
    told(&alice, "that the list is stale", |event| matches!(event, Event::StaleDeviceList { .. })).await;
    fails_until_honest(&alice, (&to_bob, &to_alice), "secret", || world.relay.serve_list(&without)).await;
}

#[tokio::test]
async fn a_sealing_key_that_the_relay_has_made_is_not_sealed_to() {
    let world = World::new();
    let (alice, bob, to_bob, to_alice) = two(&world).await;
    let (device, mut spy) = (bob.device_id(), Spy::new());
    let (prekey, sealing_key) = (world.relay.fallback(&device).unwrap(), world.relay.sealing_key(&device).unwrap());
    world.relay.hold_deliveries();
    spy.publish_as(&world, device);
    world.relay.serve_prekey(&device, &prekey);
    if is_unchecked("sealing-key") {
        is_sent(&alice, &to_bob, "hello").await;
        assert_eq!(spy.reads(&world, device, olm_key(&alice, &world)), [false], "who writes is seen, not what");
        return;
    }
    let honest = || {
        world.relay.serve_sealing_key(&device, &sealing_key);
        world.relay.release_deliveries();
    };
    fails_until_honest(&alice, (&to_bob, &to_alice), "hello", honest).await;
}

#[tokio::test]
async fn a_prekey_that_the_relay_has_made_begins_no_session() {
    let world = World::new();
    let (alice, bob, to_bob, to_alice) = two(&world).await;
    let (device, mut spy) = (bob.device_id(), Spy::new());
    let (prekey, sealing_key) = (world.relay.fallback(&device).unwrap(), world.relay.sealing_key(&device).unwrap());
    spy.publish_as(&world, device);
    world.relay.serve_sealing_key(&device, &sealing_key);
    if is_unchecked("prekey") {
        is_sent(&alice, &to_bob, "hello").await;
        until("it to be taken", async || world.relay.queue_len(&device) == 0).await;
        assert!(said(&to_alice).await.is_empty(), "only the relay has the key by which it can be read");
        return;
    }
    fails_until_honest(&alice, (&to_bob, &to_alice), "hello", || world.relay.serve_prekey(&device, &prekey)).await;
}

#[tokio::test]
async fn a_device_of_ones_own_that_publishes_nonsense_stops_nobody() {
    let world = World::new();
    let (alice, _bob, to_bob, to_alice) = two(&world).await;
    let spy = Spy::new();
    let [with, _] = removed(&world, &alice, &spy).await;
    world.relay.serve_list(&with);
    let not_after_ms = world.relay.time_ms() + 60 * DAY_MS;
    // No point of ML-KEM's.
    let key = vec![0xFF; SealingKey::LENGTH].into();
    world.relay.serve_sealing_key(&spy.device, &SealingKey::sign(spy.device, key, not_after_ms, &spy.device_seed));
    is_sent(&alice, &to_bob, "hello").await;
    until("it to arrive", async || said(&to_alice).await == ["hello"]).await;
}

#[tokio::test]
async fn who_is_known_by_a_name_keeps_it() {
    let world = World::new();
    let (alice, bob, to_bob, to_alice) = two(&world).await;
    to_bob.send("hello").await.unwrap();
    until("the first", async || said(&to_alice).await == ["hello"]).await;
    world.relay.call(&bob.account().account_id, "mallory".parse().unwrap());
    let (contact, _) = alice.engine().learn(bob.account().account_id).await.unwrap();
    assert_eq!(contact.username.unwrap().as_str(), "mallory", "that is what the relay says");
    let known = alice.contacts().await.unwrap();
    assert!(known.iter().any(|one| one == &bob.account()), "{known:?}");
}

#[tokio::test]
async fn ciphertexts_that_are_swapped_or_come_again_change_nothing() {
    let world = World::new();
    let (alice, bob, to_bob, to_alice) = two(&world).await;
    let carol = world.register("carol").await;
    let (to_carol, of_carol) = (alice.direct(carol.account().account_id), carol.direct(alice.account().account_id));
    // What the relay gives to the other of the two, and to each once more.
    let (bobs, carols) = (bob.device_id(), carol.device_id());
    bob.shutdown().await;
    carol.shutdown().await;
    to_bob.send("to bob").await.unwrap();
    to_carol.send("to carol").await.unwrap();
    assert_eq!(alice.outbox_empty(PATIENCE).await.unwrap(), 0);
    let of = |device| world.relay.queue(device).remove(0).envelope;
    let both = [(bobs, of(&bobs), of(&carols)), (carols, of(&carols), of(&bobs))];
    for (device, own, others) in &both {
        world.relay.deliver_again(device, others);
        world.relay.deliver_again(device, own);
    }
    let (bob, carol) = (world.open("bob").await, world.open("carol").await);
    for (client, of_alice, text) in [(&bob, &to_alice, "to bob"), (&carol, &of_carol, "to carol")] {
        let here = client.direct(of_alice.id().account().unwrap());
        until("all to be taken", async || world.relay.queue_len(&client.device_id()) == 0).await;
        assert_eq!(said(&here).await, [text]);
        here.send("yes?").await.unwrap();
        assert_eq!(client.outbox_empty(PATIENCE).await.unwrap(), 0);
    }
    until("the answer", async || said(&to_bob).await == ["to bob", "yes?"]).await;
    until("the answer", async || said(&to_carol).await == ["to carol", "yes?"]).await;
}
