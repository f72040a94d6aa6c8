//! The Undertone SDK.

pub mod api;
mod client;
mod clock;
mod conversation;
mod crypto;
mod error;
mod event;
mod events;
mod message;
mod store;
mod sync;

pub use client::{Client, ClientBuilder, StoreAt};
pub use clock::{Clock, SystemClock};
pub use conversation::{Group, GroupSummary};
pub use error::{Error, ErrorKind};
pub use event::{Connection, Contact, Event};
pub use events::Events;
pub use message::{Message, MessageBody};
pub use store::{MessageStatus, StoreKey};
pub use undertone_wire::{AccountId, DeviceId, GroupId, MessageId, Username};
