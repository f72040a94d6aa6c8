//! Accounts seen, with the newest device list of each.
//!
//! Invariant: a list only ever gives way to a higher version.

use rusqlite::{OptionalExtension as _, params};
use undertone_wire::{Account, AccountId, DeviceId, DeviceList, Encoding, SignedDeviceList, Username};

use super::{StoreError, Tx, bytes, cbor};
use crate::{
    crypto::{Member, direct::Correspondent},
    event::Contact,
};

/// So many lists of an account may not have been seen.
const AHEAD_MAX: i64 = 1_000;

/// The devices of an account.
pub(crate) struct Listed {
    pub(crate) account: AccountId,
    /// Of the list that names them.
    pub(crate) version: u64,
    /// In ascending order.
    pub(crate) devices: Vec<Correspondent>,
}

impl Listed {
    /// One of them.
    pub(crate) fn device(&self, device: DeviceId) -> Option<&Correspondent> {
        self.devices.iter().find(|one| one.member.device == device)
    }
}

impl Tx<'_> {
    /// An account's name, if the account was ever seen.
    pub(crate) fn contact(&self, account: AccountId) -> Result<Option<Contact>, StoreError> {
        const SELECT: &str = "SELECT account, username FROM contacts WHERE account = ?1";
        Ok(self.query_row(SELECT, [account.as_bytes()], contact_from).optional()?)
    }

    /// All accounts seen, by name.
    pub(crate) fn contacts(&self) -> Result<Vec<Contact>, StoreError> {
        let mut statement =
            self.prepare_cached("SELECT account, username FROM contacts ORDER BY username IS NULL, username, account")?;
        let contacts = statement.query_map([], contact_from)?.collect::<Result<_, _>>()?;
        Ok(contacts)
    }

    /// The newest device list seen of an account.
    pub(crate) fn device_list(&self, account: AccountId) -> Result<Option<SignedDeviceList>, StoreError> {
        const SELECT: &str = "SELECT list FROM contacts WHERE account = ?1";
        Ok(self.query_row(SELECT, [account.as_bytes()], |row| cbor(row, 0)).optional()?)
    }

    /// The same, decoded: it was verified before it was stored.
    pub(crate) fn verified_list(&self, account: AccountId) -> Result<Option<DeviceList>, StoreError> {
        let list = self.device_list(account)?;
        let list = list.map(|signed| Encoding::Cbor.decode(signed.list.as_slice())).transpose();
        list.map_err(|error| StoreError::Corrupt(error.to_string()))
    }

    /// Whether any list of its account that was seen here has named a device.
    pub(crate) fn was_listed(&self, one: Member) -> Result<bool, StoreError> {
        const SELECT: &str = "SELECT EXISTS (SELECT 1 FROM once_listed WHERE account = ?1 AND device = ?2)";
        Ok(self.query_row(SELECT, params![one.account.as_bytes(), one.device.as_bytes()], |row| row.get(0))?)
    }

    /// The version of an account's newest list; 0 if the account was never seen.
    pub(crate) fn list_version(&self, account: AccountId) -> Result<u64, StoreError> {
        const SELECT: &str = "SELECT list_version FROM contacts WHERE account = ?1";
        Ok(self.query_row(SELECT, [account.as_bytes()], |row| row.get(0)).optional()?.unwrap_or(0))
    }

    /// What was seen of an account, as the relay told it.
    pub(crate) fn account(&self, account: AccountId) -> Result<Option<Account>, StoreError> {
        let select = format!("{ACCOUNT} WHERE account = ?1");
        Ok(self.query_row(&select, [account.as_bytes()], account_from).optional()?)
    }

    /// All that was seen of accounts: first those that the user knows, or that are in groups.
    pub(crate) fn accounts(&self) -> Result<Vec<Account>, StoreError> {
        let select = format!(
            "{ACCOUNT} ORDER BY account NOT IN (SELECT account FROM standings),
             account NOT IN (SELECT account FROM members), account"
        );
        let mut select = self.prepare_cached(&select)?;
        let accounts = select.query_map([], account_from)?.collect::<Result<_, _>>()?;
        Ok(accounts)
    }

    /// The devices of an account, as the newest list that was seen names them.
    pub(crate) fn listed(&self, account: AccountId) -> Result<Option<Listed>, StoreError> {
        let Some(list) = self.verified_list(account)? else { return Ok(None) };
        Ok(Some(Listed { account, version: list.version, devices: Correspondent::all(&list)? }))
    }

    /// Notes that one of the account's devices names this version of its list. If no such version was ever seen or named
    /// before, it is to be looked at. One that no account comes to is none.
    pub(crate) fn note_claim(&self, by: Member, version: u64) -> Result<(), StoreError> {
        const UPDATE: &str = "UPDATE contacts SET claimed_version = ?2, claimed_by = ?3, looks = looks + 1
            WHERE account = ?1 AND claimed_version < ?2 AND list_version < ?2 AND ?2 - list_version <= ?4";
        let version = i64::try_from(version).unwrap_or(i64::MAX);
        if self.execute(UPDATE, params![by.account.as_bytes(), version, by.device.as_bytes(), AHEAD_MAX])? > 0 {
            self.changes.work.set(true);
        }
        Ok(())
    }

    /// There is a reason to look at an account's device list.
    pub(crate) fn look_at_account(&self, account: AccountId) -> Result<(), StoreError> {
        self.execute("UPDATE contacts SET looks = looks + 1 WHERE account = ?1", [account.as_bytes()])?;
        self.changes.work.set(true);
        Ok(())
    }

    /// Whether one of the account's devices has named a later list than the newest one seen.
    pub(crate) fn list_is_behind(&self, account: AccountId) -> Result<bool, StoreError> {
        const SELECT: &str = "SELECT claimed_version > list_version FROM contacts WHERE account = ?1";
        Ok(self.query_row(SELECT, [account.as_bytes()], |row| row.get(0)).optional()?.unwrap_or(false))
    }

    /// Remembers what the relay says of an account, whose list has been verified. An older list is passed over; and another name,
    /// since an account keeps that for life and only the relay's word says what it is.
    pub(crate) fn save_contact(&self, account: &Account, list: &DeviceList) -> Result<(), StoreError> {
        const UPSERT: &str = "INSERT INTO contacts (account, username, list_version, list) VALUES (?1, ?2, ?3, ?4)
            ON CONFLICT (account) DO UPDATE SET username = coalesce(username, ?2), list_version = ?3, list = ?4
            WHERE list_version <= ?3";
        let username = account.username.as_ref().map(Username::as_str);
        let encoded = Encoding::Cbor.encode(&account.device_list);
        let taken = self.execute(UPSERT, params![account.account_id.as_bytes(), username, list.version, encoded])?;
        if taken > 0 {
            self.forget_claim_of_unlisted(account.account_id, list)?;
        }
        self.note_listed(list)
    }

    /// What a device has said of the account's list counts for as long as that names the device.
    fn forget_claim_of_unlisted(&self, account: AccountId, list: &DeviceList) -> Result<(), StoreError> {
        const CLAIMED: &str = "SELECT claimed_by FROM contacts WHERE account = ?1 AND claimed_by IS NOT NULL";
        const FORGET: &str = "UPDATE contacts SET claimed_version = 0, claimed_by = NULL WHERE account = ?1";
        let by: Option<DeviceId> = self.query_row(CLAIMED, [account.as_bytes()], |row| bytes(row, 0)).optional()?;
        if by.is_some_and(|by| !list.devices.iter().any(|entry| entry.is_of(by))) {
            self.execute(FORGET, [account.as_bytes()])?;
        }
        Ok(())
    }

    /// These devices were listed once.
    pub(crate) fn note_listed(&self, list: &DeviceList) -> Result<(), StoreError> {
        const LISTED: &str = "INSERT INTO once_listed (account, device) VALUES (?1, ?2) ON CONFLICT DO NOTHING";
        for certificate in list.certificates().flatten() {
            self.execute(LISTED, params![list.account.as_bytes(), certificate.device.as_bytes()])?;
        }
        Ok(())
    }
}

const ACCOUNT: &str = "SELECT account, username, list FROM contacts";

fn account_from(row: &rusqlite::Row<'_>) -> rusqlite::Result<Account> {
    let Contact { account_id, username } = contact_from(row)?;
    Ok(Account { account_id, username, device_list: cbor(row, 2)? })
}

fn contact_from(row: &rusqlite::Row<'_>) -> rusqlite::Result<Contact> {
    let username: Option<String> = row.get(1)?;
    Ok(Contact { account_id: bytes(row, 0)?, username: username.and_then(|name| name.parse().ok()) })
}
