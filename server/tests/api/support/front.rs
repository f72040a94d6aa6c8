//! Something in front of a relay, as a proxy is: it passes on what goes both ways, until a request comes that it is to fail.

use std::future::pending;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
};

use super::TestRelay;

/// How it fails.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Fault {
    /// The request goes no further, and nobody is told.
    Holds,
    /// The request is passed on, and the connection closed when the answer comes.
    LosesTheAnswer,
    /// The request goes no further, all connections are closed and none is taken any more.
    Dies,
}

/// Stands in front of a relay, and fails whatever begins with `request`. Answers where it is.
pub(crate) async fn in_front_of(relay: &TestRelay, request: &'static str, fault: Fault) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let address = relay.url.trim_start_matches("http://").to_owned();
    let dead = watch::Sender::new(false);
    let mut dies = dead.subscribe();
    tokio::spawn(async move {
        loop {
            let client = tokio::select! {
                () = death(&mut dies) => return,
                accepted = listener.accept() => accepted.unwrap().0,
            };
            let relay = TcpStream::connect(&address).await.unwrap();
            tokio::spawn(pass(client, relay, request, fault, dead.clone()));
        }
    });
    url
}

async fn death(dies: &mut watch::Receiver<bool>) {
    let _ = dies.wait_for(|dead| *dead).await;
}

async fn pass(mut client: TcpStream, mut relay: TcpStream, request: &str, fault: Fault, dead: watch::Sender<bool>) {
    let (mut asked, mut answered) = ([0; 16 * 1024], [0; 16 * 1024]);
    let (mut dies, mut loses) = (dead.subscribe(), false);
    loop {
        let passed = tokio::select! {
            () = death(&mut dies) => return,
            read = client.read(&mut asked) => {
                let bytes = &asked[..read.unwrap_or(0)];
                match fault {
                    _ if bytes.is_empty() => return,
                    _ if !bytes.starts_with(request.as_bytes()) => {}
                    Fault::Holds => pending().await,
                    Fault::LosesTheAnswer => loses = true,
                    Fault::Dies => {
                        dead.send_replace(true);
                        return;
                    }
                }
                relay.write_all(bytes).await
            }
            read = relay.read(&mut answered) => {
                let bytes = &answered[..read.unwrap_or(0)];
                if bytes.is_empty() || loses {
                    return;
                }
                client.write_all(bytes).await
            }
        };
        if passed.is_err() {
            return;
        }
    }
}
