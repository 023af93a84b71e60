//! Phase 3 for byte-stream protocols: [`ByteStream`], a codec over a raw stream, and how it sends.

use super::request_body::RequestBody;
use crate::error::{Error, ErrorKind, Result};
use crate::peers::pool::{Connection, Usage};
use crate::peers::{Peer, Upstream};
use crate::protocol::{BodyLength, Codec};
use crate::timer::Timer;
use bytes::{Buf, Bytes, BytesMut};
use pingora_core::protocols::Stream;
use pingora_http::RequestHeader;
use std::collections::VecDeque;
use std::io::IoSlice;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::AsyncWrite;

/// Pieces of a request that one system call takes.
const IO_SLICES: usize = 8;

/// A codec over a raw stream to one peer, for one attempt.
pub(crate) struct ByteStream {
    pub(super) stream: Stream,
    pub(super) usage: Usage,
    pub(super) codec: Box<dyn Codec>,
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
    pub(super) has_received: bool,
    pub(super) message_done: bool,
    /// A buffer of the pipe's that waits for the upstream.
    pub(super) reading: Option<BytesMut>,
}

enum Sending {
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
    /// # Errors
    /// The request cannot be said in the upstream's protocol.
    pub(crate) fn new(
        connection: Connection,
        reused: bool,
        upstream: &Arc<Upstream>,
        peer: &Peer,
        request: &RequestHeader,
        length: BodyLength,
        limits: Limits,
    ) -> Result<Self> {
        let mut codec = upstream.protocol.codec();
        let mut head = BytesMut::with_capacity(1024);
        codec.create_request(request, length, &mut head)?;
        Ok(ByteStream {
            stream: connection.stream,
            usage: connection.usage,
            codec,
            upstream: upstream.clone(),
            peer: peer.clone(),
            reused,
            out: VecDeque::from([head.freeze()]),
            framed: Vec::new(),
            sending: Sending::Body,
            sent: false,
            send_timer: Timer::new(limits.send),
            read_timer: Timer::new(limits.read),
            received: BytesMut::with_capacity(limits.header_size),
            header_size: limits.header_size,
            has_received: false,
            message_done: false,
            reading: None,
        })
    }

    pub(super) fn has_sent(&self) -> bool {
        self.sent
    }

    /// The request has been written whole.
    pub(super) fn request_written(&self) -> bool {
        matches!(self.sending, Sending::Written)
    }

    /// Nothing more will be written: from now on it is the upstream's turn.
    pub(super) fn upstreams_turn(&self) -> bool {
        matches!(self.sending, Sending::Written | Sending::Failed(_))
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
                Sending::Body | Sending::Rest => {}
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
            if matches!(self.sending, Sending::Rest) {
                self.sending = Sending::Written;
                continue;
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
        while !self.out.is_empty() {
            let mut slices = [IoSlice::new(&[]); IO_SLICES];
            let mut count = 0;
            for (slice, piece) in slices.iter_mut().zip(&self.out) {
                *slice = IoSlice::new(piece);
                count += 1;
            }
            match Pin::new(&mut self.stream).poll_write_vectored(cx, &slices[..count]) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(self.send_error("the connection takes no more"))),
                Poll::Ready(Ok(written)) => {
                    self.sent = true;
                    self.send_timer.restart();
                    self.advance(written);
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(self.send_error(error))),
                Poll::Pending => {
                    let doing = || format!("sending the request to {}", self.peer);
                    return self.send_timer.poll_limit(cx, ErrorKind::SendTimeout, doing);
                }
            }
        }
        Pin::new(&mut self.stream).poll_flush(cx).map_err(|error| self.send_error(error))
    }

    fn advance(&mut self, mut written: usize) {
        while let Some(piece) = self.out.front_mut() {
            let step = written.min(piece.len());
            piece.advance(step);
            written -= step;
            if !piece.is_empty() {
                break;
            }
            self.out.pop_front();
        }
    }

    fn send_error(&self, cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
        Error::because(ErrorKind::Send, format!("sending the request to {}", self.peer), cause)
    }
}
