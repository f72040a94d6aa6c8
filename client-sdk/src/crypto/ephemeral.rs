//! What is said in a group in passing: sealed with a secret that the epoch exports, so that no ratchet moves.
//!
//! The plaintext is padded.
//!
//! Invariant: it proves that a member said it, and not which one; no state changes, however much of it is lost.

use undertone_wire::{Bytes, GroupId};

use super::{
    CryptoError, Provider,
    group::export,
    padding::{padded, unpadded},
    seal::{self, Kind, Position},
};

const LABEL: &str = "Undertone ephemeral";

/// Seals for the group's members in its present epoch, which the commit `at` began.
pub(crate) fn seal(provider: &impl Provider, group: GroupId, at: u64, content: &[u8]) -> Result<Bytes, CryptoError> {
    let secret = export(provider, group, LABEL)?;
    let position = Position { group, commit_seq: at };
    Ok(seal::seal(provider, Kind::Ephemeral, &secret, position, &padded(content, 0))?.into())
}

/// Opens what a member has sealed in the group's present epoch, which the commit `at` began.
pub(crate) fn open(provider: &impl Provider, group: GroupId, at: u64, sealed: &[u8]) -> Result<Vec<u8>, CryptoError> {
    let secret = export(provider, group, LABEL)?;
    let position = Position { group, commit_seq: at };
    let padded = seal::open(provider, Kind::Ephemeral, &secret, position, sealed)?;
    unpadded(padded).ok_or_else(|| CryptoError::Invalid("it is not padded".into()))
}
