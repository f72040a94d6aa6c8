//! A relay whose host is hostile: between two of its lives he changes what it has stored, and it says what he wants. What a
//! client then sends fails with an error of its own, reaches nobody whom the host has chosen, and arrives once the relay is
//! honest again.
//!
//! `tests/unchecked/run` takes out each check in turn, and shows by these tests that he succeeds then.

use tempfile::TempDir;
use undertone::{
    Client, ClientBuilder, Connection, Conversation, Error, Event, MessageId, MessageStatus, SendFailure, StoreAt,
    StoreKey,
};
use undertone_test_crowd::{PATIENCE, online, texts, wait_until};
use undertone_tests::{Backend, Build, Relay, Store, on_both};
use undertone_wire::{
    DeviceEntry, DeviceId, DeviceList, Encoding, Hash, KeySet, Prekey, SealingKey, SignedDeviceList, suite,
};

on_both!(
    a_device_that_the_relay_adds_is_not_written_to,
    a_removed_device_is_not_written_to_by_an_older_list,
    a_list_that_is_withheld_is_asked_for_until_it_comes,
    keys_of_another_device_begin_nothing,
    ciphertexts_that_are_swapped_or_come_again_change_nothing,
);

/// The host, and those who use his relay.
struct Host {
    folder: TempDir,
    store: Store,
    relay: Relay,
}

impl Host {
    async fn new(backend: Backend) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path(), backend).await;
        let relay = Relay::start(&store, Build::Workspace).await;
        Self { folder, store, relay }
    }

    fn builder(&self, name: &str) -> ClientBuilder<StoreAt> {
        Client::builder(self.relay.url()).store(self.folder.path().join(name), StoreKey::Raw32([7; 32]))
    }

    async fn register(&self, name: &str) -> Client {
        let client = self.builder(name).register(name).await.unwrap();
        self.has_keys(&client).await;
        client
    }

    /// Another device of somebody's.
    async fn link(&self, name: &str, by: &Client) -> Client {
        let linking = self.builder(name).link(name).await.unwrap();
        let (code, by) = (linking.code(), by.clone());
        let approving = tokio::spawn(async move { by.approve_link(&code).await });
        let linked = linking.approved().await.unwrap().join().await.unwrap();
        approving.await.unwrap().unwrap();
        self.has_keys(&linked).await;
        linked
    }

    /// Waits until a device can be written to.
    async fn has_keys(&self, client: &Client) {
        let device = self.device(client);
        for suite in [suite::PREKEY, suite::SEALING] {
            let published = format!("SELECT COUNT(*) FROM key_packages WHERE device_id = {device} AND suite = {suite}");
            wait_until("keys to be published", async || (self.store.number(&published).await > 0).then_some(())).await;
        }
    }

    /// Bytes, as they stand in a statement.
    fn bytes(&self, bytes: &[u8]) -> String {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        match self.store.backend() {
            Backend::Sqlite => format!("x'{hex}'"),
            Backend::Postgres => format!("'\\x{hex}'::bytea"),
        }
    }

    /// A client's account, as it stands in a statement.
    fn account(&self, client: &Client) -> String {
        self.bytes(client.account().account_id.as_bytes())
    }

    /// A client's device, as it stands in a statement.
    fn device(&self, client: &Client) -> String {
        self.bytes(client.device_id().as_bytes())
    }

    /// Changes what is stored, and has everybody back.
    async fn change(&mut self, statements: &str, everybody: &[&Client]) {
        self.relay.stop().await;
        for client in everybody {
            wait_until("to be offline", async || (client.connection() == Connection::Offline).then_some(())).await;
        }
        self.store.change(statements).await;
        self.relay.restart().await;
        for client in everybody {
            if client.connection() == Connection::Offline {
                client.network_changed();
            }
            online(client).await;
        }
    }

    /// The newest list of a client's account.
    async fn list(&self, client: &Client) -> SignedDeviceList {
        let column = async |name| {
            let of = self.account(client);
            self.store.blobs(&format!("SELECT {name} FROM device_lists WHERE account_id = {of}")).await.remove(0)
        };
        let signature = column("signature").await.as_slice().try_into().unwrap();
        SignedDeviceList { list: column("list").await.into(), signature }
    }

    /// The statement that has the relay serve a list.
    fn serve(&self, signed: &SignedDeviceList) -> String {
        let list = decoded(signed);
        let (account, version) = (self.bytes(list.account.as_bytes()), list.version);
        let (list, signature) = (self.bytes(signed.list.as_slice()), self.bytes(signed.signature.as_bytes()));
        format!(
            "UPDATE device_lists SET version = {version}, list = {list}, signature = {signature}
             WHERE account_id = {account};"
        )
    }

    /// The statement after which the relay has another device with the account, device key and certificate of `like`.
    fn adopt(&self, device: &str, like: &str) -> String {
        format!(
            "INSERT INTO devices (device_id, account_id, device_key, certificate_hash)
             SELECT {device}, account_id, device_key, certificate_hash FROM devices WHERE device_id = {like};
             INSERT INTO cursors (device_id, next_seq, acked_seq, stream)
             SELECT {device}, 1, 0, stream FROM cursors WHERE device_id = {like};"
        )
    }

    /// The statement that keeps a device's keys aside.
    fn keep_keys(&self, device: &str) -> String {
        format!("CREATE TABLE kept AS SELECT * FROM key_packages WHERE device_id = {device};")
    }

    /// The statement after which a removed device, whose keys were kept, can be written to again.
    fn readmit(&self, device: &str, sibling: &Client) -> String {
        self.adopt(device, &self.device(sibling))
            + "INSERT INTO key_packages SELECT * FROM kept WHERE key_package IS NOT NULL;"
    }

    /// The statement after which it has the device no more.
    fn disown(&self, device: &str) -> String {
        ["key_packages", "cursors", "devices"]
            .map(|of| format!("DELETE FROM {of} WHERE device_id = {device};"))
            .concat()
    }

    /// The statement after which a device whose device key has this seed has the same prekey and sealing key as `like`.
    async fn publish_as(&self, device: DeviceId, seed: &[u8; 32], like: &Client) -> String {
        let (id, like) = (self.bytes(device.as_bytes()), self.device(like));
        let of = |suite| format!("FROM key_packages WHERE device_id = {like} AND suite = {suite} AND last_resort = 1");
        let published = async |suite| self.store.blobs(&format!("SELECT key_package {}", of(suite))).await.remove(0);
        let insert = |suite, key: Vec<u8>| {
            let (name, key) = (self.bytes(Hash::of(&key).as_bytes()), self.bytes(&key));
            format!(
                "INSERT INTO key_packages
                 SELECT {name}, {id}, suite, last_resort, not_after_ms, incarnation, {key} {};",
                of(suite)
            )
        };
        let prekey: Prekey = Encoding::Cbor.decode(&published(suite::PREKEY).await).unwrap();
        let prekey = Prekey::sign(device, prekey.key, prekey.not_after_ms, true, seed);
        let sealing: SealingKey = Encoding::Cbor.decode(&published(suite::SEALING).await).unwrap();
        let sealing = SealingKey::sign(device, sealing.key, sealing.not_after_ms, seed);
        insert(suite::PREKEY, Encoding::Cbor.encode(&prekey)) + &insert(suite::SEALING, Encoding::Cbor.encode(&sealing))
    }

    /// How much waits for a device.
    async fn waiting(&self, device: &str) -> i64 {
        self.store.number(&format!("SELECT COUNT(*) FROM queue WHERE device_id = {device}")).await
    }
}

fn decoded(signed: &SignedDeviceList) -> DeviceList {
    Encoding::Cbor.decode(signed.list.as_slice()).unwrap()
}

/// How one writes to another, and reads what the other has written.
fn between(one: &Client, other: &Client) -> Conversation {
    one.direct(other.account().account_id)
}

/// Writes what arrives, of which the author hears.
async fn hears(from: &Client, to: &Client, text: &str) {
    let id = between(from, to).send(text).await.unwrap();
    arrives(from, to, text).await;
    between(to, from).accept().await.unwrap();
    wait_until("it to be confirmed", async || {
        let status = from.message_status(id).await.unwrap();
        matches!(status, MessageStatus::Delivered { .. }).then_some(())
    })
    .await;
}

async fn arrives(from: &Client, to: &Client, text: &str) {
    let here = between(to, from);
    wait_until(text, async || texts(&here).await.iter().any(|one| one == text).then_some(())).await;
}

/// Whether this check is taken out of the client, so that the host is to succeed.
fn is_unchecked(check: &str) -> bool {
    std::env::var_os("TEST_UNCHECKED").is_some_and(|unchecked| unchecked == check)
}

/// Writes what fails since the relay says what does not verify; or what goes where the host wants it, without this check.
async fn fails_untrusted(check: &str, from: &Client, to: &Client, text: &str) -> Option<MessageId> {
    let id = between(from, to).send(text).await.unwrap();
    let settled = from.message_settled(id, PATIENCE).await.unwrap();
    if is_unchecked(check) {
        assert!(settled.is_sent(), "{settled:?}");
        return None;
    }
    assert_eq!(settled, MessageStatus::Failed(SendFailure::Untrusted));
    Some(id)
}

/// Sends again what has failed, now that the relay is honest.
async fn sends_again(id: MessageId, from: &Client, to: &Client, text: &str) {
    between(from, to).retry(id).await.unwrap();
    arrives(from, to, text).await;
}

async fn a_device_that_the_relay_adds_is_not_written_to(backend: Backend) {
    let mut host = Host::new(backend).await;
    let (alice, bob) = (host.register("alice").await, host.register("bob").await);
    let honest = host.list(&bob).await;
    let (spy, seed) = (DeviceId::from_random([0xEE; 16]), [9; 32]);
    let mut list = decoded(&honest);
    let keys = KeySet { device_key: undertone_wire::public_key(&seed), olm_key: [5; 32].into() };
    (list.version, list.previous) = (list.version + 1, Some(honest.hash()));
    list.devices.push(DeviceEntry::issue(list.account, &seed, spy, &keys, &seed));
    list.devices.sort_by_key(|entry| entry.certificate.unverified().unwrap().device);
    let published = host.publish_as(spy, &seed, &bob).await;
    let spy = host.bytes(spy.as_bytes());
    let added = host.serve(&SignedDeviceList::sign(&list, &seed)) + &host.adopt(&spy, &host.device(&bob)) + &published;
    host.change(&added, &[&alice, &bob]).await;
    let Some(hello) = fails_untrusted("list-signature", &alice, &bob, "hello").await else {
        assert!(host.waiting(&spy).await > 0, "it is for the spy too");
        return;
    };
    let found = alice.find("bob").await;
    assert!(matches!(found, Err(Error::Untrusted(_))), "{found:?}");
    assert_eq!(host.waiting(&spy).await, 0);
    host.change(&(host.serve(&honest) + &host.disown(&spy)), &[&alice, &bob]).await;
    sends_again(hello, &alice, &bob, "hello").await;
}

async fn a_removed_device_is_not_written_to_by_an_older_list(backend: Backend) {
    let mut host = Host::new(backend).await;
    let (alice, bob) = (host.register("alice").await, host.register("bob").await);
    let phone = host.link("phone", &bob).await;
    let (stolen, with) = (host.device(&phone), host.list(&bob).await);
    let keep = host.keep_keys(&stolen);
    host.change(&keep, &[&alice, &bob, &phone]).await;
    bob.remove_device(phone.device_id()).await.unwrap();
    let without = host.list(&bob).await;
    hears(&alice, &bob, "hello").await;
    let back = host.serve(&with) + &host.readmit(&stolen, &bob);
    host.change(&back, &[&alice, &bob]).await;
    let Some(secret) = fails_untrusted("list-version", &alice, &bob, "a secret").await else {
        assert!(host.waiting(&stolen).await > 0, "it is for the thief too");
        return;
    };
    assert_eq!(host.waiting(&stolen).await, 0);
    host.change(&(host.serve(&without) + &host.disown(&stolen)), &[&alice, &bob]).await;
    sends_again(secret, &alice, &bob, "a secret").await;
}

async fn a_list_that_is_withheld_is_asked_for_until_it_comes(backend: Backend) {
    let mut host = Host::new(backend).await;
    let (alice, bob) = (host.register("alice").await, host.register("bob").await);
    let phone = host.link("phone", &bob).await;
    let (stolen, with) = (host.device(&phone), host.list(&bob).await);
    hears(&alice, &bob, "hello").await;
    let keep = host.keep_keys(&stolen);
    host.change(&keep, &[&alice, &bob, &phone]).await;
    bob.remove_device(phone.device_id()).await.unwrap();
    let without = host.list(&bob).await;
    // Only bob knows, until he writes.
    host.change(&host.serve(&with), &[&alice, &bob]).await;
    let events = alice.events();
    between(&bob, &alice).send("I have other devices now").await.unwrap();
    arrives(&bob, &alice, "I have other devices now").await;
    host.change(&host.readmit(&stolen, &bob), &[&alice, &bob]).await;
    let Some(secret) = fails_untrusted("list-withheld", &alice, &bob, "a secret").await else {
        assert!(host.waiting(&stolen).await > 0, "it is for the thief too");
        return;
    };
    assert_eq!(host.waiting(&stolen).await, 0);
    let stale = async {
        loop {
            match events.next().await {
                Some(Event::StaleDeviceList { account }) => return account,
                Some(_) => {}
                None => panic!("the client has ended"),
            }
        }
    };
    assert_eq!(tokio::time::timeout(PATIENCE, stale).await.unwrap(), bob.account());
    host.change(&(host.serve(&without) + &host.disown(&stolen)), &[&alice, &bob]).await;
    sends_again(secret, &alice, &bob, "a secret").await;
}

async fn keys_of_another_device_begin_nothing(backend: Backend) {
    let mut host = Host::new(backend).await;
    let (alice, bob, carol) = (host.register("alice").await, host.register("bob").await, host.register("carol").await);
    let both = [("prekey", suite::PREKEY, &bob, &carol), ("sealing-key", suite::SEALING, &carol, &bob)];
    for (check, suite, to, other) in both {
        let (owner, other_owner) = (host.device(to), host.device(other));
        let swap = format!(
            "CREATE TABLE kept_{suite} AS SELECT * FROM key_packages WHERE device_id = {owner} AND suite = {suite};
             UPDATE key_packages SET key_package = (SELECT key_package FROM key_packages
                 WHERE device_id = {other_owner} AND suite = {suite} AND last_resort = 1)
             WHERE device_id = {owner} AND suite = {suite};"
        );
        host.change(&swap, &[&alice, &bob, &carol]).await;
        let Some(hello) = fails_untrusted(check, &alice, to, "hello").await else {
            wait_until("it to be taken", async || (host.waiting(&owner).await == 0).then_some(())).await;
            assert!(texts(&between(to, &alice)).await.is_empty(), "only who has that key reads it");
            return;
        };
        let undo = format!(
            "DELETE FROM key_packages WHERE device_id = {owner} AND suite = {suite};
             INSERT INTO key_packages SELECT * FROM kept_{suite};"
        );
        host.change(&undo, &[&alice, &bob, &carol]).await;
        sends_again(hello, &alice, to, "hello").await;
    }
}

async fn ciphertexts_that_are_swapped_or_come_again_change_nothing(backend: Backend) {
    let mut host = Host::new(backend).await;
    let (alice, bob, carol) = (host.register("alice").await, host.register("bob").await, host.register("carol").await);
    for client in [&bob, &carol] {
        hears(&alice, client, "first").await;
        hears(client, &alice, "yes?").await;
    }
    assert_eq!(alice.outbox_empty(PATIENCE).await.unwrap(), 0);
    let (bobs, carols, of_alice) = (host.device(&bob), host.device(&carol), alice.account().account_id);
    wait_until("all to be taken", async || (host.store.number("SELECT COUNT(*) FROM queue").await == 0).then_some(()))
        .await;
    bob.shutdown().await;
    carol.shutdown().await;
    for (to, text) in [("bob", "second"), ("carol", "second"), ("bob", "third")] {
        let to = alice.find(to).await.unwrap().account_id;
        alice.direct(to).send(text).await.unwrap();
        assert_eq!(alice.outbox_empty(PATIENCE).await.unwrap(), 0);
    }
    // What waits is kept; bob gets carol's first, and carol bob's.
    let swap = format!(
        "UPDATE envelopes SET pointers = pointers + 10;
         CREATE TABLE kept AS SELECT * FROM queue WHERE device_id IN ({bobs}, {carols});
         CREATE TABLE firsts AS SELECT device_id, seq, envelope_id FROM kept
             WHERE seq = (SELECT MIN(seq) FROM kept AS other WHERE other.device_id = kept.device_id);
         UPDATE queue SET envelope_id = (SELECT envelope_id FROM firsts WHERE firsts.device_id <> queue.device_id)
             WHERE EXISTS (SELECT 1 FROM firsts WHERE firsts.device_id = queue.device_id AND firsts.seq = queue.seq);"
    );
    host.change(&swap, &[&alice]).await;
    let taken = async |host: &Host| {
        for device in [&bobs, &carols] {
            wait_until("all to be taken", async || (host.waiting(device).await == 0).then_some(())).await;
        }
    };
    let (bob, carol) = (host.builder("bob").open().await.unwrap(), host.builder("carol").open().await.unwrap());
    let of = |client: &Client| client.direct(of_alice);
    taken(&host).await;
    assert_eq!(texts(&of(&bob)).await, ["first", "yes?", "third"]);
    assert_eq!(texts(&of(&carol)).await, ["first", "yes?"]);
    // What was kept comes, and comes again.
    for time in 1..=2 {
        let again = format!(
            "INSERT INTO queue (device_id, seq, envelope_id, share, bytes, own_part)
                 SELECT kept.device_id, next_seq + seq, envelope_id, share, bytes, own_part
                 FROM kept JOIN cursors ON cursors.device_id = kept.device_id;
             UPDATE cursors SET next_seq = next_seq + 1000,
                 direct_entries = (SELECT COUNT(*) FROM kept WHERE kept.device_id = cursors.device_id),
                 direct_bytes = (SELECT SUM(bytes) FROM kept WHERE kept.device_id = cursors.device_id)
                 WHERE device_id IN ({bobs}, {carols});"
        );
        host.change(&again, &[&alice, &bob, &carol]).await;
        taken(&host).await;
        let mut here = texts(&of(&bob)).await;
        here.sort_unstable();
        assert_eq!(here, ["first", "second", "third", "yes?"], "time {time}");
        assert_eq!(texts(&of(&carol)).await, ["first", "yes?", "second"], "time {time}");
    }
    let there = "SELECT COUNT(*) FROM kept JOIN envelopes ON envelopes.envelope_id = kept.envelope_id";
    assert_eq!(host.store.number(there).await, 3, "they were there to be delivered");
    for client in [&bob, &carol] {
        hears(client, &alice, "do I hear well?").await;
        hears(&alice, client, "you do").await;
    }
}
