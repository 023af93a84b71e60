//! A scripted upstream: a test's closure runs for each connection and does to it what the test is about.

use super::io::{Io, SOCKET_BUFFER};
use super::{Certificate, DEADLINE, pattern, within};
use socket2::{Domain, SockRef, Socket, Type};
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsStream};

/// An answer with a `Content-Length`.
pub fn reply(status: u16, body: &str) -> String {
    format!("HTTP/1.1 {status} Scripted\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

/// A request as it arrived.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// The connection it came on, counted from 0.
    pub connection: usize,
    pub method: String,
    pub target: String,
    /// Everything up to the blank line, as it was on the wire.
    pub head: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Request {
    /// The value of a header that came at most once.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.iter().filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value);
        let first = values.next();
        assert!(values.next().is_none(), "{name} came more than once:\n{}", self.head);
        first.map(String::as_str)
    }

    fn parse(connection: usize, head: String) -> Self {
        let mut lines = head.split("\r\n");
        let mut line = lines.next().unwrap_or_default().split(' ');
        let (method, target) = (line.next().unwrap_or_default().to_owned(), line.next().unwrap_or_default().to_owned());
        assert_eq!(line.next(), Some("HTTP/1.1"), "{head}");
        let header = |line: &str| {
            let (name, value) = line.split_once(':').unwrap_or_else(|| panic!("not a header: {line:?}"));
            (name.to_owned(), value.trim().to_owned())
        };
        let headers = lines.take_while(|line| !line.is_empty()).map(header).collect();
        Request { connection, method, target, head: head.clone(), headers, body: Vec::new() }
    }
}

/// What an origin has seen.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Connections accepted, and those of them whose script has not ended.
    pub connections: usize,
    pub open: usize,
    /// Requests whose head has arrived; their bodies once they were read.
    pub requests: Vec<Request>,
}

/// An upstream on its own task.
pub struct Origin {
    address: String,
    seen: watch::Sender<Seen>,
}

impl Origin {
    /// Run `script` for each connection; the connection is closed when it returns.
    pub async fn start<F: Future<Output = ()> + Send + 'static>(
        script: impl Fn(Conn) -> F + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        Self::listen(listener, None, script)
    }

    /// The same, over TLS.
    pub async fn start_tls<F: Future<Output = ()> + Send + 'static>(
        acceptor: TlsAcceptor,
        script: impl Fn(Conn) -> F + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        Self::listen(listener, Some(acceptor), script)
    }

    /// The same, on a Unix socket.
    pub async fn start_unix<F: Future<Output = ()> + Send + 'static>(
        path: &Path,
        script: impl Fn(Conn) -> F + Send + Sync + 'static,
    ) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        let seen = watch::Sender::new(Seen::default());
        let (address, sender) = (format!("unix:{}", path.display()), seen.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let conn = Conn::new(Io::Unix(stream), &sender);
                tokio::spawn(script(conn));
            }
        });
        Origin { address, seen }
    }

    /// The same, on this listener.
    pub fn on<F: Future<Output = ()> + Send + 'static>(
        listener: TcpListener,
        script: impl Fn(Conn) -> F + Send + Sync + 'static,
    ) -> Self {
        Self::listen(listener, None, script)
    }

    fn listen<F: Future<Output = ()> + Send + 'static>(
        listener: TcpListener,
        acceptor: Option<TlsAcceptor>,
        script: impl Fn(Conn) -> F + Send + Sync + 'static,
    ) -> Self {
        let seen = watch::Sender::new(Seen::default());
        let (address, sender) = (listener.local_addr().unwrap().to_string(), seen.clone());
        // Accepted sockets inherit it, and the window is announced with the handshake.
        SockRef::from(&listener).set_recv_buffer_size(SOCKET_BUFFER as usize).unwrap();
        let script = Arc::new(script);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                SockRef::from(&stream).set_send_buffer_size(SOCKET_BUFFER as usize).unwrap();
                stream.set_nodelay(true).unwrap();
                let (script, acceptor, sender) = (script.clone(), acceptor.clone(), sender.clone());
                tokio::spawn(async move {
                    let Some(io) = accept_tls(stream, acceptor).await else { return };
                    script(Conn::new(io, &sender)).await;
                });
            }
        });
        Origin { address, seen }
    }

    /// Answer every request, on connections that stay open.
    pub async fn http(answer: impl Fn(&Request) -> String + Send + Sync + 'static) -> Self {
        let answer = Arc::new(answer);
        Self::start(move |conn| serve(conn, answer.clone())).await
    }

    /// The same, on this listener.
    pub fn http_on(listener: TcpListener, answer: impl Fn(&Request) -> String + Send + Sync + 'static) -> Self {
        let answer = Arc::new(answer);
        Self::listen(listener, None, move |conn| serve(conn, answer.clone()))
    }

    /// The same, over TLS.
    pub async fn https(certificate: &Certificate, answer: impl Fn(&Request) -> String + Send + Sync + 'static) -> Self {
        let answer = Arc::new(answer);
        Self::start_tls(certificate.acceptor(&["http/1.1"], None), move |conn| serve(conn, answer.clone())).await
    }

    /// Answer each connection's first request with these bytes and close.
    pub async fn once(answer: impl Into<Vec<u8>>) -> Self {
        let answer = answer.into();
        Self::start(move |mut conn| {
            let answer = answer.clone();
            async move {
                if conn.request().await.is_some() {
                    conn.send(answer).await;
                }
            }
        })
        .await
    }

    /// As the configuration names it.
    pub fn address(&self) -> &str {
        &self.address
    }

    pub fn connections(&self) -> usize {
        self.seen.borrow().connections
    }

    pub fn requests(&self) -> Vec<Request> {
        self.seen.borrow().requests.clone()
    }

    /// The only request it should have seen.
    pub fn only_request(&self) -> Request {
        let requests = self.requests();
        assert_eq!(requests.len(), 1, "{requests:#?}");
        requests[0].clone()
    }

    /// Wait until what it has seen satisfies `test`.
    pub async fn wait(&self, what: &str, test: impl FnMut(&Seen) -> bool) {
        within(what, self.seen.subscribe().wait_for(test)).await.unwrap();
    }
}

async fn accept_tls(stream: TcpStream, acceptor: Option<TlsAcceptor>) -> Option<Io> {
    let Some(acceptor) = acceptor else { return Some(Io::Tcp(stream)) };
    // A failed handshake is what some tests are about; the proxy's answer tells.
    let stream = acceptor.accept(stream).await.ok()?;
    Some(Io::Tls(Box::new(TlsStream::Server(stream))))
}

async fn serve(mut conn: Conn, answer: Arc<impl Fn(&Request) -> String>) {
    while let Some(request) = conn.request().await {
        let answer = answer(&request);
        conn.send(answer).await;
    }
}

/// One accepted connection, in the hands of the script.
pub struct Conn {
    /// Counted from 0.
    pub id: usize,
    io: Io,
    buf: Vec<u8>,
    seen: watch::Sender<Seen>,
    /// How much [`send_pattern`](Self::send_pattern) has handed to the kernel, for a test to look at meanwhile.
    pub sent: Arc<AtomicU64>,
}

impl Conn {
    fn new(io: Io, seen: &watch::Sender<Seen>) -> Self {
        let mut id = 0;
        seen.send_modify(|seen| {
            id = seen.connections;
            seen.connections += 1;
            seen.open += 1;
        });
        Conn { id, io, buf: Vec::new(), seen: seen.clone(), sent: Arc::default() }
    }

    /// The next request with its body; `None` once the peer has closed.
    pub async fn request(&mut self) -> Option<Request> {
        let mut request = self.head().await?;
        let index = self.seen.borrow().requests.len() - 1;
        request.body = self.body(&request).await?;
        let body = request.body.clone();
        self.seen.send_modify(|seen| seen.requests[index].body = body);
        Some(request)
    }

    /// The next request up to its blank line; `None` once the peer has closed.
    pub async fn head(&mut self) -> Option<Request> {
        let end = loop {
            if let Some(at) = self.buf.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            self.fill().await?;
        };
        let head = self.buf.drain(..end).collect();
        let request = Request::parse(self.id, String::from_utf8(head).unwrap());
        self.seen.send_modify(|seen| seen.requests.push(request.clone()));
        Some(request)
    }

    /// The body behind that head, which must have one framing at most; `None` if the peer closes before its end.
    pub async fn body(&mut self, request: &Request) -> Option<Vec<u8>> {
        match (request.header("content-length"), request.header("transfer-encoding")) {
            (None, None) => Some(Vec::new()),
            (Some(length), None) => self.exactly(length.parse().unwrap()).await,
            (None, Some("chunked")) => {
                let mut body = Vec::new();
                while let Some(chunk) = self.chunk().await? {
                    body.extend(chunk);
                }
                Some(body)
            }
            _ => panic!("an upstream must never see this framing:\n{}", request.head),
        }
    }

    /// The next chunk of a chunked body, `Some(None)` for the last; `None` if the peer closes.
    pub async fn chunk(&mut self) -> Option<Option<Vec<u8>>> {
        let size = self.line(b"\r\n").await?;
        let size = usize::from_str_radix(&size, 16).unwrap_or_else(|_| panic!("not a chunk size: {size:?}"));
        if size == 0 {
            while !self.line(b"\r\n").await?.is_empty() {}
            return Some(None);
        }
        let chunk = self.exactly(size).await?;
        assert_eq!(self.line(b"\r\n").await?, "", "a chunk ends with CRLF");
        Some(Some(chunk))
    }

    /// So many bytes; `None` if the peer closes before.
    pub async fn exactly(&mut self, count: usize) -> Option<Vec<u8>> {
        while self.buf.len() < count {
            self.fill().await?;
        }
        Some(self.buf.drain(..count).collect())
    }

    /// A line without its end; `None` if the peer closes before.
    pub async fn line(&mut self, end: &[u8]) -> Option<String> {
        loop {
            if let Some(at) = self.buf.windows(end.len()).position(|window| window == end) {
                let line = self.buf.drain(..at + end.len()).take(at).collect();
                return Some(String::from_utf8(line).unwrap());
            }
            self.fill().await?;
        }
    }

    async fn fill(&mut self) -> Option<()> {
        self.buf.reserve(64 * 1024);
        matches!(self.io.read_buf(&mut self.buf).await, Ok(1..)).then_some(())
    }

    /// Send bytes; false if the peer is gone.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.io.write_all(bytes.as_ref()).await.is_ok() && self.io.flush().await.is_ok()
    }

    /// Send a head with a `Content-Length`, and nothing behind it.
    pub async fn send_head(&mut self, length: u64) -> bool {
        self.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n")).await
    }

    /// Send the first `len` bytes of the pattern as fast as they are taken; the time when the kernel had the last of
    /// them, `None` if the peer left.
    pub async fn send_pattern(&mut self, len: u64) -> Option<Instant> {
        let mut offset = 0;
        while offset < len {
            let written = self.io.write(pattern::bytes(offset, len - offset)).await.ok()?;
            offset += written as u64;
            self.sent.store(offset, Relaxed);
        }
        self.io.flush().await.ok()?;
        Some(Instant::now())
    }

    /// Wait until the peer closes, discarding what it sends; when that was seen.
    pub async fn closed(&mut self) -> Instant {
        loop {
            self.buf.clear();
            if self.fill().await.is_none() {
                return Instant::now();
            }
        }
    }

    /// Close with an RST.
    pub fn reset(mut self) {
        self.io_taken().reset();
    }

    /// The stream itself, for another protocol. Bytes already read must not be in the way.
    pub fn into_io(mut self) -> Io {
        assert!(self.buf.is_empty(), "the peer has sent more");
        self.io_taken()
    }

    /// What TLS agreed on.
    pub fn io(&self) -> &Io {
        &self.io
    }

    fn io_taken(&mut self) -> Io {
        let (nowhere, _) = tokio::net::UnixStream::pair().unwrap();
        std::mem::replace(&mut self.io, Io::Unix(nowhere))
    }
}

impl Drop for Conn {
    fn drop(&mut self) {
        self.seen.send_modify(|seen| seen.open -= 1);
    }
}

/// An address that refuses connections for as long as the value lives.
pub struct Refusing(Socket);

impl Refusing {
    pub fn new() -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
        Refusing(socket)
    }

    pub fn address(&self) -> String {
        self.0.local_addr().unwrap().as_socket().unwrap().to_string()
    }

    /// It refuses no longer.
    pub fn listen(self) -> TcpListener {
        self.0.listen(128).unwrap();
        self.0.set_nonblocking(true).unwrap();
        TcpListener::from_std(self.0.into()).unwrap()
    }
}

/// Listeners at 127.0.0.1 and so on, as many as that, all with the same port.
pub async fn same_port(count: u8) -> Vec<TcpListener> {
    'port: loop {
        let mut listeners = vec![TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap()];
        let port = listeners[0].local_addr().unwrap().port();
        for last in 2..=count {
            match TcpListener::bind((Ipv4Addr::new(127, 0, 0, last), port)).await {
                Ok(listener) => listeners.push(listener),
                Err(_) => continue 'port,
            }
        }
        return listeners;
    }
}

/// An address where a connection is never established: its queue of connections to be accepted is full.
pub struct Unreachable {
    listener: Socket,
    _queue: Vec<TcpStream>,
}

impl Unreachable {
    pub async fn new() -> Self {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        listener.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
        listener.listen(0).unwrap();
        let addr = listener.local_addr().unwrap().as_socket().unwrap();
        let mut queue = Vec::new();
        // The kernel drops a SYN that finds the queue full: the first connection that hangs shows it.
        while let Ok(stream) = timeout(Duration::from_millis(300), TcpStream::connect(addr)).await {
            queue.push(stream.unwrap());
            assert!(queue.len() < 64, "the queue does not fill up in {DEADLINE:?}");
        }
        Unreachable { listener, _queue: queue }
    }

    pub fn address(&self) -> String {
        self.listener.local_addr().unwrap().as_socket().unwrap().to_string()
    }
}
