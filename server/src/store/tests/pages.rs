//! What a page of a queue promises.

use super::*;
use crate::store::{
    queue::{Page, PageRequest, page},
    sessions,
};

pub(super) fn token() -> Hash {
    Hash::of(b"token")
}

pub(super) async fn read(db: &Db, after: u64, entries_max: u64, bytes_max: u64) -> Page {
    let request = PageRequest { device: device_id(1), token_hash: token(), after, entries_max, bytes_max };
    page(&mut db.read().await.unwrap(), &request, 0).await.unwrap().unwrap()
}

fn seqs(page: &Page) -> Vec<u64> {
    page.deliveries.iter().map(|delivery| delivery.seq).collect()
}

pub(super) async fn numbers_are_consecutive_from_1(fresh: &Fresh) {
    let db = &fresh.db;
    db.write(|tx| Box::pin(async move { add_group(tx, &[1, 2]).await })).await.unwrap();
    let empty = read(db, 0, 10, 100).await;
    assert_eq!((seqs(&empty), empty.next_seq, empty.oldest, empty.newest), (vec![], 1, None, None));
    for _ in 0..3 {
        db.write(|tx| Box::pin(async move { append(tx, b"x").await })).await.unwrap();
    }
    let full = read(db, 0, 10, 100).await;
    assert_eq!((seqs(&full), full.next_seq, full.oldest, full.newest), (vec![1, 2, 3], 4, Some(1), Some(3)));
}

pub(super) async fn a_page_ends_by_entries_or_bytes(fresh: &Fresh) {
    let db = &fresh.db;
    db.write(|tx| {
        Box::pin(async move {
            add_group(tx, &[1]).await?;
            for bytes in [4, 4, 20, 4] {
                append(tx, &vec![0; bytes]).await?;
            }
            Ok::<_, StoreError>(())
        })
    })
    .await
    .unwrap();
    assert_eq!(seqs(&read(db, 0, 3, 100).await), [1, 2, 3]);
    assert_eq!(seqs(&read(db, 0, 9, 8).await), [1, 2]);
    assert_eq!(seqs(&read(db, 0, 9, 7).await), [1]);
    assert_eq!(seqs(&read(db, 2, 9, 7).await), [3], "one entry always fits");
    assert!(seqs(&read(db, 4, 9, 7).await).is_empty());
}

pub(super) async fn a_page_tells_whether_the_session_holds(fresh: &Fresh) {
    let db = &fresh.db;
    db.write(|tx| {
        Box::pin(async move {
            add_account(tx, &[1]).await?;
            add_account(tx, &[2]).await
        })
    })
    .await
    .unwrap();
    assert!(!read(db, 0, 1, 1).await.authenticated);
    let add = |device: u8, expires: u64| {
        db.write(move |tx| {
            Box::pin(async move {
                sessions::end(tx, &token()).await?;
                sessions::add(tx, &token(), &device_id(device), expires, 9).await
            })
        })
    };
    add(2, 10).await.unwrap();
    assert!(!read(db, 0, 1, 1).await.authenticated, "it is another device's");
    add(1, 0).await.unwrap();
    assert!(!read(db, 0, 1, 1).await.authenticated, "its time is over");
    add(1, 10).await.unwrap();
    assert!(read(db, 0, 1, 1).await.authenticated);
    let nobody = PageRequest { device: device_id(9), token_hash: token(), after: 0, entries_max: 1, bytes_max: 1 };
    assert_eq!(page(&mut db.read().await.unwrap(), &nobody, 0).await.unwrap(), None);
}

pub(super) async fn a_page_of_commits_ends_by_entries_or_bytes(fresh: &Fresh) {
    let db = &fresh.db;
    db.write(|tx| {
        Box::pin(async move {
            add_group(tx, &[1]).await?;
            for (commit_seq, bytes) in (1..).zip([4, 4, 20, 4]) {
                append_commit(tx, commit_seq, &vec![0; bytes], 0).await?;
            }
            Ok::<_, StoreError>(())
        })
    })
    .await
    .unwrap();
    let read = async |after, entries_max, bytes_max| {
        let mut conn = db.read().await.unwrap();
        let commits = groups::commits_after(&mut conn, &group_id(), after, entries_max, bytes_max).await.unwrap();
        commits.iter().map(|commit| (commit.commit_seq, commit.commit.as_slice().len())).collect::<Vec<_>>()
    };
    assert_eq!(read(0, 3, 100).await, [(1, 4), (2, 4), (3, 20)]);
    assert_eq!(read(0, 9, 8).await, [(1, 4), (2, 4)]);
    assert_eq!(read(2, 9, 7).await, [(3, 20)], "one commit always fits");
    assert_eq!(read(4, 9, 7).await, []);
}
