//! The directory: accounts, usernames and device lists.
//!
//! A list is checked by the wire crate's rules, stored and served verbatim. The relay can withhold a list; it cannot
//! make one. A device of the account replaces it, or who has the recovery key that it names: the word of one who has lost
//! all devices.
//!
//! Invariant: a device that leaves the list, by a newer one or with its account, loses its sessions, keys, memberships
//! and queue in the transaction that changes the list ([`remove_devices`] is the only way). One whose certificate is
//! replaced loses its key packages, one whose key set is its prekeys and sealing key, one whose device key is its sessions
//! ([`take_back`]).

use std::collections::BTreeSet;

use axum::{extract::State, response::Response};
use futures_util::future::BoxFuture;
use http::StatusCode;
use undertone_wire::{
    Account, AccountId, Certificate, DeviceEntry, DeviceId, DeviceList, DeviceListError, Domain, Encoding, ErrorCode,
    Hash, Problem, PublicKey, RecoveryRequest, RegisterRequest, Registration, Relay, RelayId, SignedDeviceList,
    UpdateDeviceListRequest, Username, path, suite, verify,
};

use crate::{
    auth::{self, Caller},
    encoding::{Accept, Body, Named},
    error::Error,
    groups, limits, mls,
    node::Node,
    store::{
        StoreError, Tx,
        accounts::{self, StoredAccount, StoredDevice},
        groups as stored_groups, invites,
        queue::{self, Room},
        relay as stored_relay,
    },
    strangers::Stranger,
};

/// How often unlisting begins again before it gives up.
const UNLIST_ATTEMPTS: u32 = 10;

/// Tells who the relay is and what it allows.
#[utoipa::path(get, path = path::RELAY, tag = "relay", security(()),
    responses((status = 200, body = Relay), (status = "default", body = Problem)))]
pub(crate) async fn relay(State(node): State<Node>, accept: Accept) -> Result<Response, Error> {
    let identity = stored_relay::identity(&mut node.db.read().await?).await?;
    Ok(accept.answer(&Relay {
        relay_id: identity.relay_id,
        incarnation: identity.incarnation,
        time_ms: node.now_ms(),
        suites: suite::MLS.to_vec(),
        registration: node.registration,
        limits: node.limits.clone(),
    }))
}

/// Registers an account with its first device list, if whoever asks may. Repeating it changes nothing and uses up nothing.
#[utoipa::path(post, path = path::ACCOUNTS, tag = "directory", security(()), request_body = RegisterRequest,
    responses((status = 200, body = Account), (status = "default", body = Problem)))]
pub(crate) async fn register(
    State(node): State<Node>,
    _: Stranger,
    accept: Accept,
    Body(request): Body<RegisterRequest>,
) -> Result<Response, Error> {
    let (registration, now_ms) = (node.registration, node.now_ms());
    if registration == Registration::Closed {
        return Err(Error::refused(ErrorCode::RegistrationClosed, "ask whoever runs this relay"));
    }
    let list = verified_list(&node, &request.account_id, &request.device_list)?;
    check_registration(&node, &request, &list)?;
    let account = node.db.write_for_stranger(move |tx| {
        Box::pin(async move {
            let invite = request.invite.map(|code| Hash::of(code.as_bytes()));
            let (account, added) = add_account(tx, request, &list).await?;
            if added && registration == Registration::Invite {
                use_invite(tx, invite, now_ms).await?;
            }
            Ok::<_, Error>(account)
        })
    });
    Ok(accept.answer(&account.await?))
}

fn check_registration(node: &Node, request: &RegisterRequest, list: &DeviceList) -> Result<(), Error> {
    if list.version != 1 || list.previous.is_some() {
        return Err(bad_list("an account begins with version 1, which names no list before it"));
    }
    let username = request.username.as_ref().map_or("", Username::as_str);
    let list_hash = request.device_list.hash();
    let fields: &[&[u8]] = &[node.relay_id.as_bytes(), list_hash.as_bytes(), username.as_bytes()];
    if !verify(&list.identity_key(), Domain::Registration, fields, &request.signature) {
        let what_to_do = "sign this relay's id, the list's hash and the username with the identity key";
        return Err(Error::refused(ErrorCode::BadSignature, what_to_do));
    }
    Ok(())
}

async fn use_invite(tx: &mut Tx, invite: Option<Hash>, now_ms: u64) -> Result<(), Error> {
    let refused = |what_to_do| Err(Error::refused(ErrorCode::InviteRequired, what_to_do));
    match invite {
        None => refused("ask whoever runs this relay for an invite"),
        Some(invite) if !invites::use_up(tx, &invite, now_ms).await? => {
            refused("this one is used up, expired or revoked; ask for another")
        }
        Some(_) => Ok(()),
    }
}

/// The account as it is then, and whether it is new.
async fn add_account(tx: &mut Tx, request: RegisterRequest, list: &DeviceList) -> Result<(Account, bool), Error> {
    let RegisterRequest { account_id, username, device_list, .. } = request;
    if !accounts::add(tx, &account_id, username.as_ref(), list.version, &device_list).await? {
        return match accounts::by_id(tx, &account_id).await? {
            Some(known) if known.list == device_list && known.username == username => Ok((known.into(), false)),
            Some(_) => Err(Error::refused(ErrorCode::AccountExists, "")),
            None => Err(Error::refused(ErrorCode::UsernameTaken, "choose another username")),
        };
    }
    put_devices(tx, list, &[]).await?;
    Ok((Account { account_id, username, device_list }, true))
}

/// Finds an account by its id.
#[utoipa::path(get, path = path::ACCOUNT, tag = "directory", params(("account" = String, Path)),
    responses((status = 200, body = Account), (status = "default", body = Problem)))]
pub(crate) async fn account(
    State(node): State<Node>,
    _: Caller,
    accept: Accept,
    Named(account): Named<AccountId>,
) -> Result<Response, Error> {
    let found = accounts::by_id(&mut node.db.read().await?, &account).await?;
    found.map(|account| accept.answer(&Account::from(account))).ok_or_else(Error::not_found)
}

/// Finds an account by its username.
#[utoipa::path(get, path = path::USERNAME, tag = "directory", params(("username" = String, Path)),
    responses((status = 200, body = Account), (status = "default", body = Problem)))]
pub(crate) async fn account_by_username(
    State(node): State<Node>,
    _: Caller,
    accept: Accept,
    Named(username): Named<Username>,
) -> Result<Response, Error> {
    let found = accounts::by_username(&mut node.db.read().await?, &username).await?;
    found.map(|account| accept.answer(&Account::from(account))).ok_or_else(Error::not_found)
}

/// Replaces the caller's account's device list by the next one. Repeating it changes nothing.
#[utoipa::path(put, path = path::OWN_DEVICES, tag = "directory", request_body = UpdateDeviceListRequest,
    responses((status = 200, body = Account), (status = "default", body = Problem)))]
pub(crate) async fn update_devices(
    State(node): State<Node>,
    caller: Caller,
    accept: Accept,
    Body(request): Body<UpdateDeviceListRequest>,
) -> Result<Response, Error> {
    let account = continue_list(&node, By::Device(caller), &caller.account, request.device_list);
    Ok(accept.answer(&account.await?))
}

/// Answers whoever has the recovery key that the newest list names, without a session: with the account, which gets the
/// next list if one comes along. The challenge is used up either way.
#[utoipa::path(post, path = path::RECOVERY, tag = "directory", security(()), params(("account" = String, Path)),
    request_body = RecoveryRequest, responses((status = 200, body = Account), (status = "default", body = Problem)))]
pub(crate) async fn recover(
    State(node): State<Node>,
    _: Stranger,
    Named(account): Named<AccountId>,
    accept: Accept,
    Body(request): Body<RecoveryRequest>,
) -> Result<Response, Error> {
    let (asked, nonce) = (node.clone(), request.nonce);
    let known = node.db.write_for_stranger(move |tx| {
        Box::pin(async move {
            auth::use_up(tx, &asked, &nonce).await?;
            Ok::<_, Error>(accounts::by_id(tx, &account).await?)
        })
    });
    // A transaction of its own: no refusal brings the challenge back. And nobody locks a list by asking, so the proof comes
    // first, and again for the list that is there under the lock.
    let known = recovered(&node.relay_id, known.await?, &request)?;
    let account = match request.device_list.clone() {
        Some(list) => continue_list(&node, By::RecoveryKey(node.relay_id, request), &account, list).await?,
        None => known.into(),
    };
    Ok(accept.answer(&account))
}

/// The account, if its list names the recovery key that has signed. Refused in the same words whatever is not so: nobody
/// learns by asking which accounts there are, or have named one.
fn recovered(relay: &RelayId, known: Option<StoredAccount>, request: &RecoveryRequest) -> Result<StoredAccount, Error> {
    let refused =
        || Error::refused(ErrorCode::BadSignature, "it is not signed by the recovery key that the account has named");
    let known = known.ok_or_else(refused)?;
    // It was verified when it was stored.
    let list: DeviceList = Encoding::Cbor
        .decode(known.list.list.as_slice())
        .map_err(|_| Error::Failed("a stored device list cannot be decoded"))?;
    let named = list.recovery_key.ok_or_else(refused)?;
    if request.is_of(relay, &known.account, &named.key) { Ok(known) } else { Err(refused()) }
}

/// By whose word an account changes.
#[derive(Clone)]
enum By {
    /// Of a device in its list.
    Device(Caller),
    /// Of whoever has the recovery key that its list names, at this relay.
    RecoveryKey(RelayId, RecoveryRequest),
}

impl By {
    /// The account as it is, if the word holds for it. It comes after the locks that keep the account so.
    async fn holds_for(&self, tx: &mut Tx, account: &AccountId, now_ms: u64) -> Result<StoredAccount, Error> {
        match self {
            Self::Device(caller) => {
                caller.still_holds(tx, now_ms).await?;
                accounts::by_id(tx, account).await?.ok_or_else(Error::unauthenticated)
            }
            Self::RecoveryKey(relay, request) => recovered(relay, accounts::by_id(tx, account).await?, request),
        }
    }
}

/// Gives an account the next list.
async fn continue_list(node: &Node, by: By, account: &AccountId, signed: SignedDeviceList) -> Result<Account, Error> {
    let list = verified_list(node, account, &signed)?;
    unlist(node, by, move |tx, by, unlisting| {
        let (signed, list) = (signed.clone(), list.clone());
        Box::pin(async move { replace_list(tx, by, signed, &list, unlisting).await })
    })
    .await
}

async fn replace_list(
    tx: &mut Tx,
    by: By,
    signed: SignedDeviceList,
    list: &DeviceList,
    unlisting: Unlisting,
) -> Result<Account, Error> {
    let mut unlisted = devices_of_locked(tx, &list.account).await?;
    let was_there = !unlisted.is_empty();
    let listed = certificates(list)?;
    unlisted.retain(|device| !listed.iter().any(|certificate| certificate.device == *device));
    let staying = listed.iter().map(|certificate| certificate.device);
    let departure = groups::lock_for_departure(tx, &list.account, &unlisted, staying).await?;
    let known = by.holds_for(tx, &list.account, unlisting.now_ms).await?;
    if !was_there {
        // It was registered since, and its list is not locked.
        return Err(Error::Again);
    }
    if known.list == signed {
        return Ok(known.into());
    }
    let before = known.list.verify(&list.account).map_err(|_| Error::Failed("a stored device list does not verify"))?;
    if list.version != known.version + 1 || list.previous != Some(known.list.hash()) {
        return Err(stale_list());
    }
    list.continues(&before, &known.list.hash()).map_err(|error| bad_list(error.to_string()))?;
    if !accounts::replace_list(tx, &list.account, list.version, &signed).await? {
        return Err(stale_list());
    }
    remove_devices(tx, &unlisted, departure, unlisting).await?;
    put_devices(tx, list, &before.devices).await?;
    Ok(Account { account_id: list.account, username: known.username, device_list: signed })
}

/// The devices of an account, whose list is locked.
async fn devices_of_locked(tx: &mut Tx, account: &AccountId) -> Result<BTreeSet<DeviceId>, StoreError> {
    let locked = accounts::lock_lists(tx, &BTreeSet::from([*account])).await?;
    Ok(locked.into_values().flatten().collect())
}

/// Deletes the caller's account: its devices with all they have, its list and its username.
#[utoipa::path(delete, path = path::OWN_ACCOUNT, tag = "directory",
    responses((status = 204), (status = "default", body = Problem)))]
pub(crate) async fn delete_account(State(node): State<Node>, caller: Caller) -> Result<StatusCode, Error> {
    unlist(&node, By::Device(caller), move |tx, by, unlisting| {
        Box::pin(async move {
            let devices = devices_of_locked(tx, &caller.account).await?;
            let departure = groups::lock_for_departure(tx, &caller.account, &devices, std::iter::empty()).await?;
            by.holds_for(tx, &caller.account, unlisting.now_ms).await?;
            remove_devices(tx, &devices, departure, unlisting).await?;
            stored_groups::forget_account(tx, &caller.account).await?;
            Ok::<_, Error>(accounts::delete(tx, &caller.account).await?)
        })
    })
    .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// What unlisting devices needs to know beside the devices.
#[derive(Clone, Copy)]
struct Unlisting {
    now_ms: u64,
    expires_hour_ms: u64,
    room: Room,
}

/// Does work that may unlist devices. It begins again if a device was added to a group while it locked those it saw.
async fn unlist<T, W>(node: &Node, by: By, work: W) -> Result<T, Error>
where
    T: Send + 'static,
    W: for<'tx> Fn(&'tx mut Tx, By, Unlisting) -> BoxFuture<'tx, Result<T, Error>> + Clone + Send + 'static,
{
    let now_ms = node.now_ms();
    let expires_hour_ms = limits::kept_until_ms(&node.limits, now_ms, None);
    let unlisting = Unlisting { now_ms, expires_hour_ms, room: limits::room(&node.limits) };
    let mut done = Err(Error::Again);
    for _ in 0..UNLIST_ATTEMPTS {
        let (work, by) = (work.clone(), by.clone());
        done = match by {
            By::Device(_) => node.db.write(move |tx| work(tx, by, unlisting)).await,
            By::RecoveryKey(..) => node.db.write_for_stranger(move |tx| work(tx, by, unlisting)).await,
        };
        if !matches!(done, Err(Error::Again)) {
            break;
        }
    }
    done
}

/// Takes everything from devices that are no longer listed. Their streams find out at once.
async fn remove_devices(
    tx: &mut Tx,
    devices: &BTreeSet<DeviceId>,
    departure: groups::Departure,
    unlisting: Unlisting,
) -> Result<(), Error> {
    let Unlisting { now_ms, expires_hour_ms, room } = unlisting;
    let groups::Left { told, deserted } =
        groups::remove_devices(tx, devices, departure, now_ms, expires_hour_ms).await?;
    let receivers = told.iter().flat_map(|envelope| &envelope.receivers).map(|to| to.device);
    let mut cursors = queue::lock(tx, &receivers.chain(devices.iter().copied()).collect()).await?;
    queue::delete_all(tx, &mut cursors, devices).await?;
    queue::append(tx, cursors, &room, &told).await?;
    for group in &deserted {
        stored_groups::delete(tx, group).await?;
    }
    for device in devices {
        accounts::delete_device(tx, device).await?;
        tx.wake_after(*device);
    }
    Ok(())
}

/// Makes the devices those of a list, of which `before` were listed already.
async fn put_devices(tx: &mut Tx, list: &DeviceList, before: &[DeviceEntry]) -> Result<(), Error> {
    for (certificate, entry) in certificates(list)?.into_iter().zip(&list.devices) {
        let device = StoredDevice {
            account: list.account,
            device_key: device_key(entry)?,
            certificate_hash: mls::certificate_hash(&entry.certificate),
        };
        if !accounts::put_device(tx, &certificate.device, &device).await? {
            return Err(bad_list("a device in the list belongs to another account"));
        }
        if let Some(before) = before.iter().find(|one| one.is_of(certificate.device)) {
            take_back(tx, &certificate.device, before, entry).await?;
        }
    }
    Ok(())
}

/// Takes from a listed device what hangs on what was replaced: key packages on its certificate, prekeys and the sealing key on
/// its key set, sessions on its device key.
async fn take_back(tx: &mut Tx, id: &DeviceId, before: &DeviceEntry, now: &DeviceEntry) -> Result<(), Error> {
    if before.certificate != now.certificate {
        accounts::delete_key_packages(tx, id).await?;
    }
    if before.key_set != now.key_set {
        accounts::delete_keys(tx, id).await?;
    }
    if device_key(before)? != device_key(now)? {
        accounts::end_sessions(tx, id).await?;
        tx.wake_after(*id);
    }
    Ok(())
}

/// The list, if it holds by itself and is within the limits.
fn verified_list(node: &Node, account: &AccountId, signed: &SignedDeviceList) -> Result<DeviceList, Error> {
    let allowed = &node.limits;
    limits::bytes("device_list_bytes_max", allowed.device_list_bytes_max, signed.list.len())?;
    // Counted first: each device and rotation costs signatures to be verified.
    let claimed: DeviceList =
        Encoding::Cbor.decode(signed.list.as_slice()).map_err(|_| bad_list(DeviceListError::Malformed.to_string()))?;
    limits::count("account_devices_max", allowed.account_devices_max, claimed.devices.len() as u64)?;
    limits::count("rotations_max", allowed.rotations_max, claimed.generation())?;
    signed.verify(account).map_err(|error| match error {
        DeviceListError::BadSignature => Error::refused(ErrorCode::BadSignature, error.to_string()),
        error => bad_list(error.to_string()),
    })
}

fn certificates(list: &DeviceList) -> Result<Vec<Certificate>, Error> {
    list.certificates().collect::<Result<_, _>>().map_err(|error| bad_list(error.to_string()))
}

fn device_key(entry: &DeviceEntry) -> Result<PublicKey, Error> {
    Ok(entry.key_set().map_err(|error| bad_list(error.to_string()))?.device_key)
}

fn bad_list(rule: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::refused(ErrorCode::BadDeviceList, rule)
}

fn stale_list() -> Error {
    Error::refused(ErrorCode::StaleDeviceList, "fetch the account, and sign a list that continues the newest")
}
