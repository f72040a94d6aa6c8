//! Configuration: flags, their `UNDERTONE_*` variables, and what follows from them.
//!
//! Invariant: a [`Config`] made from [`Arguments`] sends no token across a network in clear unless it was told to.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::Parser;
use undertone_wire::Limits;

use crate::store::Place;

const HEADER_TIMEOUT: Duration = Duration::from_secs(30);

/// The Undertone relay: ordered queues of opaque ciphertexts, one per device.
///
/// Without arguments it serves on 127.0.0.1:7611 with a database in ./undertone-data, made if missing.
#[derive(Debug, Clone, Parser)]
#[command(name = "undertone-server", version)]
pub struct Arguments {
    /// Address and port to listen on; port 0 takes a free one.
    #[arg(long, env = "UNDERTONE_LISTEN", default_value = "127.0.0.1:7611", value_name = "ADDRESS")]
    pub listen: SocketAddr,
    /// Folder for the database; made if missing.
    #[arg(long, env = "UNDERTONE_DATA", default_value = "./undertone-data", value_name = "FOLDER")]
    pub data: PathBuf,
    /// Database as sqlite:PATH; undertone.db in the data folder if absent.
    #[arg(long, env = "UNDERTONE_DATABASE", value_name = "URL")]
    pub database: Option<String>,
    /// What to log to stderr: a level (error, warn, info, debug, trace) or a tracing filter. No level names anybody.
    #[arg(long, env = "UNDERTONE_LOG", default_value = "info", value_name = "FILTER")]
    pub log: String,
    /// Listen on other addresses than loopback although tokens then cross the network in clear.
    #[arg(long)]
    pub insecure_plain_http: bool,
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
    /// The database is of a kind that is not there yet.
    #[error("Postgres comes in a later version; leave --database out, or say sqlite:PATH")]
    Postgres,
    /// The database is not given as a path.
    #[error("after sqlite: comes a plain path, as in sqlite:/var/lib/undertone.db: no //, no ?, no file:, no :memory:")]
    NotPath,
    /// The database is of no known kind.
    #[error("the database must be given as sqlite:PATH")]
    UnknownDatabase,
}

impl Config {
    /// A relay at a place and address, with the default limits.
    pub fn new(place: Place, listen: SocketAddr) -> Self {
        Self { place, listen, limits: Limits::default(), header_timeout: HEADER_TIMEOUT }
    }
}

impl TryFrom<&Arguments> for Config {
    type Error = ConfigError;

    fn try_from(arguments: &Arguments) -> Result<Self, ConfigError> {
        if !arguments.listen.ip().is_loopback() && !arguments.insecure_plain_http {
            return Err(ConfigError::NotLoopback(arguments.listen));
        }
        let place = match arguments.database.as_deref() {
            None => Place::Sqlite(arguments.data.join("undertone.db")),
            Some(url) => place(url)?,
        };
        Ok(Self::new(place, arguments.listen))
    }
}

fn place(url: &str) -> Result<Place, ConfigError> {
    if url.starts_with("postgres:") || url.starts_with("postgresql:") {
        return Err(ConfigError::Postgres);
    }
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
    fn the_database_is_a_file_for_now() {
        assert_eq!(config(&["--database", "sqlite:/tmp/a.db"]).unwrap().place, Place::Sqlite("/tmp/a.db".into()));
        for url in ["postgres://u@h/d", "postgresql://h/d"] {
            assert_eq!(config(&["--database", url]).unwrap_err(), ConfigError::Postgres);
        }
        for url in ["sqlite::memory:", "sqlite:///tmp/a.db", "sqlite://a.db", "sqlite:a.db?mode=ro", "sqlite:file:a.db"]
        {
            assert_eq!(config(&["--database", url]).unwrap_err(), ConfigError::NotPath);
        }
        for url in ["mysql://h/d", "sqlite:", "a.db"] {
            assert_eq!(config(&["--database", url]).unwrap_err(), ConfigError::UnknownDatabase);
        }
    }
}
