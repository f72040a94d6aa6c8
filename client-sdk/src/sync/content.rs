//! What was inside a message, once it is known who wrote it: into the history, or wherever it belongs.
//!
//! Invariant: whoever `from` is has proved it, by the keys of a group or of a session.

use undertone_wire::GroupId;

use super::{
    direct::heal,
    inbox::{self, Context, Effect},
    receipts, rotation,
};
use crate::{
    conversation::{accept, begin},
    conversation_id::ConversationId,
    crypto::Member,
    event::StoredEvent,
    message::{Body, Content},
    store::{GroupState, MessageRow, MessageStatus, Standing, StoreError, Tx},
};

/// Takes in what a device has written in a conversation.
pub(super) fn receive(
    tx: &Tx<'_>,
    context: &Context<'_>,
    conversation: ConversationId,
    from: Member,
    bytes: Vec<u8>,
) -> Result<Effect, StoreError> {
    let Some(content) = Content::decode(&bytes) else {
        return inbox::undecryptable(tx, conversation);
    };
    let own = from.account == context.identity.account();
    // The author's own word on its list, so that a relay which serves an older one is noticed.
    tx.note_claim(from, content.list_version)?;
    let (mut received, mut identity_changed) = (false, false);
    match (&content.body, conversation) {
        (Body::Leave {}, ConversationId::Group(group)) if own => leave_too(tx, group)?,
        (Body::Leave {}, ConversationId::Group(group)) => leave(tx, context, group, from)?,
        (Body::Receipt { delivered, read }, _) => receipts::apply(tx, context, conversation, from, delivered, read)?,
        (Body::Unreadable { hashes }, ConversationId::Direct(_)) => {
            heal::answer(tx, context.identity.account(), from, hashes)?;
        }
        (Body::IdentityKey { seed }, ConversationId::Direct(with)) if own && with == from.account => {
            identity_changed = rotation::take(tx, context, content.id, seed)?;
        }
        (Body::IdentityKeyWanted {}, ConversationId::Direct(with)) if own && with == from.account => {
            rotation::answer(tx, context, content.id)?;
        }
        // What a device says of keys is for its own account alone.
        (Body::IdentityKey { .. } | Body::IdentityKeyWanted {}, _) => {}
        // Receipts must not say that it is here.
        _ if tx.standing(from.account)? == Standing::Blocked => tx.note_gap(conversation)?,
        _ => received = add(tx, context, conversation, from, &content, bytes)?,
    }
    Ok(Effect { received, identity_changed, ..Effect::default() })
}

/// Another device of this account leaves a group, for all of them.
fn leave_too(tx: &Tx<'_>, group_id: GroupId) -> Result<(), StoreError> {
    match tx.group(group_id)?.filter(|group| !group.state.is_over()) {
        Some(group) => inbox::end_group(tx, &group, GroupState::Left, &StoredEvent::Left { group_id }),
        None => Ok(()),
    }
}

/// An account leaves a group.
fn leave(tx: &Tx<'_>, context: &Context<'_>, group_id: GroupId, from: Member) -> Result<(), StoreError> {
    let gone: Vec<_> = tx.members(group_id)?.into_iter().filter(|one| one.account == from.account).collect();
    inbox::plan_tidying(tx, context, group_id, &gone)?;
    let (by, removed) = (from.account, vec![from.account]);
    tx.add_event(&StoredEvent::Members { group_id, by: Some(by), added: vec![], removed })
}

/// Adds a message to the history, unless it stands there already.
fn add(
    tx: &Tx<'_>,
    context: &Context<'_>,
    conversation: ConversationId,
    from: Member,
    content: &Content,
    bytes: Vec<u8>,
) -> Result<bool, StoreError> {
    // What another device of this account has sent, or somebody else.
    let own = from.account == context.identity.account();
    let row = MessageRow {
        conversation,
        content_id: content.id,
        sender: from.account,
        sent_at_ms: content.sent_at_ms,
        status: if own { MessageStatus::Sent } else { MessageStatus::Received },
        content: bytes.into(),
    };
    let received = tx.add_message(&row)?;
    if received && own {
        // Whom the user answers on one device is no stranger on the others.
        accept(tx, conversation)?;
        begin(tx, conversation)?;
        tx.confirm_place(content.id, inbox::devices_of_others(tx, context, conversation)?)?;
    }
    if received {
        if !own {
            receipts::plan(tx, conversation, context.now_ms)?;
        }
        tx.add_event(&StoredEvent::Message { conversation, sender: from.account, message_id: content.id })?;
    }
    Ok(received)
}
