//! HTTP/2 to an upstream: Pingora's connector and streams behind the same [`Wire`] as everything else.

use super::connect::Connected;
use super::request_body::RequestBody;
use super::send_request::Limits;
use super::wire::{Early, Step, Wire};
use crate::error::{Error, ErrorKind, Result};
use crate::peers::{Peer, Upstream};
use crate::pipe::PipeWriter;
use crate::protocol::{BodyLength, Parsed};
use crate::timer::Timer;
use bytes::{Bytes, BytesMut};
use h2::SendStream;
use http::header::{CONTENT_LENGTH, HOST, UPGRADE};
use http::{HeaderMap, Version};
use pingora_core::connectors::http::v2::Connector;
use pingora_core::protocols::Stream;
use pingora_core::protocols::http::client::HttpSession;
use pingora_core::protocols::http::v2::client::Http2Session;
use pingora_core::upstreams::peer::Peer as _;
use pingora_http::RequestHeader;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

/// Open a connection: an HTTP/2 stream, or what the peer's ALPN answer says instead.
pub(super) async fn connect(connector: &Connector, peer: &Peer) -> pingora_core::Result<Connected> {
    match connector.new_http_session::<Peer, ()>(peer).await? {
        HttpSession::H2(session) => Ok(Connected::Http2(Box::new(session), false)),
        HttpSession::H1(session) => Ok(Connected::new_stream(session.into_inner())),
        HttpSession::Custom(()) => {
            Err(pingora_core::Error::explain(pingora_core::ErrorType::ConnectError, "not an HTTP connection"))
        }
    }
}

/// One HTTP/2 stream, for one attempt.
pub(super) struct Http2Wire {
    /// Taken when it goes back to the connector, which has to see every stream again.
    session: Option<Box<Http2Session>>,
    upstream: Arc<Upstream>,
    peer: Peer,
    reused: bool,
    request: Option<SendStream<Bytes>>,
    to_send: Bytes,
    send_error: Option<Error>,
    send_timer: Timer,
    read_timer: Timer,
    received_header: bool,
    data_ended: bool,
    trailers: Option<HeaderMap>,
    done: bool,
}

impl Http2Wire {
    /// Send the request header.
    ///
    /// # Errors
    /// The connection refuses it.
    pub(super) fn new(
        session: Box<Http2Session>,
        reused: bool,
        upstream: &Arc<Upstream>,
        peer: &Peer,
        request: RequestHeader,
        length: BodyLength,
        limits: Limits,
    ) -> Result<Self> {
        let mut wire = Http2Wire {
            session: Some(session),
            upstream: upstream.clone(),
            peer: peer.clone(),
            reused,
            request: None,
            to_send: Bytes::new(),
            send_error: None,
            send_timer: Timer::new(limits.send),
            read_timer: Timer::new(limits.read),
            received_header: false,
            data_ended: false,
            trailers: None,
            done: false,
        };
        let without_body = matches!(length, BodyLength::None | BodyLength::Known(0));
        let request = Box::new(http2_request(request, length, peer.tls())?);
        if let Some(session) = &mut wire.session {
            session
                .write_request_header(request, without_body)
                .map_err(|error| Error::because(ErrorKind::Send, format!("sending the request to {peer}"), error))?;
            wire.request = session.take_request_body_writer().filter(|_| !without_body);
        }
        Ok(wire)
    }

    fn poll_send_body(&mut self, cx: &mut Context<'_>, body: &mut RequestBody) -> Poll<Result<()>> {
        while let Some(request) = &mut self.request {
            if self.to_send.is_empty() {
                match ready!(body.poll_next(cx))? {
                    Some(chunk) => self.to_send = chunk,
                    None => {
                        let ended = request.send_data(Bytes::new(), true);
                        self.request = None;
                        return Poll::Ready(ended.map_err(|error| self.error(ErrorKind::Send, error)));
                    }
                }
                continue;
            }
            if request.capacity() == 0 {
                request.reserve_capacity(self.to_send.len());
                match request.poll_capacity(cx) {
                    Poll::Ready(Some(Ok(_))) => continue,
                    Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(self.error(ErrorKind::Send, error))),
                    Poll::Ready(None) => return Poll::Ready(Err(self.error(ErrorKind::Send, "the stream is closed"))),
                    Poll::Pending => {
                        let doing = || format!("sending the request to {}", self.peer);
                        return self.send_timer.poll_limit(cx, ErrorKind::SendTimeout, doing);
                    }
                }
            }
            self.send_timer.restart();
            // All of it: cut to the window it would arrive in scraps.
            if let Err(error) = request.send_data(std::mem::take(&mut self.to_send), false) {
                return Poll::Ready(Err(self.error(ErrorKind::Send, error)));
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>>> {
        let Some(session) = &mut self.session else { return Poll::Ready(Ok(None)) };
        match session.poll_read_response_body(cx) {
            Poll::Ready(Some(Ok(chunk))) => {
                self.read_timer.restart();
                Poll::Ready(Ok(Some(chunk)))
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(Err(self.error(ErrorKind::Truncated, error))),
            Poll::Ready(None) => Poll::Ready(Ok(None)),
            Poll::Pending => self.poll_read_limit(cx, "reading the body from"),
        }
    }

    /// Behind the data: trailers, and whether the end was a clean one.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Result<Step>> {
        let Some(session) = &mut self.session else { return Poll::Ready(Ok(Step::Done)) };
        let Poll::Ready(trailers) = pin!(session.read_trailers()).poll(cx) else {
            return self.poll_read_limit(cx, "reading the trailers from");
        };
        let clean = session.check_response_end_or_error();
        match (trailers, clean) {
            (Ok(trailers), Ok(true)) => {
                self.trailers = trailers;
                self.done = true;
                Poll::Ready(Ok(Step::Done))
            }
            (Err(error), _) | (_, Err(error)) => Poll::Ready(Err(self.error(ErrorKind::Truncated, error))),
            (Ok(_), Ok(false)) => {
                Poll::Ready(Err(self.error(ErrorKind::Truncated, "the stream ended before its message")))
            }
        }
    }

    /// As long as the request is being sent it is not the upstream that is waited for.
    fn poll_read_limit<T>(&mut self, cx: &mut Context<'_>, doing: &str) -> Poll<Result<T>> {
        if self.request.is_some() && self.send_error.is_none() {
            return Poll::Pending;
        }
        self.read_timer.poll_limit(cx, ErrorKind::ReadTimeout, || format!("{doing} {}", self.peer))
    }

    fn error(&self, kind: ErrorKind, cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
        Error::because(kind, format!("the HTTP/2 stream to {}", self.peer), cause)
    }
}

/// Pseudo-headers instead of `Host`, a length only where one is known.
fn http2_request(mut request: RequestHeader, length: BodyLength, tls: bool) -> Result<RequestHeader> {
    let host = request.remove_header(&HOST);
    request.remove_header(&UPGRADE);
    let uri = http::Uri::builder()
        .scheme(if tls { "https" } else { "http" })
        .authority(host.as_ref().map_or(&b"localhost"[..], |host| host.as_bytes()))
        .path_and_query(request.raw_path())
        .build()
        .map_err(|error| Error::because(ErrorKind::BadRequest, "a target that HTTP/2 cannot carry", error))?;
    request.set_uri(uri);
    request.set_version(Version::HTTP_2);
    if let BodyLength::Known(length) = length {
        request.insert_header(CONTENT_LENGTH, length)?;
    }
    Ok(request)
}

impl Wire for Http2Wire {
    fn poll_send(&mut self, cx: &mut Context<'_>, body: &mut RequestBody) -> Poll<Result<()>> {
        match ready!(self.poll_send_body(cx, body)) {
            Err(error) if error.kind() == ErrorKind::Send => {
                // The upstream may have answered before it stopped reading.
                self.send_error = Some(error);
                self.request = None;
                Poll::Ready(Ok(()))
            }
            Err(error) => {
                // Said once: neither a time limit that was reached nor a body that has failed must be asked again.
                self.request = None;
                Poll::Ready(Err(error))
            }
            Ok(()) => Poll::Ready(Ok(())),
        }
    }

    fn poll_header(&mut self, cx: &mut Context<'_>) -> Poll<Result<Parsed>> {
        let Some(session) = &mut self.session else {
            return Poll::Ready(Err(Error::new(ErrorKind::Internal, "the stream is gone")));
        };
        match session.poll_read_response_header(cx) {
            Poll::Ready(Ok(())) => {
                self.received_header = true;
                self.read_timer.restart();
                match session.response_header() {
                    Some(header) => Poll::Ready(Ok(Parsed::Done(header.clone(), 0))),
                    None => Poll::Ready(Err(self.error(ErrorKind::InvalidHeader, "no header"))),
                }
            }
            Poll::Ready(Err(error)) => {
                let local = error.is_reset() && !error.is_remote();
                let kind = if local { ErrorKind::InvalidHeader } else { ErrorKind::Closed };
                Poll::Ready(Err(self.send_error.take().unwrap_or_else(|| self.error(kind, error))))
            }
            Poll::Pending => self.poll_read_limit(cx, "waiting for the response header of"),
        }
    }

    fn take_early(&mut self) -> Result<Early> {
        if let Some(session) = &mut self.session {
            self.done = session
                .check_response_end_or_error()
                .map_err(|error| Error::because(ErrorKind::Truncated, "the HTTP/2 stream", error))?;
        }
        Ok(Early { body: BytesMut::new(), done: self.done })
    }

    fn poll_body(&mut self, cx: &mut Context<'_>, pipe: &mut PipeWriter) -> Poll<Result<Step>> {
        if !self.data_ended {
            ready!(pipe.poll_room(cx))?;
            match ready!(self.poll_data(cx))? {
                // A frame is not cut to the room there is: it is at most 64 KiB, and scraps would become frames again.
                Some(chunk) => {
                    pipe.push(chunk);
                    return Poll::Ready(Ok(Step::More));
                }
                None => self.data_ended = true,
            }
        }
        self.poll_end(cx)
    }

    fn trailers(&mut self) -> Option<HeaderMap> {
        self.trailers.take()
    }

    fn release(self: Box<Self>) {}

    fn into_tunnel(self: Box<Self>) -> Option<(Stream, Bytes)> {
        None
    }

    fn is_reused(&self) -> bool {
        self.reused
    }

    fn has_sent(&self) -> bool {
        true
    }

    fn has_received(&self) -> bool {
        self.received_header
    }
}

impl Drop for Http2Wire {
    /// The connector must see every stream again, or it leaks the stream's place; an unfinished one is reset first.
    fn drop(&mut self) {
        let Some(mut session) = self.session.take() else { return };
        if let Some(request) = &mut self.request {
            request.send_reset(h2::Reason::CANCEL);
        }
        if !self.done {
            session.shutdown();
        }
        if let Some(connector) = &self.upstream.connectors.http2 {
            connector.release_http_session(*session, &self.peer, self.upstream.connectors.idle_timeout);
        }
    }
}
