//! Whatever people do to a group at the same time, and whatever goes wrong meanwhile: at the end all members stand on the same
//! commit, with the same members, and have the same messages, each once.
//!
//! What people do and the check at the end are the crowd's (`tests/crowd`), which does the same at real relays.

use std::{sync::Arc, time::Duration};

use proptest::{
    prelude::{Just, Strategy as _},
    prop_oneof,
    strategy::BoxedStrategy,
};
use undertone::{Client, ClientBuilder, Clock, DeviceId, GroupId, StoreAt, api::fake::FastClock};
use undertone_test_crowd::{converges, seeds};

use crate::world::{World, key};

/// Cases at the same time.
const THREADS: usize = 2;

/// What goes wrong at the fake relay.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    LoseAnswers(u32),
    RefuseConnections(u32),
    CutStreams,
    HoldDeliveries,
    ReleaseDeliveries,
}

impl undertone_test_crowd::World for World {
    type Fault = Fault;

    const A_WHILE: Duration = Duration::from_millis(50);

    fn faults(&self) -> BoxedStrategy<Fault> {
        let faults = prop_oneof![
            (1..4u32).prop_map(Fault::LoseAnswers),
            (1..4u32).prop_map(Fault::RefuseConnections),
            Just(Fault::CutStreams),
            Just(Fault::HoldDeliveries),
            Just(Fault::ReleaseDeliveries),
        ];
        faults.boxed()
    }

    async fn cause(&mut self, fault: Fault) {
        match fault {
            Fault::LoseAnswers(times) => self.relay.drop_answers(times),
            Fault::RefuseConnections(times) => self.relay.refuse_connections(times),
            Fault::CutStreams => self.relay.cut_streams(),
            Fault::HoldDeliveries => self.relay.hold_deliveries(),
            Fault::ReleaseDeliveries => self.relay.release_deliveries(),
        }
    }

    async fn heal(&mut self) {
        for fault in [Fault::LoseAnswers(0), Fault::RefuseConnections(0), Fault::ReleaseDeliveries] {
            self.cause(fault).await;
        }
    }

    fn device(&self, name: &str, clock: &Arc<FastClock>) -> ClientBuilder<StoreAt> {
        let told = Arc::clone(clock);
        // The relay does not go by it.
        let way = self.relay.connect_with_clock(Arc::new(move || told.now_ms()));
        let builder = Client::builder("http://localhost").api(way).clock(Arc::clone(clock) as Arc<dyn Clock>);
        builder.store(self.store(name), key())
    }

    async fn key_packages(&self, device: &DeviceId) -> usize {
        usize::try_from(self.relay.key_packages(device).0).unwrap()
    }

    async fn commits(&self, group: &GroupId) -> usize {
        usize::try_from(self.relay.group_position(group).unwrap().commit_seq).unwrap()
    }

    async fn end(self) {}
}

#[test]
fn all_members_end_up_with_the_same_group_and_the_same_messages() {
    let seeds = seeds(200, 10_000);
    std::thread::scope(|scope| {
        for part in 0..THREADS {
            let seeds = seeds.clone().skip(part).step_by(THREADS);
            scope.spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(converges(seeds, async || World::new()));
            });
        }
    });
}
