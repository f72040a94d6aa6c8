//! Direct messages: bodies of `/v1/messages`.
//!
//! Invariant: a ciphertext is for one device, and an account's ciphertexts are for exactly its listed devices. The
//! sender's own account is always among the receivers, and the sending device among its devices.

use serde::{Deserialize, Serialize};

use crate::{AccountId, Bytes, DeviceId, MessageId};

/// `POST /v1/messages`: a direct message to all devices of some accounts. Accepted whole or not at all; answered with a
/// [`SendResponse`](crate::SendResponse).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SendDirectRequest {
    /// Makes repeating the request harmless.
    pub message_id: MessageId,
    /// For how many seconds it is kept for those who have not taken it. The relay counts whole hours, rounded up, and
    /// keeps nothing longer than its retention; absent means that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_s: Option<u64>,
    /// The receivers, the sender's own account among them, each once, in ascending order of account ids.
    pub accounts: Vec<DirectRecipient>,
}

/// An account that a direct message is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DirectRecipient {
    /// The account.
    pub account_id: AccountId,
    /// One for each device that its newest list names and for no other, in ascending order of device ids.
    pub ciphertexts: Vec<DirectCiphertext>,
}

/// What one device is to receive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DirectCiphertext {
    /// The device.
    pub device_id: DeviceId,
    /// Sealed to the device.
    pub ciphertext: Bytes,
}
