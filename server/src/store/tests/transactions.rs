//! What a transaction promises.

use std::sync::Arc;

use futures_util::FutureExt as _;
use tokio::sync::oneshot;

use super::*;
use crate::{
    clock::SystemRandom,
    store::{STRANGERS_MAX, WRITES_MAX, message_ids, queue::cursor, sessions},
};

pub(super) async fn identity_is_made_once(fresh: Fresh) {
    let first = fresh.db.identity(&SystemRandom).await.unwrap();
    let second = fresh.db.identity(&SystemRandom).await.unwrap();
    assert_eq!((first.relay_id, first.incarnation), (second.relay_id, second.incarnation));
}

pub(super) async fn work_that_fails_leaves_nothing(fresh: Fresh) {
    let failed: Result<(), _> = fresh
        .db
        .write(|tx| {
            Box::pin(async move {
                sessions::add_challenge(tx, &nonce(1), 10).await?;
                assert!(sessions::take_challenge(tx, &nonce(1), 0).await?, "it is there inside");
                sessions::add_challenge(tx, &nonce(2), 10).await?;
                Err(StoreError::Corrupt("not really"))
            })
        })
        .await;
    assert!(matches!(failed, Err(StoreError::Corrupt(_))));
    let taken = fresh.db.write(|tx| Box::pin(async move { sessions::take_challenge(tx, &nonce(2), 0).await })).await;
    assert!(!taken.unwrap());
}

pub(super) async fn work_runs_to_its_end_without_its_caller(fresh: Fresh) {
    let (go, wait) = oneshot::channel();
    let (done, finished) = oneshot::channel();
    let mut request = Box::pin(fresh.db.write(|tx| {
        Box::pin(async move {
            sessions::add_challenge(tx, &nonce(1), 10).await?;
            wait.await.unwrap();
            sessions::add_challenge(tx, &nonce(2), 10).await?;
            done.send(()).unwrap();
            Ok::<_, StoreError>(())
        })
    }));
    assert!(request.as_mut().now_or_never().is_none(), "it has begun and waits");
    drop(request);
    go.send(()).unwrap();
    finished.await.unwrap();
    for byte in [1, 2] {
        let take =
            fresh.db.write(move |tx| Box::pin(async move { sessions::take_challenge(tx, &nonce(byte), 0).await }));
        assert!(take.await.unwrap());
    }
}

pub(super) async fn a_panic_leaves_nothing_and_the_store_goes_on(fresh: Fresh) {
    let broken: Result<(), StoreError> = fresh
        .db
        .write(|tx| {
            Box::pin(async move {
                sessions::add_challenge(tx, &nonce(1), 10).await?;
                panic!("in the middle")
            })
        })
        .await;
    assert!(matches!(broken, Err(StoreError::Interrupted)));
    let taken = fresh.db.write(|tx| Box::pin(async move { sessions::take_challenge(tx, &nonce(1), 0).await })).await;
    assert!(!taken.unwrap());
}

pub(super) async fn mail_is_announced_after_the_commit_and_only_then(fresh: Fresh) {
    fresh.db.write(|tx| Box::pin(async move { add_group(tx, &[1, 2]).await })).await.unwrap();
    let mut interest = fresh.wake.register(device_id(1));
    let refused: Result<(), _> = fresh
        .db
        .write(|tx| {
            Box::pin(async move {
                append(tx, b"never").await?;
                Err(StoreError::Corrupt("not really"))
            })
        })
        .await;
    assert!(refused.is_err());
    assert!(interest.woken().now_or_never().is_none(), "nothing was committed");

    let (done, hold) = (oneshot::channel::<()>(), oneshot::channel::<()>());
    let db = Arc::new(fresh.db);
    let writing = tokio::spawn({
        let db = Arc::clone(&db);
        async move {
            db.write(|tx| {
                Box::pin(async move {
                    append(tx, b"now").await?;
                    done.0.send(()).unwrap();
                    hold.1.await.unwrap();
                    Ok::<_, StoreError>(())
                })
            })
            .await
        }
    });
    done.1.await.unwrap();
    assert!(interest.woken().now_or_never().is_none(), "not before the commit");
    hold.0.send(()).unwrap();
    let soon = std::time::Duration::from_secs(20);
    tokio::time::timeout(soon, interest.woken()).await.expect("woken after the commit");
    assert_eq!(cursor(&mut db.read().await.unwrap(), &device_id(1)).await.unwrap().unwrap().next_seq, 2);
    writing.await.unwrap().unwrap();
}

pub(super) async fn writers_wait_for_each_other(fresh: Fresh) {
    let db = Arc::new(fresh.db);
    db.write(|tx| Box::pin(async move { add_group(tx, &[1]).await })).await.unwrap();
    let writers = (0..50).map(|_| {
        let db = Arc::clone(&db);
        tokio::spawn(async move { db.write(|tx| Box::pin(async move { append(tx, b"x").await })).await })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap().unwrap();
    }
    assert_eq!(cursor(&mut db.read().await.unwrap(), &device_id(1)).await.unwrap().unwrap().next_seq, 51);
}

pub(super) async fn one_write_too_many_is_refused_at_once(fresh: Fresh) {
    let nothing = || fresh.db.write(|_| Box::pin(async { Ok::<_, StoreError>(()) }));
    let mut waiting: Vec<_> = (0..WRITES_MAX).map(|_| Box::pin(nothing())).collect();
    for write in &mut waiting {
        assert!(write.now_or_never().is_none(), "it has begun and waits");
    }
    assert!(matches!(nothing().now_or_never(), Some(Err(StoreError::Busy))));
    for write in waiting {
        write.await.unwrap();
    }
    nothing().await.unwrap();
}

pub(super) async fn strangers_leave_places_for_members(fresh: Fresh) {
    let nothing = || fresh.db.write_for_stranger(|_| Box::pin(async { Ok::<_, StoreError>(()) }));
    let mut waiting: Vec<_> = (0..STRANGERS_MAX).map(|_| Box::pin(nothing())).collect();
    for write in &mut waiting {
        assert!(write.now_or_never().is_none(), "it has begun and waits");
    }
    // Who hangs up gives no place back: the work still waits.
    waiting.clear();
    assert!(matches!(nothing().now_or_never(), Some(Err(StoreError::Busy))));
    fresh.db.write(|_| Box::pin(async { Ok::<_, StoreError>(()) })).await.unwrap();
    nothing().await.unwrap();
}

pub(super) async fn a_reader_sees_one_moment(fresh: Fresh) {
    let id = Hash::of(b"id");
    let mut reader = fresh.db.read().await.unwrap();
    assert!(message_ids::find(&mut reader, &id).await.unwrap().is_none());
    fresh
        .db
        .write(move |tx| {
            Box::pin(async move {
                let stub = message_ids::Stub { body_hash: id, commit_seq: Some(7) };
                message_ids::remember(tx, &id, &stub, HOUR_MS).await
            })
        })
        .await
        .unwrap();
    assert!(message_ids::find(&mut reader, &id).await.unwrap().is_none(), "its moment has not passed");
    let mut later = fresh.db.read().await.unwrap();
    assert_eq!(message_ids::find(&mut later, &id).await.unwrap().unwrap().commit_seq, Some(7));
}
