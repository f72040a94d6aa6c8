//! Where the system's Postgres is: the folder with `initdb`, `postgres`, `pg_ctl` and the other tools.
//!
//! Invariant: all tools of a cluster come from one folder, and are of version 15 or newer.

use std::{
    env::{split_paths, var_os},
    path::{Path, PathBuf},
    process::Command,
};

const VERSION_MIN: u32 = 15;
const DEBIAN: &str = "/usr/lib/postgresql";
const WHAT_TO_DO: &str = "install Postgres 15 or newer: on Debian apt-get install postgresql (or set TEST_POSTGRES_URL \
                          to a server's admin URL, with which all tests pass that need no cluster of their own)";

/// The folder of a Postgres that is new enough.
#[derive(Debug, Clone)]
pub(crate) struct Binaries(PathBuf);

impl Binaries {
    /// Looks along `PATH`, then for Debian's newest, then asks `pg_config`. The error says what to install.
    pub(crate) fn find() -> Result<Self, String> {
        let mut too_old = None;
        for dir in on_path().into_iter().chain(debians()).chain(configured()) {
            match version(&dir) {
                Some(version) if version >= VERSION_MIN => return Ok(Self(dir)),
                Some(version) => too_old = too_old.or(Some((dir, version))),
                None => {}
            }
        }
        Err(too_old.map_or_else(
            || format!("no Postgres found: {WHAT_TO_DO}"),
            |(dir, version)| format!("Postgres {version} in {} is too old: {WHAT_TO_DO}", dir.display()),
        ))
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.0
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

/// Folders whose `initdb` is on the path. A link leads to where the other tools are.
fn on_path() -> Vec<PathBuf> {
    let path = var_os("PATH").unwrap_or_default();
    let found = split_paths(&path).filter_map(|dir| dir.join("initdb").canonicalize().ok());
    found.filter_map(|initdb| Some(initdb.parent()?.to_owned())).collect()
}

fn debians() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(DEBIAN).into_iter().flatten().flatten();
    newest_first(entries.map(|entry| entry.path()).collect()).into_iter().map(|dir| dir.join("bin")).collect()
}

fn newest_first(mut dirs: Vec<PathBuf>) -> Vec<PathBuf> {
    dirs.sort_by_key(|dir| dir.file_name().and_then(|name| name.to_str()?.parse::<u32>().ok()));
    dirs.reverse();
    dirs
}

fn configured() -> Option<PathBuf> {
    let output = Command::new("pg_config").arg("--bindir").output().ok()?;
    Some(String::from_utf8(output.stdout).ok()?.trim_end().into())
}

/// The major version of the server in `dir`, if what is needed of it is there.
fn version(dir: &Path) -> Option<u32> {
    if !["initdb", "pg_ctl", "pg_basebackup"].iter().all(|name| dir.join(name).exists()) {
        return None;
    }
    let output = Command::new(dir.join("postgres")).arg("--version").output().ok()?;
    major(&String::from_utf8(output.stdout).ok()?)
}

/// The major version in what `postgres --version` says: `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`.
fn major(said: &str) -> Option<u32> {
    let number = said.split_once("(PostgreSQL) ")?.1;
    number.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newest_is_by_number() {
        let dirs = ["/x/9", "/x/15", "/x/other", "/x/100"].map(PathBuf::from).to_vec();
        assert_eq!(newest_first(dirs), ["/x/100", "/x/15", "/x/9", "/x/other"].map(PathBuf::from));
    }

    #[test]
    fn major_version_is_read() {
        assert_eq!(major("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n"), Some(15));
        assert_eq!(major("postgres (PostgreSQL) 18beta1\n"), Some(18));
        assert_eq!(major("something else\n"), None);
    }
}
