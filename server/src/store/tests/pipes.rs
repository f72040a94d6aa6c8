//! Pipes: parts that are written once, and are there as long as their pipe lives.

use undertone_wire::Hash;

use super::{
    Fresh,
    concurrency::{at_once, no_deadlock, two_nodes},
    done, room_for,
};
use crate::store::pipes::{self, Part};

/// Requests 0 and 1, and answers 0 and 1, of a pipe.
fn parts(byte: u8) -> [Part; 4] {
    let pipe_hash = Hash::of(&[byte]);
    [(false, 0), (false, 1), (true, 0), (true, 1)].map(|(is_answer, number)| Part { pipe_hash, is_answer, number })
}

pub(super) async fn a_part_is_written_once_while_its_pipe_lives(fresh: &Fresh) {
    done(&fresh.db, |tx| {
        Box::pin(async move {
            let all = parts(1);
            for part in &all {
                assert!(!pipes::add(tx, part, b"early", 0, room_for(1)).await?, "nobody has begun the pipe");
                assert_eq!(pipes::content(tx, part, 0).await?, None);
            }
            assert!(pipes::begin(tx, &all[0].pipe_hash, b"first", 10, 0, room_for(1)).await?);
            assert!(!pipes::begin(tx, &all[0].pipe_hash, b"second", 20, 9, room_for(1)).await?);
            for part in &all[1..] {
                assert!(pipes::add(tx, part, b"first", 9, room_for(1)).await?);
                assert!(!pipes::add(tx, part, b"second", 9, room_for(1)).await?);
            }
            for part in &all {
                assert_eq!(pipes::content(tx, part, 9).await?.as_deref(), Some(&b"first"[..]));
            }
            for part in parts(2) {
                assert_eq!(pipes::content(tx, &part, 0).await?, None, "another pipe");
            }
            Ok(())
        })
    })
    .await;
}

pub(super) async fn a_pipe_that_is_over_is_as_none(fresh: &Fresh) {
    done(&fresh.db, |tx| {
        Box::pin(async move {
            let all = parts(1);
            assert!(pipes::begin(tx, &all[0].pipe_hash, b"before", 10, 0, room_for(1)).await?);
            for part in &all[1..3] {
                assert!(pipes::add(tx, part, b"before", 0, room_for(1)).await?);
            }
            assert!(
                !pipes::begin(tx, &parts(2)[0].pipe_hash, b"one more", 19, 9, room_for(1)).await?,
                "there may be one"
            );
            for part in &all {
                assert!(!pipes::add(tx, part, b"late", 10, room_for(1)).await?);
                assert_eq!(pipes::content(tx, part, 10).await?, None);
            }
            assert!(pipes::begin(tx, &all[0].pipe_hash, b"anew", 20, 10, room_for(1)).await?);
            assert_eq!(pipes::content(tx, &all[2], 10).await?, None, "what was answered before is over");
            for part in &all[1..] {
                assert!(pipes::add(tx, part, b"anew", 10, room_for(1)).await?);
                assert!(!pipes::add(tx, part, b"again", 10, room_for(1)).await?);
            }
            for part in &all {
                assert_eq!(pipes::content(tx, part, 19).await?.as_deref(), Some(&b"anew"[..]));
                assert_eq!(pipes::content(tx, part, 20).await?, None);
            }
            Ok(())
        })
    })
    .await;
}

pub(super) async fn parts_expire_in_batches(fresh: &Fresh) {
    done(&fresh.db, |tx| {
        Box::pin(async move {
            for byte in 1..=3 {
                let all = parts(byte);
                pipes::begin(tx, &all[0].pipe_hash, b"request", byte.into(), 0, room_for(9)).await?;
                pipes::add(tx, &all[2], b"answer", 0, room_for(1)).await?;
            }
            for (until, expected) in [(0, 0), (2, 3), (2, 1), (2, 0)] {
                assert_eq!(pipes::expire(tx, until, 3).await?, expected, "until {until}");
            }
            assert!(pipes::content(tx, &parts(3)[0], 0).await?.is_some());
            assert!(pipes::content(tx, &parts(3)[2], 0).await?.is_some());
            assert_eq!(pipes::expire(tx, 3, 3).await?, 2);
            Ok(())
        })
    })
    .await;
}

pub(super) async fn of_many_who_write_a_part_one_does(fresh: &Fresh) {
    let nodes = two_nodes(fresh).await;
    // Each round finds what the one before has left, whose time is over, while it is being deleted.
    for now_ms in 0..10 {
        let begun = at_once(&nodes, 16, |db, nth| {
            Box::pin(async move {
                if nth % 4 == 3 {
                    done(&db, move |tx| Box::pin(pipes::expire(tx, now_ms, 25))).await;
                }
                let content = [u8::try_from(nth).unwrap()];
                done(&db, move |tx| {
                    Box::pin(async move {
                        pipes::begin(tx, &parts(1)[0].pipe_hash, &content, now_ms + 1, now_ms, room_for(1)).await
                    })
                })
                .await
            })
        });
        assert_eq!(begun.await.into_iter().filter(|begun| *begun).count(), 1);
        let mut written = at_once(&nodes, 16, |db, nth| {
            Box::pin(async move {
                let content = [u8::try_from(nth).unwrap()];
                let written = done(&db, move |tx| {
                    Box::pin(async move { pipes::add(tx, &parts(1)[2], &content, now_ms, room_for(1)).await })
                });
                written.await.then_some(content.to_vec())
            })
        })
        .await;
        written.retain(Option::is_some);
        let conn = &mut fresh.db.read().await.unwrap();
        assert_eq!(written, [pipes::content(conn, &parts(1)[2], now_ms).await.unwrap()]);
    }
    no_deadlock(fresh);
}

pub(super) async fn of_many_who_begin_pipes_as_many_do_as_may(fresh: &Fresh) {
    let nodes = two_nodes(fresh).await;
    for now_ms in 0..10 {
        let begun = at_once(&nodes, 16, |db, nth| {
            let pipe_hash = parts(u8::try_from(nth).unwrap())[0].pipe_hash;
            Box::pin(async move {
                done(&db, move |tx| {
                    Box::pin(
                        async move { pipes::begin(tx, &pipe_hash, b"request", now_ms + 1, now_ms, room_for(5)).await },
                    )
                })
                .await
            })
        });
        assert_eq!(begun.await.into_iter().filter(|begun| *begun).count(), 5, "at {now_ms}");
    }
    no_deadlock(fresh);
}
