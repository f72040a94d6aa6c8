//! Members of a group: whose leaf is whose, and which leaves may stand in one tree.
//!
//! Invariant: all leaves of an account agree on its chain of identity keys; a new leaf never goes back on it.

use std::collections::BTreeMap;

use openmls::prelude::{Credential, LeafNode, LeafNodeIndex, MlsGroup};
use serde::{Deserialize, Serialize};
use undertone_wire::{AccountId, DeviceId, LeafCredential, PublicKey, Rotation, chain_continues};

use super::CryptoError;

/// A device in a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Member {
    /// Its account.
    pub(crate) account: AccountId,
    /// The device.
    pub(crate) device: DeviceId,
}

/// The members of a group, in ascending order of accounts and devices, each with the key that its leaf signs with.
pub(crate) type Members = BTreeMap<Member, PublicKey>;

/// A leaf whose credential holds.
#[derive(Debug, Clone)]
pub(super) struct VerifiedLeaf {
    pub(super) member: Member,
    /// The device's, for its whole life.
    pub(super) mls_key: PublicKey,
    rotations: Vec<Rotation>,
}

impl VerifiedLeaf {
    /// A leaf by its credential and signature key.
    pub(super) fn verify(credential: &Credential, signature_key: &[u8]) -> Result<Self, CryptoError> {
        let credential = LeafCredential::decode(credential.serialized_content()).map_err(CryptoError::invalid)?;
        let certificate = credential.verify(signature_key).map_err(CryptoError::invalid)?;
        let member = Member { account: certificate.account, device: certificate.device };
        Ok(Self { member, mls_key: certificate.mls_key, rotations: credential.rotations })
    }

    /// A leaf that stands in the tree: it was verified when it entered, and what is in the store is trusted.
    pub(super) fn stored(credential: &Credential) -> Result<Self, CryptoError> {
        let credential = LeafCredential::decode(credential.serialized_content()).map_err(CryptoError::invalid)?;
        let certificate = credential.certificate.unverified().map_err(CryptoError::invalid)?;
        let member = Member { account: certificate.account, device: certificate.device };
        Ok(Self { member, mls_key: certificate.mls_key, rotations: credential.rotations })
    }

    /// A leaf as openmls hands it out.
    pub(super) fn of(leaf: &LeafNode) -> Result<Self, CryptoError> {
        Self::verify(leaf.credential(), leaf.signature_key().as_slice())
    }

    /// Whether this leaf may take the place of `before`, the same device's.
    pub(super) fn may_replace(&self, before: &Self) -> Result<(), CryptoError> {
        if self.member != before.member {
            return Err(CryptoError::Invalid("a commit must not change its sender's device".into()));
        }
        if self.mls_key != before.mls_key {
            return Err(CryptoError::Invalid("a device keeps its MLS key for as long as it lives".into()));
        }
        if !chain_continues(&self.rotations, &before.rotations) {
            return Err(CryptoError::Invalid("the leaf goes back on its account's identity key".into()));
        }
        Ok(())
    }

    /// Whether this leaf may join `others`: its device is not there yet, and it knows of every change of its account's
    /// identity key that the account's leaves know of.
    pub(super) fn may_join(&self, others: &[Self]) -> Result<(), CryptoError> {
        for other in others.iter().filter(|other| other.member.account == self.member.account) {
            if other.member.device == self.member.device {
                return Err(CryptoError::Invalid("the device is in the group already".into()));
            }
            if !chain_continues(&self.rotations, &other.rotations) {
                return Err(CryptoError::Invalid("the leaf goes back on its account's identity key".into()));
            }
        }
        Ok(())
    }
}

/// The leaves of a group this device is in, with their places in the tree.
pub(super) fn leaves(group: &MlsGroup) -> Result<Vec<(LeafNodeIndex, VerifiedLeaf)>, CryptoError> {
    group.members().map(|leaf| Ok((leaf.index, VerifiedLeaf::stored(&leaf.credential)?))).collect()
}

/// Whose leaf stands at a place.
pub(super) fn member_at(leaves: &[(LeafNodeIndex, VerifiedLeaf)], index: LeafNodeIndex) -> Result<Member, CryptoError> {
    leaves.iter().find(|(at, _)| *at == index).map(|(_, leaf)| leaf.member).ok_or_else(no_such_leaf)
}

/// A leaf is named that is not there.
pub(super) fn no_such_leaf() -> CryptoError {
    CryptoError::Invalid("no such leaf".into())
}

/// Whether all leaves of a tree may stand together, whatever the order in which they came.
pub(super) fn check_tree(leaves: &[VerifiedLeaf]) -> Result<(), CryptoError> {
    for (at, leaf) in leaves.iter().enumerate() {
        for other in leaves[..at].iter().filter(|other| other.member.account == leaf.member.account) {
            let agree = chain_continues(&leaf.rotations, &other.rotations)
                || chain_continues(&other.rotations, &leaf.rotations);
            if other.member.device == leaf.member.device || !agree {
                return Err(CryptoError::Invalid("two leaves of an account contradict each other".into()));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_takes_the_place_of_a_device_by_its_name() {
        let member =
            Member { account: AccountId::from_identity_key(&[1; 32].into()), device: DeviceId::from_random([2; 16]) };
        let leaf = |member, mls_key: u8| VerifiedLeaf { member, mls_key: [mls_key; 32].into(), rotations: vec![] };
        let before = leaf(member, 3);
        assert!(leaf(member, 3).may_replace(&before).is_ok());
        assert!(leaf(member, 4).may_replace(&before).is_err());
        let other = Member { device: DeviceId::from_random([5; 16]), ..member };
        assert!(leaf(other, 3).may_replace(&before).is_err());
    }
}
