//! HTTP/1 as seen from the far end of the wire: exact bytes out, and a parser that forgives nothing in.

use super::io::{Io, connect_tls};
use super::{Pattern, within};
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::sleep_until;

/// One connection to the proxy.
pub struct Client {
    io: Io,
    buf: Vec<u8>,
    eof: bool,
}

/// The head of an answer.
#[derive(Clone, Debug)]
pub struct Head {
    pub status: u16,
    pub headers: Vec<(String, String)>,
}

impl Head {
    /// The value of a header that came at most once.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.iter().filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value);
        let first = values.next();
        assert!(values.next().is_none(), "{name} came more than once: {self:?}");
        first.map(String::as_str)
    }
}

/// A whole answer, or as much of it as came.
#[derive(Clone, Debug)]
pub struct Response {
    pub status: u16,
    pub head: Head,
    pub body: Vec<u8>,
    /// Why the message is broken; `None` when it is complete by its framing.
    pub broken: Option<String>,
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.header(name)
    }

    /// The body of a complete answer.
    pub fn text(&self) -> String {
        assert_eq!(self.broken, None, "{self:?}");
        String::from_utf8(self.body.clone()).unwrap()
    }
}

/// How the body of an answer ends.
#[derive(Debug)]
pub enum Framing {
    Length(u64),
    /// So many bytes are left of the current chunk.
    Chunked(u64),
    UntilClose,
    Done,
}

impl Client {
    /// Connect with pinned buffers.
    pub async fn connect(addr: SocketAddr) -> Self {
        Self::on(Io::Tcp(within("a connection to the proxy", Io::connect(addr)).await.unwrap()))
    }

    /// Connect over TLS, asking for `name`.
    pub async fn connect_tls(addr: SocketAddr, name: &str) -> Self {
        Self::on(connect_tls(addr, name, &["http/1.1"]).await.unwrap())
    }

    pub fn on(io: Io) -> Self {
        Client { io, buf: Vec::new(), eof: false }
    }

    pub fn io(&self) -> &Io {
        &self.io
    }

    /// Send bytes as they are. A peer that has gone is no error here: its answer, or the lack of one, will tell.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        let sent = within("the proxy takes what is sent", self.io.write_all(bytes.as_ref())).await;
        sent.is_ok() && self.io.flush().await.is_ok()
    }

    /// A GET on this connection.
    pub async fn get(&mut self, target: &str) -> Response {
        self.request("GET", target, "").await
    }

    /// A request without a body; `headers` are whole lines.
    pub async fn request(&mut self, method: &str, target: &str, headers: &str) -> Response {
        self.send_request(method, target, headers).await;
        self.response_to(method).await
    }

    pub async fn send_request(&mut self, method: &str, target: &str, headers: &str) {
        self.send(format!("{method} {target} HTTP/1.1\r\nHost: test\r\n{headers}\r\n")).await;
    }

    /// A request with a body of known length.
    pub async fn post(&mut self, method: &str, target: &str, body: &[u8]) -> Response {
        let headers = format!("Content-Length: {}\r\n", body.len());
        self.send_request(method, target, &headers).await;
        self.send(body).await;
        self.response().await
    }

    /// The answer to a method whose answer may have a body.
    pub async fn response(&mut self) -> Response {
        self.response_to("GET").await
    }

    /// The final answer; interim ones are read over.
    pub async fn response_to(&mut self, method: &str) -> Response {
        let mut head = self.head().await;
        while (100..200).contains(&head.status) && head.status != 101 {
            head = self.head().await;
        }
        let mut framing = framing(&head, method);
        let mut body = Vec::new();
        let broken = loop {
            match self.body_piece(&mut framing).await {
                Ok(Some(piece)) => body.extend(piece),
                Ok(None) => break None,
                Err(why) => break Some(why),
            }
        };
        Response { status: head.status, head, body, broken }
    }

    /// The next head, interim or final.
    pub async fn head(&mut self) -> Head {
        self.try_head().await.expect("an answer, not a closed connection")
    }

    /// The next head, or `None` if the connection is closed instead.
    pub async fn try_head(&mut self) -> Option<Head> {
        let end = loop {
            if let Some(at) = self.buf.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            if !self.fill(usize::MAX).await {
                assert!(self.buf.is_empty(), "half a head: {:?}", String::from_utf8_lossy(&self.buf));
                return None;
            }
        };
        let head = String::from_utf8(self.buf.drain(..end).collect()).unwrap();
        Some(parse_head(&head))
    }

    /// The next piece of the body, `None` at its end, `Err` when the message is broken.
    pub async fn body_piece(&mut self, framing: &mut Framing) -> Result<Option<Vec<u8>>, String> {
        self.body_piece_upto(framing, usize::MAX).await
    }

    async fn body_piece_upto(&mut self, framing: &mut Framing, most: usize) -> Result<Option<Vec<u8>>, String> {
        if let Framing::Chunked(left @ 0) = framing {
            let size = self.line().await.ok_or("closed where a chunk size should be")?;
            *left = u64::from_str_radix(&size, 16).map_err(|_| format!("not a chunk size: {size:?}"))?;
            if *left == 0 {
                while !self.line().await.ok_or("closed in the trailers")?.is_empty() {}
                *framing = Framing::Done;
            }
        }
        let left = match framing {
            Framing::Length(0) | Framing::Done => return Ok(None),
            Framing::Length(left) | Framing::Chunked(left) => *left,
            Framing::UntilClose => u64::MAX,
        };
        if self.buf.is_empty() && !self.fill(most).await {
            return match framing {
                Framing::UntilClose => Ok(None),
                _ => Err(format!("closed with {left} bytes to come")),
            };
        }
        let count = left.min(self.buf.len() as u64).min(most as u64);
        let piece = self.buf.drain(..count as usize).collect();
        match framing {
            Framing::Length(left) => *left -= count,
            Framing::Chunked(left) => {
                *left -= count;
                if *left == 0 && !self.line().await.ok_or("closed behind a chunk")?.is_empty() {
                    return Err("a chunk longer than its size".into());
                }
            }
            Framing::UntilClose | Framing::Done => {}
        }
        Ok(Some(piece))
    }

    /// Read a body of the pattern to its end, at most `rate` bytes a second; how much it was.
    pub async fn pattern_at(&mut self, head: &Head, rate: u64) -> u64 {
        let (mut framing, mut pattern, start) = (framing(head, "GET"), Pattern::default(), Instant::now());
        while let Some(piece) = self.body_piece_upto(&mut framing, 16 * 1024).await.expect("a complete message") {
            pattern.check(&piece);
            let due = start + Duration::from_secs_f64(pattern.offset as f64 / rate as f64);
            sleep_until(due.into()).await;
        }
        pattern.offset
    }

    /// Read a body of the pattern to its end; how much it was.
    pub async fn pattern(&mut self, head: &Head) -> u64 {
        let (mut framing, mut pattern) = (framing(head, "GET"), Pattern::default());
        while let Some(piece) = self.body_piece(&mut framing).await.expect("a complete message") {
            pattern.check(&piece);
        }
        pattern.offset
    }

    /// Does the proxy close, without another byte?
    pub async fn closed(&mut self) -> bool {
        self.buf.is_empty() && !self.fill(usize::MAX).await
    }

    /// Read until the proxy closes.
    pub async fn rest(&mut self) -> Vec<u8> {
        while self.fill(usize::MAX).await {}
        std::mem::take(&mut self.buf)
    }

    /// Has anything come that nobody asked for?
    pub fn leftover(&self) -> &[u8] {
        &self.buf
    }

    /// Say that nothing more will be sent.
    pub async fn shutdown(&mut self) {
        self.io.shutdown().await.unwrap();
    }

    /// Both directions, to be used at once; nothing may have been read ahead.
    pub fn split(self) -> (tokio::io::ReadHalf<Io>, tokio::io::WriteHalf<Io>) {
        assert!(self.buf.is_empty());
        tokio::io::split(self.io)
    }

    /// The reading direction again.
    pub fn into_io(self) -> Io {
        assert!(self.buf.is_empty());
        self.io
    }

    /// Close with an RST.
    pub fn reset(self) {
        self.io.reset();
    }

    async fn line(&mut self) -> Option<String> {
        loop {
            if let Some(at) = self.buf.windows(2).position(|window| window == b"\r\n") {
                let line: Vec<u8> = self.buf.drain(..at + 2).take(at).collect();
                return Some(String::from_utf8_lossy(&line).into_owned());
            }
            if !self.fill(usize::MAX).await {
                return None;
            }
        }
    }

    /// False at the end of the stream, however it ends.
    async fn fill(&mut self, most: usize) -> bool {
        if self.eof {
            return false;
        }
        let mut piece = vec![0; most.min(64 * 1024)];
        let read = within("the proxy sends something", self.io.read(&mut piece)).await.unwrap_or(0);
        self.buf.extend_from_slice(&piece[..read]);
        self.eof = read == 0;
        !self.eof
    }
}

fn parse_head(head: &str) -> Head {
    let mut lines = head.split("\r\n");
    let mut status = lines.next().unwrap_or_default().splitn(3, ' ');
    assert!(matches!(status.next(), Some("HTTP/1.1" | "HTTP/1.0")), "{head}");
    let status = status.next().and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("no status: {head}"));
    let header = |line: &str| {
        let (name, value) = line.split_once(':').unwrap_or_else(|| panic!("not a header: {line:?}"));
        assert!(!name.is_empty() && !name.contains(' '), "not a header: {line:?}");
        (name.to_owned(), value.trim().to_owned())
    };
    let headers = lines.take_while(|line| !line.is_empty()).map(header).collect();
    Head { status, headers }
}

/// RFC 9112 6.3; two framings at once are a panic.
pub fn framing(head: &Head, method: &str) -> Framing {
    let framing = match (head.header("content-length"), head.header("transfer-encoding")) {
        (None, None) => Framing::UntilClose,
        (Some(length), None) => Framing::Length(length.parse().unwrap()),
        (None, Some("chunked")) => Framing::Chunked(0),
        _ => panic!("no client must ever see this framing: {head:?}"),
    };
    let bodiless = method == "HEAD" || matches!(head.status, 100..=199 | 204 | 304);
    if bodiless { Framing::Done } else { framing }
}
