//! A fake relay and people with devices at it.

use std::sync::{
    Arc,
    atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst},
};

use tempfile::TempDir;
use undertone::{
    AccountId, Client, ClientBuilder, Clock, Event, Group, MessageStatus, StoreAt, StoreKey, SystemClock,
    api::fake::FakeRelay,
};
use undertone_test_crowd::found;
pub(crate) use undertone_test_crowd::{PATIENCE, joined, online, texts, wait_until};

/// A clock that stands still unless a test moves it.
pub(crate) struct Standing(pub(crate) AtomicU64);

impl Clock for Standing {
    fn now_ms(&self) -> u64 {
        self.0.load(SeqCst)
    }
}

impl Standing {
    /// Time passes, here and at the relay.
    pub(crate) fn pass(&self, world: &World, ms: u64) {
        self.0.fetch_add(ms, SeqCst);
        world.relay.set_time_ms(world.relay.time_ms() + ms);
    }
}

pub(crate) fn standing() -> Arc<Standing> {
    Arc::new(Standing(AtomicU64::new(SystemClock.now_ms())))
}

/// A fake relay, and a folder for the stores.
pub(crate) struct World {
    pub(crate) relay: Arc<FakeRelay>,
    folder: TempDir,
}

impl World {
    pub(crate) fn new() -> Self {
        Self { relay: FakeRelay::new(), folder: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn store(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    /// Registers somebody and waits until they are online.
    pub(crate) async fn register(&self, name: &str) -> Client {
        registered(builder_at(&self.relay, self.store(name)), name).await
    }

    /// The same, with a clock of their own.
    pub(crate) async fn register_by(&self, clock: &Arc<Standing>, name: &str) -> Client {
        let clock = Arc::<Standing>::clone(clock);
        registered(builder_at(&self.relay, self.store(name)).clock(clock), name).await
    }

    /// Opens somebody's store again.
    pub(crate) async fn open(&self, name: &str) -> Client {
        // A client that was dropped lets go of its store a moment later.
        wait_until("the store to be free", async || builder_at(&self.relay, self.store(name)).open().await.ok()).await
    }

    /// A group with everybody in it, seen from each of them.
    pub(crate) async fn group(&self, clients: &[&Client]) -> Vec<Group> {
        let (first, others) = clients.split_first().unwrap();
        let group = first.create_group("ski trip").await.unwrap();
        for other in others {
            group.add(other.account().account_id).await.unwrap();
        }
        for other in others {
            joined(other, group.id()).await;
            other.group(group.id()).accept().await.unwrap();
        }
        clients.iter().map(|client| client.group(group.id())).collect()
    }
}

pub(crate) fn builder_at(relay: &Arc<FakeRelay>, path: std::path::PathBuf) -> ClientBuilder<StoreAt> {
    Client::builder("http://localhost").api(relay.connect()).store(path, key())
}

/// Registers somebody and waits until they are online.
pub(crate) async fn registered(builder: ClientBuilder<StoreAt>, name: &str) -> Client {
    let client = builder.register(name).await.unwrap();
    online(&client).await;
    client
}

/// Waits until somebody who had opened so many streams is online by a later one. Before that, `online` may be the last word
/// on a stream that was cut.
pub(crate) async fn online_by_another_stream(world: &World, client: &Client, streams: u64) {
    let device = client.device_id();
    wait_until("another stream", async || (world.relay.streams_opened(&device) > streams).then_some(())).await;
    online(client).await;
}

pub(crate) fn key() -> StoreKey {
    StoreKey::Raw32([1; 32])
}

/// Waits until the history has these texts, in this order; as long as more comes, however long it takes.
pub(crate) async fn has_texts(group: &Group, expected: &[impl AsRef<str>]) {
    let expected: Vec<_> = expected.iter().map(AsRef::as_ref).collect();
    let mut seen = texts(group).await;
    while seen != expected {
        match found(async || Some(texts(group).await).filter(|now| *now != seen)).await {
            Some(now) => seen = now,
            None => break,
        }
    }
    assert_eq!(seen, expected);
}

pub(crate) async fn members(group: &Group) -> Vec<AccountId> {
    group.summary().await.unwrap().members.iter().map(|member| member.account_id).collect()
}

/// Waits until an event comes for which `wanted` gives something; those before it are passed over.
pub(crate) async fn event<T>(client: &Client, mut wanted: impl FnMut(Event) -> Option<T>) -> T {
    let found = async {
        loop {
            if let Some(found) = wanted(client.events().next().await.expect("the client runs")) {
                return found;
            }
        }
    };
    tokio::time::timeout(PATIENCE, found).await.expect("the event comes")
}

/// Counts from now on the events that are `counted`.
pub(crate) fn count_events(client: &Client, counted: impl Fn(&Event) -> bool + Send + 'static) -> Arc<AtomicUsize> {
    let (times, events) = (Arc::new(AtomicUsize::new(0)), client.events());
    let count = Arc::clone(&times);
    tokio::spawn(async move {
        while let Some(event) = events.next().await {
            count.fetch_add(usize::from(counted(&event)), SeqCst);
        }
    });
    times
}

/// Waits until the relay has a message.
pub(crate) async fn is_sent(client: &Client, message: undertone::MessageId) {
    let look = async || client.message_status(message).await.unwrap().is_sent().then_some(());
    wait_until("a message to be sent", look).await;
}

pub(crate) async fn has_failed(client: &Client, message: undertone::MessageId) {
    let look = async || matches!(client.message_status(message).await.unwrap(), MessageStatus::Failed(_)).then_some(());
    wait_until("a message to fail", look).await;
}

/// Waits until the relay has so many commits of a group.
pub(crate) async fn has_commits(world: &World, group: &Group, commits: u64) {
    wait_until(format!("the relay to have {commits} commits"), async || {
        (world.relay.group_position(&group.id()).unwrap().commit_seq == commits).then_some(())
    })
    .await;
}
