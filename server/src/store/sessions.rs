//! Challenges and sessions.
//!
//! Invariant: a session exists only while its device is listed, because both go in one transaction. So "the session
//! holds" is all that a statement needs to ask. Tokens are known by their hashes only.

use std::collections::HashMap;

use undertone_wire::{AccountId, DeviceId, Hash, Nonce};

use super::{
    Conn, StoreError, Tx,
    bulk::{Pair, Rows, pair},
    execute, on, parsed, stored,
};

/// Adds a challenge.
const ADD_CHALLENGE: &str = "INSERT INTO challenges (nonce, expires_ms) VALUES ($1, $2)";

/// Uses a challenge up. No row: there is none, it was used before, or it has expired.
const TAKE_CHALLENGE: &str = "DELETE FROM challenges WHERE nonce = $1 AND expires_ms > $2 RETURNING CAST(1 AS BIGINT)";

/// Adds a session.
const ADD_SESSION: &str = "INSERT INTO sessions (token_hash, device_id, expires_ms) VALUES ($1, $2, $3)";

/// Ends a device's sessions but the newest `$2`, of which `$3` is the first.
const END_OLDEST: &str = "
    DELETE FROM sessions WHERE device_id = $1 AND token_hash NOT IN (
        SELECT token_hash FROM sessions WHERE device_id = $1 ORDER BY token_hash = $3 DESC, expires_ms DESC LIMIT $2
    )";

/// Ends one session. The second time it changes nothing.
const END: &str = "DELETE FROM sessions WHERE token_hash = $1";

/// Whose session this is. No row: it does not hold.
const HOLDER: &str = "
    SELECT s.device_id, d.account_id FROM sessions s JOIN devices d ON d.device_id = s.device_id
    WHERE s.token_hash = $1 AND s.expires_ms > $2";

/// Whose sessions these are, of those that hold.
const HOLDERS: Pair = pair!(
    "SELECT s.token_hash, s.device_id, d.account_id
     FROM " (rows token_hash bytes, now_ms number)
    " JOIN sessions s ON s.token_hash = rows.token_hash JOIN devices d ON d.device_id = s.device_id
     WHERE s.expires_ms > rows.now_ms"
);

/// Deletes up to `$2` challenges that expired by `$1`. One that others have in hand is passed over.
const EXPIRE_CHALLENGES: Pair = pair!(
    "WITH expired AS MATERIALIZED (
         SELECT nonce FROM challenges WHERE expires_ms <= $1 ORDER BY expires_ms LIMIT $2"
    (lock "FOR UPDATE SKIP LOCKED")
    ") DELETE FROM challenges WHERE nonce IN (SELECT nonce FROM expired)"
);

/// Deletes up to `$2` sessions that expired by `$1`. One that others have in hand is passed over.
const EXPIRE_SESSIONS: Pair = pair!(
    "WITH expired AS MATERIALIZED (
         SELECT token_hash FROM sessions WHERE expires_ms <= $1 ORDER BY expires_ms LIMIT $2"
    (lock "FOR UPDATE SKIP LOCKED")
    ") DELETE FROM sessions WHERE token_hash IN (SELECT token_hash FROM expired)"
);

/// Adds a challenge that lives until `expires_ms`.
pub(crate) async fn add_challenge(tx: &mut Tx, nonce: &Nonce, expires_ms: u64) -> Result<(), StoreError> {
    let nonce = nonce.as_bytes().as_slice();
    execute!(**tx, ADD_CHALLENGE, nonce, stored(expires_ms))?;
    Ok(())
}

/// Uses a challenge up; `false` if there is none that lives.
pub(crate) async fn take_challenge(tx: &mut Tx, nonce: &Nonce, now_ms: u64) -> Result<bool, StoreError> {
    let nonce = nonce.as_bytes().as_slice();
    let row: Option<(i64,)> =
        on!(**tx, db => sqlx::query_as(TAKE_CHALLENGE).bind(nonce).bind(stored(now_ms)).fetch_optional(db).await)?;
    Ok(row.is_some())
}

/// Adds a session and ends the device's oldest beyond `keep`.
pub(crate) async fn add(
    tx: &mut Tx,
    token_hash: &Hash,
    device: &DeviceId,
    expires_ms: u64,
    keep: u64,
) -> Result<(), StoreError> {
    let (token, device) = (token_hash.as_bytes().as_slice(), device.as_bytes().as_slice());
    execute!(**tx, ADD_SESSION, token, device, stored(expires_ms))?;
    execute!(**tx, END_OLDEST, device, stored(keep), token)?;
    Ok(())
}

/// Ends a session.
pub(crate) async fn end(tx: &mut Tx, token_hash: &Hash) -> Result<(), StoreError> {
    execute!(**tx, END, token_hash.as_bytes().as_slice())?;
    Ok(())
}

/// Whose session a token is; `None` if it does not hold at `now_ms`.
pub(crate) async fn holder(
    conn: &mut Conn,
    token_hash: &Hash,
    now_ms: u64,
) -> Result<Option<(DeviceId, AccountId)>, StoreError> {
    let token = token_hash.as_bytes().as_slice();
    let row: Option<(Vec<u8>, Vec<u8>)> =
        on!(*conn, db => sqlx::query_as(HOLDER).bind(token).bind(stored(now_ms)).fetch_optional(db).await)?;
    row.map(|(device, account)| Ok((parsed(&device)?, parsed(&account)?))).transpose()
}

/// Whose sessions these tokens are, of those that hold at `now_ms`. It locks nothing: on Postgres a locked row keeps the
/// number of the transaction that locked it, and would tell who sent what the transaction wrote. That a device stays
/// listed until the transaction ends is had by locking, before this, something else that unlisting locks as well: the
/// group, the account's list, or the device where it is the owner of what is written.
pub(crate) async fn holders(
    tx: &mut Tx,
    token_hashes: &[Hash],
    now_ms: u64,
) -> Result<HashMap<Hash, (DeviceId, AccountId)>, StoreError> {
    let now = token_hashes.iter().map(|_| stored(now_ms));
    let rows = Rows::of(token_hashes).numbers(now);
    let rows: Vec<(Vec<u8>, Vec<u8>, Vec<u8>)> = tx.select(&HOLDERS, rows).await?;
    rows.iter().map(|(token, device, account)| Ok((parsed(token)?, (parsed(device)?, parsed(account)?)))).collect()
}

/// Deletes up to `batch` challenges and as many sessions that have expired; answers how many went.
pub(crate) async fn expire(tx: &mut Tx, now_ms: u64, batch: u64) -> Result<u64, StoreError> {
    let (now, batch) = (stored(now_ms), stored(batch));
    let (challenges, sessions) = (tx.words(&EXPIRE_CHALLENGES), tx.words(&EXPIRE_SESSIONS));
    Ok(execute!(**tx, challenges, now, batch)? + execute!(**tx, sessions, now, batch)?)
}
