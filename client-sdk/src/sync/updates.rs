//! When this device replaces its keys in a group by new ones, so that whoever got hold of the old ones is shut out: some
//! time after it has joined, and every so often from then on. Members do that at different times, and the larger a group is,
//! the less often, so that not all it does is updating.
//!
//! Invariant: when that is stands in the store; any commit that replaces them counts.

use undertone_wire::GroupId;

use crate::{
    crypto::Entropy,
    store::{StoreError, Task, Tx},
};

/// Not before this time after joining, and not more often in a group than once in this time for all of its members.
const TURN_MS: u64 = 10 * 60 * 1_000;

/// Keys are replaced after so long at the earliest, and after twice that at the latest.
const EVERY_MS: u64 = 7 * 24 * 60 * 60 * 1_000;

/// Those that have missed something do it after this time, and before twice that; in a larger group, with more time for all
/// of them.
const MISSED_MS: u64 = 60 * 1_000;
const MISSED_TURN_MS: u64 = 3_000;

/// Plans what is due.
pub(super) fn plan(tx: &Tx<'_>, entropy: Entropy, now_ms: u64) -> Result<(), StoreError> {
    for (group, due, members) in tx.groups_to_update(now_ms)? {
        match due {
            // It was joined just now. A larger group takes longer until all who joined have had their turn.
            None => tx.update_at(group, later(entropy, now_ms, TURN_MS, turns_ms(members).min(EVERY_MS)))?,
            Some(_) => {
                if !tx.is_planned(group, &Task::Update)? {
                    tx.add_task(group, &Task::Update, None, 0)?;
                }
                let every_ms = EVERY_MS.max(turns_ms(members));
                tx.update_at(group, later(entropy, now_ms, every_ms, every_ms))?;
            }
        }
    }
    Ok(())
}

/// This device has new keys in a group.
pub(super) fn done(tx: &Tx<'_>, entropy: Entropy, now_ms: u64, group: GroupId) -> Result<(), StoreError> {
    let every_ms = EVERY_MS.max(turns_ms(tx.members(group)?.len() as u64));
    tx.update_at(group, later(entropy, now_ms, every_ms, every_ms))
}

/// Something of a group was missed, or cannot be read any more. With anybody's next commit everybody begins anew.
pub(super) fn soon(tx: &Tx<'_>, entropy: Entropy, now_ms: u64, group: GroupId) -> Result<(), StoreError> {
    let spread_ms = MISSED_MS.max((tx.members(group)?.len() as u64).saturating_mul(MISSED_TURN_MS));
    tx.update_unless(group, later(entropy, now_ms, MISSED_MS, spread_ms))
}

fn turns_ms(members: u64) -> u64 {
    members.saturating_mul(TURN_MS)
}

/// A time that is so far away at least, and up to so much more.
fn later(entropy: Entropy, now_ms: u64, least_ms: u64, spread_ms: u64) -> u64 {
    let random = u64::from_be_bytes(entropy.bytes().unwrap_or_default());
    now_ms.saturating_add(least_ms).saturating_add(random % spread_ms.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_of_a_large_group_take_turns_over_a_longer_time() {
        let entropy = Entropy::system();
        for _ in 0..100 {
            let at_ms = later(entropy, 1_000, TURN_MS, turns_ms(3));
            assert!((1_000 + TURN_MS..1_000 + 4 * TURN_MS).contains(&at_ms));
        }
        assert!(turns_ms(1_000) < EVERY_MS && turns_ms(2_000) > EVERY_MS);
    }
}
