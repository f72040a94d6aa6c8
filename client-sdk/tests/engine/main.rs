//! The engine against the fake relay: what goes wrong on the way changes nothing at the end.

mod changes;
mod faults;
mod messages;
mod store;
mod world;
