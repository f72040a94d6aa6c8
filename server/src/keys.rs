//! Key packages: published by their device, handed out to whoever wants to add it to a group.
//!
//! Invariant: what is handed out was verified when it was published, belongs to a listed device, and lives long enough
//! for the slowest member of a group; a one-time key package is handed out once.

use axum::{extract::State, response::Response};
use undertone_wire::{
    Bytes, ClaimRequest, ClaimResponse, ClaimedKeyPackage, DeviceId, ErrorCode, KeyCounts, Problem, PublishRequest,
    path,
};

use crate::{
    auth::Caller,
    encoding::{Accept, Body},
    error::Error,
    limits,
    mls::{self, SUITES, VerifiedKeyPackage, bad_key_package},
    node::Node,
    once::{FirstAnswer, Once, Purpose},
    store::{
        Conn, StoreError, Tx, accounts,
        keys::{self, NewKeyPackage},
    },
};

/// A key package that was verified, and whose device's certificate must be the listed one.
struct Checked {
    verified: VerifiedKeyPackage,
    bytes: Bytes,
}

/// Counts the caller's key packages that can be handed out.
#[utoipa::path(get, path = path::KEYS, tag = "keys",
    responses((status = 200, body = KeyCounts), (status = "default", body = Problem)))]
pub(crate) async fn counts(State(node): State<Node>, caller: Caller, accept: Accept) -> Result<Response, Error> {
    Ok(accept.answer(&key_counts(&mut node.db.read().await?, &node, &caller.device).await?))
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
    let publishing = node.clone();
    let counts =
        node.db.write(move |tx| Box::pin(async move { store_all(tx, &publishing, &caller, &once, checked).await }));
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
    let (not_before, not_after) = verified.lifetime_s;
    let now_s = node.now_ms() / 1_000;
    let fits = not_before <= now_s
        && not_after.saturating_sub(not_before) <= node.limits.key_package_lifetime_s_max
        && not_after >= now_s.saturating_add(node.limits.key_package_remaining_s_min);
    if !fits {
        let limits = "see key_package_lifetime_s_max and key_package_remaining_s_min";
        return Err(Error::refused(ErrorCode::BadLifetime, limits));
    }
    Ok(Checked { verified, bytes })
}

async fn store_all(
    tx: &mut Tx,
    node: &Node,
    caller: &Caller,
    once: &Once,
    checked: Vec<Checked>,
) -> Result<KeyCounts, Error> {
    caller.still_holds(tx, node.now_ms()).await?;
    if once.first_answer(tx).await?.is_none() {
        let listed = accounts::device(tx, &caller.device).await?.ok_or_else(Error::unauthenticated)?;
        keys::spend_stale(tx, &caller.device, &node.identity.incarnation).await?;
        for Checked { verified, bytes } in checked {
            if verified.certificate_hash != listed.certificate_hash {
                return Err(bad_key_package("the certificate in the credential is not the listed one"));
            }
            keys::add(tx, &caller.device, &node.identity.incarnation, &stored_key_package(verified, bytes)).await?;
        }
        for suite in SUITES {
            let stored = keys::stored_one_time(tx, &caller.device, *suite).await?;
            limits::count("one_time_keys_max", node.limits.one_time_keys_max, stored)?;
        }
        once.remember(tx, FirstAnswer { commit_seq: None }).await?;
    }
    Ok(key_counts(tx, node, &caller.device).await?)
}

fn stored_key_package(verified: VerifiedKeyPackage, bytes: Bytes) -> NewKeyPackage {
    NewKeyPackage {
        hash_ref: verified.hash_ref,
        suite: verified.suite,
        last_resort: verified.last_resort,
        not_after_ms: verified.lifetime_s.1.saturating_mul(1_000),
        bytes: bytes.into_vec(),
    }
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
            claim_for_each_device(tx, &claiming, &request).await
        })
    });
    Ok(accept.answer(&claimed.await?))
}

async fn claim_for_each_device(tx: &mut Tx, node: &Node, request: &ClaimRequest) -> Result<ClaimResponse, Error> {
    let devices = accounts::devices(tx, &request.account_id).await?;
    if devices.is_empty() {
        return Err(Error::not_found());
    }
    let mut key_packages = Vec::with_capacity(devices.len());
    for device_id in devices {
        key_packages.push(claim_one(tx, node, device_id, request.suite).await?);
    }
    Ok(ClaimResponse { key_packages })
}

async fn claim_one(tx: &mut Tx, node: &Node, device_id: DeviceId, suite: u16) -> Result<ClaimedKeyPackage, StoreError> {
    let lives_until_ms = must_live_until_ms(node);
    let incarnation = &node.identity.incarnation;
    if let Some(bytes) = keys::take_one_time(tx, &device_id, incarnation, suite, lives_until_ms).await? {
        return Ok(ClaimedKeyPackage { device_id, key_package: Some(bytes.into()), last_resort: false });
    }
    let key_package = keys::last_resort(tx, &device_id, suite, lives_until_ms).await?;
    Ok(ClaimedKeyPackage { device_id, last_resort: key_package.is_some(), key_package: key_package.map(Into::into) })
}

async fn key_counts(conn: &mut Conn, node: &Node, device: &DeviceId) -> Result<KeyCounts, StoreError> {
    let incarnation = &node.identity.incarnation;
    Ok(KeyCounts { key_packages: keys::counts(conn, device, incarnation, must_live_until_ms(node)).await? })
}

/// How long a key package must live to be handed out now.
pub(crate) fn must_live_until_ms(node: &Node) -> u64 {
    node.now_ms().saturating_add(node.limits.key_package_remaining_s_min.saturating_mul(1_000))
}
