//! What an app may observe.
//!
//! Events about groups and messages are written in the transaction that made them true, and stay until the app has
//! taken them, over restarts. [`Event::Connection`] and [`Event::Typing`] are about this moment only and are not kept.

use serde::{Deserialize, Serialize};
use undertone_wire::{AccountId, DeviceId, GroupId, MessageId, Username};

use crate::{conversation_id::ConversationId, message::Message, store::MessageStatus};

/// Somebody's account.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Contact {
    /// The account.
    pub account_id: AccountId,
    /// Its username, as the relay tells it; not proved by any key.
    pub username: Option<Username>,
}

impl Contact {
    /// What to call the account: its username if it has one, its id otherwise.
    pub fn name(&self) -> String {
        self.username.as_ref().map_or_else(|| self.account_id.to_string(), Username::to_string)
    }
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A message came.
    MessageReceived(Message),
    /// One of this account's messages was sent or failed, or others have it or have read it. One receipt may be about many
    /// messages at once: of more than 100, only the newest 100 are told; the history knows of all.
    MessageStatus {
        /// Where it stands.
        conversation: ConversationId,
        /// The message.
        message_id: MessageId,
        /// Where it stands now.
        status: MessageStatus,
    },
    /// A message came that cannot be opened. Nothing else is lost by it.
    Undecryptable {
        /// Where it would stand.
        conversation: ConversationId,
    },
    /// This device is now a member of a group. If a stranger has added it (who was never added by this account, nor accepted),
    /// that is a request: nothing is done in the group that others could see until the app calls [`Conversation::accept`] or
    /// [`Conversation::decline`], or sends something there.
    ///
    /// [`Conversation::accept`]: crate::Conversation::accept
    /// [`Conversation::decline`]: crate::Conversation::decline
    Joined {
        /// The group.
        group_id: GroupId,
        /// Its name.
        name: String,
        /// Who added this device.
        by: Contact,
        /// Whether that is a request.
        requested: bool,
    },
    /// A stranger has written directly (who was never written to or added by this account, nor accepted). That is a request:
    /// they are not told that it came until the app calls [`Conversation::accept`] or writes to them. Until then 100 messages
    /// of theirs are kept, and none once they have a mebibyte.
    ///
    /// [`Conversation::accept`]: crate::Conversation::accept
    Requested {
        /// Who.
        by: Contact,
    },
    /// A message that a device of this account, or of a known one, is said to have written cannot be read. The session with that
    /// device is replaced by another, by which the message is asked for; if there was one, it comes.
    SessionReplaced {
        /// Whose device it is.
        with: Contact,
    },
    /// Accounts joined or left a group.
    MembersChanged {
        /// The group.
        group_id: GroupId,
        /// Who did it; `None` if this device learned of it when it was in the group again.
        by: Option<Contact>,
        /// Accounts that are members now.
        added: Vec<Contact>,
        /// Accounts that are no longer.
        removed: Vec<Contact>,
    },
    /// A group has another name.
    GroupRenamed {
        /// The group.
        group_id: GroupId,
        /// Its name from now on.
        name: String,
        /// Who did it; `None` if this device learned of it when it was in the group again.
        by: Option<Contact>,
    },
    /// This device is no longer a member: it was removed.
    Removed {
        /// The group.
        group_id: GroupId,
        /// Who did it, if the removal itself came.
        by: Option<Contact>,
    },
    /// This account has left a group.
    Left {
        /// The group.
        group_id: GroupId,
    },
    /// What this device has of a group is of no use: a commit cannot be applied, or is missing. The device is about to come
    /// back into the group; until then, what is sent there waits, and what others send cannot be read here.
    GroupRecovering {
        /// The group.
        group_id: GroupId,
    },
    /// A step of [`Event::GroupRecovering`]: this device could not come back by itself and has asked the other members. One of
    /// them lets it in as soon as one is online. It is told again each time they are asked, once an hour.
    GroupAskedIn {
        /// The group.
        group_id: GroupId,
    },
    /// A group is as it should be again.
    GroupRecovered {
        /// The group.
        group_id: GroupId,
        /// What it took.
        how: Recovered,
    },
    /// The relay, restored from a copy, has lost the group, or a commit of it that was applied here. The group cannot be used
    /// on this device.
    GroupStuck {
        /// The group.
        group_id: GroupId,
    },
    /// Queue entries will never come: they were not taken in time, or made room for others. A span of more than
    /// 2^31 numbers means that the relay was set back to an earlier state, and is no count of what was lost: whatever was
    /// waiting for this device then may be.
    Missed {
        /// The number of the first.
        from: u64,
        /// The number of the last.
        to: u64,
    },
    /// The app has not taken events for so long that the oldest were dropped; 10,000 are kept. Messages are in the history all
    /// the same, and what became of groups and members is in their summaries.
    Dropped {
        /// How many, this time and before the last ones were taken.
        events: u64,
    },
    /// This store was restored from a copy, or is one, and was used elsewhere since: what was received there is not here. The
    /// device comes back into its groups with new keys before it sends anything; [`Event::GroupRecovering`] and what follows
    /// tell of each.
    StoreCopied,
    /// An account has another identity key than before: tell the user.
    IdentityChanged {
        /// The account.
        account: Contact,
    },
    /// The relay serves a device list of an account that is older than one seen before, or than its devices name.
    StaleDeviceList {
        /// The account.
        account: Contact,
    },
    /// This account has other devices than before, by its own device list. Tell the user of one that is new: who has linked it
    /// without them knowing reads what they read.
    DevicesChanged {
        /// Devices that are listed now.
        added: Vec<DeviceId>,
        /// Devices that are no longer.
        removed: Vec<DeviceId>,
    },
    /// This account has a recovery key from now on ([`Client::set_recovery_key`]): tell the user. If nobody but somebody with a
    /// stolen device can have set it, the account is theirs whenever they want, and it is time for another account.
    ///
    /// [`Client::set_recovery_key`]: crate::Client::set_recovery_key
    RecoveryKeySet,
    /// Everything up to a message was read on another device of this account.
    ReadElsewhere {
        /// Where.
        conversation: ConversationId,
        /// The last message that was read.
        up_to: MessageId,
    },
    /// A group has a member device that its account's newest device list does not name: tell the user. It is removed.
    UnlistedDevice {
        /// The group.
        group_id: GroupId,
        /// The account.
        account: Contact,
    },
    /// An address of the relay turned out to be another relay's. From now on it is asked for nothing but which relay it is,
    /// each time its turn among the addresses comes. It is told once, and again only when it has been the relay's in between.
    OtherRelay {
        /// The address, as it was given.
        url: String,
    },
    /// Somebody is writing a message. It says so of about the last ten seconds. Any member of the group could have said it in
    /// that one's name, and of a direct conversation anybody.
    Typing {
        /// Where.
        conversation: ConversationId,
        /// Who.
        by: Contact,
    },
    /// The connection changed.
    Connection(Connection),
}

/// What brought a group back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Recovered {
    /// Commits that this device had missed; nothing else was lost. No [`Event::GroupRecovering`] came before.
    MissedCommits,
    /// The device has joined the group on its own.
    Rejoined,
    /// Another member has let it in.
    LetIn,
    /// The group could go on for nobody: another one goes on in its place, with the same id here and the same history. Who
    /// brought the old one to a halt is not in it.
    Successor,
}

/// The state of the connection to the relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Connection {
    /// No answer yet.
    Connecting,
    /// Connected; what came meanwhile is arriving.
    CatchingUp,
    /// Connected, and nothing is missing.
    Online,
    /// The relay cannot be reached. It is tried again.
    Offline,
    /// A copy of the store was opened later, and has taken over. It is not tried again.
    Replaced,
    /// The relay no longer knows this device. It is not tried again.
    SignedOut,
}

/// An event as it is kept: ids instead of names and messages, which are looked up when it is taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum StoredEvent {
    Message {
        conversation: ConversationId,
        sender: AccountId,
        message_id: MessageId,
    },
    Status {
        conversation: ConversationId,
        message_id: MessageId,
        status: MessageStatus,
    },
    Undecryptable {
        conversation: ConversationId,
    },
    Joined {
        group_id: GroupId,
        name: String,
        by: AccountId,
        #[serde(default)]
        requested: bool,
    },
    Requested {
        by: AccountId,
    },
    SessionReplaced {
        with: AccountId,
    },
    Members {
        group_id: GroupId,
        by: Option<AccountId>,
        added: Vec<AccountId>,
        removed: Vec<AccountId>,
    },
    Renamed {
        group_id: GroupId,
        name: String,
        by: Option<AccountId>,
    },
    Removed {
        group_id: GroupId,
        by: Option<AccountId>,
    },
    Left {
        group_id: GroupId,
    },
    Recovering {
        group_id: GroupId,
    },
    AskedIn {
        group_id: GroupId,
    },
    Recovered {
        group_id: GroupId,
        how: Recovered,
    },
    Stuck {
        group_id: GroupId,
    },
    Missed {
        from: u64,
        to: u64,
    },
    Dropped {
        events: u64,
    },
    Copied,
    Identity {
        account: AccountId,
    },
    StaleList {
        account: AccountId,
    },
    Unlisted {
        group_id: GroupId,
        account: AccountId,
    },
    Devices {
        added: Vec<DeviceId>,
        removed: Vec<DeviceId>,
    },
    RecoveryKey,
    ReadElsewhere {
        conversation: ConversationId,
        up_to: MessageId,
    },
    OtherRelay {
        url: String,
    },
}

impl StoredEvent {
    /// How many events are told by this one.
    pub(crate) fn stands_for(&self) -> u64 {
        match self {
            Self::Dropped { events } => *events,
            _ => 1,
        }
    }

    /// The accounts it names.
    pub(crate) fn accounts(&self) -> Vec<AccountId> {
        match self {
            Self::Message { sender: account, .. }
            | Self::Joined { by: account, .. }
            | Self::Requested { by: account }
            | Self::SessionReplaced { with: account }
            | Self::Identity { account }
            | Self::StaleList { account }
            | Self::Unlisted { account, .. } => vec![*account],
            Self::Members { by, added, removed, .. } => {
                by.iter().copied().chain(added.iter().copied()).chain(removed.iter().copied()).collect()
            }
            Self::Removed { by, .. } | Self::Renamed { by, .. } => by.iter().copied().collect(),
            Self::Status { .. }
            | Self::Undecryptable { .. }
            | Self::Left { .. }
            | Self::Recovering { .. }
            | Self::AskedIn { .. }
            | Self::Recovered { .. }
            | Self::Stuck { .. }
            | Self::Missed { .. }
            | Self::Dropped { .. }
            | Self::Copied
            | Self::Devices { .. }
            | Self::RecoveryKey
            | Self::ReadElsewhere { .. }
            | Self::OtherRelay { .. } => vec![],
        }
    }
}
