//! Who the relay is: made with the store, the same for its whole life; and which incarnation of the store this is.
//!
//! Invariant: what was handed out or numbered in another incarnation is never handed out or numbered again. One-time
//! keys carry the incarnation in which they were published; the numbers of all queues jump when a new one begins.

use undertone_wire::{Incarnation, RelayId};

use super::{Conn, StoreError, Tx, execute, on, parsed};
use crate::clock::{Random, random_bytes};

/// How far the numbers of all queues jump: farther than a store that was lost can have counted.
pub(crate) const JUMP: u64 = 1 << 32;

/// The relay's identity.
const IDENTITY: &str = "SELECT relay_id, incarnation FROM relay";

/// Gives the store its identity. Changes nothing if it has one.
const BECOME: &str = "
    INSERT INTO relay (only_row, relay_id, incarnation, mark, mark_before) VALUES (1, $1, $2, $3, $3)
    ON CONFLICT DO NOTHING";

/// The marks by which the store is known.
const MARKS: &str = "SELECT mark, mark_before FROM relay";

/// Gives the store the mark `$1`, and keeps `$2` as good.
const REMARK: &str = "UPDATE relay SET mark = $1, mark_before = $2";

/// Gives the store another mark, and makes the one before bad.
const MARK_ONLY: &str = "UPDATE relay SET mark_before = $1, mark = $1";

/// Begins a new incarnation.
const BEGIN_INCARNATION: &str = "UPDATE relay SET incarnation = $1";

/// Makes the numbers of all queues jump by `$1`.
const JUMP_ALL: &str = "UPDATE cursors SET next_seq = next_seq + $1, instance = NULL";

/// Ends all sessions.
const END_SESSIONS: &str = "DELETE FROM sessions";

/// Forgets all challenges.
const END_CHALLENGES: &str = "DELETE FROM challenges";

/// Forgets all invites.
const END_INVITES: &str = "DELETE FROM invites";

/// Forgets all pipes.
const END_PIPES: &str = "DELETE FROM pipe_parts";

/// Which relay this is, and which incarnation of its store.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Identity {
    pub(crate) relay_id: RelayId,
    pub(crate) incarnation: Incarnation,
}

/// The identity in the store.
pub(crate) async fn identity(conn: &mut Conn) -> Result<Identity, StoreError> {
    let (relay_id, incarnation): (Vec<u8>, Vec<u8>) = on!(*conn, db => sqlx::query_as(IDENTITY).fetch_one(db).await)?;
    Ok(Identity { relay_id: parsed(&relay_id)?, incarnation: parsed(&incarnation)? })
}

/// Gives a store without an identity a new one, under a mark.
pub(super) async fn become_one(tx: &mut Tx, random: &dyn Random, mark: &str) -> Result<(), StoreError> {
    let relay_id = RelayId::from_random(random_bytes(random)?);
    let incarnation = Incarnation::from_random(random_bytes(random)?);
    let (relay_id, incarnation) = (relay_id.as_bytes().as_slice(), incarnation.as_bytes().as_slice());
    execute!(**tx, BECOME, relay_id, incarnation, mark)?;
    Ok(())
}

/// The mark by which the store is known, and the one before, if it has an identity.
pub(super) async fn marks(conn: &mut Conn) -> Result<Option<(String, String)>, StoreError> {
    Ok(on!(*conn, db => sqlx::query_as(MARKS).fetch_optional(db).await)?)
}

/// Gives the store another mark, and keeps the one that is seen until the other is.
pub(super) async fn remark(tx: &mut Tx, seen: &str, next: &str) -> Result<(), StoreError> {
    execute!(**tx, REMARK, next, seen)?;
    Ok(())
}

/// Gives the store another mark; no other is good.
pub(super) async fn mark_only(tx: &mut Tx, mark: &str) -> Result<(), StoreError> {
    execute!(**tx, MARK_ONLY, mark)?;
    Ok(())
}

/// Begins a new incarnation: one-time keys of before are good no more, all numbers jump, all sessions end, and so do all
/// invites and pipes, for some of them may have been used up or revoked, or hold other parts than were read.
pub(super) async fn begin_incarnation(tx: &mut Tx, random: &dyn Random) -> Result<(), StoreError> {
    let incarnation = Incarnation::from_random(random_bytes(random)?);
    let jump = super::stored(JUMP);
    execute!(**tx, BEGIN_INCARNATION, incarnation.as_bytes().as_slice())?;
    execute!(**tx, JUMP_ALL, jump)?;
    execute!(**tx, END_SESSIONS)?;
    execute!(**tx, END_CHALLENGES)?;
    execute!(**tx, END_INVITES)?;
    execute!(**tx, END_PIPES)?;
    tracing::warn!("the store is not the one it was: a new incarnation begins, and devices publish new keys");
    Ok(())
}
