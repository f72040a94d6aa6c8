//! What is inside a session's message: who writes to whom, and what.
//!
//! Invariant: what a session carries is taken only if it names both ends of the session, so that nobody can pass on as
//! their own what was written to them.

use serde::{Deserialize, Serialize};
use undertone_wire::{AccountId, Bytes, DeviceEntry, DeviceList, Encoding, PublicKey, X25519Key};

use super::{CryptoError, Member};

/// The highest generation of a session that is taken. Those of a restored store begin at the hours since 1970.
const GENERATION_MAX: u64 = u32::MAX as u64;

/// A device of an account, with the keys that its certificate covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Correspondent {
    pub(crate) member: Member,
    pub(crate) device_key: PublicKey,
    pub(crate) olm_key: X25519Key,
}

/// A direct message, as it is encrypted for one device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Note {
    pub(crate) from: Member,
    pub(crate) to: Member,
    /// The version of the receiver's device list for which it was written. That of the author's is in the content.
    pub(crate) to_list_version: u64,
    /// The account with which the author's conversation is: the receiver, unless the receiver is another device of the
    /// author's own account.
    pub(crate) with: AccountId,
    /// Of the session: see the store.
    pub(crate) generation: u64,
    /// Encoded.
    pub(crate) content: Bytes,
}

impl Correspondent {
    /// The devices of a verified list, in ascending order.
    pub(crate) fn all(list: &DeviceList) -> Result<Vec<Self>, CryptoError> {
        list.devices.iter().map(|entry| Self::of(list.account, entry)).collect()
    }

    fn of(account: AccountId, entry: &DeviceEntry) -> Result<Self, CryptoError> {
        let certificate = entry.certificate.unverified().map_err(CryptoError::invalid)?;
        let keys = entry.key_set().map_err(CryptoError::invalid)?;
        let member = Member { account, device: certificate.device };
        Ok(Self { member, device_key: keys.device_key, olm_key: keys.olm_key })
    }
}

impl Note {
    pub(crate) fn encode(&self) -> Vec<u8> {
        Encoding::Cbor.encode(self)
    }

    /// What a session's message says, if it is between its two ends.
    pub(crate) fn decode(bytes: &[u8], from: Member, to: Member) -> Result<Self, CryptoError> {
        let note: Self = Encoding::Cbor.decode(bytes).map_err(CryptoError::invalid)?;
        if note.generation > GENERATION_MAX {
            return Err(CryptoError::Invalid("there are not so many generations of sessions".into()));
        }
        if note.from != from || note.to != to {
            return Err(CryptoError::Invalid("it was written by somebody else, or to somebody else".into()));
        }
        Ok(note)
    }

    /// Whose conversation with the receiver it belongs to. Between others than these two accounts there is none.
    pub(crate) fn conversation(&self) -> Result<AccountId, CryptoError> {
        let own = self.from.account == self.to.account;
        match (own, self.with == self.to.account) {
            // Of the author's own devices among each other, if it is with none.
            (true, _) => Ok(self.with),
            (false, true) => Ok(self.from.account),
            _ => Err(CryptoError::Invalid("it belongs to a conversation of others".into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use undertone_wire::{DeviceId, PublicKey};

    use super::*;

    fn member(account: u8, device: u8) -> Member {
        let account = AccountId::from_identity_key(&PublicKey::from([account; 32]));
        Member { account, device: DeviceId::from_random([device; 16]) }
    }

    fn note(from: Member, to: Member, with: Member) -> Note {
        let (with, content) = (with.account, b"content".as_slice().into());
        Note { from, to, to_list_version: 1, with, generation: 0, content }
    }

    #[test]
    fn a_note_is_between_the_ends_of_its_session() {
        let (alice, bob, mallory) = (member(1, 1), member(2, 2), member(3, 3));
        let bytes = note(alice, bob, bob).encode();
        assert!(Note::decode(&bytes, alice, bob).is_ok());
        assert!(Note::decode(&bytes, mallory, bob).is_err(), "mallory passes on what alice has written");
        assert!(Note::decode(&bytes, alice, mallory).is_err());
        assert!(Note::decode(&bytes, member(1, 9), bob).is_err());
        assert!(Note::decode(b"\xff", alice, bob).is_err());
        for (generation, is_taken) in [(GENERATION_MAX, true), (GENERATION_MAX + 1, false), (u64::MAX, false)] {
            let bytes = Note { generation, ..note(alice, bob, bob) }.encode();
            assert_eq!(Note::decode(&bytes, alice, bob).is_ok(), is_taken, "{generation}");
        }
    }

    #[test]
    fn a_note_belongs_to_the_conversation_of_two_accounts_on_all_their_devices() {
        let (alice, of_alice, bob, carol) = (member(1, 1), member(1, 4), member(2, 2), member(3, 3));
        assert_eq!(note(alice, bob, bob).conversation().unwrap(), alice.account);
        assert_eq!(note(alice, of_alice, bob).conversation().unwrap(), bob.account);
        assert!(note(alice, bob, carol).conversation().is_err());
        assert_eq!(note(alice, of_alice, alice).conversation().unwrap(), alice.account);
    }
}
