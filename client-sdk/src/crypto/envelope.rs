//! Envelopes of direct messages: sealed to one device ([`xwing`]), so that the relay learns neither who writes
//! nor how much. The receiving device's id is authenticated. The plaintext is a [`Letter`] in CBOR.
//!
//! Invariant: an envelope proves nothing about its sender. Who that is, the session inside proves.

use serde::{Deserialize, Serialize};
use undertone_wire::{Bytes, DeviceId, Encoding};

use super::{
    CryptoError, Entropy, Member,
    padding::padded_length,
    session::SessionMessage,
    xwing::{self, Purpose, SealingSecret},
};

const INFO: &[u8] = b"Undertone v1 direct";

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
    xwing::seal(entropy, key, purpose(&device), &Encoding::Cbor.encode(letter), bytes_min)
}

/// What nobody can open, of the size of a letter of so many padded bytes.
pub(crate) fn of_nothing(entropy: Entropy, padded_bytes: usize) -> Result<Bytes, CryptoError> {
    xwing::of_nothing(entropy, padded_bytes)
}

/// Opens what was sealed to a key for a device.
pub(crate) fn open(secret: &SealingSecret, device: DeviceId, sealed: &[u8]) -> Result<Letter, CryptoError> {
    Encoding::Cbor.decode(&secret.open(purpose(&device), sealed)?).map_err(CryptoError::invalid)
}

fn purpose(device: &DeviceId) -> Purpose<'_> {
    Purpose { info: INFO, authenticated: device.as_bytes() }
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
            let secret = SealingSecret::from_bytes(vector.secret.as_slice().try_into().unwrap());
            assert_eq!(secret.public().unwrap(), vector.sealing_key);
            let (key, letter, device) = (vector.sealing_key.as_slice(), vector.letter.as_slice(), vector.device_id);
            let mut drawn = Drawn(vector.randomness.into_vec());
            let sealed = xwing::seal_with(&mut drawn, key, purpose(&device), letter, vector.bytes_min).unwrap();
            assert_eq!(sealed, vector.envelope);
            assert!(drawn.0.is_empty());
            assert_eq!(*secret.open(purpose(&device), vector.envelope.as_slice()).unwrap(), letter);
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
        assert_eq!(open(&secret, device(2), sealed.as_slice()).unwrap(), letter());
        assert!(open(&secret, device(3), sealed.as_slice()).is_err());
        assert!(open(&other, device(2), sealed.as_slice()).is_err());
        for at in (0..sealed.len()).step_by(13).chain([0, 1, 1_120, 1_121, sealed.len() - 1]) {
            let mut changed = sealed.clone().into_vec();
            changed[at] ^= 1;
            assert!(open(&secret, device(2), &changed).is_err(), "byte {at}");
        }
        for length in [0, 1, 2, 1_120, 1_121, 1_136, sealed.len() - 1] {
            assert!(open(&secret, device(2), &sealed.as_slice()[..length]).is_err(), "{length} bytes");
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
