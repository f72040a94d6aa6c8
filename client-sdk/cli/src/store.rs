//! Where the store is, and what opens it: the passphrase in `UNDERTONE_PASSPHRASE`, or a key file.
//!
//! A key file holds 32 random bytes as hex, readable by its owner only, in the config folder and so never beside the
//! store it opens. Its name comes from the store's absolute path: one file per store.
//!
//! Invariant: a key file is never written over, and no key is made for a folder that already holds something.

use std::{
    env,
    ffi::OsString,
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::{
        ffi::OsStrExt as _,
        fs::{DirBuilderExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};
use undertone::{Client, ClientBuilder, Error, Linking, StoreAt, StoreKey, Username};
use zeroize::Zeroizing;

use crate::{
    args::{Link, Recover, Register},
    error::Failure,
    output::hint,
};

const PASSPHRASE: &str = "UNDERTONE_PASSPHRASE";

/// Whose data and settings these are, in the folders that hold everybody's.
const OURS: &str = "undertone";

/// A store, and where its key comes from.
#[derive(Debug)]
pub(crate) struct Place {
    store: PathBuf,
    key_folder: Option<PathBuf>,
    passphrase: Option<OsString>,
}

/// A key, and how to call it where it does not fit.
#[derive(Debug)]
struct Key {
    key: StoreKey,
    origin: String,
}

impl Place {
    /// The store in `store`, or in the user's data folder; what the environment says about keys and folders.
    pub(crate) fn from_env(store: Option<PathBuf>) -> Result<Self, Failure> {
        let store = match store {
            Some(store) => store,
            None => folder("XDG_DATA_HOME", ".local/share")
                .ok_or_else(|| Failure::Refused("HOME is not set: say where the store is with --store DIR".into()))?,
        };
        let key_folder = folder("XDG_CONFIG_HOME", ".config");
        Ok(Self { store, key_folder, passphrase: env::var_os(PASSPHRASE) })
    }

    /// Opens the account in the store and connects.
    pub(crate) async fn open(&self) -> Result<Client, Failure> {
        let key = self.existing_key()?;
        Client::open(&self.store, key.key).await.map_err(|error| self.explained(error, &key.origin))
    }

    /// Opens the account in the store for reading, without a connection.
    pub(crate) async fn open_offline(&self) -> Result<Client, Failure> {
        let key = self.existing_key()?;
        Client::open_offline(&self.store, key.key).await.map_err(|error| self.explained(error, &key.origin))
    }

    /// Registers an account in the store. If a key file is made for it, stderr says so, whatever comes of the rest.
    pub(crate) async fn register(&self, register: &Register) -> Result<Client, Failure> {
        let (builder, origin) = self.new_store(&register.relay)?;
        let builder = register.invite.into_iter().fold(builder, ClientBuilder::invite);
        let username = register.username.as_ref().map(Username::as_str);
        builder.register(username).await.map_err(|error| self.explained(error, &origin))
    }

    /// What makes the account of a new store, at a relay, and how to call the store's key.
    fn new_store(&self, relay: &[String]) -> Result<(ClientBuilder<StoreAt>, String), Failure> {
        let (key, made) = self.new_key()?;
        if let Some(line) = made {
            hint(&line);
        }
        let Some((first, others)) = relay.split_first() else {
            return Err(Failure::Refused("say where the relay is: --relay URL".into()));
        };
        let builder = others.iter().fold(Client::builder(first), ClientBuilder::also_at);
        Ok((builder.store(&self.store, key.key), key.origin))
    }

    /// Makes the store a new device's, which is to be linked.
    pub(crate) async fn link(&self, link: &Link) -> Result<Linking, Failure> {
        let (builder, origin) = self.new_store(&link.relay)?;
        builder.link(&link.name).await.map_err(|error| self.explained(error, &origin))
    }

    /// Makes the store that of an account whose devices are lost.
    pub(crate) async fn recover(&self, recover: &Recover, key: &str) -> Result<Client, Failure> {
        let (builder, origin) = self.new_store(&recover.relay)?;
        builder.recover(key, &recover.name).await.map_err(|error| self.explained(error, &origin))
    }

    fn explained(&self, error: Error, origin: &str) -> Failure {
        let store = self.store.display();
        match error {
            Error::WrongKey => Failure::Refused(format!("the store {store} cannot be opened with {origin}")),
            Error::StoreInUse => Failure::Refused(format!("the store {store} is in use by another process")),
            Error::NotRegistered => Failure::Refused(format!(
                "the store {store} holds no account yet: undertone register --relay URL makes one"
            )),
            other => other.into(),
        }
    }

    /// The key of a store that is there.
    fn existing_key(&self) -> Result<Key, Failure> {
        if let Some(key) = self.passphrase()? {
            return Ok(key);
        }
        if is_empty(&self.store)? {
            return Err(self.explained(Error::NotRegistered, ""));
        }
        let file = self.key_file()?;
        match read_key(&file)? {
            Some(key) => Ok(Key { key, origin: format!("the key file {}", file.display()) }),
            None => Err(self.key_is_missing(&file)),
        }
    }

    /// The key for a store that is to be made, or whose making was not finished; and a line about a file just made.
    fn new_key(&self) -> Result<(Key, Option<String>), Failure> {
        if let Some(key) = self.passphrase()? {
            return Ok((key, None));
        }
        let empty = is_empty(&self.store)?;
        private_folder(&self.store)?;
        let file = self.key_file()?;
        let origin = format!("the key file {}", file.display());
        match read_key(&file)? {
            Some(key) => Ok((Key { key, origin }, None)),
            None if !empty => Err(self.key_is_missing(&file)),
            None => {
                let key = make_key(&file)?;
                let line = format!(
                    "the store's key is in {}: a copy of the store alone cannot be read; whoever can use your login can \
                     read it",
                    file.display()
                );
                Ok((Key { key, origin }, Some(line)))
            }
        }
    }

    fn passphrase(&self) -> Result<Option<Key>, Failure> {
        let Some(passphrase) = &self.passphrase else { return Ok(None) };
        let text = passphrase.to_str().filter(|text| !text.contains('\0'));
        match text {
            None => Err(Failure::Refused(format!("{PASSPHRASE} is not text"))),
            Some("") => {
                Err(Failure::Refused(format!("{PASSPHRASE} is empty: unset it to use a key file, or give it a value")))
            }
            Some(text) => {
                let key = StoreKey::Passphrase(text.to_owned());
                Ok(Some(Key { key, origin: format!("the passphrase in {PASSPHRASE}") }))
            }
        }
    }

    /// Where the key of this store is. The store's folder must be there.
    fn key_file(&self) -> Result<PathBuf, Failure> {
        let folder = self.key_folder.as_ref().ok_or_else(|| {
            Failure::Refused(format!("HOME is not set, so there is no place for a key file: set {PASSPHRASE}"))
        })?;
        let store = fs::canonicalize(&self.store).map_err(|error| failed("find", &self.store, &error))?;
        Ok(folder.join(key_name(&store)))
    }

    fn key_is_missing(&self, file: &Path) -> Failure {
        Failure::Refused(format!(
            "the store {} needs its key, and there is none in {}; if it has a passphrase, set {PASSPHRASE}",
            self.store.display(),
            file.display()
        ))
    }
}

/// Our folder in one of the user's: where the variable says, if it says an absolute path, or below the home folder.
fn folder(variable: &str, below_home: &str) -> Option<PathBuf> {
    let named = env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute());
    let home = || env::var_os("HOME").filter(|home| !home.is_empty()).map(|home| PathBuf::from(home).join(below_home));
    Some(named.or_else(home)?.join(OURS))
}

/// The name of a store's key file: the folder's own name for people, a digest of the whole path to tell them apart.
fn key_name(store: &Path) -> String {
    let digest = Sha256::digest(store.as_os_str().as_bytes());
    let digest: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let name = store.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
    let name: String = name.chars().filter(|c| c.is_ascii_alphanumeric() || "-_".contains(*c)).take(32).collect();
    format!("{name}-{digest}.key")
}

fn is_empty(folder: &Path) -> Result<bool, Failure> {
    match fs::read_dir(folder) {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(failed("read", folder, &error)),
    }
}

fn private_folder(path: &Path) -> Result<(), Failure> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|error| failed("make", path, &error))
}

fn read_key(file: &Path) -> Result<Option<StoreKey>, Failure> {
    let mut text = Zeroizing::new(String::new());
    match fs::File::open(file) {
        Ok(open) => open.take(1024).read_to_string(&mut text).map_err(|error| failed("read", file, &error))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("read", file, &error)),
    };
    let key = from_hex(text.trim_end());
    key.map(|key| Some(StoreKey::Raw32(*key)))
        .ok_or_else(|| Failure::Refused(format!("{} does not hold a key: 64 hexadecimal digits", file.display())))
}

fn make_key(file: &Path) -> Result<StoreKey, Failure> {
    let mut key = Zeroizing::new([0; 32]);
    getrandom::fill(key.as_mut_slice())
        .map_err(|error| Failure::Refused(format!("the system gives no random bytes: {error}")))?;
    let mut text = Zeroizing::new(String::with_capacity(2 * key.len() + 1));
    for byte in key.iter() {
        text.push_str(&format!("{byte:02x}"));
    }
    text.push('\n');
    if let Some(folder) = file.parent() {
        private_folder(folder)?;
    }
    write_new(file, text.as_bytes()).map_err(|error| failed("make", file, &error))?;
    Ok(StoreKey::Raw32(*key))
}

fn write_new(file: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut open = OpenOptions::new().write(true).create_new(true).mode(0o600).open(file)?;
    open.write_all(bytes)?;
    open.sync_all()
}

fn from_hex(text: &str) -> Option<Zeroizing<[u8; 32]>> {
    let mut key = Zeroizing::new([0; 32]);
    if text.len() != 2 * key.len() || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, at) in key.iter_mut().zip((0..).step_by(2)) {
        *byte = u8::from_str_radix(text.get(at..at + 2)?, 16).ok()?;
    }
    Some(key)
}

fn failed(what: &str, path: &Path, error: &io::Error) -> Failure {
    Failure::Refused(format!("cannot {what} {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn place(root: &Path) -> Place {
        Place { store: root.join("data/alice"), key_folder: Some(root.join("config")), passphrase: None }
    }

    fn raw(key: &Key) -> [u8; 32] {
        match &key.key {
            StoreKey::Raw32(key) => *key,
            _ => panic!("not a raw key"),
        }
    }

    fn reason<T: std::fmt::Debug>(result: Result<T, Failure>) -> String {
        result.unwrap_err().reason().unwrap()
    }

    #[test]
    fn a_key_is_made_once_for_its_owner_only() {
        let root = tempfile::tempdir().unwrap();
        let place = place(root.path());
        let (made, line) = place.new_key().unwrap();
        let file = place.key_file().unwrap();
        assert!(line.unwrap().contains(file.to_str().unwrap()));
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(&place.store).unwrap().permissions().mode() & 0o777, 0o700);
        let (again, line) = place.new_key().unwrap();
        assert_eq!((raw(&made), None), (raw(&again), line));
        fs::write(place.store.join("undertone.db"), "x").unwrap();
        assert_eq!(raw(&made), raw(&place.existing_key().unwrap()));
    }

    #[test]
    fn a_store_without_its_key_says_what_is_missing() {
        let root = tempfile::tempdir().unwrap();
        let place = place(root.path());
        assert!(reason(place.existing_key()).contains("holds no account yet"));
        fs::create_dir_all(&place.store).unwrap();
        fs::write(place.store.join("undertone.db"), "x").unwrap();
        let file = place.key_file().unwrap();
        assert!(reason(place.existing_key()).contains(file.to_str().unwrap()));
        assert!(reason(place.new_key()).contains("needs its key"), "no key is made for what another key has closed");
    }

    #[test]
    fn a_damaged_key_file_is_refused_and_kept() {
        let root = tempfile::tempdir().unwrap();
        let place = place(root.path());
        place.new_key().unwrap();
        let file = place.key_file().unwrap();
        fs::write(&file, "0123").unwrap();
        assert!(reason(place.new_key()).contains("does not hold a key"));
        assert_eq!(fs::read_to_string(&file).unwrap(), "0123");
    }

    #[test]
    fn a_passphrase_comes_before_a_key_file() {
        let root = tempfile::tempdir().unwrap();
        let place = Place { passphrase: Some("secret".into()), ..place(root.path()) };
        let (key, line) = place.new_key().unwrap();
        assert!(matches!(&key.key, StoreKey::Passphrase(text) if text == "secret"));
        assert_eq!(line, None);
        assert!(!root.path().join("config").exists());
    }

    #[test]
    fn an_empty_passphrase_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let place = Place { passphrase: Some(OsString::new()), ..place(root.path()) };
        assert!(reason(place.new_key()).contains("is empty"));
    }

    #[test]
    fn one_key_file_per_store() {
        let names = ["/home/a/x", "/home/b/x", "/home/a/y"].map(|path| key_name(Path::new(path)));
        assert!(names.iter().enumerate().all(|(i, name)| !names[..i].contains(name)));
        assert!(key_name(Path::new("/s/älice's store")).starts_with("licesstore-"));
        assert!(key_name(Path::new("/")).starts_with('-'));
    }

    #[test]
    fn a_store_is_the_same_by_whatever_path() {
        let root = tempfile::tempdir().unwrap();
        let place = place(root.path());
        place.new_key().unwrap();
        let link = root.path().join("link");
        std::os::unix::fs::symlink(&place.store, &link).unwrap();
        let linked = Place { store: link, key_folder: place.key_folder.clone(), passphrase: None };
        assert_eq!(linked.key_file().unwrap(), place.key_file().unwrap());
    }

    #[test]
    fn hex_is_read_as_written_and_nothing_else() {
        let text: String = (0..32).map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(*from_hex(&text).unwrap(), std::array::from_fn(|i| u8::try_from(i).unwrap()));
        for wrong in ["", "00", &text[2..], &format!("{text}00"), &text.replace('0', "+"), &text.replace('0', "é")] {
            assert!(from_hex(wrong).is_none(), "{wrong}");
        }
    }
}
