//! Many at once, on every node there can be: no deadlock, nothing lost, nothing given twice.
//!
//! Work is put together from the store's statements as rooms do it, in the order of locks that the store asks for.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::task::{JoinHandle, JoinSet};

use super::*;
use crate::{
    queue::missed,
    store::{
        groups::Ending,
        message_ids::{self, NewStub},
        queue::{PageRequest, page},
    },
};
use undertone_wire::{Delivery, Envelope};

const DEVICES: u8 = 12;
pub(super) const GROUPS: u8 = 8;
const SENDERS: usize = 64;
/// The device that is removed while others send.
const REMOVED: u8 = 12;
/// Messages that expire at once; all others stay.
const EXPIRES: u64 = HOUR_MS;

/// A transaction has failed on Postgres if there was a deadlock; the server's log tells of those that were retried.
pub(super) fn no_deadlock(fresh: &Fresh) {
    if let Some(cluster) = fresh.database.as_ref().and_then(Database::cluster) {
        assert!(!cluster.log().contains("deadlock detected"));
    }
}

pub(super) async fn two_nodes(fresh: &Fresh) -> [Db; 2] {
    [fresh.db.clone(), fresh.another_node().await]
}

/// Runs the same work many times at once, on all nodes in turn.
pub(super) async fn at_once<T: Send + 'static>(
    nodes: &[Db],
    times: usize,
    work: impl Fn(Db, usize) -> BoxFuture<'static, T>,
) -> Vec<T> {
    let mut running = JoinSet::new();
    for nth in 0..times {
        running.spawn(work(nodes[nth % nodes.len()].clone(), nth));
    }
    running.join_all().await
}

/// Which devices are in a group at first: half of them, each group another half.
fn founders(nth: u8) -> Vec<u8> {
    (1..=DEVICES).filter(|device| (device * 7 + nth * 5) % DEVICES < DEVICES / 2).collect()
}

/// Sends messages to some groups in one transaction, like a batch; answers who gets which.
async fn fan_out(tx: &mut Tx, messages: &[(u32, GroupId, u64)]) -> Result<Vec<(u32, Vec<DeviceId>)>, StoreError> {
    let stub = |nth: &u32| {
        let hash = Hash::of(&nth.to_be_bytes());
        NewStub { id_hash: hash, body_hash: hash, expires_hour_ms: EXPIRES }
    };
    let stubs: Vec<_> = messages.iter().map(|(nth, ..)| stub(nth)).collect();
    assert!(message_ids::claim(tx, &stubs).await?.is_empty());
    groups::lock(tx, &messages.iter().map(|(_, group, _)| *group).collect()).await?;
    let members = groups::members_of(tx, &messages.iter().map(|(_, group, _)| *group).collect()).await?;
    let payloads: Vec<_> = messages.iter().map(|(nth, ..)| nth.to_be_bytes()).collect();
    let envelopes: Vec<_> = messages
        .iter()
        .zip(&payloads)
        .map(|((_, group, expires), payload)| message(group, payload, *expires, &members[group]))
        .collect();
    append_all(tx, &ROOM, &envelopes).await?;
    Ok(messages.iter().map(|(nth, group, _)| (*nth, members[group].clone())).collect())
}

/// Moves a group on by a commit, like a post.
async fn commit(tx: &mut Tx, nth: u32, group: GroupId) -> Result<Vec<(u32, Vec<DeviceId>)>, StoreError> {
    let commit_seq = groups::lock(tx, &BTreeSet::from([group])).await?[&group].commit_seq + 1;
    let members = members(tx, &group).await?;
    let payload = nth.to_be_bytes();
    let envelope = message(&group, &payload, u64::MAX, &members);
    let envelope = NewEnvelope { kind: Kind::Commit, number: commit_seq, held_by_commits: true, ..envelope };
    let envelope = append_all(tx, &ROOM, &[envelope]).await?[0];
    let (added, removed, posted_hour_ms) = (&[][..], &[][..], 0);
    groups::add_commit(tx, &groups::NewCommit { group, commit_seq, envelope, added, removed, posted_hour_ms }).await?;
    groups::advance(tx, &group, &account_id(1), b"info").await?;
    Ok(vec![(nth, members)])
}

/// Unlists a device, like the directory; `false` if it was added to a group meanwhile, and it must begin again.
pub(super) async fn remove_device(tx: &mut Tx, device: u8) -> Result<bool, StoreError> {
    let (account, devices) = (account_id(device), BTreeSet::from([device_id(device)]));
    accounts::lock_lists(tx, &BTreeSet::from([account])).await?;
    let concerned: BTreeSet<_> = groups::stays_of(tx, &devices).await?.into_keys().collect();
    groups::lock(tx, &concerned).await?;
    accounts::lock_devices(tx, &devices).await?;
    let stays: BTreeSet<_> = groups::stays_of(tx, &devices).await?.into_keys().collect();
    if !stays.is_subset(&concerned) {
        return Ok(false);
    }
    let mut told = Vec::new();
    for group in &stays {
        groups::end_stays(tx, group, &[device_id(device)], 0, 0, Ending::WithoutCommit).await?;
        let number = groups::bump_members(tx, group).await?;
        let staying = members(tx, group).await?;
        told.push(NewEnvelope { kind: Kind::MembersGone, number, ..message(group, b"", u64::MAX, &staying) });
    }
    groups::forget_devices(tx, &devices).await?;
    let receivers = told.iter().flat_map(|envelope| &envelope.receivers).map(|to| to.device);
    let mut cursors = queue::lock(tx, &receivers.chain(devices.iter().copied()).collect()).await?;
    queue::delete_all(tx, &mut cursors, &devices).await?;
    queue::append(tx, cursors, &ROOM, &told).await?;
    accounts::delete_device(tx, &device_id(device)).await?;
    Ok(true)
}

async fn read(db: &Db, device: u8, after: u64) -> Option<queue::Page> {
    let token_hash = Hash::of(b"token");
    let request = PageRequest { device: device_id(device), token_hash, after, entries_max: 50, bytes_max: 1 << 20 };
    page(&mut db.read().await.unwrap(), &request, 0).await.unwrap()
}

/// Takes all that comes for a device and acks it, until there is no more and no more will come. Answers what came.
fn receiver(db: Db, device: u8, over: Arc<AtomicBool>) -> JoinHandle<Vec<Delivery>> {
    tokio::spawn(async move {
        let (mut came, mut after) = (Vec::new(), 0);
        loop {
            let last_look = over.load(Ordering::SeqCst);
            let Some(page) = read(&db, device, after).await else { return came };
            let Some(last) = page.deliveries.last() else {
                if last_look {
                    return came;
                }
                tokio::task::yield_now().await;
                continue;
            };
            after = last.seq;
            came.extend(page.deliveries);
            let up_to = after;
            let acked = db.write(move |tx| Box::pin(async move { ack_if_listed(tx, device, up_to).await }));
            acked.await.unwrap();
        }
    })
}

async fn ack_if_listed(tx: &mut Tx, device: u8, up_to: u64) -> Result<(), StoreError> {
    let device = device_id(device);
    let cursors = queue::lock(tx, &BTreeSet::from([device])).await?;
    let listed = cursors.get(&device).is_some();
    queue::ack(tx, cursors, &listed.then_some((device, up_to)).into_iter().collect()).await
}

/// Deletes what has expired, again and again.
fn sweeper(db: Db, over: Arc<AtomicBool>) -> JoinHandle<u64> {
    tokio::spawn(async move {
        let mut gone = 0;
        while !over.load(Ordering::SeqCst) {
            gone += done(&db, |tx| Box::pin(queue::expire(tx, EXPIRES, 20))).await;
            done(&db, |tx| Box::pin(message_ids::expire(tx, EXPIRES, 20))).await;
            done(&db, |tx| Box::pin(groups::expire_commits(tx, 1, 5))).await;
        }
        gone
    })
}

/// What one sender sends: batches to two groups, now and then a commit.
fn sender(db: Db, nth: usize) -> BoxFuture<'static, Vec<(u32, Vec<DeviceId>)>> {
    Box::pin(async move {
        let mut sent = Vec::new();
        let mut dice = Dice(nth as u64);
        for round in 0..short_or_soak(4, 60) {
            let first = u32::try_from(nth * 1_000 + round * 3).unwrap() * 2;
            let mut some_group = || group(u8::try_from(dice.roll(GROUPS.into())).unwrap() + 1);
            let (one, two) = (some_group(), some_group());
            // Even ones stay, odd ones expire.
            let messages = [(first, one, u64::MAX), (first + 1, two, EXPIRES), (first + 2, two, u64::MAX)];
            sent.extend(done(&db, move |tx| Box::pin(async move { fan_out(tx, &messages).await })).await);
            if round % 4 == nth % 4 {
                sent.extend(done(&db, move |tx| Box::pin(commit(tx, first + 4, one))).await);
            }
        }
        sent
    })
}

pub(super) async fn fan_outs_acks_expiry_and_a_removal_lose_nothing(fresh: &Fresh) {
    let nodes = two_nodes(fresh).await;
    done(&fresh.db, |tx| {
        Box::pin(async move {
            for device in 1..=DEVICES {
                add_account(tx, &[device]).await?;
            }
            for nth in 1..=GROUPS {
                add_group_of(tx, &group(nth), &founders(nth)).await?;
            }
            Ok(())
        })
    })
    .await;
    let over = Arc::new(AtomicBool::new(false));
    let receivers: Vec<_> = (1..=DEVICES)
        .map(|device| receiver(nodes[usize::from(device) % 2].clone(), device, Arc::clone(&over)))
        .collect();
    let sweepers = nodes.each_ref().map(|node| sweeper(node.clone(), Arc::clone(&over)));
    let removal = tokio::spawn({
        let db = nodes[1].clone();
        async move {
            while read(&db, REMOVED, 0).await.unwrap().next_seq < 20 {
                tokio::task::yield_now().await;
            }
            while !done(&db, |tx| Box::pin(remove_device(tx, REMOVED))).await {}
        }
    });
    let sent: Vec<_> = at_once(&nodes, SENDERS, sender).await.into_iter().flatten().collect();
    removal.await.unwrap();
    over.store(true, Ordering::SeqCst);
    for sweeper in sweepers {
        sweeper.await.unwrap();
    }
    for (device, receiver) in (1..=DEVICES).zip(receivers) {
        let came = receiver.await.unwrap();
        check_what_came(device, &came, &sent);
    }
    let mut conn = fresh.db.read().await.unwrap();
    counts::check(&mut conn, "after all").await;
    assert!(read(&fresh.db, REMOVED, 0).await.is_none());
    no_deadlock(fresh);
}

/// All that was to stay came, once and under ascending numbers; of the rest, nothing came twice.
fn check_what_came(device: u8, came: &[Delivery], sent: &[(u32, Vec<DeviceId>)]) {
    assert!(came.is_sorted_by(|a, b| a.seq < b.seq), "device {device}");
    let mut payloads: Vec<_> = came
        .iter()
        .filter_map(|delivery| match &delivery.envelope {
            Envelope::GroupMessage { message: payload, .. } | Envelope::GroupCommit { commit: payload, .. } => {
                Some(u32::from_be_bytes(payload.as_slice().try_into().unwrap()))
            }
            _ => None,
        })
        .collect();
    payloads.sort_unstable();
    assert!(payloads.is_sorted_by(|a, b| a < b), "device {device} got something twice");
    if device != REMOVED {
        let lost = sent.iter().filter(|(nth, to)| nth % 2 == 0 && to.contains(&device_id(device)));
        let lost: Vec<_> = lost.filter(|(nth, _)| payloads.binary_search(nth).is_err()).collect();
        assert!(lost.is_empty(), "device {device} did not get {lost:?}");
    }
}

pub(super) async fn no_page_shows_a_hole_that_is_none(fresh: &Fresh) {
    let reads = short_or_soak(1_000, 10_000);
    let [db, other] = two_nodes(fresh).await;
    done(&db, |tx| Box::pin(async move { add_group(tx, &[1]).await })).await;
    let over = Arc::new(AtomicBool::new(false));
    let writing = tokio::spawn({
        let over = Arc::clone(&over);
        async move {
            let mut up_to = 0;
            while !over.load(Ordering::SeqCst) {
                up_to += 1;
                done(&other, move |tx| {
                    Box::pin(async move {
                        append(tx, b"x").await?;
                        append(tx, b"y").await?;
                        ack(tx, 1, up_to).await
                    })
                })
                .await;
            }
            up_to
        }
    });
    let mut different = BTreeSet::new();
    for _ in 0..reads {
        let page = read(&db, 1, 0).await.unwrap();
        assert_eq!(missed(&page, 0), [], "{page:?}");
        different.insert(page.next_seq);
    }
    over.store(true, Ordering::SeqCst);
    assert!(writing.await.unwrap() > 10 && different.len() > 10, "the queue moved while it was read");
}
