//! MLS groups (RFC 9420): create, encrypt, stage a commit, open what the queue brings, join.
//!
//! Every function takes the group from the provider, and gives it back only if all went well: a group on which
//! something failed may be ahead of the storage.
//!
//! Invariant: whether a commit can be applied depends on its bytes and the group's state only. What it says to the
//! relay (its authenticated data) and what it does must be the same, or it is one that nobody can apply.

use openmls::{
    framing::errors::{MessageDecryptionError, SecretTreeError},
    prelude::{
        CreateMessageError, Extension, ExtensionType, Extensions, GroupContext, GroupId as MlsGroupId, JoinBuilder,
        LeafNodeIndex, LeafNodeParameters, MlsGroup, MlsMessageBodyIn, MlsMessageIn, MlsMessageOut,
        ProcessMessageError, ProcessedMessageContent, ProcessedWelcome, ProtocolMessage, RequiredCapabilitiesExtension,
        Sender, StagedCommit, StagedWelcome, UnknownExtension, ValidationError, WelcomeError,
        tls_codec::{Deserialize as _, Serialize as _},
    },
};
use serde::{Deserialize, Serialize};
use undertone_wire::{AuthenticatedData, Bytes, DeviceId, Encoding, GroupId, WelcomeParts};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::{
    CryptoError, Identity, Member, Members, PROFILE_EXTENSION, Provider, REJOIN_EXTENSION, Suite,
    changes::{By, Changes, check_authenticated},
    create_config, join_config, key_package,
    member::{VerifiedLeaf, check_tree, leaves, member_at, no_such_leaf},
    seal::{self, Kind, Position},
    welcome,
};

/// Longest name of a group, in bytes of UTF-8.
pub(crate) const NAME_BYTES_MAX: usize = 256;

const REJOIN_LABEL: &str = "Undertone rejoin";
const EXPORTED_BYTES: usize = 32;

/// The secret under which a group's sealed group infos can be opened: an exporter secret of the epoch begun by the
/// last commit that removed a device, or of the group's first epoch.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop, Serialize, Deserialize)]
pub(crate) struct RejoinKey(Vec<u8>);

impl RejoinKey {
    pub(crate) fn from_bytes(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// What the members of a group agree on beside their keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Profile {
    /// The group's name.
    pub(crate) name: String,
    /// The group in whose place this one was founded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) continues: Option<Continues>,
}

/// What a group is the successor of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Continues {
    /// The group that could not go on.
    pub(crate) group: GroupId,
    /// The number of its last commit that could be applied.
    pub(crate) at: u64,
}

/// A group just made, at epoch 0 with this device alone.
pub(crate) struct Created {
    pub(crate) sealed_group_info: Bytes,
    pub(crate) rejoin_key: RejoinKey,
}

/// What a commit is to change.
#[derive(Default)]
pub(crate) struct Change {
    /// Key packages to add, each with its owner.
    pub(crate) add: Vec<(Member, Bytes)>,
    /// Devices to remove; those that are not in the tree are passed over.
    pub(crate) remove: Vec<DeviceId>,
    /// The group's new name.
    pub(crate) rename: Option<String>,
    /// Whether it is made even if it changes nothing but the keys of its author.
    pub(crate) update: bool,
}

/// A commit ready to be posted. It is pending in the group until the relay's word on it is known.
pub(crate) struct Staged {
    pub(crate) commit: Bytes,
    pub(crate) welcome: Option<WelcomeParts>,
    pub(crate) sealed_group_info: Bytes,
}

/// What an envelope of a group turned out to be.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Opened {
    /// This device sent it; it cannot be decrypted and need not be.
    Own,
    /// Too many messages of its sender are missing before it: none of them can be read any more until somebody commits.
    TooFarAhead,
    /// An application message.
    Message { from: Member, content: Vec<u8> },
    /// A commit, now applied.
    Commit(Applied),
}

/// A commit that was applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Applied {
    /// Who committed.
    pub(crate) by: Member,
    pub(crate) added: Vec<Member>,
    pub(crate) removed: Vec<Member>,
    /// Whether its author has new keys in the tree.
    pub(crate) updates: bool,
    /// The group as it is now; `None` if this device was removed.
    pub(crate) now: Option<Now>,
}

/// A group's state after a commit or a join, as far as it is kept outside of MLS.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Now {
    pub(crate) profile: Profile,
    /// The new rejoin key; `None` if the old one stays.
    pub(crate) rejoin_key: Option<RejoinKey>,
}

impl std::fmt::Debug for Now {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Now(..)")
    }
}

/// A group this device was added to.
pub(crate) struct Joined {
    pub(crate) group: GroupId,
    /// Who added this device.
    pub(crate) by: Member,
    pub(crate) suite: Suite,
    pub(crate) profile: Profile,
    pub(crate) rejoin_key: RejoinKey,
}

/// Creates a group.
pub(crate) fn create(
    provider: &impl Provider,
    identity: &Identity,
    suite: Suite,
    group: GroupId,
    profile: &Profile,
) -> Result<Created, CryptoError> {
    let config = create_config(suite, context(profile)?);
    let mls = MlsGroup::new_with_group_id(provider, identity, &config, mls_group_id(group), identity.credential())
        .map_err(CryptoError::storage)?;
    let rejoin_key = exported(provider, &mls)?;
    let group_info = mls.export_group_info(provider.crypto(), identity, true).map_err(CryptoError::invalid)?;
    let group_info = group_info.tls_serialize_detached().map_err(CryptoError::invalid)?;
    let position = Position { group, commit_seq: 0 };
    let sealed = seal::seal(provider, Kind::GroupInfo, rejoin_key.as_bytes(), position, &group_info)?;
    provider.keep(mls);
    Ok(Created { sealed_group_info: sealed.into(), rejoin_key })
}

/// Encrypts an application message for the group's present epoch, which the commit `at` began.
pub(crate) fn encrypt(
    provider: &impl Provider,
    identity: &Identity,
    group: GroupId,
    at: u64,
    content: &[u8],
) -> Result<Bytes, CryptoError> {
    let mut mls = take(provider, group)?;
    mls.set_aad(Encoding::Cbor.encode(&AuthenticatedData { at, ..AuthenticatedData::default() }));
    let message = mls.create_message(provider, identity, content).map_err(|error| match error {
        CreateMessageError::GroupStateError(error) => CryptoError::invalid(error),
        CreateMessageError::LibraryError(error) => CryptoError::storage(error),
    })?;
    let bytes = message.tls_serialize_detached().map_err(CryptoError::invalid)?;
    provider.keep(mls);
    Ok(bytes.into())
}

/// Stages a commit on top of the commit `at`. `None` if it would change nothing.
pub(crate) fn stage(
    provider: &impl Provider,
    identity: &Identity,
    group: GroupId,
    at: u64,
    rejoin_key: &RejoinKey,
    change: &Change,
    now_ms: u64,
) -> Result<Option<Staged>, CryptoError> {
    let mut mls = take(provider, group)?;
    let leaves = leaves(&mls)?;
    let removed: Vec<_> = leaves.iter().filter(|(_, leaf)| change.remove.contains(&leaf.member.device)).collect();
    let staying: Vec<_> =
        leaves.iter().map(|(_, leaf)| leaf.member.device).filter(|device| !change.remove.contains(device)).collect();
    let suite = Suite::of(mls.ciphersuite())?;
    let mut key_packages = Vec::new();
    let mut added = Vec::new();
    for (owner, bytes) in change.add.iter().filter(|(owner, _)| !staying.contains(&owner.device)) {
        key_packages.push(key_package::check(provider, bytes, *owner, suite, now_ms)?);
        added.push(owner.device);
    }
    let before = profile_of(mls.extensions())?;
    let renamed = change.rename.as_ref().filter(|name| **name != before.name);
    if key_packages.is_empty() && removed.is_empty() && renamed.is_none() && !change.update {
        provider.keep(mls);
        return Ok(None);
    }
    added.sort_unstable();
    let mut gone: Vec<_> = removed.iter().map(|(_, leaf)| leaf.member.device).collect();
    gone.sort_unstable();
    mls.set_aad(Encoding::Cbor.encode(&AuthenticatedData { at, added, removed: gone }));

    // The rejoin key goes to joiners in the Welcome's group info, unless this commit also changes it: they then derive
    // the new one themselves.
    let rejoin_extension = Extension::Unknown(REJOIN_EXTENSION, UnknownExtension(rejoin_key.as_bytes().to_vec()));
    let extensions = if removed.is_empty() { vec![rejoin_extension] } else { vec![] };
    let mut builder = mls
        .commit_builder()
        .propose_adds(key_packages.iter().cloned())
        .propose_removals(removed.iter().map(|(index, _)| *index))
        .force_self_update(change.update);
    if change.update {
        // The account's identity key may have changed since.
        let leaf = LeafNodeParameters::builder().with_credential_with_key(identity.credential()).build();
        builder = builder.leaf_node_parameters(leaf);
    }
    if let Some(name) = renamed {
        let profile = Profile { name: name.clone(), ..before.clone() };
        builder = builder.propose_group_context_extensions(context(&profile)?).map_err(CryptoError::invalid)?;
    }
    let bundle = builder
        .load_psks(provider.storage())
        .map_err(CryptoError::storage)?
        .use_ratchet_tree_extension(true)
        .create_group_info_with_extensions(extensions)
        .map_err(CryptoError::invalid)?
        .build(provider.rand(), provider.crypto(), identity, |_| true)
        .map_err(CryptoError::invalid)?
        .stage_commit(provider)
        .map_err(CryptoError::storage)?;
    let pending = mls.pending_commit().ok_or_else(|| CryptoError::Invalid("no commit is pending".into()))?;
    // What others would refuse is not posted.
    let by = member_at(&leaves, mls.own_leaf_index())?;
    Changes::of(pending, &leaves, By::Member)?.check(pending, by, &leaves, &before)?;
    let seal_key = if removed.is_empty() { rejoin_key.clone() } else { exported_from_staged(provider, pending)? };
    let (commit, made_welcome, group_info) = bundle.into_contents();
    let group_info = group_info.ok_or_else(|| CryptoError::Invalid("no group info was made".into()))?;
    let group_info = MlsMessageOut::from(group_info).tls_serialize_detached().map_err(CryptoError::invalid)?;
    let position = Position { group, commit_seq: at + 1 };
    let sealed = seal::seal(provider, Kind::GroupInfo, seal_key.as_bytes(), position, &group_info)?;
    let parts = made_welcome.map(|made| welcome::split(provider, &made, &key_packages)).transpose()?;
    provider.keep(mls);
    Ok(Some(Staged {
        commit: commit.tls_serialize_detached().map_err(CryptoError::invalid)?.into(),
        welcome: parts,
        sealed_group_info: sealed.into(),
    }))
}

/// Drops the pending commit: the relay has refused it.
pub(crate) fn drop_pending(provider: &impl Provider, group: GroupId) -> Result<(), CryptoError> {
    let mut mls = take(provider, group)?;
    mls.clear_pending_commit(provider.storage()).map_err(CryptoError::storage)?;
    provider.keep(mls);
    Ok(())
}

/// Applies the pending commit: its own row has come.
pub(crate) fn merge_pending(provider: &impl Provider, group: GroupId) -> Result<Applied, CryptoError> {
    let mut mls = take(provider, group)?;
    let leaves = leaves(&mls)?;
    let pending = mls.pending_commit().ok_or_else(|| CryptoError::Invalid("no commit is pending".into()))?;
    let by = member_at(&leaves, mls.own_leaf_index())?;
    let changes = Changes::of(pending, &leaves, By::Member)?;
    mls.merge_pending_commit(provider).map_err(CryptoError::storage)?;
    applied(provider, mls, by, &changes)
}

/// Opens an envelope of a group whose newest applied commit is `at`, and applies it if it is a commit.
pub(crate) fn open(provider: &impl Provider, group: GroupId, at: u64, bytes: &[u8]) -> Result<Opened, CryptoError> {
    let mut mls = take(provider, group)?;
    let message = protocol_message(bytes)?;
    let processed = match mls.process_message(provider, message) {
        Ok(processed) => processed,
        Err(ProcessMessageError::StorageError(error)) => return Err(CryptoError::storage(error)),
        Err(error) if is_too_far_ahead(&error) => return Ok(Opened::TooFarAhead),
        Err(error) => return Err(CryptoError::invalid(error)),
    };
    let sender = processed.sender().clone();
    let aad = processed.aad().to_vec();
    match processed.into_content() {
        ProcessedMessageContent::OwnPrivateMessage | ProcessedMessageContent::OwnPendingCommit => Ok(Opened::Own),
        ProcessedMessageContent::ApplicationMessage(message) => {
            check_authenticated(&aad, at, &Changes::default())?;
            let credential = mls.member(sender_index(&sender)?).ok_or_else(no_such_leaf)?;
            let from = VerifiedLeaf::stored(credential)?.member;
            provider.keep(mls);
            Ok(Opened::Message { from, content: message.into_bytes() })
        }
        ProcessedMessageContent::StagedCommitMessage(staged) => {
            let leaves = leaves(&mls)?;
            let joins = if sender == Sender::NewMemberCommit { By::Joiner } else { By::Member };
            let changes = Changes::of(&staged, &leaves, joins)?;
            let by = match changes.joiner() {
                Some(joiner) => joiner,
                None => member_at(&leaves, sender_index(&sender)?)?,
            };
            check_authenticated(&aad, at, &changes)?;
            changes.check(&staged, by, &leaves, &profile_of(mls.extensions())?)?;
            mls.merge_staged_commit(provider, *staged).map_err(CryptoError::storage)?;
            applied(provider, mls, by, &changes).map(Opened::Commit)
        }
        ProcessedMessageContent::ProposalMessage(_) | ProcessedMessageContent::ExternalJoinProposalMessage(_) => {
            Err(CryptoError::Invalid("proposals are never sent alone".into()))
        }
    }
}

/// Joins a group by the two parts of a Welcome. One that is known has the suite that it has.
pub(crate) fn join(
    provider: &impl Provider,
    group: GroupId,
    known: Option<Suite>,
    commit_seq: u64,
    group_info: &Bytes,
    secrets: &Bytes,
) -> Result<Joined, CryptoError> {
    let welcome = welcome::join(group_info, secrets)?;
    let processed = ProcessedWelcome::new_from_welcome(provider, &join_config(), welcome).map_err(welcome_error)?;
    // All that can be refused is refused before anything is written: the caller's transaction goes on after a refusal.
    if processed.unverified_group_info().group_id().as_slice() != group.as_bytes()
        || processed.unverified_group_info().epoch().as_u64() != commit_seq
    {
        return Err(CryptoError::Invalid("the Welcome is for another group or epoch".into()));
    }
    let suite = Suite::of(processed.unverified_group_info().ciphersuite())?;
    if known.is_some_and(|known| known != suite) {
        return Err(CryptoError::Invalid("the Welcome is of another cipher suite than the group".into()));
    }
    let handed_over = processed
        .unverified_group_info()
        .extensions()
        .unknown(REJOIN_EXTENSION)
        .map(|extension| RejoinKey(extension.0.clone()));
    // A member that applies late joins all the same: lifetimes were looked at when the key packages were handed out.
    let staged: StagedWelcome = JoinBuilder::new(provider, processed)
        .skip_lifetime_validation()
        .replace_old_group()
        .build()
        .map_err(welcome_error)?;
    let by = VerifiedLeaf::of(staged.welcome_sender().map_err(CryptoError::invalid)?)?.member;
    let members: Vec<_> = staged
        .members()
        .map(|leaf| VerifiedLeaf::verify(&leaf.credential, &leaf.signature_key))
        .collect::<Result<_, _>>()?;
    check_tree(&members)?;
    let profile = profile_of(staged.group_context().extensions())?;
    let mls = staged.into_group(provider).map_err(welcome_error)?;
    let rejoin_key = handed_over.map_or_else(|| exported(provider, &mls), Ok)?;
    provider.keep(mls);
    Ok(Joined { group, by, suite, profile, rejoin_key })
}

/// The members, each with the key of its leaf.
pub(crate) fn members(provider: &impl Provider, group: GroupId) -> Result<Members, CryptoError> {
    let mls = take(provider, group)?;
    let members = leaves(&mls)?.into_iter().map(|(_, leaf)| (leaf.member, leaf.mls_key)).collect();
    provider.keep(mls);
    Ok(members)
}

/// Deletes all secrets of a group that this device is no longer in.
pub(crate) fn forget(provider: &impl Provider, group: GroupId) -> Result<(), CryptoError> {
    match provider.take(&mls_group_id(group))? {
        Some(mut mls) => mls.delete(provider.storage()).map_err(CryptoError::storage),
        None => Ok(()),
    }
}

fn applied(provider: &impl Provider, mut mls: MlsGroup, by: Member, changes: &Changes) -> Result<Applied, CryptoError> {
    let added = changes.added.iter().map(|(member, _)| *member).collect();
    let removed = changes.removed.clone();
    if !mls.is_active() {
        mls.delete(provider.storage()).map_err(CryptoError::storage)?;
        return Ok(Applied { by, added, removed, updates: changes.updates, now: None });
    }
    // Who joined in the place of its own leaf knows the key already, and removed nobody.
    let stays = removed.is_empty() || changes.by == By::Joiner;
    let rejoin_key = if stays { None } else { Some(exported(provider, &mls)?) };
    let now = Now { profile: profile_of(mls.extensions())?, rejoin_key };
    provider.keep(mls);
    Ok(Applied { by, added, removed, updates: changes.updates, now: Some(now) })
}

/// A group context with a profile, and nothing else but that members must understand it.
fn context(profile: &Profile) -> Result<Extensions<GroupContext>, CryptoError> {
    let profile = Extension::Unknown(PROFILE_EXTENSION, UnknownExtension(Encoding::Cbor.encode(profile)));
    Extensions::from_vec(vec![Extension::RequiredCapabilities(required()), profile]).map_err(CryptoError::invalid)
}

/// What every member must support (RFC 9420, section 11.1).
fn required() -> RequiredCapabilitiesExtension {
    RequiredCapabilitiesExtension::new(&[ExtensionType::Unknown(PROFILE_EXTENSION)], &[], &[])
}

/// The profile in a group context that is made like those of [`context`].
pub(super) fn profile_of(extensions: &Extensions<GroupContext>) -> Result<Profile, CryptoError> {
    let extension = extensions
        .unknown(PROFILE_EXTENSION)
        .filter(|_| extensions.required_capabilities() == Some(&required()) && extensions.iter().count() == 2)
        .ok_or_else(|| CryptoError::Invalid("the group's context is not that of a group of ours".into()))?;
    let profile: Profile = Encoding::Cbor.decode(&extension.0).map_err(CryptoError::invalid)?;
    if profile.name.is_empty() || profile.name.len() > NAME_BYTES_MAX {
        return Err(CryptoError::Invalid("the group's name is empty or too long".into()));
    }
    Ok(profile)
}

/// A secret of the group's present epoch, for what `label` says.
pub(super) fn export(provider: &impl Provider, group: GroupId, label: &str) -> Result<Zeroizing<Vec<u8>>, CryptoError> {
    let mls = take(provider, group)?;
    let secret = mls.export_secret(provider.crypto(), label, &[], EXPORTED_BYTES).map(Zeroizing::new);
    provider.keep(mls);
    secret.map_err(CryptoError::invalid)
}

fn exported(provider: &impl Provider, mls: &MlsGroup) -> Result<RejoinKey, CryptoError> {
    mls.export_secret(provider.crypto(), REJOIN_LABEL, &[], EXPORTED_BYTES).map(RejoinKey).map_err(CryptoError::invalid)
}

fn exported_from_staged(provider: &impl Provider, staged: &StagedCommit) -> Result<RejoinKey, CryptoError> {
    staged
        .export_secret(provider.crypto(), REJOIN_LABEL, &[], EXPORTED_BYTES)
        .map(RejoinKey)
        .map_err(CryptoError::invalid)
}

/// What the author of a private message tells the relay, by which alone that goes; `None` if it tells nothing.
pub(crate) fn told(bytes: &[u8]) -> Option<AuthenticatedData> {
    let message = MlsMessageIn::tls_deserialize_exact(bytes).ok()?;
    let MlsMessageBodyIn::PrivateMessage(message) = message.extract() else { return None };
    Encoding::Cbor.decode(message.aad()).ok()
}

/// A message as groups send them: a private one, or the commit of a new member.
fn protocol_message(bytes: &[u8]) -> Result<ProtocolMessage, CryptoError> {
    match MlsMessageIn::tls_deserialize_exact(bytes).map_err(CryptoError::invalid)?.extract() {
        MlsMessageBodyIn::PrivateMessage(message) => Ok(message.into()),
        MlsMessageBodyIn::PublicMessage(message) if *message.sender() == Sender::NewMemberCommit => Ok(message.into()),
        _ => Err(CryptoError::Invalid("neither a private message nor a new member's commit".into())),
    }
}

fn is_too_far_ahead<E>(error: &ProcessMessageError<E>) -> bool {
    let far = MessageDecryptionError::SecretTreeError(SecretTreeError::TooDistantInTheFuture);
    matches!(error, ProcessMessageError::ValidationError(ValidationError::UnableToDecrypt(error)) if *error == far)
}

fn sender_index(sender: &Sender) -> Result<LeafNodeIndex, CryptoError> {
    match sender {
        Sender::Member(index) => Ok(*index),
        _ => Err(CryptoError::Invalid("the sender is not a member".into())),
    }
}

fn welcome_error<E: std::fmt::Display>(error: WelcomeError<E>) -> CryptoError {
    match error {
        WelcomeError::StorageError(error) => CryptoError::storage(error),
        error => CryptoError::invalid(error),
    }
}

fn take(provider: &impl Provider, group: GroupId) -> Result<MlsGroup, CryptoError> {
    let taken = provider.take(&mls_group_id(group))?;
    taken.ok_or_else(|| CryptoError::Invalid("this device is not in the group".into()))
}

pub(crate) fn mls_group_id(group: GroupId) -> MlsGroupId {
    MlsGroupId::from_slice(group.as_bytes())
}

#[cfg(test)]
mod tests {
    use openmls_rust_crypto::OpenMlsRustCrypto;

    use super::*;

    /// A device with its own storage.
    struct Device {
        provider: OpenMlsRustCrypto,
        identity: Identity,
    }

    impl Device {
        fn new() -> Self {
            let identity = Identity::random();
            Self { provider: OpenMlsRustCrypto::default(), identity }
        }

        fn member(&self) -> Member {
            self.identity.member()
        }

        fn key_package(&self) -> (Member, Bytes) {
            (self.member(), key_package::make(&self.provider, &self.identity, Suite::Classic, now_ms(), false).unwrap())
        }

        fn stage(&self, at: u64, key: &RejoinKey, change: &Change) -> Staged {
            stage(&self.provider, &self.identity, group_id(), at, key, change, now_ms()).unwrap().unwrap()
        }

        fn encrypt(&self, at: u64, text: &str) -> Bytes {
            encrypt(&self.provider, &self.identity, group_id(), at, text.as_bytes()).unwrap()
        }

        fn open(&self, at: u64, bytes: &Bytes) -> Result<Opened, CryptoError> {
            open(&self.provider, group_id(), at, bytes.as_slice())
        }

        fn join(&self, at: u64, parts: &WelcomeParts) -> Result<Joined, CryptoError> {
            let own = parts.secrets.iter().find(|entry| entry.device_id == self.identity.device()).unwrap();
            join(&self.provider, group_id(), None, at, &parts.group_info, &own.secrets)
        }
    }

    // openmls looks at lifetimes with the system's clock.
    #[expect(clippy::disallowed_methods, reason = "key packages must be alive for openmls, which reads this clock")]
    fn now_ms() -> u64 {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        u64::try_from(since.as_millis()).unwrap()
    }

    fn group_id() -> GroupId {
        GroupId::from_random([9; 16])
    }

    fn profile() -> Profile {
        Profile { name: "ski trip".into(), continues: None }
    }

    /// alice's group with bob in it, at commit 1.
    fn alice_and_bob() -> (Device, Device, RejoinKey) {
        let (alice, bob) = (Device::new(), Device::new());
        let created = create(&alice.provider, &alice.identity, Suite::Classic, group_id(), &profile()).unwrap();
        let staged = alice.stage(0, &created.rejoin_key, &Change { add: vec![bob.key_package()], ..Change::default() });
        merge_pending(&alice.provider, group_id()).unwrap();
        let joined = bob.join(1, &staged.welcome.unwrap()).unwrap();
        assert_eq!((joined.by, joined.profile), (alice.member(), profile()));
        assert!(joined.rejoin_key == created.rejoin_key, "an adding commit hands the rejoin key over");
        (alice, bob, created.rejoin_key)
    }

    #[test]
    fn members_read_each_other_and_know_who_wrote() {
        let (alice, bob, _) = alice_and_bob();
        let message = alice.encrypt(1, "snow!");
        let from = alice.member();
        assert_eq!(bob.open(1, &message).unwrap(), Opened::Message { from, content: b"snow!".to_vec() });
        assert_eq!(alice.open(1, &message).unwrap(), Opened::Own);
        let everyone = Members::from([&alice, &bob].map(|one| (one.member(), one.identity.mls_key())));
        assert_eq!(members(&bob.provider, group_id()).unwrap(), everyone);
    }

    #[test]
    fn a_removed_device_learns_it_and_the_rejoin_key_changes_for_the_others() {
        let (alice, bob, key) = alice_and_bob();
        let carol = Device::new();
        let staged = alice.stage(1, &key, &Change { add: vec![carol.key_package()], ..Change::default() });
        merge_pending(&alice.provider, group_id()).unwrap();
        bob.open(1, &staged.commit).unwrap();
        carol.join(2, &staged.welcome.unwrap()).unwrap();

        let staged = alice.stage(2, &key, &Change { remove: vec![bob.member().device], ..Change::default() });
        let after = merge_pending(&alice.provider, group_id()).unwrap();
        let Opened::Commit(at_carol) = carol.open(2, &staged.commit).unwrap() else { panic!("not a commit") };
        let Opened::Commit(at_bob) = bob.open(2, &staged.commit).unwrap() else { panic!("not a commit") };
        assert_eq!(after, at_carol);
        assert_eq!((at_bob.removed, at_bob.now), (vec![bob.member()], None));
        let new_key = after.now.unwrap().rejoin_key.unwrap();
        assert!(new_key != key);
        let position = Position { group: group_id(), commit_seq: 3 };
        let sealed = staged.sealed_group_info.as_slice();
        assert!(seal::open(&carol.provider, Kind::GroupInfo, new_key.as_bytes(), position, sealed).is_ok());
        assert!(seal::open(&carol.provider, Kind::GroupInfo, key.as_bytes(), position, sealed).is_err());
    }

    #[test]
    fn joiners_of_a_commit_that_also_removes_derive_the_rejoin_key() {
        let (alice, bob, key) = alice_and_bob();
        let carol = Device::new();
        let change = Change { add: vec![carol.key_package()], remove: vec![bob.member().device], ..Change::default() };
        let staged = alice.stage(1, &key, &change);
        let applied = merge_pending(&alice.provider, group_id()).unwrap();
        let joined = carol.join(2, &staged.welcome.unwrap()).unwrap();
        assert!(Some(joined.rejoin_key) == applied.now.unwrap().rejoin_key);
    }

    #[test]
    fn the_loser_of_a_race_applies_the_winner_and_loses_its_pending_commit() {
        let (alice, bob, key) = alice_and_bob();
        let (carol, dave) = (Device::new(), Device::new());
        let winner = alice.stage(1, &key, &Change { add: vec![carol.key_package()], ..Change::default() });
        bob.stage(1, &key, &Change { add: vec![dave.key_package()], ..Change::default() });
        merge_pending(&alice.provider, group_id()).unwrap();
        assert!(matches!(bob.open(1, &winner.commit).unwrap(), Opened::Commit(_)));
        assert!(merge_pending(&bob.provider, group_id()).is_err());
        let message = bob.encrypt(2, "still here");
        assert!(matches!(alice.open(2, &message).unwrap(), Opened::Message { .. }));
    }

    #[test]
    fn what_was_told_to_the_relay_must_be_what_is_done() {
        let (alice, bob, key) = alice_and_bob();
        let staged = alice.stage(7, &key, &Change { remove: vec![bob.member().device], ..Change::default() });
        assert!(matches!(bob.open(1, &staged.commit), Err(CryptoError::Invalid(_))), "another position was told");
        let message = alice.encrypt(5, "elsewhere");
        assert!(matches!(bob.open(1, &message), Err(CryptoError::Invalid(_))));
    }

    #[test]
    fn another_devices_key_package_is_not_added() {
        let (alice, bob, key) = alice_and_bob();
        let (carol, mallory) = (Device::new(), Device::new());
        let swapped = (carol.member(), mallory.key_package().1);
        let change = Change { add: vec![swapped], ..Change::default() };
        let verdict = stage(&alice.provider, &alice.identity, group_id(), 1, &key, &change, now_ms());
        assert!(matches!(verdict, Err(CryptoError::Invalid(_))));
        assert_eq!(members(&bob.provider, group_id()).unwrap().len(), 2);
    }

    #[test]
    fn a_change_that_is_already_true_needs_no_commit() {
        let (alice, bob, key) = alice_and_bob();
        let change =
            Change { add: vec![bob.key_package()], remove: vec![Device::new().member().device], ..Change::default() };
        let staged = stage(&alice.provider, &alice.identity, group_id(), 1, &key, &change, now_ms()).unwrap();
        assert!(staged.is_none());
    }
}
