//! Accounts, their newest device lists, and the devices in them.
//!
//! Invariant: a row of `devices` exists exactly while the newest list of its account names the device.

use std::collections::{BTreeMap, BTreeSet};

use undertone_wire::{Account, AccountId, DeviceId, Hash, PublicKey, SignedDeviceList, Username, suite};

use super::{
    Conn, StoreError, Tx,
    bulk::{Pair, Rows, pair},
    execute, number, on, parsed, parsed_devices, stored,
};

/// Adds an account. Changes nothing if it is there or its username is another's; one that is just being added is waited
/// for.
const ADD_ACCOUNT: &str = "INSERT INTO accounts (account_id, username) VALUES ($1, $2) ON CONFLICT DO NOTHING";

/// 1 if there is an account, else 0.
const ANY: &str = "SELECT COUNT(*) FROM (SELECT 1 FROM accounts LIMIT 1) AS one";

/// Adds an account's first list.
const ADD_LIST: &str = "INSERT INTO device_lists (account_id, version, list, signature) VALUES ($1, $2, $3, $4)";

/// Replaces the list of version `$5` by the next. Changes nothing if the newest is another.
const REPLACE_LIST: &str = "
    UPDATE device_lists SET version = $2, list = $3, signature = $4 WHERE account_id = $1 AND version = $5";

/// Locks the lists of these accounts; answers which have one.
const LOCK_LISTS: Pair =
    pair!("SELECT account_id FROM device_lists WHERE account_id IN " ids " ORDER BY account_id" (lock "FOR UPDATE"));

/// The devices of accounts, in ascending order.
const DEVICES_OF: Pair =
    pair!("SELECT account_id, device_id FROM devices WHERE account_id IN " ids " ORDER BY device_id");

/// Locks those of the given devices that are listed, and answers them.
const LOCK_DEVICES: Pair =
    pair!("SELECT device_id FROM devices WHERE device_id IN " ids " ORDER BY device_id" (lock "FOR UPDATE"));

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

/// Deletes a device's keys of all suites.
const DELETE_KEYS: &str = "DELETE FROM key_packages WHERE device_id = $1";

/// Deletes those of suites up to `$2`.
const DELETE_KEYS_UP_TO: &str = "DELETE FROM key_packages WHERE device_id = $1 AND suite <= $2";

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

impl From<StoredAccount> for Account {
    fn from(stored: StoredAccount) -> Self {
        Self { account_id: stored.account, username: stored.username, device_list: stored.list }
    }
}

type AccountRow = (Vec<u8>, Option<String>, i64, Vec<u8>, Vec<u8>);

/// Adds an account with its first list; `false` if the account is there, or its username is another's.
pub(crate) async fn add(
    tx: &mut Tx,
    account: &AccountId,
    username: Option<&Username>,
    version: u64,
    list: &SignedDeviceList,
) -> Result<bool, StoreError> {
    let (account, username) = (account.as_bytes().as_slice(), username.map(Username::as_str));
    let (bytes, signature) = (list.list.as_slice(), list.signature.as_bytes().as_slice());
    if execute!(**tx, ADD_ACCOUNT, account, username)? == 0 {
        return Ok(false);
    }
    execute!(**tx, ADD_LIST, account, stored(version), bytes, signature)?;
    Ok(true)
}

/// Whether there is an account.
pub(crate) async fn any(conn: &mut Conn) -> Result<bool, StoreError> {
    let (count,): (i64,) = on!(*conn, db => sqlx::query_as(ANY).fetch_one(db).await)?;
    Ok(count != 0)
}

/// Locks the lists of accounts, so that nobody is listed or unlisted until the transaction ends; answers the devices in
/// them. Accounts that do not exist are left out, and so are those that came after the lock.
pub(crate) async fn lock_lists(
    tx: &mut Tx,
    accounts: &BTreeSet<AccountId>,
) -> Result<BTreeMap<AccountId, Vec<DeviceId>>, StoreError> {
    let locked: Vec<(Vec<u8>,)> = tx.select(&LOCK_LISTS, Rows::of(accounts)).await?;
    let mut devices = BTreeMap::<AccountId, Vec<DeviceId>>::new();
    for (account,) in locked {
        devices.insert(parsed(&account)?, Vec::new());
    }
    let rows: Vec<(Vec<u8>, Vec<u8>)> = tx.select(&DEVICES_OF, Rows::of(accounts)).await?;
    for (account, device) in rows {
        if let Some(listed) = devices.get_mut(&parsed(&account)?) {
            listed.push(parsed(&device)?);
        }
    }
    Ok(devices)
}

/// Locks devices, so that they stay listed until the transaction ends; answers those that are.
pub(crate) async fn lock_devices(tx: &mut Tx, devices: &BTreeSet<DeviceId>) -> Result<BTreeSet<DeviceId>, StoreError> {
    let rows = tx.select(&LOCK_DEVICES, Rows::of(devices)).await?;
    Ok(parsed_devices(rows)?.into_iter().collect())
}

/// Replaces the list of version `next - 1` by `list`; `false` if the newest is another.
pub(crate) async fn replace_list(
    tx: &mut Tx,
    account: &AccountId,
    next: u64,
    list: &SignedDeviceList,
) -> Result<bool, StoreError> {
    let (bytes, signature) = (list.list.as_slice(), list.signature.as_bytes().as_slice());
    let replaced = execute!(
        **tx,
        REPLACE_LIST,
        account.as_bytes().as_slice(),
        stored(next),
        bytes,
        signature,
        stored(next.saturating_sub(1))
    )?;
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
    let (key, certificate) = (device.device_key.as_bytes().as_slice(), device.certificate_hash.as_bytes().as_slice());
    let put: Option<(i64,)> = on!(**tx, db => sqlx::query_as(PUT_DEVICE)
        .bind(id).bind(account).bind(key).bind(certificate).fetch_optional(db).await)?;
    if put.is_none() {
        return Ok(false);
    }
    execute!(**tx, ADD_CURSOR, id)?;
    Ok(true)
}

/// Deletes a device with its sessions, keys and cursor. Its queue and memberships must have ended before.
pub(crate) async fn delete_device(tx: &mut Tx, device: &DeviceId) -> Result<(), StoreError> {
    let device = device.as_bytes().as_slice();
    for statement in [DELETE_SESSIONS, DELETE_KEYS, DELETE_CURSOR, DELETE_DEVICE] {
        execute!(**tx, statement, device)?;
    }
    Ok(())
}

/// Ends all sessions of a device.
pub(crate) async fn end_sessions(tx: &mut Tx, device: &DeviceId) -> Result<(), StoreError> {
    execute!(**tx, DELETE_SESSIONS, device.as_bytes().as_slice())?;
    Ok(())
}

/// Deletes all key packages of a device. Its prekeys and sealing key stay.
pub(crate) async fn delete_key_packages(tx: &mut Tx, device: &DeviceId) -> Result<(), StoreError> {
    execute!(**tx, DELETE_KEYS_UP_TO, device.as_bytes().as_slice(), i64::from(suite::MLS_MAX))?;
    Ok(())
}

/// Deletes all keys of a device.
pub(crate) async fn delete_keys(tx: &mut Tx, device: &DeviceId) -> Result<(), StoreError> {
    execute!(**tx, DELETE_KEYS, device.as_bytes().as_slice())?;
    Ok(())
}

/// Deletes an account that has no devices any more.
pub(crate) async fn delete(tx: &mut Tx, account: &AccountId) -> Result<(), StoreError> {
    let account = account.as_bytes().as_slice();
    for statement in [DELETE_LIST, DELETE_ACCOUNT] {
        execute!(**tx, statement, account)?;
    }
    Ok(())
}
