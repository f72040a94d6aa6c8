//! The seam between MLS and the store: an openmls provider whose storage is the open transaction, and whose groups are
//! those that are at hand.

use openmls::prelude::{GroupId as MlsGroupId, MlsGroup};
use openmls_rust_crypto::RustCrypto;
use openmls_sqlite_storage::{Codec, SqliteStorageProvider};
use openmls_traits::OpenMlsProvider;
use rusqlite::Connection;

use undertone_wire::GroupId;

use super::{StoreError, Tx, loaded::Loaded};
use crate::crypto::{Provider, group};

/// How openmls state is written. It must be self-describing, which rules out the more compact formats.
#[derive(Default)]
pub(crate) struct Cbor;

/// CBOR that cannot be written or read.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct CborError(String);

impl Codec for Cbor {
    type Error = CborError;

    fn to_vec<T: serde::Serialize>(value: &T) -> Result<Vec<u8>, CborError> {
        let mut bytes = Vec::new();
        ciborium::into_writer(value, &mut bytes).map_err(|error| CborError(error.to_string()))?;
        Ok(bytes)
    }

    fn from_slice<T: serde::de::DeserializeOwned>(slice: &[u8]) -> Result<T, CborError> {
        ciborium::from_reader(slice).map_err(|error| CborError(error.to_string()))
    }
}

/// An openmls provider over an open transaction.
pub(crate) struct MlsProvider<'a> {
    crypto: &'a RustCrypto,
    storage: SqliteStorageProvider<Cbor, &'a Connection>,
    /// `None` if groups are not kept.
    loaded: Option<&'a Loaded>,
}

impl<'a> OpenMlsProvider for MlsProvider<'a> {
    type CryptoProvider = RustCrypto;
    type RandProvider = RustCrypto;
    type StorageProvider = SqliteStorageProvider<Cbor, &'a Connection>;

    fn storage(&self) -> &Self::StorageProvider {
        &self.storage
    }

    fn crypto(&self) -> &RustCrypto {
        self.crypto
    }

    fn rand(&self) -> &RustCrypto {
        self.crypto
    }
}

impl Provider for MlsProvider<'_> {
    fn at_hand(&self, group: &MlsGroupId) -> Option<MlsGroup> {
        self.loaded?.take(group)
    }

    fn keep(&self, mls: MlsGroup) {
        if let Some(loaded) = self.loaded {
            loaded.keep(mls);
        }
    }
}

impl<'a> MlsProvider<'a> {
    /// MLS whose storage is this connection.
    pub(super) fn over(crypto: &'a RustCrypto, connection: &'a Connection, loaded: Option<&'a Loaded>) -> Self {
        Self { crypto, storage: SqliteStorageProvider::new(connection), loaded }
    }
}

/// Under which key openmls keeps what belongs to a group.
pub(super) fn group_key(group: GroupId) -> Result<Vec<u8>, StoreError> {
    Cbor::to_vec(&group::mls_group_id(group)).map_err(|error| StoreError::Corrupt(error.to_string()))
}

impl Tx<'_> {
    /// Whether there is any MLS state of a group.
    pub(crate) fn has_mls_state(&self, group: GroupId) -> Result<bool, StoreError> {
        const SELECT: &str = "SELECT EXISTS (SELECT 1 FROM openmls_group_data WHERE group_id = ?1)";
        Ok(self.query_row(SELECT, [group_key(group)?], |row| row.get(0))?)
    }

    /// MLS over this transaction.
    pub(crate) fn mls(&self) -> MlsProvider<'_> {
        MlsProvider::over(self.crypto, &self.tx, Some(self.loaded))
    }
}
