//! What the relay knows: its schema against the page that explains it, and what its rows do not tell.

use std::collections::{BTreeMap, BTreeSet};

use undertone_wire::{DeviceId, SendResponse};

use crate::support::{Backend, Message, TestRelay, both};

both! {
    every_column_is_explained_and_every_explanation_has_a_column,
    no_column_is_named_after_a_sender,
    the_rows_of_a_message_are_those_of_all_members_whoever_sent_it,
    times_on_messages_are_whole_hours,
}

const PAGE: &str = include_str!("../../../spec/what-the-relay-knows.md");

/// The columns that the page lists, each with its reason: rows of tables as `` | `table.column` | reason | ``.
fn explained() -> BTreeMap<String, String> {
    let row = |line: &str| {
        let mut cells = line.strip_prefix("| `")?.split(" | ");
        let column = cells.next()?.strip_suffix('`')?.to_owned();
        let reason = cells.next()?.trim_end_matches('|').trim().to_owned();
        Some((column, reason))
    };
    PAGE.lines().filter_map(row).collect()
}

async fn columns(relay: &TestRelay) -> BTreeSet<String> {
    relay.store.columns().await.into_iter().map(|(table, column, _)| format!("{table}.{column}")).collect()
}

async fn every_column_is_explained_and_every_explanation_has_a_column(on: Backend) {
    let relay = TestRelay::start(on).await;
    let columns = columns(&relay).await;
    assert!(columns.contains("queue.envelope_id"), "the schema is read");
    let explained = explained();
    let listed: BTreeSet<_> = explained.keys().cloned().collect();
    assert_eq!(columns, listed);
    for (column, reason) in explained {
        assert!(reason.len() > 10, "{column} has no reason");
    }
}

async fn no_column_is_named_after_a_sender(on: Backend) {
    let relay = TestRelay::start(on).await;
    for column in columns(&relay).await {
        for word in ["sender", "author", "from", "posted_by", "source"] {
            assert!(!column.contains(word), "{column}");
        }
    }
}

async fn the_rows_of_a_message_are_those_of_all_members_whoever_sent_it(on: Backend) {
    let relay = TestRelay::start(on).await;
    let devices = [relay.device().await, relay.device().await, relay.device().await];
    let everyone: BTreeSet<_> = devices.iter().map(crate::support::Device::id).collect();
    let group = devices[0].create_group_with(&[&devices[1], &devices[2]]).await;
    let mut accepted = 0;
    for device in &devices {
        device.send_message(&Message::at(group, 1)).await.yes::<SendResponse>();
        accepted += 1;
    }
    let rows: Vec<(i64, Vec<u8>)> = relay
        .select(
            "SELECT e.envelope_id, q.device_id FROM envelopes e JOIN queue q ON q.envelope_id = e.envelope_id
             WHERE e.kind = 1",
        )
        .await;
    let mut holders = BTreeMap::<i64, BTreeSet<DeviceId>>::new();
    for (envelope, device) in rows {
        holders.entry(envelope).or_default().insert(DeviceId::try_from(device.as_slice()).unwrap());
    }
    assert_eq!(holders.len(), accepted, "there are messages to look at");
    assert!(holders.values().all(|devices| *devices == everyone));

    // The numbers under which they stand are the same for all too, so that order tells nothing either.
    let stubs: Vec<(i64, Option<i64>)> =
        relay.select("SELECT status, commit_seq FROM message_ids WHERE commit_seq IS NULL").await;
    assert_eq!(stubs, [(200, None), (200, None), (200, None)]);
}

async fn times_on_messages_are_whole_hours(on: Backend) {
    let relay = TestRelay::start(on).await;
    let alice = relay.device().await;
    let group = alice.create_group().await;
    alice.commit(&Message::at(group, 0)).await.yes::<undertone_wire::CommitResponse>();
    alice.says(group, 1).await;
    let times: Vec<(i64,)> = relay
        .select(
            "SELECT expires_hour_ms FROM envelopes UNION ALL SELECT posted_hour_ms FROM commits
             UNION ALL SELECT expires_hour_ms FROM message_ids",
        )
        .await;
    assert_eq!(times.len(), 5);
    assert!(times.iter().all(|(time,)| time % 3_600_000 == 0));
}
