//! Chaos: nodes are killed, connections cut and answers lost, while ten devices post and twenty take what is theirs.
//!
//! Afterwards each device has each accepted message once, in one order for each group, under numbers without a gap; every
//! group's commits come in one order on all devices; and no queue holds anything any more. `TEST_SEED` repeats a
//! run's choices, though not its timing.

mod taker;
mod verdict;

use std::{
    ops::{Add as _, Range},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use http::{Method, StatusCode};
use tokio::task::JoinSet;
use undertone_test_client::{Api, Message, Reply, now_ms};
use undertone_tests::{Backend, Chance, Faults, Launch, Proxy, Relay, Store, on_both, scaled, seed, wait_until};
use undertone_wire::{CommitResponse, ErrorCode, GroupId, SendResponse, path};

use self::{
    taker::Taker,
    verdict::{Accepted, assert_agreed},
};

/// Which devices are in which group.
const GROUPS: [Range<usize>; 3] = [0..20, 0..12, 8..20];

const DEVICES: usize = 20;

/// Every second device posts, so that each group has some who do.
const SENDERS: usize = 10;

/// Once in so many posts is a commit.
const COMMIT_ONE_IN: u64 = 8;

/// Once in so many posts, the sender waits until it has its own row.
const WAIT_ONE_IN: u64 = 8;

/// The longest that a node is up, and the longest that it is down.
const UP: Duration = Duration::from_millis(1_500);
const DOWN: Duration = Duration::from_millis(300);

/// The longest between two attempts of one device.
const AGAIN: Duration = Duration::from_millis(30);

on_both!(every_device_has_each_accepted_message_once_and_in_order);

/// All that the tasks of a run share.
struct World {
    /// Ways to the nodes, one each.
    ways: Vec<Proxy>,
    groups: Vec<GroupId>,
    takers: Vec<Taker>,
    over: AtomicBool,
    counts: Counts,
}

#[derive(Debug, Default)]
struct Counts {
    kills: AtomicU64,
    /// Requests that were sent again, because nobody knew what had become of them.
    repeated_requests: AtomicU64,
    /// Posts that were refused because the group had moved on.
    refused: AtomicU64,
    /// Entries that were handed out again.
    repeated_entries: AtomicU64,
    /// Streams and polls.
    visits: AtomicU64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

async fn every_device_has_each_accepted_message_once_and_in_order(backend: Backend) {
    let folder = tempfile::tempdir().unwrap();
    // Alone, because the cluster's log is about this run alone.
    let (store, cluster) = Store::alone(folder.path(), backend).await;
    let seed = seed();
    println!("{backend:?}: seed {seed}");
    let mut chance = Chance::new(seed);
    let mut nodes = vec![Launch::over(&store).log_level("warn").start().await];
    if backend == Backend::Postgres {
        nodes.push(Launch::over(&store).log_level("warn").start().await);
    }
    let world = Arc::new(World::new(&nodes, &mut chance).await);
    let store = Arc::new(store);

    let accepted = run(&world, &mut nodes, &store, &mut chance).await;
    assert_agreed(&world, &accepted);
    assert_all_is_taken(&world, &nodes, &store).await;
    for node in &mut nodes {
        node.stop().await;
        let log = std::fs::read_to_string(node.log()).unwrap();
        assert!(!log.contains("panicked"), "{log}");
    }
    store.assert_whole().await;
    if let Some(cluster) = &cluster {
        let log = cluster.log();
        assert!(log.contains("ready to accept connections"), "the log is that of the server");
        assert!(!log.contains("deadlock detected"), "{log}");
    }
    report(backend, seed, &world, &accepted);
}

/// Lets everything happen at once for a while, then waits until everyone has everything. Answers what was accepted.
async fn run(world: &Arc<World>, nodes: &mut Vec<Relay>, store: &Arc<Store>, chance: &mut Chance) -> Accepted {
    let (mut takers, mut senders, mut killers) = (JoinSet::new(), JoinSet::new(), JoinSet::new());
    for number in 0..DEVICES {
        let (world, chance) = (Arc::clone(world), chance.fork());
        takers.spawn(async move { world.takers[number].take_all(&world, chance).await });
    }
    for number in 0..SENDERS {
        senders.spawn(send(Arc::clone(world), 2 * number, chance.fork()));
    }
    for (number, node) in nodes.drain(..).enumerate() {
        killers.spawn(kill_again_and_again(Arc::clone(world), Arc::clone(store), number, node, chance.fork()));
    }
    let during = Duration::from_secs(scaled(10, 600) as u64);
    // A device that has seen what must not be ends the run.
    if let Ok(broken) = tokio::time::timeout(during, takers.join_next()).await {
        broken.unwrap().unwrap();
    }
    world.over.store(true, Ordering::SeqCst);
    nodes.extend(killers.join_all().await);
    let mut accepted = Accepted::default();
    loop {
        tokio::select! {
            sent = senders.join_next() => match sent {
                Some(sent) => accepted.extend(sent.unwrap()),
                None => break,
            },
            broken = takers.join_next() => broken.unwrap().unwrap(),
        }
    }
    world.ways.iter().for_each(Proxy::heal);
    tokio::select! {
        () = wait_until("all devices to have everything", async || {
            world.takers.iter().enumerate().all(|(number, taker)| taker.len() >= accepted.entries_for(number)).then_some(())
        }) => {}
        broken = takers.join_next() => broken.unwrap().unwrap(),
    }
    accepted
}

impl World {
    async fn new(nodes: &[Relay], chance: &mut Chance) -> Self {
        let api = Api::new(&nodes[0].url());
        let mut devices = Vec::new();
        for _ in 0..DEVICES {
            devices.push(api.device().await);
        }
        let mut groups = Vec::new();
        for members in GROUPS {
            let others: Vec<_> = devices[members.start + 1..members.end].iter().collect();
            groups.push(devices[members.start].create_group_with(&others).await);
        }
        let mut ways = Vec::new();
        for node in nodes {
            ways.push(Proxy::new(node.address(), chance.fork()).await);
        }
        let takers = devices.into_iter().map(Taker::new).collect();
        Self { ways, groups, takers, over: AtomicBool::new(false), counts: Counts::default() }
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    /// A way to some node.
    fn way(&self, chance: &mut Chance) -> String {
        self.ways[chance.index(self.ways.len())].url()
    }

    /// Posts the same bytes, to whichever node, until one says yes or no.
    async fn insist(&self, number: usize, path: &str, body: Vec<u8>, chance: &mut Chance) -> Reply {
        loop {
            let device = self.takers[number].device.at(self.way(chance));
            match device.attempt(Method::POST, path, Some(body.clone())).await {
                Ok(reply) if !reply.is_undecided() => return reply,
                Ok(_) | Err(_) => count(&self.counts.repeated_requests),
            }
            chance.moment(AGAIN).await;
        }
    }
}

/// Posts messages and commits to its groups, one after the other. Answers what was accepted.
async fn send(world: Arc<World>, number: usize, mut chance: Chance) -> Accepted {
    let groups: Vec<_> = (0..GROUPS.len()).filter(|group| GROUPS[*group].contains(&number)).collect();
    let mut accepted = Accepted::default();
    let mut nth = 0;
    while !world.is_over() {
        let group = groups[chance.index(groups.len())];
        let content = verdict::content(number, nth);
        nth += 1;
        if chance.one_in(COMMIT_ONE_IN) {
            let Some(commit_seq) = commit(&world, number, group, content, &mut chance).await else { continue };
            accepted.commits.push((group, commit_seq, content));
        } else {
            say(&world, number, group, content, &mut chance).await;
            accepted.messages.push((group, content));
        }
        if chance.one_in(WAIT_ONE_IN) {
            world.takers[number].has(content).await;
        }
    }
    accepted
}

/// Posts a message; after a refusal again, from where the group then stands, under the same id.
async fn say(world: &World, number: usize, group: usize, content: u64, chance: &mut Chance) {
    let taker = &world.takers[number];
    let id = Message::id(now_ms());
    let path = path::fill(path::GROUP_MESSAGES, world.groups[group]);
    loop {
        let at = taker.stands_at(group);
        let message = Message { id, ..Message::at(world.groups[group], at).saying(&content.to_be_bytes()) };
        let body = taker.device.encoding.encode(&message.send_request());
        let reply = world.insist(number, &path, body, chance).await;
        if reply.status == StatusCode::OK {
            reply.yes::<SendResponse>();
            return;
        }
        reply.no(ErrorCode::StaleGroup);
        count(&world.counts.refused);
        taker.stands_beyond(group, at).await;
    }
}

/// Posts a commit once; if another one was faster, it is dropped. Answers its number.
async fn commit(world: &World, number: usize, group: usize, content: u64, chance: &mut Chance) -> Option<u64> {
    let taker = &world.takers[number];
    let at = taker.stands_at(group);
    let message = Message::at(world.groups[group], at).saying(&content.to_be_bytes());
    let path = path::fill(path::GROUP_COMMITS, world.groups[group]);
    let body = taker.device.encoding.encode(&message.commit_request());
    let reply = world.insist(number, &path, body, chance).await;
    if reply.status == StatusCode::OK {
        return Some(reply.yes::<CommitResponse>().commit_seq);
    }
    reply.no(ErrorCode::StaleGroup);
    count(&world.counts.refused);
    taker.stands_beyond(group, at).await;
    None
}

/// Kills a node and starts it again, elsewhere, until it is over. Answers with the node, running.
async fn kill_again_and_again(
    world: Arc<World>,
    store: Arc<Store>,
    number: usize,
    mut node: Relay,
    mut chance: Chance,
) -> Relay {
    while !world.is_over() {
        chance.moment(UP).await;
        node.kill().await;
        count(&world.counts.kills);
        store.assert_whole().await;
        chance.moment(DOWN).await;
        node.restart_anywhere().await;
        world.ways[number].lead_to(node.address());
    }
    node
}

/// Asserts that nothing more comes, and that with the last acks all is gone from the relay.
async fn assert_all_is_taken(world: &World, nodes: &[Relay], store: &Store) {
    for (number, taker) in world.takers.iter().enumerate() {
        let device = taker.device.at(nodes[number % nodes.len()].url());
        let len = taker.len() as u64;
        let rest = device.fetch(len).await;
        assert_eq!((rest.deliveries.len(), rest.missed, rest.next_seq), (0, vec![], len + 1), "device {number}");
        device.ack(len).await.done();
    }
    assert_eq!(store.number("SELECT COUNT(*) FROM queue").await, 0);
    let left = "SELECT COUNT(*) FROM envelopes WHERE envelope_id NOT IN (SELECT envelope_id FROM commits)";
    assert_eq!(store.number(left).await, 0, "no payload is left behind");
    let counted = "SELECT COUNT(*) FROM cursors WHERE group_entries <> 0 OR group_bytes <> 0";
    assert_eq!(store.number(counted).await, 0, "what waits is counted right");
}

fn report(backend: Backend, seed: u64, world: &World, accepted: &Accepted) {
    let faults = world.ways.iter().map(Proxy::faults).fold(Faults::default(), Faults::add);
    let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let counts = &world.counts;
    println!(
        "{backend:?}: {} kills, {} cuts, {} answers lost; {} messages and {} commits accepted, {} posts refused, \
         {} requests repeated; {} entries taken in {} streams and polls, {} of them again; seed {seed}",
        of(&counts.kills),
        faults.cuts,
        faults.lost_answers,
        accepted.messages.len(),
        accepted.commits.len(),
        of(&counts.refused),
        of(&counts.repeated_requests),
        world.takers.iter().map(Taker::len).sum::<usize>(),
        of(&counts.visits),
        of(&counts.repeated_entries),
    );
    let happened =
        [of(&counts.kills), faults.cuts, faults.lost_answers, of(&counts.refused), of(&counts.repeated_requests)];
    assert!(happened.iter().all(|times| *times > 0), "everything happened that is to be survived: {happened:?}");
    assert!(of(&counts.repeated_entries) > 0 && accepted.messages.len() > 20 && accepted.commits.len() > 1);
}
