//! Opening, closing and finding people.

use undertone::{Client, Error, InviteCode, StoreKey};

use crate::world::{World, builder_at, key, online};

#[tokio::test]
async fn a_store_belongs_to_one_account_one_key_and_one_process() {
    let world = World::new();
    let alice = world.register("alice").await;
    let again = builder_at(&world.relay, world.store("alice")).open().await;
    assert!(matches!(again, Err(Error::StoreInUse)));
    alice.shutdown().await;
    let again = builder_at(&world.relay, world.store("alice")).register("alice").await;
    assert!(matches!(again, Err(Error::AlreadyRegistered)));
    let wrong = StoreKey::Passphrase("wrong".into());
    let opened = Client::builder("http://localhost").api(world.relay.connect()).store(world.store("alice"), wrong);
    assert!(matches!(opened.open().await, Err(Error::WrongKey)));
    assert!(matches!(Client::open(world.store("nowhere"), key()).await, Err(Error::NotRegistered)));
    online(&world.open("alice").await).await;
}

#[tokio::test]
async fn a_passphrase_is_never_taken_for_a_raw_key() {
    let world = World::new();
    let at = |key| Client::builder("http://localhost").api(world.relay.connect()).store(world.store("alice"), key);
    let looks_raw = StoreKey::Passphrase(format!("x'{}'", "07".repeat(32)));
    at(looks_raw.clone()).register("alice").await.unwrap().shutdown().await;
    assert!(matches!(at(StoreKey::Raw32([7; 32])).open().await, Err(Error::WrongKey)));
    at(looks_raw).open().await.unwrap().shutdown().await;
    for bad in ["", "a\0b"] {
        assert!(matches!(at(StoreKey::Passphrase(bad.into())).open().await, Err(Error::Invalid(_))));
    }
}

#[tokio::test]
async fn a_registration_whose_answer_was_lost_is_finished_by_trying_again() {
    let world = World::new();
    let registered = async || builder_at(&world.relay, world.store("alice")).register("alice").await;
    // The first two requests ask who the relay is, the third registers.
    for answered in [0, 1, 2] {
        world.relay.drop_answers_after(answered, 1);
        assert!(matches!(registered().await, Err(Error::Offline(_))));
    }
    let alice = registered().await.unwrap();
    assert_eq!(alice.find("alice").await.unwrap(), alice.account());
    let taken = builder_at(&world.relay, world.store("mallory")).register("alice").await;
    assert!(matches!(taken, Err(Error::UsernameTaken)));
}

#[tokio::test]
async fn where_a_relay_asks_for_an_invite_one_registers_with_it() {
    let world = World::new();
    let (good, bad) = (InviteCode::from([1; 16]), InviteCode::from([2; 16]));
    world.relay.invite_only(good, 1);
    let alice = || builder_at(&world.relay, world.store("alice"));
    assert!(matches!(alice().register("alice").await, Err(Error::InviteRequired)));
    assert!(matches!(alice().invite(bad).register("alice").await, Err(Error::InviteRequired)));
    // Whoever lost the answer registers again with the invite that is used up by it.
    world.relay.drop_answers_after(2, 1);
    assert!(matches!(alice().invite(good).register("alice").await, Err(Error::Offline(_))));
    alice().invite(good).register("alice").await.unwrap().shutdown().await;
    let bob = builder_at(&world.relay, world.store("bob")).invite(good).register("bob").await;
    assert!(matches!(bob, Err(Error::InviteRequired)));
}

#[tokio::test]
async fn people_are_found_by_name_and_by_id_and_offline_if_known() {
    let world = World::new();
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    assert_eq!(alice.find("BOB").await.unwrap(), bob.account());
    assert_eq!(alice.find(&bob.account().account_id.to_string()).await.unwrap(), bob.account());
    assert!(matches!(alice.find("not a name").await, Err(Error::Invalid(_))));
    world.relay.go_offline();
    assert_eq!(alice.find("bob").await.unwrap(), bob.account());
    assert!(matches!(alice.find("carol").await, Err(Error::Offline(_))));
}
