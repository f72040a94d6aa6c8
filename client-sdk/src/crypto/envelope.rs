//! Envelopes of direct messages: sealed to one device, so that the relay learns neither who writes nor how much.
//!
//! Format: version (1 byte, 1) | encapsulated key (1,120 bytes) | ciphertext and tag. It is HPKE (RFC 9180) in Base mode
//! with X-Wing (KEM 0x647a), HKDF-SHA-256 and ChaCha20-Poly1305; the receiving device's id is authenticated. The plaintext
//! is a [`Letter`] in CBOR, padded.
//!
//! Invariant: an envelope proves nothing about its sender. Who that is, the session inside proves.

use chacha20::ChaCha20Rng;
use hpke::{
    Deserializable as _, Kem, OpModeR, OpModeS, Serializable as _,
    aead::ChaCha20Poly1305,
    kdf::HkdfSha256,
    kem::XWing,
    rand_core::{CryptoRng, Rng as _, SeedableRng as _},
    single_shot_open, single_shot_seal_with_rng,
};
use serde::{Deserialize, Serialize};
use undertone_wire::{Bytes, DeviceId, Encoding};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::{
    CryptoError, Entropy, Member,
    padding::{padded, padded_length, unpadded},
    session::SessionMessage,
};

const VERSION: u8 = 1;
const INFO: &[u8] = b"Undertone v1 direct";
const ENCAPSULATED_BYTES: usize = 1_120;
const TAG_BYTES: usize = 16;

/// The private half of a sealing key.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub(crate) struct SealingSecret([u8; 32]);

/// What is inside an envelope.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum Letter {
    /// A message of a session.
    Session {
        /// Whose session it is said to be: only a hint where to look for it.
        from: Member,
        message: SessionMessage,
    },
    /// Nothing to be read: to the device that sends the others, and to those to which nobody can write.
    Nothing {},
    /// A kind that a later version has made.
    #[serde(other)]
    Unknown,
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

    /// Opens what was sealed to this key for this device.
    pub(crate) fn open(&self, device: DeviceId, sealed: &[u8]) -> Result<Letter, CryptoError> {
        Encoding::Cbor.decode(&self.unsealed(device, sealed)?).map_err(CryptoError::invalid)
    }

    fn unsealed(&self, device: DeviceId, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, CryptoError> {
        let Some((&[VERSION], rest)) = sealed.split_first_chunk::<1>() else {
            return Err(CryptoError::Invalid("it is sealed by another version".into()));
        };
        let Some((encapsulated, ciphertext)) = rest.split_at_checked(ENCAPSULATED_BYTES) else {
            return Err(CryptoError::Invalid("what is sealed ends too early".into()));
        };
        let encapsulated = <XWing as Kem>::EncappedKey::from_bytes(encapsulated).map_err(CryptoError::invalid)?;
        let (mode, secret, aad) = (OpModeR::Base, self.key()?, device.as_bytes());
        let padded = single_shot_open::<ChaCha20Poly1305, HkdfSha256, XWing>(
            &mode,
            &secret,
            &encapsulated,
            INFO,
            ciphertext,
            aad,
        );
        let letter = unpadded(padded.map_err(CryptoError::invalid)?);
        letter.map(Zeroizing::new).ok_or_else(|| CryptoError::Invalid("it is not padded".into()))
    }
}

/// How many bytes a letter takes in an envelope, padding included.
pub(crate) fn padded_bytes(letter: &Letter) -> usize {
    padded_length(Encoding::Cbor.encode(letter).len())
}

/// Seals a letter to a device's sealing key, padded to at least so many bytes.
pub(crate) fn seal(
    entropy: Entropy,
    key: &[u8],
    device: DeviceId,
    letter: &Letter,
    bytes_min: usize,
) -> Result<Bytes, CryptoError> {
    let mut random = ChaCha20Rng::from_seed(entropy.bytes()?);
    seal_with(&mut random, key, device, &Encoding::Cbor.encode(letter), bytes_min)
}

/// What nobody can open, of the size of a letter of so many padded bytes.
pub(crate) fn of_nothing(entropy: Entropy, padded_bytes: usize) -> Result<Bytes, CryptoError> {
    let mut bytes = vec![0; 1 + ENCAPSULATED_BYTES + padded_bytes + TAG_BYTES];
    ChaCha20Rng::from_seed(entropy.bytes()?).fill_bytes(&mut bytes);
    if let Some(version) = bytes.first_mut() {
        *version = VERSION;
    }
    Ok(bytes.into())
}

fn seal_with(
    random: &mut impl CryptoRng,
    key: &[u8],
    device: DeviceId,
    letter: &[u8],
    bytes_min: usize,
) -> Result<Bytes, CryptoError> {
    let key = <XWing as Kem>::PublicKey::from_bytes(key).map_err(CryptoError::invalid)?;
    let (mode, padded, aad) = (OpModeS::Base, Zeroizing::new(padded(letter, bytes_min)), device.as_bytes());
    let sealed =
        single_shot_seal_with_rng::<ChaCha20Poly1305, HkdfSha256, XWing>(&mode, &key, INFO, &padded, aad, random);
    let (encapsulated, ciphertext) = sealed.map_err(CryptoError::invalid)?;
    Ok([[VERSION].as_slice(), &encapsulated.to_bytes(), &ciphertext].concat().into())
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use hpke::rand_core::{TryCryptoRng, TryRng};
    use undertone_wire::AccountId;

    use super::*;

    #[derive(Deserialize)]
    struct Vector {
        secret: Bytes,
        sealing_key: Bytes,
        device_id: DeviceId,
        randomness: Bytes,
        letter: Bytes,
        bytes_min: usize,
        envelope: Bytes,
    }

    /// Bytes that were drawn before, each given once.
    struct Drawn(Vec<u8>);

    impl TryRng for Drawn {
        type Error = Infallible;

        fn try_next_u32(&mut self) -> Result<u32, Infallible> {
            panic!("an encapsulation draws bytes")
        }
        fn try_next_u64(&mut self) -> Result<u64, Infallible> {
            panic!("an encapsulation draws bytes")
        }
        fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
            bytes.copy_from_slice(&self.0.drain(..bytes.len()).collect::<Vec<_>>());
            Ok(())
        }
    }

    impl TryCryptoRng for Drawn {}

    #[test]
    fn envelopes_are_those_of_the_vectors() {
        let vectors: Vec<Vector> =
            Encoding::Json.decode(include_bytes!("../../../spec/vectors/envelope.json")).unwrap();
        assert_eq!(vectors.len(), 4);
        for vector in vectors {
            let secret = SealingSecret(vector.secret.as_slice().try_into().unwrap());
            assert_eq!(secret.public().unwrap(), vector.sealing_key);
            let (key, letter, device) = (vector.sealing_key.as_slice(), vector.letter.as_slice(), vector.device_id);
            let mut drawn = Drawn(vector.randomness.into_vec());
            assert_eq!(seal_with(&mut drawn, key, device, letter, vector.bytes_min).unwrap(), vector.envelope);
            assert!(drawn.0.is_empty());
            assert_eq!(*secret.unsealed(device, vector.envelope.as_slice()).unwrap(), letter);
        }
    }

    fn device(byte: u8) -> DeviceId {
        DeviceId::from_random([byte; 16])
    }

    fn letter() -> Letter {
        let account = AccountId::from_identity_key(&undertone_wire::public_key(&[1; 32]));
        let message = SessionMessage { first: true, message: vec![7; 300] };
        Letter::Session { from: Member { account, device: device(1) }, message }
    }

    #[test]
    fn an_envelope_is_for_one_device_and_one_key_and_no_byte_of_it_can_be_changed() {
        let entropy = Entropy::system();
        let (secret, other) = (SealingSecret::new(entropy).unwrap(), SealingSecret::new(entropy).unwrap());
        let key = secret.public().unwrap();
        let sealed = seal(entropy, key.as_slice(), device(2), &letter(), 0).unwrap();
        assert_eq!(secret.open(device(2), sealed.as_slice()).unwrap(), letter());
        assert!(secret.open(device(3), sealed.as_slice()).is_err());
        assert!(other.open(device(2), sealed.as_slice()).is_err());
        for at in (0..sealed.len()).step_by(13).chain([0, 1, 1_120, 1_121, sealed.len() - 1]) {
            let mut changed = sealed.clone().into_vec();
            changed[at] ^= 1;
            assert!(secret.open(device(2), &changed).is_err(), "byte {at}");
        }
        for length in [0, 1, 2, 1_120, 1_121, 1_136, sealed.len() - 1] {
            assert!(secret.open(device(2), &sealed.as_slice()[..length]).is_err(), "{length} bytes");
        }
        assert_ne!(seal(entropy, key.as_slice(), device(2), &letter(), 0).unwrap(), sealed, "no two are alike");
        assert!(seal(entropy, &key.as_slice()[1..], device(2), &letter(), 0).is_err());
    }

    #[test]
    fn letters_of_the_same_padded_size_make_envelopes_of_the_same_size() {
        let entropy = Entropy::system();
        let key = SealingSecret::new(entropy).unwrap().public().unwrap();
        let size = padded_bytes(&letter());
        let sealed = |letter: &Letter| seal(entropy, key.as_slice(), device(2), letter, size).unwrap().len();
        assert_eq!(sealed(&letter()), sealed(&Letter::Nothing {}));
        assert_eq!(sealed(&letter()), of_nothing(entropy, size).unwrap().len());
    }

    #[test]
    fn a_letter_of_a_later_version_is_told_apart() {
        #[derive(Serialize)]
        struct Later {
            kind: &'static str,
            colour: u8,
        }
        let bytes = Encoding::Cbor.encode(&Later { kind: "painted", colour: 3 });
        assert_eq!(Encoding::Cbor.decode::<Letter>(&bytes).unwrap(), Letter::Unknown);
    }
}
