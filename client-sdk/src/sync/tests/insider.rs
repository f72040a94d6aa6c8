//! A member that wants to break the group, through an honest relay: the others go on without it.

use std::{collections::BTreeSet, sync::Arc};

use openmls::prelude::{MlsGroup, OpenMlsProvider as _, VLBytes, tls_codec::Serialize as _};
use openmls_rust_crypto::OpenMlsRustCrypto;
use undertone_api::RelayApi as _;
use undertone_wire::{
    AuthenticatedData, Bytes, ClaimRequest, CommitRequest, CreateGroupRequest, DeviceId, Encoding, Envelope, ErrorCode,
    GroupId, SendRequest, SuccessorRequest, suite,
};

use super::{
    member, now_ms, until,
    world::{World, is_in, reads},
};
use crate::{
    Client, Error, Group,
    crypto::group::{self, Change, Continues, Profile},
};

/// People in a group, the last of whom is about to break it. Its own SDK has stopped.
struct Scene {
    world: World,
    clients: Vec<Client>,
    groups: Vec<Group>,
    insider: Client,
}

const NAMES: [&str; 4] = ["alice", "bob", "carol", "mallory"];

impl Scene {
    async fn new() -> Self {
        let world = World::new();
        let mut clients = Vec::new();
        for name in NAMES {
            clients.push(world.register(name).await);
        }
        let mut groups = world.group(&clients.iter().collect::<Vec<_>>()).await;
        groups[0].send("before").await.unwrap();
        for group in &groups {
            reads(group, "before").await;
        }
        let insider = clients.pop().unwrap();
        groups.pop();
        insider.engine().stop();
        Self { world, clients, groups, insider }
    }

    fn id(&self) -> GroupId {
        self.groups[0].id()
    }

    fn at(&self) -> u64 {
        self.world.relay.group_position(&self.id()).unwrap().commit_seq
    }

    /// Posts what stands for a commit, with a group info that opens, or not.
    async fn post(&self, commit: Bytes, sealed_group_info: Bytes) {
        let (engine, id) = (self.insider.engine(), self.id());
        let message_id = engine.message_id().unwrap();
        let request = &CommitRequest { message_id, commit, welcome: None, sealed_group_info };
        engine.signed_in(|token| async move { engine.api.commit(&token, id, request).await }).await.unwrap();
    }

    /// Posts bytes that only look like a commit.
    async fn garbage(&self, removed: &[DeviceId]) {
        let position = self.world.relay.group_position(&self.id()).unwrap();
        let mut removed = removed.to_vec();
        removed.sort_unstable();
        let told = AuthenticatedData { at: position.commit_seq, added: vec![], removed };
        let vector = |bytes: Vec<u8>| VLBytes::new(bytes).tls_serialize_detached().unwrap();
        let bytes = [
            vec![0, 1, 0, 2],
            vector(self.id().as_bytes().to_vec()),
            position.epoch.to_be_bytes().to_vec(),
            vec![3],
            vector(Encoding::Cbor.encode(&told)),
            vector(vec![7; 28]),
            vector(vec![9; 300]),
        ];
        self.post(bytes.concat().into(), vec![1; 200].into()).await;
    }

    /// Makes a commit that does what it should but tells the relay something else.
    async fn lying(&self, told_to_remove: Vec<DeviceId>) {
        let (id, identity) = (self.id(), Arc::clone(&self.insider.engine().identity));
        let made = self.insider.engine().store.with_tx(move |tx| {
            let row = tx.group(id)?.unwrap();
            let provider = tx.mls();
            let mut mls = MlsGroup::load(provider.storage(), &group::mls_group_id(id)).unwrap().unwrap();
            let told = AuthenticatedData { at: row.commit_seq, added: vec![], removed: told_to_remove };
            mls.set_aad(Encoding::Cbor.encode(&told));
            let builder = mls.commit_builder().load_psks(provider.storage()).unwrap();
            let built = builder.build(provider.rand(), provider.crypto(), &*identity, |_| true).unwrap();
            let (commit, ..) = built.stage_commit(&provider).unwrap().into_contents();
            Ok::<_, Error>(Bytes::from(commit.tls_serialize_detached().unwrap()))
        });
        self.post(made.await.unwrap(), vec![1; 200].into()).await;
    }

    /// Founds a group that is said to go on in the place of this one, with all who are in it but `left_out`.
    async fn bogus_successor(&self, left_out: &Client) -> GroupId {
        let engine = self.insider.engine();
        let (provider, identity) = (OpenMlsRustCrypto::default(), &engine.identity);
        let (successor, rejoin_key) = found(&self.insider, &provider, self.id(), self.at()).await;
        let mut add = Vec::new();
        for client in self.clients.iter().filter(|client| client.device_id() != left_out.device_id()) {
            let request = &ClaimRequest { account_id: client.account().account_id, suite: suite::DEFAULT };
            let claimed =
                engine.signed_in(|token| async move { engine.api.claim(&token, request).await }).await.unwrap();
            add.push((member(client), claimed.key_packages[0].key_package.clone().unwrap()));
        }
        let change = Change { add, ..Change::default() };
        let staged = group::stage(&provider, identity, successor, 0, &rejoin_key, &change, now_ms());
        let group::Staged { commit, welcome, sealed_group_info } = staged.unwrap().unwrap();
        let message_id = engine.message_id().unwrap();
        let request = &CommitRequest { message_id, commit, welcome, sealed_group_info };
        engine.signed_in(|token| async move { engine.api.commit(&token, successor, request).await }).await.unwrap();
        successor
    }

    /// Waits until all have taken what the relay has for them.
    async fn all_have_taken_all(&self) {
        for client in &self.clients {
            until("a queue to be empty", async || self.world.relay.queue_len(&client.device_id()) == 0).await;
        }
    }

    /// Waits until the others are together in one group without the insider.
    async fn is_whole(&self) {
        let without: BTreeSet<_> = self.clients.iter().map(Client::device_id).collect();
        let insider = self.insider.account().account_id;
        for (client, group) in self.clients.iter().zip(&self.groups) {
            until("to go on without the insider", async || {
                let members = members_of(client, group.id()).await;
                members == without
            })
            .await;
            let summary = group.summary().await.unwrap();
            assert!(summary.active && summary.name == "ski trip");
            assert!(summary.members.iter().all(|one| one.account_id != insider));
        }
        let mut lives = BTreeSet::new();
        for (client, group) in self.clients.iter().zip(&self.groups) {
            lives.insert(live(client, group.id()).await);
        }
        assert_eq!(lives.len(), 1, "in one group");
    }

    /// All say something, which all read once.
    async fn talks(&self) {
        for (client, group) in self.clients.iter().zip(&self.groups) {
            group.send(format!("from {}", client.account().name())).await.unwrap();
        }
        for group in &self.groups {
            for client in &self.clients {
                reads(group, &format!("from {}", client.account().name())).await;
            }
        }
        self.has_each_message_once().await;
    }

    async fn has_each_message_once(&self) {
        for group in &self.groups {
            let mut texts = texts(group).await;
            let all = texts.len();
            texts.sort_unstable();
            texts.dedup();
            assert_eq!(texts.len(), all, "{texts:?}");
        }
    }

    /// Nobody has joined on its own, and one successor was founded.
    fn founded_one(&self, at: u64, commits: u64) {
        self.founded(at, commits, 1);
    }

    /// The same, after so many that were not fit.
    fn founded(&self, at: u64, commits: u64, recorded: usize) {
        assert_eq!(self.at(), at + commits, "no commit but the insider's");
        let successors = self.world.relay.successors(&self.id());
        assert!(successors.len() == recorded && successors.iter().all(|(from, _)| *from == at), "{successors:?}");
    }
}

/// Founds a group that is said to go on in the place of another one, and adds nobody.
async fn found(founder: &Client, provider: &OpenMlsRustCrypto, id: GroupId, at: u64) -> (GroupId, group::RejoinKey) {
    let engine = founder.engine();
    let successor = GroupId::from_random(engine.entropy.bytes().unwrap());
    let profile = Profile { name: "ski trip".into(), continues: Some(Continues { group: id, at }) };
    let created = group::create(provider, &engine.identity, successor, &profile).unwrap();
    let create = &CreateGroupRequest { group_id: successor, sealed_group_info: created.sealed_group_info };
    engine.signed_in(|token| async move { engine.api.create_group(&token, create).await }).await.unwrap();
    let request = &SuccessorRequest { message_id: engine.message_id().unwrap(), at, successor, replaces: None };
    engine.signed_in(|token| async move { engine.api.succeed(&token, id, request).await }).await.unwrap();
    (successor, created.rejoin_key)
}

async fn texts(group: &Group) -> Vec<String> {
    group.history(1_000, None).await.unwrap().iter().map(|message| message.text().to_owned()).collect()
}

async fn live(client: &Client, id: GroupId) -> GroupId {
    client.engine().store.with_tx(move |tx| Ok::<_, Error>(tx.group(id)?.unwrap().live)).await.unwrap()
}

/// The devices in the tree.
async fn members_of(client: &Client, id: GroupId) -> BTreeSet<DeviceId> {
    let members = client.engine().store.with_tx(move |tx| {
        let live = tx.group(id)?.unwrap().live;
        group::members(&tx.mls(), live).map_err(Error::from)
    });
    members.await.unwrap_or_default().iter().map(|one| one.device).collect()
}

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
    scene.talks().await;
    scene.founded_one(at, 1);
}

#[tokio::test]
async fn two_garbage_commits_in_a_row_do_not_end_the_group() {
    let scene = Scene::new().await;
    let at = scene.at();
    scene.garbage(&[]).await;
    scene.garbage(&[]).await;
    scene.is_whole().await;
    scene.talks().await;
    scene.founded_one(at, 2);
}

#[tokio::test]
async fn a_garbage_commit_that_tells_the_relay_to_remove_all_others_removes_none() {
    let scene = Scene::new().await;
    let at = scene.at();
    let others: Vec<_> = scene.clients.iter().map(Client::device_id).collect();
    scene.garbage(&others).await;
    scene.is_whole().await;
    scene.talks().await;
    scene.founded_one(at, 1);
}

#[tokio::test]
async fn a_commit_that_does_something_else_than_it_says_is_applied_by_nobody() {
    let scene = Scene::new().await;
    let at = scene.at();
    scene.lying(vec![scene.clients[2].device_id()]).await;
    scene.is_whole().await;
    scene.talks().await;
    scene.founded_one(at, 1);
}

#[tokio::test]
async fn with_one_other_taken_out_the_two_find_together() {
    let mut scene = Scene::new().await;
    let bob = scene.clients.remove(1);
    scene.groups.remove(1);
    let (at, account) = (scene.at(), bob.account().account_id);
    scene.groups[0].remove(account).await.unwrap();
    until("carol to know", async || members_of(&scene.clients[1], scene.id()).await.len() == 3).await;
    scene.garbage(&[scene.clients[1].device_id()]).await;
    scene.is_whole().await;
    scene.talks().await;
    scene.founded_one(at + 1, 1);
}

#[tokio::test]
async fn who_comes_later_follows_and_has_missed_nothing() {
    let mut scene = Scene::new().await;
    let at = scene.at();
    scene.clients.pop().unwrap().shutdown().await;
    scene.groups.pop();
    scene.garbage(&[]).await;
    for n in 0..2 {
        let others = [0, 1].map(|one| &scene.groups[one]);
        others[n].send(format!("without carol {n}")).await.unwrap();
    }
    for group in &scene.groups {
        reads(group, "without carol 0").await;
        reads(group, "without carol 1").await;
    }
    let carol = scene.world.open("carol").await;
    let at_carol = carol.group(scene.id());
    reads(&at_carol, "without carol 0").await;
    reads(&at_carol, "without carol 1").await;
    scene.groups.push(at_carol);
    scene.clients.push(carol);
    scene.is_whole().await;
    scene.talks().await;
    scene.founded_one(at, 1);
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
    scene.is_whole().await;
    scene.talks().await;
    scene.founded(at, 1, 2);
    assert_ne!(scene.world.relay.successors(&scene.id())[1].1, bogus);
}

#[tokio::test]
async fn who_was_removed_pulls_nobody_away() {
    let scene = Scene::new().await;
    let at = scene.at();
    let (before, insider) = (scene.id(), scene.insider.account().account_id);
    scene.groups[0].remove(insider).await.unwrap();
    // In the name of those who stood in the epoch before.
    found(&scene.insider, &OpenMlsRustCrypto::default(), before, at).await;
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
    let (at, bob) = (scene.at(), scene.clients.remove(1));
    scene.groups.remove(1);
    bob.engine().stop();
    scene.garbage(&[]).await;
    found(&bob, &OpenMlsRustCrypto::default(), scene.id(), at).await;
    bob.shutdown().await;
    scene.groups[0].send("nobody waits").await.unwrap();
    let bob = scene.world.open("bob").await;
    scene.groups.push(bob.group(scene.id()));
    scene.clients.push(bob);
    scene.is_whole().await;
    scene.talks().await;
    scene.founded(at, 1, 2);
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
    scene.talks().await;
    scene.founded_one(at, 1);
}

#[tokio::test]
async fn what_is_said_before_it_is_clear_who_follows_is_not_lost() {
    let mut scene = Scene::new().await;
    let bob = scene.clients.remove(1);
    let (at, id) = (scene.at(), scene.id());
    scene.groups.remove(1);
    bob.shutdown().await;
    // Those whom it takes out have nobody to ask, so nobody is heard asking.
    let others: Vec<_> = scene.clients.iter().map(Client::device_id).collect();
    scene.garbage(&others).await;
    scene.groups[0].send("are you there, bob?").await.unwrap();
    reads(&scene.groups[1], "are you there, bob?").await;
    let bob = scene.world.open("bob").await;
    let at_bob = bob.group(id);
    reads(&at_bob, "are you there, bob?").await;
    scene.groups.push(at_bob);
    scene.clients.push(bob);
    scene.is_whole().await;
    scene.talks().await;
    scene.founded_one(at, 1);
}

#[tokio::test]
async fn who_has_missed_something_and_follows_is_in_the_successor_once() {
    let mut scene = Scene::new().await;
    let bob = scene.clients.remove(1);
    let (at, id) = (scene.at(), scene.id());
    scene.groups.remove(1);
    bob.shutdown().await;
    scene.groups[0].send("lost on bob").await.unwrap();
    reads(&scene.groups[1], "lost on bob").await;
    let device = scene.clients[0].device_id();
    until("alice to have taken it", async || scene.world.relay.queue_len(&device) == 0).await;
    let bobs_device = member_of(&scene.world, &scene.clients, &scene.insider, id);
    scene.world.relay.expire_queue(&bobs_device, u64::MAX);
    scene.garbage(&[]).await;
    scene.groups[0].send("in the new one").await.unwrap();
    reads(&scene.groups[1], "in the new one").await;
    let bob = scene.world.open("bob").await;
    let at_bob = bob.group(id);
    reads(&at_bob, "in the new one").await;
    scene.groups.push(at_bob);
    scene.clients.push(bob);
    scene.is_whole().await;
    scene.talks().await;
    scene.founded_one(at, 1);
}

/// The one member device that is neither of these.
fn member_of(world: &World, clients: &[Client], insider: &Client, id: GroupId) -> DeviceId {
    let members = world.relay.group_members(&id);
    let known: Vec<_> = clients.iter().chain([insider]).map(Client::device_id).collect();
    members.into_iter().find(|device| !known.contains(device)).unwrap()
}
