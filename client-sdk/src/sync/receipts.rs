//! Telling the authors of messages that this device has them, and that they were read; and taking note of what others
//! tell. A receipt is content like any other, so the relay sees no difference.
//!
//! Invariant: a receipt covers all there is since the first message after the last gap, so that one which is lost is made up
//! for by the next; and there is at most one in a while, whatever comes.

use undertone_wire::AccountId;

use super::inbox::Context;
use crate::{
    conversation_id::ConversationId,
    crypto::Member,
    event::StoredEvent,
    message::{Body, Mark},
    store::{Said, StoreError, Task, Tx},
};

/// What comes within this time is told together.
const GATHER_MS: u64 = 1_000;

/// In a larger group nobody is told: each receipt goes to all.
const DEVICES_MAX: usize = 32;

/// More authors than this cannot be told of in one receipt; there are no more devices.
const MARKS_MAX: usize = DEVICES_MAX;

/// Plans a receipt, unless one is planned.
pub(crate) fn plan(tx: &Tx<'_>, conversation: ConversationId, now_ms: u64) -> Result<(), StoreError> {
    let large = conversation.group().map(|group| tx.has_more_devices(group, DEVICES_MAX)).transpose()?;
    if large == Some(true) || tx.is_planned(conversation, &Task::Receipt)? {
        return Ok(());
    }
    tx.add_task(conversation, &Task::Receipt, None, now_ms.saturating_add(GATHER_MS)).map(drop)
}

/// What is to be told; `None` if that is nothing.
pub(super) fn body(tx: &Tx<'_>, conversation: ConversationId) -> Result<Option<Body>, StoreError> {
    let (delivered, read) = tx.receipt(conversation)?;
    let nothing = delivered.is_empty() && read.is_empty();
    Ok((!nothing).then_some(Body::Receipt { delivered, read }))
}

/// Another device of this account has told that these were read: so they are here, and nobody is told again.
fn read_elsewhere(tx: &Tx<'_>, conversation: ConversationId, own: AccountId, read: &[Mark]) -> Result<(), StoreError> {
    let mut news = false;
    for mark in read.iter().take(MARKS_MAX).filter(|mark| mark.account != own) {
        news |= tx.note_read_elsewhere(conversation, mark)?;
    }
    match tx.read_up_to(conversation)? {
        Some(up_to) if news => tx.add_event(&StoredEvent::ReadElsewhere { conversation, up_to }),
        _ => Ok(()),
    }
}

/// Takes note of what another member's device has told.
pub(super) fn apply(
    tx: &Tx<'_>,
    context: &Context<'_>,
    conversation: ConversationId,
    from: Member,
    delivered: &[Mark],
    read: &[Mark],
) -> Result<(), StoreError> {
    let own = context.identity.account();
    if from.account == own {
        return read_elsewhere(tx, conversation, own, read);
    }
    let mut changed = Vec::new();
    for (said, marks) in [(Said::Delivered, delivered), (Said::Read, read)] {
        for mark in marks.iter().take(MARKS_MAX).filter(|mark| mark.account == own) {
            for message in tx.count_receipt(conversation, from.device, own, said, mark)? {
                if !changed.contains(&message) {
                    changed.push(message);
                }
            }
        }
    }
    for message_id in changed {
        if let Some(status) = tx.status(message_id)? {
            tx.add_event(&StoredEvent::Status { conversation, message_id, status })?;
        }
    }
    Ok(())
}
