//! Doing what is to be done at the relay, one task after the other.
//!
//! A request is made and stored in one transaction ([`prepare`]), then posted until the relay says yes or no ([`post`]).
//! Only a no makes a new one. A refusal carries its repair: the task waits until the queue has brought what it lacks, and
//! starts over.
//!
//! Invariant: a commit is merged by its own row in this device's queue (see [`inbox`]), never ahead of what stands
//! before it there, and dropped only on the relay's no.

mod post;
mod prepare;

use std::{sync::Arc, time::Duration};

use undertone_api::ApiError;
use undertone_wire::Problem;

use super::{
    Engine,
    backoff::Backoff,
    claims::{self, Claimed},
    direct, inbox, session, updates,
};
use crate::{
    Error,
    conversation_id::ConversationId,
    crypto::group,
    event::StoredEvent,
    store::{GroupState, OutboxRow, Task},
};

/// The first pause of a task that the relay cannot do now; it doubles seven times.
const DEFER_MS: u64 = 250;

/// What came of a step.
enum Step {
    /// The store says what is next.
    Done,
    /// The relay cannot be asked now.
    Offline,
}

/// Works until the engine stops.
pub(super) async fn run(engine: Arc<Engine>) {
    let mut changed = engine.store.work_changed();
    let mut connection = engine.connection();
    let mut backoff = Backoff::new(engine.entropy);
    let mut claimed = Claimed::new();
    loop {
        tokio::select! {
            () = engine.confirmed() => {}
            () = engine.stopped() => return,
        }
        changed.mark_unchanged();
        connection.mark_unchanged();
        let (entropy, now_ms) = (engine.entropy, engine.clock.now_ms());
        let next = engine.store.with_tx(move |tx| {
            if let Some(row) = tx.next_task(now_ms)? {
                return Ok::<_, Error>((Some(row), None));
            }
            // Keys are replaced when there is nothing else to do.
            updates::plan(tx, entropy, now_ms)?;
            let (row, at_ms, update_ms) = (tx.next_task(now_ms)?, tx.next_task_at_ms(now_ms)?, tx.next_update_ms()?);
            Ok((row, at_ms.into_iter().chain(update_ms).min()))
        });
        let (pause, connects) = match next.await {
            Ok((Some(row), _)) => {
                let step = tokio::select! {
                    step = work(&engine, row, &mut claimed) => step,
                    () = engine.stopped() => return,
                };
                match step {
                    Ok(Step::Done) => {
                        backoff.reset();
                        continue;
                    }
                    Ok(Step::Offline) => (Some(backoff.wait()), true),
                    Err(error) => {
                        tracing::warn!(%error, "a task could not be worked on");
                        (Some(backoff.wait()), false)
                    }
                }
            }
            Ok((None, at_ms)) => (at_ms.map(|at_ms| Duration::from_millis(at_ms.saturating_sub(now_ms))), false),
            Err(Error::Closed) => return,
            Err(_) => (Some(backoff.wait()), false),
        };
        tokio::select! {
            Ok(()) = changed.changed(), if !connects => {}
            Ok(()) = connection.changed(), if connects => {}
            () = engine.clock.pass(pause.unwrap_or_default()), if pause.is_some() => {}
            () = engine.stopped() => return,
        }
    }
}

async fn work(engine: &Engine, row: OutboxRow, claimed: &mut Claimed) -> Result<Step, Error> {
    let outcome = match (prepared(&row), row.conversation, &row.task) {
        (Some(request), ..) => post::post(engine, &row, request, claimed).await,
        (None, ConversationId::Direct(other), _) => direct::send::encrypt(engine, &row, other).await,
        (None, _, Task::Create { sealed_group_info }) => post::create(engine, &row, sealed_group_info).await,
        (None, _, Task::Send { .. } | Task::Receipt | Task::Leave { .. }) => prepare::encrypt(engine, &row).await,
        (None, ..) => prepare::stage(engine, &row, claimed).await,
    };
    let step = match outcome {
        // A log-in that was refused says nothing about the row.
        Err(Error::Refused(error)) if session::has_ended(&error) => {
            tracing::debug!(%error, "there is no session");
            return Ok(Step::Offline);
        }
        // The relay answers, but not to this: the others do not wait for it.
        Err(Error::Offline(ApiError::Refused(problem))) => defer(engine, &row, &problem).await,
        Err(error @ (Error::Offline(_) | Error::OtherRelay)) => {
            tracing::debug!(%error, "the relay cannot be asked");
            return Ok(Step::Offline);
        }
        Err(error @ (Error::Store(_) | Error::Closed)) => return Err(error),
        // Anything else is final: the app is told.
        Err(error) => fail(engine, &row, error).await,
        Ok(()) => Ok(()),
    };
    if engine.store.with_tx(move |tx| tx.task(row.id).map_err(Error::from)).await?.is_none() {
        claimed.remove(&row.id);
    }
    step.map(|()| Step::Done)
}

/// Tries a row again later, later each time.
async fn defer(engine: &Engine, row: &OutboxRow, problem: &Problem) -> Result<(), Error> {
    tracing::debug!(code = %problem.code, "a task is put off");
    let (id, until_ms) = (row.id, later(engine.clock.now_ms(), row.attempts));
    engine.store.with_tx(move |tx| tx.defer_task(id, until_ms).map_err(Error::from)).await
}

/// When to try again what has not worked `before` this time.
fn later(now_ms: u64, before: u32) -> u64 {
    now_ms.saturating_add(DEFER_MS << before.min(7))
}

async fn fail(engine: &Engine, row: &OutboxRow, error: Error) -> Result<(), Error> {
    let row = row.clone();
    engine
        .store
        .with_tx(move |tx| {
            // The queue may have told more meanwhile.
            let Some(row) = tx.task(row.id)?.filter(|now| now.posted == row.posted) else { return Ok(()) };
            match (&row.task, row.conversation.group().map(|group| tx.active_group(group)).transpose()?.flatten()) {
                // Without the relay knowing it there is no group.
                (Task::Create { .. }, Some(group)) => {
                    let event = StoredEvent::Stuck { group_id: group.id };
                    return inbox::end_group(tx, &group, GroupState::Stuck, &event).map_err(Error::from);
                }
                (task, Some(group)) if task.commits() => group::drop_pending(&tx.mls(), group.live)?,
                _ => {}
            }
            if row.task == Task::Tidy {
                // What cannot be removed must not keep others from writing.
                tx.forget_gone(row.group()?)?;
            }
            if let Task::Gather { accounts } = &row.task {
                // One of them is the matter. The others are added without that one.
                if let (one, other @ [_, ..]) = accounts.split_at(accounts.len() / 2)
                    && !one.is_empty()
                {
                    for accounts in [one, other] {
                        tx.add_first_task(row.conversation, &Task::Gather { accounts: accounts.to_vec() })?;
                    }
                } else {
                    claims::tell_not_added(tx, row.group()?, accounts)?;
                }
            }
            inbox::finish(tx, &row, Err(error)).map_err(Error::from)
        })
        .await
}

fn prepared(row: &OutboxRow) -> Option<&[u8]> {
    row.posted.as_ref().map(|(_, request)| request.as_slice())
}
