//! Queues against a model: random work on both, and after each step the same rows, numbers and counts.

use super::*;
use crate::store::queue::{JUMP_AHEAD, Share};

const DEVICES: u8 = 4;
const GROUPS: u8 = 3;

/// Room that is soon filled, by entries as well as by bytes.
const NARROW: Room = Room { entries_max: 12, bytes_max: 150, group_entries_min: 2, group_bytes_min: 15 };

/// Rows as they stand in the database: device, number, kind, bytes, and when they expire.
type Row = (Vec<u8>, i64, Vec<u8>, i64, i64);

const ALL_ROWS: &str = "
    SELECT q.device_id, q.seq, q.share, q.bytes, e.expires_hour_ms
    FROM queue q JOIN envelopes e ON e.envelope_id = q.envelope_id ORDER BY q.device_id, q.seq";

const ALL_CURSORS: &str = "SELECT device_id, next_seq, acked_seq FROM cursors ORDER BY device_id";

#[derive(Debug, Clone, Copy)]
struct Entry {
    share: Share,
    bytes: u64,
    expires_hour_ms: u64,
}

#[derive(Debug, Default)]
struct Queue {
    next_seq: u64,
    acked_seq: u64,
    entries: BTreeMap<u64, Entry>,
}

#[derive(Debug)]
struct Model(BTreeMap<DeviceId, Queue>);

impl Queue {
    fn of_groups(&self) -> (u64, u64) {
        let groups = self.entries.values().filter(|entry| matches!(entry.share, Share::Group(_)));
        groups.fold((0, 0), |(entries, bytes), entry| (entries + 1, bytes + entry.bytes))
    }

    /// A group that has just got something pays, if there is too much: its own oldest rows, so many as are too many and
    /// a hundredth of the room more, without those it may always have.
    fn displace(&mut self, share: Share, room: &Room) -> bool {
        let (entries, bytes) = self.of_groups();
        let over = |now: u64, max: u64| if now > max { now - max + max / 100 } else { 0 };
        let (entries_over, bytes_over) = (over(entries, room.entries_max), over(bytes, room.bytes_max));
        if entries_over == 0 && bytes_over == 0 {
            return false;
        }
        let mine: Vec<_> =
            self.entries.iter().filter(|(_, entry)| entry.share == share).map(|(seq, e)| (*seq, e.bytes)).collect();
        let mut older = 0;
        for (nth, (seq, bytes)) in mine.iter().enumerate() {
            let wanted = (nth as u64) < entries_over || older < bytes_over;
            older += bytes;
            let newer: u64 = mine[nth..].iter().map(|(_, bytes)| bytes).sum();
            let nth_newest = (mine.len() - nth) as u64;
            let always = nth_newest <= room.group_entries_min && newer <= room.group_bytes_min;
            if wanted && nth_newest > 1 && !always {
                self.entries.remove(seq);
            }
        }
        true
    }
}

impl Model {
    fn append(&mut self, room: &Room, envelopes: &[NewEnvelope<'_>]) {
        let mut got = BTreeMap::<DeviceId, BTreeSet<Share>>::new();
        for envelope in envelopes {
            let share = match (envelope.kind, envelope.group) {
                (Kind::Direct, _) => Share::Direct,
                (_, Some(group)) => Share::Group(group),
                (_, None) => Share::Relay,
            };
            for to in &envelope.receivers {
                let bytes = (envelope.payload.len() + to.own_part.as_ref().map_or(0, |own| own.len())) as u64;
                let queue = self.0.get_mut(&to.device).unwrap();
                queue.entries.insert(queue.next_seq, Entry { share, bytes, expires_hour_ms: envelope.expires_hour_ms });
                queue.next_seq += 1;
                got.entry(to.device).or_default().insert(share);
            }
        }
        for (device, shares) in got {
            let queue = self.0.get_mut(&device).unwrap();
            let mut groups = shares.into_iter().filter(|share| matches!(share, Share::Group(_)));
            while groups.next().is_some_and(|share| queue.displace(share, room)) {}
        }
    }

    fn expire(&mut self, now_ms: u64) -> u64 {
        let before = self.count();
        self.0.values_mut().for_each(|queue| queue.entries.retain(|_, entry| entry.expires_hour_ms > now_ms));
        before - self.count()
    }

    fn count(&self) -> u64 {
        self.0.values().map(|queue| queue.entries.len() as u64).sum()
    }

    fn ack(&mut self, device: &DeviceId, up_to: u64) {
        let queue = self.0.get_mut(device).unwrap();
        queue.acked_seq = queue.acked_seq.max(up_to);
        queue.entries.retain(|seq, _| *seq > up_to);
    }

    fn jump(&mut self, device: &DeviceId, beyond: u64) {
        let queue = self.0.get_mut(device).unwrap();
        let first = queue.entries.keys().next().copied().unwrap_or(queue.next_seq).min(beyond);
        let by = beyond + 1 + JUMP_AHEAD - first;
        queue.entries = std::mem::take(&mut queue.entries).into_iter().map(|(seq, entry)| (seq + by, entry)).collect();
        queue.next_seq += by;
    }

    fn rows(&self) -> Vec<Row> {
        let rows = self.0.iter().flat_map(|(device, queue)| queue.entries.iter().map(move |row| (device, row)));
        rows.map(|(device, (seq, entry))| {
            let share = match &entry.share {
                Share::Group(group) => group.as_bytes().to_vec(),
                Share::Direct => vec![],
                Share::Relay => vec![0],
            };
            let [seq, bytes, expires] = [*seq, entry.bytes, entry.expires_hour_ms].map(|number| number.cast_signed());
            (device.as_bytes().to_vec(), seq, share, bytes, expires)
        })
        .collect()
    }
}

/// An envelope of some kind for some devices.
fn some_envelope<'a>(dice: &mut Dice, payload: &'a [u8], hour: u64) -> NewEnvelope<'a> {
    let group = group(u8::try_from(dice.roll(GROUPS.into())).unwrap() + 1);
    let receivers: Vec<_> = (1..=DEVICES).filter(|_| dice.roll(2) == 0).map(device_id).collect();
    let bytes = usize::try_from(dice.roll(30)).unwrap();
    let envelope = message(&group, &payload[..bytes], hour * HOUR_MS, &receivers);
    match dice.roll(8) {
        0 => NewEnvelope { kind: Kind::Direct, group: None, ..envelope },
        1 => NewEnvelope { kind: Kind::LastResortUsed, group: None, payload: &[], ..envelope },
        2 => {
            let with_part = |to: Receiver| Receiver { own_part: Some(payload[..7].into()), ..to };
            let receivers = envelope.receivers.into_iter().map(with_part).collect();
            NewEnvelope { kind: Kind::Welcome, receivers, ..envelope }
        }
        _ => envelope,
    }
}

/// The same step on both.
async fn step(tx: &mut Tx, model: &mut Model, dice: &mut Dice, nth: u64) {
    let device = device_id(u8::try_from(dice.roll(DEVICES.into())).unwrap() + 1);
    match dice.roll(12) {
        0..=6 => {
            let payload = [7; 64];
            let envelopes: Vec<_> = (0..=dice.roll(6)).map(|_| some_envelope(dice, &payload, nth)).collect();
            append_all(tx, &NARROW, &envelopes).await.unwrap();
            model.append(&NARROW, &envelopes);
        }
        7..=8 => {
            let queue = &model.0[&device];
            let held = queue.next_seq - 1 - queue.acked_seq.min(queue.next_seq - 1);
            let up_to = queue.next_seq - 1 - dice.roll(held.min(20) + 1);
            let cursors = queue::lock(tx, &BTreeSet::from([device])).await.unwrap();
            queue::ack(tx, cursors, &BTreeMap::from([(device, up_to)])).await.unwrap();
            model.ack(&device, up_to);
        }
        9..=10 => {
            let until = nth.saturating_sub(dice.roll(20)) * HOUR_MS;
            assert_eq!(queue::expire(tx, until, 1_000).await.unwrap(), model.expire(until));
        }
        _ if dice.roll(4) == 0 => {
            let beyond = model.0[&device].next_seq + dice.roll(50);
            queue::lock(tx, &BTreeSet::from([device])).await.unwrap();
            queue::jump_beyond(tx, &device, beyond).await.unwrap();
            model.jump(&device, beyond);
        }
        _ => {
            let mut cursors = queue::lock(tx, &BTreeSet::from([device])).await.unwrap();
            queue::delete_all(tx, &mut cursors, &BTreeSet::from([device])).await.unwrap();
            let last = [message(&group(1), b"x", nth * HOUR_MS, &[device])];
            queue::append(tx, cursors, &NARROW, &last).await.unwrap();
            model.0.get_mut(&device).unwrap().entries.clear();
            model.append(&NARROW, &last);
        }
    }
}

async fn compare(tx: &mut Tx, model: &Model, when: &str) {
    let rows: Vec<Row> = on!(**tx, db => sqlx::query_as(ALL_ROWS).fetch_all(db).await).unwrap();
    assert_eq!(rows, model.rows(), "{when}");
    let cursors: Vec<(Vec<u8>, i64, i64)> = on!(**tx, db => sqlx::query_as(ALL_CURSORS).fetch_all(db).await).unwrap();
    let expected = model.0.iter().map(|(device, queue)| {
        let [next_seq, acked_seq] = [queue.next_seq, queue.acked_seq].map(u64::cast_signed);
        (device.as_bytes().to_vec(), next_seq, acked_seq)
    });
    assert!(cursors.iter().cloned().eq(expected), "{when}: {cursors:?}");
    tx.settle_released().await.unwrap();
    counts::check(tx, when).await;
}

pub(super) async fn queues_are_what_the_model_is(fresh: &Fresh) {
    let most = Arc::new(Mutex::new(0));
    for seed in 0..short_or_soak(4, 40) as u64 {
        let most = Arc::clone(&most);
        let ran: Result<(), _> = fresh
            .db
            .write(move |tx| {
                Box::pin(async move {
                    let devices: Vec<_> = (1..=DEVICES).collect();
                    add_group(tx, &devices).await?;
                    let queue = |device: &u8| (device_id(*device), Queue { next_seq: 1, ..Queue::default() });
                    let mut model = Model(devices.iter().map(queue).collect());
                    let mut dice = Dice(seed);
                    for nth in 1..=150 {
                        step(tx, &mut model, &mut dice, nth).await;
                        compare(tx, &model, &format!("seed {seed}, step {nth}")).await;
                        let most = &mut *most.lock().unwrap();
                        *most = model.count().max(*most);
                    }
                    // Nothing stays, so that the next seed begins with nothing.
                    Err(StoreError::Corrupt("not really"))
                })
            })
            .await;
        assert!(matches!(ran, Err(StoreError::Corrupt("not really"))), "{ran:?}");
    }
    assert!(*most.lock().unwrap() > 20, "there was something to compare");
}
