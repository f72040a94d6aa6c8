//! Devices that come to an account, and go. Linking: a new device shows a code ([`new_device`]), and a device of the account
//! approves it ([`listed_device`]); they speak through a pipe at the relay, which is over after ten minutes. If all devices are
//! lost, the recovery key makes another ([`recovered`]). What devices there are, [`list`] says.
//!
//! Invariant: nothing is handed over before the key in the pipe has turned out to be the one in the code, and nothing is
//! listed that the identity key has not signed.

pub(crate) mod list;
pub(crate) mod listed_device;
pub(crate) mod new_device;
pub(crate) mod recovered;

use std::time::Duration;

use undertone_api::ApiError;
use undertone_wire::{Bytes, DeviceId, ErrorCode, Limits, PipePart};

pub use new_device::{Approval, Linking};

use crate::{Error, clock::Clock};

/// How often what the other says is looked for.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Longest name of a device, in bytes of UTF-8.
const NAME_BYTES_MAX: usize = 64;

/// A device of this account.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Device {
    /// The device.
    pub device_id: DeviceId,
    /// What the user calls it, as far as this device was told; empty if it was not.
    pub name: String,
    /// Whether it is this one.
    pub this: bool,
}

/// Why a device was not linked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotLinked {
    /// On the device that approves: no device shows the code any more, or ever did.
    #[error("no device shows this code, or not any more: let the new device show another")]
    Over,
    /// On the device that approves: another one was faster, or this one was before.
    #[error("this code was used already: let the new device show another")]
    Used,
    /// The key in the pipe and the code do not belong together, so that somebody may read along.
    #[error(
        "the code and the key that came with it do not belong together: somebody has changed one of them on the way"
    )]
    Changed,
    /// On the device that approves: the new device's user does not want this account.
    #[error("the new device does not want to belong to this account")]
    Declined,
    /// On the new device: nobody has approved the code in time, or nothing came of it.
    #[error("nobody has approved the code in time")]
    Unanswered,
    /// On the new device: the other one could not do it, and says why.
    #[error("the other device could not link this one: {0}")]
    Refused(String),
}

/// A name as it is kept.
fn checked_name(name: &str) -> Result<String, Error> {
    let name = name.trim();
    if name.len() > NAME_BYTES_MAX || name.chars().any(char::is_control) {
        return Err(Error::Invalid(format!("a device's name has at most {NAME_BYTES_MAX} bytes")));
    }
    Ok(name.to_owned())
}

/// When a pipe that begins now is over.
fn ends_ms(clock: &dyn Clock) -> u64 {
    clock.now_ms().saturating_add(Limits::default().pipe_ttl_s.saturating_mul(1_000))
}

/// Waits for what the other says; `None` if that is nothing in time.
async fn heard<F>(clock: &dyn Clock, ends_ms: u64, look: impl Fn() -> F) -> Result<Option<Bytes>, Error>
where
    F: Future<Output = Result<PipePart, ApiError>>,
{
    loop {
        match look().await {
            Ok(part) => return Ok(Some(part.content)),
            Err(error) if error.code() == Some(&ErrorCode::NotFound) || !error.is_a_no() => {
                tracing::debug!(%error, "the other device has not said anything yet");
            }
            Err(error) => return Err(error.into()),
        }
        if clock.now_ms() >= ends_ms {
            return Ok(None);
        }
        clock.pass(LOOK_EVERY).await;
    }
}

/// Says something, until the relay has it or the time is over.
async fn say<F>(clock: &dyn Clock, ends_ms: u64, put: impl Fn() -> F) -> Result<(), Error>
where
    F: Future<Output = Result<(), ApiError>>,
{
    loop {
        match put().await {
            Ok(()) => return Ok(()),
            Err(error) if !error.is_a_no() && clock.now_ms() < ends_ms => {
                tracing::debug!(%error, "the pipe cannot be reached");
                clock.pass(LOOK_EVERY).await;
            }
            Err(error) => {
                return Err(match error.code() {
                    Some(ErrorCode::NotFound) => NotLinked::Over.into(),
                    Some(ErrorCode::PartTaken) => NotLinked::Used.into(),
                    _ => error.into(),
                });
            }
        }
    }
}
