//! Applying one queue entry: decrypt, write, move the cursor, all in the caller's transaction.
//!
//! An entry that cannot be opened is passed over with an event. A commit that cannot be applied ends the group on this
//! device, because everything after it is out of reach.
//!
//! Invariant: applying is decided by the entry and the store alone. An error here is the store's and means: nothing
//! was written, try again.

use undertone_wire::{Account, AccountId, Bytes, Delivery, DeviceList, Envelope, GroupId, Hash, chain_continues};

use crate::{
    Error,
    crypto::{
        CryptoError, Identity, Member,
        group::{self, Applied, Opened},
    },
    event::StoredEvent,
    message::{Body, Content},
    store::{GroupRow, GroupState, MessageRow, MessageStatus, OutboxRow, OutboxState, StoreError, Task, Tx},
};

/// Members take turns at removing the leaves of those who are gone: the first at once, the next so much later.
const TIDY_TURN_MS: u64 = 3_000;

/// What the engine does after an entry was applied. Losing it in a crash loses nothing that matters.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct FollowUp {
    /// Members whose device lists are worth looking at.
    pub(super) look_at: Vec<(GroupId, AccountId)>,
    /// A group whose members may be gone.
    pub(super) members_gone: Option<GroupId>,
    /// A key package was used.
    pub(super) joined: bool,
    /// A message was added.
    pub(super) received: bool,
}

/// Who applies, and when.
pub(super) struct Context<'a> {
    pub(super) identity: &'a Identity,
    pub(super) now_ms: u64,
}

/// Applies an entry, whose number is above the cursor, and moves the cursor to it.
pub(super) fn apply(tx: &Tx<'_>, context: &Context<'_>, delivery: &Delivery) -> Result<FollowUp, StoreError> {
    let follow_up = match &delivery.envelope {
        Envelope::GroupMessage { group_id, message } => apply_message(tx, context, *group_id, message)?,
        Envelope::GroupCommit { group_id, commit_seq, commit } => apply_commit(tx, *group_id, *commit_seq, commit)?,
        Envelope::Welcome { group_id, commit_seq, group_info, secrets } => {
            apply_welcome(tx, *group_id, *commit_seq, group_info, secrets)?
        }
        Envelope::MembersGone { group_id, .. } => {
            FollowUp { members_gone: tx.active_group(*group_id)?.map(|group| group.id), ..FollowUp::default() }
        }
        _ => FollowUp::default(),
    };
    tx.set_cursor(delivery.seq)?;
    Ok(follow_up)
}

/// Remembers a verified device list, and tells the app if the account's identity key has changed.
///
/// # Errors
/// [`Error::Untrusted`] if a newer list, or another one of this version, has been seen before.
pub(super) fn remember(tx: &Tx<'_>, said: &Account, list: &DeviceList) -> Result<(), Error> {
    if let Some(known) = tx.device_list(said.account_id)?
        && known != said.device_list
    {
        let before = known.verify(&said.account_id)?;
        if before.version >= list.version || !chain_continues(&list.rotations, &before.rotations) {
            return Err(Error::Untrusted("the relay serves a device list that is older than one seen before".into()));
        }
        if before.identity_key() != list.identity_key() {
            tx.add_event(&StoredEvent::Identity { account: said.account_id })?;
        }
    }
    Ok(tx.save_contact(said, list)?)
}

/// Tells the app of member devices that their account's newest list does not name. They stay until somebody acts.
pub(super) fn look_for_unlisted(
    tx: &Tx<'_>,
    group_id: GroupId,
    account: AccountId,
    list: &DeviceList,
) -> Result<(), StoreError> {
    let listed: Vec<_> = list.certificates().flatten().map(|certificate| certificate.device).collect();
    let members = tx.members(group_id)?;
    if members.iter().any(|member| member.account == account && !listed.contains(&member.device)) {
        tx.add_event(&StoredEvent::Unlisted { group_id, account })?;
    }
    Ok(())
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

fn apply_message(
    tx: &Tx<'_>,
    context: &Context<'_>,
    group_id: GroupId,
    message: &Bytes,
) -> Result<FollowUp, StoreError> {
    let Some(group) = tx.active_group(group_id)? else { return Ok(FollowUp::default()) };
    if let Some(row) = tx.task_by_hash(&Hash::of(message.as_slice()))? {
        return apply_own_message(tx, &group, &row);
    }
    let opened = unless_store_failed(group::open(&tx.mls(), group_id, group.commit_seq, message.as_slice()))?;
    let (from, bytes) = match opened {
        Some(Opened::Message { from, content }) => (from, content),
        Some(Opened::Own) => return Ok(FollowUp::default()),
        Some(Opened::Commit(_)) | None => return undecryptable(tx, group_id),
    };
    let Some(content) = Content::decode(&bytes) else { return undecryptable(tx, group_id) };
    let mut follow_up = FollowUp::default();
    // The author's own word on its list, so that a relay which serves an older one is noticed.
    if tx.list_version(from.account)?.is_none_or(|known| known < content.list_version) {
        follow_up.look_at.push((group_id, from.account));
    }
    if content.body == (Body::Leave {}) {
        let gone: Vec<_> = tx.members(group_id)?.into_iter().filter(|one| one.account == from.account).collect();
        plan_tidying(tx, context, group_id, &gone)?;
        let (by, removed) = (from.account, vec![from.account]);
        tx.add_event(&StoredEvent::Members { group_id, by, added: vec![], removed })?;
        return Ok(follow_up);
    }
    let row = MessageRow {
        group_id,
        content_id: content.id,
        sender: from.account,
        sent_at_ms: content.sent_at_ms,
        status: MessageStatus::Received,
        content: bytes.into(),
    };
    follow_up.received = tx.add_message(&row)?;
    if follow_up.received {
        tx.add_event(&StoredEvent::Message { group_id, sender: from.account, message_id: content.id })?;
    }
    Ok(follow_up)
}

/// This device's own row: the relay has accepted the message, and this is its place among the others.
fn apply_own_message(tx: &Tx<'_>, group: &GroupRow, row: &OutboxRow) -> Result<FollowUp, StoreError> {
    if let Some(message_id) = row.content_id {
        tx.confirm_place(message_id)?;
    }
    if matches!(row.task, Task::Leave { .. }) {
        end_group(tx, group, GroupState::Left, &StoredEvent::Left { group_id: group.id })?;
    } else {
        finish(tx, row, Ok(()))?;
    }
    Ok(FollowUp::default())
}

fn apply_commit(tx: &Tx<'_>, group_id: GroupId, commit_seq: u64, commit: &Bytes) -> Result<FollowUp, StoreError> {
    let Some(group) = tx.active_group(group_id)? else { return Ok(FollowUp::default()) };
    if commit_seq <= group.commit_seq {
        return Ok(FollowUp::default());
    }
    let own = tx.task_by_hash(&Hash::of(commit.as_slice()))?.filter(|row| row.task.commits());
    let opened = if commit_seq != group.commit_seq + 1 {
        None
    } else if own.is_some() {
        unless_store_failed(group::merge_pending(&tx.mls(), group_id).map(Opened::Commit))?
    } else {
        unless_store_failed(group::open(&tx.mls(), group_id, group.commit_seq, commit.as_slice()))?
    };
    let Some(Opened::Commit(applied)) = opened else {
        end_group(tx, &group, GroupState::Stuck, &StoredEvent::Stuck { group_id })?;
        return Ok(FollowUp::default());
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

fn after_commit(tx: &Tx<'_>, group: &GroupRow, commit_seq: u64, applied: &Applied) -> Result<FollowUp, StoreError> {
    let by = applied.by.account;
    let Some(now) = &applied.now else {
        let event = StoredEvent::Removed { group_id: group.id, by: Some(by) };
        end_group(tx, &GroupRow { commit_seq, ..group.clone() }, GroupState::Removed, &event)?;
        return Ok(FollowUp::default());
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
    let look_at = added.iter().map(|account| (group.id, *account)).collect();
    if !added.is_empty() || !removed.is_empty() {
        tx.add_event(&StoredEvent::Members { group_id: group.id, by, added, removed })?;
    }
    Ok(FollowUp { look_at, ..FollowUp::default() })
}

fn apply_welcome(
    tx: &Tx<'_>,
    group_id: GroupId,
    commit_seq: u64,
    group_info: &Bytes,
    secrets: &Bytes,
) -> Result<FollowUp, StoreError> {
    if tx.active_group(group_id)?.is_some_and(|group| group.commit_seq >= commit_seq) {
        return Ok(FollowUp::default());
    }
    let Some(joined) = unless_store_failed(group::join(&tx.mls(), group_id, group_info, secrets))? else {
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
    let mut look_at: Vec<_> = members.iter().map(|member| (joined.group, member.account)).collect();
    look_at.dedup();
    Ok(FollowUp { look_at, joined: true, ..FollowUp::default() })
}

fn undecryptable(tx: &Tx<'_>, group_id: GroupId) -> Result<FollowUp, StoreError> {
    tx.add_event(&StoredEvent::Undecryptable { group_id })?;
    Ok(FollowUp::default())
}

/// What the message allowed; `None` if it allowed nothing. A store that failed is an error: nothing is known then.
fn unless_store_failed<T>(result: Result<T, CryptoError>) -> Result<Option<T>, StoreError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(CryptoError::Invalid(reason)) => {
            tracing::debug!(%reason, "an entry cannot be opened");
            Ok(None)
        }
        Err(error @ CryptoError::Storage(_)) => Err(error.into()),
    }
}
