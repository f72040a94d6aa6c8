//! Key packages: published by their device, handed out to whoever wants to add it to a group.
//!
//! Invariant: what is handed out was verified when it was published, belongs to a listed device, and lives long enough
//! for the slowest member of a group; a one-time key package is handed out once.

use std::collections::BTreeSet;

use axum::{extract::State, response::Response};
use undertone_wire::{
    Bytes, ClaimRequest, ClaimResponse, ClaimedKeyPackage, DeviceId, ErrorCode, KeyCounts, Problem, PublishRequest,
    ReconcileRequest, ReconcileResponse, path,
};

use crate::{
    auth::Caller,
    encoding::{Accept, Body},
    error::Error,
    limits,
    mls::{self, SUITES, VerifiedKeyPackage, bad_key_package},
    node::Node,
    once::{Once, Purpose},
    store::{
        Conn, StoreError, Tx, accounts,
        keys::{self, NewKeyPackage},
        queue::{self, Kind, NewEnvelope},
    },
};

/// How often a claim looks for a one-time key package while others hold those that are left.
const CLAIM_ATTEMPTS: u32 = 5;

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
    let claimed = once.claim(tx).await;
    accounts::lock_devices(tx, &BTreeSet::from([caller.device])).await?;
    caller.still_holds(tx, node.now_ms()).await?;
    if claimed?.is_none() {
        let listed = accounts::device(tx, &caller.device).await?.ok_or_else(Error::unauthenticated)?;
        keys::spend_stale(tx, &caller.device).await?;
        if checked.iter().any(|checked| checked.verified.certificate_hash != listed.certificate_hash) {
            return Err(bad_key_package("the certificate in the credential is not the listed one"));
        }
        let checked = checked.into_iter().map(|Checked { verified, bytes }| stored_key_package(verified, bytes));
        keys::add(tx, &caller.device, &checked.collect::<Vec<_>>()).await?;
        for suite in SUITES {
            let stored = keys::stored_one_time(tx, &caller.device, *suite).await?;
            limits::count("one_time_keys_max", node.limits.one_time_keys_max, stored)?;
        }
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
            claim_for_each_device(tx, &claiming, &caller, &request).await
        })
    });
    let (claimed, notices) = claimed.await?;
    if !notices.is_empty() {
        tell_owners(node, notices);
    }
    Ok(accept.answer(&claimed))
}

/// What the owner of keys is to be told, and about which suite.
#[derive(Debug)]
struct Notice {
    device: DeviceId,
    suite: u16,
    kind: Kind,
    payload: Vec<u8>,
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
    for device_id in devices {
        let claimed = claim_one(tx, node, device_id, request.suite, one_time).await?;
        notices.extend(notice(tx, node, &claimed, request.suite).await?);
        key_packages.push(claimed);
    }
    Ok((ClaimResponse { key_packages }, notices))
}

/// What the owner of a claimed key package is to be told, if anything.
async fn notice(
    tx: &mut Tx,
    node: &Node,
    claimed: &ClaimedKeyPackage,
    suite: u16,
) -> Result<Option<Notice>, StoreError> {
    let device = claimed.device_id;
    if claimed.last_resort {
        return Ok(Some(Notice { device, suite, kind: Kind::LastResortUsed, payload: Vec::new() }));
    }
    if claimed.key_package.is_none() {
        return Ok(None);
    }
    let left = keys::one_time_left(tx, &device, suite, must_live_until_ms(node)).await?;
    let low = left <= node.limits.keys_low_at;
    Ok(low.then(|| Notice { device, suite, kind: Kind::KeysLow, payload: left.to_be_bytes().to_vec() }))
}

async fn claim_one(
    tx: &mut Tx,
    node: &Node,
    device_id: DeviceId,
    suite: u16,
    one_time: bool,
) -> Result<ClaimedKeyPackage, StoreError> {
    let lives_until_ms = must_live_until_ms(node);
    // Who finds all that is left in the hands of others looks again: they may give it back.
    for _ in 0..if one_time { CLAIM_ATTEMPTS } else { 0 } {
        if let Some(bytes) = keys::take_one_time(tx, &device_id, suite, lives_until_ms).await? {
            return Ok(ClaimedKeyPackage { device_id, key_package: Some(bytes.into()), last_resort: false });
        }
        if keys::one_time_left(tx, &device_id, suite, lives_until_ms).await? == 0 {
            break;
        }
    }
    let key_package = keys::last_resort(tx, &device_id, suite, lives_until_ms).await?;
    Ok(ClaimedKeyPackage { device_id, last_resort: key_package.is_some(), key_package: key_package.map(Into::into) })
}

/// Tells owners in their own queues how their keys stand, one notice of a kind at a time. It is told apart from the claim,
/// which has locked keys, and queues are locked before keys; if it is lost, the next claim tells it.
fn tell_owners(node: Node, notices: Vec<Notice>) {
    tokio::spawn(async move {
        let (now_ms, room) = (node.now_ms(), limits::room(&node.limits));
        let expires_hour_ms = limits::kept_until_ms(&node.limits, now_ms, None);
        let told = node.db.write(move |tx| {
            Box::pin(async move {
                let cursors = queue::lock(tx, &notices.iter().map(|notice| notice.device).collect()).await?;
                let mut new = Vec::new();
                for notice in &notices {
                    let listed = cursors.get(&notice.device).is_some();
                    let suite = u64::from(notice.suite);
                    if listed && !queue::notice_waits(tx, &notice.device, notice.kind, suite).await? {
                        new.push(notice.envelope(expires_hour_ms));
                    }
                }
                queue::append(tx, cursors, &room, &new).await.map(drop)
            })
        });
        if let Err(error) = told.await {
            tracing::warn!(%error, "owners could not be told that their keys run out; the next claim tells them");
        }
    });
}

impl Notice {
    fn envelope(&self, expires_hour_ms: u64) -> NewEnvelope<'_> {
        NewEnvelope {
            kind: self.kind,
            group: None,
            number: u64::from(self.suite),
            expires_hour_ms,
            payload: &self.payload,
            held_by_commits: false,
            receivers: vec![self.device.into()],
        }
    }
}

/// Makes the caller and the relay agree on which key packages there are. Repeating it changes nothing more.
#[utoipa::path(post, path = path::RECONCILE, tag = "keys", request_body = ReconcileRequest,
    responses((status = 200, body = ReconcileResponse), (status = "default", body = Problem)))]
pub(crate) async fn reconcile(
    State(node): State<Node>,
    caller: Caller,
    accept: Accept,
    Body(request): Body<ReconcileRequest>,
) -> Result<Response, Error> {
    let reconciling = node.clone();
    let agreed = node.db.write(move |tx| {
        Box::pin(async move {
            accounts::lock_devices(tx, &BTreeSet::from([caller.device])).await?;
            caller.still_holds(tx, reconciling.now_ms()).await?;
            let held = request.hash_refs.into_iter().collect();
            let available = keys::reconcile(tx, &caller.device, &held, must_live_until_ms(&reconciling)).await?;
            let KeyCounts { key_packages } = key_counts(tx, &reconciling, &caller.device).await?;
            Ok::<_, Error>(ReconcileResponse { available, key_packages })
        })
    });
    Ok(accept.answer(&agreed.await?))
}

async fn key_counts(conn: &mut Conn, node: &Node, device: &DeviceId) -> Result<KeyCounts, StoreError> {
    Ok(KeyCounts { key_packages: keys::counts(conn, device, must_live_until_ms(node)).await? })
}

/// How long a key package must live to be handed out now.
pub(crate) fn must_live_until_ms(node: &Node) -> u64 {
    node.now_ms().saturating_add(node.limits.key_package_remaining_s_min.saturating_mul(1_000))
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
