//! Phase 5, the upstream's half: the body into the pipe, and the connection free at its end.

use super::receive_header::is_bodiless;
use super::request_body::RequestBody;
use super::send_request::ByteStream;
use super::wire::{Early, Step, Wire};
use super::{Response, finish};
use crate::bufs::Bufs;
use crate::conf;
use crate::error::{Error, ErrorKind, Result};
use crate::peers::Chosen;
use crate::peers::pool::Connection;
use crate::pipe::{Limits, PipeConf, PipeReader, PipeStats, PipeWriter, pipe};
use crate::protocol::{BodyLength, Input};
use crate::routes::Route;
use crate::session::Session;
use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http::header::CONTENT_LENGTH;
use pingora_http::ResponseHeader;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;
use tokio::io::AsyncReadExt;

/// A response body, as its reader gets it.
pub(crate) enum ResponseBody {
    /// It came whole with its header; the upstream is free already.
    Whole { body: Bufs, trailers: Option<HeaderMap>, upstream: UpstreamReport },
    /// It comes through a pipe, while its [`Fill`] is polled.
    Piped { reader: PipeReader, fill: Box<Fill> },
}

/// What is known of the upstream's side once it is done.
#[derive(Clone, Debug)]
pub(crate) struct UpstreamReport {
    pub(crate) free_at: Instant,
    pub(crate) bytes_received: u64,
    pub(crate) outcome: &'static str,
}

impl UpstreamReport {
    /// It is about the session's last attempt.
    pub(crate) fn note(&self, session: &mut Session<'_>) {
        session.outcome.upstream_free_at = Some(self.free_at);
        if let Some(attempt) = session.attempts_mut().last_mut() {
            attempt.outcome = Some(self.outcome);
            attempt.bytes_received = self.bytes_received;
            attempt.response_time = Some(self.free_at.saturating_duration_since(attempt.started));
        }
    }
}

impl ResponseBody {
    /// Take over an answered attempt: `is_head` if the client sees no body anyway, `rest` is what is left of the
    /// request body.
    pub(super) fn take_over(
        route: &Arc<Route>,
        is_head: bool,
        header: ResponseHeader,
        mut wire: Box<dyn Wire>,
        chosen: Chosen,
        rest: RequestBody,
        limits: &Arc<Limits>,
    ) -> Response {
        chosen.report(false);
        let status = header.status.as_u16();
        let early = wire.take_early();
        if is_head || is_bodiless(header.status) {
            // Like nginx, which finalizes such a request with its header: a body that is still coming is not waited
            // for.
            return Self::bodiless(header, wire, early);
        }
        let early = match early {
            Ok(Early { body, done: true }) => return Self::whole(header, wire, body),
            early => early,
        };
        let (writer, reader) = pipe(&pipe_conf(&route.conf, &header), limits);
        let mut fill = Fill {
            route: route.clone(),
            wire: Some(wire),
            rest,
            pipe: Some(writer),
            chosen: Some(chosen),
            status,
            report: None,
            counted: PipeStats::default(),
        };
        let length = header.headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        fill.begin(early.map(|early| early.body), length);
        Response::Message(header, ResponseBody::Piped { reader, fill: Box::new(fill) })
    }

    /// The next run, for a reader without a client: asking for it accepts the one before. An end is said as often as it
    /// is asked for.
    pub(crate) fn poll_run(&mut self, cx: &mut Context<'_>) -> Poll<Result<Bufs>> {
        match self {
            ResponseBody::Whole { body, .. } => Poll::Ready(Ok(std::mem::replace(body, Bufs::end_of_body()))),
            ResponseBody::Piped { reader, fill } => {
                reader.accepted();
                loop {
                    let moved = fill.poll_step(cx) == Poll::Ready(true);
                    if let Poll::Ready(run) = reader.poll_read(cx) {
                        return Poll::Ready(run);
                    }
                    if !moved {
                        return Poll::Pending;
                    }
                }
            }
        }
    }

    /// Tell the session, and the route's metrics, what has become of it.
    pub(crate) fn note(mut self, session: &mut Session<'_>) {
        match &mut self {
            ResponseBody::Whole { upstream, .. } => upstream.note(session),
            ResponseBody::Piped { reader, fill } => {
                fill.report().note(session);
                session.buffered = reader.stats();
                fill.count(&session.buffered);
            }
        }
    }

    /// The client gets no body, whatever the upstream sends.
    fn bodiless(header: ResponseHeader, wire: Box<dyn Wire>, early: Result<Early>) -> Response {
        let (bytes_received, done) = early.map_or((0, false), |early| (early.body.len(), early.done));
        let upstream = UpstreamReport {
            free_at: Instant::now(),
            bytes_received: bytes_received as u64,
            outcome: finish::status_class(header.status.as_u16()),
        };
        if done {
            wire.release();
        }
        let body = Bufs::from_chunk(Bytes::new(), true);
        Response::Message(header, ResponseBody::Whole { body, trailers: None, upstream })
    }

    /// It came with its header: the short way.
    fn whole(header: ResponseHeader, mut wire: Box<dyn Wire>, body: BytesMut) -> Response {
        let body = Bufs::from_chunk(body.freeze(), true);
        let upstream = UpstreamReport {
            free_at: Instant::now(),
            bytes_received: body.len() as u64,
            outcome: finish::status_class(header.status.as_u16()),
        };
        let trailers = wire.trailers();
        wire.release();
        Response::Message(header, ResponseBody::Whole { body, trailers, upstream })
    }
}

/// The route's buffering, which `X-Accel-Buffering` overrides unless ignored.
fn pipe_conf(route: &conf::Route, header: &ResponseHeader) -> PipeConf {
    let conf = &route.buffering;
    let asked = header
        .headers
        .get("x-accel-buffering")
        .filter(|_| !route.ignore_headers.contains(&conf::IgnoredHeader::XAccelBuffering));
    let buffering = match asked.map(|value| value.as_bytes()) {
        Some(value) if value.eq_ignore_ascii_case(b"yes") => true,
        Some(value) if value.eq_ignore_ascii_case(b"no") => false,
        _ => conf.enabled,
    };
    PipeConf {
        buffering,
        buffer_size: conf.buffer_size,
        buffers_number: conf.number,
        buffers_size: conf.size,
        busy_buffers_size: conf.busy_buffers_size,
        max_temp_file_size: conf.max_temp_file_size,
        temp_file_write_size: conf.temp_file_write_size,
    }
}

/// The future that reads the upstream into the pipe, and goes on sending the request if need be. It is polled, step by
/// step, beside whoever reads the pipe; dropped, it closes the upstream's connection and marks the pipe truncated.
pub(crate) struct Fill {
    route: Arc<Route>,
    wire: Option<Box<dyn Wire>>,
    rest: RequestBody,
    pipe: Option<PipeWriter>,
    chosen: Option<Chosen>,
    status: u16,
    report: Option<UpstreamReport>,
    /// What the route's metrics know of the pipe.
    counted: PipeStats,
}

impl Fill {
    /// What came with the header goes first.
    fn begin(&mut self, early: Result<BytesMut>, content_length: Option<u64>) {
        match (early, &mut self.pipe) {
            (Ok(body), Some(pipe)) => {
                let rest = content_length.map(|length| length.saturating_sub(body.len() as u64));
                pipe.preread(body);
                if let Some(rest) = rest {
                    pipe.expect(rest);
                }
            }
            (Ok(_), None) => {}
            (Err(error), _) => self.end(Err(error)),
        }
    }

    /// Go one step. `Ready(true)` after progress, `Ready(false)` when the upstream is done with.
    pub(crate) fn poll_step(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        let (Some(wire), Some(pipe)) = (&mut self.wire, &mut self.pipe) else { return Poll::Ready(false) };
        // A client that leaves in the middle of its request ends the exchange at its own place; here it only stops.
        if let Poll::Ready(Ok(())) = wire.poll_send(cx, &mut self.rest) {
            // Nobody needs the request body any more: its memory and file are free while the response goes on.
            self.rest = RequestBody::None(BodyLength::None);
        }
        match wire.poll_body(cx, pipe) {
            Poll::Ready(Ok(Step::More)) => {}
            Poll::Ready(Ok(Step::Done)) => self.end(Ok(())),
            Poll::Ready(Err(error)) => self.end(Err(error)),
            Poll::Pending => {
                let stats = pipe.stats();
                self.count(&stats);
                return Poll::Pending;
            }
        }
        Poll::Ready(true)
    }

    /// Bring the route's metrics up to what the pipe has done.
    pub(crate) fn count(&mut self, stats: &PipeStats) {
        self.route.metrics.piped(stats, &self.counted);
        self.counted = stats.clone();
    }

    /// The upstream is done, one way or the other.
    fn end(&mut self, ended: Result<()>) {
        let (Some(mut wire), Some(pipe)) = (self.wire.take(), self.pipe.take()) else { return };
        let outcome = match &ended {
            Ok(()) => finish::status_class(self.status),
            Err(error) => finish::outcome_of(error),
        };
        let bytes_received = pipe.stats().bytes_in;
        match ended {
            Ok(()) => {
                pipe.finish(wire.trailers());
                wire.release();
            }
            Err(error) => pipe.fail(error),
        }
        self.chosen = None;
        self.rest = RequestBody::None(BodyLength::None);
        self.report = Some(UpstreamReport { free_at: Instant::now(), bytes_received, outcome });
    }

    /// What became of the upstream; before its end: `aborted`, since then it is about to be dropped.
    pub(crate) fn report(&self) -> UpstreamReport {
        self.report.clone().unwrap_or_else(|| UpstreamReport {
            free_at: Instant::now(),
            bytes_received: self.pipe.as_ref().map_or(0, |pipe| pipe.stats().bytes_in),
            outcome: "aborted",
        })
    }
}

impl ByteStream {
    /// The codec's input filter, held to the `Content-Length` (nginx: "upstream sent more data than specified").
    pub(super) fn input_filter(&mut self, raw: &mut [u8]) -> Result<Input> {
        let mut input = self.codec.input_filter(raw)?;
        self.message_done = input.done;
        let Some(left) = self.body_left else { return Ok(input) };
        let body = input.body as u64;
        if body > left {
            log::warn!("{} sent more than its Content-Length says", self.peer);
            self.excess = true;
            // What it fits into is complete for the client; the rest is not waited for.
            input = Input { body: usize::try_from(left).unwrap_or(usize::MAX), done: true };
        }
        self.body_left = Some(left.saturating_sub(body));
        if input.done {
            self.broken = self.check_length().err();
            input.done = self.broken.is_none();
        }
        Ok(input)
    }

    /// The message has ended: with the length that it was said to have?
    fn check_length(&self) -> Result<()> {
        match self.body_left {
            None | Some(0) => Ok(()),
            Some(left) => {
                let text = format!("{} ended its answer {left} bytes before its Content-Length", self.peer);
                Err(Error::new(ErrorKind::Truncated, text))
            }
        }
    }

    fn end_of_input(&mut self) -> Result<()> {
        self.codec.end_of_input()?;
        self.check_length()
    }

    /// Read once into the pipe.
    pub(super) fn poll_body_step(&mut self, cx: &mut Context<'_>, pipe: &mut PipeWriter) -> Poll<Result<Step>> {
        if let Some(error) = self.broken.take() {
            return Poll::Ready(Err(error));
        }
        let mut buffer = match self.reading.take() {
            Some(buffer) => buffer,
            None => ready!(pipe.poll_buffer(cx))?,
        };
        let Some(Connection { stream, .. }) = &mut self.connection else {
            return Poll::Ready(Err(Error::new(ErrorKind::Internal, "the connection is gone")));
        };
        let read = pin!(stream.read_buf(&mut buffer)).poll(cx);
        match read {
            Poll::Ready(Ok(0)) => {
                pipe.commit(buffer);
                Poll::Ready(self.end_of_input().map(|()| Step::Done))
            }
            Poll::Ready(Ok(_)) => {
                self.read_timer.restart();
                let input = self.input_filter(&mut buffer);
                buffer.truncate(input.as_ref().map_or(0, |input| input.body));
                pipe.commit(buffer);
                Poll::Ready(Ok(if input?.done { Step::Done } else { Step::More }))
            }
            Poll::Ready(Err(cause)) => {
                let text = format!("{} broke the connection in the middle of the body", self.peer);
                Poll::Ready(Err(Error::because(ErrorKind::Truncated, text, cause)))
            }
            Poll::Pending => {
                self.reading = Some(buffer);
                if !self.upstreams_turn() {
                    return Poll::Pending;
                }
                let doing = || format!("reading the body from {}", self.peer);
                self.read_timer.poll_limit(cx, ErrorKind::ReadTimeout, doing)
            }
        }
    }
}
