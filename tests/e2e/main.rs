//! End to end: relay processes and command-line clients, as people use them. One binary, one module for each promise.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on says so")]

mod abandoned;
mod acme;
mod behind_a_proxy;
mod chaos;
mod chat;
mod convergence;
mod copied_store;
mod crash_table;
mod devices;
mod direct;
mod encrypted;
mod hostile;
mod image;
mod memory;
mod misconfigured;
mod network;
mod offline;
mod packaging;
mod readme;
mod relay_killed;
mod restore;
mod secrecy;
mod simultaneous;
mod strangers;
mod too_late;
mod two_hosts;
