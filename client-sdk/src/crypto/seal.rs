//! Sealing with a secret that a group exports: one secret for many seals, each under a fresh random salt.
//!
//! Format: version (1 byte, 1) | salt (32 bytes) | ciphertext and tag. Key and nonce are HKDF-SHA-256 (RFC 5869) of
//! the secret with the salt; the cipher is ChaCha20-Poly1305 (RFC 8439); group id and commit number are authenticated.

use openmls_traits::{
    crypto::OpenMlsCrypto as _,
    random::OpenMlsRand as _,
    types::{AeadType, HashType},
};
use undertone_wire::GroupId;
use zeroize::Zeroizing;

use super::{CryptoError, Provider};

const VERSION: u8 = 1;
const SALT_BYTES: usize = 32;
const KEY_BYTES: usize = 32;
const NONCE_BYTES: usize = 12;

/// What is sealed. Each has keys of its own.
#[derive(Clone, Copy)]
#[cfg_attr(test, derive(serde::Deserialize), serde(rename_all = "snake_case"))]
pub(super) enum Kind {
    /// A group info, for those who may rejoin; the secret is the rejoin key.
    GroupInfo,
    /// What is said in passing; the secret is the epoch's for that.
    Ephemeral,
}

impl Kind {
    fn label(self) -> &'static [u8] {
        match self {
            Self::GroupInfo => b"Undertone v1 sealed group info",
            Self::Ephemeral => b"Undertone v1 ephemeral",
        }
    }
}

/// What it belongs to.
#[derive(Clone, Copy)]
pub(super) struct Position {
    pub(super) group: GroupId,
    /// The number of the commit that began the epoch.
    pub(super) commit_seq: u64,
}

impl Position {
    fn authenticated(self) -> Vec<u8> {
        [self.group.as_bytes().as_slice(), &self.commit_seq.to_be_bytes()].concat()
    }
}

/// Seals `plaintext` with a secret.
pub(super) fn seal(
    provider: &impl Provider,
    kind: Kind,
    secret: &[u8],
    position: Position,
    plaintext: &[u8],
) -> Result<Vec<u8>, CryptoError> {
    let salt = provider.rand().random_array::<SALT_BYTES>().map_err(CryptoError::storage)?;
    seal_with(provider, kind, secret, &salt, position, plaintext)
}

fn seal_with(
    provider: &impl Provider,
    kind: Kind,
    secret: &[u8],
    salt: &[u8; SALT_BYTES],
    position: Position,
    plaintext: &[u8],
) -> Result<Vec<u8>, CryptoError> {
    let (key, nonce) = derive(provider, kind, secret, salt)?;
    let ciphertext = provider
        .crypto()
        .aead_encrypt(AeadType::ChaCha20Poly1305, &key, plaintext, &nonce, &position.authenticated())
        .map_err(CryptoError::invalid)?;
    Ok([[VERSION].as_slice(), salt, &ciphertext].concat())
}

/// Opens what [`seal`] made.
pub(super) fn open(
    provider: &impl Provider,
    kind: Kind,
    secret: &[u8],
    position: Position,
    sealed: &[u8],
) -> Result<Vec<u8>, CryptoError> {
    let Some((&[VERSION], rest)) = sealed.split_first_chunk::<1>() else {
        return Err(CryptoError::Invalid("it is sealed by another version".into()));
    };
    let Some((salt, ciphertext)) = rest.split_first_chunk::<SALT_BYTES>() else {
        return Err(CryptoError::Invalid("what is sealed ends too early".into()));
    };
    let (key, nonce) = derive(provider, kind, secret, salt)?;
    provider
        .crypto()
        .aead_decrypt(AeadType::ChaCha20Poly1305, &key, ciphertext, &nonce, &position.authenticated())
        .map_err(CryptoError::invalid)
}

type KeyAndNonce = (Zeroizing<Vec<u8>>, [u8; NONCE_BYTES]);

fn derive(provider: &impl Provider, kind: Kind, secret: &[u8], salt: &[u8]) -> Result<KeyAndNonce, CryptoError> {
    let crypto = provider.crypto();
    let pseudorandom = crypto.hkdf_extract(HashType::Sha2_256, salt, secret).map_err(CryptoError::invalid)?;
    let okm = crypto
        .hkdf_expand(HashType::Sha2_256, pseudorandom.as_slice(), kind.label(), KEY_BYTES + NONCE_BYTES)
        .map_err(CryptoError::invalid)?;
    let (key, nonce) = okm.as_slice().split_at(KEY_BYTES);
    let nonce = nonce.try_into().map_err(CryptoError::invalid)?;
    Ok((Zeroizing::new(key.to_vec()), nonce))
}

#[cfg(test)]
mod tests {
    use openmls_rust_crypto::OpenMlsRustCrypto;
    use undertone_wire::{Bytes, Encoding};

    use super::{Kind::GroupInfo, *};

    /// `spec/vectors/sealed.json`; how to read it is in the README beside it.
    #[derive(serde::Deserialize)]
    struct Vector {
        kind: Kind,
        secret: Bytes,
        salt: Bytes,
        group_id: GroupId,
        commit_seq: u64,
        plaintext: Bytes,
        sealed: Bytes,
    }

    #[test]
    fn the_vectors_hold() {
        let file = include_bytes!("../../../spec/vectors/sealed.json");
        let vectors: Vec<Vector> = Encoding::Json.decode(file).unwrap();
        assert!(!vectors.is_empty());
        let provider = OpenMlsRustCrypto::default();
        for vector in vectors {
            let position = Position { group: vector.group_id, commit_seq: vector.commit_seq };
            let (kind, secret, plaintext) = (vector.kind, vector.secret.as_slice(), vector.plaintext.as_slice());
            let salt = vector.salt.as_slice().try_into().unwrap();
            let sealed = seal_with(&provider, kind, secret, salt, position, plaintext).unwrap();
            assert_eq!(Bytes::from(sealed), vector.sealed);
            assert_eq!(open(&provider, kind, secret, position, vector.sealed.as_slice()).unwrap(), plaintext);
        }
    }

    #[test]
    fn opens_only_with_the_key_and_for_the_position_it_was_sealed_for() {
        let provider = OpenMlsRustCrypto::default();
        let here = Position { group: GroupId::from_random([1; 16]), commit_seq: 7 };
        let sealed = seal(&provider, GroupInfo, b"rejoin key", here, b"group info").unwrap();
        assert_eq!(open(&provider, GroupInfo, b"rejoin key", here, &sealed).unwrap(), b"group info");
        assert!(open(&provider, GroupInfo, b"another key", here, &sealed).is_err());
        assert!(open(&provider, Kind::Ephemeral, b"rejoin key", here, &sealed).is_err());
        assert!(open(&provider, GroupInfo, b"rejoin key", Position { commit_seq: 8, ..here }, &sealed).is_err());
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(open(&provider, GroupInfo, b"rejoin key", here, &changed).is_err(), "byte {at} is not covered");
        }
        assert_ne!(sealed, seal(&provider, GroupInfo, b"rejoin key", here, b"group info").unwrap(), "salts are fresh");
    }
}
