//! Time that goes faster, for tests of what a device does after minutes or hours.

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use tokio::time::Instant;

use crate::clock::{Clock, SystemClock};

/// A clock that starts anywhere and goes so many times faster than others; what waits by it waits so much less.
#[derive(Debug)]
pub struct FastClock {
    began: Instant,
    began_ms: u64,
    speed: u32,
}

impl FastClock {
    /// It is `began_ms` (since the Unix epoch) now. A speed of 0 counts as 1.
    pub fn from(began_ms: u64, speed: u32) -> Arc<Self> {
        Arc::new(Self { began: Instant::now(), began_ms, speed: speed.max(1) })
    }
}

impl Clock for FastClock {
    fn now_ms(&self) -> u64 {
        let passed_ms = self.began.elapsed().as_millis().saturating_mul(self.speed.into());
        self.began_ms.saturating_add(u64::try_from(passed_ms).unwrap_or(u64::MAX))
    }

    fn pass(&self, time: Duration) -> BoxFuture<'static, ()> {
        SystemClock.pass(time / self.speed)
    }
}
