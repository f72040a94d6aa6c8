//! A relay at several addresses: one request goes to one of them.
//!
//! It owns the check that an address is the pinned relay's, made before anything else is asked there, so that no
//! token goes to another relay; and it tells the route what came of each request. It retries nothing.
//!
//! Invariant: every answer that leaves here is from an address that was confirmed since it last failed.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use undertone_api::{Answer, ApiError, FrameStream, RelayApi};
use undertone_wire::{
    Account, AccountId, AckRequest, ByeReason, Bytes, Challenge, ClaimPrekeysRequest, ClaimPrekeysResponse,
    ClaimRequest, ClaimResponse, ClientFrame, CommitRequest, CommitResponse, CreateGroupRequest,
    DirectEphemeralRequest, Group, GroupCommits, GroupEphemeralRequest, GroupId, GroupList, GroupMembers,
    InstanceRequest, InstanceResponse, KeyCounts, LeaveRequest, LoginRequest, PipeId, PipePart, PublishPrekeysRequest,
    PublishRequest, ReconcileRequest, ReconcileResponse, RecoveryRequest, RegisterRequest, RejoinRequest, Relay,
    RelayId, SealingKeys, SendDirectRequest, SendRequest, SendResponse, ServerFrame, Session, Succession,
    SuccessorRequest, UpdateDeviceListRequest, Username,
};

use super::route::Route;

/// How long an address may take to answer before the next is tried beside it (as RFC 8305, section 5, does for
/// connections).
const HEAD_START: Duration = Duration::from_millis(250);

/// One address.
pub(crate) struct Address {
    /// Its URL.
    pub(crate) url: String,
    /// The way to it.
    pub(crate) api: Arc<dyn RelayApi>,
}

/// One relay at its addresses.
pub(crate) struct Addresses {
    all: Vec<Address>,
    relay_id: RelayId,
    state: Arc<Mutex<State>>,
}

struct State {
    route: Route,
    /// What was found out about addresses and nobody has been told, in order.
    found: Vec<(usize, Whose)>,
    /// Addresses at which a stream has greeted as the relay since they were last another's.
    greeted: BTreeSet<usize>,
}

/// Whose an address turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whose {
    /// The pinned relay's.
    Own,
    /// Another relay's.
    Strange,
}

impl Addresses {
    /// The addresses, in the order in which they are tried first.
    pub(crate) fn urls(&self) -> Vec<String> {
        self.all.iter().map(|one| one.url.clone()).collect()
    }

    /// Which relay it is.
    pub(crate) fn relay_id(&self) -> RelayId {
        self.relay_id
    }

    /// The relay `relay_id` at `all` of its addresses, in the order in which they are tried first.
    pub(crate) fn new(all: Vec<Address>, relay_id: RelayId) -> Self {
        let state = State { route: Route::new(all.len()), found: vec![], greeted: BTreeSet::new() };
        Self { all, relay_id, state: Arc::new(Mutex::new(state)) }
    }

    /// How many addresses there are to try before all have been.
    pub(crate) fn ways(&self) -> usize {
        lock(&self.state).route.ways()
    }

    /// Whether every address there is was another relay's when last heard.
    pub(crate) fn all_strange(&self) -> bool {
        self.ways() == 0
    }

    /// The URLs whose relay turned out to be another one, or the pinned one, since this was last asked; in order.
    pub(crate) fn take_found(&self) -> Vec<(String, Whose)> {
        let found = std::mem::take(&mut lock(&self.state).found);
        found.into_iter().filter_map(|(address, whose)| Some((self.all.get(address)?.url.clone(), whose))).collect()
    }

    /// Asks the address that answered last once more which relay it is: another one may have taken its place since it
    /// was confirmed.
    ///
    /// # Errors
    /// [`ApiError::OtherRelay`] if one has.
    pub(crate) async fn is_still_itself(&self) -> Result<(), ApiError> {
        let address = lock(&self.state).route.heard();
        let one = self.all.get(address).ok_or(ApiError::OtherRelay)?;
        if self.is_own(address, one.api.as_ref()).await? { Ok(()) } else { Err(ApiError::OtherRelay) }
    }

    /// The address to ask, which is the pinned relay's. If it is not known to be, each is looked at once, the next as
    /// soon as one does not answer at once: the first that is the relay's is taken. The one that failed last comes
    /// last.
    async fn confirmed(&self) -> Result<(usize, &dyn RelayApi), ApiError> {
        let (first, confirmed, failed_last) = {
            let State { route, .. } = &*lock(&self.state);
            (route.next().0, route.next().1, route.failed_last())
        };
        if confirmed && let Some(one) = self.all.get(first) {
            return Ok((first, one.api.as_ref()));
        }
        let is_left = |at: usize| Some(at) == failed_last;
        let mut waiting: Vec<_> = (first..self.all.len()).chain(0..first).collect();
        waiting.sort_by_key(|at| is_left(*at));
        let mut waiting = waiting.into_iter().filter_map(|at| Some((at, self.all.get(at)?))).peekable();
        let (mut asked, mut failed) = (FuturesUnordered::new(), None);
        loop {
            let next = waiting.next_if(|(at, _)| asked.is_empty() || !is_left(*at));
            asked.extend(next.map(|(at, one)| async move { (at, one, self.is_own(at, one.api.as_ref()).await) }));
            let more = waiting.peek().is_some_and(|(at, _)| !is_left(*at));
            tokio::select! {
                Some((address, one, own)) = asked.next() => match own {
                    Ok(true) => return Ok((address, one.api.as_ref())),
                    Ok(false) => {}
                    Err(error) => failed = Some(error),
                },
                () = tokio::time::sleep(HEAD_START), if more => {}
                else => return Err(failed.unwrap_or(ApiError::OtherRelay)),
            }
        }
    }

    /// Asks an address which relay it is. Nothing secret goes there.
    async fn is_own(&self, address: usize, api: &dyn RelayApi) -> Result<bool, ApiError> {
        let said = self.note(address, api.relay().await.map_err(nameless))?;
        let (own, mut state) = (said.relay_id == self.relay_id, lock(&self.state));
        if own {
            state.route.take(address);
        } else {
            state.is_strange(address);
        }
        Ok(own)
    }

    /// Tells the route what came of a request, and passes it on.
    fn note<T>(&self, address: usize, outcome: Result<T, ApiError>) -> Result<T, ApiError> {
        lock(&self.state).note(address, &outcome);
        outcome
    }
}

impl State {
    fn note<T>(&mut self, address: usize, outcome: &Result<T, ApiError>) {
        if matches!(outcome, Ok(_) | Err(ApiError::Refused(_))) {
            self.route.answered(address);
        }
        if outcome.as_ref().is_err_and(ApiError::may_do_elsewhere) {
            self.route.failed(address);
        }
    }

    fn is_strange(&mut self, address: usize) {
        self.greeted.remove(&address);
        if self.route.is_strange(address) {
            tracing::warn!(number = address + 1, "an address of the relay is another relay's; it is passed over");
            self.found.push((address, Whose::Strange));
        }
    }

    fn has_greeted(&mut self, address: usize) {
        self.route.is_own(address);
        if self.greeted.insert(address) {
            self.found.push((address, Whose::Own));
        }
    }
}

/// A refusal to say which relay it is must not be taken for an answer to what is asked next.
fn nameless(error: ApiError) -> ApiError {
    match error {
        ApiError::Refused(_) if !error.may_do_elsewhere() => {
            ApiError::NotARelay("it does not say which relay it is".into())
        }
        other => other,
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

macro_rules! at_one_address {
    ($($name:ident($($argument:ident: $type:ty),*) -> $answer:ty;)+) => {
        $(fn $name<'a>(&'a self, $($argument: $type),*) -> Answer<'a, $answer> {
            Box::pin(async move {
                let (address, api) = self.confirmed().await?;
                self.note(address, api.$name($($argument),*).await)
            })
        })+
    };
}

impl RelayApi for Addresses {
    at_one_address! {
        relay() -> Relay;
        recover(account: AccountId, request: &'a RecoveryRequest) -> Account;
        challenge() -> Challenge;
        register(request: &'a RegisterRequest) -> Account;
        login(request: &'a LoginRequest) -> Session;
        pipe_request(pipe: PipeId, number: u64) -> PipePart;
        put_pipe_request(pipe: PipeId, number: u64, part: &'a PipePart) -> ();
        pipe_answer(pipe: PipeId, number: u64) -> PipePart;
        put_pipe_answer(token: &'a Bytes, pipe: PipeId, number: u64, part: &'a PipePart) -> ();
        logout(token: &'a Bytes) -> ();
        delete_account(token: &'a Bytes) -> ();
        update_devices(token: &'a Bytes, request: &'a UpdateDeviceListRequest) -> Account;
        account(token: &'a Bytes, account: AccountId) -> Account;
        account_by_username(token: &'a Bytes, username: &'a Username) -> Account;
        key_counts(token: &'a Bytes) -> KeyCounts;
        publish(token: &'a Bytes, request: &'a PublishRequest) -> KeyCounts;
        reconcile(token: &'a Bytes, request: &'a ReconcileRequest) -> ReconcileResponse;
        claim(token: &'a Bytes, request: &'a ClaimRequest) -> ClaimResponse;
        publish_prekeys(token: &'a Bytes, request: &'a PublishPrekeysRequest) -> KeyCounts;
        claim_prekeys(token: &'a Bytes, request: &'a ClaimPrekeysRequest) -> ClaimPrekeysResponse;
        sealing_keys(token: &'a Bytes, account: AccountId) -> SealingKeys;
        send_direct(token: &'a Bytes, request: &'a SendDirectRequest) -> SendResponse;
        direct_ephemeral(token: &'a Bytes, request: &'a DirectEphemeralRequest) -> ();
        groups(token: &'a Bytes) -> GroupList;
        create_group(token: &'a Bytes, request: &'a CreateGroupRequest) -> Group;
        group(token: &'a Bytes, group: GroupId) -> Group;
        group_members(token: &'a Bytes, group: GroupId) -> GroupMembers;
        group_commits(token: &'a Bytes, group: GroupId, after: u64) -> GroupCommits;
        commit(token: &'a Bytes, group: GroupId, request: &'a CommitRequest) -> CommitResponse;
        send(token: &'a Bytes, group: GroupId, request: &'a SendRequest) -> SendResponse;
        ephemeral(token: &'a Bytes, group: GroupId, request: &'a GroupEphemeralRequest) -> ();
        leave(token: &'a Bytes, group: GroupId, request: &'a LeaveRequest) -> SendResponse;
        rejoin(token: &'a Bytes, group: GroupId, request: &'a RejoinRequest) -> SendResponse;
        succession(token: &'a Bytes, group: GroupId, at: u64) -> Succession;
        succeed(token: &'a Bytes, group: GroupId, request: &'a SuccessorRequest) -> Succession;
        instance(token: &'a Bytes, request: &'a InstanceRequest) -> InstanceResponse;
        ack(token: &'a Bytes, request: &'a AckRequest) -> ();
    }

    fn open_stream<'a>(&'a self, token: &'a Bytes, after: u64) -> Answer<'a, Box<dyn FrameStream>> {
        Box::pin(async move {
            let (address, api) = self.confirmed().await?;
            let inner = self.note(address, api.open_stream(token, after).await)?;
            let (state, relay_id) = (Arc::clone(&self.state), self.relay_id);
            let stream: Box<dyn FrameStream> = Box::new(Watched { inner, address, state, relay_id });
            Ok(stream)
        })
    }

    /// As the address that answered last has told it.
    fn clock_offset_ms(&self) -> i64 {
        let heard = lock(&self.state).route.heard();
        self.all.get(heard).map_or(0, |one| one.api.clock_offset_ms())
    }
}

/// A stream at one address, whose end is told to the route.
struct Watched {
    inner: Box<dyn FrameStream>,
    address: usize,
    state: Arc<Mutex<State>>,
    relay_id: RelayId,
}

impl FrameStream for Watched {
    fn next(&mut self) -> Answer<'_, ServerFrame> {
        Box::pin(async move {
            let frame = self.inner.next().await;
            let mut state = lock(&self.state);
            match &frame {
                Ok(ServerFrame::Hello { relay_id, .. }) if *relay_id != self.relay_id => {
                    state.is_strange(self.address);
                    return Err(ApiError::OtherRelay);
                }
                Ok(ServerFrame::Hello { .. }) => state.has_greeted(self.address),
                Ok(ServerFrame::Bye { reason: ByeReason::Shutdown }) => state.route.failed(self.address),
                _ => state.note(self.address, &frame),
            }
            frame
        })
    }

    fn send(&mut self, frame: ClientFrame) -> Answer<'_, ()> {
        Box::pin(async move {
            let sent = self.inner.send(frame).await;
            lock(&self.state).note(self.address, &sent);
            sent
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU8, Ordering::SeqCst};

    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::{TcpListener, TcpStream},
        sync::mpsc,
    };
    use undertone_api::{HttpApi, Place};
    use undertone_wire::{Encoding, ErrorCode, Incarnation, KeyCounts, Limits, Problem, Registration, path};

    use super::*;

    /// What answers, but does not say which relay it is.
    const NAMELESS: u8 = 0;

    fn relay_id(byte: u8) -> RelayId {
        RelayId::from_random([byte; 16])
    }

    /// A relay on a real socket, which answers who it is and how many keys there are, and tells which paths were asked.
    struct Listening {
        address: Address,
        /// Which relay it is from now on.
        relay: Arc<AtomicU8>,
        asked: mpsc::UnboundedReceiver<String>,
        serving: tokio::task::JoinHandle<()>,
    }

    impl Listening {
        async fn as_relay(byte: u8) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("http://{}", listener.local_addr().unwrap());
            let (tell, asked) = mpsc::unbounded_channel();
            let relay = Arc::new(AtomicU8::new(byte));
            let now = Arc::clone(&relay);
            let serving = tokio::spawn(async move {
                loop {
                    let (socket, _) = listener.accept().await.unwrap();
                    tell.send(serve(socket, now.load(SeqCst)).await).unwrap();
                }
            });
            let api = HttpApi::among_many(&Place::parse(&url).unwrap(), Arc::new(|| 0)).unwrap();
            Self { address: Address { url, api: Arc::new(api) }, relay, asked, serving }
        }

        async fn stop(serving: tokio::task::JoinHandle<()>) {
            serving.abort();
            let _ = serving.await;
        }
    }

    async fn serve(mut socket: TcpStream, byte: u8) -> String {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(socket.read_u8().await.unwrap());
        }
        let asked = String::from_utf8(head).unwrap().split(' ').nth(1).unwrap().to_owned();
        let relay = Relay {
            relay_id: relay_id(byte),
            incarnation: Incarnation::from_random([9; 16]),
            time_ms: 0,
            suites: vec![],
            registration: Registration::Open,
            limits: Limits::default(),
        };
        let (status, body) = match asked.as_str() {
            path::RELAY if byte == NAMELESS => (404, Encoding::Cbor.encode(&Problem::new(ErrorCode::NotFound))),
            path::RELAY => (200, Encoding::Cbor.encode(&relay)),
            _ => (200, Encoding::Cbor.encode(&KeyCounts::default())),
        };
        let head = format!(
            "HTTP/1.1 {status} X\r\ncontent-type: application/cbor\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        socket.write_all(&[head.as_bytes(), &body].concat()).await.unwrap();
        asked
    }

    fn asked(asked: &mut mpsc::UnboundedReceiver<String>) -> Vec<String> {
        std::iter::from_fn(|| asked.try_recv().ok()).collect()
    }

    #[tokio::test]
    async fn an_address_is_looked_at_once_and_left_when_nobody_is_there() {
        let [mut one, mut two] = [Listening::as_relay(1).await, Listening::as_relay(1).await];
        let addresses = Addresses::new(vec![one.address, two.address], relay_id(1));
        let token = &Bytes::from(vec![1]);
        for _ in 0..2 {
            addresses.key_counts(token).await.unwrap();
        }
        assert_eq!(asked(&mut one.asked), [path::RELAY, path::KEYS, path::KEYS]);
        Listening::stop(one.serving).await;
        assert!(matches!(addresses.key_counts(token).await, Err(ApiError::Unreachable(_))), "nothing is asked twice");
        addresses.key_counts(token).await.unwrap();
        assert_eq!(asked(&mut two.asked), [path::RELAY, path::KEYS]);
        Listening::stop(two.serving).await;
        for _ in 0..2 {
            assert!(matches!(addresses.key_counts(token).await, Err(ApiError::Unreachable(_))));
        }
    }

    #[tokio::test]
    async fn an_address_that_does_not_answer_at_once_is_not_waited_for_unless_no_other_answers() {
        let mut own = Listening::as_relay(1).await;
        // Nobody takes connections there.
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", silent.local_addr().unwrap());
        let api = Arc::new(HttpApi::among_many(&Place::parse(&url).unwrap(), Arc::new(|| 0)).unwrap());
        let addresses = Addresses::new(vec![Address { url, api }, own.address], relay_id(1));
        let token = &Bytes::from(vec![1]);
        // Far sooner than the silent one is given up.
        let soon = Duration::from_secs(2);
        tokio::time::timeout(soon, addresses.key_counts(token)).await.unwrap().unwrap();
        assert_eq!(asked(&mut own.asked), [path::RELAY, path::KEYS]);
        Listening::stop(own.serving).await;
        assert!(matches!(addresses.key_counts(token).await, Err(ApiError::Unreachable(_))));
        assert!(tokio::time::timeout(soon, addresses.key_counts(token)).await.is_err(), "the silent one is left");
    }

    #[tokio::test]
    async fn another_relay_is_asked_for_nothing_but_its_name() {
        let [mut other, mut own] = [Listening::as_relay(2).await, Listening::as_relay(1).await];
        let url = other.address.url.clone();
        let addresses = Addresses::new(vec![other.address, own.address], relay_id(1));
        let token = &Bytes::from(vec![1]);
        for _ in 0..2 {
            addresses.key_counts(token).await.unwrap();
        }
        assert_eq!(asked(&mut other.asked), [path::RELAY], "no token went there");
        assert_eq!(asked(&mut own.asked), [path::RELAY, path::KEYS, path::KEYS]);
        assert_eq!((addresses.take_found(), addresses.take_found()), (vec![(url, Whose::Strange)], vec![]));
        assert_eq!(addresses.ways(), 1);
    }

    #[tokio::test]
    async fn without_an_address_of_the_relay_there_is_an_error_for_as_long_as_that_is_so() {
        let mut other = Listening::as_relay(2).await;
        let addresses = Addresses::new(vec![other.address], relay_id(1));
        let token = &Bytes::from(vec![1]);
        for _ in 0..2 {
            assert!(matches!(addresses.key_counts(token).await, Err(ApiError::OtherRelay)));
        }
        assert!(addresses.all_strange());
        assert_eq!(asked(&mut other.asked), [path::RELAY, path::RELAY], "it is looked at again, and gets no token");
        assert_eq!(addresses.take_found().len(), 1, "it is told once");
        other.relay.store(1, SeqCst);
        addresses.key_counts(token).await.unwrap();
        assert_eq!(asked(&mut other.asked), [path::RELAY, path::KEYS]);
    }

    #[tokio::test]
    async fn a_relay_that_takes_the_place_of_a_confirmed_one_is_noticed_when_asked() {
        let one = Listening::as_relay(1).await;
        let addresses = Addresses::new(vec![one.address], relay_id(1));
        addresses.key_counts(&Bytes::from(vec![1])).await.unwrap();
        addresses.is_still_itself().await.unwrap();
        one.relay.store(2, SeqCst);
        assert!(matches!(addresses.is_still_itself().await, Err(ApiError::OtherRelay)));
        assert!(addresses.all_strange());
    }

    #[tokio::test]
    async fn what_does_not_say_which_relay_it_is_answers_nothing_else() {
        let [nameless, own] = [Listening::as_relay(NAMELESS).await, Listening::as_relay(1).await];
        let addresses = Addresses::new(vec![nameless.address, own.address], relay_id(1));
        let token = &Bytes::from(vec![1]);
        addresses.key_counts(token).await.unwrap();
        assert_eq!(addresses.ways(), 2, "it may be the relay's another time");
    }
}
