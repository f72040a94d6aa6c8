//! Payloads and what points at them, cursors and what they count.

use super::*;

/// What is never so, as statements that count how often it is.
const WRONG: &[(&str, &str)] = &[
    (
        "pointers that are not the rows that point, or none",
        "SELECT COUNT(*) FROM envelopes e WHERE pointers = 0 OR pointers <>
             (SELECT COUNT(*) FROM queue q WHERE q.envelope_id = e.envelope_id) +
             (SELECT COUNT(*) FROM commits c WHERE c.envelope_id = e.envelope_id)",
    ),
    (
        "a row without an envelope",
        "SELECT COUNT(*) FROM queue q WHERE NOT EXISTS (SELECT 1 FROM envelopes e WHERE e.envelope_id = q.envelope_id)",
    ),
    (
        "a commit without an envelope",
        "SELECT COUNT(*) FROM commits c WHERE NOT EXISTS (SELECT 1 FROM envelopes e WHERE e.envelope_id = c.envelope_id)",
    ),
    (
        "a row without a cursor, or that the cursor is not beyond, or that was acked",
        "SELECT COUNT(*) FROM queue q WHERE NOT EXISTS (
             SELECT 1 FROM cursors c WHERE c.device_id = q.device_id AND q.seq < c.next_seq AND q.seq > c.acked_seq)",
    ),
    (
        "bytes that are not those of the payload and the own part",
        "SELECT COUNT(*) FROM queue q JOIN envelopes e ON e.envelope_id = q.envelope_id
         WHERE q.bytes <> LENGTH(e.payload) + COALESCE(LENGTH(q.own_part), 0)",
    ),
    (
        "a share that is not its envelope's",
        "SELECT COUNT(*) FROM queue q JOIN envelopes e ON e.envelope_id = q.envelope_id
         WHERE (LENGTH(q.share) = 16) <> (e.group_id IS NOT NULL) OR q.share <> COALESCE(e.group_id, q.share)",
    ),
    (
        "counts of what waits that are not the rows",
        "SELECT COUNT(*) FROM cursors c WHERE
             group_entries <> (SELECT COUNT(*) FROM queue q WHERE q.device_id = c.device_id AND LENGTH(q.share) = 16)
             OR direct_entries <> (SELECT COUNT(*) FROM queue q WHERE q.device_id = c.device_id AND LENGTH(q.share) = 0)
             OR group_bytes <> (SELECT CAST(COALESCE(SUM(q.bytes), 0) AS BIGINT) FROM queue q
                                WHERE q.device_id = c.device_id AND LENGTH(q.share) = 16)
             OR direct_bytes <> (SELECT CAST(COALESCE(SUM(q.bytes), 0) AS BIGINT) FROM queue q
                                 WHERE q.device_id = c.device_id AND LENGTH(q.share) = 0)",
    ),
];

pub(super) const ROWS: &str = "SELECT COUNT(*) FROM queue";
pub(super) const ENVELOPES: &str = "SELECT COUNT(*) FROM envelopes";

/// Looks whether all counts are what they count.
pub(super) async fn check(conn: &mut Conn, when: &str) {
    for (what, statement) in WRONG {
        assert_eq!(count(conn, statement).await, 0, "{when}: {what}");
    }
}

pub(super) async fn counts_are_what_is_counted(fresh: &Fresh) {
    let db = &fresh.db;
    done(db, |tx| Box::pin(async move { add_group(tx, &[1, 2, 3, 4]).await })).await;
    let mut dice = Dice(7);
    let mut seen = 0;
    for step in 1..=300 {
        let (what, device, far) = (dice.roll(11), u8::try_from(dice.roll(4) + 1).unwrap(), dice.roll(step));
        done(db, move |tx| Box::pin(async move { some_work(tx, step, what, device, far).await })).await;
        let mut conn = db.read().await.unwrap();
        check(&mut conn, &format!("after step {step}")).await;
        seen += count(&mut conn, ENVELOPES).await;
    }
    assert!(seen > 300, "there were payloads to count");

    done(db, |tx| {
        Box::pin(async move {
            let all = [1, 2, 3, 4].map(device_id).into();
            let mut cursors = queue::lock(tx, &all).await?;
            queue::delete_all(tx, &mut cursors, &all).await?;
            queue::append(tx, cursors, &ROOM, &[message(&group_id(), b"x", 0, &[device_id(1)])]).await?;
            ack(tx, 1, 1 << 40).await?;
            groups::delete(tx, &group_id()).await
        })
    })
    .await;
    let mut conn = db.read().await.unwrap();
    assert_eq!((count(&mut conn, ROWS).await, count(&mut conn, ENVELOPES).await), (0, 0));
}

async fn some_work(tx: &mut Tx, step: u64, what: u64, device: u8, far: u64) -> Result<(), StoreError> {
    let hour = step * HOUR_MS;
    match what {
        0..=3 => append_until(tx, b"message", hour).await,
        4 => append_commit(tx, step, b"commit", hour).await,
        5 => {
            let own_part = Some(b"own".as_slice().into());
            let receivers = vec![Receiver { device: device_id(device), own_part }];
            let envelope = NewEnvelope { receivers, ..message(&group_id(), b"to one", hour, &[]) };
            append_all(tx, &ROOM, &[envelope]).await.map(|_| ())
        }
        6 => {
            let to = [device_id(device)];
            let direct = NewEnvelope { kind: Kind::Direct, group: None, ..message(&group_id(), b"direct", hour, &to) };
            let notice = NewEnvelope { kind: Kind::KeysLow, group: None, ..message(&group_id(), &[0; 8], hour, &to) };
            append_all(tx, &ROOM, &[direct, notice]).await.map(|_| ())
        }
        7..=8 => ack(tx, device, far).await,
        9 => queue::expire(tx, hour / 2, 7).await.map(|_| ()),
        _ => groups::expire_commits(tx, hour / 2, 3).await.map(|_| ()),
    }
}

/// Whatever lets go of envelopes, in however many steps: they are locked together, and last.
pub(super) async fn envelopes_are_settled_at_the_end(fresh: &Fresh) {
    let pointers = async |conn: &mut Conn| count(conn, "SELECT CAST(SUM(pointers) AS BIGINT) FROM envelopes").await;
    done(&fresh.db, |tx| {
        Box::pin(async move {
            add_group(tx, &[1, 2, 3]).await?;
            for nth in 1..=4 {
                append_commit(tx, nth, b"x", nth * HOUR_MS).await?;
            }
            Ok(())
        })
    })
    .await;
    done(&fresh.db, move |tx| {
        Box::pin(async move {
            assert_eq!(pointers(tx).await, 4 * 4);
            ack(tx, 1, 2).await?;
            queue::expire(tx, HOUR_MS, 9).await?;
            let to = [2, 3].map(device_id);
            let mut cursors = queue::lock(tx, &to.into()).await?;
            queue::delete_all(tx, &mut cursors, &[to[0]].into()).await?;
            let room = Room { entries_max: 1, ..ROOM };
            queue::append(tx, cursors, &room, &[message(&group_id(), b"y", u64::MAX, &to)]).await?;
            groups::expire_commits(tx, 2 * HOUR_MS, 9).await?;
            groups::delete(tx, &group_id()).await?;
            assert_eq!(count(tx, ROWS).await, 4, "two of device 1, one of each other");
            assert_eq!(pointers(tx).await, 4 * 4 + 2, "nothing was counted down yet");
            Ok(())
        })
    })
    .await;
    let mut conn = fresh.db.read().await.unwrap();
    assert_eq!((count(&mut conn, ENVELOPES).await, pointers(&mut conn).await), (3, 4));
    check(&mut conn, "at the end").await;
}

pub(super) async fn expiring_goes_in_batches(fresh: &Fresh) {
    let db = &fresh.db;
    done(db, |tx| {
        Box::pin(async move {
            add_group(tx, &[1, 2]).await?;
            for hour in 1..=5 {
                append_until(tx, b"message", hour * HOUR_MS).await?;
            }
            Ok(())
        })
    })
    .await;
    let expire = |until: u64| done(db, move |tx| Box::pin(async move { queue::expire(tx, until, 4).await }));
    assert_eq!(expire(3 * HOUR_MS).await, 4);
    assert_eq!(expire(3 * HOUR_MS).await, 2);
    assert_eq!(expire(4 * HOUR_MS - 1).await, 0);
    let mut conn = db.read().await.unwrap();
    assert_eq!((count(&mut conn, ROWS).await, count(&mut conn, ENVELOPES).await), (4, 2));
    check(&mut conn, "after expiry").await;
}
