//! The side of a device that is listed: it hands over what the new one needs, and lists it.

use undertone_api::RelayApi as _;
use undertone_wire::{
    Account, DeviceEntry, DeviceId, Encoding, ErrorCode, PipePart, SignedDeviceList, UpdateDeviceListRequest,
};
use zeroize::Zeroizing;

use super::{Device, NotLinked, checked_name, ends_ms, heard, say};
use crate::{
    Error,
    crypto::{
        Identity,
        link::{Handover, LinkCode, Part, Reply, Verdict},
        recovery_key::RecoverySecret,
        xwing::SealingSecret,
    },
    store::Tx,
    sync::Engine,
};

/// What is handed over, in bytes: with what sealing adds it fits an answer in a pipe. Accounts that do not fit any more are
/// pinned anew when they are seen.
const HANDOVER_BYTES_MAX: usize = 500 * 1024;

/// How often a list is signed anew since another device was faster.
const ATTEMPTS_MAX: u32 = 8;

/// Approves the code that a new device shows.
pub(crate) async fn approve(engine: &Engine, code: &LinkCode) -> Result<Device, Error> {
    let (pipe, ends_ms, clock) = (code.pipe(), ends_ms(&*engine.clock), &*engine.clock);
    let own = engine.identity().account();
    let (_, newest) = engine.learn(own).await?;
    if !engine.identity().has_identity_key_of(&newest) {
        return Err(Error::Invalid(
            "this device has not got the account's new identity key yet: try again, or with another device".into(),
        ));
    }
    let asked = engine.signed_in(|_| async move { engine.api.pipe_request(pipe, 0).await }).await;
    let key = match asked {
        Ok(part) => part.content,
        Err(error) if error.code() == Some(&ErrorCode::NotFound) => return Err(NotLinked::Over.into()),
        Err(error) => return Err(error.into()),
    };
    if !code.is_of(&key) {
        // It is told in this way; the key may be somebody else's.
        let nothing = LinkCode::no_answer(engine.entropy)?;
        answer(engine, code, ends_ms, 0, nothing).await?;
        return Err(NotLinked::Changed.into());
    }
    let reply_secret = SealingSecret::new(engine.entropy)?;
    let (identity, reply_key, relay_id) = (engine.identity(), reply_secret.public()?, engine.api.relay_id());
    let handover = engine.store.with_tx(move |tx| handover(tx, &identity, reply_key, relay_id));
    let sealed = code.seal(engine.entropy, &key, Part::Handover, &handover.await?)?;
    answer(engine, code, ends_ms, 0, sealed).await?;
    let look = || engine.signed_in(move |_| async move { engine.api.pipe_request(pipe, 1).await });
    let sealed = heard(clock, ends_ms, look).await?.ok_or(NotLinked::Over)?;
    let reply = code.open(&reply_secret, Part::Reply, &sealed).map_err(|_| Error::from(NotLinked::Changed))?;
    let Reply::Joins { entry, name } = reply else { return Err(NotLinked::Declined.into()) };
    let listed = list(engine, entry, &name).await;
    let verdict = match &listed {
        Ok((device_list, _)) => Verdict::Listed { device_list: device_list.clone() },
        Err(error) => Verdict::Refused { why: error.to_string() },
    };
    let sealed = code.seal(engine.entropy, &key, Part::Verdict, &verdict)?;
    let told = answer(engine, code, ends_ms, 1, sealed).await;
    let (_, device) = listed?;
    // It is listed, and finds that out by itself.
    if let Err(error) = told {
        tracing::debug!(%error, "the new device was not told that it is listed");
    }
    Ok(device)
}

async fn answer(
    engine: &Engine,
    code: &LinkCode,
    ends_ms: u64,
    number: u64,
    content: undertone_wire::Bytes,
) -> Result<(), Error> {
    let (pipe, part) = (code.pipe(), &PipePart { content });
    let put =
        || engine.signed_in(move |token| async move { engine.api.put_pipe_answer(&token, pipe, number, part).await });
    say(&*engine.clock, ends_ms, put).await
}

fn handover(
    tx: &Tx<'_>,
    identity: &Identity,
    reply_key: undertone_wire::Bytes,
    relay_id: undertone_wire::RelayId,
) -> Result<Handover, Error> {
    let own = identity.account();
    let Account { username, device_list, .. } = tx.account(own)?.ok_or(Error::UnknownAccount)?;
    let mut handover = Handover {
        reply_key,
        relay_id,
        username,
        identity_seed: identity.seed(),
        device_list,
        names: tx.device_names()?,
        contacts: vec![],
        standings: tx.standings()?,
        groups: tx.handed_groups()?,
        directs: tx.directs()?.into_iter().filter(|(_, requested)| !requested).map(|(account, _)| account).collect(),
    };
    let mut bytes = Zeroizing::new(Encoding::Cbor.encode(&handover)).len();
    let others = tx.accounts()?.into_iter().filter(|one| one.account_id != own);
    handover.contacts = others
        .take_while(|one| {
            bytes += Encoding::Cbor.encode(one).len();
            bytes <= HANDOVER_BYTES_MAX
        })
        .collect();
    Ok(handover)
}

/// Lists a new device.
async fn list(engine: &Engine, entry: DeviceEntry, name: &str) -> Result<(SignedDeviceList, Device), Error> {
    let certificate = entry.certificate.unverified()?;
    let (device_id, name) = (certificate.device, checked_name(name)?);
    let is_named = |one: &DeviceEntry| one.certificate.unverified().is_ok_and(|one| one.device == device_id);
    let change = |devices: &mut Vec<DeviceEntry>| {
        devices.retain(|one| !is_named(one));
        devices.push(entry.clone());
    };
    let list = update(engine, change).await?;
    let named = name.clone();
    engine.store.with_tx(move |tx| tx.name_device(device_id, &named).map_err(Error::from)).await?;
    Ok((list, Device { device_id, name, this: false }))
}

/// Takes a device off the account's list.
///
/// # Errors
/// [`Error::Invalid`] if it is this device, or is not listed.
pub(crate) async fn remove(engine: &Engine, device: DeviceId) -> Result<(), Error> {
    if device == engine.identity().device() {
        return Err(Error::Invalid("a device does not remove itself: let another one do that".into()));
    }
    let is_named = |one: &DeviceEntry| one.certificate.unverified().is_ok_and(|one| one.device == device);
    let (_, list) = engine.learn(engine.identity().account()).await?;
    if !list.devices.iter().any(is_named) {
        return Err(Error::Invalid("this account has no such device".into()));
    }
    update(engine, |devices| devices.retain(|one| !is_named(one))).await.map(drop)
}

/// Takes a device off the list that was stolen, and goes on with another identity key.
///
/// # Errors
/// As for [`remove`]; [`Error::Untrusted`] if the account has named a recovery key, and this is not it.
pub(crate) async fn remove_stolen(
    engine: &Engine,
    device: DeviceId,
    recovery: Option<&RecoverySecret>,
) -> Result<(), Error> {
    if device == engine.identity().device() {
        return Err(Error::Invalid("a device does not remove itself: let another one do that".into()));
    }
    let is_named = |one: &DeviceEntry| one.certificate.unverified().is_ok_and(|one| one.device == device);
    let (_, list) = engine.learn(engine.identity().account()).await?;
    if !list.devices.iter().any(is_named) {
        return Err(Error::Invalid("this account has no such device".into()));
    }
    let generation = list.generation();
    // The key is in the store before the relay hears of it.
    let entropy = engine.entropy;
    let prepared = engine.store.with_tx(move |tx| {
        let mut profile = tx.profile()?.ok_or(Error::NotRegistered)?;
        profile.identity = profile.identity.prepare_next(entropy)?;
        Ok::<_, Error>(tx.save_profile(&profile)?)
    });
    prepared.await?;
    engine.reload_identity().await?;
    let next = |newest: &SignedDeviceList| {
        let list = newest.verify(&engine.identity().account())?;
        if list.generation() > generation && !list.devices.iter().any(is_named) {
            return Ok(None);
        }
        let change = |devices: &mut Vec<DeviceEntry>| devices.retain(|one| !is_named(one));
        Ok(Some(engine.identity().list_of_next_key(newest, recovery, change)?))
    };
    post(engine, next).await.map(drop)
}

/// Names the recovery key of the account, which has none yet. The same once more changes nothing.
pub(crate) async fn set_recovery_key(engine: &Engine, recovery: &RecoverySecret) -> Result<(), Error> {
    if recovery.account != engine.identity().account() {
        return Err(Error::Invalid("this is the recovery key of another account".into()));
    }
    let next = |newest: &SignedDeviceList| match newest.verify(&engine.identity().account())?.recovery_key {
        Some(named) if named.key == recovery.key() => Ok(None),
        Some(_) => Err(Error::Invalid("this account has another recovery key already".into())),
        None => Ok(Some(engine.identity().list_with_recovery_key(newest, recovery)?)),
    };
    post(engine, next).await.map(drop)
}

/// Changes the account's devices by the next list, which the relay has taken when this returns.
async fn update(engine: &Engine, change: impl Fn(&mut Vec<DeviceEntry>)) -> Result<SignedDeviceList, Error> {
    post(engine, |newest| {
        // An answer may have been lost: it is as it should be already.
        let before = newest.verify(&engine.identity().account())?.devices;
        let mut devices = before.clone();
        change(&mut devices);
        if devices.len() == before.len() && before.iter().all(|one| devices.contains(one)) {
            return Ok(None);
        }
        Ok(Some(engine.identity().next_list(newest, &change)?))
    })
    .await
}

/// Posts the list that follows the newest one, until the relay has taken it or nothing is to be changed any more.
async fn post(
    engine: &Engine,
    next: impl Fn(&SignedDeviceList) -> Result<Option<SignedDeviceList>, Error>,
) -> Result<SignedDeviceList, Error> {
    let own = engine.identity().account();
    let mut attempts = 0;
    loop {
        if let Err(error) = engine.learn(own).await {
            attempts += 1;
            if attempts >= ATTEMPTS_MAX || !matches!(error, Error::Offline(_)) {
                return Err(error);
            }
            engine.clock.pass(super::LOOK_EVERY).await;
            continue;
        }
        let newest = engine.store.with_tx(move |tx| tx.device_list(own).map_err(Error::from)).await?;
        let newest = newest.ok_or(Error::UnknownAccount)?;
        let Some(device_list) = next(&newest)? else { return Ok(newest) };
        let request = &UpdateDeviceListRequest { device_list };
        let answer = engine.signed_in(|token| async move { engine.api.update_devices(&token, request).await }).await;
        attempts += 1;
        match answer {
            Ok(account) => {
                engine.remember(own, account).await?;
                return Ok(request.device_list.clone());
            }
            // Another device has changed it meanwhile, or the answer was lost: look again.
            Err(error)
                if attempts < ATTEMPTS_MAX
                    && (error.code() == Some(&ErrorCode::StaleDeviceList) || !error.is_a_no()) =>
            {
                tracing::debug!(%error, "the device list is signed anew");
                engine.clock.pass(super::LOOK_EVERY).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}
