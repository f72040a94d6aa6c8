//! Accounts, usernames and device lists.

use std::collections::BTreeSet;

use undertone_wire::{
    Account as WireAccount, CommitResponse, DeviceList, Envelope, ErrorCode, FetchResponse, GroupMembers, Limits,
    RegisterRequest, Relay, RelayId, SignedDeviceList, UpdateDeviceListRequest, path,
};

use crate::support::{Account, Backend, Keys, Message, TestRelay, both, log_in, random};

both! {
    registering_twice_is_registering_once,
    accounts_are_found_by_id_and_by_username,
    a_username_belongs_to_one_account_and_an_account_has_one_first_list,
    a_registration_is_signed_for_this_relay_by_the_identity_key,
    lists_have_limits,
    a_list_is_counted_before_its_signatures_are_verified,
    a_device_belongs_to_one_account,
    lists_move_forward_one_version_at_a_time,
    a_device_that_leaves_the_list_loses_everything_at_once,
    a_device_that_enters_the_list_begins_with_an_empty_queue,
    deleting_an_account_leaves_nothing_of_it,
}

async fn registering_twice_is_registering_once(on: Backend) {
    let relay = TestRelay::start(on).await;
    let account = Account::new(2).named("alice");
    let first: WireAccount = account.try_register(&relay.api()).await.yes();
    let second: WireAccount = account.try_register(&relay.api()).await.yes();
    assert_eq!(first, second);
    assert_eq!(first.device_list, account.signed_list());
    assert_eq!((relay.rows("accounts").await, relay.rows("devices").await), (1, 2));
}

async fn accounts_are_found_by_id_and_by_username(on: Backend) {
    let relay = TestRelay::start(on).await;
    let alice = Account::new(1).named("alice").register(&relay.api()).await.remove(0);
    let bob = relay.device().await;
    let by_name: WireAccount = bob.get(&path::fill(path::USERNAME, "ALICE")).await.yes();
    let by_id: WireAccount = bob.get(&path::fill(path::ACCOUNT, alice.account_id())).await.yes();
    assert_eq!(by_name, by_id);
    assert_eq!(by_id.device_list, alice.account.signed_list());
    bob.get(&path::fill(path::USERNAME, "nobody")).await.no(ErrorCode::NotFound);
    bob.get(&path::fill(path::ACCOUNT, Account::new(1).account_id)).await.no(ErrorCode::NotFound);
    relay.api().get(&path::fill(path::USERNAME, "alice")).await.no(ErrorCode::Unauthenticated);
}

async fn a_username_belongs_to_one_account_and_an_account_has_one_first_list(on: Backend) {
    let relay = TestRelay::start(on).await;
    let alice = Account::new(1).named("alice");
    alice.try_register(&relay.api()).await.yes::<WireAccount>();
    Account::new(1).named("alice").try_register(&relay.api()).await.no(ErrorCode::UsernameTaken);
    let renamed = alice.clone().named("alicia");
    renamed.try_register(&relay.api()).await.no(ErrorCode::AccountExists);
    let other_list = Account { keys: Account::new(1).keys, ..alice };
    other_list.try_register(&relay.api()).await.no(ErrorCode::AccountExists);
}

async fn a_registration_is_signed_for_this_relay_by_the_identity_key(on: Backend) {
    let relay = TestRelay::start(on).await;
    let api = relay.api();
    let described: Relay = api.get(path::RELAY).await.yes();
    let account = Account::new(1).named("alice");

    let renamed = RegisterRequest { username: None, ..account.registration(&described) };
    api.post(path::ACCOUNTS, &renamed).await.no(ErrorCode::BadSignature);
    let elsewhere = Relay { relay_id: RelayId::from_random(random()), ..described.clone() };
    api.post(path::ACCOUNTS, &account.registration(&elsewhere)).await.no(ErrorCode::BadSignature);
    let foreign = SignedDeviceList::sign(&account.list(), &random());
    let unsigned = RegisterRequest { device_list: foreign, ..account.registration(&described) };
    api.post(path::ACCOUNTS, &unsigned).await.no(ErrorCode::BadSignature);
    let other_account = RegisterRequest { account_id: Account::new(1).account_id, ..account.registration(&described) };
    api.post(path::ACCOUNTS, &other_account).await.no(ErrorCode::BadDeviceList);
    let second = Account { version: 2, ..account };
    second.try_register(&api).await.no(ErrorCode::BadDeviceList);
    assert_eq!(relay.rows("accounts").await, 0);
}

async fn lists_have_limits(on: Backend) {
    let limits = Limits { account_devices_max: 2, device_list_bytes_max: 2_000, ..Limits::default() };
    let relay = TestRelay::with_limits(on, limits).await;
    let problem = Account::new(3).try_register(&relay.api()).await.no(ErrorCode::LimitReached);
    assert_eq!(problem.limit.map(|limit| (limit.name, limit.value)), Some(("account_devices_max".into(), 2)));
    let problem = Account::new(9).try_register(&relay.api()).await.no(ErrorCode::TooLarge);
    assert_eq!(problem.limit.map(|limit| limit.name), Some("device_list_bytes_max".into()));
}

async fn a_list_is_counted_before_its_signatures_are_verified(on: Backend) {
    let relay = TestRelay::with_limits(on, Limits { account_devices_max: 2, ..Limits::default() }).await;
    let described: Relay = relay.api().get(path::RELAY).await.yes();
    let account = Account::new(3);
    let badly_signed = SignedDeviceList::sign(&account.list(), &random());
    let request = RegisterRequest { device_list: badly_signed, ..account.registration(&described) };
    relay.api().post(path::ACCOUNTS, &request).await.no(ErrorCode::LimitReached);
}

async fn a_device_belongs_to_one_account(on: Backend) {
    let relay = TestRelay::start(on).await;
    let alice = Account::new(1);
    alice.try_register(&relay.api()).await.yes::<WireAccount>();
    let thief = Account { keys: alice.keys.clone(), ..Account::new(1) };
    thief.try_register(&relay.api()).await.no(ErrorCode::BadDeviceList);
    assert_eq!(relay.rows("accounts").await, 1);
}

async fn lists_move_forward_one_version_at_a_time(on: Backend) {
    let relay = TestRelay::start(on).await;
    let alice = relay.account(2).await.remove(0);
    let next = alice.account.next(alice.account.keys.clone());
    let put: WireAccount = alice.put_list(&next).await.yes();
    assert_eq!(put.device_list, next.signed_list());
    assert_eq!(alice.put_list(&next).await.yes::<WireAccount>(), put, "repeating changes nothing");

    alice.put_list(&alice.account).await.no(ErrorCode::StaleDeviceList);
    let rival = Account { previous: next.previous, ..alice.account.next(vec![alice.keys.clone()]) };
    alice.put_list(&rival).await.no(ErrorCode::StaleDeviceList);
    let skipping = Account { version: 4, ..next.next(next.keys.clone()) };
    alice.put_list(&skipping).await.no(ErrorCode::StaleDeviceList);
    let empty = DeviceList { version: 3, devices: vec![], ..next.list() };
    let empty = SignedDeviceList::sign(&empty, &next.identity);
    alice.put(path::OWN_DEVICES, &UpdateDeviceListRequest { device_list: empty }).await.no(ErrorCode::BadDeviceList);
}

async fn a_device_that_leaves_the_list_loses_everything_at_once(on: Backend) {
    let relay = TestRelay::start(on).await;
    let mut devices = relay.account(2).await;
    let (lost, kept) = (devices.remove(1), devices.remove(0));
    let bob = relay.device().await;
    lost.stock(2).await;
    let group = bob.create_group_with(&[&lost, &kept]).await;
    bob.says(group, 1).await;
    assert_eq!(lost.fetch(0).await.deliveries.len(), 2);

    kept.put_list(&kept.account.next(vec![kept.keys.clone()])).await.yes::<WireAccount>();

    lost.get(path::QUEUE).await.no(ErrorCode::Unauthenticated);
    log_in(&relay.api(), &lost.keys).await.no(ErrorCode::BadSignature);
    let members: GroupMembers = bob.get(&path::fill(path::GROUP_MEMBERS, group)).await.yes();
    assert!(members.members.iter().all(|member| member.device_id != lost.id()));
    assert_eq!((members.members.len(), members.position.members_version), (2, 2));
    assert_eq!((relay.rows("key_packages").await, relay.rows("cursors").await), (0, 2));
    for member in [&bob, &kept] {
        let last = member.fetch(0).await.deliveries.pop().unwrap().envelope;
        assert_eq!(last, Envelope::MembersGone { group_id: group, members_version: 2 });
    }

    // Its leaf still stands in the tree, and a commit may take it away.
    let removal = Message::at(group, 1).removing(&[&lost]);
    assert_eq!(bob.commit(&removal).await.yes::<CommitResponse>().commit_seq, 2);
    let again = Message::at(group, 2).removing(&[&lost]);
    bob.commit(&again).await.no(ErrorCode::BadMessage);
}

async fn a_device_that_enters_the_list_begins_with_an_empty_queue(on: Backend) {
    let relay = TestRelay::start(on).await;
    let alice = relay.device().await;
    let mut keys = alice.account.keys.clone();
    keys.push(Keys::new());
    let next = alice.account.next(keys);
    alice.put_list(&next).await.yes::<WireAccount>();
    for device in next.log_in_all(&relay.api()).await {
        let fetched = device.fetch(0).await;
        assert_eq!((fetched.deliveries.len(), fetched.next_seq, fetched.oldest_available), (0, 1, 1));
    }
    alice.get(path::QUEUE).await.yes::<FetchResponse>();
}

/// Where in the store some bytes are, as `table.column`.
async fn found_in(relay: &TestRelay, bytes: &[u8]) -> BTreeSet<String> {
    relay.store.found(bytes).await.into_keys().collect()
}

async fn deleting_an_account_leaves_nothing_of_it(on: Backend) {
    let relay = TestRelay::start(on).await;
    let devices = Account::new(2).named("alice").register(&relay.api()).await;
    let (alice, sibling) = (&devices[0], &devices[1]);
    alice.stock(3).await;
    let bob = relay.device().await;
    let alone = sibling.create_group().await;
    let shared = bob.create_group_with(&[alice, sibling]).await;
    alice.commit(&Message::at(shared, 1)).await.yes::<CommitResponse>();
    bob.says(shared, 2).await;
    let account_columns = ["accounts.account_id", "device_lists.account_id", "devices.account_id"];
    let found = found_in(&relay, alice.account_id().as_bytes()).await;
    assert!(account_columns.iter().all(|column| found.contains(*column)), "{found:?}");
    assert!(found.contains("groups.newest_commit_account") && found.contains("key_packages.key_package"));

    alice.delete(path::OWN_ACCOUNT).await.done();

    for device in &devices {
        device.get(path::QUEUE).await.no(ErrorCode::Unauthenticated);
        // Its leaf stands in the others' tree until a commit removes it, and the commit that added it, whose bytes say so
        // too, is kept for members who missed it.
        let left = ["commits.added", "envelopes.payload", "group_members.device_id"].map(String::from);
        assert_eq!(found_in(&relay, device.id().as_bytes()).await, left.into());
    }
    assert_eq!(found_in(&relay, alice.account_id().as_bytes()).await, BTreeSet::new());
    for table in ["accounts", "devices", "device_lists", "sessions", "cursors", "groups"] {
        assert_eq!(relay.rows(table).await, 1, "{table} holds bob's only");
    }
    assert_eq!(relay.rows("key_packages").await, 0);
    bob.get(&path::fill(path::GROUP, alone)).await.no(ErrorCode::NotFound);
    let last = bob.fetch(0).await.deliveries.pop().unwrap().envelope;
    assert_eq!(last, Envelope::MembersGone { group_id: shared, members_version: 3 }, "one notice for both devices");

    bob.commit(&Message::at(shared, 2).removing(&[alice, sibling])).await.yes::<CommitResponse>();
    Account::new(1).named("alice").try_register(&relay.api()).await.yes::<WireAccount>();
}
