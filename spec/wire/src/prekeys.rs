//! Prekeys and sealing keys: what it takes to send a device a direct message while it is away. Bodies of
//! `/v1/keys/prekeys` and `/v1/accounts/{account}/sealing-keys`.
//!
//! A one-time prekey is handed out once, the fallback prekey whenever no other is left; the sealing key is everyone's.
//!
//! Invariant: each is signed by its device's key, which the account's device list names, so that a relay can withhold one
//! and cannot make one up.

use serde::{Deserialize, Serialize};

use crate::{AccountId, Bytes, DeviceId, Domain, Hash, MessageId, PublicKey, Signature, X25519Key, sign, verify};

/// A key to begin an Olm session with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Prekey {
    /// The public half.
    pub key: X25519Key,
    /// When its life ends, in milliseconds since the Unix epoch.
    pub not_after_ms: u64,
    /// Whether it is the fallback prekey, which others may have been given too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub fallback: bool,
    /// The device key's signature ([`Domain::Prekey`]).
    pub signature: Signature,
}

impl Prekey {
    /// A prekey of a device whose device key has the seed `device_key`.
    pub fn sign(device: DeviceId, key: X25519Key, not_after_ms: u64, fallback: bool, device_key: &[u8; 32]) -> Self {
        let mut prekey = Self { key, not_after_ms, fallback, signature: Signature::from([0; 64]) };
        prekey.signature = prekey.with_fields(device, |fields| sign(device_key, Domain::Prekey, fields));
        prekey
    }

    /// Whether the device with this device key vouches for it.
    pub fn is_of(&self, device: DeviceId, device_key: &PublicKey) -> bool {
        self.with_fields(device, |fields| verify(device_key, Domain::Prekey, fields, &self.signature))
    }

    /// What it is called: SHA-256 of the bytes that are signed.
    pub fn hash_ref(&self, device: DeviceId) -> Hash {
        self.with_fields(device, |fields| Hash::of(&Domain::Prekey.message(fields)))
    }

    fn with_fields<T>(&self, device: DeviceId, work: impl FnOnce(&[&[u8]]) -> T) -> T {
        let (not_after, fallback) = (self.not_after_ms.to_be_bytes(), [u8::from(self.fallback)]);
        work(&[device.as_bytes(), &not_after, &fallback, self.key.as_bytes()])
    }
}

/// The key to which direct messages for a device are sealed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SealingKey {
    /// An X-Wing public key, [`SealingKey::LENGTH`] bytes.
    pub key: Bytes,
    /// When its life ends, in milliseconds since the Unix epoch. Of two, the one that ends later is the newer.
    pub not_after_ms: u64,
    /// The device key's signature ([`Domain::SealingKey`]).
    pub signature: Signature,
}

impl SealingKey {
    /// How long an X-Wing public key is, in bytes.
    pub const LENGTH: usize = 1_216;

    /// The sealing key of a device whose device key has the seed `device_key`.
    pub fn sign(device: DeviceId, key: Bytes, not_after_ms: u64, device_key: &[u8; 32]) -> Self {
        let mut sealing_key = Self { key, not_after_ms, signature: Signature::from([0; 64]) };
        sealing_key.signature = sealing_key.with_fields(device, |fields| sign(device_key, Domain::SealingKey, fields));
        sealing_key
    }

    /// Whether the device with this device key vouches for it.
    pub fn is_of(&self, device: DeviceId, device_key: &PublicKey) -> bool {
        self.with_fields(device, |fields| verify(device_key, Domain::SealingKey, fields, &self.signature))
    }

    /// What it is called: SHA-256 of the bytes that are signed.
    pub fn hash_ref(&self, device: DeviceId) -> Hash {
        self.with_fields(device, |fields| Hash::of(&Domain::SealingKey.message(fields)))
    }

    fn with_fields<T>(&self, device: DeviceId, work: impl FnOnce(&[&[u8]]) -> T) -> T {
        work(&[device.as_bytes(), &self.not_after_ms.to_be_bytes(), self.key.as_slice()])
    }
}

/// `POST /v1/keys/prekeys`: publishes prekeys and the sealing key of the calling device, all or none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PublishPrekeysRequest {
    /// Makes repeating the request harmless: a key handed out in between does not come back.
    pub message_id: MessageId,
    /// Prekeys. A fallback one, of which there is one at most, replaces the one before.
    #[serde(default)]
    pub prekeys: Vec<Prekey>,
    /// The new sealing key, if it changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealing_key: Option<SealingKey>,
}

/// How many prekeys a device has at the relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PrekeyCount {
    /// One-time prekeys that can still be handed out.
    pub one_time: u64,
    /// Whether there is a fallback prekey that can be handed out.
    pub fallback: bool,
}

/// `POST /v1/keys/prekeys/claim`: takes one prekey for each of some devices of an account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ClaimPrekeysRequest {
    /// The account.
    pub account_id: AccountId,
    /// Those of its devices with which there is no session yet, each once, in ascending order.
    pub devices: Vec<DeviceId>,
}

/// One entry for each device that was asked for and is listed, in ascending order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ClaimPrekeysResponse {
    /// The prekeys.
    pub prekeys: Vec<ClaimedPrekey>,
}

/// A prekey handed out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ClaimedPrekey {
    /// The device.
    pub device_id: DeviceId,
    /// The prekey; absent if the device has published none that still lives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prekey: Option<Prekey>,
}

/// `GET /v1/accounts/{account}/sealing-keys`: one entry for each listed device of the account, in ascending order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SealingKeys {
    /// The sealing keys.
    pub sealing_keys: Vec<DeviceSealingKey>,
}

/// The sealing key of a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DeviceSealingKey {
    /// The device.
    pub device_id: DeviceId,
    /// Its sealing key; absent if it has published none that still lives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealing_key: Option<SealingKey>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::public_key;

    const SEED: [u8; 32] = [1; 32];

    fn device(byte: u8) -> DeviceId {
        DeviceId::from_random([byte; 16])
    }

    #[test]
    fn a_prekey_is_one_devices_for_one_use_and_time() {
        let prekey = Prekey::sign(device(1), X25519Key::from([2; 32]), 3, false, &SEED);
        let key = public_key(&SEED);
        assert!(prekey.is_of(device(1), &key));
        assert!(!prekey.is_of(device(2), &key) && !prekey.is_of(device(1), &public_key(&[9; 32])));
        for changed in [
            Prekey { key: X25519Key::from([4; 32]), ..prekey.clone() },
            Prekey { not_after_ms: 4, ..prekey.clone() },
            Prekey { fallback: true, ..prekey.clone() },
        ] {
            assert!(!changed.is_of(device(1), &key), "{changed:?}");
            assert_ne!(changed.hash_ref(device(1)), prekey.hash_ref(device(1)));
        }
    }

    #[test]
    fn a_sealing_key_is_one_devices_for_one_time() {
        let sealing_key = SealingKey::sign(device(1), vec![2; SealingKey::LENGTH].into(), 3, &SEED);
        let key = public_key(&SEED);
        assert!(sealing_key.is_of(device(1), &key));
        assert!(!sealing_key.is_of(device(2), &key) && !sealing_key.is_of(device(1), &public_key(&[9; 32])));
        for changed in [
            SealingKey { key: vec![4; SealingKey::LENGTH].into(), ..sealing_key.clone() },
            SealingKey { not_after_ms: 4, ..sealing_key.clone() },
        ] {
            assert!(!changed.is_of(device(1), &key), "{changed:?}");
            assert_ne!(changed.hash_ref(device(1)), sealing_key.hash_ref(device(1)));
        }
    }
}
