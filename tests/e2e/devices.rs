//! People with several devices, by the reference client, at real relays.

use std::collections::BTreeSet;

use tempfile::TempDir;
use undertone_tests::{Backend, Build, Chance, Person, Relay, Running, Store, on_both, seed, take_all};

on_both!(
    devices_that_come_and_go_end_with_the_same_history,
    a_device_linked_in_the_middle_is_in_everything_at_once,
    a_code_of_somebody_else_or_used_before_links_nothing,
    a_removed_device_is_refused_by_every_node_and_left_out_by_all,
    an_account_is_won_back_from_a_thief,
);

/// How many messages each side writes.
fn messages() -> usize {
    if std::env::var_os("TEST_SOAK").is_some() { 200 } else { 30 }
}

/// A relay, and the folder of the people there.
struct Place {
    folder: TempDir,
    store: Store,
    url: String,
    _relay: Relay,
}

impl Place {
    async fn new(backend: Backend) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path(), backend).await;
        let relay = Relay::start(&store, Build::Workspace).await;
        Self { folder, store, url: relay.url(), _relay: relay }
    }

    fn person(&self, name: &str) -> Person {
        Person::new(self.folder.path(), name)
    }

    async fn register(&self, name: &str) -> Person {
        Person::register(self.folder.path(), name, &self.url).await
    }

    async fn link(&self, of: &Person, name: &str) -> Person {
        of.link(self.folder.path(), name, &self.url).await
    }
}

async fn texts(person: &Person, with: &str) -> Vec<String> {
    person.history(with).await.into_iter().map(|(_, text)| text).collect()
}

async fn devices_that_come_and_go_end_with_the_same_history(backend: Backend) {
    let place = Place::new(backend).await;
    let store = &place.store;
    let alice = place.register("alice").await;
    let bob = place.register("bob").await;
    let phone = place.link(&alice, "alices-phone").await;
    let mut of_bob = vec![bob.clone()];
    for name in ["bobs-phone", "bobs-tablet"] {
        of_bob.push(place.link(&bob, name).await);
    }
    // That these were sent is told once more by the first chat.
    let mut sent = BTreeSet::new();
    sent.insert(alice.ok(&["send", "@bob", "first"]).await[0]["message_id"].to_string());
    bob.ok(&["sync"]).await;
    sent.insert(bob.ok(&["send", "@alice", "second"]).await[0]["message_id"].to_string());

    let devices: Vec<_> = [alice, phone].into_iter().map(|one| (one, "@bob")).collect();
    let devices: Vec<_> = devices.into_iter().chain(of_bob.into_iter().map(|one| (one, "@alice"))).collect();
    let seed = seed();
    println!("TEST_SEED={seed}");
    let mut chance = Chance::new(seed);
    // Each device is there or not; who is writes in turn, and now and then one goes without a word.
    let mut running: Vec<Option<Running>> = devices.iter().map(|_| None).collect();
    let mut written = vec!["first".to_owned(), "second".to_owned()];
    for number in 0..messages() {
        for side in [&[0, 1][..], &[2, 3, 4]] {
            let at = side[chance.index(side.len())];
            let (device, with) = &devices[at];
            if chance.one_in(6)
                && let Some(chat) = running[at].take()
            {
                chat.kill().await;
            }
            let text = format!("{number} by {}", device.name);
            let chat = running[at].get_or_insert_with(|| device.start(&["chat", with]));
            chat.type_line(&text).await;
            // The message is there for certain; whatever else the device was about to do may be cut short. Of an earlier
            // message it may be told again.
            loop {
                let line = chat.line(|line| line.contains(r#""status":"sent""#)).await;
                let status: serde_json::Value = serde_json::from_str(&line).unwrap();
                if sent.insert(status["message_id"].to_string()) {
                    break;
                }
            }
            written.push(text);
        }
    }
    for (at, mut chat) in running.into_iter().enumerate().filter_map(|(at, chat)| Some((at, chat?))) {
        chat.end_input();
        let (status, rest) = chat.end().await;
        assert!(status.success(), "{}: {rest:?}", devices[at].0.name);
    }
    let people: Vec<_> = devices.iter().map(|(device, _)| device).collect();
    take_all(store, &people).await;
    let of_alice = texts(&devices[0].0, "@bob").await;
    for (device, with) in &devices[1..] {
        let here = texts(device, with).await;
        let skip = of_alice.iter().position(|text| Some(text) == here.first()).unwrap();
        assert_eq!(here, of_alice[skip..], "{}", device.name);
    }
    let missing: Vec<_> = written.iter().filter(|text| !of_alice.contains(text)).collect();
    assert!(missing.is_empty(), "of all devices nobody has {missing:?}");
    assert_eq!(of_alice.len(), written.len());
    assert_eq!(store.number("SELECT COUNT(*) FROM envelopes").await, 0, "what was delivered is gone");
}

async fn a_device_linked_in_the_middle_is_in_everything_at_once(backend: Backend) {
    let place = Place::new(backend).await;
    let store = &place.store;
    let alice = place.register("alice").await;
    let bob = place.register("bob").await;
    alice.ok(&["group", "create", "trip", "--add", "bob"]).await;
    alice.ok(&["group", "create", "later", "--add", "bob", "--post-quantum"]).await;
    bob.ok(&["sync"]).await;
    for group in ["trip", "later"] {
        bob.ok(&["group", "accept", group]).await;
        alice.ok(&["send", group, "before"]).await;
    }
    alice.ok(&["send", "@bob", "before"]).await;
    let phone = place.link(&alice, "phone").await;
    let numbers = [alice.ok(&["safety-number", "bob"]).await, phone.ok(&["safety-number", "bob"]).await];
    let of_bob = bob.ok(&["safety-number", "alice"]).await;
    assert!(numbers.iter().all(|of_alice| *of_alice == of_bob), "{numbers:?} {of_bob:?}");
    assert_eq!(of_bob[0]["safety_number"].as_str().unwrap().len(), 60);

    phone.ok(&["sync"]).await;
    phone.ok(&["send", "trip", "from the phone"]).await;
    phone.ok(&["send", "later", "from the phone"]).await;
    phone.ok(&["send", "@bob", "from the phone"]).await;
    bob.ok(&["sync"]).await;
    bob.ok(&["send", "trip", "an answer"]).await;
    bob.ok(&["send", "later", "an answer"]).await;
    bob.ok(&["send", "@alice", "an answer"]).await;
    take_all(store, &[&alice, &phone, &bob]).await;
    for (conversation, of_bob) in [("trip", "trip"), ("later", "later"), ("@bob", "@alice")] {
        let all = ["before", "from the phone", "an answer"];
        assert_eq!(texts(&alice, conversation).await, all, "{conversation}");
        assert_eq!(texts(&bob, of_bob).await, all, "{conversation}");
        assert_eq!(texts(&phone, conversation).await, all[1..], "{conversation}");
    }
    assert_eq!(phone.ok(&["group", "show", "later"]).await[0]["post_quantum"], true);
    let devices = phone.ok(&["devices", "list"]).await;
    let named = |name: &str| devices.iter().find(|one| one["name"] == name).unwrap();
    assert_eq!((devices.len(), &named("phone")["this"]), (2, &true.into()));
}

async fn a_code_of_somebody_else_or_used_before_links_nothing(backend: Backend) {
    let place = Place::new(backend).await;
    let url = &place.url;
    let alice = place.register("alice").await;
    let mallory = place.register("mallory").await;
    let code = async |linking: &mut Running| {
        let line: serde_json::Value = serde_json::from_str(&linking.line(|line| line.contains("code")).await).unwrap();
        line["code"].as_str().unwrap().to_owned()
    };
    let phone = place.person("phone");
    // A stranger has seen the code, and approves it.
    let account = alice.ok(&["whoami"]).await[0]["account_id"].as_str().unwrap().to_owned();
    let mut linking = phone.start(&["link", "--relay", url, "--account", &account]);
    let shown = code(&mut linking).await;
    let approving = mallory.run(&["link", "approve", &shown]).await;
    assert_eq!(approving.status.code(), Some(1));
    assert!(approving.stderr.contains("does not want to belong to this account"), "{}", approving.stderr);
    assert_eq!(linking.end().await.0.code(), Some(1));
    // What is no code, or is over.
    for (code, says) in [("ABCD", "not the code"), (&shown, "already")] {
        let approving = alice.run(&["link", "approve", code]).await;
        assert_eq!(approving.status.code(), Some(1));
        assert!(approving.stderr.contains(says), "{}", approving.stderr);
    }
    assert_eq!(alice.ok(&["devices", "list"]).await.len(), 1);
    let phone = place.link(&alice, "phone").await;
    assert_eq!(phone.ok(&["whoami"]).await[0]["account_id"], alice.ok(&["whoami"]).await[0]["account_id"]);
}

async fn a_removed_device_is_refused_by_every_node_and_left_out_by_all(backend: Backend) {
    let place = Place::new(backend).await;
    let store = &place.store;
    let alice = place.register("alice").await;
    let bob = place.register("bob").await;
    let phone = place.link(&alice, "phone").await;
    alice.ok(&["group", "create", "trip", "--add", "bob"]).await;
    phone.ok(&["sync"]).await;
    bob.ok(&["sync"]).await;
    bob.ok(&["group", "accept", "trip"]).await;
    phone.ok(&["send", "trip", "I am there"]).await;
    take_all(store, &[&alice, &phone, &bob]).await;
    let commits = "SELECT MAX(commit_seq) FROM groups";
    let before = store.number(commits).await;

    let device = phone.ok(&["whoami"]).await[0]["device_id"].as_str().unwrap().to_owned();
    let mut listening = phone.start(&["listen", "--for", "600"]);
    listening.line(|line| line.contains("online")).await;
    alice.ok(&["devices", "remove", &device]).await;
    let (status, rest) = listening.end().await;
    assert_eq!(status.code(), Some(1), "{rest:?}");
    for args in [&["sync"][..], &["send", "@bob", "still there"], &["devices", "list"], &["safety-number", "bob"]] {
        let done = phone.run(args).await;
        assert_ne!(done.status.code(), Some(0), "{args:?}");
    }
    let hex = if store.url().is_some() { "upper(encode(device_id, 'hex'))" } else { "hex(device_id)" };
    let of_device = format!("{hex} = '{}'", device.replace('-', "").to_uppercase());
    for table in ["devices", "sessions", "key_packages", "queue", "cursors"] {
        assert_eq!(store.number(&format!("SELECT COUNT(*) FROM {table} WHERE {of_device}")).await, 0, "{table}");
    }
    const MEMBERS: &str = "SELECT COUNT(*) FROM group_members WHERE ended_commit IS NULL AND awaits_removal = 0";
    assert_eq!(store.number(MEMBERS).await, 2);
    bob.ok(&["sync"]).await;
    bob.ok(&["send", "trip", "without the phone"]).await;
    alice.ok(&["sync"]).await;
    assert_eq!(texts(&alice, "trip").await, ["I am there", "without the phone"]);
    assert!(store.number(commits).await > before, "its leaf was removed before");
    assert_eq!(texts(&phone, "trip").await, ["I am there"]);
}

async fn an_account_is_won_back_from_a_thief(backend: Backend) {
    let place = Place::new(backend).await;
    let url = &place.url;
    let alice = place.register("alice").await;
    let bob = place.register("bob").await;
    let text = |lines: &[serde_json::Value], field: &str| lines[0][field].as_str().unwrap().to_owned();
    let number = async |person: &Person, with: &str| text(&person.ok(&["safety-number", with]).await, "safety_number");
    alice.ok(&["send", "@bob", "hello"]).await;
    bob.ok(&["sync"]).await;
    bob.ok(&["send", "@alice", "hello yourself"]).await;
    bob.ok(&["verify", "alice"]).await;
    let first = number(&bob, "alice").await;

    // A phone is stolen, and left behind with its identity key.
    let phone = place.link(&alice, "phone").await;
    let stolen = text(&phone.ok(&["whoami"]).await, "device_id");
    alice.ok(&["devices", "remove", &stolen, "--stolen"]).await;
    assert_eq!(phone.run(&["sync"]).await.status.code(), Some(1));
    alice.ok(&["send", "@bob", "my phone was stolen"]).await;
    let events = bob.ok(&["listen", "--count", "1", "--for", "60"]).await;
    bob.ok(&["sync"]).await;
    let later = bob.ok(&["listen", "--for", "1"]).await;
    let changed = events.iter().chain(&later).find(|event| event["event"] == "identity_changed");
    assert_eq!(changed.unwrap()["username"], "alice");
    let second = number(&bob, "alice").await;
    assert_ne!(second, first);
    assert_eq!(second, number(&alice, "bob").await);

    // With a recovery key, a thief who has a device can do nothing that lasts.
    let key = text(&alice.ok(&["recovery-key"]).await, "recovery_key");
    let tablet = place.link(&alice, "tablet").await;
    let of_alice = text(&alice.ok(&["whoami"]).await, "device_id");
    let refused = tablet.run(&["devices", "remove", &of_alice, "--stolen"]).await;
    assert_eq!(refused.status.code(), Some(1));
    assert!(refused.stderr.contains("recovery key"), "{}", refused.stderr);
    tablet.ok(&["devices", "remove", &of_alice]).await;
    assert_eq!(alice.run(&["sync"]).await.status.code(), Some(1));
    let new = place.person("new");
    let wrong = new.run(&["recover", "ABCD", "--relay", url]).await;
    assert_eq!(wrong.status.code(), Some(1));
    let recovered = new.ok(&["recover", &key, "--relay", url, "--name", "new"]).await;
    assert_eq!(recovered[0]["username"], "alice");
    assert_eq!(tablet.run(&["sync"]).await.status.code(), Some(1));
    assert_eq!(new.ok(&["devices", "list"]).await.len(), 1);
    new.ok(&["send", "@bob", "I am back"]).await;
    bob.ok(&["sync"]).await;
    assert_eq!(texts(&bob, "@alice").await.last().unwrap(), "I am back");
    bob.ok(&["send", "@alice", "welcome"]).await;
    new.ok(&["sync"]).await;
    assert_eq!(texts(&new, "@bob").await, ["I am back", "welcome"]);
    assert_eq!(number(&bob, "alice").await, number(&new, "bob").await);
}
