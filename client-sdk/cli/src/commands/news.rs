//! An event in words, with the name of the group it is about.

use undertone::{Client, Event, GroupId};

use crate::output::people;

/// What people are told of an event; `None` if it is no news to them. The group is named unless it is `here`.
pub(super) async fn of(client: &Client, event: &Event, here: Option<GroupId>) -> Option<String> {
    let group = group(event).filter(|group| Some(*group) != here);
    let name = match group {
        Some(group) => client.group(group).summary().await.ok().map(|summary| summary.name),
        None => None,
    };
    people::event(event, name.as_deref(), &jiff::Zoned::now())
}

/// The group an event is about.
pub(super) fn group(event: &Event) -> Option<GroupId> {
    match event {
        Event::MessageReceived(message) => Some(message.group_id),
        Event::MessageStatus { group_id, .. }
        | Event::Undecryptable { group_id }
        | Event::Joined { group_id, .. }
        | Event::MembersChanged { group_id, .. }
        | Event::GroupRenamed { group_id, .. }
        | Event::Removed { group_id, .. }
        | Event::Left { group_id }
        | Event::GroupRecovering { group_id }
        | Event::GroupAskedIn { group_id }
        | Event::GroupRecovered { group_id, .. }
        | Event::GroupStuck { group_id }
        | Event::Typing { group_id, .. }
        | Event::UnlistedDevice { group_id, .. } => Some(*group_id),
        _ => None,
    }
}
