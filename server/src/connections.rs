//! Connections: taken one by one, over TLS or not, served as HTTP/1.1, closed when they say nothing or the relay stops.
//!
//! Without TLS, only this machine and the trusted proxies are spoken to.
//!
//! Invariant: no more than `connections_max` are open at a time, streams included; others wait to be taken. One that has
//! not come to speak TLS, or not said what it wants, by the header timeout, at first or between requests, is closed.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Once},
    time::Duration,
};

use axum::{Router, extract::ConnectInfo};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tower_http::add_extension::AddExtension;

use crate::node::{Node, Stopping};

/// How long to wait after the system had no connection to give, for it may have none left.
const PAUSE: Duration = Duration::from_secs(1);

/// What is buffered of one connection; the headers of a request must fit.
const BUFFER_BYTES: usize = 64 * 1024;

/// A connection's slot among those that may be open. Whoever keeps the connection beyond a request keeps this too.
#[derive(Clone)]
pub(crate) struct Slot(#[expect(dead_code, reason = "held, not read")] Arc<OwnedSemaphorePermit>);

/// What answers the requests of a connection.
type Requests = AddExtension<AddExtension<Router, Slot>, ConnectInfo<SocketAddr>>;

/// Takes connections until `shutdown` ends. Those that are open then go on by themselves until their request is answered,
/// and hold up [`Node::stopped`].
pub(crate) async fn serve(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    router: Router,
    node: &Node,
    header_timeout: Duration,
    shutdown: impl Future<Output = ()>,
) {
    let max = usize::try_from(node.limits.connections_max).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
    let slots = Arc::new(Semaphore::new(max));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(header_timeout).max_buf_size(BUFFER_BYTES);
    tokio::pin!(shutdown);
    loop {
        let taken = tokio::select! {
            taken = next(&listener, &slots) => taken,
            () = &mut shutdown => return,
        };
        let Some((connection, peer, slot)) = taken else { return };
        if tls.is_none() && !may_speak_in_clear(node, peer) {
            continue;
        }
        let requests = AddExtension::new(AddExtension::new(router.clone(), slot.clone()), ConnectInfo(peer));
        let (http, tls, stopping) = (http.clone(), tls.clone(), node.stopping());
        tokio::spawn(async move {
            if connection.set_nodelay(true).is_err() {
                tracing::debug!("a connection does not take TCP_NODELAY");
            }
            match tls {
                None => converse(http, connection, requests, stopping, slot).await,
                Some(tls) => {
                    let Some(connection) = encrypted(&tls, connection, header_timeout, stopping.clone()).await else {
                        return tracing::debug!("a connection did not come to speak TLS");
                    };
                    converse(http, connection, requests, stopping, slot).await;
                }
            }
        });
    }
}

/// The next connection, once there is a slot for it. Cancel safe.
async fn next(listener: &TcpListener, slots: &Arc<Semaphore>) -> Option<(TcpStream, SocketAddr, Slot)> {
    let permit = Arc::clone(slots).acquire_owned().await.ok()?;
    loop {
        match listener.accept().await {
            Ok((connection, peer)) => return Some((connection, peer, Slot(Arc::new(permit)))),
            Err(error) if gone_already(&error) => {}
            Err(error) => {
                tracing::error!(kind = %error.kind(), "cannot take a connection");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Whether a connection may go on without TLS. That one may not is told once: it may be the proxy.
fn may_speak_in_clear(node: &Node, peer: SocketAddr) -> bool {
    static TOLD: Once = Once::new();
    let may = node.trusted_proxies.may_speak_in_clear(peer, node.listen);
    if !may {
        TOLD.call_once(|| {
            tracing::warn!(
                "a connection from an address that trusted_proxies does not name was closed, as all such will be"
            );
        });
    }
    may
}

/// Whether the connection, not the listener, is what failed.
fn gone_already(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// A connection once both sides have agreed on how to encrypt it, unless that fails, takes too long or the relay stops.
async fn encrypted(
    tls: &TlsAcceptor,
    connection: TcpStream,
    patience: Duration,
    mut stopping: Stopping,
) -> Option<TlsStream<TcpStream>> {
    tokio::select! {
        agreed = timeout(patience, tls.accept(connection)) => agreed.ok()?.ok(),
        () = stopping.wait() => None,
    }
}

/// Answers a connection's requests; when the relay stops, the one in flight and no more.
async fn converse<C: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    http: http1::Builder,
    connection: C,
    requests: Requests,
    mut stopping: Stopping,
    _slot: Slot,
) {
    let serving = http.serve_connection(TokioIo::new(connection), TowerToHyperService::new(requests)).with_upgrades();
    tokio::pin!(serving);
    let ended = tokio::select! {
        ended = &mut serving => ended,
        () = stopping.wait() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if ended.is_err() {
        tracing::debug!("a connection broke off");
    }
}
