//! Phase 3 for byte-stream protocols: [`Created`], a request as its protocol says it, and [`ByteStream`], a codec over a
//! raw stream, and how it sends.

use super::request_body::RequestBody;
use crate::error::{Error, ErrorKind, Result};
use crate::peers::pool::Connection;
use crate::peers::{Peer, Upstream};
use crate::protocol::{BodyLength, Codec, Request};
use crate::session::Session;
use crate::timer::Timer;
use bytes::{Buf, Bytes, BytesMut};
use http::Method;
use http::header::UPGRADE;
use pingora_http::RequestHeader;
use std::collections::VecDeque;
use std::io::IoSlice;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;
use tokio::io::AsyncWrite;

/// Pieces of a request that one system call takes.
const IO_SLICES: usize = 8;

/// A request as its protocol says it. It is made before there is a connection: one that cannot be said troubles no peer.
pub(super) struct Created {
    codec: Box<dyn Codec>,
    /// [`Protocol::connection_group`](crate::protocol::Protocol::connection_group).
    group: u64,
    head: BytesMut,
    /// The answer to HEAD has no body, whatever its header says of it.
    is_head: bool,
    /// The upstream is asked to switch protocols.
    upgrades: bool,
}

impl Created {
    /// nginx's `create_request`.
    ///
    /// # Errors
    /// The request cannot be said in the route's protocol.
    pub(super) fn new(
        session: &Session<'_>,
        upstream: &Upstream,
        header: &RequestHeader,
        length: BodyLength,
    ) -> Result<Self> {
        let protocol = &session.route().protocol;
        let (mut codec, group) = (protocol.codec(), protocol.connection_group());
        let mut head = BytesMut::with_capacity(1024);
        let keepalive = upstream.conf.keepalive.connections > 0;
        codec.create_request(&Request::new(header, length, session).keepalive(keepalive), &mut head)?;
        let upgrades = header.headers.contains_key(UPGRADE);
        Ok(Created { codec, group, head, is_head: header.method == Method::HEAD, upgrades })
    }
}

/// A codec over a raw stream to one peer, for one attempt.
pub(crate) struct ByteStream {
    /// Taken when it goes back to the pool, or becomes a tunnel.
    pub(super) connection: Option<Connection>,
    pub(super) codec: Box<dyn Codec>,
    pub(super) group: u64,
    pub(super) is_head: bool,
    pub(super) upgrades: bool,
    pub(super) upstream: Arc<Upstream>,
    pub(super) peer: Peer,
    pub(super) reused: bool,
    out: VecDeque<Bytes>,
    framed: Vec<Bytes>,
    sending: Sending,
    sent: bool,
    send_timer: Timer,
    pub(super) read_timer: Timer,
    /// Received and not yet consumed: the header, and what came with it.
    pub(super) received: BytesMut,
    pub(super) header_size: usize,
    /// Bytes of the header that the codec has consumed already.
    pub(super) header_consumed: usize,
    pub(super) has_received: bool,
    /// Body bytes to come, where the header has said how many.
    pub(super) body_left: Option<u64>,
    pub(super) message_done: bool,
    /// More came than the header had said.
    pub(super) excess: bool,
    /// To be told when what came in front of it has been.
    pub(super) broken: Option<Error>,
    /// A buffer of the pipe's that waits for the upstream.
    pub(super) reading: Option<BytesMut>,
}

enum Sending {
    /// What a new connection has to be told; this is the request, which waits for the answer to it.
    Greeting(Bytes),
    /// The body, or the header in front of it.
    Body,
    /// Everything is framed, what is left is in `out`.
    Rest,
    Written,
    /// Writing failed; kept until it is known whether the upstream has answered.
    Failed(Option<Error>),
}

/// The limits of an attempt.
pub(crate) struct Limits {
    pub(crate) send: Duration,
    pub(crate) read: Duration,
    /// `buffer_size`: what a header may be long.
    pub(crate) header_size: usize,
}

impl ByteStream {
    pub(super) fn new(
        created: Created,
        connection: Connection,
        reused: bool,
        upstream: &Arc<Upstream>,
        peer: &Peer,
        limits: Limits,
    ) -> Self {
        let Created { mut codec, group, head, is_head, upgrades } = created;
        let mut first = BytesMut::new();
        if !reused {
            codec.new_connection(&mut first);
        }
        let (sending, head) = match codec.is_greeted() {
            true => (Sending::Body, head),
            false => (Sending::Greeting(head.freeze()), BytesMut::new()),
        };
        let out = [first, head].into_iter().filter(|piece| !piece.is_empty()).map(BytesMut::freeze);
        ByteStream {
            connection: Some(connection),
            codec,
            group,
            is_head,
            upgrades,
            upstream: upstream.clone(),
            peer: peer.clone(),
            reused,
            out: out.collect(),
            framed: Vec::new(),
            sending,
            sent: false,
            send_timer: Timer::new(limits.send),
            read_timer: Timer::new(limits.read),
            received: BytesMut::with_capacity(limits.header_size),
            header_size: limits.header_size,
            header_consumed: 0,
            has_received: false,
            body_left: None,
            message_done: false,
            excess: false,
            broken: None,
            reading: None,
        }
    }

    pub(super) fn has_sent(&self) -> bool {
        self.sent
    }

    /// The request has been written whole.
    pub(super) fn request_written(&self) -> bool {
        matches!(self.sending, Sending::Written)
    }

    /// Nothing more will be written, or not before the upstream has answered: it is the upstream's turn.
    pub(super) fn upstreams_turn(&self) -> bool {
        match self.sending {
            Sending::Written | Sending::Failed(_) => true,
            Sending::Greeting(_) => self.out.is_empty(),
            Sending::Body | Sending::Rest => false,
        }
    }

    pub(super) fn take_send_error(&mut self) -> Option<Error> {
        match &mut self.sending {
            Sending::Failed(error) => error.take(),
            _ => None,
        }
    }

    pub(super) fn poll_send(&mut self, cx: &mut Context<'_>, body: &mut RequestBody) -> Poll<Result<()>> {
        loop {
            match self.sending {
                Sending::Written | Sending::Failed(_) => return Poll::Ready(Ok(())),
                Sending::Greeting(_) | Sending::Body | Sending::Rest => {}
            }
            match ready!(self.poll_write_out(cx)) {
                Ok(()) => {}
                Err(error) if error.is_timeout() => {
                    self.sending = Sending::Failed(None);
                    return Poll::Ready(Err(error));
                }
                Err(error) => {
                    self.sending = Sending::Failed(Some(error));
                    continue;
                }
            }
            match &mut self.sending {
                // Whoever reads the answer to it comes back here.
                Sending::Greeting(_) if !self.codec.is_greeted() => return Poll::Pending,
                Sending::Greeting(head) => {
                    self.out.push_back(std::mem::take(head));
                    self.sending = Sending::Body;
                    continue;
                }
                Sending::Rest => {
                    self.sending = Sending::Written;
                    continue;
                }
                Sending::Body | Sending::Written | Sending::Failed(_) => {}
            }
            let chunk = match ready!(body.poll_next(cx)) {
                Ok(chunk) => chunk,
                Err(error) => {
                    // Said once: a body that has failed must not be asked again.
                    self.sending = Sending::Failed(None);
                    return Poll::Ready(Err(error));
                }
            };
            self.codec.request_body(chunk.clone().unwrap_or_default(), chunk.is_none(), &mut self.framed);
            self.out.extend(self.framed.drain(..).filter(|piece| !piece.is_empty()));
            if chunk.is_none() {
                self.sending = Sending::Rest;
            }
        }
    }

    /// Write all of `out`.
    fn poll_write_out(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let Some(Connection { stream, .. }) = &mut self.connection else {
            return Poll::Ready(Err(self.send_error("the connection is gone")));
        };
        while !self.out.is_empty() {
            let mut slices = [IoSlice::new(&[]); IO_SLICES];
            let mut count = 0;
            for (slice, piece) in slices.iter_mut().zip(&self.out) {
                *slice = IoSlice::new(piece);
                count += 1;
            }
            match Pin::new(&mut *stream).poll_write_vectored(cx, &slices[..count]) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(self.send_error("the connection takes no more"))),
                Poll::Ready(Ok(written)) => {
                    self.sent |= !matches!(self.sending, Sending::Greeting(_));
                    self.send_timer.restart();
                    advance(&mut self.out, written);
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(self.send_error(error))),
                Poll::Pending => {
                    let doing = || format!("sending the request to {}", self.peer);
                    return self.send_timer.poll_limit(cx, ErrorKind::SendTimeout, doing);
                }
            }
        }
        Pin::new(stream).poll_flush(cx).map_err(|error| self.send_error(error))
    }

    /// The connection is given up: what the protocol has to say to that, if it can be written now.
    fn abort(&mut self) {
        let failed = matches!(self.sending, Sending::Failed(_));
        let in_order = self.sent && self.out.is_empty() && !failed;
        let Some(Connection { stream, .. }) = self.connection.as_mut().filter(|_| in_order) else { return };
        let mut last_word = BytesMut::new();
        self.codec.abort(&mut last_word);
        if last_word.is_empty() {
            return;
        }
        let mut cx = Context::from_waker(Waker::noop());
        // Nobody is left who could be told that it did not work.
        if let Poll::Ready(Ok(_)) = Pin::new(&mut *stream).poll_write(&mut cx, &last_word) {
            let _ = Pin::new(stream).poll_flush(&mut cx);
        }
    }

    fn send_error(&self, cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
        Error::because(ErrorKind::Send, format!("sending the request to {}", self.peer), cause)
    }
}

impl Drop for ByteStream {
    fn drop(&mut self) {
        if !self.message_done {
            self.abort();
        }
    }
}

fn advance(out: &mut VecDeque<Bytes>, mut written: usize) {
    while let Some(piece) = out.front_mut() {
        let step = written.min(piece.len());
        piece.advance(step);
        written -= step;
        if !piece.is_empty() {
            break;
        }
        out.pop_front();
    }
}
