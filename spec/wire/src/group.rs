//! Groups: bodies of `/v1/groups`, and what a relay may read of an MLS message.
//!
//! Invariant: a relay knows a group by numbers and device ids. What a device must tell it stands in the authenticated
//! data of its MLS message ([`AuthenticatedData`]), which the relay can read and members can prove.

use serde::{Deserialize, Serialize};

use crate::{AccountId, Bytes, DeviceId, GroupId, MessageId};

/// The authenticated data (RFC 9420, section 6.1) of every MLS message in a group, in CBOR.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct AuthenticatedData {
    /// `commit_seq` of the commit that began the sender's epoch; 0 in a group's first epoch.
    pub at: u64,
    /// Devices that a commit adds, in ascending order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub added: Vec<DeviceId>,
    /// Devices that a commit removes, in ascending order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub removed: Vec<DeviceId>,
}

/// `POST /v1/groups`: creates a group whose only member is the calling device. Repeating it changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CreateGroupRequest {
    /// The group, as in its MLS group id.
    pub group_id: GroupId,
    /// The group info of epoch 0 with its tree, sealed for those who may rejoin.
    pub sealed_group_info: Bytes,
}

/// `POST /v1/groups/{group}/commits`: a commit with all that goes with it. Accepted whole or not at all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CommitRequest {
    /// Makes repeating the request harmless.
    pub message_id: MessageId,
    /// The commit: an `MLSMessage` with a `PrivateMessage` (RFC 9420, section 6); or, by which the calling device joins on
    /// its own, with a `PublicMessage` of a new member (section 12.4.3.2). That one adds the calling device, and removes
    /// nothing but the leaf it had before.
    pub commit: Bytes,
    /// What those it adds need; absent if it adds nobody, or nobody but its own author.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub welcome: Option<WelcomeParts>,
    /// The group info of the epoch it begins, with its tree, sealed for those who may rejoin.
    pub sealed_group_info: Bytes,
}

/// A `Welcome` (RFC 9420, section 12.4.3.1) taken apart, so that its large part is stored once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct WelcomeParts {
    /// The cipher suite and the encrypted group info, the same for all joiners.
    pub group_info: Bytes,
    /// One entry per added device, in ascending order.
    pub secrets: Vec<WelcomeSecrets>,
}

/// The part of a `Welcome` that one joiner can open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct WelcomeSecrets {
    /// The joiner.
    pub device_id: DeviceId,
    /// Its `EncryptedGroupSecrets`.
    pub secrets: Bytes,
}

/// A commit was accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CommitResponse {
    /// The commit's number in its group, counted from 1.
    pub commit_seq: u64,
}

/// `POST /v1/groups/{group}/messages`: an application message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SendRequest {
    /// Makes repeating the request harmless.
    pub message_id: MessageId,
    /// An `MLSMessage` with a `PrivateMessage` of content type application.
    pub message: Bytes,
    /// For how many seconds it is kept for those who have not taken it. The relay counts whole hours, rounded up, and
    /// keeps nothing longer than its retention; absent means that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_s: Option<u64>,
}

/// `POST /v1/groups/{group}/leave`: the calling device's account leaves with all its devices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LeaveRequest {
    /// Makes repeating the request harmless.
    pub message_id: MessageId,
    /// An application message that tells the members, who then commit the removal.
    pub notice: Bytes,
}

/// A message, or a leave, was accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SendResponse {}

/// Where a group stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GroupPosition {
    /// The MLS epoch.
    pub epoch: u64,
    /// How many commits were accepted; the number of the newest.
    pub commit_seq: u64,
    /// Grows whenever the members change, by a commit or otherwise.
    pub members_version: u64,
}

/// `GET /v1/groups`: the groups of which the calling device is a member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GroupList {
    /// In ascending order of ids.
    pub groups: Vec<GroupSummary>,
}

/// One group in a [`GroupList`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GroupSummary {
    /// The group.
    pub group_id: GroupId,
    /// Where it stands.
    pub position: GroupPosition,
}

/// `GET /v1/groups/{group}`: for members, and for other devices of a member's account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Group {
    /// The group.
    pub group_id: GroupId,
    /// Where it stands.
    pub position: GroupPosition,
    /// The newest sealed group info.
    pub sealed_group_info: Bytes,
}

/// `GET /v1/groups/{group}/members`: the member devices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GroupMembers {
    /// Where the group stands.
    pub position: GroupPosition,
    /// In ascending order of device ids.
    pub members: Vec<GroupMember>,
}

/// A member device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GroupMember {
    /// The device.
    pub device_id: DeviceId,
    /// Its account.
    pub account_id: AccountId,
}

/// `GET /v1/groups/{group}/commits?after=`: commits that a member missed, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GroupCommits {
    /// As many as fit in one answer; ask again after the last for more.
    pub commits: Vec<GroupCommit>,
}

/// A commit with its number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GroupCommit {
    /// Its number in the group.
    pub commit_seq: u64,
    /// The commit.
    pub commit: Bytes,
}

/// The group has moved on: what a refused device needs to try again in one round trip.
///
/// The device drains its queue up to the last of `unacked` and encrypts again. It never applies a commit ahead of its
/// queue, because messages of the older epoch may stand before it there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct StaleGroup {
    /// Where the group stands.
    pub position: GroupPosition,
    /// Whether the refused device is a member.
    pub member: bool,
    /// Commits in the device's own queue that it has not acked, oldest first.
    pub unacked: Vec<UnackedCommit>,
}

/// Where in its own queue a device finds a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct UnackedCommit {
    /// The commit's number in its group.
    pub commit_seq: u64,
    /// Its number in the device's queue.
    pub seq: u64,
}
