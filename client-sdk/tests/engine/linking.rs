//! Linking and removing devices: a new one has everything but the history, at once; a removed one has nothing more.

use std::sync::{Arc, atomic::Ordering::SeqCst};

use undertone::{
    Approval, Client, ClientBuilder, Clock as _, Connection, Conversation, DeviceId, Error, Event, Group, NotLinked,
    StoreAt, StoreKey, SystemClock, api::fake::FastClock,
};

use crate::world::{World, event, has_texts, joined, online, wait_until};

/// Linking waits by the clock.
const SPEED: u32 = 20;

fn builder(world: &World, name: &str) -> ClientBuilder<StoreAt> {
    builder_by(world, name, SPEED)
}

fn builder_by(world: &World, name: &str, speed: u32) -> ClientBuilder<StoreAt> {
    let clock = FastClock::from(SystemClock.now_ms(), speed);
    let now = Arc::clone(&clock);
    let way = world.relay.connect_with_clock(Arc::new(move || now.now_ms()));
    let builder = Client::builder("http://localhost").api(way).clock(clock);
    builder.store(world.store(name), StoreKey::Raw32([1; 32]))
}

async fn register(world: &World, name: &str) -> Client {
    let client = builder(world, name).register(name).await.unwrap();
    online(&client).await;
    client
}

/// A new device shows its code, and what comes of approving it.
async fn approved(world: &World, name: &str, by: &Client) -> (Approval, tokio::task::JoinHandle<Result<(), Error>>) {
    let linking = builder(world, name).link(name).await.unwrap();
    let (code, by) = (linking.code(), by.clone());
    let approving = tokio::spawn(async move { by.approve_link(&code).await.map(drop) });
    (linking.approved().await.unwrap(), approving)
}

/// Links a new device to somebody's account.
async fn link(world: &World, name: &str, to: &Client) -> Client {
    let (approval, approving) = approved(world, name, to).await;
    assert_eq!(approval.account(), to.account());
    assert_eq!(approval.fingerprint(), to.fingerprint().await.unwrap());
    let linked = approval.join().await.unwrap();
    approving.await.unwrap().unwrap();
    online(&linked).await;
    linked
}

/// What an account has of devices now.
async fn kept(client: &Client) -> Vec<DeviceId> {
    client.devices().await.unwrap().into_iter().map(|one| one.device_id).collect()
}

async fn said(conversation: &Conversation) -> Vec<String> {
    let history = conversation.history(1_000, None).await.unwrap();
    history.iter().map(|message| message.text().to_owned()).collect()
}

async fn has_said(conversation: &Conversation, texts: &[&str]) {
    wait_until(format!("{texts:?}"), async || (said(conversation).await == texts).then_some(())).await;
}

async fn active(group: &Group) {
    wait_until("to be in the group", async || group.summary().await.ok().filter(|group| group.active).map(drop)).await;
}

#[tokio::test]
async fn a_linked_device_is_in_all_groups_and_conversations_and_shows_what_the_others_send_and_read() {
    let world = World::new();
    let (alice, bob) = (register(&world, "alice").await, register(&world, "bob").await);
    let group = world.group(&[&alice, &bob]).await;
    let post_quantum = alice.create_group("later too").post_quantum().await.unwrap();
    let to_bob = alice.direct(bob.account().account_id);
    to_bob.send("before").await.unwrap();
    has_said(&bob.direct(alice.account().account_id), &["before"]).await;
    bob.direct(alice.account().account_id).accept().await.unwrap();

    let number = alice.safety_number(bob.account().account_id).await.unwrap();
    alice.verify(bob.account().account_id, &number).await.unwrap();
    let phone = link(&world, "phone", &alice).await;
    assert_eq!(phone.account(), alice.account());
    assert!(phone.is_verified(bob.account().account_id).await.unwrap());
    let names: Vec<_> = alice.devices().await.unwrap().into_iter().map(|one| (one.name, one.this)).collect();
    assert!(names.contains(&("phone".into(), false)) && names.len() == 2, "{names:?}");
    assert_eq!(
        phone.safety_number(bob.account().account_id).await.unwrap(),
        bob.safety_number(alice.account().account_id).await.unwrap()
    );
    let on_phone = phone.group(group[0].id());
    active(&on_phone).await;
    wait_until("the phone to be a member", async || {
        (world.relay.group_members(&group[0].id()).len() == 3).then_some(())
    })
    .await;
    let as_secret = phone.group(post_quantum.id());
    active(&as_secret).await;
    as_secret.send("for later").await.unwrap();
    has_texts(&post_quantum, &["for later"]).await;
    assert!(as_secret.summary().await.unwrap().post_quantum);
    // What each sends, all others have.
    on_phone.send("from the phone").await.unwrap();
    for group in &group {
        has_texts(group, &["from the phone"]).await;
    }
    let answer = group[1].send("an answer").await.unwrap();
    has_texts(&on_phone, &["from the phone", "an answer"]).await;
    has_texts(&group[0], &["from the phone", "an answer"]).await;
    let (direct, to_alice) = (phone.direct(bob.account().account_id), bob.direct(alice.account().account_id));
    direct.send("directly").await.unwrap();
    has_said(&to_alice, &["before", "directly"]).await;
    has_said(&to_bob, &["before", "directly"]).await;
    to_alice.send("yes?").await.unwrap();
    has_said(&direct, &["directly", "yes?"]).await;
    has_said(&to_bob, &["before", "directly", "yes?"]).await;
    // What is read on one is read on the other.
    on_phone.mark_read(answer).await.unwrap();
    let read = |event| match event {
        Event::ReadElsewhere { conversation, up_to } => Some((conversation, up_to)),
        _ => None,
    };
    assert_eq!(event(&alice, read).await, (group[0].id().into(), answer));
    // A group that one of them makes has all of them.
    let other = phone.create_group("on the phone").await.unwrap();
    joined(&alice, other.id()).await;
    let found = alice.group(other.id()).summary().await.unwrap();
    assert_eq!((found.members.len(), found.requested_by), (1, None));
}

#[tokio::test]
async fn who_is_answered_on_one_device_is_no_stranger_on_the_others() {
    let world = World::new();
    let (alice, carol) = (register(&world, "alice").await, register(&world, "carol").await);
    let phone = link(&world, "phone", &alice).await;
    let (of_carol, to_alice) = (carol.account().account_id, carol.direct(alice.account().account_id));
    let asks = async |client: &Client| {
        let found = client.directs().await.unwrap().into_iter().find(|one| one.with.account_id == of_carol);
        found.is_some_and(|one| one.requested)
    };
    to_alice.send("hello").await.unwrap();
    for client in [&alice, &phone] {
        has_said(&client.direct(of_carol), &["hello"]).await;
        assert!(asks(client).await);
    }
    alice.direct(of_carol).send("who are you?").await.unwrap();
    has_said(&phone.direct(of_carol), &["hello", "who are you?"]).await;
    assert!(!asks(&phone).await);
    to_alice.send("carol").await.unwrap();
    has_said(&phone.direct(of_carol), &["hello", "who are you?", "carol"]).await;
    assert!(!asks(&phone).await && !asks(&alice).await);
}

#[tokio::test]
async fn a_code_that_is_over_used_changed_or_declined_links_nothing_and_both_sides_say_why() {
    let world = World::new();
    let (alice, mallory) = (register(&world, "alice").await, register(&world, "mallory").await);
    let devices = || world.relay.device_list(&alice.account().account_id).unwrap();
    let before = devices();

    assert!(matches!(alice.approve_link("no code").await, Err(Error::Invalid(_))));
    // Nobody shows it.
    let over = builder_by(&world, "one", 1_000).link("one").await.unwrap();
    let code = over.code();
    world.relay.set_time_ms(world.relay.time_ms() + 600_000);
    assert!(matches!(alice.approve_link(&code).await, Err(Error::NotLinked(NotLinked::Over))));
    assert!(matches!(over.approved().await, Err(Error::NotLinked(NotLinked::Unanswered))));
    // The relay, or somebody else, has put another key into the pipe.
    let linking = builder(&world, "two").link("two").await.unwrap();
    let other = builder(&world, "three").link("three").await.unwrap();
    let code = linking.code();
    world.relay.rewrite_pipes(|key| key.as_slice().iter().rev().copied().collect::<Vec<_>>().into());
    assert!(matches!(alice.approve_link(&code).await, Err(Error::NotLinked(NotLinked::Changed))));
    assert!(matches!(linking.approved().await, Err(Error::NotLinked(NotLinked::Changed))));
    drop(other);
    // A stranger has seen the code, and was faster: the user sees whose account it is, and does not want it.
    let (approval, approving) = approved(&world, "four", &mallory).await;
    assert_eq!(approval.account(), mallory.account());
    approval.decline().await.unwrap();
    assert!(matches!(approving.await.unwrap(), Err(Error::NotLinked(NotLinked::Declined))));
    // A code is used once.
    let linking = builder(&world, "five").link("five").await.unwrap();
    let code = linking.code();
    let (by, used) = (alice.clone(), code.clone());
    let approving = tokio::spawn(async move { by.approve_link(&used).await });
    let approval = linking.approved().await.unwrap();
    assert!(matches!(alice.approve_link(&code).await, Err(Error::NotLinked(NotLinked::Used))));
    assert_eq!(devices(), before);
    let five = approval.join().await.unwrap();
    approving.await.unwrap().unwrap();
    assert!(matches!(alice.approve_link(&code).await, Err(Error::NotLinked(NotLinked::Used))));
    online(&five).await;
}

#[tokio::test]
async fn what_a_new_device_was_told_is_of_no_use_to_who_changes_it() {
    let world = World::new();
    let alice = register(&world, "alice").await;
    let linking = builder(&world, "phone").link("phone").await.unwrap();
    let (code, by) = (linking.code(), alice.clone());
    let approving = tokio::spawn(async move { by.approve_link(&code).await });
    wait_until("the answer", async || (world.relay.pipe_parts() == 2).then_some(())).await;
    world.relay.rewrite_pipes(|part| {
        let mut part = part.as_slice().to_vec();
        if let Some(last) = part.last_mut() {
            *last ^= 1;
        }
        part.into()
    });
    assert!(matches!(linking.approved().await, Err(Error::NotLinked(NotLinked::Changed))));
    world.relay.set_time_ms(world.relay.time_ms() + 600_000);
    approving.abort();
    assert_eq!(alice.devices().await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_device_that_dies_while_it_is_linked_is_what_it_was_to_become() {
    let world = World::new();
    let alice = register(&world, "alice").await;
    let (approval, approving) = approved(&world, "phone", &alice).await;
    let joining = tokio::spawn(approval.join());
    // It is listed; that it is, it has not heard.
    world
        .relay
        .until(|relay| {
            let list = relay.device_list(&alice.account().account_id).unwrap();
            list.verify(&alice.account().account_id).unwrap().devices.len() == 2
        })
        .await;
    joining.abort();
    drop(joining.await);
    approving.await.unwrap().unwrap();
    let phone = wait_until("the store to be free", async || builder(&world, "phone").open().await.ok()).await;
    online(&phone).await;
    assert_eq!(phone.account(), alice.account());
    phone.shutdown().await;
    assert!(matches!(builder(&world, "phone").link("again").await, Err(Error::AlreadyRegistered)));

    // One that was never listed begins anew.
    let (approval, approving) = approved(&world, "tablet", &alice).await;
    approving.abort();
    drop(approving.await);
    let joining = tokio::spawn(approval.join());
    wait_until("its keys to be stored", async || (world.relay.pipe_parts() >= 6).then_some(())).await;
    joining.abort();
    drop(joining.await);
    let opened = wait_until("the store to be free", async || match builder(&world, "tablet").open().await {
        Err(Error::StoreInUse) => None,
        other => Some(other),
    });
    assert!(matches!(opened.await, Err(Error::NotRegistered)));
    let tablet = link(&world, "tablet", &alice).await;
    assert_eq!(alice.devices().await.unwrap().len(), 3);
    drop(tablet);
}

#[tokio::test]
async fn a_removed_device_is_out_at_once_and_nothing_is_written_for_it_any_more() {
    let world = World::new();
    let (alice, bob) = (register(&world, "alice").await, register(&world, "bob").await);
    let group = world.group(&[&alice, &bob]).await;
    let phone = link(&world, "phone", &alice).await;
    let on_phone = phone.group(group[0].id());
    active(&on_phone).await;
    wait_until("the phone to be a member", async || {
        (world.relay.group_members(&group[0].id()).len() == 3).then_some(())
    })
    .await;
    bob.direct(alice.account().account_id).send("to both").await.unwrap();
    has_said(&phone.direct(bob.account().account_id), &["to both"]).await;

    assert!(matches!(alice.remove_device(alice.device_id()).await, Err(Error::Invalid(_))));
    assert!(matches!(alice.remove_device(bob.device_id()).await, Err(Error::Invalid(_))));
    let commits = world.relay.group_position(&group[0].id()).unwrap().commit_seq;
    alice.remove_device(phone.device_id()).await.unwrap();
    assert_eq!(world.relay.group_members(&group[0].id()).len(), 2);
    wait_until("the phone to be signed out", async || (phone.connection() == Connection::SignedOut).then_some(()))
        .await;
    let removed = |event| match event {
        Event::DevicesChanged { added, removed } if added.is_empty() => Some(removed),
        _ => None,
    };
    assert_eq!(event(&alice, removed).await, [phone.device_id()]);
    // Whoever writes next has taken it out of the tree before.
    group[0].send("without the phone").await.unwrap();
    has_texts(&group[1], &["without the phone"]).await;
    assert!(world.relay.group_position(&group[0].id()).unwrap().commit_seq > commits);
    bob.direct(alice.account().account_id).send("to one").await.unwrap();
    has_said(&alice.direct(bob.account().account_id), &["to both", "to one"]).await;
    assert_eq!(alice.devices().await.unwrap().len(), 1);
    // That is nothing to worry bob about.
    let worry = |event: &Event| matches!(event, Event::UnlistedDevice { .. } | Event::IdentityChanged { .. });
    let seen = crate::world::count_events(&bob, worry);
    group[1].send("no worry").await.unwrap();
    has_texts(&group[0], &["without the phone", "no worry"]).await;
    assert_eq!(seen.load(SeqCst), 0);
}

/// Waits until somebody learns that an account has another identity key.
async fn learns_of_new_identity(client: &Client, of: &Client) {
    let changed = |event| if let Event::IdentityChanged { account } = event { Some(account) } else { None };
    assert_eq!(event(client, changed).await.account_id, of.account().account_id);
}

#[tokio::test]
async fn a_stolen_device_is_left_behind_with_an_identity_key_that_is_worth_nothing() {
    let world = World::new();
    let alice = register(&world, "alice").await;
    let bob = builder(&world, "bob").hold_changed_identities().register("bob").await.unwrap();
    online(&bob).await;
    let group = world.group(&[&alice, &bob]).await;
    let (tablet, phone) = (link(&world, "tablet", &alice).await, link(&world, "phone", &alice).await);
    for device in [&tablet, &phone] {
        active(&device.group(group[0].id())).await;
    }
    wait_until("all to be members", async || (world.relay.group_members(&group[0].id()).len() == 4).then_some(()))
        .await;
    let (account, of_bob) = (alice.account().account_id, bob.account().account_id);
    let before = bob.safety_number(account).await.unwrap();
    bob.verify(account, &before).await.unwrap();
    bob.direct(account).send("to all").await.unwrap();
    has_said(&tablet.direct(of_bob), &["to all"]).await;

    // The thief has linked another, or what the user was shown is older than that.
    assert!(matches!(alice.remove_stolen_device(phone.device_id(), &[], None).await, Err(Error::Untrusted(_))));
    alice.remove_stolen_device(phone.device_id(), &kept(&alice).await, None).await.unwrap();
    wait_until("the phone to be signed out", async || (phone.connection() == Connection::SignedOut).then_some(()))
        .await;
    // The group goes on, with leaves of the new key, and without the phone.
    group[0].send("the phone was stolen").await.unwrap();
    has_texts(&group[1], &["the phone was stolen"]).await;
    learns_of_new_identity(&bob, &alice).await;
    assert!(!bob.is_verified(account).await.unwrap() && bob.has_changed_identity(account).await.unwrap());
    let now = bob.safety_number(account).await.unwrap();
    assert_ne!(now, before);
    assert_eq!(now, alice.safety_number(of_bob).await.unwrap());
    wait_until("the tablet to see the same", async || {
        (tablet.safety_number(of_bob).await.unwrap() == now).then_some(())
    })
    .await;
    // bob writes nothing to her before he has said something to that.
    let waiting = [bob.direct(account).send("is it you?").await.unwrap(), group[1].send("is it you?").await.unwrap()];
    group[0].send("hello?").await.unwrap();
    has_texts(&group[1], &["the phone was stolen", "is it you?", "hello?"]).await;
    for message in waiting {
        assert_eq!(bob.message_status(message).await.unwrap(), undertone::MessageStatus::Queued);
    }
    // What waits keeps him from nothing else: he could throw her out.
    group[1].rename("still here").await.unwrap();
    assert!(matches!(bob.verify(account, &before).await, Err(Error::Untrusted(_))), "that is another number");
    bob.verify(account, &now).await.unwrap();
    assert!(bob.is_verified(account).await.unwrap());
    has_said(&alice.direct(of_bob), &["to all", "is it you?"]).await;
    has_said(&tablet.direct(of_bob), &["to all", "is it you?"]).await;
    // The tablet has the new identity key: it links a device to it.
    let code = {
        let over = builder(&world, "over").link("over").await.unwrap();
        over.code()
    };
    world.relay.set_time_ms(world.relay.time_ms() + 600_000);
    wait_until("the tablet to have the key", async || {
        // Before that it says so at once.
        let asked = tablet.approve_link(&code).await;
        assert!(matches!(asked, Err(Error::Invalid(_) | Error::NotLinked(NotLinked::Over))), "{asked:?}");
        matches!(asked, Err(Error::NotLinked(_))).then_some(())
    })
    .await;
    let watch = link(&world, "watch", &tablet).await;
    online(&watch).await;
    active(&watch.group(group[0].id())).await;
    watch.direct(of_bob).send("from the watch").await.unwrap();
    has_said(&bob.direct(account), &["to all", "is it you?", "from the watch"]).await;
    assert_eq!(watch.safety_number(of_bob).await.unwrap(), now);
}

#[tokio::test]
async fn who_has_written_down_a_recovery_key_has_the_last_word() {
    let world = World::new();
    let (alice, bob) = (register(&world, "alice").await, register(&world, "bob").await);
    let phone = link(&world, "phone", &alice).await;
    let (account, of_bob) = (alice.account(), bob.account().account_id);
    bob.direct(account.account_id).send("before").await.unwrap();
    has_said(&phone.direct(of_bob), &["before"]).await;
    let key = alice.new_recovery_key().unwrap();
    assert!(!phone.has_recovery_key().await.unwrap());
    for _ in 0..2 {
        alice.set_recovery_key(&key).await.unwrap();
    }
    // The other devices tell their user of it.
    phone.devices().await.unwrap();
    event(&phone, |event| matches!(event, Event::RecoveryKeySet).then_some(())).await;
    assert!(phone.has_recovery_key().await.unwrap());
    let other = alice.new_recovery_key().unwrap();
    assert!(matches!(alice.set_recovery_key(&other).await, Err(Error::Invalid(_))), "there is one already");
    assert!(matches!(bob.set_recovery_key(&key).await, Err(Error::Invalid(_))), "it is another account's");
    // Who has the phone has the identity key, and can take alice's device off. The identity key stays as it is.
    assert!(matches!(
        phone.remove_stolen_device(alice.device_id(), &kept(&phone).await, None).await,
        Err(Error::Untrusted(_))
    ));
    assert!(matches!(
        phone.remove_stolen_device(alice.device_id(), &kept(&phone).await, Some(&other)).await,
        Err(Error::Untrusted(_))
    ));
    phone.remove_device(alice.device_id()).await.unwrap();
    wait_until("alice to be signed out", async || (alice.connection() == Connection::SignedOut).then_some(())).await;
    // But alice has the recovery key.
    assert!(matches!(builder(&world, "new").recover("no key", "new").await, Err(Error::Invalid(_))));
    let recovered = builder(&world, "new").recover(&key, "new").await.unwrap();
    online(&recovered).await;
    assert_eq!(recovered.account(), account);
    wait_until("the phone to be signed out", async || (phone.connection() == Connection::SignedOut).then_some(()))
        .await;
    let devices = recovered.devices().await.unwrap();
    assert_eq!((devices.len(), devices[0].name.as_str(), devices[0].this), (1, "new", true));
    recovered.direct(of_bob).send("it is me again").await.unwrap();
    learns_of_new_identity(&bob, &recovered).await;
    has_said(&bob.direct(account.account_id), &["before", "it is me again"]).await;
    bob.direct(account.account_id).send("good").await.unwrap();
    has_said(&recovered.direct(of_bob), &["it is me again", "good"]).await;
    assert_eq!(bob.safety_number(account.account_id).await.unwrap(), recovered.safety_number(of_bob).await.unwrap());
    // It works again and again.
    let phone = link(&world, "another", &recovered).await;
    recovered.remove_stolen_device(phone.device_id(), &kept(&recovered).await, Some(&key)).await.unwrap();
    learns_of_new_identity_after(&bob, &recovered).await;
}

/// The same, when somebody writes next.
async fn learns_of_new_identity_after(client: &Client, of: &Client) {
    client.direct(of.account().account_id).send("are you there?").await.unwrap();
    learns_of_new_identity(client, of).await;
}

#[tokio::test]
async fn who_leaves_two_stolen_devices_behind_at_once_keeps_the_account() {
    let world = World::new();
    let (alice, bob) = (register(&world, "alice").await, register(&world, "bob").await);
    let tablet = link(&world, "tablet", &alice).await;
    let (one, other) = (link(&world, "one", &alice).await, link(&world, "other", &alice).await);
    bob.direct(alice.account().account_id).send("to all").await.unwrap();
    for device in [&tablet, &one, &other] {
        has_said(&device.direct(bob.account().account_id), &["to all"]).await;
    }
    for stolen in [&one, &other] {
        alice.remove_stolen_device(stolen.device_id(), &kept(&alice).await, None).await.unwrap();
    }
    for (by, name) in [(&alice, "watch"), (&tablet, "desk")] {
        let linked = wait_until("a device that has the key", async || {
            let linking = builder(&world, name).link(name).await.unwrap();
            let (code, by) = (linking.code(), by.clone());
            let approving = tokio::spawn(async move { by.approve_link(&code).await });
            let joining = tokio::spawn(async move { linking.approved().await?.join().await });
            let approved = approving.await.unwrap();
            if let Err(error) = approved {
                assert!(matches!(error, Error::Invalid(_)), "{error}");
                joining.abort();
                drop(joining.await);
                return None;
            }
            Some(joining.await.unwrap().unwrap())
        })
        .await;
        online(&linked).await;
    }
    assert_eq!(alice.devices().await.unwrap().len(), 4);
}
