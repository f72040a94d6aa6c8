//! Joining a group on one's own, by the commit of a new member (RFC 9420, section 12.4.3.2), from the sealed group info that
//! the group's newest commit left at the relay.
//!
//! The provider's storage is one of its own: openmls writes the group there as if the commit were accepted already. It takes
//! the place of what the device has of the group when that is so.

use openmls::prelude::{
    CredentialWithKey, LeafNodeParameters, MlsGroup, MlsMessageBodyIn, MlsMessageIn, MlsMessageOut,
    group_info::VerifiableGroupInfo, tls_codec::Deserialize as _, tls_codec::Serialize as _,
};
use undertone_wire::{AuthenticatedData, Bytes, Encoding, Group};

use super::{
    CryptoError, Identity, Member, Provider, Suite, capabilities,
    group::{self, Profile, RejoinKey},
    join_config,
    member::{VerifiedLeaf, check_tree},
    seal::{self, Kind, Position},
};

/// A commit by which this device joins, ready to be posted.
pub(crate) struct Rejoin {
    pub(crate) commit: Bytes,
    /// Its number once it is accepted.
    pub(crate) commit_seq: u64,
    pub(crate) sealed_group_info: Bytes,
    pub(crate) profile: Profile,
}

/// Makes a commit by which this device joins a group of this suite, where the relay says that the group stands.
pub(crate) fn rejoin(
    aside: &impl Provider,
    identity: &Identity,
    suite: Suite,
    at: &Group,
    rejoin_key: &RejoinKey,
) -> Result<Rejoin, CryptoError> {
    let commit_seq = at.position.commit_seq;
    let next = commit_seq.checked_add(1).filter(|next| i64::try_from(*next).is_ok());
    let next = next.ok_or_else(|| CryptoError::Invalid("the group cannot have that many commits".into()))?;
    let position = Position { group: at.group_id, commit_seq };
    let opened = seal::open(aside, Kind::GroupInfo, rejoin_key.as_bytes(), position, at.sealed_group_info.as_slice())?;
    let info = group_info(&opened)?;
    if info.group_id().as_slice() != at.group_id.as_bytes() || info.epoch().as_u64() != at.position.epoch {
        return Err(CryptoError::Invalid("the group info is of another group or epoch".into()));
    }
    if info.ciphersuite() != suite.mls() {
        return Err(CryptoError::Invalid("the group info is of another cipher suite".into()));
    }
    let own = identity.member();
    let credential = identity.credential();
    let removed = has_leaf(&info, own, &credential)?.then_some(own.device);
    let data = AuthenticatedData { at: commit_seq, added: vec![own.device], removed: removed.into_iter().collect() };

    let (mls, bundle) = MlsGroup::external_commit_builder()
        .with_config(join_config())
        .with_aad(Encoding::Cbor.encode(&data))
        .skip_lifetime_validation()
        .build_group(aside, info, credential)
        .map_err(CryptoError::invalid)?
        .leaf_node_parameters(LeafNodeParameters::builder().with_capabilities(capabilities(suite)).build())
        .load_psks(aside.storage())
        .map_err(CryptoError::storage)?
        .use_ratchet_tree_extension(true)
        .create_group_info_with_extensions(vec![])
        .map_err(CryptoError::invalid)?
        .build(aside.rand(), aside.crypto(), identity, |_| true)
        .map_err(CryptoError::invalid)?
        .finalize(aside)
        .map_err(CryptoError::storage)?;
    let profile = group::profile_of(mls.extensions())?;
    let (commit, _, group_info) = bundle.into_contents();
    let group_info = group_info.ok_or_else(|| CryptoError::Invalid("no group info was made".into()))?;
    let group_info = MlsMessageOut::from(group_info).tls_serialize_detached().map_err(CryptoError::invalid)?;
    let begun = Position { commit_seq: next, ..position };
    let sealed = seal::seal(aside, Kind::GroupInfo, rejoin_key.as_bytes(), begun, &group_info)?;
    let commit = commit.tls_serialize_detached().map_err(CryptoError::invalid)?;
    Ok(Rejoin { commit: commit.into(), commit_seq: next, sealed_group_info: sealed.into(), profile })
}

fn group_info(bytes: &[u8]) -> Result<VerifiableGroupInfo, CryptoError> {
    match MlsMessageIn::tls_deserialize_exact(bytes).map_err(CryptoError::invalid)?.extract() {
        MlsMessageBodyIn::GroupInfo(info) => Ok(info),
        _ => Err(CryptoError::Invalid("what was sealed is no group info".into())),
    }
}

/// Whether this device has a leaf in the tree, whose leaves must have credentials that hold and may stand together. openmls
/// knows the own leaf by its key, others know it by its device: that must be the same. The new leaf must be one that the
/// members take.
fn has_leaf(info: &VerifiableGroupInfo, own: Member, credential: &CredentialWithKey) -> Result<bool, CryptoError> {
    let key = credential.signature_key.as_slice();
    let joins = VerifiedLeaf::verify(&credential.credential, key)?;
    group::profile_of(info.group_context().extensions())?;
    let tree = info.extensions().ratchet_tree();
    let tree = tree.ok_or_else(|| CryptoError::Invalid("the group info has no tree".into()))?.ratchet_tree();
    let (mut leaves, mut has) = (Vec::new(), false);
    for leaf in tree.leaves() {
        let verified = VerifiedLeaf::verify(leaf.credential(), leaf.signature_key().as_slice())?;
        if (verified.member == own) != (leaf.signature_key().as_slice() == key) {
            return Err(CryptoError::Invalid("a leaf with this device's name or key is another's".into()));
        }
        if verified.member == own {
            has = true;
            joins.may_replace(&verified)?;
        }
        leaves.push(verified);
    }
    check_tree(&leaves)?;
    leaves.retain(|leaf| leaf.member != own);
    joins.may_join(&leaves)?;
    Ok(has)
}
