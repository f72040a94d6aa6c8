//! Direct messages: all devices of all accounts or none, room of their own, and what is refused.

use undertone_wire::{Account as WireAccount, DirectCiphertext, ErrorCode, Limits, SendDirectRequest, SendResponse};

use crate::support::{Account, Backend, Device, Keys, Message, TestRelay, both, ciphertext_for, direct_in, scaled};

both! {
    each_device_of_each_account_gets_its_own_ciphertext,
    other_devices_than_the_listed_ones_are_refused_with_the_current_lists,
    the_senders_own_account_is_covered_and_ciphertexts_are_in_order,
    the_same_direct_message_again_has_no_second_effect,
    a_full_device_takes_no_more_and_nobody_else_gets_the_message_either,
    bytes_of_direct_messages_have_a_limit_too,
    a_strangers_messages_displace_nothing_of_groups,
    direct_messages_have_limits,
}

async fn each_device_of_each_account_gets_its_own_ciphertext(on: Backend) {
    let relay = TestRelay::start(on).await;
    let (alice, bob, carol) = (relay.account(2).await, relay.account(3).await, relay.device().await);
    alice[0].tells(&[&bob[0].account, &carol.account], b"hello").await;
    for device in alice.iter().chain(&bob).chain([&carol]) {
        let fetched = device.fetch(0).await;
        assert_eq!(direct_in(&fetched), [(1, ciphertext_for(device, b"hello"))], "the sending device included");
    }
}

/// What somebody is told whose message was not for exactly the listed devices.
async fn told_lists(sender: &Device, request: &SendDirectRequest) -> Vec<WireAccount> {
    let problem = sender.send_direct(request).await.no(ErrorCode::StaleDevices);
    problem.stale_devices
}

async fn other_devices_than_the_listed_ones_are_refused_with_the_current_lists(on: Backend) {
    let relay = TestRelay::start(on).await;
    let (alice, bob, carol) = (relay.account(2).await, relay.account(2).await, relay.device().await);
    let sender = &alice[0];
    let now: WireAccount = carol.get(&account_path(&bob[0])).await.yes();
    let with_bob_as = |keys: Vec<Keys>| {
        let as_known = Account { keys, ..bob[0].account.clone() };
        sender.direct(&[&as_known, &carol.account], b"hello")
    };

    let one_missing = with_bob_as(vec![bob[0].keys.clone()]);
    assert_eq!(told_lists(sender, &one_missing).await, std::slice::from_ref(&now));
    let mut three = [bob[0].account.keys.clone(), vec![Keys::new()]].concat();
    three.sort_by_key(|keys| keys.device_id);
    assert_eq!(told_lists(sender, &with_bob_as(three)).await, std::slice::from_ref(&now), "one that never was listed");
    assert_eq!(told_lists(sender, &with_bob_as(vec![])).await, std::slice::from_ref(&now));

    let next = bob[0].account.next(vec![bob[0].keys.clone()]);
    let unlisted = with_bob_as(bob[0].account.keys.clone());
    bob[0].put_list(&next).await.yes::<WireAccount>();
    let told = told_lists(sender, &unlisted).await;
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].device_list, next.signed_list(), "one that is no longer listed");

    let alone = Account { keys: vec![sender.keys.clone()], ..sender.account.clone() };
    let without_sibling = Device { account: alone, ..sender.clone() }.direct(&[&carol.account], b"hello");
    let told = told_lists(sender, &without_sibling).await;
    assert_eq!(told.iter().map(|account| account.account_id).collect::<Vec<_>>(), [sender.account_id()]);

    let nobody = Account::new(1);
    sender.send_direct(&sender.direct(&[&nobody], b"hello")).await.no(ErrorCode::NotFound);
    assert_eq!((relay.rows("queue").await, relay.rows("message_ids").await), (0, 0), "all or nothing");
    sender.tells(&[&next, &carol.account], b"hello").await;
    assert_eq!(relay.rows("queue").await, 4);
}

fn account_path(device: &Device) -> String {
    undertone_wire::path::fill(undertone_wire::path::ACCOUNT, device.account_id())
}

async fn the_senders_own_account_is_covered_and_ciphertexts_are_in_order(on: Backend) {
    let relay = TestRelay::start(on).await;
    let (alice, bob) = (relay.account(2).await, relay.account(2).await);
    let good = alice[0].direct(&[&bob[0].account], b"hello");
    let refused = async |change: &dyn Fn(&mut SendDirectRequest)| {
        let mut request = good.clone();
        change(&mut request);
        assert_ne!(request, good);
        alice[0].send_direct(&request).await.no(ErrorCode::Malformed);
    };
    let own = alice[0].account_id();
    refused(&|request| request.accounts.retain(|to| to.account_id != own)).await;
    refused(&|request| request.accounts.clear()).await;
    refused(&|request| request.accounts.reverse()).await;
    refused(&|request| request.accounts[1] = request.accounts[0].clone()).await;
    refused(&|request| request.accounts[0].ciphertexts.reverse()).await;
    refused(&|request| request.accounts[0].ciphertexts[1] = request.accounts[0].ciphertexts[0].clone()).await;
    assert_eq!(relay.rows("queue").await, 0);
    alice[0].send_direct(&good).await.yes::<SendResponse>();
}

async fn the_same_direct_message_again_has_no_second_effect(on: Backend) {
    let relay = TestRelay::start(on).await;
    let (alice, bob) = (relay.device().await, relay.device().await);
    let request = alice.direct(&[&bob.account], b"once");
    for _ in 0..2 {
        alice.send_direct(&request).await.yes::<SendResponse>();
    }
    let (one, two) = tokio::join!(alice.send_direct(&request), alice.send_direct(&request));
    one.yes::<SendResponse>();
    two.yes::<SendResponse>();
    let mut other = alice.direct(&[&bob.account], b"twice");
    other.message_id = request.message_id;
    alice.send_direct(&other).await.no(ErrorCode::MessageIdReused);
    let group = alice.create_group().await;
    let message = Message { id: request.message_id, ..Message::at(group, 0) };
    alice.send_message(&message).await.no(ErrorCode::MessageIdReused);
    assert_eq!((alice.fetch(0).await.next_seq, bob.fetch(0).await.next_seq), (2, 2));
}

async fn a_full_device_takes_no_more_and_nobody_else_gets_the_message_either(on: Backend) {
    let relay = TestRelay::with_limits(on, Limits { queue_direct_entries_max: 3, ..Limits::default() }).await;
    let (alice, bob, carol) = (relay.device().await, relay.account(2).await, relay.device().await);
    for nth in 0..3 {
        alice.tells(&[&bob[0].account], &[nth]).await;
        bob[1].ack_all().await;
        alice.ack_all().await;
    }
    let one_too_many = alice.direct(&[&bob[0].account, &carol.account], b"too many");
    alice.send_direct(&one_too_many).await.no(ErrorCode::QueueFull);
    let next_seqs = async || {
        let mut next_seqs = Vec::new();
        for device in [&alice, &bob[0], &bob[1], &carol] {
            next_seqs.push(device.fetch(0).await.next_seq);
        }
        next_seqs
    };
    assert_eq!(next_seqs().await, [4, 4, 4, 1], "no number was taken");
    alice.tells(&[&carol.account], b"not for the full one").await;

    bob[0].ack(1).await.done();
    alice.send_direct(&one_too_many).await.yes::<SendResponse>();
    assert_eq!(next_seqs().await, [6, 5, 5, 3], "a refusal is not remembered");
}

async fn bytes_of_direct_messages_have_a_limit_too(on: Backend) {
    let relay = TestRelay::with_limits(on, Limits { queue_direct_bytes_max: 1_000, ..Limits::default() }).await;
    let (alice, bob) = (relay.device().await, relay.device().await);
    // Sixteen bytes of each ciphertext are the device's id.
    alice.tells(&[&bob.account], &[0; 484]).await;
    alice.send_direct(&alice.direct(&[&bob.account], &[0; 485])).await.no(ErrorCode::QueueFull);
    alice.tells(&[&bob.account], &[0; 484]).await;
    alice.send_direct(&alice.direct(&[&bob.account], b"")).await.no(ErrorCode::QueueFull);
    bob.ack_all().await;
    alice.send_direct(&alice.direct(&[&bob.account], b"")).await.no(ErrorCode::QueueFull);
    alice.ack_all().await;
    alice.tells(&[&bob.account], b"").await;
}

async fn a_strangers_messages_displace_nothing_of_groups(on: Backend) {
    let (count, room) = (scaled(300, 10_000), scaled(50, 2_500));
    let limits = Limits { queue_direct_entries_max: room, queue_entries_max: room + 100, ..Limits::default() };
    let relay = TestRelay::with_limits(on, limits).await;
    let (alice, bob, stranger) = (relay.device().await, relay.device().await, relay.device().await);
    let groups = [alice.create_group_with(&[&bob]).await, alice.create_group_with(&[&bob]).await];
    for group in groups {
        for _ in 0..10 {
            alice.says(group, 1).await;
        }
    }
    let mut accepted = 0;
    for nth in 0..count {
        let request = stranger.direct(&[&bob.account], &nth.to_be_bytes());
        let reply = stranger.send_direct(&request).await;
        if reply.status.is_success() {
            accepted += 1;
        } else {
            reply.no(ErrorCode::QueueFull);
        }
        if nth % 10 == 9 {
            stranger.ack_all().await;
        }
    }
    assert_eq!(accepted, room);
    for group in groups {
        alice.says(group, 1).await;
    }
    let (mut after, mut of_groups, mut direct) = (0, 0, 0);
    loop {
        let fetched = bob.fetch(after).await;
        assert_eq!(fetched.missed, []);
        let Some(last) = fetched.deliveries.last() else { break };
        after = last.seq;
        let of_strangers = direct_in(&fetched).len() as u64;
        direct += of_strangers;
        of_groups += fetched.deliveries.len() as u64 - of_strangers;
    }
    assert_eq!((of_groups, direct), (24, room), "two Welcomes, 22 messages, and the stranger's part");
}

async fn direct_messages_have_limits(on: Backend) {
    let limits = Limits { direct_accounts_max: 2, envelope_bytes_max: 100, ..Limits::default() };
    let relay = TestRelay::with_limits(on, limits).await;
    let (alice, bob, carol) = (relay.device().await, relay.device().await, relay.device().await);
    let three = alice.direct(&[&bob.account, &carol.account], b"hello");
    let problem = alice.send_direct(&three).await.no(ErrorCode::LimitReached);
    assert_eq!(problem.limit.map(|limit| limit.name), Some("direct_accounts_max".into()));
    let mut large = alice.direct(&[&bob.account], b"hello");
    let ciphertext = |to: &DirectCiphertext| DirectCiphertext { ciphertext: vec![0; 101].into(), ..to.clone() };
    large.accounts[0].ciphertexts = large.accounts[0].ciphertexts.iter().map(ciphertext).collect();
    let problem = alice.send_direct(&large).await.no(ErrorCode::TooLarge);
    assert_eq!(problem.limit.map(|limit| limit.name), Some("envelope_bytes_max".into()));
}
