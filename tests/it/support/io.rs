//! The streams under clients and origins, with pinned socket buffers, and throw-away certificates.

use rcgen::{CertificateParams, KeyPair};
use socket2::SockRef;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{self, AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpSocket, TcpStream, UnixStream};
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{self, ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

/// Both socket buffers of every test connection, so that the kernel's do not hide the proxy's.
pub const SOCKET_BUFFER: u32 = 64 * 1024;

/// One end of a connection.
pub enum Io {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Io {
    /// Connect with pinned buffers.
    pub async fn connect(addr: SocketAddr) -> io::Result<TcpStream> {
        let socket = TcpSocket::new_v4()?;
        socket.set_recv_buffer_size(SOCKET_BUFFER)?;
        socket.set_send_buffer_size(SOCKET_BUFFER)?;
        let stream = socket.connect(addr).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// Close at once with an RST: what was sent and not yet read by the peer may be lost, as in real life.
    pub fn reset(self) {
        let linger = Some(Duration::ZERO);
        match &self {
            Io::Tcp(stream) => SockRef::from(stream).set_linger(linger).unwrap(),
            Io::Tls(stream) => SockRef::from(stream.get_ref().0).set_linger(linger).unwrap(),
            Io::Unix(_) => panic!("a Unix socket has no reset"),
        }
    }

    /// The name the peer asked for and the protocol agreed on, over TLS.
    pub fn tls(&self) -> Option<(Option<String>, Option<Vec<u8>>)> {
        let Io::Tls(stream) = self else { return None };
        let name = match stream.as_ref() {
            TlsStream::Server(stream) => stream.get_ref().1.server_name().map(str::to_owned),
            TlsStream::Client(_) => None,
        };
        Some((name, stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec)))
    }

    /// The certificate the peer showed.
    pub fn peer_certificate(&self) -> Option<Vec<u8>> {
        let Io::Tls(stream) = self else { return None };
        stream.get_ref().1.peer_certificates().map(|chain| chain[0].to_vec())
    }

    fn duplex(&mut self) -> &mut dyn Duplex {
        match self {
            Io::Tcp(stream) => stream,
            Io::Unix(stream) => stream,
            Io::Tls(stream) => stream.as_mut(),
        }
    }
}

trait Duplex: AsyncRead + AsyncWrite + Unpin {}

impl<T: AsyncRead + AsyncWrite + Unpin> Duplex for T {}

impl AsyncRead for Io {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.duplex()).poll_read(cx, buf)
    }
}

impl AsyncWrite for Io {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(self.duplex()).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.duplex()).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.duplex()).poll_shutdown(cx)
    }
}

/// A self-signed certificate and its key; it is its own authority.
pub struct Certificate {
    cert: rcgen::Certificate,
    key: KeyPair,
}

impl Certificate {
    /// For this host name.
    pub fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let cert = CertificateParams::new(vec![name.to_owned()]).unwrap().self_signed(&key).unwrap();
        Certificate { cert, key }
    }

    /// Write `NAME.pem` and `NAME.key` for the proxy to read.
    pub fn write(&self, dir: &Path, name: &str) -> (PathBuf, PathBuf) {
        let (cert_file, key_file) = (dir.join(format!("{name}.pem")), dir.join(format!("{name}.key")));
        std::fs::write(&cert_file, self.cert.pem()).unwrap();
        std::fs::write(&key_file, self.key.serialize_pem()).unwrap();
        (cert_file, key_file)
    }

    pub fn der(&self) -> &[u8] {
        self.cert.der()
    }

    /// A TLS server with this certificate. With `client`, only who shows that certificate is let in.
    pub fn acceptor(&self, alpn: &[&str], client: Option<&Certificate>) -> TlsAcceptor {
        let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = match client {
            None => builder.with_no_client_auth(),
            Some(client) => {
                let mut roots = RootCertStore::empty();
                roots.add(client.cert.der().clone()).unwrap();
                let provider = Arc::new(ring::default_provider());
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
                builder.with_client_cert_verifier(verifier)
            }
        };
        let key = PrivateKeyDer::try_from(self.key.serialize_der()).unwrap();
        let mut config = builder.with_single_cert(vec![self.cert.der().clone()], key).unwrap();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        TlsAcceptor::from(Arc::new(config))
    }
}

/// Connect over TLS and ask for `name`; the certificate is not judged here, a test compares it itself.
pub async fn connect_tls(addr: SocketAddr, name: &str, alpn: &[&str]) -> io::Result<Io> {
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate))
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let stream = TlsConnector::from(Arc::new(config)).connect(name, Io::connect(addr).await?).await?;
    Ok(Io::Tls(Box::new(TlsStream::Client(stream))))
}

#[derive(Debug)]
struct AnyCertificate;

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
