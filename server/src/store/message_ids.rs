//! Message-id stubs: what was accepted, for as long as the same message id must get the same answer.
//!
//! Invariant: a stub says nothing of who, to whom or where. It points at no envelope, device or account.

use undertone_wire::Hash;

use super::{Conn, StoreError, Tx, hash_bytes, number, on, parsed, stored};

/// What was accepted under an id, if anything was.
const STUB: &str = "SELECT body_hash, status, commit_seq FROM message_ids WHERE id_hash = $1";

/// Remembers an acceptance. Its id must be new.
const REMEMBER: &str = "
    INSERT INTO message_ids (id_hash, body_hash, expires_hour_ms, status, commit_seq) VALUES ($1, $2, $3, $4, $5)";

/// Deletes up to `$2` stubs that expired by `$1`.
const EXPIRE: &str = "
    DELETE FROM message_ids WHERE id_hash IN (
        SELECT id_hash FROM message_ids WHERE expires_hour_ms <= $1 ORDER BY expires_hour_ms LIMIT $2
    )";

/// The status of everything that is remembered: only acceptances are.
const ACCEPTED: i64 = 200;

/// What was accepted under a message id.
pub(crate) struct Stub {
    pub(crate) body_hash: Hash,
    pub(crate) commit_seq: Option<u64>,
}

/// What was accepted under the id with this hash.
pub(crate) async fn find(conn: &mut Conn, id_hash: &Hash) -> Result<Option<Stub>, StoreError> {
    let row: Option<(Vec<u8>, i64, Option<i64>)> =
        on!(*conn, db => sqlx::query_as(STUB).bind(hash_bytes(id_hash)).fetch_optional(db).await)?;
    let Some((body_hash, status, commit_seq)) = row else { return Ok(None) };
    if status != ACCEPTED {
        return Err(StoreError::Corrupt("a remembered refusal"));
    }
    Ok(Some(Stub { body_hash: parsed(&body_hash)?, commit_seq: commit_seq.map(number).transpose()? }))
}

/// Remembers what was accepted until a full hour.
pub(crate) async fn remember(tx: &mut Tx, id_hash: &Hash, stub: &Stub, expires_hour_ms: u64) -> Result<(), StoreError> {
    let (id, body) = (hash_bytes(id_hash), hash_bytes(&stub.body_hash));
    let (expires, commit_seq) = (stored(expires_hour_ms), stub.commit_seq.map(stored));
    on!(**tx, db => sqlx::query(REMEMBER)
        .bind(id).bind(body).bind(expires).bind(ACCEPTED).bind(commit_seq).execute(db).await)?;
    Ok(())
}

/// Deletes up to `batch` stubs that have expired; answers how many went.
pub(crate) async fn expire(tx: &mut Tx, now_ms: u64, batch: u64) -> Result<u64, StoreError> {
    let (now, batch) = (stored(now_ms), stored(batch));
    let done = on!(**tx, db => sqlx::query(EXPIRE).bind(now).bind(batch).execute(db).await.map(|d| d.rows_affected()));
    Ok(done?)
}
