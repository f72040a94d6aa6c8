//! A way to the relay that lies: answers and frames of a test's choosing in place of the relay's.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

use tokio::sync::Notify;
use undertone::{
    Client, Clock, GroupId, SystemClock, Username,
    api::{Answer, ApiError, FrameStream, RelayApi},
};
use undertone_wire::{
    Account, AccountId, AckRequest, Bytes, Challenge, ClaimPrekeysRequest, ClaimPrekeysResponse, ClaimRequest,
    ClaimResponse, ClientFrame, CommitRequest, CommitResponse, CreateGroupRequest, DirectEphemeralRequest, ErrorCode,
    Group, GroupCommits, GroupEphemeralRequest, GroupList, GroupMembers, InstanceRequest, InstanceResponse, KeyCounts,
    LeaveRequest, LoginRequest, MessageId, PipeId, PipePart, Problem, PublishPrekeysRequest, PublishRequest,
    ReconcileRequest, ReconcileResponse, RecoveryRequest, RegisterRequest, RejoinRequest, Relay, SealingKeys,
    SendDirectRequest, SendRequest, SendResponse, ServerFrame, Session, Succession, SuccessorRequest,
    UpdateDeviceListRequest,
};

use crate::world::{World, key, registered};

/// A request about to be made, with how many of its kind were made before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    Create(usize),
    Send(GroupId, usize),
    Commit(usize),
    Login(usize),
    Open(usize),
    Account,
    Ack(usize),
    Publish(MessageId, usize),
}

/// What to answer in place of the relay.
pub(crate) enum Lie {
    /// At once.
    Now(ApiError),
    /// When the gate is opened.
    AtTheGate(ApiError),
    /// After the relay has acted.
    AfterActing(ApiError),
}

type Lies = Box<dyn Fn(Call) -> Option<Lie> + Send + Sync>;
type Rewrite = Box<dyn Fn(ServerFrame) -> ServerFrame + Send + Sync>;

#[derive(Default)]
struct Script {
    lies: Mutex<Option<Lies>>,
    rewrite: Mutex<Option<Rewrite>>,
    gate: Notify,
    creates: AtomicUsize,
    sends: AtomicUsize,
    commits: AtomicUsize,
    logins: AtomicUsize,
    opens: AtomicUsize,
    acks: AtomicUsize,
    publications: AtomicUsize,
}

/// A way to the relay that lies.
pub(crate) struct Liar {
    inner: Arc<dyn RelayApi>,
    script: Arc<Script>,
}

impl Liar {
    pub(crate) fn new(inner: Arc<dyn RelayApi>) -> Arc<Self> {
        Arc::new(Self { inner, script: Arc::default() })
    }

    /// From now on these requests are answered so. Counts start again.
    pub(crate) fn tell(&self, lies: impl Fn(Call) -> Option<Lie> + Send + Sync + 'static) {
        for count in [
            &self.script.creates,
            &self.script.sends,
            &self.script.commits,
            &self.script.logins,
            &self.script.opens,
            &self.script.acks,
            &self.script.publications,
        ] {
            count.store(0, SeqCst);
        }
        *self.script.lies.lock().unwrap() = Some(Box::new(lies));
    }

    /// From now on frames come so.
    pub(crate) fn rewrite(&self, rewrite: impl Fn(ServerFrame) -> ServerFrame + Send + Sync + 'static) {
        *self.script.rewrite.lock().unwrap() = Some(Box::new(rewrite));
    }

    pub(crate) fn open_gate(&self) {
        self.script.gate.notify_one();
    }

    pub(crate) fn sends(&self) -> usize {
        self.script.sends.load(SeqCst)
    }

    pub(crate) fn commits(&self) -> usize {
        self.script.commits.load(SeqCst)
    }

    pub(crate) fn acks(&self) -> usize {
        self.script.acks.load(SeqCst)
    }
}

/// A problem that a later version knows.
pub(crate) fn unknown(status: u16) -> ApiError {
    ApiError::Refused(Box::new(Problem { status, ..Problem::new(ErrorCode::Unknown("of_a_later_version".into())) }))
}

pub(crate) fn refused(code: ErrorCode) -> ApiError {
    ApiError::Refused(Box::new(Problem::new(code)))
}

pub(crate) async fn register_at(world: &World, liar: &Arc<Liar>, clock: Arc<dyn Clock>, name: &str) -> Client {
    let builder = Client::builder("http://localhost").api(Arc::<Liar>::clone(liar)).clock(clock);
    registered(builder.store(world.store(name), key()), name).await
}

/// Somebody who is told what a test makes up.
pub(crate) async fn lied_to(world: &World, name: &str) -> (Arc<Liar>, Client) {
    let liar = Liar::new(world.relay.connect());
    let client = register_at(world, &liar, Arc::new(SystemClock), name).await;
    (liar, client)
}

pub(crate) fn lost() -> ApiError {
    ApiError::Unreachable("lost".into())
}

impl Script {
    fn lie(&self, call: Call) -> Option<Lie> {
        self.lies.lock().unwrap().as_ref().and_then(|lies| lies(call))
    }

    fn instead<'a, T: Send + 'a>(self: &'a Arc<Self>, call: Call, honest: Answer<'a, T>) -> Answer<'a, T> {
        match self.lie(call) {
            None => honest,
            Some(Lie::Now(error)) => Box::pin(async move { Err(error) }),
            Some(Lie::AtTheGate(error)) => Box::pin(async move {
                self.gate.notified().await;
                Err(error)
            }),
            Some(Lie::AfterActing(error)) => Box::pin(async move {
                drop(honest.await);
                Err(error)
            }),
        }
    }
}

macro_rules! honestly {
    ($($name:ident($($argument:ident: $type:ty),*) -> $answer:ty;)+) => {
        $(fn $name<'a>(&'a self, $($argument: $type),*) -> Answer<'a, $answer> {
            self.inner.$name($($argument),*)
        })+
    };
}

impl RelayApi for Liar {
    honestly! {
        relay() -> Relay;
        recover(account: AccountId, request: &'a RecoveryRequest) -> Account;
        challenge() -> Challenge;
        register(request: &'a RegisterRequest) -> Account;
        pipe_request(pipe: PipeId, number: u64) -> PipePart;
        put_pipe_request(pipe: PipeId, number: u64, part: &'a PipePart) -> ();
        pipe_answer(pipe: PipeId, number: u64) -> PipePart;
        put_pipe_answer(token: &'a Bytes, pipe: PipeId, number: u64, part: &'a PipePart) -> ();
        update_devices(token: &'a Bytes, request: &'a UpdateDeviceListRequest) -> Account;
        logout(token: &'a Bytes) -> ();
        delete_account(token: &'a Bytes) -> ();
        account_by_username(token: &'a Bytes, username: &'a Username) -> Account;
        key_counts(token: &'a Bytes) -> KeyCounts;
        reconcile(token: &'a Bytes, request: &'a ReconcileRequest) -> ReconcileResponse;
        claim(token: &'a Bytes, request: &'a ClaimRequest) -> ClaimResponse;
        publish_prekeys(token: &'a Bytes, request: &'a PublishPrekeysRequest) -> KeyCounts;
        claim_prekeys(token: &'a Bytes, request: &'a ClaimPrekeysRequest) -> ClaimPrekeysResponse;
        sealing_keys(token: &'a Bytes, account: AccountId) -> SealingKeys;
        send_direct(token: &'a Bytes, request: &'a SendDirectRequest) -> SendResponse;
        direct_ephemeral(token: &'a Bytes, request: &'a DirectEphemeralRequest) -> ();
        groups(token: &'a Bytes) -> GroupList;
        group(token: &'a Bytes, group: GroupId) -> Group;
        group_members(token: &'a Bytes, group: GroupId) -> GroupMembers;
        group_commits(token: &'a Bytes, group: GroupId, after: u64) -> GroupCommits;
        ephemeral(token: &'a Bytes, group: GroupId, request: &'a GroupEphemeralRequest) -> ();
        leave(token: &'a Bytes, group: GroupId, request: &'a LeaveRequest) -> SendResponse;
        rejoin(token: &'a Bytes, group: GroupId, request: &'a RejoinRequest) -> SendResponse;
        succession(token: &'a Bytes, group: GroupId, at: u64) -> Succession;
        succeed(token: &'a Bytes, group: GroupId, request: &'a SuccessorRequest) -> Succession;
        instance(token: &'a Bytes, request: &'a InstanceRequest) -> InstanceResponse;
        ack(token: &'a Bytes, request: &'a AckRequest) -> ();
    }

    fn publish<'a>(&'a self, token: &'a Bytes, request: &'a PublishRequest) -> Answer<'a, KeyCounts> {
        let call = Call::Publish(request.message_id, self.script.publications.fetch_add(1, SeqCst));
        self.script.instead(call, self.inner.publish(token, request))
    }

    fn login<'a>(&'a self, request: &'a LoginRequest) -> Answer<'a, Session> {
        let call = Call::Login(self.script.logins.fetch_add(1, SeqCst));
        self.script.instead(call, self.inner.login(request))
    }

    fn account<'a>(&'a self, token: &'a Bytes, account: AccountId) -> Answer<'a, Account> {
        self.script.instead(Call::Account, self.inner.account(token, account))
    }

    fn create_group<'a>(&'a self, token: &'a Bytes, request: &'a CreateGroupRequest) -> Answer<'a, Group> {
        let call = Call::Create(self.script.creates.fetch_add(1, SeqCst));
        self.script.instead(call, self.inner.create_group(token, request))
    }

    fn commit<'a>(
        &'a self,
        token: &'a Bytes,
        group: GroupId,
        request: &'a CommitRequest,
    ) -> Answer<'a, CommitResponse> {
        let call = Call::Commit(self.script.commits.fetch_add(1, SeqCst));
        self.script.instead(call, self.inner.commit(token, group, request))
    }

    fn send<'a>(&'a self, token: &'a Bytes, group: GroupId, request: &'a SendRequest) -> Answer<'a, SendResponse> {
        let call = Call::Send(group, self.script.sends.fetch_add(1, SeqCst));
        self.script.instead(call, self.inner.send(token, group, request))
    }

    fn open_stream<'a>(&'a self, token: &'a Bytes, after: u64) -> Answer<'a, Box<dyn FrameStream>> {
        let call = Call::Open(self.script.opens.fetch_add(1, SeqCst));
        let honest = Box::pin(async move {
            let inner = self.inner.open_stream(token, after).await?;
            let stream: Box<dyn FrameStream> = Box::new(LyingStream { inner, script: Arc::clone(&self.script) });
            Ok(stream)
        });
        self.script.instead(call, honest)
    }

    fn clock_offset_ms(&self) -> i64 {
        self.inner.clock_offset_ms()
    }
}

struct LyingStream {
    inner: Box<dyn FrameStream>,
    script: Arc<Script>,
}

impl FrameStream for LyingStream {
    fn next(&mut self) -> Answer<'_, ServerFrame> {
        Box::pin(async move {
            let frame = self.inner.next().await?;
            let rewrite = self.script.rewrite.lock().unwrap();
            Ok(rewrite.as_ref().map_or(frame.clone(), |rewrite| rewrite(frame)))
        })
    }

    fn send(&mut self, frame: ClientFrame) -> Answer<'_, ()> {
        Box::pin(async move {
            match self.script.lie(Call::Ack(self.script.acks.fetch_add(1, SeqCst))) {
                Some(Lie::Now(error) | Lie::AtTheGate(error) | Lie::AfterActing(error)) => Err(error),
                None => self.inner.send(frame).await,
            }
        })
    }
}
