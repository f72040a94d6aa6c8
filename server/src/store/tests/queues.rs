//! What single statements about queues promise.

use super::*;
use crate::store::{
    groups,
    queue::{JUMP_AHEAD, Page, PageRequest, cursor, page},
    sessions,
};
use undertone_wire::{Delivery, Envelope, UnackedCommit};

async fn whole_queue(conn: &mut Conn, device: u8) -> Page {
    let token_hash = Hash::of(b"token");
    let request =
        PageRequest { device: device_id(device), token_hash, after: 0, entries_max: 1_000, bytes_max: 1 << 30 };
    page(conn, &request, 0).await.unwrap().unwrap()
}

/// What waits of groups and of direct messages, as entries and bytes.
async fn waiting(tx: &mut Tx, device: u8) -> [(u64, u64); 2] {
    let cursors = queue::lock(tx, &BTreeSet::from([device_id(device)])).await.unwrap();
    let cursor = cursors.get(&device_id(device)).unwrap();
    [cursor.groups, cursor.direct].map(|waiting| (waiting.entries, waiting.bytes))
}

fn relays_own(kind: Kind, number: u64, payload: &[u8], to: u8) -> NewEnvelope<'_> {
    NewEnvelope { kind, group: None, number, ..message(&group_id(), payload, HOUR_MS, &[device_id(to)]) }
}

pub(super) async fn envelopes_come_out_as_they_went_in(fresh: &Fresh) {
    done(&fresh.db, |tx| Box::pin(async move { add_group(tx, &[1, 2]).await })).await;
    let (group_id, to) = (group_id(), [device_id(1)]);
    done(&fresh.db, move |tx| {
        Box::pin(async move {
            let plain =
                |kind, number, payload| NewEnvelope { kind, number, ..message(&group_id, payload, HOUR_MS, &to) };
            let receivers = vec![Receiver { device: to[0], own_part: Some(b"secrets".as_slice().into()) }];
            let envelopes = [
                plain(Kind::Message, 0, b"message"),
                plain(Kind::Commit, 8, b""),
                NewEnvelope { receivers, ..plain(Kind::Welcome, 9, b"info") },
                plain(Kind::MembersGone, 10, b""),
                relays_own(Kind::Direct, 0, b"direct", 1),
                relays_own(Kind::KeysLow, 3, &[0, 0, 0, 0, 0, 0, 1, 2], 1),
                relays_own(Kind::LastResortUsed, 3, b"", 1),
            ];
            let ids = append_all(tx, &ROOM, &envelopes).await?;
            assert!(ids.is_sorted_by(|a, b| a < b), "{ids:?}");
            assert_eq!(waiting(tx, 1).await, [(4, 18), (1, 6)], "what the relay says counts for nothing");
            Ok(())
        })
    })
    .await;
    let expected = [
        Envelope::GroupMessage { group_id, message: b"message".as_slice().into() },
        Envelope::GroupCommit { group_id, commit_seq: 8, commit: Vec::new().into() },
        Envelope::Welcome {
            group_id,
            commit_seq: 9,
            group_info: b"info".as_slice().into(),
            secrets: b"secrets".as_slice().into(),
        },
        Envelope::MembersGone { group_id, members_version: 10 },
        Envelope::DirectMessage { ciphertext: b"direct".as_slice().into() },
        Envelope::KeysLow { suite: 3, one_time: 258 },
        Envelope::LastResortUsed { suite: 3 },
    ];
    let expected: Vec<_> = (1..).zip(expected).map(|(seq, envelope)| Delivery { seq, envelope }).collect();
    let mut conn = fresh.db.read().await.unwrap();
    assert_eq!(whole_queue(&mut conn, 1).await.deliveries, expected);
    counts::check(&mut conn, "after one of each").await;
}

pub(super) async fn an_envelope_for_nobody_is_not_stored(fresh: &Fresh) {
    done(&fresh.db, |tx| {
        Box::pin(async move {
            add_group(tx, &[1, 2]).await?;
            let (to_nobody, to_one) =
                (message(&group_id(), b"a", 0, &[]), message(&group_id(), b"b", 0, &[device_id(1)]));
            let ids = append_all(tx, &ROOM, &[to_nobody, to_one]).await?;
            assert_eq!(ids[0], 0);
            assert!(ids[1] > 0);
            assert!(append_all(tx, &ROOM, &[]).await?.is_empty());
            assert_eq!(count(tx, counts::ENVELOPES).await, 1);
            let gone = append_all(tx, &ROOM, &[message(&group_id(), b"c", 0, &[device_id(9)])]).await;
            assert!(matches!(gone, Err(StoreError::Corrupt(_))), "no such device: {gone:?}");
            Ok(())
        })
    })
    .await;
}

pub(super) async fn one_append_keeps_the_order_of_its_envelopes(fresh: &Fresh) {
    done(&fresh.db, |tx| {
        Box::pin(async move {
            add_group(tx, &[1, 2]).await?;
            let to = [device_id(2), device_id(1)];
            let payloads: Vec<_> = (0..200_u8).map(|nth| [nth]).collect();
            let envelopes: Vec<_> =
                payloads.iter().map(|payload| message(&group_id(), payload, HOUR_MS, &to)).collect();
            append_all(tx, &ROOM, &envelopes).await?;
            for device in [1, 2] {
                let page = whole_queue(tx, device).await;
                let came: Vec<_> = page.deliveries.iter().map(|delivery| delivery.envelope.clone()).collect();
                let group_id = group_id();
                let sent = payloads
                    .iter()
                    .map(|payload| Envelope::GroupMessage { group_id, message: payload.as_slice().into() });
                assert!(came.into_iter().eq(sent), "device {device}");
            }
            Ok(())
        })
    })
    .await;
}

pub(super) async fn acks_delete_and_count_down(fresh: &Fresh) {
    done(&fresh.db, |tx| {
        Box::pin(async move {
            add_group(tx, &[1, 2]).await?;
            for payload in [b"1".as_slice(), b"22", b"333"] {
                append(tx, payload).await?;
            }
            append_all(tx, &ROOM, &[relays_own(Kind::Direct, 0, b"direct", 1)]).await?;
            assert_eq!(waiting(tx, 1).await, [(3, 6), (1, 6)]);
            for (up_to, left, oldest) in
                [(2, [(1, 3), (1, 6)], Some(3)), (1, [(1, 3), (1, 6)], Some(3)), (4, [(0, 0), (0, 0)], None)]
            {
                ack(tx, 1, up_to).await?;
                assert_eq!(waiting(tx, 1).await, left, "after {up_to}");
                let cursor = cursor(tx, &device_id(1)).await?.unwrap();
                assert_eq!((cursor.acked_seq, cursor.oldest), (up_to.max(2), oldest), "an ack never goes back");
            }
            assert_eq!(waiting(tx, 2).await, [(3, 6), (0, 0)], "nobody else's are touched");
            tx.settle_released().await?;
            assert_eq!(count(tx, counts::ENVELOPES).await, 3);
            ack(tx, 2, 3).await?;
            tx.settle_released().await?;
            assert_eq!(count(tx, counts::ENVELOPES).await, 0);
            let nobody = queue::lock(tx, &BTreeSet::new()).await?;
            queue::ack(tx, nobody, &BTreeMap::new()).await?;
            counts::check(tx, "after acks").await;
            Ok(())
        })
    })
    .await;
}

pub(super) async fn expiry_takes_what_is_over_and_wakes(fresh: &Fresh) {
    done(&fresh.db, |tx| Box::pin(async move { add_group(tx, &[1, 2]).await })).await;
    for hour in [2, 1, 3] {
        done(&fresh.db, move |tx| Box::pin(async move { append_until(tx, b"x", hour * HOUR_MS).await })).await;
    }
    fresh.wake.untold_yet().await;
    let expire = |until| done(&fresh.db, move |tx| Box::pin(async move { queue::expire(tx, until, 100).await }));
    assert_eq!(expire(HOUR_MS - 1).await, 0);
    assert_eq!(expire(HOUR_MS).await, 2);
    assert_eq!(fresh.wake.untold_yet().await.devices, [1, 2].map(device_id).into(), "they are told what they missed");
    let mut conn = fresh.db.read().await.unwrap();
    let page = whole_queue(&mut conn, 1).await;
    assert_eq!(page.deliveries.iter().map(|delivery| delivery.seq).collect::<Vec<_>>(), [1, 3]);
    assert_eq!((page.next_seq, page.acked_seq), (4, 0));
    assert_eq!(crate::queue::missed(&page, 0), [undertone_wire::Span { from: 2, to: 2 }]);
    counts::check(&mut conn, "after expiry").await;
}

pub(super) async fn a_jump_moves_what_waits_beyond_what_the_device_has(fresh: &Fresh) {
    done(&fresh.db, |tx| {
        Box::pin(async move {
            add_group(tx, &[1, 2, 3]).await?;
            for _ in 0..5 {
                append(tx, b"x").await?;
            }
            ack(tx, 1, 2).await?;
            ack(tx, 2, 5).await?;
            for (device, seq) in [(1, 100), (2, 100), (3, 6)] {
                queue::lock(tx, &BTreeSet::from([device_id(device)])).await?;
                queue::jump_beyond(tx, &device_id(device), seq).await?;
            }
            tx.settle_released().await?;
            counts::check(tx, "after jumps").await;
            let seqs = |page: Page| page.deliveries.iter().map(|delivery| delivery.seq).collect::<Vec<_>>();
            let first = 101 + JUMP_AHEAD;
            assert_eq!(seqs(whole_queue(tx, 1).await), [first, first + 1, first + 2]);
            assert_eq!(cursor(tx, &device_id(1)).await?.unwrap().next_seq, first + 3);
            assert!(seqs(whole_queue(tx, 2).await).is_empty());
            assert!(cursor(tx, &device_id(2)).await?.unwrap().next_seq > 100 + JUMP_AHEAD);
            let third = seqs(whole_queue(tx, 3).await);
            assert_eq!((third.len(), third[0]), (5, 7 + JUMP_AHEAD), "what waits comes under new numbers");
            append(tx, b"x").await?;
            assert_eq!(seqs(whole_queue(tx, 1).await)[3], first + 3);
            Ok(())
        })
    })
    .await;
}

pub(super) async fn a_device_cannot_jump_often(fresh: &Fresh) {
    const NAMED_MAX: u64 = 1 << 51;
    done(&fresh.db, |tx| {
        Box::pin(async move {
            add_group(tx, &[1]).await?;
            append(tx, b"x").await?;
            for seq in [7, NAMED_MAX - 1] {
                queue::lock(tx, &BTreeSet::from([device_id(1)])).await?;
                queue::jump_beyond(tx, &device_id(1), seq).await?;
                let next_seq = cursor(tx, &device_id(1)).await?.unwrap().next_seq;
                assert!(next_seq - seq >= NAMED_MAX >> 11, "each time it must name more: {next_seq}");
                assert!(next_seq < 1 << 53, "it is exact in JSON");
            }
            Ok(())
        })
    })
    .await;
}

pub(super) async fn streams_and_states_move(fresh: &Fresh) {
    done(&fresh.db, |tx| {
        Box::pin(async move {
            add_group(tx, &[1, 2]).await?;
            let (asked, both) = ([device_id(2), device_id(1), device_id(9)], [1, 2].map(device_id));
            let before = queue::states(tx, &asked, 10).await?;
            assert_eq!(before.keys().copied().collect::<Vec<_>>(), both, "who is not listed is left out");
            assert_eq!(queue::states(tx, &asked, 10).await?, before);

            queue::next_stream(tx, &device_id(1)).await?;
            let opened = queue::states(tx, &asked, 10).await?;
            assert!(opened[&both[0]] != before[&both[0]] && opened[&both[1]] == before[&both[1]]);
            queue::next_stream(tx, &device_id(1)).await?;
            assert_eq!(cursor(tx, &device_id(1)).await?.unwrap().stream, 2);
            assert_eq!(queue::lock(tx, &both.into()).await?.get(&both[0]).unwrap().stream, 2);

            sessions::add(tx, &Hash::of(b"token"), &both[1], 11, 9).await?;
            let with_session = queue::states(tx, &asked, 10).await?;
            assert!(with_session[&both[1]] != before[&both[1]]);
            assert_eq!(queue::states(tx, &asked, 11).await?[&both[1]], before[&both[1]], "it holds no more");
            append(tx, b"x").await?;
            assert!(queue::states(tx, &asked, 10).await?[&both[1]] != with_session[&both[1]]);
            assert!(queue::states(tx, &[], 10).await?.is_empty());
            assert!(cursor(tx, &device_id(9)).await?.is_none());
            assert!(queue::lock(tx, &BTreeSet::from([device_id(9)])).await?.get(&device_id(9)).is_none());
            Ok(())
        })
    })
    .await;
}

pub(super) async fn notices_wait_until_they_are_taken(fresh: &Fresh) {
    done(&fresh.db, |tx| {
        Box::pin(async move {
            add_group(tx, &[1, 2]).await?;
            let waits = async |tx: &mut Tx, device, kind, number| {
                queue::notice_waits(tx, &device_id(device), kind, number).await.unwrap()
            };
            assert!(!waits(tx, 1, Kind::KeysLow, 3).await);
            append_all(tx, &ROOM, &[relays_own(Kind::KeysLow, 3, &[0; 8], 1)]).await?;
            assert!(waits(tx, 1, Kind::KeysLow, 3).await);
            for (device, kind, number) in [(2, Kind::KeysLow, 3), (1, Kind::KeysLow, 4), (1, Kind::LastResortUsed, 3)] {
                assert!(!waits(tx, device, kind, number).await);
            }
            ack(tx, 1, 1).await?;
            assert!(!waits(tx, 1, Kind::KeysLow, 3).await);
            Ok(())
        })
    })
    .await;
}

pub(super) async fn unacked_commits_are_found_by_their_group(fresh: &Fresh) {
    done(&fresh.db, |tx| {
        Box::pin(async move {
            add_group(tx, &[1, 2]).await?;
            add_group_of(tx, &group(2), &[1]).await?;
            let other =
                NewEnvelope { kind: Kind::Commit, number: 1, ..message(&group(2), b"c", HOUR_MS, &[device_id(1)]) };
            append(tx, b"x").await?;
            append_commit(tx, 1, b"commit", 0).await?;
            append_all(tx, &ROOM, &[other]).await?;
            append_commit(tx, 2, b"commit", 0).await?;
            append_commit(tx, 3, b"commit", 0).await?;
            let all: Vec<_> =
                [(1, 2), (2, 4), (3, 5)].map(|(commit_seq, seq)| UnackedCommit { commit_seq, seq }).into();
            assert_eq!(queue::unacked_commits(tx, &device_id(1), &group_id(), 9).await?, all);
            assert_eq!(queue::unacked_commits(tx, &device_id(1), &group_id(), 2).await?, all[..2]);
            ack(tx, 1, 2).await?;
            assert_eq!(queue::unacked_commits(tx, &device_id(1), &group_id(), 9).await?, all[1..]);
            assert!(queue::unacked_commits(tx, &device_id(2), &group(2), 9).await?.is_empty());
            groups::delete(tx, &group_id()).await?;
            assert_eq!(queue::unacked_commits(tx, &device_id(1), &group_id(), 9).await?, all[1..], "queues keep them");
            tx.settle_released().await?;
            counts::check(tx, "after the group").await;
            Ok(())
        })
    })
    .await;
}
