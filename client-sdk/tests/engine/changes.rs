//! Changes of members: races, leaving, coming back, deleted accounts.

use undertone::{Error, Event, Group};

use crate::world::{PATIENCE, World, event, has_commits, has_texts, joined, members, wait_until};

#[tokio::test]
async fn two_changes_at_the_same_moment_are_both_made() {
    let world = World::new();
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let (carol, dave) = (world.register("carol").await, world.register("dave").await);
    let groups = world.group(&[&alice, &bob]).await;
    for _ in 0..5 {
        tokio::try_join!(groups[0].add(carol.account().account_id), groups[1].add(dave.account().account_id)).unwrap();
        for group in &groups {
            wait_until("four members", async || (members(group).await.len() == 4).then_some(())).await;
        }
        tokio::try_join!(groups[0].remove(dave.account().account_id), groups[1].remove(carol.account().account_id))
            .unwrap();
        for group in &groups {
            wait_until("two members", async || (members(group).await.len() == 2).then_some(())).await;
        }
    }
    groups[0].send("no fork").await.unwrap();
    has_texts(&groups[1], &["no fork"]).await;
}

#[tokio::test]
async fn adding_a_member_twice_changes_nothing() {
    let world = World::new();
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let groups = world.group(&[&alice, &bob]).await;
    let before = world.relay.group_position(&groups[0].id());
    groups[0].add(bob.account().account_id).await.unwrap();
    assert_eq!(world.relay.group_position(&groups[0].id()), before);
    let stranger = world.register("stranger").await;
    assert!(matches!(groups[0].remove(stranger.account().account_id).await, Err(Error::NoSuchMember)));
}

#[tokio::test]
async fn who_leaves_is_removed_by_one_of_the_others_and_can_come_back() {
    let world = World::new();
    let (alice, bob, carol) =
        (world.register("alice").await, world.register("bob").await, world.register("carol").await);
    let groups = world.group(&[&alice, &bob, &carol]).await;
    groups[1].leave().await.unwrap();
    event(&bob, |event| matches!(event, Event::Left { .. }).then_some(())).await;
    assert!(matches!(groups[1].send("gone").await, Err(Error::NotMember)));
    for client in [&alice, &carol] {
        let removed = event(client, |event| match event {
            Event::MembersChanged { removed, by, .. } if !removed.is_empty() => Some((by.unwrap(), removed)),
            _ => None,
        });
        assert_eq!(removed.await, (bob.account(), vec![bob.account()]));
    }
    wait_until("one commit to remove bob's leaf", async || {
        (world.relay.group_position(&groups[0].id()).unwrap().commit_seq == 3).then_some(())
    })
    .await;
    groups[2].send("still two").await.unwrap();
    has_texts(&groups[0], &["still two"]).await;

    groups[0].add(bob.account().account_id).await.unwrap();
    joined(&bob, groups[0].id()).await;
    groups[0].send("welcome back").await.unwrap();
    has_texts(&groups[1], &["welcome back"]).await;
}

#[tokio::test]
async fn who_leaves_can_be_added_again_before_anybody_removed_the_leaf() {
    let world = World::new();
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let at_bob = world.group(&[&alice, &bob]).await.remove(1);
    alice.shutdown().await;
    at_bob.leave().await.unwrap();
    let alice = world.open("alice").await;
    let at_alice = alice.group(at_bob.id());
    at_alice.add(bob.account().account_id).await.unwrap();
    joined(&bob, at_bob.id()).await;
    at_alice.send("welcome back").await.unwrap();
    has_texts(&at_bob, &["welcome back"]).await;
    assert_eq!((members(&at_alice).await.len(), members(&at_bob).await.len()), (2, 2));
}

#[tokio::test]
async fn a_deleted_account_is_removed_by_the_others() {
    let world = World::new();
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let groups = world.group(&[&alice, &bob]).await;
    bob.delete_account().await.unwrap();
    wait_until("a commit to remove bob's leaf", async || {
        (world.relay.group_position(&groups[0].id()).unwrap().commit_seq == 2).then_some(())
    })
    .await;
    wait_until("alice to be alone", async || (members(&groups[0]).await.len() == 1).then_some(())).await;
    assert!(matches!(alice.find("bob").await, Err(Error::UnknownAccount)));
}

#[tokio::test]
async fn key_packages_are_topped_up_by_themselves() {
    let world = World::new();
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let device = bob.device_id();
    let (full, last_resort) = world.relay.key_packages(&device);
    assert_eq!((full, last_resort), (100, true));
    for number in 0..55 {
        let group = alice.create_group(&format!("group {number}")).await.unwrap();
        group.add(bob.account().account_id).await.unwrap();
    }
    wait_until("bob to have joined and topped up", async || {
        let groups = bob.groups().await.unwrap().len();
        (groups == 55 && world.relay.key_packages(&device).0 >= 90).then_some(())
    })
    .await;
}

#[tokio::test]
async fn whoever_has_no_key_packages_cannot_be_added() {
    let world = World::new();
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let group = alice.create_group("ski trip").await.unwrap();
    let unknown = alice.find("nobody").await;
    assert!(matches!(unknown, Err(Error::UnknownAccount)));
    let id = bob.account().account_id;
    bob.delete_account().await.unwrap();
    assert!(matches!(group.add(id).await, Err(Error::UnknownAccount)));
    group.send("the outbox goes on").await.unwrap();
    assert_eq!(alice.outbox_empty(PATIENCE).await.unwrap(), 0);
}

#[tokio::test]
async fn three_who_change_the_group_at_the_same_moment_all_get_their_way() {
    const ROUNDS: u64 = 100;
    let world = World::new();
    let (alice, bob, carol) =
        (world.register("alice").await, world.register("bob").await, world.register("carol").await);
    let (dave, erin) = (world.register("dave").await, world.register("erin").await);
    let groups = world.group(&[&alice, &bob, &carol]).await;
    let (dave, erin) = (dave.account().account_id, erin.account().account_id);
    for round in 0..ROUNDS {
        let name = format!("trip {round}");
        let toggle = async |group: &Group, who| match round % 2 {
            0 => group.add(who).await,
            _ => group.remove(who).await,
        };
        let done = tokio::join!(groups[0].rename(&name), toggle(&groups[1], dave), toggle(&groups[2], erin));
        assert!(matches!(done, (Ok(()), Ok(()), Ok(()))), "{done:?}");
        has_commits(&world, &groups[0], 2 + (round + 1) * 3).await;
        let mut expected = vec![alice.account().account_id, bob.account().account_id, carol.account().account_id];
        if round % 2 == 0 {
            expected.extend([dave, erin]);
        }
        expected.sort_unstable();
        for group in &groups {
            wait_until("all changes to be known", async || {
                let summary = group.summary().await.unwrap();
                (summary.name == name && members(group).await == expected).then_some(())
            })
            .await;
        }
    }
    groups[0].send("still one group").await.unwrap();
    for group in &groups[1..] {
        has_texts(group, &["still one group"]).await;
    }
}
