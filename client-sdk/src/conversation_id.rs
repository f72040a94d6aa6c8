//! What messages stand in: a group, or what two accounts write to each other directly.
//!
//! Invariant: both are named by one id of 16 bytes, whose UUID version tells which it is, so that wherever messages are
//! kept there is one kind of key.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use undertone_wire::{AccountId, GroupId, IdError};

/// A conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConversationId {
    /// A group.
    Group(GroupId),
    /// The direct messages with an account. There is one such conversation with each.
    Direct(AccountId),
}

impl ConversationId {
    /// The group, if it is one.
    pub fn group(self) -> Option<GroupId> {
        match self {
            Self::Group(group) => Some(group),
            Self::Direct(_) => None,
        }
    }

    /// The account with which it is, if it is a direct one.
    pub fn account(self) -> Option<AccountId> {
        match self {
            Self::Group(_) => None,
            Self::Direct(account) => Some(account),
        }
    }

    pub(crate) fn as_bytes(&self) -> &[u8; 16] {
        match self {
            Self::Group(group) => group.as_bytes(),
            Self::Direct(account) => account.as_bytes(),
        }
    }
}

impl From<GroupId> for ConversationId {
    fn from(group: GroupId) -> Self {
        Self::Group(group)
    }
}

impl From<AccountId> for ConversationId {
    fn from(account: AccountId) -> Self {
        Self::Direct(account)
    }
}

impl TryFrom<&[u8]> for ConversationId {
    type Error = IdError;

    fn try_from(bytes: &[u8]) -> Result<Self, IdError> {
        GroupId::try_from(bytes).map(Self::Group).or_else(|_| AccountId::try_from(bytes).map(Self::Direct))
    }
}

impl FromStr for ConversationId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        text.parse().map(Self::Group).or_else(|_| text.parse().map(Self::Direct))
    }
}

impl fmt::Display for ConversationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Group(group) => group.fmt(f),
            Self::Direct(account) => account.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use undertone_wire::PublicKey;

    use super::*;

    #[test]
    fn an_id_says_what_it_is_the_id_of() {
        let group = GroupId::from_random([1; 16]);
        let account = AccountId::from_identity_key(&PublicKey::from([2; 32]));
        for id in [ConversationId::from(group), ConversationId::from(account)] {
            assert_eq!(ConversationId::try_from(id.as_bytes().as_slice()), Ok(id));
            assert_eq!(id.to_string().parse(), Ok(id));
        }
        assert_eq!(ConversationId::from(group).group(), Some(group));
        assert_eq!(ConversationId::from(account).account(), Some(account));
        assert!(ConversationId::try_from([0xff; 16].as_slice()).is_err());
        assert!("no id".parse::<ConversationId>().is_err());
    }
}
