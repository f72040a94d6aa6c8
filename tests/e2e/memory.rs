//! A reader who stalls costs the relay one page, however much waits for it.

use undertone_test_client::{Api, Device, Message};
use undertone_tests::{Backend, Launch, Relay, Store, on_both, wait_until};
use undertone_wire::{GroupId, SendResponse};

/// What waits, and what waits the second time.
const BACKLOGS: [usize; 2] = [1_000, 10_000];

/// How much of what waits is ciphertext, each.
const BODY_BYTES: usize = 4 * 1_024;

/// How many post at a time.
const SENDERS: usize = 16;

/// How much more the relay may need with the larger backlog, which is 35 MiB more. Each of SQLite's connections keeps up to
/// 2 MiB of what it has read.
const MORE_KIB_MAX: u64 = 12 * 1_024;

/// For how many looks the relay's memory must stay what it is to be what it will be.
const SETTLED: usize = 50;

on_both!(memory_does_not_grow_with_what_waits_for_a_stalled_reader);

async fn memory_does_not_grow_with_what_waits_for_a_stalled_reader(backend: Backend) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::new(folder.path(), backend).await;
    let launch = Launch::over(&store).log_level("warn").arguments(&["--limit", "queue_entries_max=20000"]);
    let mut relay = launch.start().await;
    let api = Api::new(&relay.url());
    let (alice, bob) = (api.device().await, api.device().await);
    let group = alice.create_group_with(&[&bob]).await;
    bob.ack(1).await.done();

    let mut needed = Vec::new();
    let mut waiting = 0;
    for backlog in BACKLOGS {
        post(&alice, group, backlog - waiting).await;
        waiting = backlog;
        let count = store.number("SELECT MAX(group_entries) FROM cursors").await;
        assert_eq!(usize::try_from(count).unwrap(), waiting, "all of it waits");
        relay.stop().await;
        relay.restart().await;
        needed.push(needed_for_a_stalled_reader(&relay, &bob).await);
    }
    let [before, after] = [needed[0], needed[1]];
    println!("{backend:?}: {before} KiB with {}, {after} KiB with {} waiting", BACKLOGS[0], BACKLOGS[1]);
    assert!(after < before + MORE_KIB_MAX, "{before} KiB, then {after} KiB");
}

/// Posts so many messages, and takes the sender's own rows.
async fn post(alice: &Device, group: GroupId, messages: usize) {
    let mut senders = tokio::task::JoinSet::new();
    for number in 0..SENDERS {
        let (alice, messages) = (alice.clone(), messages / SENDERS + usize::from(number < messages % SENDERS));
        senders.spawn(async move {
            for _ in 0..messages {
                let message = Message::at(group, 1).saying(&[7; BODY_BYTES]);
                alice.send_message(&message).await.yes::<SendResponse>();
            }
        });
    }
    senders.join_all().await;
    let next_seq = alice.fetch(0).await.next_seq;
    alice.ack(next_seq - 1).await.done();
}

/// The most that a relay ever needed, in KiB, once it has pushed what a reader who reads nothing takes.
async fn needed_for_a_stalled_reader(relay: &Relay, bob: &Device) -> u64 {
    let idle = relay.memory_kib("VmHWM");
    let stalled = bob.stream(1).await;
    let mut looks = (0, 0);
    let needed = wait_until("the relay's memory to stay as it is", async || {
        let most = relay.memory_kib("VmHWM");
        looks = if most == looks.0 { (most, looks.1 + 1) } else { (most, 0) };
        (most > idle && looks.1 >= SETTLED).then_some(most)
    })
    .await;
    drop(stalled);
    needed
}
