//! A crowd at real relays, one node over SQLite or two over Postgres: nodes are killed, connections cut and refused, answers
//! lost, streams and everything held up. What people do meanwhile, and that all agree at the end, is `tests/crowd`'s.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use proptest::{
    prelude::{Just, Strategy as _},
    prop_oneof,
    strategy::BoxedStrategy,
};
use tempfile::TempDir;
use undertone::{Client, ClientBuilder, Clock, DeviceId, GroupId, StoreAt, StoreKey, api::fake::FastClock};
use undertone_test_crowd::{World, converges, seeds};
use undertone_tests::{Backend, Chance, Faults, Held, Launch, Proxy, Relay, Store, on_both};

/// The longest that nothing passes.
const STALL: Duration = Duration::from_millis(400);

on_both!(all_members_end_up_with_the_same_group_and_the_same_messages);

async fn all_members_end_up_with_the_same_group_and_the_same_messages(backend: Backend) {
    let seeds = seeds(3, 200);
    let cases = seeds.end - seeds.start;
    let happened = Happened::default();
    converges(seeds, async || Nodes::new(backend, happened.clone()).await).await;
    let (kills, Faults { cuts, lost_answers, refused }) = *happened.0.lock().unwrap();
    println!("{backend:?}: {kills} kills, {cuts} cuts, {lost_answers} answers lost, {refused} connections refused");
    let happened = [kills, cuts, lost_answers, refused];
    assert!(happened.iter().all(|times| *times > 0) || cases < 20, "everything happened that is to be survived");
}

/// How often nodes were killed, and what became of connections, in all worlds.
#[derive(Clone, Default)]
struct Happened(Arc<Mutex<(u64, Faults)>>);

/// Relays over one store, each with a bad network before it.
struct Nodes {
    nodes: Vec<Node>,
    store: Store,
    happened: Happened,
    folder: TempDir,
}

struct Node {
    relay: Relay,
    is_up: bool,
    way: Proxy,
}

#[derive(Debug, Clone)]
enum Fault {
    Kill(usize),
    StartAll,
    Cut,
    LoseAnswers(u32),
    RefuseConnections(u32),
    Hold(Held),
    Stall(Chance),
}

impl Nodes {
    async fn new(backend: Backend, happened: Happened) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path(), backend).await;
        let mut nodes = Vec::new();
        for _ in 0..if backend == Backend::Postgres { 2 } else { 1 } {
            let relay = Launch::over(&store).log_level("warn").start().await;
            let way = Proxy::obedient(relay.address()).await;
            nodes.push(Node { relay, is_up: true, way });
        }
        Self { nodes, store, happened, folder }
    }

    fn ways(&self) -> impl Iterator<Item = &Proxy> {
        self.nodes.iter().map(|node| &node.way)
    }

    async fn kill(&mut self, number: usize) {
        let node = &mut self.nodes[number];
        if node.is_up {
            node.relay.kill().await;
            node.is_up = false;
            self.happened.0.lock().unwrap().0 += 1;
        }
    }

    async fn start_all(&mut self) {
        for node in self.nodes.iter_mut().filter(|node| !node.is_up) {
            node.relay.restart_anywhere().await;
            node.way.lead_to(node.relay.address());
            node.is_up = true;
        }
    }
}

impl World for Nodes {
    type Fault = Fault;

    const A_WHILE: Duration = Duration::from_millis(200);

    fn faults(&self) -> BoxedStrategy<Fault> {
        let faults = prop_oneof![
            2 => (0..self.nodes.len()).prop_map(Fault::Kill),
            5 => Just(Fault::StartAll),
            1 => Just(Fault::Cut),
            1 => (1..4u32).prop_map(Fault::LoseAnswers),
            1 => (1..4u32).prop_map(Fault::RefuseConnections),
            1 => Just(Fault::Hold(Held::Streams)),
            1 => Just(Fault::Hold(Held::Nothing)),
            1 => (0..u64::MAX).prop_map(|seed| Fault::Stall(Chance::new(seed))),
        ];
        faults.boxed()
    }

    async fn cause(&mut self, fault: Fault) {
        match fault {
            Fault::Kill(number) => self.kill(number).await,
            Fault::StartAll => self.start_all().await,
            Fault::Cut => self.ways().for_each(Proxy::cut),
            Fault::LoseAnswers(times) => self.ways().for_each(|way| way.lose_answers(times)),
            Fault::RefuseConnections(times) => self.ways().for_each(|way| {
                way.refuse_connections(times);
                way.cut();
            }),
            Fault::Hold(what) => self.ways().for_each(|way| way.hold(what)),
            Fault::Stall(mut chance) => {
                self.ways().for_each(|way| way.hold(Held::Everything));
                chance.moment(STALL).await;
                self.ways().for_each(|way| way.hold(Held::Nothing));
            }
        }
    }

    async fn heal(&mut self) {
        self.ways().for_each(Proxy::heal);
        self.start_all().await;
    }

    fn device(&self, name: &str, clock: &Arc<FastClock>) -> ClientBuilder<StoreAt> {
        let mut urls = self.ways().map(Proxy::url);
        let builder = Client::builder(urls.next().unwrap()).clock(Arc::clone(clock) as Arc<dyn Clock>);
        urls.fold(builder, ClientBuilder::also_at).store(self.folder.path().join(name), StoreKey::Raw32([7; 32]))
    }

    async fn key_packages(&self, device: &DeviceId) -> usize {
        let left = self.store.blobs("SELECT device_id FROM key_packages WHERE key_package IS NOT NULL").await;
        left.iter().filter(|one| **one == device.as_bytes()).count()
    }

    async fn commits(&self, group: &GroupId) -> usize {
        let all = self.store.blobs("SELECT group_id FROM commits").await;
        all.iter().filter(|one| **one == group.as_bytes()).count()
    }

    async fn end(mut self) {
        for node in &mut self.nodes {
            node.relay.stop().await;
            let log = std::fs::read_to_string(node.relay.log()).unwrap();
            assert!(!log.contains("panicked"), "{log}");
            let mut happened = self.happened.0.lock().unwrap();
            happened.1 = happened.1 + node.way.faults();
        }
        self.store.assert_whole().await;
    }
}
