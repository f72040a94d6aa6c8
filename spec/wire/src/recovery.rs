//! Groups that cannot go on for somebody: asking to be let in again, and the group that goes on instead. Bodies of
//! `/v1/groups/{group}/rejoin` and `/v1/groups/{group}/successor`.
//!
//! Invariant: nothing here changes the group itself. What members make of it is theirs to decide.

use serde::{Deserialize, Serialize};

use crate::{AccountId, GroupId, GroupPosition, MessageId};

/// `POST /v1/groups/{group}/rejoin`: the calling device, which its account's membership gives a place in the group, asks a
/// member to swap its leaf, since it cannot come back by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RejoinRequest {
    /// Makes repeating the request harmless.
    pub message_id: MessageId,
}

/// `POST /v1/groups/{group}/successor`: another group goes on where the members of an epoch stand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SuccessorRequest {
    /// Makes repeating the request harmless.
    pub message_id: MessageId,
    /// `commit_seq` of the commit that began the epoch; 0 for a group's first epoch.
    pub at: u64,
    /// The group that goes on.
    pub successor: GroupId,
    /// The one recorded before for this epoch, if that cannot go on either. Anything else than the newest recorded one
    /// leaves that as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaces: Option<GroupId>,
}

/// `GET /v1/groups/{group}/successor?at=`, and the answer to a [`SuccessorRequest`]: for devices that were members in the
/// epoch that commit `at` began, whatever became of them since.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Succession {
    /// Where the group stands.
    pub position: GroupPosition,
    /// The account that posted the newest commit; absent if that account is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub newest_commit_account: Option<AccountId>,
    /// The group that goes on from `at`: the first that was recorded, or the last of those that replaced it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub successor: Option<GroupId>,
}
