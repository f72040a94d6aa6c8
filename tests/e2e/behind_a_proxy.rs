//! Behind a real Caddy and a real nginx, set up as `docs/self-hosting.md` says: people chat, long polls wait, streams stay
//! open, and the relay knows from which address a request came, whatever the request says of itself. Where no WebSocket gets
//! through, people chat all the same.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Stdio,
};

use rcgen::{CertifiedKey, generate_simple_self_signed};
use tokio::process::{Child, Command};
use undertone_tests::{
    Person, ask, binary, blocks, connect, connect_tls, on_a_machine_of_its_own, program, root, said, wait_until,
};

const RELAY: &str = "relay.example.org";
const HERE: Ipv4Addr = Ipv4Addr::LOCALHOST;
const PROXY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(10, 77, 0, 1)), 443);
const ONE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 3);
const ADDRESSES: [&str; 3] = ["10.77.0.1/32", "10.77.0.2/32", "10.77.0.3/32"];

/// How many requests a stranger has in a minute.
const STRANGER_REQUESTS: usize = 16;

/// A block of the page on hosting, by its language.
fn documented(language: &str) -> String {
    let page = fs::read_to_string(root().join("docs/self-hosting.md")).unwrap();
    blocks(&page, language).remove(0)
}

/// A proxy that runs, and the authority that signed its certificate.
struct Proxy {
    _process: Child,
    authority: PathBuf,
}

impl Proxy {
    async fn caddy(folder: &Path) -> Self {
        // Its own authority in place of one that asks back from the Internet.
        let settings = format!("{{\n\tlocal_certs\n\tskip_install_trust\n\tadmin off\n}}\n{}", documented("caddyfile"));
        let file = folder.join("Caddyfile");
        fs::write(&file, settings).unwrap();
        let mut command = program("caddy");
        command.args(["run", "--adapter", "caddyfile", "--config"]).arg(&file);
        command.env("HOME", folder).env("XDG_DATA_HOME", folder).env("XDG_CONFIG_HOME", folder);
        Self::run(command, folder.join("caddy/pki/authorities/local/root.crt")).await
    }

    async fn nginx(folder: &Path) -> Self {
        Self::nginx_as(folder, documented("nginx")).await
    }

    /// One through which no WebSocket gets, since it passes on nothing that asks for it.
    async fn without_websockets(folder: &Path) -> Self {
        let lines = documented("nginx");
        let kept = lines.lines().filter(|line| !line.contains("proxy_set_header Upgrade"));
        let kept: Vec<_> = kept.filter(|line| !line.contains("proxy_set_header Connection")).collect();
        assert_eq!(kept.len(), lines.lines().count() - 2, "{lines}");
        Self::nginx_as(folder, kept.join("\n")).await
    }

    async fn nginx_as(folder: &Path, server: String) -> Self {
        let CertifiedKey { cert, signing_key } = generate_simple_self_signed([RELAY.to_owned()]).unwrap();
        let (certificate, key) = (folder.join("fullchain.pem"), folder.join("privkey.pem"));
        fs::write(&certificate, cert.pem()).unwrap();
        fs::write(&key, signing_key.serialize_pem()).unwrap();
        let certbot = format!("/etc/letsencrypt/live/{RELAY}");
        let server = server.replace(&certbot, folder.to_str().unwrap());
        assert!(server.contains(certificate.to_str().unwrap()), "{server}");
        let place = folder.display();
        let settings = format!(
            "user root;\ndaemon off;\npid {place}/nginx.pid;\nevents {{}}\nhttp {{\naccess_log off;\n\
             client_body_temp_path {place}/body;\nproxy_temp_path {place}/proxy;\nfastcgi_temp_path {place}/fastcgi;\n\
             uwsgi_temp_path {place}/uwsgi;\nscgi_temp_path {place}/scgi;\n{server}}}\n"
        );
        let file = folder.join("nginx.conf");
        fs::write(&file, settings).unwrap();
        let mut command = program("nginx");
        command.args(["-e", "stderr", "-c"]).arg(&file);
        Self::run(command, certificate).await
    }

    async fn run(mut command: Command, authority: PathBuf) -> Self {
        let process = command.stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true).spawn().unwrap();
        let proxy = Self { _process: process, authority };
        wait_until("the relay answers through the proxy", async || {
            proxy.ask(HERE, "GET /readyz").await.filter(|answer| answer.starts_with("HTTP/1.1 200 "))
        })
        .await;
        proxy
    }

    /// What is answered to a request from this address; `None` if nothing is.
    async fn ask(&self, from: Ipv4Addr, request: &str) -> Option<String> {
        if !self.authority.exists() {
            return None;
        }
        let connection = connect_tls(from, PROXY, RELAY, &self.authority).await.ok()?;
        Some(ask(connection, &closing(request)).await)
    }

    /// The status of an answer.
    async fn status(&self, from: Ipv4Addr, request: &str) -> String {
        let answer = self.ask(from, request).await.unwrap();
        answer.split_whitespace().nth(1).unwrap().to_owned()
    }
}

/// A request, of which the first line may be followed by headers.
fn closing(request: &str) -> String {
    let (line, headers) = request.split_once("\r\n").unwrap_or((request, ""));
    format!("{line} HTTP/1.1\r\nhost: {RELAY}\r\ncontent-length: 0\r\nconnection: close\r\n{headers}\r\n")
}

fn relay(data: &Path, authority: Option<&Path>, arguments: &[&str]) -> Command {
    let mut command = Command::new(binary("undertone-server"));
    command.args(["--trusted-proxies", "127.0.0.1", "--address", RELAY, "--log", "warn", "--data"]).arg(data);
    command.args(["--limit", &format!("stranger_requests_minute_max={STRANGER_REQUESTS}")]);
    if let Some(authority) = authority {
        command.env("SSL_CERT_FILE", authority);
    }
    command.args(arguments).stdout(Stdio::null()).kill_on_drop(true);
    command
}

/// People register, make a group, and one reads what the other writes.
async fn people_chat(folder: &Path, data: &Path, proxy: &Proxy) {
    let authority = proxy.authority.as_path();
    let invited = said(relay(data, None, &["invite", "create", "--uses", "2"])).await;
    assert!(invited.starts_with("undertone://relay.example.org/#invite="), "{invited}");
    let [alice, bob] = ["alice", "bob"].map(|name| Person::new(folder, name));
    let does = async |person: &Person, arguments: &[&str]| {
        said(person.command(arguments).env("SSL_CERT_FILE", authority)).await
    };
    for person in [&alice, &bob] {
        does(person, &["register", "--relay", &invited, "--username", &person.name]).await;
    }
    does(&alice, &["group", "create", "trip", "--add", "bob"]).await;
    does(&alice, &["send", "trip", "snow!"]).await;
    let heard = does(&bob, &["listen", "--count", "1", "--for", "30"]).await;
    assert!(heard.contains("snow!"), "{heard}");
}

async fn a_relay_behind(start: impl AsyncFnOnce(&Path) -> Proxy) {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let _serving = relay(&data, None, &[]).spawn().unwrap();
    let proxy = start(folder.path()).await;
    let authority = proxy.authority.as_path();
    people_chat(folder.path(), &data, &proxy).await;
    // Long polls and streams, step by step.
    let tested = said(relay(&data, Some(authority), &["test"])).await;
    assert!(tested.contains("poll") && tested.contains("stream"), "{tested}");

    // Each address has its own count, and a request that names another counts for the one from which it came. If the name
    // counted, a count that is new would let all of these pass; between them hardly one is given back.
    let challenge = "POST /v1/auth/challenge";
    let crowded = async |request: &str, times: usize| {
        for _ in 0..times {
            if proxy.status(ONE, request).await == "429" {
                return true;
            }
        }
        false
    };
    assert!(crowded(challenge, 4 * STRANGER_REQUESTS).await);
    let forged =
        format!("{challenge}\r\nx-forwarded-for: 10.77.0.9\r\nforwarded: for=10.77.0.9\r\nx-real-ip: 10.77.0.9\r\n");
    assert!(crowded(&forged, STRANGER_REQUESTS / 2).await);
    assert_eq!(proxy.status(OTHER, challenge).await, "200");

    // Past the proxy nobody is spoken to in clear, but this machine.
    let past = SocketAddr::from((HERE, 7611));
    assert_eq!(ask(connect(ONE, past).await.unwrap(), &closing("GET /healthz")).await, "");
    let here = ask(connect(HERE, past).await.unwrap(), &closing("GET /healthz")).await;
    assert!(here.starts_with("HTTP/1.1 200 "), "{here}");
}

#[tokio::test]
async fn behind_caddy() {
    if on_a_machine_of_its_own("behind_a_proxy::behind_caddy", &ADDRESSES, &[RELAY]).await {
        a_relay_behind(Proxy::caddy).await;
    }
}

#[tokio::test]
async fn behind_nginx() {
    if on_a_machine_of_its_own("behind_a_proxy::behind_nginx", &ADDRESSES, &[RELAY]).await {
        a_relay_behind(Proxy::nginx).await;
    }
}

#[tokio::test]
async fn behind_one_that_lets_no_websocket_through() {
    let test = "behind_a_proxy::behind_one_that_lets_no_websocket_through";
    if !on_a_machine_of_its_own(test, &ADDRESSES, &[RELAY]).await {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let _serving = relay(&data, None, &[]).spawn().unwrap();
    let proxy = Proxy::without_websockets(folder.path()).await;
    people_chat(folder.path(), &data, &proxy).await;
    // Who runs the relay is told.
    let tested = relay(&data, Some(&proxy.authority), &["test"]).output().await.unwrap();
    assert!(!tested.status.success(), "{tested:?}");
}
