//! Being in a group again whose state here is of no use: by oneself, or with the help of another member.
//!
//! First the queue is drained, for the commit that is lacking may be in it; then commits that were missed are asked for
//! (see [`missed`](super::missed)). What is left stands in the store, and a task of the engine goes up the ladder with
//! it: the device joins on its own by the newest sealed group info, unless that is of a commit which it cannot apply;
//! failing that, it asks the members, who may answer at any time; if the group goes on for none of them, another one
//! does (see [`successor`]); an hour later it begins again.
//!
//! Invariant: nothing of the group is given up before the device is in it again, or the relay has said that it is over;
//! what was to be sent waits. What came of a request counts only if nothing else has become known of the group
//! meanwhile.

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use undertone_api::{ApiError, RelayApi as _};
use undertone_wire::{Bytes, CommitRequest, DeviceId, Encoding, ErrorCode, GroupId, Hash, RejoinRequest, StaleGroup};

use super::{Engine, backoff::Backoff, inbox, session::is_final, successor};
use crate::{
    Error,
    crypto::{
        Entropy, group,
        rejoin::{self, Rejoin},
    },
    event::{Connection, Recovered, StoredEvent},
    store::{Aside, GroupRow, GroupState, Recovery, RecoveryStep, StoreError, Task, Tx, Why},
};

/// How soon a group may be joined anew once more.
const EVERY_MS: u64 = 60 * 60 * 1_000;

/// Those who have to do the same thing at the same moment spread over this time.
const JITTER_MS: u64 = 1_000;

/// In a large group, over so much for each member.
const JITTER_MEMBER_MS: u64 = 10;

/// So many who have asked are enough for all.
const ASKING_ENOUGH: usize = 2;

/// The first pause after a step that did not work; it doubles seven times.
const PAUSE_MS: u64 = 250;

/// So much time the members have to answer before another group is looked for. They take turns.
const ANSWER_MS: u64 = 10_000;

/// How often a relay is asked that does not know of the group, or not of commits that were applied here. With the
/// pauses between, that is for a minute, in which somebody who restores a relay may put things right.
const SETBACKS_MAX: u32 = 8;

/// A group as it is once the commit is accepted by which this device joins on its own.
#[derive(Serialize, Deserialize)]
struct Built {
    mls: Bytes,
    commit_seq: u64,
    name: String,
    /// The member devices, as the relay knew them before; `None` if it did not tell.
    members: Option<Vec<DeviceId>>,
}

/// Begins to recover a group, unless that was done a short while ago: then in due time.
pub(super) fn begin(tx: &Tx<'_>, entropy: Entropy, now_ms: u64, group: &GroupRow, why: Why) -> Result<(), StoreError> {
    if group.state != GroupState::Active {
        return Ok(());
    }
    let next_ms = tx.recovery_began_ms(group.id)?.map_or(0, |began_ms| began_ms.saturating_add(EVERY_MS));
    // A clock that was set back must not put it off for ever.
    let recently = next_ms > now_ms && next_ms - now_ms <= EVERY_MS;
    // Only what costs the others a commit each time has to wait.
    let from_ms = if recently && why == Why::Lost { next_ms } else { now_ms };
    begin_at(tx, entropy, from_ms, group, why)
}

/// Begins to recover a group that can be used, at a time, however short before that was last done.
pub(super) fn begin_at(
    tx: &Tx<'_>,
    entropy: Entropy,
    from_ms: u64,
    group: &GroupRow,
    why: Why,
) -> Result<(), StoreError> {
    tx.begin_recovery(group.id, why, spread(entropy, from_ms, tx.members(group.id)?.len()))?;
    tx.add_event(&StoredEvent::Recovering { group_id: group.id })
}

/// At a time, but not in step with others.
pub(super) fn soon(entropy: Entropy, now_ms: u64) -> u64 {
    now_ms.saturating_add(jitter_ms(entropy, JITTER_MS))
}

/// The same among so many who do it at once.
fn spread(entropy: Entropy, now_ms: u64, members: usize) -> u64 {
    now_ms.saturating_add(jitter_ms(entropy, JITTER_MS.max(JITTER_MEMBER_MS.saturating_mul(members as u64))))
}

/// When what did not help may be done again.
pub(super) fn in_an_hour(engine: &Engine) -> u64 {
    soon(engine.entropy, engine.clock.now_ms().saturating_add(EVERY_MS))
}

/// Whether the members were asked and had time enough.
pub(super) fn is_unanswered(recovery: &Recovery, now_ms: u64) -> bool {
    recovery.asked_ms.is_some_and(|asked_ms| asked_ms.saturating_add(ANSWER_MS) <= now_ms)
}

/// A random part of a time.
fn jitter_ms(entropy: Entropy, most_ms: u64) -> u64 {
    let [random] = entropy.bytes().unwrap_or([0]);
    most_ms * u64::from(random) / 255
}

/// Puts the group in place that was built aside, if this is the commit by which this device has joined it: the relay
/// has accepted it. `false` if it is another.
pub(super) fn install(
    tx: &Tx<'_>,
    context: &inbox::Context<'_>,
    group_id: GroupId,
    commit_seq: u64,
    commit: &Bytes,
) -> Result<bool, StoreError> {
    let Some((group, built)) = tx.rejoined_by(&Hash::of(commit.as_slice()))? else { return Ok(false) };
    let Some(row) = recovering(tx, group)?.filter(|row| row.id == group_id) else { return Ok(false) };
    let live = row.live;
    let built: Built =
        Encoding::Cbor.decode(built.as_slice()).map_err(|error| StoreError::Corrupt(error.to_string()))?;
    if built.commit_seq != commit_seq {
        return Ok(false);
    }
    tx.install(row.live, &built.mls)?;
    let before = tx.member_accounts(group)?;
    inbox::tell_name(tx, group, None, &row.name, &built.name)?;
    tx.save_group(&GroupRow { name: built.name, commit_seq, state: GroupState::Active, ..row })?;
    let members = group::members(&tx.mls(), live)?;
    tx.save_members(group, &members, |_| true)?;
    tx.note_gap(group)?;
    if let Some(known) = built.members {
        let own = context.identity.device();
        let gone: Vec<_> =
            members.into_keys().filter(|one| one.device != own && !known.contains(&one.device)).collect();
        inbox::plan_tidying(tx, context, group, &gone)?;
    }
    inbox::tell_members(tx, group, None, &before, &tx.member_accounts(group)?)?;
    done(tx, group, Recovered::Rejoined)?;
    Ok(true)
}

/// A group is as it should be again. What was posted was for an epoch that is over, and who wanted to be let in has
/// been by others, or will be.
pub(super) fn done(tx: &Tx<'_>, group: GroupId, how: Recovered) -> Result<(), StoreError> {
    tx.end_recovery(group)?;
    inbox::start_posted_over(tx, group)?;
    for row in tx.tasks(group)?.iter().filter(|row| matches!(row.task, Task::LetIn { .. })) {
        inbox::finish(tx, row, Ok(()))?;
    }
    tx.add_event(&StoredEvent::Recovered { group_id: group, how })
}

/// Begins with groups whose state is missing altogether.
async fn begin_with_what_is_missing(engine: &Engine) -> Result<(), Error> {
    let (entropy, now_ms) = (engine.entropy, engine.clock.now_ms());
    engine
        .store
        .with_tx(move |tx| {
            for group in tx.groups()?.iter().filter(|group| group.state == GroupState::Active) {
                if !tx.has_mls_state(group.live)? {
                    begin(tx, entropy, now_ms, group, Why::Lost)?;
                }
            }
            Ok(())
        })
        .await
}

/// Goes up the ladder with each group until the engine stops.
pub(super) async fn run(engine: Arc<Engine>) {
    if let Err(error) = begin_with_what_is_missing(&engine).await {
        tracing::warn!(%error, "the groups could not be looked through");
    }
    let mut changed = engine.store.work_changed();
    let mut connection = engine.connection();
    let mut backoff = Backoff::new(engine.entropy);
    loop {
        tokio::select! {
            () = engine.confirmed() => {}
            () = engine.stopped() => return,
        }
        changed.mark_unchanged();
        let online = *connection.borrow_and_update() == Connection::Online;
        let now_ms = engine.clock.now_ms();
        let next = engine.store.with_tx(move |tx| {
            let next = if online { tx.next_recovery(now_ms)? } else { None };
            Ok::<_, Error>((next, tx.next_recovery_at_ms(now_ms)?))
        });
        let (pause, failed) = match next.await {
            Ok((Some(recovery), _)) => {
                let stepped = tokio::select! {
                    stepped = step(&engine, &recovery) => stepped,
                    () = engine.stopped() => return,
                };
                match stepped {
                    Ok(()) => {
                        backoff.reset();
                        continue;
                    }
                    Err(error) => {
                        tracing::debug!(%error, "a group could not be recovered yet");
                        (Some(backoff.wait()), true)
                    }
                }
            }
            Ok((None, at_ms)) => (at_ms.map(|at_ms| Duration::from_millis(at_ms.saturating_sub(now_ms))), false),
            Err(Error::Closed) => return,
            Err(_) => (Some(backoff.wait()), true),
        };
        tokio::select! {
            Ok(()) = connection.changed() => {}
            Ok(()) = changed.changed(), if !failed => {}
            () = engine.clock.pass(pause.unwrap_or_default()), if pause.is_some() => {}
            () = engine.stopped() => return,
        }
    }
}

/// One step, to its end: what comes next stands in the store. An error means that the relay cannot be asked now.
async fn step(engine: &Engine, recovery: &Recovery) -> Result<(), Error> {
    let stepped = match (recovery.step, &recovery.request) {
        (RecoveryStep::Rejoin, None) => prepare(engine, recovery).await,
        (RecoveryStep::Rejoin, Some(request)) => post(engine, recovery, request).await,
        (RecoveryStep::Ask | RecoveryStep::Follow, None) => prepare_asking(engine, recovery).await,
        (RecoveryStep::Ask, Some(request)) => ask(engine, recovery, request).await,
        (RecoveryStep::Wait | RecoveryStep::Succeed, _) => successor::succeed(engine, recovery).await,
        (RecoveryStep::Found, _) => successor::found(engine, recovery).await,
        (RecoveryStep::Follow, Some(request)) => successor::ask_there(engine, recovery, request).await,
        (RecoveryStep::Accepted, _) => Ok(()),
    };
    match stepped {
        // The relay answers, but not to this: the other groups do not wait for it.
        Err(Error::Offline(ApiError::Refused(problem))) => {
            tracing::debug!(code = %problem.code, "a group's recovery is put off");
            let (group, not_before_ms) = (recovery.group_id, later(engine, recovery.attempts));
            unless_overtaken(engine, recovery, move |tx, _| Ok(tx.put_off(group, not_before_ms)?)).await
        }
        stepped => stepped,
    }
}

/// Changes what stands in the store of a recovery, unless more has become known meanwhile.
pub(super) async fn unless_overtaken(
    engine: &Engine,
    recovery: &Recovery,
    change: impl FnOnce(&Tx<'_>, &GroupRow) -> Result<(), Error> + Send + 'static,
) -> Result<(), Error> {
    let before = recovery.clone();
    engine
        .store
        .with_tx(move |tx| match (tx.recovery(before.group_id)?, recovering(tx, before.group_id)?) {
            (Some(now), Some(row)) if now == before => change(tx, &row),
            (Some(_), None) => Ok(tx.end_recovery(before.group_id)?),
            _ => Ok(()),
        })
        .await
}

/// Makes the commit by which this device joins on its own.
async fn prepare(engine: &Engine, recovery: &Recovery) -> Result<(), Error> {
    let group = recovery.live;
    let answer = engine.signed_in(|token| async move { engine.api.group(&token, group).await }).await;
    let described = match answer {
        Ok(described) => described,
        Err(error) if error.code() == Some(&ErrorCode::NotFound) => return no_member(engine, recovery).await,
        Err(error) => return Err(Error::Offline(error)),
    };
    // Only a member is told; one that is about to become one learns of leaves that are to go from the others.
    let answer = engine.signed_in(|token| async move { engine.api.group_members(&token, group).await }).await;
    let members = match answer {
        Ok(known) if known.position == described.position => {
            Some(known.members.iter().map(|member| member.device_id).collect())
        }
        Err(error) if !error.is_a_no() => return Err(Error::Offline(error)),
        _ => None,
    };
    let message_id = engine.message_id()?;
    let (attempts, now_ms, again_ms) = (recovery.attempts, engine.clock.now_ms(), later(engine, recovery.attempts));
    let prepared = move |tx: &Tx<'_>, row: &GroupRow| {
        if described.position.commit_seq < row.commit_seq {
            return set_back(tx, row, attempts, again_ms);
        }
        let (aside, identity) = (Aside::new()?, tx.identity()?);
        let made = tx.attempt(|| rejoin::rejoin(&aside.mls(), &identity, row.suite, &described, &row.rejoin_key))?;
        let Some(Rejoin { commit, commit_seq, sealed_group_info, profile }) = made else {
            return Ok(tx.set_step(row.id, RecoveryStep::Ask, now_ms)?);
        };
        let built = Built { mls: aside.into_bytes()?, commit_seq, name: profile.name, members };
        let request = CommitRequest { message_id, commit, welcome: None, sealed_group_info };
        let (bytes, built) = (Encoding::Cbor.encode(&request), Encoding::Cbor.encode(&built).into());
        Ok(tx.set_rejoin(row.id, &bytes, &request.commit, &built)?)
    };
    unless_overtaken(engine, recovery, prepared).await
}

async fn post(engine: &Engine, recovery: &Recovery, request: &[u8]) -> Result<(), Error> {
    let group = recovery.live;
    let request: &CommitRequest = &stored(request)?;
    let answer = engine.signed_in(|token| async move { engine.api.commit(&token, group, request).await }).await;
    let again_ms = later(engine, recovery.attempts);
    let next = match answer {
        Ok(_) => Ok(()),
        Err(ApiError::Refused(problem)) if is_final(&ApiError::Refused(problem.clone())) => Err(problem),
        Err(error) => return Err(Error::Offline(error)),
    };
    let answered = move |tx: &Tx<'_>, row: &GroupRow| match next {
        Ok(()) => Ok(tx.set_step(row.id, RecoveryStep::Accepted, 0)?),
        Err(problem) => match (problem.code, problem.stale_group) {
            (ErrorCode::StaleGroup, Some(StaleGroup { member: false, .. })) => removed(tx, row),
            // Whatever became of it, the next one is made for where the group stands then.
            _ => Ok(tx.again_at(row.id, again_ms)?),
        },
    };
    unless_overtaken(engine, recovery, answered).await
}

/// The request's id stands in the store before it is posted, so that the members are asked once.
async fn prepare_asking(engine: &Engine, recovery: &Recovery) -> Result<(), Error> {
    if recovery.step == RecoveryStep::Ask && recovery.others.len() >= ASKING_ENOUGH {
        // Whoever could let one in would have let them in.
        return asked(engine, recovery, false).await;
    }
    let request = Encoding::Cbor.encode(&RejoinRequest { message_id: engine.message_id()? });
    unless_overtaken(engine, recovery, move |tx, row| Ok(tx.set_recovery_request(row.id, &request)?)).await
}

async fn ask(engine: &Engine, recovery: &Recovery, request: &[u8]) -> Result<(), Error> {
    let group = recovery.live;
    let request: &RejoinRequest = &stored(request)?;
    let answer = engine.signed_in(|token| async move { engine.api.rejoin(&token, group, request).await }).await;
    let told = match answer {
        Ok(_) => true,
        Err(error) if error.code() == Some(&ErrorCode::NotFound) => {
            if recovery.why != (Why::Refused { removes: true }) {
                return no_member(engine, recovery).await;
            }
            // By the word of a commit that cannot be applied. There is nobody to ask.
            false
        }
        // What the relay has against it does not change by repeating it.
        Err(error) if is_final(&error) => {
            tracing::debug!(%error, "the members cannot be asked");
            false
        }
        Err(error) => return Err(Error::Offline(error)),
    };
    asked(engine, recovery, told).await
}

/// The members were asked, by this device or by others: they have their time now.
async fn asked(engine: &Engine, recovery: &Recovery, told: bool) -> Result<(), Error> {
    let (entropy, now_ms) = (engine.entropy, engine.clock.now_ms());
    let waits = move |tx: &Tx<'_>, row: &GroupRow| {
        tx.note_asked(row.id, now_ms)?;
        let until_ms = spread(entropy, now_ms.saturating_add(ANSWER_MS), tx.members(row.id)?.len());
        tx.set_step(row.id, RecoveryStep::Wait, until_ms)?;
        if told {
            tx.add_event(&StoredEvent::AskedIn { group_id: row.id })?;
        }
        Ok(())
    };
    unless_overtaken(engine, recovery, waits).await
}

/// The relay says that the account has no member in the group: it was removed, or the relay has lost the group.
async fn no_member(engine: &Engine, recovery: &Recovery) -> Result<(), Error> {
    let (id, group) = (recovery.group_id, recovery.live);
    let known = engine.store.with_tx(move |tx| Ok::<_, Error>(tx.group(id)?)).await?;
    let at = known.map_or(0, |row| row.commit_seq);
    let answer = engine.signed_in(|token| async move { engine.api.succession(&token, group, at).await }).await;
    let (attempts, again_ms) = (recovery.attempts, later(engine, recovery.attempts));
    match answer {
        Ok(_) => unless_overtaken(engine, recovery, removed).await,
        Err(error) if error.code() == Some(&ErrorCode::NotFound) => {
            unless_overtaken(engine, recovery, move |tx, row| set_back(tx, row, attempts, again_ms)).await
        }
        Err(error) => Err(Error::Offline(error)),
    }
}

/// The relay does not know of commits that were applied here, or of the group: it was set back to an earlier state. If
/// that stays so, the group is over on this device.
fn set_back(tx: &Tx<'_>, row: &GroupRow, attempts: u32, again_ms: u64) -> Result<(), Error> {
    if attempts < SETBACKS_MAX {
        return Ok(tx.again_at(row.id, again_ms)?);
    }
    tracing::warn!("the relay has lost a group, or commits of it; the group cannot go on here");
    Ok(inbox::end_group(tx, row, GroupState::Stuck, &StoredEvent::Stuck { group_id: row.id })?)
}

fn removed(tx: &Tx<'_>, row: &GroupRow) -> Result<(), Error> {
    let event = StoredEvent::Removed { group_id: row.id, by: None };
    Ok(inbox::end_group(tx, row, GroupState::Removed, &event)?)
}

/// The group, if it is being recovered still.
pub(super) fn recovering(tx: &Tx<'_>, group: GroupId) -> Result<Option<GroupRow>, StoreError> {
    Ok(tx.group(group)?.filter(|row| row.state == GroupState::Recovering))
}

/// When to try again what has not worked `before` this time; never in step with others.
fn later(engine: &Engine, before: u32) -> u64 {
    let pause_ms = PAUSE_MS << before.min(7);
    engine.clock.now_ms().saturating_add(pause_ms / 2 + jitter_ms(engine.entropy, pause_ms / 2))
}

pub(super) fn stored<T: serde::de::DeserializeOwned>(request: &[u8]) -> Result<T, Error> {
    Encoding::Cbor.decode(request).map_err(|error| Error::Store(format!("a stored request: {error}")))
}
