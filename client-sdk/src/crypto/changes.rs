//! What a commit does to a group's membership, and whether it may.
//!
//! Invariant: the verdict depends on the commit and the group before it only, so that all members agree on it.

use openmls::prelude::{LeafNodeIndex, Proposal, StagedCommit};
use undertone_wire::{AuthenticatedData, Encoding};

use super::{
    CryptoError, Member,
    group::{Profile, profile_of},
    member::{VerifiedLeaf, check_tree, member_at, no_such_leaf},
};

/// Who makes a commit.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum By {
    /// A member.
    #[default]
    Member,
    /// Who joins by it on its own, perhaps in the place of its own leaf.
    Joiner,
}

/// What a commit does to the membership, both in ascending order of devices.
#[derive(Default)]
pub(super) struct Changes {
    pub(super) by: By,
    pub(super) added: Vec<(Member, VerifiedLeaf)>,
    pub(super) removed: Vec<Member>,
    /// Whether its author's own keys are new.
    pub(super) updates: bool,
}

impl Changes {
    /// What a staged commit does to a group with these leaves.
    pub(super) fn of(
        staged: &StagedCommit,
        leaves: &[(LeafNodeIndex, VerifiedLeaf)],
        by: By,
    ) -> Result<Self, CryptoError> {
        let mut changes = Self { by, updates: staged.update_path_leaf_node().is_some(), ..Self::default() };
        for proposal in staged.queued_proposals() {
            match (proposal.proposal(), by) {
                (Proposal::Add(add), By::Member) => {
                    let leaf = VerifiedLeaf::of(add.key_package().leaf_node())?;
                    changes.added.push((leaf.member, leaf));
                }
                (Proposal::Remove(remove), _) => changes.removed.push(member_at(leaves, remove.removed())?),
                (Proposal::GroupContextExtensions(_), By::Member) | (Proposal::ExternalInit(_), By::Joiner) => {}
                _ => return Err(CryptoError::Invalid("a proposal of a kind that groups do not use".into())),
            }
        }
        if by == By::Joiner {
            let leaf = VerifiedLeaf::of(staged.update_path_leaf_node().ok_or_else(no_such_leaf)?)?;
            if changes.removed.iter().any(|removed| *removed != leaf.member) {
                return Err(CryptoError::Invalid("who joins on its own must not remove others".into()));
            }
            changes.added.push((leaf.member, leaf));
        }
        changes.added.sort_by_key(|(member, _)| member.device);
        changes.removed.sort_by_key(|member| member.device);
        Ok(changes)
    }

    /// Who joins by the commit on its own.
    pub(super) fn joiner(&self) -> Option<Member> {
        self.added.first().filter(|_| self.by == By::Joiner).map(|(member, _)| *member)
    }

    /// The rules that openmls leaves to the application (RFC 9420, section 5.3.1). The group had a profile before.
    pub(super) fn check(
        &self,
        staged: &StagedCommit,
        by: Member,
        leaves: &[(LeafNodeIndex, VerifiedLeaf)],
        before: &Profile,
    ) -> Result<(), CryptoError> {
        if profile_of(staged.group_context().extensions())?.continues != before.continues {
            return Err(CryptoError::Invalid("what a group continues does not change".into()));
        }
        let mut tree: Vec<_> = leaves
            .iter()
            .filter(|(_, leaf)| !self.removed.contains(&leaf.member))
            .map(|(_, leaf)| leaf.clone())
            .collect();
        if let Some(leaf) = staged.update_path_leaf_node().filter(|_| self.by == By::Member) {
            let leaf = VerifiedLeaf::of(leaf)?;
            let before = tree.iter_mut().find(|leaf| leaf.member == by).ok_or_else(no_such_leaf)?;
            leaf.may_replace(before)?;
            *before = leaf;
            check_tree(&tree)?;
        }
        if let Some(joiner) = self.joiner()
            && !leaves.iter().any(|(_, leaf)| leaf.member.account == joiner.account)
        {
            return Err(CryptoError::Invalid("who joins on its own must be of a member's account".into()));
        }
        for (_, leaf) in &self.added {
            leaf.may_join(&tree)?;
            if let Some((_, before)) = leaves.iter().find(|(_, before)| before.member == leaf.member) {
                leaf.may_replace(before)?;
            }
            tree.push(leaf.clone());
        }
        Ok(())
    }
}

/// Whether a message does what its authenticated data tells the relay.
pub(super) fn check_authenticated(aad: &[u8], at: u64, changes: &Changes) -> Result<(), CryptoError> {
    let said: AuthenticatedData = Encoding::Cbor.decode(aad).map_err(CryptoError::invalid)?;
    let same = said.at == at
        && said.added.iter().eq(changes.added.iter().map(|(member, _)| &member.device))
        && said.removed.iter().eq(changes.removed.iter().map(|member| &member.device));
    if same { Ok(()) } else { Err(CryptoError::Invalid("the message does not do what it told the relay".into())) }
}
