//! The crash table of `spec/protocol.md`, section 10: one test for each row, on both databases.
//!
//! Each lets a process die at its row's point, sees that the point was reached, and starts it again. Then nothing is lost,
//! what is repeated is repeated as the row says, and whoever repairs it has repaired it.

use http::Method;
use undertone_test_client::{Api, Device, Message, Reply};
use undertone_tests::{Backend, Build, Launch, Person, Relay, Store, on_both, take_all, wait_until};
use undertone_wire::{
    AckRequest, CommitResponse, Delivery, Envelope, Group, GroupId, Incarnation, SendResponse, ServerFrame, path,
};

on_both!(
    message_before_commit,
    message_before_answer,
    commit_before_commit,
    commit_before_answer,
    ack_before_commit,
    ack_before_answer,
    mail_before_wake,
    push_before_ack,
    job_before_commit,
    job_halfway,
    migration_halfway,
    shutdown_before_close,
    device_after_the_answer_was_lost,
    device_after_delivery_before_ack,
);

/// All rows in all queues.
const ROWS: &str = "SELECT COUNT(*) FROM queue";

/// All commits that are kept for members who missed them.
const COMMITS: &str = "SELECT COUNT(*) FROM commits";

/// A relay with a group of two devices who have taken all that was for them.
struct World {
    relay: Relay,
    store: Store,
    alice: Device,
    bob: Device,
    group: GroupId,
    _folder: tempfile::TempDir,
}

impl World {
    async fn new(backend: Backend) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path(), backend).await;
        let relay = Relay::start(&store, Build::Workspace).await;
        let alice = device(&relay).await;
        let bob = device(&relay).await;
        let group = alice.create_group_with(&[&bob]).await;
        for device in [&alice, &bob] {
            device.ack(1).await.done();
        }
        Self { relay, store, alice, bob, group, _folder: folder }
    }

    /// The relay runs from now on until it dies at a point.
    async fn until(mut self, point: &str) -> Self {
        self.relay.stop().await;
        self.relay.restart_until(point).await;
        self
    }

    async fn rows(&self) -> i64 {
        self.store.number(ROWS).await
    }

    async fn incarnation(&self) -> Incarnation {
        self.alice.get(path::RELAY).await.yes::<undertone_wire::Relay>().incarnation
    }
}

async fn device(relay: &Relay) -> Device {
    Api::new(&relay.url()).device().await
}

/// Asserts that a device is handed exactly these messages after a number, in consecutive numbers, and misses none.
async fn assert_handed(device: &Device, after: u64, messages: &[&Message]) -> Vec<Delivery> {
    let fetched = device.fetch(after).await;
    assert_eq!(fetched.missed, [], "nothing is missed");
    let handed: Vec<_> = fetched.deliveries.iter().map(|delivery| (delivery.seq, &delivery.envelope)).collect();
    let sent: Vec<_> = messages
        .iter()
        .map(|message| Envelope::GroupMessage { group_id: message.group, message: message.application() })
        .collect();
    assert_eq!(handed, (after + 1..).zip(&sent).collect::<Vec<_>>());
    fetched.deliveries
}

/// What comes of a request that is repeated until it is answered, while the relay dies at a point and comes back.
async fn answered_across(
    world: &mut World,
    point: &str,
    rows_when_dead: i64,
    request: impl Future<Output = (Reply, u64)>,
) -> Reply {
    let dies_and_comes_back = async {
        world.relay.dies_at(point).await;
        assert_eq!(world.rows().await, rows_when_dead);
        world.relay.restart().await;
    };
    let ((reply, repeated), ()) = tokio::join!(request, dies_and_comes_back);
    assert!(repeated > 0);
    reply
}

/// Posts a message until it is answered, while the relay dies at a point and comes back. Both members are handed it.
async fn posted_across(backend: Backend, point: &str, rows_when_dead: i64) {
    let mut world = World::new(backend).await.until(point).await;
    let (alice, message) = (world.alice.clone(), Message::at(world.group, 1));
    let (path, request) = (path::fill(path::GROUP_MESSAGES, message.group), message.send_request());
    let posting = alice.insist(&path, &request);
    answered_across(&mut world, point, rows_when_dead, posting).await.yes::<SendResponse>();
    assert_handed(&world.bob, 1, &[&message]).await;
    assert_handed(&world.alice, 1, &[&message]).await;
}

async fn message_before_commit(backend: Backend) {
    posted_across(backend, "message.before_commit", 0).await;
}

async fn message_before_answer(backend: Backend) {
    posted_across(backend, "message.before_answer", 2).await;
}

/// Posts a commit that adds a device until it is answered, while the relay dies at a point and comes back.
async fn committed_across(backend: Backend, point: &str, rows_when_dead: i64) {
    let mut world = World::new(backend).await;
    let carol = device(&world.relay).await;
    world = world.until(point).await;
    let commit = Message::at(world.group, 1).adding(&[&carol]);
    let alice = world.alice.clone();
    let (path, request) = (path::fill(path::GROUP_COMMITS, world.group), commit.commit_request());
    let posting = alice.insist(&path, &request);
    let reply = answered_across(&mut world, point, rows_when_dead, posting).await;
    assert_eq!(reply.yes::<CommitResponse>().commit_seq, 2, "the first answer");

    let group: Group = world.alice.get(&path::fill(path::GROUP, world.group)).await.yes();
    assert_eq!((group.position.commit_seq, group.position.epoch), (2, 2), "it counts once");
    let committed = Envelope::GroupCommit { group_id: world.group, commit_seq: 2, commit: commit.commit() };
    for member in [&world.alice, &world.bob] {
        let fetched = member.fetch(1).await;
        assert_eq!(fetched.deliveries, [Delivery { seq: 2, envelope: committed.clone() }]);
    }
    let welcomed = carol.fetch(0).await.deliveries;
    assert!(matches!(&welcomed[..], [Delivery { seq: 1, envelope: Envelope::Welcome { commit_seq: 2, .. } }]));
}

async fn commit_before_commit(backend: Backend) {
    committed_across(backend, "commit.before_commit", 0).await;
}

async fn commit_before_answer(backend: Backend) {
    committed_across(backend, "commit.before_answer", 3).await;
}

/// Acks one of two messages until it is answered, while the relay dies at a point and comes back.
async fn acked_across(backend: Backend, point: &str, rows_when_dead: i64) {
    let world = World::new(backend).await;
    let messages = [1, 1].map(|at| Message::at(world.group, at));
    for message in &messages {
        world.alice.send_message(message).await.yes::<SendResponse>();
    }
    let mut world = world.until(point).await;
    let bob = world.bob.clone();
    let acking = bob.insist(path::ACK, &AckRequest { up_to: 2 });
    answered_across(&mut world, point, rows_when_dead, acking).await.done();
    let left = world.bob.fetch(0).await;
    assert_eq!(
        (left.deliveries.len(), left.deliveries[0].seq, left.missed),
        (1, 3, vec![]),
        "what was acked is not missed"
    );
}

async fn ack_before_commit(backend: Backend) {
    acked_across(backend, "ack.before_commit", 4).await;
}

async fn ack_before_answer(backend: Backend) {
    acked_across(backend, "ack.before_answer", 3).await;
}

/// On Postgres the device that waits does so at another node, which hears nothing and looks by itself. On SQLite it waited at
/// the relay that died, and looks when it has connected again.
async fn mail_before_wake(backend: Backend) {
    let point = "mail.before_wake";
    // A stream that is opened says so as well, to older ones of its device.
    let nth = if backend == Backend::Sqlite { 2 } else { 1 };
    let mut world = World::new(backend).await.until(&format!("{point}:{nth}")).await;
    let other = match backend {
        Backend::Sqlite => None,
        Backend::Postgres => Some(Relay::start(&world.store, Build::Workspace).await),
    };
    let bob = other.as_ref().map_or(world.bob.clone(), |other| world.bob.at(other.url()));
    let mut waiting = bob.stream(1).await;
    assert_eq!(waiting.catches_up_to(2).await, [0; 0]);
    let message = Message::at(world.group, 1);
    let body = world.alice.encoding.encode(&message.send_request());
    let lost = world.alice.attempt(Method::POST, &path::fill(path::GROUP_MESSAGES, message.group), Some(body)).await;
    assert!(lost.is_err(), "the answer is lost: {lost:?}");
    world.relay.dies_at(point).await;
    match other {
        Some(_) => assert_eq!(waiting.catches_up_to(3).await, [2]),
        None => {
            assert_eq!(waiting.next().await, None, "the stream broke off");
            world.relay.restart().await;
            assert_eq!(world.bob.stream(1).await.catches_up_to(3).await, [2]);
        }
    }
    assert_handed(&bob, 1, &[&message]).await;
}

async fn push_before_ack(backend: Backend) {
    let point = "push.before_ack";
    let world = World::new(backend).await;
    let message = Message::at(world.group, 1);
    world.alice.send_message(&message).await.yes::<SendResponse>();
    let mut world = world.until(point).await;
    let mut stream = world.bob.try_stream(1, Some(world.bob.encoding)).await.unwrap();
    world.relay.dies_at(point).await;
    let mut pushed = Vec::new();
    while let Some(frame) = stream.next().await {
        pushed.extend(as_delivery(frame));
    }
    world.relay.restart().await;
    let held = assert_handed(&world.bob, 1, &[&message]).await;
    assert_eq!(pushed, held, "what was pushed comes again, the same under the same number");
    let mut again = world.bob.stream(1).await;
    assert_eq!(again.catches_up_to(3).await, [2]);
    again.ack(2).await;
    wait_until("the ack", async || (world.rows().await == 1).then_some(())).await;
}

fn as_delivery(frame: ServerFrame) -> Option<Delivery> {
    match frame {
        ServerFrame::Delivery { delivery } => Some(delivery),
        _ => None,
    }
}

/// Two messages wait, the time of the first is over, and so is that of a commit: the job dies before it deletes the one, or
/// between the one and the other.
async fn tidied_across(backend: Backend, point: &str, rows_when_dead: i64) {
    let mut world = World::new(backend).await;
    let messages = [1, 1].map(|at| Message::at(world.group, at));
    for message in &messages {
        world.alice.send_message(message).await.yes::<SendResponse>();
    }
    world.relay.stop().await;
    let oldest = "SELECT MIN(envelope_id) FROM queue";
    world.store.change(&format!("UPDATE envelopes SET expires_hour_ms = 1 WHERE envelope_id = ({oldest})")).await;
    world.store.change("UPDATE commits SET posted_hour_ms = 1").await;
    world.relay.restart_until(point).await;
    world.relay.dies_at(point).await;
    assert_eq!((world.rows().await, world.store.number(COMMITS).await), (rows_when_dead, 1));
    world.store.assert_whole().await;
    world.relay.restart().await;
    wait_until("the job to run again", async || {
        ((world.rows().await, world.store.number(COMMITS).await) == (2, 0)).then_some(())
    })
    .await;
    for device in [&world.alice, &world.bob] {
        let fetched = device.fetch(1).await;
        assert_eq!(fetched.missed.iter().map(|span| (span.from, span.to)).collect::<Vec<_>>(), [(2, 2)]);
        assert_eq!(fetched.deliveries.iter().map(|delivery| delivery.seq).collect::<Vec<_>>(), [3]);
        device.ack(3).await.done();
    }
    assert_eq!(world.store.number("SELECT COUNT(*) FROM envelopes").await, 0, "pointers are counted right");
}

async fn job_before_commit(backend: Backend) {
    tidied_across(backend, "job.before_commit", 4).await;
}

async fn job_halfway(backend: Backend) {
    tidied_across(backend, "job.halfway", 2).await;
}

async fn migration_halfway(backend: Backend) {
    let point = "migration.halfway";
    let folder = tempfile::tempdir().unwrap();
    let store = Store::new(folder.path(), backend).await;
    if backend == Backend::Postgres {
        store.change("DROP SCHEMA public CASCADE; CREATE SCHEMA public").await;
    }
    for _ in 0..2 {
        Launch::over(&store).dies_at(point).await;
        assert_eq!(store.number("SELECT COUNT(*) FROM relay").await, 0, "the schema is there, and nothing in it");
    }
    let relay = Relay::start(&store, Build::Workspace).await;
    let (alice, bob) = (device(&relay).await, device(&relay).await);
    let group = alice.create_group_with(&[&bob]).await;
    alice.says(group, 1).await;
    assert_eq!(bob.fetch(0).await.deliveries.len(), 2);
    store.assert_whole().await;
}

async fn shutdown_before_close(backend: Backend) {
    let point = "shutdown.before_close";
    let mut world = World::new(backend).await.until(point).await;
    let before = world.incarnation().await;
    let message = Message::at(world.group, 1);
    world.alice.send_message(&message).await.yes::<SendResponse>();
    let mut stream = world.bob.stream(1).await;
    assert_eq!(stream.catches_up_to(3).await, [2]);
    world.relay.ask_to_stop().await;
    assert!(matches!(stream.next().await, Some(ServerFrame::Bye { .. })));
    world.relay.dies_at(point).await;
    world.store.assert_whole().await;
    world.relay.restart().await;
    assert_eq!(world.incarnation().await, before, "it is the same store");
    assert_handed(&world.bob, 1, &[&message]).await;
}

/// SQLite only: Postgres has its marks from the database itself.
#[tokio::test(flavor = "multi_thread")]
async fn mark_halfway() {
    let point = "mark.halfway";
    let mut world = World::new(Backend::Sqlite).await;
    let before = world.incarnation().await;
    world.relay.kill().await;
    Launch::over(&world.store).dies_at(point).await;
    world.relay.restart().await;
    assert_eq!(world.incarnation().await, before, "it is the same store");
}

/// What these tests rely on is not in what ships.
#[tokio::test(flavor = "multi_thread")]
async fn the_relay_that_ships_dies_at_no_point() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::new(folder.path(), Backend::Sqlite).await;
    for point in ["message.before_commit", "message.before_answer"] {
        let mut relay = Launch::over(&store).build(Build::Alone).kill_at(point).start().await;
        let (alice, bob) = (device(&relay).await, device(&relay).await);
        let group = alice.create_group_with(&[&bob]).await;
        alice.says(group, 1).await;
        assert_eq!(bob.fetch(0).await.deliveries.len(), 2);
        relay.stop().await;
    }
}

/// Two people with the SDK, in a group, who have taken all that was for them.
async fn people(backend: Backend) -> (tempfile::TempDir, Store, Relay, Person, Person) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::new(folder.path(), backend).await;
    let relay = Relay::start(&store, Build::Workspace).await;
    let alice = Person::register(folder.path(), "alice", &relay.url()).await;
    let bob = Person::register(folder.path(), "bob", &relay.url()).await;
    alice.ok(&["group", "create", "trip", "--add", "bob"]).await;
    alice.ok(&["sync"]).await;
    bob.ok(&["sync"]).await;
    (folder, store, relay, alice, bob)
}

/// The SDK's process dies too, so that nothing but its store knows what was posted.
async fn device_after_the_answer_was_lost(backend: Backend) {
    let point = "message.before_answer";
    let (_folder, store, mut relay, alice, bob) = people(backend).await;
    relay.stop().await;
    relay.restart_until(point).await;
    let sending = alice.start(&["send", "trip", "into the dark"]);
    relay.dies_at(point).await;
    drop(sending);
    relay.restart().await;
    alice.ok(&["sync"]).await;
    let held = store.number("SELECT COUNT(*) FROM envelopes WHERE kind = 1").await;
    assert_eq!(held, 1, "what went out again is what went out before");
    bob.ok(&["sync"]).await;
    for person in [&alice, &bob] {
        assert_eq!(person.history("trip").await, [("alice".to_owned(), "into the dark".to_owned())], "once");
    }
    take_all(&store, &[&alice, &bob]).await;
}

async fn device_after_delivery_before_ack(backend: Backend) {
    let point = "ack.before_commit";
    let (_folder, store, mut relay, alice, bob) = people(backend).await;
    alice.ok(&["send", "trip", "once"]).await;
    alice.ok(&["sync"]).await;
    relay.stop().await;
    relay.restart_until(point).await;
    let listening = bob.start(&["listen", "--count", "1", "--for", "60"]);
    relay.dies_at(point).await;
    drop(listening);
    assert_eq!(store.number(ROWS).await, 1, "it waits still");
    relay.restart().await;
    bob.ok(&["sync"]).await;
    let events = bob.ok(&["listen", "--for", "1"]).await;
    assert!(events.iter().all(|event| event["event"] != "undecryptable"), "nothing is opened twice: {events:?}");
    assert_eq!(bob.history("trip").await, [("alice".to_owned(), "once".to_owned())], "shown once");
    take_all(&store, &[&bob, &alice]).await;
}
