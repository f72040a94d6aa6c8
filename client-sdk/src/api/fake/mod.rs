//! A relay in memory, for tests of the SDK and of apps built on it: the rules of the real one, and faults on request.
//!
//! [`FakeRelay`] owns the faults and what tests may look at; [`FakeRelay::connect`] gives a device's way to it. The
//! rules are in the rooms below: `state` (sessions, queues, message ids), `accounts`, `keys`, `groups` and `stream`;
//! `swap` puts an earlier state or another relay in its place.
//!
//! Invariant: a request acts as a whole, under one lock, or not at all. Time stands still unless a test moves it, and
//! nothing here sleeps.
//!
//! ```no_run
//! use undertone::api::{RelayApi as _, fake::FakeRelay};
//! # async fn example() -> Result<(), undertone::api::ApiError> {
//! let relay = FakeRelay::new();
//! let api = relay.connect();
//! api.relay().await?;
//! relay.drop_answers(1);
//! assert!(api.challenge().await.is_err(), "it acted, but nobody was told");
//! # Ok(())
//! # }
//! ```

mod accounts;
mod clock;
mod direct;
mod groups;
mod hostile;
mod keys;
mod look;
mod pipes;
mod prekeys;
mod recovery;
mod state;
mod stream;
mod swap;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, Ordering::Relaxed},
    },
};

use tokio::sync::Notify;
use undertone_api::{Answer, ApiError, FrameStream, RelayApi};
use undertone_wire::{
    Account, AccountId, AckRequest, Bytes, Challenge, ClaimPrekeysRequest, ClaimPrekeysResponse, ClaimRequest,
    ClaimResponse, ClaimedKeyPackage, ClientFrame, CommitRequest, CommitResponse, CreateGroupRequest, DeviceId,
    DirectEphemeralRequest, Group, GroupCommits, GroupEphemeralRequest, GroupId, GroupList, GroupMembers,
    InstanceRequest, InstanceResponse, InviteCode, KeyCounts, LeaveRequest, LoginRequest, PipeId, PipePart,
    PublishPrekeysRequest, PublishRequest, ReconcileRequest, ReconcileResponse, RecoveryRequest, RegisterRequest,
    RejoinRequest, Relay, SealingKeys, SendDirectRequest, SendRequest, SendResponse, ServerFrame, Session, Succession,
    SuccessorRequest, UpdateDeviceListRequest, Username, suite,
};

pub use self::{clock::FastClock, swap::Backup};
use self::{
    groups::Post,
    pipes::Side,
    state::{Outcome, State},
    stream::Stream,
};

/// A device's time, in milliseconds since the Unix epoch.
pub type DeviceClock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// A relay in memory.
pub struct FakeRelay {
    state: Mutex<State>,
    changed: Notify,
    /// Who answers at its addresses instead.
    in_its_place: Mutex<Option<Arc<Self>>>,
}

/// What goes wrong. Separate from what the relay holds, which no fault loses.
#[derive(Debug, Default, Clone)]
struct Faults {
    offline: bool,
    connections_to_refuse: u32,
    answers_to_give: u32,
    answers_to_drop: u32,
    deliveries_held: bool,
    /// How often all streams were cut; a stream from before the newest cut is dead.
    cuts: u64,
    /// Nodes that were stopped, having said bye.
    stopped: BTreeSet<usize>,
    /// Nodes that are gone without a word.
    killed: BTreeSet<usize>,
}

/// What becomes of a request.
enum Fate {
    Lost,
    ActsUnheard,
    Answered,
}

impl Faults {
    fn fate_of_next_request(&mut self, node: usize) -> Fate {
        if self.offline || self.stopped.contains(&node) || self.killed.contains(&node) {
            Fate::Lost
        } else if let Some(left) = self.connections_to_refuse.checked_sub(1) {
            self.connections_to_refuse = left;
            Fate::Lost
        } else if let Some(left) = self.answers_to_give.checked_sub(1) {
            self.answers_to_give = left;
            Fate::Answered
        } else if let Some(left) = self.answers_to_drop.checked_sub(1) {
            self.answers_to_drop = left;
            Fate::ActsUnheard
        } else {
            Fate::Answered
        }
    }
}

/// The relay's clock and the ways to reach it.
impl FakeRelay {
    /// An empty relay. Its clock stands at the machine's time of now.
    #[expect(clippy::disallowed_methods, reason = "openmls holds key packages against the machine's clock alone")]
    pub fn new() -> Arc<Self> {
        let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let now_ms = u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX);
        let state = Mutex::new(State::new(now_ms));
        Arc::new(Self { state, changed: Notify::new(), in_its_place: Mutex::default() })
    }

    /// From now on, whoever registers must bring this invite, which is good for so many.
    pub fn invite_only(&self, code: InviteCode, uses: u64) {
        self.change(|state| state.invites.get_or_insert_default().insert(code, uses));
    }

    /// A way to the relay for a device whose clock agrees with it.
    pub fn connect(self: &Arc<Self>) -> Arc<dyn RelayApi> {
        self.connect_to(0)
    }

    /// The same, to one of the relay's nodes, of which there are as many as are asked for. [`Self::connect`] goes to
    /// node 0.
    pub fn connect_to(self: &Arc<Self>, node: usize) -> Arc<dyn RelayApi> {
        self.connection(node, None)
    }

    /// A way to the relay for a device with a clock of its own, whose offset each answer tells.
    pub fn connect_with_clock(self: &Arc<Self>, clock: DeviceClock) -> Arc<dyn RelayApi> {
        self.connection(0, Some(clock))
    }

    fn connection(self: &Arc<Self>, node: usize, clock: Option<DeviceClock>) -> Arc<dyn RelayApi> {
        Arc::new(Connection { relay: Arc::clone(self), node, clock, clock_offset_ms: AtomicI64::new(0) })
    }

    /// The relay's time, in milliseconds since the Unix epoch.
    pub fn time_ms(&self) -> u64 {
        self.look(|state| state.now_ms)
    }

    /// Sets the relay's time, forward or back.
    pub fn set_time_ms(&self, now_ms: u64) {
        self.change(|state| state.now_ms = now_ms);
    }
}

/// Faults.
impl FakeRelay {
    /// From now on every request and every open stream finds the relay unreachable, and nothing acts.
    pub fn go_offline(&self) {
        self.change(|state| {
            state.faults.offline = true;
            state.faults.cuts += 1;
        });
    }

    /// Ends [`Self::go_offline`]. Streams must be opened anew.
    pub fn come_back(&self) {
        self.change(|state| state.faults.offline = false);
    }

    /// The next `n` requests act, but their callers hear [`ApiError::Unreachable`]. Opening a stream is a request.
    pub fn drop_answers(&self, n: u32) {
        self.drop_answers_after(0, n);
    }

    /// The next `given` requests are answered, and only then [`Self::drop_answers`] begins.
    pub fn drop_answers_after(&self, given: u32, n: u32) {
        self.change(|state| (state.faults.answers_to_give, state.faults.answers_to_drop) = (given, n));
    }

    /// The next `n` requests do not act, and their callers hear [`ApiError::Unreachable`]. They come before those of
    /// [`Self::drop_answers`].
    pub fn refuse_connections(&self, n: u32) {
        self.change(|state| state.faults.connections_to_refuse = n);
    }

    /// Every open stream finds the relay unreachable. Requests and new streams work.
    pub fn cut_streams(&self) {
        self.change(|state| state.faults.cuts += 1);
    }

    /// A node stops in order: its streams say bye, and requests there find nobody.
    pub fn stop_node(&self, node: usize) {
        self.change(|state| state.faults.stopped.insert(node));
    }

    /// A node is gone without a word: its streams break, and requests there find nobody.
    pub fn kill_node(&self, node: usize) {
        self.change(|state| state.faults.killed.insert(node));
    }

    /// Ends [`Self::stop_node`] and [`Self::kill_node`].
    pub fn start_node(&self, node: usize) {
        self.change(|state| (state.faults.stopped.remove(&node), state.faults.killed.remove(&node)));
    }

    /// The relay goes on from a copy of its store, as good as new: another incarnation. Sessions and streams end, every
    /// device's numbers jump by 2^32, and one-time key packages are no longer handed out.
    pub fn restore(&self) {
        self.change(|state| {
            state.faults.cuts += 1;
            state.begin_incarnation();
        });
    }

    /// Somebody claims key packages of an account so many times, and adds nobody. Gives what they were handed.
    pub fn hand_out(&self, account: AccountId, times: usize) -> Vec<ClaimedKeyPackage> {
        self.hand_out_of(account, suite::DEFAULT, times)
    }

    /// The same of a suite.
    pub fn hand_out_of(&self, account: AccountId, suite: u16, times: usize) -> Vec<ClaimedKeyPackage> {
        let request = ClaimRequest { account_id: account, suite };
        let claimed = (0..times).filter_map(|_| self.change(|state| state.claim(&request)).ok());
        claimed.flat_map(|answer| answer.key_packages).collect()
    }

    /// The relay forgets that it has given a device any numbers, as one does that was restored without knowing it.
    pub fn forget_numbers(&self, device: &DeviceId) {
        self.change(|state| {
            if let Some(device) = state.devices.get_mut(device) {
                device.queue.clear();
                (device.next_seq, device.acked_seq) = (1, 0);
            }
        });
    }

    /// From now on streams say nothing but hello and bye, while requests work: the stream is late.
    pub fn hold_deliveries(&self) {
        self.change(|state| state.faults.deliveries_held = true);
    }

    /// Ends [`Self::hold_deliveries`]: all that was held comes now, in order.
    pub fn release_deliveries(&self) {
        self.change(|state| state.faults.deliveries_held = false);
    }

    /// Deletes all commits that a group has had, as retention does.
    pub fn expire_commits(&self, group: &GroupId) {
        self.change(|state| {
            if let Some(group) = state.groups.get_mut(group) {
                group.commits_expired = group.position.commit_seq;
            }
        });
    }

    /// Deletes what a device has not acked, up to and including `up_to`, as retention does. Its streams tell it as
    /// missed.
    pub fn expire_queue(&self, device: &DeviceId, up_to: u64) {
        self.change(|state| {
            if let Some(device) = state.devices.get_mut(device) {
                device.queue.retain(|&seq, _| seq > up_to);
            }
        });
    }
}

impl FakeRelay {
    fn look<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let changed = change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_waiters();
        changed
    }

    /// Waits until `find` finds something. Cancel safe: what was found is returned at once.
    async fn until_some<T>(&self, mut find: impl FnMut() -> Option<T>) -> T {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Listens before it looks, so that no change falls in between.
            changed.as_mut().enable();
            if let Some(found) = find() {
                return found;
            }
            changed.await;
        }
    }
}

/// One device's way to the relay.
struct Connection {
    relay: Arc<FakeRelay>,
    node: usize,
    clock: Option<DeviceClock>,
    clock_offset_ms: AtomicI64,
}

impl Connection {
    fn request<'a, T: Send + 'a>(&'a self, act: impl FnOnce(&mut State) -> Outcome<T> + Send + 'a) -> Answer<'a, T> {
        Box::pin(async move { self.ask(&self.who_answers(), act) })
    }

    fn ask<T>(&self, relay: &FakeRelay, act: impl FnOnce(&mut State) -> Outcome<T>) -> Result<T, ApiError> {
        relay.change(|state| {
            let fate = state.faults.fate_of_next_request(self.node);
            let outcome = if let Fate::Lost = fate { None } else { Some(act(state)) };
            match (fate, outcome) {
                (Fate::Answered, Some(outcome)) => {
                    self.note_time(state.now_ms);
                    outcome.map_err(ApiError::Refused)
                }
                _ => Err(ApiError::Unreachable("a fault of the fake relay".into())),
            }
        })
    }

    fn who_answers(&self) -> Arc<FakeRelay> {
        let other = self.relay.in_its_place.lock().unwrap_or_else(PoisonError::into_inner).clone();
        other.unwrap_or_else(|| Arc::clone(&self.relay))
    }

    fn note_time(&self, relay_ms: u64) {
        if let Some(offset_ms) = self.clock.as_ref().and_then(|clock| relay_ms.checked_signed_diff(clock())) {
            self.clock_offset_ms.store(offset_ms, Relaxed);
        }
    }
}

impl RelayApi for Connection {
    fn relay(&self) -> Answer<'_, Relay> {
        self.request(|state| Ok(state.description()))
    }
    fn register<'a>(&'a self, request: &'a RegisterRequest) -> Answer<'a, Account> {
        self.request(|state| state.register(request))
    }
    fn recover<'a>(&'a self, account: AccountId, request: &'a RecoveryRequest) -> Answer<'a, Account> {
        self.request(move |state| state.recover(&account, request))
    }
    fn challenge(&self) -> Answer<'_, Challenge> {
        self.request(|state| Ok(state.challenge()))
    }
    fn login<'a>(&'a self, request: &'a LoginRequest) -> Answer<'a, Session> {
        self.request(|state| state.login(request))
    }

    fn pipe_request(&self, pipe: PipeId, number: u64) -> Answer<'_, PipePart> {
        self.request(move |state| state.pipe_part(pipe, Side::New, number))
    }
    fn put_pipe_request<'a>(&'a self, pipe: PipeId, number: u64, part: &'a PipePart) -> Answer<'a, ()> {
        self.request(move |state| state.put_pipe_part(pipe, Side::New, number, part))
    }
    fn pipe_answer(&self, pipe: PipeId, number: u64) -> Answer<'_, PipePart> {
        self.request(move |state| state.pipe_part(pipe, Side::Listed, number))
    }

    fn put_pipe_answer<'a>(
        &'a self,
        token: &'a Bytes,
        pipe: PipeId,
        number: u64,
        part: &'a PipePart,
    ) -> Answer<'a, ()> {
        self.request(move |state| {
            state.caller(token)?;
            state.put_pipe_part(pipe, Side::Listed, number, part)
        })
    }
    fn logout<'a>(&'a self, token: &'a Bytes) -> Answer<'a, ()> {
        self.request(|state| state.logout(token))
    }
    fn delete_account<'a>(&'a self, token: &'a Bytes) -> Answer<'a, ()> {
        self.request(|state| state.caller(token).map(|caller| state.delete_account(&caller.account)))
    }
    fn update_devices<'a>(&'a self, token: &'a Bytes, request: &'a UpdateDeviceListRequest) -> Answer<'a, Account> {
        self.request(|state| state.caller(token).and_then(|caller| state.update_devices(&caller, request)))
    }
    fn account<'a>(&'a self, token: &'a Bytes, account: AccountId) -> Answer<'a, Account> {
        self.request(move |state| state.caller(token).and_then(|_| state.account(&account)))
    }
    fn account_by_username<'a>(&'a self, token: &'a Bytes, username: &'a Username) -> Answer<'a, Account> {
        self.request(|state| state.caller(token).and_then(|_| state.account_by_username(username)))
    }

    fn key_counts<'a>(&'a self, token: &'a Bytes) -> Answer<'a, KeyCounts> {
        self.request(|state| state.caller(token).map(|caller| state.key_counts(&caller.device)))
    }
    fn publish<'a>(&'a self, token: &'a Bytes, request: &'a PublishRequest) -> Answer<'a, KeyCounts> {
        self.request(|state| state.caller(token).and_then(|caller| state.publish(&caller, request)))
    }
    fn reconcile<'a>(&'a self, token: &'a Bytes, request: &'a ReconcileRequest) -> Answer<'a, ReconcileResponse> {
        self.request(|state| state.caller(token).map(|caller| state.reconcile(&caller.device, request)))
    }
    fn claim<'a>(&'a self, token: &'a Bytes, request: &'a ClaimRequest) -> Answer<'a, ClaimResponse> {
        self.request(|state| state.caller(token).and_then(|_| state.claim(request)))
    }
    fn publish_prekeys<'a>(&'a self, token: &'a Bytes, request: &'a PublishPrekeysRequest) -> Answer<'a, KeyCounts> {
        self.request(|state| state.caller(token).and_then(|caller| state.publish_prekeys(&caller, request)))
    }
    fn claim_prekeys<'a>(
        &'a self,
        token: &'a Bytes,
        request: &'a ClaimPrekeysRequest,
    ) -> Answer<'a, ClaimPrekeysResponse> {
        self.request(|state| state.caller(token).and_then(|_| state.claim_prekeys(request)))
    }
    fn sealing_keys<'a>(&'a self, token: &'a Bytes, account: AccountId) -> Answer<'a, SealingKeys> {
        self.request(move |state| state.caller(token).and_then(|_| state.sealing_keys(&account)))
    }

    fn send_direct<'a>(&'a self, token: &'a Bytes, request: &'a SendDirectRequest) -> Answer<'a, SendResponse> {
        self.request(|state| state.caller(token).and_then(|caller| state.send_direct(&caller, request)))
    }

    fn direct_ephemeral<'a>(&'a self, token: &'a Bytes, request: &'a DirectEphemeralRequest) -> Answer<'a, ()> {
        self.request(|state| state.caller(token).and_then(|_| state.say_directly(request)))
    }

    fn groups<'a>(&'a self, token: &'a Bytes) -> Answer<'a, GroupList> {
        self.request(|state| state.caller(token).map(|caller| state.groups_of(&caller.device)))
    }
    fn create_group<'a>(&'a self, token: &'a Bytes, request: &'a CreateGroupRequest) -> Answer<'a, Group> {
        self.request(|state| state.caller(token).and_then(|caller| state.create_group(&caller, request)))
    }
    fn group<'a>(&'a self, token: &'a Bytes, group: GroupId) -> Answer<'a, Group> {
        self.request(move |state| state.caller(token).and_then(|caller| state.group(&caller, &group)))
    }
    fn group_members<'a>(&'a self, token: &'a Bytes, group: GroupId) -> Answer<'a, GroupMembers> {
        self.request(move |state| state.caller(token).and_then(|caller| state.members(&caller, &group)))
    }
    fn group_commits<'a>(&'a self, token: &'a Bytes, group: GroupId, after: u64) -> Answer<'a, GroupCommits> {
        self.request(move |state| state.caller(token).and_then(|caller| state.commits(&caller, &group, after)))
    }
    fn commit<'a>(
        &'a self,
        token: &'a Bytes,
        group: GroupId,
        request: &'a CommitRequest,
    ) -> Answer<'a, CommitResponse> {
        self.request(move |state| state.caller(token).and_then(|caller| state.commit(Post { caller, group }, request)))
    }
    fn send<'a>(&'a self, token: &'a Bytes, group: GroupId, request: &'a SendRequest) -> Answer<'a, SendResponse> {
        self.request(move |state| state.caller(token).and_then(|caller| state.send(Post { caller, group }, request)))
    }
    fn ephemeral<'a>(&'a self, token: &'a Bytes, group: GroupId, request: &'a GroupEphemeralRequest) -> Answer<'a, ()> {
        self.request(move |state| state.caller(token).and_then(|caller| state.say(&Post { caller, group }, request)))
    }
    fn leave<'a>(&'a self, token: &'a Bytes, group: GroupId, request: &'a LeaveRequest) -> Answer<'a, SendResponse> {
        self.request(move |state| state.caller(token).and_then(|caller| state.leave(Post { caller, group }, request)))
    }
    fn rejoin<'a>(&'a self, token: &'a Bytes, group: GroupId, request: &'a RejoinRequest) -> Answer<'a, SendResponse> {
        self.request(move |state| state.caller(token).and_then(|caller| state.rejoin(Post { caller, group }, request)))
    }
    fn succession<'a>(&'a self, token: &'a Bytes, group: GroupId, at: u64) -> Answer<'a, Succession> {
        self.request(move |state| state.caller(token).and_then(|caller| state.succession(&Post { caller, group }, at)))
    }
    fn succeed<'a>(
        &'a self,
        token: &'a Bytes,
        group: GroupId,
        request: &'a SuccessorRequest,
    ) -> Answer<'a, Succession> {
        self.request(move |state| state.caller(token).and_then(|caller| state.succeed(Post { caller, group }, request)))
    }

    fn ack<'a>(&'a self, token: &'a Bytes, request: &'a AckRequest) -> Answer<'a, ()> {
        self.request(|state| state.caller(token).and_then(|caller| state.ack(&caller.device, request.up_to)))
    }
    fn instance<'a>(&'a self, token: &'a Bytes, request: &'a InstanceRequest) -> Answer<'a, InstanceResponse> {
        self.request(|state| state.caller(token).and_then(|caller| state.swap_instance(&caller.device, request)))
    }
    fn open_stream<'a>(&'a self, token: &'a Bytes, after: u64) -> Answer<'a, Box<dyn FrameStream>> {
        Box::pin(async move {
            let relay = self.who_answers();
            let stream = self.ask(&relay, |state| Stream::open(state, token, after, self.node))?;
            Ok(Box::new(OpenStream { relay, stream }) as Box<dyn FrameStream>)
        })
    }

    fn clock_offset_ms(&self) -> i64 {
        self.clock_offset_ms.load(Relaxed)
    }
}

/// An open stream.
struct OpenStream {
    relay: Arc<FakeRelay>,
    stream: Stream,
}

impl FrameStream for OpenStream {
    fn next(&mut self) -> Answer<'_, ServerFrame> {
        let Self { relay, stream } = self;
        Box::pin(relay.until_some(|| relay.look(|state| stream.next(state))))
    }

    fn send(&mut self, frame: ClientFrame) -> Answer<'_, ()> {
        let Self { relay, stream } = self;
        Box::pin(async move { relay.change(|state| stream.take(state, &frame)) })
    }
}
