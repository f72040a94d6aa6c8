//! Direct messages: each arrives once, in the same order for both, whatever happens on the way.

use undertone::{Client, Conversation, Error, Event, MessageId, MessageStatus};

use crate::world::{PATIENCE, World, event, is_sent, online, wait_until};

/// What was said, oldest first.
async fn said(conversation: &Conversation) -> Vec<String> {
    let history = conversation.history(1_000, None).await.unwrap();
    history.iter().map(|message| message.text().to_owned()).collect()
}

async fn has_said(conversation: &Conversation, texts: &[&str]) {
    wait_until(format!("{texts:?}"), async || (said(conversation).await == texts).then_some(())).await;
}

/// The conversation of two people, from both sides.
fn between(one: &Client, other: &Client) -> (Conversation, Conversation) {
    (one.direct(other.account().account_id), other.direct(one.account().account_id))
}

#[tokio::test]
async fn two_people_write_to_each_other() {
    let world = World::new();
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let (to_bob, to_alice) = between(&alice, &bob);
    to_bob.send("hello").await.unwrap();
    has_said(&to_alice, &["hello"]).await;
    to_alice.send("who is it?").await.unwrap();
    has_said(&to_bob, &["hello", "who is it?"]).await;
    for text in ["it is me", "who else"] {
        to_bob.send(text).await.unwrap();
    }
    has_said(&to_alice, &["hello", "who is it?", "it is me", "who else"]).await;
    let history = to_alice.history(10, None).await.unwrap();
    assert_eq!(history[0].from, alice.account());
    assert_eq!(history[0].conversation, alice.account().account_id.into());
    assert_eq!(said(&to_bob).await, said(&to_alice).await);
    assert_eq!(bob.search("me", 10).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_direct_message_is_delivered_and_read() {
    let world = World::new();
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let (to_bob, to_alice) = between(&alice, &bob);
    bob.know(alice.account().account_id).await.unwrap();
    let message = to_bob.send("hello").await.unwrap();
    has_said(&to_alice, &["hello"]).await;
    let status = |wanted| {
        let alice = &alice;
        async move {
            wait_until(format!("{wanted:?}"), async || {
                (alice.message_status(message).await.unwrap() == wanted).then_some(())
            })
            .await;
        }
    };
    status(MessageStatus::Delivered { to: 1, of: 1 }).await;
    to_alice.mark_read(message).await.unwrap();
    status(MessageStatus::Read { by: 1, of: 1 }).await;
}

#[tokio::test]
async fn what_a_stranger_writes_is_a_request() {
    let world = World::new();
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let (to_bob, to_alice) = between(&alice, &bob);
    let message = to_bob.send("hello").await.unwrap();
    let by = event(&bob, |event| if let Event::Requested { by } = event { Some(by) } else { None }).await;
    assert_eq!(by, alice.account());
    has_said(&to_alice, &["hello"]).await;
    let directs = bob.directs().await.unwrap();
    assert_eq!((directs.len(), &directs[0].with, directs[0].requested), (1, &alice.account(), true));
    is_sent(&alice, message).await;
    // To somebody whom he knows he says later what he would have said to her by now.
    let carol = world.register("carol").await;
    let (from_carol, to_carol) = between(&carol, &bob);
    bob.know(carol.account().account_id).await.unwrap();
    let knows = async |message: MessageId| {
        let status = carol.message_status(message).await.unwrap();
        matches!(status, MessageStatus::Delivered { .. }).then_some(())
    };
    let next = from_carol.send("do you know me?").await.unwrap();
    wait_until("carol to be told", async || knows(next).await).await;
    assert_eq!(alice.message_status(message).await.unwrap(), MessageStatus::Sent, "alice was not told that it came");

    // Who is declined asks anew.
    to_alice.decline().await.unwrap();
    to_bob.send("please").await.unwrap();
    has_said(&to_alice, &["hello", "please"]).await;
    assert!(bob.directs().await.unwrap().iter().any(|one| one.with == alice.account() && one.requested));
    let next = from_carol.send("still?").await.unwrap();
    wait_until("carol to be told again", async || knows(next).await).await;
    assert_eq!(alice.message_status(message).await.unwrap(), MessageStatus::Sent);
    has_said(&to_carol, &["do you know me?", "still?"]).await;

    to_alice.accept().await.unwrap();
    assert!(bob.directs().await.unwrap().iter().all(|one| !one.requested));
    wait_until("the receipt", async || {
        (alice.message_status(message).await.unwrap() != MessageStatus::Sent).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_stranger_who_writes_without_end_is_not_kept_without_end() {
    let world = World::new();
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let (to_bob, to_alice) = between(&alice, &bob);
    for number in 0..102 {
        to_bob.send(number.to_string()).await.unwrap();
    }
    let all: Vec<_> = (0..100).map(|number| number.to_string()).collect();
    let mut expected: Vec<_> = all.iter().map(String::as_str).collect();
    assert_eq!(alice.outbox_empty(PATIENCE).await.unwrap(), 0);
    let device = bob.device_id();
    wait_until("all to be taken", async || (world.relay.queue_len(&device) == 0).then_some(())).await;
    has_said(&to_alice, &expected).await;
    // Who is known may write as much as they like.
    to_alice.accept().await.unwrap();
    to_bob.send("thank you").await.unwrap();
    expected.push("thank you");
    has_said(&to_alice, &expected).await;
}

#[tokio::test]
async fn nothing_is_seen_of_who_is_blocked() {
    let world = World::new();
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let (to_bob, to_alice) = between(&alice, &bob);
    bob.block(alice.account().account_id).await.unwrap();
    let message = to_bob.send("hello").await.unwrap();
    is_sent(&alice, message).await;
    let device = bob.device_id();
    wait_until("bob to have taken it", async || (world.relay.queue_len(&device) == 0).then_some(())).await;
    assert!(said(&to_alice).await.is_empty());
    assert!(matches!(to_alice.send("go away").await, Err(Error::Invalid(_))));
    bob.unblock(alice.account().account_id).await.unwrap();
    to_bob.send("are you there?").await.unwrap();
    has_said(&to_alice, &["are you there?"]).await;
}

#[tokio::test]
async fn what_cannot_be_sent_is_refused_at_once() {
    let world = World::new();
    let alice = world.register("alice").await;
    let own = alice.direct(alice.account().account_id);
    assert!(matches!(own.send("to myself").await, Err(Error::Invalid(_))));
    let bob = world.register("bob").await;
    let (to_bob, _) = between(&alice, &bob);
    assert!(matches!(to_bob.send("x".repeat(16 * 1024 + 1)).await, Err(Error::Invalid(_))));
    assert!(matches!(to_bob.send("").await, Err(Error::Invalid(_))));
    to_bob.send("x".repeat(16 * 1024)).await.unwrap();
    let (_, to_alice) = between(&alice, &bob);
    wait_until("the longest message", async || (said(&to_alice).await.len() == 1).then_some(())).await;
}

#[tokio::test]
async fn answers_that_are_lost_and_connections_that_break_repeat_nothing() {
    let world = World::new();
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let (to_bob, to_alice) = between(&alice, &bob);
    let mut texts = vec![];
    for round in 0..10 {
        world.relay.drop_answers(2);
        world.relay.cut_streams();
        for (conversation, who) in [(&to_bob, "alice"), (&to_alice, "bob")] {
            texts.push(format!("{who} {round}"));
            conversation.send(texts.last().unwrap().as_str()).await.unwrap();
        }
    }
    texts.sort();
    for conversation in [&to_bob, &to_alice] {
        wait_until("all messages, each once", async || {
            let mut now = said(conversation).await;
            now.sort();
            (now == texts).then_some(())
        })
        .await;
    }
    wait_until("the same order", async || (said(&to_bob).await == said(&to_alice).await).then_some(())).await;
}

#[tokio::test]
async fn what_was_written_while_both_were_away_goes_out_when_they_are_back() {
    let world = World::new();
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let (to_bob, to_alice) = between(&alice, &bob);
    to_bob.send("one").await.unwrap();
    has_said(&to_alice, &["one"]).await;
    world.relay.go_offline();
    to_bob.send("two").await.unwrap();
    to_alice.send("three").await.unwrap();
    let bob_account = bob.account().account_id;
    alice.shutdown().await;
    world.relay.come_back();
    has_said(&to_alice, &["one", "three"]).await;
    let alice = world.open("alice").await;
    online(&alice).await;
    let to_bob = alice.direct(bob_account);
    wait_until("all on both sides", async || {
        let (one, other) = (said(&to_bob).await, said(&to_alice).await);
        (one.len() == 3 && one == other).then_some(())
    })
    .await;
}
