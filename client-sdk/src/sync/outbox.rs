//! Doing what is to be done at the relay, one task after the other.
//!
//! A request is made and stored in one transaction, then posted until the relay says yes or no. Only a no makes a new
//! one. A refusal carries its repair: the task waits until the queue has brought what it lacks, and starts over.
//!
//! Invariant: a commit is merged by its own row in this device's queue (see [`inbox`]), never ahead of what stands
//! before it there, and dropped only on the relay's no.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use undertone_api::{ApiError, RelayApi as _};
use undertone_wire::{
    Bytes, CommitRequest, CreateGroupRequest, Encoding, ErrorCode, GroupId, LeaveRequest, Problem, SendRequest,
    StaleGroup,
};

use super::{
    Engine,
    backoff::Backoff,
    claims::{self, Claimed},
    direct, inbox, missed, receipts, recovery, updates,
};
use crate::{
    Error,
    conversation_id::ConversationId,
    crypto::{
        Entropy, Member,
        group::{self, Change, Staged},
        key_package,
    },
    event::StoredEvent,
    message::Content,
    store::{GroupRow, GroupState, MessageStatus, OutboxRow, OutboxState, StoreError, Task, Tx, Why},
};

/// A task that the relay refuses so often for a reason that should pass is given up.
const REFUSALS_MAX: u32 = 20;

/// A group of which the relay does not know all commits so often is over. With the pauses between, that is for a
/// minute, in which somebody who restores a relay may put things right.
const SETBACKS_MAX: u32 = 8;

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
    let outcome = match (&row.task, row.conversation, prepared(&row)) {
        (_, ConversationId::Direct(_), Some(request)) => post_direct(engine, &row, request).await,
        (_, ConversationId::Direct(other), None) => direct::send::encrypt(engine, &row, other).await,
        (Task::Create { sealed_group_info }, ..) => create(engine, &row, sealed_group_info).await,
        (_, _, Some(request)) => post(engine, &row, request, claimed).await,
        (Task::Send { .. } | Task::Receipt | Task::Leave { .. }, ..) => encrypt(engine, &row).await,
        _ => stage(engine, &row, claimed).await,
    };
    let step = match outcome {
        // A log-in that was refused says nothing about the row.
        Err(Error::Refused(error)) if super::session::has_ended(&error) => {
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

async fn create(engine: &Engine, row: &OutboxRow, sealed_group_info: &Bytes) -> Result<(), Error> {
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

/// Encrypts a message for the group's present epoch, once, and leaves it to be posted.
async fn encrypt(engine: &Engine, row: &OutboxRow) -> Result<(), Error> {
    let message_id = engine.message_id()?;
    let id = engine.message_id()?;
    let (identity, row) = (engine.identity(), row.clone());
    let (entropy, now_ms) = (engine.entropy, engine.clock.now_ms());
    engine
        .store
        .with_tx(move |tx| {
            let Some(group) = group_to_use(tx, &row, entropy, now_ms)? else { return Ok(()) };
            // Nothing more is encrypted for who is gone.
            if !matches!(row.task, Task::Leave { .. }) && !tx.gone(group.id)?.is_empty() {
                return Ok(tx.tidy_first(group.id)?);
            }
            let content = match &row.task {
                Task::Send { content } | Task::Leave { content } => content.clone(),
                _ => match receipts::body(tx, row.conversation)? {
                    Some(body) => {
                        let list_version = tx.list_version(identity.account())?;
                        Content { id, sent_at_ms: now_ms, list_version, body }.encode()
                    }
                    None => return inbox::finish(tx, &row, Ok(())).map_err(Error::from),
                },
            };
            let bytes = group::encrypt(&tx.mls(), &identity, group.live, group.commit_seq, content.as_slice())?;
            let request = match row.task {
                Task::Leave { .. } => Encoding::Cbor.encode(&LeaveRequest { message_id, notice: bytes.clone() }),
                _ => Encoding::Cbor.encode(&SendRequest { message_id, message: bytes.clone(), ttl_s: None }),
            };
            tx.set_posted(row.id, message_id, &request, &bytes).map_err(Error::from)
        })
        .await
}

/// Stages a commit and leaves it to be posted.
async fn stage(engine: &Engine, row: &OutboxRow, claimed: &mut Claimed) -> Result<(), Error> {
    let claims = match claimed.get(&row.id) {
        Some(claims) => claims.clone(),
        None => {
            let claims = claims::claim_for(engine, row).await?;
            claimed.entry(row.id).or_insert(claims).clone()
        }
    };
    let message_id = engine.message_id()?;
    let row = row.clone();
    let (entropy, own_now_ms, now_ms) = (engine.entropy, engine.clock.now_ms(), engine.relay_now_ms());
    engine
        .store
        .with_tx(move |tx| {
            let Some(group) = group_to_use(tx, &row, entropy, own_now_ms)? else { return Ok(()) };
            let (mls, identity, mut add) = (tx.mls(), tx.identity()?, claims.key_packages.clone());
            // Nothing of this group is posted now, so a commit that is still pending was refused.
            group::drop_pending(&mls, group.live)?;
            let mut gathered = vec![];
            if let Task::Gather { accounts } = &row.task {
                add.retain(|(owner, bytes)| key_package::is_usable(&mls, bytes, *owner, now_ms));
                gathered = claims::gather_in_parts(tx, &row, accounts, &claims, own_now_ms)?;
            }
            let mut remove = tx.gone(group.id)?;
            if let Task::Remove { account } = row.task {
                let members = tx.members(group.id)?;
                remove.extend(members.iter().filter(|member| member.account == account).map(|member| member.device));
            }
            if let Task::LetIn { account, device } = row.task {
                // Only with a key package to be added by.
                if add.is_empty() || !inbox::may_let_in(tx, group.id, Member { account, device })? {
                    return inbox::finish(tx, &row, Ok(())).map_err(Error::from);
                }
                remove.push(device);
            }
            let rename = if let Task::Rename { name } = &row.task { Some(name.clone()) } else { None };
            let change = Change { add, remove, rename, update: row.task == Task::Update };
            let staged =
                group::stage(&mls, &identity, group.live, group.commit_seq, &group.rejoin_key, &change, now_ms)?;
            let Some(Staged { commit, welcome, sealed_group_info }) = staged else {
                claims::tell_not_added(tx, group.id, &gathered)?;
                return inbox::finish(tx, &row, Ok(())).map_err(Error::from);
            };
            let request = CommitRequest { message_id, commit, welcome, sealed_group_info };
            let bytes = Encoding::Cbor.encode(&request);
            tx.set_posted(row.id, message_id, &bytes, &request.commit).map_err(Error::from)
        })
        .await
}

/// The row's group, if it can be used now. If it cannot any more, the row is ended; if it is to be recovered first, the
/// row waits.
fn group_to_use(tx: &Tx<'_>, row: &OutboxRow, entropy: Entropy, now_ms: u64) -> Result<Option<GroupRow>, StoreError> {
    if tx.task(row.id)?.is_none_or(|now| now.state != OutboxState::Waiting) {
        return Ok(None);
    }
    match tx.group(row.group()?)? {
        Some(group) if group.state == GroupState::Active => {
            if tx.has_mls_state(group.live)? {
                return Ok(Some(group));
            }
            tracing::warn!("the state of a group is missing");
            recovery::begin(tx, entropy, now_ms, &group, Why::Lost)?;
        }
        Some(group) if group.state == GroupState::Recovering => {}
        _ => inbox::finish(tx, row, Err(Error::NotMember))?,
    }
    Ok(None)
}

/// Posts a prepared request and records the relay's word.
async fn post(engine: &Engine, row: &OutboxRow, request: &[u8], claimed: &mut Claimed) -> Result<(), Error> {
    match ask(engine, row, row.live()?, request).await {
        Ok(()) => accepted(engine, row).await,
        Err(ApiError::Refused(problem)) => {
            // A device that is to be added is gone: claim again, from the account's newest list.
            if problem.code == ErrorCode::UnknownDevice {
                claimed.remove(&row.id);
            }
            refused(engine, row, problem).await
        }
        Err(error) => Err(error.into()),
    }
}

/// Posts a direct message and records the relay's word.
async fn post_direct(engine: &Engine, row: &OutboxRow, request: &[u8]) -> Result<(), Error> {
    let problem = match direct::send::ask(engine, request).await {
        Ok(()) => return accepted(engine, row).await,
        Err(ApiError::Refused(problem)) => problem,
        Err(error) => return Err(error.into()),
    };
    if problem.code == ErrorCode::QueueFull {
        return defer(engine, row, &problem).await;
    }
    if let ConversationId::Direct(other) = row.conversation {
        direct::send::repair(engine, other, &problem).await?;
    }
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
