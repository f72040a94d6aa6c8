//! The credential in an MLS leaf: why a member may speak for an account.
//!
//! Invariant: whether a credential holds depends on its own bytes and the leaf's signature key only, never on a clock,
//! a device list or a pin, so that all members of a group agree on it.

use serde::{Deserialize, Serialize};

use crate::{
    AccountId, Certificate, DecodeError, DeviceListError, Encoding, PublicKey, Rotation, SignedCertificate,
    verify_rotations,
};

/// The identity of an MLS basic credential (RFC 9420, section 5.3), in CBOR.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeafCredential {
    /// The account's first identity key, to which its id commits.
    pub first_identity_key: PublicKey,
    /// The changes of the identity key up to the one that issued the certificate.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rotations: Vec<Rotation>,
    /// The device's certificate.
    pub certificate: SignedCertificate,
}

/// Why a credential does not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CredentialError {
    /// The bytes are not a credential.
    #[error("the credential cannot be decoded: {0}")]
    Malformed(#[from] DecodeError),
    /// The certificate or the chain of identity keys does not hold.
    #[error(transparent)]
    Certificate(#[from] DeviceListError),
    /// The certificate is for another MLS signing key than the leaf's.
    #[error("the certificate is for another signature key than the leaf's")]
    OtherKey,
}

impl LeafCredential {
    /// The credential's bytes.
    pub fn encode(&self) -> Vec<u8> {
        Encoding::Cbor.encode(self)
    }

    /// A credential from its bytes, not yet verified.
    pub fn decode(bytes: &[u8]) -> Result<Self, CredentialError> {
        Ok(Encoding::Cbor.decode(bytes)?)
    }

    /// The certificate, if the credential holds for a leaf whose signature key is `leaf_key`.
    pub fn verify(&self, leaf_key: &[u8]) -> Result<Certificate, CredentialError> {
        let account = AccountId::from_identity_key(&self.first_identity_key);
        let identity = verify_rotations(&account, &self.first_identity_key, &self.rotations)?;
        let certificate = self.certificate.verify(&identity)?;
        if certificate.account != account {
            return Err(DeviceListError::OtherAccount.into());
        }
        if certificate.mls_key.as_bytes() != leaf_key {
            return Err(CredentialError::OtherKey);
        }
        Ok(certificate)
    }
}
