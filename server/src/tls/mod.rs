//! TLS: the key and certificate by which the relay is known, and the handshake.
//!
//! `self_made` is a key that the relay makes once, known by its fingerprint; `acme` is a certificate for a domain name that an
//! authority signs, and signs anew before it ends. Both keep what they have in the data folder.
//!
//! Invariant: a private key is in a file that nobody but its owner reads, whole or not at all.

mod acme;
mod self_made;

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use rcgen::{KeyPair, PublicKeyData as _};
use tempfile::NamedTempFile;
use tokio_rustls::{
    TlsAcceptor,
    rustls::{self, ServerConfig, crypto::ring, server::ResolvesServerCert},
};
use undertone_wire::Hash;

pub(crate) use acme::Renewal;

use crate::config::{Config, Tls};

/// Why the relay cannot speak TLS.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// The key cannot be read, or kept.
    #[error("data: cannot use the TLS key {0}: {1}. Let the relay, and nobody else, read and write its data folder")]
    Key(PathBuf, io::Error),
    /// The key is none, or a certificate cannot be made with it.
    #[error(
        "data: the TLS key {0} is not usable: {1}. Restore it from a backup; without it, clients that know the old one refuse this relay"
    )]
    Unusable(PathBuf, rcgen::Error),
    /// Certificates cannot be kept.
    #[error("data: cannot keep a certificate in {0}: {1}. Let the relay write to its data folder")]
    Folder(PathBuf, io::Error),
    /// TLS cannot be set up.
    #[error("tls: TLS cannot be set up: {0}")]
    Config(#[from] rustls::Error),
}

/// TLS as the relay speaks it.
pub(crate) struct Spoken {
    pub(crate) acceptor: TlsAcceptor,
    /// By what clients know the relay, if they know it by its key.
    pub(crate) fingerprint: Option<Hash>,
    /// What must run for the certificate to last.
    pub(crate) renewal: Option<Renewal>,
}

/// Looks whether TLS can be spoken as configured, and makes no key.
pub(crate) fn check(config: &Config) -> Result<(), TlsError> {
    match &config.tls {
        Tls::Off => Ok(()),
        Tls::SelfMade => kept(&self_made::file(&config.data)).map(|_| ()),
        Tls::Acme(_) => acme::check(&config.data),
    }
}

/// Gets ready to speak TLS as configured; `None` if it is not spoken.
pub(crate) fn open(config: &Config) -> Result<Option<Spoken>, TlsError> {
    match &config.tls {
        Tls::Off => Ok(None),
        Tls::SelfMade => self_made::open(&config.data).map(Some),
        Tls::Acme(acme) => acme::open(acme, &config.data).map(Some),
    }
}

/// The fingerprint by which clients know a relay with this configuration; `None` if they know it by something else.
pub(crate) fn fingerprint(config: &Config) -> Result<Option<Hash>, TlsError> {
    match &config.tls {
        Tls::SelfMade => self_made::fingerprint(&config.data).map(Some),
        Tls::Off | Tls::Acme(_) => Ok(None),
    }
}

/// The fingerprint of the key that a relay with this configuration shows, if it has one by now; none is made.
pub(crate) fn kept_fingerprint(config: &Config) -> Result<Option<Hash>, TlsError> {
    let file = match &config.tls {
        Tls::Off => return Ok(None),
        Tls::SelfMade => self_made::file(&config.data),
        Tls::Acme(acme) => acme::file(acme, &config.data),
    };
    Ok(kept(&file)?.map(|key| Hash::of(&key.subject_public_key_info())))
}

/// The key that is in a file, if there is one.
fn kept(file: &Path) -> Result<Option<KeyPair>, TlsError> {
    match fs::read_to_string(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(TlsError::Key(file.to_owned(), error)),
        Ok(pem) => KeyPair::from_pem(&pem).map(Some).map_err(|error| TlsError::Unusable(file.to_owned(), error)),
    }
}

/// Shows the certificates that `resolver` has, to whoever speaks one of these protocols, the first if there is a choice.
fn acceptor(resolver: Arc<dyn ResolvesServerCert>, protocols: &[&[u8]]) -> Result<TlsAcceptor, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(resolver);
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// The protocol that is spoken within.
const HTTP: &[u8] = b"http/1.1";

/// A private key that is about to be kept: durable, readable by its owner only, and without its name yet.
fn written(data: &Path, secret: &[u8]) -> io::Result<NamedTempFile> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(data)?;
    let mut new = NamedTempFile::new_in(data)?;
    new.write_all(secret)?;
    new.as_file().sync_all()?;
    Ok(new)
}

/// Makes the names in a folder durable.
fn sync(data: &Path) -> io::Result<()> {
    fs::File::open(data)?.sync_all()
}
