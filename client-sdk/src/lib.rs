//! The Undertone SDK: encrypted groups, an outbox that survives anything, and the whole history on the device.
//!
//! ```no_run
//! use undertone::{Client, Event, StoreKey};
//!
//! #[tokio::main]
//! async fn main() -> Result<(), undertone::Error> {
//!     let key = StoreKey::Passphrase("correct horse battery staple".into());
//!     let client = Client::builder("http://127.0.0.1:7611").store("alice", key).register("alice").await?;
//!     let group = client.create_group("ski trip").await?;
//!     group.add(client.find("bob").await?.account_id).await?;
//!     group.send("snow!").await?; // returns at once with the message's id; works offline
//!     while let Some(event) = client.events().next().await {
//!         if let Event::MessageReceived(message) = event {
//!             println!("{}: {}", message.from.name(), message.text());
//!         }
//!     }
//!     Ok(())
//! }
//! ```
//!
//! # How it behaves
//!
//! - A [`Client`] is one device of one account. It keeps everything in one folder, encrypted with a [`StoreKey`]; one
//!   process at a time can have it open. [`Client::open`] opens it again.
//! - [`Conversation::send`] writes to the local store and returns, online or not. The engine behind it encrypts, posts, and
//!   tries again until the relay has answered; [`Event::MessageStatus`] tells how it went. Each message arrives once.
//! - A relay may have several addresses ([`ClientBuilder::also_at`]). The client stays with the one that works, and moves
//!   on by itself when it does not.
//! - [`Group::add`], [`Group::remove`] and [`Group::leave`] return when the change is in force. If somebody else changes the
//!   group at the same moment, the change is made again on top of theirs.
//! - An account may have several devices: [`ClientBuilder::link`] makes one that another approves ([`Client::approve_link`]). What
//!   one of them sends and reads, the others show. [`Client::remove_stolen_device`] and a recovery key
//!   ([`Client::set_recovery_key`]) are for when one is in the wrong hands.
//! - [`Client::events`] gives what happened, in order, over restarts. An app that dies while it handles an event gets it
//!   again.
//! - Every [`Error`] has a [`kind`](Error::kind) that says what an app can do about it, and a text fit for a log.
//!
//! # What it protects
//!
//! Content is encrypted from device to device, in groups with MLS (RFC 9420), between two accounts with Olm sessions in
//! envelopes sealed with X-Wing. Members are bound to accounts by certificates that the account's identity key signs, and
//! an account's id commits to that key; usernames are the relay's word only. Groups are signed: a member can prove to
//! others who wrote what. Direct messages are not. The relay sees who is a member of what, which accounts a direct message
//! is for, when devices are online, and padded sizes.

pub mod api;
mod builder;
mod client;
mod clock;
mod conversation;
mod conversation_id;
mod crypto;
mod error;
mod event;
mod events;
mod linking;
mod message;
mod registration;
mod safety;
mod store;
mod sync;

pub use builder::{ClientBuilder, StoreAt};
pub use client::Client;
pub use clock::{Clock, SystemClock};
pub use conversation::{Conversation, DirectSummary, Group, GroupSummary, NewGroup};
pub use conversation_id::ConversationId;
pub use error::{Error, ErrorKind};
pub use event::{Connection, Contact, Event, Recovered};
pub use events::Events;
pub use linking::{Approval, Device, Linking, NotLinked};
pub use message::{Message, MessageBody};
pub use safety::{Fingerprint, SafetyNumber, SafetyNumberError};
pub use store::{MessageStatus, SendFailure, StoreKey};
pub use undertone_wire::{AccountId, DeviceId, GroupId, InviteCode, MessageId, Username};

/// The README's example compiles.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
