//! The raw limit of the SDK: bare openmls in the same suite, with groups that stay in memory and nobody in between; and
//! beside each message one row in an encrypted database, in a transaction of its own that is as durable as the SDK's.

use std::time::{Duration, Instant};

use openmls::prelude::{
    Capabilities, Ciphersuite, ExtensionType, KeyPackage, Lifetime, MlsGroup, MlsGroupCreateConfig, MlsGroupJoinConfig,
    MlsMessageBodyIn, MlsMessageIn, ProcessedMessageContent, SenderRatchetConfiguration, StagedWelcome,
    tls_codec::{Deserialize as _, Serialize},
};
use openmls_rust_crypto::OpenMlsRustCrypto;
use rusqlite::{Connection, TransactionBehavior};
use tempfile::TempDir;
use undertone_test_client::{Account, Api, Device, now_ms};
use undertone_wire::Bytes;

use crate::{sender::PAYLOAD_BYTES, window::per_second};

const SUITE: Ciphersuite = Ciphersuite::MLS_128_DHKEMX25519_CHACHA20POLY1305_SHA256_Ed25519;
const PADDING_BYTES: usize = 256;
const DAY_S: u64 = 24 * 60 * 60;

/// The extensions that a member of an SDK's group supports.
const EXTENSIONS: [ExtensionType; 3] =
    [ExtensionType::LastResort, ExtensionType::Unknown(0xF1A0), ExtensionType::Unknown(0xF1A1)];

/// How many a second: with a durable row for each, and without.
pub(crate) type Rates = (f64, f64);

/// What the same comes to without SDK and relay.
pub(crate) struct Bare {
    pub(crate) join: Rates,
    pub(crate) send: Rates,
    pub(crate) receive: Rates,
}

/// A device with groups in memory.
struct Member {
    provider: OpenMlsRustCrypto,
    device: Device,
}

/// A key package that an SDK adds to its groups.
pub(crate) fn key_package(device: &Device) -> (OpenMlsRustCrypto, KeyPackage) {
    let provider = OpenMlsRustCrypto::default();
    let now_s = now_ms() / 1_000;
    let capabilities = Capabilities::builder().ciphersuites(vec![SUITE]).extensions(EXTENSIONS.to_vec()).build();
    let made = KeyPackage::builder()
        .key_package_lifetime(Lifetime::init(now_s - DAY_S, now_s + 90 * DAY_S))
        .leaf_node_capabilities(capabilities)
        .build(SUITE, &provider, device, device.credential())
        .unwrap();
    (provider, made.key_package().clone())
}

/// As it goes over the wire.
pub(crate) fn bytes(message: &impl Serialize) -> Bytes {
    message.tls_serialize_detached().unwrap().into()
}

/// Joins a group of so many devices as the last one, encrypts so many messages there, and decrypts them.
pub(crate) fn measure(devices: usize, messages: usize) -> Bare {
    let (mut group, sender, welcome, receiver) = group_of(devices);
    let disk = Disk::new();
    let mut clock = Watch::new(&disk);
    let mut joined = clock.time(welcome.as_slice(), || join(&receiver, &welcome));
    let join = clock.rates();

    let text = vec![7; PAYLOAD_BYTES];
    let mut clock = Watch::new(&disk);
    let mut sent = Vec::with_capacity(messages);
    for _ in 0..messages {
        let encrypt = || bytes(&group.create_message(&sender.provider, &sender.device, &text).unwrap());
        sent.push(clock.time(&text, encrypt));
    }
    let send = clock.rates();

    let mut clock = Watch::new(&disk);
    for message in &sent {
        clock.time(&text, || decrypt(&mut joined, &receiver, message));
    }
    Bare { join, send, receive: clock.rates() }
}

/// A group of so many devices, whose last one has a Welcome that it has not used.
fn group_of(devices: usize) -> (MlsGroup, Member, Bytes, Member) {
    let device = || {
        let account = Account::new(1);
        Device { api: Api::new(""), keys: account.keys[0].clone(), account }
    };
    let sender = Member { provider: OpenMlsRustCrypto::default(), device: device() };
    let config = MlsGroupCreateConfig::builder()
        .ciphersuite(SUITE)
        .padding_size(PADDING_BYTES)
        .sender_ratchet_configuration(SenderRatchetConfiguration::new(16, 2_000))
        .use_ratchet_tree_extension(true)
        .build();
    let credential = sender.device.credential();
    let mut group = MlsGroup::new(&sender.provider, &sender.device, &config, credential).unwrap();
    let mut add = |added: &[KeyPackage]| {
        let (_, welcome, _) = group.add_members(&sender.provider, &sender.device, added).unwrap();
        group.merge_pending_commit(&sender.provider).unwrap();
        bytes(&welcome)
    };
    let others: Vec<_> = (2..devices).map(|_| key_package(&device()).1).collect();
    for some in others.chunks(100) {
        add(some);
    }
    let last = device();
    let (provider, key_package) = key_package(&last);
    let welcome = add(&[key_package]);
    (group, sender, welcome, Member { provider, device: last })
}

fn join(member: &Member, welcome: &Bytes) -> MlsGroup {
    let MlsMessageBodyIn::Welcome(welcome) = message_in(welcome).extract() else { unreachable!("not a Welcome") };
    let config = MlsGroupJoinConfig::builder()
        .padding_size(PADDING_BYTES)
        .sender_ratchet_configuration(SenderRatchetConfiguration::new(16, 2_000))
        .use_ratchet_tree_extension(true)
        .build();
    let staged = StagedWelcome::new_from_welcome(&member.provider, &config, welcome, None).unwrap();
    staged.into_group(&member.provider).unwrap()
}

fn decrypt(group: &mut MlsGroup, member: &Member, message: &Bytes) {
    let message = message_in(message).try_into_protocol_message().unwrap();
    let opened = group.process_message(&member.provider, message).unwrap().into_content();
    assert!(matches!(opened, ProcessedMessageContent::ApplicationMessage(_)), "not a message");
}

fn message_in(bytes: &Bytes) -> MlsMessageIn {
    MlsMessageIn::tls_deserialize_exact(bytes.as_slice()).unwrap()
}

/// An encrypted database with one table, as durable as a client's.
struct Disk {
    database: Connection,
    _folder: TempDir,
}

impl Disk {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let database = Connection::open(folder.path().join("bare.db")).unwrap();
        let key = format!("x'{}'", "07".repeat(32));
        for (pragma, value) in
            [("key", key.as_str()), ("journal_mode", "WAL"), ("synchronous", "FULL"), ("secure_delete", "ON")]
        {
            database.pragma_update(None, pragma, value).unwrap();
        }
        database.execute_batch("CREATE TABLE messages (position INTEGER PRIMARY KEY, content BLOB NOT NULL)").unwrap();
        Self { database, _folder: folder }
    }

    /// Writes a row, durably.
    fn write(&self, content: &[u8]) {
        let tx = rusqlite::Transaction::new_unchecked(&self.database, TransactionBehavior::Immediate).unwrap();
        tx.prepare_cached("INSERT INTO messages (content) VALUES (?1)").unwrap().execute([content]).unwrap();
        tx.commit().unwrap();
    }
}

/// Counts what is done, and how long it takes with a row on disk and without.
struct Watch<'a> {
    disk: &'a Disk,
    count: u64,
    mls: Duration,
    all: Duration,
}

impl<'a> Watch<'a> {
    fn new(disk: &'a Disk) -> Self {
        Self { disk, count: 0, mls: Duration::ZERO, all: Duration::ZERO }
    }

    fn time<T>(&mut self, row: &[u8], work: impl FnOnce() -> T) -> T {
        let began = Instant::now();
        let done = work();
        self.mls += began.elapsed();
        self.disk.write(row);
        self.all += began.elapsed();
        self.count += 1;
        done
    }

    fn rates(&self) -> Rates {
        (per_second(self.count, self.all), per_second(self.count, self.mls))
    }
}
