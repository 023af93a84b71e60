//! The only [`ProxyHttp`]: Pingora's outer phases around the engine, which answers every request in
//! `proxy_upstream_filter`.

use crate::bufs::Bufs;
use crate::chain::Pass;
use crate::client::deliver::{Source, deliver};
use crate::client::{ClientBody, linger};
use crate::conf::Captures;
use crate::error::{Error, ErrorKind, Result};
use crate::error_pages::{Failure, error_page, fail};
use crate::exchange::finish::status_class;
use crate::exchange::process_body::{Fill, ResponseBody, UpstreamReport};
use crate::exchange::request_body::RequestBody;
use crate::exchange::tunnel::Tunnel;
use crate::exchange::{Response, exchange};
use crate::headers;
use crate::internal_redirect::{Kept, Why, redirect, take_accel};
use crate::peers::Upstream;
use crate::phases::Flow;
use crate::pipe::{Limits, PipeReader, Spool};
use crate::protocol::BodyLength;
use crate::routes::{Route, Service};
use crate::session::Session;
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

/// What a request has come to before any of it is sent.
pub(crate) enum Answer {
    /// A filter has made it.
    Local(ResponseHeader, Bytes),
    /// An upstream's, its body still to be had.
    Message(ResponseHeader, ResponseBody),
    /// The upstream switched protocols.
    Upgraded(ResponseHeader, Tunnel),
    /// Either of the first two, and an error page stands in its place.
    Failed(Failure),
}

/// What one route has come to.
enum Routed {
    Answer(Answer),
    /// `X-Accel-Redirect`, in a header of which some of the others survive.
    Redirect(ResponseHeader, Bytes),
}

impl Proxy {
    /// One request from its header to its last byte. `Err`: the message must be broken.
    async fn serve(&self, client: &mut Client, started: Instant) -> Result<()> {
        let framing = request_framing(client);
        let service = self.service.load_full();
        let found = service.find_route(client.req_header());
        let (route, captures) = found.unwrap_or_else(|| (service.no_route.clone(), Captures::default()));
        // What only redirects may enter is to a client as if it were not there: the service's filters see its 404.
        let chain = if route.conf.internal { service.no_route.chain.clone() } else { route.chain.clone() };
        prepare(client, &route);
        let session = Session::new(client, service, route.clone(), captures, started, self.limits.clone());
        let mut pass = Pass::new(session, &chain);
        let mut body = ClientBody::new(&route.conf, has_body(&framing));
        let served = guarded(pin!(respond(&mut pass, &mut body, framing))).await;
        let ended = match served {
            Err(error) => guarded(Box::pin(fail(&mut pass, &mut body, error)).as_mut()).await,
            Ok(()) => Ok(()),
        };
        pass.session.end_redirects();
        let error = pass.session.outcome.error.take();
        pass.logging(error.as_ref()).await;
        pass.session.outcome.error = error;
        drop(pass);
        if ended.is_ok() && !body.is_done() {
            linger(client).await;
        }
        ended
    }
}

/// Phases 1 to 5.
async fn respond(pass: &mut Pass<'_>, body: &mut ClientBody, framing: Result<BodyLength>) -> Result<()> {
    let length = framing?;
    headers::check_target(pass.session.request())?;
    match answer(pass, body, length).await? {
        Answer::Failed(failure) => Box::pin(error_page(pass, body, &failure)).await,
        answer => deliver_answer(pass, answer, body).await,
    }
}

/// Phases 1 to 4, and again for each route that an upstream redirects to.
pub(crate) async fn answer(pass: &mut Pass<'_>, body: &mut ClientBody, length: BodyLength) -> Result<Answer> {
    let mut kept = Kept::default();
    loop {
        match route_answer(pass, body, length).await? {
            Routed::Answer(mut answer) => {
                if let Answer::Local(header, _) | Answer::Message(header, _) = &mut answer {
                    kept.put_onto(header)?;
                }
                return Ok(answer);
            }
            Routed::Redirect(header, target) => {
                kept.take_from(&header);
                redirect(pass, body, &target, Why::XAccelRedirect)?;
            }
        }
    }
}

/// Phases 1 to 4 by the session's route.
async fn route_answer(pass: &mut Pass<'_>, body: &mut ClientBody, length: BodyLength) -> Result<Routed> {
    if pass.request_filter().await? == Flow::Done {
        let answer = pass.session.take_answer();
        let Some(answer) = answer else {
            return Err(Error::new(ErrorKind::Filter, "a filter said it has answered, and had not"));
        };
        return Ok(Routed::Answer(match Failure::of_filter(&pass.session, &answer.header) {
            Some(failure) => Answer::Failed(failure),
            None => Answer::Local(answer.header, answer.body),
        }));
    }
    let route = pass.session.route_arc().clone();
    let upstream = upstream_of(&pass.session, &route)?;
    let mut request_body = request_body(pass, body, length).await?;
    let (mut header, response) = match exchange(pass, upstream, &mut request_body, body).await? {
        Response::Upgraded(header, tunnel) => return Ok(Routed::Answer(Answer::Upgraded(header, tunnel))),
        Response::Message(header, response) => (header, response),
    };
    if let Some(failure) = Failure::of_upstream(&pass.session, &header) {
        discard(&mut pass.session, header.status.as_u16(), response);
        return Ok(Routed::Answer(Answer::Failed(failure)));
    }
    let redirect = take_accel(&mut pass.session, &mut header);
    for name in &route.conf.hide_headers {
        header.remove_header(name);
    }
    Ok(match redirect {
        Some(target) => {
            discard(&mut pass.session, header.status.as_u16(), response);
            Routed::Redirect(header, target)
        }
        None => Routed::Answer(Answer::Message(header, response)),
    })
}

/// Phase 1's end: the request body stored, or set up to be streamed.
async fn request_body(pass: &mut Pass<'_>, body: &mut ClientBody, length: BodyLength) -> Result<RequestBody> {
    if pass.session.is_redirected() {
        return Ok(RequestBody::None(BodyLength::None));
    }
    if let Some(spool) = pass.session.take_own_body() {
        return own_body(pass, spool).await;
    }
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
    let mut spool = pass.session.spool();
    while let Some(mut run) = body.read(&mut pass.session).await? {
        pass.request_body_filter(&mut run).await?;
        while let Some(chunk) = run.pop() {
            spool.append(chunk).await?;
        }
    }
    Ok(RequestBody::stored(spool))
}

/// The body of a subrequest, through the filters that look at bodies.
async fn own_body(pass: &mut Pass<'_>, spool: Spool) -> Result<RequestBody> {
    if !pass.filters_request_body() {
        return Ok(RequestBody::stored(spool));
    }
    let mut reader = spool.reader();
    let mut filtered = pass.session.spool();
    loop {
        let chunk = poll_fn(|cx| reader.poll_next(cx)).await?;
        let mut run = Bufs::from_chunk(chunk.clone().unwrap_or_default(), chunk.is_none());
        pass.request_body_filter(&mut run).await?;
        let last = run.is_last();
        while let Some(chunk) = run.pop() {
            filtered.append(chunk).await?;
        }
        if last {
            return Ok(RequestBody::stored(filtered));
        }
    }
}

/// Where the session's route passes requests to.
fn upstream_of<'r>(session: &Session<'_>, route: &'r Arc<Route>) -> Result<&'r Arc<Upstream>> {
    let text = if Arc::ptr_eq(route, &session.service().no_route) {
        "no route matches"
    } else if route.conf.internal && !session.is_redirected() && !session.is_subrequest() {
        "the route is internal, and the client has asked for it"
    } else if let Some(upstream) = &route.upstream {
        return Ok(upstream);
    } else {
        "no filter has answered, and the route has no upstream"
    };
    Err(Error::new(ErrorKind::NoRoute, text))
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

/// Phase 5.
pub(crate) async fn deliver_answer(pass: &mut Pass<'_>, answer: Answer, body: &mut ClientBody) -> Result<()> {
    match answer {
        Answer::Local(header, text) => deliver_whole(pass, header, text, body).await,
        Answer::Message(header, response) => deliver_message(pass, header, response, body).await,
        Answer::Upgraded(header, tunnel) => {
            let header = pass.response_filter_alone(header).await?;
            tunnel.run(&mut pass.session, header).await
        }
        Answer::Failed(failure) => {
            Err(Error::new(ErrorKind::Internal, format!("the answer {} has no page", failure.status)))
        }
    }
}

pub(crate) async fn deliver_whole(
    pass: &mut Pass<'_>,
    header: ResponseHeader,
    text: Bytes,
    body: &mut ClientBody,
) -> Result<()> {
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
            ResponseBody::Piped { reader, fill }.note(&mut pass.session);
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

/// The client gets something else. A body that has not come whole goes with its connection.
fn discard(session: &mut Session<'_>, status: u16, response: ResponseBody) {
    let mut report = match &response {
        ResponseBody::Whole { upstream, .. } => upstream.clone(),
        ResponseBody::Piped { fill, .. } => fill.report(),
    };
    // The upstream has not failed, even if it was left in the middle.
    report.outcome = status_class(status);
    note_upstream(session, &report);
}

pub(crate) fn note_upstream(session: &mut Session<'_>, report: &UpstreamReport) {
    session.outcome.upstream_free_at = Some(report.free_at);
    if let Some(attempt) = session.attempts_mut().last_mut() {
        attempt.outcome = Some(report.outcome);
        attempt.bytes_received = report.bytes_received;
        attempt.response_time = Some(report.free_at.saturating_duration_since(attempt.started));
    }
}
