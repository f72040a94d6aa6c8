//! A device that dies at any of its writes, and goes on where it was.

use std::time::Duration;

use tokio::time::Instant;
use undertone_wire::GroupId;

use super::{
    PATIENCE, until,
    world::{World, is_in, online, reads},
};
use crate::{Client, Conversation, ConversationId, Error, Group, crypto::group, store::points::Points};

/// So many of the points are taken in the short form.
const SAMPLE: u64 = 16;

/// Somebody who dies at one of their writes and is opened again.
struct Mortal<'a> {
    world: &'a World,
    name: &'static str,
    /// To whose account they are linked, if not registered.
    of: Option<&'a Client>,
    points: Points,
    client: Option<Client>,
}

impl<'a> Mortal<'a> {
    fn new(world: &'a World, name: &'static str, dies_at: u64) -> Self {
        let points = Points::count(&world.folder.path().join(name));
        points.die_at(dies_at);
        Self { world, name, of: None, points, client: None }
    }

    /// As they are now, if they can be brought to life.
    async fn alive(&mut self) -> Result<Client, Error> {
        if let Some(client) = self.client.take() {
            client.contacts().await?;
            self.client = Some(client.clone());
            return Ok(client);
        }
        let opened = match (self.world.builder(self.name).open().await, self.of) {
            (Err(Error::NotRegistered), None) => self.world.builder(self.name).register(self.name).await,
            (Err(Error::NotRegistered), Some(account)) => linked(self.world, self.name, account).await,
            (opened, _) => opened,
        };
        let client = opened?;
        self.client = Some(client.clone());
        Ok(client)
    }

    /// Does a step until it is done, however often he dies meanwhile. It answers whether it is.
    async fn does(&mut self, what: &str, step: impl AsyncFn(&Client) -> Result<bool, Error>) {
        let mut died = self.points.has_died();
        let mut tick = tokio::time::interval(Duration::from_millis(2));
        let all = async {
            loop {
                tick.tick().await;
                let client = match self.alive().await {
                    Ok(client) => client,
                    // He died while he was registered or opened; or what he was has not let go of his store yet.
                    Err(Error::Closed | Error::StoreInUse) => continue,
                    Err(error) => panic!("{what}: {error}"),
                };
                let points = self.points.clone();
                let death = async move {
                    let mut tick = tokio::time::interval(Duration::from_millis(2));
                    while died || !points.has_died() {
                        tick.tick().await;
                    }
                };
                let done = tokio::select! {
                    done = step(&client) => done,
                    () = death => Err(Error::Closed),
                };
                match done {
                    Ok(true) => return,
                    Ok(false) => {}
                    Err(Error::Closed) => {
                        died = true;
                        self.client = None;
                    }
                    Err(Error::Offline(_)) => {}
                    Err(error) => panic!("{what}: {error}"),
                }
            }
        };
        tokio::time::timeout(PATIENCE, all).await.unwrap_or_else(|_| panic!("waited in vain: {what}"));
    }

    /// Sends a text in a conversation, once. `seen` is the conversation of somebody else who reads it.
    async fn sends_in(&mut self, id: ConversationId, seen: &Conversation, text: &str) {
        self.does(text, async |bob| {
            let conversation = bob.conversation(id);
            let history = conversation.history(100, None).await?;
            if !history.iter().any(|message| message.text() == text) {
                conversation.send(text).await?;
            }
            Ok(true)
        })
        .await;
        // The others read it, whatever becomes of him.
        let began = Instant::now();
        let mut tick = tokio::time::interval(Duration::from_millis(5));
        while !seen.history(100, None).await.unwrap().iter().any(|message| message.text() == text) {
            tick.tick().await;
            self.does(text, async |_| Ok(true)).await;
            assert!(began.elapsed() < PATIENCE, "waited in vain: {text}");
        }
    }

    /// Sends a text in a group, once.
    async fn sends(&mut self, group: &Group, text: &str) {
        self.sends_in(group.id().into(), group, text).await;
    }

    async fn reads(&mut self, group: &Group, text: &str) {
        self.reads_in(group.id().into(), text).await;
    }

    async fn reads_in(&mut self, id: ConversationId, text: &str) {
        self.does(text, async |bob| match bob.conversation(id).history(100, None).await {
            Ok(history) => Ok(history.iter().any(|message| message.text() == text)),
            Err(error) => Err(error),
        })
        .await;
    }

    async fn is_in(&mut self, group: &Group) {
        let id = group.id();
        self.does("to be in the group", async |bob| match bob.group(id).summary().await {
            Ok(summary) => Ok(summary.active),
            Err(Error::UnknownGroup) => Ok(false),
            Err(error) => Err(error),
        })
        .await;
        self.does("to accept it", async |bob| bob.group(id).accept().await.map(|()| true)).await;
    }
}

/// All that a device does, with a death at one point, or none. Answers how many points there were, and whether he died.
async fn life(dies_at: u64) -> (u64, bool) {
    let world = World::new();
    let (alice, carol) = (world.register("alice").await, world.register("carol").await);
    let mut bob = Mortal::new(&world, "bob", dies_at);
    bob.does("to be online", async |bob| Ok(bob.connection() == crate::Connection::Online)).await;
    let account = bob.client.as_ref().unwrap().account().account_id;
    let device = bob.client.as_ref().unwrap().device_id();
    bob.does("to have key packages there", async |_| Ok(world.relay.key_packages(&device) == (100, true))).await;
    let group = alice.create_group("ski trip").await.unwrap();

    // Joining and receiving.
    group.add(account).await.unwrap();
    bob.is_in(&group).await;
    group.send("hello").await.unwrap();
    bob.reads(&group, "hello").await;
    // Sending and committing.
    bob.sends(&group, "from bob").await;
    let id = group.id();
    bob.does("to rename", async |bob| {
        let group = bob.group(id);
        if group.summary().await?.name != "renamed" {
            group.rename("renamed").await?;
        }
        Ok(true)
    })
    .await;
    let carols = carol.account().account_id;
    bob.does("to add carol", async |bob| {
        let group = bob.group(id);
        if !group.summary().await?.members.iter().any(|one| one.account_id == carols) {
            group.add(carols).await?;
        }
        Ok(true)
    })
    .await;
    is_in(&carol, id).await;
    // Writing and reading directly: a session begins, and goes on.
    let with_bob = alice.direct(account);
    let with_alice = ConversationId::from(alice.account().account_id);
    with_bob.send("between us").await.unwrap();
    bob.reads_in(with_alice, "between us").await;
    bob.sends_in(with_alice, &with_bob, "as you say").await;
    bob.sends_in(ConversationId::from(carols), &carol.direct(account), "to carol").await;
    with_bob.send("good").await.unwrap();
    bob.reads_in(with_alice, "good").await;
    // Joining on his own.
    bob.does("to be there", async |bob| bob.groups().await.map(|_| true)).await;
    bob.points.pause(true);
    let lost = bob.client.as_ref().unwrap().engine().store.with_tx(move |tx| Ok(group::forget(&tx.mls(), id)?));
    // He may have died just before.
    let _: Result<(), Error> = lost.await;
    bob.points.pause(false);
    bob.sends(&group, "back").await;
    // Key upkeep.
    world.relay.hand_out(account, 60);
    bob.does("to publish key packages", async |bob| {
        bob.engine().publish_keys().await?;
        Ok(world.relay.key_packages(&device) == (100, true))
    })
    .await;
    // Leaving, and coming back.
    bob.does("to leave", async |bob| match bob.group(id).leave().await {
        Ok(()) | Err(Error::NotMember) => Ok(true),
        Err(error) => Err(error),
    })
    .await;
    let leaves = async || group.summary().await.unwrap().members.len() == 2;
    until("bob to be gone", leaves).await;
    group.add(account).await.unwrap();
    bob.is_in(&group).await;
    group.send("again").await.unwrap();
    bob.reads(&group, "again").await;
    bob.sends(&group, "and again").await;

    bob.does("to have sent all", async |bob| {
        let now_ms = bob.engine().clock.now_ms() + 3_600_000;
        bob.engine().store.with_tx(move |tx| Ok(tx.outbox_len(now_ms)? == 0)).await
    })
    .await;
    bob.does("to have taken all", async |_| Ok(world.relay.queue_len(&device) == 0)).await;
    // He may have died just now, but dies no more.
    bob.points.pause(true);
    let (passed, died) = (bob.points.passed(), bob.points.has_died());
    bob.does("to be alive", async |_| Ok(true)).await;
    let bob = bob.alive().await.unwrap();
    online(&bob).await;
    let texts = async |conversation: &Conversation| {
        let history = conversation.history(100, None).await.unwrap();
        history.iter().map(|message| message.text().to_owned()).collect::<Vec<_>>()
    };
    let all = ["hello", "from bob", "back", "again", "and again"];
    assert_eq!(texts(&group).await, all);
    assert_eq!(texts(&bob.group(id)).await, all);
    for conversation in [&with_bob, &bob.conversation(with_alice)] {
        assert_eq!(texts(conversation).await, ["between us", "as you say", "good"]);
    }
    assert_eq!(texts(&carol.direct(account)).await, ["to carol"]);
    let members = async |group: &Group| group.summary().await.unwrap().members.len();
    assert_eq!((members(&group).await, members(&bob.group(id)).await, members(&carol.group(id)).await), (3, 3, 3));
    reads(&carol.group(id), "and again").await;
    until("bob to have the newest number", async || {
        let cursor = bob.engine().store.with_tx(|tx| tx.cursor().map_err(Error::from)).await.unwrap();
        Some(cursor + 1) == world.relay.next_seq(&device)
    })
    .await;
    (passed, died)
}

/// A new device of somebody's account, if nothing comes in between.
async fn linked(world: &World, name: &str, account: &Client) -> Result<Client, Error> {
    let linking = world.builder(name).link(name).await?;
    let code = linking.code();
    let by = account.clone();
    let approving = tokio::spawn(async move { by.approve_link(&code).await });
    let joined = async { linking.approved().await?.join().await }.await;
    // If it has died, nobody answers any more. If it was listed, it finds that out when it is opened again.
    approving.abort();
    joined
}

/// All that somebody does with devices, with a death at one point, or none: links two, loses one to a thief, links another.
async fn life_with_devices(dies_at: u64) -> (u64, bool) {
    let world = World::new();
    let alice = world.register("alice").await;
    let mut bob = Mortal::new(&world, "bob", dies_at);
    bob.does("to be online", async |bob| Ok(bob.connection() == crate::Connection::Online)).await;
    let account = bob.client.as_ref().unwrap().account().account_id;
    let device = bob.client.as_ref().unwrap().device_id();
    let group = alice.create_group("ski trip").await.unwrap();
    bob.does("to have key packages there", async |_| Ok(world.relay.key_packages(&device) == (100, true))).await;
    group.add(account).await.unwrap();
    bob.is_in(&group).await;
    bob.sends_in(alice.account().account_id.into(), &alice.direct(account), "hello").await;

    let phone = links(&world, &mut bob, "phone").await;
    let on_phone = phone.group(group.id());
    is_member(&world, group.id(), &phone).await;
    bob.sends(&on_phone, "to the phone").await;
    let stolen = phone.device_id();
    bob.does("to lose the phone", async |bob| {
        // One that was listed just before he died may be there, and was to be.
        let listed: Vec<_> = bob.devices().await?.into_iter().map(|one| one.device_id).collect();
        if !listed.contains(&stolen) {
            return Ok(true);
        }
        bob.remove_stolen_device(stolen, &listed, None).await.map(|()| true)
    })
    .await;
    until("the phone to be out", async || phone.connection() == crate::Connection::SignedOut).await;
    bob.sends(&group, "without the phone").await;
    bob.sends_in(alice.account().account_id.into(), &alice.direct(account), "with another key").await;
    // He has the new identity key: what he links is taken.
    let tablet = links(&world, &mut bob, "tablet").await;
    let on_tablet = tablet.group(group.id());
    is_member(&world, group.id(), &tablet).await;
    on_tablet.send("from the tablet").await.unwrap();
    reads(&group, "from the tablet").await;
    bob.reads(&group, "from the tablet").await;
    bob.points.pause(true);
    let (passed, died) = (bob.points.passed(), bob.points.has_died());
    bob.does("to be alive", async |_| Ok(true)).await;
    let bob = bob.alive().await.unwrap();
    let numbers =
        [alice.safety_number(account).await.unwrap(), bob.safety_number(alice.account().account_id).await.unwrap()];
    assert_eq!(numbers[0], numbers[1]);
    let list = world.relay.device_list(&account).unwrap().verify(&account).unwrap();
    assert_eq!(list.generation(), 1, "the identity key has changed once");
    (passed, died)
}

/// Waits until a device gets what is said in a group, and can read it.
async fn is_member(world: &World, group: GroupId, client: &Client) {
    let device = client.device_id();
    until("the relay to know it as a member", async || world.relay.group_members(&group).contains(&device)).await;
}

/// bob links a device, however often it takes.
async fn links(world: &World, bob: &mut Mortal<'_>, name: &str) -> Client {
    let (linked, attempts) = (std::sync::Mutex::new(None), std::sync::atomic::AtomicU64::new(0));
    bob.does("to link a device", async |bob| {
        let attempt = attempts.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let linking = world.builder(&format!("{name}{attempt}")).link(name).await?;
        let code = linking.code();
        let joining = tokio::spawn(async move { linking.approved().await?.join().await });
        let approved = bob.approve_link(&code).await;
        if approved.is_err() {
            joining.abort();
        }
        approved?;
        *linked.lock().unwrap() = Some(joining.await.unwrap()?);
        Ok(true)
    })
    .await;
    let client: Option<Client> = linked.into_inner().unwrap();
    let client = client.unwrap();
    online(&client).await;
    client
}

/// All that a new device does, with a death at one point, or none.
async fn life_of_a_new_device(dies_at: u64) -> (u64, bool) {
    let world = World::new();
    let (alice, carol) = (world.register("alice").await, world.register("carol").await);
    let group = world.group(&[&alice, &carol]).await.remove(1);
    let mut phone = Mortal::new(&world, "phone", dies_at);
    phone.of = Some(&alice);
    phone.does("to be online", async |phone| Ok(phone.connection() == crate::Connection::Online)).await;
    let id = group.id();
    phone.does("to be in the group", async |phone| Ok(phone.group(id).summary().await?.active)).await;
    phone.sends(&group, "from the phone").await;
    phone.sends_in(carol.account().account_id.into(), &carol.direct(alice.account().account_id), "directly").await;
    reads(&alice.group(id), "from the phone").await;
    let back = alice.direct(carol.account().account_id);
    until("the other device to show it", async || {
        back.history(10, None).await.unwrap().iter().any(|message| message.text() == "directly")
    })
    .await;
    phone.points.pause(true);
    let (passed, died) = (phone.points.passed(), phone.points.has_died());
    phone.does("to be alive", async |_| Ok(true)).await;
    assert_eq!(phone.alive().await.unwrap().account(), alice.account());
    (passed, died)
}

#[tokio::test]
async fn a_device_that_dies_while_it_links_others_or_leaves_a_stolen_one_behind_goes_on() {
    die_at_every_point(life_with_devices).await;
}

#[tokio::test]
async fn a_new_device_that_dies_at_any_write_becomes_what_it_was_to_become() {
    die_at_every_point(life_of_a_new_device).await;
}

#[tokio::test]
async fn a_device_that_dies_at_any_write_goes_on_where_it_was() {
    die_at_every_point(life).await;
}

/// At every point in the long form (`tests/run --soak`); in the short one, at some of each part of a life, from a seed.
async fn die_at_every_point(life: impl AsyncFn(u64) -> (u64, bool)) {
    let mut killed = 0;
    if std::env::var_os("TEST_SOAK").is_some() {
        let (points, _) = life(0).await;
        // Lives differ by a few points: some end before one of the last.
        for at in 1..=points {
            killed += u64::from(life(at).await.1);
        }
        println!("{points} points in a life without a death, killed at {killed}");
        assert!(killed >= points * 9 / 10, "killed at {killed} of {points}");
        return;
    }
    let (points, _) = life(0).await;
    let seed: u64 = std::env::var("TEST_SEED").map_or_else(|_| rand(), |seed| seed.parse().unwrap());
    println!("{points} points in a life without a death; TEST_SEED={seed}");
    // The last ones may not be there in another life.
    let part = points * 9 / 10 / SAMPLE;
    for n in 0..SAMPLE {
        let at = 1 + n * part + seed % part;
        assert!(life(at).await.1, "there is a point {at}");
        killed += 1;
    }
    println!("killed at {killed}");
    assert_eq!(killed, SAMPLE);
}

fn rand() -> u64 {
    u64::from_be_bytes(crate::crypto::Entropy::system().bytes().unwrap())
}
