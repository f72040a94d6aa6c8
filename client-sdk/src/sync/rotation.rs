//! Following the account's identity key: when it has changed, this device has another certificate, which its leaves and key
//! packages are to carry, and the account's devices tell each other the new key.
//!
//! Invariant: what is followed is the newest verified list in the store, and an identity key is taken only if that list is
//! signed with it.

use undertone_wire::{DeviceList, Encoding, MessageId};

use super::inbox::Context;
use crate::{
    Error,
    crypto::identity::Seed,
    message::{Body, Content},
    store::{StoreError, Task, Tx},
};

/// Becomes what the account's newest list says this device is. `false` if it is that already.
pub(crate) fn follow(tx: &Tx<'_>, message_id: MessageId, now_ms: u64) -> Result<bool, Error> {
    let Some(profile) = tx.profile()? else { return Ok(false) };
    let account = profile.identity.account();
    let Some(signed) = tx.device_list(account)? else { return Ok(false) };
    // It was verified before it was stored.
    let list: DeviceList =
        Encoding::Cbor.decode(signed.list.as_slice()).map_err(|error| StoreError::Corrupt(error.to_string()))?;
    let Some(now) = profile.identity.following(&list) else { return Ok(false) };
    if now.has_identity_key_of(&list) && !profile.identity.has_identity_key_of(&list) && list.devices.len() > 1 {
        // Each who learns it tells all others, once: whoever has made it may be gone.
        let body = Body::IdentityKey { seed: now.seed().to_bytes() };
        let content = Content { id: message_id, sent_at_ms: now_ms, list_version: list.version, body }.encode();
        tx.add_conversation(account.into())?;
        tx.add_task(account, &Task::Send { content }, None, now_ms)?;
    }
    for group in tx.groups_with(account)? {
        if !tx.is_planned(group, &Task::Update)? {
            tx.add_task(group, &Task::Update, None, now_ms)?;
        }
    }
    let mut profile = profile;
    profile.identity = now;
    tx.save_profile(&profile)?;
    Ok(true)
}

/// Another device of this account says that this is the account's identity key, now or once its list has come.
pub(super) fn take(tx: &Tx<'_>, context: &Context<'_>, message_id: MessageId, seed: &[u8]) -> Result<bool, StoreError> {
    let (Ok(seed), Some(mut profile)) = (seed.try_into(), tx.profile()?) else { return Ok(false) };
    profile.identity = profile.identity.expecting(Seed::from_bytes(seed));
    tx.save_profile(&profile)?;
    follow(tx, message_id, context.now_ms).map_err(|error| StoreError::Corrupt(error.to_string()))?;
    Ok(true)
}
