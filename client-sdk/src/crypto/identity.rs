//! Who this device is: its account's identity key, its own keys, and what they sign.
//!
//! The identity key signs device lists, the device key signs log-ins, prekeys and sealing keys, and the MLS key signs in
//! groups; none does another's work.

use std::fmt;

use openmls::prelude::{BasicCredential, CredentialWithKey, SignatureScheme};
use openmls_traits::signatures::{Signer, SignerError};
use serde::{Deserialize, Serialize};
use undertone_wire::{
    AccountId, Bytes, DeviceEntry, DeviceId, DeviceList, Encoding, InviteCode, KeySet, LeafCredential, LoginRequest,
    Nonce, Prekey, PublicKey, RecoveryKey, RegisterRequest, RelayId, Rotation, RotationAuthority, SealingKey,
    SignedDeviceList, Username, X25519Key, public_key,
};
use zeroize::{Zeroize, ZeroizeOnDrop};

use super::{CryptoError, Member, recovery_key::RecoverySecret};

/// Where random bytes come from.
#[derive(Clone, Copy)]
pub(crate) struct Entropy(fn(&mut [u8]) -> Result<(), getrandom::Error>);

impl Entropy {
    /// The operating system.
    pub(crate) fn system() -> Self {
        Self(getrandom::fill)
    }

    /// `N` random bytes.
    pub(crate) fn bytes<const N: usize>(self) -> Result<[u8; N], CryptoError> {
        let mut bytes = [0; N];
        (self.0)(&mut bytes).map_err(|error| CryptoError::Storage(format!("no random bytes: {error}")))?;
        Ok(bytes)
    }
}

impl fmt::Debug for Entropy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Entropy")
    }
}

/// So many seeds that others tell of wait for a list that is signed with one of them.
const TOLD_MAX: usize = 16;

/// An Ed25519 private key.
#[derive(Clone, Zeroize, ZeroizeOnDrop, Serialize, Deserialize)]
pub(crate) struct Seed([u8; 32]);

impl Seed {
    /// A new one.
    pub(super) fn new(entropy: Entropy) -> Result<Self, CryptoError> {
        Ok(Self(entropy.bytes()?))
    }

    pub(crate) fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// As it is told to the account's other devices.
    pub(crate) fn to_bytes(&self) -> Bytes {
        self.0.as_slice().into()
    }

    pub(super) fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// The secret keys of this device and what they stand for. Stored only in the encrypted local database.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Identity {
    account: AccountId,
    device: DeviceId,
    identity_seed: Seed,
    device_seed: Seed,
    mls_seed: Seed,
    /// The first list of the account, or of a device that was linked to it: the one before it was listed.
    list: SignedDeviceList,
    credential: LeafCredential,
    /// The seed of an identity key that was made here, for the account to have next.
    #[serde(default)]
    made: Option<Seed>,
    /// The seeds of identity keys that the account has, by the word of its other devices; the newest last.
    #[serde(default)]
    told: Vec<Seed>,
}

impl Identity {
    /// A new account with this device as its only one, whose Olm account has this identity key.
    pub(crate) fn create(entropy: Entropy, olm_key: X25519Key) -> Result<Self, CryptoError> {
        let identity_seed = Seed(entropy.bytes()?);
        let device_seed = Seed(entropy.bytes()?);
        let mls_seed = Seed(entropy.bytes()?);
        let device = DeviceId::from_random(entropy.bytes()?);
        let first_identity_key = public_key(&identity_seed.0);
        let account = AccountId::from_identity_key(&first_identity_key);
        let key_set = KeySet { device_key: public_key(&device_seed.0), olm_key };
        let entry = DeviceEntry::issue(account, &identity_seed.0, device, &key_set, &mls_seed.0);
        let certificate = entry.certificate.clone();
        let list = SignedDeviceList::sign(&DeviceList::first(first_identity_key, vec![entry]), &identity_seed.0);
        let credential = LeafCredential { first_identity_key, rotations: vec![], certificate };
        Ok(Self { account, device, identity_seed, device_seed, mls_seed, list, credential, made: None, told: vec![] })
    }

    /// A new device of the account that has this list, by the seed of its identity key. It is not listed yet.
    pub(crate) fn join(
        entropy: Entropy,
        olm_key: X25519Key,
        identity_seed: Seed,
        signed: &SignedDeviceList,
        list: &DeviceList,
    ) -> Result<(Self, DeviceEntry), CryptoError> {
        if public_key(&identity_seed.0) != list.identity_key() {
            return Err(CryptoError::Invalid("the identity key is not the account's".into()));
        }
        let (device_seed, mls_seed) = (Seed(entropy.bytes()?), Seed(entropy.bytes()?));
        let (account, device) = (list.account, DeviceId::from_random(entropy.bytes()?));
        let key_set = KeySet { device_key: public_key(&device_seed.0), olm_key };
        let entry = DeviceEntry::issue(account, &identity_seed.0, device, &key_set, &mls_seed.0);
        let (first_identity_key, rotations) = (list.first_identity_key, list.rotations.clone());
        let credential = LeafCredential { first_identity_key, rotations, certificate: entry.certificate.clone() };
        let list = signed.clone();
        let joined =
            Self { account, device, identity_seed, device_seed, mls_seed, list, credential, made: None, told: vec![] };
        Ok((joined, entry))
    }

    /// Whether the account began with this device.
    pub(crate) fn is_first(&self) -> bool {
        let list = Encoding::Cbor.decode::<DeviceList>(self.list.list.as_slice());
        list.is_ok_and(|list| list.devices.iter().any(|entry| entry.certificate == self.credential.certificate))
    }

    /// The seed of the identity key, for another device of the account.
    pub(crate) fn seed(&self) -> Seed {
        self.identity_seed.clone()
    }

    /// The list that follows this one, with other devices.
    pub(crate) fn next_list(
        &self,
        signed: &SignedDeviceList,
        change: impl FnOnce(&mut Vec<DeviceEntry>),
    ) -> Result<SignedDeviceList, CryptoError> {
        let mut next = self.list_after(signed)?;
        change(&mut next.devices);
        self.signed(next, &self.identity_seed)
    }

    /// The same with this recovery key.
    pub(crate) fn list_with_recovery_key(
        &self,
        signed: &SignedDeviceList,
        recovery: &RecoverySecret,
    ) -> Result<SignedDeviceList, CryptoError> {
        let mut next = self.list_after(signed)?;
        let generation = next.generation();
        next.recovery_key = Some(RecoveryKey::name(&self.account, generation, recovery.key(), &self.identity_seed.0));
        self.signed(next, &self.identity_seed)
    }

    /// The same with other devices, of the identity key that comes next ([`Identity::prepare_next`]): by the word of the
    /// recovery key, if the account has named one, or of the present identity key.
    pub(crate) fn list_of_next_key(
        &self,
        signed: &SignedDeviceList,
        recovery: Option<&RecoverySecret>,
        change: impl FnOnce(&mut Vec<DeviceEntry>),
    ) -> Result<SignedDeviceList, CryptoError> {
        let next_seed = self.made.as_ref();
        let next_seed = next_seed.ok_or_else(|| CryptoError::Invalid("no other identity key was made".into()))?;
        let mut next = self.list_after(signed)?;
        let signer = recovery.map_or(Authority::Identity(&self.identity_seed), Authority::Recovery);
        rotate(&mut next, next_seed, signer)?;
        change(&mut next.devices);
        self.signed(next, next_seed)
    }

    /// The list that follows, with nothing changed yet.
    fn list_after(&self, signed: &SignedDeviceList) -> Result<DeviceList, CryptoError> {
        let before = signed.verify(&self.account).map_err(CryptoError::invalid)?;
        if before.identity_key() != public_key(&self.identity_seed.0) {
            return Err(CryptoError::Invalid("the account has another identity key than this device".into()));
        }
        Ok(after(before, signed))
    }

    fn signed(&self, mut next: DeviceList, identity: &Seed) -> Result<SignedDeviceList, CryptoError> {
        let device = |entry: &DeviceEntry| entry.certificate.unverified().map(|certificate| certificate.device).ok();
        next.devices.sort_by_key(device);
        let next = SignedDeviceList::sign(&next, &identity.0);
        next.verify(&self.account).map_err(CryptoError::invalid)?;
        Ok(next)
    }

    /// With another identity key at hand, made here, which the account is to have next. One that was made already stays: the
    /// relay may have heard of it.
    pub(crate) fn prepare_next(&self, entropy: Entropy) -> Result<Self, CryptoError> {
        let made = match &self.made {
            Some(seed) => seed.clone(),
            None => Seed(entropy.bytes()?),
        };
        Ok(Self { made: Some(made), ..self.clone() })
    }

    /// With the seed of an identity key that the account has, by the word of another of its devices. It counts only once a
    /// list is signed with it, and never for what is made here.
    pub(crate) fn expecting(&self, seed: Seed) -> Self {
        let older = self.told.len().saturating_sub(TOLD_MAX - 1);
        let told = self.told.iter().skip(older).cloned().chain([seed]).collect();
        Self { told, ..self.clone() }
    }

    /// What this device is by its account's verified list: `None` if that is what it is already, or it is not listed.
    pub(crate) fn following(&self, list: &DeviceList) -> Option<Self> {
        let certificate = list.devices.iter().find(|entry| entry.is_of(self.device))?.certificate.clone();
        let (first_identity_key, rotations) = (list.first_identity_key, list.rotations.clone());
        let mut now = self.clone();
        now.credential = LeafCredential { first_identity_key, rotations, certificate };
        let is_present = |seed: &&Seed| public_key(&seed.0) == list.identity_key();
        if !self.has_identity_key_of(list)
            && let Some(seed) = self.made.iter().chain(&self.told).find(is_present)
        {
            now.identity_seed = seed.clone();
            now.made = now.made.filter(|made| !is_present(&made));
            now.told.clear();
        }
        let same = now.credential == self.credential && now.has_identity_key_of(list) == self.has_identity_key_of(list);
        (!same).then_some(now)
    }

    /// Whether the key that it has now is the one that was made for it by `before`.
    pub(crate) fn has_taken_what_was_made_by(&self, before: &Self) -> bool {
        before.made.as_ref().is_some_and(|made| made.0 == self.identity_seed.0)
    }

    /// Whether its leaves and key packages carry something else than those of `before`.
    pub(crate) fn has_other_credential_than(&self, before: &Self) -> bool {
        self.credential != before.credential
    }

    /// Whether a list names this device, with its certificate by the same or a later identity key.
    pub(crate) fn is_named_by(&self, list: &DeviceList) -> bool {
        let own = &self.credential.certificate;
        list.devices
            .iter()
            .any(|entry| entry.certificate.certificate == own.certificate && entry.certificate.accepted == own.accepted)
    }

    /// The list in which this device was not named yet, or the account's first.
    pub(crate) fn list_before(&self) -> &SignedDeviceList {
        &self.list
    }

    /// Whether this device has the account's identity key.
    pub(crate) fn has_identity_key_of(&self, list: &DeviceList) -> bool {
        public_key(&self.identity_seed.0) == list.identity_key()
    }

    /// A device of an account that has lost all others: by its recovery key, the only one of another identity key. It is listed
    /// in the list that comes with it.
    pub(crate) fn recover(
        entropy: Entropy,
        olm_key: X25519Key,
        recovery: &RecoverySecret,
        signed: &SignedDeviceList,
    ) -> Result<(Self, SignedDeviceList), CryptoError> {
        let before = signed.verify(&recovery.account).map_err(CryptoError::invalid)?;
        let mut next = after(before, signed);
        let identity_seed = Seed(entropy.bytes()?);
        rotate(&mut next, &identity_seed, Authority::Recovery(recovery))?;
        next.devices.clear();
        let (recovered, entry) = Self::join(entropy, olm_key, identity_seed.clone(), signed, &next)?;
        next.devices.push(entry);
        let list = recovered.signed(next, &identity_seed)?;
        Ok((recovered, list))
    }

    /// What whoever has this identity key can make up of a device that is another's.
    #[cfg(test)]
    pub(crate) fn in_the_name_of(&self, device: DeviceId) -> Self {
        let (account, mls_seed) = (self.account, Seed([0xBA; 32]));
        let (mls_key, key_set) = (public_key(&mls_seed.0), undertone_wire::Hash::of(b"a key set"));
        let certificate = undertone_wire::Certificate { account, device, mls_key, key_set };
        let certificate = undertone_wire::SignedCertificate::issue(&certificate, &self.identity_seed.0, &mls_seed.0);
        let credential = LeafCredential { certificate, ..self.credential.clone() };
        Self { device, mls_seed, credential, ..self.clone() }
    }

    /// Somebody.
    #[cfg(test)]
    pub(crate) fn random() -> Self {
        Self::create(Entropy::system(), X25519Key::from([9; 32])).unwrap()
    }

    /// The account's list, as this device signed it.
    #[cfg(test)]
    pub(crate) fn device_list(&self) -> &SignedDeviceList {
        &self.list
    }

    /// The account.
    pub(crate) fn account(&self) -> AccountId {
        self.account
    }

    /// This device, as it is called in groups.
    pub(crate) fn member(&self) -> Member {
        Member { account: self.account, device: self.device }
    }

    /// This device.
    pub(crate) fn device(&self) -> DeviceId {
        self.device
    }

    /// The request that registers the account at a relay.
    pub(crate) fn registration(
        &self,
        relay: RelayId,
        username: Option<Username>,
        invite: Option<InviteCode>,
    ) -> RegisterRequest {
        RegisterRequest::sign(&relay, self.account, username, self.list.clone(), invite, &self.identity_seed.0)
    }

    /// The request that logs this device in at a relay.
    pub(crate) fn login(&self, relay: RelayId, nonce: Nonce) -> LoginRequest {
        LoginRequest::sign(&relay, self.device, nonce, &self.device_seed.0)
    }

    /// One of this device's prekeys, vouched for.
    pub(crate) fn prekey(&self, key: X25519Key, not_after_ms: u64, fallback: bool) -> Prekey {
        Prekey::sign(self.device, key, not_after_ms, fallback, &self.device_seed.0)
    }

    /// This device's sealing key, vouched for.
    pub(crate) fn sealing_key(&self, key: Bytes, not_after_ms: u64) -> SealingKey {
        SealingKey::sign(self.device, key, not_after_ms, &self.device_seed.0)
    }

    /// What this device's leaves and key packages carry.
    pub(super) fn credential(&self) -> CredentialWithKey {
        CredentialWithKey {
            credential: BasicCredential::new(self.credential.encode()).into(),
            signature_key: self.mls_key().as_bytes().to_vec().into(),
        }
    }

    /// The MLS key.
    pub(crate) fn mls_key(&self) -> PublicKey {
        public_key(&self.mls_seed.0)
    }
}

/// Who has the word on which identity key comes next.
enum Authority<'a> {
    Identity(&'a Seed),
    Recovery(&'a RecoverySecret),
}

/// The list that follows a verified one, with nothing changed yet.
fn after(before: DeviceList, signed: &SignedDeviceList) -> DeviceList {
    DeviceList { version: before.version + 1, previous: Some(signed.hash()), ..before }
}

/// Goes on with another identity key, which vouches for the devices and the recovery key of before.
fn rotate(list: &mut DeviceList, next: &Seed, by: Authority<'_>) -> Result<(), CryptoError> {
    let (account, generation) = (list.account, list.generation() + 1);
    let (authority, signer) = match (by, &list.recovery_key) {
        (Authority::Identity(seed), None) => (RotationAuthority::Identity, &seed.0),
        (Authority::Recovery(secret), Some(named)) if secret.key() == named.key && secret.account == account => {
            (RotationAuthority::Recovery(named.clone()), secret.seed.as_bytes())
        }
        (Authority::Identity(_), Some(_)) => {
            return Err(CryptoError::Invalid(
                "the account has a recovery key, without which this cannot be done".into(),
            ));
        }
        (Authority::Recovery(_), _) => {
            return Err(CryptoError::Invalid("this is not the account's recovery key".into()));
        }
    };
    list.rotations.push(Rotation::sign(&account, generation, public_key(&next.0), authority, signer));
    if let Some(named) = &list.recovery_key {
        list.recovery_key = Some(RecoveryKey::name(&account, generation, named.key, &next.0));
    }
    for entry in &mut list.devices {
        entry.certificate.issue_again(&next.0);
    }
    Ok(())
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Identity(..)")
    }
}

/// The MLS key's signatures. openmls forms the bytes (RFC 9420, section 5.1.2); this signs them as they are.
impl Signer for Identity {
    fn sign(&self, payload: &[u8]) -> Result<Vec<u8>, SignerError> {
        use ed25519_dalek::Signer as _;
        Ok(ed25519_dalek::SigningKey::from_bytes(&self.mls_seed.0).sign(payload).to_bytes().to_vec())
    }

    fn signature_scheme(&self) -> SignatureScheme {
        SignatureScheme::ED25519
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use undertone_wire::{Domain, verify};

    #[test]
    fn a_new_identity_holds_by_itself() {
        let identity = Identity::random();
        let list = identity.list.verify(&identity.account()).unwrap();
        assert_eq!((list.version, list.devices.len()), (1, 1));
        assert!(identity.is_first());
        let certificate = identity.credential.verify(identity.mls_key().as_bytes()).unwrap();
        assert_eq!((certificate.account, certificate.device), (identity.account(), identity.device()));
    }

    #[test]
    fn a_registration_is_for_one_relay_and_one_name() {
        let identity = Identity::random();
        let [here, there] = [1, 2].map(|byte| RelayId::from_random([byte; 16]));
        let request = identity.registration(here, "alice".parse().ok(), None);
        let key = public_key(&identity.identity_seed.0);
        let hash = request.device_list.hash();
        let holds = |relay: RelayId, name: &str| {
            let fields: &[&[u8]] = &[relay.as_bytes(), hash.as_bytes(), name.as_bytes()];
            verify(&key, Domain::Registration, fields, &request.signature)
        };
        assert!(holds(here, "alice"));
        assert!(!holds(there, "alice") && !holds(here, "mallory"));
    }
}
