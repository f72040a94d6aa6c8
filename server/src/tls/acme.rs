//! A certificate for a domain name, from an authority that speaks ACME (RFC 8555), which asks back over TLS at port 443 of that
//! name (RFC 8737).
//!
//! Invariant: what the authority gave is kept, with the key, under a name that no other domain or authority has. After a failure
//! the authority is left alone for a while, for it counts failures. Whatever becomes of an attempt, there is a next one.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use async_trait::async_trait;
use futures_util::StreamExt as _;
use rustls_acme::{
    AccountCache, AcmeConfig, AcmeState, CertCache, EventError, EventOk, ResolvesServerCertAcme,
    acme::ACME_TLS_ALPN_NAME, is_tls_alpn_challenge,
};
use rustls_platform_verifier::BuilderVerifierExt as _;
use tokio::time::{sleep, timeout};
use tokio_rustls::rustls::{
    ClientConfig,
    crypto::ring,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use undertone_wire::Hash;

use super::{HTTP, Spoken, TlsError};
use crate::config::Acme;

/// How long to leave the authority alone after a failure, at first and at last. Let's Encrypt allows five failures an hour.
const PAUSE_MIN: Duration = Duration::from_secs(2 * 60);
const PAUSE_MAX: Duration = Duration::from_secs(60 * 60);

/// How long an attempt may take; one that hangs is given up.
const ATTEMPT_MAX: Duration = Duration::from_secs(10 * 60);

/// How often to begin anew with what is kept, so that a renewal that hangs is given up as well. Renewals begin weeks before the
/// end.
const BEGIN_ANEW: Duration = Duration::from_secs(24 * 60 * 60);

/// Looks whether certificates can be kept, if their folder is there. Who cannot keep them would ask for one at every start,
/// which authorities do not like.
pub(super) fn check(data: &Path) -> Result<(), TlsError> {
    if data.exists() { can_keep(data) } else { Ok(()) }
}

fn can_keep(data: &Path) -> Result<(), TlsError> {
    super::written(data, b"").map(|_| ()).map_err(|error| TlsError::Folder(data.to_owned(), error))
}

/// Gets ready to show the certificate that is kept, or that comes once [`Renewal::run`] runs.
pub(super) fn open(acme: &Acme, data: &Path) -> Result<Spoken, TlsError> {
    can_keep(data)?;
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions()?.with_platform_verifier()?;
    let client = Arc::new(builder.with_no_client_auth());
    let shown = Arc::<Shown>::default();
    let resolver = Arc::clone(&shown) as Arc<dyn ResolvesServerCert>;
    let acceptor = super::acceptor(resolver, &[HTTP, ACME_TLS_ALPN_NAME])?;
    let renewal = Renewal { acme: acme.clone(), data: data.to_owned(), client, shown };
    Ok(Spoken { acceptor, fingerprint: None, renewal: Some(renewal) })
}

/// Where the certificate is kept, behind its key.
pub(super) fn file(acme: &Acme, data: &Path) -> PathBuf {
    Kept { data: data.to_owned() }.file(CERTIFICATE, std::slice::from_ref(&acme.domain), &acme.directory)
}

/// What is shown: the newest certificate to those who come, and to the authority what it asks for.
#[derive(Debug, Default)]
struct Shown {
    newest: RwLock<Option<Arc<ResolvesServerCertAcme>>>,
    asking: RwLock<Option<Arc<ResolvesServerCertAcme>>>,
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let asked = if is_tls_alpn_challenge(&hello) { &self.asking } else { &self.newest };
        let asked = asked.read().unwrap_or_else(PoisonError::into_inner).clone();
        asked?.resolve(hello)
    }
}

fn set(place: &RwLock<Option<Arc<ResolvesServerCertAcme>>>, resolver: Arc<ResolvesServerCertAcme>) {
    *place.write().unwrap_or_else(PoisonError::into_inner) = Some(resolver);
}

/// What must run for there to be a certificate.
pub(crate) struct Renewal {
    acme: Acme,
    data: PathBuf,
    client: Arc<ClientConfig>,
    shown: Arc<Shown>,
}

impl Renewal {
    /// Gets a certificate, and another whenever two thirds of its time are over, until dropped.
    pub(crate) async fn run(self) {
        let mut pause = PAUSE_MIN;
        loop {
            if self.attempt().await {
                pause = PAUSE_MIN;
                continue;
            }
            let minutes = pause.as_secs() / 60;
            tracing::error!(minutes, "no certificate came; the next attempt is in so many minutes, or at a restart");
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Shows what is kept, and gets what is due, for a day; `false` if a certificate was due and none came.
    async fn attempt(&self) -> bool {
        let mut state: AcmeState<io::Error> =
            AcmeConfig::new_with_client_config([&self.acme.domain], Arc::clone(&self.client))
                .directory(&self.acme.directory)
                .contact(self.acme.contact.as_ref().map(|address| format!("mailto:{address}")))
                .cache(Kept { data: self.data.clone() })
                .state();
        set(&self.shown.asking, state.resolver());
        let mut patience = ATTEMPT_MAX;
        loop {
            match timeout(patience, state.next()).await {
                Ok(Some(Ok(event @ (EventOk::DeployedNewCert | EventOk::DeployedCachedCert)))) => {
                    set(&self.shown.newest, state.resolver());
                    patience = BEGIN_ANEW;
                    tracing::info!(is_new = matches!(event, EventOk::DeployedNewCert), "a certificate is shown");
                }
                Ok(Some(Ok(EventOk::CertCacheStore | EventOk::AccountCacheStore))) => {}
                Ok(Some(Err(error @ (EventError::Order(_) | EventError::NewCertParse(_))))) => {
                    tracing::error!(%error, "the authority gave no certificate");
                    return false;
                }
                Ok(Some(Err(error))) => tracing::error!(%error, "what the authority gave cannot be kept or read"),
                Ok(None) | Err(_) => return patience == BEGIN_ANEW,
            }
        }
    }
}

/// Certificates with their keys, and accounts at authorities, in the data folder.
struct Kept {
    data: PathBuf,
}

impl Kept {
    /// The file for what belongs to these words and no others.
    fn file(&self, kind: &str, words: &[String], directory: &str) -> PathBuf {
        let all = words.iter().map(String::as_str).chain([directory]).collect::<Vec<_>>().join("\n");
        let name: String = Hash::of(all.as_bytes()).as_bytes()[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        self.data.join(format!("undertone.tls.{kind}.{name}"))
    }

    async fn load(&self, file: PathBuf) -> io::Result<Option<Vec<u8>>> {
        match tokio::fs::read(file).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            read => read.map(Some),
        }
    }

    async fn store(&self, file: PathBuf, secret: &[u8]) -> io::Result<()> {
        let (data, secret) = (self.data.clone(), secret.to_vec());
        let stored = tokio::task::spawn_blocking(move || {
            super::written(&data, &secret)?.persist(file).map_err(|kept| kept.error)?;
            super::sync(&data)
        });
        stored.await.map_err(io::Error::other)?
    }
}

const CERTIFICATE: &str = "certificate";
const ACCOUNT: &str = "account";

#[async_trait]
impl CertCache for Kept {
    type EC = io::Error;

    async fn load_cert(&self, domains: &[String], directory: &str) -> io::Result<Option<Vec<u8>>> {
        self.load(self.file(CERTIFICATE, domains, directory)).await
    }

    async fn store_cert(&self, domains: &[String], directory: &str, certificate: &[u8]) -> io::Result<()> {
        self.store(self.file(CERTIFICATE, domains, directory), certificate).await
    }
}

#[async_trait]
impl AccountCache for Kept {
    type EA = io::Error;

    async fn load_account(&self, contact: &[String], directory: &str) -> io::Result<Option<Vec<u8>>> {
        self.load(self.file(ACCOUNT, contact, directory)).await
    }

    async fn store_account(&self, contact: &[String], directory: &str, account: &[u8]) -> io::Result<()> {
        self.store(self.file(ACCOUNT, contact, directory), account).await
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;

    #[tokio::test]
    async fn each_domain_at_each_authority_has_what_it_was_given() {
        let folder = tempfile::tempdir().unwrap();
        let kept = Kept { data: folder.path().join("data") };
        let (a, b) = (["a.example".to_owned()], ["b.example".to_owned()]);
        assert_eq!(kept.load_cert(&a, "one").await.unwrap(), None);
        for (domains, directory, given) in [(&a, "one", "1"), (&b, "one", "2"), (&a, "two", "3"), (&a, "one", "4")] {
            kept.store_cert(domains, directory, given.as_bytes()).await.unwrap();
        }
        kept.store_account(&a, "one", b"5").await.unwrap();
        for (domains, directory, given) in [(&b, "one", "2"), (&a, "two", "3"), (&a, "one", "4")] {
            assert_eq!(kept.load_cert(domains, directory).await.unwrap().unwrap(), given.as_bytes());
        }
        assert_eq!(kept.load_account(&a, "one").await.unwrap().unwrap(), b"5");
        let files = fs::read_dir(&kept.data).unwrap().map(|file| file.unwrap().metadata().unwrap());
        let modes: Vec<_> = files.map(|file| file.permissions().mode() & 0o777).collect();
        assert_eq!(modes, [0o600; 4], "and nobody else reads it");
    }
}
