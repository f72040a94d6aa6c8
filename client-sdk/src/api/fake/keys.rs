//! Key packages at the fake relay: verified when published, each handed out once, the last-resort one when no other is
//! left.

use std::collections::VecDeque;

use openmls::prelude::{
    BasicCredential, KeyPackage, KeyPackageIn, KeyPackageVerifyError, OpenMlsProvider as _, ProtocolVersion,
    tls_codec::Deserialize as _,
};
use openmls_rust_crypto::OpenMlsRustCrypto;
use undertone_wire::{
    Bytes, Certificate, ClaimRequest, ClaimResponse, ClaimedKeyPackage, CredentialError, DeviceId, DeviceListError,
    Envelope, ErrorCode, Hash, KeyCounts, KeyPackageCount, LeafCredential, Problem, PublishRequest, ReconcileRequest,
    ReconcileResponse, SignedCertificate, suite,
};

use super::state::{Caller, Device, Outcome, State, check_bytes, check_count, not_found, refused};

/// A device's key packages.
#[derive(Default, Clone)]
pub(super) struct StoredKeys {
    one_time: VecDeque<StoredKey>,
    last_resort: Option<StoredKey>,
}

#[derive(Clone)]
struct StoredKey {
    bytes: Bytes,
    hash_ref: Hash,
    not_after_s: u64,
}

impl State {
    pub(super) fn publish(&mut self, caller: &Caller, request: &PublishRequest) -> Outcome<KeyCounts> {
        let once = self.once("publish", None, request.message_id, request)?;
        if self.first_answer(&once)?.is_none() {
            let check = |bytes: &Bytes, last_resort| self.checked_key(caller, bytes, last_resort);
            let one_time: Vec<_> =
                request.key_packages.iter().map(|bytes| check(bytes, false)).collect::<Result<_, _>>()?;
            let last_resort = request.last_resort.as_ref().map(|bytes| check(bytes, true)).transpose()?;
            let max = self.limits.one_time_keys_max;
            if let Some(device) = self.devices.get_mut(&caller.device) {
                check_count("one_time_keys_max", max, device.keys.one_time.len() + one_time.len())?;
                device.keys.one_time.extend(one_time);
                device.keys.last_resort = last_resort.or_else(|| device.keys.last_resort.take());
            }
            self.remember(&once, 0);
        }
        Ok(self.key_counts(&caller.device))
    }

    pub(super) fn reconcile(&mut self, device: &DeviceId, request: &ReconcileRequest) -> ReconcileResponse {
        let until_s = self.must_live_until_s();
        let mut available = Vec::new();
        if let Some(Device { keys, .. }) = self.devices.get_mut(device) {
            let is_held = |key: &StoredKey| request.hash_refs.contains(&key.hash_ref);
            keys.one_time.retain(is_held);
            keys.last_resort.take_if(|key| !is_held(key));
            let all = keys.one_time.iter().chain(&keys.last_resort);
            available = all.filter(|key| key.lives_until(until_s)).map(|key| key.hash_ref).collect();
            available.sort_unstable();
        }
        ReconcileResponse { available, key_packages: self.key_counts(device).key_packages }
    }

    fn checked_key(&self, caller: &Caller, bytes: &Bytes, last_resort: bool) -> Outcome<StoredKey> {
        check_bytes("key_package_bytes_max", self.limits.key_package_bytes_max, bytes)?;
        let key_package = verified(bytes)?;
        let (certificate, signed) = leaf_certificate(&key_package)?;
        if certificate.device != caller.device || certificate.account != caller.account {
            return Err(bad_key_package("the key package is another device's"));
        }
        if self.devices.get(&caller.device).is_some_and(|device| device.certificate != signed) {
            return Err(bad_key_package("the certificate in the credential is not the listed one"));
        }
        if key_package.last_resort() != last_resort {
            return Err(bad_key_package("the last-resort key package, and no other, carries the extension for it"));
        }
        let (not_before_s, not_after_s) = (key_package.life_time().not_before(), key_package.life_time().not_after());
        let fits = not_before_s <= self.now_ms / 1_000
            && not_after_s.saturating_sub(not_before_s) <= self.limits.key_package_lifetime_s_max;
        let key = StoredKey { bytes: bytes.clone(), hash_ref: hash_ref(&key_package)?, not_after_s };
        if !fits || !key.lives_until(self.must_live_until_s()) {
            let limits = "see key_package_lifetime_s_max and key_package_remaining_s_min";
            return Err(refused(ErrorCode::BadLifetime, limits));
        }
        Ok(key)
    }

    pub(super) fn claim(&mut self, request: &ClaimRequest) -> Outcome<ClaimResponse> {
        if request.suite != suite::DEFAULT {
            return Err(refused(ErrorCode::UnsupportedSuite, "see `suites` of the relay's description"));
        }
        if !self.accounts.contains_key(&request.account_id) {
            return Err(not_found());
        }
        let until_s = self.must_live_until_s();
        let of_account = self.devices.iter_mut().filter(|(_, device)| device.account == request.account_id);
        let claimed: Vec<_> = of_account.map(|(id, device)| device.keys.take(*id, until_s)).collect();
        for claim in &claimed {
            if let Some(notice) = self.notice(claim) {
                self.deliver(&[claim.device_id], &notice);
            }
        }
        Ok(ClaimResponse { key_packages: claimed })
    }

    /// What the owner is told of a claim: that few one-time key packages are left, or that the last-resort one was handed
    /// out. At most one of each kind waits at a time.
    fn notice(&self, claim: &ClaimedKeyPackage) -> Option<Envelope> {
        let (suite, (one_time, _)) = (suite::DEFAULT, self.key_packages(&claim.device_id));
        let notice = match claim {
            ClaimedKeyPackage { last_resort: true, .. } => Envelope::LastResortUsed { suite },
            claim if claim.key_package.is_some() && one_time <= self.limits.keys_low_at => {
                Envelope::KeysLow { suite, one_time }
            }
            _ => return None,
        };
        let kind = std::mem::discriminant(&notice);
        let mut waiting = self.devices.get(&claim.device_id)?.queue.values();
        (!waiting.any(|envelope| std::mem::discriminant(envelope) == kind)).then_some(notice)
    }

    pub(super) fn key_counts(&self, device: &DeviceId) -> KeyCounts {
        let (one_time, last_resort) = self.key_packages(device);
        let count = KeyPackageCount { suite: suite::DEFAULT, one_time, last_resort };
        KeyCounts { key_packages: if one_time > 0 || last_resort { vec![count] } else { vec![] } }
    }

    /// How many one-time key packages of a device can be handed out, and whether the last-resort one can.
    pub(super) fn key_packages(&self, device: &DeviceId) -> (u64, bool) {
        let until_s = self.must_live_until_s();
        let Some(Device { keys, .. }) = self.devices.get(device) else { return (0, false) };
        let one_time = keys.one_time.iter().filter(|key| key.lives_until(until_s)).count() as u64;
        (one_time, keys.last_resort.as_ref().is_some_and(|key| key.lives_until(until_s)))
    }

    fn must_live_until_s(&self) -> u64 {
        self.in_s(self.limits.key_package_remaining_s_min) / 1_000
    }
}

impl StoredKeys {
    /// What is handed out once is not handed out by a store that may have forgotten having done so.
    pub(super) fn forget_one_time(&mut self) {
        self.one_time.clear();
    }

    pub(super) fn last_resort(&self) -> Option<Bytes> {
        self.last_resort.as_ref().map(|key| key.bytes.clone())
    }

    fn take(&mut self, device_id: DeviceId, until_s: u64) -> ClaimedKeyPackage {
        let one_time = self.one_time.iter().position(|key| key.lives_until(until_s));
        if let Some(key) = one_time.and_then(|at| self.one_time.remove(at)) {
            return ClaimedKeyPackage { device_id, key_package: Some(key.bytes), last_resort: false };
        }
        let key = self.last_resort.clone().filter(|key| key.lives_until(until_s));
        ClaimedKeyPackage { device_id, last_resort: key.is_some(), key_package: key.map(|key| key.bytes) }
    }
}

impl StoredKey {
    fn lives_until(&self, until_s: u64) -> bool {
        self.not_after_s >= until_s
    }
}

/// A key package whose signatures and, by the machine's clock, lifetime hold.
fn verified(bytes: &Bytes) -> Outcome<KeyPackage> {
    // The suite follows the 2 bytes of the version.
    match bytes.as_slice() {
        [_, _, high, low, ..] if u16::from_be_bytes([*high, *low]) == suite::DEFAULT => {}
        [_, _, _, _, ..] => return Err(refused(ErrorCode::UnsupportedSuite, "this suite is not taken here")),
        _ => return Err(bad_key_package("too short")),
    }
    let key_package = KeyPackageIn::tls_deserialize_exact(bytes.as_slice())
        .map_err(|_| bad_key_package("not a KeyPackage of RFC 9420, section 10, without a message around it"))?;
    key_package.validate(OpenMlsRustCrypto::default().crypto(), ProtocolVersion::Mls10).map_err(|error| match error {
        KeyPackageVerifyError::InvalidSignature | KeyPackageVerifyError::InvalidLeafNodeSignature => {
            refused(ErrorCode::BadSignature, "a signature in the key package does not verify")
        }
        KeyPackageVerifyError::LifetimeError(_) | KeyPackageVerifyError::MissingLifetime => {
            refused(ErrorCode::BadLifetime, "the lifetime does not include this moment")
        }
        error => bad_key_package(&error.to_string()),
    })
}

fn hash_ref(key_package: &KeyPackage) -> Outcome<Hash> {
    let reference = key_package.hash_ref(OpenMlsRustCrypto::default().crypto()).ok();
    let hash = reference.and_then(|reference| <[u8; 32]>::try_from(reference.as_slice()).ok());
    hash.map(Hash::from).ok_or_else(|| bad_key_package("it has no reference"))
}

fn leaf_certificate(key_package: &KeyPackage) -> Outcome<(Certificate, SignedCertificate)> {
    let leaf = key_package.leaf_node();
    let credential = BasicCredential::try_from(leaf.credential().clone())
        .ok()
        .and_then(|basic| LeafCredential::decode(basic.identity()).ok())
        .ok_or_else(|| {
            bad_key_package("the credential must be a basic one with a certificate of this protocol in it")
        })?;
    let certificate = credential.verify(leaf.signature_key().as_slice()).map_err(|error| match error {
        CredentialError::Certificate(
            DeviceListError::BadCertificate | DeviceListError::BadSignature | DeviceListError::BadRotation,
        ) => refused(ErrorCode::BadSignature, &error.to_string()),
        error => bad_key_package(&error.to_string()),
    })?;
    Ok((certificate, credential.certificate))
}

fn bad_key_package(rule: &str) -> Box<Problem> {
    refused(ErrorCode::BadKeyPackage, rule)
}
