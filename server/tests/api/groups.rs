//! Groups: creating, the rule by which commits are accepted, leaving, and what members may read.

use undertone_wire::{
    CommitRequest, CommitResponse, CreateGroupRequest, Envelope, ErrorCode, Group, GroupCommits, GroupId, GroupList,
    GroupMembers, GroupPosition, Limits, SendResponse, StaleGroup, UnackedCommit, WelcomeParts, path,
};

use crate::support::{Account, Backend, Device, Message, TestRelay, both, bytes_of, private_message, random};

both! {
    a_group_is_created_once_and_by_one_device,
    a_commit_goes_to_those_who_were_members_and_a_welcome_to_those_it_adds,
    whoever_stands_elsewhere_is_told_where_to_find_what_it_lacks,
    of_two_commits_at_once_one_is_accepted,
    outsiders_cannot_tell_a_group_from_none,
    a_removed_device_is_told_that_it_is_no_member,
    added_devices_are_listed_and_outside_and_removed_ones_inside,
    a_welcome_has_one_entry_for_each_added_device,
    only_private_messages_of_the_right_group_and_kind_are_taken,
    groups_have_limits,
    an_account_leaves_with_all_its_devices_after_a_last_notice,
    members_read_the_commits_they_missed_page_by_page,
    the_newest_group_info_is_for_the_accounts_inside,
    a_group_above_a_lowered_limit_can_shrink_and_swap_but_not_grow,
}

fn position(epoch: u64, commit_seq: u64, members_version: u64) -> GroupPosition {
    GroupPosition { epoch, commit_seq, members_version }
}

async fn members(device: &Device, group: GroupId) -> GroupMembers {
    device.get(&path::fill(path::GROUP_MEMBERS, group)).await.yes()
}

async fn a_group_is_created_once_and_by_one_device(on: Backend) {
    let relay = TestRelay::start(on).await;
    let (alice, bob) = (relay.device().await, relay.device().await);
    let request =
        CreateGroupRequest { group_id: GroupId::from_random(random()), sealed_group_info: b"info"[..].into() };
    let created: Group = alice.post(path::GROUPS, &request).await.yes();
    assert_eq!(created.position, position(0, 0, 0));
    assert_eq!(alice.post(path::GROUPS, &request).await.yes::<Group>(), created);
    bob.post(path::GROUPS, &request).await.no(ErrorCode::GroupExists);
    alice.commit(&Message::at(request.group_id, 0).adding(&[&bob])).await.yes::<CommitResponse>();
    bob.post(path::GROUPS, &request).await.no(ErrorCode::GroupExists);
    assert_eq!(alice.post(path::GROUPS, &request).await.yes::<Group>().position, position(1, 1, 1));
    let list: GroupList = alice.get(path::GROUPS).await.yes();
    assert_eq!(list.groups.iter().map(|group| group.group_id).collect::<Vec<_>>(), [request.group_id]);
}

async fn a_commit_goes_to_those_who_were_members_and_a_welcome_to_those_it_adds(on: Backend) {
    let relay = TestRelay::start(on).await;
    let (alice, bob, carol) = (relay.device().await, relay.device().await, relay.device().await);
    let group = alice.create_group().await;
    let adds = Message::at(group, 0).adding(&[&bob, &carol]);
    assert_eq!(alice.commit(&adds).await.yes::<CommitResponse>().commit_seq, 1);

    let own = alice.fetch(0).await.deliveries;
    assert_eq!(own.len(), 1, "the author gets its own commit");
    assert_eq!(own[0].envelope, Envelope::GroupCommit { group_id: group, commit_seq: 1, commit: adds.commit() });
    for joiner in [&bob, &carol] {
        let fetched = joiner.fetch(0).await.deliveries;
        let welcome = Envelope::Welcome {
            group_id: group,
            commit_seq: 1,
            group_info: b"shared welcome"[..].into(),
            secrets: joiner.id().as_bytes()[..].into(),
        };
        assert_eq!(fetched.iter().map(|entry| &entry.envelope).collect::<Vec<_>>(), [&welcome]);
    }
    let now = members(&bob, group).await;
    assert_eq!((now.position, now.members.len()), (position(1, 1, 1), 3));
    assert!(now.members.is_sorted_by_key(|member| member.device_id));

    let removes = Message::at(group, 1).removing(&[&carol]);
    bob.commit(&removes).await.yes::<CommitResponse>();
    let last = carol.fetch(0).await.deliveries.pop().unwrap();
    assert_eq!(bytes_of(&last.envelope), removes.commit().as_slice(), "the last row of the group for the removed");
    alice.says(group, 2).await;
    assert_eq!(carol.fetch(0).await.next_seq, 3);
    assert_eq!(members(&alice, group).await.members.len(), 2);
}

async fn whoever_stands_elsewhere_is_told_where_to_find_what_it_lacks(on: Backend) {
    let relay = TestRelay::start(on).await;
    let (alice, bob) = (relay.device().await, relay.device().await);
    let group = alice.create_group_with(&[&bob]).await;
    alice.says(group, 1).await;
    alice.commit(&Message::at(group, 1)).await.yes::<CommitResponse>();
    alice.says(group, 2).await;
    alice.commit(&Message::at(group, 2)).await.yes::<CommitResponse>();

    let expected = StaleGroup {
        position: position(3, 3, 3),
        member: true,
        unacked: vec![UnackedCommit { commit_seq: 2, seq: 3 }, UnackedCommit { commit_seq: 3, seq: 5 }],
    };
    let refused = bob.send_message(&Message::at(group, 1)).await.no(ErrorCode::StaleGroup);
    assert_eq!(refused.stale_group.as_ref(), Some(&expected));
    let refused = bob.commit(&Message::at(group, 1)).await.no(ErrorCode::StaleGroup);
    assert_eq!(refused.stale_group.as_ref(), Some(&expected));
    let at_seq_3 = &bob.fetch(2).await.deliveries[0];
    assert!(matches!(at_seq_3.envelope, Envelope::GroupCommit { commit_seq: 2, .. }));

    bob.ack(3).await.done();
    let refused = bob.send_message(&Message::at(group, 1)).await.no(ErrorCode::StaleGroup);
    assert_eq!(refused.stale_group.unwrap().unacked, [UnackedCommit { commit_seq: 3, seq: 5 }]);

    let wrong_epoch = Message { epoch: 2, ..Message::at(group, 3) };
    bob.send_message(&wrong_epoch).await.no(ErrorCode::StaleGroup);
    let wrong_at = Message { epoch: 3, ..Message::at(group, 4) };
    bob.send_message(&wrong_at).await.no(ErrorCode::StaleGroup);
    bob.says(group, 3).await;
}

async fn of_two_commits_at_once_one_is_accepted(on: Backend) {
    let relay = TestRelay::start(on).await;
    let (alice, bob) = (relay.device().await, relay.device().await);
    let group = alice.create_group_with(&[&bob]).await;
    for at in 1..=10 {
        let (one, two) = (Message::at(group, at), Message::at(group, at));
        let (one, two) = tokio::join!(alice.commit(&one), bob.commit(&two));
        assert!(one.status.is_success() != two.status.is_success());
        let loser = if one.status.is_success() { two } else { one };
        let stale = loser.no(ErrorCode::StaleGroup).stale_group.unwrap();
        assert_eq!(stale.unacked.last().map(|commit| commit.commit_seq), Some(at + 1));
    }
    assert_eq!(members(&bob, group).await.position, position(11, 11, 11));
}

async fn outsiders_cannot_tell_a_group_from_none(on: Backend) {
    let relay = TestRelay::start(on).await;
    let (alice, eve) = (relay.device().await, relay.device().await);
    let group = alice.create_group().await;
    for group in [group, GroupId::from_random(random())] {
        for path in [path::GROUP, path::GROUP_MEMBERS, path::GROUP_COMMITS] {
            eve.get(&path::fill(path, group)).await.no(ErrorCode::NotFound);
        }
        eve.send_message(&Message::at(group, 0)).await.no(ErrorCode::NotFound);
        eve.commit(&Message::at(group, 0)).await.no(ErrorCode::NotFound);
        eve.leave(&Message::at(group, 0)).await.no(ErrorCode::NotFound);
    }
}

async fn a_removed_device_is_told_that_it_is_no_member(on: Backend) {
    let relay = TestRelay::start(on).await;
    let (alice, bob) = (relay.device().await, relay.device().await);
    let group = alice.create_group_with(&[&bob]).await;
    alice.commit(&Message::at(group, 1).removing(&[&bob])).await.yes::<CommitResponse>();
    let stale = bob.send_message(&Message::at(group, 1)).await.no(ErrorCode::StaleGroup).stale_group.unwrap();
    assert_eq!((stale.member, stale.unacked), (false, vec![UnackedCommit { commit_seq: 2, seq: 2 }]));
    bob.send_message(&Message::at(group, 2)).await.no(ErrorCode::StaleGroup);
    bob.get(&path::fill(path::GROUP_MEMBERS, group)).await.no(ErrorCode::NotFound);
    bob.get(&path::fill(path::GROUP, group)).await.no(ErrorCode::NotFound);

    alice.commit(&Message::at(group, 2).adding(&[&bob])).await.yes::<CommitResponse>();
    bob.says(group, 3).await;
}

async fn added_devices_are_listed_and_outside_and_removed_ones_inside(on: Backend) {
    let relay = TestRelay::start(on).await;
    let (alice, bob, carol) = (relay.device().await, relay.device().await, relay.device().await);
    let group = alice.create_group_with(&[&bob]).await;
    let unlisted = Device { keys: Account::new(1).keys.remove(0), ..bob.clone() };
    alice.commit(&Message::at(group, 1).adding(&[&unlisted])).await.no(ErrorCode::UnknownDevice);
    alice.commit(&Message::at(group, 1).adding(&[&bob])).await.no(ErrorCode::BadMessage);
    alice.commit(&Message::at(group, 1).removing(&[&carol])).await.no(ErrorCode::BadMessage);
    alice.commit(&Message::at(group, 1).removing(&[&alice])).await.no(ErrorCode::BadMessage);
    let swap = Message::at(group, 1).removing(&[&bob]).adding(&[&bob]);
    alice.commit(&swap).await.yes::<CommitResponse>();
    let kinds: Vec<_> = bob.fetch(1).await.deliveries.into_iter().map(|entry| entry.envelope).collect();
    assert!(matches!(&kinds[..], [Envelope::GroupCommit { .. }, Envelope::Welcome { .. }]), "{kinds:?}");
    bob.says(group, 2).await;
}

async fn a_welcome_has_one_entry_for_each_added_device(on: Backend) {
    let relay = TestRelay::start(on).await;
    let (alice, bob) = (relay.device().await, relay.device().await);
    let group = alice.create_group().await;
    let commits = path::fill(path::GROUP_COMMITS, group);
    let good = Message::at(group, 0).adding(&[&bob]).commit_request();
    let without = CommitRequest { welcome: None, ..good.clone() };
    alice.post(&commits, &without).await.no(ErrorCode::BadMessage);
    let parts = good.welcome.clone().unwrap();
    let empty = CommitRequest { welcome: Some(WelcomeParts { secrets: vec![], ..parts.clone() }), ..good.clone() };
    alice.post(&commits, &empty).await.no(ErrorCode::BadMessage);
    let twice = WelcomeParts { secrets: [parts.secrets.clone(), parts.secrets.clone()].concat(), ..parts.clone() };
    alice.post(&commits, &CommitRequest { welcome: Some(twice), ..good.clone() }).await.no(ErrorCode::BadMessage);
    let for_nobody = CommitRequest { welcome: Some(parts), ..Message::at(group, 0).commit_request() };
    alice.post(&commits, &for_nobody).await.no(ErrorCode::BadMessage);
    alice.post(&commits, &good).await.yes::<CommitResponse>();
}

async fn only_private_messages_of_the_right_group_and_kind_are_taken(on: Backend) {
    let relay = TestRelay::start(on).await;
    let alice = relay.device().await;
    let group = alice.create_group().await;
    let good = Message::at(group, 0);
    let data = undertone_wire::Encoding::Cbor.encode(&good.data);
    let id = group.as_bytes();
    let mut public = good.application().into_vec();
    public[3] = 1;
    let mut trailing = good.application().into_vec();
    trailing.push(0);
    let bad = [
        good.commit(),
        good.bytes(2),
        private_message(&[1; 16], 0, 1, &data, b"x"),
        private_message(id, 0, 1, b"not cbor", b"x"),
        private_message(id, 0, 1, &[], b"x"),
        Message::at(group, 0).adding(&[&alice]).application(),
        public.into(),
        trailing.into(),
        b"nothing like it"[..].into(),
    ];
    for (at, message) in bad.into_iter().enumerate() {
        let request = undertone_wire::SendRequest { message_id: good.id, ttl_s: None, message };
        let reply = alice.post(&path::fill(path::GROUP_MESSAGES, group), &request).await;
        let problem = reply.no(ErrorCode::BadMessage);
        assert!(problem.detail.is_some(), "number {at} says which rule");
    }
    let mut unsorted = good.clone();
    unsorted.data.removed = vec![alice.id(), alice.id()];
    alice.commit(&unsorted).await.no(ErrorCode::BadMessage);
    alice.send_message(&good).await.yes::<SendResponse>();
    assert_eq!(alice.fetch(0).await.next_seq, 2);
}

async fn groups_have_limits(on: Backend) {
    let limits = Limits {
        group_devices_max: 3,
        commit_added_max: 2,
        envelope_bytes_max: 1_000,
        commit_bytes_max: 1_000,
        group_info_bytes_max: 100,
        welcome_bytes_max: 100,
        welcome_secrets_bytes_max: 20,
        ..Limits::default()
    };
    let relay = TestRelay::with_limits(on, limits).await;
    let (alice, others) = (relay.device().await, relay.account(3).await);
    let group = alice.create_group().await;
    let commits = path::fill(path::GROUP_COMMITS, group);
    let three: Vec<_> = others.iter().collect();
    let limit_of = |problem: undertone_wire::Problem| problem.limit.unwrap().name;

    let adds_three = Message::at(group, 0).adding(&three);
    assert_eq!(limit_of(alice.commit(&adds_three).await.no(ErrorCode::LimitReached)), "commit_added_max");
    alice.commit(&Message::at(group, 0).adding(&three[..2])).await.yes::<CommitResponse>();
    let adds_fourth = Message::at(group, 1).adding(&three[2..]);
    assert_eq!(limit_of(alice.commit(&adds_fourth).await.no(ErrorCode::LimitReached)), "group_devices_max");
    assert_eq!(members(&alice, group).await.position, position(1, 1, 1), "a refusal leaves nothing behind");
    assert_eq!(relay.rows("commits").await, 1);

    let large = Message::at(group, 1).saying(&[0; 1_000]);
    assert_eq!(limit_of(alice.send_message(&large).await.no(ErrorCode::TooLarge)), "envelope_bytes_max");
    assert_eq!(limit_of(alice.commit(&large).await.no(ErrorCode::TooLarge)), "commit_bytes_max");
    let good = Message::at(group, 1).removing(&three[..1]).adding(&three[..1]).commit_request();
    let info = CommitRequest { sealed_group_info: vec![0; 101].into(), ..good.clone() };
    assert_eq!(limit_of(alice.post(&commits, &info).await.no(ErrorCode::TooLarge)), "group_info_bytes_max");
    let mut welcome = good.welcome.clone().unwrap();
    welcome.group_info = vec![0; 101].into();
    let shared = CommitRequest { welcome: Some(welcome), ..good.clone() };
    assert_eq!(limit_of(alice.post(&commits, &shared).await.no(ErrorCode::TooLarge)), "welcome_bytes_max");
    let mut welcome = good.welcome.clone().unwrap();
    welcome.secrets[0].secrets = vec![0; 21].into();
    let secrets = CommitRequest { welcome: Some(welcome), ..good };
    assert_eq!(limit_of(alice.post(&commits, &secrets).await.no(ErrorCode::TooLarge)), "welcome_secrets_bytes_max");
}

async fn an_account_leaves_with_all_its_devices_after_a_last_notice(on: Backend) {
    let relay = TestRelay::start(on).await;
    let (alice, bob) = (relay.device().await, relay.account(2).await);
    let group = alice.create_group_with(&[&bob[0], &bob[1]]).await;
    let notice = Message::at(group, 1);
    bob[0].leave(&notice).await.yes::<SendResponse>();
    for device in [&alice, &bob[0], &bob[1]] {
        let last = device.fetch(0).await.deliveries.pop().unwrap();
        assert_eq!(bytes_of(&last.envelope), notice.application().as_slice());
    }
    let now = members(&alice, group).await;
    assert_eq!((now.position, now.members.len()), (position(1, 1, 2), 1));
    alice.says(group, 1).await;
    assert_eq!(bob[1].fetch(0).await.deliveries.len(), 2, "nothing more after the notice");

    bob[0].leave(&notice).await.yes::<SendResponse>();
    let again = bob[0].leave(&Message::at(group, 1)).await.no(ErrorCode::StaleGroup);
    assert!(!again.stale_group.unwrap().member);
    alice.commit(&Message::at(group, 1).adding(&[&bob[0]])).await.no(ErrorCode::BadMessage);
    alice.commit(&Message::at(group, 1).removing(&[&bob[0], &bob[1]])).await.yes::<CommitResponse>();
    alice.commit(&Message::at(group, 2).adding(&[&bob[0]])).await.yes::<CommitResponse>();
    bob[0].says(group, 3).await;
}

async fn members_read_the_commits_they_missed_page_by_page(on: Backend) {
    let relay = TestRelay::with_limits(on, Limits { fetch_entries_max: 2, ..Limits::default() }).await;
    let alice = relay.device().await;
    let group = alice.create_group().await;
    let mut sent = Vec::new();
    for at in 0..5 {
        let commit = Message::at(group, at);
        alice.commit(&commit).await.yes::<CommitResponse>();
        sent.push(commit.commit());
    }
    alice.ack(5).await.done();
    let mut read = Vec::new();
    loop {
        let after = read.len();
        let page: GroupCommits =
            alice.get(&format!("{}?after={after}", path::fill(path::GROUP_COMMITS, group))).await.yes();
        if page.commits.is_empty() {
            break;
        }
        assert!(page.commits.len() <= 2);
        for commit in page.commits {
            read.push(commit.commit);
            assert_eq!(commit.commit_seq, read.len() as u64);
        }
    }
    assert_eq!(read, sent);
}

async fn the_newest_group_info_is_for_the_accounts_inside(on: Backend) {
    let relay = TestRelay::start(on).await;
    let (alice, bob, eve) = (relay.account(2).await, relay.device().await, relay.device().await);
    let group = alice[0].create_group_with(&[&bob]).await;
    for device in [&alice[0], &alice[1], &bob] {
        let group: Group = device.get(&path::fill(path::GROUP, group)).await.yes();
        assert_eq!((group.position, group.sealed_group_info.as_slice()), (position(1, 1, 1), &b"info after 0"[..]));
    }
    alice[1].get(&path::fill(path::GROUP_MEMBERS, group)).await.no(ErrorCode::NotFound);
    eve.get(&path::fill(path::GROUP, group)).await.no(ErrorCode::NotFound);
}

async fn a_group_above_a_lowered_limit_can_shrink_and_swap_but_not_grow(on: Backend) {
    let relay = TestRelay::start(on).await;
    let (others, mut alice) = (relay.account(4).await, relay.device().await);
    let group = alice.create_group_with(&[&others[0], &others[1], &others[2]]).await;
    let relay = relay.restart_with(|config| config.limits.group_devices_max = 2).await;
    alice = alice.at(&relay);
    let growing = Message::at(group, 1).adding(&[&others[3]]);
    let problem = alice.commit(&growing).await.no(ErrorCode::LimitReached);
    assert_eq!(problem.limit.map(|limit| limit.name), Some("group_devices_max".into()));
    let swapping = Message::at(group, 1).removing(&[&others[0]]).adding(&[&others[3]]);
    alice.commit(&swapping).await.yes::<CommitResponse>();
    alice.commit(&Message::at(group, 2).removing(&[&others[1]])).await.yes::<CommitResponse>();
}
