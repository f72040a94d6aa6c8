//! Key packages (RFC 9420, section 10): making this device's, and looking hard at others' before they are used.

use openmls::prelude::{
    KeyPackage, KeyPackageIn, Lifetime, ProtocolVersion, tls_codec::Deserialize as _, tls_codec::Serialize as _,
};
use openmls_traits::storage::StorageProvider as _;
use undertone_wire::{Bytes, DeviceList, Limits};

use super::{CryptoError, Identity, Member, Provider, Suite, capabilities, member::VerifiedLeaf};

const DAY_S: u64 = 24 * 60 * 60;

/// A key package lives this long from its making, as do prekeys and sealing keys. A key package is dated back a day for
/// those whose clocks are behind.
pub(crate) const LIFETIME_S: u64 = 90 * DAY_S;

/// Makes a key package; its private half goes into the provider's storage.
pub(crate) fn make(
    provider: &impl Provider,
    identity: &Identity,
    suite: Suite,
    now_ms: u64,
    last_resort: bool,
) -> Result<Bytes, CryptoError> {
    let now_s = now_ms / 1_000;
    let mut builder = KeyPackage::builder()
        .key_package_lifetime(Lifetime::init(now_s.saturating_sub(DAY_S), now_s + LIFETIME_S))
        .leaf_node_capabilities(capabilities(suite));
    if last_resort {
        builder = builder.mark_as_last_resort();
    }
    let bundle = builder.build(suite.mls(), provider, identity, identity.credential()).map_err(CryptoError::storage)?;
    Ok(bundle.key_package().tls_serialize_detached().map_err(CryptoError::invalid)?.into())
}

/// Forgets the private half of each of these key packages of this device whose lifetime was over at `now_ms`. A Welcome for
/// one cannot come any more: nobody adds what does not outlive the relay's retention. Until when all others live; `None` if
/// there are none.
pub(crate) fn forget_expired(
    provider: &impl Provider,
    key_packages: &[KeyPackage],
    now_ms: u64,
) -> Result<Option<u64>, CryptoError> {
    let (live, expired): (Vec<_>, Vec<_>) =
        key_packages.iter().partition(|one| one.life_time().not_after() >= now_ms / 1_000);
    for one in expired {
        let reference = one.hash_ref(provider.crypto()).map_err(CryptoError::invalid)?;
        provider.storage().delete_key_package(&reference).map_err(CryptoError::storage)?;
    }
    Ok(live.iter().map(|one| one.life_time().not_after().saturating_mul(1_000)).min())
}

/// A key package that may enter a commit: it verifies, has enough of its lifetime left for a member that applies the
/// commit as late as retention allows, is of the group's suite, and belongs to `owner` as the account's verified `list` says.
pub(super) fn check(
    provider: &impl Provider,
    bytes: &Bytes,
    owner: Member,
    suite: Suite,
    now_ms: u64,
) -> Result<KeyPackage, CryptoError> {
    let key_package = KeyPackageIn::tls_deserialize_exact(bytes.as_slice())
        .map_err(CryptoError::invalid)?
        .validate(provider.crypto(), ProtocolVersion::Mls10)
        .map_err(CryptoError::invalid)?;
    if key_package.ciphersuite() != suite.mls() {
        return Err(CryptoError::Invalid("the key package is for another cipher suite".into()));
    }
    let limits = Limits::default();
    let (from, to) = (key_package.life_time().not_before(), key_package.life_time().not_after());
    let now_s = now_ms / 1_000;
    let lives = to.saturating_sub(from) <= limits.key_package_lifetime_s_max
        && now_s.saturating_add(limits.key_package_remaining_s_min) <= to;
    if !lives {
        return Err(CryptoError::Invalid("the key package's lifetime does not fit".into()));
    }
    if VerifiedLeaf::of(key_package.leaf_node())?.member != owner {
        return Err(CryptoError::Invalid("the key package is another device's".into()));
    }
    Ok(key_package)
}

/// Whether a key package may enter a commit.
pub(crate) fn is_usable(provider: &impl Provider, bytes: &Bytes, owner: Member, suite: Suite, now_ms: u64) -> bool {
    check(provider, bytes, owner, suite, now_ms).is_ok()
}

/// The devices of a verified list.
pub(crate) fn members_of(list: &DeviceList) -> Result<Vec<Member>, CryptoError> {
    list.certificates()
        .map(|certificate| {
            let certificate = certificate.map_err(CryptoError::invalid)?;
            Ok(Member { account: certificate.account, device: certificate.device })
        })
        .collect()
}
