//! Keeping key packages at the relay, so that others can add this device while it is away.
//!
//! Invariant: the private half of a key package is on disk before the relay has the public one, and a batch is posted
//! under one message id until the relay has said yes.

use std::sync::Arc;

use undertone_wire::{ErrorCode, KeyCounts, PublishRequest, suite};

use super::{Engine, backoff::Backoff};
use crate::{Error, api::ApiError, crypto::key_package, event::Connection};

/// A device has so many one-time key packages after topping up.
const FULL: u64 = 100;

/// It tops up when fewer than this are left.
const LOW: u64 = 50;

/// Tops up whenever the connection is new or a key package was used, until the engine stops.
pub(super) async fn run(engine: Arc<Engine>) {
    let mut connection = engine.connection();
    let mut wanted = engine.keys_wanted.subscribe();
    let mut backoff = Backoff::new(engine.entropy);
    loop {
        let online = *connection.borrow_and_update() == Connection::Online;
        let failed = online
            && tokio::select! {
                published = engine.publish_keys() => published.is_err(),
                () = engine.stopped() => return,
            };
        if !failed {
            backoff.reset();
        }
        tokio::select! {
            Ok(()) = connection.changed() => {}
            Ok(()) = wanted.changed() => {}
            () = tokio::time::sleep(backoff.wait()), if failed => {}
            () = engine.stopped() => return,
        }
    }
}

/// Publishes what is missing at the relay.
pub(super) async fn top_up(engine: &Engine) -> Result<(), Error> {
    publish_pending(engine).await?;
    let counts = engine.signed_in(|token| async move { engine.api.key_counts(&token).await }).await?;
    let (one_time, last_resort) = of_default_suite(&counts);
    let missing = if one_time < LOW { FULL - one_time } else { 0 };
    if missing > 0 || !last_resort {
        make(engine, missing, !last_resort).await?;
        publish_pending(engine).await?;
    }
    Ok(())
}

fn of_default_suite(counts: &KeyCounts) -> (u64, bool) {
    let count = counts.key_packages.iter().find(|count| count.suite == suite::DEFAULT);
    count.map_or((0, false), |count| (count.one_time, count.last_resort))
}

async fn make(engine: &Engine, one_time: u64, last_resort: bool) -> Result<(), Error> {
    let message_id = engine.message_id()?;
    let (identity, now_ms) = (engine.identity.clone(), engine.relay_now_ms());
    engine
        .store
        .with_tx(move |tx| {
            let make = |last_resort| key_package::make(&tx.mls(), &identity, now_ms, last_resort);
            let key_packages = (0..one_time).map(|_| make(false)).collect::<Result<_, _>>()?;
            let last_resort = if last_resort { Some(make(true)?) } else { None };
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
            Err(ApiError::Refused(problem))
                if !matches!(problem.code, ErrorCode::Internal | ErrorCode::Unavailable) =>
            {
                tracing::warn!(code = %problem.code, "a batch of key packages was refused");
            }
            Err(error) => return Err(error.into()),
        }
        engine.store.with_tx(move |tx| tx.drop_publication(&request).map_err(Error::from)).await?;
    }
    Ok(())
}
