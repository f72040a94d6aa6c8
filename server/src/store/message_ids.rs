//! Message-id stubs: what was accepted, for as long as the same message id must get the same answer.
//!
//! An id is claimed before anything else is decided, so that of two requests with the same id one waits for the other.
//!
//! Invariant: a stub says nothing of who, to whom or where. It points at no envelope, device or account. Only what was
//! accepted stays: a transaction that refuses gives its claims back.

use std::collections::HashMap;

use undertone_wire::Hash;

use super::{
    Conn, StoreError, Tx,
    bulk::{Pair, Rows, pair},
    execute, number, parsed, stored,
};

/// Claims ids, ascending, and answers those that were free. One that another transaction has just claimed is waited for.
const CLAIM: Pair = pair!(
    "INSERT INTO message_ids (id_hash, body_hash, expires_hour_ms, status)
     SELECT id_hash, body_hash, expires_hour_ms, 200 FROM "
    (rows id_hash bytes, body_hash bytes, expires_hour_ms number)
    " WHERE true ORDER BY id_hash ON CONFLICT DO NOTHING RETURNING id_hash"
);

/// What was accepted under ids.
const STUBS: Pair = pair!("SELECT id_hash, body_hash, status, commit_seq FROM message_ids WHERE id_hash IN " ids);

/// Gives claims back.
const GIVE_BACK: Pair = pair!("DELETE FROM message_ids WHERE id_hash IN " ids);

/// Notes the number of a commit that was accepted.
const NUMBER: &str = "UPDATE message_ids SET commit_seq = $2 WHERE id_hash = $1";

/// Deletes up to `$2` stubs that expired by `$1`. One that another node is just deleting is passed over.
const EXPIRE: Pair = pair!(
    "WITH expired AS MATERIALIZED (
         SELECT id_hash FROM message_ids WHERE expires_hour_ms <= $1 ORDER BY expires_hour_ms LIMIT $2"
    (lock "FOR UPDATE SKIP LOCKED")
    ") DELETE FROM message_ids WHERE id_hash IN (SELECT id_hash FROM expired)"
);

/// The status of everything that is remembered: only acceptances are.
const ACCEPTED: i64 = 200;

/// An id that somebody wants to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NewStub {
    pub(crate) id_hash: Hash,
    pub(crate) body_hash: Hash,
    pub(crate) expires_hour_ms: u64,
}

/// What was accepted under a message id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stub {
    pub(crate) body_hash: Hash,
    pub(crate) commit_seq: Option<u64>,
}

/// Claims ids, each of which is wanted once. Answers what was accepted before under those that were not free.
pub(crate) async fn claim(tx: &mut Tx, wanted: &[NewStub]) -> Result<HashMap<Hash, Stub>, StoreError> {
    let mut wanted: Vec<&NewStub> = wanted.iter().collect();
    wanted.sort_unstable_by_key(|stub| stub.id_hash);
    let rows = Rows::of(wanted.iter().map(|stub| &stub.id_hash))
        .bytes(wanted.iter().map(|stub| &stub.body_hash))
        .numbers(wanted.iter().map(|stub| stored(stub.expires_hour_ms)));
    let free: Vec<(Vec<u8>,)> = tx.select(&CLAIM, rows).await?;
    if free.len() == wanted.len() {
        return Ok(HashMap::new());
    }
    let mut taken = find(tx, wanted.iter().map(|stub| &stub.id_hash)).await?;
    for (id,) in free {
        taken.remove(&parsed::<Hash>(&id)?);
    }
    Ok(taken)
}

/// Hash of the id, hash of the body, status, number of a commit.
type StubRow = (Vec<u8>, Vec<u8>, i64, Option<i64>);

/// What was accepted under ids.
pub(crate) async fn find<'a>(
    conn: &mut Conn,
    ids: impl Iterator<Item = &'a Hash>,
) -> Result<HashMap<Hash, Stub>, StoreError> {
    let rows: Vec<StubRow> = conn.select(&STUBS, Rows::of(ids)).await?;
    let stub = |(id, body_hash, status, commit_seq): StubRow| {
        if status != ACCEPTED {
            return Err(StoreError::Corrupt("a remembered refusal"));
        }
        let commit_seq = commit_seq.map(number).transpose()?;
        Ok((parsed(&id)?, Stub { body_hash: parsed(&body_hash)?, commit_seq }))
    };
    rows.into_iter().map(stub).collect()
}

/// Gives claims back: what they were for was refused.
pub(crate) async fn give_back(tx: &mut Tx, ids: &[Hash]) -> Result<(), StoreError> {
    tx.execute(&GIVE_BACK, Rows::of(ids)).await?;
    Ok(())
}

/// Notes the number of a commit that was accepted under a claimed id.
pub(crate) async fn note_commit(tx: &mut Tx, id_hash: &Hash, commit_seq: u64) -> Result<(), StoreError> {
    execute!(**tx, NUMBER, id_hash.as_bytes().as_slice(), stored(commit_seq))?;
    Ok(())
}

/// Deletes up to `batch` stubs that have expired; answers how many went.
pub(crate) async fn expire(tx: &mut Tx, now_ms: u64, batch: u64) -> Result<u64, StoreError> {
    let (statement, now, batch) = (tx.words(&EXPIRE), stored(now_ms), stored(batch));
    Ok(execute!(**tx, statement, now, batch)?)
}
