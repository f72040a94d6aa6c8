//! Healing: what another device has written and cannot be read here, since a session is broken, it is asked to send again,
//! by a session that takes the place of the broken one.
//!
//! Whether it has written it at all nobody can tell before it answers. So only those are asked whom the user knows, and
//! they are not asked without end.
//!
//! Invariant: a device is sent again only what it was sent before, and each ciphertext once.

use undertone_wire::{AccountId, Hash};

use crate::{
    conversation_id::ConversationId,
    crypto::Member,
    event::StoredEvent,
    store::{Healing, OutboxState, Standing, StoreError, Task, Tx},
    sync::inbox::Context,
};

/// The sessions with a device are replaced once in this time.
const REPLACE_AGAIN_MS: u64 = 60 * 60 * 1_000;

/// In that time a device is asked for so many messages; a request names no more.
const ASKED_MAX: usize = 100;

/// What cannot be read within this time is asked for together.
const GATHER_MS: u64 = 1_000;

/// A message of a device cannot be read: plans to ask for it again.
pub(super) fn begin(tx: &Tx<'_>, context: &Context<'_>, of: Member, ciphertext: Hash) -> Result<(), StoreError> {
    let own = of.account == context.identity.account();
    if !own && tx.standing(of.account)? != Standing::Known {
        return Ok(());
    }
    let recent = tx.healing(of)?.filter(|last| context.now_ms.abs_diff(last.began_ms) < REPLACE_AGAIN_MS);
    match recent {
        Some(last) if last.asked >= ASKED_MAX as u64 => return Ok(()),
        Some(last) => tx.set_healing(of, Healing { asked: last.asked + 1, ..last })?,
        None => {
            tx.set_healing(of, Healing { began_ms: context.now_ms, asked: 1, replaced: false })?;
        }
    }
    let conversation = ConversationId::Direct(of.account);
    tx.add_conversation(conversation)?;
    for row in tx.tasks(conversation)?.iter().filter(|row| row.state == OutboxState::Waiting) {
        if let Task::AskAgain { of: asked, hashes } = &row.task
            && *asked == of
            && hashes.len() < ASKED_MAX
        {
            let hashes = [hashes.as_slice(), &[ciphertext]].concat();
            return tx.set_task(row.id, &Task::AskAgain { of, hashes });
        }
    }
    let task = Task::AskAgain { of, hashes: vec![ciphertext] };
    tx.add_task(conversation, &task, None, context.now_ms.saturating_add(GATHER_MS)).map(drop)
}

/// Whether the sessions with a device are to be replaced by the next message to it, for which it takes a prekey.
pub(super) fn is_wanted(tx: &Tx<'_>, of: Member) -> Result<bool, StoreError> {
    Ok(tx.healing(of)?.is_some_and(|healing| !healing.replaced))
}

/// The next message to a device begins a session in the place of those that are broken.
pub(super) fn replace(tx: &Tx<'_>, of: Member) -> Result<(), StoreError> {
    if let Some(healing) = tx.healing(of)?.filter(|healing| !healing.replaced) {
        tx.set_healing(of, Healing { replaced: true, ..healing })?;
        tx.only_read_sessions_with(of)?;
        tx.add_event(&StoredEvent::SessionReplaced { with: of.account })?;
    }
    Ok(())
}

/// A device could not read these: plans to send it again what was in them.
pub(in crate::sync) fn answer(tx: &Tx<'_>, own: AccountId, to: Member, ciphertexts: &[Hash]) -> Result<(), StoreError> {
    for ciphertext in ciphertexts.iter().take(ASKED_MAX) {
        let Some((conversation, content_id)) = tx.take_written(to, ciphertext)? else { continue };
        // It may have been forgotten meanwhile.
        if let Some(message) = tx.message(conversation, own, content_id)? {
            tx.add_task(conversation, &Task::SendAgain { to, content: message.content }, None, 0)?;
        }
    }
    Ok(())
}
