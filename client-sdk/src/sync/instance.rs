//! Whether this store is the one that was used last. One that was restored from a copy, or is one, notices it here.
//!
//! Each time it is opened the store gets a new random id, which is swapped at the relay for the one before. A copy of
//! an earlier state has one that the relay no longer knows, or has taken less from its queue than was acked.
//!
//! Invariant: before the relay has taken the id nothing is encrypted by a ratchet, and nothing more once another copy
//! is seen to go on. What a copy has of ratchets is not used again: it is in each group anew first, by new keys.

use undertone_api::RelayApi as _;
use undertone_wire::{ErrorCode, InstanceId, InstanceRequest};

use super::{Engine, missed, recovery};
use crate::{
    Error,
    crypto::Entropy,
    event::StoredEvent,
    store::{StoreError, Tx, Why},
};

/// Tells the relay that this store takes from the queue from now on.
pub(super) async fn confirm(engine: &Engine) -> Result<(), Error> {
    let entropy = engine.entropy;
    // One that was not confirmed when the store was open before may be known to a copy of it.
    if let Some(before) = engine.store.with_tx(|tx| Ok::<_, Error>(tx.instance_request()?)).await? {
        swap_in(engine, before).await?;
    }
    swap_in(engine, engine.store.with_tx(move |tx| another(tx, entropy)).await?).await?;
    engine.confirmed.send_replace(true);
    Ok(())
}

async fn swap_in(engine: &Engine, mut request: InstanceRequest) -> Result<(), Error> {
    let (entropy, now_ms) = (engine.entropy, engine.clock.now_ms());
    let acked = match swap(engine, &request).await {
        Err(Error::Refused(error)) if error.code() == Some(&ErrorCode::OtherInstance) => {
            request.takes_over = true;
            engine
                .store
                .with_tx(move |tx| {
                    begin_anew(tx, entropy, now_ms)?;
                    Ok::<_, Error>(tx.take_over()?)
                })
                .await?;
            swap(engine, &request).await?
        }
        answer => answer?,
    };
    let confirmed = engine.store.with_tx(move |tx| {
        let cursor = tx.cursor()?;
        if acked > cursor {
            if !request.takes_over {
                begin_anew(tx, entropy, now_ms)?;
            }
            missed::note(tx, cursor + 1, acked)?;
        }
        tx.confirm_instance(request.instance).map_err(Error::from)
    });
    confirmed.await
}

/// The request to swap in another life.
fn another(tx: &Tx<'_>, entropy: Entropy) -> Result<InstanceRequest, Error> {
    tx.set_next_instance(InstanceId::from_random(entropy.bytes()?))?;
    tx.instance_request()?.ok_or_else(|| Error::Store("what was just written is not there".into()))
}

async fn swap(engine: &Engine, request: &InstanceRequest) -> Result<u64, Error> {
    let answer = engine.signed_in(|token| async move { engine.api.instance(&token, request).await }).await;
    Ok(answer?.acked_seq)
}

/// This store is a copy: it is in each group anew, and has new keys at the relay.
fn begin_anew(tx: &Tx<'_>, entropy: Entropy, now_ms: u64) -> Result<(), StoreError> {
    tracing::warn!("the store is a copy of an earlier state: it comes into its groups with new keys");
    tx.add_event(&StoredEvent::Copied)?;
    tx.renew_last_resort_now()?;
    for group in tx.groups()?.iter().filter(|group| !group.state.is_over()) {
        // One that the relay is still to hear of has nobody else in it, unless that turns out then.
        if !tx.is_to_be_created(group.id)? {
            recovery::begin_at(tx, entropy, now_ms, group, Why::Lost)?;
        }
    }
    Ok(())
}
