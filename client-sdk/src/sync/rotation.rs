//! Following the account's identity key: when it has changed, this device has another certificate, which its leaves and key
//! packages are to carry; who has made the new key tells it to the account's devices, and who lacks it asks them.
//!
//! Invariant: what is followed is the newest verified list in the store, and an identity key is taken only if that list is
//! signed with it.

use undertone_wire::{Bytes, DeviceList, MessageId};

use super::inbox::Context;
use crate::{
    Error,
    crypto::{Identity, identity::Seed},
    message::{Body, Content},
    store::{StoreError, Task, Tx},
};

/// Becomes what the account's newest list says this device is. `false` if it is that already.
pub(crate) fn follow(tx: &Tx<'_>, message_id: MessageId, now_ms: u64) -> Result<bool, Error> {
    let Some(mut profile) = tx.profile()? else { return Ok(false) };
    let account = profile.identity.account();
    let Some(list) = tx.verified_list(account)? else { return Ok(false) };
    let Some(now) = profile.identity.following(&list) else { return Ok(false) };
    let gained = now.has_identity_key_of(&list) && !profile.identity.has_identity_key_of(&list);
    if gained && now.has_taken_what_was_made_by(&profile.identity) {
        tell(tx, &now, &list, message_id, now_ms)?;
    }
    if now.has_other_credential_than(&profile.identity) {
        for group in tx.groups_with(account)? {
            if !tx.is_planned(group, &Task::Update)? {
                tx.add_task(group, &Task::Update, None, now_ms)?;
            }
        }
    }
    profile.identity = now;
    tx.save_profile(&profile)?;
    Ok(true)
}

/// Asks the account's other devices for its identity key, if this one lacks it.
pub(super) fn ask(tx: &Tx<'_>, identity: &Identity, message_id: MessageId, now_ms: u64) -> Result<(), StoreError> {
    match tx.verified_list(identity.account())? {
        Some(list) if !identity.has_identity_key_of(&list) => {
            say(tx, identity, &list, Body::IdentityKeyWanted {}, message_id, now_ms)
        }
        _ => Ok(()),
    }
}

/// Another device of this account asks for the identity key.
pub(super) fn answer(tx: &Tx<'_>, context: &Context<'_>, message_id: MessageId) -> Result<(), StoreError> {
    match tx.verified_list(context.identity.account())? {
        Some(list) if context.identity.has_identity_key_of(&list) => {
            tell(tx, context.identity, &list, message_id, context.now_ms)
        }
        _ => Ok(()),
    }
}

/// Another device of this account says that this is the account's identity key, now or once its list has come.
pub(super) fn take(
    tx: &Tx<'_>,
    context: &Context<'_>,
    message_id: MessageId,
    seed: &Bytes,
) -> Result<bool, StoreError> {
    let (Ok(seed), Some(mut profile)) = (seed.as_slice().try_into(), tx.profile()?) else { return Ok(false) };
    profile.identity = profile.identity.expecting(Seed::from_bytes(seed));
    tx.save_profile(&profile)?;
    follow(tx, message_id, context.now_ms).map_err(|error| StoreError::Corrupt(error.to_string()))?;
    Ok(true)
}

fn tell(
    tx: &Tx<'_>,
    identity: &Identity,
    list: &DeviceList,
    message_id: MessageId,
    now_ms: u64,
) -> Result<(), StoreError> {
    say(tx, identity, list, Body::IdentityKey { seed: identity.seed().to_bytes() }, message_id, now_ms)
}

/// Plans to say something to the account's other devices.
fn say(
    tx: &Tx<'_>,
    identity: &Identity,
    list: &DeviceList,
    body: Body,
    message_id: MessageId,
    now_ms: u64,
) -> Result<(), StoreError> {
    let account = identity.account();
    // The same that waits still is heard by all who are listed when it goes.
    let waits = |task: &Task| match task {
        Task::Send { content } => Content::decode(content.as_slice()).is_some_and(|content| content.body == body),
        _ => false,
    };
    if list.devices.len() < 2 || tx.tasks(account)?.iter().any(|row| waits(&row.task)) {
        return Ok(());
    }
    let content = Content { id: message_id, sent_at_ms: now_ms, list_version: list.version, body }.encode();
    tx.add_conversation(account.into())?;
    tx.add_task(account, &Task::Send { content }, None, now_ms).map(drop)
}
