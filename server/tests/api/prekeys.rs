//! Prekeys and sealing keys: publishing, counting, claiming, reconciling.

use std::collections::HashSet;

use undertone_server::{Clock as _, SystemClock};
use undertone_wire::{
    Account as WireAccount, ClaimPrekeysRequest, Envelope, ErrorCode, FetchResponse, KeyCounts, Limits, Prekey,
    PrekeyCount, PublishPrekeysRequest, ReconcileRequest, ReconcileResponse, SealingKey, path, suite,
};

use crate::support::{Account, Backend, Device, Keys, Message, TestRelay, both};

both! {
    a_prekey_is_handed_out_once_then_the_fallback_again_and_again,
    a_claim_takes_prekeys_of_those_devices_only_that_it_names,
    thirty_two_at_once_get_twenty_different_prekeys_and_twelve_times_the_fallback,
    publishing_again_does_not_bring_a_claimed_prekey_back,
    a_sealing_key_is_everyones_until_the_next,
    what_breaks_a_rule_is_refused_and_nothing_is_stored,
    prekeys_go_with_the_device_key_that_signed_them,
    an_owner_is_told_how_its_prekeys_stand,
    reconciling_is_of_all_keys_of_a_device,
    after_a_restore_only_the_fallback_is_handed_out,
}

const DAY_MS: u64 = 24 * 60 * 60 * 1_000;

fn counted(one_time: u64, fallback: bool, sealing_key: bool) -> KeyCounts {
    KeyCounts { prekeys: PrekeyCount { one_time, fallback }, sealing_key, ..KeyCounts::default() }
}

async fn claim(asking: &Device, target: &Device) -> Option<Prekey> {
    let mut claimed = asking.claim_prekeys(&target.account).await;
    assert_eq!(claimed[0].device_id, target.id());
    claimed.remove(0).prekey
}

async fn stock(device: &Device, one_time: usize) {
    let one_time = (0..one_time).map(|_| device.prekey(false));
    device.publish_prekeys(one_time.chain([device.prekey(true)]).collect(), None).await.yes::<KeyCounts>();
}

async fn a_prekey_is_handed_out_once_then_the_fallback_again_and_again(on: Backend) {
    let relay = TestRelay::start(on).await;
    let (alice, bob) = (relay.device().await, relay.device().await);
    let prekeys = [alice.prekey(false), alice.prekey(false), alice.prekey(true)];
    let published = alice.publish_prekeys(prekeys.to_vec(), None).await.yes::<KeyCounts>();
    assert_eq!(published, counted(2, true, false));
    let mut claimed = vec![claim(&bob, &alice).await.unwrap(), claim(&bob, &alice).await.unwrap()];
    claimed.sort_by_key(|prekey| prekeys.iter().position(|published| published == prekey));
    assert_eq!(claimed, prekeys[..2]);
    assert_eq!(alice.get(path::KEYS).await.yes::<KeyCounts>(), counted(0, true, false));
    for _ in 0..2 {
        assert_eq!(claim(&bob, &alice).await.as_ref(), Some(&prekeys[2]));
    }
    let newer = alice.prekey(true);
    alice.publish_prekeys(vec![newer.clone()], None).await.yes::<KeyCounts>();
    assert_eq!(claim(&bob, &alice).await, Some(newer));
    assert_eq!(bob.get(path::KEYS).await.yes::<KeyCounts>(), KeyCounts::default());
}

async fn a_claim_takes_prekeys_of_those_devices_only_that_it_names(on: Backend) {
    let relay = TestRelay::start(on).await;
    let (alice, bob) = (relay.account(3).await, relay.device().await);
    for device in &alice[..2] {
        stock(device, 1).await;
    }
    let named = |devices| ClaimPrekeysRequest { account_id: alice[0].account_id(), devices };
    let claimed = async |request: &ClaimPrekeysRequest| {
        let answer: undertone_wire::ClaimPrekeysResponse = bob.post(path::CLAIM_PREKEYS, request).await.yes();
        answer.prekeys.into_iter().map(|claim| (claim.device_id, claim.prekey.is_some())).collect::<Vec<_>>()
    };
    let mut devices = vec![alice[1].id(), alice[2].id(), bob.id()];
    devices.sort_unstable();
    assert_eq!(claimed(&named(devices)).await, [(alice[1].id(), true), (alice[2].id(), false)]);
    assert_eq!(claimed(&named(vec![])).await, []);
    assert_eq!(alice[0].get(path::KEYS).await.yes::<KeyCounts>(), counted(1, true, false));

    let descending = named(vec![alice[1].id(), alice[0].id()]);
    bob.post(path::CLAIM_PREKEYS, &descending).await.no(ErrorCode::Malformed);
    let many = named((0..17).map(|_| Keys::new().device_id).collect());
    bob.post(path::CLAIM_PREKEYS, &many).await.no(ErrorCode::LimitReached);
    let nobody = ClaimPrekeysRequest { account_id: Account::new(1).account_id, devices: vec![] };
    bob.post(path::CLAIM_PREKEYS, &nobody).await.no(ErrorCode::NotFound);
}

async fn thirty_two_at_once_get_twenty_different_prekeys_and_twelve_times_the_fallback(on: Backend) {
    let limits = Limits { claims_per_pair_hour_max: 100, session_requests_max: 32, ..Limits::default() };
    let relay = TestRelay::with_limits(on, limits).await;
    let (alice, bob) = (relay.device().await, relay.device().await);
    stock(&alice, 20).await;
    let claims = (0..32).map(|_| {
        let (bob, alice) = (bob.clone(), alice.clone());
        tokio::spawn(async move { claim(&bob, &alice).await.expect("no empty answer") })
    });
    let claims: Vec<_> = claims.collect();
    let (mut one_time, mut fallback) = (Vec::new(), Vec::new());
    for claim in claims {
        let prekey = claim.await.unwrap();
        if prekey.fallback { fallback.push(prekey.key) } else { one_time.push(prekey.key) }
    }
    assert_eq!((one_time.len(), fallback.len()), (20, 12));
    assert_eq!(one_time.into_iter().collect::<HashSet<_>>().len(), 20);
    assert_eq!(fallback.into_iter().collect::<HashSet<_>>().len(), 1);
}

async fn publishing_again_does_not_bring_a_claimed_prekey_back(on: Backend) {
    let relay = TestRelay::start(on).await;
    let (alice, bob) = (relay.device().await, relay.device().await);
    let message_id = Message::id(SystemClock.now_ms());
    let mut request = PublishPrekeysRequest { message_id, prekeys: vec![alice.prekey(false)], sealing_key: None };
    assert_eq!(alice.post(path::PREKEYS, &request).await.yes::<KeyCounts>(), counted(1, false, false));
    assert!(claim(&bob, &alice).await.is_some());
    assert_eq!(alice.post(path::PREKEYS, &request).await.yes::<KeyCounts>(), counted(0, false, false));
    let anew = alice.publish_prekeys(request.prekeys.clone(), None).await.yes::<KeyCounts>();
    assert_eq!(anew, counted(0, false, false), "nor under another message id");
    assert_eq!(claim(&bob, &alice).await, None);
    request.prekeys.clear();
    alice.post(path::PREKEYS, &request).await.no(ErrorCode::MessageIdReused);
}

async fn a_sealing_key_is_everyones_until_the_next(on: Backend) {
    let relay = TestRelay::start(on).await;
    let (alice, bob) = (relay.account(2).await, relay.device().await);
    let of_alice = async || {
        let all = bob.sealing_keys(alice[0].account_id()).await;
        assert_eq!(all.iter().map(|one| one.device_id).collect::<Vec<_>>(), [alice[0].id(), alice[1].id()]);
        all.into_iter().map(|one| one.sealing_key).collect::<Vec<_>>()
    };
    assert_eq!(of_alice().await, [None, None]);
    let first = alice[0].sealing_key(80);
    let published = alice[0].publish_prekeys(vec![], Some(first.clone())).await.yes::<KeyCounts>();
    assert_eq!(published, counted(0, false, true));
    for _ in 0..2 {
        assert_eq!(of_alice().await, [Some(first.clone()), None]);
    }
    let next = alice[0].sealing_key(90);
    alice[0].publish_prekeys(vec![], Some(next.clone())).await.yes::<KeyCounts>();
    assert_eq!(of_alice().await, [Some(next), None]);
    let nobody = path::fill(path::SEALING_KEYS, Account::new(1).account_id);
    bob.get(&nobody).await.no(ErrorCode::NotFound);
    relay.api().get(&path::fill(path::SEALING_KEYS, alice[0].account_id())).await.no(ErrorCode::Unauthenticated);
}

async fn what_breaks_a_rule_is_refused_and_nothing_is_stored(on: Backend) {
    let relay = TestRelay::with_limits(on, Limits { one_time_keys_max: 3, ..Limits::default() }).await;
    let (alice, bob) = (relay.device().await, relay.device().await);
    let publish = |prekey| alice.publish_prekeys(vec![alice.prekey(false), prekey], None);
    publish(bob.prekey(false)).await.no(ErrorCode::BadSignature);
    publish(Prekey { fallback: true, ..alice.prekey(false) }).await.no(ErrorCode::BadSignature);
    let fallbacks = vec![alice.prekey(true), alice.prekey(true)];
    alice.publish_prekeys(fallbacks, None).await.no(ErrorCode::BadPrekey);
    let now_ms = SystemClock.now_ms();
    for until_ms in [0, now_ms + 36 * DAY_MS, now_ms + 93 * DAY_MS, u64::MAX] {
        publish(alice.prekey_living_to(until_ms, false)).await.no(ErrorCode::BadLifetime);
    }
    let seal = |sealing_key| alice.publish_prekeys(vec![alice.prekey(false)], Some(sealing_key));
    seal(bob.sealing_key(90)).await.no(ErrorCode::BadSignature);
    seal(alice.sealing_key(1)).await.no(ErrorCode::BadLifetime);
    let short = SealingKey { key: vec![1; 32].into(), ..alice.sealing_key(90) };
    seal(short).await.no(ErrorCode::BadPrekey);

    let four = (0..4).map(|_| alice.prekey(false)).collect();
    let problem = alice.publish_prekeys(four, None).await.no(ErrorCode::LimitReached);
    assert_eq!(problem.limit.map(|limit| limit.name), Some("one_time_keys_max".into()));
    assert_eq!(relay.rows("key_packages").await, 0);
    publish(alice.prekey(false)).await.yes::<KeyCounts>();
    publish(alice.prekey(false)).await.no(ErrorCode::LimitReached);
    assert_eq!(relay.rows("key_packages").await, 2);
}

async fn prekeys_go_with_the_device_key_that_signed_them(on: Backend) {
    let relay = TestRelay::start(on).await;
    let (alice, bob) = (relay.account(2).await, relay.device().await);
    for device in &alice {
        stock(device, 1).await;
        device.publish_prekeys(vec![], Some(device.sealing_key(90))).await.yes::<KeyCounts>();
    }
    let next = alice[0].account.next(vec![Keys::renewed(&alice[0].keys), alice[1].keys.clone()]);
    alice[1].put_list(&next).await.yes::<WireAccount>();
    let claimed = bob.claim_prekeys(&next).await;
    assert_eq!(claimed.iter().map(|one| one.prekey.is_some()).collect::<Vec<_>>(), [false, true]);
    let sealing = bob.sealing_keys(next.account_id).await;
    assert_eq!(sealing.iter().map(|one| one.sealing_key.is_some()).collect::<Vec<_>>(), [false, true]);

    let renewed = next.log_in_all(&relay.api()).await.remove(0);
    renewed.publish_prekeys(vec![alice[0].prekey(false)], None).await.no(ErrorCode::BadSignature);
    renewed.publish_prekeys(vec![renewed.prekey(false)], None).await.yes::<KeyCounts>();

    let last = next.next(vec![alice[1].keys.clone()]);
    alice[1].put_list(&last).await.yes::<WireAccount>();
    let mut devices = vec![alice[0].id(), alice[1].id()];
    devices.sort_unstable();
    let request = ClaimPrekeysRequest { account_id: last.account_id, devices };
    let claimed: undertone_wire::ClaimPrekeysResponse = bob.post(path::CLAIM_PREKEYS, &request).await.yes();
    assert_eq!(claimed.prekeys.iter().map(|one| one.device_id).collect::<Vec<_>>(), [alice[1].id()]);
}

async fn an_owner_is_told_how_its_prekeys_stand(on: Backend) {
    let relay = TestRelay::with_limits(on, Limits { keys_low_at: 1, ..Limits::default() }).await;
    let (alice, bob) = (relay.device().await, relay.device().await);
    alice.stock(1).await;
    stock(&alice, 2).await;
    let told = async |after| {
        let fetched: FetchResponse = alice.long_poll(after).await.yes();
        fetched.deliveries.into_iter().map(|entry| entry.envelope).collect::<Vec<_>>()
    };
    claim(&bob, &alice).await;
    assert_eq!(told(0).await, [Envelope::KeysLow { suite: suite::PREKEY, one_time: 1 }]);
    claim(&bob, &alice).await;
    assert!(claim(&bob, &alice).await.unwrap().fallback);
    assert_eq!(told(1).await, [Envelope::LastResortUsed { suite: suite::PREKEY }]);
    bob.claim(alice.account_id()).await;
    assert_eq!(told(2).await, [Envelope::KeysLow { suite: suite::DEFAULT, one_time: 0 }], "each suite by itself");
}

async fn reconciling_is_of_all_keys_of_a_device(on: Backend) {
    let relay = TestRelay::start(on).await;
    let (alice, bob) = (relay.device().await, relay.device().await);
    alice.stock(1).await;
    let (kept, lost, fallback) = (alice.prekey(false), alice.prekey(false), alice.prekey(true));
    let sealing_key = alice.sealing_key(90);
    let prekeys = vec![kept.clone(), lost.clone(), fallback.clone()];
    alice.publish_prekeys(prekeys, Some(sealing_key.clone())).await.yes::<KeyCounts>();
    let mut hash_refs =
        vec![kept.hash_ref(alice.id()), fallback.hash_ref(alice.id()), sealing_key.hash_ref(alice.id())];
    let agreed: ReconcileResponse =
        alice.post(path::RECONCILE, &ReconcileRequest { hash_refs: hash_refs.clone() }).await.yes();
    hash_refs.sort_unstable();
    assert_eq!((agreed.available, agreed.counts), (hash_refs, counted(1, true, true)));
    assert_eq!(claim(&bob, &alice).await, Some(kept));
    assert_eq!(claim(&bob, &alice).await, Some(fallback));
    let none: ReconcileResponse = alice.post(path::RECONCILE, &ReconcileRequest { hash_refs: vec![] }).await.yes();
    assert_eq!(none.counts, KeyCounts::default());
    assert_eq!(bob.sealing_keys(alice.account_id()).await[0].sealing_key, None);
}

async fn after_a_restore_only_the_fallback_is_handed_out(on: Backend) {
    let relay = TestRelay::start(on).await;
    let (alice, bob) = (relay.device().await, relay.device().await);
    stock(&alice, 2).await;
    alice.publish_prekeys(vec![], Some(alice.sealing_key(90))).await.yes::<KeyCounts>();
    let stopped = relay.stop().await;
    undertone_server::restore(&stopped.config.place).await.unwrap();
    let relay = stopped.start().await;
    let (alice, bob) = (alice.at(&relay).logged_in_again().await, bob.at(&relay).logged_in_again().await);
    assert!(claim(&bob, &alice).await.unwrap().fallback);
    assert_eq!(alice.get(path::KEYS).await.yes::<KeyCounts>(), counted(0, true, true));
    let fresh = alice.prekey(false);
    alice.publish_prekeys(vec![fresh.clone()], None).await.yes::<KeyCounts>();
    assert_eq!(claim(&bob, &alice).await, Some(fresh));
    assert!(bob.sealing_keys(alice.account_id()).await[0].sealing_key.is_some());
}
