//! Whether this store is the one that was used last. One that was restored from a copy, or is one, notices it here.
//!
//! Each time it is opened the store gets a new random id, which is swapped at the relay for the one before. A copy of an
//! earlier state has one that the relay no longer knows, or has taken less from its queue than was acked. While it is open
//! the id is swapped again for each stream, since another copy may have gone on where there was none, and whenever the queue
//! looks as if one had.
//!
//! Invariant: nothing that a ratchet has encrypted leaves before the relay has taken the id, nor while that is in doubt. What
//! a copy has of ratchets is not used again: it is in each group anew first, by new keys. A store that is open never takes
//! over from one that was opened later; of a process and its clone the one that swaps first goes on.

use undertone_api::RelayApi as _;
use undertone_wire::{ErrorCode, InstanceId, InstanceRequest};

use super::{Engine, missed, recovery};
use crate::{
    Error,
    crypto::Entropy,
    event::StoredEvent,
    store::{StoreError, Tx, Why},
};

/// Whether this store is the newest of its device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Newest {
    /// The relay has not been told that it was opened.
    Untold,
    /// The relay has taken it for the newest.
    Confirmed,
    /// It has, and another copy may have gone on since.
    Doubted,
}

/// Makes sure that this store is the newest. `false` if another one was opened since it was.
pub(super) async fn confirm(engine: &Engine) -> Result<bool, Error> {
    let known = *engine.newest.borrow();
    match known {
        Newest::Confirmed => return Ok(true),
        Newest::Untold => tell(engine).await?,
        Newest::Doubted => {
            let entropy = engine.entropy;
            let request = engine.store.with_tx(move |tx| match tx.instance_request()? {
                // Its answer was lost.
                Some(request) => Ok(request),
                None => another(tx, entropy),
            });
            let request = request.await?;
            match swap(engine, &request).await {
                Err(error) if is_other(&error) => return Ok(false),
                acked => taken(engine, request, acked?).await?,
            }
        }
    }
    engine.newest.send_replace(Newest::Confirmed);
    Ok(true)
}

/// Tells the relay that this store was opened.
async fn tell(engine: &Engine) -> Result<(), Error> {
    let entropy = engine.entropy;
    // One that was not confirmed when the store was open before may be known to a copy of it.
    if let Some(before) = engine.store.with_tx(|tx| tx.instance_request().map_err(Error::from)).await? {
        swap_in(engine, before).await?;
    }
    swap_in(engine, engine.store.with_tx(move |tx| another(tx, entropy)).await?).await
}

async fn swap_in(engine: &Engine, mut request: InstanceRequest) -> Result<(), Error> {
    let (entropy, now_ms) = (engine.entropy, engine.clock.now_ms());
    let acked = match swap(engine, &request).await {
        Err(error) if is_other(&error) => {
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
    taken(engine, request, acked).await
}

/// The request to swap in another life.
fn another(tx: &Tx<'_>, entropy: Entropy) -> Result<InstanceRequest, Error> {
    tx.set_next_instance(InstanceId::from_random(entropy.bytes()?))?;
    tx.instance_request()?.ok_or_else(|| Error::Store("what was just written is not there".into()))
}

/// Asks the relay to take the id for the newest. Answers with how far the queue was acked.
async fn swap(engine: &Engine, request: &InstanceRequest) -> Result<u64, Error> {
    let answer = engine.signed_in(|token| async move { engine.api.instance(&token, request).await }).await;
    Ok(answer?.acked_seq)
}

/// Whether the relay knows another store as the newest.
fn is_other(error: &Error) -> bool {
    matches!(error, Error::Refused(error) if error.code() == Some(&ErrorCode::OtherInstance))
}

/// The relay has taken it. What was acked beyond what has come here, another copy has acked.
async fn taken(engine: &Engine, request: InstanceRequest, acked: u64) -> Result<(), Error> {
    let (entropy, now_ms) = (engine.entropy, engine.clock.now_ms());
    let noted = engine.store.with_tx(move |tx| {
        let cursor = tx.cursor()?;
        if acked > cursor {
            if !request.takes_over {
                begin_anew(tx, entropy, now_ms)?;
            }
            missed::note(tx, cursor + 1, acked)?;
        }
        tx.confirm_instance(request.instance).map_err(Error::from)
    });
    noted.await
}

/// This store is a copy: it is in each group anew, and has new keys at the relay.
fn begin_anew(tx: &Tx<'_>, entropy: Entropy, now_ms: u64) -> Result<(), StoreError> {
    tracing::warn!("the store is a copy of an earlier state: it comes into its groups with new keys");
    tx.add_event(&StoredEvent::Copied)?;
    tx.renew_last_resorts_now()?;
    tx.renew_prekeys_now()?;
    tx.only_read_sessions(now_ms)?;
    for group in tx.groups()?.iter().filter(|group| !group.state.is_over()) {
        // One that the relay is still to hear of has nobody else in it, unless that turns out then.
        if !tx.is_to_be_created(group.id)? {
            recovery::begin_at(tx, entropy, now_ms, group, Why::Lost)?;
        }
    }
    Ok(())
}
