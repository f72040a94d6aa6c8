//! Everything that can be wrong with a configuration ends the relay at once, in one line that names what is wrong and what to do,
//! and leaves the folder in which it was started as it was.
//!
//! The programs run without any capability, as they do in a container, so that permissions count for root too.

use std::{
    collections::BTreeMap,
    fs,
    net::TcpListener,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{process::Command, time::timeout};
use undertone_tests::{Ids, binary, command, inside, said};

const NAME: &str = "misconfigured::what_is_wrong_is_said_in_one_line_and_leaves_nothing";

/// How long a relay may take to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// The configuration is wrong; it is right, and the relay cannot run with it.
const WRONG: i32 = 2;
const CANNOT: i32 = 1;

/// A case: what is given (`--` begins a flag, `UNDERTONE_` a variable, anything else is a command or a file's text, which goes to
/// `relay.toml`), how it ends, and words that the line has.
type Case = (&'static [&'static str], i32, &'static [&'static str]);

const CASES: &[Case] = &[
    // The file.
    (&["--config nowhere.toml"], WRONG, &["nowhere.toml: it cannot be read: No such file"]),
    (&["--config folder"], WRONG, &["folder: it cannot be read: Is a directory"]),
    (&["--config binary"], WRONG, &["binary: it cannot be read", "UTF-8"]),
    (&["--config secret"], WRONG, &["secret: it cannot be read: Permission denied"]),
    (&["UNDERTONE_CONFIG=nowhere.toml"], WRONG, &["nowhere.toml: it cannot be read"]),
    (&["listen = "], WRONG, &["relay.toml: line 1 is not TOML"]),
    (&["lisen = \"127.0.0.1:0\""], WRONG, &["relay.toml: lisen: there is no such key", "listen that is meant"]),
    (&["limits = 5"], WRONG, &["relay.toml: limits", "[limits]"]),
    (&["[limits]\nretension_s = 5"], WRONG, &["relay.toml: limits.retension_s", "limits.retention_s that is meant"]),
    (&["[database]\nurl = \"sqlite:a\""], WRONG, &["relay.toml: database"]),
    // Numbers.
    (&["[limits]\nretention_s = \"long\""], WRONG, &["relay.toml: limits.retention_s", "a whole number from 1 to"]),
    (&["[limits]\nretention_s = 0"], WRONG, &["limits.retention_s", "a whole number from 1 to"]),
    (&["--limit retention_s=-1"], WRONG, &["--limit: limits.retention_s", "a whole number from 1 to"]),
    (&["--limit retention_s"], WRONG, &["--limit: limits.retention_s", "a whole number from 1 to"]),
    (
        &["UNDERTONE_LIMITS_RETENTION_S=1e3"],
        WRONG,
        &["UNDERTONE_LIMITS_RETENTION_S: limits.retention_s", "whole number"],
    ),
    (&["--postgres-connections 2"], WRONG, &["--postgres-connections: postgres_connections", "from 3 to 1000"]),
    // Words and addresses.
    (&["UNDERTONE_LISTN=127.0.0.1:0"], WRONG, &["UNDERTONE_LISTN: there is no such variable", "UNDERTONE_LISTEN"]),
    (&["--listen localhost:7611"], WRONG, &["--listen: listen", "an address and a port, like 127.0.0.1:7611"]),
    (&["--listen 127.0.0.1:77777"], WRONG, &["--listen: listen", "an address and a port"]),
    (&["--listen 0.0.0.0:0 --tls off"], WRONG, &["--tls: tls", "listen on 127.0.0.1", "trusted_proxies"]),
    (&["--tls on"], WRONG, &["--tls: tls", "self-made, acme or off"]),
    (&["--tls acme"], WRONG, &["--tls: tls", "give it as address"]),
    (&["--tls acme --address 192.0.2.1"], WRONG, &["--address: address", "a domain name"]),
    (&["acme_directory = \"http://a\""], WRONG, &["acme_directory", "https:// URL"]),
    (&["UNDERTONE_ACME_CONTACT=me"], WRONG, &["acme_contact", "an e-mail address"]),
    (&["--address relay.example:0"], WRONG, &["--address: address", "a host, or a host and a port"]),
    (&["--address https://relay.example"], WRONG, &["--address: address", "a host, or a host and a port"]),
    (
        &["--trusted-proxies caddy"],
        WRONG,
        &["--trusted-proxies: trusted_proxies: caddy is not an address", "127.0.0.1"],
    ),
    (&["--trusted-proxies 0.0.0.0/0"], WRONG, &["trusted_proxies: 0.0.0.0/0 is everybody", "name the proxies"]),
    (&["--registration friends"], WRONG, &["--registration: registration", "open, invite or closed"]),
    (&["--postgres-failover maybe"], WRONG, &["--postgres-failover: postgres_failover", "lossy or lossless"]),
    (&["--log =="], WRONG, &["--log: log", "error, warn, info"]),
    (&["--database mysql://h/d"], WRONG, &["--database: database", "sqlite:PATH or postgres://"]),
    (&["--database sqlite:///tmp/a"], WRONG, &["--database: database", "a plain path"]),
    (&["--database postgres://u@[/d"], WRONG, &["--database: database", "postgres://USER:PASSWORD@HOST/DATABASE"]),
    // Secrets in files.
    (&["UNDERTONE_DATABASE_FILE=nowhere"], WRONG, &["database_file", "nowhere cannot be read: No such file"]),
    (&["UNDERTONE_DATABASE_FILE=secret"], WRONG, &["database_file", "secret cannot be read: Permission denied"]),
    (&["UNDERTONE_DATABASE_FILE=empty"], WRONG, &["database_file", "empty is empty"]),
    (
        &["UNDERTONE_DATABASE_FILE=url", "UNDERTONE_DATABASE=sqlite:a"],
        WRONG,
        &["database_file", "either this or database, not both"],
    ),
    // The command line.
    (&["--lisen 127.0.0.1:0"], WRONG, &["unexpected argument '--lisen'", "'--listen'"]),
    (&["serv"], WRONG, &["unrecognized subcommand 'serv'", "'serve'"]),
    (&["--data a --data b"], WRONG, &["'--data <FOLDER>' cannot be used multiple times"]),
    (&["invite create --expires tomorrow"], WRONG, &["'tomorrow' for '--expires <DURATION>'"]),
    // What the machine does not allow.
    (
        &["--listen 127.0.0.1:7700"],
        CANNOT,
        &["listen: cannot listen on 127.0.0.1:7700: Address already in use", "free"],
    ),
    (&["--listen 127.0.0.1:443"], CANNOT, &["listen: cannot listen on 127.0.0.1:443: Permission denied", "allowed"]),
    (
        &["--listen 192.0.2.77:7611"],
        CANNOT,
        &["listen: cannot listen on 192.0.2.77:7611: Cannot assign requested address", "an address of this machine"],
    ),
    (&["--data readonly/data"], CANNOT, &["database: cannot use readonly/data: Permission denied", "or as data"]),
    (&["--data empty/data"], CANNOT, &["database: cannot use empty/data: Not a directory", "or as data"]),
    (
        &["--database sqlite:readonly/undertone.db"],
        CANNOT,
        &["database: cannot use readonly/undertone.db", "Permission denied"],
    ),
    (&["--database sqlite:folder"], CANNOT, &["database: cannot use folder: Is a directory", "Name a place"]),
    (&["--database sqlite:binary"], CANNOT, &["database: binary is not a SQLite database", "Name a place"]),
    (&["--database sqlite:secret"], CANNOT, &["database: cannot use secret: Permission denied", "Name a place"]),
    (&["--database postgres://127.0.0.1:1/d"], CANNOT, &["database: ", "Connection refused", "See that it runs"]),
    (&["--database postgres://nowhere.invalid/d"], CANNOT, &["database: ", "failed to lookup", "the URL is right"]),
    (
        &["--tls self-made --data keyless"],
        CANNOT,
        &["data: the TLS key keyless/undertone.tls.key is not usable", "backup"],
    ),
    (
        &["--tls acme --address a.example --database sqlite:a.db --data readonly"],
        CANNOT,
        &["data: cannot keep a certificate in readonly: Permission denied", "its data folder"],
    ),
    (&["--tls acme --address a.example --data new --database postgres://127.0.0.1:1/d"], CANNOT, &["database: "]),
    (&["health --listen 127.0.0.1:7701"], CANNOT, &["the relay cannot be reached", "connection refused"]),
    (&["test --listen 127.0.0.1:7701"], CANNOT, &["the relay cannot be reached"]),
    (&["invite create --uses 0"], CANNOT, &["from 1 to 100000 uses"]),
];

/// What stands in the folder before each case.
fn furnish(folder: &Path) {
    for folder in ["folder", "readonly", "keyless"].map(|name| folder.join(name)) {
        fs::create_dir(folder).unwrap();
    }
    for (name, bytes) in [
        ("binary", &b"\xff\xfe, and more than sixteen bytes"[..]),
        ("empty", b""),
        ("secret", b"sqlite:a"),
        ("url", b"postgres://127.0.0.1:1/d"),
        ("keyless/undertone.tls.key", b"no key"),
    ] {
        fs::write(folder.join(name), bytes).unwrap();
    }
    for (name, mode) in [("readonly", 0o555), ("secret", 0o000)] {
        fs::set_permissions(folder.join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
}

/// All that is in a folder, with the sizes of files.
fn contents(folder: &Path) -> BTreeMap<PathBuf, u64> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let mut contents = BTreeMap::new();
    for entry in entries {
        let metadata = entry.metadata().unwrap();
        if metadata.is_dir() {
            contents.extend(self::contents(&entry.path()));
        }
        contents.insert(entry.path(), if metadata.is_dir() { 0 } else { metadata.len() });
    }
    contents
}

/// The relay's command for a case, in its folder.
fn relay(folder: &Path, given: &[&str]) -> Command {
    let mut relay = command("setpriv --no-new-privs --bounding-set=-all --inh-caps=-all --ambient-caps=-all");
    relay.arg(binary("undertone-server")).current_dir(folder).env_clear();
    let mut listen = vec!["--listen", "127.0.0.1:0"];
    for part in given {
        match part.split_once('=') {
            Some((name, value)) if name.starts_with("UNDERTONE_") => {
                relay.env(name, value);
            }
            _ if part.starts_with("--") || !part.contains(['=', '[']) => {
                if part.contains("--listen") || part.contains("--lisen") {
                    listen.clear();
                }
                relay.args(part.split(' '));
            }
            _ => {
                fs::write(folder.join("relay.toml"), part).unwrap();
                relay.args(["--config", "relay.toml"]);
            }
        }
    }
    relay.args(listen);
    relay
}

#[tokio::test]
async fn what_is_wrong_is_said_in_one_line_and_leaves_nothing() {
    if !inside(NAME, "--net", Ids::Root).await {
        return;
    }
    said(command("ip link set lo up")).await;
    let _taken = TcpListener::bind("127.0.0.1:7700").unwrap();
    assert!(CASES.len() >= 30);
    let mut wrong = Vec::new();
    for case in CASES {
        wrong.extend(tried(case).await.err());
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Tries a case. The error is what is not as it should be.
async fn tried((given, status, words): &Case) -> Result<(), String> {
    let folder = tempfile::tempdir().unwrap();
    furnish(folder.path());
    let mut relay = relay(folder.path(), given);
    let before = contents(folder.path());
    let done = timeout(PATIENCE, relay.kill_on_drop(true).output()).await;
    let done = done.map_err(|_| format!("{given:?} does not end"))?.unwrap();
    let [stdout, stderr] = [&done.stdout, &done.stderr].map(|said| String::from_utf8_lossy(said).into_owned());
    let in_a_line = stdout.is_empty() && stderr.lines().count() == 1 && stderr.starts_with("undertone-server: ");
    if done.status.code() != Some(*status) || !in_a_line || !words.iter().all(|words| stderr.contains(words)) {
        return Err(format!("{given:?} ends with {}: {stdout}{stderr}", done.status));
    }
    let mut left = contents(folder.path());
    left.retain(|path, len| before.get(path) != Some(len));
    if left.is_empty() { Ok(()) } else { Err(format!("{given:?} leaves {left:?}")) }
}
