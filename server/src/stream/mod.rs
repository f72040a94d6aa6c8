//! The stream: a WebSocket (RFC 6455) over which a device gets its queue as it fills. Sockets here, rules in [`session`].
//!
//! One frame is one message: text with JSON, binary with CBOR, by the subprotocol agreed on.
//!
//! Invariant: a stream holds one page and one write buffer in memory, however slow its reader; one that takes too long
//! is cut and resumes from the store.

mod session;

use std::{collections::VecDeque, time::Duration};

use axum::{
    Extension,
    extract::{
        State, WebSocketUpgrade,
        ws::{self, WebSocket, rejection::WebSocketUpgradeRejection},
    },
    response::Response,
};
use futures_util::SinkExt as _;
use serde::Deserialize;
use tokio::time::{Instant, MissedTickBehavior};
use undertone_wire::{ByeReason, Encoding, ErrorCode, Limits, Problem, ServerFrame, path, subprotocol};

use self::session::{Action, Input, Session};
use crate::{
    auth::Caller,
    connections::Slot,
    encoding::{Parameters, malformed},
    error::Error,
    kill,
    node::{Node, Stopping},
    queue::{self, PageSize},
    store::{
        StoreError, Tx,
        queue::{self as stored_queue, Cursor},
        relay::{self, Identity},
    },
    wake::Interest,
};

/// How often the relay pings.
const TICK: Duration = Duration::from_secs(20);

/// How long the device may take to close its side after a bye.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Buffers of a socket; tungstenite's own defaults are 128 KiB each.
const BUFFER_BYTES: usize = 8 * 1024;

/// What a stream reads from the store at a time.
const PAGE: PageSize = PageSize { entries_max: 64, bytes_max: 256 * 1024 };

/// Where to begin.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct StreamQuery {
    /// The last number that the caller has; the last it acked if absent.
    #[serde(default)]
    after: u64,
}

/// Opens the stream. An older stream of the same device is told `replaced`.
#[utoipa::path(get, path = path::STREAM, tag = "queue", params(StreamQuery),
    responses((status = 101, description = "Frames follow: ServerFrame from the relay, ClientFrame from the device"),
              (status = "default", body = Problem)))]
pub(crate) async fn stream(
    State(node): State<Node>,
    caller: Caller,
    Parameters(query): Parameters<StreamQuery>,
    Extension(slot): Extension<Slot>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Error> {
    let upgrade = upgrade.map_err(|_| malformed("this path is a WebSocket"))?;
    let (upgrade, encoding) = agree_on_encoding(upgrade)?;
    let stopping = node.stopping();
    if stopping.has_begun() {
        return Err(Error::refused(
            ErrorCode::Unavailable,
            "this node is stopping; connect again, to another if you can",
        ));
    }
    let interest = node.wake.register(caller.device);
    let now_ms = node.now_ms();
    let opened = node.db.write(move |tx| Box::pin(async move { open(tx, &caller, query.after, now_ms).await }));
    let (cursor, identity) = opened.await?;

    let (session, actions) = Session::open(&cursor, query.after, now_ms);
    let hello = hello(&node, &cursor, &identity);
    let frame_max = usize::try_from(node.limits.client_frame_bytes_max).unwrap_or(usize::MAX);
    let upgrade = upgrade
        .max_frame_size(frame_max)
        .max_message_size(frame_max)
        .read_buffer_size(BUFFER_BYTES)
        .write_buffer_size(BUFFER_BYTES)
        .max_write_buffer_size(write_bytes_max(&node.limits));
    Ok(upgrade.on_upgrade(move |socket| async move {
        let mut actions = VecDeque::from(actions);
        actions.push_front(Action::Send(hello));
        Stream { node, caller, socket, encoding, session, owed_ack: None }.run(actions, interest, stopping).await;
        drop(slot);
    }))
}

/// What a socket may have in its buffer: the buffer, and the largest frame in the larger encoding.
fn write_bytes_max(limits: &Limits) -> usize {
    let Limits { envelope_bytes_max, commit_bytes_max, welcome_bytes_max, welcome_secrets_bytes_max, .. } = *limits;
    let largest = [envelope_bytes_max, commit_bytes_max, welcome_bytes_max.saturating_add(welcome_secrets_bytes_max)];
    let largest = largest.into_iter().max().unwrap_or_default().saturating_mul(2);
    usize::try_from(largest).unwrap_or(usize::MAX).saturating_add(2 * BUFFER_BYTES)
}

/// The encoding of the first subprotocol that both speak; JSON if the device names none.
fn agree_on_encoding(upgrade: WebSocketUpgrade) -> Result<(WebSocketUpgrade, Encoding), Error> {
    if upgrade.requested_protocols().next().is_none() {
        return Ok((upgrade, Encoding::Json));
    }
    let upgrade = upgrade.protocols([Encoding::Cbor, Encoding::Json].map(subprotocol));
    let selected = upgrade.selected_protocol().and_then(|protocol| protocol.to_str().ok());
    let encoding = [Encoding::Cbor, Encoding::Json].into_iter().find(|each| selected == Some(subprotocol(*each)));
    let refused = || Error::refused(ErrorCode::NotAcceptable, "streams speak undertone.v1.cbor or undertone.v1.json");
    encoding.map(|encoding| (upgrade, encoding)).ok_or_else(refused)
}

async fn open(tx: &mut Tx, caller: &Caller, after: u64, now_ms: u64) -> Result<(Cursor, Identity), Error> {
    caller.still_holds(tx, now_ms).await?;
    queue::catch_up_with(tx, &caller.device, after).await?;
    stored_queue::next_stream(tx, &caller.device).await?;
    let cursor = stored_queue::cursor(tx, &caller.device).await?.ok_or_else(Error::unauthenticated)?;
    Ok((cursor, relay::identity(tx).await?))
}

fn hello(node: &Node, cursor: &Cursor, identity: &Identity) -> ServerFrame {
    ServerFrame::Hello {
        relay_id: identity.relay_id,
        incarnation: identity.incarnation,
        stream: cursor.stream,
        next_seq: cursor.next_seq,
        oldest_available: cursor.oldest.unwrap_or(cursor.next_seq),
        time_ms: node.now_ms(),
    }
}

/// A session with its socket.
struct Stream {
    node: Node,
    caller: Caller,
    socket: WebSocket,
    encoding: Encoding,
    session: Session,
    /// An ack that the store was too busy to take; it is tried again with the next tick.
    owed_ack: Option<u64>,
}

/// The socket is closed, or of no use any more.
struct Closed;

impl Stream {
    async fn run(mut self, mut actions: VecDeque<Action>, mut interest: Interest, mut stopping: Stopping) {
        let mut ticks = tokio::time::interval_at(Instant::now() + TICK, TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            if self.perform(&mut actions).await.is_err() {
                return;
            }
            // What the device said comes before the next page and before the look at how long it has been silent.
            let input = tokio::select! {
                biased;
                () = stopping.wait() => Input::Ended(ByeReason::Shutdown),
                message = self.socket.recv() => match self.heard(message) {
                    Ok(input) => input,
                    Err(Closed) => return,
                },
                () = std::future::ready(()), if !actions.is_empty() => continue,
                told = interest.woken_or_told() => match told {
                    None => Input::Woken,
                    Some(frame) => Input::Ephemeral(ServerFrame::clone(&frame)),
                },
                _ = ticks.tick() => {
                    actions.extend(self.owed_ack.take().map(|up_to| Action::Ack { up_to }));
                    Input::Tick
                }
            };
            actions.extend(self.session.step(input, self.node.now_ms()));
        }
    }

    /// Performs actions and what follows from them, but reads one page only: after it, it is the device's turn to speak.
    async fn perform(&mut self, actions: &mut VecDeque<Action>) -> Result<(), Closed> {
        let mut fetched = false;
        // For what is said at a time: a reader who takes frame after frame just in time is too slow as well.
        let mut due = self.due();
        while let Some(action) = actions.pop_front() {
            let input = match action {
                Action::Fetch { .. } if fetched => {
                    actions.push_front(action);
                    break;
                }
                Action::Fetch { after } => {
                    fetched = true;
                    let page = queue::page(&self.node, &self.caller, after, PAGE).await;
                    due = self.due();
                    page.map_or_else(|error| Input::Ended(bye_for(&error)), Input::Page)
                }
                Action::Ack { up_to } => {
                    match queue::take_ack(&self.node, self.caller, up_to, Some(self.session.stream())).await {
                        Ok(()) => continue,
                        Err(Error::Store(StoreError::Busy)) => {
                            self.owed_ack = self.owed_ack.max(Some(up_to));
                            continue;
                        }
                        Err(error) => Input::Ended(bye_for(&error)),
                    }
                }
                Action::Send(frame) => {
                    let message = self.message(&frame);
                    self.feed(message, due).await?;
                    continue;
                }
                Action::Ping => {
                    self.feed(ws::Message::Ping(Vec::new().into()), due).await?;
                    continue;
                }
                Action::Bye(reason) => {
                    self.bye(reason).await;
                    return Err(Closed);
                }
                Action::Cut => return Err(Closed),
            };
            actions.extend(self.session.step(input, self.node.now_ms()));
        }
        self.flush(due).await?;
        if fetched {
            kill::point("push", kill::BEFORE_ACK);
        }
        Ok(())
    }

    /// By when a reader must have taken what is said now.
    fn due(&self) -> Instant {
        Instant::now() + self.node.write_timeout
    }

    /// What a message from the device means.
    fn heard(&mut self, message: Option<Result<ws::Message, axum::Error>>) -> Result<Input, Closed> {
        let frame = match message {
            Some(Ok(ws::Message::Text(text))) if self.encoding == Encoding::Json => {
                Encoding::Json.decode(text.as_bytes())
            }
            Some(Ok(ws::Message::Binary(bytes))) if self.encoding == Encoding::Cbor => Encoding::Cbor.decode(&bytes),
            Some(Ok(ws::Message::Ping(_) | ws::Message::Pong(_))) => return Ok(Input::Heard),
            Some(Ok(ws::Message::Text(_) | ws::Message::Binary(_))) => {
                return Ok(Input::Ended(ByeReason::Malformed));
            }
            Some(Ok(ws::Message::Close(_)) | Err(_)) | None => return Err(Closed),
        };
        self.session.step(Input::Heard, self.node.now_ms());
        Ok(frame.map_or(Input::Ended(ByeReason::Malformed), Input::Frame))
    }

    fn message(&self, frame: &ServerFrame) -> ws::Message {
        let bytes = self.encoding.encode(frame);
        match self.encoding {
            Encoding::Cbor => ws::Message::Binary(bytes.into()),
            Encoding::Json => ws::Message::Text(String::from_utf8_lossy(&bytes).as_ref().into()),
        }
    }

    async fn feed(&mut self, message: ws::Message, due: Instant) -> Result<(), Closed> {
        by(due, self.socket.feed(message)).await
    }

    async fn flush(&mut self, due: Instant) -> Result<(), Closed> {
        by(due, self.socket.flush()).await
    }

    /// Says why the stream ends, and gives the device a moment to hear it: closing a socket with unread bytes in it
    /// would take back what was said.
    async fn bye(&mut self, reason: ByeReason) {
        let bye = self.message(&ServerFrame::Bye { reason });
        let said = async {
            let due = self.due();
            self.feed(bye, due).await?;
            self.feed(ws::Message::Close(None), due).await?;
            self.flush(due).await
        };
        if said.await.is_ok() {
            let closed = async { while let Some(Ok(_)) = self.socket.recv().await {} };
            // Whether it closed in time makes no difference any more.
            let _ = tokio::time::timeout(CLOSE_TIMEOUT, closed).await;
        }
    }
}

/// A write that must end in time: a reader who is too slow is cut.
async fn by(due: Instant, write: impl Future<Output = Result<(), axum::Error>>) -> Result<(), Closed> {
    match tokio::time::timeout_at(due, write).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) | Err(_) => Err(Closed),
    }
}

/// What a stream says when a request of its own would be answered with an error.
fn bye_for(error: &Error) -> ByeReason {
    match error {
        Error::Refused(ErrorCode::Unauthenticated, _) => ByeReason::Unauthenticated,
        Error::Refused(ErrorCode::Replaced, _) => ByeReason::Replaced,
        Error::Refused(..) => ByeReason::Malformed,
        _ => ByeReason::Internal,
    }
}
