//! Frames of the stream, `GET /v1/stream?after=` as a WebSocket (RFC 6455).
//!
//! Each frame is one message: text with JSON or binary with CBOR, by the subprotocol agreed on. A device has one
//! stream; a newer one replaces the older.

use serde::{Deserialize, Serialize};

use crate::{Bytes, Delivery, Encoding, GroupId, Incarnation, RelayId, Span};

/// The WebSocket subprotocol for an encoding.
pub fn subprotocol(encoding: Encoding) -> &'static str {
    match encoding {
        Encoding::Json => "undertone.v1.json",
        Encoding::Cbor => "undertone.v1.cbor",
    }
}

/// What the relay says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "type", rename_all = "snake_case")]
#[non_exhaustive]
pub enum ServerFrame {
    /// The first frame.
    Hello {
        /// The relay, as pinned at registration.
        relay_id: RelayId,
        /// The present life of its store.
        incarnation: Incarnation,
        /// The number of this stream; grows with each one that the device opens.
        stream: u64,
        /// The number that the next entry will get.
        next_seq: u64,
        /// The oldest number still held; equal to `next_seq` if none is.
        oldest_available: u64,
        /// The relay's time, in milliseconds since the Unix epoch.
        time_ms: u64,
    },
    /// An entry of the queue.
    Delivery {
        /// The entry.
        delivery: Delivery,
    },
    /// Numbers that will never come.
    Missed {
        /// Which.
        span: Span,
    },
    /// Everything below `next_seq` has been sent; what follows is new.
    CaughtUp {
        /// The number that the next entry will get.
        next_seq: u64,
    },
    /// Ephemeral content of a group. It has no number, is not acked and does not come again.
    GroupEphemeral {
        /// The group.
        group_id: GroupId,
        /// The MLS epoch under whose key it is sealed.
        epoch: u64,
        /// The bytes that were posted.
        ciphertext: Bytes,
    },
    /// Ephemeral content for this device. It has no number, is not acked and does not come again.
    DirectEphemeral {
        /// The bytes that were posted for this device, sealed to it.
        ciphertext: Bytes,
    },
    /// The relay closes the stream.
    Bye {
        /// Why.
        reason: ByeReason,
    },
    /// A frame that this version does not know.
    #[serde(other)]
    Unknown,
}

/// Why a relay closes a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ByeReason {
    /// The relay stops; connect again, to another node if there is one.
    Shutdown,
    /// The device opened a newer stream. Do not reconnect.
    Replaced,
    /// The session ended or the device is no longer listed; log in again.
    Unauthenticated,
    /// The device read too slowly; connect again and resume.
    TooSlow,
    /// A frame could not be understood.
    Malformed,
    /// The relay failed; connect again.
    Internal,
    /// A reason that this version does not know; connect again.
    #[serde(other)]
    Other,
}

/// What a device says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "type", rename_all = "snake_case")]
#[non_exhaustive]
pub enum ClientFrame {
    /// Everything up to a number has been taken and may be deleted.
    Ack {
        /// The last number taken.
        up_to: u64,
    },
}
