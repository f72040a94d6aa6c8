//! The store's conformance suite: what every database must do alike, as cases that are run on each.
//!
//! Cases are handed an empty store; the files beside this one hold them. `suite!` makes one test of each case for each
//! database, and says how many there are.

mod counts;
mod pages;
mod rows;
mod sqlite;
mod transactions;

use std::sync::Arc;

use tempfile::TempDir;
use undertone_wire::{AccountId, DeviceId, GroupId, Hash, Nonce, PublicKey, Signature, SignedDeviceList};

use super::{
    Db, Place, StoreError, Tx,
    accounts::{self, StoredDevice},
    groups,
    queue::{self, Kind, NewEnvelope},
};
use crate::wake::Wake;

/// A store in a folder that goes with it.
struct Fresh {
    db: Db,
    wake: Arc<Wake>,
    folder: TempDir,
}

async fn fresh_sqlite() -> Fresh {
    let (folder, wake) = (tempfile::tempdir().unwrap(), Arc::new(Wake::default()));
    let place = Place::Sqlite(folder.path().join("undertone.db"));
    Fresh { db: Db::open(&place, Arc::clone(&wake)).await.unwrap(), wake, folder }
}

macro_rules! suite {
    ($($file:ident: $($case:ident),+;)+) => {
        mod on_sqlite {
            $($(
                #[tokio::test]
                async fn $case() {
                    super::$file::$case(super::fresh_sqlite().await).await;
                }
            )+)+
        }

        #[test]
        fn every_database_runs_the_same_cases() {
            let cases = [$($(stringify!($case)),+),+];
            println!("store conformance: sqlite {}", cases.len());
        }
    };
}

suite! {
    transactions: identity_is_made_once, work_that_fails_leaves_nothing, work_runs_to_its_end_without_its_caller,
        a_panic_leaves_nothing_and_the_store_goes_on, mail_is_announced_after_the_commit_and_only_then,
        writers_wait_for_each_other, one_write_too_many_is_refused_at_once,
        strangers_leave_places_for_members, a_reader_sees_one_moment;
    pages: numbers_are_consecutive_from_1, a_page_ends_by_entries_or_bytes, no_page_shows_a_hole_that_is_none,
        a_page_tells_whether_the_session_holds, a_page_of_commits_ends_by_entries_or_bytes;
    counts: pointers_are_what_points, expiring_goes_in_batches;
    rows: challenges_are_taken_once, the_newest_sessions_are_kept, a_device_belongs_to_one_account,
        a_list_is_replaced_by_the_next_only, keys_that_end_first_go_first, keys_of_another_life_stay,
        stays_begin_and_end, deserted_groups_go;
}

const HOUR_MS: u64 = 3_600_000;

fn device_id(byte: u8) -> DeviceId {
    DeviceId::from_random([byte; 16])
}

fn account_id(byte: u8) -> AccountId {
    AccountId::from_identity_key(&PublicKey::from([byte; 32]))
}

fn group_id() -> GroupId {
    GroupId::from_random([0x67; 16])
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
    groups::add(tx, &group_id(), &account_id(devices[0]), b"info").await?;
    for device in devices {
        groups::begin_stay(tx, &group_id(), &device_id(*device), 0).await?;
    }
    Ok(())
}

fn message(payload: &[u8], posted_hour_ms: u64) -> NewEnvelope<'_> {
    NewEnvelope { kind: Kind::Message, group: group_id(), number: 0, posted_hour_ms, payload }
}

/// A message to all members of the group.
async fn append(tx: &mut Tx, payload: &[u8]) -> Result<(), StoreError> {
    queue::append_to_members(tx, &message(payload, 0), false).await.map(|_| ())
}

fn nonce(byte: u8) -> Nonce {
    Nonce::from([byte; 32])
}
