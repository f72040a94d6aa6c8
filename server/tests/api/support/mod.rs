//! A relay in process, and those who talk to it.

mod account;
mod api;
mod message;
mod socket;

use std::{path::PathBuf, sync::Arc, time::Duration};

use sqlx::{ConnectOptions as _, SqliteConnection, sqlite::SqliteConnectOptions};
use tempfile::TempDir;
use tokio::{net::TcpStream, sync::oneshot, task::JoinHandle};
use undertone_server::{Clock, Config, ManualClock, Place, Relay, RelayError, SystemClock, SystemRandom, Upkeep};
use undertone_wire::Limits;

pub(crate) use account::{Account, Device, Keys, log_in, login_request};
pub(crate) use api::{Api, Reply};
pub(crate) use message::{Message, bytes_of, private_message};
pub(crate) use socket::Socket;

/// A moment by which something that is under way must have happened.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// A relay that runs until it is stopped or dropped.
pub(crate) struct TestRelay {
    pub(crate) url: String,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) upkeep: Upkeep,
    limits: Limits,
    folder: TempDir,
    stop: oneshot::Sender<()>,
    serving: JoinHandle<Result<(), RelayError>>,
}

impl TestRelay {
    pub(crate) async fn start() -> Self {
        Self::with_limits(Limits::default()).await
    }

    pub(crate) async fn with_limits(limits: Limits) -> Self {
        // openmls compares lifetimes with the machine's clock, so the one that tests move starts there.
        let clock = Arc::new(ManualClock::at(SystemClock.now_ms()));
        Self::on(tempfile::tempdir().unwrap(), clock, limits, None).await
    }

    async fn on(folder: TempDir, clock: Arc<ManualClock>, limits: Limits, header_timeout: Option<Duration>) -> Self {
        let mut config = Config::new(Place::Sqlite(folder.path().join("undertone.db")), loopback());
        config.limits = limits.clone();
        config.header_timeout = header_timeout.unwrap_or(config.header_timeout);
        let relay = Relay::bind(config, clock.clone(), Arc::new(SystemRandom)).await.unwrap();
        let (stop, stopped) = oneshot::channel();
        let url = format!("http://{}", relay.local_addr());
        let upkeep = relay.upkeep();
        let serving = tokio::spawn(relay.serve(async move {
            let _ = stopped.await;
        }));
        Self { url, clock, upkeep, limits, folder, stop, serving }
    }

    /// Stops it and waits until it has.
    pub(crate) async fn stop(self) -> TempDir {
        self.stop.send(()).unwrap();
        tokio::time::timeout(SOON, self.serving).await.unwrap().unwrap().unwrap();
        self.folder
    }

    /// Stops it and starts another on the same files.
    pub(crate) async fn restart(self) -> Self {
        let limits = self.limits.clone();
        self.restart_with(limits, None).await
    }

    /// The same with other limits, and perhaps another header timeout.
    pub(crate) async fn restart_with(self, limits: Limits, header_timeout: Option<Duration>) -> Self {
        let clock = self.clock.clone();
        Self::on(self.stop().await, clock, limits, header_timeout).await
    }

    /// A connection that has said nothing yet.
    pub(crate) async fn connection(&self) -> TcpStream {
        TcpStream::connect(self.url.trim_start_matches("http://")).await.unwrap()
    }

    pub(crate) fn api(&self) -> Api {
        Api::new(&self.url)
    }

    pub(crate) fn database(&self) -> PathBuf {
        self.folder.path().join("undertone.db")
    }

    /// A connection that looks into the store from outside.
    pub(crate) async fn look(&self) -> SqliteConnection {
        SqliteConnectOptions::new().filename(self.database()).read_only(true).connect().await.unwrap()
    }

    /// How many rows a table has.
    pub(crate) async fn rows(&self, table: &str) -> i64 {
        let statement = sqlx::AssertSqlSafe(format!("SELECT COUNT(*) FROM {table}"));
        sqlx::query_scalar(statement).fetch_one(&mut self.look().await).await.unwrap()
    }

    /// An account with one device, logged in.
    pub(crate) async fn device(&self) -> Device {
        self.account(1).await.remove(0)
    }

    /// The devices of a new account, logged in, in ascending order.
    pub(crate) async fn account(&self, devices: usize) -> Vec<Device> {
        Account::new(devices).register(&self.api()).await
    }
}

fn loopback() -> std::net::SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

/// Random bytes.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).unwrap();
    bytes
}
