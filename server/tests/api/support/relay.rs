//! A relay in process: one node over a store, that can be stopped and started again, and joined by others.

use std::{sync::Arc, time::Duration};

use http::StatusCode;
use tokio::{net::TcpStream, sync::oneshot, task::JoinHandle};
use undertone_server::{
    Admin, AdminAnswer, AdminRequest, Clock as _, Config, ManualClock, Relay, RelayError, SystemClock, SystemRandom,
    Upkeep,
};
use undertone_wire::{InviteCode, Limits, Registration, path};

use super::{Account, Api, Backend, Device, SOON, Store, store::Row, until};

/// How often a relay looks for mail of which no wake came. So long that no test sees it: what comes, came by a wake.
const NEVER: Duration = Duration::from_secs(24 * 60 * 60);

/// A relay that runs until it is stopped or dropped.
pub(crate) struct TestRelay {
    pub(crate) url: String,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) upkeep: Upkeep,
    admin: Admin,
    pub(crate) store: Arc<Store>,
    config: Config,
    stop: oneshot::Sender<()>,
    serving: JoinHandle<Result<(), RelayError>>,
}

impl TestRelay {
    pub(crate) async fn start(on: Backend) -> Self {
        Self::with(on, |_| ()).await
    }

    pub(crate) async fn with_limits(on: Backend, limits: Limits) -> Self {
        Self::with(on, |config| config.limits = limits).await
    }

    /// A relay at which only some may register.
    pub(crate) async fn with_registration(on: Backend, registration: Registration) -> Self {
        Self::with(on, |config| config.registration = registration).await
    }

    /// A relay on a new store, configured in another way.
    pub(crate) async fn with(on: Backend, configure: impl FnOnce(&mut Config)) -> Self {
        let store = Arc::new(Store::new(on).await);
        // openmls compares lifetimes with the machine's clock, so the one that tests move starts there.
        let clock = Arc::new(ManualClock::at(SystemClock.now_ms()));
        let mut config = Config::new(store.place(), "127.0.0.1:0".parse().unwrap());
        config.look_every = NEVER;
        configure(&mut config);
        Self::over(store, clock, config).await
    }

    /// A node over a store, that is ready.
    pub(crate) async fn over(store: Arc<Store>, clock: Arc<ManualClock>, config: Config) -> Self {
        let relay = Relay::bind(config.clone(), clock.clone(), Arc::new(SystemRandom)).await.unwrap();
        let (stop, stopped) = oneshot::channel();
        let url = format!("http://{}", relay.local_addr());
        let (upkeep, admin) = (relay.upkeep(), relay.admin());
        let serving = tokio::spawn(relay.serve(async move {
            let _ = stopped.await;
        }));
        let relay = Self { url, clock, upkeep, admin, store, config, stop, serving };
        until("a relay that is ready", async || relay.is_ready().await).await;
        relay
    }

    /// Another node over the same Postgres database, by the same clock.
    pub(crate) async fn second_node(&self) -> Self {
        self.second_node_with(|_| ()).await
    }

    /// The same, configured in another way.
    pub(crate) async fn second_node_with(&self, configure: impl FnOnce(&mut Config)) -> Self {
        let mut config = self.config.clone();
        configure(&mut config);
        Self::over(self.store.clone(), self.clock.clone(), config).await
    }

    /// Tells it to stop, and does not wait.
    pub(crate) fn tell_to_stop(self) -> JoinHandle<Result<(), RelayError>> {
        self.stop.send(()).unwrap();
        self.serving
    }

    /// Stops it and waits until it has.
    pub(crate) async fn stop(self) -> Stopped {
        let (store, clock, config) = (self.store.clone(), self.clock.clone(), self.config.clone());
        tokio::time::timeout(SOON, self.tell_to_stop()).await.unwrap().unwrap().unwrap();
        Stopped { store, clock, config }
    }

    /// Stops it and starts another on the same store.
    pub(crate) async fn restart(self) -> Self {
        self.stop().await.start().await
    }

    /// The same, configured in another way.
    pub(crate) async fn restart_with(self, configure: impl FnOnce(&mut Config)) -> Self {
        let mut stopped = self.stop().await;
        configure(&mut stopped.config);
        stopped.start().await
    }

    /// Whether it says that it should be sent requests.
    pub(crate) async fn is_ready(&self) -> bool {
        self.api().get(path::READY).await.status == StatusCode::OK
    }

    /// A new invite.
    pub(crate) async fn invite(&self, uses: u64, life_s: u64) -> InviteCode {
        match self.admin.ask(AdminRequest::CreateInvite { uses, life_s }).await.unwrap() {
            AdminAnswer::Created { code, .. } => code,
            other => panic!("no invite: {other:?}"),
        }
    }

    /// A connection that has said nothing yet.
    pub(crate) async fn connection(&self) -> TcpStream {
        TcpStream::connect(self.url.trim_start_matches("http://")).await.unwrap()
    }

    pub(crate) fn api(&self) -> Api {
        Api::new(&self.url)
    }

    /// What a query of the store answers.
    pub(crate) async fn select<T: Row>(&self, statement: &str) -> Vec<T> {
        self.store.select(statement).await
    }

    /// How many rows a table has.
    pub(crate) async fn rows(&self, table: &str) -> i64 {
        self.store.rows(table).await
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

impl AsRef<str> for TestRelay {
    /// Where it is.
    fn as_ref(&self) -> &str {
        &self.url
    }
}

/// A relay that has stopped.
pub(crate) struct Stopped {
    pub(crate) store: Arc<Store>,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) config: Config,
}

impl Stopped {
    /// Starts another like it.
    pub(crate) async fn start(self) -> TestRelay {
        TestRelay::over(self.store, self.clock, self.config).await
    }
}
