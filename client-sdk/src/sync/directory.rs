//! Looking at the device lists of those in our groups, whenever one of them is new, is said to be gone, or names a later
//! list than the one seen; and at that of this account, with each connection. Its other devices belong in its groups: who
//! does not come by itself is added.
//!
//! What a member's leaf says holds by itself; this finds what its account says since. A leaf that the list does not name
//! never keeps a commit from being applied: the app is told, and a commit removes it.
//!
//! Invariant: what is still to be looked at stands in the store, until an answer has settled it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use undertone_wire::{AccountId, DeviceId, DeviceList, PublicKey};

use super::{Engine, backoff::Backoff, inbox, rotation};
use crate::{
    Error,
    event::{Connection, StoredEvent},
    store::{StoreError, Task, Tx},
};

/// So much time a device of this account has to join its groups by itself.
const JOINS_ITSELF_MS: u64 = 60_000;

/// Those that cannot be added, as they have no key packages, are tried again after this time: the others' are used up by it.
const GATHER_AGAIN_MS: u64 = 24 * 60 * 60 * 1_000;

/// What the relay said of an account.
enum Said {
    /// Its devices, each with its MLS key.
    Listed(BTreeMap<DeviceId, PublicKey>),
    /// There is no such account.
    Gone,
    /// Something that cannot be.
    Contradicts,
}

/// Looks until the engine stops.
pub(super) async fn run(engine: Arc<Engine>) {
    let mut changed = engine.store.work_changed();
    let mut connection = engine.connection();
    let mut backoff = Backoff::new(engine.entropy);
    let mut own = Own { connected: true, gathered_ms: None };
    loop {
        changed.mark_unchanged();
        let online = *connection.borrow_and_update() == Connection::Online;
        let failed = online
            && tokio::select! {
                looked = look_at_all(&engine, &mut own) => looked.is_err(),
                () = engine.stopped() => return,
            };
        if !failed {
            backoff.reset();
        }
        tokio::select! {
            Ok(()) = connection.changed() => own.connected = true,
            Ok(()) = changed.changed(), if !failed => {}
            () = engine.clock.pass(backoff.wait()), if failed => {}
            () = engine.stopped() => return,
        }
    }
}

/// What is to be done about this account.
struct Own {
    /// The connection is new.
    connected: bool,
    /// When those of its devices that are missing in groups were last to be added, and by which version of its list.
    gathered_ms: Option<(u64, u64)>,
}

/// Looks at all who are to be looked at; at this account too if the connection is new.
async fn look_at_all(engine: &Engine, about_own: &mut Own) -> Result<(), Error> {
    let own = engine.identity().account();
    if about_own.connected {
        engine.store.with_tx(move |tx| tx.look_at_account(own).map_err(Error::from)).await?;
        about_own.connected = false;
    }
    while let Some((account, looks)) = engine.store.with_tx(move |tx| tx.next_look(own).map_err(Error::from)).await? {
        let said = look(engine, account).await?;
        let (identity, entropy, now_ms) = (engine.identity(), engine.entropy, engine.clock.now_ms());
        let (message_id, gathered_ms) = (engine.message_id()?, about_own.gathered_ms);
        let gathered = engine
            .store
            .with_tx(move |tx| {
                tx.looked_at(account, looks)?;
                let context = &inbox::Context { identity: &identity, entropy, now_ms, looked_up: false };
                settle(tx, context, account, &said)?;
                if account != own {
                    return Ok::<_, Error>(gathered_ms);
                }
                rotation::ask(tx, &identity, message_id, now_ms)?;
                let version = tx.list_version(own)?;
                let recently = |(of, at_ms): (u64, u64)| of == version && now_ms.abs_diff(at_ms) < GATHER_AGAIN_MS;
                if gathered_ms.is_some_and(recently) {
                    return Ok(gathered_ms);
                }
                gather_own(tx, context)?;
                Ok(Some((version, now_ms)))
            })
            .await?;
        about_own.gathered_ms = gathered;
    }
    Ok(())
}

/// Asks the relay for an account's devices.
async fn look(engine: &Engine, account: AccountId) -> Result<Said, Error> {
    match engine.learn(account).await {
        Ok((_, list)) => Ok(Said::Listed(list.certificates().flatten().map(|one| (one.device, one.mls_key)).collect())),
        Err(Error::UnknownAccount) => Ok(Said::Gone),
        Err(Error::Untrusted(_)) => Ok(Said::Contradicts),
        Err(error) => Err(error),
    }
}

/// This account's other devices belong in its groups. Who is not there after a while is added.
fn gather_own(tx: &Tx<'_>, context: &inbox::Context<'_>) -> Result<(), StoreError> {
    let account = context.identity.account();
    let Some(listed) = tx.listed(account)? else { return Ok(()) };
    for group in tx.groups_with(account)? {
        let members = tx.members(group)?;
        let missing = listed.devices.iter().any(|one| !members.contains(&one.member));
        let planned = tx.tasks(group)?.iter().any(|row| row.task == Task::Add { account });
        if missing && !planned && tx.requested_by(group)?.is_none() {
            tx.add_task(group, &Task::Add { account }, None, context.now_ms.saturating_add(JOINS_ITSELF_MS))?;
        }
    }
    Ok(())
}

/// Tells the app which devices this account has that it did not have before, and the other way round; and that it has a
/// recovery key now.
pub(super) fn tell_own(tx: &Tx<'_>, before: &DeviceList, now: &DeviceList) -> Result<(), StoreError> {
    let devices = |list: &DeviceList| -> BTreeSet<_> { list.certificates().flatten().map(|one| one.device).collect() };
    let (had, has) = (devices(before), devices(now));
    if had != has {
        let (added, removed) = (has.difference(&had), had.difference(&has));
        tx.add_event(&StoredEvent::Devices { added: added.copied().collect(), removed: removed.copied().collect() })?;
    }
    if before.recovery_key.is_none() && now.recovery_key.is_some() {
        tx.add_event(&StoredEvent::RecoveryKey)?;
    }
    Ok(())
}

fn settle(tx: &Tx<'_>, context: &inbox::Context<'_>, account: AccountId, said: &Said) -> Result<(), Error> {
    let nobody = BTreeMap::new();
    let listed = match said {
        Said::Contradicts => return Ok(tx.add_event(&StoredEvent::StaleList { account })?),
        Said::Gone => &nobody,
        Said::Listed(listed) => listed,
    };
    if tx.list_is_behind(account)? {
        return Ok(tx.add_event(&StoredEvent::StaleList { account })?);
    }
    // One that is no longer listed itself has no say in groups.
    if account == context.identity.account() && !listed.contains_key(&context.identity.device()) {
        return Ok(());
    }
    for group_id in tx.groups_with(account)? {
        let (mut unlisted, mut never_listed) = (vec![], false);
        for (leaf, key) in tx.leaves(group_id, account)? {
            let named = listed.get(&leaf.device);
            // One that has a listed device's name and another key is not that device.
            let impostor = named.zip(key).is_some_and(|(listed, key)| *listed != key);
            if named.is_none() || impostor {
                unlisted.push(leaf);
                // Who was listed once has been removed by the account.
                never_listed |= impostor || !tx.was_listed(leaf)?;
            }
        }
        if unlisted.is_empty() {
            continue;
        }
        if never_listed && matches!(said, Said::Listed(_)) {
            tx.add_event(&StoredEvent::Unlisted { group_id, account })?;
        }
        inbox::plan_tidying(tx, context, group_id, &unlisted)?;
    }
    Ok(())
}
