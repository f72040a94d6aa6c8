//! What a transaction promises.

use futures_util::FutureExt as _;
use tokio::sync::oneshot;

use super::*;
use crate::store::{
    STRANGERS_MAX, WRITES_MAX, execute,
    message_ids::{self, NewStub},
    queue::cursor,
    relay, sessions,
};

/// Longer than anything that is waited for takes.
const SOON: Duration = Duration::from_secs(60);

pub(super) async fn identity_is_made_once(fresh: &Fresh) {
    let identity = async |db: &Db| {
        let identity = relay::identity(&mut db.read().await.unwrap()).await.unwrap();
        (identity.relay_id, identity.incarnation)
    };
    let first = identity(&fresh.db).await;
    done(&fresh.db, |tx| Box::pin(async move { relay::become_one(tx, &SystemRandom, "another mark").await })).await;
    assert_eq!(identity(&fresh.db).await, first);
    assert_eq!(identity(&fresh.another_node().await).await, first);
    let marks = relay::marks(&mut fresh.db.read().await.unwrap()).await.unwrap().unwrap();
    assert!(marks.0 != "another mark" && marks.1 != "another mark");
}

pub(super) async fn work_that_fails_leaves_nothing(fresh: &Fresh) {
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

pub(super) async fn work_runs_to_its_end_without_its_caller(fresh: &Fresh) {
    let (go, wait) = oneshot::channel();
    let (ended, finished) = oneshot::channel();
    let mut request = Box::pin(fresh.db.write(|tx| {
        Box::pin(async move {
            sessions::add_challenge(tx, &nonce(1), 10).await?;
            wait.await.unwrap();
            sessions::add_challenge(tx, &nonce(2), 10).await?;
            ended.send(()).unwrap();
            Ok::<_, StoreError>(())
        })
    }));
    assert!(request.as_mut().now_or_never().is_none(), "it has begun and waits");
    drop(request);
    go.send(()).unwrap();
    finished.await.unwrap();
    let take =
        |byte| done(&fresh.db, move |tx| Box::pin(async move { sessions::take_challenge(tx, &nonce(byte), 0).await }));
    let committed = async {
        while !take(1).await {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, committed).await.expect("it is committed");
    assert!(take(2).await);
}

pub(super) async fn a_panic_leaves_nothing_and_the_store_goes_on(fresh: &Fresh) {
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

pub(super) async fn mail_is_announced_after_the_commit_and_only_then(fresh: &Fresh) {
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
    let db = fresh.db.clone();
    let writing = tokio::spawn({
        let db = db.clone();
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
    tokio::time::timeout(SOON, interest.woken()).await.expect("woken after the commit");
    assert_eq!(cursor(&mut db.read().await.unwrap(), &device_id(1)).await.unwrap().unwrap().next_seq, 2);
    writing.await.unwrap().unwrap();
}

pub(super) async fn writers_wait_for_each_other(fresh: &Fresh) {
    let db = fresh.db.clone();
    db.write(|tx| Box::pin(async move { add_group(tx, &[1]).await })).await.unwrap();
    let writers = (0..50).map(|_| {
        let db = db.clone();
        tokio::spawn(async move { db.write(|tx| Box::pin(async move { append(tx, b"x").await })).await })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap().unwrap();
    }
    assert_eq!(cursor(&mut db.read().await.unwrap(), &device_id(1)).await.unwrap().unwrap().next_seq, 51);
}

pub(super) async fn one_write_too_many_is_refused_at_once(fresh: &Fresh) {
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

pub(super) async fn strangers_leave_places_for_members(fresh: &Fresh) {
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

pub(super) async fn a_reader_sees_one_moment(fresh: &Fresh) {
    let id = Hash::of(b"id");
    let found = async |conn: &mut Conn| message_ids::find(conn, std::iter::once(&id)).await.unwrap();
    let mut reader = fresh.db.read().await.unwrap();
    assert!(found(&mut reader).await.is_empty());
    done(&fresh.db, move |tx| {
        Box::pin(async move {
            message_ids::claim(tx, &[NewStub { id_hash: id, body_hash: id, expires_hour_ms: HOUR_MS }]).await?;
            message_ids::note_commit(tx, &id, 7).await
        })
    })
    .await;
    assert!(found(&mut reader).await.is_empty(), "its moment has not passed");
    let mut later = fresh.db.read().await.unwrap();
    assert_eq!(found(&mut later).await[&id].commit_seq, Some(7));
}

pub(super) async fn readers_change_nothing(fresh: &Fresh) {
    done(&fresh.db, |tx| Box::pin(async move { add_account(tx, &[1]).await })).await;
    for statement in ["DELETE FROM cursors", "UPDATE relay SET mark = 'x'", "DROP TABLE queue"] {
        let mut reader = fresh.db.read().await.unwrap();
        let refused = execute!(reader, statement);
        assert!(refused.unwrap_err().to_string().to_lowercase().contains("read"), "{statement}");
    }
    assert!(cursor(&mut fresh.db.read().await.unwrap(), &device_id(1)).await.unwrap().is_some());
}
