//! A sender that costs little: one connection kept alive, requests written whole, answers read no further than needed.

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use undertone_test_client::{Device, Message, text_of};
use undertone_wire::{Encoding, GroupId, path};

/// What stands for the ciphertext.
pub(crate) const PAYLOAD_BYTES: usize = 1_024;

/// Somebody who sends to a group as fast as it is answered.
pub(crate) struct Sender {
    connection: TcpStream,
    head: String,
    group: GroupId,
}

impl Sender {
    /// A device's, to a group that has seen `at` commits.
    pub(crate) async fn new(device: &Device, group: GroupId) -> Self {
        let address = device.api.url.trim_start_matches("http://");
        let connection = TcpStream::connect(address).await.unwrap();
        connection.set_nodelay(true).unwrap();
        let path = path::fill(path::GROUP_MESSAGES, group);
        let token = text_of(device.api.token.as_ref().unwrap());
        let cbor = Encoding::Cbor.media_type();
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {token}\r\nAccept: {cbor}\r\n\
             Content-Type: {cbor}\r\nContent-Length: "
        );
        Self { connection, head, group }
    }

    /// Sends one message, and waits for the yes.
    pub(crate) async fn send(&mut self, at: u64) {
        let message = Message::at(self.group, at).saying(&[7; PAYLOAD_BYTES]);
        let body = Encoding::Cbor.encode(&message.send_request());
        let mut request = format!("{}{}\r\n\r\n", self.head, body.len()).into_bytes();
        request.extend(body);
        self.connection.write_all(&request).await.unwrap();
        self.read_yes().await;
    }

    async fn read_yes(&mut self) {
        let (mut answer, mut chunk) = (Vec::new(), [0; 1_024]);
        loop {
            let read = self.connection.read(&mut chunk).await.unwrap();
            assert!(read > 0, "the relay closed the connection");
            answer.extend(&chunk[..read]);
            let Some(end) = answer.windows(4).position(|window| window == b"\r\n\r\n") else { continue };
            let head = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
            assert!(head.starts_with("http/1.1 200"), "{}", String::from_utf8_lossy(&answer));
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
            if answer.len() == end + 4 + length.trim().parse::<usize>().unwrap() {
                return;
            }
        }
    }
}
