//! Asking the relay for what was prepared, and what follows from its word: yes, or no with the repair that it names.

use std::sync::atomic::Ordering;

use undertone_api::{ApiError, RelayApi as _};
use undertone_wire::{
    AccountId, Bytes, CommitRequest, CreateGroupRequest, Encoding, ErrorCode, GroupId, LeaveRequest, Problem,
    SendDirectRequest, SendRequest, StaleGroup,
};

use super::{Claimed, defer, later};
use crate::{
    Error,
    conversation_id::ConversationId,
    event::StoredEvent,
    store::{GroupRow, GroupState, MessageStatus, OutboxRow, OutboxState, StoreError, Task, Tx, Why},
    sync::{Engine, direct, inbox, missed, recovery},
};

/// A task that the relay refuses so often for a reason that should pass is given up.
const REFUSALS_MAX: u32 = 20;

/// A group of which the relay does not know all commits so often is over. With the pauses between, that is for a
/// minute, in which somebody who restores a relay may put things right.
const SETBACKS_MAX: u32 = 8;

/// Creates a group at the relay.
pub(super) async fn create(engine: &Engine, row: &OutboxRow, sealed_group_info: &Bytes) -> Result<(), Error> {
    let request = &CreateGroupRequest { group_id: row.live()?, sealed_group_info: sealed_group_info.clone() };
    let created = engine.signed_in(|token| async move { engine.api.create_group(&token, request).await }).await?;
    let (row, entropy, now_ms) = (row.clone(), engine.entropy, engine.clock.now_ms());
    engine
        .store
        .with_tx(move |tx| {
            if created.position.commit_seq > 0
                && let Some(group) = tx.active_group(row.group()?)?
            {
                // Another copy of the store has created it, and gone on.
                recovery::begin_at(tx, entropy, now_ms, &group, Why::Lost)?;
            }
            tx.finish_task(row.id, Ok(())).map_err(Error::from)
        })
        .await
}

/// Posts a prepared request and records the relay's word.
pub(super) async fn post(engine: &Engine, row: &OutboxRow, request: &[u8], claimed: &mut Claimed) -> Result<(), Error> {
    let asked = match row.conversation {
        ConversationId::Direct(_) => ask_direct(engine, request).await,
        ConversationId::Group(_) => ask(engine, row, row.live()?, request).await,
    };
    let problem = match asked {
        Ok(()) => return accepted(engine, row).await,
        Err(ApiError::Refused(problem)) => problem,
        Err(error) => return Err(error.into()),
    };
    if let ConversationId::Direct(other) = row.conversation {
        return refused_direct(engine, row, other, problem).await;
    }
    // A device that is to be added is gone: claim again, from the account's newest list.
    if problem.code == ErrorCode::UnknownDevice {
        claimed.remove(&row.id);
    }
    refused(engine, row, problem).await
}

async fn ask_direct(engine: &Engine, request: &[u8]) -> Result<(), ApiError> {
    let request: &SendDirectRequest = &stored(request)?;
    engine.signed_in(|token| async move { engine.api.send_direct(&token, request).await }).await.map(drop)
}

async fn ask(engine: &Engine, row: &OutboxRow, group: GroupId, request: &[u8]) -> Result<(), ApiError> {
    let api = &engine.api;
    match row.task {
        Task::Send { .. } | Task::Receipt => {
            let request: &SendRequest = &stored(request)?;
            engine.signed_in(|token| async move { api.send(&token, group, request).await }).await.map(drop)
        }
        Task::Leave { .. } => {
            let request: &LeaveRequest = &stored(request)?;
            engine.signed_in(|token| async move { api.leave(&token, group, request).await }).await.map(drop)
        }
        _ => {
            let request: &CommitRequest = &stored(request)?;
            engine.signed_in(|token| async move { api.commit(&token, group, request).await }).await.map(drop)
        }
    }
}

fn stored<T: serde::de::DeserializeOwned>(request: &[u8]) -> Result<T, ApiError> {
    Encoding::Cbor.decode(request).map_err(|error| ApiError::Unreachable(format!("a stored request: {error}")))
}

async fn accepted(engine: &Engine, row: &OutboxRow) -> Result<(), Error> {
    if matches!(row.task, Task::Send { .. }) {
        engine.sent.fetch_add(1, Ordering::Relaxed);
    }
    still_posted(engine, row, |tx, row| {
        inbox::set_message_status(tx, row, MessageStatus::Sent)?;
        if row.task == Task::Receipt {
            tx.receipt_told(row.conversation)?;
        }
        tx.set_accepted(row.id)
    })
    .await
}

/// The relay does not take a direct message.
async fn refused_direct(
    engine: &Engine,
    row: &OutboxRow,
    other: AccountId,
    problem: Box<Problem>,
) -> Result<(), Error> {
    if problem.code == ErrorCode::QueueFull {
        return defer(engine, row, &problem).await;
    }
    direct::send::repair(engine, other, &problem).await?;
    let repaired = matches!(problem.code, ErrorCode::StaleDevices | ErrorCode::NotFound);
    let again = repaired || matches!(problem.code, ErrorCode::ClockSkew | ErrorCode::OutcomeUnknown);
    if !again || row.refusals >= REFUSALS_MAX {
        return Err(ApiError::Refused(problem).into());
    }
    // The first time at once, then later each time.
    let now_ms = engine.clock.now_ms();
    still_posted(engine, row, move |tx, row| {
        tx.set_waiting(row.id, 0)?;
        tx.count_refusal(row.id, row.refusals.checked_sub(1).map_or(0, |before| later(now_ms, before)))
    })
    .await
}

/// The relay does not take what was to be done in a group.
async fn refused(engine: &Engine, row: &OutboxRow, problem: Box<Problem>) -> Result<(), Error> {
    match (&problem.code, &problem.stale_group) {
        (ErrorCode::StaleGroup, Some(stale)) => {
            let (stale, now_ms) = (stale.clone(), engine.clock.now_ms());
            if let Some(up_to) = missed_up_to(engine, row, &stale).await? {
                missed::fetch(engine, row.live()?, up_to).await?;
            }
            still_posted(engine, row, move |tx, row| catch_up_or_end(tx, row, &stale, now_ms)).await
        }
        // The relay once had the group, or nothing would have been posted there.
        (ErrorCode::NotFound, _) => {
            let now_ms = engine.clock.now_ms();
            still_posted(engine, row, move |tx, row| match tx.active_group(row.group()?)? {
                Some(group) => set_back(tx, row, &group, now_ms),
                None => inbox::finish(tx, row, Err(Error::NotMember)),
            })
            .await
        }
        // The answer has set the clock right, or the id has outlived the relay's memory: try under a new one. A commit
        // may stand in the queue already: the same one goes out again, and stays pending.
        (ErrorCode::ClockSkew | ErrorCode::OutcomeUnknown, _) if row.task.commits() => {
            let (message_id, now_ms) = (engine.message_id()?, engine.clock.now_ms());
            still_posted(engine, row, move |tx, row| {
                let Some((_, request)) = &row.posted else { return Ok(()) };
                let request: CommitRequest =
                    Encoding::Cbor.decode(request).map_err(|error| StoreError::Corrupt(error.to_string()))?;
                let request = CommitRequest { message_id, ..request };
                tx.set_posted(row.id, message_id, &Encoding::Cbor.encode(&request), &request.commit)?;
                // It is never given up, so it is not asked in a loop either.
                let not_before_ms = row.refusals.checked_sub(1).map_or(0, |before| later(now_ms, before));
                tx.count_refusal(row.id, not_before_ms)
            })
            .await
        }
        (ErrorCode::ClockSkew | ErrorCode::OutcomeUnknown | ErrorCode::UnknownDevice, _)
            if row.refusals < REFUSALS_MAX =>
        {
            still_posted(engine, row, |tx, row| {
                tx.set_waiting(row.id, 0)?;
                tx.count_refusal(row.id, 0)
            })
            .await
        }
        _ => Err(ApiError::Refused(problem).into()),
    }
}

/// Up to which commit this device has missed those of a group, if its queue will not bring them any more.
async fn missed_up_to(engine: &Engine, row: &OutboxRow, stale: &StaleGroup) -> Result<Option<u64>, Error> {
    let (group, stale) = (row.group()?, stale.clone());
    engine
        .store
        .with_tx(move |tx| {
            let Some(at) = tx.active_group(group)?.map(|group| group.commit_seq) else { return Ok(None) };
            let (cursor, behind) = (tx.cursor()?, stale.member && at < stale.position.commit_seq);
            let comes = stale.unacked.iter().any(|commit| commit.seq > cursor);
            Ok((behind && !comes).then_some(stale.position.commit_seq))
        })
        .await
}

/// The group has moved on: the row waits for what the queue still has to bring, or for the group to be recovered. If
/// that is nothing, the group is over.
///
/// A row that is still posted was made for the commit at which the group stands here.
fn catch_up_or_end(tx: &Tx<'_>, row: &OutboxRow, stale: &StaleGroup, now_ms: u64) -> Result<(), StoreError> {
    let last = stale.unacked.iter().map(|commit| commit.seq).max().unwrap_or(0);
    let group = match tx.group(row.group()?)? {
        Some(group) if group.state == GroupState::Active => group,
        Some(group) if group.state == GroupState::Recovering => return tx.set_waiting(row.id, 0),
        _ => return inbox::finish(tx, row, Err(Error::NotMember)),
    };
    if last > tx.cursor()? && i64::try_from(last).is_ok() {
        return tx.set_waiting(row.id, last);
    }
    let left = matches!(row.task, Task::Leave { .. }) && !stale.member;
    if !left && stale.position.commit_seq < group.commit_seq {
        return set_back(tx, row, &group, now_ms);
    }
    let (state, event) = match stale.member {
        false if left => (GroupState::Left, StoredEvent::Left { group_id: group.id }),
        false => (GroupState::Removed, StoredEvent::Removed { group_id: group.id, by: None }),
        // The relay contradicts itself.
        true => return tx.defer_task(row.id, later(now_ms, row.attempts)),
    };
    inbox::end_group(tx, &group, state, &event)
}

/// The relay does not know of commits that were applied here, or of the group: it was set back to an earlier state.
/// Nothing that is posted from here can be accepted there; if that stays so, the group is over on this device.
fn set_back(tx: &Tx<'_>, row: &OutboxRow, group: &GroupRow, now_ms: u64) -> Result<(), StoreError> {
    if row.setbacks < SETBACKS_MAX {
        return tx.count_setback(row.id, later(now_ms, row.setbacks));
    }
    tracing::warn!("the relay has lost commits of a group; the group cannot go on here");
    inbox::end_group(tx, group, GroupState::Stuck, &StoredEvent::Stuck { group_id: group.id })
}

/// Changes a row after the relay's word, unless the queue has told more meanwhile.
async fn still_posted(
    engine: &Engine,
    row: &OutboxRow,
    change: impl FnOnce(&Tx<'_>, &OutboxRow) -> Result<(), StoreError> + Send + 'static,
) -> Result<(), Error> {
    let (id, posted) = (row.id, row.posted.clone());
    engine
        .store
        .with_tx(move |tx| match tx.task(id)? {
            Some(row) if row.state == OutboxState::Posted && row.posted == posted => {
                change(tx, &row).map_err(Error::from)
            }
            _ => Ok(()),
        })
        .await
}
