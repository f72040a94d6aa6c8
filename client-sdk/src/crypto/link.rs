//! Linking a device: the code that it shows, and what it and a device of the account tell each other by it.
//!
//! The code has a secret, from which both know the pipe between them, and the hash of the new device's key, to which all
//! answers are sealed. The secret is part of what they are sealed for, so that only who has seen the code can make one.
//!
//! Invariant: the relay, which keeps the pipe, knows neither; it can withhold what is in it, not read or replace it.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use undertone_wire::{
    Account, AccountId, Bytes, DeviceEntry, DeviceId, Encoding, GroupId, Hash, PipeId, PublicKey, RelayId,
    SignedDeviceList, Username,
};
use zeroize::{Zeroize, ZeroizeOnDrop};

use super::{
    CryptoError, Entropy, Suite,
    group::RejoinKey,
    identity::Seed,
    shown,
    xwing::{self, Purpose, SealingSecret},
};

const INFO: &[u8] = b"Undertone v1 link";
const PIPE: &[u8] = b"Undertone v1 link pipe";
const SECRET_BYTES: usize = 16;
const HASH_BYTES: usize = 32;

/// What the new device shows.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub(crate) struct LinkCode {
    secret: [u8; SECRET_BYTES],
    key_hash: [u8; HASH_BYTES],
}

/// Which part of the pipe.
#[derive(Clone, Copy)]
pub(crate) enum Part {
    /// The new device's [`Reply`].
    Reply,
    /// What the account hands over: a [`Handover`].
    Handover,
    /// Whether the new device is listed: a [`Verdict`].
    Verdict,
}

/// What a device hands over to a new one of its account.
#[derive(Serialize, Deserialize)]
pub(crate) struct Handover {
    /// To which the new device's reply is sealed.
    pub(crate) reply_key: Bytes,
    pub(crate) relay_id: RelayId,
    pub(crate) username: Option<Username>,
    /// Of the account's present identity key.
    pub(crate) identity_seed: Seed,
    pub(crate) device_list: SignedDeviceList,
    /// What the account's devices are called.
    pub(crate) names: Vec<(DeviceId, String)>,
    /// The accounts seen, as they are pinned.
    pub(crate) contacts: Vec<Account>,
    /// The accounts known (`false`) or blocked (`true`).
    pub(crate) standings: Vec<(AccountId, bool)>,
    /// What the user has said of identity keys, or still has to.
    pub(crate) trust: Vec<Trust>,
    pub(crate) groups: Vec<HandedGroup>,
    /// With whom there are direct conversations.
    pub(crate) directs: Vec<AccountId>,
}

/// What the user has said of an account's identity key.
#[derive(Serialize, Deserialize)]
pub(crate) struct Trust {
    pub(crate) account: AccountId,
    /// The one that was compared.
    pub(crate) verified: Option<PublicKey>,
    /// Whether it has changed since without the user having said anything to that.
    pub(crate) changed: bool,
}

/// A group, as far as one needs to know it to join it on one's own.
#[derive(Serialize, Deserialize)]
pub(crate) struct HandedGroup {
    pub(crate) id: GroupId,
    pub(crate) live: GroupId,
    pub(crate) suite: Suite,
    pub(crate) name: String,
    pub(crate) commit_seq: u64,
    pub(crate) rejoin_key: RejoinKey,
}

/// What the new device says to that.
#[derive(Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum Reply {
    /// It wants to be listed.
    Joins { entry: DeviceEntry, name: String },
    /// Its user does not want that account.
    Declines {},
}

/// What came of it.
#[derive(Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum Verdict {
    /// The new device is in this list, which the relay has taken.
    Listed { device_list: SignedDeviceList },
    /// It is not.
    Refused { why: String },
}

impl LinkCode {
    /// A new one, for this key.
    pub(crate) fn new(entropy: Entropy, key: &SealingSecret) -> Result<Self, CryptoError> {
        let key_hash = *Hash::of(key.public()?.as_slice()).as_bytes();
        Ok(Self { secret: entropy.bytes()?, key_hash })
    }

    /// The pipe by which the two devices speak.
    pub(crate) fn pipe(&self) -> PipeId {
        let digest = Hash::of(&[PIPE, &self.secret].concat());
        let (first, _) = digest.as_bytes().split_at(16);
        PipeId::from_random(std::array::from_fn(|at| first.get(at).copied().unwrap_or_default()))
    }

    /// Whether this is the key of the device that shows the code.
    pub(crate) fn is_of(&self, key: &Bytes) -> bool {
        *Hash::of(key.as_slice()).as_bytes() == self.key_hash
    }

    /// Seals a part of the conversation to the key of the other.
    pub(crate) fn seal<T: Serialize>(
        &self,
        entropy: Entropy,
        key: &Bytes,
        part: Part,
        said: &T,
    ) -> Result<Bytes, CryptoError> {
        let plaintext = zeroize::Zeroizing::new(Encoding::Cbor.encode(said));
        xwing::seal(entropy, key.as_slice(), self.purpose(part).borrow(), &plaintext, 0)
    }

    /// Opens what the other has sealed.
    pub(crate) fn open<T: DeserializeOwned>(
        &self,
        key: &SealingSecret,
        part: Part,
        sealed: &Bytes,
    ) -> Result<T, CryptoError> {
        let plaintext = key.open(self.purpose(part).borrow(), sealed.as_slice())?;
        Encoding::Cbor.decode(&plaintext).map_err(CryptoError::invalid)
    }

    /// What stands in the place of an answer when the key in the pipe is not the one that the code is for.
    pub(crate) fn no_answer(entropy: Entropy) -> Result<Bytes, CryptoError> {
        xwing::of_nothing(entropy, super::PADDING_BYTES)
    }

    fn purpose(&self, part: Part) -> Sealed {
        Sealed { info: [INFO, &[part as u8], &self.secret].concat(), key_hash: self.key_hash }
    }
}

/// What a part is sealed for.
struct Sealed {
    info: Vec<u8>,
    key_hash: [u8; HASH_BYTES],
}

impl Sealed {
    fn borrow(&self) -> Purpose<'_> {
        Purpose { info: &self.info, authenticated: &self.key_hash }
    }
}

/// As it is shown: letters and digits that can be read aloud, in either case.
impl fmt::Display for LinkCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&shown::write(&[self.secret.as_slice(), &self.key_hash].concat()))
    }
}

impl fmt::Debug for LinkCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LinkCode(..)")
    }
}

impl FromStr for LinkCode {
    type Err = CryptoError;

    fn from_str(text: &str) -> Result<Self, CryptoError> {
        let none = || CryptoError::Invalid("this is not the code of a device that is to be linked".into());
        let bytes = shown::read(text).ok_or_else(none)?;
        let (secret, key_hash) = bytes.split_first_chunk().ok_or_else(none)?;
        Ok(Self { secret: *secret, key_hash: key_hash.try_into().map_err(|_| none())? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code() -> (LinkCode, SealingSecret) {
        let key = SealingSecret::new(Entropy::system()).unwrap();
        (LinkCode::new(Entropy::system(), &key).unwrap(), key)
    }

    #[test]
    fn a_code_is_read_as_it_was_shown_and_a_mistyped_one_is_none() {
        let (code, _) = code();
        let shown = code.to_string();
        assert_eq!(shown.len(), 80);
        let spaced = shown.to_lowercase().chars().collect::<Vec<_>>();
        let spaced: String = spaced.chunks(4).map(|four| four.iter().collect::<String>() + "- ").collect();
        for text in [shown.clone(), spaced] {
            assert_eq!(text.parse::<LinkCode>().unwrap(), code);
        }
        for at in 0..shown.len() {
            let mut other = shown.clone().into_bytes();
            other[at] = if other[at] == b'A' { b'B' } else { b'A' };
            assert!(String::from_utf8(other).unwrap().parse::<LinkCode>().is_err(), "letter {at}");
        }
        for text in ["", "A", "0189", &shown[1..], &format!("{shown}AAAAAAAA")] {
            assert!(text.parse::<LinkCode>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_sealed_is_for_one_code_one_key_and_one_part() {
        let ((code, key), (other_code, other_key)) = (code(), code());
        let entropy = Entropy::system();
        let public = key.public().unwrap();
        assert!(code.is_of(&public) && !other_code.is_of(&public));
        assert_ne!(code.pipe(), other_code.pipe());
        let sealed = code.seal(entropy, &public, Part::Verdict, &Reply::Declines {}).unwrap();
        assert!(code.open::<Reply>(&key, Part::Verdict, &sealed).is_ok());
        assert!(code.open::<Reply>(&key, Part::Reply, &sealed).is_err());
        assert!(code.open::<Reply>(&other_key, Part::Verdict, &sealed).is_err());
        assert!(other_code.open::<Reply>(&key, Part::Verdict, &sealed).is_err());
        // Who knows the key, which stands in the pipe, but not the secret.
        let without = LinkCode { secret: [0; SECRET_BYTES], ..code.clone() };
        let sealed = without.seal(entropy, &public, Part::Verdict, &Reply::Declines {}).unwrap();
        assert!(code.open::<Reply>(&key, Part::Verdict, &sealed).is_err());
        let nothing = LinkCode::no_answer(entropy).unwrap();
        assert!(code.open::<Handover>(&key, Part::Handover, &nothing).is_err());
    }
}
