//! Applying one queue entry: decrypt, write, move the cursor, all in the caller's transaction.
//!
//! An entry that cannot be opened is passed over with an event. Behind a commit that cannot be applied everything is
//! out of reach, so the device has to come back into the group (see [`recovery`]).
//!
//! Invariant: applying is decided by the entry and the store alone. An error here is the store's and means: nothing
//! was written, try again.

use undertone_wire::{Account, AccountId, Bytes, Delivery, DeviceList, Envelope, GroupId, Hash, chain_continues};

use super::{content, direct, recovery, successor, updates, welcome};
use crate::{
    Error,
    conversation_id::ConversationId,
    crypto::{
        Entropy, Identity, Member, Suite,
        group::{self, Applied, Opened},
        key_package,
    },
    event::StoredEvent,
    store::{
        GroupRow, GroupState, LastResort, MessageStatus, OutboxRow, OutboxState, SendFailure, StoreError, Successor,
        Task, Tx, Why,
    },
};

/// Members take turns at removing the leaves of those who are gone: the first at once, the next so much later.
const TIDY_TURN_MS: u64 = 3_000;

/// The last of them let somebody in after this time.
const LET_IN_MS_MAX: u64 = 30_000;

/// What came of an entry.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It was applied, and the cursor moved.
    Applied(Effect),
    /// It stands behind commits of a group, up to this number, that this device has missed. Nothing was written.
    Lacks { live: GroupId, up_to: u64 },
    /// It would take a group on to its successor, of which the relay is to be asked first. Nothing was written.
    Follows { group_id: GroupId },
    /// It is said to be from a device of an account that is not known here. The relay is to be asked first. Nothing was
    /// written.
    Unknown { account: AccountId },
}

impl Default for Outcome {
    fn default() -> Self {
        Self::Applied(Effect::default())
    }
}

/// What an entry did that others wait for. All else that follows from it is found in the store.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Effect {
    /// A key package was used.
    pub(super) joined: bool,
    /// A message was added.
    pub(super) received: bool,
    /// The relay has told that key packages should be published.
    pub(super) keys_wanted: bool,
    /// Who this device is has changed.
    pub(super) identity_changed: bool,
}

/// Who applies, and when.
pub(super) struct Context<'a> {
    pub(super) identity: &'a Identity,
    pub(super) entropy: Entropy,
    pub(super) now_ms: u64,
    /// Whether the relay was asked just now about the account that is not known.
    pub(super) looked_up: bool,
}

/// Applies an entry, whose number is above the cursor, and moves the cursor to it.
pub(super) fn apply(tx: &Tx<'_>, context: &Context<'_>, delivery: &Delivery) -> Result<Outcome, StoreError> {
    let outcome = apply_envelope(tx, context, &delivery.envelope)?;
    if matches!(outcome, Outcome::Applied(_)) {
        tx.set_cursor(delivery.seq)?;
    }
    Ok(outcome)
}

/// Applies what an entry brings.
pub(super) fn apply_envelope(tx: &Tx<'_>, context: &Context<'_>, envelope: &Envelope) -> Result<Outcome, StoreError> {
    Ok(match envelope {
        Envelope::GroupMessage { group_id: live, message } => match tx.group_by_live(*live)? {
            Some(group) => apply_message(tx, context, &group, message)?,
            None => keep(tx, *live, envelope)?,
        },
        Envelope::GroupCommit { group_id: live, commit_seq, commit } => match tx.group_by_live(*live)? {
            Some(group) => apply_commit(tx, context, group.id, *commit_seq, commit)?,
            None => keep(tx, *live, envelope)?,
        },
        Envelope::Welcome { .. } => welcome::apply(tx, context, envelope)?,
        Envelope::MembersGone { group_id, .. } => {
            if let Some(group) = tx.group_by_live(*group_id)? {
                tx.look_at(group.id, None)?;
            }
            // They may be this account's.
            tx.look_at_account(context.identity.account())?;
            Outcome::default()
        }
        Envelope::RejoinWanted { group_id, account_id, device_id } => {
            if let Some(group) = tx.group_by_live(*group_id)? {
                let wanted = Member { account: *account_id, device: *device_id };
                plan_letting_in(tx, context, &group, wanted)?;
                successor::another_asks(tx, context, &group, wanted)?;
            }
            Outcome::default()
        }
        Envelope::Successor { group_id, at, successor } => {
            if i64::try_from(*at).is_ok()
                && let Some(group) = tx.group_by_live(*group_id)?
            {
                successor::another_goes_on(tx, context, &group, Successor { group: *successor, at: *at })?;
            }
            Outcome::default()
        }
        Envelope::DirectMessage { ciphertext } => direct::receive::apply(tx, context, ciphertext)?,
        Envelope::KeysLow { .. } => Outcome::Applied(Effect { keys_wanted: true, ..Effect::default() }),
        Envelope::LastResortUsed { suite } => last_resort_used(tx, *suite)?,
        _ => Outcome::default(),
    })
}

/// An entry of a group that is not known here means nothing, unless it is still to be decided whether this device
/// follows there.
fn keep(tx: &Tx<'_>, live: GroupId, envelope: &Envelope) -> Result<Outcome, StoreError> {
    if tx.is_held(live)? {
        tx.hold(live, envelope)?;
    }
    Ok(Outcome::default())
}

/// The wish to replace the last-resort key package outlives the entry that brought it.
fn last_resort_used(tx: &Tx<'_>, suite: u16) -> Result<Outcome, StoreError> {
    let Ok(suite) = Suite::try_from(suite) else { return Ok(Outcome::default()) };
    let before = tx.last_resort(suite)?;
    tx.set_last_resort(suite, LastResort { used: true, ..before })?;
    Ok(Outcome::Applied(Effect { keys_wanted: true, ..Effect::default() }))
}

/// Remembers a verified device list, and tells the app if the account's identity key has changed.
///
/// # Errors
/// [`Error::Untrusted`] if it does not go on from the list seen before.
pub(super) fn remember(tx: &Tx<'_>, said: &Account, list: &DeviceList) -> Result<(), Error> {
    if let Some(known) = tx.device_list(said.account_id)?
        && known != said.device_list
    {
        let before = known.verify(&said.account_id)?;
        list.keeps_recovery_key(&before)?;
        tx.note_listed(&before)?;
        let next = before.version.checked_add(1) == Some(list.version);
        if before.version >= list.version
            || !chain_continues(&list.rotations, &before.rotations)
            || list.keeps_devices(&before).is_err()
            || (next && list.continues(&before, &known.hash()).is_err())
        {
            return Err(Error::Untrusted("the device list does not go on from one seen before".into()));
        }
        if before.identity_key() != list.identity_key() {
            tx.note_changed_identity(said.account_id)?;
            tx.add_event(&StoredEvent::Identity { account: said.account_id })?;
        }
    }
    // Who is no longer listed is not written to, nor heard.
    tx.forget_sessions_but(&key_package::members_of(list)?)?;
    Ok(tx.save_contact(said, list)?)
}

/// Ends a group on this device: its secrets go, what was to be sent in it fails, the history stays.
pub(super) fn end_group(
    tx: &Tx<'_>,
    group: &GroupRow,
    state: GroupState,
    event: &StoredEvent,
) -> Result<(), StoreError> {
    tx.save_group(&GroupRow { state, ..group.clone() })?;
    tx.end_recovery(group.id)?;
    tx.set_requested(group.id, None)?;
    group::forget(&tx.mls(), group.live)?;
    tx.add_event(event)?;
    for row in tx.tasks(group.id)? {
        let outcome = match (&row.task, state) {
            (Task::Leave { .. }, GroupState::Left) => Ok(()),
            (_, GroupState::Stuck) => Err(Error::GroupStuck),
            _ => Err(Error::NotMember),
        };
        finish(tx, &row, outcome)?;
    }
    Ok(())
}

/// Ends an outbox row; a message's status follows.
pub(super) fn finish(tx: &Tx<'_>, row: &OutboxRow, outcome: Result<(), Error>) -> Result<(), StoreError> {
    // An accepted message has its status already, whatever ends its row.
    if row.state != OutboxState::Accepted {
        let status = match &outcome {
            Ok(()) => MessageStatus::Sent,
            Err(error) => MessageStatus::Failed(SendFailure::of(error)),
        };
        set_message_status(tx, row, status)?;
    }
    tx.finish_task(row.id, outcome)
}

/// Sets the status of the message that an outbox row sends.
pub(super) fn set_message_status(tx: &Tx<'_>, row: &OutboxRow, status: MessageStatus) -> Result<(), StoreError> {
    if let Some(message_id) = row.content_id
        && tx.set_status(message_id, status)?
    {
        tx.add_event(&StoredEvent::Status { conversation: row.conversation, message_id, status })?;
    }
    Ok(())
}

/// Plans the removal of leaves that are gone. Every member does so; whose turn comes later finds it done.
pub(super) fn plan_tidying(
    tx: &Tx<'_>,
    context: &Context<'_>,
    group: GroupId,
    gone: &[Member],
) -> Result<(), StoreError> {
    tx.mark_gone(group, gone)?;
    let gone = tx.gone(group)?;
    let staying: Vec<_> = tx.members(group)?.into_iter().filter(|member| !gone.contains(&member.device)).collect();
    let turn = staying.iter().position(|member| member.device == context.identity.device());
    let planned = tx.tasks(group)?.iter().any(|row| row.task == Task::Tidy);
    match turn {
        Some(turn) if !gone.is_empty() && !planned => {
            let not_before_ms = context.now_ms.saturating_add(TIDY_TURN_MS.saturating_mul(turn as u64));
            tx.add_task(group, &Task::Tidy, None, not_before_ms).map(drop)
        }
        _ => Ok(()),
    }
}

/// Whether a device may be let in: its account is in the group, and no other account has a leaf of that name.
pub(super) fn may_let_in(tx: &Tx<'_>, group: GroupId, wanted: Member) -> Result<bool, StoreError> {
    let members = tx.members(group)?;
    let of_account = members.iter().any(|one| one.account == wanted.account);
    Ok(of_account && !members.iter().any(|one| one.device == wanted.device && one.account != wanted.account))
}

/// Plans to swap the leaf of a member that cannot come back by itself. Every member does so; whose turn comes later
/// finds it done.
fn plan_letting_in(tx: &Tx<'_>, context: &Context<'_>, group: &GroupRow, wanted: Member) -> Result<(), StoreError> {
    let task = Task::LetIn { account: wanted.account, device: wanted.device };
    let planned = tx.tasks(group.id)?.iter().any(|row| row.task == task);
    if planned || group.state != GroupState::Active || !may_let_in(tx, group.id, wanted)? {
        return Ok(());
    }
    let gone = tx.gone(group.id)?;
    let others: Vec<_> =
        tx.members(group.id)?.into_iter().filter(|one| *one != wanted && !gone.contains(&one.device)).collect();
    let turn = others.iter().position(|one| one.device == context.identity.device());
    let Some(turn) = turn else { return Ok(()) };
    let turn_ms = TIDY_TURN_MS.saturating_mul(turn as u64).min(LET_IN_MS_MAX);
    tx.add_task(group.id, &task, None, context.now_ms.saturating_add(turn_ms)).map(drop)
}

fn apply_message(tx: &Tx<'_>, context: &Context<'_>, group: &GroupRow, message: &Bytes) -> Result<Outcome, StoreError> {
    let group_id = group.id;
    if group.state.is_over() {
        return Ok(Outcome::default());
    }
    let own = tx.task_by_hash(&Hash::of(message.as_slice()))?;
    if let Some(row) = own.filter(|row| row.conversation == group_id.into() && !row.task.commits()) {
        return apply_own_message(tx, context, group, &row).map(Outcome::Applied);
    }
    if group.state == GroupState::Recovering {
        return undecryptable(tx, group_id).map(Outcome::Applied);
    }
    let opened = tx.attempt(|| group::open(&tx.mls(), group.live, group.commit_seq, message.as_slice()))?;
    let (from, bytes) = match opened {
        Some(Opened::Message { from, content }) => (from, content),
        Some(Opened::Own) => return Ok(Outcome::default()),
        Some(Opened::TooFarAhead) => {
            updates::soon(tx, context.entropy, context.now_ms, group_id)?;
            return undecryptable(tx, group_id).map(Outcome::Applied);
        }
        Some(Opened::Commit(_)) | None => return not_opened(tx, context, group, message),
    };
    content::receive(tx, context, group_id.into(), from, bytes).map(Outcome::Applied)
}

/// A message that cannot be opened: perhaps since commits before it are lacking, up to the one at which its author says
/// that it stands, or since there is no state to open it with.
fn not_opened(tx: &Tx<'_>, context: &Context<'_>, group: &GroupRow, message: &Bytes) -> Result<Outcome, StoreError> {
    if !tx.has_mls_state(group.live)? {
        recovery::begin(tx, context.entropy, context.now_ms, group, Why::Lost)?;
    } else if let Some(up_to) = group::told(message.as_slice()).map(|told| told.at).filter(|at| *at > group.commit_seq)
    {
        return Ok(Outcome::Lacks { live: group.live, up_to });
    }
    undecryptable(tx, group.id).map(Outcome::Applied)
}

/// This device's own row: the relay has accepted the message, and this is its place among the others.
fn apply_own_message(
    tx: &Tx<'_>,
    context: &Context<'_>,
    group: &GroupRow,
    row: &OutboxRow,
) -> Result<Effect, StoreError> {
    if let Some(message_id) = row.content_id {
        tx.confirm_place(message_id, devices_of_others(tx, context, group.id.into())?)?;
    }
    if matches!(row.task, Task::Leave { .. }) {
        end_group(tx, group, GroupState::Left, &StoredEvent::Left { group_id: group.id })?;
    } else {
        finish(tx, row, Ok(()))?;
    }
    Ok(Effect::default())
}

/// To how many devices of others a message of this account goes.
pub(super) fn devices_of_others(
    tx: &Tx<'_>,
    context: &Context<'_>,
    conversation: ConversationId,
) -> Result<u64, StoreError> {
    match conversation {
        ConversationId::Group(group) => tx.devices_of_others(group, context.identity.account()),
        ConversationId::Direct(account) => Ok(tx.listed(account)?.map_or(0, |listed| listed.devices.len() as u64)),
    }
}

/// Applies a commit, which stands behind all that this device has of the group before it.
pub(super) fn apply_commit(
    tx: &Tx<'_>,
    context: &Context<'_>,
    group_id: GroupId,
    commit_seq: u64,
    commit: &Bytes,
) -> Result<Outcome, StoreError> {
    if recovery::install(tx, context, group_id, commit_seq, commit)? {
        return Ok(Outcome::default());
    }
    let Some(group) = tx.active_group(group_id)? else {
        if removes(context, commit) {
            tx.note_removal(group_id)?;
        }
        return Ok(Outcome::default());
    };
    if commit_seq <= group.commit_seq {
        return Ok(Outcome::default());
    }
    let own = tx
        .task_by_hash(&Hash::of(commit.as_slice()))?
        .filter(|row| row.conversation == group_id.into() && row.task.commits());
    if commit_seq != group.commit_seq + 1 {
        return Ok(Outcome::Lacks { live: group.live, up_to: commit_seq - 1 });
    }
    let opened = if own.is_some() {
        tx.attempt(|| group::merge_pending(&tx.mls(), group.live).map(Opened::Commit))?
    } else {
        tx.attempt(|| group::open(&tx.mls(), group.live, group.commit_seq, commit.as_slice()))?
    };
    let Some(Opened::Commit(applied)) = opened else {
        let lost = !tx.has_mls_state(group.live)?;
        let why = if lost { Why::Lost } else { Why::Refused { removes: removes(context, commit) } };
        recovery::begin(tx, context.entropy, context.now_ms, &group, why)?;
        return Ok(Outcome::default());
    };
    let mut before = tx.member_accounts(group.id)?;
    if applied.updates && applied.by.device == context.identity.device() {
        updates::done(tx, context.entropy, context.now_ms, group_id)?;
    }
    if let Some(row) = own {
        if let Task::Gather { accounts } = &row.task {
            before.extend(accounts);
        }
        finish(tx, &row, Ok(()))?;
    }
    start_posted_over(tx, group_id)?;
    tx.no_update_needed(group_id)?;
    after_commit(tx, context, &group, commit_seq, &applied, &before)?;
    Ok(Outcome::default())
}

/// Whether a commit takes this device out, by its own word.
fn removes(context: &Context<'_>, commit: &Bytes) -> bool {
    group::told(commit.as_slice()).is_some_and(|told| told.removed.contains(&context.identity.device()))
}

/// Whatever was posted was made for an epoch that is over. Had the relay accepted it, its row would have come before
/// the commit that ended it: it was refused, or will be.
pub(super) fn start_posted_over(tx: &Tx<'_>, group: GroupId) -> Result<(), StoreError> {
    for row in tx.tasks(group)?.iter().filter(|row| row.state == OutboxState::Posted) {
        tx.set_waiting(row.id, 0)?;
    }
    Ok(())
}

fn after_commit(
    tx: &Tx<'_>,
    context: &Context<'_>,
    group: &GroupRow,
    commit_seq: u64,
    applied: &Applied,
    before: &[AccountId],
) -> Result<(), StoreError> {
    let by = applied.by.account;
    let Some(now) = &applied.now else {
        if applied.added.iter().any(|one| one.device == context.identity.device()) {
            // Its leaf was swapped, though it had not asked for it, or not any more. The Welcome follows.
            return recovery::begin(tx, context.entropy, context.now_ms, group, Why::Lost);
        }
        let event = StoredEvent::Removed { group_id: group.id, by: Some(by) };
        return end_group(tx, &GroupRow { commit_seq, ..group.clone() }, GroupState::Removed, &event);
    };
    tx.save_group(&GroupRow {
        name: now.profile.name.clone(),
        commit_seq,
        rejoin_key: now.rejoin_key.clone().unwrap_or_else(|| group.rejoin_key.clone()),
        ..group.clone()
    })?;
    let members = group::members(&tx.mls(), group.live)?;
    tx.save_members(group.id, &members, |one| applied.added.contains(one))?;
    let let_in = |row: &OutboxRow| match row.task {
        Task::LetIn { account, device } => applied.added.contains(&Member { account, device }),
        _ => false,
    };
    for row in tx.tasks(group.id)?.iter().filter(|row| row.state == OutboxState::Waiting && let_in(row)) {
        finish(tx, row, Ok(()))?;
    }
    tell_name(tx, group.id, Some(by), &group.name, &now.profile.name)?;
    tell_members(tx, group.id, Some(by), before, &tx.member_accounts(group.id)?)
}

/// Tells the app that a group has another name than before; by whom, if that is known.
pub(super) fn tell_name(
    tx: &Tx<'_>,
    group_id: GroupId,
    by: Option<AccountId>,
    before: &str,
    after: &str,
) -> Result<(), StoreError> {
    if before == after {
        return Ok(());
    }
    tx.add_event(&StoredEvent::Renamed { group_id, name: after.to_owned(), by })
}

/// Tells the app which accounts have joined and left; by whom, if that is known.
pub(super) fn tell_members(
    tx: &Tx<'_>,
    group_id: GroupId,
    by: Option<AccountId>,
    before: &[AccountId],
    after: &[AccountId],
) -> Result<(), StoreError> {
    let added: Vec<_> = after.iter().filter(|account| !before.contains(account)).copied().collect();
    let removed: Vec<_> = before.iter().filter(|account| !after.contains(account)).copied().collect();
    if added.is_empty() && removed.is_empty() {
        return Ok(());
    }
    tx.add_event(&StoredEvent::Members { group_id, by, added, removed })
}

pub(super) fn undecryptable(tx: &Tx<'_>, conversation: impl Into<ConversationId>) -> Result<Effect, StoreError> {
    let conversation = conversation.into();
    tx.note_gap(conversation)?;
    tx.add_event(&StoredEvent::Undecryptable { conversation })?;
    Ok(Effect::default())
}
