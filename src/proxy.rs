//! The only [`ProxyHttp`]: Pingora's outer phases around the engine, which answers every request in
//! `proxy_upstream_filter`.

use crate::bufs::Bufs;
use crate::chain::Pass;
use crate::client::deliver::{Source, deliver};
use crate::client::{ClientBody, linger};
use crate::conf::{Captures, IgnoredHeader};
use crate::error::{Error, ErrorKind, Result};
use crate::exchange::process_body::{Fill, ResponseBody, UpstreamReport};
use crate::exchange::request_body::RequestBody;
use crate::exchange::{Response, exchange};
use crate::headers;
use crate::paths;
use crate::phases::Flow;
use crate::pipe::{Limits, PipeReader, Spool};
use crate::protocol::BodyLength;
use crate::routes::{Route, Service};
use crate::session::{Session, response_header};
use arc_swap::ArcSwap;
use async_trait::async_trait;
use bytes::Bytes;
use pingora_core::protocols::http::ServerSession;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_http::ResponseHeader;
use pingora_proxy::{FailToProxy, ProxyHttp, Session as Client};
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

/// One service as Pingora runs it.
pub(crate) struct Proxy {
    pub(crate) service: Arc<ArcSwap<Service>>,
    pub(crate) limits: Arc<Limits>,
}

#[async_trait]
impl ProxyHttp for Proxy {
    type CTX = Instant;

    fn new_ctx(&self) -> Self::CTX {
        Instant::now()
    }

    /// Never called: the engine answers every request before Pingora would choose a peer.
    async fn upstream_peer(&self, _: &mut Client, _: &mut Self::CTX) -> pingora_core::Result<Box<HttpPeer>> {
        Err(pingora_core::Error::explain(pingora_core::ErrorType::InternalError, "the engine has not answered"))
    }

    async fn proxy_upstream_filter(&self, client: &mut Client, started: &mut Self::CTX) -> pingora_core::Result<bool> {
        match self.serve(client, *started).await {
            Ok(()) => Ok(false),
            // Pingora must not end this message: whatever it does for an error leaves the end out.
            Err(error) => {
                Err(pingora_core::Error::because(pingora_core::ErrorType::InternalError, "broken message", error))
            }
        }
    }

    /// All that may be said to the client has been said.
    async fn fail_to_proxy(&self, _: &mut Client, _: &pingora_core::Error, _: &mut Self::CTX) -> FailToProxy {
        FailToProxy { error_code: 0, can_reuse_downstream: false }
    }

    /// The engine logs with more to say.
    fn suppress_error_log(&self, _: &Client, _: &Self::CTX, _: &pingora_core::Error) -> bool {
        true
    }
}

impl Proxy {
    /// One request from its header to its last byte. `Err`: the message must be broken.
    async fn serve(&self, client: &mut Client, started: Instant) -> Result<()> {
        let framing = request_framing(client);
        let service = self.service.load_full();
        let (route, captures) = find_route(&service, client);
        prepare(client, &route);
        let session = Session::new(client, service, route.clone(), captures, started);
        let mut pass = Pass::new(session, &route.chain);
        let mut body = ClientBody::new(&route.conf, has_body(&framing));
        let served = guarded(pin!(self.respond(&mut pass, &mut body, framing))).await;
        let ended = match served {
            Err(error) => self.fail(&mut pass, &mut body, error).await,
            Ok(()) => Ok(()),
        };
        let error = pass.session.outcome.error.take();
        pass.logging(error.as_ref()).await;
        pass.session.outcome.error = error;
        drop(pass);
        if ended.is_ok() && !body.is_done() {
            linger(client).await;
        }
        ended
    }

    /// Phases 1 to 5.
    async fn respond(&self, pass: &mut Pass<'_>, body: &mut ClientBody, framing: Result<BodyLength>) -> Result<()> {
        let length = framing?;
        headers::check_target(pass.session.request())?;
        if pass.request_filter().await? == Flow::Done {
            let answer = pass.session.take_answer();
            let Some(answer) = answer else {
                return Err(Error::new(ErrorKind::Filter, "a filter said it has answered, and had not"));
            };
            return deliver_whole(pass, answer.header, answer.body, body).await;
        }
        let route = pass.session.route_arc().clone();
        let Some(upstream) = &route.upstream else {
            let text = match Arc::ptr_eq(&route, &pass.session.service().no_route) {
                true => "no route matches",
                false => "no filter has answered, and the route has no upstream",
            };
            return Err(Error::new(ErrorKind::NoRoute, text));
        };
        let mut request_body = self.request_body(pass, body, length).await?;
        match exchange(pass, upstream, &self.limits, &mut request_body, body).await? {
            Response::Upgraded(header, tunnel) => {
                let header = pass.response_filter_alone(header).await?;
                tunnel.run(&mut pass.session, header).await
            }
            Response::Message(mut header, response) => {
                take_accel(pass, &mut header);
                for name in &route.conf.hide_headers {
                    header.remove_header(name);
                }
                deliver_message(pass, header, response, body).await
            }
        }
    }

    /// Phase 1's end: the request body stored, or set up to be streamed.
    async fn request_body(
        &self,
        pass: &mut Pass<'_>,
        body: &mut ClientBody,
        length: BodyLength,
    ) -> Result<RequestBody> {
        let conf = &pass.session.route_arc().clone().conf;
        if let (BodyLength::Known(length), Some(limit)) = (length, conf.client_max_body_size)
            && length > limit
        {
            let text = format!("the request body has {length} bytes, client_max_body_size is {limit}");
            return Err(Error::new(ErrorKind::BodyTooLarge, text));
        }
        if body.is_done() {
            return Ok(RequestBody::None(length));
        }
        body.expect_continue(&mut pass.session).await?;
        let length = if pass.filters_request_body() { BodyLength::Unknown } else { length };
        let needs_length = length == BodyLength::Unknown && pass.session.route().protocol.needs_body_length();
        if !conf.request_buffering && !needs_length {
            let (sender, streamed) = RequestBody::streamed(length);
            body.stream_to(sender);
            return Ok(streamed);
        }
        let memory = usize::try_from(conf.client_body_buffer_size).unwrap_or(usize::MAX);
        let mut spool = Spool::new(memory, &self.limits);
        while let Some(mut run) = body.read(&mut pass.session).await? {
            pass.request_body_filter(&mut run).await?;
            while let Some(chunk) = run.pop() {
                spool.append(chunk).await?;
            }
        }
        Ok(RequestBody::stored(spool))
    }

    /// The request has failed: an error page, if nothing has gone out yet.
    async fn fail(&self, pass: &mut Pass<'_>, body: &mut ClientBody, error: Error) -> Result<()> {
        log_failure(&pass.session, &error);
        body.abandon();
        let gone = error.kind() == ErrorKind::ClientGone;
        if error.is_client()
            && let Some(client) = pass.session.client_mut()
        {
            // Where a malformed request ends nobody knows: what follows on this connection is not looked at.
            client.set_keepalive(None);
        }
        let status = error.status();
        pass.session.outcome.error = Some(error);
        if gone || pass.session.outcome.header_sent {
            if gone {
                pass.session.outcome.status = status;
            }
            return Err(Error::new(ErrorKind::ClientGone, "the message is broken off"));
        }
        if self.error_page(pass, body, status).await.is_ok() {
            return Ok(());
        }
        if pass.session.outcome.header_sent {
            return Err(Error::new(ErrorKind::Internal, "the error page is broken off"));
        }
        // A filter has failed on the error page too.
        pass.leave_filters();
        self.error_page(pass, body, status).await
    }

    async fn error_page(&self, pass: &mut Pass<'_>, body: &mut ClientBody, status: u16) -> Result<()> {
        let mut header = response_header(status)?;
        let reason = header.status.canonical_reason().unwrap_or("Error");
        let text = Bytes::from(format!("{status} {reason}\n"));
        header.insert_header(http::header::CONTENT_TYPE, "text/plain; charset=utf-8")?;
        header.set_content_length(text.len())?;
        if let Some(allow) = pass.session.outcome.error.as_ref().and_then(Error::allow) {
            header.insert_header(http::header::ALLOW, allow)?;
        }
        deliver_whole(pass, header, text, body).await
    }
}

fn find_route(service: &Service, client: &Client) -> (Arc<Route>, Captures) {
    let request = client.req_header();
    let host = headers::without_port(headers::host(request).unwrap_or(""));
    // A path that cannot be made sense of is refused before any of its route is used.
    let path = paths::normalize(request.uri.path().as_bytes()).unwrap_or_default();
    match service.conf.table.find(host, &String::from_utf8_lossy(&path), &request.method) {
        Some(found) => (service.routes[found.index].clone(), found.captures),
        None => (service.no_route.clone(), Captures::default()),
    }
}

/// A panic becomes an error. The future stays where it is: it is large, and moving it costs more than running it.
async fn guarded(mut serving: Pin<&mut impl Future<Output = Result<()>>>) -> Result<()> {
    poll_fn(|cx| {
        let polled = catch_unwind(AssertUnwindSafe(|| serving.as_mut().poll(cx)));
        polled.unwrap_or_else(|_| Poll::Ready(Err(Error::new(ErrorKind::Internal, "a panic in the engine"))))
    })
    .await
}

/// What the client's connection needs before anything is read from it or written to it.
fn prepare(client: &mut Client, route: &Route) {
    // Decided while the request still is as it was received: filters may change it.
    client.is_body_empty();
    client.set_proxy_tasks_enabled(true);
    client.set_pipelining_enabled(true);
    client.set_abort_on_close(!route.conf.ignore_client_abort);
    // The engine keeps its own time.
    client.set_read_timeout(None);
    client.set_write_timeout(None);
    if client.get_keepalive().is_some() {
        let seconds = route.conf.client.keepalive_timeout.as_secs_f64().ceil() as u64;
        client.set_keepalive((seconds > 0).then_some(seconds));
    }
    route.metrics.begun();
}

/// How the client framed its body; ambiguous: [`ErrorKind::BadRequest`].
fn request_framing(client: &Client) -> Result<BodyLength> {
    match &*client.downstream_session {
        ServerSession::H1(session) => {
            let raw = session.get_headers_raw_bytes();
            headers::request_framing(Some(&raw), client.req_header())
        }
        ServerSession::H2(session) => {
            if session.is_body_done() {
                return Ok(BodyLength::None);
            }
            headers::request_framing(None, client.req_header())
        }
        _ => headers::request_framing(None, client.req_header()),
    }
}

fn has_body(framing: &Result<BodyLength>) -> bool {
    !matches!(framing, Ok(BodyLength::None | BodyLength::Known(0)))
}

/// `X-Accel-*` speak to the proxy, not to the client.
fn take_accel(pass: &mut Pass<'_>, header: &mut ResponseHeader) {
    let ignored = pass.session.route().conf.ignore_headers.contains(&IgnoredHeader::XAccelLimitRate);
    if let Some(rate) = header.headers.get("x-accel-limit-rate").filter(|_| !ignored)
        && let Some(rate) = rate.to_str().ok().and_then(|rate| rate.parse().ok())
    {
        pass.session.set_limit_rate(rate);
    }
    let accel: Vec<_> = header.headers.keys().filter(|name| name.as_str().starts_with("x-accel-")).cloned().collect();
    for name in accel {
        header.remove_header(&name);
    }
}

async fn deliver_whole(pass: &mut Pass<'_>, header: ResponseHeader, text: Bytes, body: &mut ClientBody) -> Result<()> {
    deliver(pass, header, Source::Whole(Bufs::from_chunk(text, true), None), body).await
}

async fn deliver_message(
    pass: &mut Pass<'_>,
    header: ResponseHeader,
    response: ResponseBody,
    body: &mut ClientBody,
) -> Result<()> {
    match response {
        ResponseBody::Whole { body: whole, trailers, upstream } => {
            note_upstream(&mut pass.session, &upstream);
            deliver(pass, header, Source::Whole(whole, trailers), body).await
        }
        ResponseBody::Piped { mut reader, mut fill } => {
            let delivered = {
                let delivery = pin!(deliver(pass, header, Source::Pipe(&mut reader), body));
                beside(&mut fill, delivery).await
            };
            // An upstream that still waits for the rest of the request would never come to its end.
            let left = delivered.as_ref().is_err_and(Error::is_client) && !body.is_awaited();
            if pass.session.route().conf.ignore_client_abort && left {
                run_to_its_end(&mut fill, &mut reader).await;
            }
            note_upstream(&mut pass.session, &fill.report());
            pass.session.buffered = reader.stats();
            fill.count(&pass.session.buffered);
            delivered
        }
    }
}

/// Poll the upstream's half beside the client's, in one task.
async fn beside<T>(fill: &mut Fill, mut delivery: Pin<&mut impl Future<Output = T>>) -> T {
    poll_fn(|cx| {
        loop {
            let moved = fill.poll_step(cx) == Poll::Ready(true);
            if let Poll::Ready(delivered) = delivery.as_mut().poll(cx) {
                return Poll::Ready(delivered);
            }
            if !moved {
                return Poll::Pending;
            }
        }
    })
    .await
}

/// The client has gone, and the upstream may finish all the same: its body is read and thrown away.
async fn run_to_its_end(fill: &mut Fill, reader: &mut PipeReader) {
    let drained = poll_fn(|cx: &mut Context<'_>| {
        reader.accepted();
        match reader.poll_read(cx) {
            Poll::Ready(Ok(run)) if !run.is_last() => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Poll::Ready(_) => Poll::Ready(()),
            Poll::Pending => Poll::Pending,
        }
    });
    beside(fill, pin!(drained)).await;
}

fn note_upstream(session: &mut Session<'_>, report: &UpstreamReport) {
    session.outcome.upstream_free_at = Some(report.free_at);
    if let Some(attempt) = session.attempts_mut().last_mut() {
        attempt.outcome = Some(report.outcome);
        attempt.bytes_received = report.bytes_received;
        attempt.response_time = Some(report.free_at.saturating_duration_since(attempt.started));
    }
}

fn log_failure(session: &Session<'_>, error: &Error) {
    let (service, route) = (session.service().name(), session.route().name());
    let request = session.request();
    let peer = session.attempts().last().map(|attempt| format!(", upstream: {}", attempt.address)).unwrap_or_default();
    let line = format!("{service}/{route}: {} {}: {error}{peer}", request.method, request.uri.path());
    match error.status() {
        400..=499 => log::info!("{line}"),
        _ => log::error!("{line}"),
    }
}
