//! Accounts, devices, challenges and sessions: what happens the second time, and what `None` and `false` mean.

use super::*;
use crate::store::{
    keys::{self, NewKey},
    sessions,
};
use undertone_wire::{Username, suite};

pub(super) async fn challenges_are_taken_once(fresh: &Fresh) {
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

pub(super) async fn the_newest_sessions_are_kept(fresh: &Fresh) {
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

pub(super) async fn a_device_belongs_to_one_account(fresh: &Fresh) {
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

pub(super) async fn a_list_is_replaced_by_the_next_only(fresh: &Fresh) {
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

pub(super) async fn accounts_are_found_by_id_and_name(fresh: &Fresh) {
    done(&fresh.db, |tx| {
        Box::pin(async move {
            let [alice, bob]: [Username; 2] = ["alice", "bob"].map(|name| name.parse().unwrap());
            assert!(accounts::add(tx, &account_id(1), Some(&alice), 1, &list(1)).await?);
            assert!(!accounts::add(tx, &account_id(1), Some(&bob), 1, &list(9)).await?, "the account is there");
            assert!(!accounts::add(tx, &account_id(2), Some(&alice), 1, &list(9)).await?, "the name is another's");
            assert!(accounts::add(tx, &account_id(2), Some(&bob), 5, &list(2)).await?);
            assert!(accounts::add(tx, &account_id(3), None, 1, &list(3)).await?);
            assert!(accounts::add(tx, &account_id(4), None, 1, &list(4)).await?, "any number have no name");

            for (account, name, version) in [(1, Some(&alice), 1), (2, Some(&bob), 5), (3, None, 1)] {
                let stored = accounts::by_id(tx, &account_id(account)).await?.unwrap();
                assert_eq!((stored.account, stored.username.as_ref()), (account_id(account), name));
                assert_eq!((stored.version, stored.list), (version, list(account)));
            }
            assert_eq!(accounts::by_username(tx, &bob).await?.unwrap().account, account_id(2));
            assert!(accounts::by_username(tx, &"carol".parse().unwrap()).await?.is_none());
            assert!(accounts::by_id(tx, &account_id(9)).await?.is_none());
            assert!(accounts::device(tx, &device_id(9)).await?.is_none());
            Ok(())
        })
    })
    .await;
}

pub(super) async fn accounts_go_with_all_they_had(fresh: &Fresh) {
    done(&fresh.db, |tx| {
        Box::pin(async move {
            let alice: Username = "alice".parse().unwrap();
            assert!(accounts::add(tx, &account_id(1), Some(&alice), 1, &list(1)).await?);
            for device in [2, 1] {
                assert!(accounts::put_device(tx, &device_id(device), &stored_device(1, 1)).await?);
                sessions::add(tx, &Hash::of(&[device]), &device_id(device), 10, 9).await?;
                keys::add(tx, &device_id(device), &[key_packages::key(&format!("{device}"), false, 30)]).await?;
            }
            assert_eq!(accounts::devices(tx, &account_id(1)).await?, [1, 2].map(device_id));
            let holds = async |tx: &mut Tx, device: u8| sessions::holder(tx, &Hash::of(&[device]), 0).await.unwrap();

            accounts::end_sessions(tx, &device_id(2)).await?;
            assert_eq!((holds(tx, 1).await, holds(tx, 2).await), (Some((device_id(1), account_id(1))), None));
            let prekey = NewKey { suite: suite::PREKEY, ..key_packages::key("prekey", false, 30) };
            keys::add(tx, &device_id(2), &[prekey]).await?;
            let stored = async |tx: &mut Tx, device| {
                let counts = keys::counts(tx, &device_id(device), 0).await.unwrap();
                counts.into_iter().map(|count| (count.suite, count.one_time)).collect::<Vec<_>>()
            };
            accounts::delete_key_packages(tx, &device_id(2)).await?;
            assert_eq!(stored(tx, 2).await, [(suite::PREKEY, 1)]);
            accounts::delete_keys(tx, &device_id(2)).await?;
            assert_eq!((stored(tx, 1).await, stored(tx, 2).await), (vec![(key_packages::SUITE, 1)], vec![]));

            for device in [1, 2] {
                accounts::delete_device(tx, &device_id(device)).await?;
                assert!(accounts::device(tx, &device_id(device)).await?.is_none());
                assert!(queue::cursor(tx, &device_id(device)).await?.is_none());
            }
            assert_eq!(holds(tx, 1).await, None);
            accounts::delete(tx, &account_id(1)).await?;
            assert!(accounts::by_id(tx, &account_id(1)).await?.is_none());
            assert!(accounts::add(tx, &account_id(2), Some(&alice), 1, &list(2)).await?, "the name is free");
            for table in
                ["SELECT COUNT(*) FROM sessions", "SELECT COUNT(*) FROM key_packages", "SELECT COUNT(*) FROM devices"]
            {
                assert_eq!(count(tx, table).await, 0);
            }
            Ok(())
        })
    })
    .await;
}

pub(super) async fn holders_are_those_whose_sessions_hold(fresh: &Fresh) {
    done(&fresh.db, |tx| {
        Box::pin(async move {
            add_account(tx, &[1, 2]).await?;
            add_account(tx, &[3]).await?;
            let tokens = [b"a", b"b", b"c", b"d"].map(|name| Hash::of(name));
            for (token, device, expires) in [(&tokens[0], 3, 20), (&tokens[1], 1, 20), (&tokens[2], 2, 10)] {
                sessions::add(tx, token, &device_id(device), expires, 9).await?;
            }
            let holders: BTreeMap<_, _> = sessions::holders(tx, &tokens, 10).await?.into_iter().collect();
            let expected = [(tokens[0], (device_id(3), account_id(3))), (tokens[1], (device_id(1), account_id(1)))];
            assert_eq!(holders, expected.into());
            assert!(sessions::holders(tx, &[], 0).await?.is_empty());
            sessions::end(tx, &tokens[0]).await?;
            sessions::end(tx, &tokens[0]).await?;
            assert_eq!(sessions::holders(tx, &tokens, 10).await?.len(), 1);
            assert_eq!(sessions::holder(tx, &tokens[2], 9).await?, Some((device_id(2), account_id(1))));
            assert_eq!(sessions::holder(tx, &tokens[2], 10).await?, None);
            Ok(())
        })
    })
    .await;
}

pub(super) async fn what_is_locked_is_what_is_listed(fresh: &Fresh) {
    done(&fresh.db, |tx| {
        Box::pin(async move {
            add_account(tx, &[1, 3]).await?;
            add_account(tx, &[2]).await?;
            assert!(accounts::add(tx, &account_id(4), None, 1, &list(4)).await?);
            let asked = [1, 2, 4, 9].map(account_id).into();
            let expected = [(1, vec![1, 3]), (2, vec![2]), (4, vec![])];
            let expected =
                expected.map(|(account, devices)| (account_id(account), devices.into_iter().map(device_id).collect()));
            assert_eq!(accounts::lock_lists(tx, &asked).await?, expected.into());
            assert!(accounts::lock_lists(tx, &BTreeSet::new()).await?.is_empty());
            let asked = [3, 2, 9].map(device_id).into();
            assert_eq!(accounts::lock_devices(tx, &asked).await?, [2, 3].map(device_id).into());
            Ok(())
        })
    })
    .await;
}

pub(super) async fn sessions_expire_in_batches(fresh: &Fresh) {
    done(&fresh.db, |tx| {
        Box::pin(async move {
            add_account(tx, &[1]).await?;
            for nth in 1..=5 {
                sessions::add(tx, &Hash::of(&[nth]), &device_id(1), nth.into(), 9).await?;
                sessions::add_challenge(tx, &nonce(nth), nth.into()).await?;
            }
            for (until, expected) in [(0, 0), (4, 6), (4, 2), (4, 0)] {
                assert_eq!(sessions::expire(tx, until, 3).await?, expected, "until {until}");
            }
            assert!(sessions::holder(tx, &Hash::of(&[5]), 4).await?.is_some());
            assert!(sessions::take_challenge(tx, &nonce(5), 4).await?);
            Ok(())
        })
    })
    .await;
}
