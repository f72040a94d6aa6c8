//! A member that wants to break the group, through an honest relay: the others go on without it.

mod scene;

use openmls_rust_crypto::OpenMlsRustCrypto;
use undertone_api::RelayApi as _;
use undertone_wire::{CommitRequest, CreateGroupRequest, Envelope, ErrorCode, GroupId, SendRequest, SuccessorRequest};

use self::scene::{Scene, found, live, members_of};
use super::{
    hostile::is_unchecked,
    until,
    world::{is_in, reads},
};
use crate::{
    Client, Error,
    crypto::{Provider as _, Suite, group::mls_group_id},
};

#[tokio::test]
async fn a_garbage_commit_does_not_end_the_group() {
    let scene = Scene::new().await;
    let at = scene.at();
    scene.garbage(&[]).await;
    let sent = scene.groups[1].send("meanwhile").await.unwrap();
    scene.is_whole().await;
    for group in &scene.groups {
        reads(group, "meanwhile").await;
    }
    assert!(scene.clients[1].message_status(sent).await.unwrap().is_sent());
    scene.goes_on(at, 1).await;
}

#[tokio::test]
async fn two_garbage_commits_in_a_row_do_not_end_the_group() {
    let scene = Scene::new().await;
    let at = scene.at();
    scene.garbage(&[]).await;
    scene.garbage(&[]).await;
    scene.goes_on(at, 2).await;
}

#[tokio::test]
async fn a_garbage_commit_that_tells_the_relay_to_remove_all_others_removes_none() {
    let scene = Scene::new().await;
    let at = scene.at();
    let others: Vec<_> = scene.clients.iter().map(Client::device_id).collect();
    scene.garbage(&others).await;
    scene.goes_on(at, 1).await;
}

#[tokio::test]
async fn a_commit_that_does_something_else_than_it_says_is_applied_by_nobody() {
    let scene = Scene::new().await;
    let at = scene.at();
    scene.lying(vec![scene.clients[2].device_id()]).await;
    scene.goes_on(at, 1).await;
}

#[tokio::test]
async fn with_one_other_taken_out_the_two_find_together() {
    let mut scene = Scene::new().await;
    let bob = scene.away(1);
    let (at, account) = (scene.at(), bob.account().account_id);
    scene.groups[0].remove(account).await.unwrap();
    until("carol to know", async || members_of(&scene.clients[1], scene.id()).await.len() == 3).await;
    scene.garbage(&[scene.clients[1].device_id()]).await;
    scene.goes_on(at + 1, 1).await;
}

#[tokio::test]
async fn who_comes_later_follows_and_has_missed_nothing() {
    let mut scene = Scene::new().await;
    let at = scene.at();
    scene.away(2).shutdown().await;
    scene.garbage(&[]).await;
    for n in 0..2 {
        let others = [0, 1].map(|one| &scene.groups[one]);
        others[n].send(format!("without carol {n}")).await.unwrap();
    }
    for group in &scene.groups {
        reads(group, "without carol 0").await;
        reads(group, "without carol 1").await;
    }
    let at_carol = scene.returns("carol").await;
    reads(&at_carol, "without carol 0").await;
    reads(&at_carol, "without carol 1").await;
    scene.goes_on(at, 1).await;
}

#[tokio::test]
async fn a_successor_of_a_group_that_goes_on_is_passed_over() {
    let scene = Scene::new().await;
    scene.bogus_successor(&scene.clients[2]).await;
    scene.all_have_taken_all().await;
    for (client, group) in scene.clients.iter().zip(&scene.groups) {
        assert_eq!(live(client, group.id()).await, scene.id());
        assert_eq!(client.groups().await.unwrap().len(), 1, "no other group came of it");
    }
    scene.talks().await;
}

#[tokio::test]
async fn a_successor_with_the_one_who_ended_the_group_is_replaced() {
    let scene = Scene::new().await;
    let at = scene.at();
    let bogus = scene.bogus_successor(&scene.clients[2]).await;
    scene.garbage(&[]).await;
    scene.goes_on_in(at, 1, 2).await;
    assert_ne!(scene.world.relay.successors(&scene.id())[1].1, bogus);
}

#[tokio::test]
async fn a_successor_of_a_weaker_suite_is_replaced_by_one_of_the_same() {
    let mut scene = Scene::of(Suite::Hybrid).await;
    let (at, bob) = (scene.at(), scene.away(1));
    bob.engine().stop();
    scene.garbage(&[]).await;
    let weaker = scene.successor_by(&bob, Suite::Classic, &bob, at).await;
    bob.shutdown().await;
    if is_unchecked("successor-suite") {
        return scene.is_weaker().await;
    }
    scene.returns("bob").await;
    scene.goes_on_in(at, 1, 2).await;
    let recorded = scene.world.relay.successors(&scene.id());
    assert!(recorded[0].1 == weaker && recorded[1].1 != weaker, "{recorded:?}");
    for group in &scene.groups {
        assert!(group.summary().await.unwrap().post_quantum);
    }
}

#[tokio::test]
async fn a_group_is_not_swapped_for_one_of_a_weaker_suite_that_is_called_the_same() {
    let scene = Scene::of(Suite::Hybrid).await;
    let at = scene.at();
    scene.swaps_the_group(Suite::Classic).await;
    if is_unchecked("welcome-suite") {
        return scene.is_weaker().await;
    }
    scene.goes_on(at, 1).await;
    for group in &scene.groups {
        assert!(group.summary().await.unwrap().post_quantum);
    }
}

#[tokio::test]
async fn who_was_removed_pulls_nobody_away() {
    let scene = Scene::new().await;
    let at = scene.at();
    let (before, insider) = (scene.id(), scene.insider.account().account_id);
    scene.groups[0].remove(insider).await.unwrap();
    // In the name of those who stood in the epoch before.
    found(&scene.insider, &OpenMlsRustCrypto::default(), Suite::Classic, before, at).await;
    scene.is_whole().await;
    scene.all_have_taken_all().await;
    scene.talks().await;
    for client in &scene.clients {
        assert_eq!(live(client, before).await, before);
    }
    assert_eq!(scene.at(), at + 1);
}

#[tokio::test]
async fn who_wrongly_cannot_apply_a_commit_is_let_in_by_the_others() {
    let scene = Scene::new().await;
    let (bob, id) = (&scene.clients[1], scene.id());
    const ROWS: &str = "SELECT group_data FROM openmls_group_data WHERE data_type = 'message_secrets'";
    let read = |client: &Client| {
        let store = client.engine().store.clone();
        async move {
            let read = store.with_tx(|tx| {
                let row =
                    tx.query_row(ROWS, [], |row| row.get::<_, Vec<u8>>(0)).map_err(crate::store::StoreError::from);
                Ok::<_, Error>(row?)
            });
            read.await.unwrap()
        }
    };
    let old = read(bob).await;
    let dave = scene.world.register("dave").await;
    scene.groups[0].add(dave.account().account_id).await.unwrap();
    until("bob to know dave", async || members_of(bob, id).await.len() == 5).await;
    let spoilt = bob.engine().store.with_tx(move |tx| {
        const SPOIL: &str = "UPDATE openmls_group_data SET group_data = ?1 WHERE data_type = 'message_secrets'";
        drop(tx.mls().take(&mls_group_id(id))?);
        Ok::<_, Error>(tx.execute(SPOIL, [old]).map_err(crate::store::StoreError::from)?)
    });
    assert_eq!(spoilt.await.unwrap(), 1);
    let (at, insider) = (scene.at(), scene.insider.account().account_id);
    scene.groups[0].remove(insider).await.unwrap();
    until("bob to be let in", async || scene.at() == at + 2 && members_of(bob, id).await.len() == 4).await;
    is_in(bob, id).await;
    scene.talks().await;
    assert_eq!(scene.world.relay.successors(&id), []);
    assert_eq!(live(bob, id).await, id);
}

#[tokio::test]
async fn what_is_posted_again_is_read_once() {
    let scene = Scene::new().await;
    let (insider, id) = (scene.insider.device_id(), scene.id());
    scene.groups[0].send("once").await.unwrap();
    scene.groups[1].add(scene.world.register("dave").await.account().account_id).await.unwrap();
    scene.groups[0].send("after").await.unwrap();
    reads(&scene.groups[1], "after").await;
    let (mut accepted, mut stale) = (0, 0);
    for delivery in scene.world.relay.queue(&insider) {
        let engine = scene.insider.engine();
        let message_id = engine.message_id().unwrap();
        let answer = match delivery.envelope {
            Envelope::GroupMessage { message, .. } => {
                let request = &SendRequest { message_id, message, ttl_s: None };
                engine.signed_in(|token| async move { engine.api.send(&token, id, request).await }).await.map(drop)
            }
            Envelope::GroupCommit { commit, .. } => {
                let sealed_group_info = vec![1].into();
                let request = &CommitRequest { message_id, commit, welcome: None, sealed_group_info };
                engine.signed_in(|token| async move { engine.api.commit(&token, id, request).await }).await.map(drop)
            }
            _ => continue,
        };
        match answer {
            Ok(()) => accepted += 1,
            Err(error) => {
                // A commit without the Welcome that went with it is not even looked at.
                assert!(matches!(error.code(), Some(ErrorCode::StaleGroup | ErrorCode::BadMessage)), "{error}");
                stale += 1;
            }
        }
    }
    assert!(accepted >= 1 && stale >= 2, "nothing of an older epoch is taken: {accepted}, {stale}");
    scene.all_have_taken_all().await;
    scene.talks().await;
}

#[tokio::test]
async fn a_founder_who_adds_nobody_is_not_waited_for() {
    let mut scene = Scene::new().await;
    let (at, bob) = (scene.at(), scene.away(1));
    bob.engine().stop();
    scene.garbage(&[]).await;
    found(&bob, &OpenMlsRustCrypto::default(), Suite::Classic, scene.id(), at).await;
    bob.shutdown().await;
    scene.groups[0].send("nobody waits").await.unwrap();
    scene.returns("bob").await;
    scene.goes_on_in(at, 1, 2).await;
}

#[tokio::test]
async fn who_ended_the_group_cannot_replace_its_successor() {
    let scene = Scene::new().await;
    let at = scene.at();
    scene.garbage(&[]).await;
    scene.is_whole().await;
    let recorded = scene.world.relay.successors(&scene.id());
    let engine = scene.insider.engine();
    let own = GroupId::from_random(engine.entropy.bytes().unwrap());
    let create = &CreateGroupRequest { group_id: own, sealed_group_info: vec![1].into() };
    engine.signed_in(|token| async move { engine.api.create_group(&token, create).await }).await.unwrap();
    let id = scene.id();
    let message_id = engine.message_id().unwrap();
    let request = &SuccessorRequest { message_id, at, successor: own, replaces: Some(recorded[0].1) };
    let refused = engine.signed_in(|token| async move { engine.api.succeed(&token, id, request).await }).await;
    assert_eq!(refused.unwrap_err().code(), Some(&ErrorCode::Malformed));
    scene.goes_on(at, 1).await;
}

#[tokio::test]
async fn what_is_said_before_it_is_clear_who_follows_is_not_lost() {
    let mut scene = Scene::new().await;
    let at = scene.at();
    scene.away(1).shutdown().await;
    // Those whom it takes out have nobody to ask, so nobody is heard asking.
    let others: Vec<_> = scene.clients.iter().map(Client::device_id).collect();
    scene.garbage(&others).await;
    scene.groups[0].send("are you there, bob?").await.unwrap();
    reads(&scene.groups[1], "are you there, bob?").await;
    let at_bob = scene.returns("bob").await;
    reads(&at_bob, "are you there, bob?").await;
    scene.goes_on(at, 1).await;
}

#[tokio::test]
async fn who_has_missed_something_and_follows_is_in_the_successor_once() {
    let mut scene = Scene::new().await;
    let at = scene.at();
    scene.away(1).shutdown().await;
    scene.groups[0].send("lost on bob").await.unwrap();
    reads(&scene.groups[1], "lost on bob").await;
    let device = scene.clients[0].device_id();
    until("alice to have taken it", async || scene.world.relay.queue_len(&device) == 0).await;
    let bobs_device = scene.absent();
    scene.world.relay.expire_queue(&bobs_device, u64::MAX);
    scene.garbage(&[]).await;
    scene.groups[0].send("in the new one").await.unwrap();
    reads(&scene.groups[1], "in the new one").await;
    let at_bob = scene.returns("bob").await;
    reads(&at_bob, "in the new one").await;
    scene.goes_on(at, 1).await;
}
