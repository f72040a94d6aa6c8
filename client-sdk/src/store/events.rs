//! Events for the app, kept until it has taken them.

use rusqlite::{OptionalExtension as _, params};
use undertone_wire::Encoding;

use super::{StoreError, Tx, cbor};
use crate::event::StoredEvent;

/// An app that never looks loses the oldest events, not its disk. Messages stay in the history.
const EVENTS_MAX: u32 = 10_000;

impl Tx<'_> {
    /// Adds an event, in the transaction that made it true.
    pub(crate) fn add_event(&self, event: &StoredEvent) -> Result<(), StoreError> {
        self.execute("INSERT INTO events (event) VALUES (?1)", [Encoding::Cbor.encode(event)])?;
        let newest = self.last_insert_rowid();
        self.execute("DELETE FROM events WHERE id <= ?1", [newest - i64::from(EVENTS_MAX)])?;
        self.changes.events.set(true);
        Ok(())
    }

    /// The oldest event after `after`, with its number.
    pub(crate) fn next_event(&self, after: i64) -> Result<Option<(i64, StoredEvent)>, StoreError> {
        const SELECT: &str = "SELECT id, event FROM events WHERE id > ?1 ORDER BY id LIMIT 1";
        Ok(self.query_row(SELECT, [after], |row| Ok((row.get(0)?, cbor(row, 1)?))).optional()?)
    }

    /// The app has taken all events up to this one.
    pub(crate) fn drop_events(&self, up_to: i64) -> Result<(), StoreError> {
        self.execute("DELETE FROM events WHERE id <= ?1", params![up_to])?;
        Ok(())
    }
}
