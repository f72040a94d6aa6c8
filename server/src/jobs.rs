//! Upkeep: deleting what is over, and taking deleted bytes out of the files.
//!
//! Invariant: nothing here decides what a request may do; a row whose time is over is refused by the statement that
//! looks for it, deleted or not. Batches are bounded, so that requests get their turn in between.

use std::time::Duration;

use crate::{
    clock::hour_of,
    keys, kill,
    node::Node,
    store::{StoreError, groups, invites, keys as key_store, message_ids, pipes, queue, sessions},
};

/// How often. Ciphertext that was acked is out of the files by the second round after it.
const EVERY: Duration = Duration::from_secs(20);

/// Most rows of a kind that one transaction deletes.
const BATCH: u64 = 500;

/// Does upkeep now and from time to time, until dropped.
pub(crate) async fn run(node: Node) {
    loop {
        if let Err(error) = upkeep(&node).await {
            tracing::warn!(%error, "upkeep failed and will be tried again");
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// Does upkeep once.
pub(crate) async fn upkeep(node: &Node) -> Result<(), StoreError> {
    node.claims.tidy();
    node.strangers.tidy();
    node.recoveries.tidy();
    let tidied = tidy(node).await;
    let looked = node.db.look().await;
    // Whatever became of that, what was acked must go from the log.
    if !node.db.checkpoint().await? {
        tracing::debug!("a reader kept the write-ahead log from being emptied");
    }
    tidied.and(looked)
}

/// Deletes everything whose time is over.
async fn tidy(node: &Node) -> Result<(), StoreError> {
    while tidy_batch(node).await? >= BATCH {}
    Ok(())
}

/// Deletes a batch of each kind; answers how many rows went.
async fn tidy_batch(node: &Node) -> Result<u64, StoreError> {
    let (now_ms, node) = (node.now_ms(), node.clone());
    let retention_ms = node.limits.retention_s.saturating_mul(1_000);
    let kept_since_ms = hour_of(now_ms.saturating_sub(retention_ms));
    let lives_until_ms = keys::must_live_until_ms(&node);
    let db = &node.db;
    let mut count = db.write(move |tx| Box::pin(sessions::expire(tx, now_ms, BATCH))).await?;
    count += db.write(move |tx| Box::pin(invites::expire(tx, now_ms, BATCH))).await?;
    count += db.write(move |tx| Box::pin(pipes::expire(tx, now_ms, BATCH))).await?;
    count += db.write(move |tx| Box::pin(message_ids::expire(tx, now_ms, BATCH))).await?;
    count += db.write(move |tx| Box::pin(key_store::expire(tx, lives_until_ms, BATCH))).await?;
    let expired = db.write(move |tx| {
        Box::pin(async move {
            let expired = queue::expire(tx, now_ms, BATCH).await?;
            kill::point("job", kill::BEFORE_COMMIT);
            Ok::<_, StoreError>(expired)
        })
    });
    count += expired.await?;
    kill::point("job", kill::HALFWAY);
    count += db.write(move |tx| Box::pin(groups::expire_commits(tx, kept_since_ms, BATCH))).await?;
    count += db.write(move |tx| Box::pin(groups::expire_successors(tx, kept_since_ms, BATCH))).await?;
    count += db.write(move |tx| Box::pin(groups::expire_deserted(tx, kept_since_ms, BATCH))).await?;
    count += db.write(move |tx| Box::pin(groups::expire_stays(tx, kept_since_ms, BATCH))).await?;
    Ok(count)
}
