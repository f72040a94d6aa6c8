//! Changing the account's device list: each by the list that follows the newest, until the relay has taken one.
//!
//! Invariant: an identity key is in the store before the relay hears of it.

use undertone_api::RelayApi as _;
use undertone_wire::{DeviceEntry, DeviceId, DeviceList, ErrorCode, SignedDeviceList, UpdateDeviceListRequest};

use crate::{Error, crypto::recovery_key::RecoverySecret, sync::Engine};

/// How often a list is signed anew since another device was faster.
const ATTEMPTS_MAX: u32 = 8;

/// Takes a device off the account's list.
///
/// # Errors
/// [`Error::Invalid`] if it is this device, or is not listed.
pub(crate) async fn remove(engine: &Engine, device: DeviceId) -> Result<(), Error> {
    listed_with(engine, device).await?;
    update(engine, |devices| devices.retain(|one| !one.is_of(device))).await.map(drop)
}

/// The account's list, with a device in it that can be taken off.
async fn listed_with(engine: &Engine, device: DeviceId) -> Result<DeviceList, Error> {
    if device == engine.identity().device() {
        return Err(Error::Invalid("a device does not remove itself: let another one do that".into()));
    }
    let (_, list) = engine.learn(engine.identity().account()).await?;
    match list.devices.iter().any(|one| one.is_of(device)) {
        true => Ok(list),
        false => Err(Error::Invalid("this account has no such device".into())),
    }
}

/// Takes a device off the list that was stolen, and goes on with another identity key.
///
/// # Errors
/// As for [`remove`]; [`Error::Untrusted`] if the account has named a recovery key, and this is not it, or if there are devices
/// that are not among those that are to stay.
pub(crate) async fn remove_stolen(
    engine: &Engine,
    device: DeviceId,
    keeping: &[DeviceId],
    recovery: Option<&RecoverySecret>,
) -> Result<(), Error> {
    let generation = listed_with(engine, device).await?.generation();
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
        if list.generation() > generation && !list.devices.iter().any(|one| one.is_of(device)) {
            return Ok(None);
        }
        let own = engine.identity().device();
        let stays = |one: &DeviceEntry| keeping.iter().chain([&device, &own]).any(|known| one.is_of(*known));
        if !list.devices.iter().all(stays) {
            let reason = "the account has a device that is not among those that are to stay: look at them again";
            return Err(Error::Untrusted(reason.into()));
        }
        let change = |devices: &mut Vec<DeviceEntry>| devices.retain(|one| !one.is_of(device));
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
pub(super) async fn update(engine: &Engine, change: impl Fn(&mut Vec<DeviceEntry>)) -> Result<SignedDeviceList, Error> {
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
