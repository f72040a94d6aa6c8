//! Log-in and sessions: who is calling.
//!
//! A challenge is used up by its first use, whatever for. A token is 32 random bytes that the relay knows by its hash only.
//!
//! Invariant: whoever is a [`Caller`] had a session, hence was listed, when the request came in; what takes effect asks
//! again in its own transaction ([`Caller::still_holds`]).

use std::collections::BTreeSet;

use axum::{
    extract::{FromRequestParts, State},
    response::Response,
};
use http::{HeaderMap, StatusCode, header, request::Parts};
use undertone_wire::{
    AccountId, Bytes, Challenge, DeviceId, Domain, Encoding, ErrorCode, Hash, LoginRequest, Nonce, Problem, Session,
    path, verify,
};

use crate::{
    clock::random_bytes,
    encoding::{Accept, Body},
    error::Error,
    node::Node,
    store::{Tx, accounts, sessions},
    strangers::Stranger,
};

/// The device that calls.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Caller {
    pub(crate) device: DeviceId,
    pub(crate) account: AccountId,
    pub(crate) token_hash: Hash,
}

impl Caller {
    /// Refuses if the session has ended, by log-out, age or because the device is no longer listed. It locks nothing (see
    /// [`sessions::holders`]), so it comes after the locks that keep the device listed.
    pub(crate) async fn still_holds(&self, tx: &mut Tx, now_ms: u64) -> Result<(), Error> {
        let holder = sessions::holder(tx, &self.token_hash, now_ms).await?;
        holder.map(|_| ()).ok_or_else(Error::unauthenticated)
    }
}

impl FromRequestParts<Node> for Caller {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, node: &Node) -> Result<Self, Error> {
        let token_hash =
            bearer_token(&parts.headers).map(|token| Hash::of(token.as_slice())).ok_or_else(Error::unauthenticated)?;
        let holder = sessions::holder(&mut node.db.read().await?, &token_hash, node.now_ms()).await?;
        let (device, account) = holder.ok_or_else(Error::unauthenticated)?;
        Ok(Self { device, account, token_hash })
    }
}

/// The token that a request brings.
pub(crate) fn bearer_token(headers: &HeaderMap) -> Option<Bytes> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    // A token is written as bytes are in JSON.
    Encoding::Json.decode(format!("\"{}\"", token.trim()).as_bytes()).ok()
}

/// Gives a nonce for one log-in or recovery.
#[utoipa::path(post, path = path::CHALLENGE, tag = "auth", security(()),
    responses((status = 200, body = Challenge), (status = "default", body = Problem)))]
pub(crate) async fn challenge(State(node): State<Node>, _: Stranger, accept: Accept) -> Result<Response, Error> {
    let nonce = Nonce::from(random_bytes(&*node.random)?);
    let expires_at_ms = node.now_ms().saturating_add(node.limits.challenge_ttl_s.saturating_mul(1_000));
    node.db
        .write_for_stranger(move |tx| Box::pin(async move { sessions::add_challenge(tx, &nonce, expires_at_ms).await }))
        .await?;
    Ok(accept.answer(&Challenge { nonce, expires_at_ms }))
}

/// Opens a session for a device that proves its key.
#[utoipa::path(post, path = path::LOGIN, tag = "auth", security(()), request_body = LoginRequest,
    responses((status = 200, body = Session), (status = "default", body = Problem)))]
pub(crate) async fn login(
    State(node): State<Node>,
    _: Stranger,
    accept: Accept,
    Body(request): Body<LoginRequest>,
) -> Result<Response, Error> {
    let token: [u8; 32] = random_bytes(&*node.random)?;
    let expires_at_ms = node.now_ms().saturating_add(node.limits.session_ttl_s.saturating_mul(1_000));
    let opening = node.clone();
    let proven = node
        .db
        .write_for_stranger(move |tx| {
            Box::pin(async move { open(tx, &opening, &request, &token, expires_at_ms).await })
        })
        .await?;
    if !proven {
        return Err(Error::refused(ErrorCode::BadSignature, "the log-in is not signed by the device's key"));
    }
    Ok(accept.answer(&Session { token: token.as_slice().into(), expires_at_ms }))
}

/// Opens a session if the signature is the device's. The challenge is used up either way, so `false` is no error, which
/// would bring it back.
async fn open(
    tx: &mut Tx,
    node: &Node,
    request: &LoginRequest,
    token: &[u8; 32],
    expires_at_ms: u64,
) -> Result<bool, Error> {
    use_up(tx, node, &request.nonce).await?;
    // Nobody locks a device by asking: the proof comes first, and holds for the key that is there under the lock.
    if !proves_key(tx, node, request).await? {
        return Ok(false);
    }
    accounts::lock_devices(tx, &BTreeSet::from([request.device_id])).await?;
    if !proves_key(tx, node, request).await? {
        return Ok(false);
    }
    let keep = node.limits.device_sessions_max;
    sessions::add(tx, &Hash::of(token), &request.device_id, expires_at_ms, keep).await?;
    Ok(true)
}

/// Uses a challenge up; refused if there is none that lives.
pub(crate) async fn use_up(tx: &mut Tx, node: &Node, challenge: &Nonce) -> Result<(), Error> {
    match sessions::take_challenge(tx, challenge, node.now_ms()).await? {
        true => Ok(()),
        false => Err(Error::refused(ErrorCode::Unauthenticated, "the challenge is over; ask for another")),
    }
}

async fn proves_key(tx: &mut Tx, node: &Node, request: &LoginRequest) -> Result<bool, Error> {
    let Some(device) = accounts::device(tx, &request.device_id).await? else { return Ok(false) };
    let fields: &[&[u8]] = &[node.relay_id.as_bytes(), request.device_id.as_bytes(), request.nonce.as_bytes()];
    Ok(verify(&device.device_key, Domain::Login, fields, &request.signature))
}

/// Ends the session.
#[utoipa::path(post, path = path::LOGOUT, tag = "auth",
    responses((status = 204), (status = "default", body = Problem)))]
pub(crate) async fn logout(State(node): State<Node>, caller: Caller) -> Result<StatusCode, Error> {
    node.db
        .write(move |tx| {
            Box::pin(async move {
                tx.wake_after(caller.device);
                sessions::end(tx, &caller.token_hash).await
            })
        })
        .await?;
    Ok(StatusCode::NO_CONTENT)
}
