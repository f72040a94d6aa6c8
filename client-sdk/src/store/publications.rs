//! Keys on their way to the relay.
//!
//! Invariant: a batch is posted under one message id until the relay says yes, so that a key that was handed out in
//! between cannot come back.

use rusqlite::{OptionalExtension as _, params};
use undertone_wire::{Encoding, MessageId, PublishPrekeysRequest, PublishRequest};

use super::{StoreError, Tx, cbor, not_expected};

/// A batch of keys.
#[derive(Debug, Clone)]
pub(crate) enum Publication {
    KeyPackages(PublishRequest),
    Prekeys(PublishPrekeysRequest),
}

impl Publication {
    fn message_id(&self) -> MessageId {
        match self {
            Self::KeyPackages(request) => request.message_id,
            Self::Prekeys(request) => request.message_id,
        }
    }
}

impl Tx<'_> {
    /// Remembers a batch, in the transaction that made its private halves.
    pub(crate) fn add_publication(&self, publication: &Publication) -> Result<(), StoreError> {
        const INSERT: &str = "INSERT INTO publications (message_id, kind, request) VALUES (?1, ?2, ?3)";
        let (kind, request) = match publication {
            Publication::KeyPackages(request) => (0, Encoding::Cbor.encode(request)),
            Publication::Prekeys(request) => (1, Encoding::Cbor.encode(request)),
        };
        self.execute(INSERT, params![publication.message_id().as_bytes(), kind, request])?;
        Ok(())
    }

    /// A batch that has not been confirmed.
    pub(crate) fn next_publication(&self) -> Result<Option<Publication>, StoreError> {
        const SELECT: &str = "SELECT kind, request FROM publications ORDER BY message_id LIMIT 1";
        let next = self.query_row(SELECT, [], |row| match row.get(0)? {
            0 => Ok(Publication::KeyPackages(cbor(row, 1)?)),
            1 => Ok(Publication::Prekeys(cbor(row, 1)?)),
            _ => Err(not_expected(0, "a kind of keys that this version does not know")),
        });
        Ok(next.optional()?)
    }

    /// The relay has the batch, or will never have it.
    pub(crate) fn drop_publication(&self, publication: &Publication) -> Result<(), StoreError> {
        self.execute("DELETE FROM publications WHERE message_id = ?1", [publication.message_id().as_bytes()])?;
        Ok(())
    }
}
