//! What the relay reads of MLS (RFC 9420): headers of messages, and key packages whole. The only room that names openmls.
//!
//! Bytes from outside are measured before they come here. A panic in the parser is a refusal, not a crash.
//!
//! Invariant: nothing that came out of this room is trusted more than its bytes deserve. A message's header is a claim
//! that its members can check; a key package has been verified down to the device's certificate.

use std::panic::{AssertUnwindSafe, catch_unwind};

use openmls::prelude::{
    BasicCredential, Ciphersuite, ContentType, KeyPackage, KeyPackageIn, KeyPackageVerifyError, MlsMessageIn,
    OpenMlsProvider as _, ProtocolMessage, ProtocolVersion, Sender, VLBytes,
    tls_codec::{self, Deserialize as _},
};
use openmls_rust_crypto::OpenMlsRustCrypto;
use undertone_wire::{
    AuthenticatedData, Certificate, CredentialError, DeviceId, DeviceListError, Encoding, ErrorCode, GroupId, Hash,
    LeafCredential, suite,
};

use crate::error::Error;

/// What kind of message a header announces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    /// An application message.
    Application,
    /// A commit.
    Commit,
}

/// What the relay reads of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    /// The epoch for which it was made.
    pub(crate) epoch: u64,
    /// What its sender tells the relay.
    pub(crate) data: AuthenticatedData,
    /// Whether it is a commit by which its author joins on its own.
    pub(crate) joins: bool,
}

/// The header of a message that must be of this group and kind: a `PrivateMessage`, or a new member's commit.
pub(crate) fn header(bytes: &[u8], group: &GroupId, content: Content) -> Result<Header, Error> {
    guarded(|| read_header(bytes, group, content)).unwrap_or_else(|| Err(bad_message("the message cannot be parsed")))
}

fn read_header(bytes: &[u8], group: &GroupId, content: Content) -> Result<Header, Error> {
    let message = MlsMessageIn::tls_deserialize_exact(bytes)
        .ok()
        .and_then(|message| message.try_into_protocol_message().ok())
        .ok_or_else(|| bad_message("the message is not an MLSMessage of RFC 9420"))?;
    let expected = match content {
        Content::Application => ContentType::Application,
        Content::Commit => ContentType::Commit,
    };
    if message.content_type() != expected {
        return Err(bad_message("the message's content type is not the one that this path takes"));
    }
    if message.group_id().as_slice() != group.as_bytes() {
        return Err(bad_message("the message is for another group than the path names"));
    }
    let (joins, data) = match &message {
        ProtocolMessage::PrivateMessage(message) => (false, message.aad().to_vec()),
        ProtocolMessage::PublicMessage(message)
            if content == Content::Commit && *message.sender() == Sender::NewMemberCommit =>
        {
            (true, public_authenticated_data(bytes)?)
        }
        ProtocolMessage::PublicMessage(_) => {
            return Err(bad_message("the message must be a PrivateMessage, or the commit of a new member"));
        }
    };
    let data: AuthenticatedData =
        Encoding::Cbor.decode(&data).map_err(|_| bad_message("the authenticated data cannot be decoded"))?;
    if !ascends(&data.added) || !ascends(&data.removed) {
        return Err(bad_message("added and removed devices must be in ascending order, each once"));
    }
    Ok(Header { epoch: message.epoch().as_u64(), data, joins })
}

/// The authenticated data of a `PublicMessage`, which openmls does not hand out: what comes before it is skipped (RFC 9420,
/// section 6).
fn public_authenticated_data(bytes: &[u8]) -> Result<Vec<u8>, Error> {
    let mut rest = bytes;
    let mut read = || -> Result<Vec<u8>, tls_codec::Error> {
        <(u16, u16)>::tls_deserialize(&mut rest)?;
        VLBytes::tls_deserialize(&mut rest)?;
        u64::tls_deserialize(&mut rest)?;
        Sender::tls_deserialize(&mut rest)?;
        Ok(VLBytes::tls_deserialize(&mut rest)?.into())
    };
    read().map_err(|_| bad_message("the message is not an MLSMessage of RFC 9420"))
}

/// Whether devices stand in ascending order, each once.
fn ascends(devices: &[DeviceId]) -> bool {
    devices.is_sorted_by(|one, next| one < next)
}

/// A key package whose signatures, lifetime (as of the machine's clock) and credential hold.
pub(crate) struct VerifiedKeyPackage {
    /// The hash under which a Welcome names it.
    pub(crate) hash_ref: Hash,
    /// Its cipher suite.
    pub(crate) suite: u16,
    /// Its lifetime, in seconds since the Unix epoch.
    pub(crate) lifetime_s: (u64, u64),
    /// Whether it is marked as a last resort.
    pub(crate) last_resort: bool,
    /// Whose it is.
    pub(crate) certificate: Certificate,
    /// Hash of the signed certificate; see [`certificate_hash`].
    pub(crate) certificate_hash: Hash,
}

/// Verifies a key package with all that can be told from its bytes.
pub(crate) fn key_package(bytes: &[u8]) -> Result<VerifiedKeyPackage, Error> {
    let suite = peek_suite(bytes).ok_or_else(unparsable)?;
    if !suite::MLS.contains(&suite) {
        return Err(Error::refused(ErrorCode::UnsupportedSuite, format!("suite {suite:#06x} is not taken here")));
    }
    guarded(|| verify_key_package(bytes, suite)).unwrap_or_else(|| Err(unparsable()))
}

/// The cipher suite, which follows the 2 bytes of the version. Read first, because openmls calls unknown ones unparsable.
fn peek_suite(bytes: &[u8]) -> Option<u16> {
    bytes.get(2..4)?.try_into().ok().map(u16::from_be_bytes)
}

fn verify_key_package(bytes: &[u8], suite: u16) -> Result<VerifiedKeyPackage, Error> {
    let provider = OpenMlsRustCrypto::default();
    let key_package = KeyPackageIn::tls_deserialize_exact(bytes).map_err(|_| unparsable())?;
    let key_package = key_package.validate(provider.crypto(), ProtocolVersion::Mls10).map_err(invalid)?;
    if key_package.ciphersuite() != Ciphersuite::try_from(suite).map_err(|_| unparsable())? {
        return Err(unparsable());
    }
    let credential = leaf_credential(&key_package)?;
    let certificate = credential.verify(key_package.leaf_node().signature_key().as_slice()).map_err(not_held)?;
    let hash_ref = key_package.hash_ref(provider.crypto()).map_err(|_| unparsable())?;
    let lifetime = key_package.life_time();
    Ok(VerifiedKeyPackage {
        hash_ref: Hash::try_from(hash_ref.as_slice()).map_err(|_| unparsable())?,
        suite,
        lifetime_s: (lifetime.not_before(), lifetime.not_after()),
        last_resort: key_package.last_resort(),
        certificate,
        certificate_hash: certificate_hash(&credential.certificate),
    })
}

fn leaf_credential(key_package: &KeyPackage) -> Result<LeafCredential, Error> {
    let refused = || bad_key_package("the credential must be a basic one with a certificate of this protocol in it");
    let basic = BasicCredential::try_from(key_package.leaf_node().credential().clone()).map_err(|_| refused())?;
    LeafCredential::decode(basic.identity()).map_err(|_| refused())
}

/// What two copies of one signed certificate have in common and no other certificate has.
pub(crate) fn certificate_hash(certificate: &undertone_wire::SignedCertificate) -> Hash {
    Hash::of(&Encoding::Cbor.encode(certificate))
}

fn invalid(error: KeyPackageVerifyError) -> Error {
    match error {
        KeyPackageVerifyError::InvalidSignature | KeyPackageVerifyError::InvalidLeafNodeSignature => {
            Error::refused(ErrorCode::BadSignature, "a signature in the key package does not verify")
        }
        KeyPackageVerifyError::LifetimeError(_) | KeyPackageVerifyError::MissingLifetime => {
            Error::refused(ErrorCode::BadLifetime, "the key package's lifetime does not include this moment")
        }
        error => bad_key_package(error.to_string()),
    }
}

fn not_held(error: CredentialError) -> Error {
    match error {
        CredentialError::Certificate(
            error @ (DeviceListError::BadCertificate | DeviceListError::BadSignature | DeviceListError::BadRotation),
        ) => Error::refused(ErrorCode::BadSignature, error.to_string()),
        error => bad_key_package(error.to_string()),
    }
}

/// A refusal of a key package, with the rule it breaks.
pub(crate) fn bad_key_package(rule: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::refused(ErrorCode::BadKeyPackage, rule)
}

/// A refusal of a message, with the rule it breaks.
pub(crate) fn bad_message(rule: &'static str) -> Error {
    Error::refused(ErrorCode::BadMessage, rule)
}

fn unparsable() -> Error {
    bad_key_package("the key package is not one of RFC 9420, section 10, without a message around it")
}

fn guarded<T>(parse: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(parse)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_in_a_parser_is_an_answer() {
        assert_eq!(guarded(|| 1), Some(1));
        assert_eq!(guarded(|| -> u8 { panic!("as a parser might") }), None);
    }

    #[test]
    fn bytes_of_any_kind_are_refused_without_a_crash() {
        let group = GroupId::from_random([1; 16]);
        for length in 0..64 {
            for byte in [0, 1, 2, 3, 64, 128, 192, 255] {
                let bytes = vec![byte; length];
                assert!(header(&bytes, &group, Content::Commit).is_err());
                assert!(key_package(&bytes).is_err());
            }
        }
    }
}
