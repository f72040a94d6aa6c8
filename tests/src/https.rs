//! Connections by hand: from a chosen address, with what is said written out, so that a test sees who answers and with what.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    sync::Arc,
};

use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::PATIENCE;

/// A connection from this address to another.
///
/// # Errors
/// If there is none.
pub async fn connect(from: Ipv4Addr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((from, 0).into())?;
    socket.connect(to).await
}

/// The same over TLS, with whoever has a certificate for this name that an authority of this file signed.
///
/// # Errors
/// If there is none.
///
/// # Panics
/// If the file has no certificates.
pub async fn connect_tls(
    from: Ipv4Addr,
    to: SocketAddr,
    name: &str,
    authorities: &Path,
) -> io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(authorities).expect("the file can be read") {
        roots.add(certificate.expect("it has certificates")).expect("they are authorities'");
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let config = config.with_safe_default_protocol_versions().expect("ring speaks TLS 1.2 and 1.3");
    let config = config.with_root_certificates(roots).with_no_client_auth();
    let name = ServerName::try_from(name.to_owned()).expect("it is a name");
    TlsConnector::from(Arc::new(config)).connect(name, connect(from, to).await?).await
}

/// The certificate that is shown on a connection.
///
/// # Panics
/// If there is none.
pub fn certificate_of(connection: &TlsStream<TcpStream>) -> CertificateDer<'static> {
    let (_, tls) = connection.get_ref();
    tls.peer_certificates().expect("who answers has certificates")[0].clone().into_owned()
}

/// What is answered to a request without a body, which asks for the connection to be closed; empty if nothing is.
///
/// # Panics
/// If the end does not come.
pub async fn ask(mut connection: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> String {
    let mut answer = Vec::new();
    let asked = async {
        let _ = connection.write_all(request.as_bytes()).await;
        // However it ends: what came is what was answered.
        let _ = connection.read_to_end(&mut answer).await;
    };
    timeout(PATIENCE, asked).await.expect("the connection is closed");
    String::from_utf8_lossy(&answer).into_owned()
}
