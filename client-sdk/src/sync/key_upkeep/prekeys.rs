//! Prekeys and the sealing key: topped up, and what is used again and again replaced each week.
//!
//! Invariant: the sealing keys and fallback prekeys of before are kept until nothing that was made with them can come any
//! more.

use std::time::Duration;

use undertone_wire::{KeyCounts, PublishPrekeysRequest};

use super::missing;
use crate::{
    Error,
    crypto::{key_package::LIFETIME_S, xwing::SealingSecret},
    store::Publication,
    sync::Engine,
};

/// So many one-time prekeys a device has after topping up.
const FULL: u64 = 100;

const DAY_MS: u64 = 24 * 60 * 60 * 1_000;

/// The fallback prekey and the sealing key are replaced when they are so old.
const REPLACE_AFTER_MS: u64 = 7 * DAY_MS;

/// A sealing key that was replaced is kept for so long: as long as a relay keeps what was sealed to it, and while somebody
/// who has not heard of the new one may still seal to it.
const KEEP_REPLACED_MS: u64 = 37 * DAY_MS;

/// Makes what is missing at the relay, and what is too old. Answers with the time until something is.
pub(super) async fn make_missing(engine: &Engine, counts: &KeyCounts) -> Result<Duration, Error> {
    let ages = engine.store.with_tx(|tx| tx.prekey_ages().map_err(Error::from)).await?;
    let now_ms = engine.clock.now_ms();
    // A clock that was set back must not keep one for ever.
    let due_in_ms = |made_ms: Option<u64>| {
        let age_ms = made_ms.and_then(|made_ms| now_ms.checked_sub(made_ms)).unwrap_or(REPLACE_AFTER_MS);
        REPLACE_AFTER_MS.saturating_sub(age_ms)
    };
    let due_in_ms = [due_in_ms(ages.fallback_ms), due_in_ms(ages.sealing_key_ms)];
    let fallback = due_in_ms[0] == 0 || !counts.prekeys.fallback;
    let sealing_key = due_in_ms[1] == 0 || !counts.sealing_key;
    let missing = missing(counts.prekeys.one_time, FULL);
    if missing > 0 || fallback || sealing_key {
        make(engine, missing, fallback, sealing_key).await?;
    }
    let left_ms = |due_in_ms: u64, made: bool| if made { REPLACE_AFTER_MS } else { due_in_ms };
    Ok(Duration::from_millis(left_ms(due_in_ms[0], fallback).min(left_ms(due_in_ms[1], sealing_key))))
}

/// Forgets what nobody can use any more.
pub(super) async fn forget_expired(engine: &Engine) -> Result<(), Error> {
    let now_ms = engine.clock.now_ms().min(engine.relay_now_ms());
    engine
        .store
        .with_tx(move |tx| {
            tx.forget_sealing_keys(now_ms.saturating_sub(KEEP_REPLACED_MS))?;
            tx.forget_written(now_ms.saturating_sub(KEEP_REPLACED_MS))?;
            let expired = tx.take_expired_prekeys(now_ms)?;
            if !expired.is_empty() {
                let mut account = tx.olm_account()?;
                expired.into_iter().for_each(|prekey| account.forget(prekey));
                tx.save_olm_account(&account)?;
            }
            Ok(())
        })
        .await
}

async fn make(engine: &Engine, one_time: u64, fallback: bool, sealing_key: bool) -> Result<(), Error> {
    let message_id = engine.message_id()?;
    let (identity, entropy, made_ms) = (engine.identity(), engine.entropy, engine.clock.now_ms());
    let not_after_ms = engine.relay_now_ms().saturating_add(LIFETIME_S * 1_000);
    engine
        .store
        .with_tx(move |tx| {
            let mut account = tx.olm_account()?;
            let mut keys: Vec<_> = account
                .make_prekeys(usize::try_from(one_time).unwrap_or(0))
                .into_iter()
                .map(|key| (key, false))
                .collect();
            if fallback {
                keys.push((account.make_fallback()?, true));
            }
            tx.save_olm_account(&account)?;
            let mut request = PublishPrekeysRequest { message_id, prekeys: vec![], sealing_key: None };
            for (key, fallback) in keys {
                let prekey = identity.prekey(key, not_after_ms, fallback);
                tx.add_prekey(prekey.hash_ref(identity.device()), &prekey, made_ms)?;
                request.prekeys.push(prekey);
            }
            if fallback {
                tx.drop_old_fallbacks()?;
            }
            if sealing_key {
                let secret = SealingSecret::new(entropy)?;
                let sealing_key = identity.sealing_key(secret.public()?, not_after_ms);
                tx.add_sealing_key(sealing_key.hash_ref(identity.device()), &secret, made_ms)?;
                request.sealing_key = Some(sealing_key);
            }
            tx.add_publication(&Publication::Prekeys(request)).map_err(Error::from)
        })
        .await
}
