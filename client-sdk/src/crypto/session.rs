//! Olm sessions between devices, and what they begin with: this device's Olm account with its prekeys.
//!
//! An account and a session are values that the caller keeps. Whatever changes one is followed by storing it, in the
//! transaction of what was encrypted or decrypted.
//!
//! Invariant: sessions are of Olm's version 2, whose messages carry whole authentication codes; no other is begun or
//! accepted.

use serde::{Deserialize, Serialize};
use undertone_wire::{Encoding, X25519Key};
use vodozemac::{
    Curve25519PublicKey,
    olm::{self, OlmMessage, SessionConfig},
};
use zeroize::Zeroizing;

use super::CryptoError;

const CONFIG: SessionConfig = SessionConfig::version_2();

/// The identity key of this device's sessions, and the private halves of its prekeys.
pub(crate) struct OlmAccount(olm::Account);

/// One end of a session with another device.
pub(crate) struct Session(olm::Session);

/// What a session encrypts to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SessionMessage {
    /// Whether it can begin the session at the other end.
    pub(super) first: bool,
    #[serde(with = "as_bytes")]
    pub(super) message: Vec<u8>,
}

/// A message that was read: what it is, and of which session.
pub(crate) struct Read(OlmMessage);

mod as_bytes {
    use serde::{Deserialize, Deserializer, Serialize as _, Serializer};
    use undertone_wire::Bytes;

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        Bytes::from(bytes).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        Bytes::deserialize(deserializer).map(Bytes::into_vec)
    }
}

impl OlmAccount {
    /// The account of a new device, without prekeys.
    pub(crate) fn new() -> Self {
        Self(olm::Account::new())
    }

    /// The identity key, which the device's certificate covers.
    pub(crate) fn olm_key(&self) -> X25519Key {
        X25519Key::from(self.0.curve25519_key().to_bytes())
    }

    /// So many new one-time prekeys.
    pub(crate) fn make_prekeys(&mut self, count: usize) -> Vec<X25519Key> {
        let made = self.0.generate_one_time_keys(count);
        self.0.mark_keys_as_published();
        made.created.iter().map(|key| X25519Key::from(key.to_bytes())).collect()
    }

    /// A new fallback prekey. The one before works on until the next, the one before that no longer.
    pub(crate) fn make_fallback(&mut self) -> Result<X25519Key, CryptoError> {
        self.0.generate_fallback_key();
        let made = self.0.fallback_key().into_values().next();
        self.0.mark_keys_as_published();
        let made = made.ok_or_else(|| CryptoError::Storage("no fallback prekey was made".into()))?;
        Ok(X25519Key::from(made.to_bytes()))
    }

    /// The private half of a one-time prekey is not needed any more.
    pub(crate) fn forget(&mut self, prekey: X25519Key) {
        self.0.remove_one_time_key(curve(prekey));
    }

    /// Begins a session with the device whose identity key is `olm_key` and one of whose prekeys is `prekey`.
    pub(crate) fn begin(&self, olm_key: X25519Key, prekey: X25519Key) -> Result<Session, CryptoError> {
        let begun = self.0.create_outbound_session(CONFIG, curve(olm_key), curve(prekey));
        begun.map(Session).map_err(CryptoError::invalid)
    }

    /// Begins the session that a message begins, of the device whose identity key is `olm_key`, and decrypts it. The
    /// prekey is spent, if it is a one-time one.
    pub(crate) fn accept(
        &mut self,
        olm_key: X25519Key,
        read: &Read,
    ) -> Result<(Session, Zeroizing<Vec<u8>>), CryptoError> {
        let OlmMessage::PreKey(message) = &read.0 else {
            return Err(CryptoError::Invalid("a message of a session that is not known here".into()));
        };
        let begun = self.0.create_inbound_session(CONFIG, curve(olm_key), message).map_err(CryptoError::invalid)?;
        Ok((Session(begun.session), begun.plaintext.into()))
    }

    /// As it is stored.
    pub(crate) fn pickle(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(Encoding::Cbor.encode(&self.0.pickle()))
    }

    /// From what was stored.
    pub(crate) fn from_pickle(pickle: &[u8]) -> Result<Self, CryptoError> {
        let pickle = Encoding::Cbor.decode(pickle).map_err(CryptoError::storage)?;
        Ok(Self(olm::Account::from_pickle(pickle)))
    }
}

impl Session {
    /// What it is called, at both ends.
    pub(crate) fn id(&self) -> String {
        self.0.session_id()
    }

    /// Encrypts. Until the other end is heard of, every message can begin the session there.
    pub(crate) fn encrypt(&mut self, plaintext: &[u8]) -> Result<SessionMessage, CryptoError> {
        let (kind, message) = self.0.encrypt(plaintext).map_err(CryptoError::invalid)?.to_parts();
        Ok(SessionMessage { first: kind == 0, message })
    }

    /// Decrypts a message of this session.
    pub(crate) fn decrypt(&mut self, read: &Read) -> Result<Zeroizing<Vec<u8>>, CryptoError> {
        self.0.decrypt(&read.0).map(Zeroizing::new).map_err(CryptoError::invalid)
    }

    /// As it is stored.
    pub(crate) fn pickle(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(Encoding::Cbor.encode(&self.0.pickle()))
    }

    /// From what was stored.
    pub(crate) fn from_pickle(pickle: &[u8]) -> Result<Self, CryptoError> {
        let pickle = Encoding::Cbor.decode(pickle).map_err(CryptoError::storage)?;
        Ok(Self(olm::Session::from_pickle(pickle)))
    }
}

impl SessionMessage {
    /// What it is, as far as that can be told without a key.
    pub(crate) fn read(&self) -> Result<Read, CryptoError> {
        let message = OlmMessage::from_parts(usize::from(!self.first), &self.message).map_err(CryptoError::invalid)?;
        Ok(Read(message))
    }
}

impl Read {
    /// The session that it can begin, and by which prekey; `None` if it can only go on with one.
    pub(crate) fn begins(&self) -> Option<(String, X25519Key)> {
        match &self.0 {
            OlmMessage::PreKey(message) => {
                Some((message.session_id(), X25519Key::from(message.one_time_key().to_bytes())))
            }
            OlmMessage::Normal(_) => None,
        }
    }
}

fn curve(key: X25519Key) -> Curve25519PublicKey {
    Curve25519PublicKey::from_bytes(*key.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two accounts as they are after a restart.
    fn reopened(account: &OlmAccount) -> OlmAccount {
        OlmAccount::from_pickle(&account.pickle()).unwrap()
    }

    fn accepted(
        account: &mut OlmAccount,
        from: &OlmAccount,
        message: &SessionMessage,
    ) -> Result<(Session, Vec<u8>), CryptoError> {
        let (session, plaintext) = account.accept(from.olm_key(), &message.read()?)?;
        Ok((session, plaintext.to_vec()))
    }

    #[test]
    fn a_session_begins_with_a_prekey_and_goes_on_both_ways_after_restarts() {
        let (alice, mut bob) = (OlmAccount::new(), OlmAccount::new());
        let prekey = bob.make_prekeys(2)[1];
        let mut of_alice = alice.begin(bob.olm_key(), prekey).unwrap();
        let first = of_alice.encrypt(b"one").unwrap();
        assert_eq!(first.read().unwrap().begins(), Some((of_alice.id(), prekey)));

        let mut bob = reopened(&bob);
        let (of_bob, plaintext) = accepted(&mut bob, &alice, &first).unwrap();
        assert_eq!((of_bob.id(), plaintext), (of_alice.id(), b"one".to_vec()));
        let mut of_bob = Session::from_pickle(&of_bob.pickle()).unwrap();
        let second = of_alice.encrypt(b"two").unwrap();
        assert!(second.first, "the other end was not heard of");
        assert_eq!(*of_bob.decrypt(&second.read().unwrap()).unwrap(), b"two");

        let reply = of_bob.encrypt(b"three").unwrap();
        assert_eq!(reply.read().unwrap().begins(), None);
        let mut of_alice = Session::from_pickle(&of_alice.pickle()).unwrap();
        assert_eq!(*of_alice.decrypt(&reply.read().unwrap()).unwrap(), b"three");
        assert!(!of_alice.encrypt(b"four").unwrap().first);
        assert!(of_alice.decrypt(&reply.read().unwrap()).is_err(), "no message is read twice");
    }

    #[test]
    fn a_one_time_prekey_begins_one_session() {
        let (alice, mut bob) = (OlmAccount::new(), OlmAccount::new());
        let prekeys = bob.make_prekeys(2);
        let first = alice.begin(bob.olm_key(), prekeys[0]).unwrap().encrypt(b"one").unwrap();
        accepted(&mut bob, &alice, &first).unwrap();
        assert!(accepted(&mut bob, &alice, &first).is_err());
        bob.forget(prekeys[1]);
        let late = alice.begin(bob.olm_key(), prekeys[1]).unwrap().encrypt(b"two").unwrap();
        assert!(accepted(&mut bob, &alice, &late).is_err());
    }

    #[test]
    fn a_fallback_prekey_begins_many_sessions_until_the_one_after_the_next() {
        let (alice, mut bob) = (OlmAccount::new(), OlmAccount::new());
        let first = bob.make_fallback().unwrap();
        let message = || alice.begin(bob.olm_key(), first).unwrap().encrypt(b"hello").unwrap();
        let messages: Vec<_> = (0..4).map(|_| message()).collect();
        let mut bob = reopened(&bob);
        accepted(&mut bob, &alice, &messages[0]).unwrap();
        // The same once more: who keeps the account must remember what began by it.
        accepted(&mut bob, &alice, &messages[0]).unwrap();
        assert_ne!(bob.make_fallback().unwrap(), first);
        accepted(&mut bob, &alice, &messages[1]).unwrap();
        bob.make_fallback().unwrap();
        assert!(accepted(&mut bob, &alice, &messages[2]).is_err());
    }

    #[test]
    fn a_message_is_of_the_identity_key_that_is_expected_or_of_nobody() {
        let (alice, mut bob, mallory) = (OlmAccount::new(), OlmAccount::new(), OlmAccount::new());
        let prekey = bob.make_prekeys(1)[0];
        let first = alice.begin(bob.olm_key(), prekey).unwrap().encrypt(b"one").unwrap();
        assert!(accepted(&mut bob, &mallory, &first).is_err());
        let (_, plaintext) = accepted(&mut bob, &alice, &first).unwrap();
        assert_eq!(plaintext, b"one");
    }

    #[test]
    fn messages_without_a_whole_authentication_code_begin_nothing() {
        let (alice, mut bob) = (OlmAccount::new(), OlmAccount::new());
        let prekey = curve(bob.make_prekeys(1)[0]);
        let older = SessionConfig::version_1();
        let mut session = alice.0.create_outbound_session(older, curve(bob.olm_key()), prekey).unwrap();
        let (kind, message) = session.encrypt(b"one").unwrap().to_parts();
        let message = SessionMessage { first: kind == 0, message };
        assert!(accepted(&mut bob, &alice, &message).is_err());
    }

    #[test]
    fn no_bytes_are_read_that_are_no_message() {
        for first in [true, false] {
            for length in 0..80 {
                for byte in [0, 3, 4, 10, 255] {
                    assert!(SessionMessage { first, message: vec![byte; length] }.read().is_err());
                }
            }
        }
    }
}
