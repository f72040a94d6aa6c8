//! Key packages: each one-time key is handed out once, in the incarnation in which it was published.

use super::*;
use crate::store::keys::{self, NewKey};
use undertone_wire::KeyPackageCount;

pub(super) const SUITE: u16 = 3;

pub(super) fn key(name: &str, last_resort: bool, not_after_ms: u64) -> NewKey {
    NewKey {
        hash_ref: Hash::of(name.as_bytes()),
        suite: SUITE,
        last_resort,
        not_after_ms,
        bytes: name.as_bytes().to_vec(),
    }
}

pub(super) async fn keys_that_end_first_go_first(fresh: &Fresh) {
    done(&fresh.db, move |tx| {
        Box::pin(async move {
            add_account(tx, &[1]).await?;
            for (name, not_after) in [("late", 30), ("early", 20), ("dead", 9)] {
                keys::add(tx, &device_id(1), &[key(name, false, not_after)]).await?;
            }
            keys::add(tx, &device_id(1), &[key("late", false, 30)]).await?;
            keys::add(tx, &device_id(1), &[key("old last", true, 30)]).await?;
            keys::add(tx, &device_id(1), &[key("last", true, 30)]).await?;
            let count = KeyPackageCount { suite: SUITE, one_time: 2, last_resort: true };
            assert_eq!(keys::counts(tx, &device_id(1), 10).await?, [count]);
            assert_eq!(keys::stored_one_time(tx, &device_id(1), SUITE).await?, 3);

            for expected in [Some("early"), Some("late"), None] {
                let taken = keys::take_one_time(tx, &device_id(1), SUITE, 10).await?;
                assert_eq!(taken.as_deref(), expected.map(str::as_bytes));
            }
            for (until, expected) in [(30, Some("last")), (30, Some("last")), (31, None)] {
                let last_resort = keys::last_resort(tx, &device_id(1), SUITE, until).await?;
                assert_eq!(last_resort.as_deref(), expected.map(str::as_bytes));
            }
            assert_eq!(keys::take_one_time(tx, &device_id(1), 4, 10).await?, None, "another suite");
            assert_eq!(keys::expire(tx, 10, 5).await?, 1);
            Ok(())
        })
    })
    .await;
}

pub(super) async fn last_resort_keys_replace_each_other(fresh: &Fresh) {
    done(&fresh.db, |tx| {
        Box::pin(async move {
            add_account(tx, &[1, 2]).await?;
            let other_suite = NewKey { suite: 4, ..key("other suite", true, 30) };
            keys::add(tx, &device_id(2), &[key("of the other device", true, 30)]).await?;
            keys::add(tx, &device_id(1), &[key("first", true, 30), other_suite, key("once", false, 30)]).await?;
            keys::add(tx, &device_id(1), &[key("second", true, 30)]).await?;
            let last = async |tx: &mut Tx, device, suite| {
                let last = keys::last_resort(tx, &device_id(device), suite, 30).await.unwrap();
                last.map(|bytes| String::from_utf8(bytes).unwrap())
            };
            assert_eq!(last(tx, 1, SUITE).await.as_deref(), Some("second"));
            assert_eq!(last(tx, 1, 4).await.as_deref(), Some("other suite"));
            assert_eq!(last(tx, 2, SUITE).await.as_deref(), Some("of the other device"));
            keys::add(tx, &device_id(1), &[key("second", true, 30)]).await?;
            assert_eq!(last(tx, 1, SUITE).await.as_deref(), Some("second"), "the second time changes nothing");
            let counts =
                [(SUITE, 1), (4, 0)].map(|(suite, one_time)| KeyPackageCount { suite, one_time, last_resort: true });
            assert_eq!(keys::counts(tx, &device_id(1), 30).await?, counts);
            assert!(keys::counts(tx, &device_id(1), 31).await?.is_empty());
            keys::add(tx, &device_id(1), &[]).await
        })
    })
    .await;
}

pub(super) async fn what_the_device_does_not_name_is_spent(fresh: &Fresh) {
    done(&fresh.db, |tx| {
        Box::pin(async move {
            add_account(tx, &[1, 2]).await?;
            keys::add(tx, &device_id(2), &[key("other device", false, 30)]).await?;
            let mine = [key("a", false, 30), key("b", false, 30), key("short", false, 9), key("last", true, 30)];
            keys::add(tx, &device_id(1), &mine).await?;
            let hashes = |names: &[&str]| names.iter().map(|name| Hash::of(name.as_bytes())).collect::<BTreeSet<_>>();
            let named = hashes(&["a", "short", "last", "never published"]);
            let available = keys::reconcile(tx, &device_id(1), &named, 10).await?;
            assert!(available.is_sorted());
            assert_eq!(BTreeSet::from_iter(available), hashes(&["a", "last"]), "too short a life is not available");
            assert_eq!(keys::one_time_left(tx, &device_id(1), SUITE, 10).await?, 1);
            assert_eq!(keys::stored_one_time(tx, &device_id(1), SUITE).await?, 2, "nor spent");
            keys::add(tx, &device_id(1), &[key("b", false, 30)]).await?;
            assert_eq!(keys::one_time_left(tx, &device_id(1), SUITE, 10).await?, 1, "what was spent is not back");
            assert_eq!(keys::one_time_left(tx, &device_id(2), SUITE, 10).await?, 1, "nobody else's are touched");
            assert_eq!(keys::reconcile(tx, &device_id(1), &named, 10).await?.len(), 2, "the second time");
            assert!(keys::reconcile(tx, &device_id(1), &BTreeSet::new(), 10).await?.is_empty());
            assert_eq!(keys::last_resort(tx, &device_id(1), SUITE, 10).await?, None);
            Ok(())
        })
    })
    .await;
}

pub(super) async fn key_packages_expire_in_batches(fresh: &Fresh) {
    done(&fresh.db, |tx| {
        Box::pin(async move {
            add_account(tx, &[1]).await?;
            for until in 1..=5 {
                keys::add(tx, &device_id(1), &[key(&format!("{until}"), until == 1, until)]).await?;
            }
            assert!(keys::take_one_time(tx, &device_id(1), SUITE, 2).await?.is_some(), "spent ones go too");
            for (until, expected) in [(1, 0), (5, 3), (5, 1), (5, 0)] {
                assert_eq!(keys::expire(tx, until, 3).await?, expected, "until {until}");
            }
            assert_eq!(keys::stored_one_time(tx, &device_id(1), SUITE).await?, 1);
            Ok(())
        })
    })
    .await;
}
