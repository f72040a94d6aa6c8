//! Two members change the group at the same moment, again and again.

use std::{path::Path, time::Duration};

use undertone::{AccountId, Client, Connection, Group, StoreKey};
use undertone_tests::{Backend, Build, Relay, Store, on_both, scaled, wait_until};

async fn register(folder: &Path, name: &str, relay: &str) -> Client {
    let key = StoreKey::Raw32([7; 32]);
    Client::builder(relay).store(folder.join(name), key).register(name).await.unwrap()
}

async fn members(group: &Group) -> Vec<AccountId> {
    group.summary().await.unwrap().members.iter().map(|member| member.account_id).collect()
}

on_both!(two_commits_at_the_same_moment_both_end_up_applied);

async fn two_commits_at_the_same_moment_both_end_up_applied(backend: Backend) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::new(folder.path(), backend).await;
    let relay = Relay::start(&store, Build::Workspace).await;
    let mut clients = Vec::new();
    for name in ["alice", "bob", "carol", "dave"] {
        clients.push(register(folder.path(), name, &relay.url()).await);
    }
    let [alice, bob, carol, dave] = clients.as_slice() else { panic!("four clients") };
    let [carol_id, dave_id] = [carol, dave].map(|client| client.account().account_id);
    for client in &clients {
        assert_eq!(client.caught_up(Duration::from_secs(60)).await, Connection::Online);
    }
    let at_alice = alice.create_group("race").await.unwrap();
    at_alice.add(bob.account().account_id).await.unwrap();
    let at_bob = bob.group(at_alice.id());
    wait_until("bob to join", async || at_bob.summary().await.ok().map(drop)).await;

    // Each round has two pairs of simultaneous commits.
    for round in 0..scaled(25, 250) {
        tokio::try_join!(at_alice.add(carol_id), at_bob.add(dave_id)).unwrap();
        wait_until(format!("four members on both sides, round {round}"), async || {
            (members(&at_alice).await.len() == 4 && members(&at_bob).await.len() == 4).then_some(())
        })
        .await;
        tokio::try_join!(at_alice.remove(dave_id), at_bob.remove(carol_id)).unwrap();
        wait_until(format!("two members on both sides, round {round}"), async || {
            (members(&at_alice).await.len() == 2 && members(&at_bob).await.len() == 2).then_some(())
        })
        .await;
    }

    // No fork: each still reads the other.
    at_alice.send("from alice").await.unwrap();
    at_bob.send("from bob").await.unwrap();
    for group in [&at_alice, &at_bob] {
        wait_until("both messages on both sides", async || {
            let history = group.history(10, None).await.unwrap();
            (history.len() == 2).then_some(())
        })
        .await;
    }
    for client in clients {
        client.shutdown().await;
    }
}
