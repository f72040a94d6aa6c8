//! The Undertone relay: accounts and their devices, key packages, groups by numbers and device ids, and one ordered
//! queue of opaque ciphertexts per device.
//!
//! The binary `undertone-server` is a thin user of [`Relay`]; tests drive the same type in process.
//!
//! ```
//! use std::sync::Arc;
//! use undertone_server::{Config, Place, Relay, SystemClock, SystemRandom};
//!
//! # #[tokio::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let folder = tempfile::tempdir()?;
//! let config = Config::new(Place::Sqlite(folder.path().join("undertone.db")), "127.0.0.1:0".parse()?);
//! let relay = Relay::bind(config, Arc::new(SystemClock), Arc::new(SystemRandom)).await?;
//! println!("serving on http://{}", relay.local_addr());
//! relay.serve(async { /* until this ends */ }).await?;
//! # Ok(()) }
//! ```

mod admin;
mod auth;
mod batch;
mod check;
mod claims;
mod clock;
mod config;
mod connections;
mod directory;
mod encoding;
mod ephemeral;
mod error;
mod groups;
mod jobs;
mod keys;
mod kill;
mod limits;
mod messages;
mod mls;
mod node;
mod nodes;
mod once;
mod pipes;
mod proxies;
mod queue;
mod rates;
mod reach;
mod router;
mod store;
mod strangers;
mod stream;
mod tls;
mod turns;
mod wake;

use std::{future::Future, io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    net::{TcpListener, TcpSocket},
    time::{Instant, sleep},
};
use undertone_wire::{ConnectionString, Registration};

pub use admin::{AdminAnswer, AdminError, AdminRequest, InviteSummary, ask};
pub use check::{CheckError, Left, RoundError, Step, Stop, Why, health, round_trip};
pub use clock::{Clock, ManualClock, Random, RandomError, SystemClock, SystemRandom};
pub use config::{Acme, Arguments, Command, Config, ConfigError, Invite, Origin, Settings, Tls};
pub use proxies::TrustedProxies;
pub use router::openapi;
pub use store::{Place, PostgresConfig, StoreError};
pub use tls::TlsError;

use crate::{
    node::Node,
    store::{Db, accounts, invites},
    wake::Wake,
};

/// How long a command may have the store that a relay is to open, and how soon to look again.
const COMMAND_MAX: Duration = Duration::from_secs(1);
const AGAIN: Duration = Duration::from_millis(50);

/// How many connections may wait to be taken, as the standard library has it.
const BACKLOG: u32 = 1024;

/// How long requests in flight and streams may take to finish when the relay stops.
const STOP_WITHIN: Duration = Duration::from_secs(10);

/// A relay that listens, and serves once [`Relay::serve`] runs.
pub struct Relay {
    node: Node,
    /// Where other nodes are heard.
    nodes: Option<store::Listener>,
    listener: TcpListener,
    local_addr: SocketAddr,
    tls: Option<tls::Spoken>,
    config: Config,
}

/// Why a relay cannot start or go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RelayError {
    /// The address cannot be listened on.
    #[error("listen: cannot listen on {0}: {1}. Name an address of this machine, with a port that is free and allowed")]
    Listen(SocketAddr, io::Error),
    /// The store cannot be opened, or failed.
    #[error("database: {0}{fix}", fix = .0.fix())]
    Store(#[from] StoreError),
    /// TLS cannot be spoken.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

impl Relay {
    /// Opens the store, makes what is missing, migrates, and begins to listen.
    pub async fn bind(config: Config, clock: Arc<dyn Clock>, random: Arc<dyn Random>) -> Result<Self, RelayError> {
        let listen = |error| RelayError::Listen(config.listen, error);
        // What can be seen to fail is looked at before anything is made.
        let socket = reserve(config.listen).map_err(listen)?;
        tls::check(&config)?;
        let wake = Arc::new(Wake::default());
        let db = open(&config.place, &wake, &random).await?;
        let tls = tls::open(&config)?;
        // Who is told that the relay listens finds it ready.
        let nodes = db.listen().await?;
        let node = Node::new(db, wake, clock, random, &config).await?;
        let listener = socket.listen(BACKLOG).map_err(listen)?;
        let local_addr = listener.local_addr().map_err(listen)?;
        Ok(Self { node, nodes, listener, local_addr, tls, config })
    }

    /// The address that it listens on, with the port that was chosen if port 0 was asked for.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// How others reach it; `None` if only this machine does.
    pub fn connection_string(&self) -> Option<ConnectionString> {
        reach::connection_string(&self.config, self.local_addr, self.tls.as_ref().and_then(|tls| tls.fingerprint))
    }

    /// Whether nobody has registered and nobody is invited.
    pub async fn is_unused(&self) -> Result<bool, StoreError> {
        let mut conn = self.node.db.read().await?;
        Ok(!accounts::any(&mut conn).await? && invites::count(&mut conn).await? == 0)
    }

    /// Whether those who register must bring an invite.
    pub fn takes_invites(&self) -> bool {
        self.node.registration == Registration::Invite
    }

    /// A handle for upkeep out of turn.
    pub fn upkeep(&self) -> Upkeep {
        Upkeep(self.node.clone())
    }

    /// A handle for what whoever hosts the relay asks of it.
    pub fn admin(&self) -> Admin {
        Admin(self.node.clone())
    }

    /// Serves until `shutdown` ends. Then no connection is taken any more, streams are told `bye`, requests in flight
    /// finish, and the store is closed after a last checkpoint.
    pub async fn serve(self, shutdown: impl Future<Output = ()> + Send + 'static) -> Result<(), RelayError> {
        let Self { node, nodes, listener, tls, config, .. } = self;
        let jobs = tokio::spawn(jobs::run(node.clone()));
        let nodes = tokio::spawn(nodes::run(node.clone(), nodes));
        let admin = tokio::spawn(admin::serve(node.clone(), config.place));
        let (acceptor, renewal) = tls.map(|tls| (tls.acceptor, tls.renewal)).unzip();
        let renewal = renewal.flatten().map(|renewal| tokio::spawn(renewal.run()));
        connections::serve(listener, acceptor, router::router(node.clone()), &node, config.header_timeout, shutdown)
            .await;
        node.stop();
        if tokio::time::timeout(STOP_WITHIN, node.stopped()).await.is_err() {
            tracing::warn!("some connections did not end in time");
        }
        for task in [jobs, nodes, admin].into_iter().chain(renewal) {
            task.abort();
            // That it was stopped is no news.
            let _ = task.await;
        }
        kill::point("shutdown", kill::BEFORE_CLOSE);
        node.db.close().await?;
        Ok(())
    }
}

/// Opens the store. A command that has it for a moment is waited for.
async fn open(place: &Place, wake: &Arc<Wake>, random: &Arc<dyn Random>) -> Result<Db, StoreError> {
    let began = Instant::now();
    loop {
        match Db::open(place, Arc::clone(wake), Arc::clone(random)).await {
            Err(StoreError::InUse(_)) if began.elapsed() < COMMAND_MAX => sleep(AGAIN).await,
            opened => return opened,
        }
    }
}

/// Takes an address without listening yet: who connects before the store is open is refused, and does not wait.
fn reserve(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

/// How others reach a relay with this configuration; `None` if only this machine does, or it chooses its port when it starts.
pub fn connection_string(config: &Config) -> Result<Option<ConnectionString>, TlsError> {
    // Nobody can say where a relay is that chooses its port, and no key is made for it.
    if config.listen.port() == 0 && config.tls == Tls::SelfMade {
        return Ok(None);
    }
    Ok(reach::connection_string(config, config.listen, tls::fingerprint(config)?))
}

/// Migrates a store and closes it. As at every start, a store that is a copy begins a new incarnation.
pub async fn migrate(place: &Place) -> Result<(), RelayError> {
    Ok(Db::open(place, Arc::default(), Arc::new(SystemRandom)).await?.close().await?)
}

/// Begins a new incarnation of a store that was restored from a backup in a way that nothing shows.
pub async fn restore(place: &Place) -> Result<(), RelayError> {
    Ok(Db::open_restored(place, Arc::new(SystemRandom)).await?.close().await?)
}

/// Lets a store go on that was moved whole, and is not used any more where it was.
pub async fn moved(place: &Place) -> Result<(), RelayError> {
    Ok(Db::open_moved(place, Arc::new(SystemRandom)).await?.close().await?)
}

/// What whoever hosts a relay that serves may ask of it.
#[derive(Clone)]
pub struct Admin(Node);

impl Admin {
    /// Does what is asked.
    pub async fn ask(&self, request: AdminRequest) -> Result<AdminAnswer, StoreError> {
        admin::perform(&self.0.db, &*self.0.clock, &*self.0.random, request).await
    }
}

/// Upkeep of a relay that serves: what it also does by itself from time to time.
#[derive(Clone)]
pub struct Upkeep(Node);

impl Upkeep {
    /// Deletes everything whose time is over, looks whether the store is still the one it was, and empties the write-ahead
    /// log.
    pub async fn run(&self) -> Result<(), StoreError> {
        jobs::upkeep(&self.0).await
    }
}
