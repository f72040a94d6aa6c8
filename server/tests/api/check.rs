//! What whoever hosts a relay asks of it from outside: whether it is ready, and whether everything works.

use std::{
    future::pending,
    path::Path,
    process::{Output, Stdio},
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::Command,
    sync::oneshot,
    task::JoinHandle,
};
use undertone_server::{
    AdminAnswer, AdminRequest, CheckError, Config, Left, Relay, RelayError, RoundError, Step, Stop, SystemClock,
    SystemRandom, Tls, Why, ask, health, round_trip,
};
use undertone_wire::{Hash, Registration};

use crate::support::{Backend, Fault, SOON, Store, TestRelay, both, in_front_of, server, until};

both! {
    a_round_does_all_steps_and_leaves_nothing,
    where_an_invite_is_needed_one_is_made_and_nothing_is_left_of_it,
    wherever_it_is_interrupted_nothing_is_left,
    a_step_that_the_relay_refuses_is_named_and_nothing_is_left,
    accounts_are_removed_whose_registration_was_not_heard,
    accounts_whose_removal_was_not_heard_are_gone,
    what_is_left_when_the_relay_dies_in_the_middle_is_said,
    where_nobody_may_register_it_says_so,
    an_invite_of_another_store_is_said_to_be_one,
    a_relay_with_a_key_of_its_own_is_known_by_it_and_by_nothing_else,
    a_relay_is_healthy_while_it_serves,
    the_verbs_say_it_in_words_and_by_their_status,
    a_round_that_is_terminated_removes_its_accounts,
}

/// All steps but the invite, in their order.
const STEPS: [Step; 10] = [
    Step::Reach,
    Step::Register,
    Step::LogIn,
    Step::Send,
    Step::Poll,
    Step::Ack,
    Step::Stream,
    Step::Delivery,
    Step::Nothing,
    Step::Remove,
];

/// The configuration of a relay that serves.
fn config_of(relay: &TestRelay) -> Config {
    Config::new(relay.store.place(), relay.url.trim_start_matches("http://").parse().unwrap())
}

/// Lets a round go to its end, and answers with the steps that it did.
async fn round(config: &Config, at: Option<&str>) -> (Result<(), RoundError>, Vec<Step>) {
    round_until(config, at, None).await
}

/// The same, interrupted after a step.
async fn round_until(config: &Config, at: Option<&str>, last: Option<Step>) -> (Result<(), RoundError>, Vec<Step>) {
    let (interrupt, interrupted) = oneshot::channel::<()>();
    let (mut interrupt, mut steps) = (Some(interrupt), vec![]);
    let interrupted = async {
        if interrupted.await.is_err() {
            pending::<()>().await;
        }
    };
    let done = round_trip(config, at, (Arc::new(SystemClock), &SystemRandom), interrupted, |step, _| {
        steps.push(step);
        if Some(step) == last
            && let Some(interrupt) = interrupt.take()
        {
            interrupt.send(()).unwrap();
        }
    });
    let done = tokio::time::timeout(SOON * 2, done).await.expect("a round ends");
    (done, steps)
}

/// How many rows there are of what a round makes.
async fn rows(store: &Store) -> Vec<(&'static str, i64)> {
    let mut rows = vec![];
    for table in ["accounts", "devices", "sessions", "queue", "envelopes", "invites"] {
        rows.push((table, store.rows(table).await));
    }
    rows.retain(|(_, rows)| *rows > 0);
    rows
}

#[track_caller]
fn failed(done: Result<(), RoundError>) -> (Step, Why, Vec<Left>) {
    match done {
        Err(RoundError { stop: Some(Stop::Failed(step, why)), left, .. }) => (step, why, left),
        other => panic!("{other:?}"),
    }
}

async fn a_round_does_all_steps_and_leaves_nothing(on: Backend) {
    let relay = TestRelay::start(on).await;
    let config = config_of(&relay);
    for at in [None, Some(relay.url.as_str())] {
        let (done, steps) = round(&config, at).await;
        done.unwrap();
        assert_eq!(steps, STEPS);
        assert_eq!(rows(&relay.store).await, []);
    }
}

async fn where_an_invite_is_needed_one_is_made_and_nothing_is_left_of_it(on: Backend) {
    let relay = TestRelay::with_registration(on, Registration::Invite).await;
    let config = config_of(&relay);
    let (done, steps) = round(&config, None).await;
    done.unwrap();
    assert_eq!(steps, [&[Step::Reach, Step::Invite], &STEPS[1..]].concat());
    assert_eq!(rows(&relay.store).await, []);
}

async fn wherever_it_is_interrupted_nothing_is_left(on: Backend) {
    let relay = TestRelay::with_registration(on, Registration::Invite).await;
    let config = config_of(&relay);
    for last in [&[Step::Invite], &STEPS[..9]].concat() {
        let (done, steps) = round_until(&config, None, Some(last)).await;
        let error = done.unwrap_err();
        assert!(matches!(error.stop, Some(Stop::Interrupted)) && error.left.is_empty(), "{last}: {error}");
        assert_eq!(steps.last(), Some(&last));
        assert_eq!(rows(&relay.store).await, [], "{last}");
    }
}

async fn a_step_that_the_relay_refuses_is_named_and_nothing_is_left(on: Backend) {
    let relay = TestRelay::with(on, |config| config.limits.queue_direct_entries_max = 0).await;
    let (done, steps) = round(&config_of(&relay), None).await;
    let (step, why, left) = failed(done);
    assert!(matches!((step, &why), (Step::Send, Why::Relay(_))), "{step}: {why}");
    assert_eq!((steps.as_slice(), left.len()), (&STEPS[..3], 0));
    assert_eq!(rows(&relay.store).await, []);
}

async fn accounts_are_removed_whose_registration_was_not_heard(on: Backend) {
    let relay = TestRelay::start(on).await;
    let front = in_front_of(&relay, "POST /v1/accounts", Fault::LosesTheAnswer).await;
    let (step, why, left) = failed(round(&config_of(&relay), Some(&front)).await.0);
    assert!(matches!((step, &why), (Step::Register, Why::Relay(_))), "{step}: {why}");
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(rows(&relay.store).await, []);
}

async fn accounts_whose_removal_was_not_heard_are_gone(on: Backend) {
    let relay = TestRelay::start(on).await;
    let front = in_front_of(&relay, "DELETE /v1/account", Fault::LosesTheAnswer).await;
    let (step, why, left) = failed(round(&config_of(&relay), Some(&front)).await.0);
    assert!(matches!((step, &why), (Step::Remove, Why::Relay(_))), "{step}: {why}");
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(rows(&relay.store).await, []);
}

async fn what_is_left_when_the_relay_dies_in_the_middle_is_said(on: Backend) {
    let relay = TestRelay::with_registration(on, Registration::Invite).await;
    let config = config_of(&relay);
    let front = in_front_of(&relay, "POST /v1/messages", Fault::Dies).await;
    let done = round(&config, Some(&front)).await.0;
    let said = done.as_ref().unwrap_err().to_string();
    assert!(said.starts_with("send: ") && !said.contains('\n'), "{said}");
    assert!(said.contains("2 account(s) of this test may be left at the relay"), "{said}");
    let (step, _, left) = failed(done);
    assert!(step == Step::Send && matches!(left.as_slice(), [Left::Accounts(2, _)]), "{left:?}");
    // What the other tests look for is seen where it is.
    let there = rows(&relay.store).await;
    assert_eq!(there, [("accounts", 2), ("devices", 2), ("sessions", 2)], "the invite is gone in any case");
}

async fn where_nobody_may_register_it_says_so(on: Backend) {
    let relay = TestRelay::with_registration(on, Registration::Closed).await;
    let (step, why, left) = failed(round(&config_of(&relay), None).await.0);
    assert!(matches!((step, &why), (Step::Reach, Why::Closed)), "{step}: {why}");
    assert!(left.is_empty() && rows(&relay.store).await.is_empty(), "{left:?}");
}

async fn an_invite_of_another_store_is_said_to_be_one(on: Backend) {
    let relay = TestRelay::with_registration(on, Registration::Invite).await;
    let other = TestRelay::with_registration(on, Registration::Invite).await;
    let config = config_of(&other);
    let (step, why, left) = failed(round(&config, Some(&relay.url)).await.0);
    assert!(matches!((step, &why), (Step::Register, Why::OtherStore)), "{step}: {why}");
    assert!(left.is_empty(), "{left:?}");
    for store in [&relay.store, &other.store] {
        assert_eq!(rows(store).await, []);
    }
}

/// A relay in process that speaks TLS with a key that it keeps in a folder, and its configuration.
async fn encrypted(
    store: &Store,
    folder: &Path,
    registration: Registration,
) -> (Config, JoinHandle<Result<(), RelayError>>) {
    let mut config = Config::new(store.place(), "127.0.0.1:0".parse().unwrap());
    (config.tls, config.data, config.registration) = (Tls::SelfMade, folder.to_owned(), registration);
    let relay = Relay::bind(config.clone(), Arc::new(SystemClock), Arc::new(SystemRandom)).await.unwrap();
    config.listen = relay.local_addr();
    let serving = tokio::spawn(relay.serve(pending()));
    until("a relay that is ready", async || health(&config).await.is_ok()).await;
    (config, serving)
}

async fn a_relay_with_a_key_of_its_own_is_known_by_it_and_by_nothing_else(on: Backend) {
    let (store, folder) = (Store::new(on).await, tempfile::tempdir().unwrap());
    let (config, serving) = encrypted(&store, folder.path(), Registration::Invite).await;
    let (done, steps) = round(&config, None).await;
    done.unwrap();
    assert_eq!(steps.len(), STEPS.len() + 1);

    let connection = undertone_server::connection_string(&config).unwrap().unwrap();
    let create = AdminRequest::CreateInvite { uses: 2, life_s: 600 };
    let AdminAnswer::Created { code, .. } = ask(&config.place, create).await.unwrap() else { panic!("no invite") };
    let invited = connection.clone().with_invite(code).to_string();
    let (done, steps) = round(&config, Some(&invited)).await;
    done.unwrap();
    assert_eq!(steps, STEPS, "the invite that is given serves");

    let mut other = connection;
    other.fingerprint = Some(Hash::from([7; 32]));
    let (step, why, _) = failed(round(&config, Some(&other.to_string())).await.0);
    assert!(step == Step::Reach && why.to_string().contains("another key"), "{step}: {why}");
    // Somebody else's key in the data folder is as another fingerprint.
    let elsewhere = tempfile::tempdir().unwrap();
    let mut config = config;
    config.data = elsewhere.path().to_owned();
    assert!(matches!(health(&config).await, Err(CheckError::NoKey(_))));
    undertone_server::connection_string(&config).unwrap();
    let untrusted = health(&config).await.unwrap_err().to_string();
    assert!(untrusted.contains("another key"), "{untrusted}");
    assert_eq!(rows(&store).await, []);
    serving.abort();
}

async fn a_relay_is_healthy_while_it_serves(on: Backend) {
    let relay = TestRelay::start(on).await;
    let config = config_of(&relay);
    health(&config).await.unwrap();
    let _stopped = relay.stop().await;
    let gone = health(&config).await.unwrap_err().to_string();
    assert!(gone.contains("cannot be reached"), "{gone}");
}

/// What the program says about a relay.
async fn run(relay: &TestRelay, arguments: &[&str]) -> Output {
    let config = config_of(relay);
    let listen = config.listen.to_string();
    let database = match config.place {
        undertone_server::Place::Sqlite(file) => format!("sqlite:{}", file.display()),
        undertone_server::Place::Postgres(postgres) => postgres.url,
    };
    let all = [&["--listen", &listen, "--database", &database], arguments].concat();
    Command::from(server(&all)).output().await.unwrap()
}

async fn the_verbs_say_it_in_words_and_by_their_status(on: Backend) {
    let relay = TestRelay::with_registration(on, Registration::Invite).await;
    let healthy = run(&relay, &["health"]).await;
    assert!(healthy.status.success() && healthy.stdout == b"ready\n" && healthy.stderr.is_empty(), "{healthy:?}");

    let tested = run(&relay, &["test"]).await;
    let said = String::from_utf8(tested.stdout).unwrap();
    assert!(tested.status.success(), "{}", String::from_utf8_lossy(&tested.stderr));
    let lines: Vec<_> = said.lines().collect();
    assert_eq!(lines.len(), STEPS.len() + 1, "{said}");
    assert!(lines.iter().all(|line| line.ends_with(" ms") && line.len() == lines[0].len()), "{said}");
    assert_eq!(rows(&relay.store).await, []);

    let refused = run(&relay, &["test", "--relay", "http://192.0.2.1:7611"]).await;
    let said = String::from_utf8(refused.stderr).unwrap();
    assert_eq!((refused.status.code(), refused.stdout.len()), (Some(1), 0));
    assert!(said.contains("in clear") && said.lines().count() == 1, "{said}");
    let nobody = run(&relay, &["health", "--listen", "127.0.0.1:1"]).await;
    let said = String::from_utf8(nobody.stderr).unwrap();
    assert_eq!((nobody.status.code(), nobody.stdout.len()), (Some(1), 0));
    assert!(said.contains("cannot be reached") && said.lines().count() == 1, "{said}");
}

async fn a_round_that_is_terminated_removes_its_accounts(on: Backend) {
    let relay = TestRelay::start(on).await;
    let front = in_front_of(&relay, "POST /v1/messages", Fault::Holds).await;
    for signal in ["-TERM", "-INT"] {
        let mut command = Command::from(server(&["test", "--relay", &front]));
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        while !lines.next_line().await.unwrap().expect("it logs in").starts_with("log in") {}
        assert_eq!(relay.rows("accounts").await, 2, "they are there to be removed");
        let pid = child.id().unwrap().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().await.unwrap().success());
        let ended = tokio::time::timeout(SOON, child.wait_with_output()).await.unwrap().unwrap();
        let said = String::from_utf8(ended.stderr).unwrap();
        assert_eq!((ended.status.code(), said.trim()), (Some(1), "undertone-server: interrupted"));
        assert_eq!(rows(&relay.store).await, []);
    }
}

#[tokio::test]
async fn no_store_is_made_to_make_an_invite_in() {
    let relay = TestRelay::with_registration(Backend::Sqlite, Registration::Invite).await;
    let folder = tempfile::tempdir().unwrap();
    let place = undertone_server::Place::Sqlite(folder.path().join("undertone.db"));
    let mut config = config_of(&relay);
    config.place = place;
    let (step, why, _) = failed(round(&config, None).await.0);
    assert!(matches!((step, &why), (Step::Invite, Why::NoStore)), "{step}: {why}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn a_relay_that_says_nothing_is_not_healthy_for_long() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let place = undertone_server::Place::Sqlite("undertone.db".into());
    let config = Config::new(place, listener.local_addr().unwrap());
    let asked = tokio::time::timeout(Duration::from_secs(5), health(&config)).await.expect("an answer within 5 s");
    assert!(matches!(asked, Err(CheckError::Silent)));
}
