//! Who the relay is: made with the store, the same for its whole life.

use undertone_wire::{Incarnation, RelayId};

use super::{StoreError, Tx, on, parsed};
use crate::clock::{Random, random_bytes};

/// The relay's identity, if the store has one.
const IDENTITY: &str = "SELECT relay_id, incarnation FROM relay";

/// Gives the store its identity; done once, when it has none.
const BECOME: &str = "INSERT INTO relay (only_row, relay_id, incarnation) VALUES (1, $1, $2)";

/// Which relay this is, and which life of its store.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Identity {
    pub(crate) relay_id: RelayId,
    pub(crate) incarnation: Incarnation,
}

impl Identity {
    /// A new one.
    pub(super) fn fresh(random: &dyn Random) -> Result<Self, StoreError> {
        let relay_id = RelayId::from_random(random_bytes(random)?);
        let incarnation = Incarnation::from_random(random_bytes(random)?);
        Ok(Self { relay_id, incarnation })
    }
}

/// The identity in the store, which is `fresh` if there was none.
pub(super) async fn identity(tx: &mut Tx, fresh: Identity) -> Result<Identity, StoreError> {
    let row: Option<(Vec<u8>, Vec<u8>)> = on!(**tx, db => sqlx::query_as(IDENTITY).fetch_optional(db).await)?;
    if let Some((relay_id, incarnation)) = row {
        return Ok(Identity { relay_id: parsed(&relay_id)?, incarnation: parsed(&incarnation)? });
    }
    let (relay_id, incarnation) = (fresh.relay_id.as_bytes().as_slice(), fresh.incarnation.as_bytes().as_slice());
    on!(**tx, db => sqlx::query(BECOME).bind(relay_id).bind(incarnation).execute(db).await)?;
    Ok(fresh)
}
