//! What only a hostile relay does: it serves what it has made up.

use undertone_wire::{
    AccountId, DeviceId, DeviceList, Encoding, Prekey, SealingKey, SignedDeviceList, Username, suite,
};

use super::{FakeRelay, keys::StoredKey, state::State};

impl FakeRelay {
    /// Serves this list for the account that it names, whoever has signed it, and has the devices in it and no others.
    /// What is no list changes nothing.
    pub fn serve_list(&self, list: &SignedDeviceList) {
        if let Ok(decoded) = Encoding::Cbor.decode(list.list.as_slice()) {
            self.change(|state| state.serve_list(list, &decoded));
        }
    }

    /// Calls an account by another name.
    pub fn call(&self, account: &AccountId, name: Username) {
        self.change(|state| {
            if let Some(account) = state.accounts.get_mut(account) {
                account.username = Some(name);
            }
        });
    }

    /// Hands out this prekey for a device, whoever has signed it, again and again.
    pub fn serve_prekey(&self, device: &DeviceId, prekey: &Prekey) {
        self.serve_key(device, suite::PREKEY, Encoding::Cbor.encode(prekey), prekey.not_after_ms);
    }

    /// Hands out this sealing key for a device, whoever has signed it.
    pub fn serve_sealing_key(&self, device: &DeviceId, key: &SealingKey) {
        self.serve_key(device, suite::SEALING, Encoding::Cbor.encode(key), key.not_after_ms);
    }

    fn serve_key(&self, device: &DeviceId, suite: u16, bytes: Vec<u8>, not_after_ms: u64) {
        let key = StoredKey::new(bytes.into(), not_after_ms / 1_000);
        self.change(|state| {
            if let Some(device) = state.devices.get_mut(device) {
                device.keys.replace(suite, key);
            }
        });
    }
}

impl State {
    fn serve_list(&mut self, signed: &SignedDeviceList, list: &DeviceList) {
        if self.put_devices(list).is_err() {
            return;
        }
        let is_listed = |id: &DeviceId| list.devices.iter().any(|entry| entry.is_of(*id));
        self.devices.retain(|id, device| device.account != list.account || is_listed(id));
        if let Some(account) = self.accounts.get_mut(&list.account) {
            account.device_list = signed.clone();
        }
    }
}
