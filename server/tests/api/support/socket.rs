//! A stream, from the device's side.

use futures_util::{SinkExt as _, StreamExt as _};
use http::header;
use tokio::net::TcpStream;
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream,
    tungstenite::{self, Message, client::IntoClientRequest as _},
};
use undertone_wire::{ClientFrame, Encoding, ServerFrame, path, subprotocol};

use super::{Device, SOON, api::text_of};

pub(crate) struct Socket {
    inner: WebSocketStream<MaybeTlsStream<TcpStream>>,
    encoding: Encoding,
}

impl Device {
    /// Opens the stream and takes its hello.
    pub(crate) async fn stream(&self, after: u64) -> Socket {
        let mut socket = self.try_stream(after, Some(self.encoding)).await.unwrap();
        let hello = socket.next().await;
        assert!(matches!(hello, Some(ServerFrame::Hello { .. })), "{hello:?}");
        socket
    }

    pub(crate) async fn try_stream(&self, after: u64, ask_for: Option<Encoding>) -> Result<Socket, tungstenite::Error> {
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
    /// The next frame; `None` when the relay has closed the stream.
    pub(crate) async fn next(&mut self) -> Option<ServerFrame> {
        loop {
            let message = tokio::time::timeout(SOON, self.inner.next()).await.expect("a frame in time")?;
            match (message, self.encoding) {
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
    pub(crate) async fn catches_up_to(&mut self, next_seq: u64) -> Vec<u64> {
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

    pub(crate) async fn ack(&mut self, up_to: u64) {
        let frame = self.encoding.encode(&ClientFrame::Ack { up_to });
        self.say(match self.encoding {
            Encoding::Json => Message::Text(String::from_utf8(frame).unwrap().into()),
            Encoding::Cbor => Message::Binary(frame.into()),
        })
        .await;
    }

    pub(crate) async fn say(&mut self, message: Message) {
        self.inner.send(message).await.unwrap();
    }
}
