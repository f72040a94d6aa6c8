//! Keys that are handed out, by device and suite: key packages, and under suites of their own prekeys and sealing keys.
//! They have one table, `key_packages`; what is said of key packages here holds for all.
//!
//! Invariant: handing out a one-time key package spends it in the same transaction: its bytes go, its row stays, so that
//! none is handed out twice, published again or not. Only those of the store's present incarnation are handed out: after
//! a restore it is not known which went out before.

use std::collections::BTreeSet;

use undertone_wire::{DeviceId, Hash, KeyPackageCount};

use super::{
    Conn, StoreError, Tx,
    bulk::{Pair, Rows, pair},
    execute, number, on, parsed, stored,
};

/// Adds a device's key packages, ascending. One that is there already stays as it is, spent if it was.
const ADD: Pair = pair!(
    "INSERT INTO key_packages (hash_ref, device_id, suite, last_resort, not_after_ms, incarnation, key_package)
     SELECT hash_ref, device_id, suite, last_resort, not_after_ms, relay.incarnation, key_package FROM "
    (rows hash_ref bytes, device_id bytes, suite number, last_resort number, not_after_ms number, key_package bytes)
    ", relay ORDER BY hash_ref ON CONFLICT (hash_ref) DO NOTHING"
);

/// Deletes a device's last-resort key packages of a suite but the one whose hash is `$3`.
const DELETE_OTHER_LAST_RESORT: &str = "
    DELETE FROM key_packages WHERE device_id = $1 AND suite = $2 AND last_resort = 1 AND hash_ref <> $3";

/// The one-time key package to be handed out next: of those that live beyond `$3`, the one that ends first. One that
/// another transaction is just handing out is passed over. No row: there is none, or others have them all in hand.
const NEXT_ONE_TIME: Pair = pair!(
    "SELECT hash_ref, key_package FROM key_packages
     WHERE device_id = $1 AND suite = $2 AND last_resort = 0 AND not_after_ms >= $3 AND key_package IS NOT NULL
           AND incarnation = (SELECT incarnation FROM relay)
     ORDER BY not_after_ms, hash_ref LIMIT 1"
    (lock "FOR UPDATE SKIP LOCKED")
);

/// How many of them there are, those included that others have in hand.
const ONE_TIME_LEFT: &str = "
    SELECT COUNT(*) FROM key_packages
    WHERE device_id = $1 AND suite = $2 AND last_resort = 0 AND not_after_ms >= $3 AND key_package IS NOT NULL
          AND incarnation = (SELECT incarnation FROM relay)";

/// Spends a key package. Changes nothing the second time.
const SPEND: &str = "UPDATE key_packages SET key_package = NULL WHERE hash_ref = $1 AND key_package IS NOT NULL";

/// Spends a device's one-time key packages of other incarnations than the store's.
const SPEND_STALE: &str = "
    UPDATE key_packages SET key_package = NULL
    WHERE device_id = $1 AND last_resort = 0 AND key_package IS NOT NULL
          AND incarnation <> (SELECT incarnation FROM relay)";

/// A device's key packages that are not spent, with whether they could be handed out at `$2`.
const UNSPENT: &str = "
    SELECT hash_ref, CAST(CASE WHEN not_after_ms >= $2 AND
        (last_resort = 1 OR incarnation = (SELECT incarnation FROM relay)) THEN 1 ELSE 0 END AS BIGINT)
    FROM key_packages WHERE device_id = $1 AND key_package IS NOT NULL";

/// Spends key packages.
const SPEND_MANY: Pair = pair!(
    "UPDATE key_packages SET key_package = NULL WHERE key_package IS NOT NULL AND hash_ref IN " ids
);

/// The last-resort key package, if it lives beyond `$3`.
const LAST_RESORT: &str = "
    SELECT key_package FROM key_packages
    WHERE device_id = $1 AND suite = $2 AND last_resort = 1 AND not_after_ms >= $3
          AND key_package IS NOT NULL LIMIT 1";

/// How many of each suite can be handed out, by suite.
const COUNTS: &str = "
    SELECT suite,
           CAST(SUM(CASE WHEN last_resort = 0 AND incarnation = (SELECT incarnation FROM relay)
                    THEN 1 ELSE 0 END) AS BIGINT),
           CAST(SUM(CASE WHEN last_resort = 1 THEN 1 ELSE 0 END) AS BIGINT)
    FROM key_packages WHERE device_id = $1 AND not_after_ms >= $2 AND key_package IS NOT NULL
    GROUP BY suite ORDER BY suite";

/// How many one-time key packages of a suite are stored and not spent, those included whose time is almost over.
const STORED_ONE_TIME: &str = "
    SELECT COUNT(*) FROM key_packages
    WHERE device_id = $1 AND suite = $2 AND last_resort = 0 AND key_package IS NOT NULL";

/// Deletes up to `$2` key packages that can no longer be handed out nor published, spent or not: their life ends before
/// `$1`. One that others have in hand is passed over.
const EXPIRE: Pair = pair!(
    "WITH expired AS MATERIALIZED (
         SELECT hash_ref FROM key_packages WHERE not_after_ms < $1 ORDER BY not_after_ms LIMIT $2"
    (lock "FOR UPDATE SKIP LOCKED")
    ") DELETE FROM key_packages WHERE hash_ref IN (SELECT hash_ref FROM expired)"
);

/// A key to be stored.
pub(crate) struct NewKey {
    pub(crate) hash_ref: Hash,
    pub(crate) suite: u16,
    pub(crate) last_resort: bool,
    pub(crate) not_after_ms: u64,
    pub(crate) bytes: Vec<u8>,
}

/// Stores a device's key packages under the store's present incarnation. A last-resort one replaces the one before it.
pub(crate) async fn add(tx: &mut Tx, device: &DeviceId, keys: &[NewKey]) -> Result<(), StoreError> {
    let rows = Rows::of(keys.iter().map(|key| &key.hash_ref))
        .bytes(keys.iter().map(|_| device))
        .numbers(keys.iter().map(|key| i64::from(key.suite)))
        .numbers(keys.iter().map(|key| i64::from(key.last_resort)))
        .numbers(keys.iter().map(|key| stored(key.not_after_ms)))
        .bytes(keys.iter().map(|key| key.bytes.as_slice()));
    tx.execute(&ADD, rows).await?;
    for key in keys.iter().filter(|key| key.last_resort) {
        let (device, suite) = (device.as_bytes().as_slice(), i64::from(key.suite));
        execute!(**tx, DELETE_OTHER_LAST_RESORT, device, suite, key.hash_ref.as_bytes().as_slice())?;
    }
    Ok(())
}

/// Takes one one-time key package that lives at least until `lives_until_ms`; each is given once. `None` if there is none,
/// or if others have just taken what there is and may yet give it back.
pub(crate) async fn take_one_time(
    tx: &mut Tx,
    device: &DeviceId,
    suite: u16,
    lives_until_ms: u64,
) -> Result<Option<Vec<u8>>, StoreError> {
    let statement = tx.words(&NEXT_ONE_TIME);
    let next: Option<(Vec<u8>, Vec<u8>)> = on!(**tx, db => sqlx::query_as(statement)
        .bind(device.as_bytes().as_slice()).bind(i64::from(suite)).bind(stored(lives_until_ms))
        .fetch_optional(db).await)?;
    let Some((hash_ref, key_package)) = next else { return Ok(None) };
    execute!(**tx, SPEND, hash_ref)?;
    Ok(Some(key_package))
}

/// How many one-time key packages can be handed out, those included that others have in hand.
pub(crate) async fn one_time_left(
    conn: &mut Conn,
    device: &DeviceId,
    suite: u16,
    lives_until_ms: u64,
) -> Result<u64, StoreError> {
    let (count,): (i64,) = on!(*conn, db => sqlx::query_as(ONE_TIME_LEFT)
        .bind(device.as_bytes().as_slice()).bind(i64::from(suite)).bind(stored(lives_until_ms))
        .fetch_one(db).await)?;
    number(count)
}

/// Spends a device's one-time key packages of earlier incarnations: they may have been handed out before.
pub(crate) async fn spend_stale(tx: &mut Tx, device: &DeviceId) -> Result<(), StoreError> {
    execute!(**tx, SPEND_STALE, device.as_bytes().as_slice())?;
    Ok(())
}

/// Spends those of a device's key packages that it does not name; answers which of those it names can be handed out,
/// ascending.
pub(crate) async fn reconcile(
    tx: &mut Tx,
    device: &DeviceId,
    held: &BTreeSet<Hash>,
    lives_until_ms: u64,
) -> Result<Vec<Hash>, StoreError> {
    let unspent: Vec<(Vec<u8>, i64)> = on!(**tx, db => sqlx::query_as(UNSPENT)
        .bind(device.as_bytes().as_slice()).bind(stored(lives_until_ms)).fetch_all(db).await)?;
    let (mut available, mut unknown) = (Vec::new(), BTreeSet::new());
    for (hash_ref, can_be_handed_out) in unspent {
        let hash_ref: Hash = parsed(&hash_ref)?;
        match held.contains(&hash_ref) {
            false => drop(unknown.insert(hash_ref)),
            true if can_be_handed_out == 1 => available.push(hash_ref),
            true => {}
        }
    }
    tx.execute(&SPEND_MANY, Rows::of(&unknown)).await?;
    available.sort_unstable();
    Ok(available)
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
    lives_until_ms: u64,
) -> Result<Vec<KeyPackageCount>, StoreError> {
    let rows: Vec<(i64, i64, i64)> = on!(*conn, db => sqlx::query_as(COUNTS)
        .bind(device.as_bytes().as_slice()).bind(stored(lives_until_ms))
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
    let (statement, until, batch) = (tx.words(&EXPIRE), stored(lives_until_ms), stored(batch));
    Ok(execute!(**tx, statement, until, batch)?)
}
