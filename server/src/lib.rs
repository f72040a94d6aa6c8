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
mod queue;
mod reach;
mod router;
mod store;
mod stream;
mod tls;
mod turns;
mod wake;

use std::{future::Future, io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::net::TcpListener;
use undertone_wire::{ConnectionString, Registration};

pub use admin::{AdminAnswer, AdminError, AdminRequest, InviteSummary, ask};
pub use clock::{Clock, ManualClock, Random, RandomError, SystemClock, SystemRandom};
pub use config::{Arguments, Command, Config, ConfigError, Invite, Origin, Settings, Tls};
pub use router::openapi;
pub use store::{Place, PostgresConfig, StoreError};
pub use tls::TlsError;

use crate::{node::Node, store::Db, tls::SelfMade, wake::Wake};

/// How long requests in flight and streams may take to finish when the relay stops.
const STOP_WITHIN: Duration = Duration::from_secs(10);

/// A relay that listens, and serves once [`Relay::serve`] runs.
pub struct Relay {
    node: Node,
    listener: TcpListener,
    local_addr: SocketAddr,
    tls: Option<SelfMade>,
    config: Config,
}

/// Why a relay cannot start or go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RelayError {
    /// The address cannot be listened on.
    #[error("cannot listen on {0}: {1}")]
    Listen(SocketAddr, io::Error),
    /// The store cannot be opened, or failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// TLS cannot be spoken.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

impl Relay {
    /// Opens the store, makes what is missing, migrates, and begins to listen.
    pub async fn bind(config: Config, clock: Arc<dyn Clock>, random: Arc<dyn Random>) -> Result<Self, RelayError> {
        let wake = Arc::new(Wake::default());
        let db = Db::open(&config.place, Arc::clone(&wake), Arc::clone(&random)).await?;
        let listen = |error| RelayError::Listen(config.listen, error);
        let listener = TcpListener::bind(config.listen).await.map_err(listen)?;
        let local_addr = listener.local_addr().map_err(listen)?;
        // Last: a start that fails makes no key, and the next is still the first.
        let tls = match config.tls {
            Tls::Off => None,
            Tls::SelfMade => Some(SelfMade::open(&config.data)?),
        };
        let node = Node::new(db, wake, clock, random, &config).await?;
        Ok(Self { node, listener, local_addr, tls, config })
    }

    /// The address that it listens on, with the port that was chosen if port 0 was asked for.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// How others reach it; `None` if it does not speak TLS.
    pub fn connection_string(&self) -> Option<ConnectionString> {
        reach::connection_string(&self.config, self.local_addr, self.tls.as_ref()?.fingerprint)
    }

    /// Whether this is its first start with TLS: the key by which others know it was made just now.
    pub fn is_new(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.is_new)
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
        let Self { node, listener, tls, config, .. } = self;
        let jobs = tokio::spawn(jobs::run(node.clone()));
        let nodes = tokio::spawn(nodes::run(node.clone()));
        let admin = tokio::spawn(admin::serve(node.clone(), config.place));
        let acceptor = tls.map(|tls| tls.acceptor);
        connections::serve(listener, acceptor, router::router(node.clone()), &node, config.header_timeout, shutdown)
            .await;
        node.stop();
        if tokio::time::timeout(STOP_WITHIN, node.stopped()).await.is_err() {
            tracing::warn!("some connections did not end in time");
        }
        for task in [jobs, nodes, admin] {
            task.abort();
            // That it was stopped is no news.
            let _ = task.await;
        }
        kill::point("shutdown", kill::BEFORE_CLOSE);
        node.db.close().await?;
        Ok(())
    }
}

/// How others reach a relay with this configuration; `None` if it does not speak TLS, or chooses its port when it starts.
pub fn connection_string(config: &Config) -> Result<Option<ConnectionString>, TlsError> {
    if config.tls == Tls::Off || config.listen.port() == 0 {
        return Ok(None);
    }
    Ok(reach::connection_string(config, config.listen, tls::fingerprint(&config.data)?))
}

/// Migrates a store and closes it. As at every start, a store that is a copy begins a new incarnation.
pub async fn migrate(place: &Place) -> Result<(), StoreError> {
    Db::open(place, Arc::default(), Arc::new(SystemRandom)).await?.close().await
}

/// Begins a new incarnation of a store that was restored from a backup in a way that nothing shows.
pub async fn restore(place: &Place) -> Result<(), StoreError> {
    Db::open_restored(place, Arc::new(SystemRandom)).await?.close().await
}

/// Lets a store go on that was moved whole, and is not used any more where it was.
pub async fn moved(place: &Place) -> Result<(), StoreError> {
    Db::open_moved(place, Arc::new(SystemRandom)).await?.close().await
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
