//! Invites: who has one may register.
//!
//! Invariant: a code is known by its hash only, and no column says which account used it. A use is used up in the transaction
//! that adds the account, and an invite without uses is gone.

use undertone_wire::Hash;

use super::{
    Conn, StoreError, Tx,
    bulk::{Pair, pair},
    execute, number, on, parsed, stored,
};

/// Adds an invite.
const ADD: &str = "INSERT INTO invites (code_hash, uses_left, expires_ms) VALUES ($1, $2, $3)";

/// How many invites there are.
const COUNT: &str = "SELECT COUNT(*) FROM invites";

/// Uses up one use; answers how many are left. No row: there is no such invite, or it has expired.
const USE: &str = "
    UPDATE invites SET uses_left = uses_left - 1 WHERE code_hash = $1 AND expires_ms > $2 RETURNING uses_left";

/// Invites that hold, those that end first first.
const HOLDING: &str = "
    SELECT code_hash, uses_left, expires_ms FROM invites WHERE expires_ms > $1 ORDER BY expires_ms, code_hash";

/// Deletes an invite.
const DELETE: &str = "DELETE FROM invites WHERE code_hash = $1";

/// Deletes up to `$2` invites that expired by `$1`. One that others have in hand is passed over.
const EXPIRE: Pair = pair!(
    "WITH expired AS MATERIALIZED (
         SELECT code_hash FROM invites WHERE expires_ms <= $1 ORDER BY expires_ms LIMIT $2"
    (lock "FOR UPDATE SKIP LOCKED")
    ") DELETE FROM invites WHERE code_hash IN (SELECT code_hash FROM expired)"
);

/// An invite as it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Invite {
    pub(crate) code_hash: Hash,
    pub(crate) uses_left: u64,
    pub(crate) expires_ms: u64,
}

/// Adds an invite.
pub(crate) async fn add(tx: &mut Tx, invite: &Invite) -> Result<(), StoreError> {
    let code = invite.code_hash.as_bytes().as_slice();
    execute!(**tx, ADD, code, stored(invite.uses_left), stored(invite.expires_ms))?;
    Ok(())
}

/// How many invites there are, those that have expired and are not yet deleted included.
pub(crate) async fn count(conn: &mut Conn) -> Result<u64, StoreError> {
    let (count,): (i64,) = on!(*conn, db => sqlx::query_as(COUNT).fetch_one(db).await)?;
    number(count)
}

/// Uses up one use of an invite; `false` if it does not hold at `now_ms`.
pub(crate) async fn use_up(tx: &mut Tx, code_hash: &Hash, now_ms: u64) -> Result<bool, StoreError> {
    let code = code_hash.as_bytes().as_slice();
    let left: Option<(i64,)> =
        on!(**tx, db => sqlx::query_as(USE).bind(code).bind(stored(now_ms)).fetch_optional(db).await)?;
    if left == Some((0,)) {
        delete(tx, code_hash).await?;
    }
    Ok(left.is_some())
}

/// The invites that hold at `now_ms`, those that end first first.
pub(crate) async fn holding(conn: &mut Conn, now_ms: u64) -> Result<Vec<Invite>, StoreError> {
    let rows: Vec<(Vec<u8>, i64, i64)> =
        on!(*conn, db => sqlx::query_as(HOLDING).bind(stored(now_ms)).fetch_all(db).await)?;
    let invite = |(code, uses, expires): (Vec<u8>, i64, i64)| {
        Ok(Invite { code_hash: parsed(&code)?, uses_left: number(uses)?, expires_ms: number(expires)? })
    };
    rows.into_iter().map(invite).collect()
}

/// Deletes an invite; `false` if there is none.
pub(crate) async fn delete(tx: &mut Tx, code_hash: &Hash) -> Result<bool, StoreError> {
    Ok(execute!(**tx, DELETE, code_hash.as_bytes().as_slice())? == 1)
}

/// Deletes up to `batch` invites that have expired; answers how many went.
pub(crate) async fn expire(tx: &mut Tx, now_ms: u64, batch: u64) -> Result<u64, StoreError> {
    let statement = tx.words(&EXPIRE);
    Ok(execute!(**tx, statement, stored(now_ms), stored(batch))?)
}
