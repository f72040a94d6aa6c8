//! A device whose network goes and comes, on a machine of its own.

use std::{pin::Pin, sync::Arc, time::Duration};

use undertone::{Client, Clock, Connection, StoreKey, SystemClock, api::fake::FakeRelay};
use undertone_test_crowd::{online, wait_until};
use undertone_tests::{There, on_a_machine_of_its_own};

const NAME: &str = "network::a_relay_is_tried_at_once_when_the_device_is_on_a_network_again";

/// A clock by which a second passes at most: who waits for its turn to connect waits for ever.
struct Impatient;

impl Clock for Impatient {
    fn now_ms(&self) -> u64 {
        SystemClock.now_ms()
    }

    fn pass(&self, time: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let is_a_second = time == Duration::from_secs(1);
        Box::pin(async move { if is_a_second { SystemClock.pass(time).await } else { std::future::pending().await } })
    }
}

#[tokio::test]
async fn a_relay_is_tried_at_once_when_the_device_is_on_a_network_again() {
    if !on_a_machine_of_its_own(NAME, &[], &[]).await {
        return;
    }
    let (relay, folder) = (FakeRelay::new(), tempfile::tempdir().unwrap());
    let builder = Client::builder("http://localhost").api(relay.connect()).clock(Arc::new(Impatient));
    let alice = builder.store(folder.path(), StoreKey::Raw32([1; 32])).register("alice").await.unwrap();
    online(&alice).await;
    relay.go_offline();
    wait_until("the relay to be gone", async || (alice.connection() == Connection::Offline).then_some(())).await;
    relay.come_back();
    let _network = There::beside_here().await;
    online(&alice).await;
}
