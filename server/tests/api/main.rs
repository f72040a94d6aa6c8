//! The relay's HTTP API, driven in process over real sockets with a clock that tests move.
//!
//! `support` makes accounts, devices and messages; each other file holds the facts of one room.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "this crate is tests")]
#![expect(clippy::cast_possible_truncation, reason = "lengths of test messages are checked before")]

mod account_recovery;
mod accounts;
mod auth;
mod check;
mod commands;
mod connections;
mod contention;
mod crowding;
mod direct;
mod edges;
mod ephemeral;
mod groups;
mod incarnation;
mod instances;
mod key_levels;
mod keys;
mod knowledge;
mod lifecycle;
mod missed;
mod mls;
mod nodes;
mod once;
mod pipes;
mod prekeys;
mod queue;
mod recovery;
mod registration;
mod slow_reader;
mod stopping;
mod strangers;
mod stream;
mod support;
mod traces;
mod unlisting;
