//! A crowd for tests of convergence: people with a device or two, who do to a group whatever comes to their minds, and write to
//! each other, while things go wrong; and the check that they agree at the end.
//!
//! [`World`] is where they live, with a relay of whatever kind: it says what can go wrong there. [`converges`] lets cases
//! happen in worlds. A case is made from a number, its seed; `TEST_SEED=NUMBER` does the steps of that one again, though not
//! their timing. Like all of a test's tools, these functions panic when they cannot do what they say.
#![expect(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test that cannot go on says so")]

mod case;
mod people;
mod run;
mod step;
mod verdict;
mod wait;

use std::{fmt::Debug, sync::Arc, time::Duration};

use proptest::strategy::BoxedStrategy;
use undertone::{ClientBuilder, DeviceId, GroupId, StoreAt, api::fake::FastClock};

pub use run::{converges, seeds};
pub use wait::{PATIENCE, found, joined, online, texts, wait_until};

/// A relay, and what can go wrong with it and on the way to it.
///
/// Invariant: what goes wrong loses nothing that the relay has answered for, and [`World::heal`] ends all of it.
pub trait World {
    /// Something that can go wrong, or go well again.
    type Fault: Clone + Debug + 'static;

    /// So long those who did something wait at most before something else is done: so long that most of it is done by then,
    /// unless something goes wrong.
    const A_WHILE: Duration;

    /// What goes wrong in a case, each as often as it is to be expected.
    fn faults(&self) -> BoxedStrategy<Self::Fault>;

    /// Lets it go wrong.
    fn cause(&mut self, fault: Self::Fault) -> impl Future<Output = ()>;

    /// Lets nothing go wrong any more.
    fn heal(&mut self) -> impl Future<Output = ()>;

    /// Somebody's device, whose store is the same for the same name.
    fn device(&self, name: &str, clock: &Arc<FastClock>) -> ClientBuilder<StoreAt>;

    /// How many key packages the relay has to hand out for a device.
    fn key_packages(&self, device: &DeviceId) -> impl Future<Output = usize>;

    /// How many commits the relay has taken for a group.
    fn commits(&self, group: &GroupId) -> impl Future<Output = usize>;

    /// The world ends after all devices are gone from it, having shown that it is whole.
    fn end(self) -> impl Future<Output = ()>;
}
