//! Races for one thing: of all who want it, one has it, and nothing is left behind by those who come too late.

use super::{
    concurrency::{GROUPS, at_once, no_deadlock, remove_device, two_nodes},
    room_for, *,
};
use crate::store::{
    keys,
    message_ids::{self, NewStub},
    pipes, sessions,
};
use undertone_wire::Username;

pub(super) async fn each_one_time_key_is_given_once(fresh: &Fresh) {
    const KEYS: usize = 200;
    let nodes = two_nodes(fresh).await;
    done(&fresh.db, |tx| {
        Box::pin(async move {
            add_account(tx, &[1]).await?;
            let keys: Vec<_> = (0..KEYS).map(|nth| key_packages::key(&format!("{nth}"), false, 30)).collect();
            keys::add(tx, &device_id(1), &keys).await
        })
    })
    .await;
    let claimed = at_once(&nodes, 32, |db, nth| {
        Box::pin(async move {
            let mut mine = Vec::new();
            loop {
                // Every other claim of some is taken back: its key must be given to another.
                let gives_back = nth % 4 == 0 && mine.len() % 2 == 1;
                let claimed = db.write(move |tx| {
                    Box::pin(async move {
                        let claimed = keys::take_one_time(tx, &device_id(1), key_packages::SUITE, 10).await?;
                        let left = keys::one_time_left(tx, &device_id(1), key_packages::SUITE, 10).await?;
                        if gives_back { Err(StoreError::Corrupt("not really")) } else { Ok((claimed, left)) }
                    })
                });
                match claimed.await {
                    Ok((Some(key), _)) => mine.push(key),
                    Ok((None, 0)) => return mine,
                    Ok((None, _)) => tokio::task::yield_now().await,
                    Err(_) => mine.push(Vec::new()),
                }
            }
        })
    })
    .await;
    let mut claimed: Vec<_> = claimed.into_iter().flatten().filter(|key| !key.is_empty()).collect();
    assert_eq!(claimed.len(), KEYS);
    claimed.sort_unstable();
    claimed.dedup();
    assert_eq!(claimed.len(), KEYS, "none was given twice");
    for node in nodes {
        let none = done(&node, |tx| {
            Box::pin(async move { keys::take_one_time(tx, &device_id(1), key_packages::SUITE, 10).await })
        })
        .await;
        assert_eq!(none, None);
    }
    no_deadlock(fresh);
}

pub(super) async fn of_many_with_one_message_id_one_is_first(fresh: &Fresh) {
    let nodes = two_nodes(fresh).await;
    done(&fresh.db, |tx| Box::pin(async move { add_group(tx, &[1, 2]).await })).await;
    for round in 0..short_or_soak(5, 100) {
        let ids = [Hash::of(format!("one {round}").as_bytes()), Hash::of(format!("two {round}").as_bytes())];
        let firsts = at_once(&nodes, 32, |db, nth| {
            Box::pin(async move {
                done(&db, move |tx| {
                    Box::pin(async move {
                        let body_hash = Hash::of(&[u8::try_from(nth).unwrap()]);
                        let stub = |id: &Hash| NewStub { id_hash: *id, body_hash, expires_hour_ms: HOUR_MS };
                        // In either order: whoever wants several takes them in the same.
                        let wanted =
                            if nth % 2 == 0 { [stub(&ids[0]), stub(&ids[1])] } else { [stub(&ids[1]), stub(&ids[0])] };
                        let known = message_ids::claim(tx, &wanted).await?;
                        if known.is_empty() {
                            append(tx, b"x").await?;
                        }
                        Ok((body_hash, known.into_values().map(|stub| stub.body_hash).collect::<Vec<_>>()))
                    })
                })
                .await
            })
        })
        .await;
        let (first, later): (Vec<_>, Vec<_>) = firsts.into_iter().partition(|(_, known)| known.is_empty());
        assert_eq!(first.len(), 1);
        assert!(later.iter().all(|(_, known)| *known == [first[0].0; 2]), "all others see what was first");
        let cursor = queue::cursor(&mut fresh.db.read().await.unwrap(), &device_id(1)).await.unwrap().unwrap();
        assert_eq!(cursor.next_seq, round as u64 + 2);
    }
    no_deadlock(fresh);
}

pub(super) async fn of_many_who_make_the_same_one_does(fresh: &Fresh) {
    let nodes = two_nodes(fresh).await;
    for round in 0..short_or_soak(5, 100) {
        let round = u8::try_from(round).unwrap() + 1;
        let name: Username = format!("name{round}").parse().unwrap();
        // The same name for different accounts, and the same account under different names, both in one go.
        let named = at_once(&nodes, 16, |db, nth| {
            let name = name.clone();
            let mut key = [round; 32];
            key[0] = u8::try_from(nth).unwrap() + 128;
            let account = AccountId::from_identity_key(&PublicKey::from(key));
            Box::pin(async move {
                done(&db, move |tx| {
                    Box::pin(async move { accounts::add(tx, &account, Some(&name), 1, &list(1)).await })
                })
                .await
            })
        });
        let registered = at_once(&nodes, 16, |db, nth| {
            let name: Username = format!("own{round}.{nth}").parse().unwrap();
            Box::pin(async move {
                done(&db, move |tx| {
                    Box::pin(async move { accounts::add(tx, &account_id(round), Some(&name), 1, &list(1)).await })
                })
                .await
            })
        });
        let founded = at_once(&nodes, 16, |db, nth| {
            let founder = account_id(u8::try_from(nth).unwrap());
            Box::pin(async move {
                done(&db, move |tx| Box::pin(async move { groups::add(tx, &group(round), &founder, b"info").await }))
                    .await
            })
        });
        let (named, registered, founded) = tokio::join!(named, registered, founded);
        for made in [named, registered, founded] {
            assert_eq!(made.into_iter().filter(|made| *made).count(), 1);
        }
    }
    no_deadlock(fresh);
}

/// Adds a device to a group if it is listed, like a commit does.
async fn add_to_group(tx: &mut Tx, group: GroupId, device: u8) -> Result<bool, StoreError> {
    let commit_seq = groups::lock(tx, &BTreeSet::from([group])).await?[&group].commit_seq + 1;
    let listed = accounts::lock_devices(tx, &[1, device].map(device_id).into()).await?;
    if !listed.contains(&device_id(device)) || groups::standing(tx, &group, &device_id(device)).await?.is_some() {
        return Ok(false);
    }
    let before = members(tx, &group).await?;
    let commit = message(&group, b"commit", u64::MAX, &before);
    let welcome = message(&group, b"welcome", u64::MAX, &[device_id(device)]);
    append_all(tx, &ROOM, &[commit, NewEnvelope { kind: Kind::Welcome, ..welcome }]).await?;
    groups::advance(tx, &group, &account_id(1), b"info").await?;
    groups::begin_stays(tx, &group, &[device_id(device)], commit_seq).await?;
    Ok(true)
}

pub(super) async fn a_device_that_is_removed_is_in_no_group(fresh: &Fresh) {
    const LOST: &str = "
        SELECT COUNT(*) FROM group_members m WHERE ended_commit IS NULL
        AND NOT EXISTS (SELECT 1 FROM devices d WHERE d.device_id = m.device_id)";
    let nodes = two_nodes(fresh).await;
    done(&fresh.db, |tx| {
        Box::pin(async move {
            add_account(tx, &[1]).await?;
            for nth in 1..=GROUPS {
                add_group_of(tx, &group(nth), &[1]).await?;
            }
            Ok(())
        })
    })
    .await;
    let (mut added, mut again) = (0, 0);
    for device in 2..u8::try_from(short_or_soak(20, 200)).unwrap() {
        done(&fresh.db, move |tx| Box::pin(async move { add_account(tx, &[device]).await })).await;
        let adding = at_once(&nodes, GROUPS.into(), |db, nth| {
            let group = group(u8::try_from(nth).unwrap() + 1);
            Box::pin(async move { done(&db, move |tx| Box::pin(add_to_group(tx, group, device))).await })
        });
        let removing = async {
            let mut again = 0;
            while !done(&nodes[1], move |tx| Box::pin(remove_device(tx, device))).await {
                again += 1;
            }
            again
        };
        let (were_added, began_again) = tokio::join!(adding, removing);
        added += were_added.into_iter().filter(|added| *added).count();
        again += began_again;
        let mut conn = fresh.db.read().await.unwrap();
        assert_eq!(count(&mut conn, LOST).await, 0, "device {device}");
        counts::check(&mut conn, "after a race").await;
    }
    println!("{added} were added before they were removed, {again} removals began again");
    no_deadlock(fresh);
}

pub(super) async fn sweepers_share_the_work(fresh: &Fresh) {
    const EACH: u64 = 300;
    let nodes = two_nodes(fresh).await;
    done(&fresh.db, |tx| {
        Box::pin(async move {
            add_group(tx, &[1, 2, 3]).await?;
            for nth in 0..EACH {
                let hash = Hash::of(&nth.to_be_bytes());
                sessions::add(tx, &hash, &device_id(1), 1, EACH).await?;
                sessions::add_challenge(tx, &hash_nonce(&hash), 1).await?;
                message_ids::claim(tx, &[NewStub { id_hash: hash, body_hash: hash, expires_hour_ms: 0 }]).await?;
                pipes::begin(tx, &hash, b"request", 1, 0, room_for(EACH)).await?;
                append_commit(tx, nth + 1, b"commit", 0).await?;
            }
            let keys: Vec<_> = (0..EACH).map(|nth| key_packages::key(&format!("{nth}"), false, 0)).collect();
            keys::add(tx, &device_id(1), &keys).await
        })
    })
    .await;
    let swept = at_once(&nodes, 8, |db, _| {
        Box::pin(async move {
            let mut counts = [0; 6];
            loop {
                let swept = [
                    done(&db, |tx| Box::pin(sessions::expire(tx, 1, 25))).await,
                    done(&db, |tx| Box::pin(message_ids::expire(tx, 1, 25))).await,
                    done(&db, |tx| Box::pin(keys::expire(tx, 1, 25))).await,
                    done(&db, |tx| Box::pin(groups::expire_commits(tx, 1, 25))).await,
                    done(&db, |tx| Box::pin(queue::expire(tx, 1, 25))).await,
                    done(&db, |tx| Box::pin(pipes::expire(tx, 1, 25))).await,
                ];
                if swept == [0; 6] {
                    return counts;
                }
                counts.iter_mut().zip(swept).for_each(|(count, swept)| *count += swept);
            }
        })
    })
    .await;
    let total = |kind: usize| swept.iter().map(|counts| counts[kind]).sum::<u64>();
    assert_eq!([0, 1, 2, 3, 4, 5].map(total), [2 * EACH, EACH, EACH, EACH, 3 * EACH, EACH]);
    let mut conn = fresh.db.read().await.unwrap();
    assert_eq!(count(&mut conn, counts::ENVELOPES).await, 0);
    counts::check(&mut conn, "after sweeping").await;
    no_deadlock(fresh);
}

fn hash_nonce(hash: &Hash) -> Nonce {
    Nonce::from(*hash.as_bytes())
}
