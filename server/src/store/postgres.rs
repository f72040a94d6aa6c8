//! Postgres: one database, any number of nodes over it, each with a pool of connections.
//!
//! Invariant: a transaction that writes runs at READ COMMITTED and locks what it relies on; one that reads sees one
//! moment. On each new connection, before its first use, a look is taken whether the database at its other end is the one
//! it says it is (see [`mark`]): what others found at the ends of theirs says nothing about it.

use std::{fmt, sync::Arc, time::Duration};

use sqlx::{
    ConnectOptions as _, Connection as _, PgConnection,
    postgres::{PgConnectOptions, PgListener, PgPoolOptions},
};
use tokio::time::timeout;

use super::{
    Conn, StoreError, Tx,
    mark::{self, Judgement},
    migrations,
    pool::{Link, Pool, bounded},
};
use crate::{clock::Random, kill};

/// Connections of a node, if nothing else is said.
const CONNECTIONS: u32 = 16;

/// Transactions of one kind at a time: while one commits, the next is put together.
const WRITERS: usize = 2;

/// What a session may not do without end. A node that hangs must not keep others from what it has locked.
const TIMEOUTS: [(&str, &str); 3] =
    [("idle_in_transaction_session_timeout", "60s"), ("lock_timeout", "30s"), ("statement_timeout", "60s")];

/// How long a node waits for a transaction, if nothing else is said: a little longer than the server lets a statement run,
/// so that it is the server who says so as long as it can say anything.
const TRANSACTION_MAX: Duration = Duration::from_secs(65);

/// Begins what writes.
const WRITE: &str = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE";

/// Begins what reads, as of one moment.
const READ: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";

/// The channel on which nodes wake each other.
const CHANNEL: &str = "undertone";

/// Whether a commit is durable when it is answered.
const DURABLE: &str = "SELECT current_setting('synchronous_commit')";

/// Says each of `$1` to all nodes.
const NOTIFY: &str = "SELECT pg_notify('undertone', said) FROM unnest($1::text[]) AS said";

/// Where a Postgres store is, and how to use it.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PostgresConfig {
    /// The database as `postgres://user:password@host/database`.
    pub url: String,
    /// Most connections of this node, at least 3.
    pub connections: u32,
    /// Whether a standby that was promoted is known to have lost nothing (synchronous replication). Then a promotion
    /// begins no new incarnation.
    pub lossless_failover: bool,
    /// Longest that a transaction may take, commit included, before its connection is given up for dead and whoever waits
    /// is told to come again.
    pub transaction_max: Duration,
}

impl PostgresConfig {
    /// A database with the default settings.
    pub fn new(url: impl Into<String>) -> Self {
        Self { url: url.into(), connections: CONNECTIONS, lossless_failover: false, transaction_max: TRANSACTION_MAX }
    }
}

impl fmt::Debug for PostgresConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The URL may hold a password.
        f.debug_struct("PostgresConfig").field("connections", &self.connections).finish_non_exhaustive()
    }
}

/// An open database.
#[derive(Clone)]
pub(super) struct Postgres {
    pool: Pool,
    random: Arc<dyn Random>,
    lossless_failover: bool,
}

impl Postgres {
    /// Connects, migrates (one node at a time; the others wait) and settles which incarnation of the store this is.
    pub(super) async fn open(
        config: &PostgresConfig,
        random: Arc<dyn Random>,
        judgement: Judgement,
    ) -> Result<Self, StoreError> {
        // One more listens.
        let pool = Pool::new(connect_options(config)?, config.connections.max(3) - 1, config.transaction_max)?;
        migrate(config, pool.at_once()).await?;
        kill::point("migration", kill::HALFWAY);
        let postgres = Self { pool, random, lossless_failover: config.lossless_failover };
        let link = postgres.pool.link().await?;
        let mut link = postgres.settle_new(link, judgement).await?;
        link.begin(READ).await?;
        let durable: String = bounded!(&mut link, db => sqlx::query_scalar(DURABLE).fetch_one(db).await)?;
        link.commit().await?;
        if durable == "off" { Err(StoreError::NotDurable) } else { Ok(postgres) }
    }

    /// A transaction that writes.
    pub(super) async fn begin_write(&self) -> Result<Link, StoreError> {
        self.begin(WRITE).await
    }

    /// A transaction that reads, as of one moment.
    pub(super) async fn read(&self) -> Result<Link, StoreError> {
        self.begin(READ).await
    }

    /// Begins a transaction, in a task of its own: callers come and go, and a connection that is half made or half looked
    /// at would be lost with each that goes.
    async fn begin(&self, statement: &'static str) -> Result<Link, StoreError> {
        let postgres = self.clone();
        let begun = tokio::spawn(async move { postgres.begin_here(statement).await });
        begun.await.unwrap_or(Err(StoreError::Interrupted))
    }

    async fn begin_here(&self, statement: &'static str) -> Result<Link, StoreError> {
        loop {
            let mut link = self.pool.link().await?;
            let is_new = link.is_new();
            if is_new {
                link = self.settle_new(link, self.judgement()).await?;
            }
            match link.begin(statement).await {
                Ok(()) => return Ok(link),
                // It was lost while nobody used it, and nothing was asked on it yet: another will do.
                Err(_) if link.is_lost() && !is_new => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Looks whether the database is the one it was.
    pub(super) async fn look(&self) -> Result<(), StoreError> {
        let link = self.begin(WRITE).await?;
        self.settle(link, self.judgement()).await?;
        Ok(())
    }

    /// What to make of another mark, when nobody says anything.
    fn judgement(&self) -> Judgement {
        Judgement::Copy { lossless_failover: self.lossless_failover }
    }

    async fn settle_new(&self, mut link: Link, judgement: Judgement) -> Result<Link, StoreError> {
        link.begin(WRITE).await?;
        self.settle(link, judgement).await
    }

    /// Settles which incarnation this is of the database at the end of a connection, in whose transaction nothing was done
    /// yet; vouches for it, and gives it back outside of a transaction.
    async fn settle(&self, link: Link, judgement: Judgement) -> Result<Link, StoreError> {
        let mut tx = Tx::on_postgres(link);
        let seen = mark::seen_on_postgres(&mut tx).await?;
        if !judgement.is_copy() || !mark::is_known(&mut tx, &seen).await? {
            mark::settle(&mut tx, &*self.random, &seen, judgement).await?;
        }
        let Conn::Postgres(mut link) = tx.conn else { return Err(StoreError::Interrupted) };
        link.commit().await?;
        link.vouch();
        Ok(link)
    }

    /// How many transactions of one kind to run at a time.
    pub(super) fn writers(&self) -> usize {
        WRITERS
    }

    /// Says something to all nodes, this one included.
    pub(super) async fn notify(&self, said: &[String]) -> Result<(), StoreError> {
        let mut link = self.begin_write().await?;
        bounded!(&mut link, db => sqlx::query(NOTIFY).bind(said).execute(db).await)?;
        link.commit().await
    }

    /// Hears what is said from now on. The connection has a pool of its own, so that it never comes among those that were
    /// looked at; what is said on it is a hint and no more.
    pub(super) async fn listen(&self) -> Result<Listener, StoreError> {
        let pool = PgPoolOptions::new().max_connections(1).acquire_timeout(self.pool.at_once()).max_lifetime(None);
        let listening = async {
            let pool = pool.connect_with(self.pool.options().clone()).await?;
            let mut listener = PgListener::connect_with(&pool).await?;
            listener.ignore_pool_close_event(true);
            listener.eager_reconnect(false);
            listener.listen(CHANNEL).await?;
            Ok(Listener(listener))
        };
        timeout(self.pool.at_once(), listening).await.unwrap_or(Err(StoreError::Busy))
    }

    /// Closes all connections.
    pub(super) async fn close(&self) -> Result<(), StoreError> {
        self.pool.close().await;
        Ok(())
    }
}

/// Hears what nodes say.
pub(crate) struct Listener(PgListener);

impl Listener {
    /// What is said next; an error when the connection is lost. Cancel safe.
    pub(crate) async fn hear(&mut self) -> Result<String, StoreError> {
        match self.0.try_recv().await? {
            Some(said) => Ok(said.payload().to_owned()),
            None => Err(StoreError::Deaf),
        }
    }
}

/// Migrates, one node at a time. That may take long, and others wait for it; only connecting does not.
async fn migrate(config: &PostgresConfig, at_once: Duration) -> Result<(), StoreError> {
    let unhurried = connect_options(config)?.options([("statement_timeout", "0"), ("lock_timeout", "0")]);
    let connected = timeout(at_once, PgConnection::connect_with(&unhurried)).await;
    // Whoever starts a relay is told why it cannot reach its database.
    let connected = connected.unwrap_or_else(|_| Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()));
    let mut connection = connected.map_err(StoreError::Database)?;
    migrations::postgres().run(&mut connection).await?;
    // All is done; how this one ends makes no difference.
    let _ = timeout(at_once, connection.close()).await;
    Ok(())
}

fn connect_options(config: &PostgresConfig) -> Result<PgConnectOptions, StoreError> {
    let options: PgConnectOptions = config.url.parse().map_err(|_| StoreError::Url)?;
    Ok(options.application_name("undertone").options(TIMEOUTS).disable_statement_logging())
}
