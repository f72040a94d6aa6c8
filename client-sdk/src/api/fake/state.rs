//! What the fake relay holds, and the rules that all its rooms share: sessions, queues and message ids.
//!
//! Invariant: a device's queue has ascending numbers below its `next_seq` and above its `acked_seq`.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use serde::Serialize;
use undertone_wire::{
    Account, AccountId, Bytes, Delivery, DeviceId, Encoding, Envelope, ErrorCode, GroupId, Hash, Incarnation,
    InstanceId, InstanceRequest, InstanceResponse, InviteCode, LimitReached, Limits, MessageId, Nonce, PipeId, Problem,
    PublicKey, Registration, Relay, RelayId, SignedCertificate, suite,
};

use super::{Faults, groups::GroupState, keys::Keys, pipes::Pipe};

/// An answer, or the refusal of it.
pub(super) type Outcome<T> = Result<T, Box<Problem>>;

/// How far a device's numbers jump when the relay may have given out more than it knows of.
const JUMP: u64 = 1 << 32;

/// How many relays there have been in this process: what makes the ids of one different from another's.
static RELAYS: AtomicU64 = AtomicU64::new(0);

#[derive(Clone)]
pub(super) struct State {
    pub(super) faults: Faults,
    pub(super) now_ms: u64,
    pub(super) limits: Limits,
    /// How often each invite may still be used; `None` if everyone may register.
    pub(super) invites: Option<BTreeMap<InviteCode, u64>>,
    pub(super) relay_id: RelayId,
    pub(super) incarnation: Incarnation,
    pub(super) accounts: BTreeMap<AccountId, Account>,
    pub(super) devices: BTreeMap<DeviceId, Device>,
    /// When each ends.
    pub(super) challenges: BTreeMap<Nonce, u64>,
    /// Oldest first.
    pub(super) sessions: Vec<OpenSession>,
    pub(super) groups: BTreeMap<GroupId, GroupState>,
    pub(super) pipes: BTreeMap<PipeId, Pipe>,
    /// What was said in passing.
    pub(super) said: Vec<Said>,
    answered: BTreeMap<MessageId, Answered>,
    relay_number: u64,
    draws: u64,
    /// How often a token was looked up. Copies of the state go on counting together, here and below.
    pub(super) tokens_heard: Arc<AtomicU64>,
    /// How often somebody asked who it is.
    pub(super) descriptions_given: Arc<AtomicU64>,
}

/// What was said in passing, and to whom.
#[derive(Clone)]
pub(super) enum Said {
    /// To the members of a group, in an epoch.
    Group { group_id: GroupId, epoch: u64, ciphertext: Bytes },
    /// To one device.
    Device { device: DeviceId, ciphertext: Bytes },
}

#[derive(Clone)]
pub(super) struct Device {
    pub(super) account: AccountId,
    pub(super) device_key: PublicKey,
    pub(super) certificate: SignedCertificate,
    pub(super) keys: Keys,
    pub(super) queue: BTreeMap<u64, Envelope>,
    pub(super) next_seq: u64,
    pub(super) acked_seq: u64,
    /// The number of its newest stream.
    pub(super) stream: u64,
    /// The node at which that was opened.
    pub(super) node: usize,
    /// Which copy of its store took from the queue last.
    instance: Option<InstanceId>,
}

#[derive(Clone)]
pub(super) struct OpenSession {
    pub(super) token: Bytes,
    pub(super) device: DeviceId,
    pub(super) expires_at_ms: u64,
}

/// Whom a session speaks for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Caller {
    pub(super) device: DeviceId,
    pub(super) account: AccountId,
}

/// A request that was accepted: the hash of its body, and the number of the commit if it was one.
#[derive(Clone)]
struct Answered {
    body: Hash,
    commit_seq: u64,
}

/// A request that has its effect once.
pub(super) struct Once {
    id: MessageId,
    body: Hash,
}

impl State {
    pub(super) fn new(now_ms: u64) -> Self {
        let relay_number = RELAYS.fetch_add(1, Relaxed);
        let id = |what: &str| first_16(Hash::of(format!("{what} {relay_number}").as_bytes()).as_bytes());
        Self {
            faults: Faults::default(),
            now_ms,
            limits: Limits::default(),
            invites: None,
            relay_id: RelayId::from_random(id("relay")),
            incarnation: Incarnation::from_random(id("incarnation")),
            accounts: BTreeMap::new(),
            devices: BTreeMap::new(),
            challenges: BTreeMap::new(),
            sessions: Vec::new(),
            groups: BTreeMap::new(),
            pipes: BTreeMap::new(),
            said: vec![],
            answered: BTreeMap::new(),
            relay_number,
            draws: 0,
            tokens_heard: Arc::default(),
            descriptions_given: Arc::default(),
        }
    }

    pub(super) fn description(&self) -> Relay {
        self.descriptions_given.fetch_add(1, Relaxed);
        Relay {
            registration: if self.invites.is_some() { Registration::Invite } else { Registration::Open },
            relay_id: self.relay_id,
            incarnation: self.incarnation,
            time_ms: self.now_ms,
            suites: suite::MLS.to_vec(),
            limits: self.limits.clone(),
        }
    }

    /// Bytes that no relay of this process has drawn before.
    pub(super) fn draw(&mut self) -> [u8; 32] {
        self.draws += 1;
        *Hash::of(format!("draw {} {}", self.relay_number, self.draws).as_bytes()).as_bytes()
    }

    /// A time some seconds from now.
    pub(super) fn in_s(&self, seconds: u64) -> u64 {
        self.now_ms.saturating_add(seconds.saturating_mul(1_000))
    }

    pub(super) fn caller(&self, token: &Bytes) -> Outcome<Caller> {
        self.tokens_heard.fetch_add(1, Relaxed);
        let session =
            self.sessions.iter().find(|session| session.token == *token && session.expires_at_ms > self.now_ms);
        let caller = session.and_then(|session| {
            let account = self.devices.get(&session.device)?.account;
            Some(Caller { device: session.device, account })
        });
        caller.ok_or_else(|| refused(ErrorCode::Unauthenticated, "log in"))
    }

    /// The request with this id and body, unless the id's time is outside the window.
    pub(super) fn once<T: Serialize>(
        &self,
        route: &str,
        group: Option<&GroupId>,
        id: MessageId,
        body: &T,
    ) -> Outcome<Once> {
        let too_old = id.time_ms().saturating_add(self.limits.idempotency_window_s.saturating_mul(1_000)) < self.now_ms;
        let code = match id.time_ms() > self.in_s(self.limits.clock_ahead_s_max) {
            true => Some(ErrorCode::ClockSkew),
            false => too_old.then_some(ErrorCode::OutcomeUnknown),
        };
        if let Some(code) = code {
            return Err(Box::new(Problem { time_ms: Some(self.now_ms), ..Problem::new(code) }));
        }
        let group = group.map_or([0; 16], |group| *group.as_bytes());
        let body = Hash::of(&[route.as_bytes(), &group, &Encoding::Cbor.encode(body)].concat());
        Ok(Once { id, body })
    }

    /// The number in the first answer, if the request was accepted before. Refused if its id was used for another.
    pub(super) fn first_answer(&self, once: &Once) -> Outcome<Option<u64>> {
        match self.answered.get(&once.id) {
            None => Ok(None),
            Some(answered) if answered.body == once.body => Ok(Some(answered.commit_seq)),
            Some(_) => Err(refused(ErrorCode::MessageIdReused, "make a new message id for a new message")),
        }
    }

    pub(super) fn remember(&mut self, once: &Once, commit_seq: u64) {
        self.answered.insert(once.id, Answered { body: once.body, commit_seq });
    }

    pub(super) fn deliver(&mut self, devices: &[DeviceId], envelope: &Envelope) {
        for device in devices {
            if let Some(device) = self.devices.get_mut(device) {
                device.queue.insert(device.next_seq, envelope.clone());
                device.next_seq += 1;
            }
        }
    }

    /// A copy takes the place of the state `now`: what no store forgets, and what is no store's, goes on.
    pub(super) fn go_on_after(&mut self, now: &Self) {
        (self.faults, self.now_ms, self.draws) = (now.faults.clone(), now.now_ms, now.draws);
    }

    /// The store is another one than before, for all that devices know.
    pub(super) fn begin_incarnation(&mut self) {
        self.incarnation = Incarnation::from_random(first_16(&self.draw()));
        self.sessions.clear();
        for device in self.devices.values_mut() {
            device.next_seq = device.next_seq.saturating_add(JUMP);
            device.keys.forget_one_time();
            device.instance = None;
        }
    }

    pub(super) fn swap_instance(&mut self, device: &DeviceId, request: &InstanceRequest) -> Outcome<InstanceResponse> {
        let Some(device) = self.devices.get_mut(device) else { return Err(not_found()) };
        let InstanceRequest { previous, instance, takes_over } = *request;
        if device.instance.is_some_and(|last| last != instance && Some(last) != previous) && !takes_over {
            return Err(refused(ErrorCode::OtherInstance, "another copy of the store has taken from the queue"));
        }
        device.instance = Some(instance);
        Ok(InstanceResponse { acked_seq: device.acked_seq })
    }

    pub(super) fn ack(&mut self, device: &DeviceId, up_to: u64) -> Outcome<()> {
        let Some(device) = self.devices.get_mut(device) else { return Ok(()) };
        device.jump_over(up_to);
        device.acked_seq = device.acked_seq.max(up_to);
        device.queue.retain(|&seq, _| seq > up_to);
        Ok(())
    }
}

impl Device {
    pub(super) fn new(account: AccountId, device_key: PublicKey, certificate: SignedCertificate) -> Self {
        let (keys, queue) = (Keys::default(), BTreeMap::new());
        Self {
            account,
            device_key,
            certificate,
            keys,
            queue,
            next_seq: 1,
            acked_seq: 0,
            stream: 0,
            node: 0,
            instance: None,
        }
    }

    /// A device names a number as taken. One that was not given out was given out before the store was restored: its
    /// numbers go on far above it.
    pub(super) fn jump_over(&mut self, taken: u64) {
        if taken >= self.next_seq {
            self.next_seq = taken.saturating_add(1).saturating_add(JUMP);
        }
    }

    pub(super) fn deliveries(&self) -> Vec<Delivery> {
        self.queue.iter().map(|(&seq, envelope)| Delivery { seq, envelope: envelope.clone() }).collect()
    }
}

/// A refusal that says what to do.
pub(super) fn refused(code: ErrorCode, detail: &str) -> Box<Problem> {
    Box::new(Problem { detail: Some(detail.to_owned()), ..Problem::new(code) })
}

pub(super) fn not_found() -> Box<Problem> {
    Box::new(Problem::new(ErrorCode::NotFound))
}

/// Refuses bytes that are more than a limit.
pub(super) fn check_bytes(name: &str, max: u64, bytes: &Bytes) -> Outcome<()> {
    check_limit(ErrorCode::TooLarge, name, max, bytes.len())
}

/// Refuses things that are more than a limit.
pub(super) fn check_count(name: &str, max: u64, count: usize) -> Outcome<()> {
    check_limit(ErrorCode::LimitReached, name, max, count)
}

fn check_limit(code: ErrorCode, name: &str, value: u64, actual: usize) -> Outcome<()> {
    if actual as u64 <= value {
        return Ok(());
    }
    let detail = Some(format!("`{name}` is {value}"));
    Err(Box::new(Problem { detail, limit: Some(LimitReached { name: name.to_owned(), value }), ..Problem::new(code) }))
}

fn first_16(bytes: &[u8; 32]) -> [u8; 16] {
    std::array::from_fn(|i| bytes[i])
}
