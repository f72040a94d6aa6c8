//! Limits: comparing what came with what is allowed. The limits themselves are [`undertone_wire::Limits`].
//!
//! Invariant: going over a limit is refused with the limit's name and value.

use undertone_wire::{ErrorCode, LimitReached, Limits};

use crate::{clock::hour_after, error::Error, store::queue::Room};

/// Until when what is posted now is kept for who has not taken it: a full hour.
pub(crate) fn kept_until_ms(limits: &Limits, now_ms: u64, ttl_s: Option<u64>) -> u64 {
    let kept_s = ttl_s.unwrap_or(u64::MAX).min(limits.retention_s);
    hour_after(now_ms.saturating_add(kept_s.saturating_mul(1_000)))
}

/// The room for groups in a device's queue: what is not reserved for direct messages.
pub(crate) fn room(limits: &Limits) -> Room {
    Room {
        entries_max: limits.queue_entries_max.saturating_sub(limits.queue_direct_entries_max),
        bytes_max: limits.queue_bytes_max.saturating_sub(limits.queue_direct_bytes_max),
        group_entries_min: limits.queue_group_entries_min,
        group_bytes_min: limits.queue_group_bytes_min,
    }
}

/// Refuses with `too_large` if more than `max` bytes came.
pub(crate) fn bytes(name: &'static str, max: u64, actual: usize) -> Result<(), Error> {
    check(ErrorCode::TooLarge, name, max, actual as u64)
}

/// Refuses with `limit_reached` if there would be more than `max` of something.
pub(crate) fn count(name: &'static str, max: u64, actual: u64) -> Result<(), Error> {
    check(ErrorCode::LimitReached, name, max, actual)
}

fn check(code: ErrorCode, name: &'static str, max: u64, actual: u64) -> Result<(), Error> {
    if actual <= max {
        return Ok(());
    }
    Err(Error::OverLimit(code, LimitReached { name: name.to_owned(), value: max }))
}
