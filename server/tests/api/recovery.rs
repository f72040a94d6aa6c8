//! Devices for which a group cannot go on: joining it on one's own, asking to be let in, and the group that goes on instead.

use std::time::Duration;

use undertone_wire::{
    CommitResponse, DeviceId, Envelope, ErrorCode, Group, GroupId, GroupMembers, Limits, RejoinRequest, SendResponse,
    Succession, SuccessorRequest, path,
};

use crate::support::{Backend, Device, Message, Reply, TestRelay, both, random};

both! {
    a_device_of_a_members_account_joins_on_its_own,
    who_joins_on_its_own_adds_itself_and_removes_nothing_else,
    a_device_without_a_member_of_its_account_cannot_join,
    a_device_that_joins_on_its_own_is_held_to_where_the_group_stands,
    the_others_are_asked_to_let_a_device_in_again,
    the_first_successor_of_an_epoch_is_the_one_until_it_is_replaced,
    a_successor_is_told_to_those_whom_a_commit_has_removed,
    a_successor_is_a_group_of_who_founds_it,
    who_left_is_no_member_of_what_came_after,
    successors_are_forgotten_after_the_retention_time,
}

async fn members(device: &Device, group: GroupId) -> Vec<DeviceId> {
    let members: GroupMembers = device.get(&path::fill(path::GROUP_MEMBERS, group)).await.yes();
    members.members.iter().map(|member| member.device_id).collect()
}

fn ascending(devices: &[&Device]) -> Vec<DeviceId> {
    let mut devices: Vec<_> = devices.iter().map(|device| device.id()).collect();
    devices.sort_unstable();
    devices
}

async fn newest(device: &Device) -> Envelope {
    device.fetch(0).await.deliveries.pop().unwrap().envelope
}

/// An account's two devices.
async fn siblings(relay: &TestRelay) -> (Device, Device) {
    let mut devices = relay.account(2).await;
    let other = devices.pop().unwrap();
    (devices.pop().unwrap(), other)
}

async fn ask_in(device: &Device, group: GroupId, request: &RejoinRequest) -> Reply {
    device.post(&path::fill(path::GROUP_REJOIN, group), request).await
}

fn founding(at: u64, successor: GroupId) -> SuccessorRequest {
    SuccessorRequest { message_id: Message::id(undertone_test_client::now_ms()), at, successor, replaces: None }
}

async fn succeed(device: &Device, group: GroupId, request: &SuccessorRequest) -> Reply {
    device.post(&path::fill(path::GROUP_SUCCESSOR, group), request).await
}

async fn succession(device: &Device, group: GroupId, at: u64) -> Reply {
    device.get(&format!("{}?at={at}", path::fill(path::GROUP_SUCCESSOR, group))).await
}

async fn a_device_of_a_members_account_joins_on_its_own(on: Backend) {
    let relay = TestRelay::start(on).await;
    let (phone, laptop) = siblings(&relay).await;
    let bob = relay.device().await;
    let group = phone.create_group_with(&[&bob]).await;
    let described: Group = laptop.get(&path::fill(path::GROUP, group)).await.yes();
    assert_eq!(described.position.commit_seq, 1);

    let join = Message::at(group, 1).joining(&laptop);
    assert_eq!(laptop.commit(&join).await.yes::<CommitResponse>().commit_seq, 2);
    assert_eq!(laptop.commit(&join).await.yes::<CommitResponse>().commit_seq, 2, "once");
    let commit = Envelope::GroupCommit { group_id: group, commit_seq: 2, commit: join.commit() };
    let own: Vec<_> = laptop.fetch(0).await.deliveries.into_iter().map(|one| one.envelope).collect();
    assert_eq!(own, std::slice::from_ref(&commit), "its first entry");
    for member in [&phone, &bob] {
        assert_eq!(newest(member).await, commit);
    }
    assert_eq!(members(&bob, group).await, ascending(&[&phone, &laptop, &bob]));

    // Its state is lost: it takes the place of its own leaf.
    let again = Message::at(group, 2).joining(&laptop);
    laptop.commit(&again).await.no(ErrorCode::BadMessage);
    laptop.commit(&again.removing(&[&laptop])).await.yes::<CommitResponse>();
    assert_eq!(members(&bob, group).await, ascending(&[&phone, &laptop, &bob]));
    laptop.says(group, 3).await;
    let swap = Message::at(group, 3).adding(&[&laptop]).removing(&[&laptop]);
    phone.commit(&swap).await.yes::<CommitResponse>();
}

async fn who_joins_on_its_own_adds_itself_and_removes_nothing_else(on: Backend) {
    let relay = TestRelay::start(on).await;
    let (phone, laptop) = siblings(&relay).await;
    let bob = relay.device().await;
    let group = phone.create_group_with(&[&bob]).await;
    let join = || Message::at(group, 1).joining(&laptop);
    for commit in [
        join().adding(&[&bob]),
        join().adding(&[&laptop, &bob]),
        join().adding(&[]),
        join().removing(&[&bob]),
        join().removing(&[&laptop, &bob]),
        // It has no leaf there.
        join().removing(&[&laptop]),
    ] {
        laptop.commit(&commit).await.no(ErrorCode::BadMessage);
    }
    let as_message = join().commit();
    let request = undertone_wire::SendRequest { message: as_message, ..join().send_request() };
    laptop.post(&path::fill(path::GROUP_MESSAGES, group), &request).await.no(ErrorCode::BadMessage);
    assert_eq!(members(&bob, group).await, ascending(&[&phone, &bob]));
}

async fn a_device_without_a_member_of_its_account_cannot_join(on: Backend) {
    let relay = TestRelay::start(on).await;
    let (alice, bob, eve) = (relay.device().await, relay.device().await, relay.device().await);
    let group = alice.create_group_with(&[&bob]).await;
    eve.commit(&Message::at(group, 1).joining(&eve)).await.no(ErrorCode::NotFound);
    ask_in(&eve, group, &RejoinRequest { message_id: founding(0, group).message_id }).await.no(ErrorCode::NotFound);
    eve.get(&path::fill(path::GROUP, group)).await.no(ErrorCode::NotFound);
    succession(&eve, group, 1).await.no(ErrorCode::NotFound);

    alice.commit(&Message::at(group, 1).removing(&[&bob])).await.yes::<CommitResponse>();
    let join = Message::at(group, 2).joining(&bob);
    let stale = bob.commit(&join).await.no(ErrorCode::StaleGroup).stale_group.unwrap();
    assert!(!stale.member, "who was removed is told so");
    ask_in(&bob, group, &RejoinRequest { message_id: join.id }).await.no(ErrorCode::NotFound);
    bob.get(&path::fill(path::GROUP, group)).await.no(ErrorCode::NotFound);
}

async fn a_device_that_joins_on_its_own_is_held_to_where_the_group_stands(on: Backend) {
    let relay = TestRelay::start(on).await;
    let (phone, laptop) = siblings(&relay).await;
    let group = phone.create_group().await;
    phone.commit(&Message::at(group, 0)).await.yes::<CommitResponse>();
    let stale = laptop.commit(&Message::at(group, 0).joining(&laptop)).await.no(ErrorCode::StaleGroup);
    let stale = stale.stale_group.unwrap();
    assert_eq!((stale.position.commit_seq, stale.member, stale.unacked.len()), (1, true, 0));
    laptop.commit(&Message { epoch: 0, ..Message::at(group, 1).joining(&laptop) }).await.no(ErrorCode::StaleGroup);
    laptop.commit(&Message::at(group, 1).joining(&laptop)).await.yes::<CommitResponse>();
}

async fn the_others_are_asked_to_let_a_device_in_again(on: Backend) {
    let limits = Limits { rejoins_per_group_hour_max: 2, ..Limits::default() };
    let relay = TestRelay::with_limits(on, limits).await;
    let (phone, laptop) = siblings(&relay).await;
    let bob = relay.device().await;
    let group = phone.create_group_with(&[&bob]).await;
    let request = RejoinRequest { message_id: Message::id(undertone_test_client::now_ms()) };
    for _ in 0..3 {
        ask_in(&laptop, group, &request).await.yes::<SendResponse>();
    }
    let asked = Envelope::RejoinWanted { group_id: group, account_id: laptop.account_id(), device_id: laptop.id() };
    for member in [&phone, &bob] {
        let told = member.fetch(0).await.deliveries;
        assert_eq!(told.iter().filter(|one| one.envelope == asked).count(), 1);
    }
    assert!(laptop.fetch(0).await.deliveries.is_empty());
    let others = || RejoinRequest { message_id: Message::id(undertone_test_client::now_ms()) };
    ask_in(&laptop, group, &others()).await.yes::<SendResponse>();
    let refused = ask_in(&laptop, group, &others()).await.no(ErrorCode::TooManyRequests);
    assert_eq!(refused.limit.unwrap().name, "rejoins_per_group_hour_max");
    ask_in(&phone, group, &others()).await.yes::<SendResponse>();
    ask_in(&laptop, group, &request).await.yes::<SendResponse>();
}

async fn the_first_successor_of_an_epoch_is_the_one_until_it_is_replaced(on: Backend) {
    let relay = TestRelay::with_limits(on, Limits { successors_per_group_hour_max: 3, ..Limits::default() }).await;
    let (alice, bob, mallory) = (relay.device().await, relay.device().await, relay.device().await);
    let group = alice.create_group_with(&[&bob, &mallory]).await;
    mallory.commit(&Message::at(group, 1)).await.yes::<CommitResponse>();
    let before: Succession = succession(&bob, group, 1).await.yes();
    assert_eq!((before.newest_commit_account, before.successor), (Some(mallory.account_id()), None));

    let own = mallory.create_group().await;
    succeed(&mallory, group, &founding(1, own)).await.no(ErrorCode::Malformed);
    let (one, two) = (alice.create_group().await, bob.create_group().await);
    let request = founding(1, one);
    for _ in 0..2 {
        assert_eq!(succeed(&alice, group, &request).await.yes::<Succession>().successor, Some(one));
    }
    assert_eq!(succeed(&bob, group, &founding(1, two)).await.yes::<Succession>().successor, Some(one));
    assert_eq!(succession(&bob, group, 1).await.yes::<Succession>().successor, Some(one));
    let told = Envelope::Successor { group_id: group, at: 1, successor: one };
    for member in [&alice, &bob, &mallory] {
        assert_eq!(newest(member).await, told);
    }

    // Another epoch is another question.
    assert_eq!(succession(&bob, group, 2).await.yes::<Succession>().successor, None);
    let other = SuccessorRequest { replaces: Some(GroupId::from_random(random())), ..founding(1, two) };
    assert_eq!(succeed(&bob, group, &other).await.yes::<Succession>().successor, Some(one));
    let next = SuccessorRequest { replaces: Some(one), ..founding(1, two) };
    assert_eq!(succeed(&bob, group, &next).await.yes::<Succession>().successor, Some(two));
    assert_eq!(newest(&alice).await, Envelope::Successor { group_id: group, at: 1, successor: two });
    assert_eq!(alice.fetch(0).await.deliveries.len(), 4, "two commits, two successors");
    assert_eq!(succeed(&alice, group, &request).await.yes::<Succession>().successor, Some(two), "as it is now");
}

async fn a_successor_is_told_to_those_whom_a_commit_has_removed(on: Backend) {
    let relay = TestRelay::with_limits(on, Limits { successors_per_group_hour_max: 1, ..Limits::default() }).await;
    let (alice, bob, mallory) = (relay.device().await, relay.device().await, relay.device().await);
    let carol = relay.device().await;
    let group = alice.create_group_with(&[&bob, &mallory]).await;
    let garbage = Message::at(group, 1).removing(&[&alice, &bob]).adding(&[&carol]);
    mallory.commit(&garbage).await.yes::<CommitResponse>();
    let named: Succession = succession(&bob, group, 1).await.yes();
    assert_eq!(named.newest_commit_account, Some(mallory.account_id()));
    succession(&bob, group, 2).await.no(ErrorCode::NotFound);
    succession(&carol, group, 1).await.no(ErrorCode::NotFound);
    let successor = alice.create_group().await;
    succeed(&alice, group, &founding(1, successor)).await.yes::<Succession>();
    let told = Envelope::Successor { group_id: group, at: 1, successor };
    for member in [&alice, &bob, &mallory] {
        assert_eq!(newest(member).await, told);
    }
    assert_ne!(newest(&carol).await, told, "she came later");

    let second = alice.create_group().await;
    let next = SuccessorRequest { replaces: Some(successor), ..founding(1, second) };
    let refused = succeed(&alice, group, &next).await.no(ErrorCode::TooManyRequests);
    assert_eq!(refused.limit.unwrap().name, "successors_per_group_hour_max");
    relay.clock.advance(Duration::from_secs(3_600));
    let next = SuccessorRequest { message_id: Message::id(undertone_test_client::now_ms()), ..next };
    succeed(&alice, group, &next).await.yes::<Succession>();
}

async fn a_successor_is_a_group_of_who_founds_it(on: Backend) {
    let relay = TestRelay::start(on).await;
    let (alice, bob) = (relay.device().await, relay.device().await);
    let group = alice.create_group_with(&[&bob]).await;
    let bobs = bob.create_group().await;
    for successor in [group, bobs, GroupId::from_random(random())] {
        succeed(&alice, group, &founding(1, successor)).await.no(ErrorCode::Malformed);
    }
    let mine = alice.create_group().await;
    succeed(&alice, group, &founding(7, mine)).await.yes::<Succession>();
    assert_eq!(
        newest(&bob).await,
        Envelope::Successor { group_id: group, at: 7, successor: mine },
        "ahead of the relay"
    );
}

async fn who_left_is_no_member_of_what_came_after(on: Backend) {
    let relay = TestRelay::start(on).await;
    let (alice, bob) = (relay.device().await, relay.device().await);
    let group = alice.create_group_with(&[&bob]).await;
    alice.commit(&Message::at(group, 1)).await.yes::<CommitResponse>();
    bob.leave(&Message::at(group, 2)).await.yes::<SendResponse>();
    alice.commit(&Message::at(group, 2)).await.yes::<CommitResponse>();
    let seen = async || {
        let mut seen = Vec::new();
        for at in 0..5 {
            seen.push(succession(&bob, group, at).await.status.is_success());
        }
        seen
    };
    assert_eq!(seen().await, [false, true, false, false, false]);
    alice.commit(&Message::at(group, 3).removing(&[&bob])).await.yes::<CommitResponse>();
    assert_eq!(seen().await, [false, true, false, false, false], "when his leaf is removed changes nothing");
}

async fn successors_are_forgotten_after_the_retention_time(on: Backend) {
    let relay = TestRelay::start(on).await;
    let (alice, bob) = (relay.device().await, relay.device().await);
    let group = alice.create_group_with(&[&bob]).await;
    let successor = alice.create_group().await;
    succeed(&alice, group, &founding(1, successor)).await.yes::<Succession>();
    relay.clock.advance(Duration::from_secs(29 * 24 * 3_600));
    relay.upkeep.run().await.unwrap();
    assert_eq!(relay.rows("successors").await, 1);
    relay.clock.advance(Duration::from_secs(2 * 24 * 3_600));
    relay.upkeep.run().await.unwrap();
    assert_eq!(relay.rows("successors").await, 0);
}
