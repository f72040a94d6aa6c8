//! Marks: by what a store notices that it is a copy of itself.
//!
//! A restored backup would hand out one-time keys and queue numbers again that it gave out after the backup was made. So
//! the store remembers a mark that does not come along: on SQLite inode and birth time of a file beside the database, and
//! the token in it, all of which change all the time; on Postgres the cluster, the database, the table and the timeline.
//!
//! Invariant: a store on which another mark is seen than it knows is used only after it has begun a new incarnation.
//! What no mark shows must be declared: a restore of rows into the same tables, or of a whole machine.

use std::{
    fs::{self, File},
    io::{self, ErrorKind::NotFound, Read as _, Seek as _, Write as _},
    path::{Path, PathBuf},
    time::{Duration, UNIX_EPOCH},
};

use super::{Conn, StoreError, Tx, on, pool::bounded, relay, sqlite};
use crate::clock::{Random, random_bytes};

/// The cluster, the database, the table with the incarnation, and the timeline.
const SEEN_ON_POSTGRES: &str = "
    SELECT CONCAT_WS('/',
        (SELECT system_identifier FROM pg_control_system()),
        (SELECT oid FROM pg_database WHERE datname = current_database()),
        'relay'::regclass::oid,
        SUBSTRING(pg_walfile_name(pg_current_wal_lsn()) FOR 8))";

/// Lets one node at a time settle, while nobody appends or acks.
const ALONE_ON_POSTGRES: &str = "LOCK TABLE relay, cursors IN EXCLUSIVE MODE";

/// Lets it take its time: the numbers of all queues may have to jump.
const UNHURRIED_ON_POSTGRES: &str = "SET LOCAL statement_timeout = '15min'";
const UNHURRIED: Duration = Duration::from_secs(16 * 60);

/// What to make of another mark than the one known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Judgement {
    /// It is a copy, unless nothing but the timeline grew and that is declared to lose nothing.
    Copy { lossless_failover: bool },
    /// It is a copy, whatever is seen: somebody says that it was restored.
    Restored,
    /// It is the store itself, whole, in another place: somebody says so.
    Moved,
}

impl Judgement {
    /// Whether it is left to the marks.
    pub(super) fn is_copy(self) -> bool {
        matches!(self, Self::Copy { .. })
    }
}

/// Whether the store has an identity, and is known by this mark. Locks nothing.
pub(super) async fn is_known(conn: &mut Conn, seen: &str) -> Result<bool, StoreError> {
    Ok(relay::marks(conn).await?.is_some_and(|(mark, mark_before)| mark == seen || mark_before == seen))
}

/// Makes a store what it is, or notices that it has become another. The answer is whether a new incarnation began.
pub(super) async fn settle(
    tx: &mut Tx,
    random: &dyn Random,
    seen: &str,
    judgement: Judgement,
) -> Result<bool, StoreError> {
    // Before anything is written: two that had both written could not both wait to be alone.
    if let Conn::Postgres(link) = &mut **tx {
        bounded!(link, db => sqlx::raw_sql(ALONE_ON_POSTGRES).execute(db).await)?;
        bounded!(link, db => sqlx::raw_sql(UNHURRIED_ON_POSTGRES).execute(db).await)?;
        link.allow(UNHURRIED);
    }
    relay::become_one(tx, random, seen).await?;
    let (mark, mark_before) = relay::marks(tx).await?.ok_or(StoreError::Corrupt("a store without identity"))?;
    let known = mark == seen || mark_before == seen;
    let same = match judgement {
        Judgement::Restored => false,
        Judgement::Moved => true,
        Judgement::Copy { lossless_failover } => known || (lossless_failover && only_promoted(&mark, seen)),
    };
    if !same {
        relay::begin_incarnation(tx, random).await?;
    }
    if !known || !same {
        relay::mark_only(tx, seen).await?;
    }
    Ok(!same)
}

/// What is seen on Postgres now, by this connection.
pub(super) async fn seen_on_postgres(conn: &mut Conn) -> Result<String, StoreError> {
    Ok(on!(*conn, db => sqlx::query_scalar(SEEN_ON_POSTGRES).fetch_one(db).await)?)
}

/// Whether two marks of Postgres differ in nothing but a later timeline.
fn only_promoted(known: &str, seen: &str) -> bool {
    match (known.rsplit_once('/'), seen.rsplit_once('/')) {
        // Timelines are eight hex digits, so that they compare as text.
        (Some((before, timeline)), Some((now, later))) => before == now && timeline < later,
        _ => false,
    }
}

/// The file beside a SQLite database by which it is known. Each new token comes in a new file, so that what was copied
/// before is not known even if it is copied back over the files of now.
pub(super) struct Marker {
    path: PathBuf,
    seen: String,
}

/// A file that will be the marker.
pub(super) struct NextMarker {
    path: PathBuf,
    seen: String,
}

impl Marker {
    /// Opens the file, and makes it if it is missing.
    pub(super) fn open(database: &Path) -> Result<Self, StoreError> {
        let path = sqlite::beside(database, ".mark");
        let seen = sqlite::private_file().open(&path).and_then(see).map_err(sqlite::at(&path))?;
        Ok(Self { path, seen })
    }

    /// What is seen now.
    pub(super) fn seen(&self) -> &str {
        &self.seen
    }

    /// Makes the file that comes next, with a fresh token.
    pub(super) fn next(&self, random: &dyn Random) -> Result<NextMarker, StoreError> {
        let bytes: [u8; 16] = random_bytes(random)?;
        let token: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let path = sqlite::beside(&self.path, ".new");
        let make = || {
            // One may have been left by a crash.
            fs::remove_file(&path).or_else(|error| if error.kind() == NotFound { Ok(()) } else { Err(error) })?;
            let mut file = sqlite::private_file().open(&path)?;
            file.write_all(token.as_bytes())?;
            file.sync_all()?;
            see(file)
        };
        let seen = make().map_err(sqlite::at(&path))?;
        Ok(NextMarker { path, seen })
    }

    /// Puts the next file in the place of the one before.
    pub(super) fn become_next(&mut self, next: NextMarker) -> Result<(), StoreError> {
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let replace = || {
            fs::rename(&next.path, &self.path)?;
            File::open(folder)?.sync_all()
        };
        replace().map_err(sqlite::at(&self.path))?;
        self.seen = next.seen;
        Ok(())
    }
}

impl NextMarker {
    /// What will be seen.
    pub(super) fn seen(&self) -> &str {
        &self.seen
    }
}

/// A file's inode, its birth time and what stands in it.
fn see(mut file: File) -> io::Result<String> {
    let metadata = file.metadata()?;
    // Not every file system knows it; then the inode must do.
    let born = metadata.created().ok().and_then(|born| born.duration_since(UNIX_EPOCH).ok());
    let mut token = String::new();
    file.rewind()?;
    file.read_to_string(&mut token)?;
    Ok(format!("{}-{}-{token}", inode(&metadata), born.map_or(0, |born| born.as_nanos())))
}

#[cfg(unix)]
fn inode(metadata: &fs::Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::ino(metadata)
}

#[cfg(not(unix))]
fn inode(_: &fs::Metadata) -> u64 {
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_promotion_changes_nothing_but_the_timeline() {
        assert!(only_promoted("7/1/2/00000001", "7/1/2/00000002"));
        assert!(only_promoted("7/1/2/00000009", "7/1/2/0000000A"));
        for seen in ["7/1/2/00000001", "8/1/2/00000002", "7/2/2/00000002", "7/1/3/00000002", ""] {
            assert!(!only_promoted("7/1/2/00000001", seen), "{seen}");
        }
        assert!(!only_promoted("7/1/2/00000002", "7/1/2/00000001"), "back in time");
    }
}
