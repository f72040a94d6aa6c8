//! Kill points: places at which a test lets this process die as by a power cut. Built only with the feature
//! `kill-points`, which nothing that ships has.
//!
//! Invariant: without the feature, and without `TEST_KILL_AT`, a point is nothing.

/// Before what was done becomes durable.
pub(crate) const BEFORE_COMMIT: &str = "before_commit";
/// After it became durable, before whom it concerns is woken.
pub(crate) const BEFORE_WAKE: &str = "before_wake";
/// After it became durable, before who asked for it is answered.
pub(crate) const BEFORE_ANSWER: &str = "before_answer";
/// After what was done has left for a device, before the device can have acked it.
pub(crate) const BEFORE_ACK: &str = "before_ack";
/// Between two steps, each of which is durable by itself.
pub(crate) const HALFWAY: &str = "halfway";
/// After everyone has been told that the relay stops, before the store is closed.
pub(crate) const BEFORE_CLOSE: &str = "before_close";

/// Dies here if `TEST_KILL_AT` is `what.moment`, or `what.moment:N` and this is the N-th time, and says so first on
/// stdout.
#[cfg(feature = "kill-points")]
pub(crate) fn point(what: &str, moment: &str) {
    use std::{
        io::Write as _,
        sync::{
            LazyLock,
            atomic::{AtomicU64, Ordering},
        },
    };

    /// Where to die, and how many more times to pass by.
    static AT: LazyLock<Option<(String, AtomicU64)>> = LazyLock::new(|| {
        let at = std::env::var("TEST_KILL_AT").ok()?;
        let (name, nth) = at.split_once(':').map_or((at.as_str(), 1), |(name, nth)| (name, nth.parse().unwrap_or(1)));
        Some((name.to_owned(), AtomicU64::new(nth)))
    });

    let Some((at, left)) = &*AT else { return };
    if at.strip_prefix(what).and_then(|at| at.strip_prefix('.')) == Some(moment)
        && left.fetch_sub(1, Ordering::SeqCst) == 1
    {
        let mut stdout = std::io::stdout().lock();
        // Whether it could be said makes no difference any more.
        let _ = writeln!(stdout, "kill point reached: {what}.{moment}").and_then(|()| stdout.flush());
        // Nothing is cleaned up, nothing flushed: the same as SIGKILL to those who hold files.
        std::process::abort();
    }
}

/// Nothing.
#[cfg(not(feature = "kill-points"))]
pub(crate) fn point(_: &str, _: &str) {}
