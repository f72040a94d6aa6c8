//! What is said in a group in passing: sealed with a secret that the epoch exports, so that no ratchet moves.
//!
//! The plaintext is padded by 0x80 and zeros to a multiple of 256 bytes.
//!
//! Invariant: it proves that a member said it, and not which one; no state changes, however much of it is lost.

use undertone_wire::{Bytes, GroupId};

use super::{
    CryptoError, PADDING_BYTES, Provider,
    group::export,
    seal::{self, Kind, Position},
};

const LABEL: &str = "Undertone ephemeral";

/// Seals for the group's members in its present epoch, which the commit `at` began.
pub(crate) fn seal(provider: &impl Provider, group: GroupId, at: u64, content: &[u8]) -> Result<Bytes, CryptoError> {
    let secret = export(provider, group, LABEL)?;
    let position = Position { group, commit_seq: at };
    Ok(seal::seal(provider, Kind::Ephemeral, &secret, position, &padded(content))?.into())
}

/// Opens what a member has sealed in the group's present epoch, which the commit `at` began.
pub(crate) fn open(provider: &impl Provider, group: GroupId, at: u64, sealed: &[u8]) -> Result<Vec<u8>, CryptoError> {
    let secret = export(provider, group, LABEL)?;
    let position = Position { group, commit_seq: at };
    let padded = seal::open(provider, Kind::Ephemeral, &secret, position, sealed)?;
    unpadded(padded).ok_or_else(|| CryptoError::Invalid("it is not padded".into()))
}

fn padded(content: &[u8]) -> Vec<u8> {
    let mut padded = [content, &[0x80]].concat();
    padded.resize(padded.len().next_multiple_of(PADDING_BYTES), 0);
    padded
}

fn unpadded(mut padded: Vec<u8>) -> Option<Vec<u8>> {
    let end = padded.iter().rposition(|byte| *byte != 0).filter(|at| padded.get(*at) == Some(&0x80))?;
    padded.truncate(end);
    Some(padded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_comes_off_and_tells_the_length_in_steps() {
        for length in [0, 1, 255, 256, 257] {
            let content = vec![0x80; length];
            let padded = padded(&content);
            assert_eq!(padded.len(), (length / PADDING_BYTES + 1) * PADDING_BYTES);
            assert_eq!(unpadded(padded), Some(content));
        }
        for not_padded in [vec![], vec![0, 0], vec![0x80, 1, 0]] {
            assert_eq!(unpadded(not_padded), None);
        }
    }
}
