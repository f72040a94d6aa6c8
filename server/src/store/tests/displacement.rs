//! Displacement: a queue that is full of groups makes room at the cost of the group that sends, and of nobody else.

use super::*;

const ONE: u8 = 1;

/// Room for five entries, of which a group may always have two.
const FIVE: Room = Room { entries_max: 5, group_entries_min: 2, group_bytes_min: 1_000, ..ROOM };

/// Messages of a group to device 1, of so many bytes each.
async fn send(tx: &mut Tx, room: &Room, group: &GroupId, sizes: &[usize]) {
    for bytes in sizes {
        append_all(tx, room, &[message(group, &vec![0; *bytes], u64::MAX, &[device_id(ONE)])]).await.unwrap();
    }
}

async fn send_direct(tx: &mut Tx, bytes: usize) {
    let payload = vec![0; bytes];
    let direct = message(&group(1), &payload, u64::MAX, &[device_id(ONE)]);
    append_all(tx, &FIVE, &[NewEnvelope { kind: Kind::Direct, group: None, ..direct }]).await.unwrap();
}

/// What device 1 holds: numbers of each group, and of direct messages.
async fn held(tx: &mut Tx) -> [Vec<i64>; 3] {
    const HELD: &str = "SELECT seq FROM queue WHERE device_id = $1 AND share = $2 ORDER BY seq";
    let mut held = [vec![], vec![], vec![]];
    let (device, one, two) = (device_id(ONE), group(1), group(2));
    for (share, seqs) in [one.as_bytes().as_slice(), two.as_bytes(), &[]].into_iter().zip(&mut held) {
        let device = device.as_bytes().as_slice();
        *seqs = on!(**tx, db => sqlx::query_scalar(HELD).bind(device).bind(share).fetch_all(db).await).unwrap();
    }
    tx.settle_released().await.unwrap();
    counts::check(tx, "after displacement").await;
    held
}

async fn with_device(fresh: &Fresh, work: impl for<'tx> FnOnce(&'tx mut Tx) -> BoxFuture<'tx, ()> + Send + 'static) {
    done(&fresh.db, |tx| {
        Box::pin(async move {
            add_group(tx, &[ONE, 2]).await?;
            work(tx).await;
            Ok(())
        })
    })
    .await;
}

pub(super) async fn a_group_gives_up_its_own_oldest(fresh: &Fresh) {
    with_device(fresh, |tx| {
        Box::pin(async move {
            send_direct(tx, 1).await;
            send(tx, &FIVE, &group(2), &[1, 1]).await;
            send(tx, &FIVE, &group(1), &[1, 1, 1]).await;
            assert_eq!(held(tx).await, [vec![4, 5, 6], vec![2, 3], vec![1]], "full, but not overfull");
            send(tx, &FIVE, &group(1), &[1]).await;
            assert_eq!(held(tx).await, [vec![5, 6, 7], vec![2, 3], vec![1]], "though others are older");
            send_direct(tx, 1).await;
            assert_eq!(held(tx).await, [vec![5, 6, 7], vec![2, 3], vec![1, 8]], "direct messages displace nothing");
        })
    })
    .await;
}

pub(super) async fn a_group_keeps_what_it_may_always_have(fresh: &Fresh) {
    with_device(fresh, |tx| {
        Box::pin(async move {
            send(tx, &FIVE, &group(1), &[1; 5]).await;
            send(tx, &FIVE, &group(2), &[1, 1]).await;
            assert_eq!(held(tx).await, [vec![1, 2, 3, 4, 5], vec![6, 7], vec![]], "a small group is not kept out");
            send(tx, &FIVE, &group(2), &[1]).await;
            assert_eq!(held(tx).await, [vec![1, 2, 3, 4, 5], vec![7, 8], vec![]], "nor does it get more than that");
            send(tx, &FIVE, &group(1), &[1]).await;
            assert_eq!(held(tx).await, [vec![4, 5, 9], vec![7, 8], vec![]], "who has more pays when it sends again");
        })
    })
    .await;
}

pub(super) async fn the_newest_stays_however_large_it_is(fresh: &Fresh) {
    const SMALL: Room = Room { bytes_max: 10, ..ROOM };
    with_device(fresh, |tx| {
        Box::pin(async move {
            send(tx, &SMALL, &group(1), &[4, 4]).await;
            send(tx, &SMALL, &group(1), &[50]).await;
            assert_eq!(held(tx).await, [vec![3], vec![], vec![]]);
            send(tx, &SMALL, &group(2), &[50]).await;
            assert_eq!(held(tx).await, [vec![3], vec![4], vec![]]);
            send(tx, &SMALL, &group(1), &[1]).await;
            assert_eq!(held(tx).await, [vec![5], vec![4], vec![]]);
        })
    })
    .await;
}

pub(super) async fn bytes_displace_like_entries(fresh: &Fresh) {
    const BYTES: Room = Room { bytes_max: 100, group_entries_min: 9, group_bytes_min: 30, ..ROOM };
    with_device(fresh, |tx| {
        Box::pin(async move {
            send(tx, &BYTES, &group(1), &[20; 5]).await;
            assert_eq!(held(tx).await[0], [1, 2, 3, 4, 5]);
            send(tx, &BYTES, &group(1), &[5]).await;
            assert_eq!(held(tx).await[0], [2, 3, 4, 5, 6], "one is enough");
            send(tx, &BYTES, &group(1), &[40]).await;
            assert_eq!(held(tx).await[0], [4, 5, 6, 7], "as many as it takes");
            send(tx, &BYTES, &group(2), &[10, 10, 10]).await;
            assert_eq!(held(tx).await[1], [8, 9, 10], "30 bytes it may always have");
            send(tx, &BYTES, &group(2), &[10]).await;
            assert_eq!(held(tx).await[1], [9, 10, 11]);
        })
    })
    .await;
}

pub(super) async fn a_group_does_not_pay_for_another(fresh: &Fresh) {
    with_device(fresh, |tx| {
        Box::pin(async move {
            send(tx, &FIVE, &group(2), &[1; 3]).await;
            send(tx, &FIVE, &group(1), &[1; 50]).await;
            assert_eq!(held(tx).await, [vec![52, 53], vec![1, 2, 3], vec![]]);
            ack(tx, ONE, 2).await.unwrap();
            send(tx, &FIVE, &group(1), &[1; 2]).await;
            assert_eq!(held(tx).await, [vec![52, 53, 54, 55], vec![3], vec![]], "what was taken makes room");
        })
    })
    .await;
}

pub(super) async fn two_groups_in_one_append_pay_one_after_the_other(fresh: &Fresh) {
    with_device(fresh, |tx| {
        Box::pin(async move {
            let to = [device_id(ONE), device_id(2)];
            let [one, two] = [1, 2].map(|byte| message(&group(byte), b"x", u64::MAX, &to));
            send(tx, &FIVE, &group(1), &[1; 2]).await;
            send(tx, &FIVE, &group(2), &[1; 3]).await;
            append_all(tx, &FIVE, &[two, one]).await.unwrap();
            // Group 1 is asked first, and gives what it has beyond its two; then group 2 gives the rest.
            assert_eq!(held(tx).await, [vec![2, 7], vec![4, 5, 6], vec![]]);
            assert_eq!(count(tx, "SELECT COUNT(*) FROM queue").await, 7, "the other device has room");
        })
    })
    .await;
}
