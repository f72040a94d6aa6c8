//! Groups, stays and commits: what happens the second time, and what `None` and `false` mean.

use super::*;
use crate::store::groups::{Ending, Standing};
use undertone_wire::{GroupMember, GroupPosition};

pub(super) async fn stays_begin_and_end(fresh: &Fresh) {
    const MEMBER: Standing = Standing { member: true, awaits_removal: false, founder: false };
    const OUTSIDE: Standing = Standing { member: false, ..MEMBER };
    done(&fresh.db, |tx| {
        Box::pin(async move {
            add_group(tx, &[1]).await?;
            add_account(tx, &[2]).await?;
            let (group, device) = (group_id(), device_id(2));
            assert_eq!(groups::standing(tx, &group, &device).await?, None);
            let founder = groups::standing(tx, &group, &device_id(1)).await?;
            assert_eq!(founder, Some(Standing { founder: true, ..MEMBER }));

            groups::begin_stays(tx, &group, &[device], 1).await?;
            assert_eq!(groups::standing(tx, &group, &device).await?, Some(MEMBER));
            groups::end_stays(tx, &group, &[device], 2, HOUR_MS, Ending::WithoutCommit).await?;
            let awaits = Standing { awaits_removal: true, ..OUTSIDE };
            assert_eq!(groups::standing(tx, &group, &device).await?, Some(awaits));
            groups::end_stays(tx, &group, &[device], 3, HOUR_MS, Ending::ByCommit).await?;
            assert_eq!(groups::standing(tx, &group, &device).await?, Some(OUTSIDE));
            groups::begin_stays(tx, &group, &[device], 4).await?;
            assert_eq!(groups::standing(tx, &group, &device).await?, Some(MEMBER));
            assert_eq!(members(tx, &group).await?, [device_id(1), device]);
            assert!(groups::account_is_in(tx, &group, &account_id(2)).await?);
            assert!(!groups::account_is_in(tx, &group, &account_id(3)).await?);
            Ok(())
        })
    })
    .await;
}

pub(super) async fn deserted_groups_go(fresh: &Fresh) {
    let position = async |db: &Db| groups::position(&mut db.read().await.unwrap(), &group_id()).await.unwrap();
    done(&fresh.db, |tx| {
        Box::pin(async move {
            add_group(tx, &[1, 2]).await?;
            groups::end_stays(tx, &group_id(), &[device_id(1)], 0, HOUR_MS, Ending::WithoutCommit).await
        })
    })
    .await;
    let expire =
        |before| done(&fresh.db, move |tx| Box::pin(async move { groups::expire_deserted(tx, before, 9).await }));
    assert_eq!(expire(10 * HOUR_MS).await, 0, "somebody is there, and a leaf still stands");
    done(&fresh.db, |tx| {
        Box::pin(async move {
            groups::end_stays(tx, &group_id(), &[device_id(2)], 0, 2 * HOUR_MS, Ending::WithoutCommit).await
        })
    })
    .await;
    assert_eq!(expire(2 * HOUR_MS).await, 0);
    assert!(position(&fresh.db).await.is_some());
    assert_eq!(expire(3 * HOUR_MS).await, 1);
    assert!(position(&fresh.db).await.is_none());
}

pub(super) async fn a_group_moves_with_each_commit(fresh: &Fresh) {
    done(&fresh.db, |tx| {
        Box::pin(async move {
            add_group(tx, &[1, 2]).await?;
            let (id, none) = (group_id(), group(9));
            assert!(!groups::add(tx, &id, &account_id(2), b"other").await?, "it is there");
            let at = |epoch, commit_seq, members_version| GroupPosition { epoch, commit_seq, members_version };
            assert_eq!(groups::position(tx, &id).await?, Some(at(0, 0, 0)));
            assert_eq!(groups::sealed_group_info(tx, &id).await?.as_deref(), Some(&b"info"[..]));
            groups::advance(tx, &id, &account_id(2), b"newer").await?;
            assert_eq!(groups::bump_members(tx, &id).await?, 2);
            assert_eq!(groups::position(tx, &id).await?, Some(at(1, 1, 2)));
            assert_eq!(groups::sealed_group_info(tx, &id).await?.as_deref(), Some(&b"newer"[..]));
            add_group_of(tx, &group(2), &[1]).await?;
            let asked = [id, group(2), none].into();
            let positions = [(id, at(1, 1, 2)), (group(2), at(0, 0, 0))].into();
            assert_eq!(groups::lock(tx, &asked).await?, positions);
            assert!(groups::lock(tx, &BTreeSet::new()).await?.is_empty());
            assert_eq!(groups::position(tx, &none).await?, None);
            assert_eq!(groups::sealed_group_info(tx, &none).await?, None);
            Ok(())
        })
    })
    .await;
}

pub(super) async fn members_are_told_of_each_group(fresh: &Fresh) {
    done(&fresh.db, |tx| {
        Box::pin(async move {
            add_group(tx, &[3, 1, 2]).await?;
            add_group_of(tx, &group(2), &[2, 1]).await?;
            groups::end_stays(tx, &group_id(), &[device_id(2)], 0, 0, Ending::WithoutCommit).await?;
            let both = [group_id(), group(2), group(9)].into();
            let expected = [(group_id(), [1, 3].map(device_id).to_vec()), (group(2), [1, 2].map(device_id).to_vec())];
            assert_eq!(groups::members_of(tx, &both).await?, expected.into());
            let members = [1, 3].map(|byte| GroupMember { device_id: device_id(byte), account_id: account_id(byte) });
            assert_eq!(groups::members(tx, &group_id()).await?, members);

            let summaries = groups::groups_of(tx, &device_id(1)).await?;
            assert_eq!(summaries.iter().map(|summary| summary.group_id).collect::<Vec<_>>(), [group(2), group_id()]);
            assert_eq!(groups::groups_of(tx, &device_id(2)).await?.len(), 1);
            let everybody = [1, 2, 3, 9].map(device_id).into();
            let counts = [(1, 2), (2, 1), (3, 1)].map(|(device, count)| (device_id(device), count)).into();
            assert_eq!(groups::group_counts(tx, &everybody).await?, counts);
            let stays = [(group(2), [1, 2].map(device_id).to_vec()), (group_id(), vec![device_id(1)])].into();
            assert_eq!(groups::stays_of(tx, &[1, 2].map(device_id).into()).await?, stays);
            let asked = [(group_id(), device_id(2)), (group(2), device_id(2)), (group(2), device_id(3))].into();
            let standings = groups::standings(tx, &asked).await?;
            assert_eq!(
                standings.keys().copied().collect::<Vec<_>>(),
                [(group(2), device_id(2)), (group_id(), device_id(2))]
            );
            assert!(
                standings[&(group(2), device_id(2))].member && standings[&(group_id(), device_id(2))].awaits_removal
            );
            Ok(())
        })
    })
    .await;
}

pub(super) async fn many_stays_change_at_once(fresh: &Fresh) {
    done(&fresh.db, |tx| {
        Box::pin(async move {
            let all: Vec<u8> = (1..=100).collect();
            let devices = |range: std::ops::RangeInclusive<u8>| range.map(device_id).collect::<Vec<_>>();
            add_group(tx, &all).await?;
            groups::end_stays(tx, &group_id(), &devices(1..=50), 1, HOUR_MS, Ending::WithoutCommit).await?;
            // Some of them had left before; all leaves go.
            groups::end_stays(tx, &group_id(), &devices(26..=75), 2, HOUR_MS, Ending::ByCommit).await?;
            assert_eq!(members(tx, &group_id()).await?, devices(76..=100));
            let asked = all.iter().map(|device| (group_id(), device_id(*device))).collect();
            let standings = groups::standings(tx, &asked).await?;
            let awaiting =
                standings.iter().filter(|(_, standing)| standing.awaits_removal).map(|((_, device), _)| *device);
            assert_eq!(awaiting.collect::<Vec<_>>(), devices(1..=25));
            groups::begin_stays(tx, &group_id(), &devices(26..=50), 3).await?;
            assert_eq!(members(tx, &group_id()).await?.len(), 50);
            groups::begin_stays(tx, &group_id(), &[], 3).await?;
            groups::end_stays(tx, &group_id(), &[], 3, HOUR_MS, Ending::ByCommit).await
        })
    })
    .await;
}

pub(super) async fn devices_are_forgotten_but_for_their_leaves(fresh: &Fresh) {
    done(&fresh.db, |tx| {
        Box::pin(async move {
            add_group(tx, &[1, 2, 3]).await?;
            groups::end_stays(tx, &group_id(), &[device_id(1)], 1, HOUR_MS, Ending::ByCommit).await?;
            groups::end_stays(tx, &group_id(), &[device_id(2)], 1, HOUR_MS, Ending::WithoutCommit).await?;
            groups::forget_devices(tx, &[1, 2].map(device_id).into()).await?;
            assert_eq!(groups::standing(tx, &group_id(), &device_id(1)).await?, None);
            assert!(groups::standing(tx, &group_id(), &device_id(2)).await?.unwrap().awaits_removal);
            assert!(groups::standing(tx, &group_id(), &device_id(3)).await?.unwrap().member);
            Ok(())
        })
    })
    .await;
}

pub(super) async fn accounts_are_forgotten(fresh: &Fresh) {
    done(&fresh.db, |tx| {
        Box::pin(async move {
            add_group(tx, &[1, 2]).await?;
            add_group_of(tx, &group(2), &[2]).await?;
            assert_eq!(groups::committed_by(tx, &account_id(1)).await?, [group_id()]);
            groups::advance(tx, &group_id(), &account_id(2), b"").await?;
            assert!(groups::committed_by(tx, &account_id(1)).await?.is_empty());
            assert_eq!(groups::committed_by(tx, &account_id(2)).await?.len(), 2);
            groups::forget_account(tx, &account_id(2)).await?;
            assert!(groups::committed_by(tx, &account_id(2)).await?.is_empty());
            assert!(groups::position(tx, &group(2)).await?.is_some());
            Ok(())
        })
    })
    .await;
}

pub(super) async fn what_expires_goes_in_batches(fresh: &Fresh) {
    done(&fresh.db, |tx| {
        Box::pin(async move {
            add_group(tx, &[1, 2, 3, 4, 5, 6]).await?;
            for nth in 1..=5 {
                append_commit(tx, nth, b"commit", nth * HOUR_MS).await?;
            }
            for (before, expected) in [(HOUR_MS, 0), (5 * HOUR_MS, 3), (5 * HOUR_MS, 1), (5 * HOUR_MS, 0)] {
                assert_eq!(groups::expire_commits(tx, before, 3).await?, expected, "commits before {before}");
            }
            assert_eq!(groups::commits_after(tx, &group_id(), 0, 9, 100).await?.len(), 1);
            tx.settle_released().await?;
            assert_eq!(count(tx, counts::ENVELOPES).await, 5, "they wait in queues");

            for nth in 1..=5 {
                let hour = u64::from(nth) * HOUR_MS;
                groups::end_stays(tx, &group_id(), &[device_id(nth)], 9, hour, Ending::ByCommit).await?;
            }
            for (before, expected) in [(HOUR_MS, 0), (5 * HOUR_MS, 3), (5 * HOUR_MS, 1), (5 * HOUR_MS, 0)] {
                assert_eq!(groups::expire_stays(tx, before, 3).await?, expected, "stays before {before}");
            }
            assert!(groups::standing(tx, &group_id(), &device_id(5)).await?.is_some());
            assert!(groups::standing(tx, &group_id(), &device_id(6)).await?.unwrap().member);
            Ok(())
        })
    })
    .await;
}

pub(super) async fn a_deleted_group_leaves_queues_alone(fresh: &Fresh) {
    done(&fresh.db, |tx| {
        Box::pin(async move {
            add_group(tx, &[1, 2]).await?;
            append_commit(tx, 1, b"taken", 0).await?;
            ack(tx, 1, 1).await?;
            ack(tx, 2, 1).await?;
            append_commit(tx, 2, b"waits", 0).await?;
            assert_eq!(groups::commits_after(tx, &group_id(), 0, 9, 100).await?.len(), 2);
            groups::delete(tx, &group_id()).await?;
            tx.settle_released().await?;
            counts::check(tx, "after the group").await;
            assert_eq!((count(tx, counts::ROWS).await, count(tx, counts::ENVELOPES).await), (2, 1));
            assert_eq!(groups::position(tx, &group_id()).await?, None);
            assert!(groups::commits_after(tx, &group_id(), 0, 9, 100).await?.is_empty());
            assert!(groups::stays_of(tx, &[1, 2].map(device_id).into()).await?.is_empty());
            groups::delete(tx, &group_id()).await
        })
    })
    .await;
}
