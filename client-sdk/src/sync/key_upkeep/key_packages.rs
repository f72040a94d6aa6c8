//! Key packages: topped up, and the last-resort one replaced when it was used.

use std::time::Duration;

use undertone_api::RelayApi as _;
use undertone_wire::{KeyCounts, PublishRequest};

use super::{Kept, missing};
use crate::{
    Error,
    crypto::{Suite, key_package},
    store::{LastResort, Publication},
    sync::Engine,
};

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

/// So many one-time key packages of a suite a device has after topping up. There are fewer of those that are some five
/// times as large, for groups that are not as large.
fn full(suite: Suite) -> u64 {
    match suite {
        Suite::Classic => 100,
        Suite::Hybrid => 40,
    }
}

/// Makes what is missing at the relay. Answers with how long a renewal that is still wanted has to wait.
pub(super) async fn make_missing(engine: &Engine, counts: &KeyCounts) -> Result<Option<Duration>, Error> {
    let mut wait: Option<Duration> = None;
    for suite in Suite::ALL {
        wait = wait.into_iter().chain(make_missing_of(engine, suite, counts).await?).min();
    }
    Ok(wait)
}

async fn make_missing_of(engine: &Engine, suite: Suite, counts: &KeyCounts) -> Result<Option<Duration>, Error> {
    let count = counts.key_packages.iter().find(|count| count.suite == suite.number());
    let (one_time, last_resort) = count.map_or((0, false), |count| (count.one_time, count.last_resort));
    let missing = missing(one_time, full(suite));
    let wait_ms = renewal_in_ms(engine, suite).await?;
    let renewed = if last_resort { (wait_ms == Some(0)).then_some(Why::Used) } else { Some(Why::Missing) };
    if missing > 0 || renewed.is_some() {
        // What the relay does not take is not made.
        if !engine.api.relay().await?.suites.contains(&suite.number()) {
            return Ok(None);
        }
        make(engine, suite, missing, renewed).await?;
    }
    Ok(wait_ms.filter(|_| renewed.is_none()).map(Duration::from_millis))
}

/// In what time the last-resort key package is to be replaced; `None` if it was not handed out.
async fn renewal_in_ms(engine: &Engine, suite: Suite) -> Result<Option<u64>, Error> {
    let known = engine.store.with_tx(move |tx| {
        let LastResort { used, renewed_ms } = tx.last_resort(suite)?;
        Ok::<_, Error>(used.then_some(renewed_ms))
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

async fn make(engine: &Engine, suite: Suite, one_time: u64, last_resort: Option<Why>) -> Result<(), Error> {
    let message_id = engine.message_id()?;
    let (now_ms, renewed_ms) = (engine.relay_now_ms(), engine.clock.now_ms());
    engine
        .store
        .with_tx(move |tx| {
            let identity = tx.identity()?;
            let make = |last_resort| key_package::make(&tx.mls(), &identity, suite, now_ms, last_resort);
            let key_packages = (0..one_time).map(|_| make(false)).collect::<Result<_, _>>()?;
            let before = tx.last_resort(suite)?;
            match last_resort {
                Some(Why::Used) => tx.set_last_resort(suite, LastResort { used: false, renewed_ms })?,
                Some(Why::Missing) => tx.set_last_resort(suite, LastResort { used: false, ..before })?,
                None => {}
            }
            let last_resort = last_resort.map(|_| make(true)).transpose()?;
            let request = PublishRequest { message_id, key_packages, last_resort };
            tx.add_publication(&Publication::KeyPackages(request)).map_err(Error::from)
        })
        .await
}
