//! Contention: what some do at the same time as others on Postgres, where they wait for each other's locks.

use sqlx::{Connection as _, PgConnection};
use tokio::task::JoinHandle;
use undertone_wire::{Account as WireAccount, CommitResponse, ErrorCode, Limits, path};

use crate::support::{Account, Backend, Device, Keys, Message, Reply, SOON, TestRelay, connect, random, until};

/// How many of the relay's transactions wait for a lock.
async fn waiting(database: &mut PgConnection) -> i64 {
    let waiting = "SELECT COUNT(*) FROM pg_stat_activity
                   WHERE datname = current_database() AND wait_event_type = 'Lock' AND application_name = 'undertone'";
    sqlx::query_scalar(waiting).fetch_one(database).await.unwrap()
}

#[tokio::test]
async fn who_waits_for_a_queue_holds_no_envelope() {
    let relay = TestRelay::start(Backend::Postgres).await;
    let alice = relay.device().await;
    let group = alice.create_group().await;
    alice.commit(&Message::at(group, 0)).await.yes::<CommitResponse>();

    let url = relay.store.database().url();
    let (mut observer, mut other) = (connect(url).await, connect(url).await);
    let mut other = other.begin().await.unwrap();
    sqlx::query("SELECT 1 FROM cursors FOR UPDATE").execute(&mut *other).await.unwrap();
    let deleting = tokio::spawn(async move { alice.delete(path::OWN_ACCOUNT).await });
    until("the deletion waits for the queue", async || waiting(&mut observer).await == 1).await;
    let locked = sqlx::query("SELECT 1 FROM envelopes FOR UPDATE NOWAIT").fetch_all(&mut *other).await;
    assert_eq!(locked.expect("nobody holds the commit's envelope").len(), 1);
    other.rollback().await.unwrap();
    deleting.await.unwrap().done();
    assert_eq!(relay.rows("envelopes").await, 0);
}

#[tokio::test]
async fn a_recovery_that_waits_behind_another_list_decides_nothing() {
    let relay = TestRelay::start(Backend::Postgres).await;
    let stolen = random();
    let alice = Account::new(1).recoverable(stolen).register(&relay.api()).await.remove(0);
    let newer = alice.account.next(alice.account.keys.clone()).rotated_by_recovery(&stolen);
    let thiefs = alice.account.next(vec![Keys::new()]).rotated_by_recovery(&stolen);

    let url = relay.store.database().url();
    let (mut observer, mut other) = (connect(url).await, connect(url).await);
    let mut other = other.begin().await.unwrap();
    sqlx::query("SELECT 1 FROM device_lists FOR UPDATE").execute(&mut *other).await.unwrap();
    let (api, account, expected) = (relay.api(), alice.account.clone(), newer.signed_list());
    let replacing = tokio::spawn(async move { alice.put_list(&newer).await });
    until("the newer list waits", async || waiting(&mut observer).await == 1).await;
    let recovering = tokio::spawn(async move { api.recover(&account, &stolen, Some(&thiefs)).await });
    until("the thief waits behind it", async || waiting(&mut observer).await == 2).await;
    other.rollback().await.unwrap();
    assert_eq!(replacing.await.unwrap().yes::<WireAccount>().device_list, expected);
    recovering.await.unwrap().no(ErrorCode::StaleDeviceList);
    assert_eq!(relay.rows("challenges").await, 0);
}

/// Does something without end on two nodes, thirty-two times at once, until it is refused with this code.
fn without_end<F: Future<Output = Reply> + Send>(
    nodes: [&TestRelay; 2],
    devices: &[Device],
    refused: ErrorCode,
    work: impl Fn(Device) -> F + Clone + Send + 'static,
) -> Vec<JoinHandle<()>> {
    let one = |nth: usize| {
        let (device, work, refused) = (devices[nth % devices.len()].at(nodes[nth % 2]), work.clone(), refused.clone());
        tokio::spawn(async move {
            loop {
                let reply = work(device.clone()).await;
                if !reply.status.is_success() {
                    reply.no(refused);
                    return;
                }
            }
        })
    };
    (0..32).map(one).collect()
}

async fn all_end(without_end: Vec<JoinHandle<()>>) {
    for each in without_end {
        each.await.unwrap();
    }
}

/// What comes of a request that has to get its turn among all those.
async fn in_time(request: impl Future<Output = Reply>) -> Reply {
    tokio::time::timeout(SOON, request).await.expect("it gets its turn")
}

#[tokio::test]
async fn those_who_send_without_end_do_not_keep_a_commit_waiting() {
    let one = TestRelay::start(Backend::Postgres).await;
    let two = one.second_node().await;
    let devices = one.account(8).await;
    let group = devices[0].create_group_with(&devices[1..].iter().collect::<Vec<_>>()).await;
    let sending = without_end([&one, &two], &devices, ErrorCode::StaleGroup, move |device| async move {
        device.send_message(&Message::at(group, 1)).await
    });
    until("all send", async || devices[0].fetch(0).await.next_seq > 100).await;
    in_time(devices[0].commit(&Message::at(group, 1))).await.yes::<CommitResponse>();
    all_end(sending).await;
}

#[tokio::test]
async fn a_device_that_is_busy_without_end_is_unlisted_all_the_same() {
    let one = TestRelay::start(Backend::Postgres).await;
    let two = one.second_node().await;
    let devices = one.account(2).await;
    let (kept, stolen) = (&devices[0], &devices[1..]);
    let busy =
        without_end([&one, &two], stolen, ErrorCode::Unauthenticated, |device| async move { device.ack(0).await });
    let next = kept.account.next(vec![kept.keys.clone()]);
    in_time(kept.put_list(&next)).await.yes::<WireAccount>();
    all_end(busy).await;
}

#[tokio::test]
async fn those_who_send_to_an_account_without_end_do_not_keep_its_list_as_it_is() {
    let limits = Limits { queue_direct_entries_max: 1_000_000, ..Limits::default() };
    let one = TestRelay::with_limits(Backend::Postgres, limits).await;
    let two = one.second_node().await;
    let (devices, strangers) = (one.account(2).await, one.account(8).await);
    let (account, keys) = (devices[0].account.clone(), vec![devices[0].keys.clone()]);
    let to = account.clone();
    let sending = without_end([&one, &two], &strangers, ErrorCode::StaleDevices, move |device| {
        let request = device.direct(&[&to], b"unwanted");
        async move { device.send_direct(&request).await }
    });
    until("all send", async || devices[0].fetch(0).await.next_seq > 100).await;
    in_time(devices[0].put_list(&account.next(keys))).await.yes::<WireAccount>();
    all_end(sending).await;
}
