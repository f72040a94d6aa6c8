//! Queues: what a device is handed, and how it says that it has it. Bodies of `/v1/queue`.
//!
//! Invariant: the numbers of a device's queue are consecutive from 1; a number that will never come is told in a
//! [`Span`] of missed ones.

use serde::{Deserialize, Serialize};

use crate::{AccountId, Bytes, DeviceId, GroupId, InstanceId};

/// One entry of a device's queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Delivery {
    /// Its number in the queue.
    pub seq: u64,
    /// What was delivered.
    pub envelope: Envelope,
}

/// What a queue entry holds: ciphertexts with as much around them as the receiver needs to open them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "type", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Envelope {
    /// An application message of a group, the receiver's own ones included.
    GroupMessage {
        /// The group.
        group_id: GroupId,
        /// The bytes that were posted.
        message: Bytes,
    },
    /// A commit, to those who were members before it, its author included.
    GroupCommit {
        /// The group.
        group_id: GroupId,
        /// The commit's number in the group.
        commit_seq: u64,
        /// The bytes that were posted.
        commit: Bytes,
    },
    /// The receiver was added to a group.
    Welcome {
        /// The group.
        group_id: GroupId,
        /// The number of the commit that added the receiver.
        commit_seq: u64,
        /// The shared part of the Welcome.
        group_info: Bytes,
        /// The receiver's own part.
        secrets: Bytes,
    },
    /// Devices are no longer members although no commit said so: their account is gone or they were unlinked.
    MembersGone {
        /// The group.
        group_id: GroupId,
        /// The group's `members_version` since.
        members_version: u64,
    },
    /// A device that belongs in the group cannot come back by itself: one member should remove its leaf and add it anew.
    RejoinWanted {
        /// The group.
        group_id: GroupId,
        /// The device's account.
        account_id: AccountId,
        /// The device.
        device_id: DeviceId,
    },
    /// Somebody who was a member in an epoch has founded a group that goes on from there. For those who can go on in this
    /// one it means nothing.
    Successor {
        /// The group that cannot go on.
        group_id: GroupId,
        /// `commit_seq` of the commit that began the epoch.
        at: u64,
        /// The group that goes on.
        successor: GroupId,
    },
    /// A direct message. Nothing outside of the ciphertext says who sent it.
    DirectMessage {
        /// The bytes that were posted for the receiving device, sealed to it.
        ciphertext: Bytes,
    },
    /// Few one-time key packages or prekeys of the receiver are left: it should publish more.
    KeysLow {
        /// Of which [`suite`](crate::suite).
        suite: u16,
        /// How many could still be handed out when this was written.
        one_time: u64,
    },
    /// The receiver's last-resort key package or fallback prekey was handed out, because no one-time one was left or a
    /// claim limit was reached. The receiver should publish one-time ones and replace the other.
    LastResortUsed {
        /// Of which [`suite`](crate::suite).
        suite: u16,
    },
    /// An envelope of a kind that this version does not know. It is acked like any other.
    #[serde(other)]
    Unknown,
}

/// Numbers that will never be delivered, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Span {
    /// The first.
    pub from: u64,
    /// The last.
    pub to: u64,
}

/// `GET /v1/queue?after=&limit=&wait=`: the entries after a number, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FetchResponse {
    /// Entries, oldest first; empty if nothing came while waiting.
    pub deliveries: Vec<Delivery>,
    /// Numbers above `after` and below `next_seq` that will never come.
    pub missed: Vec<Span>,
    /// The number that the next entry will get.
    pub next_seq: u64,
    /// The oldest number still held; equal to `next_seq` if none is.
    pub oldest_available: u64,
}

/// `POST /v1/queue/ack`: everything up to a number has been taken and may be deleted. Repeating it changes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AckRequest {
    /// The last number taken.
    pub up_to: u64,
}

/// `POST /v1/queue/instance`: who takes from the queue from now on is the store `instance`, which was `previous` before.
/// Refused with `other_instance` if another one took from it last. Repeating it changes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct InstanceRequest {
    /// What the store was before; absent the first time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<InstanceId>,
    /// What it is now.
    pub instance: InstanceId,
    /// Whether it takes over from whatever took last.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub takes_over: bool,
}

/// How far the device was when it took last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct InstanceResponse {
    /// The number up to which everything was taken.
    pub acked_seq: u64,
}
