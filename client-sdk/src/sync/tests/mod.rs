//! Welcomes that a stranger crafts, and what a member can do to a history: through an honest relay. `crashes`: a device that
//! dies at each of its writes; `direct`: sessions between devices; `insider`: a member that breaks a group; `recovery`:
//! what brings a device back into a group; `updates`: new keys.

mod crashes;
mod devices;
mod direct;
mod hostile;
mod insider;
mod recovery;
mod updates;
mod world;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use openmls_rust_crypto::OpenMlsRustCrypto;
use tempfile::TempDir;
use undertone_api::RelayApi as _;
use undertone_wire::{Bytes, ClaimRequest, CommitRequest, Delivery, Envelope, GroupId, MessageId, WelcomeParts, suite};

use super::inbox;
use crate::{
    Client, Clock, Connection, Error, Event, MessageStatus, StoreKey, SystemClock,
    api::fake::FakeRelay,
    crypto::{
        Entropy, Identity, Member, Members, Suite,
        group::{self, Change, Profile},
        key_package,
    },
    store::{HistoryPage, MessageRow},
};

/// alice and bob are in a group; mallory, who knows its id, has one of its own.
struct Scene {
    relay: Arc<FakeRelay>,
    alice: Client,
    bob: Client,
    mallory: Client,
    good: GroupId,
    bait: GroupId,
    _folder: TempDir,
}

/// What takes longer does not happen.
const PATIENCE: Duration = Duration::from_secs(60);

// openmls looks at lifetimes with the system's clock.
fn now_ms() -> u64 {
    SystemClock.now_ms()
}

/// Waits until somebody is told what is wanted; what they are told before is passed over.
async fn told(client: &Client, what: &str, is_wanted: impl Fn(&Event) -> bool) {
    let events = client.events();
    let told = async { while !events.next().await.is_some_and(|event| is_wanted(&event)) {} };
    tokio::time::timeout(PATIENCE, told).await.unwrap_or_else(|_| panic!("waited in vain: {what}"));
}

async fn until(what: &str, mut look: impl AsyncFnMut() -> bool) {
    let mut tick = tokio::time::interval(Duration::from_millis(5));
    let seen = async {
        while !look().await {
            tick.tick().await;
        }
    };
    tokio::time::timeout(PATIENCE, seen).await.unwrap_or_else(|_| panic!("waited in vain: {what}"));
}

async fn register(relay: &Arc<FakeRelay>, folder: &TempDir, name: &str) -> Client {
    let builder = Client::builder("http://localhost").api(relay.connect());
    let client = builder.store(folder.path().join(name), StoreKey::Raw32([1; 32])).register(name).await.unwrap();
    until("to be online", async || client.connection() == Connection::Online).await;
    client
}

impl Scene {
    async fn new() -> Self {
        let (relay, folder) = (FakeRelay::new(), tempfile::tempdir().unwrap());
        let alice = register(&relay, &folder, "alice").await;
        let bob = register(&relay, &folder, "bob").await;
        let mallory = register(&relay, &folder, "mallory").await;
        let good = alice.create_group("ski trip").await.unwrap();
        good.add(bob.account().account_id).await.unwrap();
        let good = good.id();
        until("bob to join", async || bob.group(good).summary().await.is_ok()).await;
        let bait = mallory.create_group("bait").await.unwrap().id();
        mallory.outbox_empty(PATIENCE).await.unwrap();
        Self { relay, alice, bob, mallory, good, bait, _folder: folder }
    }

    async fn bob_has_taken_all(&self) {
        until("bob to have taken it", async || self.relay.queue_len(&self.bob.device_id()) == 0).await;
    }

    async fn tree_at_bob(&self, group: GroupId) -> Members {
        let store = &self.bob.engine().store;
        store.with_tx(move |tx| group::members(&tx.mls(), group).map_err(Error::from)).await.unwrap()
    }

    /// A Welcome for bob that mallory makes alone, for a group of any id, at epoch 1 + 2 * `detours`.
    async fn crafted(&self, id: GroupId, detours: u64) -> WelcomeParts {
        let provider = OpenMlsRustCrypto::default();
        let identity = &self.mallory.engine().identity();
        let mut key = group::create(
            &provider,
            identity,
            Suite::Classic,
            id,
            &Profile { name: "ski trip".into(), continues: None },
        )
        .unwrap()
        .rejoin_key;
        let mut at = 0;
        for _ in 0..detours {
            let other = Identity::random();
            let package =
                key_package::make(&OpenMlsRustCrypto::default(), &other, Suite::Classic, now_ms(), false).unwrap();
            let owner = Member { account: other.account(), device: other.device() };
            let add = Change { add: vec![(owner, package)], ..Change::default() };
            group::stage(&provider, identity, id, at, &key, &add, now_ms()).unwrap().unwrap();
            group::merge_pending(&provider, id).unwrap();
            let remove = Change { remove: vec![owner.device], ..Change::default() };
            group::stage(&provider, identity, id, at + 1, &key, &remove, now_ms()).unwrap().unwrap();
            key = group::merge_pending(&provider, id).unwrap().now.unwrap().rejoin_key.unwrap();
            at += 2;
        }
        let change = Change { add: vec![self.claim_bob().await], ..Change::default() };
        group::stage(&provider, identity, id, at, &key, &change, now_ms()).unwrap().unwrap().welcome.unwrap()
    }

    async fn claim_bob(&self) -> (Member, Bytes) {
        let engine = self.mallory.engine();
        let request = &ClaimRequest { account_id: self.bob.account().account_id, suite: suite::DEFAULT };
        let answer = engine.signed_in(|token| async move { engine.api.claim(&token, request).await }).await.unwrap();
        (member(&self.bob), answer.key_packages[0].key_package.clone().unwrap())
    }

    /// mallory adds bob to a group of its own, by a commit that is in order, and puts another Welcome beside it.
    async fn bait_bob_with(&self, welcome: WelcomeParts) {
        let (engine, bait) = (self.mallory.engine(), self.bait);
        let change = Change { add: vec![self.claim_bob().await], ..Change::default() };
        let identity = engine.identity();
        let staged = engine.store.with_tx(move |tx| {
            let row = tx.group(bait)?.unwrap();
            let staged = group::stage(&tx.mls(), &identity, bait, 0, &row.rejoin_key, &change, now_ms())?;
            Ok::<_, Error>(staged.unwrap())
        });
        let staged = staged.await.unwrap();
        let message_id = engine.message_id().unwrap();
        let (commit, sealed_group_info) = (staged.commit, staged.sealed_group_info);
        let request = &CommitRequest { message_id, commit, welcome: Some(welcome), sealed_group_info };
        engine.signed_in(|token| async move { engine.api.commit(&token, bait, request).await }).await.unwrap();
        self.bob_has_taken_all().await;
    }
}

fn member(client: &Client) -> Member {
    Member { account: client.account().account_id, device: client.device_id() }
}

#[tokio::test]
async fn a_welcome_that_is_for_another_group_inside_leaves_that_group_alone() {
    let scene = Scene::new().await;
    let welcome = scene.crafted(scene.good, 0).await;
    scene.bait_bob_with(welcome).await;
    assert!(!scene.tree_at_bob(scene.good).await.contains_key(&member(&scene.mallory)));
    scene.alice.group(scene.good).send("still there?").await.unwrap();
    let at_bob = scene.bob.group(scene.good);
    until("bob to read alice", async || at_bob.history(1, None).await.unwrap().len() == 1).await;
}

#[tokio::test]
async fn a_welcome_of_another_epoch_than_the_relays_is_refused() {
    let scene = Scene::new().await;
    let welcome = scene.crafted(scene.bait, 1).await;
    scene.bait_bob_with(welcome).await;
    assert!(matches!(scene.bob.group(scene.bait).send("who are you?").await, Err(Error::UnknownGroup)));
}

#[tokio::test]
async fn a_welcome_into_a_group_this_device_is_in_is_refused() {
    // The relay plays along: it hands bob a Welcome for a group he is in.
    let scene = Scene::new().await;
    let welcome = scene.crafted(scene.good, 0).await;
    let (group_info, secrets) = (welcome.group_info, welcome.secrets[0].secrets.clone());
    let envelope = Envelope::Welcome { group_id: scene.good, commit_seq: 2, group_info, secrets };
    let identity = scene.bob.engine().identity();
    let applied = scene.bob.engine().store.with_tx(move |tx| {
        let delivery = Delivery { seq: tx.cursor()? + 1, envelope };
        let context =
            inbox::Context { identity: &identity, entropy: Entropy::system(), now_ms: now_ms(), looked_up: false };
        inbox::apply(tx, &context, &delivery).map_err(Error::from)
    });
    assert_eq!(applied.await.unwrap(), inbox::Outcome::Applied(inbox::Effect::default()));
    assert!(scene.tree_at_bob(scene.good).await.contains_key(&member(&scene.alice)));
}

#[tokio::test]
async fn a_content_id_used_again_by_another_member_does_not_move_a_page() {
    let scene = Scene::new().await;
    let good = scene.good;
    let mut senders = [scene.alice.account().account_id, scene.bob.account().account_id];
    senders.sort_unstable();
    let page = scene.bob.engine().store.with_tx(move |tx| {
        let id = |number: u8| MessageId::from_parts(1, [number; 10]);
        let row = |sender, number| MessageRow {
            conversation: good.into(),
            content_id: id(number),
            sender,
            sent_at_ms: 1,
            status: MessageStatus::Received,
            content: vec![number].into(),
        };
        for number in 1..=3 {
            tx.add_message(&row(senders[1], number))?;
        }
        tx.add_message(&row(senders[0], 1))?;
        tx.history(good.into(), HistoryPage { limit: 10, before: Some(id(1)) }).map_err(Error::from)
    });
    assert_eq!(page.await.unwrap().unwrap().len(), 0);
}

/// A clock that a test moves.
struct Moved(AtomicU64);

impl Clock for Moved {
    fn now_ms(&self) -> u64 {
        self.0.load(SeqCst)
    }
}

#[tokio::test]
async fn private_halves_are_forgotten_when_their_key_packages_are_over() {
    const PAST_LIFETIME_MS: u64 = 91 * 24 * 60 * 60 * 1_000;
    let (relay, folder) = (FakeRelay::new(), tempfile::tempdir().unwrap());
    let clock = Arc::new(Moved(AtomicU64::new(now_ms())));
    let told = Arc::clone(&clock);
    let way = relay.connect_with_clock(Arc::new(move || told.now_ms()));
    let builder = Client::builder("http://localhost").api(way).clock(Arc::<Moved>::clone(&clock));
    let alice = builder.store(folder.path(), StoreKey::Raw32([1; 32])).register("alice").await.unwrap();
    let engine = alice.engine();
    let kept = async || engine.store.with_tx(|tx| tx.key_packages().map_err(Error::from)).await.unwrap();
    until("key packages to be made", async || kept().await.len() == 101 + 41).await;
    let first = kept().await;
    engine.publish_keys().await.unwrap();
    assert_eq!(kept().await, first, "they live");
    // A relay whose clock is wrong does not make the device forget them, nor does the device's own.
    relay.set_time_ms(relay.time_ms() + PAST_LIFETIME_MS);
    engine.publish_keys().await.unwrap();
    let now = kept().await;
    assert!(first.iter().all(|one| now.contains(one)));
    clock.0.fetch_add(PAST_LIFETIME_MS, SeqCst);
    engine.publish_keys().await.unwrap();
    let now = kept().await;
    assert!(!first.iter().any(|one| now.contains(one)));
    assert!(!now.is_empty(), "others were made");
}
