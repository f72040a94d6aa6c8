//! Sealing group infos for those who may rejoin: one key for many seals, each under a fresh random salt.
//!
//! Format: version (1 byte, 1) | salt (32 bytes) | ciphertext and tag. Key and nonce are HKDF-SHA-256 (RFC 5869) of
//! the rejoin key with the salt; the cipher is ChaCha20-Poly1305 (RFC 8439); group id and commit number are
//! authenticated.

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
const LABEL: &[u8] = b"Undertone v1 sealed group info";

/// What a sealed group info belongs to.
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

/// Seals `plaintext` with a rejoin key.
pub(super) fn seal(
    provider: &impl Provider,
    rejoin_key: &[u8],
    position: Position,
    plaintext: &[u8],
) -> Result<Vec<u8>, CryptoError> {
    let salt = provider.rand().random_array::<SALT_BYTES>().map_err(CryptoError::storage)?;
    seal_with(provider, rejoin_key, &salt, position, plaintext)
}

fn seal_with(
    provider: &impl Provider,
    rejoin_key: &[u8],
    salt: &[u8; SALT_BYTES],
    position: Position,
    plaintext: &[u8],
) -> Result<Vec<u8>, CryptoError> {
    let (key, nonce) = derive(provider, rejoin_key, salt)?;
    let ciphertext = provider
        .crypto()
        .aead_encrypt(AeadType::ChaCha20Poly1305, &key, plaintext, &nonce, &position.authenticated())
        .map_err(CryptoError::invalid)?;
    Ok([[VERSION].as_slice(), salt, &ciphertext].concat())
}

/// Opens what [`seal`] made.
pub(super) fn open(
    provider: &impl Provider,
    rejoin_key: &[u8],
    position: Position,
    sealed: &[u8],
) -> Result<Vec<u8>, CryptoError> {
    let Some((&[VERSION], rest)) = sealed.split_first_chunk::<1>() else {
        return Err(CryptoError::Invalid("a sealed group info of another version".into()));
    };
    let Some((salt, ciphertext)) = rest.split_first_chunk::<SALT_BYTES>() else {
        return Err(CryptoError::Invalid("a sealed group info that ends too early".into()));
    };
    let (key, nonce) = derive(provider, rejoin_key, salt)?;
    provider
        .crypto()
        .aead_decrypt(AeadType::ChaCha20Poly1305, &key, ciphertext, &nonce, &position.authenticated())
        .map_err(CryptoError::invalid)
}

type KeyAndNonce = (Zeroizing<Vec<u8>>, [u8; NONCE_BYTES]);

fn derive(provider: &impl Provider, rejoin_key: &[u8], salt: &[u8]) -> Result<KeyAndNonce, CryptoError> {
    let crypto = provider.crypto();
    let secret = crypto.hkdf_extract(HashType::Sha2_256, salt, rejoin_key).map_err(CryptoError::invalid)?;
    let okm = crypto
        .hkdf_expand(HashType::Sha2_256, secret.as_slice(), LABEL, KEY_BYTES + NONCE_BYTES)
        .map_err(CryptoError::invalid)?;
    let (key, nonce) = okm.as_slice().split_at(KEY_BYTES);
    let nonce = nonce.try_into().map_err(CryptoError::invalid)?;
    Ok((Zeroizing::new(key.to_vec()), nonce))
}

#[cfg(test)]
mod tests {
    use openmls_rust_crypto::OpenMlsRustCrypto;
    use undertone_wire::{Bytes, Encoding};

    use super::*;

    /// `spec/vectors/sealed-group-info.json`; how to read it is in the README beside it.
    #[derive(serde::Deserialize)]
    struct Vector {
        rejoin_key: Bytes,
        salt: Bytes,
        group_id: GroupId,
        commit_seq: u64,
        group_info: Bytes,
        sealed: Bytes,
    }

    #[test]
    fn the_vectors_hold() {
        let file = include_bytes!("../../../spec/vectors/sealed-group-info.json");
        let vectors: Vec<Vector> = Encoding::Json.decode(file).unwrap();
        assert!(!vectors.is_empty());
        let provider = OpenMlsRustCrypto::default();
        for vector in vectors {
            let position = Position { group: vector.group_id, commit_seq: vector.commit_seq };
            let (key, plaintext) = (vector.rejoin_key.as_slice(), vector.group_info.as_slice());
            let salt = vector.salt.as_slice().try_into().unwrap();
            let sealed = seal_with(&provider, key, salt, position, plaintext).unwrap();
            assert_eq!(Bytes::from(sealed), vector.sealed);
            assert_eq!(open(&provider, key, position, vector.sealed.as_slice()).unwrap(), plaintext);
        }
    }

    #[test]
    fn opens_only_with_the_key_and_for_the_position_it_was_sealed_for() {
        let provider = OpenMlsRustCrypto::default();
        let here = Position { group: GroupId::from_random([1; 16]), commit_seq: 7 };
        let sealed = seal(&provider, b"rejoin key", here, b"group info").unwrap();
        assert_eq!(open(&provider, b"rejoin key", here, &sealed).unwrap(), b"group info");
        assert!(open(&provider, b"another key", here, &sealed).is_err());
        assert!(open(&provider, b"rejoin key", Position { commit_seq: 8, ..here }, &sealed).is_err());
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(open(&provider, b"rejoin key", here, &changed).is_err(), "byte {at} is not covered");
        }
        assert_ne!(sealed, seal(&provider, b"rejoin key", here, b"group info").unwrap(), "salts are fresh");
    }
}
