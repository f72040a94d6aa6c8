//! What the program does beside serving: it shows its configuration, and makes, lists and revokes invites.

use std::process::Output;

use undertone_server::Place;
use undertone_wire::{Account as WireAccount, ErrorCode, InviteCode, Registration};

use crate::support::{Account, Backend, TestRelay, both, server};

both! {
    invites_are_tended_beside_a_relay_that_serves,
    invites_are_tended_while_no_relay_serves,
}

/// What a command over the relay's store says, if it succeeds.
async fn said(database: &str, arguments: &[&str]) -> Result<String, String> {
    let command = server(&[&["--database", database], arguments].concat());
    let Output { status, stdout, stderr } = tokio::process::Command::from(command).output().await.unwrap();
    let [stdout, stderr] = [stdout, stderr].map(|said| String::from_utf8(said).unwrap());
    if status.success() { Ok(stdout) } else { Err(stderr) }
}

fn database(relay: &TestRelay) -> String {
    match relay.store.place() {
        Place::Sqlite(file) => format!("sqlite:{}", file.display()),
        Place::Postgres(postgres) => postgres.url,
    }
}

async fn invites_are_tended_beside_a_relay_that_serves(on: Backend) {
    let relay = TestRelay::with_registration(on, Registration::Invite).await;
    let database = database(&relay);
    let code = said(&database, &["invite", "create", "--uses", "2", "--expires", "7d"]).await.unwrap();
    let code: InviteCode = code.trim().parse().unwrap();
    Account::new(1).invited(code).try_register(&relay.api()).await.yes::<WireAccount>();

    let listed = said(&database, &["invite", "list"]).await.unwrap();
    assert!(listed.contains("1 use(s) left") && listed.lines().count() == 1, "{listed}");
    assert!(!listed.contains(&code.to_string()), "the code is not kept");
    let (id, _) = listed.split_once(' ').unwrap();
    assert_eq!(said(&database, &["invite", "revoke", id]).await.unwrap(), "");
    Account::new(1).invited(code).try_register(&relay.api()).await.no(ErrorCode::InviteRequired);
    assert_eq!(said(&database, &["invite", "list"]).await.unwrap(), "");
    let refused = said(&database, &["invite", "revoke", id]).await.unwrap_err();
    assert!(refused.contains("no such invite"), "{refused}");
    let refused = said(&database, &["invite", "create", "--uses", "0"]).await.unwrap_err();
    assert!(refused.contains("from 1 to"), "{refused}");
}

async fn invites_are_tended_while_no_relay_serves(on: Backend) {
    let relay = TestRelay::with_registration(on, Registration::Invite).await;
    let database = database(&relay);
    let stopped = relay.stop().await;
    let code = said(&database, &["invite", "create"]).await.unwrap();
    let relay = stopped.start().await;
    Account::new(1).invited(code.trim().parse().unwrap()).try_register(&relay.api()).await.yes::<WireAccount>();
}

#[test]
fn the_configuration_is_shown_as_a_file_that_can_be_read() {
    let folder = tempfile::tempdir().unwrap();
    let shown = |arguments: &[&str]| {
        let Output { status, stdout, stderr } = server(arguments).output().unwrap();
        assert!(status.success(), "{}", String::from_utf8_lossy(&stderr));
        String::from_utf8(stdout).unwrap()
    };
    let template = shown(&["config", "--template"]);
    assert!(template.lines().all(|line| line.is_empty() || line.starts_with(['#', '['])), "{template}");
    let secret = "postgres://u:a-secret-word@localhost/d";
    let effective = shown(&["config", "--listen", "127.0.0.1:9", "--limit", "retention_s=7200", "--database", secret]);
    assert!(effective.contains("listen = \"127.0.0.1:9\"") && effective.contains("retention_s = 7200"), "{effective}");
    assert!(!effective.contains("a-secret-word"), "{effective}");
    let file = folder.path().join("undertone.toml");
    std::fs::write(&file, &effective).unwrap();
    let again = shown(&["config", "--config", file.to_str().unwrap()]);
    assert!(again.contains("listen = \"127.0.0.1:9\"") && again.contains("retention_s = 7200"), "{again}");
}
