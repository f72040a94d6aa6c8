//! Challenges and sessions.
//!
//! Invariant: a session exists only while its device is listed, because both go in one transaction. So "the session
//! holds" is all that a statement needs to ask. Tokens are known by their hashes only.

use undertone_wire::{AccountId, DeviceId, Hash, Nonce};

use super::{Conn, StoreError, Tx, hash_bytes, on, parsed, stored};

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

/// Deletes up to `$2` challenges that expired by `$1`.
const EXPIRE_CHALLENGES: &str = "
    DELETE FROM challenges WHERE nonce IN (
        SELECT nonce FROM challenges WHERE expires_ms <= $1 ORDER BY expires_ms LIMIT $2
    )";

/// Deletes up to `$2` sessions that expired by `$1`.
const EXPIRE_SESSIONS: &str = "
    DELETE FROM sessions WHERE token_hash IN (
        SELECT token_hash FROM sessions WHERE expires_ms <= $1 ORDER BY expires_ms LIMIT $2
    )";

/// Adds a challenge that lives until `expires_ms`.
pub(crate) async fn add_challenge(tx: &mut Tx, nonce: &Nonce, expires_ms: u64) -> Result<(), StoreError> {
    let nonce = nonce.as_bytes().as_slice();
    on!(**tx, db => sqlx::query(ADD_CHALLENGE).bind(nonce).bind(stored(expires_ms)).execute(db).await)?;
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
    let (token, device) = (hash_bytes(token_hash), device.as_bytes().as_slice());
    on!(**tx, db => {
        sqlx::query(ADD_SESSION).bind(token).bind(device).bind(stored(expires_ms)).execute(&mut *db).await?;
        sqlx::query(END_OLDEST).bind(device).bind(stored(keep)).bind(token).execute(db).await
    })?;
    Ok(())
}

/// Ends a session.
pub(crate) async fn end(tx: &mut Tx, token_hash: &Hash) -> Result<(), StoreError> {
    on!(**tx, db => sqlx::query(END).bind(hash_bytes(token_hash)).execute(db).await)?;
    Ok(())
}

/// Whose session a token is; `None` if it does not hold at `now_ms`.
pub(crate) async fn holder(
    conn: &mut Conn,
    token_hash: &Hash,
    now_ms: u64,
) -> Result<Option<(DeviceId, AccountId)>, StoreError> {
    let token = hash_bytes(token_hash);
    let row: Option<(Vec<u8>, Vec<u8>)> =
        on!(*conn, db => sqlx::query_as(HOLDER).bind(token).bind(stored(now_ms)).fetch_optional(db).await)?;
    row.map(|(device, account)| Ok((parsed(&device)?, parsed(&account)?))).transpose()
}

/// Deletes up to `batch` challenges and as many sessions that have expired; answers how many went.
pub(crate) async fn expire(tx: &mut Tx, now_ms: u64, batch: u64) -> Result<u64, StoreError> {
    let (now, batch) = (stored(now_ms), stored(batch));
    on!(**tx, db => {
        let challenges = sqlx::query(EXPIRE_CHALLENGES).bind(now).bind(batch).execute(&mut *db).await?;
        let sessions = sqlx::query(EXPIRE_SESSIONS).bind(now).bind(batch).execute(db).await?;
        Ok(challenges.rows_affected() + sessions.rows_affected())
    })
}
