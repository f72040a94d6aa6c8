//! A Welcome (RFC 9420, section 12.4.3.1) taken apart for the relay and put together again by the joiner.
//!
//! The encrypted group info, which holds the tree, is the same for all joiners and is stored once; the secrets are a
//! few bytes for each. The shared part is cipher suite (2 bytes) | `opaque encrypted_group_info<V>`.

use openmls::prelude::{
    EncryptedGroupSecrets, KeyPackage, VLBytes, Welcome,
    tls_codec::{Deserialize as _, Serialize as _},
};
use undertone_wire::{Bytes, WelcomeParts, WelcomeSecrets};

use super::{CryptoError, Provider, member::VerifiedLeaf};

/// Takes a Welcome apart, for the owners of the key packages it was made for.
pub(super) fn split(
    provider: &impl Provider,
    welcome: &Welcome,
    key_packages: &[KeyPackage],
) -> Result<WelcomeParts, CryptoError> {
    let bytes = welcome.tls_serialize_detached().map_err(CryptoError::invalid)?;
    let mut rest = bytes.as_slice();
    let suite = u16::tls_deserialize(&mut rest).map_err(CryptoError::invalid)?;
    let entries = Vec::<EncryptedGroupSecrets>::tls_deserialize(&mut rest).map_err(CryptoError::invalid)?;
    let group_info = VLBytes::tls_deserialize(&mut rest).map_err(CryptoError::invalid)?;

    let mut secrets = Vec::with_capacity(entries.len());
    for key_package in key_packages {
        let reference = key_package.hash_ref(provider.crypto()).map_err(CryptoError::invalid)?;
        let entry = entries
            .iter()
            .find(|entry| entry.new_member() == reference)
            .ok_or_else(|| CryptoError::Invalid("the Welcome lacks a joiner".into()))?;
        let device_id = VerifiedLeaf::of(key_package.leaf_node())?.member.device;
        let entry = entry.tls_serialize_detached().map_err(CryptoError::invalid)?;
        secrets.push(WelcomeSecrets { device_id, secrets: entry.into() });
    }
    secrets.sort_by_key(|entry| entry.device_id);
    let group_info = (suite, group_info).tls_serialize_detached().map_err(CryptoError::invalid)?;
    Ok(WelcomeParts { group_info: group_info.into(), secrets })
}

/// Puts one joiner's Welcome together.
pub(super) fn join(group_info: &Bytes, secrets: &Bytes) -> Result<Welcome, CryptoError> {
    let mut rest = group_info.as_slice();
    let suite = u16::tls_deserialize(&mut rest).map_err(CryptoError::invalid)?;
    let entry = EncryptedGroupSecrets::tls_deserialize_exact(secrets.as_slice()).map_err(CryptoError::invalid)?;
    let head = (suite, vec![entry]).tls_serialize_detached().map_err(CryptoError::invalid)?;
    Welcome::tls_deserialize_exact([head.as_slice(), rest].concat()).map_err(CryptoError::invalid)
}
