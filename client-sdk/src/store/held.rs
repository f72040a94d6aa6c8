//! Queue entries of groups of which it is not decided yet whether this device follows there.
//!
//! Invariant: entries of a group come back in the order in which they came, once.

use rusqlite::params;
use undertone_wire::{Encoding, Envelope, GroupId};

use super::{StoreError, Tx, cbor};

/// So many are kept of a group; what comes later is lost.
const HELD_MAX: u32 = 10_000;

impl Tx<'_> {
    /// Keeps an entry of a group.
    pub(crate) fn hold(&self, live: GroupId, envelope: &Envelope) -> Result<(), StoreError> {
        const INSERT: &str = "INSERT INTO held (live, envelope)
            SELECT ?1, ?2 WHERE (SELECT count(*) FROM held WHERE live = ?1) < ?3";
        self.execute(INSERT, params![live.as_bytes(), Encoding::Cbor.encode(envelope), HELD_MAX])?;
        Ok(())
    }

    /// Whether entries of a group are kept.
    pub(crate) fn is_held(&self, live: GroupId) -> Result<bool, StoreError> {
        Ok(self.query_row("SELECT EXISTS (SELECT 1 FROM held WHERE live = ?1)", [live.as_bytes()], |row| row.get(0))?)
    }

    /// Takes all that is kept of a group.
    pub(crate) fn take_held(&self, live: GroupId) -> Result<Vec<Envelope>, StoreError> {
        let mut select = self.prepare_cached("SELECT envelope FROM held WHERE live = ?1 ORDER BY id")?;
        let held = select.query_map([live.as_bytes()], |row| cbor(row, 0))?.collect::<Result<_, _>>()?;
        self.execute("DELETE FROM held WHERE live = ?1", [live.as_bytes()])?;
        Ok(held)
    }
}
