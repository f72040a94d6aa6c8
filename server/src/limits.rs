//! Limits: comparing what came with what is allowed. The limits themselves are [`undertone_wire::Limits`].
//!
//! Invariant: going over a limit is refused with the limit's name and value.

use undertone_wire::{ErrorCode, LimitReached};

use crate::error::Error;

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
