//! A round: two guests register, talk to each other in every way that the relay has, and go.
//!
//! It tells what works from here, through whatever stands in front of the relay, and how long each step takes. It speaks
//! for itself only: what it sends are random bytes, and nothing that it says names a token, a key or an invite's code.
//!
//! Invariant: what was begun at the relay is known before its answer is, and taken away again however the round ends.

use std::{fmt, future::Future, pin::Pin, sync::Arc, time::Duration};

use futures_util::FutureExt as _;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use undertone_api::{ApiError, FrameStream, HttpApi, Place, RelayApi as _};
use undertone_wire::{
    AckRequest, Bytes, Delivery, Envelope, ErrorCode, FetchResponse, InviteCode, MessageId, Registration, Relay,
    SendDirectRequest, ServerFrame,
};

use super::{CheckError, for_others, guest::Guest, told_by};
use crate::{
    admin::{self, AdminAnswer, AdminError, AdminRequest},
    clock::{Clock, Random, RandomError, random_bytes},
    config::Config,
    store,
};

/// How long a poll asks the relay to wait.
const WAIT_S: u64 = 10;

/// How long what was sent may be under way.
const ARRIVES_WITHIN: Duration = Duration::from_secs(20);

/// How long to wait before a poll that brought nothing is repeated, for a relay that may not wait at all.
const PAUSE: Duration = Duration::from_millis(50);

/// How long what waits at the relay is kept there if it cannot be taken away.
const TTL_S: u64 = 60 * 60;

/// What the invite of a round is good for: its two guests, while it lasts.
const INVITE_USES: u64 = 2;
const INVITE_LIFE_S: u64 = 10 * 60;

/// How often a guest is to be taken away before that is given up, with which pause, and how long it may take for all.
const CLEARING_ATTEMPTS: u32 = 3;
const CLEARING_PAUSE: Duration = Duration::from_millis(500);
const CLEARING_WITHIN: Duration = Duration::from_secs(30);

/// A step of a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Step {
    /// The relay says who it is.
    Reach,
    /// An invite is made for the guests, where they need one and none was given.
    Invite,
    /// Both guests register.
    Register,
    /// Both log in.
    LogIn,
    /// One sends the other a direct message.
    Send,
    /// The other has it, from a poll that waited: since the sending began.
    Poll,
    /// It acks.
    Ack,
    /// It opens its stream.
    Stream,
    /// It has a second message from the stream: since the sending began.
    Delivery,
    /// Once that is acked, nothing is left in its queue.
    Nothing,
    /// Both accounts are removed.
    Remove,
}

/// Why a step failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Why {
    /// The relay refused, or there was no answer.
    #[error(transparent)]
    Relay(#[from] ApiError),
    /// Nobody may register.
    #[error("the relay lets nobody register (registration = \"closed\"), so there are no accounts to test it with")]
    Closed,
    /// There is no store to make an invite in.
    #[error(
        "the relay asks for an invite, and this configuration has no store here to make one in; give an address with \
         an invite that two may use"
    )]
    NoStore,
    /// The relay does not take what was made in the store.
    #[error(
        "the relay does not take the invite that was made for this, so it is not over the store of this configuration; \
         give an address with an invite that two may use"
    )]
    OtherStore,
    /// The invite could not be made.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// The invite was refused.
    #[error("no invite could be made: {0}")]
    NoInvite(String),
    /// There are no keys without chance.
    #[error(transparent)]
    Random(#[from] RandomError),
    /// What was sent did not come.
    #[error("nothing came within {} s", ARRIVES_WITHIN.as_secs())]
    NothingCame,
    /// What came is not what was sent.
    #[error("what came is not what was sent, or not all of it")]
    OtherThanSent,
    /// The queue is not empty when it should be.
    #[error("the queue holds something although everything was acked")]
    SomethingLeft,
    /// The task that polled broke off.
    #[error("the poll broke off")]
    BrokeOff,
}

/// Why a round did not come to its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Stop {
    /// It did not begin.
    #[error(transparent)]
    Nowhere(#[from] CheckError),
    /// A step failed.
    #[error("{0}: {1}")]
    Failed(Step, #[source] Why),
    /// It was told to stop.
    #[error("interrupted")]
    Interrupted,
}

/// What may still be at the relay, and why.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Left {
    /// So many accounts.
    #[error("{0} account(s) of this test may be left at the relay, they could not be removed: {1}")]
    Accounts(usize, String),
    /// The invite with this id.
    #[error("the invite {0} may be left for ten minutes, it could not be revoked: {1}")]
    Invite(String, String),
}

/// What is wrong after a round: it did not come to its end, or it left something, or both.
#[derive(Debug)]
#[non_exhaustive]
pub struct RoundError {
    /// Why it ended early, if it did.
    pub stop: Option<Stop>,
    /// What it left.
    pub left: Vec<Left>,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Reach => "reach",
            Self::Invite => "make an invite",
            Self::Register => "register",
            Self::LogIn => "log in",
            Self::Send => "send",
            Self::Poll => "receive by long poll",
            Self::Ack => "ack",
            Self::Stream => "open a stream",
            Self::Delivery => "receive by stream",
            Self::Nothing => "nothing is left",
            Self::Remove => "remove the accounts",
        })
    }
}

impl fmt::Display for RoundError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let said = self.stop.iter().map(ToString::to_string).chain(self.left.iter().map(ToString::to_string));
        f.write_str(&said.collect::<Vec<_>>().join("; "))
    }
}

impl std::error::Error for RoundError {}

/// Lets two guests of the relay talk to each other, and removes them: at `relay`, which is anything that a client takes, or
/// where others reach the relay of this configuration. `done` hears of each step how long it took. When `interrupted`
/// ends, the round does; what it has made is removed all the same.
pub async fn round_trip(
    config: &Config,
    relay: Option<&str>,
    (clock, random): (Arc<dyn Clock>, &dyn Random),
    interrupted: impl Future<Output = ()>,
    done: impl FnMut(Step, Duration),
) -> Result<(), RoundError> {
    let place = relay.map_or_else(|| for_others(config), |relay| Ok(Place::parse(relay)?));
    let api = place.and_then(|place| Ok((HttpApi::new(&place, told_by(Arc::clone(&clock)))?, place)));
    let (api, place) = match api {
        Ok((api, place)) => (Arc::new(api), place),
        Err(error) => return Err(RoundError { stop: Some(error.into()), left: vec![] }),
    };
    let mut traces = Traces::default();
    let mut round = Round { config, api: &api, clock, random, interrupted: Box::pin(interrupted), done };
    let stop = round.run(place.invite(), &mut traces).await.err();
    let left = traces.clear(config, &api).await;
    if stop.is_none() && left.is_empty() { Ok(()) } else { Err(RoundError { stop, left }) }
}

struct Round<'a, I, D> {
    config: &'a Config,
    api: &'a Arc<HttpApi>,
    clock: Arc<dyn Clock>,
    random: &'a dyn Random,
    interrupted: Pin<Box<I>>,
    done: D,
}

impl<I: Future<Output = ()>, D: FnMut(Step, Duration)> Round<'_, I, D> {
    async fn run(&mut self, invite: Option<InviteCode>, traces: &mut Traces) -> Result<(), Stop> {
        let api = self.api;
        let relay = self.step(Step::Reach, reach(api)).await?;
        let (invite, made) = match invite {
            None if relay.registration == Registration::Invite => {
                let made = make_invite(self.config, &mut traces.invite);
                (Some(self.whole_step(Step::Invite, made).await?), true)
            }
            given => (given, false),
        };
        for _ in 0..2 {
            let guest = Guest::new(relay.relay_id, self.random).map_err(|why| failed(Step::Register, why))?;
            traces.guests.push(guest);
        }
        let [one, two] = traces.guests.as_mut_slice() else { return Ok(()) };
        self.whole_step(Step::Register, register([&mut *one, &mut *two], api, invite, made)).await?;
        let tokens = self.step(Step::LogIn, async { Ok([one.log_in(api).await?, two.log_in(api).await?]) }).await?;
        self.talk([one, two], &tokens).await?;
        let remove = async {
            one.remove(api, &tokens[0]).await?;
            Ok(two.remove(api, &tokens[1]).await?)
        };
        self.whole_step(Step::Remove, remove).await
    }

    /// The first guest sends two messages; the second receives one by a long poll, the other by stream.
    async fn talk(&mut self, guests: [&Guest; 2], tokens: &[Bytes; 2]) -> Result<(), Stop> {
        let [from, to] = tokens;
        let api = self.api;
        let mut polling = JoinSet::new();
        polling.spawn(next_by_poll(Arc::clone(api), to.clone()));
        // One whole request later the poll waits at the relay.
        self.unseen(Step::Poll, async { nothing(&api.fetch(to, 0, 0).await?) }).await?;
        let (request, ciphertext) = self.message(guests).map_err(|why| failed(Step::Send, why))?;
        let began = Instant::now();
        self.step(Step::Send, async { Ok(api.send_direct(from, &request).await?) }).await?;
        let polled = self.step_since(began, Step::Poll, arrival(&mut polling, &ciphertext));
        let seq = polled.await?;
        self.step(Step::Ack, async { Ok(api.ack(to, &AckRequest { up_to: seq }).await?) }).await?;

        let mut stream = self.step(Step::Stream, open_stream(api, to, seq)).await?;
        let (request, ciphertext) = self.message(guests).map_err(|why| failed(Step::Delivery, why))?;
        let delivered = async {
            api.send_direct(from, &request).await?;
            delivery(stream.as_mut(), &ciphertext).await
        };
        let seq = self.step(Step::Delivery, delivered).await?;
        let nothing_left = async {
            api.ack(to, &AckRequest { up_to: seq }).await?;
            nothing(&api.fetch(to, seq, 0).await?)
        };
        self.step(Step::Nothing, nothing_left).await
    }

    /// A direct message from the first guest, and what the second is to get.
    fn message(&self, [from, to]: [&Guest; 2]) -> Result<(SendDirectRequest, Bytes), RandomError> {
        let [kept, sent] =
            [random_bytes::<32>(self.random)?, random_bytes(self.random)?].map(|bytes| Bytes::from(bytes.as_slice()));
        let mut accounts = vec![from.receives(kept), to.receives(sent.clone())];
        accounts.sort_by_key(|to| to.account_id);
        let now_ms = self.clock.now_ms().saturating_add_signed(self.api.clock_offset_ms());
        let message_id = MessageId::from_parts(now_ms, random_bytes(self.random)?);
        Ok((SendDirectRequest { message_id, ttl_s: Some(TTL_S), accounts }, sent))
    }

    /// Does a step, unless the round is interrupted.
    async fn step<T>(&mut self, step: Step, work: impl Future<Output = Result<T, Why>>) -> Result<T, Stop> {
        self.step_since(Instant::now(), step, work).await
    }

    /// The same for a step that counts from an earlier moment.
    async fn step_since<T>(
        &mut self,
        began: Instant,
        step: Step,
        work: impl Future<Output = Result<T, Why>>,
    ) -> Result<T, Stop> {
        let done = self.unseen(step, work).await?;
        (self.done)(step, began.elapsed());
        Ok(done)
    }

    /// Does what belongs to a step and is not counted.
    async fn unseen<T>(&mut self, step: Step, work: impl Future<Output = Result<T, Why>>) -> Result<T, Stop> {
        tokio::select! {
            biased;
            () = &mut self.interrupted => Err(Stop::Interrupted),
            done = work => done.map_err(|why| failed(step, why)),
        }
    }

    /// Does a step to its end once it has begun: what it makes at the relay, or takes away, must be known.
    async fn whole_step<T>(&mut self, step: Step, work: impl Future<Output = Result<T, Why>>) -> Result<T, Stop> {
        if self.interrupted.as_mut().now_or_never().is_some() {
            return Err(Stop::Interrupted);
        }
        let began = Instant::now();
        let done = work.await.map_err(|why| failed(step, why))?;
        (self.done)(step, began.elapsed());
        Ok(done)
    }
}

fn failed(step: Step, why: impl Into<Why>) -> Stop {
    Stop::Failed(step, why.into())
}

async fn reach(api: &HttpApi) -> Result<Relay, Why> {
    let relay = api.relay().await?;
    if relay.registration == Registration::Closed { Err(Why::Closed) } else { Ok(relay) }
}

/// Makes an invite in the store of this configuration, through the relay that has it open or beside it.
async fn make_invite(config: &Config, id: &mut Option<String>) -> Result<InviteCode, Why> {
    // Whoever asks a store that is not there makes one.
    if let store::Place::Sqlite(file) = &config.place
        && !file.exists()
    {
        return Err(Why::NoStore);
    }
    let request = AdminRequest::CreateInvite { uses: INVITE_USES, life_s: INVITE_LIFE_S };
    match admin::ask(&config.place, request).await? {
        AdminAnswer::Created { code, invite } => {
            *id = Some(invite.id);
            Ok(code)
        }
        AdminAnswer::Refused { why } => Err(Why::NoInvite(why)),
        _ => Err(Why::NoInvite("something else was answered".to_owned())),
    }
}

/// Registers the guests, one after the other; `made` says that the invite was made for them.
async fn register(guests: [&mut Guest; 2], api: &HttpApi, invite: Option<InviteCode>, made: bool) -> Result<(), Why> {
    for guest in guests {
        guest.register(api, invite).await.map_err(|error| match error.code() {
            Some(ErrorCode::InviteRequired) if made => Why::OtherStore,
            _ => Why::Relay(error),
        })?;
    }
    Ok(())
}

/// What comes first into a queue, by polls that wait.
async fn next_by_poll(api: Arc<HttpApi>, token: Bytes) -> Result<FetchResponse, ApiError> {
    loop {
        let fetched = api.fetch(&token, 0, WAIT_S).await?;
        if !fetched.deliveries.is_empty() || !fetched.missed.is_empty() {
            return Ok(fetched);
        }
        sleep(PAUSE).await;
    }
}

/// The number under which the poll brought what was sent, and nothing else.
async fn arrival(polling: &mut JoinSet<Result<FetchResponse, ApiError>>, sent: &Bytes) -> Result<u64, Why> {
    let polled = timeout(ARRIVES_WITHIN, polling.join_next()).await.map_err(|_| Why::NothingCame)?;
    let fetched = polled.and_then(Result::ok).ok_or(Why::BrokeOff)??;
    match fetched.deliveries.as_slice() {
        [only] if fetched.missed.is_empty() => seq_of(only, sent),
        _ => Err(Why::OtherThanSent),
    }
}

/// Opens a device's stream, and waits until it says that it has sent what there was: nothing.
async fn open_stream(api: &HttpApi, token: &Bytes, after: u64) -> Result<Box<dyn FrameStream>, Why> {
    let mut stream = api.open_socket(token, after).await?;
    loop {
        match next_frame(stream.as_mut()).await? {
            ServerFrame::CaughtUp { .. } => return Ok(stream),
            ServerFrame::Hello { .. } => {}
            other => return Err(why_not(&other)),
        }
    }
}

/// The number under which the stream brings what was sent.
async fn delivery(stream: &mut dyn FrameStream, sent: &Bytes) -> Result<u64, Why> {
    loop {
        match next_frame(stream).await? {
            ServerFrame::Delivery { delivery } => return seq_of(&delivery, sent),
            ServerFrame::CaughtUp { .. } => {}
            other => return Err(why_not(&other)),
        }
    }
}

async fn next_frame(stream: &mut dyn FrameStream) -> Result<ServerFrame, Why> {
    Ok(timeout(ARRIVES_WITHIN, stream.next()).await.map_err(|_| Why::NothingCame)??)
}

/// What a frame means that is not hoped for.
fn why_not(frame: &ServerFrame) -> Why {
    match frame {
        ServerFrame::Bye { .. } => ApiError::Unreachable("the relay closed the stream".to_owned()).into(),
        _ => Why::OtherThanSent,
    }
}

fn seq_of(delivery: &Delivery, sent: &Bytes) -> Result<u64, Why> {
    match &delivery.envelope {
        Envelope::DirectMessage { ciphertext } if ciphertext == sent => Ok(delivery.seq),
        _ => Err(Why::OtherThanSent),
    }
}

/// That a queue holds nothing.
fn nothing(fetched: &FetchResponse) -> Result<(), Why> {
    let held = !fetched.deliveries.is_empty() || !fetched.missed.is_empty();
    if held || fetched.oldest_available != fetched.next_seq { Err(Why::SomethingLeft) } else { Ok(()) }
}

/// What a round has made at the relay.
#[derive(Default)]
struct Traces {
    guests: Vec<Guest>,
    /// The id of the invite that was made for them.
    invite: Option<String>,
}

impl Traces {
    /// Takes away what is still there. Answers with what could not be.
    async fn clear(&mut self, config: &Config, api: &HttpApi) -> Vec<Left> {
        let mut left = Vec::new();
        let mut why = None;
        let cleared = timeout(CLEARING_WITHIN, async {
            for guest in self.guests.iter_mut().filter(|guest| guest.may_be_there()) {
                why = clear_away(guest, api).await.err().or(why.take());
            }
        });
        let cleared = cleared.await;
        let there = self.guests.iter().filter(|guest| guest.may_be_there()).count();
        if there > 0 {
            let why =
                why.filter(|_| cleared.is_ok()).map_or_else(|| "it took too long".to_owned(), |why| why.to_string());
            left.push(Left::Accounts(there, why));
        }
        if let Some(id) = self.invite.take()
            && let Err(why) = revoke(config, &id).await
        {
            left.push(Left::Invite(id, why));
        }
        left
    }
}

/// Removes a guest, in more than one attempt where the relay does not say no.
async fn clear_away(guest: &mut Guest, api: &HttpApi) -> Result<(), ApiError> {
    let mut attempt = 1;
    loop {
        match guest.clear_away(api).await {
            Err(error) if attempt < CLEARING_ATTEMPTS && !error.is_a_no() => sleep(CLEARING_PAUSE).await,
            cleared => return cleared,
        }
        attempt += 1;
    }
}

/// Revokes an invite, unless it is gone because it was used up.
async fn revoke(config: &Config, id: &str) -> Result<(), String> {
    let ask = async |request| admin::ask(&config.place, request).await.map_err(|error| error.to_string());
    match ask(AdminRequest::ListInvites).await? {
        AdminAnswer::Invites { invites } if invites.iter().all(|invite| invite.id != id) => return Ok(()),
        _ => {}
    }
    match ask(AdminRequest::RevokeInvite { id: id.to_owned() }).await? {
        AdminAnswer::Refused { why } => Err(why),
        _ => Ok(()),
    }
}
