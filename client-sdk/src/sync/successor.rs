//! The last step of a recovery: another group goes on in the place of one that can go on for nobody, with the same id
//! for the app and the same history. It has the accounts of the last epoch that could be applied, without the one that
//! posted the newest commit. Whoever comes first founds it; the relay tells the others which one that is, and the
//! founder adds them.
//!
//! Invariant: a group is left for another only by the relay's word that this one is recorded, never while a commit
//! could be applied, and never for one that the account to be left out has founded or is in. What was to be sent goes
//! out there.

use serde::{Deserialize, Serialize};
use undertone_api::{ApiError, RelayApi as _};
use undertone_wire::{
    AccountId, Bytes, CreateGroupRequest, Encoding, ErrorCode, GroupId, RejoinRequest, SuccessorRequest,
};

use super::{
    Engine, inbox,
    recovery::{self, stored, unless_overtaken},
    session::is_final,
    welcome,
};
use crate::{
    Error,
    crypto::{
        CryptoError, Member, Members,
        group::{self, Continues, Joined, Profile, RejoinKey},
    },
    event::Recovered,
    store::{Aside, GroupRow, GroupState, Recovery, RecoveryStep, StoreError, Successor, Task, Tx, Why},
};

/// For so long a founder may take to add this device, and so much longer for each member of the group.
const WELCOME_MS: u64 = 60_000;
const WELCOME_MEMBER_MS: u64 = 500;

/// For so long it may take to add all others; then those who follow add who is missing.
const GATHER_MS: u64 = 30_000;

/// A relay that says one thing and another is not asked without a pause.
const PAUSE_MS: u64 = 5_000;

/// Each of those who follow waits so much longer than the one before.
const GATHER_TURN_MS: u64 = 3_000;

/// A group that is about to go on in another's place: as it is once the relay has recorded it, and what is posted for
/// that.
#[derive(Serialize, Deserialize)]
struct Founding {
    create: CreateGroupRequest,
    succeed: SuccessorRequest,
    mls: Bytes,
    rejoin_key: RejoinKey,
    culprit: Option<AccountId>,
}

impl Founding {
    fn of(recovery: &Recovery) -> Result<Option<Self>, Error> {
        let request = recovery.request.as_ref().filter(|_| recovery.step == RecoveryStep::Found);
        request.map(|request| stored(request)).transpose()
    }
}

/// A device asks the members of a group to let it in. If this one waits for the same, the group goes on for neither.
pub(super) fn another_asks(
    tx: &Tx<'_>,
    context: &inbox::Context<'_>,
    group: &GroupRow,
    who: Member,
) -> Result<(), StoreError> {
    let Some(recovery) = tx.recovery(group.id)? else { return Ok(()) };
    if who.device != context.identity.device() {
        tx.note_other(&recovery, who.account)?;
        hurry(tx, context, &recovery)?;
    }
    Ok(())
}

/// Another group goes on, by the relay's word. That is nothing to one that goes on here.
pub(super) fn another_goes_on(
    tx: &Tx<'_>,
    context: &inbox::Context<'_>,
    group: &GroupRow,
    successor: Successor,
) -> Result<(), StoreError> {
    let Some(recovery) = tx.recovery(group.id)? else { return Ok(()) };
    // Who has seen the commit that cannot be applied knows where all stand; who has lost something may stand further
    // back.
    let fits = match recovery.why {
        Why::Refused { .. } => successor.at == group.commit_seq,
        Why::Lost => successor.at >= group.commit_seq,
    };
    let known = recovery.successor.is_some_and(|known| known.group == successor.group);
    if known || !fits || recovery.unfit == Some(successor.group) {
        return Ok(());
    }
    tx.note_successor(group.id, Some(successor))?;
    hurry(tx, context, &recovery)
}

/// Looks for a successor at once, if the members have had the time to answer, or the one that was to be followed is not
/// it any more.
fn hurry(tx: &Tx<'_>, context: &inbox::Context<'_>, before: &Recovery) -> Result<(), StoreError> {
    let Some(recovery) = tx.recovery(before.group_id)? else { return Ok(()) };
    let waits = matches!(recovery.step, RecoveryStep::Rejoin | RecoveryStep::Ask) && recovery.request.is_none();
    let unanswered = waits && recovery::is_unanswered(&recovery, context.now_ms);
    let turns = recovery.step == RecoveryStep::Follow && recovery.successor != before.successor;
    if unanswered || turns {
        tx.set_step(recovery.group_id, RecoveryStep::Succeed, recovery::soon(context.entropy, context.now_ms))?;
    }
    Ok(())
}

/// What a device makes of a group that is said to go on in the place of one that cannot.
pub(super) enum Stance {
    /// It follows there.
    Follows,
    /// It does if the relay confirms it.
    Asks,
    /// It is not clear yet that the group cannot go on.
    Waits,
}

/// Before others were heard of, the fault may be here alone: then the members of the group answer.
pub(super) fn stance(recovery: &Recovery, now_ms: u64) -> Stance {
    let helpless = recovery.why == Why::Refused { removes: true } || !recovery.others.is_empty();
    match recovery.step {
        RecoveryStep::Follow => Stance::Follows,
        _ if helpless || recovery::is_unanswered(recovery, now_ms) => Stance::Asks,
        _ => Stance::Waits,
    }
}

/// Takes a group on to its successor, by a Welcome to that.
pub(super) fn follow(
    tx: &Tx<'_>,
    context: &inbox::Context<'_>,
    recovery: &Recovery,
    commit_seq: u64,
    join: impl FnOnce() -> Result<Joined, CryptoError>,
) -> Result<inbox::Outcome, StoreError> {
    let (Some(row), Some(successor)) = (recovery::recovering(tx, recovery.group_id)?, recovery.successor) else {
        return Ok(inbox::Outcome::default());
    };
    if tx.may_have_rejoined(row.id)? {
        return Ok(inbox::Outcome::default());
    }
    let Some(joined) = tx.attempt(join)? else {
        // Its members let it in by another one.
        tx.put_off(row.id, context.now_ms)?;
        return Ok(inbox::Outcome::default());
    };
    let accounts: Vec<_> = group::members(&tx.mls(), joined.group)?.keys().map(|member| member.account).collect();
    let with_culprit = recovery.culprit.is_some_and(|culprit| accounts.contains(&culprit));
    let continues = Some(Continues { group: row.live, at: successor.at });
    let another = successor.group != joined.group || joined.suite != row.suite;
    if with_culprit || joined.profile.continues != continues || another {
        tracing::warn!("a group that is said to go on in the place of another is not fit for that");
        group::forget(&tx.mls(), joined.group)?;
        tx.note_unfit(row.id, successor.group)?;
        tx.set_step(row.id, RecoveryStep::Succeed, recovery::soon(context.entropy, context.now_ms))?;
        return Ok(inbox::Outcome::default());
    }
    let expected = expected_accounts(tx, row.id, recovery.culprit)?;
    let missing: Vec<_> = expected.iter().filter(|account| !accounts.contains(account)).copied().collect();
    let (before, known) = (tx.member_accounts(row.id)?, [accounts, missing.clone()].concat());
    welcome::enter(tx, row.id, commit_seq, &joined)?;
    inbox::tell_members(tx, row.id, Some(joined.by.account), &before, &known)?;
    inbox::tell_name(tx, row.id, None, &row.name, &joined.profile.name)?;
    goes_on(tx, &row, recovery.culprit)?;
    if !missing.is_empty() {
        let turn = tx.members(row.id)?.iter().position(|one| one.device == context.identity.device());
        let turn_ms = GATHER_TURN_MS.saturating_mul(turn.unwrap_or_default() as u64);
        let not_before_ms = context.now_ms.saturating_add(GATHER_MS).saturating_add(turn_ms);
        tx.add_task(row.id, &Task::Gather { accounts: missing }, None, not_before_ms)?;
    }
    Ok(inbox::Outcome::Applied(inbox::Effect { joined: true, ..inbox::Effect::default() }))
}

/// The successor is in the place of the group that it continues.
fn goes_on(tx: &Tx<'_>, before: &GroupRow, culprit: Option<AccountId>) -> Result<(), StoreError> {
    for row in tx.tasks(before.id)? {
        match &row.task {
            // Of the group before.
            Task::Gather { .. } | Task::Tidy => inbox::finish(tx, &row, Ok(()))?,
            Task::Add { account } if Some(*account) == culprit => inbox::finish(tx, &row, Err(Error::NoSuchMember))?,
            _ => {}
        }
    }
    group::forget(&tx.mls(), before.live)?;
    recovery::done(tx, before.id, Recovered::Successor)?;
    tx.forget_recovery(before.id)
}

/// Who belongs in the successor.
fn expected_accounts(tx: &Tx<'_>, group: GroupId, culprit: Option<AccountId>) -> Result<Vec<AccountId>, StoreError> {
    Ok(tx.member_accounts(group)?.into_iter().filter(|account| Some(*account) != culprit).collect())
}

/// What the relay knows of what goes on.
struct Known {
    /// The newest one that is recorded.
    recorded: Option<GroupId>,
    /// The same, if it is fit to be followed as far as can be told from outside.
    fit: Option<GroupId>,
    /// Whose newest commit it is, if that is not one that was applied here, or this account's own.
    culprit: Option<AccountId>,
    /// Whether there is a commit that was not applied here.
    begins: bool,
}

/// Asks the relay what goes on from a commit; `None` if it knows nothing of this device there.
async fn look(engine: &Engine, recovery: &Recovery, at: u64) -> Result<Option<Known>, Error> {
    let live = recovery.live;
    let said = match engine.signed_in(|token| async move { engine.api.succession(&token, live, at).await }).await {
        Ok(said) => said,
        Err(error) if error.code() == Some(&ErrorCode::NotFound) => return Ok(None),
        Err(error) => return Err(Error::Offline(error)),
    };
    let newest = said.newest_commit_account.filter(|account| *account != engine.identity().account());
    // Behind the commit that it begins from there must be one that cannot be applied.
    let begins = said.position.commit_seq > at;
    let culprit = newest.filter(|_| begins);
    let fit = match said.successor.filter(|recorded| begins && Some(*recorded) != recovery.unfit) {
        Some(recorded) if may_be_followed(engine, recorded, culprit).await? => Some(recorded),
        _ => None,
    };
    Ok(Some(Known { recorded: said.successor, fit, culprit, begins }))
}

/// Only the members of a group are told who is in it: until this device is one, nothing speaks against it.
async fn may_be_followed(engine: &Engine, successor: GroupId, culprit: Option<AccountId>) -> Result<bool, Error> {
    match engine.signed_in(|token| async move { engine.api.group_members(&token, successor).await }).await {
        Ok(known) => Ok(!known.members.iter().any(|member| Some(member.account_id) == culprit)),
        Err(error) if is_final(&error) => Ok(true),
        Err(error) => Err(Error::Offline(error)),
    }
}

/// Asks the relay whether the successor that was told of is recorded, and whom it must not have.
pub(super) async fn consider(engine: &Engine, group: GroupId) -> Result<(), Error> {
    let recovery = engine.store.with_tx(move |tx| tx.recovery(group).map_err(Error::from)).await?;
    let Some((recovery, noted)) = recovery.and_then(|recovery| Some((recovery.clone(), recovery.successor?))) else {
        return Ok(());
    };
    let known = look(engine, &recovery, noted.at).await?;
    let followed = known.filter(|known| known.fit == Some(noted.group));
    let (identity, entropy, now_ms) = (engine.identity(), engine.entropy, engine.clock.now_ms());
    let follows = recovery.step == RecoveryStep::Follow;
    unless_overtaken(engine, &recovery, move |tx, row| match followed {
        Some(known) => {
            let context = inbox::Context { identity: &identity, entropy, now_ms, looked_up: false };
            follow_recorded(tx, &context, row.id, noted, known.culprit)
        }
        None => {
            tx.note_successor(row.id, None)?;
            tx.take_held(noted.group)?;
            if follows {
                tx.set_step(row.id, RecoveryStep::Succeed, now_ms.saturating_add(PAUSE_MS))?;
            }
            Ok(())
        }
    })
    .await
}

/// Follows, with what has come from there already.
fn follow_recorded(
    tx: &Tx<'_>,
    context: &inbox::Context<'_>,
    group: GroupId,
    recorded: Successor,
    culprit: Option<AccountId>,
) -> Result<(), Error> {
    tx.note_culprit(group, culprit)?;
    tx.note_successor(group, Some(recorded))?;
    let members = tx.members(group)?.len() as u64;
    let patience_ms = WELCOME_MS.saturating_add(WELCOME_MEMBER_MS.saturating_mul(members));
    tx.set_step(group, RecoveryStep::Follow, context.now_ms.saturating_add(patience_ms))?;
    for envelope in tx.take_held(recorded.group)? {
        inbox::apply_envelope(tx, context, &envelope)?;
    }
    Ok(())
}

/// Looks which group goes on. If there is none, and the group cannot go on for others either, makes one.
pub(super) async fn succeed(engine: &Engine, recovery: &Recovery) -> Result<(), Error> {
    let id = recovery.group_id;
    let row = engine.store.with_tx(move |tx| Ok::<_, Error>(tx.group(id)?)).await?;
    let Some(stands) = row.map(|row| row.commit_seq) else { return Ok(()) };
    let at = recovery.successor.map_or(stands, |noted| noted.at);
    let known = look(engine, recovery, at).await?;
    let (identity, entropy, now_ms) = (engine.identity(), engine.entropy, engine.clock.now_ms());
    let (message_id, again_ms) = (engine.message_id()?, recovery::in_an_hour(engine));
    let successor = GroupId::from_random(entropy.bytes()?);
    let before = recovery.clone();
    let looked = move |tx: &Tx<'_>, row: &GroupRow| {
        let again = || Ok(tx.set_step(row.id, before.why.first_step(), again_ms)?);
        let Some(Known { recorded, fit, culprit, begins }) = known else { return again() };
        if let Some(group) = fit {
            let context = inbox::Context { identity: &identity, entropy, now_ms, looked_up: false };
            return follow_recorded(tx, &context, row.id, Successor { group, at }, culprit);
        }
        if at != row.commit_seq {
            tx.note_successor(row.id, None)?;
            return Ok(tx.set_step(row.id, RecoveryStep::Succeed, now_ms.saturating_add(PAUSE_MS))?);
        }
        let accounts = expected_accounts(tx, row.id, culprit)?;
        let own = identity.account();
        let helpless = match before.why {
            Why::Refused { removes: true } => true,
            _ if begins => before.others.iter().any(|account| Some(*account) != culprit),
            // Nothing is wrong with the group itself, unless it is lost for all.
            _ => accounts.iter().all(|account| *account == own || before.others.contains(account)),
        };
        if !helpless || accounts.iter().all(|account| *account == own) {
            return again();
        }
        let aside = Aside::new()?;
        let profile = Profile { name: row.name.clone(), continues: Some(Continues { group: row.live, at }) };
        let created = group::create(&aside.mls(), &identity, row.suite, successor, &profile)?;
        let create = CreateGroupRequest { group_id: successor, sealed_group_info: created.sealed_group_info };
        let succeed = SuccessorRequest { message_id, at, successor, replaces: recorded };
        let (mls, rejoin_key) = (aside.into_bytes()?, created.rejoin_key);
        tx.set_step(row.id, RecoveryStep::Found, now_ms)?;
        let founding = Encoding::Cbor.encode(&Founding { create, succeed, mls, rejoin_key, culprit });
        Ok(tx.set_recovery_request(row.id, &founding)?)
    };
    unless_overtaken(engine, recovery, looked).await
}

/// Posts what is made, and goes on there if the relay has recorded it; otherwise, where the relay says.
pub(super) async fn found(engine: &Engine, recovery: &Recovery) -> Result<(), Error> {
    let Some(founding) = Founding::of(recovery)? else { return Ok(()) };
    let (live, create, succeed) = (recovery.live, &founding.create, &founding.succeed);
    let posted = engine
        .signed_in(|token| async move {
            engine.api.create_group(&token, create).await?;
            engine.api.succeed(&token, live, succeed).await
        })
        .await;
    let said = match posted {
        Ok(said) => Some(said),
        Err(error) if is_final(&error) => {
            tracing::debug!(%error, "a successor was refused");
            None
        }
        Err(error) => return Err(Error::Offline(error)),
    };
    let (identity, entropy, now_ms) = (engine.identity(), engine.entropy, engine.clock.now_ms());
    let (why, again_ms) = (recovery.why, recovery::in_an_hour(engine));
    let answered = move |tx: &Tx<'_>, row: &GroupRow| match said.and_then(|said| said.successor) {
        Some(recorded) if recorded == founding.create.group_id => {
            let context = inbox::Context { identity: &identity, entropy, now_ms, looked_up: false };
            Ok(go_on_there(tx, &context, row, &founding)?)
        }
        // Another was recorded first.
        Some(_) => Ok(tx.set_step(row.id, RecoveryStep::Succeed, now_ms.saturating_add(PAUSE_MS))?),
        None => Ok(tx.set_step(row.id, why.first_step(), again_ms)?),
    };
    unless_overtaken(engine, recovery, answered).await
}

/// The founder goes on, and adds all who belong there before it sends anything.
fn go_on_there(
    tx: &Tx<'_>,
    context: &inbox::Context<'_>,
    row: &GroupRow,
    founding: &Founding,
) -> Result<(), StoreError> {
    let (before, expected) = (tx.member_accounts(row.id)?, expected_accounts(tx, row.id, founding.culprit)?);
    let live = founding.create.group_id;
    tx.install(live, &founding.mls)?;
    tx.save_group(&GroupRow {
        live,
        state: GroupState::Active,
        commit_seq: 0,
        rejoin_key: founding.rejoin_key.clone(),
        ..row.clone()
    })?;
    let own = (context.identity.member(), context.identity.mls_key());
    tx.save_members(row.id, &Members::from([own]), |_| true)?;
    inbox::tell_members(tx, row.id, None, &before, &expected)?;
    goes_on(tx, row, founding.culprit)?;
    tx.add_first_task(row.id, &Task::Gather { accounts: expected })
}

/// Asks the members of the successor, if its founder has not added this device.
pub(super) async fn ask_there(engine: &Engine, recovery: &Recovery, request: &[u8]) -> Result<(), Error> {
    let (entropy, now_ms, again_ms) = (engine.entropy, engine.clock.now_ms(), recovery::in_an_hour(engine));
    let Some(successor) = recovery.successor else {
        let from_ms = now_ms.saturating_add(PAUSE_MS);
        let look = move |tx: &Tx<'_>, row: &GroupRow| Ok(tx.set_step(row.id, RecoveryStep::Succeed, from_ms)?);
        return unless_overtaken(engine, recovery, look).await;
    };
    let request: &RejoinRequest = &stored(request)?;
    let answer =
        engine.signed_in(|token| async move { engine.api.rejoin(&token, successor.group, request).await }).await;
    let is_none = match answer {
        Ok(_) => false,
        Err(ApiError::Refused(problem)) if problem.code == ErrorCode::NotFound => true,
        Err(error) if is_final(&error) => false,
        Err(error) => return Err(Error::Offline(error)),
    };
    let answered = move |tx: &Tx<'_>, row: &GroupRow| {
        if is_none {
            // Whoever founded it has not come to adding this account, and perhaps never will.
            tx.note_unfit(row.id, successor.group)?;
            return Ok(tx.set_step(row.id, RecoveryStep::Succeed, recovery::soon(entropy, now_ms))?);
        }
        // One of its members may be online at any time.
        Ok(tx.again_at(row.id, again_ms)?)
    };
    unless_overtaken(engine, recovery, answered).await
}
