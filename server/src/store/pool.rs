//! Connections to Postgres: how they are made and kept, and the one that somebody has in hand.
//!
//! A path to a server that died in silence answers nothing, not even that it is dead. So every wait here ends by itself,
//! and a connection on which something came too late is closed as it is: what could be said on it, a rollback first of
//! all, would never be answered. The server gives up what was begun on it when it notices, by its own limits. (For this
//! it is not sqlx's own pool: that one talks on a connection whenever it takes it back.)
//!
//! Invariant: a connection that is used again is in no transaction, and somebody vouched for it when it was new. When one
//! is found lost, those made before it was are not used again.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use deadpool::managed::{
    self, Metrics, Object, PoolConfig, PoolError, QueueMode, RecycleError, RecycleResult, Timeouts,
};
use sqlx::{Connection as _, Executor as _, PgConnection, postgres::PgConnectOptions};
use tokio::{
    runtime::Handle,
    sync::watch,
    time::{Instant, error::Elapsed, timeout},
};

use super::{StoreError, error::is_lost};

/// Longest wait for a connection that others have in hand before the caller is told to come again.
const BUSY_AFTER: Duration = Duration::from_secs(30);

/// Longest wait for a new connection, and for what a server that is there does at once.
const AT_ONCE: Duration = Duration::from_secs(5);

/// How old a connection gets: what a server remembers for one grows.
const LIFETIME: Duration = Duration::from_secs(30 * 60);

/// Connections to one database; cheap to clone.
#[derive(Clone)]
pub(super) struct Pool {
    kept: managed::Pool<Connector>,
    /// Longest that a transaction may take.
    transaction_max: Duration,
    /// Closed when no connection is in hand.
    in_hand: watch::Sender<()>,
}

/// Makes connections, and says which of them are used again.
struct Connector {
    options: PgConnectOptions,
    at_once: Duration,
    /// Goes up when a connection of the present generation is found lost.
    generation: Arc<AtomicU64>,
    /// Whether the last attempt to connect failed.
    away: AtomicBool,
    /// Who finds out whether the database is back.
    probe: tokio::sync::Mutex<()>,
}

struct Live {
    connection: PgConnection,
    generation: u64,
    newest_generation: Arc<AtomicU64>,
    /// Whether somebody vouched for what is at its other end.
    vouched_for: bool,
}

/// A connection in hand. Dropped in a transaction, it is rolled back and kept.
pub(crate) struct Link {
    /// None: it was lost.
    live: Option<Object<Connector>>,
    state: State,
    deadline: Instant,
    transaction_max: Duration,
    at_once: Duration,
    in_hand: watch::Receiver<()>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// In no transaction.
    Idle,
    /// In a transaction, or about to begin or end one.
    Open,
    /// Being rolled back, with nobody left to wait for it.
    Ending,
}

/// Evaluates an expression with `$db` as a link's connection, within the time of its transaction.
macro_rules! bounded {
    ($link:expr, $db:ident => $expression:expr) => {{
        let link: &mut $crate::store::pool::Link = $link;
        let deadline = link.deadline();
        let outcome = match link.connection() {
            Some($db) => Some(tokio::time::timeout_at(deadline, async { $expression }).await),
            None => None,
        };
        link.heed(outcome)
    }};
}

pub(super) use bounded;

impl managed::Manager for Connector {
    type Type = Live;
    type Error = StoreError;

    /// While the database is away one caller at a time looks whether it is back; the others are told at once to come again.
    async fn create(&self) -> Result<Live, StoreError> {
        let _probe = match self.is_away() {
            true => Some(self.probe.try_lock().map_err(|_| StoreError::Busy)?),
            false => None,
        };
        let generation = self.generation.load(Ordering::SeqCst);
        let connected = timeout(self.at_once, PgConnection::connect_with(&self.options)).await;
        let connected = connected.unwrap_or_else(|_| Err(timed_out()));
        let was_away = self.away.swap(connected.is_err(), Ordering::SeqCst);
        match &connected {
            Err(error) if !was_away => tracing::warn!(%error, "the database cannot be reached"),
            Ok(_) if was_away => tracing::info!("the database can be reached again"),
            _ => {}
        }
        let newest_generation = Arc::clone(&self.generation);
        Ok(Live { connection: connected?, generation, newest_generation, vouched_for: false })
    }

    async fn recycle(&self, live: &mut Live, metrics: &Metrics) -> RecycleResult<StoreError> {
        let newest = self.generation.load(Ordering::SeqCst);
        match live.vouched_for && live.generation == newest && metrics.age() < LIFETIME {
            true => Ok(()),
            false => Err(RecycleError::message("too old, or not known to be what it should be")),
        }
    }
}

impl Connector {
    fn is_away(&self) -> bool {
        self.away.load(Ordering::SeqCst)
    }
}

impl Pool {
    /// A pool that has no connection yet, and never more than `connections`.
    pub(super) fn new(
        options: PgConnectOptions,
        connections: u32,
        transaction_max: Duration,
    ) -> Result<Self, StoreError> {
        let at_once = AT_ONCE.min(transaction_max);
        let (generation, away, probe) = (Arc::default(), AtomicBool::new(false), tokio::sync::Mutex::default());
        let connector = Connector { options, at_once, generation, away, probe };
        // The last that was used is the first to be used again.
        let connections = usize::try_from(connections).unwrap_or(usize::MAX);
        let config = PoolConfig { queue_mode: QueueMode::Lifo, ..PoolConfig::new(connections) };
        let pool = managed::Pool::builder(connector).config(config).runtime(deadpool::Runtime::Tokio1);
        let kept = pool.build().map_err(|_| StoreError::Interrupted)?;
        Ok(Self { kept, transaction_max, in_hand: watch::Sender::new(()) })
    }

    /// A connection that is kept, or else a new one.
    pub(super) async fn link(&self) -> Result<Link, StoreError> {
        let at_once = self.at_once();
        let wait = if self.kept.manager().is_away() { at_once } else { BUSY_AFTER };
        let live = self.kept.timeout_get(&Timeouts { wait: Some(wait), create: None, recycle: None }).await;
        let live = live.map_err(|error| match error {
            PoolError::Backend(error) => error,
            _ => StoreError::Busy,
        })?;
        let (transaction_max, in_hand) = (self.transaction_max, self.in_hand.subscribe());
        Ok(Link { live: Some(live), state: State::Idle, deadline: Instant::now(), transaction_max, at_once, in_hand })
    }

    /// How to connect.
    pub(super) fn options(&self) -> &PgConnectOptions {
        &self.kept.manager().options
    }

    /// Longest wait for what takes no time.
    pub(super) fn at_once(&self) -> Duration {
        self.kept.manager().at_once
    }

    /// Closes all connections, after those in hand have come back, or could have.
    pub(super) async fn close(&self) {
        // What does not end in order ends all the same.
        let _ = timeout(self.transaction_max, self.in_hand.closed()).await;
        let closing = self.kept.retain(|_, _| false).removed.into_iter().map(|live| live.connection.close());
        let _ = timeout(self.at_once(), futures_util::future::join_all(closing)).await;
        self.kept.close();
    }
}

impl Live {
    /// Notes that it is lost, and with it, in all likelihood, those of its time.
    fn lose(&self) {
        // Those that are found later, of a generation that is over, say nothing new.
        let (this, next) = (self.generation, self.generation + 1);
        let _ = self.newest_generation.compare_exchange(this, next, Ordering::SeqCst, Ordering::SeqCst);
    }
}

impl Link {
    /// Whether nobody has vouched for it yet.
    pub(super) fn is_new(&self) -> bool {
        self.live.as_ref().is_some_and(|live| !live.vouched_for)
    }

    /// Says that this is the database that it should be.
    pub(super) fn vouch(&mut self) {
        if let Some(live) = &mut self.live {
            live.vouched_for = true;
        }
    }

    /// Whether it was lost. Whether what was said last was done is then not known.
    pub(super) fn is_lost(&self) -> bool {
        self.live.is_none()
    }

    /// Begins a transaction, with the words for it. From now on it may take as long as a transaction may.
    pub(super) async fn begin(&mut self, statement: &'static str) -> Result<(), StoreError> {
        self.state = State::Open;
        // Nothing stands in the way of this: if it takes long, nobody is there.
        self.allow(self.at_once);
        bounded!(self, db => db.execute(statement).await)?;
        self.allow(self.transaction_max);
        Ok(())
    }

    /// Ends the transaction with its changes.
    pub(super) async fn commit(&mut self) -> Result<(), StoreError> {
        bounded!(self, db => db.execute("COMMIT").await)?;
        self.state = State::Idle;
        Ok(())
    }

    /// Gives what comes next so much time.
    pub(super) fn allow(&mut self, time: Duration) {
        self.deadline = Instant::now() + time;
    }

    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// What to speak on; `None` if it was lost. Use [`bounded`].
    pub(super) fn connection(&mut self) -> Option<&mut PgConnection> {
        self.live.as_mut().map(|live| &mut live.connection)
    }

    /// Takes note of what came of something: after too long a wait, or a loss, nothing is said on it any more.
    pub(super) fn heed<T>(&mut self, outcome: Option<Result<sqlx::Result<T>, Elapsed>>) -> sqlx::Result<T> {
        let outcome = match outcome {
            Some(Ok(outcome)) => outcome,
            Some(Err(_)) => Err(timed_out()),
            None => return Err(timed_out()),
        };
        if let Err(error) = &outcome
            && (is_lost(error) || matches!(error, sqlx::Error::PoolTimedOut))
            && let Some(live) = self.live.take()
        {
            live.lose();
            discard(live);
        }
        outcome
    }

    async fn roll_back(mut self) {
        self.allow(self.transaction_max);
        if bounded!(&mut self, db => db.execute("ROLLBACK").await).is_ok() {
            self.state = State::Idle;
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let Some(live) = self.live.take() else { return };
        match (self.state, Handle::try_current()) {
            // Dropped, it goes back.
            (State::Idle, _) => drop(live),
            (State::Open, Ok(runtime)) => {
                let in_hand = self.in_hand.clone();
                let ending = Self { live: Some(live), state: State::Ending, in_hand, ..*self };
                runtime.spawn(ending.roll_back());
            }
            (State::Open | State::Ending, _) => discard(live),
        }
    }
}

/// Closes a connection as it is.
fn discard(live: Object<Connector>) {
    drop(Object::take(live));
}

fn timed_out() -> sqlx::Error {
    sqlx::Error::PoolTimedOut
}
