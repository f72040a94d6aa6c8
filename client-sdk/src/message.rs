//! Messages: what an app sees of one, and the content inside the ciphertext.
//!
//! Content is a CBOR map that later versions may extend. It is kept as the bytes that came, so that what this version
//! does not know survives.

use serde::{Deserialize, Serialize};
use undertone_wire::{AccountId, Bytes, Encoding, Hash, MessageId};

use crate::{conversation_id::ConversationId, event::Contact, store::MessageStatus};

/// A message in the history.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Message {
    /// Where it stands.
    pub conversation: ConversationId,
    /// The same for its author and everyone who receives it.
    pub message_id: MessageId,
    /// Who wrote it, proved by their device's keys.
    pub from: Contact,
    /// When it was written, by its author's clock, in milliseconds since the Unix epoch.
    pub sent_at_ms: u64,
    /// Where it stands.
    pub status: MessageStatus,
    /// What it says.
    pub body: MessageBody,
}

/// What a message says.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum MessageBody {
    /// Text.
    Text(String),
    /// Something that this version cannot show. It is kept.
    Unsupported,
}

impl Message {
    /// The text; empty if the message is not text.
    pub fn text(&self) -> &str {
        match &self.body {
            MessageBody::Text(text) => text,
            MessageBody::Unsupported => "",
        }
    }
}

/// Longest text of a message, in bytes of UTF-8. With all that is around it, it fits a relay's envelope.
pub(crate) const TEXT_BYTES_MAX: usize = 240 * 1024;

/// The same in a direct conversation, of which each device gets a copy: those for 32 devices fit one request.
pub(crate) const DIRECT_TEXT_BYTES_MAX: usize = 16 * 1024;

/// The end of the year 9999. A later time is no time.
const SENT_AT_MS_MAX: u64 = 253_402_300_799_999;

/// What is inside a message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Content {
    /// The message's id, by which receivers show it once.
    pub(crate) id: MessageId,
    /// The author's clock, in milliseconds since the Unix epoch.
    pub(crate) sent_at_ms: u64,
    /// The version of the author's device list, so that a relay serving an old one is noticed.
    pub(crate) list_version: u64,
    pub(crate) body: Body,
}

/// The kinds of content that this version knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum Body {
    /// Text of a message.
    Text { text: String },
    /// The author's account leaves the group.
    Leave {},
    /// The author's device has messages of others, and some of them were read.
    Receipt {
        /// What it has.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        delivered: Vec<Mark>,
        /// What was read.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        read: Vec<Mark>,
    },
    /// The author's device could not read these ciphertexts of the device that gets this, which sends again what was in them.
    Unreadable {
        /// Their SHA-256.
        hashes: Vec<Hash>,
    },
    /// The seed of the account's identity key, from one of its devices to the others.
    IdentityKey { seed: Bytes },
    /// The author's device lacks that seed.
    IdentityKeyWanted {},
    /// A kind that a later version has made.
    #[serde(other)]
    Unknown,
}

/// All messages of an account from one to another, in the order of the group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mark {
    pub(crate) account: AccountId,
    pub(crate) from: MessageId,
    pub(crate) to: MessageId,
}

impl Content {
    pub(crate) fn encode(&self) -> Bytes {
        Encoding::Cbor.encode(self).into()
    }

    /// Content from what a member encrypted; `None` if it is not content at all.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let content: Self = Encoding::Cbor.decode(bytes).ok()?;
        (content.sent_at_ms <= SENT_AT_MS_MAX).then_some(content)
    }
}

impl From<Body> for MessageBody {
    fn from(body: Body) -> Self {
        match body {
            Body::Text { text } => Self::Text(text),
            Body::Leave {}
            | Body::Receipt { .. }
            | Body::Unreadable { .. }
            | Body::IdentityKey { .. }
            | Body::IdentityKeyWanted {}
            | Body::Unknown => Self::Unsupported,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize)]
    struct Later {
        id: MessageId,
        sent_at_ms: u64,
        list_version: u64,
        mood: &'static str,
        body: LaterBody,
    }

    #[derive(Serialize)]
    struct LaterBody {
        kind: &'static str,
        shape: u64,
    }

    #[test]
    fn content_of_a_later_version_is_understood_as_far_as_it_goes() {
        let id = MessageId::from_parts(1, [7; 10]);
        let body = LaterBody { kind: "drawing", shape: 4 };
        let bytes = Encoding::Cbor.encode(&Later { id, sent_at_ms: 5, list_version: 1, mood: "calm", body });
        let content = Content::decode(&bytes).unwrap();
        assert_eq!((content.id, content.sent_at_ms, content.body), (id, 5, Body::Unknown));
    }

    #[test]
    fn what_is_not_content_is_told_apart() {
        assert_eq!(Content::decode(b"\xff\xff"), None);
        assert_eq!(Content::decode(b""), None);
        let id = MessageId::from_parts(1, [7; 10]);
        let content = |sent_at_ms| Content { id, sent_at_ms, list_version: 1, body: Body::Leave {} };
        assert!(Content::decode(content(SENT_AT_MS_MAX).encode().as_slice()).is_some());
        assert_eq!(Content::decode(content(u64::MAX).encode().as_slice()), None);
    }
}
