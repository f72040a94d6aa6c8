//! A group with somebody in it who is about to break it, and what such a one can do.

use std::collections::BTreeSet;

use openmls::prelude::{OpenMlsProvider as _, VLBytes, tls_codec::Serialize as _};
use openmls_rust_crypto::OpenMlsRustCrypto;
use undertone_api::RelayApi as _;
use undertone_wire::{
    AuthenticatedData, Bytes, ClaimRequest, CommitRequest, CreateGroupRequest, DeviceId, Encoding, GroupId,
    SuccessorRequest, WelcomeParts,
};

use super::super::{
    member, now_ms, until,
    world::{World, reads},
};
use crate::{
    Client, Error, Group,
    crypto::{
        Member, Provider as _, Suite,
        group::{self, Change, Continues, Profile},
    },
};

/// People in a group, the last of whom is about to break it. Its own SDK has stopped.
pub(super) struct Scene {
    pub(super) world: World,
    pub(super) clients: Vec<Client>,
    pub(super) groups: Vec<Group>,
    pub(super) insider: Client,
}

const NAMES: [&str; 4] = ["alice", "bob", "carol", "mallory"];

impl Scene {
    pub(super) async fn new() -> Self {
        Self::of(Suite::Classic).await
    }

    /// The same in a group of a suite.
    pub(super) async fn of(suite: Suite) -> Self {
        let world = World::new();
        let mut clients = Vec::new();
        for name in NAMES {
            clients.push(world.register(name).await);
        }
        let mut groups = world.group_of(suite, &clients.iter().collect::<Vec<_>>()).await;
        groups[0].send("before").await.unwrap();
        for group in &groups {
            reads(group, "before").await;
        }
        let insider = clients.pop().unwrap();
        groups.pop();
        insider.engine().stop();
        Self { world, clients, groups, insider }
    }

    /// One of them is not seen to for a while.
    pub(super) fn away(&mut self, n: usize) -> Client {
        self.groups.remove(n);
        self.clients.remove(n)
    }

    /// Somebody comes back from their store.
    pub(super) async fn returns(&mut self, name: &str) -> Group {
        let client = self.world.open(name).await;
        let group = client.group(self.id());
        self.groups.push(group.clone());
        self.clients.push(client);
        group
    }

    pub(super) fn id(&self) -> GroupId {
        self.groups[0].id()
    }

    pub(super) fn at(&self) -> u64 {
        self.world.relay.group_position(&self.id()).unwrap().commit_seq
    }

    /// Posts what stands for a commit, with a group info that opens, or not.
    pub(super) async fn post(&self, commit: Bytes, sealed_group_info: Bytes) {
        self.post_with(commit, None, sealed_group_info).await;
    }

    async fn post_with(&self, commit: Bytes, welcome: Option<WelcomeParts>, sealed_group_info: Bytes) {
        let (engine, id) = (self.insider.engine(), self.id());
        let message_id = engine.message_id().unwrap();
        let request = &CommitRequest { message_id, commit, welcome, sealed_group_info };
        engine.signed_in(|token| async move { engine.api.commit(&token, id, request).await }).await.unwrap();
    }

    /// Posts bytes that only look like a commit.
    pub(super) async fn garbage(&self, removed: &[DeviceId]) {
        self.post(self.no_commit(&[], removed), vec![1; 200].into()).await;
    }

    /// What is told to add and remove these.
    fn no_commit(&self, added: &[DeviceId], removed: &[DeviceId]) -> Bytes {
        let position = self.world.relay.group_position(&self.id()).unwrap();
        let [added, removed] = [added, removed].map(|devices| {
            let mut devices = devices.to_vec();
            devices.sort_unstable();
            devices
        });
        let told = AuthenticatedData { at: position.commit_seq, added, removed };
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
        bytes.concat().into()
    }

    /// Has all others taken out and in again, by Welcomes to a group of this suite that is called as theirs.
    pub(super) async fn swaps_the_group(&self, suite: Suite) {
        let (engine, id, at) = (self.insider.engine(), self.id(), self.at());
        let (provider, identity) = (OpenMlsRustCrypto::default(), engine.identity());
        let profile = Profile { name: "ski trip".into(), continues: None };
        let key = group::create(&provider, &identity, suite, id, &profile).unwrap().rejoin_key;
        for at in 0..at {
            let update = Change { update: true, ..Change::default() };
            group::stage(&provider, &identity, id, at, &key, &update, now_ms()).unwrap().unwrap();
            group::merge_pending(&provider, id).unwrap();
        }
        let change = Change { add: self.claimed(&self.insider, suite, None).await, ..Change::default() };
        let staged = group::stage(&provider, &identity, id, at, &key, &change, now_ms()).unwrap().unwrap();
        let others: Vec<_> = self.clients.iter().map(Client::device_id).collect();
        self.post_with(self.no_commit(&others, &others), staged.welcome, staged.sealed_group_info).await;
    }

    /// Waits until all are in a group of the weaker suite.
    pub(super) async fn is_weaker(&self) {
        for group in &self.groups {
            until("to be in a weaker group", async || {
                let summary = group.summary().await.unwrap();
                summary.active && !summary.post_quantum
            })
            .await;
        }
    }

    /// A key package of each of the others but one.
    async fn claimed(&self, by: &Client, suite: Suite, left_out: Option<&Client>) -> Vec<(Member, Bytes)> {
        let engine = by.engine();
        let mut claimed = Vec::new();
        let left_out = left_out.map(Client::device_id);
        for client in self.clients.iter().filter(|client| Some(client.device_id()) != left_out) {
            let request = &ClaimRequest { account_id: client.account().account_id, suite: suite.number() };
            let answer =
                engine.signed_in(|token| async move { engine.api.claim(&token, request).await }).await.unwrap();
            claimed.push((member(client), answer.key_packages[0].key_package.clone().unwrap()));
        }
        claimed
    }

    /// Makes a commit that does what it should but tells the relay something else.
    pub(super) async fn lying(&self, told_to_remove: Vec<DeviceId>) {
        let (id, identity) = (self.id(), self.insider.engine().identity());
        let made = self.insider.engine().store.with_tx(move |tx| {
            let row = tx.group(id)?.unwrap();
            let provider = tx.mls();
            let mut mls = provider.take(&group::mls_group_id(id)).unwrap().unwrap();
            let told = AuthenticatedData { at: row.commit_seq, added: vec![], removed: told_to_remove };
            mls.set_aad(Encoding::Cbor.encode(&told));
            let builder = mls.commit_builder().load_psks(provider.storage()).unwrap();
            let built = builder.build(provider.rand(), provider.crypto(), &*identity, |_| true).unwrap();
            let (commit, ..) = built.stage_commit(&provider).unwrap().into_contents();
            Ok::<_, Error>(Bytes::from(commit.tls_serialize_detached().unwrap()))
        });
        self.post(made.await.unwrap(), vec![1; 200].into()).await;
    }

    /// The insider founds a group that is said to go on in the place of this one, with all who are in it but `left_out`.
    pub(super) async fn bogus_successor(&self, left_out: &Client) -> GroupId {
        self.successor_by(&self.insider, Suite::Classic, left_out, self.at()).await
    }

    /// Somebody founds one, of a suite, for those who stand there.
    pub(super) async fn successor_by(&self, founder: &Client, suite: Suite, left_out: &Client, at: u64) -> GroupId {
        let engine = founder.engine();
        let (provider, identity) = (OpenMlsRustCrypto::default(), engine.identity());
        let (successor, rejoin_key) = found(founder, &provider, suite, self.id(), at).await;
        let change = Change { add: self.claimed(founder, suite, Some(left_out)).await, ..Change::default() };
        let staged = group::stage(&provider, &identity, successor, 0, &rejoin_key, &change, now_ms());
        let group::Staged { commit, welcome, sealed_group_info } = staged.unwrap().unwrap();
        let message_id = engine.message_id().unwrap();
        let request = &CommitRequest { message_id, commit, welcome, sealed_group_info };
        engine.signed_in(|token| async move { engine.api.commit(&token, successor, request).await }).await.unwrap();
        successor
    }

    /// The one member device that nobody runs now.
    pub(super) fn absent(&self) -> DeviceId {
        let members = self.world.relay.group_members(&self.id());
        let known: Vec<_> = self.clients.iter().chain([&self.insider]).map(Client::device_id).collect();
        members.into_iter().find(|device| !known.contains(device)).unwrap()
    }

    /// Waits until all have taken what the relay has for them.
    pub(super) async fn all_have_taken_all(&self) {
        for client in &self.clients {
            until("a queue to be empty", async || self.world.relay.queue_len(&client.device_id()) == 0).await;
        }
    }

    /// Waits until the others are together in one group without the insider.
    pub(super) async fn is_whole(&self) {
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
    pub(super) async fn talks(&self) {
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

    /// The others go on without the insider, in the one successor that was founded.
    pub(super) async fn goes_on(&self, at: u64, commits: u64) {
        self.goes_on_in(at, commits, 1).await;
    }

    /// The same, where so many successors were recorded, all but the last of them unfit.
    pub(super) async fn goes_on_in(&self, at: u64, commits: u64, recorded: usize) {
        self.is_whole().await;
        self.talks().await;
        self.founded(at, commits, recorded);
    }

    /// Nobody has joined on its own, and so many successors were recorded.
    fn founded(&self, at: u64, commits: u64, recorded: usize) {
        assert_eq!(self.at(), at + commits, "no commit but the insider's");
        let successors = self.world.relay.successors(&self.id());
        assert!(successors.len() == recorded && successors.iter().all(|(from, _)| *from == at), "{successors:?}");
    }
}

/// Founds a group that is said to go on in the place of another one, and adds nobody.
pub(super) async fn found(
    founder: &Client,
    provider: &OpenMlsRustCrypto,
    suite: Suite,
    id: GroupId,
    at: u64,
) -> (GroupId, group::RejoinKey) {
    let engine = founder.engine();
    let successor = GroupId::from_random(engine.entropy.bytes().unwrap());
    let profile = Profile { name: "ski trip".into(), continues: Some(Continues { group: id, at }) };
    let created = group::create(provider, &engine.identity(), suite, successor, &profile).unwrap();
    let create = &CreateGroupRequest { group_id: successor, sealed_group_info: created.sealed_group_info };
    engine.signed_in(|token| async move { engine.api.create_group(&token, create).await }).await.unwrap();
    let request = &SuccessorRequest { message_id: engine.message_id().unwrap(), at, successor, replaces: None };
    engine.signed_in(|token| async move { engine.api.succeed(&token, id, request).await }).await.unwrap();
    (successor, created.rejoin_key)
}

async fn texts(group: &Group) -> Vec<String> {
    group.history(1_000, None).await.unwrap().iter().map(|message| message.text().to_owned()).collect()
}

pub(super) async fn live(client: &Client, id: GroupId) -> GroupId {
    client.engine().store.with_tx(move |tx| Ok::<_, Error>(tx.group(id)?.unwrap().live)).await.unwrap()
}

/// The devices in the tree.
pub(super) async fn members_of(client: &Client, id: GroupId) -> BTreeSet<DeviceId> {
    let members = client.engine().store.with_tx(move |tx| {
        let live = tx.group(id)?.unwrap().live;
        group::members(&tx.mls(), live).map_err(Error::from)
    });
    members.await.unwrap_or_default().keys().map(|one| one.device).collect()
}
