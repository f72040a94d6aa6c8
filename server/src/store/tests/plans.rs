//! Plans: no statement of the store reads a whole table, however much is in it.
//!
//! What is looked at is what was said: every operation is done once, and Postgres knows which statements it was handed.

use super::*;
use crate::store::{
    groups::{Ending, NewCommit},
    invites, keys,
    message_ids::{self, NewStub},
    pipes,
    queue::PageRequest,
    relay, sessions,
};

/// Fills every table with `{rows}` rows, where `{few}` are a tenth of that.
const FILL: &str = "
    CREATE FUNCTION pg_temp.id(what TEXT) RETURNS BYTEA IMMUTABLE LANGUAGE SQL AS
        $$SELECT decode(overlay(overlay(md5(what) PLACING '4' FROM 13) PLACING '8' FROM 17), 'hex')$$;
    CREATE TEMPORARY TABLE few AS SELECT n, pg_temp.id('a' || n) AS account, pg_temp.id('d' || n) AS device
        FROM generate_series(0, {few} - 1) AS n;
    CREATE TEMPORARY TABLE many AS
        SELECT r.n, pg_temp.id('' || r.n) AS id, pg_temp.id('g' || r.n / 2) AS group_id, device, random() * 1e6 + 1000 AS soon
        FROM generate_series(1, {rows}) AS r (n) JOIN few ON few.n = r.n % {few};
    INSERT INTO accounts SELECT account, 'name' || n FROM few;
    INSERT INTO device_lists SELECT account, 1, '', '' FROM few;
    INSERT INTO devices SELECT device, account, '', '' FROM few;
    INSERT INTO cursors SELECT device, 1, 0, 0 FROM few;
    INSERT INTO sessions SELECT id, device, soon FROM many;
    INSERT INTO challenges SELECT id, soon FROM many;
    INSERT INTO pipe_parts SELECT id, 0, 0, 'part', soon FROM many;
    INSERT INTO key_packages SELECT id, device, 3, CASE WHEN n % 10 = 0 THEN 1 ELSE 0 END, soon, incarnation, 'key' FROM many, relay;
    INSERT INTO groups SELECT DISTINCT ON (group_id) group_id, 0, 0, 0, id, 'info'::bytea FROM many;
    INSERT INTO group_members SELECT group_id, device, n, CASE WHEN n % 5 = 0 THEN n END,
        CASE WHEN n % 5 = 0 THEN soon END, CASE WHEN n % 50 = 0 THEN 1 ELSE 0 END FROM many;
    INSERT INTO envelopes (kind, group_id, number, expires_hour_ms, pointers, payload)
        SELECT 1, group_id, n, 1000 + n, 2, 'payload' FROM many ORDER BY n;
    INSERT INTO commits SELECT group_id, n, n, '', '', 1000 + n FROM many;
    INSERT INTO successors SELECT group_id, n, id, 1000 + n FROM many;
    INSERT INTO queue SELECT device, n, n, group_id, 7 FROM many;
    INSERT INTO message_ids SELECT id, '', 1000 + n, 200 FROM many;
    ANALYZE";

/// Makes Postgres use an index wherever there is one. It would on large tables; with this, few rows show what it lacks.
const INDEXES_ONLY: &str =
    "SET LOCAL enable_seqscan = off; SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off";

/// What this connection was handed.
const SAID: &str = "SELECT name, statement, CAST(cardinality(parameter_types) AS BIGINT) FROM pg_prepared_statements";

/// Does everything once that can be done to a store.
async fn everything(tx: &mut Tx) -> Result<(), StoreError> {
    add_group(tx, &[1, 2]).await?;
    add_account(tx, &[3]).await?;
    people(tx).await?;
    identity(tx).await?;
    key_packages_and_ids(tx).await?;
    groups_and_stays(tx).await?;
    queues(tx).await?;
    upkeep(tx).await?;
    farewell(tx).await?;
    tx.settle_released().await
}

async fn people(tx: &mut Tx) -> Result<(), StoreError> {
    let (account, devices) = (account_id(1), BTreeSet::from([device_id(1), device_id(2)]));
    accounts::lock_lists(tx, &BTreeSet::from([account])).await?;
    accounts::lock_devices(tx, &devices).await?;
    assert!(accounts::replace_list(tx, &account, 2, &list(2)).await?);
    assert!(accounts::by_id(tx, &account).await?.is_some());
    assert!(accounts::by_username(tx, &"nobody".parse().unwrap()).await?.is_none());
    assert_eq!(accounts::devices(tx, &account).await?.len(), 1);
    assert!(accounts::device(tx, &device_id(1)).await?.is_some());
    sessions::add_challenge(tx, &nonce(1), 10).await?;
    assert!(sessions::take_challenge(tx, &nonce(1), 0).await?);
    let token = Hash::of(b"token");
    sessions::add(tx, &token, &device_id(1), 10, 5).await?;
    assert!(sessions::holder(tx, &token, 0).await?.is_some());
    assert_eq!(sessions::holders(tx, &[token], 0).await?.len(), 1);
    sessions::end(tx, &token).await?;
    invites(tx).await?;
    pipes(tx).await
}

async fn invites(tx: &mut Tx) -> Result<(), StoreError> {
    let invite = invites::Invite { code_hash: Hash::of(b"code"), uses_left: 2, expires_ms: 10 };
    invites::add(tx, &invite).await?;
    assert_eq!(invites::count(tx).await?, 1);
    assert!(invites::use_up(tx, &invite.code_hash, 0).await?);
    assert_eq!(invites::holding(tx, 0).await?.len(), 1);
    assert!(invites::delete(tx, &invite.code_hash).await?);
    invites::expire(tx, 0, 500).await.map(|_| ())
}

async fn pipes(tx: &mut Tx) -> Result<(), StoreError> {
    let part = pipes::Part { pipe_hash: Hash::of(b"pipe"), is_answer: true, number: 0 };
    assert!(pipes::begin(tx, &part.pipe_hash, b"request", 10, 0, room_for(u64::MAX)).await?);
    assert!(pipes::add(tx, &part, b"answer", 0, room_for(1)).await?);
    assert!(pipes::content(tx, &part, 0).await?.is_some());
    pipes::expire(tx, 0, 500).await.map(|_| ())
}

async fn identity(tx: &mut Tx) -> Result<(), StoreError> {
    relay::identity(tx).await?;
    let (mark, _) = relay::marks(tx).await?.unwrap();
    relay::become_one(tx, &SystemRandom, "").await?;
    relay::remark(tx, &mark, &mark).await?;
    relay::mark_only(tx, &mark).await
}

async fn key_packages_and_ids(tx: &mut Tx) -> Result<(), StoreError> {
    let device = device_id(1);
    let new = [key_packages::key("once", false, 900), key_packages::key("last", true, 900)];
    keys::add(tx, &device, &new).await?;
    assert_eq!(keys::one_time_left(tx, &device, key_packages::SUITE, 10).await?, 1);
    assert!(keys::take_one_time(tx, &device, key_packages::SUITE, 10).await?.is_some());
    assert!(keys::last_resort(tx, &device, key_packages::SUITE, 10).await?.is_some());
    keys::counts(tx, &device, 10).await?;
    keys::stored_one_time(tx, &device, key_packages::SUITE).await?;
    keys::spend_stale(tx, &device).await?;
    keys::reconcile(tx, &device, &BTreeSet::new(), 10).await?;
    let id = Hash::of(b"id");
    let stub = NewStub { id_hash: id, body_hash: id, expires_hour_ms: 0 };
    assert!(message_ids::claim(tx, &[stub]).await?.is_empty());
    message_ids::note_commit(tx, &id, 1).await?;
    assert_eq!(message_ids::claim(tx, &[stub]).await?.len(), 1);
    message_ids::give_back(tx, &[id]).await
}

async fn groups_and_stays(tx: &mut Tx) -> Result<(), StoreError> {
    let (group, device, account) = (group_id(), device_id(3), account_id(1));
    let (all, devices) = (BTreeSet::from([group]), BTreeSet::from([device]));
    groups::lock(tx, &all).await?;
    groups::begin_stays(tx, &group, &[device], 1).await?;
    assert!(groups::standing(tx, &group, &device).await?.is_some());
    assert!(groups::position(tx, &group).await?.is_some());
    groups::sealed_group_info(tx, &group).await?;
    groups::advance(tx, &group, &account, b"info").await?;
    groups::bump_members(tx, &group).await?;
    assert_eq!(groups::members_of(tx, &all).await?[&group].len(), 3);
    assert_eq!(groups::group_counts(tx, &devices).await?[&device], 1);
    assert!(groups::account_is_in(tx, &group, &account).await?);
    assert_eq!(groups::members(tx, &group).await?.len(), 3);
    assert_eq!(groups::groups_of(tx, &device).await?.len(), 1);
    assert_eq!(groups::stays_of(tx, &devices).await?.len(), 1);
    groups::end_stays(tx, &group, &[device], 2, HOUR_MS, Ending::ByCommit).await?;
    assert!(groups::was_member_at(tx, &group, &device, 1).await?);
    assert!(!groups::was_member_at(tx, &group, &device, 2).await?);
    assert!(groups::members_at(tx, &group, 1).await?.contains(&device));
    assert_eq!(groups::newest_commit_account(tx, &group).await?, Some(account));
    groups::record_successor(tx, &group, 1, &GroupId::from_random([7; 16]), HOUR_MS).await?;
    assert!(groups::successor(tx, &group, 1).await?.is_some());
    groups::forget_devices(tx, &devices).await?;
    assert_eq!(groups::committed_by(tx, &account).await?.len(), 1);
    groups::forget_account(tx, &account).await
}

async fn queues(tx: &mut Tx) -> Result<(), StoreError> {
    const ONE: Room = Room { entries_max: 1, bytes_max: 1, group_entries_min: 0, group_bytes_min: 0 };
    let (group, device) = (group_id(), device_id(1));
    let both = [device, device_id(2)];
    let posted = message(&group, b"commit", HOUR_MS, &both);
    let posted = NewEnvelope { kind: Kind::Commit, number: 1, held_by_commits: true, ..posted };
    let more = [message(&group, b"one", HOUR_MS, &both), message(&group, b"two", HOUR_MS, &[device])];
    let envelope = append_all(tx, &ROOM, &[posted]).await?[0];
    let commit = NewCommit { group, commit_seq: 1, envelope, added: &[], removed: &[], posted_hour_ms: HOUR_MS };
    groups::add_commit(tx, &commit).await?;
    assert_eq!(groups::commits_after(tx, &group, 0, 9, 99).await?.len(), 1);
    assert_eq!(queue::unacked_commits(tx, &device, &group, 9).await?.len(), 1);
    append_all(tx, &ONE, &more).await?;
    assert!(queue::unacked_commits(tx, &device, &group, 9).await?.is_empty(), "it was displaced");
    queue::notice_waits(tx, &device, Kind::KeysLow, 3).await?;
    queue::next_stream(tx, &device).await?;
    assert_eq!(queue::states(tx, &both, 0).await?.len(), 2);
    assert!(queue::cursor(tx, &device).await?.is_some());
    let request =
        PageRequest { device, token_hash: Hash::of(b"token"), after: 0, entries_max: 100, bytes_max: 1 << 20 };
    assert_eq!(queue::page(tx, &request, 0).await?.unwrap().deliveries.len(), 1);
    ack(tx, 2, 2).await?;
    let mut cursors = queue::lock(tx, &both.into()).await?;
    queue::delete_all(tx, &mut cursors, &BTreeSet::from([both[1]])).await?;
    queue::jump_beyond(tx, &device, 99).await
}

/// Each kind once, but for what is filled in.
async fn upkeep(tx: &mut Tx) -> Result<(), StoreError> {
    sessions::expire(tx, 0, 500).await?;
    message_ids::expire(tx, 0, 500).await?;
    keys::expire(tx, 0, 500).await?;
    queue::expire(tx, HOUR_MS, 1).await?;
    groups::expire_commits(tx, 1_002, 1).await?;
    groups::expire_successors(tx, 1_002, 1).await?;
    groups::expire_deserted(tx, 0, 500).await?;
    groups::expire_stays(tx, 0, 500).await.map(|_| ())
}

async fn farewell(tx: &mut Tx) -> Result<(), StoreError> {
    groups::delete(tx, &group_id()).await?;
    accounts::end_sessions(tx, &device_id(1)).await?;
    accounts::delete_key_packages(tx, &device_id(1)).await?;
    accounts::delete_device(tx, &device_id(3)).await?;
    accounts::delete(tx, &account_id(3)).await
}

/// What Postgres was handed, with how it goes about each on full tables and without knowing what it is asked for.
async fn plans_on_postgres() -> Vec<(String, String)> {
    let fresh = fresh_postgres().await;
    let rows = short_or_soak(5_000, 100_000);
    let fill = FILL.replace("{rows}", &rows.to_string()).replace("{few}", &(rows / 10).to_string());
    done(&fresh.db, |tx| {
        Box::pin(async move {
            let db = on_postgres(tx);
            Ok(sqlx::raw_sql(sqlx::AssertSqlSafe(fill)).execute(db).await.map(|_| ())?)
        })
    })
    .await;
    let plans = done(&fresh.db, move |tx| {
        Box::pin(async move {
            everything(tx).await?;
            let db = on_postgres(tx);
            let said: Vec<(String, String, i64)> = sqlx::query_as(SAID).fetch_all(&mut *db).await?;
            sqlx::raw_sql("SET LOCAL plan_cache_mode = force_generic_plan").execute(&mut *db).await?;
            if rows < 100_000 {
                sqlx::raw_sql(INDEXES_ONLY).execute(&mut *db).await?;
            }
            let mut plans = Vec::new();
            for (name, statement, parameters) in said {
                let nulls = vec!["NULL"; usize::try_from(parameters).unwrap()].join(", ");
                let nulls = if parameters == 0 { nulls } else { format!("({nulls})") };
                let explain = sqlx::AssertSqlSafe(format!("EXPLAIN EXECUTE {name}{nulls}"));
                let steps: Vec<String> = sqlx::query_scalar(explain).persistent(false).fetch_all(&mut *db).await?;
                plans.push((statement, steps.join("\n")));
            }
            Ok(plans)
        })
    })
    .await;
    fresh.remove().await;
    plans
}

/// Tables that have one row, or a few.
fn is_small(table: &str) -> bool {
    ["relay", "invites", "pg_database"].contains(&table.split_whitespace().next().unwrap_or_default())
}

#[tokio::test]
async fn no_statement_reads_a_whole_table() {
    let plans = plans_on_postgres().await;
    assert!(plans.len() > 60, "{} statements", plans.len());
    let mut bad = Vec::new();
    for (statement, plan) in &plans {
        let whole_tables = plan.split("Seq Scan on ").skip(1).filter(|table| !is_small(table)).count();
        let indexes = plan.matches("Index Scan using ").count() + plan.matches("Index Only Scan using ").count();
        let whole_indexes = indexes.saturating_sub(plan.matches("Index Cond: ").count());
        if whole_tables + whole_indexes > 0 {
            bad.push(format!("{statement}\n{plan}"));
        }
    }
    assert!(bad.is_empty(), "{}", bad.join("\n\n"));

    let fresh = fresh_sqlite().await;
    let Conn::Sqlite(db) = &mut fresh.db.read().await.unwrap() else { panic!("not SQLite") };
    let mut looked_at = 0;
    for (statement, _) in &plans {
        let Some(statement) = in_sqlites_words(statement) else { continue };
        let explain = sqlx::AssertSqlSafe(format!("EXPLAIN QUERY PLAN {statement}"));
        let steps: Vec<(i64, i64, i64, String)> = sqlx::query_as(explain).fetch_all(&mut **db).await.unwrap();
        let plan: Vec<_> = steps.into_iter().map(|(.., step)| step).collect();
        let mut scans = plan.iter().filter_map(|step| step.strip_prefix("SCAN "));
        if !scans.all(|what| is_handed_over(what) || is_small(what)) {
            bad.push(format!("{statement}\n{}", plan.join("\n")));
        }
        looked_at += 1;
    }
    assert!(bad.is_empty(), "{}", bad.join("\n\n"));
    assert!(looked_at > 60, "{looked_at} statements");
}

/// What a statement brings along or has just put together; all of it is read, and it is never much.
fn is_handed_over(what: &str) -> bool {
    ["json_each", "rows", "expired", "gone", "page", "sized", "p", "held", "CONSTANT", "(subquery"]
        .iter()
        .any(|name| what.split([' ', '-']).next() == Some(name))
}

/// A statement as `pair!` says it to SQLite; `None` if it is said to Postgres only.
fn in_sqlites_words(statement: &str) -> Option<String> {
    let mut statement = statement.to_owned();
    for lock in [" FOR UPDATE SKIP LOCKED", " FOR UPDATE"] {
        statement = statement.replace(lock, "");
    }
    statement = statement.replace("unnest($1::bytea[]))", "unhex(value ->> 0) FROM json_each($1))");
    if let Some((before, rest)) = statement.split_once("unnest(") {
        let (_, rest) = rest.split_once(") WITH ORDINALITY AS rows (")?;
        let (names, after) = rest.split_once(", nth)")?;
        let columns: String =
            names.split(", ").enumerate().map(|(nth, name)| format!("value ->> {nth} AS {name}, ")).collect();
        statement = format!("{before}(SELECT {columns}key AS nth FROM json_each($1)) AS rows{after}");
    }
    let sqlite_knows = !["pg_", "current_setting"].iter().any(|word| statement.contains(word));
    sqlite_knows.then_some(statement)
}
