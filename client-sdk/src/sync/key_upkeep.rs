//! Keeping key packages at the relay, so that others can add this device while it is away.
//!
//! A private half is forgotten when nobody can use its key package any more, so that the store does not grow.
//!
//! Invariant: the private half of a key package is on disk before the relay has the public one, and a batch is posted
//! under one message id until the relay has said yes.

use std::{sync::Arc, time::Duration};

use undertone_api::RelayApi as _;
use undertone_wire::{Incarnation, KeyPackageCount, PublishRequest, ReconcileRequest, suite};

use super::{Engine, backoff::Backoff, session};
use crate::{Error, crypto::key_package, event::Connection};

/// A device has so many one-time key packages after topping up.
const FULL: u64 = 100;

/// It tops up when fewer than this are left.
const LOW: u64 = 50;

/// A last-resort key package that was handed out is replaced once in this time at most, however often others are.
const RENEW_EVERY_MS: u64 = 60 * 60 * 1_000;

/// Tops up whenever the connection is new, a key package was used, or the relay says that few are left, until the
/// engine stops.
pub(super) async fn run(engine: Arc<Engine>) {
    let mut connection = engine.connection();
    let mut wanted = engine.keys_wanted.subscribe();
    let mut backoff = Backoff::new(engine.entropy);
    loop {
        let online = *connection.borrow_and_update() == Connection::Online;
        let again_in = async { if online { engine.publish_keys().await } else { Ok(None) } };
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
                tracing::debug!(%error, "key packages could not be published");
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

/// Publishes what is missing at the relay. Answers with how long a renewal that is still wanted has to wait.
pub(super) async fn top_up(engine: &Engine, kept: &mut Kept) -> Result<Option<Duration>, Error> {
    forget_expired(engine, kept).await?;
    publish_pending(engine).await?;
    let (one_time, last_resort) = of_default_suite(&counts(engine, kept).await?);
    let missing = if one_time < LOW { FULL - one_time } else { 0 };
    let wait_ms = renewal_in_ms(engine).await?;
    let renewed = if last_resort { (wait_ms == Some(0)).then_some(Why::Used) } else { Some(Why::Missing) };
    if missing > 0 || renewed.is_some() {
        make(engine, missing, renewed).await?;
        publish_pending(engine).await?;
    }
    Ok(wait_ms.filter(|_| renewed.is_none()).map(Duration::from_millis))
}

/// What is known since the engine began.
#[derive(Default)]
pub(super) struct Kept {
    /// Of the private halves in the store. Those that are made later live longer.
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

/// What the relay can hand out. At first, and whenever there is a reason, it forgets all whose private halves are not
/// here.
async fn counts(engine: &Engine, kept: &mut Kept) -> Result<Vec<KeyPackageCount>, Error> {
    let incarnation = *engine.incarnation.borrow();
    if incarnation.is_some() && kept.agreed != incarnation {
        match agree(engine).await {
            Ok(counts) => {
                kept.agreed = incarnation;
                return Ok(counts);
            }
            // There may be more than it takes at once.
            Err(Error::Refused(error)) if session::is_final(&error) => {
                tracing::warn!(%error, "which key packages are here could not be told");
            }
            Err(error) => return Err(error),
        }
    }
    let counts = engine.signed_in(|token| async move { engine.api.key_counts(&token).await }).await?;
    Ok(counts.key_packages)
}

async fn agree(engine: &Engine) -> Result<Vec<KeyPackageCount>, Error> {
    let request =
        ReconcileRequest { hash_refs: engine.store.with_tx(|tx| Ok::<_, Error>(tx.key_package_refs()?)).await? };
    let request = &request;
    let agreed = engine.signed_in(|token| async move { engine.api.reconcile(&token, request).await }).await?;
    Ok(agreed.key_packages)
}

/// Why a last-resort key package is made.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Why {
    /// The relay has none.
    Missing,
    /// The one that it has was handed out.
    Used,
}

/// In what time the last-resort key package is to be replaced; `None` if it was not handed out.
async fn renewal_in_ms(engine: &Engine) -> Result<Option<u64>, Error> {
    let known = engine.store.with_tx(|tx| {
        let used = tx.last_resort_used()?;
        Ok::<_, Error>(used.then_some(tx.last_resort_renewed_ms()?))
    });
    let now_ms = engine.clock.now_ms();
    // A clock that was set back must not keep it for ever.
    let since = |renewed_ms| now_ms.checked_sub(renewed_ms).unwrap_or(RENEW_EVERY_MS);
    Ok(known.await?.map(|renewed_ms| RENEW_EVERY_MS.saturating_sub(since(renewed_ms))))
}

/// Forgets the private halves of key packages that are past their lifetime, by the device's clock and by the relay's.
/// None of them is read before one can be.
async fn forget_expired(engine: &Engine, kept: &mut Kept) -> Result<(), Error> {
    let now_ms = engine.clock.now_ms().min(engine.relay_now_ms());
    if kept.all_live_until_ms.is_some_and(|until_ms| now_ms <= until_ms) {
        return Ok(());
    }
    let forgotten = engine
        .store
        .with_tx(move |tx| key_package::forget_expired(&tx.mls(), &tx.key_packages()?, now_ms).map_err(Error::from));
    kept.all_live_until_ms = forgotten.await?;
    Ok(())
}

fn of_default_suite(counts: &[KeyPackageCount]) -> (u64, bool) {
    let count = counts.iter().find(|count| count.suite == suite::DEFAULT);
    count.map_or((0, false), |count| (count.one_time, count.last_resort))
}

async fn make(engine: &Engine, one_time: u64, last_resort: Option<Why>) -> Result<(), Error> {
    let message_id = engine.message_id()?;
    let (identity, now_ms, renewed_ms) = (engine.identity.clone(), engine.relay_now_ms(), engine.clock.now_ms());
    engine
        .store
        .with_tx(move |tx| {
            let make = |last_resort| key_package::make(&tx.mls(), &identity, now_ms, last_resort);
            let key_packages = (0..one_time).map(|_| make(false)).collect::<Result<_, _>>()?;
            match last_resort {
                Some(Why::Used) => tx.set_last_resort_renewed(renewed_ms)?,
                Some(Why::Missing) => tx.set_last_resort_used(false)?,
                None => {}
            }
            let last_resort = last_resort.map(|_| make(true)).transpose()?;
            tx.add_publication(&PublishRequest { message_id, key_packages, last_resort }).map_err(Error::from)
        })
        .await
}

async fn publish_pending(engine: &Engine) -> Result<(), Error> {
    while let Some(request) = engine.store.with_tx(|tx| tx.next_publication().map_err(Error::from)).await? {
        let posted = &request;
        let answer = engine.signed_in(|token| async move { engine.api.publish(&token, posted).await }).await;
        match answer {
            Ok(_) => {}
            // The relay has them or will never take them; the counts tell what is missing then.
            Err(error) if session::is_final(&error) => {
                tracing::warn!(%error, "a batch of key packages was refused");
            }
            Err(error) => return Err(error.into()),
        }
        engine.store.with_tx(move |tx| tx.drop_publication(&request).map_err(Error::from)).await?;
    }
    Ok(())
}
