//! TLS: the key and certificate by which the relay is known, and the handshake.
//!
//! Without a domain name the relay makes both itself, once, and keeps them in the data folder. Clients know it by the
//! fingerprint of the key, so that the certificate's own words (names, times) mean nothing.
//!
//! Invariant: the key is made once and replaced by nobody but whoever deletes it: with another key the relay is another to
//! all who pinned it.

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData as _};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        self, ServerConfig,
        crypto::ring,
        pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    },
};
use undertone_wire::Hash;

/// The key's file in the data folder.
const KEY_FILE: &str = "undertone.tls.key";

/// What the certificate says it is for; nobody who knows the key looks.
const NAME: &str = "undertone";

/// Why the relay cannot speak TLS.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// The key cannot be read, or kept.
    #[error("cannot use the TLS key {0}: {1}")]
    Key(PathBuf, io::Error),
    /// The key is none, or a certificate cannot be made with it.
    #[error(
        "the TLS key {0} is not usable: {1}. Restore it from a backup; without it, clients that know the old one refuse this relay"
    )]
    Unusable(PathBuf, rcgen::Error),
    /// The certificate cannot be served.
    #[error("cannot serve TLS: {0}")]
    Config(#[from] rustls::Error),
}

/// A key and a certificate that the relay made itself.
pub(crate) struct SelfMade {
    pub(crate) acceptor: TlsAcceptor,
    /// By what clients know it.
    pub(crate) fingerprint: Hash,
    /// Whether the key was made just now.
    pub(crate) is_new: bool,
}

/// The fingerprint of the key in a data folder, made if it is not there.
pub(crate) fn fingerprint(data: &Path) -> Result<Hash, TlsError> {
    Ok(Hash::of(&key(data)?.0.subject_public_key_info()))
}

impl SelfMade {
    /// The key in a data folder, made if it is not there, and a certificate of today.
    pub(crate) fn open(data: &Path) -> Result<Self, TlsError> {
        let (key, is_new) = key(data)?;
        let fingerprint = Hash::of(&key.subject_public_key_info());
        let unusable = |error| TlsError::Unusable(data.join(KEY_FILE), error);
        let mut params = CertificateParams::new([NAME.to_owned()]).map_err(unusable)?;
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, NAME);
        let certificate = params.self_signed(&key).map_err(unusable)?;
        let private = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], private)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { acceptor: TlsAcceptor::from(Arc::new(config)), fingerprint, is_new })
    }
}

/// The key, and whether it was made just now.
fn key(data: &Path) -> Result<(KeyPair, bool), TlsError> {
    let file = data.join(KEY_FILE);
    let unusable = |error| TlsError::Unusable(file.clone(), error);
    let kept = || fs::read_to_string(&file).map_err(|error| TlsError::Key(file.clone(), error));
    match kept() {
        Err(TlsError::Key(_, error)) if error.kind() == io::ErrorKind::NotFound => {}
        pem => return Ok((KeyPair::from_pem(&pem?).map_err(unusable)?, false)),
    }
    let new = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(unusable)?;
    match keep(data, &file, &new.serialize_pem()).map_err(|error| TlsError::Key(file.clone(), error))? {
        true => Ok((new, true)),
        // Another process made one at the same moment: that one holds.
        false => Ok((KeyPair::from_pem(&kept()?).map_err(unusable)?, false)),
    }
}

/// Keeps a new key: whole and durable, or not at all. `false` if there is one already.
fn keep(data: &Path, file: &Path, pem: &str) -> io::Result<bool> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(data)?;
    let mut new = tempfile::NamedTempFile::new_in(data)?;
    new.write_all(pem.as_bytes())?;
    new.as_file().sync_all()?;
    match new.persist_noclobber(file) {
        Ok(_) => fs::File::open(data)?.sync_all().map(|()| true),
        Err(kept) if kept.error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(kept) => Err(kept.error),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn the_key_is_made_once() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        let made = SelfMade::open(&data).unwrap();
        let (first, again) = (made.fingerprint, SelfMade::open(&data).unwrap());
        assert_eq!((made.is_new, again.is_new, again.fingerprint), (true, false, first));
        assert_eq!(fingerprint(&data).unwrap(), first);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&data), mode(&data.join(KEY_FILE))), (0o700, 0o600));
        assert_eq!(fs::read_dir(&data).unwrap().count(), 1, "nothing is left beside it");
        assert_ne!(fingerprint(&folder.path().join("other")).unwrap(), first);
    }

    #[test]
    fn a_key_that_is_none_is_left_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(KEY_FILE);
        fs::write(&file, "no key").unwrap();
        let said = SelfMade::open(folder.path()).err().unwrap().to_string();
        assert!(said.contains("undertone.tls.key") && said.contains("backup"), "{said}");
        assert_eq!(fs::read_to_string(&file).unwrap(), "no key");
    }

    #[test]
    fn a_key_that_points_nowhere_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        for (link, data) in [(KEY_FILE, folder.path().to_owned()), ("data", folder.path().join("data"))] {
            std::os::unix::fs::symlink("/nowhere/at/all", folder.path().join(link)).unwrap();
            assert!(matches!(fingerprint(&data), Err(TlsError::Key(..))), "{link}");
        }
    }

    #[test]
    fn of_many_that_make_a_key_at_once_one_does() {
        let folder = tempfile::tempdir().unwrap();
        let made: std::collections::BTreeSet<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| fingerprint(folder.path()).unwrap())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(made.len(), 1);
    }
}
