//! Device lists: which devices an account has, signed by its identity key as a whole.
//!
//! A list and a certificate travel as the exact bytes that were signed, so that fields this version does not know
//! survive being stored and served. Verification is here because relay and SDK must agree on it.
//!
//! Invariant: a [`DeviceList`] that came out of [`SignedDeviceList::verify`] belongs to its account id, and every
//! device in it has accepted its certificate.

use serde::{Deserialize, Serialize};

use crate::{AccountId, Bytes, DeviceId, Domain, Encoding, Hash, PublicKey, Signature, X25519Key, verify};

/// Most changes of an identity key. Part of what makes a chain valid, so that all agree on it.
pub const ROTATIONS_MAX: usize = 64;

/// A [`DeviceList`] as its signer wrote it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SignedDeviceList {
    /// The list, in CBOR.
    pub list: Bytes,
    /// The current identity key's signature of `list` ([`Domain::DeviceList`]).
    pub signature: Signature,
}

/// What an account says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceList {
    /// The account.
    pub account: AccountId,
    /// Grows by one with each list; the first is 1.
    pub version: u64,
    /// SHA-256 of the bytes of the list before; absent in the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<Hash>,
    /// The account's first identity key, to which its id commits.
    pub first_identity_key: PublicKey,
    /// Every change of the identity key since, oldest first. Its length is the identity generation.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rotations: Vec<Rotation>,
    /// The key that may sign the next rotation if the identity key is lost or stolen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovery_key: Option<RecoveryKey>,
    /// The devices, in ascending order of their ids.
    pub devices: Vec<DeviceEntry>,
}

/// One device in a list: its certificate and the keys that the certificate covers by hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceEntry {
    /// The device's certificate.
    pub certificate: SignedCertificate,
    /// A [`KeySet`], in CBOR; its SHA-256 stands in the certificate.
    pub key_set: Bytes,
}

/// A [`Certificate`] with the signatures that make it valid.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedCertificate {
    /// The certificate, in CBOR.
    pub certificate: Bytes,
    /// The identity key's signature of `certificate` ([`Domain::Certificate`]).
    pub issued: Signature,
    /// The device's MLS signing key's signature of `certificate` ([`Domain::CertificateAcceptance`]).
    pub accepted: Signature,
}

/// The binding of a device to its account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// The account.
    pub account: AccountId,
    /// The device.
    pub device: DeviceId,
    /// The device's MLS signing key, one for its whole life.
    pub mls_key: PublicKey,
    /// SHA-256 of the device's [`KeySet`] as it stands in the list.
    pub key_set: Hash,
}

/// The long-lived keys of a device beside its MLS signing key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeySet {
    /// Signs log-ins, prekeys and sealing keys.
    pub device_key: PublicKey,
    /// The identity key of the device's Olm sessions.
    pub olm_key: X25519Key,
}

/// One change of an account's identity key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rotation {
    /// The identity key from this rotation on.
    pub identity_key: PublicKey,
    /// Who says so.
    pub authority: RotationAuthority,
    /// The authority's signature ([`Domain::Rotation`]).
    pub signature: Signature,
}

/// The key that signs a [`Rotation`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RotationAuthority {
    /// The identity key being replaced.
    Identity,
    /// The recovery key that the identity key being replaced had named.
    Recovery(RecoveryKey),
}

/// A recovery key, as named by the identity key of its time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoveryKey {
    /// The public half.
    pub key: PublicKey,
    /// The identity key's signature ([`Domain::RecoveryKey`]).
    pub signature: Signature,
}

/// Why a list, a certificate or a chain of rotations does not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceListError {
    /// The bytes are not what they should be.
    #[error("the device list, a certificate or a key set cannot be decoded")]
    Malformed,
    /// The list is another account's.
    #[error("the device list names another account")]
    OtherAccount,
    /// The account id does not commit to the first identity key.
    #[error("the account id does not belong to the first identity key")]
    NotCommitted,
    /// A rotation is not signed by an authority that may.
    #[error("the chain of identity keys is not signed as it must be")]
    BadRotation,
    /// The recovery key is not signed by the identity key.
    #[error("the recovery key is not signed by the identity key")]
    BadRecoveryKey,
    /// The list is not signed by the current identity key.
    #[error("the device list is not signed by the account's identity key")]
    BadSignature,
    /// A certificate is not signed by identity key and device.
    #[error("a certificate is not signed by both the identity key and the device")]
    BadCertificate,
    /// Devices are missing, repeated or out of order.
    #[error("a device list needs at least one device, each once, in ascending order")]
    BadDevices,
    /// The list drops or replaces the recovery key that the one before has named, or goes on without its word.
    #[error("only the recovery key changes the identity key of who has named one, and nothing the recovery key")]
    NotRecovered,
    /// The list does not continue the one before.
    #[error("the device list does not continue the one before it")]
    NotNext,
}

impl SignedDeviceList {
    /// Signs a list with the identity key whose seed is `identity`.
    pub fn sign(list: &DeviceList, identity: &[u8; 32]) -> Self {
        let list = Encoding::Cbor.encode(list);
        let signature = crate::sign(identity, Domain::DeviceList, &[&list]);
        Self { list: list.into(), signature }
    }

    /// SHA-256 of the list's bytes, which the next list names as `previous`.
    pub fn hash(&self) -> Hash {
        Hash::of(self.list.as_slice())
    }

    /// The list, if all that it says about `account` holds by itself. Whether it is the newest is another question.
    pub fn verify(&self, account: &AccountId) -> Result<DeviceList, DeviceListError> {
        let list: DeviceList = Encoding::Cbor.decode(self.list.as_slice()).map_err(|_| DeviceListError::Malformed)?;
        if list.account != *account {
            return Err(DeviceListError::OtherAccount);
        }
        let identity = verify_rotations(account, &list.first_identity_key, &list.rotations)?;
        if !verify(&identity, Domain::DeviceList, &[self.list.as_slice()], &self.signature) {
            return Err(DeviceListError::BadSignature);
        }
        if let Some(recovery) = &list.recovery_key
            && !recovery.named_by(&identity, account, list.generation())
        {
            return Err(DeviceListError::BadRecoveryKey);
        }
        list.check_devices(&identity)?;
        Ok(list)
    }
}

impl DeviceList {
    /// The first list of the account whose first identity key is this, with these devices in ascending order.
    pub fn first(first_identity_key: PublicKey, devices: Vec<DeviceEntry>) -> Self {
        let account = AccountId::from_identity_key(&first_identity_key);
        Self { account, version: 1, previous: None, first_identity_key, rotations: vec![], recovery_key: None, devices }
    }

    /// How many times the identity key has changed.
    pub fn generation(&self) -> u64 {
        self.rotations.len() as u64
    }

    /// The identity key that signs this list.
    pub fn identity_key(&self) -> PublicKey {
        self.rotations.last().map_or(self.first_identity_key, |rotation| rotation.identity_key)
    }

    /// The certificates in the list, decoded.
    pub fn certificates(&self) -> impl Iterator<Item = Result<Certificate, DeviceListError>> {
        self.devices.iter().map(|entry| entry.certificate.unverified())
    }

    /// Whether this verified list is the direct successor of `before`, whose bytes hash to `before_hash`: the next
    /// version, naming the one before, with the same or a longer chain of identity keys, and no device's key changed.
    pub fn continues(&self, before: &Self, before_hash: &Hash) -> Result<(), DeviceListError> {
        let next = self.account == before.account
            && Some(self.version) == before.version.checked_add(1)
            && self.previous.as_ref() == Some(before_hash)
            && self.first_identity_key == before.first_identity_key
            && chain_continues(&self.rotations, &before.rotations);
        if !next {
            return Err(DeviceListError::NotNext);
        }
        self.keeps_recovery_key(before)?;
        self.keeps_devices(before)
    }

    /// Whether each device that this verified list, however much later than `before` it is, has in common with that has the same
    /// MLS key there: a device's name is for one life.
    pub fn keeps_devices(&self, before: &Self) -> Result<(), DeviceListError> {
        let old: Vec<_> = before.certificates().collect::<Result<_, _>>()?;
        for certificate in self.certificates() {
            let certificate = certificate?;
            let changed = |old: &&Certificate| old.device == certificate.device && old.mls_key != certificate.mls_key;
            if old.iter().any(|old| changed(&old)) {
                return Err(DeviceListError::NotNext);
            }
        }
        Ok(())
    }

    /// Whether this verified list, however much later than `before` it is, does with the recovery key named there what it may:
    /// whoever has an identity key alone can neither drop or replace it nor go on with another identity key, and there is one
    /// recovery key for the life of an account. So its owner has the last word.
    pub fn keeps_recovery_key(&self, before: &Self) -> Result<(), DeviceListError> {
        let Some(named) = &before.recovery_key else { return Ok(()) };
        let by_it = |rotation: &Rotation| match &rotation.authority {
            RotationAuthority::Recovery(by) => by.key == named.key,
            RotationAuthority::Identity => false,
        };
        let since = self.rotations.get(before.rotations.len()..).unwrap_or_default();
        let kept = self.recovery_key.as_ref().is_some_and(|now| now.key == named.key) && since.iter().all(by_it);
        if kept { Ok(()) } else { Err(DeviceListError::NotRecovered) }
    }

    fn check_devices(&self, identity: &PublicKey) -> Result<(), DeviceListError> {
        let mut last = None;
        for entry in &self.devices {
            let certificate = entry.certificate.verify(identity)?;
            if certificate.account != self.account {
                return Err(DeviceListError::OtherAccount);
            }
            if Hash::of(entry.key_set.as_slice()) != certificate.key_set {
                return Err(DeviceListError::BadCertificate);
            }
            entry.key_set()?;
            if last.is_some_and(|last| last >= certificate.device) {
                return Err(DeviceListError::BadDevices);
            }
            last = Some(certificate.device);
        }
        if last.is_none() { Err(DeviceListError::BadDevices) } else { Ok(()) }
    }
}

impl DeviceEntry {
    /// The entry of a device of an account whose present identity key has the seed `identity`. The device's MLS signing key
    /// has the seed `mls_key`.
    pub fn issue(
        account: AccountId,
        identity: &[u8; 32],
        device: DeviceId,
        key_set: &KeySet,
        mls_key: &[u8; 32],
    ) -> Self {
        let key_set = Encoding::Cbor.encode(key_set);
        let certificate =
            Certificate { account, device, mls_key: crate::public_key(mls_key), key_set: Hash::of(&key_set) };
        Self { certificate: SignedCertificate::issue(&certificate, identity, mls_key), key_set: key_set.into() }
    }

    /// Whether it is the entry of this device.
    pub fn is_of(&self, device: DeviceId) -> bool {
        self.certificate.unverified().is_ok_and(|certificate| certificate.device == device)
    }

    /// The key set, decoded.
    pub fn key_set(&self) -> Result<KeySet, DeviceListError> {
        Encoding::Cbor.decode(self.key_set.as_slice()).map_err(|_| DeviceListError::Malformed)
    }
}

impl SignedCertificate {
    /// Issues a certificate: signed by the identity key and accepted by the device's MLS key, both given as seeds.
    pub fn issue(certificate: &Certificate, identity: &[u8; 32], mls: &[u8; 32]) -> Self {
        let certificate = Encoding::Cbor.encode(certificate);
        let issued = crate::sign(identity, Domain::Certificate, &[&certificate]);
        let accepted = crate::sign(mls, Domain::CertificateAcceptance, &[&certificate]);
        Self { certificate: certificate.into(), issued, accepted }
    }

    /// The same certificate, issued by another identity key, given as a seed. The device has accepted it already.
    pub fn issue_again(&mut self, identity: &[u8; 32]) {
        self.issued = crate::sign(identity, Domain::Certificate, &[self.certificate.as_slice()]);
    }

    /// The certificate, if `identity` issued it and its own MLS key accepted it.
    pub fn verify(&self, identity: &PublicKey) -> Result<Certificate, DeviceListError> {
        let certificate = self.unverified()?;
        let bytes: &[&[u8]] = &[self.certificate.as_slice()];
        let holds = verify(identity, Domain::Certificate, bytes, &self.issued)
            && verify(&certificate.mls_key, Domain::CertificateAcceptance, bytes, &self.accepted);
        if holds { Ok(certificate) } else { Err(DeviceListError::BadCertificate) }
    }

    /// The certificate as it stands there. For one that was verified before.
    pub fn unverified(&self) -> Result<Certificate, DeviceListError> {
        Encoding::Cbor.decode(self.certificate.as_slice()).map_err(|_| DeviceListError::Malformed)
    }
}

impl Rotation {
    /// The change to the identity key `next` of an account whose identity key has changed `generation` times with it. The seed
    /// `signer` is of the identity key before, or of the recovery key that this one has named.
    pub fn sign(
        account: &AccountId,
        generation: u64,
        next: PublicKey,
        authority: RotationAuthority,
        signer: &[u8; 32],
    ) -> Self {
        let fields: &[&[u8]] = &[account.as_bytes(), &generation.to_be_bytes(), next.as_bytes()];
        Self { identity_key: next, authority, signature: crate::sign(signer, Domain::Rotation, fields) }
    }
}

impl RecoveryKey {
    /// Names a recovery key, by the identity key of a generation, whose seed is `identity`.
    pub fn name(account: &AccountId, generation: u64, key: PublicKey, identity: &[u8; 32]) -> Self {
        let fields: &[&[u8]] = &[account.as_bytes(), &generation.to_be_bytes(), key.as_bytes()];
        Self { key, signature: crate::sign(identity, Domain::RecoveryKey, fields) }
    }

    fn named_by(&self, identity: &PublicKey, account: &AccountId, generation: u64) -> bool {
        let fields: &[&[u8]] = &[account.as_bytes(), &generation.to_be_bytes(), self.key.as_bytes()];
        verify(identity, Domain::RecoveryKey, fields, &self.signature)
    }
}

/// The account's current identity key, if its id commits to `first` and every rotation is signed by its authority.
pub fn verify_rotations(
    account: &AccountId,
    first: &PublicKey,
    rotations: &[Rotation],
) -> Result<PublicKey, DeviceListError> {
    if !account.commits_to(first) {
        return Err(DeviceListError::NotCommitted);
    }
    if rotations.len() > ROTATIONS_MAX {
        return Err(DeviceListError::BadRotation);
    }
    let mut current = *first;
    for (generation, rotation) in (0_u64..).zip(rotations) {
        let authority = match &rotation.authority {
            RotationAuthority::Identity => current,
            RotationAuthority::Recovery(recovery) if recovery.named_by(&current, account, generation) => recovery.key,
            RotationAuthority::Recovery(_) => return Err(DeviceListError::BadRotation),
        };
        let fields: &[&[u8]] = &[account.as_bytes(), &(generation + 1).to_be_bytes(), rotation.identity_key.as_bytes()];
        if !verify(&authority, Domain::Rotation, fields, &rotation.signature) {
            return Err(DeviceListError::BadRotation);
        }
        current = rotation.identity_key;
    }
    Ok(current)
}

/// Whether the chain `newer` is `older` or goes on from it.
pub fn chain_continues(newer: &[Rotation], older: &[Rotation]) -> bool {
    newer.starts_with(older)
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDENTITY: [u8; 32] = [1; 32];
    const MLS: [u8; 32] = [2; 32];
    const DEVICE: [u8; 32] = [3; 32];
    const RECOVERY: [u8; 32] = [4; 32];
    const NEXT: [u8; 32] = [5; 32];

    fn account() -> AccountId {
        AccountId::from_identity_key(&crate::public_key(&IDENTITY))
    }

    fn key_set() -> KeySet {
        KeySet { device_key: crate::public_key(&DEVICE), olm_key: X25519Key::from([6; 32]) }
    }

    fn entry(device: u8, identity: &[u8; 32], mls: &[u8; 32]) -> DeviceEntry {
        let key_set = Encoding::Cbor.encode(&key_set());
        let certificate = Certificate {
            account: account(),
            device: DeviceId::from_random([device; 16]),
            mls_key: crate::public_key(mls),
            key_set: Hash::of(&key_set),
        };
        DeviceEntry { certificate: SignedCertificate::issue(&certificate, identity, mls), key_set: key_set.into() }
    }

    fn first_list() -> DeviceList {
        DeviceList::first(crate::public_key(&IDENTITY), vec![entry(1, &IDENTITY, &MLS)])
    }

    fn recovery_key(named_by: &[u8; 32], generation: u64) -> RecoveryKey {
        RecoveryKey::name(&account(), generation, crate::public_key(&RECOVERY), named_by)
    }

    fn rotation(signer: &[u8; 32], authority: RotationAuthority, generation: u64) -> Rotation {
        Rotation::sign(&account(), generation, crate::public_key(&NEXT), authority, signer)
    }

    #[test]
    fn who_has_named_a_recovery_key_is_bound_to_its_word() {
        let named = DeviceList { recovery_key: Some(recovery_key(&IDENTITY, 0)), ..first_list() };
        let keeps = |later: &DeviceList| later.keeps_recovery_key(&named);
        let taken_back = Err(DeviceListError::NotRecovered);
        assert_eq!(keeps(&named), Ok(()));
        assert_eq!(keeps(&first_list()), taken_back);
        let other = RecoveryKey::name(&account(), 0, crate::public_key(&NEXT), &IDENTITY);
        assert_eq!(keeps(&DeviceList { recovery_key: Some(other), ..first_list() }), taken_back);
        let by_identity = rotation(&IDENTITY, RotationAuthority::Identity, 1);
        assert_eq!(keeps(&DeviceList { rotations: vec![by_identity.clone()], ..named.clone() }), taken_back);
        let by = RotationAuthority::Recovery(recovery_key(&IDENTITY, 0));
        let recovered = DeviceList { rotations: vec![rotation(&RECOVERY, by, 1)], ..named.clone() };
        assert_eq!(keeps(&recovered), Ok(()));
        // Later on, what comes next is said by a thief, who has the identity key of then.
        assert_eq!(keeps(&DeviceList { recovery_key: None, ..recovered.clone() }), taken_back);
        let after = [recovered.rotations.clone(), vec![rotation(&NEXT, RotationAuthority::Identity, 2)]].concat();
        assert_eq!(keeps(&DeviceList { rotations: after, ..recovered }), taken_back);
        // By another key that the thief has named.
        let by = RotationAuthority::Recovery(RecoveryKey::name(&account(), 0, crate::public_key(&NEXT), &IDENTITY));
        assert_eq!(keeps(&DeviceList { rotations: vec![rotation(&NEXT, by, 1)], ..first_list() }), taken_back);
        assert_eq!(by_identity, rotation(&IDENTITY, RotationAuthority::Identity, 1));
        assert_eq!(named.keeps_recovery_key(&first_list()), Ok(()), "to name one takes nothing");
    }

    #[test]
    fn an_entry_is_issued_by_its_accounts_identity_key() {
        let device = DeviceId::from_random([1; 16]);
        assert_eq!(DeviceEntry::issue(account(), &IDENTITY, device, &key_set(), &MLS), entry(1, &IDENTITY, &MLS));
    }

    #[test]
    fn a_signed_list_verifies_and_a_changed_byte_does_not() {
        let signed = SignedDeviceList::sign(&first_list(), &IDENTITY);
        assert_eq!(signed.verify(&account()), Ok(first_list()));
        for at in 0..signed.list.len() {
            let mut bytes = signed.list.clone().into_vec();
            bytes[at] ^= 1;
            let changed = SignedDeviceList { list: bytes.into(), ..signed.clone() };
            assert!(changed.verify(&account()).is_err(), "byte {at} is not covered");
        }
    }

    #[test]
    fn another_key_cannot_sign_a_list_or_a_certificate() {
        let signed = SignedDeviceList::sign(&first_list(), &NEXT);
        assert_eq!(signed.verify(&account()), Err(DeviceListError::BadSignature));
        let list = DeviceList { devices: vec![entry(1, &NEXT, &MLS)], ..first_list() };
        assert_eq!(SignedDeviceList::sign(&list, &IDENTITY).verify(&account()), Err(DeviceListError::BadCertificate));
    }

    #[test]
    fn a_list_needs_devices_each_once_and_in_order() {
        let verdict = |devices| {
            SignedDeviceList::sign(&DeviceList { devices, ..first_list() }, &IDENTITY).verify(&account()).map(|_| ())
        };
        let one = || entry(1, &IDENTITY, &MLS);
        let two = || entry(2, &IDENTITY, &MLS);
        assert_eq!(verdict(vec![]), Err(DeviceListError::BadDevices));
        assert_eq!(verdict(vec![one(), one()]), Err(DeviceListError::BadDevices));
        assert_eq!(verdict(vec![two(), one()]), Err(DeviceListError::BadDevices));
        assert_eq!(verdict(vec![one(), two()]), Ok(()));
    }

    #[test]
    fn an_account_id_belongs_to_one_first_key() {
        let list = DeviceList { first_identity_key: crate::public_key(&NEXT), ..first_list() };
        assert_eq!(SignedDeviceList::sign(&list, &NEXT).verify(&account()), Err(DeviceListError::NotCommitted));
    }

    #[test]
    fn identity_keys_change_by_the_old_key_or_a_named_recovery_key() {
        let first = crate::public_key(&IDENTITY);
        let check = |rotation| verify_rotations(&account(), &first, &[rotation]);
        let next = Ok(crate::public_key(&NEXT));
        assert_eq!(check(rotation(&IDENTITY, RotationAuthority::Identity, 1)), next);
        let named = RotationAuthority::Recovery(recovery_key(&IDENTITY, 0));
        assert_eq!(check(rotation(&RECOVERY, named.clone(), 1)), next);
        let bad = Err(DeviceListError::BadRotation);
        assert_eq!(check(rotation(&NEXT, RotationAuthority::Identity, 1)), bad);
        assert_eq!(check(rotation(&IDENTITY, RotationAuthority::Identity, 2)), bad, "generation is signed");
        assert_eq!(check(rotation(&NEXT, named, 1)), bad);
        let unnamed = RotationAuthority::Recovery(recovery_key(&NEXT, 0));
        assert_eq!(check(rotation(&RECOVERY, unnamed, 1)), bad);
    }

    #[test]
    fn a_list_continues_the_one_before_only_by_version_hash_chain_and_device_keys() {
        let before = first_list();
        let hash = SignedDeviceList::sign(&before, &IDENTITY).hash();
        let next = DeviceList { version: 2, previous: Some(hash), ..first_list() };
        assert_eq!(next.continues(&before, &hash), Ok(()));
        let bad = Err(DeviceListError::NotNext);
        assert_eq!(DeviceList { version: 3, ..next.clone() }.continues(&before, &hash), bad);
        assert_eq!(DeviceList { previous: None, ..next.clone() }.continues(&before, &hash), bad);
        let rotated = DeviceList { rotations: vec![rotation(&IDENTITY, RotationAuthority::Identity, 1)], ..before };
        assert_eq!(next.continues(&rotated, &hash), bad, "a generation is never taken back");
        let other_key = DeviceList { devices: vec![entry(1, &IDENTITY, &NEXT)], ..next };
        assert_eq!(other_key.continues(&first_list(), &hash), bad, "a device keeps its MLS key for life");
    }
}
