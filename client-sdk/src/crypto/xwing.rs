//! Sealing bytes to a key, so that nobody else can read them and nobody can tell how many they are.
//!
//! Format: version (1 byte, 1) | encapsulated key (1,120 bytes) | ciphertext and tag. It is HPKE (RFC 9180) in Base mode
//! with X-Wing (KEM 0x647a), HKDF-SHA-256 and ChaCha20-Poly1305. The plaintext is padded.
//!
//! Invariant: what is sealed proves nothing about who has sealed it, but that they knew what it is for.

use chacha20::ChaCha20Rng;
use hpke::{
    Deserializable as _, Kem, OpModeR, OpModeS, Serializable as _,
    aead::ChaCha20Poly1305,
    kdf::HkdfSha256,
    kem::XWing,
    rand_core::{CryptoRng, Rng as _, SeedableRng as _},
    single_shot_open, single_shot_seal_with_rng,
};
use undertone_wire::Bytes;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::{
    CryptoError, Entropy,
    padding::{padded, unpadded},
};

const VERSION: u8 = 1;
const ENCAPSULATED_BYTES: usize = 1_120;
const TAG_BYTES: usize = 16;

/// The private half of an X-Wing key.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub(crate) struct SealingSecret([u8; 32]);

/// What something sealed is for. It can be opened for nothing else.
#[derive(Clone, Copy)]
pub(super) struct Purpose<'a> {
    /// HPKE's `info`.
    pub(super) info: &'a [u8],
    /// What is authenticated beside.
    pub(super) authenticated: &'a [u8],
}

impl SealingSecret {
    /// A new one.
    pub(crate) fn new(entropy: Entropy) -> Result<Self, CryptoError> {
        Ok(Self(entropy.bytes()?))
    }

    /// The public half.
    pub(crate) fn public(&self) -> Result<Bytes, CryptoError> {
        Ok(XWing::sk_to_pk(&self.key()?).to_bytes().to_vec().into())
    }

    /// From what was stored.
    pub(crate) fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// As it is stored.
    pub(crate) fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    fn key(&self) -> Result<<XWing as Kem>::PrivateKey, CryptoError> {
        <XWing as Kem>::PrivateKey::from_bytes(&self.0).map_err(CryptoError::storage)
    }

    /// Opens what was sealed to this key.
    pub(super) fn open(&self, purpose: Purpose<'_>, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, CryptoError> {
        let Some((&[VERSION], rest)) = sealed.split_first_chunk::<1>() else {
            return Err(CryptoError::Invalid("it is sealed by another version".into()));
        };
        let Some((encapsulated, ciphertext)) = rest.split_at_checked(ENCAPSULATED_BYTES) else {
            return Err(CryptoError::Invalid("what is sealed ends too early".into()));
        };
        let encapsulated = <XWing as Kem>::EncappedKey::from_bytes(encapsulated).map_err(CryptoError::invalid)?;
        let (mode, secret) = (OpModeR::Base, self.key()?);
        let padded = single_shot_open::<ChaCha20Poly1305, HkdfSha256, XWing>(
            &mode,
            &secret,
            &encapsulated,
            purpose.info,
            ciphertext,
            purpose.authenticated,
        );
        let plaintext = unpadded(padded.map_err(CryptoError::invalid)?);
        plaintext.map(Zeroizing::new).ok_or_else(|| CryptoError::Invalid("it is not padded".into()))
    }
}

/// Seals to the public half of a key, padded to at least so many bytes.
pub(super) fn seal(
    entropy: Entropy,
    key: &[u8],
    purpose: Purpose<'_>,
    plaintext: &[u8],
    bytes_min: usize,
) -> Result<Bytes, CryptoError> {
    seal_with(&mut ChaCha20Rng::from_seed(entropy.bytes()?), key, purpose, plaintext, bytes_min)
}

/// The same with randomness that is given.
pub(super) fn seal_with(
    random: &mut impl CryptoRng,
    key: &[u8],
    purpose: Purpose<'_>,
    plaintext: &[u8],
    bytes_min: usize,
) -> Result<Bytes, CryptoError> {
    let key = <XWing as Kem>::PublicKey::from_bytes(key).map_err(CryptoError::invalid)?;
    let (mode, padded) = (OpModeS::Base, Zeroizing::new(padded(plaintext, bytes_min)));
    let (info, authenticated) = (purpose.info, purpose.authenticated);
    let sealed = single_shot_seal_with_rng::<ChaCha20Poly1305, HkdfSha256, XWing>(
        &mode,
        &key,
        info,
        &padded,
        authenticated,
        random,
    );
    let (encapsulated, ciphertext) = sealed.map_err(CryptoError::invalid)?;
    Ok([[VERSION].as_slice(), &encapsulated.to_bytes(), &ciphertext].concat().into())
}

/// What nobody can open, of the size of so many padded bytes.
pub(super) fn of_nothing(entropy: Entropy, padded_bytes: usize) -> Result<Bytes, CryptoError> {
    let mut bytes = vec![0; 1 + ENCAPSULATED_BYTES + padded_bytes + TAG_BYTES];
    ChaCha20Rng::from_seed(entropy.bytes()?).fill_bytes(&mut bytes);
    if let Some(version) = bytes.first_mut() {
        *version = VERSION;
    }
    Ok(bytes.into())
}
