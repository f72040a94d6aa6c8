//! What is counted, and when: the work that is done while a window is open.
//!
//! Invariant: all tasks of a measurement share one window, so that what one of them does before the others have got going,
//! or after they have ended, does not count.

use std::time::{Duration, Instant};

use tokio::{task::JoinSet, time::timeout_at};

/// A time that is measured.
#[derive(Clone, Copy)]
pub(crate) struct Window {
    opens: Instant,
    closes: Instant,
}

impl Window {
    /// Opens after a moment to get going, for this long.
    pub(crate) fn new(time: Duration) -> Self {
        let opens = Instant::now() + time / 6;
        Self { opens, closes: opens + time }
    }

    /// Works again and again until it closes. Answers how many messages that was while it was open; each piece of work
    /// answers how many it came to.
    pub(crate) async fn count(self, mut work: impl AsyncFnMut() -> u64) -> u64 {
        let mut count = 0;
        while let Ok(done) = timeout_at(self.closes.into(), work()).await {
            if (self.opens..self.closes).contains(&Instant::now()) {
                count += done;
            }
        }
        count
    }

    /// What all tasks have counted, as a rate.
    pub(crate) async fn rate(self, tasks: JoinSet<u64>) -> f64 {
        per_second(tasks.join_all().await.iter().sum(), self.closes - self.opens)
    }
}

/// So many in this time, as a rate.
pub(crate) fn per_second(count: u64, time: Duration) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a bench does not count that far")]
    let count = count as f64;
    count / time.as_secs_f64()
}
