//! Admin: what whoever hosts the relay asks of it beside serving. So far that is invites.
//!
//! A command opens the store itself if nobody has it. A SQLite store that a relay has open is reached through that relay, by
//! a socket beside the file: one line of JSON in, one out.
//!
//! Invariant: a request does the same either way, for both end in [`perform`]. The socket answers the store's owner and root,
//! and nobody else.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream},
    time::{Instant, sleep, timeout},
};
use undertone_wire::{Hash, InviteCode};

use crate::{
    clock::{Clock, Random, SystemClock, SystemRandom, random_bytes},
    node::Node,
    store::{Db, Place, StoreError, invites},
};

/// Most invites that hold at a time.
const INVITES_MAX: u64 = 1_000;

/// Most uses of an invite.
const USES_MAX: u64 = 100_000;

/// Longest life of an invite: ten years.
const LIFE_S_MAX: u64 = 10 * 366 * 24 * 60 * 60;

/// Longest line on the socket.
const LINE_BYTES_MAX: u64 = 1024 * 1024;

/// How long either side waits for the other.
const PATIENCE: Duration = Duration::from_secs(30);

/// How soon to look again for a relay that does not listen.
const AGAIN: Duration = Duration::from_millis(100);

/// How long to wait after the system had no connection to give, for it may have none left.
const PAUSE: Duration = Duration::from_secs(1);

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
#[non_exhaustive]
pub enum AdminRequest {
    /// Makes an invite.
    CreateInvite {
        /// How many accounts may register with it.
        uses: u64,
        /// How many seconds it holds.
        life_s: u64,
    },
    /// Lists the invites that hold.
    ListInvites,
    /// Revokes an invite.
    RevokeInvite {
        /// Its id, as in the list.
        id: String,
    },
}

impl AdminRequest {
    /// Whether it may be done, whatever the store holds; an error says why not.
    pub fn check(&self) -> Result<(), String> {
        match self {
            Self::CreateInvite { uses, .. } if !(1..=USES_MAX).contains(uses) => {
                Err(format!("an invite has from 1 to {USES_MAX} uses"))
            }
            Self::CreateInvite { life_s, .. } if !(1..=LIFE_S_MAX).contains(life_s) => {
                Err("an invite holds for a second to ten years".to_owned())
            }
            _ => Ok(()),
        }
    }
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
#[non_exhaustive]
pub enum AdminAnswer {
    /// An invite was made. Its code is not kept: it is told now or never.
    Created {
        /// What to pass on.
        code: InviteCode,
        /// What to revoke it by, and when it ends.
        invite: InviteSummary,
    },
    /// The invites that hold, those that end first first.
    Invites {
        /// The invites.
        invites: Vec<InviteSummary>,
    },
    /// The invite is revoked.
    Revoked,
    /// It was not done.
    Refused {
        /// Why not.
        why: String,
    },
}

/// An invite without its code.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InviteSummary {
    /// The first 8 hexadecimal digits of the SHA-256 of its code.
    pub id: String,
    /// How many accounts may still register with it.
    pub uses_left: u64,
    /// When it ends, in milliseconds since the Unix epoch.
    pub expires_ms: u64,
}

impl From<&invites::Invite> for InviteSummary {
    fn from(invite: &invites::Invite) -> Self {
        let id = invite.code_hash.as_bytes()[..4].iter().map(|byte| format!("{byte:02x}")).collect();
        Self { id, uses_left: invite.uses_left, expires_ms: invite.expires_ms }
    }
}

/// Why the relay could not be asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdminError {
    /// The store cannot be opened, or failed.
    #[error("database: {0}{fix}", fix = .0.fix())]
    Store(#[from] StoreError),
    /// A relay has the store, and does not answer.
    #[error("a relay has the store open and does not answer at {0}: {1}. Stop it, or start it anew")]
    Silent(PathBuf, io::Error),
}

/// Does what is asked, over the store at a place: by itself if nobody has it, or through the relay that has it. One that is
/// starting or stopping is waited for.
pub async fn ask(place: &Place, request: AdminRequest) -> Result<AdminAnswer, AdminError> {
    if let Err(why) = request.check() {
        return Ok(refused(why));
    }
    let began = Instant::now();
    loop {
        match ask_once(place, &request).await {
            Err(AdminError::Silent(_, error)) if nobody_listens(&error) && began.elapsed() < PATIENCE => {
                sleep(AGAIN).await;
            }
            answered => return answered,
        }
    }
}

async fn ask_once(place: &Place, request: &AdminRequest) -> Result<AdminAnswer, AdminError> {
    match (Db::open(place, Arc::default(), Arc::new(SystemRandom)).await, place) {
        (Ok(db), _) => {
            let answer = perform(&db, &SystemClock, &SystemRandom, request.clone()).await;
            db.close().await?;
            Ok(answer?)
        }
        (Err(StoreError::InUse(_)), Place::Sqlite(store)) => {
            let socket = socket_beside(store);
            let asked = timeout(PATIENCE, ask_relay(&socket, request)).await;
            asked
                .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
                .map_err(|error| AdminError::Silent(socket, error))
        }
        (Err(error), _) => Err(error.into()),
    }
}

/// Whether the relay that has the store does not take commands yet, or no longer: nothing was asked of it.
fn nobody_listens(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

async fn ask_relay(socket: &Path, request: &AdminRequest) -> io::Result<AdminAnswer> {
    let mut relay = UnixStream::connect(socket).await?;
    write_line(&mut relay, request).await?;
    read_line(&mut relay).await
}

/// Does what is asked.
pub(crate) async fn perform(
    db: &Db,
    clock: &dyn Clock,
    random: &dyn Random,
    request: AdminRequest,
) -> Result<AdminAnswer, StoreError> {
    if let Err(why) = request.check() {
        return Ok(refused(why));
    }
    let now_ms = clock.now_ms();
    match request {
        AdminRequest::CreateInvite { uses, life_s } => {
            create(db, random, uses, now_ms.saturating_add(life_s * 1_000)).await
        }
        AdminRequest::ListInvites => {
            let invites = invites::holding(&mut db.read().await?, now_ms).await?;
            Ok(AdminAnswer::Invites { invites: invites.iter().map(InviteSummary::from).collect() })
        }
        AdminRequest::RevokeInvite { id } => revoke(db, &id, now_ms).await,
    }
}

async fn create(db: &Db, random: &dyn Random, uses_left: u64, expires_ms: u64) -> Result<AdminAnswer, StoreError> {
    let code = InviteCode::from(random_bytes(random)?);
    let invite = invites::Invite { code_hash: Hash::of(code.as_bytes()), uses_left, expires_ms };
    let added = db.write(move |tx| {
        Box::pin(async move {
            let room = invites::count(tx).await? < INVITES_MAX;
            if room {
                invites::add(tx, &invite).await?;
            }
            Ok::<_, StoreError>(room)
        })
    });
    Ok(match added.await? {
        true => AdminAnswer::Created { code, invite: InviteSummary::from(&invite) },
        false => refused(format!("there are {INVITES_MAX} invites already; revoke some")),
    })
}

async fn revoke(db: &Db, id: &str, now_ms: u64) -> Result<AdminAnswer, StoreError> {
    let holding = invites::holding(&mut db.read().await?, now_ms).await?;
    let named: Vec<_> = holding.iter().filter(|invite| InviteSummary::from(*invite).id == id).collect();
    if named.is_empty() {
        return Ok(refused("there is no such invite; list them to see their ids".to_owned()));
    }
    for invite in named {
        let code_hash = invite.code_hash;
        db.write(move |tx| Box::pin(async move { invites::delete(tx, &code_hash).await })).await?;
    }
    Ok(AdminAnswer::Revoked)
}

fn refused(why: String) -> AdminAnswer {
    AdminAnswer::Refused { why }
}

/// Answers on the socket beside a SQLite store, one after the other, until dropped.
pub(crate) async fn serve(node: Node, place: Place) {
    // Others open their store themselves.
    let Place::Sqlite(store) = place else { return };
    let socket = Socket(socket_beside(&store));
    let listener = match listen(&socket.0) {
        Ok(listener) => listener,
        Err(error) => {
            return tracing::warn!(kind = %error.kind(), "commands beside serve cannot reach this relay while it serves");
        }
    };
    loop {
        let (mut asking, _) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::error!(kind = %error.kind(), "cannot take a command");
                sleep(PAUSE).await;
                continue;
            }
        };
        let answered = timeout(PATIENCE, answer(&node, &socket.0, &mut asking)).await;
        if let Err(error) = answered.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            tracing::warn!(kind = %error.kind(), "a command could not be answered");
        }
    }
}

/// A socket's file, which goes when nobody listens any more.
struct Socket(PathBuf);

impl Drop for Socket {
    fn drop(&mut self) {
        // What is left over is replaced by the next relay.
        let _ = fs::remove_file(&self.0);
    }
}

/// Whoever holds the store's lock, as this relay does, owns its socket; one that is there is left over.
fn listen(socket: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(socket)?;
    fs::set_permissions(socket, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

async fn answer(node: &Node, socket: &Path, asking: &mut UnixStream) -> io::Result<()> {
    let (owner, who) = (fs::metadata(socket)?.uid(), asking.peer_cred()?.uid());
    if who != owner && who != 0 {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let request = read_line(asking).await?;
    let answer = perform(&node.db, &*node.clock, &*node.random, request).await;
    write_line(asking, &answer.unwrap_or_else(|error| refused(error.to_string()))).await
}

/// The socket by which a relay that has this store open is asked.
fn socket_beside(store: &Path) -> PathBuf {
    let mut name = store.file_name().unwrap_or_default().to_owned();
    name.push(".admin");
    store.with_file_name(name)
}

async fn write_line(to: &mut UnixStream, said: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(said)?;
    line.push(b'\n');
    to.write_all(&line).await?;
    to.flush().await
}

async fn read_line<T: for<'de> Deserialize<'de>>(from: &mut UnixStream) -> io::Result<T> {
    let mut line = String::new();
    BufReader::new(from).take(LINE_BYTES_MAX).read_line(&mut line).await?;
    Ok(serde_json::from_str(&line)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{clock::ManualClock, node::testing};

    const DAY_S: u64 = 24 * 60 * 60;

    async fn asked(node: &Node, clock: &ManualClock, request: AdminRequest) -> AdminAnswer {
        perform(&node.db, clock, &*node.random, request).await.unwrap()
    }

    async fn created(node: &Node, clock: &ManualClock, uses: u64, life_s: u64) -> (InviteCode, InviteSummary) {
        match asked(node, clock, AdminRequest::CreateInvite { uses, life_s }).await {
            AdminAnswer::Created { code, invite } => (code, invite),
            other => panic!("{other:?}"),
        }
    }

    async fn listed(node: &Node, clock: &ManualClock) -> Vec<InviteSummary> {
        match asked(node, clock, AdminRequest::ListInvites).await {
            AdminAnswer::Invites { invites } => invites,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn invites_are_made_listed_and_revoked() {
        let folder = tempfile::tempdir().unwrap();
        let (node, clock) = (testing::node(folder.path()).await, ManualClock::at(1_000));
        let (_, long) = created(&node, &clock, 5, 2 * DAY_S).await;
        let (code, short) = created(&node, &clock, 1, DAY_S).await;
        assert_eq!(short.expires_ms, 1_000 + DAY_S * 1_000);
        assert_eq!(listed(&node, &clock).await, [short.clone(), long.clone()]);
        assert_eq!(code.to_string().parse::<InviteCode>().unwrap(), code);

        let revoke = AdminRequest::RevokeInvite { id: long.id.clone() };
        assert_eq!(asked(&node, &clock, revoke.clone()).await, AdminAnswer::Revoked);
        assert!(matches!(asked(&node, &clock, revoke).await, AdminAnswer::Refused { .. }));
        assert_eq!(listed(&node, &clock).await, [short]);
        let later = ManualClock::at(1_000 + DAY_S * 1_000);
        assert_eq!(listed(&node, &later).await, [], "it has expired");
    }

    #[tokio::test]
    async fn what_is_beyond_the_limits_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (node, clock) = (testing::node(folder.path()).await, ManualClock::at(0));
        for (uses, life_s) in [(0, 1), (USES_MAX + 1, 1), (1, 0), (1, LIFE_S_MAX + 1), (1, u64::MAX)] {
            let answer = asked(&node, &clock, AdminRequest::CreateInvite { uses, life_s }).await;
            assert!(matches!(answer, AdminAnswer::Refused { .. }), "{uses} {life_s}");
        }
        for _ in 0..INVITES_MAX {
            created(&node, &clock, 1, DAY_S).await;
        }
        let answer = asked(&node, &clock, AdminRequest::CreateInvite { uses: 1, life_s: DAY_S }).await;
        assert!(matches!(answer, AdminAnswer::Refused { .. }), "{answer:?}");
        assert_eq!(listed(&node, &clock).await.len() as u64, INVITES_MAX);
    }

    #[tokio::test]
    async fn a_relay_that_has_the_store_is_asked_through_its_socket() {
        let folder = tempfile::tempdir().unwrap();
        let place = Place::Sqlite(folder.path().join("undertone.db"));
        let create = AdminRequest::CreateInvite { uses: 1, life_s: DAY_S };
        assert!(matches!(ask(&place, create.clone()).await.unwrap(), AdminAnswer::Created { .. }), "nobody has it");

        let node = testing::node(folder.path()).await;
        assert!(matches!(ask_once(&place, &create).await, Err(AdminError::Silent(..))), "nobody answers");
        // Left over by a relay that was killed.
        drop(UnixListener::bind(folder.path().join("undertone.db.admin")).unwrap());
        assert!(matches!(ask_once(&place, &create).await, Err(AdminError::Silent(..))), "nobody answers");
        let mut serving = None;
        let (answer, ()) = tokio::join!(ask(&place, create), async {
            serving = Some(tokio::spawn(serve(node.clone(), place.clone())));
        });
        let answer = answer.unwrap();
        let AdminAnswer::Created { invite, .. } = answer else { panic!("{answer:?}") };
        let AdminAnswer::Invites { invites } = ask(&place, AdminRequest::ListInvites).await.unwrap() else { panic!() };
        assert!(invites.len() == 2 && invites.contains(&invite), "{invites:?}");
        let mode = fs::metadata(folder.path().join("undertone.db.admin")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        serving.unwrap().abort();
    }
}
