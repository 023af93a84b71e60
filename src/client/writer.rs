//! Writing a response to the client, so that it can be polled beside everything else.
//!
//! HTTP/1 goes through Pingora's cancel-safe proxy tasks. For HTTP/2 there are none: Pingora's session gives up its stream
//! once the header is out, and the data frames are sent here as the client's window allows.

use super::gone;
use crate::bufs::Bufs;
use crate::error::{Error, ErrorKind, Result};
use crate::timer::Timer;
use bytes::{Bytes, BytesMut};
use h2::SendStream;
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Version};
use pingora_core::protocols::http::{HttpTask, ServerSession};
use pingora_http::ResponseHeader;
use pingora_proxy::Session as Client;
use std::collections::VecDeque;
use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

/// Chunks below this are worth copying together for HTTP/2.
const SMALL_FRAME: usize = 4 * 1024;

/// One response on its way to the client.
pub(super) struct ClientWriter {
    protocol: Protocol,
    send_timeout: Duration,
    timer: Timer,
    /// The answer to a HEAD, a 204 or a 304: whatever body comes is dropped.
    bodiless: bool,
    /// What the header promised.
    content_length: Option<u64>,
    /// Body bytes taken over so far.
    taken: u64,
    /// Of these, accepted by the connection.
    accepted: u64,
    header_sent: bool,
    ended: bool,
    /// Small pieces may wait in Pingora's write buffer, which empties by itself only at the end.
    unflushed: bool,
}

enum Protocol {
    Http1,
    Http2 { stream: Option<SendStream<Bytes>>, queue: VecDeque<Bytes>, trailers: Option<HeaderMap> },
}

impl ClientWriter {
    pub(super) fn new(client: &Client, send_timeout: Duration) -> Self {
        let protocol = if client.is_http2() {
            Protocol::Http2 { stream: None, queue: VecDeque::new(), trailers: None }
        } else {
            Protocol::Http1
        };
        ClientWriter {
            protocol,
            send_timeout,
            timer: Timer::new(send_timeout),
            bodiless: client.req_header().method == Method::HEAD,
            content_length: None,
            taken: 0,
            accepted: 0,
            header_sent: false,
            ended: false,
            unflushed: false,
        }
    }

    /// Queue the header, with framing of our own. `end`: nothing follows.
    pub(super) fn header(&mut self, client: &mut Client, mut header: ResponseHeader, end: bool) -> Result<()> {
        self.bodiless |= matches!(header.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        self.frame(client.req_header().version, &mut header)?;
        let end = end || self.bodiless;
        if !end && self.content_length.is_none() && client.req_header().version == Version::HTTP_10 {
            // Only the end of the connection ends this body.
            client.set_keepalive(None);
        }
        self.ended = end;
        self.header_sent = true;
        match (&mut self.protocol, &mut *client.downstream_session) {
            (Protocol::Http2 { stream, .. }, ServerSession::H2(session)) => {
                session.write_response_header(Box::new(header), end).map_err(gone)?;
                // Pingora gives the stream also when the header has ended it; whatever is sent on it then is an error.
                *stream = session.take_response_body_writer().filter(|_| !end);
            }
            (_, session) => {
                self.unflushed = true;
                session.send_downstream_proxy_task(HttpTask::Header(Box::new(header), end));
            }
        }
        Ok(())
    }

    fn frame(&mut self, client: Version, header: &mut ResponseHeader) -> Result<()> {
        header.set_version(Version::HTTP_11);
        if header.status == StatusCode::NO_CONTENT {
            header.remove_header(&CONTENT_LENGTH);
        }
        let length = header.headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok());
        self.content_length = length.and_then(|length| length.parse().ok());
        if self.content_length.is_none() {
            header.remove_header(&CONTENT_LENGTH);
            if client == Version::HTTP_11 && !self.bodiless {
                header.insert_header(TRANSFER_ENCODING, HeaderValue::from_static("chunked"))?;
            }
        }
        Ok(())
    }

    /// Queue a run of the body, and with its end the trailers.
    ///
    /// # Errors
    /// The body is longer, or at its end shorter, than its `Content-Length`: the message must be broken.
    pub(super) fn body(&mut self, client: &mut Client, run: &mut Bufs, trailers: Option<HeaderMap>) -> Result<()> {
        if self.ended {
            run.take();
            return Ok(());
        }
        self.taken += run.len() as u64;
        if let Some(length) = self.content_length {
            let taken = self.taken;
            if taken > length || (run.is_last() && taken < length) {
                let text = format!("the body has {taken} bytes, its Content-Length said {length}");
                return Err(Error::new(ErrorKind::Internal, text));
            }
        }
        self.ended = run.is_last();
        match &mut self.protocol {
            Protocol::Http2 { queue, trailers: to_send, .. } => {
                queue_http2(queue, run);
                *to_send = trailers;
            }
            Protocol::Http1 => {
                self.unflushed |= !run.is_empty();
                queue_http1(client, run);
            }
        }
        Ok(())
    }

    /// Write what is queued. Ready when the connection has accepted all of it.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>, client: &mut Client) -> Poll<Result<()>> {
        if !self.header_sent {
            return Poll::Ready(Ok(()));
        }
        let flushed = match &mut self.protocol {
            Protocol::Http2 { stream, queue, trailers } => {
                let before: usize = queue.iter().map(Bytes::len).sum();
                let flushed = poll_http2(cx, stream, queue, trailers, self.ended);
                let after: usize = queue.iter().map(Bytes::len).sum();
                self.accepted += (before - after) as u64;
                if before != after {
                    self.timer.restart();
                }
                flushed
            }
            Protocol::Http1 => {
                let flushed = pin!(client.downstream_session.write_downstream_proxy_tasks()).poll(cx);
                let accepted = client.body_bytes_sent() as u64;
                if accepted != self.accepted {
                    self.accepted = accepted;
                    self.timer.restart();
                }
                flushed.map(|flushed| flushed.map(|_| ()).map_err(gone))
            }
        };
        match flushed {
            Poll::Ready(flushed) => {
                self.timer.restart();
                if self.ended {
                    self.unflushed = false;
                }
                Poll::Ready(flushed)
            }
            Poll::Pending => {
                self.timer.poll_limit(cx, ErrorKind::ClientSendTimeout, || "sending to the client".to_owned())
            }
        }
    }

    /// Ready when an HTTP/2 client resets its stream. HTTP/1 clients are watched where their bodies are read.
    pub(super) fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<Error> {
        let Protocol::Http2 { stream: Some(stream), .. } = &mut self.protocol else { return Poll::Pending };
        match ready!(stream.poll_reset(cx)) {
            Ok(reason) => {
                Poll::Ready(Error::new(ErrorKind::ClientGone, format!("the client reset its stream: {reason}")))
            }
            Err(error) => Poll::Ready(reset(error)),
        }
    }

    /// May something small wait in Pingora's buffer?
    pub(super) fn is_unflushed(&self) -> bool {
        self.unflushed
    }

    /// Push what waits in Pingora's buffer out: the pipe has run dry, or the message is about to be broken.
    pub(super) async fn flush_small(&mut self, client: &mut Client) -> Result<()> {
        if !std::mem::replace(&mut self.unflushed, false) || !matches!(self.protocol, Protocol::Http1) {
            return Ok(());
        }
        // Pingora flushes before it fails for a task that has failed, and gives that failure back.
        let marker = pingora_core::Error::new(FLUSHED);
        let tasks = vec![HttpTask::Body(None, false), HttpTask::Failed(marker)];
        let flushing = client.downstream_session.response_duplex_vec(tasks);
        match pingora_timeout::timeout(self.send_timeout, flushing).await {
            Ok(Err(error)) if *error.etype() != FLUSHED => Err(gone(error)),
            Ok(_) => Ok(()),
            Err(_) => {
                let text = format!("flushing to the client: nothing for {:?}", self.send_timeout);
                Err(Error::new(ErrorKind::ClientSendTimeout, text))
            }
        }
    }

    /// Has the header been queued?
    pub(super) fn header_sent(&self) -> bool {
        self.header_sent
    }

    /// Is the message complete once it is flushed?
    pub(super) fn is_ended(&self) -> bool {
        self.ended
    }

    /// Body bytes that the connection has accepted.
    pub(super) fn accepted(&self) -> u64 {
        self.accepted
    }
}

const FLUSHED: pingora_core::ErrorType = pingora_core::ErrorType::new("flushed");

fn queue_http1(client: &mut Client, run: &mut Bufs) {
    let last = run.is_last();
    while let Some(chunk) = run.pop() {
        let end = last && run.is_empty();
        client.downstream_session.send_downstream_proxy_task(HttpTask::Body(Some(chunk), end));
        if end {
            return;
        }
    }
    if last {
        client.downstream_session.send_downstream_proxy_task(HttpTask::Body(None, true));
    }
}

/// Send as much of the queue as the client's windows allow, then the end.
fn poll_http2(
    cx: &mut Context<'_>,
    stream: &mut Option<SendStream<Bytes>>,
    queue: &mut VecDeque<Bytes>,
    trailers: &mut Option<HeaderMap>,
    ended: bool,
) -> Poll<Result<()>> {
    // Without a stream the header, or the last frame, has ended the message.
    let Some(sending) = stream else { return Poll::Ready(Ok(())) };
    while let Some(chunk) = queue.front() {
        ready!(poll_capacity(cx, sending, chunk.len()))?;
        let chunk = queue.pop_front().unwrap_or_default();
        let end = ended && queue.is_empty() && trailers.is_none();
        // All of it, although only some may fit: cut to the window it would arrive in scraps, and clients count those.
        sending.send_data(chunk, end).map_err(reset)?;
        if end {
            *stream = None;
            return Poll::Ready(Ok(()));
        }
    }
    if ended {
        match trailers.take() {
            Some(trailers) => sending.send_trailers(trailers).map_err(reset)?,
            None => sending.send_data(Bytes::new(), true).map_err(reset)?,
        }
        *stream = None;
    }
    Poll::Ready(Ok(()))
}

/// Queue a run; small chunks that follow each other become one, since each chunk is a frame.
fn queue_http2(queue: &mut VecDeque<Bytes>, run: &mut Bufs) {
    let mut small = BytesMut::new();
    while let Some(chunk) = run.pop() {
        if chunk.len() < SMALL_FRAME && !(small.is_empty() && run.is_empty()) {
            small.extend_from_slice(&chunk);
            continue;
        }
        if !small.is_empty() {
            queue.push_back(small.split().freeze());
        }
        queue.push_back(chunk);
    }
    if !small.is_empty() {
        queue.push_back(small.freeze());
    }
}

/// Ready when the client's window, and the connection's buffer, have room for something.
fn poll_capacity(cx: &mut Context<'_>, sending: &mut SendStream<Bytes>, wanted: usize) -> Poll<Result<()>> {
    if sending.capacity() == 0 {
        sending.reserve_capacity(wanted);
    }
    loop {
        match sending.capacity() {
            0 => match ready!(sending.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(reset(error))),
                None => return Poll::Ready(Err(Error::new(ErrorKind::ClientGone, "the client reset its stream"))),
            },
            _ => return Poll::Ready(Ok(())),
        }
    }
}

fn reset(error: h2::Error) -> Error {
    Error::because(ErrorKind::ClientGone, "the client reset its stream", error)
}
