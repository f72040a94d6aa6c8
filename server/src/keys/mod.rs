//! Keys that others begin with: published by their device, handed out to whoever wants to add it to a group
//! ([`key_packages`]) or to write to it ([`prekeys`]). Here is what both have in common.
//!
//! Keys are told apart by device and [`suite`]. Of each suite a device has one-time keys, and one that is handed out when
//! no other is left.
//!
//! Invariant: what is handed out was verified when it was published, belongs to a listed device, and lives long enough
//! for the slowest to use it; a one-time key is handed out once.

pub(crate) mod key_packages;
pub(crate) mod prekeys;

use std::collections::BTreeSet;

use axum::{extract::State, response::Response};
use undertone_wire::{
    AccountId, DeviceId, ErrorCode, KeyCounts, PrekeyCount, Problem, ReconcileRequest, ReconcileResponse, path, suite,
};

use crate::{
    auth::Caller,
    encoding::{Accept, Body},
    error::Error,
    limits,
    node::Node,
    once::Once,
    store::{
        Conn, StoreError, Tx,
        accounts::{self, StoredDevice},
        keys::{self, NewKey},
        queue::{self, Kind, NewEnvelope},
    },
};

/// How often a claim looks for a one-time key while others hold those that are left.
const CLAIM_ATTEMPTS: u32 = 5;

/// Counts the caller's keys that can be handed out.
#[utoipa::path(get, path = path::KEYS, tag = "keys",
    responses((status = 200, body = KeyCounts), (status = "default", body = Problem)))]
pub(crate) async fn counts(State(node): State<Node>, caller: Caller, accept: Accept) -> Result<Response, Error> {
    Ok(accept.answer(&key_counts(&mut node.db.read().await?, &node, &caller.device).await?))
}

/// Makes the caller and the relay agree on which keys there are. Repeating it changes nothing more.
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
            let counts = key_counts(tx, &reconciling, &caller.device).await?;
            Ok::<_, Error>(ReconcileResponse { available, counts })
        })
    });
    Ok(accept.answer(&agreed.await?))
}

/// Stores keys that were verified, once, if what they hang on is still what the device is listed with.
async fn store_all(
    tx: &mut Tx,
    node: &Node,
    caller: &Caller,
    once: &Once,
    new: &[NewKey],
    is_listed: impl FnOnce(&StoredDevice) -> Result<(), Error>,
) -> Result<KeyCounts, Error> {
    let claimed = once.claim(tx).await;
    accounts::lock_devices(tx, &BTreeSet::from([caller.device])).await?;
    caller.still_holds(tx, node.now_ms()).await?;
    if claimed?.is_none() {
        let listed = accounts::device(tx, &caller.device).await?.ok_or_else(Error::unauthenticated)?;
        is_listed(&listed)?;
        keys::spend_stale(tx, &caller.device).await?;
        keys::add(tx, &caller.device, new).await?;
        for suite in new.iter().filter(|key| !key.last_resort).map(|key| key.suite).collect::<BTreeSet<_>>() {
            let stored = keys::stored_one_time(tx, &caller.device, suite).await?;
            limits::count("one_time_keys_max", node.limits.one_time_keys_max, stored)?;
        }
    }
    Ok(key_counts(tx, node, &caller.device).await?)
}

/// Whether something may live for so long, as keys that are published must and may.
fn check_lifetime(node: &Node, not_before_s: u64, not_after_s: u64) -> Result<(), Error> {
    let now_s = node.now_ms() / 1_000;
    let fits = not_before_s <= now_s
        && not_after_s.saturating_sub(not_before_s) <= node.limits.key_package_lifetime_s_max
        && not_after_s >= now_s.saturating_add(node.limits.key_package_remaining_s_min);
    let limits = "see key_package_lifetime_s_max and key_package_remaining_s_min";
    if fits { Ok(()) } else { Err(Error::refused(ErrorCode::BadLifetime, limits)) }
}

/// A key handed out.
struct Claimed {
    device: DeviceId,
    suite: u16,
    /// In the form in which it was stored; `None` if the device has none that still lives.
    key: Option<Vec<u8>>,
    /// Whether it is the one that others may have been given too.
    last_resort: bool,
}

/// Takes one key of each wanted device of an account, and tells the owners what there is to tell.
async fn claim_of(
    node: &Node,
    caller: Caller,
    account: AccountId,
    suite: u16,
    is_wanted: impl Fn(&DeviceId) -> bool + Send + 'static,
) -> Result<Vec<Claimed>, Error> {
    let claiming = node.clone();
    let claimed = node.db.write(move |tx| {
        Box::pin(async move {
            caller.still_holds(tx, claiming.now_ms()).await?;
            let mut devices = accounts::devices(tx, &account).await?;
            if devices.is_empty() {
                return Err(Error::not_found());
            }
            devices.retain(is_wanted);
            let one_time = claiming.claims.allow(caller.account, account);
            let (mut claimed, mut notices) = (Vec::with_capacity(devices.len()), Vec::new());
            for device in devices {
                let key = claim_one(tx, &claiming, device, suite, one_time).await?;
                notices.extend(notice(tx, &claiming, &key).await?);
                claimed.push(key);
            }
            Ok((claimed, notices))
        })
    });
    let (claimed, notices) = claimed.await?;
    tell_owners(node.clone(), notices);
    Ok(claimed)
}

/// Takes one key of a device: a one-time one, if that is allowed and one is left.
async fn claim_one(
    tx: &mut Tx,
    node: &Node,
    device: DeviceId,
    suite: u16,
    one_time: bool,
) -> Result<Claimed, StoreError> {
    let lives_until_ms = must_live_until_ms(node);
    // Who finds all that is left in the hands of others looks again: they may give it back.
    for _ in 0..if one_time { CLAIM_ATTEMPTS } else { 0 } {
        if let Some(bytes) = keys::take_one_time(tx, &device, suite, lives_until_ms).await? {
            return Ok(Claimed { device, suite, key: Some(bytes), last_resort: false });
        }
        if keys::one_time_left(tx, &device, suite, lives_until_ms).await? == 0 {
            break;
        }
    }
    let key = keys::last_resort(tx, &device, suite, lives_until_ms).await?;
    Ok(Claimed { device, suite, last_resort: key.is_some(), key })
}

/// What the owner of keys is to be told, and about which suite.
#[derive(Debug)]
struct Notice {
    device: DeviceId,
    suite: u16,
    kind: Kind,
    payload: Vec<u8>,
}

/// What the owner of a claimed key is to be told, if anything.
async fn notice(tx: &mut Tx, node: &Node, claimed: &Claimed) -> Result<Option<Notice>, StoreError> {
    let (device, suite) = (claimed.device, claimed.suite);
    if claimed.last_resort {
        return Ok(Some(Notice { device, suite, kind: Kind::LastResortUsed, payload: Vec::new() }));
    }
    if claimed.key.is_none() {
        return Ok(None);
    }
    let left = keys::one_time_left(tx, &device, suite, must_live_until_ms(node)).await?;
    let low = left <= node.limits.keys_low_at;
    Ok(low.then(|| Notice { device, suite, kind: Kind::KeysLow, payload: left.to_be_bytes().to_vec() }))
}

/// Tells owners in their own queues how their keys stand, one notice of a kind at a time. It is told apart from the claim,
/// which has locked keys, and queues are locked before keys; if it is lost, the next claim tells it.
fn tell_owners(node: Node, notices: Vec<Notice>) {
    if notices.is_empty() {
        return;
    }
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

async fn key_counts(conn: &mut Conn, node: &Node, device: &DeviceId) -> Result<KeyCounts, StoreError> {
    let mut counts = KeyCounts::default();
    for count in keys::counts(conn, device, must_live_until_ms(node)).await? {
        match count.suite {
            suite::PREKEY => {
                counts.prekeys = PrekeyCount { one_time: count.one_time, fallback: count.last_resort };
            }
            suite::SEALING => counts.sealing_key = count.last_resort,
            _ => counts.key_packages.push(count),
        }
    }
    Ok(counts)
}

/// How long a key must live to be handed out now.
pub(crate) fn must_live_until_ms(node: &Node) -> u64 {
    node.now_ms().saturating_add(node.limits.key_package_remaining_s_min.saturating_mul(1_000))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::testing;
    use undertone_wire::PublicKey;

    #[tokio::test]
    async fn claims_of_accounts_that_do_not_exist_are_not_counted() {
        let folder = tempfile::tempdir().unwrap();
        let node = testing::node(folder.path()).await;
        let (alice, bob) = (testing::caller(&node, 1).await, testing::caller(&node, 2).await);
        let claim = async |account: AccountId| {
            let claimed = claim_of(&node, alice, account, suite::DEFAULT, |_| true).await;
            (claimed.map(drop), node.claims.kept())
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
