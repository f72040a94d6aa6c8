//! Looking at the device lists of those in our groups, whenever one of them is new, is said to be gone, or names a later
//! list than the one seen.
//!
//! What a member's leaf says holds by itself; this finds what its account says since. A leaf that the list does not name
//! never keeps a commit from being applied: the app is told, and a commit removes it.
//!
//! Invariant: what is still to be looked at stands in the store, until an answer has settled it.

use std::sync::Arc;

use undertone_wire::{AccountId, DeviceId};

use super::{Engine, backoff::Backoff, inbox};
use crate::{
    Error,
    event::{Connection, StoredEvent},
    store::Tx,
};

/// What the relay said of an account.
enum Said {
    /// Its devices.
    Listed(Vec<DeviceId>),
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
    loop {
        changed.mark_unchanged();
        let online = *connection.borrow_and_update() == Connection::Online;
        let failed = online
            && tokio::select! {
                looked = look_at_all(&engine) => looked.is_err(),
                () = engine.stopped() => return,
            };
        if !failed {
            backoff.reset();
        }
        tokio::select! {
            Ok(()) = connection.changed() => {}
            Ok(()) = changed.changed(), if !failed => {}
            () = engine.clock.pass(backoff.wait()), if failed => {}
            () = engine.stopped() => return,
        }
    }
}

async fn look_at_all(engine: &Engine) -> Result<(), Error> {
    let own = engine.identity.account();
    while let Some((account, looks)) = engine.store.with_tx(move |tx| tx.next_look(own).map_err(Error::from)).await? {
        let said = match engine.learn(account).await {
            Ok((_, list)) => Said::Listed(list.certificates().flatten().map(|one| one.device).collect()),
            Err(Error::UnknownAccount) => Said::Gone,
            Err(Error::Untrusted(_)) => Said::Contradicts,
            Err(error) => return Err(error),
        };
        let (identity, entropy, now_ms) = (engine.identity.clone(), engine.entropy, engine.clock.now_ms());
        engine
            .store
            .with_tx(move |tx| {
                tx.looked_at(account, looks)?;
                settle(tx, &inbox::Context { identity: &identity, entropy, now_ms, looked_up: false }, account, &said)
            })
            .await?;
    }
    Ok(())
}

fn settle(tx: &Tx<'_>, context: &inbox::Context<'_>, account: AccountId, said: &Said) -> Result<(), Error> {
    let listed: &[DeviceId] = match said {
        Said::Contradicts => return Ok(tx.add_event(&StoredEvent::StaleList { account })?),
        Said::Gone => &[],
        Said::Listed(listed) => listed,
    };
    if tx.list_is_behind(account)? {
        return Ok(tx.add_event(&StoredEvent::StaleList { account })?);
    }
    for group_id in tx.groups_with(account)? {
        let members = tx.members(group_id)?.into_iter();
        let unlisted: Vec<_> = members.filter(|one| one.account == account && !listed.contains(&one.device)).collect();
        if unlisted.is_empty() {
            continue;
        }
        if matches!(said, Said::Listed(_)) {
            tx.add_event(&StoredEvent::Unlisted { group_id, account })?;
        }
        inbox::plan_tidying(tx, context, group_id, &unlisted)?;
    }
    Ok(())
}
