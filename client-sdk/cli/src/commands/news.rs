//! An event in words, with the name of the conversation it is about.

use undertone::{Client, ConversationId, Event};

use crate::output::people;

/// What people are told of an event; `None` if it is no news to them. The conversation is named unless it is `here`.
pub(super) async fn of(client: &Client, event: &Event, here: Option<ConversationId>) -> Option<String> {
    let name = match conversation(event).filter(|conversation| Some(*conversation) != here) {
        Some(conversation) => client.conversation(conversation).name().await.ok(),
        None => None,
    };
    people::event(event, name.as_deref(), &jiff::Zoned::now())
}

/// The conversation an event is about.
fn conversation(event: &Event) -> Option<ConversationId> {
    match event {
        Event::MessageReceived(message) => Some(message.conversation),
        Event::MessageStatus { conversation, .. }
        | Event::Undecryptable { conversation }
        | Event::Typing { conversation, .. } => Some(*conversation),
        Event::Joined { group_id, .. }
        | Event::MembersChanged { group_id, .. }
        | Event::GroupRenamed { group_id, .. }
        | Event::Removed { group_id, .. }
        | Event::Left { group_id }
        | Event::GroupRecovering { group_id }
        | Event::GroupAskedIn { group_id }
        | Event::GroupRecovered { group_id, .. }
        | Event::GroupStuck { group_id }
        | Event::UnlistedDevice { group_id, .. } => Some((*group_id).into()),
        _ => None,
    }
}
