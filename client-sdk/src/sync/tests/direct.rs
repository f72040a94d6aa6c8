//! Sessions between devices: how they begin, which one stays, and what cannot begin one.

use undertone_wire::{Account, DeviceId, Envelope};

use super::{hostile::is_unchecked, inbox, until, world::World};
use crate::{
    Client, Conversation, Error, Event, MessageStatus,
    crypto::{
        Entropy, Identity, Member,
        direct::Note,
        envelope::{self, Letter},
        session::{OlmAccount, SessionMessage},
    },
    message::{Body, Content},
    store::{SessionRow, Standing, StoreError},
};

async fn said(conversation: &Conversation) -> Vec<String> {
    let history = conversation.history(100, None).await.unwrap();
    history.iter().map(|message| message.text().to_owned()).collect()
}

fn between(one: &Client, other: &Client) -> (Conversation, Conversation) {
    (one.direct(other.account().account_id), other.direct(one.account().account_id))
}

/// The sessions that a device has with another, by their ids.
async fn sessions(of: &Client, with: &Client) -> Vec<String> {
    let with = member(with);
    let rows = of.engine().store.with_tx(move |tx| {
        let olm_key = tx.listed(with.account)?.unwrap().device(with.device).unwrap().olm_key;
        Ok::<_, Error>(tx.sessions(with, olm_key)?)
    });
    rows.await.unwrap().iter().map(|row: &SessionRow| row.session.id()).collect()
}

async fn execute(client: &Client, sql: &'static str) {
    let done =
        client.engine().store.with_tx(move |tx| tx.execute_batch(sql).map_err(|error| StoreError::from(error).into()));
    done.await.map_err(|error: Error| error).unwrap();
}

async fn has_sent_all(client: &Client) {
    assert_eq!(client.outbox_empty(super::PATIENCE).await.unwrap(), 0);
}

fn times() -> usize {
    if std::env::var_os("TEST_SOAK").is_some() { 100 } else { 10 }
}

#[tokio::test]
async fn two_who_begin_at_once_both_arrive_and_settle_on_one_session() {
    let world = World::new();
    for round in 0..times() {
        let (alice, bob) =
            (world.register(&format!("alice{round}")).await, world.register(&format!("bob{round}")).await);
        let (to_bob, to_alice) = between(&alice, &bob);
        world.relay.hold_deliveries();
        to_bob.send("from alice").await.unwrap();
        to_alice.send("from bob").await.unwrap();
        has_sent_all(&alice).await;
        has_sent_all(&bob).await;
        world.relay.release_deliveries();
        for conversation in [&to_bob, &to_alice] {
            until("both to arrive", async || said(conversation).await.len() == 2).await;
        }
        to_bob.send("again").await.unwrap();
        until("the third", async || said(&to_alice).await.len() == 3).await;
        to_alice.send("again").await.unwrap();
        until("the fourth", async || said(&to_bob).await.len() == 4).await;
        assert_eq!(said(&to_bob).await, said(&to_alice).await);
        let (at_alice, at_bob) = (sessions(&alice, &bob).await, sessions(&bob, &alice).await);
        assert_eq!((at_alice.len(), &at_alice), (1, &at_bob));
        alice.shutdown().await;
        bob.shutdown().await;
    }
}

#[tokio::test]
async fn who_begins_sessions_all_the_time_does_not_fill_the_store() {
    let world = World::new();
    let (alice, bob, ..) = three(&world).await;
    let (before, with) = (sessions(&bob, &alice).await, member(&alice));
    let kept = bob.engine().store.with_tx(move |tx| {
        let olm_key = tx.listed(with.account)?.unwrap().device(with.device).unwrap().olm_key;
        let mut other = OlmAccount::new();
        // Each is to be used after those before.
        for generation in (0..50).rev() {
            let prekey = other.make_prekeys(1)[0];
            let session = OlmAccount::new().begin(olm_key, prekey)?;
            let id = session.id();
            tx.save_session(&SessionRow { with, olm_key, generation: 1_000 + generation, read_only: false, session })?;
            tx.settle_on(with, &id)?;
        }
        Ok::<_, Error>(tx.sessions(with, olm_key)?.len())
    });
    assert_eq!((before.len(), kept.await.unwrap()), (1, 9));
}

/// What stands in a device's queue.
fn direct_in_queue(world: &World, device: DeviceId) -> Vec<Envelope> {
    let queue = world.relay.queue(&device).into_iter().map(|delivery| delivery.envelope);
    queue.filter(|envelope| matches!(envelope, Envelope::DirectMessage { .. })).collect()
}

/// alice has written to bob, who was away and had no prekey but the fallback one; and what stands in his queue.
async fn written_by_fallback(world: &World) -> (Client, Client, Envelope) {
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let (device, account) = (bob.device_id(), bob.account().account_id);
    bob.know(alice.account().account_id).await.unwrap();
    until("bob's prekeys", async || world.relay.prekeys(&device) == (100, true)).await;
    bob.shutdown().await;
    world.relay.hand_out_prekeys(account, 100);
    alice.direct(account).send("hello").await.unwrap();
    has_sent_all(&alice).await;
    let envelope = direct_in_queue(world, device).remove(0);
    let bob = world.open("bob").await;
    (alice, bob, envelope)
}

#[tokio::test]
async fn a_message_that_begins_a_session_by_a_fallback_prekey_is_taken_once() {
    let world = World::new();
    let (alice, bob, envelope) = written_by_fallback(&world).await;
    let (_, to_alice) = between(&alice, &bob);
    until("the message", async || said(&to_alice).await == ["hello"]).await;
    let again = async |bob: &Client| {
        // Not only the session, but all that was said is forgotten.
        const FORGET: &str =
            "DELETE FROM sessions; DELETE FROM messages; INSERT INTO words (words) VALUES ('delete-all')";
        execute(bob, FORGET).await;
        world.relay.deliver_again(&bob.device_id(), &envelope);
        until("it to be taken", async || world.relay.queue_len(&bob.device_id()) == 0).await;
        said(&to_alice).await
    };
    assert!(again(&bob).await.is_empty());
    assert!(sessions(&bob, &alice).await.is_empty());
    // Without what was remembered it would be taken.
    execute(&bob, "DELETE FROM begun_by_fallback").await;
    assert_eq!(again(&bob).await, ["hello"]);
}

/// alice, bob and mallory, and the conversation of the first two, in which alice has said hello.
async fn three(world: &World) -> (Client, Client, Client, Conversation, Conversation) {
    let (alice, bob, mallory) =
        (world.register("alice").await, world.register("bob").await, world.register("mallory").await);
    let (to_bob, to_alice) = between(&alice, &bob);
    to_bob.send("hello").await.unwrap();
    until("the message", async || said(&to_alice).await == ["hello"]).await;
    (alice, bob, mallory, to_bob, to_alice)
}

fn member(client: &Client) -> Member {
    Member { account: client.account().account_id, device: client.device_id() }
}

#[tokio::test]
async fn who_certifies_the_key_of_another_cannot_pass_on_what_that_one_has_written() {
    let world = World::new();
    let (alice, bob, _, _, to_alice) = three(&world).await;
    let (from, to) = (member(&alice), member(&bob));
    let olm_key = async |client: &Client, of: Member| {
        let listed = client.engine().store.with_tx(move |tx| Ok::<_, Error>(tx.listed(of.account)?.unwrap()));
        listed.await.unwrap().device(of.device).unwrap().olm_key
    };
    // An account whose device bears alice's key, as bob knows it.
    let thief = Identity::create(Entropy::system(), olm_key(&bob, from).await).unwrap();
    let account = Account { account_id: thief.account(), username: None, device_list: thief.device_list().clone() };
    let as_thief = Member { account: thief.account(), device: thief.device() };
    let known = bob.engine().store.with_tx(move |tx| {
        let list = account.device_list.verify(&account.account_id)?;
        tx.set_standing(account.account_id, Standing::Known)?;
        inbox::remember(tx, &account, &list)
    });
    known.await.unwrap();

    // What alice writes begins a session, so that its message could begin one with whoever has her key.
    let prekey = world.relay.hand_out_prekeys(to.account, 1).remove(0);
    let content = Content {
        id: alice.engine().message_id().unwrap(),
        sent_at_ms: 1,
        list_version: 1,
        body: Body::Text { text: "for bob alone".into() },
    };
    let (with, content) = (to.account, content.encode());
    let note = Note { from, to, to_list_version: 1, with, generation: 0, content };
    let of_bob = olm_key(&alice, to).await;
    let message = alice.engine().store.with_tx(move |tx| {
        let mut session = tx.olm_account()?.begin(of_bob, prekey.key)?;
        Ok::<_, Error>(session.encrypt(&note.encode())?)
    });
    let message = message.await.unwrap();
    let key = world.relay.sealing_key(&to.device).unwrap().key;
    let delivered = async |from: Member| {
        let letter = Letter::Session { from, message: message.clone() };
        let ciphertext = envelope::seal(Entropy::system(), key.as_slice(), to.device, &letter, 0).unwrap();
        world.relay.deliver_again(&to.device, &Envelope::DirectMessage { ciphertext });
        until("it to be taken", async || world.relay.queue_len(&to.device) == 0).await;
    };
    delivered(as_thief).await;
    if is_unchecked("note-ends") {
        assert_eq!(said(&bob.direct(as_thief.account)).await, ["for bob alone"]);
        return;
    }
    assert!(said(&bob.direct(as_thief.account)).await.is_empty());
    assert_eq!(said(&to_alice).await, ["hello"]);
    // Nothing is lost by it, not even the prekey.
    delivered(from).await;
    assert_eq!(said(&to_alice).await, ["hello", "for bob alone"]);
}

#[tokio::test]
async fn what_is_said_of_a_device_says_nothing_of_another_accounts_of_the_same_name() {
    let world = World::new();
    let (alice, bob, mallory, to_bob, to_alice) = three(&world).await;
    let before = sessions(&alice, &bob).await;
    // As if mallory had listed a device by the name of bob's, with keys of her own.
    let (device, account) = (bob.device_id(), mallory.account().account_id);
    let key = world.relay.sealing_key(&mallory.device_id()).unwrap();
    let of_mallory = Member { account, device };
    let done = alice.engine().store.with_tx(move |tx| {
        tx.save_seal(of_mallory, &key, 1)?;
        tx.settle_on(of_mallory, "")?;
        let other = Member { account, device: DeviceId::from_random([7; 16]) };
        Ok::<_, Error>(tx.forget_sessions_but(&[other])?)
    });
    done.await.unwrap();
    assert_eq!(sessions(&alice, &bob).await, before);
    to_bob.send("nothing has changed").await.unwrap();
    until("the next", async || said(&to_alice).await.len() == 2).await;
}

#[tokio::test]
async fn what_the_devices_of_a_message_get_does_not_tell_which_has_sent_it() {
    let world = World::new();
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let (to_bob, _) = between(&alice, &bob);
    world.relay.hold_deliveries();
    for text in ["short".to_owned(), "long".repeat(500)] {
        to_bob.send(text).await.unwrap();
        has_sent_all(&alice).await;
    }
    let sizes = |device| -> Vec<usize> {
        let all = direct_in_queue(&world, device).into_iter();
        let size = |envelope| if let Envelope::DirectMessage { ciphertext } = envelope { ciphertext.len() } else { 0 };
        all.map(size).collect()
    };
    let of_alice = sizes(alice.device_id());
    assert_eq!(of_alice, sizes(bob.device_id()));
    assert!(of_alice.len() == 2 && of_alice[0] < of_alice[1]);
}

/// A letter in the name of a device, sealed to another, that no session can read.
async fn garbage(world: &World, from: Member, to: &Client) {
    let key = world.relay.sealing_key(&to.device_id()).unwrap().key;
    let letter = Letter::Session { from, message: unreadable() };
    let ciphertext = envelope::seal(Entropy::system(), key.as_slice(), to.device_id(), &letter, 0).unwrap();
    world.relay.deliver_again(&to.device_id(), &Envelope::DirectMessage { ciphertext });
}

/// A message of a session that nobody has.
fn unreadable() -> SessionMessage {
    let (one, mut other) = (OlmAccount::new(), OlmAccount::new());
    let mut session = one.begin(other.olm_key(), other.make_prekeys(1)[0]).unwrap();
    let first = session.encrypt(b"first").unwrap();
    let (mut session, _) = other.accept(one.olm_key(), &first.read().unwrap()).unwrap();
    session.encrypt(b"second").unwrap()
}

/// How often a device has replaced the sessions with others, and for how many messages it asks or has asked.
async fn healings(client: &Client) -> (u64, u64) {
    const SELECT: &str = "SELECT count(*), coalesce(sum(asked), 0) FROM healings";
    let row = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?));
    let found = client
        .engine()
        .store
        .with_tx(move |tx| Ok::<_, Error>(tx.query_row(SELECT, [], row).map_err(StoreError::from)?));
    found.await.unwrap()
}

#[tokio::test]
async fn a_broken_session_is_replaced_and_what_was_lost_is_sent_again() {
    let world = World::new();
    let (alice, bob, _, to_bob, to_alice) = three(&world).await;
    bob.know(alice.account().account_id).await.unwrap();
    to_alice.send("who is it?").await.unwrap();
    until("the answer", async || said(&to_bob).await.len() == 2).await;
    // Nothing more is on its way, not even a receipt, which would begin another session.
    for conversation in [&to_bob, &to_alice] {
        until("the receipts", async || {
            let history = conversation.history(100, None).await.unwrap();
            history.iter().all(|one| matches!(one.status, MessageStatus::Received | MessageStatus::Delivered { .. }))
        })
        .await;
    }
    has_sent_all(&alice).await;
    has_sent_all(&bob).await;
    let before = sessions(&alice, &bob).await;
    execute(&bob, "DELETE FROM sessions").await;
    for text in ["one", "two", "three"] {
        to_bob.send(text).await.unwrap();
    }
    let all = ["hello", "who is it?", "one", "two", "three"];
    until("what was lost", async || {
        let mut now = said(&to_alice).await;
        now.sort_by_key(|text| all.iter().position(|one| one == text));
        now == all
    })
    .await;
    assert_eq!(said(&to_bob).await, all, "with the author each is there once");
    to_alice.send("again").await.unwrap();
    until("what comes after", async || said(&to_bob).await.len() == 6).await;
    let after = sessions(&alice, &bob).await;
    assert_eq!((after.len(), &after), (1, &sessions(&bob, &alice).await));
    assert_ne!(after, before);
    let (replaced, asked) = healings(&bob).await;
    assert!(replaced == 1 && asked > 0);
    assert_eq!(healings(&alice).await, (0, 0));
    let events = bob.events();
    loop {
        match events.next().await {
            Some(Event::SessionReplaced { with }) => break assert_eq!(with, alice.account()),
            Some(_) => {}
            None => panic!("bob was not told"),
        }
    }
}

#[tokio::test]
async fn whoever_cannot_be_read_is_not_asked_without_end_and_no_stranger_is_asked_at_all() {
    let world = World::new();
    let (alice, bob, mallory, to_bob, to_alice) = three(&world).await;
    // The relay, or anybody else, may say that it is alice who writes. To bob she is new.
    let taken = async || until("it to be taken", async || world.relay.queue_len(&bob.device_id()) == 0).await;
    let before = sessions(&bob, &alice).await;
    garbage(&world, member(&alice), &bob).await;
    garbage(&world, member(&mallory), &bob).await;
    taken().await;
    assert_eq!(healings(&bob).await, (0, 0));
    bob.know(alice.account().account_id).await.unwrap();
    for _ in 0..120 {
        garbage(&world, member(&alice), &bob).await;
    }
    taken().await;
    assert_eq!(healings(&bob).await, (1, 100));
    // alice knows of no such messages. She is heard by the session of before, and answers by the new one.
    to_bob.send("what do you mean?").await.unwrap();
    until("the message", async || said(&to_alice).await == ["hello", "what do you mean?"]).await;
    to_alice.send("nothing").await.unwrap();
    until("the answer", async || said(&to_bob).await.len() == 3).await;
    to_bob.send("well").await.unwrap();
    until("the last word", async || said(&to_alice).await.len() == 4).await;
    let after = sessions(&bob, &alice).await;
    assert!(after == sessions(&alice, &bob).await && after != before);
}
