//! The cipher suites that groups have (RFC 9420, section 17.1).
//!
//! Invariant: a group has the suite with which it was created for as long as it lives, and so do those that go on in its
//! place.

use openmls_traits::types::Ciphersuite;
use serde::{Deserialize, Serialize};
use undertone_wire::suite;

use super::CryptoError;

/// Most devices of a hybrid group, whose tree has more than two kilobytes for each.
const HYBRID_DEVICES_MAX: usize = 100;

/// The cipher suite of a group. Its signatures are Ed25519's in each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "u16", into = "u16")]
pub(crate) enum Suite {
    /// X25519 with ChaCha20-Poly1305.
    #[default]
    Classic,
    /// ML-KEM-768 and X25519, of which both have to be broken, with AES-128-GCM.
    Hybrid,
}

impl Suite {
    /// All that there are.
    pub(crate) const ALL: [Self; 2] = [Self::Classic, Self::Hybrid];

    /// Its number at the relay.
    pub(crate) fn number(self) -> u16 {
        match self {
            Self::Classic => suite::DEFAULT,
            Self::Hybrid => suite::HYBRID,
        }
    }

    /// How many devices a group of it may have, if there is a limit beside the relay's.
    pub(crate) fn devices_max(self) -> Option<usize> {
        match self {
            Self::Classic => None,
            Self::Hybrid => Some(HYBRID_DEVICES_MAX),
        }
    }

    /// How openmls calls it.
    pub(super) fn mls(self) -> Ciphersuite {
        match self {
            Self::Classic => Ciphersuite::MLS_128_DHKEMX25519_CHACHA20POLY1305_SHA256_Ed25519,
            Self::Hybrid => Ciphersuite::MLS_128_MLKEM768X25519_AES128GCM_SHA256_Ed25519,
        }
    }

    /// The one that openmls calls so.
    pub(super) fn of(mls: Ciphersuite) -> Result<Self, CryptoError> {
        Self::try_from(u16::from(mls)).map_err(CryptoError::Invalid)
    }
}

impl TryFrom<u16> for Suite {
    type Error = String;

    fn try_from(number: u16) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|one| one.number() == number);
        known.ok_or_else(|| format!("{number:#06x} is no cipher suite of ours"))
    }
}

impl From<Suite> for u16 {
    fn from(suite: Suite) -> Self {
        suite.number()
    }
}

#[cfg(test)]
mod tests {
    use openmls_rust_crypto::OpenMlsRustCrypto;
    use openmls_traits::{OpenMlsProvider as _, crypto::OpenMlsCrypto as _, types::HpkeCiphertext};
    use undertone_wire::{Bytes, Encoding};

    use super::*;

    /// `spec/vectors/hybrid.json`; how to read it is in the README beside it.
    #[derive(Deserialize)]
    struct Vector {
        suite: u16,
        private_key: Bytes,
        public_key: Bytes,
        info: Bytes,
        authenticated: Bytes,
        plaintext: Bytes,
        seed: Bytes,
        derived_public_key: Bytes,
        encapsulated_key: Bytes,
        ciphertext: Bytes,
    }

    /// What another version of openmls made is opened by this one, and the other way round.
    #[test]
    fn the_keys_of_hybrid_groups_are_those_of_others() {
        let vector: Vector = Encoding::Json.decode(include_bytes!("../../../spec/vectors/hybrid.json")).unwrap();
        let suite = Suite::try_from(vector.suite).unwrap();
        assert_eq!(suite, Suite::Hybrid);
        let (provider, config) = (OpenMlsRustCrypto::default(), || suite.mls().hpke_config());
        let (crypto, info, authenticated) =
            (provider.crypto(), vector.info.as_slice(), vector.authenticated.as_slice());
        let open = |sealed: &HpkeCiphertext| {
            crypto.hpke_open(config(), sealed, vector.private_key.as_slice(), info, authenticated).unwrap()
        };
        let sealed = HpkeCiphertext {
            kem_output: vector.encapsulated_key.as_slice().into(),
            ciphertext: vector.ciphertext.as_slice().into(),
        };
        assert_eq!(open(&sealed), vector.plaintext.as_slice());
        // Of a path, and of the key by which others join on their own.
        let derived = crypto.derive_hpke_keypair(config(), vector.seed.as_slice()).unwrap();
        assert_eq!(derived.public, vector.derived_public_key.as_slice());
        let again =
            crypto.hpke_seal(config(), vector.public_key.as_slice(), info, authenticated, vector.plaintext.as_slice());
        assert_eq!(open(&again.unwrap()), vector.plaintext.as_slice());
    }

    #[test]
    fn a_suite_is_known_by_its_number() {
        for suite in Suite::ALL {
            assert_eq!(Suite::try_from(suite.number()), Ok(suite));
            assert_eq!(Suite::of(suite.mls()).unwrap(), suite);
        }
        assert!(Suite::try_from(1).is_err());
        assert_eq!(Suite::ALL.map(Suite::number), suite::MLS);
    }
}
