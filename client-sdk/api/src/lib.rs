//! How a client reaches an Undertone relay: one request, one answer.
//!
//! [`Place`] is where a relay is and by what it is known there, [`HttpApi`] speaks to it over HTTP and WebSocket, and
//! [`RelayApi`] is what it can be asked, as a trait, so that others can stand in its place. Nothing here knows plaintext
//! or keys, retries a request, or decides what an answer means.
//!
//! Invariant: [`ApiError::Unreachable`] never means "refused". Whether the relay acted is then unknown.
//!
//! ```no_run
//! use std::sync::Arc;
//! use undertone_api::{HttpApi, Place, RelayApi as _};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let place = Place::parse("https://relay.example.org")?;
//! // What tells this device's time, in milliseconds since the Unix epoch.
//! let api = HttpApi::new(&place, Arc::new(|| 0))?;
//! println!("{:?}", api.relay().await?.registration);
//! # Ok(()) }
//! ```

mod http;
mod place;
mod poll;
mod ws;

use futures_util::future::BoxFuture;
use undertone_wire::{
    Account, AccountId, AckRequest, Bytes, Challenge, ClaimPrekeysRequest, ClaimPrekeysResponse, ClaimRequest,
    ClaimResponse, ClientFrame, CommitRequest, CommitResponse, CreateGroupRequest, DirectEphemeralRequest, ErrorCode,
    Group, GroupCommits, GroupEphemeralRequest, GroupId, GroupList, GroupMembers, InstanceRequest, InstanceResponse,
    KeyCounts, LeaveRequest, LoginRequest, PipeId, PipePart, Problem, PublishPrekeysRequest, PublishRequest,
    ReconcileRequest, ReconcileResponse, RecoveryRequest, RegisterRequest, RejoinRequest, Relay, SealingKeys,
    SendDirectRequest, SendRequest, SendResponse, ServerFrame, Session, Succession, SuccessorRequest,
    UpdateDeviceListRequest, Username,
};

pub use http::{HttpApi, NowMs};
pub use place::{Place, PlaceError};

/// The answer to a request, in time.
pub type Answer<'a, T> = BoxFuture<'a, Result<T, ApiError>>;

/// Why there is no answer of the expected kind.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ApiError {
    /// The relay said no, and why.
    #[error("{}", .0.detail.as_deref().unwrap_or(&.0.title))]
    Refused(Box<Problem>),
    /// There was no answer, or not a whole one. The relay may have acted.
    #[error("the relay cannot be reached: {0}")]
    Unreachable(String),
    /// What answers is not an Undertone relay that this version understands.
    #[error("what answers is not an Undertone relay: {0}")]
    NotARelay(String),
    /// What answers does not prove to be the relay. It was told nothing.
    #[error("what answers does not prove to be the relay: {0}")]
    Untrusted(String),
    /// What answers, at every address there is, is another relay than the one where the account is registered.
    #[error("what answers is another relay than the one where this account is registered")]
    OtherRelay,
}

impl ApiError {
    /// The code of a refusal.
    pub fn code(&self) -> Option<&ErrorCode> {
        match self {
            Self::Refused(problem) => Some(&problem.code),
            Self::Unreachable(_) | Self::NotARelay(_) | Self::Untrusted(_) | Self::OtherRelay => None,
        }
    }

    /// Whether it is the relay's no. A status of 500 or more is none, whatever the code, nor is 429: the same request is to be
    /// repeated.
    pub fn is_a_no(&self) -> bool {
        match self {
            Self::Refused(problem) => {
                let undecided = [ErrorCode::Internal, ErrorCode::Unavailable, ErrorCode::TooManyRequests];
                problem.status < 500 && problem.status != 429 && !undecided.contains(&problem.code)
            }
            Self::Unreachable(_) | Self::NotARelay(_) | Self::Untrusted(_) | Self::OtherRelay => false,
        }
    }

    /// Whether the same request may be answered otherwise at another address of the relay: nothing that is the relay's
    /// word on it was heard here.
    pub fn may_do_elsewhere(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::NotARelay(_) | Self::Untrusted(_) => true,
            Self::Refused(problem) => problem.code == ErrorCode::Unavailable || matches!(problem.status, 502..=504),
            Self::OtherRelay => false,
        }
    }
}

/// A relay, as requests and answers. Every method is one request; none retries.
///
/// Methods with a `token` speak for a device, the others for nobody.
pub trait RelayApi: Send + Sync + 'static {
    /// `GET /v1/relay`
    fn relay(&self) -> Answer<'_, Relay>;
    /// `POST /v1/accounts`
    fn register<'a>(&'a self, request: &'a RegisterRequest) -> Answer<'a, Account>;
    /// `POST /v1/accounts/{account}/recovery`
    fn recover<'a>(&'a self, account: AccountId, request: &'a RecoveryRequest) -> Answer<'a, Account>;
    /// `POST /v1/auth/challenge`
    fn challenge(&self) -> Answer<'_, Challenge>;
    /// `POST /v1/auth/login`
    fn login<'a>(&'a self, request: &'a LoginRequest) -> Answer<'a, Session>;

    /// `GET /v1/pipes/{pipe}/requests?number=`
    fn pipe_request(&self, pipe: PipeId, number: u64) -> Answer<'_, PipePart>;
    /// `POST /v1/pipes/{pipe}/requests?number=`
    fn put_pipe_request<'a>(&'a self, pipe: PipeId, number: u64, part: &'a PipePart) -> Answer<'a, ()>;
    /// `GET /v1/pipes/{pipe}/answers?number=`
    fn pipe_answer(&self, pipe: PipeId, number: u64) -> Answer<'_, PipePart>;

    /// `POST /v1/pipes/{pipe}/answers?number=`
    fn put_pipe_answer<'a>(&'a self, token: &'a Bytes, pipe: PipeId, number: u64, part: &'a PipePart)
    -> Answer<'a, ()>;
    /// `POST /v1/auth/logout`
    fn logout<'a>(&'a self, token: &'a Bytes) -> Answer<'a, ()>;
    /// `DELETE /v1/account`
    fn delete_account<'a>(&'a self, token: &'a Bytes) -> Answer<'a, ()>;
    /// `PUT /v1/account/devices`
    fn update_devices<'a>(&'a self, token: &'a Bytes, request: &'a UpdateDeviceListRequest) -> Answer<'a, Account>;
    /// `GET /v1/accounts/{account}`
    fn account<'a>(&'a self, token: &'a Bytes, account: AccountId) -> Answer<'a, Account>;
    /// `GET /v1/usernames/{username}`
    fn account_by_username<'a>(&'a self, token: &'a Bytes, username: &'a Username) -> Answer<'a, Account>;

    /// `GET /v1/keys`
    fn key_counts<'a>(&'a self, token: &'a Bytes) -> Answer<'a, KeyCounts>;
    /// `POST /v1/keys/key-packages`
    fn publish<'a>(&'a self, token: &'a Bytes, request: &'a PublishRequest) -> Answer<'a, KeyCounts>;
    /// `POST /v1/keys/reconcile`
    fn reconcile<'a>(&'a self, token: &'a Bytes, request: &'a ReconcileRequest) -> Answer<'a, ReconcileResponse>;
    /// `POST /v1/keys/claim`
    fn claim<'a>(&'a self, token: &'a Bytes, request: &'a ClaimRequest) -> Answer<'a, ClaimResponse>;
    /// `POST /v1/keys/prekeys`
    fn publish_prekeys<'a>(&'a self, token: &'a Bytes, request: &'a PublishPrekeysRequest) -> Answer<'a, KeyCounts>;
    /// `POST /v1/keys/prekeys/claim`
    fn claim_prekeys<'a>(
        &'a self,
        token: &'a Bytes,
        request: &'a ClaimPrekeysRequest,
    ) -> Answer<'a, ClaimPrekeysResponse>;
    /// `GET /v1/accounts/{account}/sealing-keys`
    fn sealing_keys<'a>(&'a self, token: &'a Bytes, account: AccountId) -> Answer<'a, SealingKeys>;

    /// `POST /v1/messages`
    fn send_direct<'a>(&'a self, token: &'a Bytes, request: &'a SendDirectRequest) -> Answer<'a, SendResponse>;

    /// `POST /v1/ephemeral`
    fn direct_ephemeral<'a>(&'a self, token: &'a Bytes, request: &'a DirectEphemeralRequest) -> Answer<'a, ()>;

    /// `GET /v1/groups`
    fn groups<'a>(&'a self, token: &'a Bytes) -> Answer<'a, GroupList>;
    /// `POST /v1/groups`
    fn create_group<'a>(&'a self, token: &'a Bytes, request: &'a CreateGroupRequest) -> Answer<'a, Group>;
    /// `GET /v1/groups/{group}`
    fn group<'a>(&'a self, token: &'a Bytes, group: GroupId) -> Answer<'a, Group>;
    /// `GET /v1/groups/{group}/members`
    fn group_members<'a>(&'a self, token: &'a Bytes, group: GroupId) -> Answer<'a, GroupMembers>;
    /// `GET /v1/groups/{group}/commits?after=`
    fn group_commits<'a>(&'a self, token: &'a Bytes, group: GroupId, after: u64) -> Answer<'a, GroupCommits>;
    /// `POST /v1/groups/{group}/commits`
    fn commit<'a>(&'a self, token: &'a Bytes, group: GroupId, request: &'a CommitRequest)
    -> Answer<'a, CommitResponse>;
    /// `POST /v1/groups/{group}/messages`
    fn send<'a>(&'a self, token: &'a Bytes, group: GroupId, request: &'a SendRequest) -> Answer<'a, SendResponse>;
    /// `POST /v1/groups/{group}/ephemeral`
    fn ephemeral<'a>(&'a self, token: &'a Bytes, group: GroupId, request: &'a GroupEphemeralRequest) -> Answer<'a, ()>;
    /// `POST /v1/groups/{group}/leave`
    fn leave<'a>(&'a self, token: &'a Bytes, group: GroupId, request: &'a LeaveRequest) -> Answer<'a, SendResponse>;
    /// `POST /v1/groups/{group}/rejoin`
    fn rejoin<'a>(&'a self, token: &'a Bytes, group: GroupId, request: &'a RejoinRequest) -> Answer<'a, SendResponse>;
    /// `GET /v1/groups/{group}/successor?at=`
    fn succession<'a>(&'a self, token: &'a Bytes, group: GroupId, at: u64) -> Answer<'a, Succession>;
    /// `POST /v1/groups/{group}/successor`
    fn succeed<'a>(&'a self, token: &'a Bytes, group: GroupId, request: &'a SuccessorRequest)
    -> Answer<'a, Succession>;

    /// `POST /v1/queue/ack`
    fn ack<'a>(&'a self, token: &'a Bytes, request: &'a AckRequest) -> Answer<'a, ()>;
    /// `POST /v1/queue/instance`
    fn instance<'a>(&'a self, token: &'a Bytes, request: &'a InstanceRequest) -> Answer<'a, InstanceResponse>;
    /// `GET /v1/stream?after=`, as a WebSocket; where none gets through, long polling does the same.
    fn open_stream<'a>(&'a self, token: &'a Bytes, after: u64) -> Answer<'a, Box<dyn FrameStream>>;

    /// The relay's time less this device's, in milliseconds, as the last answer told it; 0 before the first.
    fn clock_offset_ms(&self) -> i64;
}

/// An open stream. Dropping it closes it.
pub trait FrameStream: Send + 'static {
    /// The next frame. Heartbeats are answered inside; a relay silent for too long is [`ApiError::Unreachable`].
    /// Cancel safe: a frame is either returned or still to come.
    fn next(&mut self) -> Answer<'_, ServerFrame>;
    /// Sends a frame.
    fn send(&mut self, frame: ClientFrame) -> Answer<'_, ()>;
}
