//! The process beside the tests that owns a cluster's folder, and takes it away when the test process is gone.
//!
//! Invariant: whatever is started for a cluster is started by its keeper (`keeper.sh`), one thing at a time, as the user
//! that owns the folder. The keeper ends when the [`Keeper`] is dropped and when this process ends in any way.

use std::{
    env::{temp_dir, vars_os},
    ffi::OsStr,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{ChildStdin, ChildStdout, Command, Stdio},
    sync::{Mutex, PoisonError},
    thread,
};

use nix::unistd::{Uid, User};

use crate::binaries::Binaries;

/// A Unix socket's path has at most 107 bytes (103 on some systems), and `/utpg-XXXXXX/.s.PGSQL.65535` follows this.
const FOLDER_BYTES_MAX: usize = 75;

pub(crate) struct Keeper {
    dir: PathBuf,
    pipes: Mutex<Pipes>,
}

struct Pipes {
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Keeper {
    /// Starts a keeper with a new, empty folder.
    pub(crate) fn new(binaries: &Binaries) -> Result<Self, String> {
        let mut command = Command::new("sh");
        command.args(["-c", include_str!("keeper.sh"), "keeper"]).arg(binaries.dir()).arg(folder());
        command.current_dir("/").process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        without_settings(&mut command);
        if Uid::effective().is_root() {
            let user = unprivileged()?;
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        }
        let mut child = command.spawn().map_err(|e| format!("the keeper of a Postgres cluster does not start: {e}"))?;
        let (orders, answers) = child.stdin.take().zip(child.stdout.take()).ok_or("the keeper has no pipes")?;
        thread::spawn(move || child.wait());
        let mut pipes = Pipes { orders, answers: BufReader::new(answers) };
        let dir = pipes.answer()?.into();
        Ok(Self { dir, pipes: Mutex::new(pipes) })
    }

    /// The cluster's folder: `data`, `log` and the Unix socket are in it.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Has an order carried out, and waits until it is. The error is what the tool said.
    pub(crate) fn order(&self, order: &str) -> Result<(), String> {
        let mut pipes = self.pipes.lock().unwrap_or_else(PoisonError::into_inner);
        writeln!(pipes.orders, "{order}").map_err(|e| format!("the keeper takes no orders: {e}"))?;
        match pipes.answer()?.as_str() {
            "0" => Ok(()),
            status => {
                let said = std::fs::read_to_string(self.dir.join("said")).unwrap_or_default();
                Err(format!("Postgres: `{order}` ended with {status}: {}", said.trim_end()))
            }
        }
    }
}

impl Pipes {
    fn answer(&mut self) -> Result<String, String> {
        let mut line = String::new();
        match self.answers.read_line(&mut line) {
            Ok(0) => {
                Err(format!("the keeper ended: can the unprivileged user make a folder in {}?", folder().display()))
            }
            Ok(_) => Ok(line.trim_end().to_owned()),
            Err(e) => Err(format!("the keeper cannot be heard: {e}")),
        }
    }
}

/// Takes away the variables by which the surroundings would have a say in where Postgres's tools connect to, and how.
pub(crate) fn without_settings(command: &mut Command) {
    for name in vars_os().map(|(name, _)| name).filter(|name| is_setting(name)) {
        command.env_remove(name);
    }
}

fn is_setting(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b"PG")
}

/// Where clusters are made: the system's folder for temporary files, unless its path is too long for sockets.
fn folder() -> PathBuf {
    let folder = temp_dir();
    if folder.as_os_str().len() > FOLDER_BYTES_MAX { "/tmp".into() } else { folder }
}

/// Whom Postgres runs as when we are root, which it refuses to run as.
fn unprivileged() -> Result<User, String> {
    ["postgres", "nobody"]
        .into_iter()
        .find_map(|name| User::from_name(name).ok().flatten())
        .ok_or_else(|| "Postgres does not run as root, and there is no user postgres or nobody".to_owned())
}
