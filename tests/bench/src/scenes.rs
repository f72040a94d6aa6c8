//! What is measured: who sends to whom, and for how long.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::task::JoinSet;
use undertone_test_client::{Account, Api, Device, Message};
use undertone_wire::{CommitResponse, Encoding, GroupId, ServerFrame};

use crate::{
    raw,
    relay::{Relay, Store},
    sender::Sender,
    window::{Window, per_second},
};

/// Something to measure.
#[derive(Clone, Copy)]
pub(crate) enum Scene {
    /// So many senders, each to a group of its own with this many devices, all offline.
    Sends { senders: usize, devices: usize },
    /// One device takes this many messages that wait for it.
    Drain { messages: usize },
    /// So many pairs, one of each sending, the other taking and acking.
    Live { pairs: usize },
}

/// All of them.
pub(crate) const ALL: &[(&str, Scene)] = &[
    ("send, 1 sender", Scene::Sends { senders: 1, devices: 2 }),
    ("send, 16 senders", Scene::Sends { senders: 16, devices: 2 }),
    ("send, 64 senders", Scene::Sends { senders: 64, devices: 2 }),
    ("fan-out to 100", Scene::Sends { senders: 1, devices: 100 }),
    ("fan-out to 1,000", Scene::Sends { senders: 1, devices: 1_000 }),
    ("drain 10,000", Scene::Drain { messages: 10_000 }),
    ("live, 16 pairs", Scene::Live { pairs: 16 }),
];

/// How many a second.
pub(crate) struct Figure {
    pub(crate) relay: f64,
    pub(crate) raw: f64,
}

/// A group, and who is in it.
pub(crate) struct Group {
    pub(crate) id: GroupId,
    /// How many commits it has seen.
    pub(crate) at: u64,
    pub(crate) devices: Vec<Device>,
}

/// Measures a scene, then the raw limit on the same store.
pub(crate) async fn measure(scene: Scene, binary: &Path, store: Store, time: Duration) -> Figure {
    let relay = Relay::start(binary, &store).await;
    let api = Api::new(&relay.url).speaking(Encoding::Cbor);
    match scene {
        Scene::Sends { senders, devices } => {
            let groups = groups(&api, senders, devices).await;
            let figure = sends(&groups, time).await;
            relay.stop().await;
            Figure { relay: figure, raw: raw::sends(&store, &groups, time).await }
        }
        Scene::Drain { messages } => {
            let groups = groups(&api, 1, 2).await;
            fill(&groups[0], messages).await;
            let figure = drain(&groups[0].devices[1], messages).await;
            relay.stop().await;
            raw::fill(&store, &groups, messages).await;
            Figure { relay: figure, raw: raw::drain(&store, &groups[0]).await }
        }
        Scene::Live { pairs } => {
            let groups = groups(&api, pairs, 2).await;
            let figure = live(&groups, time).await;
            relay.stop().await;
            Figure { relay: figure, raw: raw::live(&store, &groups, time).await }
        }
    }
}

/// This many groups of so many devices, up to 16 of an account.
async fn groups(api: &Api, count: usize, devices: usize) -> Arc<[Group]> {
    let mut groups = Vec::with_capacity(count);
    for _ in 0..count {
        let mut members = Account::new(1).register(api).await;
        while members.len() < devices {
            members.extend(Account::new(16.min(devices - members.len())).register(api).await);
        }
        let id = members[0].create_group().await;
        let mut at = 0;
        for added in members[1..].chunks(100) {
            let commit = Message::at(id, at).adding(&added.iter().collect::<Vec<_>>());
            at = members[0].commit(&commit).await.yes::<CommitResponse>().commit_seq;
        }
        groups.push(Group { id, at, devices: members });
    }
    groups.into()
}

async fn sends(groups: &[Group], time: Duration) -> f64 {
    let mut senders = Vec::with_capacity(groups.len());
    for group in groups {
        senders.push((Sender::new(&group.devices[0], group.id).await, group.at));
    }
    let (window, mut tasks) = (Window::new(time), JoinSet::new());
    for (mut sender, at) in senders {
        tasks.spawn(window.count(async move || {
            sender.send(at).await;
            1
        }));
    }
    window.rate(tasks).await
}

async fn fill(group: &Group, messages: usize) {
    let mut tasks = Vec::new();
    for _ in 0..16 {
        let (mut sender, at) = (Sender::new(&group.devices[0], group.id).await, group.at);
        tasks.push(tokio::spawn(async move {
            for _ in 0..messages / 16 {
                sender.send(at).await;
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
}

/// Takes what waits over a stream, acking every 64.
async fn drain(device: &Device, messages: usize) -> f64 {
    let began = Instant::now();
    let mut socket = device.stream(0).await;
    let mut taken = 0;
    while taken < messages {
        match socket.next().await.expect("the stream stays open") {
            ServerFrame::Delivery { delivery } => {
                taken += 1;
                if taken % 64 == 0 {
                    socket.ack(delivery.seq).await;
                }
            }
            ServerFrame::CaughtUp { .. } => break,
            _ => {}
        }
    }
    per_second(taken as u64, began.elapsed())
}

/// What the takers have taken; that it was sent does not count.
async fn live(groups: &[Group], time: Duration) -> f64 {
    let mut pairs = Vec::with_capacity(groups.len());
    for group in groups {
        let sender = Sender::new(&group.devices[0], group.id).await;
        pairs.push((sender, group.at, group.devices[1].stream(0).await));
    }
    let (window, mut tasks) = (Window::new(time), JoinSet::new());
    for (mut sender, at, mut socket) in pairs {
        tasks.spawn(window.count(async move || {
            sender.send(at).await;
            0
        }));
        let mut taken = 0;
        tasks.spawn(window.count(async move || match socket.next().await.expect("the stream stays open") {
            ServerFrame::CaughtUp { next_seq } => {
                socket.ack(next_seq - 1).await;
                next_seq - 1 - std::mem::replace(&mut taken, next_seq - 1)
            }
            _ => 0,
        }));
    }
    window.rate(tasks).await
}
