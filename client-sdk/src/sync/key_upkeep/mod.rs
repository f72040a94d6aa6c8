//! Keeping keys at the relay, so that others can add this device to groups ([`key_packages`]) and write to it ([`prekeys`])
//! while it is away.
//!
//! A private half is forgotten when nobody can use its public one any more, so that the store does not grow.
//!
//! Invariant: the private half of a key is on disk before the relay has the public one, and a batch is posted under one
//! message id until the relay has said yes.

mod key_packages;
mod prekeys;

use std::{sync::Arc, time::Duration};

use undertone_api::{ApiError, RelayApi as _};
use undertone_wire::{Incarnation, KeyCounts, ReconcileRequest};

use super::{Engine, backoff::Backoff, session};
use crate::{Error, event::Connection, store::Publication};

/// Tops up whenever the connection is new, a key was used, the relay says that few are left, or some are to be replaced,
/// until the engine stops.
pub(super) async fn run(engine: Arc<Engine>) {
    let mut connection = engine.connection();
    let mut wanted = engine.keys_wanted.subscribe();
    let mut backoff = Backoff::new(engine.entropy);
    loop {
        let online = *connection.borrow_and_update() == Connection::Online;
        let again_in = async { if online { engine.publish_keys().await.map(Some) } else { Ok(None) } };
        let published = tokio::select! {
            published = again_in => published,
            () = engine.stopped() => return,
        };
        let pause = match published {
            Ok(again_in) => {
                backoff.reset();
                again_in
            }
            Err(error) => {
                tracing::debug!(%error, "keys could not be published");
                Some(backoff.wait())
            }
        };
        tokio::select! {
            Ok(()) = connection.changed() => {}
            Ok(()) = wanted.changed() => engine.key_upkeep.lock().await.doubt(),
            () = engine.clock.pass(pause.unwrap_or_default()), if pause.is_some() => {}
            () = engine.stopped() => return,
        }
    }
}

/// Publishes what is missing at the relay, and what is to be replaced. Answers with the time until something else is.
pub(super) async fn top_up(engine: &Engine, kept: &mut Kept) -> Result<Duration, Error> {
    key_packages::forget_expired(engine, kept).await?;
    prekeys::forget_expired(engine).await?;
    publish_pending(engine).await?;
    let counts = counts(engine, kept).await?;
    let key_packages_in = key_packages::make_missing(engine, &counts).await?;
    let prekeys_in = prekeys::make_missing(engine, &counts).await?;
    publish_pending(engine).await?;
    Ok(key_packages_in.map_or(prekeys_in, |wait| wait.min(prekeys_in)))
}

/// What is known since the engine began.
#[derive(Default)]
pub(super) struct Kept {
    /// Of the private halves of key packages in the store. Those that are made later live longer.
    all_live_until_ms: Option<u64>,
    /// In which incarnation of the relay's store it and this device have agreed on what it has, if they have.
    agreed: Option<Incarnation>,
}

impl Kept {
    /// What the relay has is to be looked through anew.
    pub(super) fn doubt(&mut self) {
        self.agreed = None;
    }
}

/// How many one-time keys are to be made of a kind of which a device has `full` after topping up. It tops up when no more than
/// half of them are left.
fn missing(one_time: u64, full: u64) -> u64 {
    if one_time <= full / 2 { full.saturating_sub(one_time) } else { 0 }
}

/// What the relay can hand out. At first, and whenever there is a reason, it forgets all whose private halves are not
/// here.
async fn counts(engine: &Engine, kept: &mut Kept) -> Result<KeyCounts, Error> {
    let incarnation = *engine.incarnation.borrow();
    if incarnation.is_some() && kept.agreed != incarnation {
        match agree(engine).await {
            Ok(counts) => {
                kept.agreed = incarnation;
                return Ok(counts);
            }
            // There may be more than it takes at once.
            Err(Error::Refused(error)) if session::is_final(&error) => {
                tracing::warn!(%error, "which keys are here could not be told");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(engine.signed_in(|token| async move { engine.api.key_counts(&token).await }).await?)
}

async fn agree(engine: &Engine) -> Result<KeyCounts, Error> {
    let refs = engine.store.with_tx(|tx| Ok::<_, Error>([tx.key_package_refs()?, tx.prekey_refs()?].concat()));
    let request = &ReconcileRequest { hash_refs: refs.await? };
    let agreed = engine.signed_in(|token| async move { engine.api.reconcile(&token, request).await }).await?;
    Ok(agreed.counts)
}

async fn publish_pending(engine: &Engine) -> Result<(), Error> {
    while let Some(publication) = engine.store.with_tx(|tx| tx.next_publication().map_err(Error::from)).await? {
        match publish(engine, &publication).await {
            Ok(_) => {}
            // The relay has them or will never take them; the counts tell what is missing then.
            Err(error) if session::is_final(&error) => {
                tracing::warn!(%error, "a batch of keys was refused");
            }
            Err(error) => return Err(error.into()),
        }
        engine.store.with_tx(move |tx| tx.drop_publication(&publication).map_err(Error::from)).await?;
    }
    Ok(())
}

async fn publish(engine: &Engine, publication: &Publication) -> Result<KeyCounts, ApiError> {
    match publication {
        Publication::KeyPackages(request) => {
            engine.signed_in(|token| async move { engine.api.publish(&token, request).await }).await
        }
        Publication::Prekeys(request) => {
            engine.signed_in(|token| async move { engine.api.publish_prekeys(&token, request).await }).await
        }
    }
}
