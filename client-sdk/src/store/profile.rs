//! Who this device is, where its relay is, its session, which life of the store this is, and how far it has read its
//! queue.

use rusqlite::{OptionalExtension as _, params, types::ValueRef};
use undertone_wire::{Bytes, Encoding, InstanceId, InstanceRequest, RelayId, Username};

use super::{StoreError, Tx, bytes, cbor};
use crate::crypto::Identity;

/// The one row that makes a store this device's.
#[derive(Debug, Clone)]
pub(crate) struct Profile {
    /// Where the relay is, in the order in which addresses are tried; each once.
    pub(crate) relay_urls: Vec<String>,
    pub(crate) relay_id: RelayId,
    pub(crate) identity: Identity,
    pub(crate) username: Option<Username>,
    /// Whether the relay has accepted the account.
    pub(crate) registered: bool,
}

impl Tx<'_> {
    /// The profile; `None` in a new store.
    pub(crate) fn profile(&self) -> Result<Option<Profile>, StoreError> {
        const SELECT: &str = "SELECT relay_id, identity, username, registered FROM profile";
        let relay_urls = self.relay_urls()?;
        let profile = self.query_row(SELECT, [], |row| {
            let username: Option<String> = row.get(2)?;
            Ok(Profile {
                relay_urls,
                relay_id: bytes(row, 0)?,
                identity: cbor(row, 1)?,
                username: username.and_then(|name| name.parse().ok()),
                registered: row.get(3)?,
            })
        });
        Ok(profile.optional()?)
    }

    /// Who this device is, as of this transaction.
    pub(crate) fn identity(&self) -> Result<Identity, StoreError> {
        Ok(self.query_row("SELECT identity FROM profile", [], |row| cbor(row, 0))?)
    }

    /// Writes the profile of a new store, or of one whose registration was not finished.
    pub(crate) fn save_profile(&self, profile: &Profile) -> Result<(), StoreError> {
        const UPSERT: &str = "INSERT INTO profile (id, relay_id, identity, username, registered, cursor)
            VALUES (1, ?1, ?2, ?3, ?4, 0)
            ON CONFLICT (id) DO UPDATE SET relay_id = ?1, identity = ?2, username = ?3, registered = ?4";
        let identity = zeroize::Zeroizing::new(Encoding::Cbor.encode(&profile.identity));
        let username = profile.username.as_ref().map(Username::as_str);
        self.execute(UPSERT, params![profile.relay_id.as_bytes(), *identity, username, profile.registered])?;
        self.set_relay_urls(&profile.relay_urls)
    }

    fn relay_urls(&self) -> Result<Vec<String>, StoreError> {
        let mut select = self.prepare("SELECT url FROM relay_urls ORDER BY position")?;
        let urls = select.query_map([], |row| row.get(0))?;
        Ok(urls.collect::<Result<_, _>>()?)
    }

    /// Replaces the relay's addresses. What was told of one that stays is not told again.
    pub(crate) fn set_relay_urls(&self, urls: &[String]) -> Result<(), StoreError> {
        if self.relay_urls()? == urls {
            return Ok(());
        }
        let mut select = self.prepare("SELECT url FROM relay_urls WHERE strange = 1")?;
        let strange: Vec<String> = select.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
        self.execute("DELETE FROM relay_urls", [])?;
        for (position, url) in (0_i64..).zip(urls) {
            const INSERT: &str = "INSERT INTO relay_urls (position, url, strange) VALUES (?1, ?2, ?3)";
            self.execute(INSERT, params![position, url, strange.contains(url)])?;
        }
        Ok(())
    }

    /// Notes that an address is another relay's. Says whether that is news.
    pub(crate) fn note_strange(&self, url: &str) -> Result<bool, StoreError> {
        Ok(self.execute("UPDATE relay_urls SET strange = 1 WHERE url = ?1 AND strange = 0", [url])? > 0)
    }

    /// Notes that an address is the relay's own: that it is another's is news again.
    pub(crate) fn note_own(&self, url: &str) -> Result<(), StoreError> {
        self.execute("UPDATE relay_urls SET strange = 0 WHERE url = ?1 AND strange = 1", [url])?;
        Ok(())
    }

    /// How often something was missed since the relay was asked where the groups stand.
    pub(crate) fn looks_at_groups(&self) -> Result<u64, StoreError> {
        Ok(self.query_row("SELECT look_at_groups FROM profile", [], |row| row.get(0))?)
    }

    /// Something was missed.
    pub(crate) fn look_at_groups(&self) -> Result<(), StoreError> {
        self.execute("UPDATE profile SET look_at_groups = look_at_groups + 1", [])?;
        Ok(())
    }

    /// The groups stand where they should as of when something had been missed so often. What was missed since is still
    /// to be looked into.
    pub(crate) fn looked_at_groups(&self, looks: u64) -> Result<(), StoreError> {
        self.execute("UPDATE profile SET look_at_groups = 0 WHERE look_at_groups = ?1", [looks])?;
        Ok(())
    }

    /// What the relay is still to be told of which store this is.
    pub(crate) fn instance_request(&self) -> Result<Option<InstanceRequest>, StoreError> {
        const SELECT: &str = "SELECT instance, next_instance, takes_over FROM profile WHERE next_instance IS NOT NULL";
        let request = self.query_row(SELECT, [], |row| {
            let previous = if row.get_ref(0)? == ValueRef::Null { None } else { Some(bytes(row, 0)?) };
            Ok(InstanceRequest { previous, instance: bytes(row, 1)?, takes_over: row.get(2)? })
        });
        Ok(request.optional()?)
    }

    /// Another life of the store begins.
    pub(crate) fn set_next_instance(&self, instance: InstanceId) -> Result<(), StoreError> {
        self.execute("UPDATE profile SET next_instance = ?1", [instance.as_bytes()])?;
        Ok(())
    }

    /// The store is a copy, and takes over.
    pub(crate) fn take_over(&self) -> Result<(), StoreError> {
        self.execute("UPDATE profile SET takes_over = 1", [])?;
        Ok(())
    }

    /// The relay knows which store this is.
    pub(crate) fn confirm_instance(&self, instance: InstanceId) -> Result<(), StoreError> {
        const UPDATE: &str = "UPDATE profile SET instance = ?1, next_instance = NULL, takes_over = 0";
        self.execute(UPDATE, [instance.as_bytes()])?;
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

    /// Moves the cursor, in the transaction that applied the entry. There is something to do if the outbox waits for
    /// that.
    pub(crate) fn set_cursor(&self, seq: u64) -> Result<(), StoreError> {
        self.execute("UPDATE profile SET cursor = ?1", [seq])?;
        if self.is_waited_for(seq)? {
            self.changes.work.set(true);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Error, StoreKey,
        store::{MIGRATIONS, Store},
    };

    fn urls(urls: &[&str]) -> Vec<String> {
        urls.iter().map(|url| (*url).to_owned()).collect()
    }

    fn profile(relay_urls: &[&str]) -> Profile {
        Profile {
            relay_urls: urls(relay_urls),
            relay_id: RelayId::from_random([1; 16]),
            identity: Identity::random(),
            username: None,
            registered: true,
        }
    }

    #[tokio::test]
    async fn addresses_keep_their_order_and_what_was_told_of_them() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), StoreKey::Raw32([1; 32])).await.unwrap();
        let profile = profile(&["http://b", "http://a"]);
        let done = store.with_tx(move |tx| {
            tx.save_profile(&profile)?;
            assert_eq!(tx.profile()?.unwrap().relay_urls, ["http://b", "http://a"]);
            assert!(tx.note_strange("http://a")?);
            assert!(!tx.note_strange("http://a")? && !tx.note_strange("http://elsewhere")?);
            tx.set_relay_urls(&urls(&["http://a", "http://c"]))?;
            assert_eq!(tx.profile()?.unwrap().relay_urls, ["http://a", "http://c"]);
            assert!(!tx.note_strange("http://a")? && tx.note_strange("http://c")?);
            tx.note_own("http://a")?;
            assert!(tx.note_strange("http://a")? && !tx.note_strange("http://c")?);
            Ok::<_, Error>(())
        });
        done.await.unwrap();
    }

    #[test]
    fn the_one_address_of_an_older_store_is_kept() {
        let store = rusqlite::Connection::open_in_memory().unwrap();
        store.execute_batch(MIGRATIONS[0]).unwrap();
        const INSERT: &str = "INSERT INTO profile (id, relay_url, relay_id, identity, registered, cursor)
            VALUES (1, 'http://relay.example', x'00', x'00', 1, 7)";
        store.execute(INSERT, []).unwrap();
        store.execute_batch(MIGRATIONS[1]).unwrap();
        let url: String = store.query_row("SELECT url FROM relay_urls", [], |row| row.get(0)).unwrap();
        let kept: (u64, bool) = store
            .query_row("SELECT cursor, last_resort_used FROM profile", [], |row| Ok((row.get(0)?, row.get(1)?)))
            .unwrap();
        assert_eq!((url.as_str(), kept), ("http://relay.example", (7, false)));
    }
}
