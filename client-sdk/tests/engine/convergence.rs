//! Whatever people do to a group at the same time, and whatever goes wrong meanwhile: at the end all members stand on the same
//! commit, with the same members, and have the same messages, each once.
//!
//! A case is made from a number, which is printed; `TEST_SEED=NUMBER` does that one again.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use proptest::{
    collection::vec,
    prelude::{Just, Strategy},
    prop_oneof,
    strategy::ValueTree as _,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};
use tokio::task::JoinSet;
use undertone::{
    AccountId, Client, Clock as _, Connection, Group, GroupId, MessageId, SystemClock, api::fake::FastClock,
};

use crate::world::{World, builder_at_with, wait_until};

/// So many people with a device each.
const PEOPLE: usize = 7;

/// The first of them are in each group from the beginning to its end, so that they have all that was said there.
const CORE: usize = 3;

/// So many are in it at the beginning.
const FIRST: usize = 5;

/// So many cases share their people.
const CASES_PER_WORLD: u64 = 20;

/// Cases at the same time.
const THREADS: usize = 2;

/// So much faster time goes here.
const SPEED: u32 = 20;

/// Something that somebody does, or that happens.
#[derive(Debug, Clone)]
enum Step {
    Send(usize),
    Add(usize, usize),
    Remove(usize, usize),
    Leave(usize),
    Rename(usize),
    Restart(usize),
    LoseAnswers(u32),
    RefuseConnections(u32),
    CutStreams,
    HoldDeliveries,
    ReleaseDeliveries,
    /// All that was begun comes to its end, or a while passes.
    Settle,
}

fn step() -> impl Strategy<Value = Step> {
    let who = 0..PEOPLE;
    prop_oneof![
        10 => who.clone().prop_map(Step::Send),
        3 => (who.clone(), CORE..PEOPLE).prop_map(|(by, whom)| Step::Add(by, whom)),
        2 => (who.clone(), CORE..PEOPLE).prop_map(|(by, whom)| Step::Remove(by, whom)),
        1 => (CORE..PEOPLE).prop_map(Step::Leave),
        1 => who.clone().prop_map(Step::Rename),
        2 => who.prop_map(Step::Restart),
        1 => (1..4u32).prop_map(Step::LoseAnswers),
        1 => (1..4u32).prop_map(Step::RefuseConnections),
        1 => Just(Step::CutStreams),
        1 => Just(Step::HoldDeliveries),
        1 => Just(Step::ReleaseDeliveries),
        4 => Just(Step::Settle),
    ]
}

/// The steps that belong to a number.
fn steps(seed: u64) -> Vec<Step> {
    let bytes: Vec<u8> = seed.to_be_bytes().into_iter().cycle().take(32).collect();
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    vec(step(), 20..60).new_tree(&mut runner).unwrap().current()
}

/// People whose clocks are days apart.
struct Crowd {
    world: World,
    clocks: Vec<Arc<FastClock>>,
    people: Vec<Client>,
    accounts: Vec<AccountId>,
}

impl Crowd {
    async fn new() -> Self {
        let world = World::new();
        let (mut clocks, mut people) = (Vec::new(), Vec::new());
        for n in 0..PEOPLE {
            let off_ms = (n as u64 * 17 % 7) * 12 * 60 * 60 * 1_000;
            let began_ms = SystemClock.now_ms() + off_ms - 36 * 60 * 60 * 1_000;
            clocks.push(FastClock::from(began_ms, SPEED));
            let name = format!("p{n}");
            let builder = builder_at_with(&world.relay, world.store(&name), &clocks[n]);
            people.push(builder.register(name.as_str()).await.unwrap());
        }
        let crowd =
            Self { accounts: people.iter().map(|one| one.account().account_id).collect(), world, clocks, people };
        crowd.all_online().await;
        crowd
    }

    async fn all_online(&self) {
        for client in &self.people {
            wait_until("to be online", async || (client.connection() == Connection::Online).then_some(())).await;
            let device = client.device_id();
            self.world.relay.until(|relay| relay.key_packages(&device).0 > 10).await;
        }
    }

    async fn restart(&mut self, who: usize) {
        let client = self.people[who].clone();
        client.shutdown().await;
        let name = format!("p{who}");
        let open =
            async || builder_at_with(&self.world.relay, self.world.store(&name), &self.clocks[who]).open().await.ok();
        self.people[who] = wait_until("a store to be free", open).await;
    }
}

/// What came of the cases, so that it is seen whether they are any good.
#[derive(Debug, Default)]
struct Tally {
    messages: usize,
    changes: usize,
    refused: usize,
    commits: u64,
}

impl Tally {
    fn count(&mut self, made: bool) {
        *if made { &mut self.changes } else { &mut self.refused } += 1;
    }
}

/// One case: a group, and what is done to it.
async fn case(crowd: &mut Crowd, seed: u64, tally: &mut Tally) {
    let group = crowd.people[0].create_group("at first").await.unwrap().id();
    for n in 1..FIRST {
        crowd.people[0].group(group).add(crowd.accounts[n]).await.unwrap();
    }
    for n in 0..FIRST {
        is_member(&crowd.people[n].group(group)).await;
    }
    let mut sent: Vec<(usize, MessageId, String)> = Vec::new();
    let mut changes = JoinSet::new();
    for (number, step) in steps(seed).into_iter().enumerate() {
        let at = |who: usize| crowd.people[who].group(group);
        match step {
            Step::Send(who) => {
                let text = format!("{number} from {who}");
                if let Ok(id) = at(who).send(&text).await {
                    sent.push((who, id, text));
                }
            }
            // What is not possible is refused; what is, happens.
            Step::Add(by, whom) => {
                let (by, whom) = (at(by), crowd.accounts[whom]);
                changes.spawn(async move { by.add(whom).await });
            }
            Step::Remove(by, whom) => {
                let (by, whom) = (at(by), crowd.accounts[whom]);
                changes.spawn(async move { by.remove(whom).await });
            }
            Step::Leave(who) => {
                let who = at(who);
                changes.spawn(async move { who.leave().await });
            }
            Step::Rename(by) => {
                let by = at(by);
                changes.spawn(async move { by.rename(&format!("name {number}")).await });
            }
            Step::Restart(who) => crowd.restart(who).await,
            Step::LoseAnswers(times) => crowd.world.relay.drop_answers(times),
            Step::RefuseConnections(times) => crowd.world.relay.refuse_connections(times),
            Step::CutStreams => crowd.world.relay.cut_streams(),
            Step::HoldDeliveries => crowd.world.relay.hold_deliveries(),
            Step::ReleaseDeliveries => crowd.world.relay.release_deliveries(),
            Step::Settle => {
                let all = async {
                    while let Some(change) = changes.join_next().await {
                        tally.count(change.unwrap().is_ok());
                    }
                };
                drop(tokio::time::timeout(Duration::from_millis(50), all).await);
            }
        }
    }
    crowd.world.relay.release_deliveries();
    crowd.world.relay.drop_answers(0);
    crowd.world.relay.refuse_connections(0);
    let all = async {
        while let Some(change) = changes.join_next().await {
            tally.count(change.unwrap().is_ok());
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(60), all).await.is_ok(), "seed {seed}: a change does not end");
    converges(crowd, group, seed, &sent).await;
    tally.messages += sent.len();
    tally.commits += crowd.world.relay.group_position(&group).unwrap().commit_seq;
}

async fn is_member(group: &Group) {
    wait_until("to be a member", async || group.summary().await.ok().filter(|group| group.active)).await;
}

async fn texts(group: &Group) -> Vec<String> {
    group.history(1_000, None).await.unwrap_or_default().iter().map(|message| message.text().to_owned()).collect()
}

/// What the group is at the end, for all who are in it.
async fn converges(crowd: &Crowd, group: GroupId, seed: u64, sent: &[(usize, MessageId, String)]) {
    let all = async {
        crowd.all_online().await;
        for client in &crowd.people {
            client.outbox_empty(Duration::from_secs(60)).await.unwrap();
        }
        let tells = async |n: usize| {
            let summary = crowd.people[n].group(group).summary().await.ok()?;
            let members: BTreeSet<_> = summary.members.iter().map(|one| one.account_id).collect();
            summary.active.then_some((summary.name, members))
        };
        // Tidying up after those who have left takes its turns.
        wait_until("all to agree", async || {
            let mut told = BTreeMap::new();
            for n in 0..PEOPLE {
                if let Some(one) = tells(n).await {
                    told.insert(n, one);
                }
            }
            let (_, first) = told.get(&0)?;
            let in_it: BTreeSet<_> = told.keys().map(|n| crowd.accounts[*n]).collect();
            let one = told.values().all(|one| one == told.get(&0).unwrap());
            (one && in_it == *first).then_some(told.keys().copied().collect::<Vec<_>>())
        })
        .await
    };
    let members = tokio::time::timeout(Duration::from_secs(100), all).await;
    let members = members.unwrap_or_else(|_| panic!("seed {seed}: they do not agree"));
    for n in &members {
        crowd.people[*n].group(group).send(format!("at last {n}")).await.unwrap();
    }
    let probes: BTreeSet<_> = members.iter().map(|n| format!("at last {n}")).collect();
    for n in &members {
        let group = crowd.people[*n].group(group);
        wait_until(format!("seed {seed}: what was said at last at {n}"), async || {
            let texts = texts(&group).await;
            probes.iter().all(|probe| texts.contains(probe)).then_some(())
        })
        .await;
    }
    let mut arrived = probes;
    for (who, id, text) in sent {
        if crowd.people[*who].message_status(*id).await.unwrap().is_sent() {
            arrived.insert(text.clone());
        }
    }
    for n in &members {
        let texts = texts(&crowd.people[*n].group(group)).await;
        let once: BTreeSet<_> = texts.iter().cloned().collect();
        assert_eq!(once.len(), texts.len(), "seed {seed}: {n} has something twice: {texts:?}");
        if *n < CORE {
            let failed: Vec<_> = once.difference(&arrived).collect();
            let lost: Vec<_> = arrived.difference(&once).collect();
            assert!(lost.is_empty(), "seed {seed}: {n} lacks {lost:?}");
            assert!(failed.iter().all(|text| text.ends_with(&format!("from {n}"))), "seed {seed}: {n} has {failed:?}");
        }
    }
}

#[test]
fn all_members_end_up_with_the_same_group_and_the_same_messages() {
    let soak = std::env::var_os("TEST_SOAK").is_some();
    let (first, cases) = match std::env::var("TEST_SEED") {
        Ok(seed) => (seed.parse().unwrap(), 1),
        Err(_) => (SystemClock.now_ms(), if soak { 10_000 } else { 200 }),
    };
    println!("{cases} cases from seed {first}");
    std::thread::scope(|scope| {
        for part in 0..THREADS {
            scope.spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(some_cases((0..cases).skip(part).step_by(THREADS).map(|n| first + n)));
            });
        }
    });
}

async fn some_cases(seeds: impl Iterator<Item = u64>) {
    let (mut crowd, mut tally, mut cases) = (Crowd::new().await, Tally::default(), 0);
    for seed in seeds {
        if cases > 0 && cases % CASES_PER_WORLD == 0 {
            crowd = Crowd::new().await;
        }
        case(&mut crowd, seed, &mut tally).await;
        cases += 1;
    }
    println!("{cases} cases: {tally:?}");
    let lively = tally.messages as u64 > cases && tally.changes as u64 > cases && tally.commits > cases * FIRST as u64;
    assert!(lively || cases < 10, "cases in which nothing happens show nothing");
}
