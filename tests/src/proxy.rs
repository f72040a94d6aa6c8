//! A bad network in front of a relay: a TCP proxy that cuts connections and loses answers, by chance.
//!
//! Invariant: it changes and reorders no byte. An answer that it loses was given: the request went through.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    task::{AbortHandle, JoinSet},
};

use crate::Chance;

/// Once in so many reads from either side, a connection is cut.
const CUT_ONE_IN: u64 = 60;

/// Once in so many answers, one is lost, and the connection with it.
const LOSE_ONE_IN: u64 = 12;

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
}

struct Network {
    /// Where the relay is.
    to: Mutex<SocketAddr>,
    /// Chance, while the network is bad.
    bad: Mutex<Option<Chance>>,
    cuts: AtomicU64,
    lost_answers: AtomicU64,
}

/// What is to happen to some bytes.
enum Fate {
    Pass,
    Cut,
}

impl Proxy {
    /// A bad network in front of `to`.
    pub async fn new(to: SocketAddr, chance: Chance) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let address = listener.local_addr().expect("the port is known");
        let network = Arc::new(Network {
            to: Mutex::new(to),
            bad: Mutex::new(Some(chance)),
            cuts: AtomicU64::new(0),
            lost_answers: AtomicU64::new(0),
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
        *self.network.to.lock().unwrap_or_else(PoisonError::into_inner) = to;
    }

    /// Loses nothing from now on.
    pub fn heal(&self) {
        *self.network.bad() = None;
    }

    /// What became of the connections.
    pub fn faults(&self) -> Faults {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Faults { cuts: count(&self.network.cuts), lost_answers: count(&self.network.lost_answers) }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.running.abort();
    }
}

async fn run(listener: TcpListener, network: Arc<Network>) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((from, _)) = listener.accept().await else { continue };
        connections.spawn(pass_on(from, Arc::clone(&network)));
        while connections.try_join_next().is_some() {}
    }
}

/// Passes bytes on in both directions until one side or chance ends it.
async fn pass_on(from: TcpStream, network: Arc<Network>) {
    let to = *network.to.lock().unwrap_or_else(PoisonError::into_inner);
    let Ok(to) = TcpStream::connect(to).await else { return };
    // Small answers are not to wait for each other.
    let _ = (from.set_nodelay(true), to.set_nodelay(true));
    let mut first = [0; 16];
    let is_stream = matches!(from.peek(&mut first).await, Ok(length) if first[..length].starts_with(b"GET /v1/stream"));
    let ((asks, hears), (answers, takes)) = (from.into_split(), to.into_split());
    tokio::select! {
        () = copy(asks, takes, || network.fate_of_request()) => {}
        () = copy(answers, hears, || if is_stream { network.fate_of_request() } else { network.fate_of_answer() }) => {}
    }
}

async fn copy(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, fate: impl Fn() -> Fate) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        if matches!(fate(), Fate::Cut) || to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}

impl Network {
    fn fate_of_request(&self) -> Fate {
        self.fate(CUT_ONE_IN, &self.cuts)
    }

    fn fate_of_answer(&self) -> Fate {
        self.fate(LOSE_ONE_IN, &self.lost_answers)
    }

    fn fate(&self, one_in: u64, counter: &AtomicU64) -> Fate {
        if self.bad().as_mut().is_some_and(|chance| chance.one_in(one_in)) {
            counter.fetch_add(1, Ordering::Relaxed);
            return Fate::Cut;
        }
        Fate::Pass
    }

    fn bad(&self) -> MutexGuard<'_, Option<Chance>> {
        self.bad.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
