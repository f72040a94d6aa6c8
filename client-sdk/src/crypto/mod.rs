//! Keys, credentials, MLS and sealing. No network, no clock: everything comes in as arguments.
//!
//! State lives in the caller's transaction: functions take a provider over it, and take from it the groups that they
//! need. Whether a group is then loaded or at hand already is the provider's to know; nothing is kept here between
//! calls.
//!
//! Invariant: [`CryptoError::Invalid`] depends on the message and the group state only, so all members agree on it;
//! [`CryptoError::Storage`] says nothing about the message, which must be tried again.

mod changes;
pub(crate) mod direct;
pub(crate) mod envelope;
pub(crate) mod ephemeral;
pub(crate) mod group;
pub(crate) mod identity;
pub(crate) mod key_package;
pub(crate) mod link;
mod member;
mod padding;
pub(crate) mod recovery_key;
pub(crate) mod rejoin;
mod seal;
pub(crate) mod session;
mod shown;
mod suite;
mod welcome;
pub(crate) mod xwing;

use openmls::prelude::{
    Capabilities, CredentialType, ExtensionType, Extensions, GroupContext, GroupId as MlsGroupId,
    MIXED_CIPHERTEXT_WIRE_FORMAT_POLICY, MlsGroup, MlsGroupCreateConfig, MlsGroupJoinConfig, OpenMlsProvider,
    ProtocolVersion, SenderRatchetConfiguration,
};

pub(crate) use identity::{Entropy, Identity};
pub(crate) use member::{Member, Members};
pub(crate) use suite::Suite;

/// What an openmls provider must be for this SDK: its storage is the caller's open transaction.
pub(crate) trait Provider: OpenMlsProvider {
    /// Takes a group, as it is in the storage; `None` if it is not there.
    fn take(&self, group: &MlsGroupId) -> Result<Option<MlsGroup>, CryptoError> {
        match self.at_hand(group) {
            Some(mls) => Ok(Some(mls)),
            None => MlsGroup::load(self.storage(), group).map_err(CryptoError::storage),
        }
    }

    /// Takes a group that was given back, if it is still here.
    fn at_hand(&self, _: &MlsGroupId) -> Option<MlsGroup> {
        None
    }

    /// Gives back a group that is in the storage as it is here, for the next who takes it. One that may not be, since
    /// something failed, is dropped instead.
    fn keep(&self, _: MlsGroup) {}
}

#[cfg(test)]
impl Provider for openmls_rust_crypto::OpenMlsRustCrypto {}

/// Why a cryptographic step did not happen.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CryptoError {
    /// The message, key package or group state does not allow it.
    #[error("{0}")]
    Invalid(String),
    /// The local database failed.
    #[error("the local database failed: {0}")]
    Storage(String),
}

impl CryptoError {
    fn invalid(reason: impl std::fmt::Display) -> Self {
        Self::Invalid(reason.to_string())
    }

    fn storage(reason: impl std::fmt::Display) -> Self {
        Self::Storage(reason.to_string())
    }
}

/// Group context extension with the group's name and whatever else its members share (private-use range).
const PROFILE_EXTENSION: u16 = 0xF1A0;

/// Group info extension with the rejoin key, inside the encrypted group info of a Welcome (private-use range).
const REJOIN_EXTENSION: u16 = 0xF1A1;

/// Messages are padded to a multiple of this, so that their sizes say little.
const PADDING_BYTES: usize = 256;

/// How far apart messages of one sender may arrive, and how many of one sender may be lost in a row.
fn sender_ratchet() -> SenderRatchetConfiguration {
    SenderRatchetConfiguration::new(16, 2_000)
}

/// What every leaf of a group of this suite supports. It is part of each leaf, so it names that suite and our own extensions
/// only.
fn capabilities(suite: Suite) -> Capabilities {
    Capabilities::builder()
        .versions(vec![ProtocolVersion::Mls10])
        .ciphersuites(vec![suite.mls()])
        .extensions(vec![
            ExtensionType::LastResort,
            ExtensionType::Unknown(PROFILE_EXTENSION),
            ExtensionType::Unknown(REJOIN_EXTENSION),
        ])
        .credentials(vec![CredentialType::Basic])
        .build()
}

// The relay refuses whatever does not belong to the newest epoch, and queues keep the order. So no message of a past
// epoch can follow a commit, and no past epoch's secrets need to be kept.
const PAST_EPOCHS: usize = 0;

fn create_config(suite: Suite, context: Extensions<GroupContext>) -> MlsGroupCreateConfig {
    MlsGroupCreateConfig::builder()
        .ciphersuite(suite.mls())
        .wire_format_policy(MIXED_CIPHERTEXT_WIRE_FORMAT_POLICY)
        .padding_size(PADDING_BYTES)
        .max_past_epochs(PAST_EPOCHS)
        .sender_ratchet_configuration(sender_ratchet())
        .use_ratchet_tree_extension(true)
        .capabilities(capabilities(suite))
        .with_group_context_extensions(context)
        .build()
}

fn join_config() -> MlsGroupJoinConfig {
    MlsGroupJoinConfig::builder()
        .wire_format_policy(MIXED_CIPHERTEXT_WIRE_FORMAT_POLICY)
        .padding_size(PADDING_BYTES)
        .max_past_epochs(PAST_EPOCHS)
        .sender_ratchet_configuration(sender_ratchet())
        .use_ratchet_tree_extension(true)
        .build()
}
