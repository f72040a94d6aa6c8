//! Keys at the fake relay: each handed out once, the last-resort one of its suite when no other is left. And key packages,
//! verified when published.

use std::collections::{BTreeMap, VecDeque};

use openmls::prelude::{
    BasicCredential, KeyPackage, KeyPackageIn, KeyPackageVerifyError, OpenMlsProvider as _, ProtocolVersion,
    tls_codec::Deserialize as _,
};
use openmls_rust_crypto::OpenMlsRustCrypto;
use undertone_wire::{
    AccountId, Bytes, Certificate, ClaimRequest, ClaimResponse, ClaimedKeyPackage, CredentialError, DeviceId,
    DeviceListError, Envelope, ErrorCode, Hash, KeyCounts, KeyPackageCount, LeafCredential, PrekeyCount, Problem,
    PublishRequest, ReconcileRequest, ReconcileResponse, SignedCertificate, suite,
};

use super::state::{Caller, Device, Outcome, State, check_bytes, check_count, not_found, refused};

/// A device's keys, by suite.
#[derive(Default, Clone)]
pub(super) struct Keys(BTreeMap<u16, OfSuite>);

/// A device's keys of one suite.
#[derive(Default, Clone)]
struct OfSuite {
    one_time: VecDeque<StoredKey>,
    last_resort: Option<StoredKey>,
}

#[derive(Clone)]
pub(super) struct StoredKey {
    pub(super) bytes: Bytes,
    pub(super) hash_ref: Hash,
    pub(super) not_after_s: u64,
}

/// A key handed out.
pub(super) struct Claimed {
    pub(super) device: DeviceId,
    suite: u16,
    pub(super) key: Option<Bytes>,
    last_resort: bool,
}

impl Keys {
    /// Of a suite, there is this key alone.
    pub(super) fn replace(&mut self, suite: u16, key: StoredKey) {
        self.0.insert(suite, OfSuite { one_time: VecDeque::new(), last_resort: Some(key) });
    }

    /// Forgets the key packages of all suites.
    pub(super) fn forget_key_packages(&mut self) {
        self.0.retain(|of, _| !suite::MLS.contains(of));
    }
}

impl State {
    pub(super) fn publish(&mut self, caller: &Caller, request: &PublishRequest) -> Outcome<KeyCounts> {
        let once = self.once("publish", None, request.message_id, request)?;
        if self.first_answer(&once)?.is_none() {
            let check = |bytes: &Bytes, last_resort| self.checked_key(caller, bytes, last_resort);
            let one_time: Vec<_> =
                request.key_packages.iter().map(|bytes| check(bytes, false)).collect::<Result<_, _>>()?;
            let last_resort = request.last_resort.as_ref().map(|bytes| check(bytes, true)).transpose()?;
            let of = |of: u16| one_time.iter().filter(move |(suite, _)| *suite == of).map(|(_, key)| key.clone());
            for suite in suite::MLS {
                self.check_room(&caller.device, suite, of(suite).count())?;
            }
            for suite in suite::MLS {
                let last_resort = last_resort.clone().filter(|(of, _)| *of == suite).map(|(_, key)| key);
                self.store_keys(&caller.device, suite, of(suite).collect(), last_resort)?;
            }
            self.remember(&once, 0);
        }
        Ok(self.key_counts(&caller.device))
    }

    /// Stores a device's keys of a suite. A last-resort one replaces the one before.
    pub(super) fn store_keys(
        &mut self,
        device: &DeviceId,
        suite: u16,
        one_time: Vec<StoredKey>,
        last_resort: Option<StoredKey>,
    ) -> Outcome<()> {
        self.check_room(device, suite, one_time.len())?;
        let Some(device) = self.devices.get_mut(device) else { return Ok(()) };
        let stored = device.keys.0.entry(suite).or_default();
        stored.one_time.extend(one_time);
        stored.last_resort = last_resort.or_else(|| stored.last_resort.take());
        Ok(())
    }

    fn check_room(&self, device: &DeviceId, suite: u16, new: usize) -> Outcome<()> {
        let keys = self.devices.get(device).and_then(|device| device.keys.0.get(&suite));
        check_count(
            "one_time_keys_max",
            self.limits.one_time_keys_max,
            keys.map_or(0, |keys| keys.one_time.len()) + new,
        )
    }

    pub(super) fn reconcile(&mut self, device: &DeviceId, request: &ReconcileRequest) -> ReconcileResponse {
        let until_s = self.must_live_until_s();
        let mut available = Vec::new();
        if let Some(Device { keys, .. }) = self.devices.get_mut(device) {
            let is_held = |key: &StoredKey| request.hash_refs.contains(&key.hash_ref);
            for keys in keys.0.values_mut() {
                keys.one_time.retain(is_held);
                keys.last_resort.take_if(|key| !is_held(key));
                let all = keys.one_time.iter().chain(&keys.last_resort);
                available.extend(all.filter(|key| key.lives_until(until_s)).map(|key| key.hash_ref));
            }
            available.sort_unstable();
        }
        ReconcileResponse { available, counts: self.key_counts(device) }
    }

    /// A key package, verified, with its suite.
    fn checked_key(&self, caller: &Caller, bytes: &Bytes, last_resort: bool) -> Outcome<(u16, StoredKey)> {
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
        self.check_lifetime(not_before_s, not_after_s)?;
        let stored = StoredKey { bytes: bytes.clone(), hash_ref: hash_ref(&key_package)?, not_after_s };
        Ok((key_package.ciphersuite().into(), stored))
    }

    pub(super) fn check_lifetime(&self, not_before_s: u64, not_after_s: u64) -> Outcome<()> {
        let fits = not_before_s <= self.now_ms / 1_000
            && not_after_s.saturating_sub(not_before_s) <= self.limits.key_package_lifetime_s_max
            && not_after_s >= self.must_live_until_s();
        let limits = "see key_package_lifetime_s_max and key_package_remaining_s_min";
        if fits { Ok(()) } else { Err(refused(ErrorCode::BadLifetime, limits)) }
    }

    pub(super) fn claim(&mut self, request: &ClaimRequest) -> Outcome<ClaimResponse> {
        if !suite::MLS.contains(&request.suite) {
            return Err(refused(ErrorCode::UnsupportedSuite, "see `suites` of the relay's description"));
        }
        let claimed = self.claim_of(&request.account_id, request.suite, |_| true)?;
        Ok(ClaimResponse { key_packages: claimed.into_iter().map(ClaimedKeyPackage::from).collect() })
    }

    /// Takes one key of each wanted device of an account, and tells the owners what there is to tell.
    pub(super) fn claim_of(
        &mut self,
        account: &AccountId,
        suite: u16,
        is_wanted: impl Fn(&DeviceId) -> bool,
    ) -> Outcome<Vec<Claimed>> {
        if !self.accounts.contains_key(account) {
            return Err(not_found());
        }
        let until_s = self.must_live_until_s();
        let of_account = self.devices.iter_mut().filter(|(id, device)| device.account == *account && is_wanted(id));
        let claimed: Vec<_> = of_account.map(|(id, device)| device.keys.take(*id, suite, until_s)).collect();
        for claim in &claimed {
            if let Some(notice) = self.notice(claim) {
                self.deliver(&[claim.device], &notice);
            }
        }
        Ok(claimed)
    }

    /// What the owner is told of a claim: that few one-time key packages are left, or that the last-resort one was handed
    /// out. At most one of each kind waits at a time.
    fn notice(&self, claim: &Claimed) -> Option<Envelope> {
        let suite = claim.suite;
        let (one_time, _) = self.keys_of(&claim.device, suite);
        let (notice, waits): (_, fn(&Envelope, u16) -> bool) = match claim {
            Claimed { last_resort: true, .. } => (
                Envelope::LastResortUsed { suite },
                |waiting, of| matches!(waiting, Envelope::LastResortUsed { suite } if *suite == of),
            ),
            claim if claim.key.is_some() && one_time <= self.limits.keys_low_at => (
                Envelope::KeysLow { suite, one_time },
                |waiting, of| matches!(waiting, Envelope::KeysLow { suite, .. } if *suite == of),
            ),
            _ => return None,
        };
        let mut waiting = self.devices.get(&claim.device)?.queue.values();
        (!waiting.any(|envelope| waits(envelope, suite))).then_some(notice)
    }

    pub(super) fn key_counts(&self, device: &DeviceId) -> KeyCounts {
        let count = |suite| {
            let (one_time, last_resort) = self.keys_of(device, suite);
            (one_time > 0 || last_resort).then_some(KeyPackageCount { suite, one_time, last_resort })
        };
        let key_packages = suite::MLS.into_iter().filter_map(count).collect();
        let (one_time, fallback) = self.keys_of(device, suite::PREKEY);
        let (_, sealing_key) = self.keys_of(device, suite::SEALING);
        KeyCounts { key_packages, prekeys: PrekeyCount { one_time, fallback }, sealing_key }
    }

    /// How many one-time keys of a device can be handed out, and whether the last-resort one can.
    pub(super) fn keys_of(&self, device: &DeviceId, suite: u16) -> (u64, bool) {
        let until_s = self.must_live_until_s();
        let Some(keys) = self.devices.get(device).and_then(|device| device.keys.0.get(&suite)) else {
            return (0, false);
        };
        let one_time = keys.one_time.iter().filter(|key| key.lives_until(until_s)).count() as u64;
        (one_time, keys.last_resort.as_ref().is_some_and(|key| key.lives_until(until_s)))
    }

    pub(super) fn must_live_until_s(&self) -> u64 {
        self.in_s(self.limits.key_package_remaining_s_min) / 1_000
    }
}

impl Keys {
    /// What is handed out once is not handed out by a store that may have forgotten having done so.
    pub(super) fn forget_one_time(&mut self) {
        self.0.values_mut().for_each(|keys| keys.one_time.clear());
    }

    /// The one of a suite that is handed out when no other is left.
    pub(super) fn last_resort(&self, suite: u16) -> Option<&StoredKey> {
        self.0.get(&suite)?.last_resort.as_ref()
    }

    fn take(&mut self, device: DeviceId, suite: u16, until_s: u64) -> Claimed {
        let keys = self.0.entry(suite).or_default();
        let one_time = keys.one_time.iter().position(|key| key.lives_until(until_s));
        if let Some(key) = one_time.and_then(|at| keys.one_time.remove(at)) {
            return Claimed { device, suite, key: Some(key.bytes), last_resort: false };
        }
        let key = keys.last_resort.clone().filter(|key| key.lives_until(until_s));
        Claimed { device, suite, last_resort: key.is_some(), key: key.map(|key| key.bytes) }
    }
}

impl From<Claimed> for ClaimedKeyPackage {
    fn from(Claimed { device, key, last_resort, .. }: Claimed) -> Self {
        Self { device_id: device, key_package: key, last_resort }
    }
}

impl StoredKey {
    /// One that nobody names.
    pub(super) fn new(bytes: Bytes, not_after_s: u64) -> Self {
        Self { hash_ref: Hash::of(bytes.as_slice()), bytes, not_after_s }
    }

    pub(super) fn lives_until(&self, until_s: u64) -> bool {
        self.not_after_s >= until_s
    }
}

/// A key package whose signatures and, by the machine's clock, lifetime hold.
fn verified(bytes: &Bytes) -> Outcome<KeyPackage> {
    // The suite follows the 2 bytes of the version.
    match bytes.as_slice() {
        [_, _, high, low, ..] if suite::MLS.contains(&u16::from_be_bytes([*high, *low])) => {}
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
