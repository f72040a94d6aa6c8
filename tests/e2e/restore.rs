//! A store goes back to what it was before: the relay notices, hands out no key again, and tells devices what they missed.
//! What only looks like it (a restart, a move, a promotion that loses nothing) changes nothing.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use sqlx::Connection as _;
use undertone_test_client::{Api, Device, Message};
use undertone_test_postgres::{Cluster, Options};
use undertone_tests::{Launch, Relay, Store, copy_folder, scaled, wait_until};
use undertone_wire::{Bytes, ErrorCode, GroupId, Incarnation, SendResponse, Span, path};

/// How far numbers jump (`spec/protocol.md`, section 9).
const JUMP: u64 = 1 << 32;

/// Messages that wait when the copy is made. Of these carol has taken all but two, dave none.
const WAITING: u64 = 5;

/// No claim is one too many.
const LIMITS: [&str; 4] =
    ["--limit", "claims_per_pair_hour_max=100000", "--limit", "claims_per_account_hour_max=100000"];

/// Four devices in a group: alice posts and claims, bob's keys are claimed, carol has taken some and dave nothing.
struct World {
    relay: Relay,
    alice: Device,
    bob: Device,
    carol: Device,
    dave: Device,
    group: GroupId,
    incarnation: Incarnation,
    /// Bob's key packages that were handed out.
    handed_out: BTreeSet<Vec<u8>>,
    /// The number that carol's and dave's next entry would have got when the copy was made.
    next_seq_then: u64,
}

fn claims() -> usize {
    scaled(20, 100)
}

fn messages() -> usize {
    scaled(100, 1_000)
}

impl World {
    /// Up to where the copy is made.
    async fn new(launch: Launch) -> Self {
        let relay = launch.log_level("info").arguments(&LIMITS).start().await;
        let api = Api::new(&relay.url());
        let (alice, bob) = (api.device().await, api.device().await);
        let (carol, dave) = (api.device().await, api.device().await);
        bob.stock(claims() + 40).await;
        let group = alice.create_group_with(&[&bob, &carol, &dave]).await;
        let incarnation = incarnation(&alice).await;
        let mut world =
            Self { relay, alice, bob, carol, dave, group, incarnation, handed_out: BTreeSet::new(), next_seq_then: 0 };
        for _ in 0..WAITING {
            world.alice.says(group, 1).await;
        }
        world.carol.ack(WAITING - 1).await.done();
        world.next_seq_then = world.dave.fetch(0).await.next_seq;
        assert_eq!(world.next_seq_then, WAITING + 2);
        world
    }

    /// What the copy does not know of. Carol takes all of it.
    async fn go_on(&mut self) {
        for _ in 0..claims() {
            let (key_package, last_resort) = self.claim().await;
            assert!(!last_resort && self.handed_out.insert(key_package), "each is handed out once");
        }
        for _ in 0..messages() {
            self.alice.says(self.group, 1).await;
        }
        self.carol.ack(WAITING + 1 + messages() as u64).await.done();
    }

    /// One of bob's key packages, and whether it is the last-resort one.
    async fn claim(&self) -> (Vec<u8>, bool) {
        let claimed = self.alice.claim(self.bob.account_id()).await.key_packages.remove(0);
        (claimed.key_package.unwrap().into_vec(), claimed.last_resort)
    }

    /// Asserts that the relay knows that its store went back, and that nothing follows from it that a device is not told.
    async fn assert_went_back(mut self) {
        assert_ne!(incarnation(&self.alice).await, self.incarnation, "it noticed");
        self.alice.get(path::GROUPS).await.no(ErrorCode::Unauthenticated);
        for device in [&mut self.alice, &mut self.bob, &mut self.carol, &mut self.dave] {
            *device = device.logged_in_again().await;
        }
        self.assert_numbers_go_on().await;
        self.assert_keys_are_not_handed_out_again().await;
        self.assert_stays().await;
    }

    async fn assert_numbers_go_on(&self) {
        let carol_has = WAITING + 1 + messages() as u64;
        let next_seq = self.next_seq_then + JUMP;
        let missed = |from| vec![Span { from, to: next_seq - 1 }];
        let quiet = self.carol.fetch(carol_has).await;
        assert_eq!((quiet.deliveries.len(), quiet.missed), (0, missed(carol_has + 1)), "told without anything new");

        let message = Message::at(self.group, 1);
        self.alice.send_message(&message).await.yes::<SendResponse>();
        let carols = self.carol.fetch(carol_has).await;
        assert_eq!(carols.missed, missed(carol_has + 1));
        assert_eq!(carols.deliveries.iter().map(|each| each.seq).collect::<Vec<_>>(), [next_seq]);
        let daves = self.dave.fetch(0).await;
        assert_eq!(daves.missed, missed(self.next_seq_then), "what waited comes, then what was lost is told");
        let numbers: Vec<_> = daves.deliveries.iter().map(|each| each.seq).collect();
        assert_eq!(numbers, (1..self.next_seq_then).chain([next_seq]).collect::<Vec<_>>());
        assert_eq!(daves.deliveries.last(), carols.deliveries.last());

        for device in [&self.carol, &self.dave] {
            device.ack(next_seq).await.done();
        }
        self.alice.says(self.group, 1).await;
        for device in [&self.carol, &self.dave] {
            let after = device.fetch(next_seq).await;
            assert_eq!((after.deliveries[0].seq, after.missed), (next_seq + 1, vec![]), "told once");
        }
    }

    async fn assert_keys_are_not_handed_out_again(&self) {
        let mut last_resort = BTreeSet::new();
        for _ in 0..claims() + 5 {
            let (key_package, is_last_resort) = self.claim().await;
            assert!(is_last_resort && !self.handed_out.contains(&key_package), "one-time keys of before are not good");
            last_resort.insert(key_package);
        }
        assert_eq!(last_resort.len(), 1);
        let fresh: Vec<Bytes> = (0..3).map(|_| self.bob.key_package(false)).collect();
        self.bob.publish(fresh.clone(), None).await.yes::<undertone_wire::KeyCounts>();
        for _ in 0..3 {
            let (key_package, is_last_resort) = self.claim().await;
            assert!(!is_last_resort && fresh.iter().any(|each| each.as_slice() == key_package), "fresh ones are");
        }
    }

    /// Asserts that it was noticed once, and not again at the next start.
    async fn assert_stays(mut self) {
        let before = incarnation(&self.alice).await;
        self.relay.stop().await;
        self.relay.restart().await;
        assert_eq!(incarnation(&self.alice).await, before);
        self.alice.says(self.group, 1).await;
        self.relay.stop().await;
    }

    /// Asserts that the store is the one it was: sessions hold, numbers go on, keys are handed out.
    async fn assert_goes_on(&mut self) {
        assert_eq!(incarnation(&self.alice).await, self.incarnation);
        let has = self.carol.fetch(0).await.next_seq - 1;
        let message = Message::at(self.group, 1);
        self.alice.send_message(&message).await.yes::<SendResponse>();
        let fetched = self.carol.fetch(has).await;
        assert_eq!((fetched.deliveries[0].seq, fetched.missed), (has + 1, vec![]));
        let (key_package, last_resort) = self.claim().await;
        assert!(!last_resort && self.handed_out.insert(key_package));
    }

    /// Waits until the relay has found its database again.
    async fn is_back(&self) {
        wait_until("the relay to connect again", async || {
            let reply = self.alice.attempt(http::Method::GET, path::RELAY, None).await.ok()?;
            reply.status.is_success().then_some(())
        })
        .await;
    }

    /// The same devices at another relay.
    async fn at(&mut self, relay: Relay) {
        for device in [&mut self.alice, &mut self.bob, &mut self.carol, &mut self.dave] {
            *device = device.at(relay.url());
        }
        self.relay = relay;
    }
}

async fn incarnation(device: &Device) -> Incarnation {
    device.get(path::RELAY).await.yes::<undertone_wire::Relay>().incarnation
}

/// Runs one of the relay's other commands over a store.
async fn order(store: &Store, command: &str) {
    let (status, said) = Launch::over(store).arguments(&[command]).end().await;
    assert!(status.success(), "{command}: {status}");
    assert_eq!(said, [""; 0]);
}

async fn sqlite() -> (tempfile::TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::new(folder.path(), undertone_tests::Backend::Sqlite).await;
    (folder, store)
}

/// A relay serves, a copy is made, the relay goes on and stops, the copy is put back, and the relay starts: it must notice.
async fn assert_noticed<C>(store: &Store, copy: impl AsyncFnOnce(&mut Relay) -> C, put_back: impl AsyncFnOnce(C)) {
    let mut world = World::new(Launch::over(store)).await;
    let copy = copy(&mut world.relay).await;
    world.go_on().await;
    world.relay.stop().await;
    put_back(copy).await;
    world.relay.restart().await;
    world.assert_went_back().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sqlite_file_swapped_for_an_older_copy() {
    let (folder, store) = sqlite().await;
    let copied_while_it_serves = async |_: &mut Relay| {
        let copy = folder.path().join("copy.db");
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(store.file()).read_only(true);
        let mut reading = sqlx::SqliteConnection::connect_with(&options).await.unwrap();
        sqlx::query("VACUUM INTO $1").bind(copy.to_str().unwrap()).execute(&mut reading).await.unwrap();
        reading.close().await.unwrap();
        copy
    };
    assert_noticed(&store, copied_while_it_serves, async |copy| fs::rename(copy, store.file()).unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_folder_swapped_for_an_older_copy() {
    let (_folder, store) = sqlite().await;
    let swap = async |copy| {
        fs::remove_dir_all(store.data()).unwrap();
        fs::rename(copy, store.data()).unwrap();
    };
    assert_noticed(&store, async |relay| copy_of_data(&store, relay, |_| ()).await, swap).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_folder_copied_back_over_itself() {
    let (_folder, store) = sqlite().await;
    let copy_back = async |copy: PathBuf| copy_folder(&copy, &store.data());
    assert_noticed(&store, async |relay| copy_of_data(&store, relay, |_| ()).await, copy_back).await;
}

/// As a machine's snapshot is put back: the same files, of which nothing shows that they were other ones.
#[tokio::test(flavor = "multi_thread")]
async fn a_sqlite_snapshot_that_is_declared() {
    let (_folder, store) = sqlite().await;
    let with_the_marker_itself = |copy: &Path| {
        let marker = Path::new("undertone.db.mark");
        fs::remove_file(copy.join(marker)).unwrap();
        fs::hard_link(store.data().join(marker), copy.join(marker)).unwrap();
    };
    let put_back = async |copy: PathBuf| {
        for file in files(&copy) {
            fs::rename(&file, store.data().join(file.file_name().unwrap())).unwrap();
        }
        order(&store, "restore").await;
    };
    assert_noticed(&store, async |relay| copy_of_data(&store, relay, with_the_marker_itself).await, put_back).await;
}

/// A copy of the data folder of a relay, which stops for it. Before it starts again, something may be done to the copy.
async fn copy_of_data(store: &Store, relay: &mut Relay, change: impl FnOnce(&Path)) -> PathBuf {
    let copy = store.folder().join("copy");
    relay.stop().await;
    copy_folder(&store.data(), &copy);
    change(&copy);
    relay.restart().await;
    copy
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_database_restored_over_itself() {
    let (folder, cluster, store) = postgres().await;
    let restore = async |dump| {
        run(cluster.tool("pg_restore", DATABASE).args(["--clean", "--dbname", DATABASE]).arg::<PathBuf>(dump)).await;
    };
    assert_noticed(&store, async |_| dump(&cluster, folder.path()).await, restore).await;
}

/// The relay is not told and not stopped: it looks whenever it has to connect anew.
#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_database_made_anew_while_the_relay_serves() {
    let (folder, cluster, store) = postgres().await;
    let mut world = World::new(Launch::over(&store)).await;
    let dump = dump(&cluster, folder.path()).await;
    world.go_on().await;
    run(cluster.tool("dropdb", DATABASE).args(["--force", DATABASE])).await;
    run(cluster.tool("createdb", DATABASE).arg(DATABASE)).await;
    // Or the relay might look while half of it is there.
    run(cluster.tool("pg_restore", DATABASE).args(["--single-transaction", "--dbname", DATABASE]).arg(dump)).await;
    world.is_back().await;
    world.assert_went_back().await;
}

/// Rows that go back into the same tables, which nothing shows.
#[tokio::test(flavor = "multi_thread")]
async fn postgres_rows_that_are_declared() {
    let (folder, cluster, store) = postgres().await;
    let empty = "DO $$ DECLARE name text; BEGIN
        FOR name IN SELECT tablename FROM pg_tables WHERE schemaname = 'public' LOOP
            EXECUTE format('TRUNCATE %I CASCADE', name);
        END LOOP; END $$";
    let restore = ["--data-only", "--disable-triggers", "--dbname", DATABASE];
    let put_back = async |dump: PathBuf| {
        store.change(empty).await;
        run(cluster.tool("pg_restore", DATABASE).args(restore).arg(dump)).await;
        order(&store, "restore").await;
    };
    assert_noticed(&store, async |_| dump(&cluster, folder.path()).await, put_back).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn restarts_change_nothing_on_sqlite() {
    let (_folder, store) = sqlite().await;
    restarts_change_nothing(&store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn restarts_change_nothing_on_postgres() {
    let (_folder, cluster, store) = postgres().await;
    let mut world = restarts_change_nothing(&store).await;
    world.relay.restart().await;
    cluster.crash().await;
    cluster.start().await;
    world.is_back().await;
    world.assert_goes_on().await;
}

async fn restarts_change_nothing(store: &Store) -> World {
    let mut world = World::new(Launch::over(store)).await;
    world.assert_goes_on().await;
    for _ in 0..3 {
        world.relay.kill().await;
        world.relay.restart().await;
        world.assert_goes_on().await;
        world.relay.stop().await;
        world.relay.restart().await;
        world.assert_goes_on().await;
    }
    world.relay.stop().await;
    world
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_that_is_declared_changes_nothing() {
    let (folder, store) = sqlite().await;
    let mut world = World::new(Launch::over(&store)).await;
    world.relay.stop().await;
    let elsewhere = Store::new(&folder.path().join("elsewhere"), undertone_tests::Backend::Sqlite).await;
    copy_folder(&store.data(), &elsewhere.data());
    order(&elsewhere, "moved").await;
    world.at(Launch::over(&elsewhere).arguments(&LIMITS).start().await).await;
    world.assert_goes_on().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promotion_that_is_declared_lossless_changes_nothing() {
    let (mut world, _folder, _primary, _standby) = promoted(&["--postgres-failover", "lossless"]).await;
    world.assert_goes_on().await;
    world.relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promotion_that_may_have_lost_something_is_noticed() {
    let (mut world, _folder, _primary, _standby) = promoted(&[]).await;
    assert_ne!(incarnation(&world.alice).await, world.incarnation);
    world.alice.get(path::GROUPS).await.no(ErrorCode::Unauthenticated);
    world.relay.stop().await;
}

/// A relay over a standby that was promoted, started with these arguments.
async fn promoted(arguments: &[&str]) -> (World, tempfile::TempDir, Cluster, Cluster) {
    let folder = tempfile::tempdir().unwrap();
    let primary = Cluster::new(Options { durable: true }).await;
    let standby = primary.standby().await;
    let store = Store::on_cluster(folder.path(), &primary);
    let mut world = World::new(Launch::over(&store).arguments(arguments)).await;
    world.go_on().await;
    world.relay.stop().await;
    wait_until("the standby to have everything", async || {
        let behind = "SELECT COUNT(*) FROM pg_stat_replication WHERE replay_lsn = pg_current_wal_insert_lsn()";
        (store.number(behind).await == 1).then_some(())
    })
    .await;
    primary.stop().await;
    standby.promote().await;
    let store = Store::on_cluster(folder.path(), &standby);
    world.at(Launch::over(&store).arguments(&LIMITS).arguments(arguments).start().await).await;
    (world, folder, primary, standby)
}

/// The database that goes back.
const DATABASE: &str = "undertone";

async fn postgres() -> (tempfile::TempDir, Cluster, Store) {
    let folder = tempfile::tempdir().unwrap();
    let cluster = Cluster::new(Options { durable: true }).await;
    run(cluster.tool("createdb", "postgres").arg(DATABASE)).await;
    let store = Store::at_url(folder.path(), &cluster.url(DATABASE));
    (folder, cluster, store)
}

async fn dump(cluster: &Cluster, folder: &Path) -> PathBuf {
    let dump = folder.join("dump");
    run(cluster.tool("pg_dump", DATABASE).args(["--format", "custom", "--file"]).arg(&dump)).await;
    dump
}

async fn run(command: &mut tokio::process::Command) {
    let output = command.output().await.unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn files(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
}
