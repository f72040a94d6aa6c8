//! A relay in a process of its own, on a port of its own, that can be stopped, killed and started again.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::Stdio,
};

use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
};

use crate::{binary, root};

/// Which of the two builds of the relay. They differ in the SQLite they bring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Build {
    /// Built with the workspace.
    Workspace,
    /// Built alone, as it ships.
    Alone,
}

/// A running relay.
pub struct Relay {
    build: Build,
    data: PathBuf,
    port: u16,
    child: Child,
}

impl Build {
    fn binary(self) -> PathBuf {
        match self {
            Self::Workspace => binary("undertone-server"),
            Self::Alone => {
                let path = root().join("target/alone/undertone-server");
                assert!(path.exists(), "{} is missing: tests/run builds it", path.display());
                path
            }
        }
    }
}

impl Relay {
    /// Starts a relay on a new store in `folder`.
    pub async fn start(folder: &Path, build: Build) -> Self {
        let data = folder.join("relay");
        let (child, port) = launch(build, &data, 0).await;
        Self { build, data, port, child }
    }

    /// The relay's URL. It stays the same over restarts.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The folder with the relay's database.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// The relay's log at trace level.
    pub fn log(&self) -> PathBuf {
        self.data.with_extension("log")
    }

    /// Kills the relay as a power cut would.
    pub async fn kill(&mut self) {
        self.child.kill().await.expect("a child can be killed");
    }

    /// Asks the relay to stop, and waits until it has.
    pub async fn stop(&mut self) {
        let pid = self.child.id().expect("the relay is running").to_string();
        let asked = Command::new("kill").args(["-TERM", &pid]).status().await.expect("kill runs");
        assert!(asked.success());
        let status = self.child.wait().await.expect("the relay ends");
        assert!(status.success(), "the relay ended with {status}");
    }

    /// Starts the relay again on the same store and port.
    pub async fn restart(&mut self) {
        (self.child, self.port) = launch(self.build, &self.data, self.port).await;
    }
}

async fn launch(build: Build, data: &Path, port: u16) -> (Child, u16) {
    let log = File::options().create(true).append(true).open(data.with_extension("log")).expect("a log can be made");
    let mut child = Command::new(build.binary())
        .args(["--listen", &format!("127.0.0.1:{port}"), "--log", "trace", "--data"])
        .arg(data)
        .stdout(Stdio::piped())
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .expect("the relay starts");
    let mut lines = BufReader::new(child.stdout.take().expect("stdout is piped")).lines();
    let ready = lines.next_line().await.expect("stdout can be read").expect("the relay prints a ready line");
    let port = ready
        .split("http://127.0.0.1:")
        .nth(1)
        .and_then(|rest| rest.split(|c: char| !c.is_ascii_digit()).next())
        .and_then(|digits| digits.parse().ok())
        .unwrap_or_else(|| panic!("no address in the ready line: {ready}"));
    (child, port)
}
