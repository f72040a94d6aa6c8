//! Accounts, their newest device lists, and the devices in them.
//!
//! Invariant: a row of `devices` exists exactly while the newest list of its account names the device.

use undertone_wire::{AccountId, DeviceId, Hash, PublicKey, SignedDeviceList, Username};

use super::{Conn, StoreError, Tx, hash_bytes, number, on, parsed, parsed_devices, stored};

/// Adds an account.
const ADD_ACCOUNT: &str = "INSERT INTO accounts (account_id, username) VALUES ($1, $2)";

/// Adds an account's first list.
const ADD_LIST: &str = "INSERT INTO device_lists (account_id, version, list, signature) VALUES ($1, $2, $3, $4)";

/// Replaces the list of version `$5` by the next. Changes nothing if the newest is another.
const REPLACE_LIST: &str = "
    UPDATE device_lists SET version = $2, list = $3, signature = $4 WHERE account_id = $1 AND version = $5";

/// An account by its id.
const ACCOUNT: &str = "
    SELECT a.account_id, a.username, l.version, l.list, l.signature
    FROM accounts a JOIN device_lists l ON l.account_id = a.account_id WHERE a.account_id = $1";

/// An account by its username.
const ACCOUNT_BY_USERNAME: &str = "
    SELECT a.account_id, a.username, l.version, l.list, l.signature
    FROM accounts a JOIN device_lists l ON l.account_id = a.account_id WHERE a.username = $1";

/// An account's devices in ascending order.
const DEVICES: &str = "SELECT device_id FROM devices WHERE account_id = $1 ORDER BY device_id";

/// A device.
const DEVICE: &str = "SELECT account_id, device_key, certificate_hash FROM devices WHERE device_id = $1";

/// Adds a device, or renews the keys of one that the account has. No row: another account has the device.
const PUT_DEVICE: &str = "
    INSERT INTO devices (device_id, account_id, device_key, certificate_hash) VALUES ($1, $2, $3, $4)
    ON CONFLICT (device_id) DO UPDATE SET device_key = $3, certificate_hash = $4 WHERE devices.account_id = $2
    RETURNING CAST(1 AS BIGINT)";

/// Gives a device a queue that starts at 1. One that has a queue keeps it.
const ADD_CURSOR: &str = "
    INSERT INTO cursors (device_id, next_seq, acked_seq, stream) VALUES ($1, 1, 0, 0) ON CONFLICT DO NOTHING";

/// Ends all sessions of a device.
const DELETE_SESSIONS: &str = "DELETE FROM sessions WHERE device_id = $1";

/// Deletes a device's key packages.
const DELETE_KEY_PACKAGES: &str = "DELETE FROM key_packages WHERE device_id = $1";

/// Deletes a device's cursor; its queue must be empty.
const DELETE_CURSOR: &str = "DELETE FROM cursors WHERE device_id = $1";

/// Deletes a device; nothing may point at it any more.
const DELETE_DEVICE: &str = "DELETE FROM devices WHERE device_id = $1";

/// Deletes an account's list.
const DELETE_LIST: &str = "DELETE FROM device_lists WHERE account_id = $1";

/// Deletes an account and frees its username; it must have no devices.
const DELETE_ACCOUNT: &str = "DELETE FROM accounts WHERE account_id = $1";

/// An account as it is stored.
pub(crate) struct StoredAccount {
    pub(crate) account: AccountId,
    pub(crate) username: Option<Username>,
    pub(crate) version: u64,
    pub(crate) list: SignedDeviceList,
}

/// A device as it is stored.
pub(crate) struct StoredDevice {
    pub(crate) account: AccountId,
    pub(crate) device_key: PublicKey,
    pub(crate) certificate_hash: Hash,
}

type AccountRow = (Vec<u8>, Option<String>, i64, Vec<u8>, Vec<u8>);

/// Adds an account with its first list; account and username must be free.
pub(crate) async fn add(
    tx: &mut Tx,
    account: &AccountId,
    username: Option<&Username>,
    version: u64,
    list: &SignedDeviceList,
) -> Result<(), StoreError> {
    let (account, username) = (account.as_bytes().as_slice(), username.map(Username::as_str));
    let (bytes, signature) = (list.list.as_slice(), list.signature.as_bytes().as_slice());
    on!(**tx, db => {
        sqlx::query(ADD_ACCOUNT).bind(account).bind(username).execute(&mut *db).await?;
        sqlx::query(ADD_LIST).bind(account).bind(stored(version)).bind(bytes).bind(signature).execute(db).await
    })?;
    Ok(())
}

/// Replaces the list of version `next - 1` by `list`; `false` if the newest is another.
pub(crate) async fn replace_list(
    tx: &mut Tx,
    account: &AccountId,
    next: u64,
    list: &SignedDeviceList,
) -> Result<bool, StoreError> {
    let (bytes, signature) = (list.list.as_slice(), list.signature.as_bytes().as_slice());
    let replaced = on!(**tx, db => sqlx::query(REPLACE_LIST)
        .bind(account.as_bytes().as_slice()).bind(stored(next)).bind(bytes).bind(signature)
        .bind(stored(next.saturating_sub(1))).execute(db).await.map(|done| done.rows_affected()))?;
    Ok(replaced == 1)
}

/// An account by its id.
pub(crate) async fn by_id(conn: &mut Conn, account: &AccountId) -> Result<Option<StoredAccount>, StoreError> {
    let account = account.as_bytes().as_slice();
    let row = on!(*conn, db => sqlx::query_as(ACCOUNT).bind(account).fetch_optional(db).await)?;
    row.map(stored_account).transpose()
}

/// An account by its username.
pub(crate) async fn by_username(conn: &mut Conn, username: &Username) -> Result<Option<StoredAccount>, StoreError> {
    let username = username.as_str();
    let row = on!(*conn, db => sqlx::query_as(ACCOUNT_BY_USERNAME).bind(username).fetch_optional(db).await)?;
    row.map(stored_account).transpose()
}

fn stored_account((account, username, version, list, signature): AccountRow) -> Result<StoredAccount, StoreError> {
    let username = username.map(|name| name.parse()).transpose().map_err(|_| StoreError::Corrupt("a username"))?;
    let list = SignedDeviceList { list: list.into(), signature: parsed(&signature)? };
    Ok(StoredAccount { account: parsed(&account)?, username, version: number(version)?, list })
}

/// An account's devices in ascending order.
pub(crate) async fn devices(conn: &mut Conn, account: &AccountId) -> Result<Vec<DeviceId>, StoreError> {
    let account = account.as_bytes().as_slice();
    parsed_devices(on!(*conn, db => sqlx::query_as(DEVICES).bind(account).fetch_all(db).await)?)
}

/// A device, if it is listed.
pub(crate) async fn device(conn: &mut Conn, device: &DeviceId) -> Result<Option<StoredDevice>, StoreError> {
    let device = device.as_bytes().as_slice();
    let row: Option<(Vec<u8>, Vec<u8>, Vec<u8>)> =
        on!(*conn, db => sqlx::query_as(DEVICE).bind(device).fetch_optional(db).await)?;
    row.map(|(account, device_key, certificate_hash)| {
        Ok(StoredDevice {
            account: parsed(&account)?,
            device_key: parsed(&device_key)?,
            certificate_hash: parsed(&certificate_hash)?,
        })
    })
    .transpose()
}

/// Adds a device with an empty queue, or renews the keys of one that the account has. `false` if another account has it.
pub(crate) async fn put_device(tx: &mut Tx, id: &DeviceId, device: &StoredDevice) -> Result<bool, StoreError> {
    let (id, account) = (id.as_bytes().as_slice(), device.account.as_bytes().as_slice());
    let (key, certificate) = (device.device_key.as_bytes().as_slice(), hash_bytes(&device.certificate_hash));
    let put: Option<(i64,)> = on!(**tx, db => sqlx::query_as(PUT_DEVICE)
        .bind(id).bind(account).bind(key).bind(certificate).fetch_optional(db).await)?;
    if put.is_none() {
        return Ok(false);
    }
    on!(**tx, db => sqlx::query(ADD_CURSOR).bind(id).execute(db).await)?;
    Ok(true)
}

/// Deletes a device with its sessions, key packages and cursor. Its queue and memberships must have ended before.
pub(crate) async fn delete_device(tx: &mut Tx, device: &DeviceId) -> Result<(), StoreError> {
    let device = device.as_bytes().as_slice();
    for statement in [DELETE_SESSIONS, DELETE_KEY_PACKAGES, DELETE_CURSOR, DELETE_DEVICE] {
        on!(**tx, db => sqlx::query(statement).bind(device).execute(db).await)?;
    }
    Ok(())
}

/// Ends all sessions of a device.
pub(crate) async fn end_sessions(tx: &mut Tx, device: &DeviceId) -> Result<(), StoreError> {
    on!(**tx, db => sqlx::query(DELETE_SESSIONS).bind(device.as_bytes().as_slice()).execute(db).await)?;
    Ok(())
}

/// Deletes all key packages of a device.
pub(crate) async fn delete_key_packages(tx: &mut Tx, device: &DeviceId) -> Result<(), StoreError> {
    on!(**tx, db => sqlx::query(DELETE_KEY_PACKAGES).bind(device.as_bytes().as_slice()).execute(db).await)?;
    Ok(())
}

/// Deletes an account that has no devices any more.
pub(crate) async fn delete(tx: &mut Tx, account: &AccountId) -> Result<(), StoreError> {
    let account = account.as_bytes().as_slice();
    for statement in [DELETE_LIST, DELETE_ACCOUNT] {
        on!(**tx, db => sqlx::query(statement).bind(account).execute(db).await)?;
    }
    Ok(())
}
