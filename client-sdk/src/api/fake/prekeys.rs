//! Prekeys and sealing keys at the fake relay: signed by the device key, under suites of their own.

use serde::{Serialize, de::DeserializeOwned};
use undertone_wire::{
    AccountId, Bytes, ClaimPrekeysRequest, ClaimPrekeysResponse, ClaimedPrekey, DeviceId, DeviceSealingKey, Encoding,
    ErrorCode, Hash, KeyCounts, Prekey, Problem, PublicKey, PublishPrekeysRequest, SealingKey, SealingKeys, suite,
};

use super::{
    FakeRelay,
    keys::StoredKey,
    state::{Caller, Outcome, State, not_found, refused},
};

impl State {
    pub(super) fn publish_prekeys(&mut self, caller: &Caller, request: &PublishPrekeysRequest) -> Outcome<KeyCounts> {
        let once = self.once("publish prekeys", None, request.message_id, request)?;
        if self.first_answer(&once)?.is_none() {
            let device_key = self.devices.get(&caller.device).ok_or_else(not_found)?.device_key;
            let (mut one_time, mut fallback) = (vec![], None);
            for prekey in &request.prekeys {
                let key = self.checked_prekey(caller, &device_key, prekey)?;
                match prekey.fallback {
                    false => one_time.push(key),
                    true if fallback.is_some() => {
                        return Err(refused(ErrorCode::BadPrekey, "there is one fallback prekey at most"));
                    }
                    true => fallback = Some(key),
                }
            }
            let sealing_key = request.sealing_key.as_ref();
            let sealing_key = sealing_key.map(|key| self.checked_sealing_key(caller, &device_key, key)).transpose()?;
            self.store_keys(&caller.device, suite::PREKEY, one_time, fallback)?;
            self.store_keys(&caller.device, suite::SEALING, vec![], sealing_key)?;
            self.remember(&once, 0);
        }
        Ok(self.key_counts(&caller.device))
    }

    fn checked_prekey(&self, caller: &Caller, device_key: &PublicKey, prekey: &Prekey) -> Outcome<StoredKey> {
        let signed = prekey.is_of(caller.device, device_key);
        self.checked(signed, prekey, prekey.hash_ref(caller.device), prekey.not_after_ms)
    }

    fn checked_sealing_key(&self, caller: &Caller, device_key: &PublicKey, key: &SealingKey) -> Outcome<StoredKey> {
        if key.key.len() != SealingKey::LENGTH {
            return Err(refused(ErrorCode::BadPrekey, "a sealing key is an X-Wing public key"));
        }
        let signed = key.is_of(caller.device, device_key);
        self.checked(signed, key, key.hash_ref(caller.device), key.not_after_ms)
    }

    fn checked(&self, signed: bool, key: &impl Serialize, hash_ref: Hash, not_after_ms: u64) -> Outcome<StoredKey> {
        if !signed {
            return Err(refused(ErrorCode::BadSignature, "it is not signed by the device key that the list names"));
        }
        let not_after_s = not_after_ms / 1_000;
        self.check_lifetime(self.now_ms / 1_000, not_after_s)?;
        Ok(StoredKey { bytes: Encoding::Cbor.encode(key).into(), hash_ref, not_after_s })
    }

    pub(super) fn claim_prekeys(&mut self, request: &ClaimPrekeysRequest) -> Outcome<ClaimPrekeysResponse> {
        if !request.devices.is_sorted_by(|one, next| one < next) {
            return Err(refused(ErrorCode::Malformed, "devices must be in ascending order, each once"));
        }
        let claimed = self.claim_of(&request.account_id, suite::PREKEY, |device| request.devices.contains(device))?;
        let claimed = claimed.into_iter().map(|claim| {
            let prekey = claim.key.as_ref().map(as_published).transpose()?;
            Ok::<_, Box<Problem>>(ClaimedPrekey { device_id: claim.device, prekey })
        });
        Ok(ClaimPrekeysResponse { prekeys: claimed.collect::<Result<_, _>>()? })
    }

    pub(super) fn sealing_keys(&self, account: &AccountId) -> Outcome<SealingKeys> {
        if !self.accounts.contains_key(account) {
            return Err(not_found());
        }
        let until_s = self.must_live_until_s();
        let of_account = self.devices.iter().filter(|(_, device)| device.account == *account);
        let sealing_keys = of_account.map(|(device_id, device)| {
            let key = device.keys.last_resort(suite::SEALING).filter(|key| key.lives_until(until_s));
            let sealing_key = key.map(|key| as_published(&key.bytes)).transpose()?;
            Ok::<_, Box<Problem>>(DeviceSealingKey { device_id: *device_id, sealing_key })
        });
        Ok(SealingKeys { sealing_keys: sealing_keys.collect::<Result<_, _>>()? })
    }
}

impl FakeRelay {
    /// A device's keys are over: it has been away for too long.
    pub fn forget_keys(&self, device: &DeviceId) {
        self.change(|state| {
            if let Some(device) = state.devices.get_mut(device) {
                device.keys = super::keys::Keys::default();
            }
        });
    }

    /// Somebody claims a prekey of each device of an account so many times, and writes to nobody. Gives what they were handed.
    pub fn hand_out_prekeys(&self, account: AccountId, times: usize) -> Vec<Prekey> {
        let devices = self.look(|state| {
            let of_account = state.devices.iter().filter(|(_, device)| device.account == account);
            of_account.map(|(id, _)| *id).collect()
        });
        let request = ClaimPrekeysRequest { account_id: account, devices };
        let claimed = (0..times).filter_map(|_| self.change(|state| state.claim_prekeys(&request)).ok());
        claimed.flat_map(|answer| answer.prekeys).filter_map(|claim| claim.prekey).collect()
    }

    /// A device's prekeys that can still be handed out: one-time ones, and whether there is a fallback one.
    pub fn prekeys(&self, device: &DeviceId) -> (u64, bool) {
        self.look(|state| state.keys_of(device, suite::PREKEY))
    }

    /// A device's fallback prekey.
    pub fn fallback(&self, device: &DeviceId) -> Option<Prekey> {
        self.look(|state| as_published(&state.devices.get(device)?.keys.last_resort(suite::PREKEY)?.bytes).ok())
    }

    /// A device's sealing key.
    pub fn sealing_key(&self, device: &DeviceId) -> Option<SealingKey> {
        self.look(|state| as_published(&state.devices.get(device)?.keys.last_resort(suite::SEALING)?.bytes).ok())
    }
}

fn as_published<T: DeserializeOwned>(bytes: &Bytes) -> Outcome<T> {
    Encoding::Cbor.decode(bytes.as_slice()).map_err(|_| refused(ErrorCode::Internal, "a stored key cannot be decoded"))
}
