//! A person at a terminal: the command-line client with a store of its own.

use std::{
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
};

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    process::{Child, ChildStdin, Command},
    sync::mpsc,
};

use crate::{Store, binary};

/// Somebody with a store and a home folder.
#[derive(Debug, Clone)]
pub struct Person {
    /// Their username.
    pub name: String,
    home: PathBuf,
}

/// A command that has ended.
#[derive(Debug)]
pub struct Done {
    /// How it ended.
    pub status: ExitStatus,
    /// Its lines on stdout, as JSON.
    pub lines: Vec<Value>,
    /// What it said on stderr.
    pub stderr: String,
}

/// A command that is running. Dropping it kills it.
pub struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: mpsc::UnboundedReceiver<String>,
}

impl Person {
    /// Somebody new, not yet registered.
    pub fn new(folder: &Path, name: &str) -> Self {
        let home = folder.join(name);
        std::fs::create_dir_all(&home).expect("a home can be made");
        Self { name: name.to_owned(), home }
    }

    /// Somebody new, registered at the relay.
    pub async fn register(folder: &Path, name: &str, relay: &str) -> Self {
        let person = Self::new(folder, name);
        person.ok(&["register", "--relay", relay, "--username", name]).await;
        person
    }

    /// Another device of this person, linked at the relay.
    pub async fn link(&self, folder: &Path, name: &str, relay: &str) -> Self {
        let device = Self::new(folder, name);
        let account = self.ok(&["whoami"]).await[0]["account_id"].as_str().expect("an id").to_owned();
        let mut linking = device.start(&["link", "--relay", relay, "--name", name, "--account", &account]);
        let code: Value = serde_json::from_str(&linking.line(|line| line.contains("code")).await).expect("JSON");
        let approved = self.ok(&["link", "approve", code["code"].as_str().expect("a code")]).await;
        let (status, rest) = linking.end().await;
        assert!(status.success(), "{name} was not linked: {rest:?}");
        assert_eq!(approved[0]["name"], name);
        device
    }

    /// The folder with their store.
    pub fn store(&self) -> PathBuf {
        self.home.join("store")
    }

    /// The folder that holds all that is theirs, configuration included.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// The client's command, in JSON mode.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(binary("undertone"));
        command
            .env_remove("UNDERTONE_PASSPHRASE")
            .env("HOME", &self.home)
            .env("XDG_CONFIG_HOME", self.home.join("config"))
            .env("XDG_DATA_HOME", self.home.join("data"))
            .arg("--store")
            .arg(self.store())
            .arg("--json")
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    /// Runs a command to its end.
    pub async fn run(&self, args: &[&str]) -> Done {
        let output = self.command(args).output().await.expect("the client starts");
        let stdout = String::from_utf8(output.stdout).expect("stdout is UTF-8");
        let lines = stdout
            .lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("not JSON ({error}): {line}")))
            .collect();
        Done { status: output.status, lines, stderr: String::from_utf8_lossy(&output.stderr).into_owned() }
    }

    /// Runs a command that must succeed, and gives its lines.
    pub async fn ok(&self, args: &[&str]) -> Vec<Value> {
        let done = self.run(args).await;
        assert!(done.status.success(), "{} {args:?} ended with {}: {}", self.name, done.status, done.stderr);
        done.lines
    }

    /// Starts a command.
    pub fn start(&self, args: &[&str]) -> Running {
        Running::spawn(self.command(args).stderr(Stdio::inherit()))
    }

    /// The texts of a group's history, with their authors, oldest first.
    pub async fn history(&self, group: &str) -> Vec<(String, String)> {
        let lines = self.ok(&["history", group, "--limit", "1000"]).await;
        lines.iter().map(|line| (text(line, "from"), text(line, "text"))).collect()
    }
}

impl Running {
    /// Starts a command whose stdin is written and whose stdout is read.
    pub fn spawn(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the command starts");
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().expect("stdout is piped");
        let (sender, lines) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            let mut stdout = BufReader::new(stdout).lines();
            while let Ok(Some(line)) = stdout.next_line().await {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Self { child, stdin, lines }
    }

    /// Types a line.
    pub async fn type_line(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().expect("stdin is open");
        stdin.write_all(format!("{line}\n").as_bytes()).await.expect("the command reads its stdin");
        stdin.flush().await.expect("the command reads its stdin");
    }

    /// Ends the input.
    pub fn end_input(&mut self) {
        self.stdin = None;
    }

    /// The next line of output for which `wanted` holds; those before it are passed over.
    pub async fn line(&mut self, wanted: impl Fn(&str) -> bool) -> String {
        let found = async {
            while let Some(line) = self.lines.recv().await {
                if wanted(&line) {
                    return line;
                }
            }
            panic!("the command ended before the line came");
        };
        tokio::time::timeout(crate::PATIENCE, found).await.expect("the line comes in time")
    }

    /// Kills the command, and waits until it is gone.
    pub async fn kill(mut self) {
        self.child.kill().await.expect("the command can be killed");
    }

    /// Waits until the command ends by itself, and gives the output that was not read yet.
    pub async fn end(mut self) -> (ExitStatus, Vec<String>) {
        self.end_input();
        let status = tokio::time::timeout(crate::PATIENCE, self.child.wait()).await;
        let status = status.expect("the command ends in time").expect("the command can be waited for");
        let mut rest = Vec::new();
        while let Some(line) = self.lines.recv().await {
            rest.push(line);
        }
        (status, rest)
    }
}

/// A text field of a JSON line.
fn text(line: &Value, field: &str) -> String {
    line[field].as_str().unwrap_or_else(|| panic!("no {field} in {line}")).to_owned()
}

/// Lets people receive, in turn, until the relay holds nothing for any of them. What somebody receives is confirmed to its
/// author and all others, once.
///
/// # Panics
/// If that does not end.
pub async fn take_all(store: &Store, people: &[&Person]) {
    for _ in 0..10 {
        for person in people {
            person.ok(&["sync"]).await;
        }
        if store.number("SELECT COUNT(*) FROM queue").await == 0 {
            return;
        }
    }
    panic!("the relay holds something still");
}
