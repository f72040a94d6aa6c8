//! A stream, from the device's side.

use futures_util::{SinkExt as _, StreamExt as _};
use http::header;
use tokio::net::TcpStream;
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream,
    tungstenite::{self, Message, client::IntoClientRequest as _},
};
use undertone_wire::{ClientFrame, Encoding, ServerFrame, path, subprotocol};

use crate::{Device, SOON, api::text_of};

/// An open stream.
pub struct Socket {
    inner: WebSocketStream<MaybeTlsStream<TcpStream>>,
    encoding: Encoding,
}

impl Device {
    /// Opens the stream and takes its hello.
    pub async fn stream(&self, after: u64) -> Socket {
        self.greeted(after).await.0
    }

    /// Opens the stream, and takes its hello, which is answered too.
    pub async fn greeted(&self, after: u64) -> (Socket, ServerFrame) {
        let mut socket = self.try_stream(after, Some(self.encoding)).await.unwrap();
        let hello = socket.next().await.expect("an open stream");
        assert!(matches!(hello, ServerFrame::Hello { .. }), "{hello:?}");
        (socket, hello)
    }

    /// Opens the stream, or fails to; answers with the socket before its hello.
    pub async fn try_stream(&self, after: u64, ask_for: Option<Encoding>) -> Result<Socket, tungstenite::Error> {
        let url = format!("{}{}?after={after}", self.url.replace("http://", "ws://"), path::STREAM);
        let mut request = url.into_client_request()?;
        if let Some(token) = &self.token {
            request.headers_mut().insert(header::AUTHORIZATION, format!("Bearer {}", text_of(token)).parse().unwrap());
        }
        if let Some(encoding) = ask_for {
            request.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, subprotocol(encoding).parse().unwrap());
        }
        let (inner, _) = tokio_tungstenite::connect_async(request).await?;
        Ok(Socket { inner, encoding: ask_for.unwrap_or(Encoding::Json) })
    }
}

impl Socket {
    /// The next frame; `None` when the stream has ended.
    ///
    /// # Panics
    /// If none comes in time.
    pub async fn next(&mut self) -> Option<ServerFrame> {
        tokio::time::timeout(SOON, self.next_ever()).await.expect("a frame in time")
    }

    /// The next frame, whenever it comes; `None` when the stream has ended. Cancel safe.
    ///
    /// # Panics
    /// If it is no frame.
    pub async fn next_ever(&mut self) -> Option<ServerFrame> {
        loop {
            match (self.inner.next().await?, self.encoding) {
                (Ok(Message::Text(text)), Encoding::Json) => {
                    return Some(self.encoding.decode(text.as_bytes()).unwrap());
                }
                (Ok(Message::Binary(bytes)), Encoding::Cbor) => return Some(self.encoding.decode(&bytes).unwrap()),
                (Ok(Message::Ping(_) | Message::Pong(_)), _) => {}
                (Ok(Message::Close(_)) | Err(_), _) => return None,
                (other, _) => panic!("{other:?}"),
            }
        }
    }

    /// The numbers of the deliveries up to the next `caught_up`, which must name this `next_seq`.
    pub async fn catches_up_to(&mut self, next_seq: u64) -> Vec<u64> {
        let mut seqs = Vec::new();
        loop {
            match self.next().await.expect("an open stream") {
                ServerFrame::Delivery { delivery } => seqs.push(delivery.seq),
                ServerFrame::CaughtUp { next_seq: told } if told == next_seq => return seqs,
                ServerFrame::CaughtUp { next_seq: told } => assert!(told < next_seq, "{told} is more than {next_seq}"),
                other => panic!("{other:?}"),
            }
        }
    }

    /// All frames up to the next `caught_up`, without it.
    pub async fn until_caught_up(&mut self) -> Vec<ServerFrame> {
        let mut frames = Vec::new();
        loop {
            match self.next().await.expect("an open stream") {
                ServerFrame::CaughtUp { .. } => return frames,
                frame => frames.push(frame),
            }
        }
    }

    /// Acks.
    pub async fn ack(&mut self, up_to: u64) {
        self.try_ack(up_to).await.unwrap();
    }

    /// Acks, if the stream still stands.
    ///
    /// # Errors
    /// If it does not.
    pub async fn try_ack(&mut self, up_to: u64) -> Result<(), tungstenite::Error> {
        let frame = self.encoding.encode(&ClientFrame::Ack { up_to });
        self.inner.send(self.message(frame)).await
    }

    fn message(&self, frame: Vec<u8>) -> Message {
        match self.encoding {
            Encoding::Json => Message::Text(String::from_utf8(frame).unwrap().into()),
            Encoding::Cbor => Message::Binary(frame.into()),
        }
    }

    /// Sends a message of any kind.
    pub async fn say(&mut self, message: Message) {
        self.inner.send(message).await.unwrap();
    }
}
