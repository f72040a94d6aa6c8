//! Invites: used up one by one, by as many as they are for.

use undertone_wire::Hash;

use super::{Fresh, done};
use crate::store::invites::{self, Invite};

fn invite(byte: u8, uses_left: u64, expires_ms: u64) -> Invite {
    Invite { code_hash: Hash::of(&[byte]), uses_left, expires_ms }
}

pub(super) async fn an_invite_is_used_up_and_gone(fresh: &Fresh) {
    done(&fresh.db, |tx| {
        Box::pin(async move {
            for each in [invite(1, 2, 10), invite(2, 1, 5), invite(3, 1, 20)] {
                invites::add(tx, &each).await?;
            }
            assert_eq!(invites::count(tx).await?, 3);
            assert_eq!(invites::holding(tx, 4).await?, [invite(2, 1, 5), invite(1, 2, 10), invite(3, 1, 20)]);
            assert_eq!(invites::holding(tx, 5).await?, [invite(1, 2, 10), invite(3, 1, 20)], "one has expired");
            for (byte, now_ms, used) in [(2, 5, false), (1, 9, true), (1, 10, false), (1, 9, true), (1, 9, false)] {
                assert_eq!(invites::use_up(tx, &Hash::of(&[byte]), now_ms).await?, used, "{byte} at {now_ms}");
            }
            assert!(!invites::use_up(tx, &Hash::of(&[9]), 0).await?, "there is no such invite");
            assert_eq!(invites::holding(tx, 0).await?, [invite(2, 1, 5), invite(3, 1, 20)]);
            assert!(invites::delete(tx, &Hash::of(&[3])).await?);
            assert!(!invites::delete(tx, &Hash::of(&[3])).await?);
            assert_eq!(invites::holding(tx, 0).await?, [invite(2, 1, 5)]);
            Ok(())
        })
    })
    .await;
}

pub(super) async fn invites_expire_in_batches(fresh: &Fresh) {
    done(&fresh.db, |tx| {
        Box::pin(async move {
            for byte in 1..=5 {
                invites::add(tx, &invite(byte, 1, byte.into())).await?;
            }
            for (until, expected) in [(0, 0), (4, 3), (4, 1), (4, 0)] {
                assert_eq!(invites::expire(tx, until, 3).await?, expected, "until {until}");
            }
            assert_eq!(invites::holding(tx, 0).await?, [invite(5, 1, 5)]);
            Ok(())
        })
    })
    .await;
}

pub(super) async fn as_many_as_an_invite_is_for_use_it(fresh: &Fresh) {
    done(&fresh.db, |tx| Box::pin(async move { invites::add(tx, &invite(1, 5, 10)).await })).await;
    let mut users = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let db = fresh.db.clone();
        users.spawn(async move {
            done(&db, |tx| Box::pin(async move { invites::use_up(tx, &Hash::of(&[1]), 0).await })).await
        });
    }
    assert_eq!(users.join_all().await.into_iter().filter(|used| *used).count(), 5);
    assert_eq!(invites::count(&mut fresh.db.read().await.unwrap()).await.unwrap(), 0);
}
