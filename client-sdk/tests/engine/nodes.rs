//! A relay at several addresses: one that works is kept, one that does not is left at once, another relay's is passed
//! over.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
};

use undertone::{
    Client, ClientBuilder, Clock, Connection, Error, ErrorKind, Event, StoreAt,
    api::{RelayApi, fake::FakeRelay},
};
use undertone_wire::{ByeReason, ErrorCode, ServerFrame};

use crate::{
    liar::{Call, Liar, Lie, lied_to, refused},
    world::{PATIENCE, World, count_events, event, has_texts, is_sent, key, online, registered, standing, wait_until},
};

/// Somebody to whom the relay has two addresses.
fn builder(world: &World, name: &str, [one, two]: [Arc<dyn RelayApi>; 2]) -> ClientBuilder<StoreAt> {
    Client::builder("http://one").api(one).also_at("http://two").api(two).store(world.store(name), key())
}

fn two_nodes(relay: &Arc<FakeRelay>) -> [Arc<dyn RelayApi>; 2] {
    [relay.connect_to(0), relay.connect_to(1)]
}

async fn register_at_two(world: &World, name: &str) -> Client {
    registered(builder(world, name, two_nodes(&world.relay)), name).await
}

async fn is_at(world: &World, client: &Client, node: usize) {
    wait_until(format!("to be at node {node}"), async || {
        (world.relay.node_of_stream(&client.device_id()) == Some(node)).then_some(())
    })
    .await;
    online(client).await;
}

fn count_offline(client: &Client) -> Arc<AtomicUsize> {
    count_events(client, |event| *event == Event::Connection(Connection::Offline))
}

#[tokio::test]
async fn a_node_that_goes_is_left_for_the_next_without_being_offline() {
    let (world, clock) = (World::new(), standing());
    let builder = builder(&world, "alice", two_nodes(&world.relay)).clock(Arc::clone(&clock) as Arc<dyn Clock>);
    let alice = registered(builder, "alice").await;
    let bob = world.register("bob").await;
    let groups = world.group(&[&alice, &bob]).await;
    is_at(&world, &alice, 0).await;
    let offline = count_offline(&alice);
    world.relay.stop_node(0);
    is_at(&world, &alice, 1).await;
    clock.pass(&world, 10_000);
    world.relay.start_node(0);
    let id = groups[0].send("from the second").await.unwrap();
    is_sent(&alice, id).await;
    assert_eq!(world.relay.node_of_stream(&alice.device_id()), Some(1), "it stays with what works");
    world.relay.kill_node(1);
    is_at(&world, &alice, 0).await;
    clock.pass(&world, 10_000);
    let id = groups[0].send("from the first").await.unwrap();
    is_sent(&alice, id).await;
    has_texts(&groups[0], &["from the second", "from the first"]).await;
    assert_eq!(offline.load(SeqCst), 0);
    world.relay.kill_node(0);
    wait_until("no node to be left", async || (offline.load(SeqCst) > 0).then_some(())).await;
    world.relay.start_node(1);
    is_at(&world, &alice, 1).await;
}

#[tokio::test]
async fn a_first_address_that_is_down_keeps_nobody_from_registering_opening_or_asking() {
    let world = World::new();
    world.relay.kill_node(0);
    let alice = register_at_two(&world, "alice").await;
    assert_eq!(alice.find("alice").await.unwrap(), alice.account());
    alice.shutdown().await;
    let alice = builder(&world, "alice", two_nodes(&world.relay)).open().await.unwrap();
    assert_eq!(alice.find("alice").await.unwrap(), alice.account(), "nothing was known to be at the second before");
    is_at(&world, &alice, 1).await;
}

#[tokio::test]
async fn a_relay_that_is_stopping_is_asked_elsewhere_at_once() {
    let world = World::new();
    let stopping = Liar::new(world.relay.connect_to(0));
    let builder = builder(&world, "alice", [Arc::<Liar>::clone(&stopping), world.relay.connect_to(1)]);
    let alice = registered(builder, "alice").await;
    is_at(&world, &alice, 0).await;
    let group = alice.create_group("ski trip").await.unwrap();
    stopping.tell(|call| matches!(call, Call::Send(..)).then(|| Lie::Now(refused(ErrorCode::Unavailable))));
    let id = group.send("hello").await.unwrap();
    is_sent(&alice, id).await;
    assert_eq!(stopping.sends(), 1, "it went to the other address next");
}

#[tokio::test]
async fn a_bye_of_a_relay_that_stops_is_followed_by_a_reconnect_at_once() {
    let world = World::new();
    let (liar, alice) = lied_to(&world, "alice").await;
    let said = AtomicBool::new(false);
    let offline = count_offline(&alice);
    liar.rewrite(move |frame| match frame {
        ServerFrame::Delivery { .. } if !said.swap(true, SeqCst) => ServerFrame::Bye { reason: ByeReason::Shutdown },
        frame => frame,
    });
    let group = alice.create_group("ski trip").await.unwrap();
    group.send("its row is the frame that becomes a bye").await.unwrap();
    wait_until("a second stream", async || (world.relay.streams_opened(&alice.device_id()) == 2).then_some(())).await;
    online(&alice).await;
    assert_eq!(offline.load(SeqCst), 0);
    world.relay.go_offline();
    wait_until("offline to be noticed", async || (offline.load(SeqCst) > 0).then_some(())).await;
}

#[tokio::test]
async fn addresses_of_different_relays_are_refused_at_registration() {
    let (world, other) = (World::new(), FakeRelay::new());
    let two = [world.relay.connect(), other.connect()];
    let registered = builder(&world, "alice", two).register("alice").await;
    assert!(matches!(registered, Err(Error::Invalid(reason)) if reason.contains("different relays")));
    let alice = register_at_two(&world, "alice").await;
    assert_eq!(alice.find("alice").await.unwrap(), alice.account(), "the store can still be used");
}

#[tokio::test]
async fn an_address_of_another_relay_is_passed_over_and_told_once() {
    let (world, other) = (World::new(), FakeRelay::new());
    let bob = world.register("bob").await;
    register_at_two(&world, "alice").await.shutdown().await;
    let two = || [other.connect(), world.relay.connect_to(1)];
    let reopened = async || builder(&world, "alice", two()).open().await.unwrap();
    let alice = reopened().await;
    let strange = event(&alice, |event| match event {
        Event::OtherRelay { url } => Some(url),
        _ => None,
    });
    assert_eq!(strange.await, "http://one");
    is_at(&world, &alice, 1).await;
    let groups = world.group(&[&alice, &bob]).await;
    groups[0].send("hello").await.unwrap();
    has_texts(&groups[1], &["hello"]).await;
    alice.events().done().await.unwrap();
    alice.shutdown().await;
    // The control is a message: an event that comes after would-be news of the address.
    let alice = reopened().await;
    is_at(&world, &alice, 1).await;
    bob.group(groups[0].id()).send("again").await.unwrap();
    let first = event(&alice, |event| match event {
        Event::OtherRelay { url } => Some(url),
        Event::MessageReceived(message) => Some(message.text().to_owned()),
        _ => None,
    });
    assert_eq!(first.await, "again");
}

#[tokio::test]
async fn without_an_address_of_its_relay_a_client_says_so() {
    let (world, other) = (World::new(), FakeRelay::new());
    register_at_two(&world, "alice").await.shutdown().await;
    let alice = builder(&world, "alice", two_nodes(&other)).open().await.unwrap();
    assert_eq!(alice.caught_up(PATIENCE).await, Connection::Offline);
    assert!(alice.meets_other_relay());
    let error = alice.find("bob").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Untrusted, "{error}");
}

#[tokio::test]
async fn a_stream_that_greets_as_another_relay_is_left_for_the_next_address() {
    let (world, other) = (World::new(), FakeRelay::new());
    let liar = Liar::new(world.relay.connect_to(0));
    let strange = other.connect().relay().await.unwrap().relay_id;
    liar.rewrite(move |frame| match frame {
        ServerFrame::Hello { incarnation, stream, next_seq, oldest_available, time_ms, .. } => {
            ServerFrame::Hello { relay_id: strange, incarnation, stream, next_seq, oldest_available, time_ms }
        }
        frame => frame,
    });
    let alice = registered(builder(&world, "alice", [liar, world.relay.connect_to(1)]), "alice").await;
    is_at(&world, &alice, 1).await;
}
