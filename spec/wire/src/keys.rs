//! Key packages: bodies of `/v1/keys`. Each is handed out once, the last-resort one whenever no other is left.
//!
//! Counting and reconciling is of all keys that a device has at the relay, prekeys and the sealing key included.

use serde::{Deserialize, Serialize};

use crate::{AccountId, Bytes, DeviceId, Hash, MessageId, PrekeyCount};

/// What a key is for: an MLS cipher suite (RFC 9420, section 17.1), or a number of its private range for what is not MLS.
pub mod suite {
    /// `MLS_128_DHKEMX25519_CHACHA20POLY1305_SHA256_Ed25519`: the default.
    pub const DEFAULT: u16 = 0x0003;
    /// `MLS_128_MLKEM768X25519_AES128GCM_SHA256_Ed25519` (draft-ietf-mls-pq-ciphersuites): what is said in a group of it stays
    /// secret from who records it now and has a quantum computer later.
    pub const HYBRID: u16 = 0x004F;
    /// Up to here a number is one of MLS's own (RFC 9420, section 17.1).
    pub const MLS_MAX: u16 = 0xEFFF;
    /// Those of MLS.
    pub const MLS: [u16; 2] = [DEFAULT, HYBRID];
    /// Prekeys: X25519, for Olm sessions with whole message authentication codes.
    pub const PREKEY: u16 = 0xF0A0;
    /// Sealing keys: HPKE (RFC 9180) with X-Wing, HKDF-SHA-256 and ChaCha20-Poly1305.
    pub const SEALING: u16 = 0xF0A1;
}

/// `POST /v1/keys/key-packages`: publishes key packages of the calling device, all or none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PublishRequest {
    /// Makes repeating the request harmless: a key handed out in between does not come back.
    pub message_id: MessageId,
    /// One-time key packages: `KeyPackage` of RFC 9420, section 10, without an `MLSMessage` around it.
    pub key_packages: Vec<Bytes>,
    /// The new last-resort key package, if it changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_resort: Option<Bytes>,
}

/// `GET /v1/keys` and the answer to publishing: what the calling device has at the relay.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct KeyCounts {
    /// Key packages: one entry per suite that has any.
    pub key_packages: Vec<KeyPackageCount>,
    /// Prekeys.
    pub prekeys: PrekeyCount,
    /// Whether there is a sealing key that can be handed out.
    pub sealing_key: bool,
}

/// How many key packages of one suite a device has at the relay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct KeyPackageCount {
    /// The MLS cipher suite.
    pub suite: u16,
    /// One-time key packages that can still be handed out.
    pub one_time: u64,
    /// Whether there is a last-resort key package that can be handed out.
    pub last_resort: bool,
}

/// `POST /v1/keys/reconcile`: makes the calling device and the relay agree on which keys there are. The relay forgets all of
/// the device's that are not named. Repeating it changes nothing more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ReconcileRequest {
    /// What each key is called whose private half the device still holds: the `KeyPackageRef` (RFC 9420, section 5.2) of key
    /// packages, one-time and last-resort, of any suite; [`Prekey::hash_ref`](crate::Prekey::hash_ref) and
    /// [`SealingKey::hash_ref`](crate::SealingKey::hash_ref).
    pub hash_refs: Vec<Hash>,
}

/// What the relay can still hand out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ReconcileResponse {
    /// Those of the request that the relay can still hand out, in ascending order. The others were handed out, have
    /// expired or never arrived.
    pub available: Vec<Hash>,
    /// The counts since.
    pub counts: KeyCounts,
}

/// `POST /v1/keys/claim`: takes one key package for each device of an account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ClaimRequest {
    /// The account.
    pub account_id: AccountId,
    /// The MLS cipher suite.
    pub suite: u16,
}

/// One entry for each listed device of the account, in ascending order of device ids.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ClaimResponse {
    /// The key packages.
    pub key_packages: Vec<ClaimedKeyPackage>,
}

/// A key package handed out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ClaimedKeyPackage {
    /// The device.
    pub device_id: DeviceId,
    /// The key package; absent if the device has published none that still lives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_package: Option<Bytes>,
    /// Whether it is the last-resort one, which others may have been given too.
    pub last_resort: bool,
}
