//! A device's stream over a WebSocket (RFC 6455): opening it, frames, and noticing that the relay is gone.
//!
//! The handshake goes through [`HttpApi`], so that a refusal is read whole and means the same as everywhere; the frames
//! are tungstenite's. What frames mean is not known here.
//!
//! Invariant: what must outlive a cancelled [`FrameStream::next`] is in the [`Socket`], never in the future.

use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use reqwest::{
    RequestBuilder, Response, StatusCode,
    header::{
        CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
    },
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, sleep_until, timeout, timeout_at},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        self, Message,
        handshake::{client::generate_key, derive_accept_key},
        protocol::{Role, WebSocketConfig},
    },
};
use undertone_wire::{ClientFrame, Encoding, ServerFrame, subprotocol};

use crate::{
    Answer, ApiError, FrameStream,
    http::{self, HttpApi, Reply},
};

/// A relay not heard for this long is asked whether it is there.
const IDLE: Duration = Duration::from_secs(10);
/// A relay that was asked answers within this time, or is gone: 30 s after it was last heard.
const GONE: Duration = Duration::from_secs(20);
/// How long the relay's first frame may take.
const GREETING: Duration = Duration::from_secs(10);
/// How long handing a frame to the network may take.
const SENDING: Duration = Duration::from_secs(10);
/// The largest frame of a relay has a commit or a Welcome; this leaves room for limits set higher.
const FRAME_BYTES_MAX: usize = 5 * 1024 * 1024;

/// Opens the stream that `request` asks for.
pub(crate) async fn open(api: &HttpApi, request: RequestBuilder) -> Result<Box<dyn FrameStream>, ApiError> {
    let key = generate_key();
    let request = request
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, "websocket")
        .header(SEC_WEBSOCKET_VERSION, "13")
        .header(SEC_WEBSOCKET_KEY, &key)
        .header(SEC_WEBSOCKET_PROTOCOL, subprotocol(Encoding::Cbor));
    let response = api.exchange(request).await?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(Reply::read(response).await?.refusal());
    }
    check_agreement(&response, &key)?;
    let mut socket = Socket::new(response.upgrade().await.map_err(http::unreachable)?).await;
    // The relay speaks first. What is between may have let the answer through, and nothing after it.
    let greeted = timeout(GREETING, socket.next_frame()).await;
    socket.greeting = Some(greeted.map_err(|_| ApiError::Unreachable("it says nothing on the stream".into()))??);
    Ok(Box::new(socket))
}

fn check_agreement(response: &Response, key: &str) -> Result<(), ApiError> {
    let is =
        |name, value: &str| response.headers().get(name).is_some_and(|header| header.as_bytes() == value.as_bytes());
    if !is(SEC_WEBSOCKET_ACCEPT, &derive_accept_key(key.as_bytes())) {
        return Err(ApiError::NotARelay("it does not accept WebSockets as RFC 6455 says".into()));
    }
    if !is(SEC_WEBSOCKET_PROTOCOL, subprotocol(Encoding::Cbor)) {
        return Err(ApiError::NotARelay("its streams speak another protocol".into()));
    }
    Ok(())
}

/// An open WebSocket over `S`.
struct Socket<S> {
    frames: WebSocketStream<S>,
    relay: LastSign,
    /// What was read when it was opened.
    greeting: Option<ServerFrame>,
}

/// The last sign of the relay.
#[derive(Clone, Copy)]
enum LastSign {
    /// It was heard then.
    Heard(Instant),
    /// It was asked then, and has not been heard since.
    Asked(Instant),
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Socket<S> {
    async fn new(transport: S) -> Self {
        let config = WebSocketConfig::default()
            .read_buffer_size(16 * 1024)
            .write_buffer_size(0)
            .max_write_buffer_size(64 * 1024)
            .max_message_size(Some(FRAME_BYTES_MAX))
            .max_frame_size(Some(FRAME_BYTES_MAX));
        let frames = WebSocketStream::from_raw_socket(transport, Role::Client, Some(config)).await;
        Self { frames, relay: LastSign::Heard(Instant::now()), greeting: None }
    }

    async fn next_frame(&mut self) -> Result<ServerFrame, ApiError> {
        if let Some(greeting) = self.greeting.take() {
            return Ok(greeting);
        }
        loop {
            let limit = match self.relay {
                LastSign::Heard(at) => at + IDLE,
                LastSign::Asked(at) => at + GONE,
            };
            // What has arrived is taken before time is looked at: silence counts only while someone listens. Reading
            // also sends the pongs that are due.
            tokio::select! {
                biased;
                message = self.frames.next() => {
                    self.relay = LastSign::Heard(Instant::now());
                    if let Some(frame) = frame(message)? {
                        return Ok(frame);
                    }
                }
                () = sleep_until(limit) => self.ask().await?,
            }
        }
    }

    /// Asks an idle relay whether it is there, once; one that did not answer is gone.
    async fn ask(&mut self) -> Result<(), ApiError> {
        if let LastSign::Asked(_) = self.relay {
            return Err(ApiError::Unreachable("it has been silent for too long".into()));
        }
        let now = Instant::now();
        self.relay = LastSign::Asked(now);
        let ping = Message::Ping(tungstenite::Bytes::new());
        timeout_at(now + GONE, self.frames.send(ping)).await.map_err(|_| stuck())?.map_err(broken)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> FrameStream for Socket<S> {
    fn next(&mut self) -> Answer<'_, ServerFrame> {
        Box::pin(self.next_frame())
    }

    fn send(&mut self, frame: ClientFrame) -> Answer<'_, ()> {
        Box::pin(async move {
            let message = Message::Binary(Encoding::Cbor.encode(&frame).into());
            timeout(SENDING, self.frames.send(message)).await.map_err(|_| stuck())?.map_err(broken)
        })
    }
}

/// The frame in a message, if it is not a heartbeat.
fn frame(message: Option<tungstenite::Result<Message>>) -> Result<Option<ServerFrame>, ApiError> {
    match message {
        None | Some(Ok(Message::Close(_))) => Err(ApiError::Unreachable("it closed the stream".into())),
        Some(Err(error)) => Err(broken(error)),
        Some(Ok(Message::Binary(bytes))) => match Encoding::Cbor.decode(&bytes) {
            Ok(frame) => Ok(Some(frame)),
            Err(_) => Err(ApiError::NotARelay("a frame cannot be understood".into())),
        },
        Some(Ok(Message::Text(_))) => Err(ApiError::NotARelay("a frame is text where CBOR was agreed on".into())),
        Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => Ok(None),
    }
}

fn stuck() -> ApiError {
    ApiError::Unreachable("the network takes no more".into())
}

fn broken(error: tungstenite::Error) -> ApiError {
    match error {
        tungstenite::Error::Capacity(_) => ApiError::NotARelay("a frame has more than 5 MiB".into()),
        tungstenite::Error::Io(error) => ApiError::Unreachable(format!("the stream broke: {}", error.kind())),
        _ => ApiError::Unreachable("the stream broke".into()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures_util::FutureExt as _;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex},
        net::{TcpListener, TcpStream},
        task::JoinHandle,
        time::advance,
    };
    use undertone_wire::{Bytes, ErrorCode, Problem};

    use super::*;
    use crate::{Place, RelayApi as _};

    type Relay = WebSocketStream<DuplexStream>;

    async fn connected() -> (Socket<DuplexStream>, Relay) {
        let (device, relay) = duplex(64 * 1024);
        (Socket::new(device).await, WebSocketStream::from_raw_socket(relay, Role::Server, None).await)
    }

    fn caught_up(next_seq: u64) -> (ServerFrame, Message) {
        let frame = ServerFrame::CaughtUp { next_seq };
        let message = Message::Binary(Encoding::Cbor.encode(&frame).into());
        (frame, message)
    }

    async fn heard_by(relay: &mut Relay) -> Message {
        relay.next().await.unwrap().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn frames_go_both_ways() {
        let (mut socket, mut relay) = connected().await;
        let (frame, message) = caught_up(1);
        relay.send(message).await.unwrap();
        assert_eq!(socket.next().await.unwrap(), frame);
        let ack = ClientFrame::Ack { up_to: 9 };
        socket.send(ack.clone()).await.unwrap();
        assert_eq!(heard_by(&mut relay).await, Message::Binary(Encoding::Cbor.encode(&ack).into()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_cancelled_next_loses_nothing() {
        let (device, mut wire) = duplex(64 * 1024);
        let mut socket = Socket::new(device).await;
        let (frame, message) = caught_up(77);
        // The frame comes byte by byte, and the future is dropped after each.
        let Message::Binary(payload) = message else { panic!() };
        let bytes = [&[0x82, u8::try_from(payload.len()).unwrap()], payload.as_ref()].concat();
        let (last, first) = bytes.split_last().unwrap();
        for byte in first {
            wire.write_all(&[*byte]).await.unwrap();
            assert!(socket.next().now_or_never().is_none());
        }
        wire.write_all(&[*last]).await.unwrap();
        assert_eq!(socket.next().await.unwrap(), frame);
    }

    #[tokio::test(start_paused = true)]
    async fn pings_are_answered_by_reading() {
        let (mut socket, mut relay) = connected().await;
        relay.send(Message::Ping(vec![1, 2].into())).await.unwrap();
        assert!(socket.next().now_or_never().is_none());
        assert_eq!(heard_by(&mut relay).await, Message::Pong(vec![1, 2].into()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_relay_silent_for_half_a_minute_is_asked_once_and_then_unreachable() {
        let (mut socket, mut relay) = connected().await;
        let start = Instant::now();
        assert!(matches!(socket.next().await, Err(ApiError::Unreachable(_))));
        assert_eq!(start.elapsed(), Duration::from_secs(30));
        assert!(matches!(heard_by(&mut relay).await, Message::Ping(_)));
        drop(socket);
        assert!(relay.next().await.unwrap().is_err(), "nothing but the one ping was sent");
    }

    #[tokio::test(start_paused = true)]
    async fn cancelling_does_not_hide_silence() {
        let (mut socket, _relay) = connected().await;
        let start = Instant::now();
        while timeout(Duration::from_secs(1), socket.next()).await.is_err() {
            assert!(start.elapsed() < Duration::from_secs(40), "silence went unnoticed");
        }
        assert_eq!(start.elapsed().as_secs(), 30);
    }

    #[tokio::test(start_paused = true)]
    async fn a_heartbeat_of_either_side_keeps_a_quiet_stream() {
        let (mut socket, mut relay) = connected().await;
        // Reading is what answers pings, so this relay is alive and says nothing.
        let relay = tokio::spawn(async move { while relay.next().await.is_some_and(|message| message.is_ok()) {} });
        assert!(timeout(Duration::from_secs(300), socket.next()).await.is_err(), "there is no frame");
        relay.abort();
        let _ = relay.await;
        assert!(matches!(socket.next().await, Err(ApiError::Unreachable(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn time_in_which_nobody_listened_is_no_silence() {
        let (mut socket, mut relay) = connected().await;
        let (frame, message) = caught_up(1);
        advance(Duration::from_secs(3_600)).await;
        let (listened, ()) = tokio::join!(socket.next(), async {
            assert!(matches!(heard_by(&mut relay).await, Message::Ping(_)));
            relay.send(message).await.unwrap();
        });
        assert_eq!(listened.unwrap(), frame);
    }

    #[tokio::test(start_paused = true)]
    async fn a_network_that_takes_nothing_is_unreachable() {
        let (device, _unread) = duplex(8);
        let mut socket = Socket::new(device).await;
        assert!(matches!(socket.send(ClientFrame::Ack { up_to: 1 }).await, Err(ApiError::Unreachable(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn frames_of_another_protocol_or_size_are_not_a_relays() {
        for message in [Message::Binary(b"garbage".to_vec().into()), Message::Text("{}".into())] {
            let (mut socket, mut relay) = connected().await;
            relay.send(message).await.unwrap();
            assert!(matches!(socket.next().await, Err(ApiError::NotARelay(_))));
        }
        let (mut socket, mut relay) = connected().await;
        let large = Message::Binary(vec![0; FRAME_BYTES_MAX + 1].into());
        let (received, _) = tokio::join!(socket.next(), timeout(Duration::from_secs(1), relay.send(large)));
        assert!(matches!(received, Err(ApiError::NotARelay(reason)) if reason.contains("5 MiB")));
    }

    #[tokio::test(start_paused = true)]
    async fn a_closed_stream_is_unreachable_and_stays_so() {
        let (mut socket, mut relay) = connected().await;
        relay.close(None).await.unwrap();
        drop(relay);
        for _ in 0..2 {
            assert!(matches!(socket.next().await, Err(ApiError::Unreachable(_))));
        }
    }

    /// A relay on a real socket that answers one opening with what `serve` does.
    async fn listening<F>(serve: impl FnOnce(TcpStream) -> F + Send + 'static) -> (HttpApi, JoinHandle<F::Output>)
    where
        F: Future<Output: Send + 'static> + Send,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = Place::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
        let served = tokio::spawn(async move { serve(listener.accept().await.unwrap().0).await });
        (HttpApi::new(&base, Arc::new(|| 0)).unwrap(), served)
    }

    async fn read_head(socket: &mut TcpStream) -> String {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(socket.read_u8().await.unwrap());
        }
        String::from_utf8(head).unwrap()
    }

    fn accepting(head: &str, protocol: &str) -> String {
        let key = head.lines().find_map(|line| line.strip_prefix("sec-websocket-key: ")).unwrap();
        let accept = derive_accept_key(key.as_bytes());
        format!(
            "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
             sec-websocket-accept: {accept}\r\nsec-websocket-protocol: {protocol}\r\nundertone-time: 44\r\n\r\n"
        )
    }

    fn token() -> Bytes {
        vec![1, 2, 3].into()
    }

    #[tokio::test]
    async fn opening_asks_with_token_and_cursor_and_hears_hello() {
        let (api, served) = listening(|mut socket| async move {
            let head = read_head(&mut socket).await;
            socket.write_all(accepting(&head, "undertone.v1.cbor").as_bytes()).await.unwrap();
            let mut relay = WebSocketStream::from_raw_socket(socket, Role::Server, None).await;
            relay.send(caught_up(5).1).await.unwrap();
            (head, relay)
        })
        .await;
        let mut stream = api.open_stream(&token(), 41).await.unwrap();
        assert_eq!(stream.next().await.unwrap(), caught_up(5).0);
        assert_eq!(api.clock_offset_ms(), 44);
        let (head, mut relay) = served.await.unwrap();
        assert!(head.starts_with("GET /v1/stream?after=41 HTTP/1.1\r\n"), "{head}");
        assert!(head.contains("authorization: Bearer AQID\r\n"), "{head}");
        stream.send(ClientFrame::Ack { up_to: 4 }).await.unwrap();
        assert!(relay.next().await.unwrap().unwrap().is_binary());
        drop(stream);
        assert!(relay.next().await.unwrap().is_err(), "dropping the stream closes it");
    }

    #[tokio::test]
    async fn an_opening_is_refused_with_the_whole_problem_however_it_arrives() {
        let (api, _served) = listening(|mut socket| async move {
            read_head(&mut socket).await;
            let problem = Encoding::Json.encode(&Problem::new(ErrorCode::Unauthenticated));
            let head = format!(
                "HTTP/1.1 401 X\r\ncontent-type: application/problem+json\r\ncontent-length: {}\r\n\r\n",
                problem.len()
            );
            socket.write_all(head.as_bytes()).await.unwrap();
            for byte in problem {
                socket.write_all(&[byte]).await.unwrap();
                socket.flush().await.unwrap();
                tokio::task::yield_now().await;
            }
        })
        .await;
        let refused = api.open_stream(&token(), 0).await.err().unwrap();
        assert_eq!(refused.code(), Some(&ErrorCode::Unauthenticated));
    }

    #[tokio::test]
    async fn an_opening_that_agrees_on_something_else_is_not_a_relays() {
        type Change = fn(&str) -> String;
        let changes: [Change; 3] = [
            |head| accepting(head, "undertone.v1.json"),
            |head| accepting(&head.replace("sec-websocket-key: ", "sec-websocket-key: x"), "undertone.v1.cbor"),
            |_| "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".to_owned(),
        ];
        for change in changes {
            let (api, _served) = listening(move |mut socket| async move {
                let head = read_head(&mut socket).await;
                socket.write_all(change(&head).as_bytes()).await.unwrap();
                socket
            })
            .await;
            assert!(matches!(api.open_stream(&token(), 0).await, Err(ApiError::NotARelay(_))));
        }
    }
}
