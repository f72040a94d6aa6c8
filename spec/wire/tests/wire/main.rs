//! The wire as bytes: every body and frame survives both encodings, and none changes its bytes by accident.

#![expect(clippy::unwrap_used, reason = "this crate is tests")]

mod properties;
mod samples;
mod snapshots;
mod tolerance;
mod vectors;
