//! A bad network in front of a relay: a TCP proxy that cuts connections and loses answers, by chance or when told to, and
//! refuses connections and holds back what it carries when told to.
//!
//! Invariant: it changes and reorders no byte. An answer that it loses was given: the request went through.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::{AbortHandle, JoinSet},
};

use crate::Chance;

/// Once in so many reads from either side, a connection is cut.
const CUT_ONE_IN: u64 = 60;

/// Once in so many answers, one is lost, and the connection with it.
const LOSE_ONE_IN: u64 = 12;

/// How a request begins that makes a connection a stream.
const STREAM: &[u8] = b"GET /v1/stream";

/// A proxy that runs until it is dropped.
pub struct Proxy {
    address: SocketAddr,
    network: Arc<Network>,
    running: AbortHandle,
}

/// What became of the connections.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Faults {
    /// Connections that were cut.
    pub cuts: u64,
    /// Answers that were lost after the request had gone through.
    pub lost_answers: u64,
    /// Connections that were refused.
    pub refused: u64,
}

/// What of the relay's words is held back.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// Nothing.
    #[default]
    Nothing,
    /// What it says on streams.
    Streams,
    /// Everything, and what is said to it.
    Everything,
}

struct Network {
    state: Mutex<State>,
    held: watch::Sender<Held>,
    /// How often all connections were cut.
    cut: watch::Sender<u64>,
    cuts: AtomicU64,
    lost_answers: AtomicU64,
    refused: AtomicU64,
}

struct State {
    /// Where the relay is.
    to: SocketAddr,
    /// Chance, while the network is bad by itself.
    bad: Option<Chance>,
    answers_to_lose: u32,
    connections_to_refuse: u32,
}

/// Whose bytes they are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Device,
    Relay,
}

impl Proxy {
    /// A bad network in front of `to`.
    pub async fn new(to: SocketAddr, chance: Chance) -> Self {
        Self::start(to, Some(chance)).await
    }

    /// A network in front of `to` in which nothing goes wrong that it is not told.
    pub async fn obedient(to: SocketAddr) -> Self {
        Self::start(to, None).await
    }

    async fn start(to: SocketAddr, bad: Option<Chance>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let address = listener.local_addr().expect("the port is known");
        let network = Arc::new(Network {
            state: Mutex::new(State { to, bad, answers_to_lose: 0, connections_to_refuse: 0 }),
            held: watch::Sender::default(),
            cut: watch::Sender::default(),
            cuts: AtomicU64::new(0),
            lost_answers: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        });
        let running = tokio::spawn(run(listener, Arc::clone(&network))).abort_handle();
        Self { address, network, running }
    }

    /// The URL that leads through it.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Leads to another place from now on.
    pub fn lead_to(&self, to: SocketAddr) {
        self.network.state().to = to;
    }

    /// Cuts all connections.
    pub fn cut(&self) {
        self.network.cut.send_modify(|times| *times += 1);
    }

    /// Refuses the next connections.
    pub fn refuse_connections(&self, times: u32) {
        self.network.state().connections_to_refuse = times;
    }

    /// Loses the next answers, streams aside, and their connections with them.
    pub fn lose_answers(&self, times: u32) {
        self.network.state().answers_to_lose = times;
    }

    /// Holds this back from now on, and lets everything else pass.
    pub fn hold(&self, what: Held) {
        self.network.held.send_replace(what);
    }

    /// Lets everything pass from now on.
    pub fn heal(&self) {
        let mut state = self.network.state();
        (state.bad, state.answers_to_lose, state.connections_to_refuse) = (None, 0, 0);
        self.hold(Held::Nothing);
    }

    /// What became of the connections.
    pub fn faults(&self) -> Faults {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let Network { cuts, lost_answers, refused, .. } = &*self.network;
        Faults { cuts: count(cuts), lost_answers: count(lost_answers), refused: count(refused) }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.running.abort();
    }
}

impl std::ops::Add for Faults {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            cuts: self.cuts + other.cuts,
            lost_answers: self.lost_answers + other.lost_answers,
            refused: self.refused + other.refused,
        }
    }
}

async fn run(listener: TcpListener, network: Arc<Network>) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((from, _)) = listener.accept().await else { continue };
        if network.refuses() {
            continue;
        }
        let mut cut = network.cut.subscribe();
        let network = Arc::clone(&network);
        connections.spawn(async move {
            tokio::select! {
                () = pass_on(from, &network) => {}
                Ok(()) = cut.changed() => count(&network.cuts),
            }
        });
        while connections.try_join_next().is_some() {}
    }
}

/// Passes bytes on in both directions until one side or the network ends it.
async fn pass_on(from: TcpStream, network: &Network) {
    let to = network.state().to;
    let Ok(to) = TcpStream::connect(to).await else { return };
    // Small answers are not to wait for each other.
    let _ = (from.set_nodelay(true), to.set_nodelay(true));
    let is_stream = AtomicBool::new(false);
    let ((asks, hears), (answers, takes)) = (from.into_split(), to.into_split());
    tokio::select! {
        () = copy(asks, takes, Side::Device, &is_stream, network) => {}
        () = copy(answers, hears, Side::Relay, &is_stream, network) => {}
    }
}

async fn copy(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, side: Side, is_stream: &AtomicBool, network: &Network) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        let bytes = &buffer[..length];
        if side == Side::Device && bytes.starts_with(STREAM) {
            is_stream.store(true, Ordering::Relaxed);
        }
        let is_stream = is_stream.load(Ordering::Relaxed);
        network.lets_pass(side, is_stream).await;
        if network.loses(side, is_stream) || to.write_all(bytes).await.is_err() {
            return;
        }
    }
}

impl Network {
    fn refuses(&self) -> bool {
        let left = &mut self.state().connections_to_refuse;
        let refuses = *left > 0;
        *left -= u32::from(refuses);
        if refuses {
            count(&self.refused);
        }
        refuses
    }

    /// Waits until bytes are not held back any more.
    async fn lets_pass(&self, side: Side, is_stream: bool) {
        let passes = |held: &Held| match held {
            Held::Nothing => true,
            Held::Streams => side == Side::Device || !is_stream,
            Held::Everything => false,
        };
        // The network is there for as long as somebody waits in it.
        let _ = self.held.subscribe().wait_for(passes).await;
    }

    /// Whether bytes are lost here, and their connection with them.
    fn loses(&self, side: Side, is_stream: bool) -> bool {
        let answer = side == Side::Relay && !is_stream;
        let (one_in, counter) = if answer { (LOSE_ONE_IN, &self.lost_answers) } else { (CUT_ONE_IN, &self.cuts) };
        let mut state = self.state();
        let told = answer && state.answers_to_lose > 0;
        state.answers_to_lose -= u32::from(told);
        let loses = told || state.bad.as_mut().is_some_and(|chance| chance.one_in(one_in));
        if loses {
            count(counter);
        }
        loses
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
