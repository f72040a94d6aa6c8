//! Devices that lost track of a group, and are in it again without their app doing anything.

use std::sync::Arc;

use undertone_api::RelayApi as _;
use undertone_wire::{Delivery, Envelope, RejoinRequest};

use super::{
    PATIENCE, inbox, now_ms, until,
    world::{World, is_in, members, reads},
};
use crate::{
    Client, Error, Event, Group, Recovered,
    crypto::{Entropy, group},
};

/// What the app is told of the group's recovery, until it is over.
async fn told(client: &Client) -> Vec<Event> {
    let mut told = Vec::new();
    let events = client.events();
    let all = async {
        loop {
            let event = events.next().await.unwrap();
            let over = matches!(
                event,
                Event::GroupRecovered { .. } | Event::GroupStuck { .. } | Event::Removed { .. } | Event::Left { .. }
            );
            if over || matches!(event, Event::GroupRecovering { .. } | Event::GroupAskedIn { .. }) {
                told.push(event);
            }
            if over {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, all).await.unwrap_or_else(|_| panic!("told: {told:?}"));
    told
}

fn recovered(group: &Group, how: Recovered) -> Event {
    Event::GroupRecovered { group_id: group.id(), how }
}

fn recovering(group: &Group) -> Event {
    Event::GroupRecovering { group_id: group.id() }
}

async fn lose_state(client: &Client, group: &Group) {
    let id = group.id();
    let lost = client.engine().store.with_tx(move |tx| group::forget(&tx.mls(), id).map_err(Error::from));
    lost.await.unwrap();
}

#[tokio::test]
async fn who_lost_the_state_of_a_group_joins_it_on_its_own() {
    let world = World::new();
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let groups = world.group(&[&alice, &bob]).await;
    let before = world.commits(&groups[0]);
    lose_state(&bob, &groups[1]).await;
    let sent = groups[1].send("are you there?").await.unwrap();
    assert_eq!(told(&bob).await, [recovering(&groups[1]), recovered(&groups[1], Recovered::Rejoined)]);
    reads(&groups[0], "are you there?").await;
    groups[0].send("I am").await.unwrap();
    reads(&groups[1], "I am").await;
    assert!(bob.message_status(sent).await.unwrap().is_sent());
    assert_eq!((world.commits(&groups[0]), members(&groups[0]).await, members(&groups[1]).await), (before + 1, 2, 2));
}

#[tokio::test]
async fn a_state_that_is_missing_is_noticed_when_the_client_is_opened() {
    let world = World::new();
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let groups = world.group(&[&alice, &bob]).await;
    lose_state(&bob, &groups[1]).await;
    bob.shutdown().await;
    let bob = world.open("bob").await;
    let at_bob = bob.group(groups[0].id());
    assert_eq!(told(&bob).await, [recovering(&at_bob), recovered(&at_bob, Recovered::Rejoined)]);
    groups[0].send("back?").await.unwrap();
    reads(&at_bob, "back?").await;
}

#[tokio::test]
async fn commits_that_were_missed_are_fetched() {
    let world = World::new();
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let (carol, dave) = (world.register("carol").await, world.register("dave").await);
    let groups = world.group(&[&alice, &bob]).await;
    let bobs_device = bob.device_id();
    bob.shutdown().await;
    groups[0].add(carol.account().account_id).await.unwrap();
    groups[0].send("lost on bob").await.unwrap();
    alice.outbox_empty(PATIENCE).await.unwrap();
    groups[0].add(dave.account().account_id).await.unwrap();
    let before = world.commits(&groups[0]);
    world.relay.expire_queue(&bobs_device, u64::MAX);
    let bob = world.open("bob").await;
    let at_bob = bob.group(groups[0].id());
    assert_eq!(told(&bob).await, [recovered(&at_bob, Recovered::MissedCommits)]);
    assert_eq!(members(&at_bob).await, 4);
    groups[0].send("and now?").await.unwrap();
    reads(&at_bob, "and now?").await;
    at_bob.send("here").await.unwrap();
    reads(&carol.group(at_bob.id()), "here").await;
    until("bob to replace his keys", async || world.commits(&groups[0]) == before + 1).await;
}

#[tokio::test]
async fn who_is_fifty_commits_behind_comes_back_alone_if_nobody_was_removed() {
    let world = World::new();
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let groups = world.group(&[&alice, &bob]).await;
    let bobs_device = bob.device_id();
    bob.shutdown().await;
    for n in 0..50 {
        if n % 10 == 0 {
            let other = world.register(&format!("friend{n}")).await;
            groups[0].add(other.account().account_id).await.unwrap();
        } else {
            groups[0].rename(&format!("trip {n}")).await.unwrap();
        }
    }
    let (commits, id) = (world.commits(&groups[0]), groups[0].id());
    world.relay.expire_queue(&bobs_device, u64::MAX);
    world.relay.expire_commits(&id);
    alice.shutdown().await;

    let bob = world.open("bob").await;
    let at_bob = bob.group(id);
    assert_eq!(told(&bob).await, [recovering(&at_bob), recovered(&at_bob, Recovered::Rejoined)]);
    assert_eq!((members(&at_bob).await, world.commits(&at_bob)), (7, commits + 1));
    assert_eq!(at_bob.summary().await.unwrap().name, "trip 49");
    at_bob.send("who are you all?").await.unwrap();
    let alice = world.open("alice").await;
    reads(&alice.group(id), "who are you all?").await;
}

#[tokio::test]
async fn who_cannot_open_the_sealed_group_info_is_let_in_by_a_member() {
    let world = World::new();
    let (alice, bob, carol) =
        (world.register("alice").await, world.register("bob").await, world.register("carol").await);
    let groups = world.group(&[&alice, &bob, &carol]).await;
    let bobs_device = bob.device_id();
    bob.shutdown().await;
    groups[0].remove(carol.account().account_id).await.unwrap();
    world.relay.expire_queue(&bobs_device, u64::MAX);
    world.relay.expire_commits(&groups[0].id());
    let commits = world.commits(&groups[0]);

    let bob = world.open("bob").await;
    let at_bob = bob.group(groups[0].id());
    let asked = Event::GroupAskedIn { group_id: at_bob.id() };
    assert_eq!(told(&bob).await, [recovering(&at_bob), asked, recovered(&at_bob, Recovered::LetIn)]);
    assert_eq!((members(&at_bob).await, world.commits(&at_bob)), (2, commits + 1));
    groups[0].send("welcome back").await.unwrap();
    reads(&at_bob, "welcome back").await;
    at_bob.send("thank you").await.unwrap();
    reads(&groups[0], "thank you").await;
}

#[tokio::test]
async fn who_was_removed_meanwhile_is_not_back_and_knows_it() {
    let world = World::new();
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let groups = world.group(&[&alice, &bob]).await;
    let (bobs_device, bobs_account) = (bob.device_id(), bob.account().account_id);
    bob.shutdown().await;
    groups[0].remove(bobs_account).await.unwrap();
    world.relay.expire_queue(&bobs_device, u64::MAX);
    world.relay.expire_commits(&groups[0].id());
    let commits = world.commits(&groups[0]);

    let bob = world.open("bob").await;
    let at_bob = bob.group(groups[0].id());
    let removed = Event::Removed { group_id: at_bob.id(), by: None };
    assert_eq!(told(&bob).await, [recovering(&at_bob), removed]);
    assert!(matches!(at_bob.send("let me in").await, Err(Error::NotMember)));
    assert_eq!((members(&groups[0]).await, world.commits(&groups[0])), (1, commits));
}

#[tokio::test]
async fn who_is_let_in_without_having_lost_anything_goes_on() {
    let world = World::new();
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let groups = world.group(&[&alice, &bob]).await;
    let commits = world.commits(&groups[0]);
    let (engine, id) = (bob.engine(), groups[0].id());
    let request = &RejoinRequest { message_id: engine.message_id().unwrap() };
    engine.signed_in(|token| async move { engine.api.rejoin(&token, id, request).await }).await.unwrap();
    assert_eq!(told(&bob).await, [recovering(&groups[1]), recovered(&groups[1], Recovered::LetIn)]);
    assert_eq!((members(&groups[0]).await, world.commits(&groups[0])), (2, commits + 1));
    groups[1].send("nothing happened").await.unwrap();
    reads(&groups[0], "nothing happened").await;
    groups[0].send("indeed").await.unwrap();
    reads(&groups[1], "indeed").await;
}

#[tokio::test]
async fn nobody_is_removed_because_the_relay_says_that_another_account_wants_their_place() {
    let world = World::new();
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let groups = world.group(&[&alice, &bob]).await;
    let (id, identity) = (groups[0].id(), alice.engine().identity());
    for (account_id, planned) in [(alice.account().account_id, false), (bob.account().account_id, true)] {
        let envelope = Envelope::RejoinWanted { group_id: id, account_id, device_id: bob.device_id() };
        let identity = Arc::clone(&identity);
        let tasks = alice.engine().store.with_tx(move |tx| {
            let delivery = Delivery { seq: tx.cursor()? + 1, envelope };
            let context = inbox::Context {
                identity: &identity,
                entropy: Entropy::system(),
                now_ms: now_ms() + 60_000,
                looked_up: false,
            };
            inbox::apply(tx, &context, &delivery)?;
            Ok::<_, Error>(tx.tasks(id)?.len())
        });
        assert_eq!(tasks.await.unwrap() == 1, planned);
    }
}

#[tokio::test]
async fn who_left_stays_gone_for_one_who_comes_back() {
    let world = World::new();
    let (alice, bob, carol) =
        (world.register("alice").await, world.register("bob").await, world.register("carol").await);
    let groups = world.group(&[&alice, &bob, &carol]).await;
    lose_state(&bob, &groups[1]).await;
    for client in [alice, bob] {
        client.shutdown().await;
    }
    groups[2].leave().await.unwrap();
    let bob = world.open("bob").await;
    let at_bob = bob.group(groups[0].id());
    assert_eq!(told(&bob).await, [recovering(&at_bob), recovered(&at_bob, Recovered::Rejoined)]);
    assert_eq!(members(&at_bob).await, 2);
    until("carol's leaf to be removed", async || world.commits(&at_bob) == 4).await;
    at_bob.add(carol.account().account_id).await.unwrap();
    is_in(&carol, at_bob.id()).await;
    assert_eq!(members(&at_bob).await, 3);
}
