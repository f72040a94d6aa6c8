//! Key packages: topped up, and the last-resort one replaced when it was used.

use std::time::Duration;

use undertone_wire::{KeyCounts, PublishRequest, suite};

use super::{Kept, missing};
use crate::{Error, crypto::key_package, store::Publication, sync::Engine};

/// A last-resort key package that was handed out is replaced once in this time at most, however often others are.
const RENEW_EVERY_MS: u64 = 60 * 60 * 1_000;

/// Why a last-resort key package is made.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Why {
    /// The relay has none.
    Missing,
    /// The one that it has was handed out.
    Used,
}

/// Makes what is missing at the relay. Answers with how long a renewal that is still wanted has to wait.
pub(super) async fn make_missing(engine: &Engine, counts: &KeyCounts) -> Result<Option<Duration>, Error> {
    let count = counts.key_packages.iter().find(|count| count.suite == suite::DEFAULT);
    let (one_time, last_resort) = count.map_or((0, false), |count| (count.one_time, count.last_resort));
    let missing = missing(one_time);
    let wait_ms = renewal_in_ms(engine).await?;
    let renewed = if last_resort { (wait_ms == Some(0)).then_some(Why::Used) } else { Some(Why::Missing) };
    if missing > 0 || renewed.is_some() {
        make(engine, missing, renewed).await?;
    }
    Ok(wait_ms.filter(|_| renewed.is_none()).map(Duration::from_millis))
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
pub(super) async fn forget_expired(engine: &Engine, kept: &mut Kept) -> Result<(), Error> {
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

async fn make(engine: &Engine, one_time: u64, last_resort: Option<Why>) -> Result<(), Error> {
    let message_id = engine.message_id()?;
    let (now_ms, renewed_ms) = (engine.relay_now_ms(), engine.clock.now_ms());
    engine
        .store
        .with_tx(move |tx| {
            let identity = tx.identity()?;
            let make = |last_resort| key_package::make(&tx.mls(), &identity, now_ms, last_resort);
            let key_packages = (0..one_time).map(|_| make(false)).collect::<Result<_, _>>()?;
            match last_resort {
                Some(Why::Used) => tx.set_last_resort_renewed(renewed_ms)?,
                Some(Why::Missing) => tx.set_last_resort_used(false)?,
                None => {}
            }
            let last_resort = last_resort.map(|_| make(true)).transpose()?;
            let request = PublishRequest { message_id, key_packages, last_resort };
            tx.add_publication(&Publication::KeyPackages(request)).map_err(Error::from)
        })
        .await
}
