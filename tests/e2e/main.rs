//! End to end: relay processes and command-line clients, as people use them. One binary, one module for each promise.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on says so")]

mod abandoned;
mod chaos;
mod chat;
mod crash_table;
mod encrypted;
mod memory;
mod offline;
mod readme;
mod relay_killed;
mod restore;
mod secrecy;
mod simultaneous;
mod two_hosts;
