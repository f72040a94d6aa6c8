//! How fast the SDK is: real clients at a relay process on SQLite, in groups of several sizes.
//!
//! The client that sends adds devices without an SDK to its group until only one place is left, then the client that
//! receives. That one is closed while messages are sent, and takes them when it is opened again, so that each of the two is
//! measured by itself.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use tempfile::TempDir;
use undertone::{Client, Connection, Event, Group, StoreKey};
use undertone_test_client::{Account, Api};

use crate::{
    bare::{self, key_package},
    relay::{Relay, Store},
    sender::PAYLOAD_BYTES,
    window::per_second,
};

/// Longer than anything takes.
const PATIENCE: Duration = Duration::from_secs(3_600);

/// An account has no more devices.
const ACCOUNT_DEVICES: usize = 16;

/// In a larger group a tenth of the messages will do: the relay has a row to write for every device.
const SMALL_GROUP: usize = 10;

/// How many a second, with the limits.
pub(crate) struct Figure {
    pub(crate) what: &'static str,
    pub(crate) sdk: f64,
    /// With MLS in memory, and one durable row for each.
    pub(crate) raw: f64,
    /// With MLS in memory alone.
    pub(crate) mls: f64,
}

/// Joins a group of so many devices as the last one, sends so many messages there, and receives them; then does the same
/// without SDK and relay.
pub(crate) async fn measure(binary: &Path, devices: usize, messages: usize) -> Vec<Figure> {
    let messages = if devices > SMALL_GROUP { messages.div_ceil(10) } else { messages };
    let store = Store::new(false).await;
    let relay = Relay::start(binary, &store).await;
    let people = People { url: relay.url.clone(), folder: tempfile::tempdir().unwrap() };
    let (founder, group) = people.found(devices - 2).await;
    let join = people.join(&founder, &group).await;
    let send = send(&founder, &group, messages).await;
    founder.shutdown().await;
    let receive = people.receive(messages).await;
    relay.stop().await;

    let bare = bare::measure(devices, messages);
    let figure = |what, sdk, (raw, mls)| Figure { what, sdk, raw, mls };
    vec![figure("join", join, bare.join), figure("send", send, bare.send), figure("receive", receive, bare.receive)]
}

/// Two clients at a relay.
struct People {
    url: String,
    folder: TempDir,
}

impl People {
    fn builder(&self, name: &str) -> undertone::ClientBuilder<undertone::StoreAt> {
        Client::builder(self.url.clone()).store(self.folder.path().join(name), StoreKey::Raw32([7; 32]))
    }

    /// The client that sends, in a group with so many devices of others.
    async fn found(&self, others: usize) -> (Client, Group) {
        let founder = self.builder("founder").register(None).await.unwrap();
        let group = founder.create_group("bench").await.unwrap();
        let api = Api::new(&self.url);
        let mut left = others;
        while left > 0 {
            let devices = Account::new(left.min(ACCOUNT_DEVICES)).register(&api).await;
            for device in &devices {
                device
                    .publish(vec![bare::bytes(&key_package(device).1)], None)
                    .await
                    .yes::<undertone_wire::KeyCounts>();
            }
            group.add(devices[0].account_id()).await.unwrap();
            left -= devices.len();
        }
        (founder, group)
    }

    /// The client that receives joins. What counts is the time from the moment at which its queue begins to arrive.
    async fn join(&self, founder: &Client, group: &Group) -> f64 {
        let joiner = self.builder("joiner").register(None).await.unwrap();
        let account = joiner.account().account_id;
        // Who adds it is known, so that nobody has to be looked up before the event is told.
        joiner.find(&founder.account().account_id.to_string()).await.unwrap();
        joiner.shutdown().await;
        group.add(account).await.unwrap();

        let joiner = self.builder("joiner").open().await.unwrap();
        let (events, mut arrives) = (joiner.events(), None);
        let time = loop {
            match events.next().await.expect("the client runs") {
                Event::Connection(Connection::CatchingUp) => arrives = Some(Instant::now()),
                Event::Joined { .. } => break arrives.expect("nothing comes before that").elapsed(),
                _ => {}
            }
        };
        events.done().await.unwrap();
        assert_eq!(joiner.caught_up(PATIENCE).await, Connection::Online);
        joiner.shutdown().await;
        per_second(1, time)
    }

    /// The client that receives is opened, and has everything in its history.
    async fn receive(&self, messages: usize) -> f64 {
        let began = Instant::now();
        let joiner = self.builder("joiner").open().await.unwrap();
        assert_eq!(joiner.caught_up(PATIENCE).await, Connection::Online);
        let time = began.elapsed();
        assert_eq!(joiner.counts().0, messages as u64);
        joiner.shutdown().await;
        per_second(messages as u64, time)
    }
}

/// Sends, until the relay has all.
async fn send(founder: &Client, group: &Group, messages: usize) -> f64 {
    let text = "7".repeat(PAYLOAD_BYTES);
    let began = Instant::now();
    for _ in 0..messages {
        group.send(text.clone()).await.unwrap();
    }
    assert_eq!(founder.outbox_empty(PATIENCE).await.unwrap(), 0);
    per_second(messages as u64, began.elapsed())
}
