//! Traces: what Postgres keeps of a transaction beside what it was told to store. Each row has the number of the
//! transaction that wrote it (`xmin`) and of the last that locked or replaced it (`xmax`), so whatever a post touches
//! stands beside its envelope for whoever reads the files.
//!
//! Invariant: what a transaction touches that belongs to somebody belongs to all to whom the post is, the sender
//! included; or it is what the post says openly that it changes.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::AssertSqlSafe;
use undertone_wire::{CommitResponse, PipeId, SendResponse};

use crate::support::{Backend, Device, Message, TestRelay, connect, random};

/// Whose rows a transaction wrote or locked: accounts or devices, by `table.column`.
type Traces = BTreeMap<String, BTreeSet<Vec<u8>>>;

/// The transaction that wrote the newest envelope.
const POSTED_BY: &str = "SELECT xmin::text FROM envelopes ORDER BY envelope_id DESC LIMIT 1";

/// The transaction that spent a key package.
const CLAIMED_BY: &str = "SELECT xmin::text FROM key_packages WHERE key_package IS NULL";

/// The transaction that answered in a pipe, with answer 0.
const ANSWERED_BY: &str = "SELECT xmin::text FROM pipe_parts WHERE is_answer = 1 AND number = 0";

/// The traces of the transaction that this query names.
async fn traces(relay: &TestRelay, transaction: &str) -> Traces {
    let number: Vec<(String,)> = relay.select(transaction).await;
    let number = &number[0].0;
    let mut traces = Traces::new();
    for (table, column, _) in relay.store.columns().await {
        if !["account_id", "device_id"].contains(&column.as_str()) {
            continue;
        }
        let touched = format!(
            "SELECT {column} FROM {table} WHERE {column} IS NOT NULL
             AND (xmin::text = '{number}' OR xmax::text = '{number}')"
        );
        let touched: Vec<(Vec<u8>,)> = relay.select(&touched).await;
        if !touched.is_empty() {
            traces.insert(format!("{table}.{column}"), touched.into_iter().map(|(id,)| id).collect());
        }
    }
    traces
}

fn devices(of: &[&Device]) -> BTreeSet<Vec<u8>> {
    of.iter().map(|device| device.id().as_bytes().to_vec()).collect()
}

fn accounts(of: &[&Device]) -> BTreeSet<Vec<u8>> {
    of.iter().map(|device| device.account_id().as_bytes().to_vec()).collect()
}

/// The traces of what is posted to these devices, and these besides.
fn of_post_to(all: &[&Device], more: &[(&str, BTreeSet<Vec<u8>>)]) -> Traces {
    let queues = ["cursors.device_id", "queue.device_id"].map(|column| (column.to_owned(), devices(all)));
    queues.into_iter().chain(more.iter().map(|(column, ids)| ((*column).to_owned(), ids.clone()))).collect()
}

#[tokio::test]
async fn a_row_of_the_sender_that_a_post_locked_would_be_found() {
    let relay = TestRelay::start(Backend::Postgres).await;
    let (alice, bob) = (relay.device().await, relay.device().await);
    let group = alice.create_group_with(&[&bob]).await;
    alice.says(group, 1).await;
    let (account, device) = (accounts(&[&alice]), devices(&[&alice]));
    let planted = [
        ("accounts", "account_id", "UPDATE", &account),
        ("device_lists", "account_id", "NO KEY UPDATE", &account),
        ("devices", "device_id", "SHARE", &device),
        ("sessions", "device_id", "KEY SHARE", &device),
    ];
    for (table, column, strength, owner) in planted {
        let mut database = connect(relay.store.database().url()).await;
        let hex: String = owner.iter().flatten().map(|byte| format!("{byte:02x}")).collect();
        let planted = format!(
            "BEGIN; SELECT 1 FROM {table} WHERE {column} = '\\x{hex}' FOR {strength};
             INSERT INTO envelopes (kind, number, expires_hour_ms, pointers, payload) VALUES (1, 0, 0, 1, ''); COMMIT"
        );
        sqlx::raw_sql(AssertSqlSafe(planted)).execute(&mut database).await.unwrap();
        let found = traces(&relay, POSTED_BY).await;
        assert_eq!(found.get(&format!("{table}.{column}")), Some(owner), "{strength}");
    }
}

#[tokio::test]
async fn a_group_message_touches_what_is_of_all_members_alike() {
    let relay = TestRelay::start(Backend::Postgres).await;
    let (alice, bob, carol) = (relay.account(2).await, relay.device().await, relay.device().await);
    let all = [&alice[0], &alice[1], &bob, &carol];
    let group = alice[0].create_group_with(&all[1..]).await;
    for sender in all {
        sender.says(group, 1).await;
        assert_eq!(traces(&relay, POSTED_BY).await, of_post_to(&all, &[]));
    }
    // With acks in between, and again after one that was refused.
    for sender in all {
        sender.ack_all().await;
        sender.send_message(&Message::at(group, 0)).await.no(undertone_wire::ErrorCode::StaleGroup);
        sender.says(group, 1).await;
        assert_eq!(traces(&relay, POSTED_BY).await, of_post_to(&all, &[]));
    }
}

#[tokio::test]
async fn a_direct_message_touches_what_is_of_all_its_accounts_alike() {
    let relay = TestRelay::start(Backend::Postgres).await;
    let (alice, bob, carol) = (relay.account(2).await, relay.account(2).await, relay.device().await);
    let all = [&alice[0], &alice[1], &bob[0], &bob[1], &carol];
    for sender in all {
        let others: Vec<_> = [&alice[0], &bob[0], &carol]
            .into_iter()
            .filter(|other| other.account_id() != sender.account_id())
            .map(|other| &other.account)
            .collect();
        sender.tells(&others, b"hello").await;
        let lists = ("device_lists.account_id", accounts(&all));
        assert_eq!(traces(&relay, POSTED_BY).await, of_post_to(&all, &[lists]));
    }
}

#[tokio::test]
async fn a_leave_and_a_commit_touch_what_they_say_that_they_change_and_no_more_of_their_sender() {
    let relay = TestRelay::start(Backend::Postgres).await;
    let (alice, bob, carol) = (relay.account(2).await, relay.device().await, relay.device().await);
    let all = [&alice[0], &alice[1], &bob, &carol];
    let group = bob.create_group_with(&[&alice[0], &alice[1], &carol]).await;
    alice[0].leave(&Message::at(group, 1)).await.yes::<SendResponse>();
    let left = ("group_members.device_id", devices(&all[..2]));
    assert_eq!(traces(&relay, POSTED_BY).await, of_post_to(&all, &[left]));

    carol.commit(&Message::at(group, 1).removing(&[&alice[0], &alice[1]])).await.yes::<CommitResponse>();
    let removed = ("group_members.device_id", devices(&all[..2]));
    assert_eq!(traces(&relay, POSTED_BY).await, of_post_to(&[&bob, &carol], &[removed]));

    let dave = relay.device().await;
    bob.commit(&Message::at(group, 2).adding(&[&dave])).await.yes::<CommitResponse>();
    let added = ["devices.device_id", "group_members.device_id"].map(|column| (column, devices(&[&dave])));
    let account = ("devices.account_id", accounts(&[&dave]));
    let more: Vec<_> = added.into_iter().chain([account]).collect();
    assert_eq!(traces(&relay, POSTED_BY).await, of_post_to(&[&bob, &carol, &dave], &more));
}

#[tokio::test]
async fn a_claim_touches_what_is_of_the_owner_only() {
    let relay = TestRelay::start(Backend::Postgres).await;
    let (alice, bob) = (relay.account(2).await, relay.device().await);
    for device in [&alice[0], &alice[1], &bob] {
        device.stock(1).await;
    }
    let claimed = bob.claim(alice[0].account_id()).await;
    assert!(claimed.key_packages.iter().all(|claimed| claimed.key_package.is_some() && !claimed.last_resort));
    let owner = Traces::from([("key_packages.device_id".to_owned(), devices(&[&alice[0], &alice[1]]))]);
    assert_eq!(traces(&relay, CLAIMED_BY).await, owner);
}

#[tokio::test]
async fn an_answer_in_a_pipe_touches_nothing_of_anybody() {
    let relay = TestRelay::start(Backend::Postgres).await;
    let (alice, pipe) = (relay.device().await, PipeId::from_random(random()));
    relay.api().put_pipe_request(pipe, 0, b"request").await.done();
    let planted = "BEGIN; SELECT 1 FROM sessions FOR KEY SHARE;
                   INSERT INTO pipe_parts SELECT pipe_hash, 1, 0, content, expires_ms FROM pipe_parts; COMMIT";
    relay.store.change(planted).await;
    let session = Traces::from([("sessions.device_id".to_owned(), devices(&[&alice]))]);
    assert_eq!(traces(&relay, ANSWERED_BY).await, session, "what is planted is found");

    relay.store.change("DELETE FROM pipe_parts WHERE is_answer = 1").await;
    alice.put_pipe_answer(pipe, 0, b"answer").await.done();
    assert_eq!(traces(&relay, ANSWERED_BY).await, Traces::new());
}
