//! Requests whose askers are gone before they are answered leave nothing behind that another request would stumble over.

use std::time::Duration;

use undertone_test_client::{Api, Message};
use undertone_tests::{Backend, Chance, Launch, Store, on_both, scaled, seed};
use undertone_wire::{SendResponse, path};

/// The longest that somebody waits who then goes.
const MOMENT_US: u64 = 4_000;

on_both!(requests_that_nobody_waits_for_leave_nothing_behind);

async fn requests_that_nobody_waits_for_leave_nothing_behind(backend: Backend) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::new(folder.path(), backend).await;
    // So few connections that each is used again soon.
    let launch = Launch::over(&store).log_level("warn").arguments(&["--postgres-connections", "4"]);
    let mut relay = launch.start().await;
    let api = Api::new(&relay.url());
    let alice = api.device().await;
    let bob = api.device().await;
    let group = alice.create_group_with(&[&bob]).await;
    let seed = seed();
    println!("{backend:?}: seed {seed}");
    let mut chance = Chance::new(seed);
    let mut abandoned = 0;
    for _ in 0..scaled(40, 400) {
        for _ in 0..10 {
            let moment = Duration::from_micros(chance.below(MOMENT_US));
            let asked = tokio::time::timeout(moment, alice.get(path::QUEUE));
            abandoned += usize::from(asked.await.is_err());
        }
        alice.send_message(&Message::at(group, 1)).await.yes::<SendResponse>();
        alice.ack(1).await.done();
    }
    println!("{backend:?}: {abandoned} requests abandoned");
    assert!(abandoned > 0);
    assert_eq!(bob.fetch(0).await.missed, []);
    relay.stop().await;
    let log = std::fs::read_to_string(relay.log()).unwrap();
    assert!(!log.contains("ERROR"), "{log}");
}
