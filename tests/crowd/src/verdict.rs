//! What must hold at the end: the members see the same group and the same messages, each once, nothing waits to be sent, and
//! whoever speaks is heard by all.
//!
//! That all stand on the same commit is seen by the last: a message is taken at the newest commit only, and read only by who
//! stands there.

use std::{collections::BTreeSet, time::Duration};

use undertone::{AccountId, GroupId};

use crate::{
    World,
    case::Said,
    people::{CORE, Crowd, DEVICES, devices_of, is_core, owner},
    wait::{PATIENCE, texts, wait_until},
};

/// So long they may take to agree.
const AGREE_WITHIN: Duration = Duration::from_secs(100);

/// Asserts that all agree on the group, now that nothing goes wrong any more.
pub(crate) async fn all_agree<W: World>(crowd: &Crowd<W>, group: GroupId, said: &[Said]) {
    let members = tokio::time::timeout(AGREE_WITHIN, all_see_the_same(crowd, group)).await;
    let members = members.expect("they agree in time");
    let last = all_are_heard(crowd, group, &members).await;
    each_once(crowd, group, &members, said, last).await;
}

/// Waits until all members see the same group. Answers who is in it.
async fn all_see_the_same<W: World>(crowd: &Crowd<W>, group: GroupId) -> Vec<usize> {
    crowd.all_online().await;
    for (n, client) in crowd.people.iter().enumerate() {
        assert_eq!(client.outbox_empty(PATIENCE).await.unwrap(), 0, "{n} has something left to send");
    }
    // Tidying up after those who have left takes its turns.
    wait_until("all to agree", async || {
        let mut seen = Vec::new();
        for n in 0..DEVICES {
            seen.extend(sees(crowd, group, n).await.map(|one| (n, one)));
        }
        let (_, first) = seen.first()?;
        let in_it: BTreeSet<_> = seen.iter().map(|(n, _)| crowd.accounts[owner(*n)]).collect();
        // Of who is in it all devices are.
        let all_of_them = seen.iter().all(|(n, _)| devices_of(owner(*n)).all(|d| seen.iter().any(|(n, _)| *n == d)));
        let same = all_of_them && seen.iter().all(|(_, one)| one == first) && in_it == first.1;
        same.then(|| seen.iter().map(|(n, _)| *n).collect())
    })
    .await
}

/// The group's name and members as somebody sees them who is in it.
async fn sees<W>(crowd: &Crowd<W>, group: GroupId, n: usize) -> Option<(String, BTreeSet<AccountId>)> {
    let summary = crowd.people[n].group(group).summary().await.ok()?;
    let members = summary.members.iter().map(|one| one.account_id).collect();
    summary.active.then_some((summary.name, members))
}

/// Lets each member say something, and waits until all have it all. Answers what was said.
async fn all_are_heard<W>(crowd: &Crowd<W>, group: GroupId, members: &[usize]) -> BTreeSet<String> {
    let mut last = BTreeSet::new();
    for n in members {
        let text = format!("at last {n}");
        crowd.people[*n].group(group).send(&text).await.unwrap();
        last.insert(text);
    }
    for n in members {
        let group = crowd.people[*n].group(group);
        wait_until(format!("what was said at last at {n}"), async || {
            let texts = texts(&group).await;
            last.iter().all(|one| texts.contains(one)).then_some(())
        })
        .await;
    }
    last
}

/// Asserts that nobody has a message twice, and that who was there all the time has all that the relay has taken.
async fn each_once<W>(crowd: &Crowd<W>, group: GroupId, members: &[usize], said: &[Said], last: BTreeSet<String>) {
    let mut arrived = last;
    for Said { by, id, text } in said {
        if crowd.people[*by].message_status(*id).await.unwrap().is_sent() {
            arrived.insert(text.clone());
        }
    }
    assert!((0..CORE).all(|n| members.contains(&n)), "who was never removed is in it: {members:?}");
    for n in members {
        let texts = texts(&crowd.people[*n].group(group)).await;
        let once: BTreeSet<_> = texts.iter().cloned().collect();
        assert_eq!(once.len(), texts.len(), "{n} has something twice: {texts:?}");
        if is_core(*n) {
            let failed: Vec<_> = once.difference(&arrived).collect();
            let lost: Vec<_> = arrived.difference(&once).collect();
            assert!(lost.is_empty(), "{n} lacks {lost:?}");
            assert!(failed.iter().all(|text| text.ends_with(&format!("from {n}"))), "{n} has {failed:?}");
        }
    }
}

/// Asserts that what was written directly is on all devices of both, each once, and in the same order.
pub(crate) async fn all_have_read<W>(crowd: &Crowd<W>, written: &[(usize, Said)]) {
    let pairs: BTreeSet<_> = written.iter().map(|(to, said)| pair(owner(said.by), *to)).collect();
    for (one, other) in pairs {
        let between: Vec<_> = written.iter().filter(|(to, said)| pair(owner(said.by), *to) == (one, other)).collect();
        let mut histories = Vec::new();
        for (person, with) in [(one, other), (other, one)] {
            for device in devices_of(person) {
                let conversation = crowd.people[device].direct(crowd.accounts[with]);
                let history =
                    wait_until(format!("what was written between {one} and {other} at {device}"), async || {
                        let texts = texts(&conversation).await;
                        between.iter().all(|(_, said)| texts.contains(&said.text)).then_some(texts)
                    });
                histories.push(history.await);
            }
        }
        for history in &histories {
            let once: BTreeSet<_> = history.iter().collect();
            assert_eq!(once.len(), history.len(), "twice between {one} and {other}: {history:?}");
            assert_eq!(*history, histories[0], "not the same between {one} and {other}");
        }
    }
}

fn pair(one: usize, other: usize) -> (usize, usize) {
    (one.min(other), one.max(other))
}
