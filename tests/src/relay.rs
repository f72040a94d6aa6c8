//! A relay in a process of its own, on a port of its own, that can be stopped, killed and started again.
//!
//! Several may run over one Postgres store. What a process said on stdout after its ready line is kept until it is gone.

use std::{
    fs::File,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::{ExitStatus, Output, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
};

use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    process::{Child, ChildStdout, Command},
};

use crate::{PATIENCE, Store, binary, root};

/// Which of the two builds of the relay. They differ in the SQLite they bring, and in that the workspace's can be killed at
/// chosen points.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Build {
    /// Built with the workspace.
    Workspace,
    /// Built alone, as it ships.
    Alone,
}

/// How a relay is started.
#[derive(Debug, Clone)]
pub struct Launch {
    build: Build,
    data: PathBuf,
    database: Option<String>,
    log: PathBuf,
    log_level: &'static str,
    port: u16,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
}

/// A relay's process.
pub struct Relay {
    launch: Launch,
    child: Child,
    stdout: Lines<BufReader<ChildStdout>>,
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

impl Launch {
    /// A relay of the workspace over a store, on any port, with a log at trace level.
    pub fn over(store: &Store) -> Self {
        static LAUNCHED: AtomicUsize = AtomicUsize::new(0);
        let number = LAUNCHED.fetch_add(1, Ordering::Relaxed);
        Self {
            build: Build::Workspace,
            data: store.data(),
            database: store.url().map(str::to_owned),
            log: store.folder().join(format!("relay-{number}.log")),
            log_level: "trace",
            port: 0,
            arguments: Vec::new(),
            environment: Vec::new(),
        }
    }

    /// Another build.
    pub fn build(self, build: Build) -> Self {
        Self { build, ..self }
    }

    /// More arguments.
    pub fn arguments(mut self, arguments: &[&str]) -> Self {
        self.arguments.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        self
    }

    /// A log of another level, for relays that do much.
    pub fn log_level(self, log_level: &'static str) -> Self {
        Self { log_level, ..self }
    }

    /// A variable of its environment.
    pub fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Lets it die at a point: `what.moment`, or `what.moment:N` for the N-th time.
    pub fn kill_at(self, point: &str) -> Self {
        self.environment("TEST_KILL_AT", point)
    }

    /// Starts it, and waits until it serves.
    ///
    /// # Panics
    /// If it does not.
    pub async fn start(self) -> Relay {
        let (child, mut stdout) = self.spawn();
        let ready = stdout.next_line().await.expect("stdout can be read");
        let ready = ready.unwrap_or_else(|| panic!("no ready line; see {}", self.log.display()));
        let port = port_in(&ready).unwrap_or_else(|| panic!("no address in the ready line: {ready}"));
        Relay { launch: Self { port, ..self }, child, stdout }
    }

    /// Starts it, and waits until it ends without ever having served. Answers what it said.
    ///
    /// # Panics
    /// If it serves.
    pub async fn end(self) -> (ExitStatus, Vec<String>) {
        let (mut child, mut stdout) = self.spawn();
        let said = rest(&mut stdout).await;
        assert!(said.iter().all(|line| port_in(line).is_none()), "it serves: {said:?}");
        (child.wait().await.expect("a child can be waited for"), said)
    }

    /// Starts it, and asserts that it dies at this kill point without ever having served.
    ///
    /// # Panics
    /// If it serves, or ends in another way.
    pub async fn dies_at(self, point: &str) {
        let (status, said) = self.kill_at(point).end().await;
        assert_died_at(point, status, &said);
    }

    /// The program with what it is told at every start.
    fn command(&self) -> Command {
        let mut command = Command::new(self.build.binary());
        let listen = format!("127.0.0.1:{}", self.port);
        command.args(["--listen", &listen, "--log", self.log_level, "--data"]).arg(&self.data);
        if let Some(database) = &self.database {
            command.args(["--database", database]);
        }
        command.args(&self.arguments).env_remove("TEST_KILL_AT").stdout(Stdio::piped()).kill_on_drop(true);
        command
    }

    fn spawn(&self) -> (Child, Lines<BufReader<ChildStdout>>) {
        let log = File::options().create(true).append(true).open(&self.log).expect("a log can be made");
        let mut command = self.command();
        command.envs(self.environment.iter().map(|(name, value)| (name, value))).stderr(log);
        let mut child = command.spawn().expect("the relay starts");
        let stdout = child.stdout.take().expect("stdout is piped");
        (child, BufReader::new(stdout).lines())
    }
}

impl Relay {
    /// Starts a relay of this build over a store.
    pub async fn start(store: &Store, build: Build) -> Self {
        Launch::over(store).build(build).start().await
    }

    /// The relay's URL. It stays the same over restarts.
    pub fn url(&self) -> String {
        format!("http://{}", self.address())
    }

    /// Where the relay listens.
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.launch.port).into()
    }

    /// The relay's log.
    pub fn log(&self) -> PathBuf {
        self.launch.log.clone()
    }

    /// Its memory in KiB, as the line of this name in `/proc/PID/status` has it: `VmRSS`, or `VmHWM` for the most that it
    /// ever was.
    ///
    /// # Panics
    /// If it is not running, or the system is not Linux.
    pub fn memory_kib(&self, name: &str) -> u64 {
        let pid = self.child.id().expect("the relay is running");
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the system tells of its processes");
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        number.unwrap_or_else(|| panic!("no {name} in {status}"))
    }

    /// Kills the relay as a power cut would.
    pub async fn kill(&mut self) {
        self.child.kill().await.expect("a child can be killed");
    }

    /// Asks the relay to stop, and waits until it has.
    pub async fn stop(&mut self) {
        self.ask_to_stop().await;
        let status = self.child.wait().await.expect("the relay ends");
        assert!(status.success(), "the relay ended with {status}");
    }

    /// Asks the relay to stop.
    pub async fn ask_to_stop(&self) {
        let pid = self.child.id().expect("the relay is running").to_string();
        let asked = Command::new("kill").args(["-TERM", &pid]).status().await.expect("kill runs");
        assert!(asked.success());
    }

    /// Waits until the relay dies at a kill point, and asserts that it was this one.
    ///
    /// # Panics
    /// If it does not, or ends in another way.
    pub async fn dies_at(&mut self, point: &str) {
        let died = async {
            let said = rest(&mut self.stdout).await;
            (said, self.child.wait().await.expect("a child can be waited for"))
        };
        let (said, status) =
            tokio::time::timeout(PATIENCE, died).await.unwrap_or_else(|_| panic!("{point} not reached"));
        assert_died_at(point, status, &said);
    }

    /// What becomes of another command of the program about this relay.
    ///
    /// # Panics
    /// If there is no such program.
    pub async fn says(&self, arguments: &[&str]) -> Output {
        self.launch.command().args(arguments).output().await.expect("the program starts")
    }

    /// What another command of the program says about this relay.
    ///
    /// # Panics
    /// If it does not succeed.
    pub async fn command(&self, arguments: &[&str]) -> String {
        let said = self.says(arguments).await;
        assert!(said.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&said.stderr));
        String::from_utf8(said.stdout).expect("stdout is UTF-8").trim().to_owned()
    }

    /// Starts the relay again over the same store, on the same port.
    pub async fn restart(&mut self) {
        *self = self.launch.clone().start().await;
    }

    /// The same, and lets it die at a point.
    pub async fn restart_until(&mut self, point: &str) {
        *self = self.launch.clone().kill_at(point).start().await;
        self.launch.environment.pop();
    }

    /// Starts the relay again over the same store, on a port that is free now.
    pub async fn restart_anywhere(&mut self) {
        *self = Launch { port: 0, ..self.launch.clone() }.start().await;
    }
}

fn assert_died_at(point: &str, status: ExitStatus, said: &[String]) {
    assert!(!status.success(), "it ended with {status}");
    assert_eq!(said, [format!("kill point reached: {point}")]);
    println!("{}", said[0]);
}

fn port_in(ready: &str) -> Option<u16> {
    let digits = ready.split("://127.0.0.1:").nth(1)?.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok()
}

async fn rest(stdout: &mut Lines<BufReader<ChildStdout>>) -> Vec<String> {
    let mut said = Vec::new();
    while let Some(line) = stdout.next_line().await.expect("stdout can be read") {
        said.push(line);
    }
    said
}
