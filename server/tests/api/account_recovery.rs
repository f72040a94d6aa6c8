//! The recovery key: what it does for who has lost all devices, and what nobody does without it.

use std::{collections::BTreeSet, time::Duration};

use undertone_wire::{
    Account as WireAccount, ByeReason, Challenge, Envelope, ErrorCode, GroupMembers, KeyCounts, Limits, Nonce,
    RecoveryRequest, Relay, RelayId, SignedDeviceList, path,
};

use crate::{
    stream::bye,
    support::{Account, Api, Backend, Device, Keys, TestRelay, both, log_in, login_request, random},
};

both! {
    who_has_lost_all_devices_finds_the_account_and_makes_a_first_device,
    devices_that_a_recovery_leaves_out_lose_everything_at_once,
    repeating_a_recovery_changes_nothing,
    only_the_recovery_key_changes_the_identity_key_and_nothing_the_recovery_key,
    nobody_learns_what_a_recovery_lacks,
    a_challenge_is_for_one_recovery_whatever_comes_of_it,
    a_recovery_is_signed_for_one_relay_one_account_and_one_list,
    a_recoverys_list_is_held_to_what_every_list_is,
    of_many_recoveries_at_once_one_leaves_its_list,
}

/// Everybody's recovery key.
const RECOVERY: [u8; 32] = [0x52; 32];

/// The devices of a new account that names the recovery key, logged in.
async fn recoverable(relay: &TestRelay, devices: usize) -> Vec<Device> {
    Account::new(devices).recoverable(RECOVERY).register(&relay.api()).await
}

/// The account as the recovery key makes it, with new devices only.
fn recovered(account: &Account, devices: usize) -> Account {
    account.next((0..devices).map(|_| Keys::new()).collect()).rotated_by_recovery(&RECOVERY)
}

/// Another node, where there can be one.
async fn other_nodes(relay: &TestRelay, on: Backend) -> Vec<TestRelay> {
    match on {
        Backend::Sqlite => vec![],
        Backend::Postgres => vec![relay.second_node().await],
    }
}

async fn challenge(api: &Api) -> Nonce {
    api.post(path::CHALLENGE, &()).await.yes::<Challenge>().nonce
}

/// What the recovery key signs for an account.
async fn request(api: &Api, account: &Account, next: Option<&Account>, nonce: Nonce) -> RecoveryRequest {
    let relay: Relay = api.get(path::RELAY).await.yes();
    let list = next.map(Account::signed_list);
    RecoveryRequest::sign(&relay.relay_id, &account.account_id, nonce, list, &RECOVERY)
}

async fn who_has_lost_all_devices_finds_the_account_and_makes_a_first_device(on: Backend) {
    let relay = TestRelay::start(on).await;
    let lost = Account::new(2).named("alice").recoverable(RECOVERY);
    lost.try_register(&relay.api()).await.yes::<WireAccount>();
    let api = relay.api();
    let found: WireAccount = api.recover(&lost, &RECOVERY, None).await.yes();
    assert_eq!((found.account_id, found.username.as_ref()), (lost.account_id, lost.username.as_ref()));
    assert_eq!(found.device_list, lost.signed_list());

    let next = recovered(&lost, 1);
    let made: WireAccount = api.recover(&lost, &RECOVERY, Some(&next)).await.yes();
    assert_eq!(made, WireAccount { device_list: next.signed_list(), ..found });
    let device = next.log_in_all(&api).await.remove(0);
    let fetched = device.fetch(0).await;
    assert_eq!((fetched.deliveries.len(), fetched.next_seq, fetched.oldest_available), (0, 1, 1));
    let bob = relay.device().await;
    assert_eq!(bob.get(&path::fill(path::ACCOUNT, lost.account_id)).await.yes::<WireAccount>(), made);

    // The same identity key may go on as well, if it is not lost.
    let later = next.next(vec![Keys::new()]);
    api.recover(&next, &RECOVERY, Some(&later)).await.yes::<WireAccount>();
    device.get(path::QUEUE).await.no(ErrorCode::Unauthenticated);
}

async fn devices_that_a_recovery_leaves_out_lose_everything_at_once(on: Backend) {
    let relay = TestRelay::start(on).await;
    let others = other_nodes(&relay, on).await;
    let (lost, bob) = (recoverable(&relay, 2).await, relay.device().await);
    let group = bob.create_group_with(&[&lost[0], &lost[1]]).await;
    bob.says(group, 1).await;
    let alone = lost[0].create_group().await;
    for device in &lost {
        device.stock(2).await;
        device
            .publish_prekeys(vec![device.prekey(false), device.prekey(true)], Some(device.sealing_key(60)))
            .await
            .yes::<KeyCounts>();
    }
    let of_each =
        ["cursors.device_id", "devices.device_id", "key_packages.device_id", "queue.device_id", "sessions.device_id"];
    for device in &lost {
        let found = relay.store.found(device.id().as_bytes()).await;
        assert!(of_each.iter().all(|column| found.contains_key(*column)), "{found:?}");
    }
    let somewhere = others.first().unwrap_or(&relay);
    let mut streams = [lost[0].stream(0).await, lost[1].at(somewhere).stream(0).await];
    for stream in &mut streams {
        assert_eq!(stream.catches_up_to(3).await, [1, 2]);
    }

    let (account, next) = (&lost[0].account, recovered(&lost[0].account, 1));
    let signed = request(&relay.api(), account, Some(&next), challenge(&relay.api()).await).await;
    somewhere.api().post_recovery(account, &signed).await.yes::<WireAccount>();

    for stream in &mut streams {
        assert_eq!(stream.next().await, bye(ByeReason::Unauthenticated));
    }
    for device in &lost {
        device.get(path::QUEUE).await.no(ErrorCode::Unauthenticated);
        log_in(&relay.api(), &device.keys).await.no(ErrorCode::BadSignature);
        // Its leaf stands in the others' tree until a commit removes it.
        let left = ["commits.added", "envelopes.payload", "group_members.device_id"].map(String::from);
        let found: BTreeSet<_> = relay.store.found(device.id().as_bytes()).await.into_keys().collect();
        assert_eq!(found, left.into());
    }
    let members: GroupMembers = bob.get(&path::fill(path::GROUP_MEMBERS, group)).await.yes();
    assert_eq!((members.members.len(), members.position.members_version), (1, 2));
    let last = bob.fetch(0).await.deliveries.pop().unwrap().envelope;
    assert_eq!(last, Envelope::MembersGone { group_id: group, members_version: 2 }, "one notice for both devices");
    bob.get(&path::fill(path::GROUP, alone)).await.no(ErrorCode::NotFound);
    assert_eq!((relay.rows("key_packages").await, relay.rows("cursors").await, relay.rows("groups").await), (0, 2, 1));
}

async fn repeating_a_recovery_changes_nothing(on: Backend) {
    let relay = TestRelay::start(on).await;
    let lost = recoverable(&relay, 1).await.remove(0).account;
    let next = recovered(&lost, 2);
    let first: WireAccount = relay.api().recover(&lost, &RECOVERY, Some(&next)).await.yes();
    let devices = next.log_in_all(&relay.api()).await;
    let group = devices[0].create_group_with(&[&devices[1]]).await;
    let second: WireAccount = relay.api().recover(&lost, &RECOVERY, Some(&next)).await.yes();
    assert_eq!(first, second);
    devices[0].says(group, 1).await;
    assert_eq!(devices[1].fetch(0).await.deliveries.len(), 2);
}

async fn only_the_recovery_key_changes_the_identity_key_and_nothing_the_recovery_key(on: Backend) {
    let relay = TestRelay::start(on).await;
    let alice = relay.device().await;
    let named = alice.account.next(alice.account.keys.clone()).recoverable(RECOVERY);
    alice.put_list(&named).await.yes::<WireAccount>();

    let next = named.next(named.keys.clone());
    let stolen = [
        ("drops it", Account { recovery: None, ..next.clone() }),
        ("replaces it", next.clone().recoverable(random())),
        ("replaces the identity key", next.clone().rotated()),
        ("does so by another recovery key", next.clone().rotated_by_recovery(&random())),
    ];
    for (what, list) in &stolen {
        let problem = alice.put_list(list).await.no(ErrorCode::BadDeviceList);
        assert!(problem.detail.is_some_and(|detail| detail.contains("only the recovery key")), "{what}");
    }
    alice.put_list(&next).await.yes::<WireAccount>();
    let other = random();
    let rotated = next.next(next.keys.clone()).rotated_by_recovery(&RECOVERY);
    // There is one for the life of an account.
    alice.put_list(&rotated.clone().recoverable(other)).await.no(ErrorCode::BadDeviceList);
    alice.put_list(&rotated).await.yes::<WireAccount>();
    relay.api().recover(&rotated, &other, None).await.no(ErrorCode::BadSignature);
    relay.api().recover(&rotated, &RECOVERY, None).await.yes::<WireAccount>();
}

async fn nobody_learns_what_a_recovery_lacks(on: Backend) {
    let relay = TestRelay::start(on).await;
    let (alice, bob) = (recoverable(&relay, 1).await.remove(0).account, relay.device().await.account);
    let nobody = Account::new(1).recoverable(RECOVERY);
    let mut said = BTreeSet::new();
    for (account, recovery) in [(&alice, random()), (&bob, RECOVERY), (&nobody, RECOVERY)] {
        for next in [None, Some(recovered(account, 1))] {
            let reply = relay.api().recover(account, &recovery, next.as_ref()).await;
            said.insert((reply.status.as_u16(), reply.media_type.clone(), reply.body.clone()));
            reply.no(ErrorCode::BadSignature);
        }
    }
    assert_eq!(said.len(), 1, "{said:?}");
    // Nor by a list that would be refused for itself.
    let bad = Account { recovery: None, ..alice.next(vec![Keys::new()]) };
    relay.api().recover(&alice, &RECOVERY, Some(&bad)).await.no(ErrorCode::BadDeviceList);
    let reply = relay.api().recover(&alice, &random(), Some(&bad)).await;
    assert!(said.contains(&(reply.status.as_u16(), reply.media_type, reply.body)));
    assert_eq!(relay.rows("challenges").await, 0, "each was used up");
    let found: WireAccount = relay.api().recover(&alice, &RECOVERY, None).await.yes();
    assert_eq!(found.device_list, alice.signed_list());
}

async fn a_challenge_is_for_one_recovery_whatever_comes_of_it(on: Backend) {
    let relay = TestRelay::start(on).await;
    let others = other_nodes(&relay, on).await;
    let (api, elsewhere) = (relay.api(), others.first().unwrap_or(&relay).api());
    let alice = recoverable(&relay, 1).await.remove(0);
    let account = &alice.account;
    let over = async |nonce: Nonce| {
        let again = request(&api, account, None, nonce).await;
        elsewhere.post_recovery(account, &again).await.no(ErrorCode::Unauthenticated);
    };

    let nonce = challenge(&api).await;
    let read = request(&api, account, None, nonce).await;
    elsewhere.post_recovery(account, &read).await.yes::<WireAccount>();
    over(nonce).await;

    let nonce = challenge(&api).await;
    let unsigned = RecoveryRequest { signature: [0; 64].into(), ..request(&api, account, None, nonce).await };
    api.post_recovery(account, &unsigned).await.no(ErrorCode::BadSignature);
    over(nonce).await;

    let nonce = challenge(&api).await;
    let stale = request(&api, account, Some(&Account { version: 7, ..recovered(account, 1) }), nonce).await;
    api.post_recovery(account, &stale).await.no(ErrorCode::StaleDeviceList);
    over(nonce).await;

    let described: Relay = api.get(path::RELAY).await.yes();
    let of_login: Challenge = api.post(path::CHALLENGE, &()).await.yes();
    let login = login_request(&described, &alice.keys, &of_login);
    let read = request(&api, account, None, of_login.nonce).await;
    api.post_recovery(account, &read).await.yes::<WireAccount>();
    api.post(path::LOGIN, &login).await.no(ErrorCode::Unauthenticated);

    over(random::<32>().into()).await;
    let nonce = challenge(&api).await;
    relay.clock.advance(Duration::from_secs(Limits::default().challenge_ttl_s));
    over(nonce).await;

    let nonce = challenge(&api).await;
    let read = request(&api, account, None, nonce).await;
    let at_once = (0..16).map(|nth| [&api, &elsewhere][nth % 2].post_recovery(account, &read));
    let (yes, no): (Vec<_>, Vec<_>) =
        futures_util::future::join_all(at_once).await.into_iter().partition(|reply| reply.status.is_success());
    assert_eq!(yes.len(), 1);
    no.into_iter().for_each(|reply| drop(reply.no(ErrorCode::Unauthenticated)));
}

async fn a_recovery_is_signed_for_one_relay_one_account_and_one_list(on: Backend) {
    let relay = TestRelay::start(on).await;
    let api = relay.api();
    let (alice, bob) = (recoverable(&relay, 1).await.remove(0).account, recoverable(&relay, 1).await.remove(0).account);
    let (next, other) = (recovered(&alice, 1), recovered(&alice, 1));
    let signed = async |of: &Account, next: Option<&Account>| request(&api, of, next, challenge(&api).await).await;

    let (nonce, list) = (challenge(&api).await, Some(next.signed_list()));
    let elsewhere = RelayId::from_random(random());
    let elsewhere = RecoveryRequest::sign(&elsewhere, &alice.account_id, nonce, list, &RECOVERY);
    let of_bob = RecoveryRequest { device_list: Some(next.signed_list()), ..signed(&bob, Some(&next)).await };
    let swapped = RecoveryRequest { device_list: Some(other.signed_list()), ..signed(&alice, Some(&next)).await };
    let dropped = RecoveryRequest { device_list: None, ..signed(&alice, Some(&next)).await };
    let put_in = RecoveryRequest { device_list: Some(next.signed_list()), ..signed(&alice, None).await };
    let renewed = RecoveryRequest { nonce: challenge(&api).await, ..signed(&alice, Some(&next)).await };
    for request in [elsewhere, of_bob, swapped, dropped, put_in, renewed] {
        api.post_recovery(&alice, &request).await.no(ErrorCode::BadSignature);
    }
    let as_signed = signed(&alice, Some(&next)).await;
    api.post_recovery(&alice, &as_signed).await.yes::<WireAccount>();
}

async fn a_recoverys_list_is_held_to_what_every_list_is(on: Backend) {
    let relay = TestRelay::with_limits(on, Limits { account_devices_max: 2, ..Limits::default() }).await;
    let (api, alice, bob) = (relay.api(), recoverable(&relay, 1).await.remove(0), relay.device().await);
    let lost = alice.account.next(alice.account.keys.clone());
    alice.put_list(&lost).await.yes::<WireAccount>();
    let next = recovered(&lost, 1);
    let refused = [
        (recovered(&alice.account, 1), ErrorCode::StaleDeviceList),
        (Account { version: 4, ..next.clone() }, ErrorCode::StaleDeviceList),
        (recovered(&lost, 3), ErrorCode::LimitReached),
        (Account { recovery: None, ..lost.next(vec![Keys::new()]) }, ErrorCode::BadDeviceList),
        (lost.next(vec![Keys::new()]).rotated(), ErrorCode::BadDeviceList),
        (recovered(&Account::new(1), 1), ErrorCode::BadDeviceList),
        (lost.next(bob.account.keys.clone()), ErrorCode::BadDeviceList),
    ];
    for (list, code) in refused {
        api.recover(&lost, &RECOVERY, Some(&list)).await.no(code);
    }
    let nonce = challenge(&api).await;
    let relay_id = api.get(path::RELAY).await.yes::<Relay>().relay_id;
    let foreign = SignedDeviceList::sign(&next.list(), &random());
    let foreign = RecoveryRequest::sign(&relay_id, &lost.account_id, nonce, Some(foreign), &RECOVERY);
    api.post_recovery(&lost, &foreign).await.no(ErrorCode::BadSignature);

    let found: WireAccount = api.recover(&lost, &RECOVERY, None).await.yes();
    assert_eq!(found.device_list, lost.signed_list());
    assert_eq!(alice.fetch(0).await.next_seq, 1, "the device has lost nothing");
    assert_eq!(relay.rows("challenges").await, 0);
    api.recover(&lost, &RECOVERY, Some(&next)).await.yes::<WireAccount>();
}

async fn of_many_recoveries_at_once_one_leaves_its_list(on: Backend) {
    const EACH: usize = 8;
    let relay = TestRelay::start(on).await;
    let others = other_nodes(&relay, on).await;
    let nodes: Vec<_> = [&relay].into_iter().chain(&others).collect();
    let old = recoverable(&relay, 2).await;
    let (account, bob) = (&old[0].account, relay.device().await);
    let group = bob.create_group_with(&[&old[0], &old[1]]).await;
    let lists: Vec<_> = (0..2 * EACH).map(|_| recovered(account, 3)).collect();
    let at = |nth: usize| nodes[nth % nodes.len()];
    let recovering = (0..EACH).map(|nth| {
        let (api, next) = (at(nth).api(), &lists[nth]);
        async move { api.recover(account, &RECOVERY, Some(next)).await }
    });
    // A device that is about to be unlisted replaces the list too.
    let replacing = (EACH..2 * EACH).map(|nth| {
        let (device, next) = (old[nth % 2].at(at(nth)), &lists[nth]);
        async move { device.put_list(next).await }
    });
    let (recovering, replacing) =
        tokio::join!(futures_util::future::join_all(recovering), futures_util::future::join_all(replacing));

    let mut winners = vec![];
    for (nth, reply) in recovering.into_iter().chain(replacing).enumerate() {
        match reply.problem().map(|problem| problem.code) {
            None => winners.push((nth, reply.yes::<WireAccount>())),
            Some(ErrorCode::StaleDeviceList) => {}
            Some(ErrorCode::Unauthenticated) => assert!(nth >= EACH, "only who was a device has a session to lose"),
            Some(other) => panic!("{other}"),
        }
    }
    let [(winner, answered)] = winners.as_slice() else { panic!("{} lists were taken", winners.len()) };
    let winner = &lists[*winner];
    assert_eq!(answered.device_list, winner.signed_list());
    let found: WireAccount = relay.api().recover(account, &RECOVERY, None).await.yes();
    assert_eq!(found, *answered);
    let devices: Vec<(Vec<u8>,)> = relay.select("SELECT device_id FROM devices ORDER BY device_id").await;
    let expected: BTreeSet<_> =
        winner.keys.iter().map(|keys| keys.device_id).chain([bob.id()]).map(|id| id.as_bytes().to_vec()).collect();
    assert_eq!(devices.into_iter().map(|(id,)| id).collect::<BTreeSet<_>>(), expected);
    assert_eq!(winner.log_in_all(&relay.api()).await.len(), 3);
    let members: GroupMembers = bob.get(&path::fill(path::GROUP_MEMBERS, group)).await.yes();
    assert_eq!((members.members.len(), members.position.members_version), (1, 2), "they left once");
}
