//! One cluster as its keeper's master: settings, port, and the orders in their right sequence. Everything here blocks.
//!
//! Invariant: a server listens on the same port for all its life, on the Unix socket in its folder and on 127.0.0.1.

use std::{
    fs::File,
    io::Write as _,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU16, Ordering},
};

use url::Url;

use crate::{Options, binaries::Binaries, keeper::Keeper};

pub(crate) const USER: &str = "undertone";

/// What every cluster is set to. The log is written in English and tells of locks that are waited for.
const SETTINGS: &str = "
shared_buffers = 64MB
max_connections = 300
wal_keep_size = 64MB
log_lock_waits = on
deadlock_timeout = 200ms
timezone = UTC
log_timezone = UTC
";

/// What is added when nothing need outlive a crash of the machine.
const NOT_DURABLE: &str = "
fsync = off
full_page_writes = off
max_wal_size = 256MB
";

/// Ports that systems do not hand out by themselves, so that one is still free when its server comes back.
const PORTS: (u16, u16) = (16_000, 16_000);
/// How many ports are tried: between finding one free and listening on it, another process may take it.
const PORTS_TRIED: usize = 5;

pub(crate) struct Server {
    binaries: Binaries,
    keeper: Keeper,
    port: u16,
}

impl Server {
    /// Makes a cluster and starts it.
    pub(crate) fn new(options: Options) -> Result<Self, String> {
        let server = Self::make(Binaries::find()?, "init")?;
        server.set(SETTINGS)?;
        if !options.durable {
            server.set(NOT_DURABLE)?;
        }
        server.start_first()
    }

    /// Makes a standby that streams from this server, and starts it.
    pub(crate) fn standby(&self) -> Result<Self, String> {
        let host = self.keeper.dir().display();
        let from = format!("host={host} port={} user={USER} application_name=standby", self.port);
        Self::make(self.binaries.clone(), &format!("copy {from}"))?.start_first()
    }

    pub(crate) fn start(&self) -> Result<(), String> {
        self.order(&format!("start {}", self.port))
    }

    /// Has the keeper do something. The error ends with the server's log, if there is one.
    pub(crate) fn order(&self, order: &str) -> Result<(), String> {
        self.keeper.order(order).map_err(|e| format!("{e}\n{}", self.log()))
    }

    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.keeper.dir().join("log")).unwrap_or_default()).into_owned()
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.keeper.dir().join("data")
    }

    pub(crate) fn bin(&self, name: &str) -> PathBuf {
        self.binaries.path(name)
    }

    pub(crate) fn dir(&self) -> &Path {
        self.keeper.dir()
    }

    pub(crate) fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// The URL of a database over the Unix socket.
    pub(crate) fn url(&self, database: &str) -> Result<Url, String> {
        let url = format!("postgres://{USER}@localhost:{}/{database}", self.port);
        let mut url = Url::parse(&url).map_err(|e| format!("{url}: {e}"))?;
        url.query_pairs_mut().append_pair("host", &self.keeper.dir().to_string_lossy());
        Ok(url)
    }

    fn make(binaries: Binaries, order: &str) -> Result<Self, String> {
        let server = Self { keeper: Keeper::new(&binaries)?, binaries, port: 0 };
        server.order(order)?;
        Ok(server)
    }

    fn set(&self, settings: &str) -> Result<(), String> {
        let path = self.data_dir().join("postgresql.conf");
        let file = File::options().append(true).open(&path);
        file.and_then(|mut file| file.write_all(settings.as_bytes())).map_err(|e| format!("{}: {e}", path.display()))
    }

    /// Starts the server for the first time, on a port that it finds.
    fn start_first(mut self) -> Result<Self, String> {
        let mut outcome = Err("no free port".to_owned());
        for port in free_ports().take(PORTS_TRIED) {
            self.port = port;
            outcome = self.start();
            match &outcome {
                Err(said) if said.contains("could not bind") => {}
                _ => break,
            }
        }
        outcome.map(|()| self)
    }
}

/// Ports nobody listens on. Processes begin in different places, and one process never tries a port twice in a row.
fn free_ports() -> impl Iterator<Item = u16> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let (first, count) = PORTS;
    let process = u16::try_from(std::process::id().wrapping_mul(37) % u32::from(count)).unwrap_or(0);
    let candidate = move || first + process.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % count;
    let candidates = std::iter::repeat_with(candidate).take(usize::from(count));
    candidates.filter(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok())
}
