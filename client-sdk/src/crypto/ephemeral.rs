//! What is said in passing, sealed so that no ratchet moves: in a group with a secret that the epoch exports, directly to the
//! sealing keys of devices.
//!
//! The plaintext is padded.
//!
//! Invariant: in a group it proves that a member said it, and not which one; directly it proves nothing. No state changes,
//! however much of it is lost.

use undertone_wire::{Bytes, DeviceId, GroupId};
use zeroize::Zeroizing;

use super::{
    CryptoError, Entropy, Provider,
    group::export,
    padding::{padded, unpadded},
    seal::{self, Kind, Position},
    xwing::{self, Purpose, SealingSecret},
};

const LABEL: &str = "Undertone ephemeral";

const INFO: &[u8] = b"Undertone v1 direct ephemeral";

/// Seals for one device, to its sealing key.
pub(crate) fn seal_to(entropy: Entropy, key: &[u8], device: DeviceId, content: &[u8]) -> Result<Bytes, CryptoError> {
    xwing::seal(entropy, key, purpose(&device), content, 0)
}

/// Opens what was sealed for a device.
pub(crate) fn open_with(
    secret: &SealingSecret,
    device: DeviceId,
    sealed: &[u8],
) -> Result<Zeroizing<Vec<u8>>, CryptoError> {
    secret.open(purpose(&device), sealed)
}

fn purpose(device: &DeviceId) -> Purpose<'_> {
    Purpose { info: INFO, authenticated: device.as_bytes() }
}

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
