//! Phases 1 to 4 of a request, whoever it is made for: a client's, an error page's, a filter's subrequest.

use crate::bufs::Bufs;
use crate::chain::Pass;
use crate::client::ClientBody;
use crate::error::{Error, ErrorKind, Result};
use crate::error_pages::Failure;
use crate::exchange::finish::status_class;
use crate::exchange::process_body::ResponseBody;
use crate::exchange::request_body::RequestBody;
use crate::exchange::tunnel::Tunnel;
use crate::exchange::{Response, exchange};
use crate::internal_redirect::{Kept, Why, redirect, take_accel};
use crate::peers::Upstream;
use crate::phases::Flow;
use crate::pipe::Spool;
use crate::protocol::BodyLength;
use crate::routes::Route;
use crate::session::Session;
use bytes::Bytes;
use pingora_http::ResponseHeader;
use std::future::poll_fn;
use std::sync::Arc;

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

/// The client gets something else. A body that has not come whole goes with its connection.
fn discard(session: &mut Session<'_>, status: u16, response: ResponseBody) {
    let mut report = match &response {
        ResponseBody::Whole { upstream, .. } => upstream.clone(),
        ResponseBody::Piped { fill, .. } => fill.report(),
    };
    // The upstream has not failed, even if it was left in the middle.
    report.outcome = status_class(status);
    report.note(session);
}
