//! Message ids: of all who use one, one is first, and what is refused leaves nothing.

use tokio::sync::oneshot;

use super::*;
use crate::store::message_ids::{self, NewStub, Stub};

fn stub(name: &str, body: &str) -> NewStub {
    let [id_hash, body_hash] = [name, body].map(|text| Hash::of(text.as_bytes()));
    NewStub { id_hash, body_hash, expires_hour_ms: HOUR_MS }
}

/// What was accepted before, of these.
async fn claim(tx: &mut Tx, wanted: &[NewStub]) -> BTreeMap<Hash, Stub> {
    message_ids::claim(tx, wanted).await.unwrap().into_iter().collect()
}

pub(super) async fn an_id_is_free_once(fresh: &Fresh) {
    let (one, two, three) = (stub("one", "a"), stub("two", "b"), stub("three", "c"));
    done(&fresh.db, move |tx| {
        Box::pin(async move {
            assert!(claim(tx, &[two, one]).await.is_empty());
            message_ids::note_commit(tx, &two.id_hash, 7).await
        })
    })
    .await;
    done(&fresh.db, move |tx| {
        Box::pin(async move {
            let again = NewStub { body_hash: Hash::of(b"other body"), ..one };
            let known = claim(tx, &[three, two, again]).await;
            let first = |of: &NewStub, commit_seq| (of.id_hash, Stub { body_hash: of.body_hash, commit_seq });
            assert_eq!(known, BTreeMap::from([first(&one, None), first(&two, Some(7))]));
            Ok(())
        })
    })
    .await;
    let mut conn = fresh.db.read().await.unwrap();
    let found =
        message_ids::find(&mut conn, [one, two, three, stub("four", "")].iter().map(|stub| &stub.id_hash)).await;
    assert_eq!(found.unwrap().len(), 3);
    assert!(message_ids::find(&mut conn, std::iter::empty()).await.unwrap().is_empty());
}

pub(super) async fn what_is_given_back_is_free(fresh: &Fresh) {
    let (one, two) = (stub("one", "a"), stub("two", "b"));
    for _ in 0..2 {
        done(&fresh.db, move |tx| {
            Box::pin(async move {
                assert!(claim(tx, &[one, two]).await.is_empty());
                message_ids::give_back(tx, &[two.id_hash, one.id_hash]).await
            })
        })
        .await;
    }
    let refused = fresh.db.write(move |tx| {
        Box::pin(async move {
            assert!(claim(tx, &[one]).await.is_empty());
            Err::<(), _>(StoreError::Corrupt("not really"))
        })
    });
    assert!(refused.await.is_err());
    done(&fresh.db, move |tx| {
        Box::pin(async move {
            assert!(claim(tx, &[one]).await.is_empty());
            Ok(())
        })
    })
    .await;
}

pub(super) async fn ids_expire_in_batches(fresh: &Fresh) {
    done(&fresh.db, |tx| {
        Box::pin(async move {
            for hour in 1..=5 {
                let stub = NewStub { expires_hour_ms: hour * HOUR_MS, ..stub(&format!("{hour}"), "a") };
                assert!(claim(tx, &[stub]).await.is_empty());
            }
            for (until, expected) in [(HOUR_MS - 1, 0), (4 * HOUR_MS, 3), (4 * HOUR_MS, 1), (4 * HOUR_MS, 0)] {
                assert_eq!(message_ids::expire(tx, until, 3).await?, expected, "until {until}");
            }
            let last = Hash::of(b"5");
            assert!(message_ids::find(tx, std::iter::once(&last)).await?.contains_key(&last));
            Ok(())
        })
    })
    .await;
}

/// Begins to claim ids, and waits to be told whether they stay.
fn first_claimant(
    db: &Db,
    wanted: NewStub,
) -> (oneshot::Receiver<()>, oneshot::Sender<bool>, tokio::task::JoinHandle<()>) {
    let (claimed, has_claimed) = oneshot::channel();
    let (keep, is_kept) = oneshot::channel::<bool>();
    let db = db.clone();
    let first = tokio::spawn(async move {
        done(&db, move |tx| {
            Box::pin(async move {
                assert!(claim(tx, &[wanted]).await.is_empty());
                claimed.send(()).unwrap();
                if !is_kept.await.unwrap() {
                    message_ids::give_back(tx, &[wanted.id_hash]).await?;
                }
                Ok(())
            })
        })
        .await;
    });
    (has_claimed, keep, first)
}

pub(super) async fn who_claims_second_waits_for_the_first(fresh: &Fresh) {
    for kept in [true, false] {
        let other = fresh.another_node().await;
        let wanted = stub(&format!("{kept}"), "a");
        let (has_claimed, keep, first) = first_claimant(&fresh.db, wanted);
        has_claimed.await.unwrap();
        let second = tokio::spawn(async move {
            done(&other, move |tx| Box::pin(async move { Ok(claim(tx, &[wanted]).await.len()) })).await
        });
        for _ in 0..100 {
            tokio::task::yield_now().await;
            assert!(!second.is_finished(), "it waits");
        }
        keep.send(kept).unwrap();
        first.await.unwrap();
        let known = second.await.unwrap();
        assert_eq!(known, usize::from(kept), "the first was kept: {kept}");
    }
}
