//! Receiving: keeps a stream open, applies its entries in order and acks them after their commits.
//!
//! Invariant: an entry is acked only after the transaction that applied it has committed; a number that neither came
//! nor was told as missed is never passed over.

use std::sync::{Arc, atomic::Ordering};

use undertone_api::{ApiError, FrameStream, RelayApi as _};
use undertone_wire::{AccountId, AckRequest, ByeReason, ClientFrame, Delivery, ServerFrame, Span};

use super::{
    Engine,
    backoff::Backoff,
    ephemeral,
    inbox::{self, Outcome},
    instance,
    missed::{self, Stand},
    session, successor,
};
use crate::{Error, event::Connection};

/// Acks are sent when the queue is drained, and at least this often before.
const ACK_EVERY: u64 = 64;

/// Why a stream ended.
enum Ended {
    /// Try again.
    Lost,
    /// It was open, and another one may be had where it was not tried: so many times at once until one works.
    Elsewhere(usize),
    /// The engine is to stop.
    Stopped,
    /// A store of this device that was opened later has taken over.
    Replaced,
    /// The relay does not know this device any more.
    SignedOut,
}

/// What a stream has told of how far the queue goes.
#[derive(Clone, Copy)]
struct Known {
    /// As of the last hello or caught-up.
    next_seq: u64,
    /// Everything up to there was told. What comes from then on may be newer, missed numbers too.
    caught_up: bool,
}

/// Receives until the engine stops.
pub(super) async fn run(engine: Arc<Engine>) {
    let mut backoff = Backoff::new(engine.entropy);
    let mut network = engine.network.subscribe();
    loop {
        let ended = tokio::select! {
            ended = receive(&engine, &mut backoff) => ended,
            Ok(()) = network.changed() => {
                backoff.reset();
                Ended::Elsewhere(1)
            }
            () = engine.stopped() => Ended::Stopped,
        };
        backoff.ended(engine.clock.now_ms());
        if matches!(*engine.connection.borrow(), Connection::CatchingUp | Connection::Online) {
            // Until the next one is open another copy may go on.
            engine.doubt_newest();
        }
        match ended {
            Ended::Elsewhere(most) if backoff.at_once(most) => {
                engine.set_connection(Connection::Connecting);
                continue;
            }
            Ended::Lost | Ended::Elsewhere(_) => engine.set_connection(Connection::Offline),
            Ended::Replaced => return engine.set_connection(Connection::Replaced),
            Ended::SignedOut => return engine.set_connection(Connection::SignedOut),
            Ended::Stopped => return last_ack(&engine).await,
        }
        tokio::select! {
            () = engine.clock.pass(backoff.wait()) => {}
            Ok(()) = network.changed() => backoff.reset(),
            () = engine.stopped() => return last_ack(&engine).await,
        }
    }
}

/// One stream, from its opening to its end.
async fn receive(engine: &Engine, backoff: &mut Backoff) -> Ended {
    match instance::confirm(engine).await {
        Ok(true) => {}
        Ok(false) => return Ended::Replaced,
        Err(Error::Refused(error)) if session::has_ended(&error) => return Ended::SignedOut,
        Err(error) => {
            tracing::debug!(%error, "the relay has not taken this store for the newest yet");
            return Ended::Lost;
        }
    }
    let Ok(mut cursor) = engine.store.with_tx(|tx| tx.cursor().map_err(Error::from)).await else {
        return Ended::Lost;
    };
    // Before the stream is opened: what was posted by then comes before it has caught up.
    let mut stand = match missed::look(engine).await {
        Ok(stand) => stand,
        Err(Error::Refused(error)) if session::has_ended(&error) => return Ended::SignedOut,
        Err(error) => {
            tracing::debug!(%error, "where the groups stand is not known");
            return Ended::Lost;
        }
    };
    let opened = engine.signed_in(|token| async move { engine.api.open_stream(&token, cursor).await }).await;
    let mut stream = match opened {
        Ok(stream) => stream,
        Err(error) if session::has_ended(&error) => return Ended::SignedOut,
        Err(error) => {
            tracing::debug!(%error, "no stream");
            return Ended::Lost;
        }
    };
    // An ack may have been lost with the stream before.
    let (mut acked, mut known) = (0, Known { next_seq: cursor + 1, caught_up: false });
    loop {
        let frame = match stream.next().await {
            Ok(frame) => frame,
            Err(error) => {
                tracing::debug!(%error, "the stream was lost");
                let ways = engine.api.ways();
                // Another relay's address is no way to this one, and not counted among them.
                let others = if matches!(error, ApiError::OtherRelay) { ways.max(1) } else { ways.saturating_sub(1) };
                return Ended::Elsewhere(others);
            }
        };
        let went_on = match frame {
            ServerFrame::Hello { next_seq: next, incarnation, .. } => {
                engine.incarnation.send_replace(Some(incarnation));
                known.next_seq = next;
                engine.tell_whose_addresses().await;
                engine.set_connection(Connection::CatchingUp);
                Ok(())
            }
            ServerFrame::Delivery { delivery } => apply(engine, &mut cursor, delivery).await,
            ServerFrame::Missed { span } => missed(engine, &mut cursor, span, known).await,
            ServerFrame::CaughtUp { next_seq: next } if next > cursor.saturating_add(1) => Err(passed_over(engine)),
            ServerFrame::CaughtUp { next_seq: next } => {
                known = Known { next_seq: next, caught_up: true };
                backoff.works(engine.clock.now_ms());
                match caught_up(engine, stream.as_mut(), &mut acked, cursor, stand.take()).await {
                    Ok(true) => Ok(()),
                    Ok(false) => return Ended::Elsewhere(engine.api.ways().max(1)),
                    Err(error) => Err(error),
                }
            }
            ServerFrame::DirectEphemeral { ciphertext } => {
                ephemeral::hear_directly(engine, ciphertext).await;
                Ok(())
            }
            ServerFrame::GroupEphemeral { group_id, epoch, ciphertext } => {
                ephemeral::hear(engine, group_id, epoch, ciphertext).await;
                Ok(())
            }
            // By another copy's stream, or by a request for one of this device's own that came late: the relay knows.
            ServerFrame::Bye { reason: ByeReason::Replaced } => return Ended::Elsewhere(engine.api.ways().max(1)),
            // With one address, another node may answer behind it.
            ServerFrame::Bye { reason: ByeReason::Shutdown } => return Ended::Elsewhere(engine.api.ways().max(1)),
            ServerFrame::Bye { .. } => return Ended::Lost,
            _ => Ok(()),
        };
        let went_on = match went_on {
            Ok(()) if cursor >= acked + ACK_EVERY => ack(stream.as_mut(), &mut acked, cursor).await,
            other => other,
        };
        if let Err(error) = went_on {
            tracing::debug!(%error, "the stream is given up");
            return Ended::Lost;
        }
    }
}

/// All that was there has come. `false` if another stream is needed to tell whether what was missed concerns a group.
async fn caught_up(
    engine: &Engine,
    stream: &mut dyn FrameStream,
    acked: &mut u64,
    cursor: u64,
    stand: Option<Stand>,
) -> Result<bool, Error> {
    ack(stream, acked, cursor).await?;
    if let Some(stand) = stand {
        missed::compare(engine, stand).await?;
    }
    if engine.store.with_tx(|tx| tx.looks_at_groups().map_err(Error::from)).await? > 0 {
        return Ok(false);
    }
    engine.set_connection(Connection::Online);
    Ok(true)
}

async fn apply(engine: &Engine, cursor: &mut u64, delivery: Delivery) -> Result<(), Error> {
    if delivery.seq <= *cursor {
        return Ok(());
    }
    if delivery.seq != *cursor + 1 {
        return Err(passed_over(engine));
    }
    let (seq, delivery, mut looked_up) = (delivery.seq, Arc::new(delivery), false);
    let effect = loop {
        let (identity, entropy, now_ms) = (engine.identity(), engine.entropy, engine.clock.now_ms());
        let delivery = Arc::clone(&delivery);
        let outcome = engine.store.with_tx(move |tx| {
            let context = inbox::Context { identity: &identity, entropy, now_ms, looked_up };
            inbox::apply(tx, &context, &delivery).map_err(Error::from)
        });
        match outcome.await? {
            Outcome::Applied(effect) => break effect,
            // Afterwards nothing is lacking, or the group is one to be recovered.
            Outcome::Lacks { live, up_to } => missed::fetch(engine, live, up_to).await?,
            // Afterwards it is known whether it is followed.
            Outcome::Follows { group_id } => successor::consider(engine, group_id).await?,
            Outcome::Unknown { account } => {
                look_up(engine, account).await?;
                looked_up = true;
            }
        }
    };
    *cursor = seq;
    if effect.received {
        engine.received.fetch_add(1, Ordering::Relaxed);
    }
    if effect.identity_changed {
        engine.reload_identity().await?;
    }
    if effect.joined || effect.keys_wanted {
        engine.keys_wanted.send_replace(());
    }
    Ok(())
}

/// Asks for the newest device list of an account, of which there may be none that holds.
async fn look_up(engine: &Engine, account: AccountId) -> Result<(), Error> {
    match engine.learn(account).await {
        Err(error @ (Error::Offline(_) | Error::OtherRelay | Error::Store(_) | Error::Closed)) => Err(error),
        Err(Error::Refused(error)) if session::has_ended(&error) => Err(Error::Refused(error)),
        Err(error) => {
            tracing::debug!(%error, "who is said to have written is not known");
            Ok(())
        }
        Ok(_) => Ok(()),
    }
}

async fn missed(engine: &Engine, cursor: &mut u64, span: Span, known: Known) -> Result<(), Error> {
    let to = span.to;
    if to <= *cursor {
        return Ok(());
    }
    let new = to >= known.next_seq;
    if span.from > *cursor + 1 || (new && !known.caught_up) {
        return Err(passed_over(engine));
    }
    let from = span.from.max(*cursor + 1);
    engine.store.with_tx(move |tx| missed::note(tx, from, to).map_err(Error::from)).await?;
    *cursor = to;
    Ok(())
}

/// A number is passed over. It may have been acked by another copy of the store, of which the next stream asks first.
fn passed_over(engine: &Engine) -> Error {
    engine.doubt_newest();
    Error::Untrusted("the relay passed over a number of the queue".into())
}

async fn ack(stream: &mut dyn FrameStream, acked: &mut u64, cursor: u64) -> Result<(), Error> {
    if cursor > *acked {
        stream.send(ClientFrame::Ack { up_to: cursor }).await?;
        *acked = cursor;
    }
    Ok(())
}

/// Acks what was applied, by a request whose answer tells that it arrived.
async fn last_ack(engine: &Engine) {
    let Ok(up_to) = engine.store.with_tx(|tx| tx.cursor().map_err(Error::from)).await else { return };
    let connected = matches!(*engine.connection.borrow(), Connection::CatchingUp | Connection::Online);
    if connected {
        let request = &AckRequest { up_to };
        let done = engine.signed_in(|token| async move { engine.api.ack(&token, request).await }).await;
        if let Err(ApiError::Unreachable(reason)) = done {
            tracing::debug!(%reason, "the last ack may not have arrived; the relay delivers again");
        }
    }
}
