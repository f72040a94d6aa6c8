//! The server that a process's tests share, its template, and what keeps a server that is not ours clean.
//!
//! Invariant: the name of every database made here begins with the name of the run that made it, `undertone_test_` and 32
//! hexadecimal digits. On a server that is not ours a connection of that name stands for as long as the run's process lives,
//! so that another run can tell which databases nobody needs any more.

use std::{
    env::var,
    sync::{
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
};

use sqlx::{AssertSqlSafe, Connection as _, PgConnection, postgres::PgConnectOptions};
use tokio::runtime;
use url::Url;
use uuid::Uuid;

use crate::{Cluster, Options, server::Server};

/// The databases of runs whose process is gone. One that begins now has connected before it makes any database, and the
/// databases are read before the connections are.
const LEFT_OVER: &str = r"
SELECT made.datname::text FROM pg_database AS made
WHERE made.datname ~ '^undertone_test_[0-9a-f]{32}_' AND NOT EXISTS (
    SELECT FROM pg_stat_activity AS living WHERE living.application_name = substr(made.datname, 1, 47)
)";

const CLOSE_CONNECTIONS: &str = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1";

pub(crate) struct Shared {
    cluster: Option<Cluster>,
    admin: Url,
    run: String,
    made: AtomicU64,
}

impl Shared {
    /// Starts or finds the server, and makes the template. Blocks.
    pub(crate) fn new(prepare: impl AsyncFnOnce(String) + Send + 'static) -> Result<Self, String> {
        let run = format!("undertone_test_{}", Uuid::new_v4().simple());
        let (cluster, admin) = server(&run)?;
        let template = named(&admin, &template_of(&run));
        let shared = Self { cluster, admin, run, made: AtomicU64::new(0) };
        let (name, admin) = (template_of(&shared.run), shared.admin.clone());
        in_runtime(async move || execute(&admin, format!(r#"CREATE DATABASE "{name}""#)).await)??;
        in_runtime(async move || prepare(template.into()).await)?;
        let (name, admin) = (template_of(&shared.run), shared.admin.clone());
        in_runtime(async move || close(&admin, &name).await)??;
        Ok(shared)
    }

    pub(crate) fn cluster(&self) -> Option<&Cluster> {
        self.cluster.as_ref()
    }

    pub(crate) fn url(&self, database: &str) -> Url {
        named(&self.admin, database)
    }

    /// Makes a clone of the template. Answers its name. Several may be made at once: nobody is
    /// connected to the template.
    pub(crate) async fn clone_template(&self) -> Result<String, String> {
        let name = format!("{}_{}", self.run, self.made.fetch_add(1, Ordering::Relaxed));
        let template = template_of(&self.run);
        execute(&self.admin, format!(r#"CREATE DATABASE "{name}" TEMPLATE "{template}""#)).await?;
        Ok(name)
    }

    pub(crate) async fn remove(&self, name: &str) -> Result<(), String> {
        execute(&self.admin, remove(name)).await
    }
}

/// Does something asynchronous on a thread and in a runtime that end with it. Blocks. The error is that it panicked.
pub(crate) fn in_runtime<T: Send + 'static>(work: impl AsyncFnOnce() -> T + Send + 'static) -> Result<T, String> {
    let runtime =
        runtime::Builder::new_current_thread().enable_all().build().map_err(|e| format!("no runtime: {e}"))?;
    let done = thread::spawn(move || runtime.block_on(work())).join();
    done.map_err(|_| "the shared Postgres could not be prepared: the first test to use it has panicked".to_owned())
}

/// The server, ours or another, and the URL by which to make databases on it.
fn server(run: &str) -> Result<(Option<Cluster>, Url), String> {
    match var("TEST_POSTGRES_URL").ok().filter(|url| !url.is_empty()) {
        Some(url) => {
            let admin = Url::parse(&url).map_err(|e| format!("TEST_POSTGRES_URL is no URL: {e}"))?;
            announce(admin.clone(), run.to_owned())?;
            let sweeping = admin.clone();
            in_runtime(async move || sweep(&sweeping).await)?.map_err(refused)?;
            Ok((None, admin))
        }
        None => {
            let server = Server::new(Options::default())?;
            let admin = server.url("postgres")?;
            Ok((Some(Cluster::of(Ok(server))), admin))
        }
    }
}

/// Connects under the run's name, and stays connected for as long as the process lives.
fn announce(admin: Url, run: String) -> Result<(), String> {
    let (announced, outcome) = mpsc::channel();
    thread::spawn(move || {
        in_runtime(async move || {
            let connected = connect(&admin, &run).await;
            let (kept, told) = match connected {
                Ok(connection) => (Some(connection), Ok(())),
                Err(e) => (None, Err(refused(e))),
            };
            if announced.send(told).is_ok() && kept.is_some() {
                std::future::pending::<()>().await;
            }
        })
    });
    outcome.recv().map_err(|e| format!("TEST_POSTGRES_URL: {e}"))?
}

/// Drops what earlier runs have left, except for what cannot be dropped: another run may be at it too.
async fn sweep(admin: &Url) -> sqlx::Result<()> {
    let mut connection = connect(admin, "undertone_test").await?;
    let left_over: Vec<String> = sqlx::query_scalar(LEFT_OVER).fetch_all(&mut connection).await?;
    for name in left_over {
        let _ = sqlx::raw_sql(AssertSqlSafe(remove(&name))).execute(&mut connection).await;
    }
    connection.close().await
}

/// Closes the template: nobody is connected, and nobody can.
async fn close(admin: &Url, name: &str) -> Result<(), String> {
    execute(admin, format!(r#"ALTER DATABASE "{name}" WITH ALLOW_CONNECTIONS false"#)).await?;
    let mut connection = connect(admin, "undertone_test").await.map_err(refused)?;
    sqlx::query(CLOSE_CONNECTIONS).bind(name).execute(&mut connection).await.map_err(refused)?;
    connection.close().await.map_err(refused)
}

async fn execute(admin: &Url, statement: String) -> Result<(), String> {
    let work = async {
        let mut connection = connect(admin, "undertone_test").await?;
        sqlx::raw_sql(AssertSqlSafe(statement.clone())).execute(&mut connection).await?;
        connection.close().await
    };
    work.await.map_err(|e| format!("{statement}: {e}"))
}

async fn connect(admin: &Url, name: &str) -> sqlx::Result<PgConnection> {
    let options: PgConnectOptions = admin.as_str().parse()?;
    PgConnection::connect_with(&options.application_name(name)).await
}

fn refused(e: sqlx::Error) -> String {
    format!("the shared Postgres refused: {e}")
}

fn named(admin: &Url, database: &str) -> Url {
    let mut url = admin.clone();
    url.set_path(database);
    url
}

fn template_of(run: &str) -> String {
    format!("{run}_template")
}

fn remove(name: &str) -> String {
    format!(r#"DROP DATABASE IF EXISTS "{name}" WITH (FORCE)"#)
}
