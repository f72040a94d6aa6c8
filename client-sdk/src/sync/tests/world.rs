//! People at a fake relay, whose time goes faster.

use std::sync::Arc;

use tempfile::TempDir;
use undertone_wire::GroupId;

use super::{now_ms, until};
use crate::{
    Client, Clock, Connection, Group, StoreKey,
    api::fake::{FakeRelay, FastClock},
    crypto::Suite,
};

/// So much faster time goes here.
const SPEED: u32 = 20;

/// People at a relay.
pub(super) struct World {
    pub(super) relay: Arc<FakeRelay>,
    pub(super) folder: TempDir,
    clock: Arc<FastClock>,
}

impl World {
    pub(super) fn new() -> Self {
        let clock = FastClock::from(now_ms(), SPEED);
        Self { relay: FakeRelay::new(), folder: tempfile::tempdir().unwrap(), clock }
    }

    pub(super) fn builder(&self, name: &str) -> crate::ClientBuilder<crate::StoreAt> {
        let told = Arc::clone(&self.clock);
        let way = self.relay.connect_with_clock(Arc::new(move || told.now_ms()));
        let builder = Client::builder("http://localhost").api(way).clock(Arc::<FastClock>::clone(&self.clock));
        builder.store(self.folder.path().join(name), StoreKey::Raw32([1; 32]))
    }

    pub(super) async fn register(&self, name: &str) -> Client {
        let client = self.builder(name).register(name).await.unwrap();
        online(&client).await;
        client
    }

    pub(super) async fn open(&self, name: &str) -> Client {
        let client = self.builder(name).open().await.unwrap();
        online(&client).await;
        client
    }

    /// A group of these, as each of them sees it.
    pub(super) async fn group(&self, clients: &[&Client]) -> Vec<Group> {
        self.group_of(Suite::Classic, clients).await
    }

    /// The same of a suite.
    pub(super) async fn group_of(&self, suite: Suite, clients: &[&Client]) -> Vec<Group> {
        let new = clients[0].create_group("ski trip");
        let group = if suite == Suite::Hybrid { new.post_quantum() } else { new }.await.unwrap();
        for other in &clients[1..] {
            group.add(other.account().account_id).await.unwrap();
        }
        for other in clients {
            is_in(other, group.id()).await;
        }
        clients.iter().map(|client| client.group(group.id())).collect()
    }

    pub(super) fn commits(&self, group: &Group) -> u64 {
        self.relay.group_position(&group.id()).unwrap().commit_seq
    }
}

pub(super) async fn online(client: &Client) {
    until("to be online", async || client.connection() == Connection::Online).await;
}

pub(super) async fn is_in(client: &Client, group: GroupId) {
    let group = client.group(group);
    until("to be in the group", async || group.summary().await.is_ok_and(|group| group.active)).await;
    group.accept().await.unwrap();
}

pub(super) async fn reads(group: &Group, text: &str) {
    let look = async || group.history(1_000, None).await.unwrap().iter().any(|message| message.text() == text);
    until(text, look).await;
}

pub(super) async fn members(group: &Group) -> usize {
    group.summary().await.unwrap().members.len()
}
