//! Key packages whose private halves are here, which openmls keeps; and what of each suite's last-resort one the relay has
//! handed out.

use openmls::prelude::{KeyPackage, KeyPackageRef};
use openmls_sqlite_storage::Codec as _;
use rusqlite::{OptionalExtension as _, params};
use undertone_wire::Hash;

use super::{StoreError, Tx, mls::Cbor};
use crate::crypto::Suite;

/// The public half of a stored key package. What else is stored with it is not read.
#[derive(serde::Deserialize)]
struct Public {
    key_package: KeyPackage,
}

/// The last-resort key package of a suite.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct LastResort {
    /// Whether it was handed out and is to be replaced.
    pub(crate) used: bool,
    /// When one was last replaced for that; 0 if never.
    pub(crate) renewed_ms: u64,
}

impl Tx<'_> {
    /// The public halves of all key packages whose private halves are kept.
    pub(crate) fn key_packages(&self) -> Result<Vec<KeyPackage>, StoreError> {
        let mut select = self.prepare_cached("SELECT key_package FROM openmls_key_packages")?;
        let stored = select.query_map([], |row| Ok(Cbor::from_slice(row.get_ref(0)?.as_blob()?)))?;
        let mut key_packages = Vec::new();
        for one in stored {
            let Public { key_package } = one?.map_err(|error| StoreError::Corrupt(error.to_string()))?;
            key_packages.push(key_package);
        }
        Ok(key_packages)
    }

    /// The references (RFC 9420, section 5.2) of all key packages whose private halves are kept.
    pub(crate) fn key_package_refs(&self) -> Result<Vec<Hash>, StoreError> {
        let mut select = self.prepare_cached("SELECT key_package_ref FROM openmls_key_packages")?;
        let stored = select.query_map([], |row| Ok(Cbor::from_slice::<KeyPackageRef>(row.get_ref(0)?.as_blob()?)))?;
        let mut references = Vec::new();
        for one in stored {
            let reference = one?.map_err(|error| StoreError::Corrupt(error.to_string()))?;
            let bytes = <[u8; 32]>::try_from(reference.as_slice());
            references.push(bytes.map_err(|error| StoreError::Corrupt(error.to_string()))?.into());
        }
        Ok(references)
    }

    /// What became of the last-resort key package of a suite.
    pub(crate) fn last_resort(&self, suite: Suite) -> Result<LastResort, StoreError> {
        const SELECT: &str = "SELECT used, renewed_ms FROM last_resorts WHERE suite = ?1";
        let found = self
            .query_row(SELECT, [suite.number()], |row| Ok(LastResort { used: row.get(0)?, renewed_ms: row.get(1)? }))
            .optional()?;
        Ok(found.unwrap_or_default())
    }

    /// Notes that it was handed out, or replaced for that.
    pub(crate) fn set_last_resort(&self, suite: Suite, now: LastResort) -> Result<(), StoreError> {
        const UPSERT: &str = "INSERT INTO last_resorts (suite, used, renewed_ms) VALUES (?1, ?2, ?3)
            ON CONFLICT (suite) DO UPDATE SET used = ?2, renewed_ms = ?3";
        self.execute(UPSERT, params![suite.number(), now.used, now.renewed_ms])?;
        Ok(())
    }

    /// Those of all suites are to be replaced, and not only after a while.
    pub(crate) fn renew_last_resorts_now(&self) -> Result<(), StoreError> {
        Suite::ALL
            .into_iter()
            .try_for_each(|suite| self.set_last_resort(suite, LastResort { used: true, renewed_ms: 0 }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Error, StoreKey,
        store::{MIGRATIONS, Store},
    };

    #[tokio::test]
    async fn the_wish_for_a_new_last_resort_key_package_outlives_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let open = async || Store::open(folder.path(), StoreKey::Raw32([1; 32])).await.unwrap();
        let store = open().await;
        let used = LastResort { used: true, renewed_ms: 7 };
        let wished = store.with_tx(move |tx| {
            assert_eq!(tx.last_resort(Suite::Hybrid)?, LastResort::default());
            tx.set_last_resort(Suite::Hybrid, used).map_err(Error::from)
        });
        wished.await.unwrap();
        store.close().await;
        let read = |tx: &Tx<'_>| Ok::<_, Error>(Suite::ALL.map(|suite| tx.last_resort(suite).unwrap()));
        assert_eq!(open().await.with_tx(read).await.unwrap(), [LastResort::default(), used]);
    }

    #[test]
    fn what_an_older_store_knew_of_its_last_resort_is_kept() {
        let store = rusqlite::Connection::open_in_memory().unwrap();
        MIGRATIONS[..16].iter().for_each(|migration| store.execute_batch(migration).unwrap());
        const INSERT: &str = "INSERT INTO profile
            (id, relay_id, identity, registered, cursor, last_resort_used, last_resort_renewed_ms)
            VALUES (1, x'00', x'00', 1, 7, 1, 9)";
        store.execute(INSERT, []).unwrap();
        store.execute_batch(MIGRATIONS[16]).unwrap();
        const SELECT: &str = "SELECT suite, used, renewed_ms FROM last_resorts";
        let kept: (u16, bool, u64) =
            store.query_row(SELECT, [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).unwrap();
        assert_eq!(kept, (Suite::Classic.number(), true, 9));
    }
}
