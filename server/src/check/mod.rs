//! Check: what whoever hosts the relay wants to know of it from outside: is it ready, and does everything work from here.
//!
//! It asks as clients do, through their own crate, and looks neither into the store nor into a node (decision 7). What it
//! knows of the relay is the configuration: where it is ([`here`], [`for_others`]), and by what it is known there.
//!
//! Invariant: a check makes no key and leaves nothing behind; where it could not take something away again, it says so.

mod guest;
mod round;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use tokio::time::timeout;
use undertone_api::{ApiError, HttpApi, NowMs, Place, PlaceError};
use undertone_wire::{ConnectionString, ConnectionStringError};

pub use round::{Left, RoundError, Step, Stop, Why, round_trip};

use crate::{
    clock::{Clock, SystemClock},
    config::{Config, Tls},
    reach,
    tls::{self, TlsError},
};

/// How soon the relay says that it is ready: what runs the check waits five seconds, and some pass until this begins.
const READY_WITHIN: Duration = Duration::from_secs(4);

/// Why a relay cannot be found, or is not ready.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckError {
    /// The configuration does not say at which port it listens.
    #[error("listen names port 0, so that only the relay itself knows where it is; name another")]
    NoPort,
    /// There is no key by which to know it.
    #[error("the relay is not running here: there is no TLS key in {0} yet")]
    NoKey(PathBuf),
    /// No authority has given a certificate by which to know it.
    #[error("the relay has no certificate yet; its log says whether the authority refused one")]
    NoCertificate,
    /// There is a key, and it is not usable.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The address is none.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// The address of the configuration does not fit into a connection string.
    #[error("the relay has no address to be reached at: {0}")]
    Address(#[from] ConnectionStringError),
    /// It did not answer as a relay does that is ready.
    #[error(transparent)]
    Relay(#[from] ApiError),
    /// It did not answer in time.
    #[error("the relay did not say within {} s whether it is ready", READY_WITHIN.as_secs())]
    Silent,
}

/// Whether the relay of this configuration, on this machine, says that it can serve. Answers within five seconds.
pub async fn health(config: &Config) -> Result<(), CheckError> {
    let api = HttpApi::new(&here(config)?, told_by(Arc::new(SystemClock)))?;
    Ok(timeout(READY_WITHIN, api.ready()).await.map_err(|_| CheckError::Silent)??)
}

/// Where the relay of this configuration is on this machine, and by what it is known there.
fn here(config: &Config) -> Result<Place, CheckError> {
    let listening = on_this_machine(listening(config)?);
    if config.tls == Tls::Off {
        return Ok(Place::own_machine(listening)?);
    }
    let mut connection = ConnectionString::new(&reach::text(listening.ip()), listening.port())?;
    connection.fingerprint = tls::kept_fingerprint(config)?;
    match connection.fingerprint {
        Some(_) => Ok(Place::connection(connection)?),
        None if config.tls == Tls::SelfMade => Err(CheckError::NoKey(config.data.clone())),
        None => Err(CheckError::NoCertificate),
    }
}

/// Where others reach the relay of this configuration, and by what they know it: where its connection string says, or else
/// where it listens.
fn for_others(config: &Config) -> Result<Place, CheckError> {
    let here = here(config)?;
    // A relay without a key is not here, so that none is made now.
    match crate::connection_string(config)? {
        Some(connection) => Ok(Place::connection(connection)?),
        None => Ok(here),
    }
}

fn listening(config: &Config) -> Result<SocketAddr, CheckError> {
    if config.listen.port() == 0 { Err(CheckError::NoPort) } else { Ok(config.listen) }
}

/// An address at which this machine reaches itself; loopback, if it stands for all of them.
fn on_this_machine(listening: SocketAddr) -> SocketAddr {
    let ip = match listening.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, listening.port())
}

/// A clock as the client's crate takes it.
fn told_by(clock: Arc<dyn Clock>) -> NowMs {
    Arc::new(move || clock.now_ms())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store;

    fn config(listen: &str) -> Config {
        Config::new(store::Place::Sqlite("undertone.db".into()), listen.parse().unwrap())
    }

    #[test]
    fn a_relay_without_tls_is_here_where_it_listens() {
        for (listen, at) in [
            ("127.0.0.1:7611", "http://127.0.0.1:7611"),
            ("0.0.0.0:7611", "http://127.0.0.1:7611"),
            ("[::]:7611", "http://[::1]:7611"),
            ("192.0.2.1:7611", "http://192.0.2.1:7611"),
        ] {
            assert_eq!(here(&config(listen)).unwrap().text(), at);
            assert_eq!(for_others(&config(listen)).unwrap().text(), at);
        }
        assert!(matches!(here(&config("127.0.0.1:0")), Err(CheckError::NoPort)));
    }

    #[test]
    fn others_reach_a_relay_without_tls_at_its_address_over_https() {
        let mut config = config("127.0.0.1:7611");
        for (port, at) in [(None, "undertone://relay.example/"), (Some(8443), "undertone://relay.example:8443/")] {
            config.address = Some(("relay.example".to_owned(), port));
            assert_eq!(for_others(&config).unwrap().text(), at);
            assert_eq!(here(&config).unwrap().text(), "http://127.0.0.1:7611");
        }
    }

    #[test]
    fn a_relay_with_a_key_of_its_own_is_known_by_it() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = config("0.0.0.0:7611");
        (config.tls, config.data) = (Tls::SelfMade, folder.path().to_owned());
        config.address = Some(("relay.example".to_owned(), None));
        for find in [here, for_others] {
            assert!(matches!(find(&config), Err(CheckError::NoKey(_))));
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "no key is made");
        let key = tls::fingerprint(&config).unwrap();
        let known = |host: &str| {
            let mut connection = ConnectionString::new(host, 7611).unwrap();
            connection.fingerprint = key;
            connection.to_string()
        };
        assert_eq!(here(&config).unwrap().text(), known("127.0.0.1"));
        assert_eq!(for_others(&config).unwrap().text(), known("relay.example"));
    }
}
