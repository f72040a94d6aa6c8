//! A real relay over HTTP: one request, one answer, one row of the table below.
//!
//! It owns the connection pool and what an answer's status, media type and time header mean. It does not retry, follow
//! redirects or use a proxy: tokens go to the relay or nowhere. By what the relay is known, [`place`] says.
//!
//! Invariant: what is not wholly an answer of an Undertone relay is never taken for one. Reasons in errors name no
//! address and no id.

use std::{
    io, iter,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, Ordering::Relaxed},
    },
    time::Duration,
};

use reqwest::{
    Client, Method, RequestBuilder, Response, StatusCode,
    header::{ACCEPT, CONTENT_TYPE, HeaderMap},
    redirect, retry,
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::time::{Instant, timeout};
use undertone_wire::{
    Account, AccountId, AckRequest, Bytes, Challenge, ClaimPrekeysRequest, ClaimPrekeysResponse, ClaimRequest,
    ClaimResponse, CommitRequest, CommitResponse, CreateGroupRequest, DirectEphemeralRequest, Encoding, ErrorCode,
    FetchResponse, Group, GroupCommits, GroupEphemeralRequest, GroupId, GroupList, GroupMembers, InstanceRequest,
    InstanceResponse, KeyCounts, LeaveRequest, LoginRequest, PROBLEM_MEDIA_TYPE, PipeId, PipePart, Problem,
    PublishPrekeysRequest, PublishRequest, ReconcileRequest, ReconcileResponse, RecoveryRequest, RegisterRequest,
    RejoinRequest, Relay, SealingKeys, SendDirectRequest, SendRequest, SendResponse, Session, Succession,
    SuccessorRequest, TIME_HEADER, UpdateDeviceListRequest, Username, path, path::fill,
};

use crate::{
    Answer, ApiError, FrameStream, RelayApi,
    place::{self, Place},
    poll::Polling,
    ws,
};

/// The device's time, in milliseconds since the Unix epoch.
pub type NowMs = Arc<dyn Fn() -> u64 + Send + Sync>;

/// How long connecting may take, how long the relay may think, and how long it may pause within an answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long connecting may take where there are other addresses to try.
const PATIENCE_AMONG_MANY: Duration = Duration::from_secs(3);
/// Where WebSockets did not get through, streams that are opened within this time begin with polling.
const BLOCKED: Duration = Duration::from_secs(60);
/// The slowest network on which a large request still gets through.
const UPLOAD_BYTES_PER_S_MIN: u64 = 16 * 1024;
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;
const ACCEPTED: &str = "application/cbor, application/problem+json";

/// A relay at an address. Beside what [`RelayApi`] has, it is asked whether it can serve, and carries direct messages, which
/// the SDK's engine does not do yet.
#[derive(Clone)]
pub struct HttpApi {
    client: Client,
    base: String,
    now_ms: NowMs,
    clock_offset_ms: Arc<AtomicI64>,
    /// When it was last found that WebSockets do not get through.
    blocked: Arc<Mutex<Option<Instant>>>,
}

impl HttpApi {
    /// The relay at a place. Nothing is connected yet.
    ///
    /// # Errors
    /// [`ApiError::Unreachable`] if TLS cannot be set up on this machine.
    pub fn new(place: &Place, now_ms: NowMs) -> Result<Self, ApiError> {
        Self::connecting_within(PATIENCE, place, now_ms)
    }

    /// The same for an address that is one of several: if it takes long to connect there, another is tried.
    ///
    /// # Errors
    /// As for [`HttpApi::new`].
    pub fn among_many(place: &Place, now_ms: NowMs) -> Result<Self, ApiError> {
        Self::connecting_within(PATIENCE_AMONG_MANY, place, now_ms)
    }

    fn connecting_within(patience: Duration, place: &Place, now_ms: NowMs) -> Result<Self, ApiError> {
        let tls = place.tls().map_err(|error| ApiError::Unreachable(format!("TLS cannot be set up: {error}")))?;
        let client = Client::builder()
            .tls_backend_preconfigured(tls)
            .connect_timeout(patience)
            .redirect(redirect::Policy::none())
            .retry(retry::never())
            .no_proxy()
            .build()
            .map_err(unreachable)?;
        let base = place.base().as_str().trim_end_matches('/').to_owned();
        Ok(Self { client, base, now_ms, clock_offset_ms: Arc::default(), blocked: Arc::default() })
    }

    /// `GET /readyz`: whether the relay can serve.
    ///
    /// # Errors
    /// [`ApiError::Refused`] if it cannot.
    pub async fn ready(&self) -> Result<(), ApiError> {
        Reply::read(self.exchange(self.get(path::READY)).await?).await?.says(b"ready\n")
    }

    /// `GET /v1/queue?after=&wait=`: what is in the device's queue after a number, waited for so many seconds if nothing is.
    ///
    /// # Errors
    /// As for every request.
    pub async fn fetch(&self, token: &Bytes, after: u64, wait_s: u64) -> Result<FetchResponse, ApiError> {
        let request = self.get(&format!("{}?after={after}&wait={wait_s}", path::QUEUE)).bearer_auth(text(token));
        let response = self.exchange_waiting(request, Duration::from_secs(wait_s)).await?;
        Reply::read(response).await?.decode()
    }

    /// `GET /v1/stream?after=` as a WebSocket and by nothing else; see [`RelayApi::open_stream`].
    ///
    /// # Errors
    /// As for every request.
    pub async fn open_socket(&self, token: &Bytes, after: u64) -> Result<Box<dyn FrameStream>, ApiError> {
        let path = format!("{}?after={after}", path::STREAM);
        ws::open(self, self.get(&path).bearer_auth(text(token))).await
    }

    fn get(&self, path: &str) -> RequestBuilder {
        self.request(Method::GET, path)
    }

    fn post<T: Serialize>(&self, path: &str, body: &T) -> RequestBuilder {
        self.with_body(Method::POST, path, body)
    }

    fn put<T: Serialize>(&self, path: &str, body: &T) -> RequestBuilder {
        self.with_body(Method::PUT, path, body)
    }

    fn with_body<T: Serialize>(&self, method: Method, path: &str, body: &T) -> RequestBuilder {
        let request = self.request(method, path).header(CONTENT_TYPE, Encoding::Cbor.media_type());
        request.body(Encoding::Cbor.encode(body))
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}{path}", self.base)).header(ACCEPT, ACCEPTED)
    }

    /// Sends a request and takes the head of the answer, and the relay's time from it.
    pub(crate) async fn exchange(&self, request: RequestBuilder) -> Result<Response, ApiError> {
        self.exchange_waiting(request, Duration::ZERO).await
    }

    /// The same for a request that the relay is asked to answer only after so long.
    async fn exchange_waiting(&self, request: RequestBuilder, wait: Duration) -> Result<Response, ApiError> {
        let request = request.build().map_err(unreachable)?;
        let bytes = request.body().and_then(reqwest::Body::as_bytes).map_or(0, <[u8]>::len) as u64;
        let patience = PATIENCE + wait + Duration::from_secs(bytes / UPLOAD_BYTES_PER_S_MIN);
        let response = timeout(patience, self.client.execute(request)).await.map_err(|_| silent())?;
        let response = response.map_err(unreachable)?;
        self.note_time(response.headers());
        Ok(response)
    }

    fn are_sockets_blocked(&self) -> bool {
        lock(&self.blocked).is_some_and(|found| found.elapsed() < BLOCKED)
    }

    fn note_time(&self, headers: &HeaderMap) {
        let relay_ms = headers.get(TIME_HEADER).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        if let Some(offset_ms) = relay_ms.and_then(|relay_ms| relay_ms.checked_signed_diff((self.now_ms)())) {
            self.clock_offset_ms.store(offset_ms, Relaxed);
        }
    }

    /// A request whose answer has a body.
    fn ask<T: DeserializeOwned>(&self, request: RequestBuilder) -> Answer<'_, T> {
        Box::pin(async { Reply::read(self.exchange(request).await?).await?.decode() })
    }

    /// A request whose answer has none.
    fn tell(&self, request: RequestBuilder) -> Answer<'_, ()> {
        Box::pin(async { Reply::read(self.exchange(request).await?).await?.nothing() })
    }
}

impl RelayApi for HttpApi {
    fn relay(&self) -> Answer<'_, Relay> {
        self.ask(self.get(path::RELAY))
    }
    fn register<'a>(&'a self, request: &'a RegisterRequest) -> Answer<'a, Account> {
        self.ask(self.post(path::ACCOUNTS, request))
    }
    fn recover<'a>(&'a self, account: AccountId, request: &'a RecoveryRequest) -> Answer<'a, Account> {
        self.ask(self.post(&fill(path::RECOVERY, account), request))
    }
    fn challenge(&self) -> Answer<'_, Challenge> {
        self.ask(self.request(Method::POST, path::CHALLENGE))
    }
    fn login<'a>(&'a self, request: &'a LoginRequest) -> Answer<'a, Session> {
        self.ask(self.post(path::LOGIN, request))
    }

    fn pipe_request(&self, pipe: PipeId, number: u64) -> Answer<'_, PipePart> {
        self.ask(self.get(&part(path::PIPE_REQUESTS, pipe, number)))
    }
    fn put_pipe_request<'a>(&'a self, pipe: PipeId, number: u64, content: &'a PipePart) -> Answer<'a, ()> {
        self.tell(self.post(&part(path::PIPE_REQUESTS, pipe, number), content))
    }
    fn pipe_answer(&self, pipe: PipeId, number: u64) -> Answer<'_, PipePart> {
        self.ask(self.get(&part(path::PIPE_ANSWERS, pipe, number)))
    }

    fn put_pipe_answer<'a>(
        &'a self,
        token: &'a Bytes,
        pipe: PipeId,
        number: u64,
        content: &'a PipePart,
    ) -> Answer<'a, ()> {
        self.tell(self.post(&part(path::PIPE_ANSWERS, pipe, number), content).bearer_auth(text(token)))
    }
    fn logout<'a>(&'a self, token: &'a Bytes) -> Answer<'a, ()> {
        self.tell(self.request(Method::POST, path::LOGOUT).bearer_auth(text(token)))
    }
    fn delete_account<'a>(&'a self, token: &'a Bytes) -> Answer<'a, ()> {
        self.tell(self.request(Method::DELETE, path::OWN_ACCOUNT).bearer_auth(text(token)))
    }
    fn update_devices<'a>(&'a self, token: &'a Bytes, request: &'a UpdateDeviceListRequest) -> Answer<'a, Account> {
        self.ask(self.put(path::OWN_DEVICES, request).bearer_auth(text(token)))
    }
    fn account<'a>(&'a self, token: &'a Bytes, account: AccountId) -> Answer<'a, Account> {
        self.ask(self.get(&fill(path::ACCOUNT, account)).bearer_auth(text(token)))
    }
    fn account_by_username<'a>(&'a self, token: &'a Bytes, username: &'a Username) -> Answer<'a, Account> {
        self.ask(self.get(&fill(path::USERNAME, username)).bearer_auth(text(token)))
    }

    fn key_counts<'a>(&'a self, token: &'a Bytes) -> Answer<'a, KeyCounts> {
        self.ask(self.get(path::KEYS).bearer_auth(text(token)))
    }
    fn publish<'a>(&'a self, token: &'a Bytes, request: &'a PublishRequest) -> Answer<'a, KeyCounts> {
        self.ask(self.post(path::KEY_PACKAGES, request).bearer_auth(text(token)))
    }
    fn reconcile<'a>(&'a self, token: &'a Bytes, request: &'a ReconcileRequest) -> Answer<'a, ReconcileResponse> {
        self.ask(self.post(path::RECONCILE, request).bearer_auth(text(token)))
    }
    fn claim<'a>(&'a self, token: &'a Bytes, request: &'a ClaimRequest) -> Answer<'a, ClaimResponse> {
        self.ask(self.post(path::CLAIM, request).bearer_auth(text(token)))
    }
    fn publish_prekeys<'a>(&'a self, token: &'a Bytes, request: &'a PublishPrekeysRequest) -> Answer<'a, KeyCounts> {
        self.ask(self.post(path::PREKEYS, request).bearer_auth(text(token)))
    }
    fn claim_prekeys<'a>(
        &'a self,
        token: &'a Bytes,
        request: &'a ClaimPrekeysRequest,
    ) -> Answer<'a, ClaimPrekeysResponse> {
        self.ask(self.post(path::CLAIM_PREKEYS, request).bearer_auth(text(token)))
    }
    fn sealing_keys<'a>(&'a self, token: &'a Bytes, account: AccountId) -> Answer<'a, SealingKeys> {
        self.ask(self.get(&fill(path::SEALING_KEYS, account)).bearer_auth(text(token)))
    }

    fn send_direct<'a>(&'a self, token: &'a Bytes, request: &'a SendDirectRequest) -> Answer<'a, SendResponse> {
        self.ask(self.post(path::MESSAGES, request).bearer_auth(text(token)))
    }

    fn direct_ephemeral<'a>(&'a self, token: &'a Bytes, request: &'a DirectEphemeralRequest) -> Answer<'a, ()> {
        self.tell(self.post(path::EPHEMERAL, request).bearer_auth(text(token)))
    }

    fn groups<'a>(&'a self, token: &'a Bytes) -> Answer<'a, GroupList> {
        self.ask(self.get(path::GROUPS).bearer_auth(text(token)))
    }
    fn create_group<'a>(&'a self, token: &'a Bytes, request: &'a CreateGroupRequest) -> Answer<'a, Group> {
        self.ask(self.post(path::GROUPS, request).bearer_auth(text(token)))
    }
    fn group<'a>(&'a self, token: &'a Bytes, group: GroupId) -> Answer<'a, Group> {
        self.ask(self.get(&fill(path::GROUP, group)).bearer_auth(text(token)))
    }
    fn group_members<'a>(&'a self, token: &'a Bytes, group: GroupId) -> Answer<'a, GroupMembers> {
        self.ask(self.get(&fill(path::GROUP_MEMBERS, group)).bearer_auth(text(token)))
    }
    fn group_commits<'a>(&'a self, token: &'a Bytes, group: GroupId, after: u64) -> Answer<'a, GroupCommits> {
        let path = format!("{}?after={after}", fill(path::GROUP_COMMITS, group));
        self.ask(self.get(&path).bearer_auth(text(token)))
    }
    fn commit<'a>(
        &'a self,
        token: &'a Bytes,
        group: GroupId,
        request: &'a CommitRequest,
    ) -> Answer<'a, CommitResponse> {
        self.ask(self.post(&fill(path::GROUP_COMMITS, group), request).bearer_auth(text(token)))
    }
    fn send<'a>(&'a self, token: &'a Bytes, group: GroupId, request: &'a SendRequest) -> Answer<'a, SendResponse> {
        self.ask(self.post(&fill(path::GROUP_MESSAGES, group), request).bearer_auth(text(token)))
    }
    fn ephemeral<'a>(&'a self, token: &'a Bytes, group: GroupId, request: &'a GroupEphemeralRequest) -> Answer<'a, ()> {
        self.tell(self.post(&fill(path::GROUP_EPHEMERAL, group), request).bearer_auth(text(token)))
    }
    fn leave<'a>(&'a self, token: &'a Bytes, group: GroupId, request: &'a LeaveRequest) -> Answer<'a, SendResponse> {
        self.ask(self.post(&fill(path::GROUP_LEAVE, group), request).bearer_auth(text(token)))
    }
    fn rejoin<'a>(&'a self, token: &'a Bytes, group: GroupId, request: &'a RejoinRequest) -> Answer<'a, SendResponse> {
        self.ask(self.post(&fill(path::GROUP_REJOIN, group), request).bearer_auth(text(token)))
    }
    fn succession<'a>(&'a self, token: &'a Bytes, group: GroupId, at: u64) -> Answer<'a, Succession> {
        let path = format!("{}?at={at}", fill(path::GROUP_SUCCESSOR, group));
        self.ask(self.get(&path).bearer_auth(text(token)))
    }
    fn succeed<'a>(
        &'a self,
        token: &'a Bytes,
        group: GroupId,
        request: &'a SuccessorRequest,
    ) -> Answer<'a, Succession> {
        self.ask(self.post(&fill(path::GROUP_SUCCESSOR, group), request).bearer_auth(text(token)))
    }

    fn ack<'a>(&'a self, token: &'a Bytes, request: &'a AckRequest) -> Answer<'a, ()> {
        self.tell(self.post(path::ACK, request).bearer_auth(text(token)))
    }
    fn instance<'a>(&'a self, token: &'a Bytes, request: &'a InstanceRequest) -> Answer<'a, InstanceResponse> {
        self.ask(self.post(path::INSTANCE, request).bearer_auth(text(token)))
    }
    fn open_stream<'a>(&'a self, token: &'a Bytes, after: u64) -> Answer<'a, Box<dyn FrameStream>> {
        Box::pin(async move {
            let failed = match self.are_sockets_blocked() {
                false => match self.open_socket(token, after).await {
                    Err(error) if may_be_blocked(&error) => Some(error),
                    answer => return answer,
                },
                true => None,
            };
            match Polling::open(self.clone(), token.clone(), after).await {
                Ok(stream) => {
                    if failed.is_some() {
                        *lock(&self.blocked) = Some(Instant::now());
                    }
                    Ok(Box::new(stream) as Box<dyn FrameStream>)
                }
                Err(refused @ ApiError::Refused(_)) => Err(refused),
                Err(error) => Err(failed.unwrap_or(error)),
            }
        })
    }

    fn clock_offset_ms(&self) -> i64 {
        self.clock_offset_ms.load(Relaxed)
    }
}

/// Whether something before the relay may have kept a WebSocket from being opened. The relay itself refuses by other codes;
/// `malformed` it says if the request for one has lost its headers on the way.
fn may_be_blocked(error: &ApiError) -> bool {
    match error {
        ApiError::Refused(problem) => problem.code == ErrorCode::Malformed,
        error => error.may_do_elsewhere(),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The path of a part of a pipe.
fn part(path: &str, pipe: PipeId, number: u64) -> String {
    format!("{}?number={number}", fill(path, pipe))
}

/// A token as it stands in `Authorization`: the text form that bytes have in JSON, without its quotes.
fn text(token: &Bytes) -> String {
    String::from_utf8_lossy(&Encoding::Json.encode(token)).trim_matches('"').to_owned()
}

/// A whole answer.
pub(crate) struct Reply {
    status: StatusCode,
    encoding: Option<Encoding>,
    body: Vec<u8>,
}

impl Reply {
    pub(crate) async fn read(mut response: Response) -> Result<Self, ApiError> {
        let (status, encoding) = (response.status(), encoding(response.headers()));
        let mut body = Vec::new();
        while let Some(chunk) = timeout(PATIENCE, response.chunk()).await.map_err(|_| silent())?.map_err(unreachable)? {
            if body.len() + chunk.len() > ANSWER_BYTES_MAX {
                return Err(ApiError::NotARelay("the answer has more than 16 MiB".into()));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Self { status, encoding, body })
    }

    fn decode<T: DeserializeOwned>(self) -> Result<T, ApiError> {
        match self.encoding {
            Some(encoding) if self.status.is_success() => {
                encoding.decode(&self.body).map_err(|_| ApiError::NotARelay("the answer cannot be understood".into()))
            }
            _ => Err(self.refusal()),
        }
    }

    fn says(self, text: &[u8]) -> Result<(), ApiError> {
        if self.status.is_success() && self.body == text { Ok(()) } else { Err(self.refusal()) }
    }

    fn nothing(self) -> Result<(), ApiError> {
        if self.status.is_success() && self.body.is_empty() { Ok(()) } else { Err(self.refusal()) }
    }

    /// What an answer says that is not the one hoped for.
    pub(crate) fn refusal(self) -> ApiError {
        let failed = self.status.is_client_error() || self.status.is_server_error();
        let problem = self.encoding.filter(|_| failed).and_then(|encoding| encoding.decode::<Problem>(&self.body).ok());
        match (problem, self.status.as_u16()) {
            // The one in the body is for people to read (RFC 9457, section 3.1.2).
            (Some(problem), status) => ApiError::Refused(Box::new(Problem { status, ..problem })),
            (None, status @ 502..=504) => ApiError::Unreachable(format!("something before it answers {status}")),
            (None, status) => ApiError::NotARelay(format!("status {status} with an unknown body")),
        }
    }
}

fn encoding(headers: &HeaderMap) -> Option<Encoding> {
    let media_type = headers.get(CONTENT_TYPE)?.to_str().ok()?;
    let essence = media_type.split(';').next().unwrap_or_default().trim();
    let problem = essence.eq_ignore_ascii_case(PROBLEM_MEDIA_TYPE).then_some(Encoding::Json);
    problem.or_else(|| Encoding::from_media_type(essence))
}

fn silent() -> ApiError {
    ApiError::Unreachable("no answer in time".into())
}

/// The kind of a failure; its text might hold an address.
pub(crate) fn unreachable(error: reqwest::Error) -> ApiError {
    if error.is_timeout() {
        return silent();
    }
    if let Some(why) = causes(&error).find_map(|cause| place::distrust(cause.downcast_ref()?)) {
        return ApiError::Untrusted(why.to_owned());
    }
    let kind = causes(&error).find_map(|error| error.downcast_ref::<io::Error>()).map(io::Error::kind);
    let what = if error.is_connect() { "no connection" } else { "the connection broke" };
    ApiError::Unreachable(kind.map_or_else(|| what.to_owned(), |kind| format!("{what}: {kind}")))
}

/// What an error came from, and that from, down to the first. An I/O error's own cause is what it wraps.
fn causes<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    iter::successors(error.source(), |&error| match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        Some(wrapped) => Some(wrapped),
        None => error.source(),
    })
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
        task::JoinHandle,
    };
    use undertone_wire::ErrorCode;

    use super::*;

    const NOW_MS: u64 = 1_000_000;

    /// A relay that answers one request with `answer`, byte for byte, and closes. The handle gives the request.
    async fn relay_answering(answer: Vec<u8>) -> (HttpApi, JoinHandle<Vec<u8>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = Place::parse(&format!("http://{}/", listener.local_addr().unwrap())).unwrap();
        let served = tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            let (mut request, mut buffer) = (Vec::new(), [0; 4096]);
            while !whole(&request) {
                let read = socket.read(&mut buffer).await.unwrap();
                assert_ne!(read, 0, "the request ended too early");
                request.extend_from_slice(&buffer[..read]);
            }
            // A client that refuses an answer hangs up in the middle of it.
            let _ = socket.write_all(&answer).await;
            let _ = socket.shutdown().await;
            request
        });
        (HttpApi::new(&base, Arc::new(|| NOW_MS)).unwrap(), served)
    }

    fn whole(request: &[u8]) -> bool {
        let Some(head) = request.windows(4).position(|window| window == b"\r\n\r\n") else { return false };
        let text = String::from_utf8_lossy(&request[..head]).to_lowercase();
        let length = text.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
        request.len() == head + 4 + length.unwrap_or(0)
    }

    fn answer(status: u16, media_type: &str, body: &[u8]) -> Vec<u8> {
        let head = format!(
            "HTTP/1.1 {status} X\r\ncontent-type: {media_type}\r\nundertone-time: {}\r\ncontent-length: {}\r\n\r\n",
            NOW_MS + 250,
            body.len()
        );
        [head.as_bytes(), body].concat()
    }

    async fn challenge(answer: Vec<u8>) -> Result<Challenge, ApiError> {
        relay_answering(answer).await.0.challenge().await
    }

    #[tokio::test]
    async fn a_request_speaks_cbor_with_its_token_and_learns_the_relays_time() {
        let counts = KeyCounts::default();
        let (api, served) = relay_answering(answer(200, "application/cbor", &Encoding::Cbor.encode(&counts))).await;
        assert_eq!(api.clock_offset_ms(), 0);
        let account_id = AccountId::from_identity_key(&undertone_wire::PublicKey::from([1; 32]));
        let request = ClaimRequest { account_id, suite: 3 };
        let answer = api.ask::<KeyCounts>(api.post(path::CLAIM, &request).bearer_auth(text(&vec![0xFB, 0xFF].into())));
        assert_eq!(answer.await.unwrap(), counts);
        assert_eq!(api.clock_offset_ms(), 250);

        let sent = served.await.unwrap();
        let head = String::from_utf8_lossy(&sent).to_string();
        assert!(head.starts_with("POST /v1/keys/claim HTTP/1.1\r\n"), "{head}");
        for line in ["authorization: Bearer -_8", "content-type: application/cbor", &format!("accept: {ACCEPTED}")] {
            assert!(head.contains(&format!("{line}\r\n")), "{line} is not in {head}");
        }
        assert!(sent.ends_with(&Encoding::Cbor.encode(&request)));
    }

    #[tokio::test]
    async fn a_base_address_may_have_a_path() {
        let (api, served) = relay_answering(answer(200, "text/plain", b"")).await;
        let base = Place::parse(&format!("{}/below/", api.base)).unwrap();
        let api = HttpApi::new(&base, Arc::new(|| NOW_MS)).unwrap();
        let id = GroupId::from_random([1; 16]);
        let _ = api.group_commits(&vec![1].into(), id, 7).await;
        let sent = served.await.unwrap();
        assert!(sent.starts_with(format!("GET /below/v1/groups/{id}/commits?after=7 ").as_bytes()));
    }

    #[tokio::test]
    async fn a_refusal_is_decoded_in_either_encoding() {
        let problem = Problem { time_ms: Some(5), ..Problem::new(ErrorCode::ClockSkew) };
        for (media_type, encoding) in [
            ("application/problem+json; charset=utf-8", Encoding::Json),
            ("application/json", Encoding::Json),
            ("application/cbor", Encoding::Cbor),
        ] {
            match challenge(answer(400, media_type, &encoding.encode(&problem))).await {
                Err(ApiError::Refused(refused)) => assert_eq!(*refused, problem),
                other => panic!("{media_type}: {other:?}"),
            }
        }
    }

    #[tokio::test]
    async fn a_request_too_many_is_no_no() {
        for code in [ErrorCode::TooManyRequests, ErrorCode::Unknown("of_a_later_version".into())] {
            let problem = Problem { status: 429, ..Problem::new(code) };
            let refused =
                challenge(answer(429, PROBLEM_MEDIA_TYPE, &Encoding::Json.encode(&problem))).await.unwrap_err();
            assert!(!refused.is_a_no() && !refused.may_do_elsewhere(), "{refused:?}");
        }
    }

    #[tokio::test]
    async fn the_status_of_the_answer_counts_not_the_one_in_its_body() {
        let problem = Problem { status: 400, ..Problem::new(ErrorCode::Unknown("of_a_later_version".into())) };
        let refused = challenge(answer(507, PROBLEM_MEDIA_TYPE, &Encoding::Json.encode(&problem))).await.unwrap_err();
        assert!(!refused.is_a_no(), "{refused:?}");
    }

    #[tokio::test]
    async fn what_no_relay_answers_is_not_a_relay() {
        let problem = Encoding::Json.encode(&Problem::new(ErrorCode::NotFound));
        for answer in [
            answer(200, "application/cbor", b"garbage"),
            answer(200, "text/html", b"<p>Welcome to the airport</p>"),
            answer(200, "application/problem+json", &problem),
            answer(404, "text/html", b"not here"),
            answer(404, "application/problem+json", b"{}"),
            answer(500, "application/cbor", b""),
            answer(302, "application/problem+json", &problem),
        ] {
            let text = String::from_utf8_lossy(&answer).to_string();
            assert!(matches!(challenge(answer).await, Err(ApiError::NotARelay(_))), "{text}");
        }
    }

    #[tokio::test]
    async fn an_answer_without_a_body_has_none() {
        let (api, _) = relay_answering(b"HTTP/1.1 204 X\r\n\r\n".to_vec()).await;
        assert!(api.logout(&vec![1].into()).await.is_ok());
        let (api, _) = relay_answering(answer(200, "text/html", b"<p>Pay first</p>")).await;
        assert!(matches!(api.logout(&vec![1].into()).await, Err(ApiError::NotARelay(_))));
    }

    #[tokio::test]
    async fn a_relay_is_ready_if_it_says_so_and_in_no_other_case() {
        let ready = async |answer: Vec<u8>| relay_answering(answer).await.0.ready().await;
        ready(answer(200, "text/plain; charset=utf-8", b"ready\n")).await.unwrap();
        let problem = Encoding::Json.encode(&Problem::new(ErrorCode::Unavailable));
        let refused = ready(answer(503, PROBLEM_MEDIA_TYPE, &problem)).await.unwrap_err();
        assert_eq!(refused.code(), Some(&ErrorCode::Unavailable));
        for other in [answer(200, "text/html", b"<p>Welcome</p>"), answer(200, "text/plain", b"ready")] {
            assert!(matches!(ready(other).await, Err(ApiError::NotARelay(_))));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_relay_that_is_asked_to_wait_may_take_that_long() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let place = Place::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
        let api = HttpApi::new(&place, Arc::new(|| NOW_MS)).unwrap();
        let start = Instant::now();
        assert!(matches!(api.fetch(&vec![1].into(), 0, 50).await, Err(ApiError::Unreachable(_))));
        assert_eq!(start.elapsed().as_secs(), 60, "what it was asked to wait, and what every answer may take");
    }

    #[tokio::test]
    async fn a_connection_that_breaks_is_unreachable_wherever_it_breaks() {
        for answer in [b"".as_slice(), b"HTTP/1.1 200 OK\r\nconte", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf"]
        {
            let result = challenge(answer.to_vec()).await;
            assert!(matches!(result, Err(ApiError::Unreachable(_))), "{answer:?} gives {result:?}");
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = Place::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
        drop(listener);
        let api = HttpApi::new(&base, Arc::new(|| NOW_MS)).unwrap();
        let Err(ApiError::Unreachable(reason)) = api.relay().await else { panic!("nobody listens there") };
        assert_eq!(reason, "no connection: connection refused");
    }

    #[tokio::test]
    async fn a_proxy_without_its_relay_is_unreachable_but_a_relay_that_says_so_refuses() {
        for status in [502, 503, 504] {
            let result = challenge(answer(status, "text/html", b"bad gateway")).await;
            assert!(matches!(result, Err(ApiError::Unreachable(_))), "{status} gives {result:?}");
        }
        let problem = Encoding::Json.encode(&Problem::new(ErrorCode::Unavailable));
        let refused = challenge(answer(503, PROBLEM_MEDIA_TYPE, &problem)).await.unwrap_err();
        assert_eq!(refused.code(), Some(&ErrorCode::Unavailable));
    }

    #[tokio::test]
    async fn an_endless_answer_is_refused() {
        let mut endless = b"HTTP/1.1 200 OK\r\ncontent-type: application/cbor\r\n\r\n".to_vec();
        endless.resize(endless.len() + ANSWER_BYTES_MAX + 1, 0);
        assert!(matches!(challenge(endless).await, Err(ApiError::NotARelay(reason)) if reason.contains("16 MiB")));
    }
}
