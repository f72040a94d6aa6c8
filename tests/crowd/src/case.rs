//! One case: a group, and what is done to it while things go wrong.

use std::time::Duration;

use tokio::task::JoinSet;
use undertone::{Error, Group, GroupId, MessageId};

use crate::{
    World,
    people::{Crowd, FIRST, owner},
    step::{Step, steps},
    verdict,
    wait::{PATIENCE, joined},
};

/// What came of the cases, so that it is seen whether they are any good.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) cases: usize,
    pub(crate) messages: usize,
    pub(crate) written: usize,
    pub(crate) changes: usize,
    pub(crate) refused: usize,
    pub(crate) commits: usize,
}

/// Something that somebody said.
pub(crate) struct Said {
    pub(crate) by: usize,
    pub(crate) id: MessageId,
    pub(crate) text: String,
}

/// What was done to a group so far.
struct Doings<'a, W> {
    crowd: &'a mut Crowd<W>,
    group: GroupId,
    said: Vec<Said>,
    /// Directly, and to whom.
    written: Vec<(usize, Said)>,
    seed: u64,
    changes: JoinSet<Result<(), Error>>,
    tally: &'a mut Tally,
}

/// Says which case it was that failed.
struct Named(String);

impl Drop for Named {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{}", self.0);
        }
    }
}

/// Does the case of a seed, and checks that all agree at its end.
pub(crate) async fn case<W: World>(crowd: &mut Crowd<W>, seed: u64, tally: &mut Tally) {
    let steps = steps(seed, crowd.world.faults());
    let _named = Named(format!("TEST_SEED={seed} does the case that failed again: {steps:?}"));
    let group = begin(crowd).await;
    let mut doings =
        Doings { crowd, group, said: Vec::new(), written: Vec::new(), seed, changes: JoinSet::new(), tally };
    for (number, step) in steps.into_iter().enumerate() {
        doings.perform(number, step).await;
    }
    doings.crowd.world.heal().await;
    assert!(doings.all_changed_within(PATIENCE).await, "a change does not end");
    let Doings { crowd, said, written, tally, .. } = doings;
    verdict::all_agree(crowd, group, &said).await;
    verdict::all_have_read(crowd, &written).await;
    tally.cases += 1;
    tally.messages += said.len();
    tally.written += written.len();
    tally.commits += crowd.world.commits(&group).await;
}

/// A new group with the first of the people.
async fn begin<W>(crowd: &Crowd<W>) -> GroupId {
    let group = crowd.people[0].create_group("at first").await.unwrap();
    for account in &crowd.accounts[1..FIRST] {
        group.add(*account).await.unwrap();
    }
    for (_, client) in crowd.people.iter().enumerate().filter(|(n, _)| owner(*n) < FIRST) {
        joined(client, group.id()).await;
    }
    group.id()
}

impl<W: World> Doings<'_, W> {
    /// What is not possible is refused; what is, happens.
    async fn perform(&mut self, number: usize, step: Step<W::Fault>) {
        match step {
            Step::Send(by) => {
                let text = format!("{number} from {by}");
                if let Ok(id) = self.at(by).send(&text).await {
                    self.said.push(Said { by, id, text });
                }
            }
            Step::Write(by, whom) if owner(by) == whom => {}
            Step::Write(by, whom) => {
                let text = format!("{number} of {} from {by} to {whom}", self.seed);
                let id = self.crowd.people[by].direct(self.crowd.accounts[whom]).send(&text).await.unwrap();
                self.written.push((whom, Said { by, id, text }));
            }
            Step::Add(by, whom) => {
                let (by, whom) = (self.at(by), self.crowd.accounts[whom]);
                self.changes.spawn(async move { by.add(whom).await });
            }
            Step::Remove(by, whom) => {
                let (by, whom) = (self.at(by), self.crowd.accounts[whom]);
                self.changes.spawn(async move { by.remove(whom).await });
            }
            Step::Leave(who) => {
                let who = self.at(who);
                self.changes.spawn(async move { who.leave().await });
            }
            Step::Rename(by) => {
                let by = self.at(by);
                self.changes.spawn(async move { by.rename(&format!("name {number}")).await });
            }
            Step::Restart(who) => self.crowd.restart(who).await,
            Step::Fault(fault) => self.crowd.world.cause(fault).await,
            Step::Settle => drop(self.all_changed_within(W::A_WHILE).await),
        }
    }

    fn at(&self, who: usize) -> Group {
        self.crowd.people[who].group(self.group)
    }

    /// Whether all changes that were begun come to their end within this time.
    async fn all_changed_within(&mut self, time: Duration) -> bool {
        let Self { changes, tally, .. } = self;
        let all = async {
            while let Some(change) = changes.join_next().await {
                *if change.unwrap().is_ok() { &mut tally.changes } else { &mut tally.refused } += 1;
            }
        };
        tokio::time::timeout(time, all).await.is_ok()
    }
}
