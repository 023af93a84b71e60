//! HTTP/2 on both sides of the proxy, on the h2 crate, with its flow control in the test's hands.

use super::io::{Io, connect_tls};
use super::{Certificate, within};
use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Request, Response, StatusCode};
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_rustls::{TlsAcceptor, TlsStream};

/// An HTTP/2 connection to the proxy.
pub struct Http2(SendRequest<Bytes>);

/// A whole answer, or as much of it as came.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
    pub trailers: Option<HeaderMap>,
    /// Why the stream is broken; `None` when it was ended properly.
    pub broken: Option<h2::Error>,
}

impl Http2 {
    /// Over TLS, agreed on by ALPN.
    pub async fn connect_tls(addr: SocketAddr, name: &str) -> Self {
        let io = connect_tls(addr, name, &["h2"]).await.unwrap();
        assert_eq!(io.tls().unwrap().1.as_deref(), Some(&b"h2"[..]), "the proxy agrees to HTTP/2");
        Self::on(io).await
    }

    /// Windows are the protocol's defaults: 64 KiB for each stream and for the connection.
    async fn on(io: Io) -> Self {
        let (send, connection) = h2::client::handshake(io).await.unwrap();
        // It ends when the proxy closes; what that means for a stream, its test sees.
        tokio::spawn(async move { connection.await.is_ok() });
        Http2(send)
    }

    /// Open a stream; `end` if there is no body.
    pub async fn open(&mut self, request: Request<()>, end: bool) -> (ResponseFuture, SendStream<Bytes>) {
        let mut send = self.0.clone().ready().await.unwrap();
        send.send_request(request, end).unwrap()
    }

    /// A GET up to the answer's head.
    pub async fn get_head(&mut self, path: &str) -> Response<RecvStream> {
        let (answer, _) = self.open(get(path), true).await;
        within("an answer over HTTP/2", answer).await.unwrap()
    }

    pub async fn get(&mut self, path: &str) -> Answer {
        finish(self.get_head(path).await).await
    }
}

/// A GET for `https://test{path}`.
pub fn get(path: &str) -> Request<()> {
    Request::get(format!("https://test{path}")).body(()).unwrap()
}

/// Read an answer to its end.
pub async fn finish(answer: Response<RecvStream>) -> Answer {
    let (head, mut stream) = answer.into_parts();
    let (mut body, mut broken) = (Vec::new(), None);
    while let Some(piece) = within("more of the body", stream.data()).await {
        match piece {
            Ok(piece) => {
                stream.flow_control().release_capacity(piece.len()).unwrap();
                body.extend_from_slice(&piece);
            }
            Err(error) => {
                broken = Some(error);
                break;
            }
        }
    }
    let trailers = if broken.is_none() { within("the end", stream.trailers()).await.unwrap() } else { None };
    Answer { status: head.status, headers: head.headers, body, trailers, broken }
}

/// Send all of `body` as the peer gives room for it; false if the stream is reset.
pub async fn send_all(stream: &mut SendStream<Bytes>, body: &[u8], end: bool) -> bool {
    let mut body = Bytes::copy_from_slice(body);
    while !body.is_empty() {
        stream.reserve_capacity(body.len().min(64 * 1024));
        let room = std::future::poll_fn(|cx| stream.poll_capacity(cx));
        let Some(Ok(room)) = within("room in the window", room).await else { return false };
        let piece = body.split_to(room.min(body.len()));
        if stream.send_data(piece, false).is_err() {
            return false;
        }
    }
    !end || stream.send_data(Bytes::new(), true).is_ok()
}

/// An upstream that speaks HTTP/2.
pub struct Http2Origin {
    address: String,
    connections: watch::Receiver<usize>,
}

impl Http2Origin {
    /// Run `script` for each stream; cleartext (prior knowledge) without a certificate.
    pub async fn start<F: Future<Output = ()> + Send + 'static>(
        certificate: Option<&Certificate>,
        script: impl Fn(Request<RecvStream>, SendResponse<Bytes>) -> F + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let acceptor = certificate.map(|certificate| certificate.acceptor(&["h2", "http/1.1"], None));
        let (count, connections) = watch::channel(0);
        let script = Arc::new(script);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                count.send_modify(|count| *count += 1);
                tokio::spawn(serve(Io::Tcp(stream), acceptor.clone(), script.clone()));
            }
        });
        Http2Origin { address, connections }
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    /// Connections so far.
    pub fn connections(&self) -> usize {
        *self.connections.borrow()
    }
}

async fn serve<F: Future<Output = ()> + Send + 'static>(
    io: Io,
    acceptor: Option<TlsAcceptor>,
    script: Arc<impl Fn(Request<RecvStream>, SendResponse<Bytes>) -> F>,
) {
    let io = match (io, acceptor) {
        (Io::Tcp(stream), Some(acceptor)) => {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            Io::Tls(Box::new(TlsStream::Server(stream)))
        }
        (io, _) => io,
    };
    let Ok(mut connection) = h2::server::handshake(io).await else { return };
    while let Some(Ok((request, respond))) = connection.accept().await {
        tokio::spawn(script(request, respond));
    }
}
