//! What is secret is nowhere it should not be: not in the relay's database, write-ahead log and logs, and not readable
//! in a client's files.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use sqlx::{
    Connection as _, Row as _,
    sqlite::{SqliteConnectOptions, SqliteConnection},
};
use undertone_tests::{Backend, Build, Person, Relay, Store, containing, copy_folder, on_both};

const TEXT: &str = "the snow is deep at the pass";
const GROUP: &str = "a name for friends only";
const PASSPHRASE: &str = "correct horse battery staple";

on_both!(secrets_are_nowhere_they_should_not_be);

async fn secrets_are_nowhere_they_should_not_be(backend: Backend) {
    let folder = tempfile::tempdir().unwrap();
    // Alone: all files of the cluster are looked through, and nobody else writes to them.
    let (store, cluster) = Store::alone(folder.path(), backend).await;
    let mut relay = Relay::start(&store, Build::Workspace).await;
    let bob = Person::register(folder.path(), "bob", &relay.url()).await;
    let alice = Person::new(folder.path(), "alice");
    for args in [
        ["register", "--relay", &relay.url(), "--username", "alice"].as_slice(),
        &["group", "create", GROUP, "--add", "bob"],
        &["send", GROUP, TEXT],
    ] {
        let done = alice.command(args).env("UNDERTONE_PASSPHRASE", PASSPHRASE).output().await.unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }
    bob.ok(&["listen", "--count", "1", "--for", "60"]).await;
    assert_eq!(bob.history(GROUP).await.len(), 1);

    let mut secrets: Vec<Vec<u8>> = [TEXT, GROUP, PASSPHRASE].map(|text| text.as_bytes().to_vec()).into();
    for key in private_keys(&bob).await {
        secrets.extend(forms(&key));
    }
    // While it runs, the files hold more than after it has stopped.
    let relay_files = folder.path().join("relay-files");
    match &cluster {
        None => copy_folder(&store.data(), &relay_files),
        Some(cluster) => {
            assert!(!store.data().exists(), "nothing is written beside the database");
            store.change("CHECKPOINT").await;
            copy_folder(cluster.dir(), &relay_files);
        }
    }
    std::fs::copy(relay.log(), relay_files.join("relay-log")).unwrap();
    assert!(std::fs::metadata(relay_files.join("relay-log")).unwrap().len() > 1_000, "the log was kept at trace level");
    assert!(!containing(&relay_files, b"alice").is_empty(), "the relay does know usernames");
    for secret in &secrets {
        for place in [relay_files.as_path(), &alice.store(), &bob.store()] {
            assert_eq!(containing(place, secret), Vec::<PathBuf>::new(), "in {}", place.display());
        }
    }
    relay.stop().await;
    let log = std::fs::read_to_string(relay.log()).unwrap();
    assert!(!log.contains("alice") && !log.contains("bob"), "the log names nobody");
}

/// The private keys in a store, read with its key.
async fn private_keys(person: &Person) -> Vec<[u8; 32]> {
    let key = store_key(&person.home().join("config"));
    let options = SqliteConnectOptions::new()
        .filename(person.store().join("undertone.db"))
        .pragma("key", format!("\"x'{key}'\""))
        .read_only(true);
    let mut database = SqliteConnection::connect_with(&options).await.unwrap();
    let row = sqlx::query("SELECT identity FROM profile").fetch_one(&mut database).await.unwrap();
    let identity: BTreeMap<String, ciborium::Value> = ciborium::from_reader(row.get::<&[u8], _>(0)).unwrap();
    ["identity_seed", "device_seed", "mls_seed"].map(|name| identity[name].deserialized().unwrap()).into()
}

/// The key file below the configuration folder: hex digits.
fn store_key(config: &Path) -> String {
    let mut folders = vec![config.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let text = std::fs::read_to_string(path).unwrap();
                let text = text.trim();
                if text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                    return text.to_owned();
                }
            }
        }
    }
    panic!("no key file");
}

/// A key as it could stand in a file: raw, in hex, and as a list of numbers in CBOR and in text.
fn forms(key: &[u8; 32]) -> Vec<Vec<u8>> {
    let hex: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
    let list = key.map(|byte| byte.to_string());
    let mut cbor = Vec::new();
    ciborium::into_writer(key, &mut cbor).unwrap();
    let texts = [hex.to_uppercase(), hex, list.join(","), list.join(", ")];
    texts.into_iter().map(String::into_bytes).chain([key.to_vec(), cbor]).collect()
}
