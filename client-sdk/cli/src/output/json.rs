//! What scripts read: every JSON object that goes to stdout, and no other place makes one.
//!
//! Invariant: a key here is a promise. Keys may be added to an object; none changes or goes.

use serde::{Serialize, Serializer};
use undertone::{
    AccountId, Connection, Contact, ConversationId, Device, DeviceId, Event, GroupId, GroupSummary, Message, MessageId,
    MessageStatus, Recovered,
};

/// One object, one line.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum Object {
    /// `register`, `whoami`, `link`
    Account { account_id: Text<AccountId>, device_id: Text<DeviceId>, username: Option<String>, fingerprint: String },
    /// `link`, before anything else
    Code { code: String },
    /// `link approve`; `devices list`, one each
    ListedDevice { device_id: Text<DeviceId>, name: String, this: bool },
    /// `devices remove`
    Device { device_id: Text<DeviceId> },
    /// `recovery-key`
    RecoveryKey { recovery_key: String },
    /// `safety-number`
    SafetyNumber { safety_number: String },
    /// `group create`, `group rename`, `group accept`
    Created { group_id: Text<GroupId>, name: String },
    /// `group list`, one each
    Listed { group_id: Text<GroupId>, name: String, members: usize, requested: bool },
    /// `group show`
    Group {
        group_id: Text<GroupId>,
        name: String,
        active: bool,
        requested: bool,
        post_quantum: bool,
        members: Vec<Member>,
    },
    /// `group add`, `group remove`
    Changed { group_id: Text<GroupId>, account_id: Text<AccountId>, username: Option<String> },
    /// `group leave`, `group decline`
    Left { group_id: Text<GroupId> },
    /// `block`, `unblock`
    Person { account_id: Text<AccountId>, username: Option<String> },
    /// `send`
    Sent { message_id: Text<MessageId>, status: &'static str },
    /// `sync`
    Synced { received: u64, sent: u64 },
    /// `listen`, `chat`, `history`, `search`
    Event(EventObject),
}

/// Something that happened; `event` says what.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum EventObject {
    Message {
        #[serde(flatten)]
        place: Place,
        message_id: Text<MessageId>,
        from: String,
        from_account: Text<AccountId>,
        text: String,
        sent_at: u64,
    },
    Joined {
        group_id: Text<GroupId>,
        name: String,
        by: String,
        requested: bool,
    },
    Requested {
        account_id: Text<AccountId>,
        username: Option<String>,
    },
    DevicesChanged {
        added: Vec<Text<DeviceId>>,
        removed: Vec<Text<DeviceId>>,
    },
    RecoveryKeySet,
    ReadElsewhere {
        #[serde(flatten)]
        place: Place,
        up_to: Text<MessageId>,
    },
    SessionReplaced {
        account_id: Text<AccountId>,
        username: Option<String>,
    },
    Members {
        group_id: Text<GroupId>,
        by: Option<String>,
        added: Vec<String>,
        removed: Vec<String>,
    },
    Renamed {
        group_id: Text<GroupId>,
        name: String,
        by: Option<String>,
    },
    Removed {
        group_id: Text<GroupId>,
        by: Option<String>,
    },
    Left {
        group_id: Text<GroupId>,
    },
    Status {
        #[serde(flatten)]
        place: Place,
        message_id: Text<MessageId>,
        status: &'static str,
        /// On so many devices of others.
        #[serde(skip_serializing_if = "Option::is_none")]
        devices: Option<u32>,
        #[serde(skip_serializing_if = "Option::is_none")]
        of: Option<u32>,
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<&'static str>,
    },
    Recovering {
        group_id: Text<GroupId>,
    },
    AskedIn {
        group_id: Text<GroupId>,
    },
    Recovered {
        group_id: Text<GroupId>,
        how: &'static str,
    },
    Stuck {
        group_id: Text<GroupId>,
    },
    Undecryptable {
        #[serde(flatten)]
        place: Place,
    },
    Missed {
        first: u64,
        last: u64,
    },
    Dropped {
        events: u64,
    },
    StoreCopied,
    Typing {
        #[serde(flatten)]
        place: Place,
        by: String,
    },
    IdentityChanged {
        account_id: Text<AccountId>,
        username: Option<String>,
    },
    StaleDeviceList {
        account_id: Text<AccountId>,
        username: Option<String>,
    },
    UnlistedDevice {
        group_id: Text<GroupId>,
        account_id: Text<AccountId>,
        username: Option<String>,
    },
    OtherRelay {
        url: String,
    },
    Connection {
        state: &'static str,
    },
}

/// Where a message stands: in a group, or in what this account and another write to each other.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(untagged)]
pub(crate) enum Place {
    Group { group_id: Text<GroupId> },
    Direct { account_id: Text<AccountId> },
}

impl From<ConversationId> for Place {
    fn from(conversation: ConversationId) -> Self {
        match conversation {
            ConversationId::Group(group) => Self::Group { group_id: Text(group) },
            ConversationId::Direct(account) => Self::Direct { account_id: Text(account) },
        }
    }
}

/// A member of a group.
#[derive(Debug, Serialize)]
pub(crate) struct Member {
    account_id: Text<AccountId>,
    username: Option<String>,
}

/// An id, written as text.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Text<T>(T);

impl<T: std::fmt::Display> Serialize for Text<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl Object {
    pub(crate) fn account(contact: &Contact, device: DeviceId, fingerprint: &str) -> Self {
        Self::Account {
            account_id: Text(contact.account_id),
            device_id: Text(device),
            username: username(contact),
            fingerprint: fingerprint.to_owned(),
        }
    }

    pub(crate) fn listed_device(device: &Device) -> Self {
        Self::ListedDevice { device_id: Text(device.device_id), name: device.name.clone(), this: device.this }
    }

    pub(crate) fn device(device_id: DeviceId) -> Self {
        Self::Device { device_id: Text(device_id) }
    }

    pub(crate) fn created(group_id: GroupId, name: &str) -> Self {
        Self::Created { group_id: Text(group_id), name: name.to_owned() }
    }

    pub(crate) fn listed(group: &GroupSummary) -> Self {
        let requested = group.requested_by.is_some();
        Self::Listed {
            group_id: Text(group.group_id),
            name: group.name.clone(),
            members: group.members.len(),
            requested,
        }
    }

    pub(crate) fn group(group: &GroupSummary) -> Self {
        let members = group.members.iter();
        Self::Group {
            group_id: Text(group.group_id),
            name: group.name.clone(),
            active: group.active,
            requested: group.requested_by.is_some(),
            post_quantum: group.post_quantum,
            members: members.map(|one| Member { account_id: Text(one.account_id), username: username(one) }).collect(),
        }
    }

    pub(crate) fn changed(group_id: GroupId, who: &Contact) -> Self {
        Self::Changed { group_id: Text(group_id), account_id: Text(who.account_id), username: username(who) }
    }

    pub(crate) fn person(who: &Contact) -> Self {
        Self::Person { account_id: Text(who.account_id), username: username(who) }
    }

    pub(crate) fn left(group_id: GroupId) -> Self {
        Self::Left { group_id: Text(group_id) }
    }

    pub(crate) fn sent(message_id: MessageId, status: MessageStatus) -> Self {
        Self::Sent { message_id: Text(message_id), status: status.as_str() }
    }

    pub(crate) fn message(message: &Message) -> Self {
        Self::Event(EventObject::Message {
            place: message.conversation.into(),
            message_id: Text(message.message_id),
            from: message.from.name(),
            from_account: Text(message.from.account_id),
            text: message.text().to_owned(),
            sent_at: message.sent_at_ms,
        })
    }

    /// `None` for an event of a kind that this version does not know.
    pub(crate) fn event(event: &Event) -> Option<Self> {
        Some(Self::Event(match event {
            Event::MessageReceived(message) => return Some(Self::message(message)),
            Event::MessageStatus { conversation, message_id, status } => {
                let (devices, of) = match *status {
                    MessageStatus::Delivered { to: some, of } | MessageStatus::Read { by: some, of } => {
                        (Some(some), Some(of))
                    }
                    _ => (None, None),
                };
                let reason = if let MessageStatus::Failed(why) = status { Some(why.as_str()) } else { None };
                let (place, message_id) = ((*conversation).into(), Text(*message_id));
                EventObject::Status { place, message_id, status: status.as_str(), devices, of, reason }
            }
            Event::Undecryptable { conversation } => EventObject::Undecryptable { place: (*conversation).into() },
            Event::Joined { group_id, name, by, requested } => {
                let (group_id, name, requested) = (Text(*group_id), name.clone(), *requested);
                EventObject::Joined { group_id, name, by: by.name(), requested }
            }
            Event::Requested { by } => {
                EventObject::Requested { account_id: Text(by.account_id), username: username(by) }
            }
            Event::SessionReplaced { with } => {
                EventObject::SessionReplaced { account_id: Text(with.account_id), username: username(with) }
            }
            Event::MembersChanged { group_id, by, added, removed } => EventObject::Members {
                group_id: Text(*group_id),
                by: by.as_ref().map(Contact::name),
                added: added.iter().map(Contact::name).collect(),
                removed: removed.iter().map(Contact::name).collect(),
            },
            Event::GroupRenamed { group_id, name, by } => EventObject::Renamed {
                group_id: Text(*group_id),
                name: name.clone(),
                by: by.as_ref().map(Contact::name),
            },
            Event::Removed { group_id, by } => {
                EventObject::Removed { group_id: Text(*group_id), by: by.as_ref().map(Contact::name) }
            }
            Event::Left { group_id } => EventObject::Left { group_id: Text(*group_id) },
            Event::GroupRecovering { group_id } => EventObject::Recovering { group_id: Text(*group_id) },
            Event::GroupAskedIn { group_id } => EventObject::AskedIn { group_id: Text(*group_id) },
            Event::GroupRecovered { group_id, how } => {
                EventObject::Recovered { group_id: Text(*group_id), how: recovered(*how) }
            }
            Event::GroupStuck { group_id } => EventObject::Stuck { group_id: Text(*group_id) },
            Event::Missed { from, to } => EventObject::Missed { first: *from, last: *to },
            Event::Dropped { events } => EventObject::Dropped { events: *events },
            Event::StoreCopied => EventObject::StoreCopied,
            Event::Typing { conversation, by } => EventObject::Typing { place: (*conversation).into(), by: by.name() },
            Event::DevicesChanged { added, removed } => {
                let text = |these: &[DeviceId]| these.iter().copied().map(Text).collect();
                EventObject::DevicesChanged { added: text(added), removed: text(removed) }
            }
            Event::RecoveryKeySet => EventObject::RecoveryKeySet,
            Event::ReadElsewhere { conversation, up_to } => {
                EventObject::ReadElsewhere { place: (*conversation).into(), up_to: Text(*up_to) }
            }
            Event::IdentityChanged { account } => {
                EventObject::IdentityChanged { account_id: Text(account.account_id), username: username(account) }
            }
            Event::StaleDeviceList { account } => {
                EventObject::StaleDeviceList { account_id: Text(account.account_id), username: username(account) }
            }
            Event::UnlistedDevice { group_id, account } => EventObject::UnlistedDevice {
                group_id: Text(*group_id),
                account_id: Text(account.account_id),
                username: username(account),
            },
            Event::OtherRelay { url } => EventObject::OtherRelay { url: url.clone() },
            Event::Connection(state) => EventObject::Connection { state: connection(*state) },
            _ => return None,
        }))
    }
}

fn username(contact: &Contact) -> Option<String> {
    contact.username.as_ref().map(ToString::to_string)
}

fn recovered(how: Recovered) -> &'static str {
    match how {
        Recovered::MissedCommits => "missed_commits",
        Recovered::Rejoined => "rejoined",
        Recovered::LetIn => "let_in",
        Recovered::Successor => "successor",
        _ => "unknown",
    }
}

fn connection(state: Connection) -> &'static str {
    match state {
        Connection::Connecting => "connecting",
        Connection::CatchingUp => "catching_up",
        Connection::Online => "online",
        Connection::Offline => "offline",
        Connection::Replaced => "replaced",
        Connection::SignedOut => "signed_out",
        _ => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use undertone::SendFailure;

    use super::*;

    const ACCOUNT: &str = "01020304-0506-8708-890a-0b0c0d0e0f10";
    const GROUP: &str = "01020304-0506-4708-890a-0b0c0d0e0f10";
    const MESSAGE: &str = "01020304-0506-7708-890a-0b0c0d0e0f10";

    fn bob() -> Contact {
        Contact { account_id: ACCOUNT.parse().unwrap(), username: Some("bob".parse().unwrap()) }
    }

    fn nameless() -> Contact {
        Contact { username: None, ..bob() }
    }

    fn group() -> GroupId {
        GROUP.parse().unwrap()
    }

    fn line(object: &Object) -> String {
        serde_json::to_string(object).unwrap()
    }

    fn event(event: &Event) -> String {
        line(&Object::event(event).unwrap())
    }

    #[test]
    fn accounts_and_groups() {
        let device = GROUP.parse().unwrap();
        assert_eq!(
            line(&Object::account(&bob(), device, "12345")),
            format!(r#"{{"account_id":"{ACCOUNT}","device_id":"{GROUP}","username":"bob","fingerprint":"12345"}}"#)
        );
        assert!(line(&Object::account(&nameless(), device, "12345")).contains(r#""username":null"#));
        assert_eq!(line(&Object::created(group(), "a \"b\"")), format!(r#"{{"group_id":"{GROUP}","name":"a \"b\""}}"#));
        assert_eq!(
            line(&Object::changed(group(), &bob())),
            format!(r#"{{"group_id":"{GROUP}","account_id":"{ACCOUNT}","username":"bob"}}"#)
        );
        assert_eq!(line(&Object::left(group())), format!(r#"{{"group_id":"{GROUP}"}}"#));
    }

    #[test]
    fn sending_and_syncing() {
        assert_eq!(
            line(&Object::sent(MESSAGE.parse().unwrap(), MessageStatus::Queued)),
            format!(r#"{{"message_id":"{MESSAGE}","status":"queued"}}"#)
        );
        assert_eq!(line(&Object::Synced { received: 2, sent: 1 }), r#"{"received":2,"sent":1}"#);
    }

    #[test]
    fn a_message() {
        let message = EventObject::Message {
            place: ConversationId::from(group()).into(),
            message_id: Text(MESSAGE.parse().unwrap()),
            from: bob().name(),
            from_account: Text(bob().account_id),
            text: "two\nlines".into(),
            sent_at: 1_700_000_000_123,
        };
        assert_eq!(
            line(&Object::Event(message)),
            format!(
                r#"{{"event":"message","group_id":"{GROUP}","message_id":"{MESSAGE}","from":"bob","from_account":"{ACCOUNT}","text":"two\nlines","sent_at":1700000000123}}"#
            )
        );
    }

    #[test]
    fn what_stands_in_a_direct_conversation_names_the_account_with_which_it_is() {
        let typing = Event::Typing { conversation: bob().account_id.into(), by: bob() };
        assert_eq!(event(&typing), format!(r#"{{"event":"typing","account_id":"{ACCOUNT}","by":"bob"}}"#));
    }

    #[test]
    fn events_name_people_by_username_or_else_by_id() {
        assert_eq!(
            event(&Event::Joined { group_id: group(), name: "team".into(), by: bob(), requested: true }),
            format!(r#"{{"event":"joined","group_id":"{GROUP}","name":"team","by":"bob","requested":true}}"#)
        );
        assert_eq!(
            event(&Event::MembersChanged {
                group_id: group(),
                by: Some(bob()),
                added: vec![nameless()],
                removed: vec![]
            }),
            format!(r#"{{"event":"members","group_id":"{GROUP}","by":"bob","added":["{ACCOUNT}"],"removed":[]}}"#)
        );
        assert_eq!(
            event(&Event::Removed { group_id: group(), by: None }),
            format!(r#"{{"event":"removed","group_id":"{GROUP}","by":null}}"#)
        );
    }

    #[test]
    fn the_other_events() {
        let message_id = MESSAGE.parse().unwrap();
        let of_group = |kind: &str| format!(r#"{{"event":"{kind}","group_id":"{GROUP}"}}"#);
        assert_eq!(event(&Event::Left { group_id: group() }), of_group("left"));
        assert_eq!(event(&Event::GroupStuck { group_id: group() }), of_group("stuck"));
        assert_eq!(event(&Event::GroupRecovering { group_id: group() }), of_group("recovering"));
        assert_eq!(event(&Event::GroupAskedIn { group_id: group() }), of_group("asked_in"));
        assert_eq!(
            event(&Event::GroupRecovered { group_id: group(), how: Recovered::LetIn }),
            format!(r#"{{"event":"recovered","group_id":"{GROUP}","how":"let_in"}}"#)
        );
        assert_eq!(event(&Event::Undecryptable { conversation: group().into() }), of_group("undecryptable"));
        assert_eq!(
            event(&Event::MessageStatus { conversation: group().into(), message_id, status: MessageStatus::Sent }),
            format!(r#"{{"event":"status","group_id":"{GROUP}","message_id":"{MESSAGE}","status":"sent"}}"#)
        );
        let read = MessageStatus::Read { by: 1, of: 2 };
        assert!(
            event(&Event::MessageStatus { conversation: group().into(), message_id, status: read })
                .ends_with(r#""status":"read","devices":1,"of":2}"#)
        );
        let failed = MessageStatus::Failed(SendFailure::NotMember);
        assert!(
            event(&Event::MessageStatus { conversation: group().into(), message_id, status: failed })
                .ends_with(r#""status":"failed","reason":"not_member"}"#)
        );
        assert_eq!(
            event(&Event::GroupRenamed { group_id: group(), name: "team".into(), by: Some(bob()) }),
            format!(r#"{{"event":"renamed","group_id":"{GROUP}","name":"team","by":"bob"}}"#)
        );
        assert_eq!(event(&Event::Missed { from: 3, to: 5 }), r#"{"event":"missed","first":3,"last":5}"#);
        assert_eq!(
            event(&Event::IdentityChanged { account: bob() }),
            format!(r#"{{"event":"identity_changed","account_id":"{ACCOUNT}","username":"bob"}}"#)
        );
        assert_eq!(
            event(&Event::StaleDeviceList { account: nameless() }),
            format!(r#"{{"event":"stale_device_list","account_id":"{ACCOUNT}","username":null}}"#)
        );
        assert_eq!(
            event(&Event::UnlistedDevice { group_id: group(), account: nameless() }),
            format!(r#"{{"event":"unlisted_device","group_id":"{GROUP}","account_id":"{ACCOUNT}","username":null}}"#)
        );
        assert_eq!(
            event(&Event::OtherRelay { url: "http://relay.example".into() }),
            r#"{"event":"other_relay","url":"http://relay.example"}"#
        );
        assert_eq!(
            event(&Event::Connection(Connection::CatchingUp)),
            r#"{"event":"connection","state":"catching_up"}"#
        );
    }
}
