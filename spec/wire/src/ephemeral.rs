//! Ephemeral content, such as typing and presence: bodies of `/v1/groups/{group}/ephemeral` and `/v1/ephemeral`.
//!
//! Invariant: it is never stored. A device gets it only while its stream is open and caught up; otherwise it is dropped,
//! and nobody is told. Both requests are answered 202 without a body, which says nothing about who got it.

use serde::{Deserialize, Serialize};

use crate::{Bytes, DirectCiphertext};

/// `POST /v1/groups/{group}/ephemeral`: to the group's member devices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GroupEphemeralRequest {
    /// `commit_seq` of the commit that began the sender's epoch; 0 in a group's first epoch.
    pub at: u64,
    /// The sender's MLS epoch.
    pub epoch: u64,
    /// Sealed under a key that the epoch exports.
    pub ciphertext: Bytes,
}

/// `POST /v1/ephemeral`: to single devices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DirectEphemeralRequest {
    /// One for each receiving device, in ascending order of device ids.
    pub ciphertexts: Vec<DirectCiphertext>,
}
