//! Recovery keys: what the user writes down, to have the last word on the account when devices are lost or stolen.
//!
//! Written: the 32 bytes of the Ed25519 seed, the account's id, and the first 2 bytes of the SHA-256 of both, in base32 (RFC
//! 4648) without padding, in groups of four.

use std::{fmt, str::FromStr};

use undertone_wire::{AccountId, PublicKey, public_key};
use zeroize::Zeroizing;

use super::{CryptoError, Entropy, identity::Seed, shown};

/// The private half of a recovery key, and whose it is.
#[derive(Clone)]
pub(crate) struct RecoverySecret {
    pub(super) seed: Seed,
    pub(crate) account: AccountId,
}

impl RecoverySecret {
    /// A new one.
    pub(crate) fn new(entropy: Entropy, account: AccountId) -> Result<Self, CryptoError> {
        Ok(Self { seed: Seed::new(entropy)?, account })
    }

    /// The public half.
    pub(crate) fn key(&self) -> PublicKey {
        public_key(self.seed.as_bytes())
    }

    /// The seed of the key.
    pub(crate) fn seed(&self) -> &[u8; 32] {
        self.seed.as_bytes()
    }
}

impl fmt::Display for RecoverySecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = shown::write(&Zeroizing::new([self.seed.as_bytes().as_slice(), self.account.as_bytes()].concat()));
        for (at, letter) in text.chars().enumerate() {
            if at > 0 && at % 4 == 0 {
                f.write_str(" ")?;
            }
            write!(f, "{letter}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for RecoverySecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RecoverySecret(..)")
    }
}

impl FromStr for RecoverySecret {
    type Err = CryptoError;

    fn from_str(text: &str) -> Result<Self, CryptoError> {
        let none = || CryptoError::Invalid("this is not a recovery key, or something in it is mistyped".into());
        let bytes = shown::read(text).ok_or_else(none)?;
        let (seed, account) = bytes.split_first_chunk().ok_or_else(none)?;
        Ok(Self { seed: Seed::from_bytes(*seed), account: AccountId::try_from(account).map_err(|_| none())? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recovery_key_is_read_as_it_was_written_down() {
        let account = AccountId::from_identity_key(&PublicKey::from([7; 32]));
        let secret = RecoverySecret::new(Entropy::system(), account).unwrap();
        let written = secret.to_string();
        assert_eq!((written.len(), written.split(' ').count()), (99, 20));
        for text in [written.clone(), written.to_lowercase().replace(' ', ""), written.replace(' ', "-")] {
            let read: RecoverySecret = text.parse().unwrap();
            assert_eq!((read.key(), read.account), (secret.key(), account));
        }
        for text in ["", "ABCD", &written[5..], &written.replacen(&written[..1], "7", 1)] {
            let read = text.parse::<RecoverySecret>();
            assert!(read.is_err() || written.starts_with('7'), "{text}");
        }
    }
}
