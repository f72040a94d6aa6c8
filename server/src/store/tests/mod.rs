//! The store's conformance suite: what every database must do alike, as cases that are run on each.
//!
//! Cases are handed an empty store; the files beside this one hold them, `sqlite` and `postgres` what only one database
//! must be told. `suite!` makes one test of each case for each database.
//!
//! Invariant: what runs on one database runs on the other; the last test waits for all of them and compares.

mod accounts_and_sessions;
mod concurrency;
mod counts;
mod displacement;
mod group_rows;
mod incarnations;
mod invites;
mod key_packages;
mod lost;
mod messages;
mod migrations;
mod model;
mod pages;
mod pipes;
mod plans;
mod postgres;
mod queues;
mod races;
mod sqlite;
mod transactions;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Condvar, Mutex, PoisonError},
    time::Duration,
};

use futures_util::future::BoxFuture;
use tempfile::TempDir;
use tokio::runtime;
use undertone_test_postgres::Database;
use undertone_wire::{AccountId, DeviceId, GroupId, Hash, Nonce, PublicKey, Signature, SignedDeviceList};

use super::{
    Conn, Db, Place, PostgresConfig, StoreError, Tx,
    accounts::{self, StoredDevice},
    groups, on,
    pipes::Room as PipeRoom,
    queue::{self, Kind, NewEnvelope, Receiver, Room},
};
use crate::{clock::SystemRandom, wake::Wake};

const SQLITE: &str = "sqlite";
const POSTGRES: &str = "postgres";

/// An open store that is its case's own.
struct Fresh {
    db: Db,
    wake: Arc<Wake>,
    place: Place,
    _folder: Option<TempDir>,
    database: Option<Database>,
}

async fn fresh_sqlite() -> Fresh {
    let folder = tempfile::tempdir().unwrap();
    let place = Place::Sqlite(folder.path().join("undertone.db"));
    let (db, wake) = open(&place).await;
    Fresh { db, wake, place, _folder: Some(folder), database: None }
}

async fn fresh_postgres() -> Fresh {
    let database = undertone_test_postgres::database(async |template| {
        use sqlx::Connection as _;
        let mut connection = sqlx::PgConnection::connect(&template).await.unwrap();
        super::migrations::postgres().run(&mut connection).await.unwrap();
        connection.close().await.unwrap();
    })
    .await;
    let place = Place::Postgres(PostgresConfig::new(database.url()));
    let (db, wake) = open(&place).await;
    Fresh { db, wake, place, _folder: None, database: Some(database) }
}

async fn open(place: &Place) -> (Db, Arc<Wake>) {
    let wake = Arc::new(Wake::default());
    (Db::open(place, Arc::clone(&wake), Arc::new(SystemRandom)).await.unwrap(), wake)
}

impl Fresh {
    /// The store of another node. Where there can be one node only, it is the same.
    async fn another_node(&self) -> Db {
        match self.place {
            Place::Sqlite(_) => self.db.clone(),
            Place::Postgres(_) => open(&self.place).await.0,
        }
    }

    /// A place whose store nobody else needs open.
    fn another_place(&self) -> Place {
        match &self.place {
            Place::Sqlite(path) => Place::Sqlite(path.with_file_name("another.db")),
            Place::Postgres(_) => self.place.clone(),
        }
    }

    async fn remove(self) {
        if let Some(database) = self.database {
            database.remove().await;
        }
    }
}

/// The cases that have run to an end, good or bad, on each database.
static RAN: Mutex<BTreeMap<&str, BTreeSet<&str>>> = Mutex::new(BTreeMap::new());
static ONE_MORE_RAN: Condvar = Condvar::new();

struct Running(&'static str, &'static str);

impl Drop for Running {
    fn drop(&mut self) {
        RAN.lock().unwrap_or_else(PoisonError::into_inner).entry(self.0).or_default().insert(self.1);
        ONE_MORE_RAN.notify_all();
    }
}

/// Runs a case on a fresh store of a database; on as many threads as it needs.
fn run(database: &'static str, threads: usize, name: &'static str, case: impl AsyncFnOnce(&Fresh)) {
    let _running = Running(database, name);
    let mut builder = match threads {
        1 => runtime::Builder::new_current_thread(),
        _ => runtime::Builder::new_multi_thread(),
    };
    let runtime = builder.worker_threads(threads).enable_all().build().unwrap();
    runtime.block_on(async {
        let fresh = if database == SQLITE { fresh_sqlite().await } else { fresh_postgres().await };
        case(&fresh).await;
        fresh.remove().await;
    });
}

/// `file on N threads: cases`. Cases that look whether something has begun need one thread, those that race need more.
macro_rules! suite {
    ($($file:ident on $threads:literal $(thread)? $(threads)?: $($case:ident),+;)+) => {
        mod on_sqlite {
            use super::*;
            $($(
                #[test]
                fn $case() {
                    run(SQLITE, $threads, stringify!($case), $file::$case);
                }
            )+)+
        }

        mod on_postgres {
            use super::*;
            $($(
                #[test]
                fn $case() {
                    run(POSTGRES, $threads, stringify!($case), $file::$case);
                }
            )+)+
        }
    };
}

suite! {
    transactions on 1 thread: identity_is_made_once, work_that_fails_leaves_nothing,
        work_runs_to_its_end_without_its_caller, a_panic_leaves_nothing_and_the_store_goes_on,
        mail_is_announced_after_the_commit_and_only_then, writers_wait_for_each_other,
        one_write_too_many_is_refused_at_once, strangers_leave_places_for_members, a_reader_sees_one_moment,
        readers_change_nothing;
    incarnations on 1 thread: a_store_that_is_opened_again_goes_on, a_restored_store_begins_anew,
        a_moved_store_goes_on, a_store_in_another_place_begins_anew, keys_of_before_are_not_handed_out,
        what_a_device_missed_is_told_in_its_place;
    pages on 1 thread: numbers_are_consecutive_from_1, a_page_ends_by_entries_or_bytes,
        a_page_tells_whether_the_session_holds, a_page_of_commits_ends_by_entries_or_bytes;
    counts on 1 thread: counts_are_what_is_counted, expiring_goes_in_batches, envelopes_are_settled_at_the_end;
    migrations on 1 thread: what_a_newer_version_added_does_not_disturb, a_past_that_was_rewritten_is_refused;
    accounts_and_sessions on 1 thread: challenges_are_taken_once, the_newest_sessions_are_kept,
        a_device_belongs_to_one_account, a_list_is_replaced_by_the_next_only, accounts_are_found_by_id_and_name,
        accounts_go_with_all_they_had, holders_are_those_whose_sessions_hold, what_is_locked_is_what_is_listed,
        sessions_expire_in_batches;
    invites on 1 thread: an_invite_is_used_up_and_gone, invites_expire_in_batches, as_many_as_an_invite_is_for_use_it;
    pipes on 4 threads: a_part_is_written_once_while_its_pipe_lives, a_pipe_that_is_over_is_as_none,
        parts_expire_in_batches, of_many_who_write_a_part_one_does, of_many_who_begin_pipes_as_many_do_as_may;
    messages on 1 thread: an_id_is_free_once, what_is_given_back_is_free, ids_expire_in_batches,
        who_claims_second_waits_for_the_first;
    queues on 1 thread: envelopes_come_out_as_they_went_in, an_envelope_for_nobody_is_not_stored,
        one_append_keeps_the_order_of_its_envelopes, acks_delete_and_count_down, expiry_takes_what_is_over_and_wakes,
        a_jump_moves_what_waits_beyond_what_the_device_has, a_device_cannot_jump_often, streams_and_states_move,
        notices_wait_until_they_are_taken, unacked_commits_are_found_by_their_group;
    model on 1 thread: queues_are_what_the_model_is;
    displacement on 1 thread: a_group_gives_up_its_own_oldest, a_group_keeps_what_it_may_always_have,
        the_newest_stays_however_large_it_is, bytes_displace_like_entries, a_group_does_not_pay_for_another,
        two_groups_in_one_append_pay_one_after_the_other;
    concurrency on 4 threads: fan_outs_acks_expiry_and_a_removal_lose_nothing, no_page_shows_a_hole_that_is_none;
    races on 4 threads: each_one_time_key_is_given_once, of_many_with_one_message_id_one_is_first,
        of_many_who_make_the_same_one_does, a_device_that_is_removed_is_in_no_group, sweepers_share_the_work;
    key_packages on 1 thread: keys_that_end_first_go_first, last_resort_keys_replace_each_other,
        what_the_device_does_not_name_is_spent, key_packages_expire_in_batches;
    group_rows on 1 thread: stays_begin_and_end, deserted_groups_go, a_group_moves_with_each_commit,
        members_are_told_of_each_group, many_stays_change_at_once, devices_are_forgotten_but_for_their_leaves,
        accounts_are_forgotten, what_expires_goes_in_batches, a_deleted_group_leaves_queues_alone;
}

/// Its name makes it the last to begin, so that it waits for nothing that has not begun. What was asked for is what is
/// compared: `cargo test` may have been told to leave cases out.
mod suite {
    use super::*;

    const SOON: Duration = Duration::from_secs(600);

    #[test]
    fn every_database_runs_the_same_cases() {
        let wanted = [SQLITE, POSTGRES].map(asked_for);
        let all_ran = |ran: &mut BTreeMap<&str, BTreeSet<&str>>| {
            [SQLITE, POSTGRES]
                .iter()
                .zip(wanted)
                .all(|(database, wanted)| ran.entry(database).or_default().len() >= wanted)
        };
        let ran = RAN.lock().unwrap();
        let (mut ran, waited) = ONE_MORE_RAN.wait_timeout_while(ran, SOON, |ran| !all_ran(ran)).unwrap();
        assert!(!waited.timed_out(), "wanted {wanted:?}, ran {ran:?}");
        let [sqlite, postgres] = [SQLITE, POSTGRES].map(|database| ran.remove(database).unwrap_or_default());
        println!("store conformance: sqlite {}, postgres {}", sqlite.len(), postgres.len());
        assert_eq!(sqlite, postgres);
    }

    /// How many cases of a database this process was asked to run.
    fn asked_for(database: &str) -> usize {
        let mut listing = std::process::Command::new(std::env::current_exe().unwrap());
        listing.args(std::env::args_os().skip(1)).args(["--list", "--format", "terse"]);
        let listed = String::from_utf8(listing.output().unwrap().stdout).unwrap();
        listed.lines().filter(|line| line.starts_with(&format!("store::tests::on_{database}::"))).count()
    }
}

const HOUR_MS: u64 = 3_600_000;

/// Room that nobody fills.
const ROOM: Room = Room { entries_max: 1 << 40, bytes_max: 1 << 40, group_entries_min: 0, group_bytes_min: 0 };

fn device_id(byte: u8) -> DeviceId {
    DeviceId::from_random([byte; 16])
}

fn account_id(byte: u8) -> AccountId {
    AccountId::from_identity_key(&PublicKey::from([byte; 32]))
}

fn group_id() -> GroupId {
    group(0x67)
}

fn group(byte: u8) -> GroupId {
    GroupId::from_random([byte; 16])
}

fn stored_device(account: u8, key: u8) -> StoredDevice {
    StoredDevice {
        account: account_id(account),
        device_key: PublicKey::from([key; 32]),
        certificate_hash: Hash::of(&[key]),
    }
}

fn list(byte: u8) -> SignedDeviceList {
    SignedDeviceList { list: vec![byte].into(), signature: Signature::from([byte; 64]) }
}

fn nonce(byte: u8) -> Nonce {
    Nonce::from([byte; 32])
}

/// Does work in one transaction that must succeed.
async fn done<T, W>(db: &Db, work: W) -> T
where
    T: Send + 'static,
    W: for<'tx> FnOnce(&'tx mut Tx) -> BoxFuture<'tx, Result<T, StoreError>> + Send + 'static,
{
    db.write(work).await.unwrap()
}

/// An account with devices of these numbers; the account has the number of the first.
async fn add_account(tx: &mut Tx, devices: &[u8]) -> Result<(), StoreError> {
    let account = devices[0];
    accounts::add(tx, &account_id(account), None, 1, &list(account)).await?;
    for device in devices {
        assert!(accounts::put_device(tx, &device_id(*device), &stored_device(account, *device)).await?);
    }
    Ok(())
}

/// A group of these devices, each with an account of its own.
async fn add_group(tx: &mut Tx, devices: &[u8]) -> Result<(), StoreError> {
    for device in devices {
        add_account(tx, &[*device]).await?;
    }
    add_group_of(tx, &group_id(), devices).await
}

/// A group of devices that there are.
async fn add_group_of(tx: &mut Tx, group: &GroupId, devices: &[u8]) -> Result<(), StoreError> {
    assert!(groups::add(tx, group, &account_id(devices[0]), b"info").await?);
    let devices: Vec<_> = devices.iter().copied().map(device_id).collect();
    groups::begin_stays(tx, group, &devices, 0).await
}

/// Room for so many pipes.
fn room_for(pipes_max: u64) -> PipeRoom {
    PipeRoom { pipes_max, bytes_max: 1_000_000 }
}

fn message<'a>(group: &GroupId, payload: &'a [u8], expires_hour_ms: u64, receivers: &[DeviceId]) -> NewEnvelope<'a> {
    NewEnvelope {
        kind: Kind::Message,
        group: Some(*group),
        number: 0,
        expires_hour_ms,
        payload,
        held_by_commits: false,
        receivers: receivers.iter().copied().map(Receiver::from).collect(),
    }
}

/// Appends envelopes to the queues of their receivers, who have nothing else to do.
async fn append_all(tx: &mut Tx, room: &Room, envelopes: &[NewEnvelope<'_>]) -> Result<Vec<i64>, StoreError> {
    let receivers = envelopes.iter().flat_map(|envelope| &envelope.receivers).map(|to| to.device).collect();
    let cursors = queue::lock(tx, &receivers).await?;
    queue::append(tx, cursors, room, envelopes).await
}

/// A message to all members of the group.
async fn append(tx: &mut Tx, payload: &[u8]) -> Result<(), StoreError> {
    append_until(tx, payload, u64::MAX).await
}

/// A message to all members of the group, kept until an hour.
async fn append_until(tx: &mut Tx, payload: &[u8], expires_hour_ms: u64) -> Result<(), StoreError> {
    let members = members(tx, &group_id()).await?;
    append_all(tx, &ROOM, &[message(&group_id(), payload, expires_hour_ms, &members)]).await.map(|_| ())
}

async fn members(conn: &mut Conn, group: &GroupId) -> Result<Vec<DeviceId>, StoreError> {
    let members = groups::members_of(conn, &BTreeSet::from([*group])).await?;
    Ok(members.into_values().flatten().collect())
}

/// A commit to all members of the group.
async fn append_commit(tx: &mut Tx, commit_seq: u64, payload: &[u8], hour_ms: u64) -> Result<(), StoreError> {
    let members = members(tx, &group_id()).await?;
    let envelope = NewEnvelope {
        kind: Kind::Commit,
        number: commit_seq,
        held_by_commits: true,
        ..message(&group_id(), payload, hour_ms, &members)
    };
    let envelope = append_all(tx, &ROOM, &[envelope]).await?[0];
    let posted_hour_ms = hour_ms;
    let commit =
        groups::NewCommit { group: group_id(), commit_seq, envelope, added: &[], removed: &[], posted_hour_ms };
    groups::add_commit(tx, &commit).await
}

/// Acks what a device has up to a number, but not more than it was sent: rooms do not let it.
async fn ack(tx: &mut Tx, device: u8, up_to: u64) -> Result<(), StoreError> {
    let device = device_id(device);
    let cursors = queue::lock(tx, &BTreeSet::from([device])).await?;
    let newest = cursors.get(&device).map_or(0, |cursor| cursor.next_seq - 1);
    queue::ack(tx, cursors, &BTreeMap::from([(device, up_to.min(newest))])).await
}

/// The connection of a transaction on Postgres, where a test says what the store does not.
fn on_postgres(conn: &mut Conn) -> &mut sqlx::PgConnection {
    let Conn::Postgres(link) = conn else { panic!("not Postgres") };
    link.connection().expect("it was not lost")
}

/// What a statement without parameters counts.
async fn count(conn: &mut Conn, statement: &'static str) -> i64 {
    on!(*conn, db => sqlx::query_scalar(statement).fetch_one(db).await).unwrap()
}

/// A small generator, so that a run can be repeated.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

/// The figure of a heavy test: its short form, or its long one if `TEST_SOAK` asks for that.
fn short_or_soak(short: usize, soak: usize) -> usize {
    if std::env::var_os("TEST_SOAK").is_some() { soak } else { short }
}
