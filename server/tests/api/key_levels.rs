//! How keys stand: what their owner is told in its own queue, claim limits, and reconciling.

use std::time::Duration;

use openmls::prelude::{KeyPackageIn, OpenMlsProvider as _, ProtocolVersion, tls_codec::Deserialize as _};
use openmls_rust_crypto::OpenMlsRustCrypto;
use undertone_wire::{
    Bytes, ClaimedKeyPackage, Envelope, FetchResponse, Hash, KeyCounts, KeyPackageCount, Limits, ReconcileRequest,
    ReconcileResponse, path, suite,
};

use crate::support::{Backend, Device, TestRelay, both};

both! {
    an_owner_is_told_once_that_few_keys_are_left_until_it_has_taken_the_notice,
    an_owner_is_told_once_that_its_last_resort_was_handed_out,
    notices_take_no_room_of_others_and_tell_nothing_of_who_claimed,
    one_account_that_claims_too_often_gets_the_last_resort_and_others_do_not,
    an_account_whose_keys_are_claimed_too_often_answers_with_the_last_resort,
    reconciling_leaves_what_both_have,
}

const SUITE: u16 = suite::DEFAULT;

async fn claim(asking: &Device, target: &Device) -> ClaimedKeyPackage {
    asking.claim(target.account_id()).await.key_packages.remove(0)
}

/// What comes after a number, once something has come.
async fn comes(device: &Device, after: u64) -> Vec<Envelope> {
    device.long_poll(after).await.yes::<FetchResponse>().deliveries.into_iter().map(|entry| entry.envelope).collect()
}

async fn an_owner_is_told_once_that_few_keys_are_left_until_it_has_taken_the_notice(on: Backend) {
    let relay = TestRelay::with_limits(on, Limits { keys_low_at: 3, ..Limits::default() }).await;
    let (alice, bob) = (relay.device().await, relay.device().await);
    alice.stock(6).await;
    claim(&bob, &alice).await;
    claim(&bob, &alice).await;
    assert_eq!(alice.fetch(0).await.next_seq, 1, "four are left, which is enough");
    claim(&bob, &alice).await;
    let low = |one_time| Envelope::KeysLow { suite: SUITE, one_time };
    assert_eq!(comes(&alice, 0).await, [low(3)]);
    claim(&bob, &alice).await;
    assert_eq!(alice.fetch(0).await.deliveries.len(), 1, "it has not taken the first notice");

    alice.ack(1).await.done();
    claim(&bob, &alice).await;
    assert_eq!(comes(&alice, 1).await, [low(1)]);
}

async fn an_owner_is_told_once_that_its_last_resort_was_handed_out(on: Backend) {
    let relay = TestRelay::with_limits(on, Limits { keys_low_at: 0, ..Limits::default() }).await;
    let (alice, bob) = (relay.device().await, relay.device().await);
    let used = Envelope::LastResortUsed { suite: SUITE };
    claim(&bob, &alice).await;
    alice.stock(0).await;
    assert!(claim(&bob, &alice).await.last_resort);
    assert_eq!(comes(&alice, 0).await, std::slice::from_ref(&used), "and nothing when there was nothing to hand out");
    for _ in 0..5 {
        assert!(claim(&bob, &alice).await.last_resort);
    }
    alice.ack(1).await.done();
    assert!(claim(&bob, &alice).await.last_resort);
    assert_eq!(comes(&alice, 1).await, [used], "none of those in between was told");
}

async fn notices_take_no_room_of_others_and_tell_nothing_of_who_claimed(on: Backend) {
    let relay = TestRelay::with_limits(on, Limits { queue_direct_entries_max: 1, ..Limits::default() }).await;
    let (alice, bob) = (relay.device().await, relay.device().await);
    alice.stock(0).await;
    claim(&bob, &alice).await;
    comes(&alice, 0).await;
    bob.tells(&[&alice.account], b"one fits").await;
    let shares: Vec<(i64, i64, i64)> = relay
        .select(
            "SELECT e.kind, CAST(LENGTH(q.share) AS BIGINT), CAST(LENGTH(e.payload) AS BIGINT)
             FROM queue q JOIN envelopes e ON e.envelope_id = q.envelope_id ORDER BY e.envelope_id LIMIT 1",
        )
        .await;
    assert_eq!(shares, [(7, 1, 0)], "a notice of the relay's own, and empty");
}

async fn one_account_that_claims_too_often_gets_the_last_resort_and_others_do_not(on: Backend) {
    let relay = TestRelay::with_limits(on, Limits { claims_per_pair_hour_max: 2, ..Limits::default() }).await;
    let (alice, bob, carol) = (relay.device().await, relay.account(2).await, relay.device().await);
    alice.stock(10).await;
    assert!(!claim(&bob[0], &alice).await.last_resort);
    assert!(!claim(&bob[1], &alice).await.last_resort);
    for device in &bob {
        let claimed = claim(device, &alice).await;
        assert!(claimed.last_resort && claimed.key_package.is_some(), "no refusal, whichever device asks");
    }
    assert!(!claim(&carol, &alice).await.last_resort);
    assert_eq!(one_time_of(&alice).await, 7);

    relay.clock.advance(Duration::from_secs(60 * 60));
    assert!(!claim(&bob[0], &alice).await.last_resort, "an hour later it may again");
}

async fn an_account_whose_keys_are_claimed_too_often_answers_with_the_last_resort(on: Backend) {
    let relay = TestRelay::with_limits(on, Limits { claims_per_account_hour_max: 3, ..Limits::default() }).await;
    let (alice, other) = (relay.device().await, relay.device().await);
    alice.stock(10).await;
    other.stock(1).await;
    for nth in 0..5 {
        let stranger = relay.device().await;
        assert_eq!(claim(&stranger, &alice).await.last_resort, nth >= 3);
    }
    assert_eq!(one_time_of(&alice).await, 7);
    assert!(!claim(&alice, &other).await.last_resort);
}

async fn one_time_of(device: &Device) -> u64 {
    device.get(path::KEYS).await.yes::<KeyCounts>().key_packages[0].one_time
}

/// The `KeyPackageRef` of RFC 9420, section 5.2.
fn hash_ref(key_package: &Bytes) -> Hash {
    let provider = OpenMlsRustCrypto::default();
    let key_package = KeyPackageIn::tls_deserialize_exact(key_package.as_slice()).unwrap();
    let key_package = key_package.validate(provider.crypto(), ProtocolVersion::Mls10).unwrap();
    key_package.hash_ref(provider.crypto()).unwrap().as_slice().try_into().unwrap()
}

async fn reconciling_leaves_what_both_have(on: Backend) {
    let relay = TestRelay::with_limits(on, Limits { keys_low_at: 0, ..Limits::default() }).await;
    let (alice, bob) = (relay.device().await, relay.device().await);
    let one_time: Vec<_> = (0..6).map(|_| alice.key_package(false)).collect();
    let last_resort = alice.key_package(true);
    alice.publish(one_time.clone(), Some(last_resort.clone())).await.yes::<KeyCounts>();
    let claimed = claim(&bob, &alice).await.key_package.unwrap();
    let at_relay: Vec<_> = one_time.iter().filter(|key| **key != claimed).collect();
    // The device has lost two of those, has one that was handed out, and one that never arrived.
    let (lost, kept) = at_relay.split_at(2);
    let never_arrived = alice.key_package(false);
    let named = kept.iter().copied().chain([&claimed, &never_arrived, &last_resort]);
    let request = ReconcileRequest { hash_refs: named.map(hash_ref).collect() };

    let mut available: Vec<_> = kept.iter().copied().chain([&last_resort]).map(hash_ref).collect();
    available.sort_unstable();
    let key_packages = vec![KeyPackageCount { suite: SUITE, one_time: 3, last_resort: true }];
    let expected = ReconcileResponse { available, counts: KeyCounts { key_packages, ..KeyCounts::default() } };
    for _ in 0..2 {
        assert_eq!(alice.post(path::RECONCILE, &request).await.yes::<ReconcileResponse>(), expected);
    }
    for _ in 0..3 {
        let key_package = claim(&bob, &alice).await.key_package.unwrap();
        assert!(kept.contains(&&key_package) && !lost.contains(&&key_package));
    }
    assert!(claim(&bob, &alice).await.last_resort);
    let anew = alice.publish(vec![lost[0].clone()], None).await.yes::<KeyCounts>();
    assert_eq!(anew.key_packages[0].one_time, 0, "what was given up does not come back");

    let nothing = ReconcileRequest { hash_refs: vec![] };
    let agreed: ReconcileResponse = alice.post(path::RECONCILE, &nothing).await.yes();
    assert_eq!((agreed.available, agreed.counts), (vec![], KeyCounts::default()));
    assert_eq!(claim(&bob, &alice).await.key_package, None);
}
