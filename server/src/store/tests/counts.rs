//! Payloads and what points at them.

use super::*;
use crate::store::{Conn, groups::NewCommit, on};

/// Envelopes whose `pointers` are not the rows that point at them, and those at which nothing points.
const WRONG: &str = "
    SELECT COUNT(*) FROM envelopes e WHERE pointers = 0 OR pointers <>
        (SELECT COUNT(*) FROM queue q WHERE q.envelope_id = e.envelope_id) +
        (SELECT COUNT(*) FROM commits c WHERE c.envelope_id = e.envelope_id)";

const ROWS: &str = "SELECT COUNT(*) FROM queue";
const ENVELOPES: &str = "SELECT COUNT(*) FROM envelopes";

async fn count(conn: &mut Conn, statement: &'static str) -> i64 {
    on!(*conn, db => sqlx::query_scalar(statement).fetch_one(db).await).unwrap()
}

/// A small generator, so that a run can be repeated.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

async fn commit(tx: &mut Tx, commit_seq: u64, posted_hour_ms: u64) -> Result<(), StoreError> {
    let envelope =
        NewEnvelope { kind: Kind::Commit, group: group_id(), number: commit_seq, posted_hour_ms, payload: b"commit" };
    let envelope = queue::append_to_members(tx, &envelope, true).await?.unwrap();
    let commit = NewCommit { group: group_id(), commit_seq, envelope, added: &[], removed: &[], posted_hour_ms };
    groups::add_commit(tx, &commit).await
}

pub(super) async fn pointers_are_what_points(fresh: Fresh) {
    let db = fresh.db;
    db.write(|tx| Box::pin(async move { add_group(tx, &[1, 2, 3, 4]).await })).await.unwrap();
    let mut dice = Dice(7);
    let mut seen = 0;
    for step in 1..=300 {
        let (what, device, far) = (dice.roll(10), u8::try_from(dice.roll(4) + 1).unwrap(), dice.roll(step));
        db.write(move |tx| {
            Box::pin(async move {
                let hour = step * HOUR_MS;
                match what {
                    0..=3 => queue::append_to_members(tx, &message(b"message", hour), false).await.map(|_| ()),
                    4 => commit(tx, step, hour).await,
                    5 => {
                        let own = [(device_id(device), b"own".as_slice().into())];
                        queue::append_to(tx, &message(b"to one", hour), &own).await
                    }
                    6..=7 => queue::ack(tx, &device_id(device), far).await,
                    8 => queue::expire(tx, hour / 2, 7).await.map(|_| ()),
                    _ => groups::expire(tx, hour / 2, 3).await.map(|_| ()),
                }
            })
        })
        .await
        .unwrap();
        let mut conn = db.read().await.unwrap();
        assert_eq!(count(&mut conn, WRONG).await, 0, "after step {step}");
        seen += count(&mut conn, ENVELOPES).await;
    }
    assert!(seen > 300, "there were payloads to count");

    db.write(|tx| {
        Box::pin(async move {
            for device in 1..=4 {
                queue::delete_all(tx, &device_id(device)).await?;
            }
            groups::delete(tx, &group_id()).await
        })
    })
    .await
    .unwrap();
    let mut conn = db.read().await.unwrap();
    assert_eq!((count(&mut conn, ROWS).await, count(&mut conn, ENVELOPES).await), (0, 0));
}

pub(super) async fn expiring_goes_in_batches(fresh: Fresh) {
    let db = fresh.db;
    db.write(|tx| {
        Box::pin(async move {
            add_group(tx, &[1, 2]).await?;
            for hour in 0..5 {
                queue::append_to_members(tx, &message(b"message", hour * HOUR_MS), false).await?;
            }
            Ok::<_, StoreError>(())
        })
    })
    .await
    .unwrap();
    let expire = || db.write(|tx| Box::pin(async move { queue::expire(tx, 3 * HOUR_MS, 4).await }));
    assert_eq!(expire().await.unwrap(), 4);
    assert_eq!(expire().await.unwrap(), 2);
    assert_eq!(expire().await.unwrap(), 0);
    let mut conn = db.read().await.unwrap();
    assert_eq!((count(&mut conn, ROWS).await, count(&mut conn, ENVELOPES).await), (4, 2));
}
