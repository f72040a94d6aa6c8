//! What people read.
//!
//! Invariant: nothing that others wrote reaches a terminal as more than text: no control characters, no changes of
//! direction, and no line that looks as if it were another message.

use jiff::{Timestamp, Zoned, tz::TimeZone};
use undertone::{Connection, Contact, Device, Event, GroupSummary, Message, MessageBody, MessageStatus, Recovered};

/// Text in which whatever could do something to a terminal is replaced. Lines after the first are indented.
pub(crate) fn clean(text: &str) -> String {
    let lines = text.lines().map(clean_line);
    lines.collect::<Vec<_>>().join("\n    ")
}

/// The same on one line.
pub(crate) fn clean_line(text: &str) -> String {
    text.chars().map(|c| if is_plain(c) { c } else { '\u{fffd}' }).collect()
}

fn is_plain(c: char) -> bool {
    let changes_direction = matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let breaks_line = matches!(c, '\u{2028}' | '\u{2029}');
    c == '\t' || !(c.is_control() || changes_direction || breaks_line)
}

/// Names, separated by commas; "nobody" for none.
pub(crate) fn names(contacts: &[Contact]) -> String {
    match contacts {
        [] => "nobody".to_owned(),
        contacts => contacts.iter().map(Contact::name).collect::<Vec<_>>().join(", "),
    }
}

/// A device of this account, in a line.
pub(crate) fn device(device: &Device) -> String {
    let this = if device.this { "  (this one)" } else { "" };
    format!("{}  {}{this}", device.device_id, clean_line(&device.name))
}

/// A long code, as it is read aloud.
pub(crate) fn in_fours(code: &str) -> String {
    let fours = code.as_bytes().chunks(4).map(String::from_utf8_lossy);
    fours.collect::<Vec<_>>().join(" ")
}

/// A group in a list.
pub(crate) fn group_line(group: &GroupSummary) -> String {
    let members = match (group.active, group.members.len()) {
        (false, _) => "no longer a member".to_owned(),
        (true, _) if group.requested_by.is_some() => "requested".to_owned(),
        (true, 1) => "1 member".to_owned(),
        (true, many) => format!("{many} members"),
    };
    format!("{}  {members}  {}", clean_line(&group.name), group.group_id)
}

/// A group with its members.
pub(crate) fn group(group: &GroupSummary) -> String {
    let mut lines = vec![group_line(group)];
    if group.post_quantum {
        lines.push("  post-quantum".to_owned());
    }
    if !group.active {
        lines.push("  when last seen:".to_owned());
    }
    lines.extend(group.members.iter().map(|member| match &member.username {
        Some(name) => format!("  {name}  {}", member.account_id),
        None => format!("  {}", member.account_id),
    }));
    lines.join("\n")
}

/// A message of a history.
pub(crate) fn history_line(message: &Message) -> String {
    let status = match message.status {
        MessageStatus::Queued => "  (queued)",
        MessageStatus::Failed(_) => "  (not sent)",
        _ => "",
    };
    format!("{}  {}: {}{status}", full_time(message.sent_at_ms), message.from.name(), body(message))
}

/// A message that was found, in the group of this name.
pub(crate) fn found_line(message: &Message, group: &str) -> String {
    format!("[{}] {}", clean_line(group), history_line(message))
}

/// An event, in the group whose name is given if that is not clear anyway. `None` if it is no news to people.
pub(crate) fn event(event: &Event, group: Option<&str>, now: &Zoned) -> Option<String> {
    let place = group.map(|name| format!("[{}] ", clean_line(name))).unwrap_or_default();
    let news = match event {
        Event::MessageReceived(message) => {
            let time = time(message.sent_at_ms, now);
            return Some(format!("{time} {place}{}: {}", message.from.name(), body(message)));
        }
        Event::MessageStatus { status: MessageStatus::Failed(_), .. } => "a message was not sent".to_owned(),
        Event::Undecryptable { .. } => "a message came that cannot be read".to_owned(),
        Event::Joined { name, by, requested, .. } => {
            let (name, by) = (clean_line(name), by.name());
            let asks = if *requested { "; they are new to you: undertone group accept, or decline" } else { "" };
            return Some(format!("* {by} added you to {name}{asks}"));
        }
        Event::Requested { by } => {
            format!("{} writes to you and is new to you; they are told nothing until you answer", by.name())
        }
        Event::SessionReplaced { with } => {
            format!("a session with a device of {} was replaced; what could not be read is asked for", with.name())
        }
        Event::MembersChanged { by, added, removed, .. } => members_changed(by.as_ref(), added, removed),
        Event::GroupRenamed { name, by: Some(by), .. } => format!("{} calls the group {}", by.name(), clean_line(name)),
        Event::GroupRenamed { name, by: None, .. } => format!("the group is called {}", clean_line(name)),
        Event::Removed { by: Some(by), .. } => format!("{} removed you", by.name()),
        Event::Removed { by: None, .. } => "you were removed".to_owned(),
        Event::Left { .. } => "you have left".to_owned(),
        Event::GroupRecovering { .. } => {
            "this device has lost track of the group and is coming back; what you write waits".to_owned()
        }
        Event::GroupAskedIn { .. } => "the other members are asked to let this device in again".to_owned(),
        Event::GroupRecovered { how: Recovered::MissedCommits, .. } => return None,
        Event::GroupRecovered { how: Recovered::Successor, .. } => {
            "a member had brought the group to a halt; it goes on without them".to_owned()
        }
        Event::GroupRecovered { .. } => {
            "this device is back; what others wrote meanwhile cannot be read here".to_owned()
        }
        Event::GroupStuck { .. } => "the group cannot go on here: the relay has lost it, or a change of it".to_owned(),
        Event::Missed { from, to } => missed(to.saturating_sub(*from).saturating_add(1)),
        Event::Dropped { events } => {
            format!("{events} events were too many to keep; what was written is in the history")
        }
        Event::StoreCopied => {
            "this store is a copy of an earlier state: it comes back into its groups with new keys".to_owned()
        }
        Event::OtherRelay { url } => format!("{} is another relay's address now; it is passed over", clean_line(url)),
        Event::DevicesChanged { added, .. } if !added.is_empty() => {
            "this account has a new device; if that was not you, take it off: undertone devices list".to_owned()
        }
        Event::DevicesChanged { .. } => "this account has one device less".to_owned(),
        Event::RecoveryKeySet => {
            "this account has a recovery key from now on; if nobody of you has set it, whoever has takes the account whenever \
             they want"
                .to_owned()
        }
        Event::ReadElsewhere { .. } => return None,
        Event::IdentityChanged { account } => {
            format!("{} has a new identity key: ask them whether that is right", account.name())
        }
        Event::UnlistedDevice { account, .. } => {
            format!("{} has a device here that their account does not list; it is removed: ask them", account.name())
        }
        Event::StaleDeviceList { account } => {
            format!("the relay shows an old device list of {}: ask them", account.name())
        }
        Event::Connection(state) => connection(*state)?.to_owned(),
        _ => return None,
    };
    Some(format!("* {place}{news}"))
}

/// Numbers jump by 2^32 when a relay is set back to an earlier state. The device may be somewhat ahead of that state, or
/// behind it; no queue ever holds as much as half of that.
fn missed(numbers: u64) -> String {
    match numbers {
        1 => "1 message was not fetched in time and is lost".to_owned(),
        numbers if numbers <= 1 << 31 => format!("{numbers} messages were not fetched in time and are lost"),
        _ => {
            "the relay was set back to an earlier state; what was waiting there for this device may be lost".to_owned()
        }
    }
}

fn members_changed(by: Option<&Contact>, added: &[Contact], removed: &[Contact]) -> String {
    let mut news = Vec::new();
    match by {
        Some(by) if !added.is_empty() => news.push(format!("{} added {}", by.name(), names(added))),
        None if !added.is_empty() => news.push(format!("{} came meanwhile", names(added))),
        _ => {}
    }
    match by {
        Some(by) if removed == std::slice::from_ref(by) => news.push(format!("{} left", by.name())),
        Some(by) if !removed.is_empty() => news.push(format!("{} removed {}", by.name(), names(removed))),
        None if !removed.is_empty() => news.push(format!("{} went meanwhile", names(removed))),
        _ => {}
    }
    news.join("; ")
}

fn connection(state: Connection) -> Option<&'static str> {
    match state {
        Connection::Online => Some("online"),
        Connection::Offline => Some("offline, trying again; what you write goes out later"),
        _ => None,
    }
}

fn body(message: &Message) -> String {
    match &message.body {
        MessageBody::Text(text) => clean(text),
        _ => "(something that this version cannot show)".to_owned(),
    }
}

/// The time of day; for other days than today, the day as well.
fn time(at_ms: u64, now: &Zoned) -> String {
    let Some(at) = zoned(at_ms, now.time_zone().clone()) else { return "?".to_owned() };
    let format = if at.date() == now.date() { "%H:%M" } else { "%Y-%m-%d %H:%M" };
    at.strftime(format).to_string()
}

fn full_time(at_ms: u64) -> String {
    zoned(at_ms, TimeZone::system()).map_or_else(|| "?".to_owned(), |at| at.strftime("%Y-%m-%d %H:%M").to_string())
}

fn zoned(at_ms: u64, zone: TimeZone) -> Option<Zoned> {
    let at = i64::try_from(at_ms).ok().and_then(|at_ms| Timestamp::from_millisecond(at_ms).ok())?;
    Some(at.to_zoned(zone))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contact(name: &str) -> Contact {
        let account_id = "01020304-0506-8708-890a-0b0c0d0e0f10".parse().unwrap();
        Contact { account_id, username: Some(name.parse().unwrap()) }
    }

    fn now() -> Zoned {
        zoned(1_700_000_000_000, TimeZone::UTC).unwrap()
    }

    #[test]
    fn what_others_wrote_does_nothing_to_a_terminal() {
        assert_eq!(clean("\u{1b}[2Jgone\u{7}"), "\u{fffd}[2Jgone\u{fffd}");
        assert_eq!(clean("a\rb\u{9b}c"), "a\u{fffd}b\u{fffd}c");
        assert_eq!(clean("\u{202e}evil\u{2066}"), "\u{fffd}evil\u{fffd}");
        assert_eq!(clean_line("one\ntwo\u{2028}three"), "one\u{fffd}two\u{fffd}three");
        assert_eq!(clean("grüße\t👋"), "grüße\t👋");
    }

    #[test]
    fn no_line_of_a_message_looks_like_another_message() {
        assert_eq!(clean("hi\n12:00 bob: I agree\r\nbye"), "hi\n    12:00 bob: I agree\n    bye");
    }

    #[test]
    fn times_are_short_today_and_long_otherwise() {
        assert_eq!(time(1_700_000_000_000, &now()), "22:13");
        assert_eq!(time(1_699_000_000_000, &now()), "2023-11-03 08:26");
        assert_eq!(time(u64::MAX, &now()), "?");
    }

    #[test]
    fn changes_of_members_read_as_sentences() {
        let [alice, bob, carol] = ["alice", "bob", "carol"].map(contact);
        assert_eq!(members_changed(Some(&alice), &[bob.clone(), carol.clone()], &[]), "alice added bob, carol");
        assert_eq!(members_changed(Some(&alice), &[], std::slice::from_ref(&bob)), "alice removed bob");
        assert_eq!(members_changed(Some(&bob), &[], std::slice::from_ref(&bob)), "bob left");
        assert_eq!(
            members_changed(None, std::slice::from_ref(&carol), std::slice::from_ref(&bob)),
            "carol came meanwhile; bob went meanwhile"
        );
        assert_eq!(members_changed(Some(&alice), &[carol], &[bob]), "alice added carol; alice removed bob");
    }

    #[test]
    fn only_news_is_told() {
        assert_eq!(event(&Event::Connection(Connection::CatchingUp), None, &now()), None);
        assert_eq!(event(&Event::Connection(Connection::Online), None, &now()).unwrap(), "* online");
        let group_id = "01020304-0506-4708-890a-0b0c0d0e0f10".parse().unwrap();
        let missed = |from, to| event(&Event::Missed { from, to }, None, &now()).unwrap();
        assert_eq!(missed(3, 5), "* 3 messages were not fetched in time and are lost");
        assert_eq!(missed(3, 3), "* 1 message was not fetched in time and is lost");
        let set_back =
            "* the relay was set back to an earlier state; what was waiting there for this device may be lost";
        for numbers in [(1 << 31) + 1, (1 << 32) - 2, 1 << 32, (1 << 32) + 7] {
            assert_eq!(missed(3, 2 + numbers), set_back, "{numbers}");
        }
        let removed = Event::Removed { group_id, by: Some(contact("alice")) };
        assert_eq!(event(&removed, Some("te\nam"), &now()).unwrap(), "* [te\u{fffd}am] alice removed you");
    }
}
