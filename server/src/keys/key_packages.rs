//! Key packages: what it takes to add a device to a group.
//!
//! Invariant: a key package carries the certificate with which its device is listed.

use axum::{extract::State, response::Response};
use undertone_wire::{
    Bytes, ClaimRequest, ClaimResponse, ClaimedKeyPackage, ErrorCode, Hash, KeyCounts, Problem, PublishRequest, path,
};

use super::{Claimed, Notice, check_lifetime, claim_one, notice, store_all, tell_owners};
use crate::{
    auth::Caller,
    encoding::{Accept, Body},
    error::Error,
    limits,
    mls::{self, SUITES, bad_key_package},
    node::Node,
    once::{Once, Purpose},
    store::{Tx, accounts, keys::NewKey},
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
    let max = node.limits.one_time_keys_max;
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
    if !SUITES.contains(&request.suite) {
        return Err(Error::refused(ErrorCode::UnsupportedSuite, "see `suites` of the relay's description"));
    }
    let claiming = node.clone();
    let claimed = node.db.write(move |tx| {
        Box::pin(async move {
            caller.still_holds(tx, claiming.now_ms()).await?;
            claim_for_each_device(tx, &claiming, &caller, &request).await
        })
    });
    let (claimed, notices) = claimed.await?;
    tell_owners(node, notices);
    Ok(accept.answer(&claimed))
}

async fn claim_for_each_device(
    tx: &mut Tx,
    node: &Node,
    caller: &Caller,
    request: &ClaimRequest,
) -> Result<(ClaimResponse, Vec<Notice>), Error> {
    let devices = accounts::devices(tx, &request.account_id).await?;
    if devices.is_empty() {
        return Err(Error::not_found());
    }
    let one_time = node.claims.allow(caller.account, request.account_id);
    let (mut key_packages, mut notices) = (Vec::with_capacity(devices.len()), Vec::new());
    for device in devices {
        let claimed = claim_one(tx, node, device, request.suite, one_time).await?;
        notices.extend(notice(tx, node, &claimed).await?);
        key_packages.push(claimed.into());
    }
    Ok((ClaimResponse { key_packages }, notices))
}

impl From<Claimed> for ClaimedKeyPackage {
    fn from(Claimed { device, key, last_resort, .. }: Claimed) -> Self {
        Self { device_id: device, key_package: key.map(Into::into), last_resort }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::testing;
    use undertone_wire::{AccountId, PublicKey};

    #[tokio::test]
    async fn claims_of_accounts_that_do_not_exist_are_not_counted() {
        let folder = tempfile::tempdir().unwrap();
        let node = testing::node(folder.path()).await;
        let (alice, bob) = (testing::caller(&node, 1).await, testing::caller(&node, 2).await);
        let claim = async |account_id: AccountId| {
            let (claiming, request) = (node.clone(), ClaimRequest { account_id, suite: SUITES[0] });
            let claimed = node
                .db
                .write(move |tx| {
                    Box::pin(async move { claim_for_each_device(tx, &claiming, &alice, &request).await.map(drop) })
                })
                .await;
            (claimed, node.claims.kept())
        };
        for byte in 100..200 {
            let (claimed, kept) = claim(AccountId::from_identity_key(&PublicKey::from([byte; 32]))).await;
            assert!(matches!(claimed, Err(Error::Refused(ErrorCode::NotFound, _))), "{claimed:?}");
            assert_eq!(kept, (0, 0));
        }
        let (claimed, kept) = claim(bob.account).await;
        assert!(claimed.is_ok(), "{claimed:?}");
        assert_eq!(kept, (1, 1), "one that exists is");
    }
}
