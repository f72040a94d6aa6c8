//! Key packages: what it takes to add a device to a group.
//!
//! Invariant: a key package carries the certificate with which its device is listed.

use axum::{extract::State, response::Response};
use undertone_wire::{
    Bytes, ClaimRequest, ClaimResponse, ClaimedKeyPackage, ErrorCode, Hash, KeyCounts, Problem, PublishRequest, path,
    suite,
};

use super::{Claimed, check_lifetime, claim_of, store_all};
use crate::{
    auth::Caller,
    encoding::{Accept, Body},
    error::Error,
    limits,
    mls::{self, bad_key_package},
    node::Node,
    once::{Once, Purpose},
    store::{accounts, keys::NewKey},
};

/// A key package that was verified, but for its certificate being the listed one.
struct Checked {
    certificate_hash: Hash,
    key: NewKey,
}

/// Publishes key packages of the caller, all or none. Repeating it changes nothing.
#[utoipa::path(post, path = path::KEY_PACKAGES, tag = "keys", request_body = PublishRequest,
    responses((status = 200, body = KeyCounts), (status = "default", body = Problem)))]
pub(crate) async fn publish(
    State(node): State<Node>,
    caller: Caller,
    accept: Accept,
    Body(request): Body<PublishRequest>,
) -> Result<Response, Error> {
    let once = Once::new(&node, Purpose::Publish, None, request.message_id, &request)?;
    let checking = node.clone();
    let checked = tokio::task::spawn_blocking(move || check_all(&checking, &caller, request))
        .await
        .map_err(|_| Error::Failed("checking key packages broke off"))??;
    let (certificates, new): (Vec<_>, Vec<_>) =
        checked.into_iter().map(|Checked { certificate_hash, key }| (certificate_hash, key)).unzip();
    let publishing = node.clone();
    let counts = node.db.write(move |tx| {
        Box::pin(async move {
            let is_listed = |listed: &accounts::StoredDevice| {
                if certificates.iter().all(|certificate| *certificate == listed.certificate_hash) {
                    return Ok(());
                }
                Err(bad_key_package("the certificate in the credential is not the listed one"))
            };
            store_all(tx, &publishing, &caller, &once, &new, is_listed).await
        })
    });
    Ok(accept.answer(&counts.await?))
}

fn check_all(node: &Node, caller: &Caller, request: PublishRequest) -> Result<Vec<Checked>, Error> {
    // Of each suite there may be as many; how many there are of one then is looked at when they are stored.
    let max = node.limits.one_time_keys_max.saturating_mul(suite::MLS.len() as u64);
    limits::count("one_time_keys_max", max, request.key_packages.len() as u64)?;
    let one_time = request.key_packages.into_iter().map(|bytes| (bytes, false));
    let last_resort = request.last_resort.into_iter().map(|bytes| (bytes, true));
    one_time.chain(last_resort).map(|(bytes, last_resort)| check(node, caller, bytes, last_resort)).collect()
}

fn check(node: &Node, caller: &Caller, bytes: Bytes, last_resort: bool) -> Result<Checked, Error> {
    limits::bytes("key_package_bytes_max", node.limits.key_package_bytes_max, bytes.len())?;
    let verified = mls::key_package(bytes.as_slice())?;
    if verified.certificate.device != caller.device || verified.certificate.account != caller.account {
        return Err(bad_key_package("the key package is another device's"));
    }
    if verified.last_resort != last_resort {
        return Err(bad_key_package("the last-resort key package, and no other, carries the last_resort extension"));
    }
    let (not_before_s, not_after_s) = verified.lifetime_s;
    check_lifetime(node, not_before_s, not_after_s)?;
    let key = NewKey {
        hash_ref: verified.hash_ref,
        suite: verified.suite,
        last_resort,
        not_after_ms: not_after_s.saturating_mul(1_000),
        bytes: bytes.into_vec(),
    };
    Ok(Checked { certificate_hash: verified.certificate_hash, key })
}

/// Takes one key package for each device of an account.
#[utoipa::path(post, path = path::CLAIM, tag = "keys", request_body = ClaimRequest,
    responses((status = 200, body = ClaimResponse), (status = "default", body = Problem)))]
pub(crate) async fn claim(
    State(node): State<Node>,
    caller: Caller,
    accept: Accept,
    Body(request): Body<ClaimRequest>,
) -> Result<Response, Error> {
    if !suite::MLS.contains(&request.suite) {
        return Err(Error::refused(ErrorCode::UnsupportedSuite, "see `suites` of the relay's description"));
    }
    let claimed = claim_of(&node, caller, request.account_id, request.suite, |_| true).await?;
    Ok(accept.answer(&ClaimResponse { key_packages: claimed.into_iter().map(ClaimedKeyPackage::from).collect() }))
}

impl From<Claimed> for ClaimedKeyPackage {
    fn from(Claimed { device, key, last_resort, .. }: Claimed) -> Self {
        Self { device_id: device, key_package: key.map(Into::into), last_resort }
    }
}
