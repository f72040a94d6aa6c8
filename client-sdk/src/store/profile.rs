//! Who this device is, its session, and how far it has read its queue.

use rusqlite::{OptionalExtension as _, params};
use undertone_wire::{Bytes, Encoding, RelayId, Username};

use super::{StoreError, Tx, bytes, cbor};
use crate::crypto::Identity;

/// The one row that makes a store this device's.
#[derive(Debug, Clone)]
pub(crate) struct Profile {
    pub(crate) relay_url: String,
    pub(crate) relay_id: RelayId,
    pub(crate) identity: Identity,
    pub(crate) username: Option<Username>,
    /// Whether the relay has accepted the account.
    pub(crate) registered: bool,
}

impl Tx<'_> {
    /// The profile; `None` in a new store.
    pub(crate) fn profile(&self) -> Result<Option<Profile>, StoreError> {
        const SELECT: &str = "SELECT relay_url, relay_id, identity, username, registered FROM profile";
        let profile = self.query_row(SELECT, [], |row| {
            let username: Option<String> = row.get(3)?;
            Ok(Profile {
                relay_url: row.get(0)?,
                relay_id: bytes(row, 1)?,
                identity: cbor(row, 2)?,
                username: username.and_then(|name| name.parse().ok()),
                registered: row.get(4)?,
            })
        });
        Ok(profile.optional()?)
    }

    /// Writes the profile of a new store, or of one whose registration was not finished.
    pub(crate) fn save_profile(&self, profile: &Profile) -> Result<(), StoreError> {
        const UPSERT: &str = "INSERT INTO profile (id, relay_url, relay_id, identity, username, registered, cursor)
            VALUES (1, ?1, ?2, ?3, ?4, ?5, 0)
            ON CONFLICT (id) DO UPDATE SET relay_url = ?1, relay_id = ?2, identity = ?3, username = ?4, registered = ?5";
        let identity = zeroize::Zeroizing::new(Encoding::Cbor.encode(&profile.identity));
        let username = profile.username.as_ref().map(Username::as_str);
        self.execute(
            UPSERT,
            params![profile.relay_url, profile.relay_id.as_bytes(), *identity, username, profile.registered],
        )?;
        Ok(())
    }

    /// The bearer token of the present session.
    pub(crate) fn token(&self) -> Result<Option<Bytes>, StoreError> {
        let token: Option<Vec<u8>> = self.query_row("SELECT token FROM profile", [], |row| row.get(0))?;
        Ok(token.map(Bytes::from))
    }

    /// Remembers a session's bearer token, or that there is none.
    pub(crate) fn set_token(&self, token: Option<&Bytes>) -> Result<(), StoreError> {
        self.execute("UPDATE profile SET token = ?1", [token.map(Bytes::as_slice)])?;
        Ok(())
    }

    /// The number of the last queue entry that was applied.
    pub(crate) fn cursor(&self) -> Result<u64, StoreError> {
        Ok(self.query_row("SELECT cursor FROM profile", [], |row| row.get(0))?)
    }

    /// Moves the cursor, in the transaction that applied the entry.
    pub(crate) fn set_cursor(&self, seq: u64) -> Result<(), StoreError> {
        self.execute("UPDATE profile SET cursor = ?1", [seq])?;
        self.changes.work.set(true);
        Ok(())
    }
}
