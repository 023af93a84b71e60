//! The only [`ProxyHttp`]: Pingora's outer phases around the engine, which answers every request in
//! `proxy_upstream_filter`.

use crate::answer::{Answer, answer};
use crate::bufs::Bufs;
use crate::chain::Pass;
use crate::client::deliver::{Source, deliver};
use crate::client::{ClientBody, linger};
use crate::conf::Captures;
use crate::error::{Error, ErrorKind, Result};
use crate::error_pages::{error_page, fail};
use crate::exchange::process_body::{Fill, ResponseBody};
use crate::headers;
use crate::pipe::Limits;
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
use std::task::Poll;
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
            upstream.note(&mut pass.session);
            deliver(pass, header, Source::Whole(whole, trailers), body).await
        }
        ResponseBody::Piped { mut reader, mut fill } => {
            let delivered = {
                let delivery = pin!(deliver(pass, header, Source::Pipe(&mut reader), body));
                beside(&mut fill, delivery).await
            };
            let mut response = ResponseBody::Piped { reader, fill };
            // An upstream that still waits for the rest of the request would never come to its end.
            let left = delivered.as_ref().is_err_and(Error::is_client) && !body.is_awaited();
            if pass.session.route().conf.ignore_client_abort && left {
                // The client has gone, and the upstream may finish all the same: its body is thrown away.
                while poll_fn(|cx| response.poll_run(cx)).await.is_ok_and(|run| !run.is_last()) {}
            }
            response.note(&mut pass.session);
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
