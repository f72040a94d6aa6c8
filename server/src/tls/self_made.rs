//! A key and a certificate that the relay makes itself, for a relay without a domain name.
//!
//! Clients know it by the fingerprint of the key, so that the certificate's own words (names, times) mean nothing.
//!
//! Invariant: the key is made once and replaced by nobody but whoever deletes it: with another key the relay is another to
//! all who pinned it.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData as _};
use tokio_rustls::rustls::{
    crypto::ring,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    sign::{CertifiedKey, SingleCertAndKey},
};
use undertone_wire::Hash;

use super::{HTTP, Spoken, TlsError};

/// The key's file in the data folder.
const KEY_FILE: &str = "undertone.tls.key";

/// What the certificate says it is for; nobody who knows the key looks.
const NAME: &str = "undertone";

/// The fingerprint of the key in a data folder, made if it is not there.
pub(super) fn fingerprint(data: &Path) -> Result<Hash, TlsError> {
    Ok(Hash::of(&key(data)?.subject_public_key_info()))
}

/// The key in a data folder, made if it is not there, and a certificate of today.
pub(super) fn open(data: &Path) -> Result<Spoken, TlsError> {
    let key = key(data)?;
    let unusable = |error| TlsError::Unusable(file(data), error);
    let mut params = CertificateParams::new([NAME.to_owned()]).map_err(unusable)?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, NAME);
    let certificate = params.self_signed(&key).map_err(unusable)?;
    let private = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let shown = CertifiedKey::from_der(vec![certificate.der().clone()], private, &ring::default_provider())?;
    let acceptor = super::acceptor(Arc::new(SingleCertAndKey::from(shown)), &[HTTP])?;
    let fingerprint = Some(Hash::of(&key.subject_public_key_info()));
    Ok(Spoken { acceptor, fingerprint, renewal: None })
}

/// Where the key is.
pub(super) fn file(data: &Path) -> PathBuf {
    data.join(KEY_FILE)
}

/// The key, made if it is not there.
fn key(data: &Path) -> Result<KeyPair, TlsError> {
    let file = file(data);
    if let Some(key) = super::kept(&file)? {
        return Ok(key);
    }
    let cannot = |error| TlsError::Key(file.clone(), error);
    let new =
        KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|error| TlsError::Unusable(file.clone(), error))?;
    match keep(data, &file, &new.serialize_pem()).map_err(cannot)? {
        true => Ok(new),
        // Another process made one at the same moment: that one holds.
        false => super::kept(&file)?.ok_or_else(|| cannot(io::ErrorKind::NotFound.into())),
    }
}

/// Keeps a new key: whole and durable, or not at all. `false` if there is one already.
fn keep(data: &Path, file: &Path, pem: &str) -> io::Result<bool> {
    match super::written(data, pem.as_bytes())?.persist_noclobber(file) {
        Ok(_) => super::sync(data).map(|()| true),
        Err(kept) if kept.error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(kept) => Err(kept.error),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;

    #[test]
    fn the_key_is_made_once() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        let made = open(&data).unwrap();
        let (first, again) = (made.fingerprint.unwrap(), open(&data).unwrap());
        assert_eq!(again.fingerprint, Some(first));
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
        let said = open(folder.path()).err().unwrap().to_string();
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
