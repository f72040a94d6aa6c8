//! Key packages on their way to the relay.
//!
//! Invariant: a batch is posted under one message id until the relay says yes, so that a key package that was handed
//! out in between cannot come back.

use rusqlite::{OptionalExtension as _, params};
use undertone_wire::{Encoding, PublishRequest};

use super::{StoreError, Tx, cbor};

impl Tx<'_> {
    /// Remembers a batch, in the transaction that made its private halves.
    pub(crate) fn add_publication(&self, request: &PublishRequest) -> Result<(), StoreError> {
        const INSERT: &str = "INSERT INTO publications (message_id, request) VALUES (?1, ?2)";
        self.execute(INSERT, params![request.message_id.as_bytes(), Encoding::Cbor.encode(request)])?;
        Ok(())
    }

    /// A batch that has not been confirmed.
    pub(crate) fn next_publication(&self) -> Result<Option<PublishRequest>, StoreError> {
        const SELECT: &str = "SELECT request FROM publications ORDER BY message_id LIMIT 1";
        Ok(self.query_row(SELECT, [], |row| cbor(row, 0)).optional()?)
    }

    /// The relay has the batch, or will never have it.
    pub(crate) fn drop_publication(&self, request: &PublishRequest) -> Result<(), StoreError> {
        self.execute("DELETE FROM publications WHERE message_id = ?1", [request.message_id.as_bytes()])?;
        Ok(())
    }
}
