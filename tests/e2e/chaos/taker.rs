//! A device that takes what is in its queue, over a bad network, by streams and by polls.
//!
//! Invariant: what it has is numbered from 1 without a gap. What comes again is what came before; a number that is told as
//! missed, or that is skipped, ends the run.

use std::{
    cmp::Ordering,
    sync::{Mutex, MutexGuard, PoisonError},
};

use http::Method;
use tokio::sync::watch;
use undertone_test_client::{Device, Parsed, bytes_of};
use undertone_tests::Chance;
use undertone_wire::{AckRequest, Delivery, Envelope, FetchResponse, ServerFrame, path};

use super::{AGAIN, GROUPS, World, count};

/// Once in so many entries of a stream, the device acks.
const ACK_ONE_IN: u64 = 4;

/// Once in so many entries of a stream, the device is gone before it acks.
const GONE_ONE_IN: u64 = 150;

/// Once in so many times, it comes back without knowing what it had not acked.
const FORGETS_ONE_IN: u64 = 4;

/// An entry of a queue, as far as it is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    /// Which group.
    pub(super) group: usize,
    /// Where its sender stood, by commits.
    pub(super) at: u64,
    pub(super) what: What,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    Message { content: u64 },
    Commit { number: u64, content: u64 },
    Welcome { number: u64 },
}

/// A device with all it has taken.
pub(super) struct Taker {
    pub(super) device: Device,
    taken: Mutex<Vec<Entry>>,
    /// Where its groups stand by what it has taken, and its newest own content.
    moved: watch::Sender<([u64; GROUPS.len()], u64)>,
}

impl Taker {
    pub(super) fn new(device: Device) -> Self {
        Self { device, taken: Mutex::default(), moved: watch::Sender::default() }
    }

    /// How many entries it has.
    pub(super) fn len(&self) -> usize {
        self.taken().len()
    }

    /// All that it has, oldest first.
    pub(super) fn taken(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of the newest commit of a group that it has.
    pub(super) fn stands_at(&self, group: usize) -> u64 {
        self.moved.borrow().0[group]
    }

    /// Waits until it has a newer commit.
    pub(super) async fn stands_beyond(&self, group: usize, at: u64) {
        self.moved.subscribe().wait_for(|(stands, _)| stands[group] > at).await.unwrap();
    }

    /// Waits until it has what it posted itself.
    pub(super) async fn has(&self, content: u64) {
        self.moved.subscribe().wait_for(|(_, own)| *own >= content).await.unwrap();
    }

    /// Takes whatever comes, for ever.
    pub(super) async fn take_all(&self, world: &World, mut chance: Chance) {
        loop {
            let after = if chance.one_in(FORGETS_ONE_IN) { 0 } else { self.len() as u64 };
            let there = self.device.at(world.way(&mut chance));
            count(&world.counts.visits);
            if chance.one_in(3) {
                self.poll(world, &there, after, &mut chance).await;
            } else {
                self.listen(world, &there, after, &mut chance).await;
            }
            chance.moment(AGAIN).await;
        }
    }

    async fn listen(&self, world: &World, there: &Device, after: u64, chance: &mut Chance) {
        let Ok(mut stream) = there.try_stream(after, Some(there.encoding)).await else { return };
        let mut before = None;
        while let Some(frame) = stream.next_ever().await {
            match frame {
                ServerFrame::Hello { .. } => {}
                ServerFrame::Delivery { delivery } => {
                    assert!(
                        before.is_none_or(|before| delivery.seq == before + 1),
                        "{before:?}, then {}",
                        delivery.seq
                    );
                    before = Some(delivery.seq);
                    self.take(world, &delivery);
                    if chance.one_in(GONE_ONE_IN) {
                        return;
                    }
                    if chance.one_in(ACK_ONE_IN) && stream.try_ack(delivery.seq).await.is_err() {
                        return;
                    }
                }
                ServerFrame::CaughtUp { next_seq } => {
                    assert_eq!(next_seq, self.len() as u64 + 1, "it has caught up");
                    if stream.try_ack(next_seq - 1).await.is_err() {
                        return;
                    }
                }
                ServerFrame::Bye { .. } => return,
                other => panic!("{other:?}"),
            }
        }
    }

    async fn poll(&self, world: &World, there: &Device, after: u64, chance: &mut Chance) {
        let path = format!("{}?after={after}&wait=1", path::QUEUE);
        let reply = match there.attempt(Method::GET, &path, None).await {
            Ok(reply) if !reply.is_undecided() => reply,
            Ok(_) | Err(_) => return,
        };
        let page: FetchResponse = reply.yes();
        assert_eq!(page.missed, [], "nothing is missed");
        page.deliveries.iter().for_each(|delivery| self.take(world, delivery));
        let up_to = self.len() as u64;
        if chance.one_in(2) && up_to > 0 {
            let ack = there.encoding.encode(&AckRequest { up_to });
            // Whether it was taken is seen by what comes next.
            let _ = there.attempt(Method::POST, path::ACK, Some(ack)).await;
        }
    }

    fn take(&self, world: &World, delivery: &Delivery) {
        let entry = Entry::new(world, &delivery.envelope);
        let mut taken = self.taken();
        let next = taken.len() as u64 + 1;
        match delivery.seq.cmp(&next) {
            Ordering::Less => {
                let before = taken[usize::try_from(delivery.seq).unwrap() - 1];
                assert_eq!(before, entry, "number {} is what it was", delivery.seq);
                count(&world.counts.repeated_entries);
            }
            Ordering::Equal => {
                taken.push(entry);
                drop(taken);
                self.moved.send_modify(|moved| self.note(moved, world, entry));
            }
            Ordering::Greater => panic!("number {} came before {next}", delivery.seq),
        }
    }

    fn note(&self, (stands, own): &mut ([u64; GROUPS.len()], u64), world: &World, entry: Entry) {
        let (What::Commit { content, .. } | What::Message { content }) = entry.what else {
            stands[entry.group] = entry.commit_seq().unwrap_or_default();
            return;
        };
        stands[entry.group] = entry.commit_seq().unwrap_or(stands[entry.group]);
        let number = super::verdict::sender_of(content);
        if world.takers.get(number).is_some_and(|taker| taker.device.id() == self.device.id()) {
            *own = content;
        }
    }
}

impl Entry {
    fn new(world: &World, envelope: &Envelope) -> Self {
        let (Envelope::GroupMessage { group_id, .. }
        | Envelope::GroupCommit { group_id, .. }
        | Envelope::Welcome { group_id, .. }) = envelope
        else {
            panic!("nobody sent {envelope:?}")
        };
        let group = world.groups.iter().position(|group| group == group_id).unwrap();
        if let Envelope::Welcome { commit_seq, .. } = envelope {
            return Self { group, at: commit_seq - 1, what: What::Welcome { number: *commit_seq } };
        }
        let parsed = Parsed::from_bytes(bytes_of(envelope));
        // The commit that made the group says something else than a number.
        let content = parsed.body.try_into().map_or(u64::MAX, u64::from_be_bytes);
        let what = match envelope {
            Envelope::GroupCommit { commit_seq, .. } => What::Commit { number: *commit_seq, content },
            _ => What::Message { content },
        };
        Self { group, at: parsed.data.at, what }
    }

    /// Its number, if it is a commit or a Welcome.
    pub(super) fn commit_seq(self) -> Option<u64> {
        match self.what {
            What::Commit { number, .. } | What::Welcome { number } => Some(number),
            What::Message { .. } => None,
        }
    }
}
