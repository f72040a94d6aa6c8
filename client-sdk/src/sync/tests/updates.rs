//! Devices that replace their keys in a group.

use std::collections::BTreeSet;

use openmls::prelude::{MlsGroup, OpenMlsProvider as _};

use super::{
    until,
    world::{World, reads},
};
use crate::{Client, Error, Group, crypto::group};

/// The encryption keys of all leaves.
async fn keys(client: &Client, group: &Group) -> BTreeSet<Vec<u8>> {
    let id = group.id();
    let keys = client.engine().store.with_tx(move |tx| {
        let provider = tx.mls();
        let mls = MlsGroup::load(provider.storage(), &group::mls_group_id(id)).unwrap().unwrap();
        Ok::<_, Error>(mls.members().map(|member| member.encryption_key).collect())
    });
    keys.await.unwrap()
}

async fn update_at_ms(client: &Client, group: &Group) -> Option<u64> {
    const SELECT: &str = "SELECT update_at_ms FROM groups WHERE id = ?1";
    let id = group.id();
    let at_ms = client.engine().store.with_tx(move |tx| {
        let at_ms = tx.query_row(SELECT, [id.as_bytes()], |row| row.get(0));
        Ok::<_, Error>(at_ms.map_err(crate::store::StoreError::from)?)
    });
    at_ms.await.unwrap()
}

#[tokio::test]
async fn who_has_joined_replaces_its_keys_after_a_while_and_then_every_so_often() {
    const WEEK_MS: u64 = 7 * 24 * 60 * 60 * 1_000;
    let world = World::new();
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let groups = world.group(&[&alice, &bob]).await;
    let (commits, before) = (world.commits(&groups[0]), keys(&alice, &groups[0]).await);
    until("a time to be chosen", async || update_at_ms(&bob, &groups[1]).await.is_some()).await;
    let now_ms = bob.engine().clock.now_ms();
    let first_ms = update_at_ms(&bob, &groups[1]).await.unwrap();
    assert!(first_ms > now_ms && first_ms < now_ms + 60 * 60 * 1_000, "within the hour");

    let id = groups[1].id();
    bob.engine().store.with_tx(move |tx| tx.update_at(id, 1).map_err(Error::from)).await.unwrap();
    until("bob's commit", async || world.commits(&groups[0]) == commits + 1).await;
    groups[1].send("new keys").await.unwrap();
    reads(&groups[0], "new keys").await;
    let after = keys(&alice, &groups[0]).await;
    assert_eq!(after.intersection(&before).count(), 1, "bob's are new, alice's are not");
    let next_ms = update_at_ms(&bob, &groups[1]).await.unwrap();
    assert!(next_ms >= now_ms + WEEK_MS && next_ms <= bob.engine().clock.now_ms() + 2 * WEEK_MS);
    assert_eq!(world.commits(&groups[0]), commits + 1);
}

#[tokio::test]
async fn who_cannot_hear_a_member_any_more_replaces_its_keys() {
    let world = World::new();
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let groups = world.group(&[&alice, &bob]).await;
    let commits = world.commits(&groups[0]);
    // So many messages that never reach the relay.
    let (id, identity) = (groups[0].id(), alice.engine().identity());
    let skipped = alice.engine().store.with_tx(move |tx| {
        let at = tx.group(id)?.unwrap().commit_seq;
        for _ in 0..2_001 {
            group::encrypt(&tx.mls(), &identity, id, at, b"lost")?;
        }
        Ok::<_, Error>(())
    });
    skipped.await.unwrap();
    groups[0].send("too far ahead").await.unwrap();
    until("bob's commit", async || world.commits(&groups[0]) == commits + 1).await;
    groups[0].send("heard again").await.unwrap();
    reads(&groups[1], "heard again").await;
}
