//! A relay with a domain name: its certificate comes from an authority, by ACME, and is renewed while people chat.
//!
//! The authority is a real one for tests (Pebble), on a machine of the test's own where the name leads to the relay.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Stdio,
};

use rcgen::{CertifiedKey, generate_simple_self_signed};
use tokio::{
    net::TcpStream,
    process::{Child, Command},
};
use undertone_tests::{
    Person, ask, binary, certificate_of, connect_tls, on_a_machine_of_its_own, program, said, wait_until,
};

const NAME: &str = "acme::a_certificate_comes_from_an_authority_and_is_renewed";
const RELAY: &str = "relay.example.org";
const AUTHORITY: &str = "authority.example.org";
const AT_RELAY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 443);

/// How long a certificate lives. It is renewed when two thirds of that are over.
const LIFE_S: u64 = 45;

/// An authority that signs for who answers at port 443 of a name.
struct Authority {
    process: Child,
    /// Its own certificate, by which the relay knows it.
    own: PathBuf,
    /// With what it signs.
    root: PathBuf,
}

impl Authority {
    async fn start(folder: &Path) -> Self {
        let (own, key, config) =
            (folder.join("authority.pem"), folder.join("authority.key"), folder.join("pebble.json"));
        let CertifiedKey { cert, signing_key } = generate_simple_self_signed([AUTHORITY.to_owned()]).unwrap();
        fs::write(&own, cert.pem()).unwrap();
        fs::write(&key, signing_key.serialize_pem()).unwrap();
        let settings = serde_json::json!({ "pebble": {
            "listenAddress": "127.0.0.1:14000", "managementListenAddress": "127.0.0.1:15000",
            "certificate": own, "privateKey": key, "tlsPort": 443, "httpPort": 80,
            "certificateValidityPeriod": LIFE_S,
        }});
        fs::write(&config, settings.to_string()).unwrap();
        let mut command = program("pebble");
        command.arg("-config").arg(&config).args(["-strict", "true"]);
        // It neither idles nor refuses at random.
        command.env("PEBBLE_VA_NOSLEEP", "1").env("PEBBLE_WFE_NONCEREJECT", "0");
        let process = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let root = folder.join("root.pem");
        let asked = "GET /roots/0 HTTP/1.1\r\nhost: authority.example.org\r\nconnection: close\r\n\r\n";
        let answer = wait_until("the authority answers", async || {
            let there = ([127, 0, 0, 1], 15000).into();
            let connection = connect_tls(Ipv4Addr::LOCALHOST, there, AUTHORITY, &own).await.ok()?;
            Some(ask(connection, asked).await)
        });
        let answer = answer.await;
        fs::write(&root, &answer[answer.find("-----BEGIN").unwrap()..]).unwrap();
        Self { process, own, root }
    }
}

fn relay(data: &Path, authority: &Authority, arguments: &[&str]) -> Command {
    let mut command = Command::new(binary("undertone-server"));
    command.args(["--listen", "0.0.0.0:443", "--address", RELAY, "--tls", "acme", "--log", "warn", "--data"]).arg(data);
    command.env("UNDERTONE_ACME_DIRECTORY", format!("https://{AUTHORITY}:14000/dir"));
    command.env("SSL_CERT_FILE", &authority.own).args(arguments).kill_on_drop(true);
    command
}

/// A command of the client, which knows the authority.
fn client(person: &Person, authority: &Authority, arguments: &[&str]) -> Command {
    let mut command = person.command(arguments);
    command.env("SSL_CERT_FILE", &authority.root);
    command
}

#[tokio::test]
async fn a_certificate_comes_from_an_authority_and_is_renewed() {
    if !on_a_machine_of_its_own(NAME, &[], &[RELAY, AUTHORITY]).await {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let mut authority = Authority::start(folder.path()).await;
    let mut serving = relay(&data, &authority, &[]).stdout(Stdio::null()).spawn().unwrap();
    let shown = async || {
        let connection = connect_tls(Ipv4Addr::LOCALHOST, AT_RELAY, RELAY, &authority.root).await.ok()?;
        Some(certificate_of(&connection))
    };
    let first = wait_until("a certificate is there", shown).await;

    let invited = said(relay(&data, &authority, &["invite", "create", "--uses", "2"])).await;
    assert!(invited.starts_with("undertone://relay.example.org/#invite="), "{invited}");
    let [alice, bob] = ["alice", "bob"].map(|name| Person::new(folder.path(), name));
    for person in [&alice, &bob] {
        let register = ["register", "--relay", &invited, "--username", &person.name];
        said(client(person, &authority, &register)).await;
    }
    said(client(&alice, &authority, &["group", "create", "trip", "--add", "bob"])).await;
    wait_until("the certificate is renewed", async || shown().await.filter(|shown| *shown != first)).await;
    said(client(&alice, &authority, &["send", "trip", "snow!"])).await;
    let heard = said(client(&bob, &authority, &["listen", "--count", "1", "--for", "30"])).await;
    assert!(heard.contains("snow!"), "{heard}");

    let tested = said(relay(&data, &authority, &["test"]).env("SSL_CERT_FILE", &authority.root)).await;
    assert!(tested.contains("remove"), "{tested}");
    let healthy = said(relay(&data, &authority, &["health"])).await;
    assert_eq!(healthy, "ready");

    // What is kept is shown after a restart, even if the authority is away; and nobody but the owner reads it.
    authority.process.kill().await.unwrap();
    let last = shown().await.unwrap();
    serving.kill().await.unwrap();
    wait_until("the relay is gone", async || TcpStream::connect(AT_RELAY).await.err()).await;
    let _serving = relay(&data, &authority, &[]).stdout(Stdio::null()).spawn().unwrap();
    assert_eq!(wait_until("the kept certificate is shown", shown).await, last);
}
