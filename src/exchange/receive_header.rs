//! Phase 4: the upstream's header, while the request is still being sent and the client is watched.

use super::finish;
use super::request_body::RequestBody;
use super::send_request::ByteStream;
use super::wire::{Early, Step, Wire};
use crate::bufs::Bufs;
use crate::chain::Pass;
use crate::client::ClientBody;
use crate::error::{Error, ErrorKind, Result};
use crate::headers;
use crate::peers::pool::Connection;
use crate::pipe::PipeWriter;
use crate::protocol::Parsed;
use bytes::{Buf, Bytes};
use http::header::CONTENT_LENGTH;
use http::{HeaderMap, StatusCode};
use pingora_core::protocols::Stream;
use pingora_http::ResponseHeader;
use std::future::Future;
use std::future::poll_fn;
use std::pin::pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;
use tokio::io::AsyncReadExt;

/// A final header.
pub(crate) enum Received {
    Header(ResponseHeader),
    Upgraded(ResponseHeader),
}

/// Phases 3 and 4 of one attempt: send the request, and its body as it comes, until the header is there; then
/// `upstream_response_filter`. Interim answers are dropped, as nginx drops them.
pub(crate) async fn exchange_headers(
    pass: &mut Pass<'_>,
    wire: &mut dyn Wire,
    body: &mut RequestBody,
    client: &mut ClientBody,
) -> Result<Received> {
    let parsed = loop {
        #[expect(clippy::large_enum_variant, reason = "it lives on the stack, for a moment")]
        enum Event {
            Header(Result<Parsed>),
            Client(Result<Bufs>),
        }
        let event = poll_fn(|cx| {
            if let Poll::Ready(Err(error)) = wire.poll_send(cx, body) {
                return Poll::Ready(Event::Header(Err(error)));
            }
            if let Poll::Ready(parsed) = wire.poll_header(cx) {
                return Poll::Ready(Event::Header(parsed));
            }
            client.poll_read(cx, &mut pass.session).map(Event::Client)
        })
        .await;
        match event {
            Event::Header(Ok(Parsed::Interim(..) | Parsed::Partial | Parsed::Consumed(_) | Parsed::Skipped(_))) => {}
            Event::Header(parsed) => break parsed?,
            Event::Client(run) => {
                let mut run = run?;
                pass.request_body_filter(&mut run).await?;
                client.pass_on(run);
            }
        }
    };
    let (mut header, upgraded) = match parsed {
        Parsed::Upgraded(header, _) => (header, true),
        Parsed::Done(header, _) | Parsed::Interim(header, _) => (header, false),
        Parsed::Partial | Parsed::Consumed(_) | Parsed::Skipped(_) => {
            return Err(Error::new(ErrorKind::Internal, "no header"));
        }
    };
    note_header(pass, &header);
    if !upgraded {
        headers::strip_hop_by_hop_response(&mut header);
    }
    pass.upstream_response_filter(&mut header).await?;
    Ok(if upgraded { Received::Upgraded(header) } else { Received::Header(header) })
}

/// Statuses of answers that have no body, whatever their headers say (RFC 9110 15.3.5, 15.4.5).
pub(super) fn is_bodiless(status: StatusCode) -> bool {
    matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
}

fn note_header(pass: &mut Pass<'_>, header: &ResponseHeader) {
    if let Some(attempt) = pass.session.attempts_mut().last_mut() {
        attempt.status = Some(header.status.as_u16());
        attempt.header_time = Some(Instant::now() - attempt.started);
    }
}

impl Wire for ByteStream {
    fn poll_send(&mut self, cx: &mut Context<'_>, body: &mut RequestBody) -> Poll<Result<()>> {
        ByteStream::poll_send(self, cx, body)
    }

    fn poll_header(&mut self, cx: &mut Context<'_>) -> Poll<Result<Parsed>> {
        loop {
            let parsed = self.codec.process_header(&self.received)?;
            match &parsed {
                Parsed::Partial => ready!(self.poll_read_header(cx))?,
                Parsed::Consumed(length) => {
                    self.consume(*length)?;
                    self.header_consumed += length;
                    // It may be what the request has waited for.
                    return Poll::Ready(Ok(parsed));
                }
                Parsed::Skipped(length) => self.consume(*length)?,
                Parsed::Interim(_, length) => {
                    self.consume(*length)?;
                    return Poll::Ready(Ok(parsed));
                }
                Parsed::Done(header, length) => {
                    self.consume(*length)?;
                    self.begin_body(header)?;
                    return Poll::Ready(Ok(parsed));
                }
                Parsed::Upgraded(_, length) => {
                    self.consume(*length)?;
                    if !self.upgrades {
                        return Poll::Ready(
                            Err(self.invalid_header("a switch of protocols that it was not asked for")),
                        );
                    }
                    return Poll::Ready(Ok(parsed));
                }
            }
        }
    }

    fn take_early(&mut self) -> Result<Early> {
        let mut body = std::mem::take(&mut self.received);
        let input = self.input_filter(&mut body)?;
        body.truncate(input.body);
        Ok(Early { body, done: input.done })
    }

    fn poll_body(&mut self, cx: &mut Context<'_>, pipe: &mut PipeWriter) -> Poll<Result<Step>> {
        self.poll_body_step(cx, pipe)
    }

    fn trailers(&mut self) -> Option<HeaderMap> {
        self.codec.trailers()
    }

    fn release(self: Box<Self>) {
        finish::release(*self);
    }

    fn into_tunnel(mut self: Box<Self>) -> Option<(Stream, Bytes)> {
        Some((self.connection.take()?.stream, std::mem::take(&mut self.received).freeze()))
    }

    fn is_reused(&self) -> bool {
        self.reused
    }

    fn has_sent(&self) -> bool {
        ByteStream::has_sent(self)
    }

    fn has_received(&self) -> bool {
        self.has_received
    }
}

impl ByteStream {
    /// Read more of the header.
    fn poll_read_header(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let room = self.header_size.saturating_sub(self.header_consumed + self.received.len());
        if room == 0 {
            let what = format!("a header larger than {} bytes (buffer_size)", self.header_size);
            return Poll::Ready(Err(self.invalid_header(&what)));
        }
        if self.received.len() == self.received.capacity() {
            self.received.reserve(room);
        }
        let Some(Connection { stream, .. }) = &mut self.connection else {
            return Poll::Ready(Err(self.closed("is gone", None)));
        };
        let read = pin!(stream.read_buf(&mut self.received)).poll(cx);
        match read {
            Poll::Ready(Ok(0)) => Poll::Ready(Err(self.closed("closed the connection", None))),
            Poll::Ready(Ok(_)) => {
                self.has_received = true;
                self.read_timer.restart();
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(self.closed("broke the connection", Some(error)))),
            // As long as the request is being sent it is not the upstream that is waited for.
            Poll::Pending if !self.upstreams_turn() => Poll::Pending,
            Poll::Pending => {
                let doing = || format!("waiting for the response header of {}", self.peer);
                self.read_timer.poll_limit(cx, ErrorKind::ReadTimeout, doing)
            }
        }
    }

    /// What the codec is done with.
    fn consume(&mut self, length: usize) -> Result<()> {
        if length > self.received.len() {
            return Err(Error::new(ErrorKind::Internal, "a codec has consumed more than there was"));
        }
        self.received.advance(length);
        Ok(())
    }

    /// A final header: what it says of the body, whatever the protocol, is held to.
    fn begin_body(&mut self, header: &ResponseHeader) -> Result<()> {
        let status = header.status.as_u16();
        if !(200..=599).contains(&status) {
            return Err(self.invalid_header(&format!("the status {status}")));
        }
        let mut lengths = header.headers.get_all(CONTENT_LENGTH).iter();
        let length = match (lengths.next(), lengths.next()) {
            (None, _) => return Ok(()),
            (Some(length), None) => headers::parse_content_length(length.as_bytes()),
            (Some(_), Some(_)) => None,
        };
        let length = length.ok_or_else(|| self.invalid_header("a malformed Content-Length, or two of them"))?;
        let bodiless = self.is_head || is_bodiless(header.status);
        self.body_left = (!bodiless).then_some(length);
        Ok(())
    }

    fn invalid_header(&self, what: &str) -> Error {
        Error::new(ErrorKind::InvalidHeader, format!("{} sent {what}", self.peer))
    }

    fn closed(&mut self, what: &str, cause: Option<std::io::Error>) -> Error {
        if let Some(error) = self.take_send_error() {
            return error;
        }
        let text = format!("{} {what} before its response header was complete", self.peer);
        match cause {
            Some(cause) => Error::because(ErrorKind::Closed, text, cause),
            None => Error::new(ErrorKind::Closed, text),
        }
    }
}
