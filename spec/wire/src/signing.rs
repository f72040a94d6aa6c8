//! Ed25519 signatures with a purpose.
//!
//! Invariant: every signature is over `"Undertone v1 " || purpose || 0x00 || fields`, where each field has a fixed
//! length or is the last one. So no signature made for one purpose verifies for another, and none is an MLS signature
//! (RFC 9420, section 5.1.2, starts its input with a length that these bytes do not encode for any MLS label).

use ed25519_dalek::{Signer as _, SigningKey, VerifyingKey};

use crate::{PublicKey, Signature};

/// What a signature is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Domain {
    /// The identity key signs a device list: its bytes.
    DeviceList,
    /// The identity key signs a certificate: its bytes.
    Certificate,
    /// The device's MLS signing key accepts its certificate: its bytes.
    CertificateAcceptance,
    /// The identity key names a recovery key: account id, generation (8 bytes, big-endian), recovery key.
    RecoveryKey,
    /// A rotation's authority names the next identity key: account id, generation (8 bytes, big-endian), next key.
    Rotation,
    /// The recovery key speaks for an account that has lost its devices: relay id, account id, nonce, SHA-256 of the list's
    /// bytes (empty if there is none).
    Recovery,
    /// The identity key registers at a relay: relay id, SHA-256 of the list's bytes, username (empty if none).
    Registration,
    /// The device key logs in: relay id, device id, nonce.
    Login,
    /// The device key vouches for a prekey: device id, end of its life (8 bytes, big-endian), 1 if it is the fallback or 0,
    /// key.
    Prekey,
    /// The device key vouches for its sealing key: device id, end of its life (8 bytes, big-endian), key.
    SealingKey,
}

impl Domain {
    fn purpose(self) -> &'static str {
        match self {
            Self::DeviceList => "device list",
            Self::Certificate => "certificate",
            Self::CertificateAcceptance => "certificate acceptance",
            Self::RecoveryKey => "recovery key",
            Self::Rotation => "rotation",
            Self::Recovery => "recovery",
            Self::Registration => "registration",
            Self::Login => "login",
            Self::Prekey => "prekey",
            Self::SealingKey => "sealing key",
        }
    }

    /// The exact bytes that are signed.
    pub fn message(self, fields: &[&[u8]]) -> Vec<u8> {
        let mut message = Vec::from(b"Undertone v1 ");
        message.extend_from_slice(self.purpose().as_bytes());
        message.push(0);
        fields.iter().for_each(|field| message.extend_from_slice(field));
        message
    }
}

/// Signs `fields` for `domain` with the Ed25519 key whose 32-byte seed is `seed`.
pub fn sign(seed: &[u8; 32], domain: Domain, fields: &[&[u8]]) -> Signature {
    Signature::from(SigningKey::from_bytes(seed).sign(&domain.message(fields)).to_bytes())
}

/// The public key that belongs to a 32-byte seed.
pub fn public_key(seed: &[u8; 32]) -> PublicKey {
    PublicKey::from(SigningKey::from_bytes(seed).verifying_key().to_bytes())
}

/// Whether `signature` is `key`'s signature of `fields` for `domain`. Weak keys and non-canonical forms are refused.
pub fn verify(key: &PublicKey, domain: Domain, fields: &[&[u8]], signature: &Signature) -> bool {
    let Ok(key) = VerifyingKey::from_bytes(key.as_bytes()) else { return false };
    let signature = ed25519_dalek::Signature::from_bytes(signature.as_bytes());
    key.verify_strict(&domain.message(fields), &signature).is_ok()
}
