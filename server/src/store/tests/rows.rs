//! What single statements promise: what happens the second time, and what `None` and `false` mean.

use super::*;
use crate::store::{
    groups::{Ending, Standing},
    keys::{self, NewKeyPackage},
    sessions,
};
use undertone_wire::{Incarnation, KeyPackageCount};

const SUITE: u16 = 3;

/// Does work in one transaction that must succeed.
async fn done<T, W>(db: &Db, work: W) -> T
where
    T: Send + 'static,
    W: for<'tx> FnOnce(&'tx mut Tx) -> futures_util::future::BoxFuture<'tx, Result<T, StoreError>> + Send + 'static,
{
    db.write(work).await.unwrap()
}

pub(super) async fn challenges_are_taken_once(fresh: Fresh) {
    done(&fresh.db, |tx| {
        Box::pin(async move {
            sessions::add_challenge(tx, &nonce(1), 10).await?;
            assert!(!sessions::take_challenge(tx, &nonce(1), 10).await?, "its time is over");
            assert!(sessions::take_challenge(tx, &nonce(1), 9).await?);
            assert!(!sessions::take_challenge(tx, &nonce(1), 9).await?, "it was taken");
            sessions::add_challenge(tx, &nonce(2), 10).await?;
            assert_eq!(sessions::expire(tx, 9, 5).await?, 0);
            assert_eq!(sessions::expire(tx, 10, 5).await?, 1);
            Ok(())
        })
    })
    .await;
}

pub(super) async fn the_newest_sessions_are_kept(fresh: Fresh) {
    let holds = done(&fresh.db, |tx| {
        Box::pin(async move {
            add_account(tx, &[1, 2]).await?;
            sessions::add(tx, &Hash::of(b"other device"), &device_id(2), 1, 2).await?;
            // All but the last expire at the same moment: the one just made stays all the same.
            for (name, expires) in [("a", 10), ("b", 20), ("c", 20), ("d", 20)] {
                sessions::add(tx, &Hash::of(name.as_bytes()), &device_id(1), expires, 2).await?;
                assert!(sessions::holder(tx, &Hash::of(name.as_bytes()), 0).await?.is_some(), "{name}");
            }
            let mut holds = Vec::new();
            for name in ["a", "b", "c", "d", "other device"] {
                holds.push(sessions::holder(tx, &Hash::of(name.as_bytes()), 0).await?.is_some());
            }
            Ok(holds)
        })
    })
    .await;
    assert_eq!((holds[0], holds[3], holds[4]), (false, true, true));
    assert_eq!(holds[..4].iter().filter(|held| **held).count(), 2);
}

pub(super) async fn a_device_belongs_to_one_account(fresh: Fresh) {
    done(&fresh.db, |tx| {
        Box::pin(async move {
            add_account(tx, &[1]).await?;
            add_account(tx, &[2]).await?;
            assert!(!accounts::put_device(tx, &device_id(1), &stored_device(2, 9)).await?);
            let kept = accounts::device(tx, &device_id(1)).await?.unwrap();
            assert_eq!((kept.account, kept.device_key), (account_id(1), PublicKey::from([1; 32])));
            assert!(
                accounts::put_device(tx, &device_id(1), &stored_device(1, 9)).await?,
                "its own account may renew it"
            );
            let renewed = accounts::device(tx, &device_id(1)).await?.unwrap();
            assert_eq!(renewed.device_key, PublicKey::from([9; 32]));
            Ok(())
        })
    })
    .await;
}

pub(super) async fn a_list_is_replaced_by_the_next_only(fresh: Fresh) {
    done(&fresh.db, |tx| {
        Box::pin(async move {
            add_account(tx, &[1]).await?;
            assert!(!accounts::replace_list(tx, &account_id(1), 3, &list(3)).await?);
            assert!(accounts::replace_list(tx, &account_id(1), 2, &list(2)).await?);
            assert!(!accounts::replace_list(tx, &account_id(1), 2, &list(4)).await?);
            let stored = accounts::by_id(tx, &account_id(1)).await?.unwrap();
            assert_eq!((stored.version, stored.list), (2, list(2)));
            Ok(())
        })
    })
    .await;
}

fn key(name: &str, last_resort: bool, not_after_ms: u64) -> NewKeyPackage {
    NewKeyPackage {
        hash_ref: Hash::of(name.as_bytes()),
        suite: SUITE,
        last_resort,
        not_after_ms,
        bytes: name.as_bytes().to_vec(),
    }
}

pub(super) async fn keys_that_end_first_go_first(fresh: Fresh) {
    let life = Incarnation::from_random([1; 16]);
    done(&fresh.db, move |tx| {
        Box::pin(async move {
            add_account(tx, &[1]).await?;
            for (name, not_after) in [("late", 30), ("early", 20), ("dead", 9)] {
                keys::add(tx, &device_id(1), &life, &key(name, false, not_after)).await?;
            }
            keys::add(tx, &device_id(1), &life, &key("late", false, 30)).await?;
            keys::add(tx, &device_id(1), &life, &key("old last", true, 30)).await?;
            keys::add(tx, &device_id(1), &life, &key("last", true, 30)).await?;
            let count = KeyPackageCount { suite: SUITE, one_time: 2, last_resort: true };
            assert_eq!(keys::counts(tx, &device_id(1), &life, 10).await?, [count]);
            assert_eq!(keys::stored_one_time(tx, &device_id(1), SUITE).await?, 3);

            for expected in [Some("early"), Some("late"), None] {
                let taken = keys::take_one_time(tx, &device_id(1), &life, SUITE, 10).await?;
                assert_eq!(taken.as_deref(), expected.map(str::as_bytes));
            }
            for (until, expected) in [(30, Some("last")), (30, Some("last")), (31, None)] {
                let last_resort = keys::last_resort(tx, &device_id(1), SUITE, until).await?;
                assert_eq!(last_resort.as_deref(), expected.map(str::as_bytes));
            }
            assert_eq!(keys::take_one_time(tx, &device_id(1), &life, 4, 10).await?, None, "another suite");
            assert_eq!(keys::expire(tx, 10, 5).await?, 1);
            Ok(())
        })
    })
    .await;
}

pub(super) async fn keys_of_another_life_stay(fresh: Fresh) {
    let [before, now] = [1, 2].map(|byte| Incarnation::from_random([byte; 16]));
    done(&fresh.db, move |tx| {
        Box::pin(async move {
            add_account(tx, &[1]).await?;
            keys::add(tx, &device_id(1), &before, &key("once", false, 30)).await?;
            keys::add(tx, &device_id(1), &before, &key("last", true, 30)).await?;
            assert_eq!(keys::take_one_time(tx, &device_id(1), &now, SUITE, 10).await?, None);
            assert!(keys::last_resort(tx, &device_id(1), SUITE, 10).await?.is_some());
            let count = KeyPackageCount { suite: SUITE, one_time: 0, last_resort: true };
            assert_eq!(keys::counts(tx, &device_id(1), &now, 10).await?, [count]);

            keys::add(tx, &device_id(1), &now, &key("new", false, 30)).await?;
            assert_eq!(keys::stored_one_time(tx, &device_id(1), SUITE).await?, 2);
            keys::spend_stale(tx, &device_id(1), &now).await?;
            keys::add(tx, &device_id(1), &now, &key("once", false, 30)).await?;
            assert_eq!(keys::stored_one_time(tx, &device_id(1), SUITE).await?, 1, "one that was spent is not back");
            assert!(keys::last_resort(tx, &device_id(1), SUITE, 10).await?.is_some());
            let new = keys::take_one_time(tx, &device_id(1), &now, SUITE, 10).await?;
            assert_eq!(new.as_deref(), Some(&b"new"[..]));
            assert_eq!(keys::expire(tx, 31, 5).await?, 3);
            Ok(())
        })
    })
    .await;
}

pub(super) async fn stays_begin_and_end(fresh: Fresh) {
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

            groups::begin_stay(tx, &group, &device, 1).await?;
            assert_eq!(groups::standing(tx, &group, &device).await?, Some(MEMBER));
            groups::end_stay(tx, &group, &device, 2, HOUR_MS, Ending::WithoutCommit).await?;
            let awaits = Standing { awaits_removal: true, ..OUTSIDE };
            assert_eq!(groups::standing(tx, &group, &device).await?, Some(awaits));
            groups::end_stay(tx, &group, &device, 3, HOUR_MS, Ending::ByCommit).await?;
            assert_eq!(groups::standing(tx, &group, &device).await?, Some(OUTSIDE));
            groups::begin_stay(tx, &group, &device, 4).await?;
            assert_eq!(groups::standing(tx, &group, &device).await?, Some(MEMBER));
            assert_eq!(groups::member_count(tx, &group).await?, 2);
            assert!(groups::account_is_in(tx, &group, &account_id(2)).await?);
            assert!(!groups::account_is_in(tx, &group, &account_id(3)).await?);
            assert_eq!(groups::members_of_account(tx, &group, &account_id(2)).await?, [device]);
            Ok(())
        })
    })
    .await;
}

pub(super) async fn deserted_groups_go(fresh: Fresh) {
    let position = async |db: &Db| groups::position(&mut db.read().await.unwrap(), &group_id()).await.unwrap();
    done(&fresh.db, |tx| {
        Box::pin(async move {
            add_group(tx, &[1, 2]).await?;
            groups::end_stay(tx, &group_id(), &device_id(1), 0, HOUR_MS, Ending::WithoutCommit).await
        })
    })
    .await;
    let expire = |before| done(&fresh.db, move |tx| Box::pin(async move { groups::expire(tx, before, 9).await }));
    assert_eq!(expire(10 * HOUR_MS).await, 0, "somebody is there, and a leaf still stands");
    done(&fresh.db, |tx| {
        Box::pin(async move {
            groups::end_stay(tx, &group_id(), &device_id(2), 0, 2 * HOUR_MS, Ending::WithoutCommit).await
        })
    })
    .await;
    assert_eq!(expire(2 * HOUR_MS).await, 0);
    assert!(position(&fresh.db).await.is_some());
    assert_eq!(expire(3 * HOUR_MS).await, 1);
    assert!(position(&fresh.db).await.is_none());
}
