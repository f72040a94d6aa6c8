//! A device's store that was restored from a copy, through a real relay.

use std::fs;

use undertone_tests::{Backend, Build, Person, Relay, Store, copy_folder, on_both, wait_until};

on_both!(a_restored_store_says_so_and_goes_on_with_new_keys,);

async fn a_restored_store_says_so_and_goes_on_with_new_keys(backend: Backend) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::new(folder.path(), backend).await;
    let relay = Relay::start(&store, Build::Workspace).await;
    let alice = Person::register(folder.path(), "alice", &relay.url()).await;
    let bob = Person::register(folder.path(), "bob", &relay.url()).await;
    alice.ok(&["group", "create", "trip", "--add", "bob"]).await;
    alice.ok(&["sync"]).await;
    copy_folder(alice.home(), &folder.path().join("backup"));
    alice.ok(&["send", "trip", "after the backup"]).await;
    bob.ok(&["send", "trip", "I see"]).await;
    alice.ok(&["sync"]).await;
    fs::remove_dir_all(alice.home()).unwrap();
    fs::rename(folder.path().join("backup"), alice.home()).unwrap();

    let mut told = Vec::new();
    wait_until("alice to be back", async || {
        told.extend(alice.ok(&["listen", "--for", "1"]).await.iter().map(|event| event["event"].clone()));
        told.contains(&"recovered".into()).then_some(())
    })
    .await;
    assert!(told.contains(&"store_copied".into()) && told.contains(&"missed".into()), "{told:?}");
    alice.ok(&["send", "trip", "I am back"]).await;
    wait_until("bob to read it", async || {
        bob.ok(&["sync"]).await;
        bob.history("trip").await.contains(&("alice".into(), "I am back".into())).then_some(())
    })
    .await;
    // Opened once more it is no copy.
    let told = alice.ok(&["listen", "--for", "1"]).await;
    assert!(told.iter().all(|event| event["event"] != "store_copied"), "{told:?}");
}
