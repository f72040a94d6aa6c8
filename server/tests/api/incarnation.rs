//! Incarnations: a store that is a copy of an earlier one is noticed, hands out no key again and loses nothing in silence;
//! the store itself, started again or moved, goes on.

use std::sync::Arc;

use sqlx::AssertSqlSafe;
use tempfile::TempDir;
use undertone_server::Place;
use undertone_wire::{
    Account, ByeReason, Bytes, ErrorCode, FetchResponse, GroupId, Incarnation, KeyCounts, Limits, Relay, SendResponse,
    ServerFrame, Session, Span, path,
};

use crate::{
    stream::bye,
    support::{
        Backend, Device, Keys, Message, Store, TestRelay, both, connect, log_in, postgres, relay::Stopped, scaled,
    },
};

both! {
    a_copy_from_before_is_noticed_and_begins_a_new_incarnation,
    a_copy_in_another_place_begins_a_new_incarnation,
    a_restart_and_upkeep_change_nothing,
    restore_begins_a_new_incarnation_where_nothing_shows_one,
    moved_lets_a_whole_copy_go_on,
    migrate_makes_a_store_and_changes_none,
    device_lists_go_on_from_what_the_copy_has,
}

/// A relay in use: somebody's keys are there to be claimed, and a queue has numbers.
struct World {
    relay: TestRelay,
    alice: Device,
    bob: Device,
    group: GroupId,
}

/// What was handed out, numbered and opened after a copy was made.
struct Since {
    claimed: Vec<Bytes>,
    incarnation: Incarnation,
    /// The last number that the device has.
    last: u64,
}

/// How many one-time keys there are to be handed out after a copy was made.
fn keys() -> usize {
    scaled(4, 100) as usize
}

async fn incarnation_of(relay: &TestRelay) -> Incarnation {
    relay.api().get(path::RELAY).await.yes::<Relay>().incarnation
}

impl World {
    async fn new(on: Backend) -> Self {
        let limits = Limits { claims_per_pair_hour_max: 1_000, ..Limits::default() };
        let relay = TestRelay::with_limits(on, limits).await;
        let (alice, bob) = (relay.device().await, relay.device().await);
        alice.stock(keys()).await;
        let group = bob.create_group().await;
        for _ in 0..3 {
            bob.says(group, 0).await;
        }
        Self { relay, alice, bob, group }
    }

    /// All one-time keys are handed out, and the queue goes on.
    async fn goes_on(&self) -> Since {
        let mut claimed = Vec::new();
        for _ in 0..keys() {
            let entry = self.bob.claim(self.alice.account_id()).await.key_packages.remove(0);
            assert!(!entry.last_resort);
            claimed.push(entry.key_package.unwrap());
        }
        for _ in 0..scaled(7, 1_000) {
            self.bob.says(self.group, 0).await;
        }
        let last = self.bob.fetch(0).await.next_seq - 1;
        self.bob.ack(last).await.done();
        Since { claimed, incarnation: incarnation_of(&self.relay).await, last }
    }

    async fn restart_after(self, change: impl AsyncFnOnce(&mut Stopped)) -> Self {
        let Self { relay, alice, bob, group } = self;
        let mut stopped = relay.stop().await;
        change(&mut stopped).await;
        let relay = stopped.start().await;
        let (alice, bob) = (alice.at(&relay), bob.at(&relay));
        Self { relay, alice, bob, group }
    }

    /// The store is the one it was, as far as can be asked.
    async fn is_the_same(&self, before: Incarnation) {
        assert_eq!(incarnation_of(&self.relay).await, before);
        assert_eq!(self.bob.fetch(0).await.next_seq, 4);
        let claimed = self.bob.claim(self.alice.account_id()).await.key_packages.remove(0);
        assert!(!claimed.last_resort && claimed.key_package.is_some());
        self.bob.says(self.group, 0).await;
    }

    /// The store is a copy from before `since`, and shows it in every way.
    async fn is_another_life(&self, since: &Since) {
        let now = incarnation_of(&self.relay).await;
        assert_ne!(now, since.incarnation);
        self.bob.get(path::QUEUE).await.no(ErrorCode::Unauthenticated);
        let bob = self.bob.account.log_in_all(&self.relay.api()).await.remove(0);
        let alice = self.alice.account.log_in_all(&self.relay.api()).await.remove(0);

        let mut stream = bob.try_stream(since.last, None).await.unwrap();
        let hello = stream.next().await;
        assert!(matches!(&hello, Some(ServerFrame::Hello { incarnation, .. }) if *incarnation == now), "{hello:?}");
        let Some(ServerFrame::Missed { span }) = stream.next().await else { panic!("nothing is told as missed") };
        assert!(span.from == since.last + 1 && span.to > 1 << 32, "{span:?}");
        assert_eq!(bob.fetch(since.last).await.missed, [span]);
        bob.says(self.group, 0).await;
        let fetched = bob.fetch(since.last).await;
        assert_eq!(fetched.missed, [Span { from: since.last + 1, to: span.to }]);
        assert!(fetched.deliveries.iter().map(|entry| entry.seq).eq([span.to + 1]), "numbers go on");

        let counted = alice.get(path::KEYS).await.yes::<KeyCounts>().key_packages;
        assert_eq!((counted[0].one_time, counted[0].last_resort), (0, true));
        let claim = async || bob.claim(alice.account_id()).await.key_packages.remove(0);
        assert!(claim().await.last_resort, "what may have been handed out is not handed out again");
        let anew = alice.key_package(false);
        let published = [since.claimed.clone(), vec![anew.clone()]].concat();
        alice.publish(published, None).await.yes::<KeyCounts>();
        assert_eq!(claim().await.key_package, Some(anew), "even if it is published again");
        assert!(claim().await.last_resort);
    }
}

/// A copy of a store that is not in use.
enum Copy {
    File(TempDir),
    Database(String),
}

/// Gives an order to the server of a database.
async fn order(store: &Store, statement: &str) {
    let url = store.database().url().replace(store.database().name(), "template1");
    sqlx::query(AssertSqlSafe(statement.to_owned())).execute(&mut connect(&url).await).await.unwrap();
}

impl Copy {
    async fn of(store: &Store) -> Self {
        match store {
            Store::Sqlite(_) => {
                let folder = tempfile::tempdir().unwrap();
                std::fs::copy(store.file(), folder.path().join("undertone.db")).unwrap();
                Self::File(folder)
            }
            Store::Postgres(database) => {
                let name = format!("{}_copy", database.name());
                order(store, &format!(r#"CREATE DATABASE "{name}" TEMPLATE "{}""#, database.name())).await;
                Self::Database(name)
            }
        }
    }

    /// Puts it in the place of the store: into the same folder, or as a database of the same name.
    async fn put_back(self, stopped: &Stopped) {
        match self {
            Self::File(folder) => {
                std::fs::copy(folder.path().join("undertone.db"), stopped.store.file()).unwrap();
            }
            Self::Database(copy) => {
                let name = stopped.store.database().name();
                order(&stopped.store, &format!(r#"DROP DATABASE "{name}""#)).await;
                order(&stopped.store, &format!(r#"ALTER DATABASE "{copy}" RENAME TO "{name}""#)).await;
            }
        }
    }

    /// Where it is.
    fn place(&self, of: &Store) -> Place {
        match self {
            Self::File(folder) => Place::Sqlite(folder.path().join("undertone.db")),
            Self::Database(name) => Place::Postgres(postgres(&of.database().url().replace(of.database().name(), name))),
        }
    }
}

async fn a_copy_from_before_is_noticed_and_begins_a_new_incarnation(on: Backend) {
    let mut copy = None;
    let world = World::new(on).await.restart_after(async |stopped| copy = Some(Copy::of(&stopped.store).await)).await;
    let since = world.goes_on().await;
    let world = world.restart_after(async |stopped| copy.unwrap().put_back(stopped).await).await;
    world.is_another_life(&since).await;
    let now = incarnation_of(&world.relay).await;
    let world = world.restart_after(async |_| ()).await;
    assert_eq!(incarnation_of(&world.relay).await, now, "it is noticed once");
}

async fn a_copy_in_another_place_begins_a_new_incarnation(on: Backend) {
    let mut copy = None;
    let world = World::new(on).await.restart_after(async |stopped| copy = Some(Copy::of(&stopped.store).await)).await;
    let (since, copy) = (world.goes_on().await, copy.unwrap());
    let world = world.restart_after(async |stopped| stopped.config.place = copy.place(&stopped.store)).await;
    world.is_another_life(&since).await;
}

async fn a_restart_and_upkeep_change_nothing(on: Backend) {
    let world = World::new(on).await;
    let before = incarnation_of(&world.relay).await;
    let mut stream = world.alice.stream(0).await;
    stream.catches_up_to(1).await;
    world.relay.upkeep.run().await.unwrap();
    world.relay.upkeep.run().await.unwrap();
    let stopping = tokio::spawn(async move { stream.next().await });
    let world = world.restart_after(async |_| ()).await;
    assert_eq!(stopping.await.unwrap(), bye(ByeReason::Shutdown));
    world.is_the_same(before).await;
}

async fn restore_begins_a_new_incarnation_where_nothing_shows_one(on: Backend) {
    let world = World::new(on).await;
    let since = Since { claimed: vec![], incarnation: incarnation_of(&world.relay).await, last: 10 };
    // The device has more than the store knows of, as after a restore.
    let world =
        world.restart_after(async |stopped| undertone_server::restore(&stopped.config.place).await.unwrap()).await;
    world.is_another_life(&since).await;
}

async fn moved_lets_a_whole_copy_go_on(on: Backend) {
    let world = World::new(on).await;
    let before = incarnation_of(&world.relay).await;
    let mut kept = None;
    let world = world
        .restart_after(async |stopped| {
            let copy = kept.insert(Copy::of(&stopped.store).await);
            stopped.config.place = copy.place(&stopped.store);
            undertone_server::moved(&stopped.config.place).await.unwrap();
        })
        .await;
    world.is_the_same(before).await;
}

async fn migrate_makes_a_store_and_changes_none(on: Backend) {
    let store = Arc::new(Store::new(on).await);
    undertone_server::migrate(&store.place()).await.unwrap();
    assert_eq!(store.rows("accounts").await, 0);
    let made: Vec<(Vec<u8>,)> = store.select("SELECT incarnation FROM relay").await;
    undertone_server::migrate(&store.place()).await.unwrap();
    assert_eq!(store.select::<(Vec<u8>,)>("SELECT incarnation FROM relay").await, made);

    let world = World::new(on).await;
    let before = incarnation_of(&world.relay).await;
    let message = Message::at(world.group, 0);
    world.bob.send_message(&message).await.yes::<SendResponse>();
    world.bob.ack(1).await.done();
    let world =
        world.restart_after(async |stopped| undertone_server::migrate(&stopped.config.place).await.unwrap()).await;
    assert_eq!(incarnation_of(&world.relay).await, before);
    world.bob.send_message(&message).await.yes::<SendResponse>();
    assert_eq!(world.bob.fetch(0).await.next_seq, 5, "a repeated send is still known");
}

async fn device_lists_go_on_from_what_the_copy_has(on: Backend) {
    let relay = TestRelay::start(on).await;
    let devices = relay.account(2).await;
    let (kept, removed) = (&devices[0], &devices[1]);
    let stopped = relay.stop().await;
    let copy = Copy::of(&stopped.store).await;
    let relay = stopped.start().await;
    let second = kept.account.next([kept.account.keys.clone(), vec![Keys::new()]].concat());
    let added = second.keys.iter().find(|keys| ![kept.id(), removed.id()].contains(&keys.device_id)).unwrap();
    let third = second.next(vec![kept.keys.clone(), added.clone()]);
    for list in [&second, &third] {
        kept.at(&relay).put_list(list).await.yes::<Account>();
    }

    let stopped = relay.stop().await;
    copy.put_back(&stopped).await;
    let relay = stopped.start().await;
    log_in(&relay.api(), added).await.no(ErrorCode::BadSignature);
    let removed = removed.at(&relay).logged_in_again().await;
    removed.get(path::QUEUE).await.yes::<FetchResponse>();
    let kept = kept.at(&relay).logged_in_again().await;
    kept.put_list(&third).await.no(ErrorCode::StaleDeviceList);
    for list in [&second, &third] {
        kept.put_list(list).await.yes::<Account>();
    }
    log_in(&relay.api(), added).await.yes::<Session>();
    removed.get(path::QUEUE).await.no(ErrorCode::Unauthenticated);
}
