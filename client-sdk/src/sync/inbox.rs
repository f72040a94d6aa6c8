//! Applying one queue entry: decrypt, write, move the cursor, all in the caller's transaction.
//!
//! An entry that cannot be opened is passed over with an event. A commit that cannot be applied ends the group on this
//! device, because everything after it is out of reach.
//!
//! Invariant: applying is decided by the entry and the store alone. An error here is the store's and means: nothing
//! was written, try again.

use undertone_wire::{Account, Bytes, Delivery, DeviceList, Envelope, GroupId, Hash, chain_continues, suite};

use crate::{
    Error,
    crypto::{
        Identity, Member,
        group::{self, Applied, Opened},
    },
    event::StoredEvent,
    message::{Body, Content},
    store::{GroupRow, GroupState, MessageRow, MessageStatus, OutboxRow, OutboxState, StoreError, Task, Tx},
};

/// Members take turns at removing the leaves of those who are gone: the first at once, the next so much later.
const TIDY_TURN_MS: u64 = 3_000;

/// What an entry did that others wait for. All else that follows from it is found in the store.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Effect {
    /// A key package was used.
    pub(super) joined: bool,
    /// A message was added.
    pub(super) received: bool,
    /// The relay has told that key packages should be published.
    pub(super) keys_wanted: bool,
}

/// Who applies, and when.
pub(super) struct Context<'a> {
    pub(super) identity: &'a Identity,
    pub(super) now_ms: u64,
}

/// Applies an entry, whose number is above the cursor, and moves the cursor to it.
pub(super) fn apply(tx: &Tx<'_>, context: &Context<'_>, delivery: &Delivery) -> Result<Effect, StoreError> {
    let effect = match &delivery.envelope {
        Envelope::GroupMessage { group_id, message } => apply_message(tx, context, *group_id, message)?,
        Envelope::GroupCommit { group_id, commit_seq, commit } => apply_commit(tx, *group_id, *commit_seq, commit)?,
        Envelope::Welcome { group_id, commit_seq, group_info, secrets } => {
            apply_welcome(tx, *group_id, *commit_seq, group_info, secrets)?
        }
        Envelope::MembersGone { group_id, .. } => {
            tx.look_at(*group_id, None)?;
            Effect::default()
        }
        Envelope::KeysLow { .. } => Effect { keys_wanted: true, ..Effect::default() },
        Envelope::LastResortUsed { suite } => last_resort_used(tx, *suite)?,
        _ => Effect::default(),
    };
    tx.set_cursor(delivery.seq)?;
    Ok(effect)
}

/// The wish to replace the last-resort key package outlives the entry that brought it.
fn last_resort_used(tx: &Tx<'_>, suite: u16) -> Result<Effect, StoreError> {
    let ours = suite == suite::DEFAULT;
    if ours {
        tx.set_last_resort_used(true)?;
    }
    Ok(Effect { keys_wanted: ours, ..Effect::default() })
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
        let next = before.version.checked_add(1) == Some(list.version);
        if before.version >= list.version
            || !chain_continues(&list.rotations, &before.rotations)
            || (next && list.continues(&before, &known.hash()).is_err())
        {
            return Err(Error::Untrusted("the device list does not go on from one seen before".into()));
        }
        if before.identity_key() != list.identity_key() {
            tx.add_event(&StoredEvent::Identity { account: said.account_id })?;
        }
    }
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
    group::forget(&tx.mls(), group.id)?;
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
        set_message_status(tx, row, if outcome.is_ok() { MessageStatus::Sent } else { MessageStatus::Failed })?;
    }
    tx.finish_task(row.id, outcome)
}

/// Sets the status of the message that an outbox row sends.
pub(super) fn set_message_status(tx: &Tx<'_>, row: &OutboxRow, status: MessageStatus) -> Result<(), StoreError> {
    if let Some(message_id) = row.content_id
        && tx.set_status(message_id, status)?
    {
        tx.add_event(&StoredEvent::Status { group_id: row.group_id, message_id, status })?;
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

fn apply_message(tx: &Tx<'_>, context: &Context<'_>, group_id: GroupId, message: &Bytes) -> Result<Effect, StoreError> {
    let Some(group) = tx.active_group(group_id)? else { return Ok(Effect::default()) };
    let own = tx.task_by_hash(&Hash::of(message.as_slice()))?;
    if let Some(row) = own.filter(|row| row.group_id == group_id && !row.task.commits()) {
        return apply_own_message(tx, &group, &row);
    }
    let opened = tx.attempt(|| group::open(&tx.mls(), group_id, group.commit_seq, message.as_slice()))?;
    let (from, bytes) = match opened {
        Some(Opened::Message { from, content }) => (from, content),
        Some(Opened::Own) => return Ok(Effect::default()),
        Some(Opened::Commit(_)) | None => return undecryptable(tx, group_id),
    };
    let Some(content) = Content::decode(&bytes) else { return undecryptable(tx, group_id) };
    let mut effect = Effect::default();
    // The author's own word on its list, so that a relay which serves an older one is noticed.
    if tx.note_claim(from.account, content.list_version)? {
        tx.look_at(group_id, Some(from.account))?;
    }
    if content.body == (Body::Leave {}) {
        let gone: Vec<_> = tx.members(group_id)?.into_iter().filter(|one| one.account == from.account).collect();
        plan_tidying(tx, context, group_id, &gone)?;
        let (by, removed) = (from.account, vec![from.account]);
        tx.add_event(&StoredEvent::Members { group_id, by, added: vec![], removed })?;
        return Ok(effect);
    }
    let row = MessageRow {
        group_id,
        content_id: content.id,
        sender: from.account,
        sent_at_ms: content.sent_at_ms,
        status: MessageStatus::Received,
        content: bytes.into(),
    };
    effect.received = tx.add_message(&row)?;
    if effect.received {
        tx.add_event(&StoredEvent::Message { group_id, sender: from.account, message_id: content.id })?;
    }
    Ok(effect)
}

/// This device's own row: the relay has accepted the message, and this is its place among the others.
fn apply_own_message(tx: &Tx<'_>, group: &GroupRow, row: &OutboxRow) -> Result<Effect, StoreError> {
    if let Some(message_id) = row.content_id {
        tx.confirm_place(message_id)?;
    }
    if matches!(row.task, Task::Leave { .. }) {
        end_group(tx, group, GroupState::Left, &StoredEvent::Left { group_id: group.id })?;
    } else {
        finish(tx, row, Ok(()))?;
    }
    Ok(Effect::default())
}

fn apply_commit(tx: &Tx<'_>, group_id: GroupId, commit_seq: u64, commit: &Bytes) -> Result<Effect, StoreError> {
    let Some(group) = tx.active_group(group_id)? else { return Ok(Effect::default()) };
    if commit_seq <= group.commit_seq {
        return Ok(Effect::default());
    }
    let own =
        tx.task_by_hash(&Hash::of(commit.as_slice()))?.filter(|row| row.group_id == group_id && row.task.commits());
    let opened = if commit_seq != group.commit_seq + 1 {
        None
    } else if own.is_some() {
        tx.attempt(|| group::merge_pending(&tx.mls(), group_id).map(Opened::Commit))?
    } else {
        tx.attempt(|| group::open(&tx.mls(), group_id, group.commit_seq, commit.as_slice()))?
    };
    let Some(Opened::Commit(applied)) = opened else {
        end_group(tx, &group, GroupState::Stuck, &StoredEvent::Stuck { group_id })?;
        return Ok(Effect::default());
    };
    if let Some(row) = own {
        finish(tx, &row, Ok(()))?;
    }
    // Whatever else was posted was made for the epoch before. Had the relay accepted it, its row would have come
    // before this one: it was refused, or will be.
    for row in tx.tasks(group_id)?.iter().filter(|row| row.state == OutboxState::Posted) {
        tx.set_waiting(row.id, 0)?;
    }
    after_commit(tx, &group, commit_seq, &applied)
}

fn after_commit(tx: &Tx<'_>, group: &GroupRow, commit_seq: u64, applied: &Applied) -> Result<Effect, StoreError> {
    let by = applied.by.account;
    let Some(now) = &applied.now else {
        let event = StoredEvent::Removed { group_id: group.id, by: Some(by) };
        end_group(tx, &GroupRow { commit_seq, ..group.clone() }, GroupState::Removed, &event)?;
        return Ok(Effect::default());
    };
    let before = tx.member_accounts(group.id)?;
    tx.save_group(&GroupRow {
        name: now.profile.name.clone(),
        commit_seq,
        rejoin_key: now.rejoin_key.clone().unwrap_or_else(|| group.rejoin_key.clone()),
        ..group.clone()
    })?;
    let members = group::members(&tx.mls(), group.id)?;
    tx.save_members(group.id, &members, &applied.added)?;
    let after = tx.member_accounts(group.id)?;
    let added: Vec<_> = after.iter().filter(|account| !before.contains(account)).copied().collect();
    let removed: Vec<_> = before.iter().filter(|account| !after.contains(account)).copied().collect();
    if !added.is_empty() || !removed.is_empty() {
        tx.add_event(&StoredEvent::Members { group_id: group.id, by, added, removed })?;
    }
    Ok(Effect::default())
}

fn apply_welcome(
    tx: &Tx<'_>,
    group_id: GroupId,
    commit_seq: u64,
    group_info: &Bytes,
    secrets: &Bytes,
) -> Result<Effect, StoreError> {
    // Who is in gets commits. An older Welcome, which a last-resort key package would open again, is a replay.
    let known = tx.group(group_id)?;
    if known.is_some_and(|group| group.state == GroupState::Active || group.commit_seq >= commit_seq)
        || i64::try_from(commit_seq).is_err()
    {
        return Ok(Effect::default());
    }
    let Some(joined) = tx.attempt(|| group::join(&tx.mls(), group_id, commit_seq, group_info, secrets))? else {
        return undecryptable(tx, group_id);
    };
    let members = group::members(&tx.mls(), joined.group)?;
    tx.save_group(&GroupRow {
        id: joined.group,
        name: joined.profile.name.clone(),
        state: GroupState::Active,
        commit_seq,
        rejoin_key: joined.rejoin_key,
    })?;
    tx.save_members(joined.group, &members, &members)?;
    tx.add_event(&StoredEvent::Joined { group_id: joined.group, name: joined.profile.name, by: joined.by.account })?;
    Ok(Effect { joined: true, ..Effect::default() })
}

fn undecryptable(tx: &Tx<'_>, group_id: GroupId) -> Result<Effect, StoreError> {
    tx.add_event(&StoredEvent::Undecryptable { group_id })?;
    Ok(Effect::default())
}
