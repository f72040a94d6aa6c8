//! Key packages: publishing, counting, claiming.

use std::{collections::HashSet, time::Duration};

use openmls::prelude::{Ciphersuite, Lifetime, tls_codec::Serialize as _};
use openmls_rust_crypto::OpenMlsRustCrypto;
use undertone_server::{Clock as _, SystemClock};
use undertone_wire::{
    Account as WireAccount, ByeReason, Bytes, ClaimRequest, Envelope, ErrorCode, FetchResponse, KeyCounts,
    KeyPackageCount, Limits, PublishRequest, ServerFrame, path, suite,
};

use crate::support::{Account, Backend, Device, Keys, Message, TestRelay, both};

both! {
    what_is_published_is_counted_and_handed_out_once_then_the_last_resort_again_and_again,
    a_claim_answers_for_each_listed_device_in_order,
    key_packages_of_another_suite_are_counted_and_handed_out_apart,
    thirty_two_at_once_get_twenty_different_ones_and_twelve_times_the_last_resort,
    publishing_again_does_not_bring_a_claimed_key_back,
    a_new_last_resort_replaces_the_old_one,
    each_broken_rule_has_its_code_and_nothing_is_stored,
    the_certificate_must_be_the_listed_one,
    what_hangs_on_a_replaced_certificate_goes_with_it,
    a_certificate_that_is_issued_anew_leaves_prekeys_and_the_sealing_key,
    a_one_time_key_package_is_handed_out_once_even_if_it_is_published_anew,
    what_does_not_live_long_enough_is_not_handed_out,
}

const DAY_S: u64 = 24 * 60 * 60;

fn now_s() -> u64 {
    SystemClock.now_ms() / 1_000
}

fn counted(one_time: u64, last_resort: bool) -> KeyCounts {
    let key_packages = vec![KeyPackageCount { suite: suite::DEFAULT, one_time, last_resort }];
    KeyCounts { key_packages, ..KeyCounts::default() }
}

async fn what_is_published_is_counted_and_handed_out_once_then_the_last_resort_again_and_again(on: Backend) {
    let relay = TestRelay::start(on).await;
    let (alice, bob) = (relay.device().await, relay.device().await);
    assert_eq!(alice.get(path::KEYS).await.yes::<KeyCounts>(), KeyCounts::default());
    let one_time = [alice.key_package(false), alice.key_package(false)];
    let last_resort = alice.key_package(true);
    let published = alice.publish(one_time.to_vec(), Some(last_resort.clone())).await.yes::<KeyCounts>();
    assert_eq!(published, counted(2, true));

    let mut claimed = HashSet::new();
    for _ in 0..2 {
        let entry = bob.claim(alice.account_id()).await.key_packages.remove(0);
        assert_eq!((entry.device_id, entry.last_resort), (alice.id(), false));
        claimed.insert(entry.key_package.unwrap());
    }
    assert_eq!(claimed, one_time.into());
    assert_eq!(alice.get(path::KEYS).await.yes::<KeyCounts>(), counted(0, true));
    for _ in 0..2 {
        let entry = bob.claim(alice.account_id()).await.key_packages.remove(0);
        assert_eq!((entry.key_package.as_ref(), entry.last_resort), (Some(&last_resort), true));
    }
}

async fn a_claim_answers_for_each_listed_device_in_order(on: Backend) {
    let relay = TestRelay::start(on).await;
    let (alice, bob) = (relay.account(3).await, relay.device().await);
    alice[0].stock(1).await;
    alice[2].publish(vec![], Some(alice[2].key_package(true))).await.yes::<KeyCounts>();
    let claimed = bob.claim(alice[0].account_id()).await.key_packages;
    let ids: Vec<_> = claimed.iter().map(|entry| entry.device_id).collect();
    assert_eq!(ids, alice.iter().map(Device::id).collect::<Vec<_>>());
    let shape: Vec<_> = claimed.iter().map(|entry| (entry.key_package.is_some(), entry.last_resort)).collect();
    assert_eq!(shape, [(true, false), (false, false), (true, true)]);

    let nobody = ClaimRequest { account_id: Account::new(1).account_id, suite: suite::DEFAULT };
    bob.post(path::CLAIM, &nobody).await.no(ErrorCode::NotFound);
    for suite in [0x0001, suite::PREKEY] {
        let other = ClaimRequest { account_id: alice[0].account_id(), suite };
        bob.post(path::CLAIM, &other).await.no(ErrorCode::UnsupportedSuite);
    }
}

async fn key_packages_of_another_suite_are_counted_and_handed_out_apart(on: Backend) {
    let relay = TestRelay::start(on).await;
    let (alice, bob) = (relay.device().await, relay.device().await);
    let lifetime = Lifetime::init(now_s() - DAY_S, now_s() + 90 * DAY_S);
    let hybrid = |last_resort| {
        let (provider, suite) = (OpenMlsRustCrypto::default(), Ciphersuite::try_from(suite::HYBRID).unwrap());
        let key_package = alice.key_package_in(&provider, suite, lifetime, last_resort);
        Bytes::from(key_package.tls_serialize_detached().unwrap())
    };
    let (once, last_resort, classic) = (hybrid(false), hybrid(true), alice.key_package(false));
    let published = alice.publish(vec![once.clone(), classic.clone()], Some(last_resort.clone())).await;
    let count = |suite, one_time, last_resort| KeyPackageCount { suite, one_time, last_resort };
    let both = vec![count(suite::DEFAULT, 1, false), count(suite::HYBRID, 1, true)];
    assert_eq!(published.yes::<KeyCounts>().key_packages, both);
    for expected in [&once, &last_resort, &last_resort] {
        let entry = bob.claim_of(alice.account_id(), suite::HYBRID).await.key_packages.remove(0);
        assert_eq!((entry.key_package.as_ref(), entry.last_resort), (Some(expected), *expected == last_resort));
    }
    assert_eq!(bob.claim(alice.account_id()).await.key_packages[0].key_package, Some(classic));
    assert_eq!(alice.get(path::KEYS).await.yes::<KeyCounts>().key_packages, [count(suite::HYBRID, 0, true)]);
    // Each is told of by itself.
    let mut told = Vec::new();
    while told.len() < 3 {
        let next = alice.long_poll(told.len() as u64).await.yes::<FetchResponse>();
        told.extend(next.deliveries.into_iter().map(|entry| entry.envelope));
    }
    for suite in [suite::DEFAULT, suite::HYBRID] {
        assert!(told.contains(&Envelope::KeysLow { suite, one_time: 0 }), "{told:?}");
    }
    assert!(told.contains(&Envelope::LastResortUsed { suite: suite::HYBRID }), "{told:?}");
}

async fn thirty_two_at_once_get_twenty_different_ones_and_twelve_times_the_last_resort(on: Backend) {
    let limits = Limits { claims_per_pair_hour_max: 100, session_requests_max: 32, ..Limits::default() };
    let relay = TestRelay::with_limits(on, limits).await;
    let (alice, bob) = (relay.device().await, relay.device().await);
    alice.stock(20).await;
    let claims = (0..32).map(|_| {
        let (bob, account) = (bob.clone(), alice.account_id());
        tokio::spawn(async move { bob.claim(account).await.key_packages.remove(0) })
    });
    let claims: Vec<_> = claims.collect();
    let (mut one_time, mut last_resort) = (Vec::new(), Vec::new());
    for claim in claims {
        let entry = claim.await.unwrap();
        let key_package = entry.key_package.expect("no empty answer");
        if entry.last_resort { last_resort.push(key_package) } else { one_time.push(key_package) }
    }
    assert_eq!((one_time.len(), last_resort.len()), (20, 12));
    assert_eq!(one_time.into_iter().collect::<HashSet<_>>().len(), 20);
    assert_eq!(last_resort.into_iter().collect::<HashSet<_>>().len(), 1);
}

async fn publishing_again_does_not_bring_a_claimed_key_back(on: Backend) {
    let relay = TestRelay::start(on).await;
    let (alice, bob) = (relay.device().await, relay.device().await);
    let mut request = PublishRequest {
        message_id: Message::id(SystemClock.now_ms()),
        key_packages: vec![alice.key_package(false)],
        last_resort: Some(alice.key_package(true)),
    };
    assert_eq!(alice.post(path::KEY_PACKAGES, &request).await.yes::<KeyCounts>(), counted(1, true));
    assert!(!bob.claim(alice.account_id()).await.key_packages[0].last_resort);
    assert_eq!(alice.post(path::KEY_PACKAGES, &request).await.yes::<KeyCounts>(), counted(0, true));
    request.key_packages.clear();
    alice.post(path::KEY_PACKAGES, &request).await.no(ErrorCode::MessageIdReused);
}

async fn a_new_last_resort_replaces_the_old_one(on: Backend) {
    let relay = TestRelay::start(on).await;
    let (alice, bob) = (relay.device().await, relay.device().await);
    alice.publish(vec![], Some(alice.key_package(true))).await.yes::<KeyCounts>();
    let newer = alice.key_package(true);
    alice.publish(vec![], Some(newer.clone())).await.yes::<KeyCounts>();
    assert_eq!(bob.claim(alice.account_id()).await.key_packages[0].key_package, Some(newer));
    assert_eq!(relay.rows("key_packages").await, 1);
}

async fn each_broken_rule_has_its_code_and_nothing_is_stored(on: Backend) {
    let limits = Limits { key_package_bytes_max: 2_000, one_time_keys_max: 3, ..Limits::default() };
    let relay = TestRelay::with_limits(on, limits.clone()).await;
    let (alice, bob) = (relay.device().await, relay.device().await);
    let good = alice.key_package(false);
    let publish = |key_package| alice.publish(vec![good.clone(), key_package], None);

    let mut changed = good.clone().into_vec();
    *changed.last_mut().unwrap() ^= 1;
    publish(changed.into()).await.no(ErrorCode::BadSignature);
    let problem = publish(vec![0; 2_001].into()).await.no(ErrorCode::TooLarge);
    assert_eq!(problem.limit.map(|limit| (limit.name, limit.value)), Some(("key_package_bytes_max".into(), 2_000)));
    publish(vec![0, 1, 0, 3, 0].into()).await.no(ErrorCode::BadKeyPackage);
    publish(bob.key_package(false)).await.no(ErrorCode::BadKeyPackage);
    publish(alice.key_package(true)).await.no(ErrorCode::BadKeyPackage);
    alice.publish(vec![], Some(good.clone())).await.no(ErrorCode::BadKeyPackage);

    let provider = OpenMlsRustCrypto::default();
    let other_suite = Ciphersuite::MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519;
    let lifetime = Lifetime::init(now_s() - DAY_S, now_s() + 90 * DAY_S);
    let foreign = alice.key_package_in(&provider, other_suite, lifetime, false);
    publish(foreign.tls_serialize_detached().unwrap().into()).await.no(ErrorCode::UnsupportedSuite);

    let (min, max) = (limits.key_package_remaining_s_min, limits.key_package_lifetime_s_max);
    for (from, to) in
        [(now_s() - 60, now_s() + min - 60), (now_s() - DAY_S, now_s() + max), (now_s() - 10, now_s() - 5)]
    {
        publish(alice.key_package_living(from, to, false)).await.no(ErrorCode::BadLifetime);
    }
    let four = (0..4).map(|_| alice.key_package(false)).collect();
    let problem = alice.publish(four, None).await.no(ErrorCode::LimitReached);
    assert_eq!(problem.limit.map(|limit| limit.name), Some("one_time_keys_max".into()));
    assert_eq!(relay.rows("key_packages").await, 0);

    publish(alice.key_package(false)).await.yes::<KeyCounts>();
    alice.publish(vec![alice.key_package(false), alice.key_package(false)], None).await.no(ErrorCode::LimitReached);
    assert_eq!(relay.rows("key_packages").await, 2);
}

async fn the_certificate_must_be_the_listed_one(on: Backend) {
    let relay = TestRelay::start(on).await;
    let alice = relay.device().await;
    let next = alice.account.next(vec![Keys::renewed(&alice.keys)]);
    alice.put_list(&next).await.yes::<WireAccount>();
    let renewed = next.log_in_all(&relay.api()).await.remove(0);
    renewed.publish(vec![alice.key_package(false)], None).await.no(ErrorCode::BadKeyPackage);
    renewed.publish(vec![renewed.key_package(false)], None).await.yes::<KeyCounts>();
}

async fn what_hangs_on_a_replaced_certificate_goes_with_it(on: Backend) {
    let relay = TestRelay::start(on).await;
    let (alice, bob) = (relay.account(2).await, relay.device().await);
    alice[0].stock(2).await;
    alice[1].stock(2).await;
    let mut stream = alice[0].stream(0).await;
    stream.catches_up_to(1).await;
    let next = alice[0].account.next(vec![Keys::renewed(&alice[0].keys), alice[1].keys.clone()]);
    alice[0].put_list(&next).await.yes::<WireAccount>();

    let claimed = bob.claim(next.account_id).await.key_packages;
    let shape: Vec<_> = claimed.iter().map(|entry| (entry.device_id, entry.key_package.is_some())).collect();
    assert_eq!(shape, [(alice[0].id(), false), (alice[1].id(), true)]);
    assert_eq!(stream.next().await, Some(ServerFrame::Bye { reason: ByeReason::Unauthenticated }));
    alice[0].get(path::QUEUE).await.no(ErrorCode::Unauthenticated);
    alice[1].get(path::QUEUE).await.yes::<FetchResponse>();
}

async fn a_certificate_that_is_issued_anew_leaves_prekeys_and_the_sealing_key(on: Backend) {
    let relay = TestRelay::start(on).await;
    let (alice, bob) = (relay.device().await, relay.device().await);
    alice.stock(2).await;
    alice.publish_prekeys(vec![alice.prekey(false)], Some(alice.sealing_key(60))).await.yes::<KeyCounts>();
    let rotated = alice.account.next(vec![alice.keys.clone()]).rotated();
    alice.put_list(&rotated).await.yes::<WireAccount>();
    let counts = alice.get(path::KEYS).await.yes::<KeyCounts>();
    assert!(counts.key_packages.is_empty(), "{counts:?}");
    assert_eq!((counts.prekeys.one_time, counts.sealing_key), (1, true));
    assert!(bob.claim_prekeys(&rotated).await[0].prekey.is_some());
    // With another key set they go.
    let renewed = rotated.next(vec![Keys::renewed(&alice.keys)]);
    alice.put_list(&renewed).await.yes::<WireAccount>();
    assert_eq!(relay.rows("key_packages").await, 0);
}

async fn a_one_time_key_package_is_handed_out_once_even_if_it_is_published_anew(on: Backend) {
    let relay = TestRelay::start(on).await;
    let (alice, bob) = (relay.device().await, relay.device().await);
    let only = alice.key_package(false);
    assert_eq!(alice.publish(vec![only.clone()], None).await.yes::<KeyCounts>(), counted(1, false));
    assert_eq!(bob.claim(alice.account_id()).await.key_packages[0].key_package, Some(only.clone()));
    let anew = alice.publish(vec![only], None).await.yes::<KeyCounts>();
    assert_eq!(anew, KeyCounts::default());
    assert_eq!(bob.claim(alice.account_id()).await.key_packages[0].key_package, None);
}

async fn what_does_not_live_long_enough_is_not_handed_out(on: Backend) {
    let relay = TestRelay::start(on).await;
    let (alice, bob) = (relay.device().await, relay.device().await);
    let min = Limits::default().key_package_remaining_s_min;
    let short = alice.key_package_living(now_s() - 60, now_s() + min + DAY_S, false);
    alice.publish(vec![short], None).await.yes::<KeyCounts>();
    relay.clock.advance(Duration::from_secs(2 * DAY_S));
    assert_eq!(bob.claim(alice.account_id()).await.key_packages[0].key_package, None);
    assert_eq!(alice.get(path::KEYS).await.yes::<KeyCounts>(), KeyCounts::default());
    relay.upkeep.run().await.unwrap();
    assert_eq!(relay.rows("key_packages").await, 0);
}
