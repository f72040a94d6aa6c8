//! Events for the app, kept until it has taken them.
//!
//! Invariant: one that is dropped untaken is counted by one that stands in its place.

use rusqlite::{OptionalExtension as _, params};
use undertone_wire::Encoding;

use super::{StoreError, Tx, cbor};
use crate::event::StoredEvent;

/// An app that never looks loses the oldest events, not its disk. Messages stay in the history.
const EVENTS_MAX: i64 = 10_000;

impl Tx<'_> {
    /// Adds an event, in the transaction that made it true.
    pub(crate) fn add_event(&self, event: &StoredEvent) -> Result<(), StoreError> {
        self.execute("INSERT INTO events (event) VALUES (?1)", [Encoding::Cbor.encode(event)])?;
        self.make_room(self.last_insert_rowid())?;
        self.changes.events.set(true);
        Ok(())
    }

    /// Of more events than may wait the two oldest become one.
    fn make_room(&self, newest: i64) -> Result<(), StoreError> {
        let oldest: i64 = self.query_row("SELECT min(id) FROM events", [], |row| row.get(0))?;
        if newest - oldest < EVENTS_MAX {
            return Ok(());
        }
        let Some((oldest, event)) = self.next_event(0)? else { return Ok(()) };
        if let Some((next, with)) = self.next_event(oldest)? {
            let dropped = StoredEvent::Dropped { events: event.stands_for() + with.stands_for() };
            self.execute("UPDATE events SET event = ?2 WHERE id = ?1", params![next, Encoding::Cbor.encode(&dropped)])?;
            self.drop_events(oldest)?;
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Error, StoreKey, store::Store};

    #[tokio::test]
    async fn of_more_events_than_may_wait_the_oldest_become_one_that_counts_them() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), StoreKey::Raw32([1; 32])).await.unwrap();
        let done = store.with_tx(|tx| {
            let missed = |n| StoredEvent::Missed { from: n, to: n };
            for n in 0..10_007 {
                tx.add_event(&missed(n))?;
            }
            let (mut after, mut told) = (0, vec![]);
            while let Some((number, event)) = tx.next_event(after)? {
                (after, told) = (number, [told, vec![event]].concat());
            }
            assert_eq!(told.len(), 10_000);
            assert_eq!(told[0], StoredEvent::Dropped { events: 8 });
            assert_eq!((&told[1], &told[9_999]), (&missed(8), &missed(10_006)));
            Ok::<_, Error>(())
        });
        done.await.unwrap();
    }
}
