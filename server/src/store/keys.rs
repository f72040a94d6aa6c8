//! Key packages, by device and suite.
//!
//! Invariant: handing out a one-time key package spends it in the same transaction: its bytes go, its row stays, so that
//! none is handed out twice, published again or not. Only those of the store's present incarnation are handed out: after
//! a restore it is not known which went out before.

use undertone_wire::{DeviceId, Hash, Incarnation, KeyPackageCount};

use super::{Conn, StoreError, Tx, hash_bytes, number, on, stored};

/// Adds a key package. One that is there already stays as it is, spent if it was.
const ADD: &str = "
    INSERT INTO key_packages (hash_ref, device_id, suite, last_resort, not_after_ms, incarnation, key_package)
    VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (hash_ref) DO NOTHING";

/// Deletes a device's last-resort key packages of a suite but the one whose hash is `$3`.
const DELETE_OTHER_LAST_RESORT: &str = "
    DELETE FROM key_packages WHERE device_id = $1 AND suite = $2 AND last_resort = 1 AND hash_ref <> $3";

/// The one-time key package to be handed out next: of those that live beyond `$3`, the one that ends first. No row: there
/// is none. A database with several writers must lock the row.
const NEXT_ONE_TIME: &str = "
    SELECT hash_ref, key_package FROM key_packages
    WHERE device_id = $1 AND suite = $2 AND last_resort = 0 AND not_after_ms >= $3 AND incarnation = $4
          AND key_package IS NOT NULL
    ORDER BY not_after_ms, hash_ref LIMIT 1";

/// Spends a key package. Changes nothing the second time.
const SPEND: &str = "UPDATE key_packages SET key_package = NULL WHERE hash_ref = $1 AND key_package IS NOT NULL";

/// Spends a device's one-time key packages of other incarnations than `$2`.
const SPEND_STALE: &str = "
    UPDATE key_packages SET key_package = NULL
    WHERE device_id = $1 AND last_resort = 0 AND incarnation <> $2 AND key_package IS NOT NULL";

/// The last-resort key package, if it lives beyond `$3`.
const LAST_RESORT: &str = "
    SELECT key_package FROM key_packages
    WHERE device_id = $1 AND suite = $2 AND last_resort = 1 AND not_after_ms >= $3
          AND key_package IS NOT NULL LIMIT 1";

/// How many of each suite can be handed out, by suite.
const COUNTS: &str = "
    SELECT suite,
           CAST(SUM(CASE WHEN last_resort = 0 AND incarnation = $3 THEN 1 ELSE 0 END) AS BIGINT),
           CAST(SUM(CASE WHEN last_resort = 1 THEN 1 ELSE 0 END) AS BIGINT)
    FROM key_packages WHERE device_id = $1 AND not_after_ms >= $2 AND key_package IS NOT NULL
    GROUP BY suite ORDER BY suite";

/// How many one-time key packages of a suite are stored and not spent, those included whose time is almost over.
const STORED_ONE_TIME: &str = "
    SELECT COUNT(*) FROM key_packages
    WHERE device_id = $1 AND suite = $2 AND last_resort = 0 AND key_package IS NOT NULL";

/// Deletes up to `$2` key packages that can no longer be handed out nor published, spent or not: their life ends before
/// `$1`.
const EXPIRE: &str = "
    DELETE FROM key_packages WHERE hash_ref IN (
        SELECT hash_ref FROM key_packages WHERE not_after_ms < $1 ORDER BY not_after_ms LIMIT $2
    )";

/// A key package to be stored.
pub(crate) struct NewKeyPackage {
    pub(crate) hash_ref: Hash,
    pub(crate) suite: u16,
    pub(crate) last_resort: bool,
    pub(crate) not_after_ms: u64,
    pub(crate) bytes: Vec<u8>,
}

/// Stores a device's key package. A last-resort one replaces the one before it.
pub(crate) async fn add(
    tx: &mut Tx,
    device: &DeviceId,
    incarnation: &Incarnation,
    key: &NewKeyPackage,
) -> Result<(), StoreError> {
    let (device, suite, hash_ref) = (device.as_bytes().as_slice(), i64::from(key.suite), hash_bytes(&key.hash_ref));
    on!(**tx, db => sqlx::query(ADD)
        .bind(hash_ref).bind(device).bind(suite).bind(i64::from(key.last_resort)).bind(stored(key.not_after_ms))
        .bind(incarnation.as_bytes().as_slice()).bind(key.bytes.as_slice()).execute(db).await)?;
    if key.last_resort {
        on!(**tx, db => sqlx::query(DELETE_OTHER_LAST_RESORT)
            .bind(device).bind(suite).bind(hash_ref).execute(db).await)?;
    }
    Ok(())
}

/// Takes one one-time key package that lives at least until `lives_until_ms`; each is given once.
pub(crate) async fn take_one_time(
    tx: &mut Tx,
    device: &DeviceId,
    incarnation: &Incarnation,
    suite: u16,
    lives_until_ms: u64,
) -> Result<Option<Vec<u8>>, StoreError> {
    let next: Option<(Vec<u8>, Vec<u8>)> = on!(**tx, db => sqlx::query_as(NEXT_ONE_TIME)
        .bind(device.as_bytes().as_slice()).bind(i64::from(suite)).bind(stored(lives_until_ms))
        .bind(incarnation.as_bytes().as_slice()).fetch_optional(db).await)?;
    let Some((hash_ref, key_package)) = next else { return Ok(None) };
    on!(**tx, db => sqlx::query(SPEND).bind(hash_ref).execute(db).await)?;
    Ok(Some(key_package))
}

/// Spends a device's one-time key packages of earlier lives of the store: they may have been handed out before.
pub(crate) async fn spend_stale(tx: &mut Tx, device: &DeviceId, incarnation: &Incarnation) -> Result<(), StoreError> {
    let (device, incarnation) = (device.as_bytes().as_slice(), incarnation.as_bytes().as_slice());
    on!(**tx, db => sqlx::query(SPEND_STALE).bind(device).bind(incarnation).execute(db).await)?;
    Ok(())
}

/// The last-resort key package, if it lives at least until `lives_until_ms`.
pub(crate) async fn last_resort(
    conn: &mut Conn,
    device: &DeviceId,
    suite: u16,
    lives_until_ms: u64,
) -> Result<Option<Vec<u8>>, StoreError> {
    let row: Option<(Vec<u8>,)> = on!(*conn, db => sqlx::query_as(LAST_RESORT)
        .bind(device.as_bytes().as_slice()).bind(i64::from(suite)).bind(stored(lives_until_ms))
        .fetch_optional(db).await)?;
    Ok(row.map(|(key_package,)| key_package))
}

/// How many key packages of each suite can be handed out.
pub(crate) async fn counts(
    conn: &mut Conn,
    device: &DeviceId,
    incarnation: &Incarnation,
    lives_until_ms: u64,
) -> Result<Vec<KeyPackageCount>, StoreError> {
    let rows: Vec<(i64, i64, i64)> = on!(*conn, db => sqlx::query_as(COUNTS)
        .bind(device.as_bytes().as_slice()).bind(stored(lives_until_ms)).bind(incarnation.as_bytes().as_slice())
        .fetch_all(db).await)?;
    rows.into_iter()
        .map(|(suite, one_time, last_resort)| {
            let suite = u16::try_from(suite).map_err(|_| StoreError::Corrupt("a cipher suite"))?;
            Ok(KeyPackageCount { suite, one_time: number(one_time)?, last_resort: last_resort > 0 })
        })
        .collect()
}

/// How many one-time key packages of a suite are stored and not spent.
pub(crate) async fn stored_one_time(conn: &mut Conn, device: &DeviceId, suite: u16) -> Result<u64, StoreError> {
    let device = device.as_bytes().as_slice();
    let (count,): (i64,) =
        on!(*conn, db => sqlx::query_as(STORED_ONE_TIME).bind(device).bind(i64::from(suite)).fetch_one(db).await)?;
    number(count)
}

/// Deletes up to `batch` key packages whose life ends before `lives_until_ms`; answers how many went.
pub(crate) async fn expire(tx: &mut Tx, lives_until_ms: u64, batch: u64) -> Result<u64, StoreError> {
    let (until, batch) = (stored(lives_until_ms), stored(batch));
    let done =
        on!(**tx, db => sqlx::query(EXPIRE).bind(until).bind(batch).execute(db).await.map(|d| d.rows_affected()));
    Ok(done?)
}
