//! Prekeys and sealing keys: what it takes to write to a device while it is away.
//!
//! They are stored as key packages are, each under a suite of its own. A fallback prekey is a suite's last resort; so is a
//! sealing key, of which there is no other.
//!
//! Invariant: each is signed by the key with which its device is listed.

use axum::{extract::State, response::Response};
use serde::{Serialize, de::DeserializeOwned};
use undertone_wire::{
    AccountId, ClaimPrekeysRequest, ClaimPrekeysResponse, ClaimedPrekey, DeviceId, DeviceSealingKey, Encoding,
    ErrorCode, KeyCounts, Problem, PublicKey, PublishPrekeysRequest, SealingKey, SealingKeys, path, suite,
};

use super::{Claimed, check_lifetime, claim_of, must_live_until_ms, store_all};
use crate::{
    auth::Caller,
    encoding::{Accept, Body, Named},
    error::Error,
    limits,
    node::Node,
    once::{Once, Purpose},
    store::{
        accounts,
        keys::{self, NewKey},
    },
};

/// Publishes prekeys and the sealing key of the caller, all or none. Repeating it changes nothing.
#[utoipa::path(post, path = path::PREKEYS, tag = "keys", request_body = PublishPrekeysRequest,
    responses((status = 200, body = KeyCounts), (status = "default", body = Problem)))]
pub(crate) async fn publish(
    State(node): State<Node>,
    caller: Caller,
    accept: Accept,
    Body(request): Body<PublishPrekeysRequest>,
) -> Result<Response, Error> {
    let once = Once::new(&node, Purpose::PublishPrekeys, None, request.message_id, &request)?;
    let listed = accounts::device(&mut node.db.read().await?, &caller.device).await?;
    let device_key = listed.ok_or_else(Error::unauthenticated)?.device_key;
    let checking = node.clone();
    let new = tokio::task::spawn_blocking(move || check_all(&checking, caller.device, &device_key, &request))
        .await
        .map_err(|_| Error::Failed("checking prekeys broke off"))??;
    let publishing = node.clone();
    let counts = node.db.write(move |tx| {
        Box::pin(async move {
            let is_listed = |listed: &accounts::StoredDevice| {
                if listed.device_key == device_key { Ok(()) } else { Err(bad_signature()) }
            };
            store_all(tx, &publishing, &caller, &once, &new, is_listed).await
        })
    });
    Ok(accept.answer(&counts.await?))
}

fn check_all(
    node: &Node,
    device: DeviceId,
    device_key: &PublicKey,
    request: &PublishPrekeysRequest,
) -> Result<Vec<NewKey>, Error> {
    let fallbacks = request.prekeys.iter().filter(|prekey| prekey.fallback).count();
    if fallbacks > 1 {
        return Err(Error::refused(ErrorCode::BadPrekey, "there is one fallback prekey at most"));
    }
    let one_time = request.prekeys.len().saturating_sub(fallbacks) as u64;
    limits::count("one_time_keys_max", node.limits.one_time_keys_max, one_time)?;
    let mut new = Vec::with_capacity(request.prekeys.len() + 1);
    for prekey in &request.prekeys {
        if !prekey.is_of(device, device_key) {
            return Err(bad_signature());
        }
        let hash_ref = prekey.hash_ref(device);
        let (not_after_ms, last_resort) = (prekey.not_after_ms, prekey.fallback);
        let bytes = Encoding::Cbor.encode(prekey);
        new.push(NewKey { hash_ref, suite: suite::PREKEY, last_resort, not_after_ms, bytes });
    }
    if let Some(sealing_key) = &request.sealing_key {
        if sealing_key.key.len() != SealingKey::LENGTH {
            return Err(Error::refused(ErrorCode::BadPrekey, "a sealing key is an X-Wing public key of 1,216 bytes"));
        }
        if !sealing_key.is_of(device, device_key) {
            return Err(bad_signature());
        }
        let hash_ref = sealing_key.hash_ref(device);
        let (not_after_ms, bytes) = (sealing_key.not_after_ms, Encoding::Cbor.encode(sealing_key));
        new.push(NewKey { hash_ref, suite: suite::SEALING, last_resort: true, not_after_ms, bytes });
    }
    let now_s = node.now_ms() / 1_000;
    new.iter().try_for_each(|key| check_lifetime(node, now_s, key.not_after_ms / 1_000))?;
    Ok(new)
}

fn bad_signature() -> Error {
    Error::refused(ErrorCode::BadSignature, "prekeys and sealing keys are signed by the device key that the list names")
}

/// Takes one prekey for each of some devices of an account.
#[utoipa::path(post, path = path::CLAIM_PREKEYS, tag = "keys", request_body = ClaimPrekeysRequest,
    responses((status = 200, body = ClaimPrekeysResponse), (status = "default", body = Problem)))]
pub(crate) async fn claim(
    State(node): State<Node>,
    caller: Caller,
    accept: Accept,
    Body(request): Body<ClaimPrekeysRequest>,
) -> Result<Response, Error> {
    limits::count("account_devices_max", node.limits.account_devices_max, request.devices.len() as u64)?;
    if !request.devices.is_sorted_by(|one, next| one < next) {
        return Err(Error::refused(ErrorCode::Malformed, "devices must be in ascending order, each once"));
    }
    let is_wanted = move |device: &DeviceId| request.devices.contains(device);
    let claimed = claim_of(&node, caller, request.account_id, suite::PREKEY, is_wanted).await?;
    let as_answered = |Claimed { device, key, .. }: Claimed| {
        Ok(ClaimedPrekey { device_id: device, prekey: key.as_deref().map(as_published).transpose()? })
    };
    let prekeys = claimed.into_iter().map(as_answered).collect::<Result<_, Error>>()?;
    Ok(accept.answer(&ClaimPrekeysResponse { prekeys }))
}

/// The sealing keys of an account's devices.
#[utoipa::path(get, path = path::SEALING_KEYS, tag = "keys", params(("account" = String, Path)),
    responses((status = 200, body = SealingKeys), (status = "default", body = Problem)))]
pub(crate) async fn sealing_keys(
    State(node): State<Node>,
    _: Caller,
    accept: Accept,
    Named(account): Named<AccountId>,
) -> Result<Response, Error> {
    let mut conn = node.db.read().await?;
    let listed = accounts::devices(&mut conn, &account).await?;
    if listed.is_empty() {
        return Err(Error::not_found());
    }
    let lives_until_ms = must_live_until_ms(&node);
    let mut sealing_keys = Vec::with_capacity(listed.len());
    for device_id in listed {
        let key = keys::last_resort(&mut conn, &device_id, suite::SEALING, lives_until_ms).await?;
        let sealing_key: Option<SealingKey> = key.as_deref().map(as_published).transpose()?;
        sealing_keys.push(DeviceSealingKey { device_id, sealing_key });
    }
    Ok(accept.answer(&SealingKeys { sealing_keys }))
}

fn as_published<T: Serialize + DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    Encoding::Cbor.decode(bytes).map_err(|_| Error::Failed("a stored prekey cannot be decoded"))
}
