//! Configuration: flags, their `UNDERTONE_*` variables, and what follows from them.
//!
//! Invariant: a [`Config`] made from [`Arguments`] sends no token across a network in clear unless it was told to.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::Parser;
use undertone_wire::Limits;

use crate::store::{Place, PostgresConfig};

const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_secs(10);
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// Nothing is counted beyond this, so that no sum of limits overflows.
const LIMIT_MAX: u64 = 1 << 40;

/// Limits that may be zero: without them something is simply not offered, or not kept.
const MAY_BE_ZERO: [&str; 10] = [
    "claims_per_account_hour_max",
    "claims_per_pair_hour_max",
    "clock_ahead_s_max",
    "fetch_wait_s_max",
    "keys_low_at",
    "queue_direct_bytes_max",
    "queue_direct_entries_max",
    "queue_group_bytes_min",
    "queue_group_entries_min",
    "rotations_max",
];

/// The Undertone relay: ordered queues of opaque ciphertexts, one per device.
///
/// Without arguments it serves on 127.0.0.1:7611 with a database in ./undertone-data, made if missing.
#[derive(Debug, Clone, Parser)]
#[command(name = "undertone-server", version)]
pub struct Arguments {
    /// What to do; serve if absent.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Address and port to listen on; port 0 takes a free one.
    #[arg(long, env = "UNDERTONE_LISTEN", default_value = "127.0.0.1:7611", value_name = "ADDRESS")]
    pub listen: SocketAddr,
    /// Folder for the database; made if missing.
    #[arg(long, env = "UNDERTONE_DATA", default_value = "./undertone-data", value_name = "FOLDER", global = true)]
    pub data: PathBuf,
    /// Database as sqlite:PATH or postgres://USER:PASSWORD@HOST/DATABASE; undertone.db in the data folder if absent.
    ///
    /// Any number of relays may run over one Postgres database. Nothing is then written to the data folder.
    #[arg(long, env = "UNDERTONE_DATABASE", value_name = "URL", global = true, hide_env_values = true)]
    pub database: Option<String>,
    /// Most connections to Postgres.
    #[arg(long, env = "UNDERTONE_POSTGRES_CONNECTIONS", value_name = "COUNT", default_value_t = 16, global = true,
          value_parser = clap::value_parser!(u32).range(3..=1_000))]
    pub postgres_connections: u32,
    /// Say "lossless" if standbys of Postgres are synchronous, so that promoting one loses nothing.
    ///
    /// Otherwise the relay treats a promotion like a restored backup: devices publish new keys, and are told which
    /// numbers of their queues they may have missed. With "lossless" a recovery to an earlier time must be declared with
    /// the command restore.
    #[arg(long, env = "UNDERTONE_POSTGRES_FAILOVER", value_name = "KIND", default_value = "lossy", global = true)]
    pub postgres_failover: Failover,
    /// Set a limit, as NAME=VALUE; may be given several times. GET /v1/relay lists all with their values.
    #[arg(long = "limit", env = "UNDERTONE_LIMITS", value_name = "NAME=VALUE", value_delimiter = ',')]
    pub limits: Vec<String>,
    /// What to log to stderr: a level (error, warn, info, debug, trace) or a tracing filter. No level names anybody.
    #[arg(long, env = "UNDERTONE_LOG", default_value = "info", value_name = "FILTER")]
    pub log: String,
    /// Listen on other addresses than loopback although tokens then cross the network in clear.
    #[arg(long)]
    pub insecure_plain_http: bool,
}

/// What the binary does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::Subcommand)]
pub enum Command {
    /// Serve (the same as no command).
    Serve,
    /// Bring the database's schema up to date, and end. Serving does it too.
    Migrate,
    /// Declare that the database was restored from a backup, and end.
    ///
    /// The relay notices most restores by itself. It cannot notice rows that were restored into the same tables, a physical
    /// copy of a Postgres cluster that was started without recovery.signal, or a whole machine that was set back: run this
    /// before it serves again. Keys that may have been handed out before are then never handed out again, and devices are
    /// told which numbers of their queues they may have missed.
    Restore,
    /// Declare that the database was moved here whole and is not used any more where it was, and end.
    Moved,
}

/// What promoting a standby of Postgres may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Failover {
    /// The last moments before it.
    Lossy,
    /// Nothing.
    Lossless,
}

/// What a relay needs to know.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Config {
    /// Where the store is.
    pub place: Place,
    /// Where to listen.
    pub listen: SocketAddr,
    /// What is allowed.
    pub limits: Limits,
    /// How long a connection may take to say what it wants, at first and between requests.
    pub header_timeout: Duration,
    /// How often to look for mail of which no wake came.
    pub look_every: Duration,
    /// How long the reader of a stream may take for a page; one who takes longer is cut.
    pub write_timeout: Duration,
}

/// Arguments that do not go together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The address can be reached from elsewhere.
    #[error(
        "{0} is not a loopback address: without TLS, which is yet to come, tokens would cross the network in clear. \
         Listen on 127.0.0.1, or add --insecure-plain-http if something else protects the way."
    )]
    NotLoopback(SocketAddr),
    /// A limit is not given as NAME=VALUE.
    #[error("--limit {0}: give it as NAME=VALUE, with a whole number")]
    NotLimit(String),
    /// There is no such limit.
    #[error("--limit {0}: there is no limit of that name; GET /v1/relay of any relay lists them")]
    UnknownLimit(String),
    /// A limit would make the relay useless, or is larger than anything it counts.
    #[error("--limit {0}: it must be from {1} to {2}")]
    LimitOutOfRange(String, u64, u64),
    /// The database is not given as a path.
    #[error("after sqlite: comes a plain path, as in sqlite:/var/lib/undertone.db: no //, no ?, no file:, no :memory:")]
    NotPath,
    /// The database is of no known kind.
    #[error("the database must be given as sqlite:PATH or postgres://USER:PASSWORD@HOST/DATABASE")]
    UnknownDatabase,
}

impl Config {
    /// A relay at a place and address, with the default limits.
    pub fn new(place: Place, listen: SocketAddr) -> Self {
        Self {
            place,
            listen,
            limits: Limits::default(),
            header_timeout: HEADER_TIMEOUT,
            look_every: LOOK_EVERY,
            write_timeout: WRITE_TIMEOUT,
        }
    }
}

impl TryFrom<&Arguments> for Config {
    type Error = ConfigError;

    fn try_from(arguments: &Arguments) -> Result<Self, ConfigError> {
        if !arguments.listen.ip().is_loopback() && !arguments.insecure_plain_http {
            return Err(ConfigError::NotLoopback(arguments.listen));
        }
        // A variable that is set to nothing is as good as none.
        let place = match arguments.database.as_deref().filter(|database| !database.is_empty()) {
            None => Place::Sqlite(arguments.data.join("undertone.db")),
            Some(url) if url.starts_with("postgres://") || url.starts_with("postgresql://") => {
                let mut postgres = PostgresConfig::new(url);
                postgres.connections = arguments.postgres_connections;
                postgres.lossless_failover = arguments.postgres_failover == Failover::Lossless;
                Place::Postgres(postgres)
            }
            Some(url) => sqlite_place(url)?,
        };
        Ok(Self { limits: limits(&arguments.limits)?, ..Self::new(place, arguments.listen) })
    }
}

/// The default limits, but for those that are given.
fn limits(given: &[String]) -> Result<Limits, ConfigError> {
    let defaults = serde_json::to_value(Limits::default());
    let Ok(serde_json::Value::Object(mut limits)) = defaults else { return Ok(Limits::default()) };
    for limit in given.iter().filter(|limit| !limit.is_empty()) {
        let parsed = limit.split_once('=').and_then(|(name, value)| Some((name, value.trim().parse::<u64>().ok()?)));
        let (name, value) = parsed.ok_or_else(|| ConfigError::NotLimit(limit.clone()))?;
        let known = limits.get_mut(name.trim()).ok_or_else(|| ConfigError::UnknownLimit(limit.clone()))?;
        let (min, max) = range(name.trim());
        if !(min..=max).contains(&value) {
            return Err(ConfigError::LimitOutOfRange(limit.clone(), min, max));
        }
        *known = value.into();
    }
    serde_json::from_value(limits.into()).map_err(|_| ConfigError::NotLimit(given.join(",")))
}

/// What a limit may be.
fn range(name: &str) -> (u64, u64) {
    let min = u64::from(!MAY_BE_ZERO.contains(&name));
    match name {
        // Between nodes it travels inside one notification of Postgres.
        "ephemeral_bytes_max" => (min, Limits::default().ephemeral_bytes_max),
        _ => (min, LIMIT_MAX),
    }
}

fn sqlite_place(url: &str) -> Result<Place, ConfigError> {
    match url.strip_prefix("sqlite:") {
        Some(path) if path.contains('?') || ["//", ":", "file:"].iter().any(|other| path.starts_with(other)) => {
            Err(ConfigError::NotPath)
        }
        Some(path) if !path.is_empty() => Ok(Place::Sqlite(path.into())),
        _ => Err(ConfigError::UnknownDatabase),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(arguments: &[&str]) -> Result<Config, ConfigError> {
        Config::try_from(&Arguments::parse_from([&["undertone-server"], arguments].concat()))
    }

    #[test]
    fn without_arguments_it_is_a_relay_for_this_machine() {
        let config = config(&[]).unwrap();
        assert_eq!(config.listen, "127.0.0.1:7611".parse().unwrap());
        assert_eq!(config.place, Place::Sqlite("./undertone-data/undertone.db".into()));
    }

    #[test]
    fn other_addresses_need_a_word() {
        let address = "0.0.0.0:7611".parse().unwrap();
        assert_eq!(config(&["--listen", "0.0.0.0:7611"]).unwrap_err(), ConfigError::NotLoopback(address));
        assert_eq!(config(&["--listen", "0.0.0.0:7611", "--insecure-plain-http"]).unwrap().listen, address);
        assert!(config(&["--listen", "[::1]:7611"]).is_ok());
    }

    #[test]
    fn the_database_is_a_file_or_postgres() {
        assert_eq!(config(&["--database", "sqlite:/tmp/a.db"]).unwrap().place, Place::Sqlite("/tmp/a.db".into()));
        for url in ["postgres://u@h/d", "postgresql://h/d"] {
            assert_eq!(config(&["--database", url]).unwrap().place, Place::Postgres(PostgresConfig::new(url)));
        }
        let Place::Postgres(postgres) = config(&[
            "--database",
            "postgres://h/d",
            "--postgres-connections",
            "40",
            "--postgres-failover",
            "lossless",
        ])
        .unwrap()
        .place
        else {
            panic!("not Postgres")
        };
        assert_eq!((postgres.connections, postgres.lossless_failover), (40, true));
        for url in ["sqlite::memory:", "sqlite:///tmp/a.db", "sqlite://a.db", "sqlite:a.db?mode=ro", "sqlite:file:a.db"]
        {
            assert_eq!(config(&["--database", url]).unwrap_err(), ConfigError::NotPath);
        }
        assert_eq!(config(&["--database", ""]).unwrap().place, config(&[]).unwrap().place);
        for url in ["mysql://h/d", "sqlite:", "a.db", "postgres:d"] {
            assert_eq!(config(&["--database", url]).unwrap_err(), ConfigError::UnknownDatabase);
        }
    }

    #[test]
    fn limits_are_set_by_name() {
        let set = config(&["--limit", "queue_entries_max=7", "--limit", "retention_s=60"]).unwrap().limits;
        assert_eq!(set, Limits { queue_entries_max: 7, retention_s: 60, ..Limits::default() });
        assert!(matches!(config(&["--limit", "queue_entries_max=many"]), Err(ConfigError::NotLimit(_))));
        assert!(matches!(config(&["--limit", "queue_entries=7"]), Err(ConfigError::UnknownLimit(_))));
    }

    #[test]
    fn limits_that_make_no_sense_are_refused() {
        for limit in
            ["fetch_entries_max=0", "connections_max=0", "retention_s=18446744073709551615", "ephemeral_bytes_max=5000"]
        {
            assert!(matches!(config(&["--limit", limit]), Err(ConfigError::LimitOutOfRange(..))), "{limit}");
        }
        let defaults = serde_json::to_value(Limits::default()).unwrap();
        for name in MAY_BE_ZERO {
            assert!(defaults.get(name).is_some(), "{name} is a limit");
            assert!(config(&["--limit", &format!("{name}=0")]).is_ok(), "{name}");
        }
    }
}
