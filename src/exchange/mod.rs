//! One exchange with an upstream: phases 2 to 4 until a response header is there, phase 5 for whoever reads its pipe.
//!
//! ```text
//! start            the request that is sent: hop-by-hop headers dropped, host, uri, set_headers, filters
//! connect          a peer, and a pooled or new connection to it
//! send_request     the request, its body behind it, as the upstream takes it
//! receive_header   the response header
//! process_body     the response body, into the pipe
//! finish           the connection back to its pool or closed; counting and logging
//! tunnel           what follows a 101
//! ```
//!
//! An exchange needs no client. Whoever runs it gives a request and its body, and gets a header and a
//! [`Fill`](process_body::Fill) that has to be polled beside reading the pipe. Each try at a peer is an *attempt*;
//! [`next_upstream`] says when there is another.

pub(crate) mod connect;
pub(crate) mod finish;
mod http2;
pub(crate) mod next_upstream;
pub(crate) mod process_body;
pub(crate) mod receive_header;
pub(crate) mod request_body;
pub(crate) mod send_request;
pub(crate) mod start;
pub(crate) mod tunnel;
pub(crate) mod wire;

use crate::chain::Pass;
use crate::client::ClientBody;
use crate::error::{Error, ErrorKind, Result};
use crate::peers::{Chosen, Upstream};
use crate::session::Attempt;
use connect::connect;
use http::Method;
use next_upstream::NextUpstream;
use pingora_http::ResponseHeader;
use process_body::ResponseBody;
use receive_header::{Received, exchange_headers};
use request_body::RequestBody;
use std::sync::Arc;
use std::time::Instant;
use tunnel::Tunnel;
use wire::Wire;

/// What an exchange comes to.
pub(crate) enum Response {
    /// A header, and a body to be had.
    Message(ResponseHeader, ResponseBody),
    /// The upstream switched protocols.
    Upgraded(ResponseHeader, Tunnel),
}

/// Run phases 2 to 4, attempt after attempt, until an upstream's header is there that is to be passed on.
///
/// # Errors
/// That of the last attempt, when there may be no further one.
pub(crate) async fn exchange(
    pass: &mut Pass<'_>,
    upstream: &Arc<Upstream>,
    body: &mut RequestBody,
    client: &mut ClientBody,
) -> Result<Response> {
    let mut next = NextUpstream::new(pass, upstream);
    loop {
        let chosen = choose(pass, upstream, &next).await?;
        next.tried(chosen.member());
        let mut fresh = false;
        let failed = loop {
            match attempt(pass, upstream, &chosen, body, client, fresh).await {
                Ok(answered) => match judge(pass, &mut next, chosen, answered, body)? {
                    Judged::PassOn(response) => return Ok(*response),
                    Judged::TryNext => break None,
                },
                // The pooled connection was closed under our feet: that says nothing about the peer.
                Err(failed) if failed.stale_connection && next.may_repeat(body, failed.sent) => {
                    end_attempt(pass, "reset");
                    fresh = true;
                }
                Err(failed) => break Some((failed, chosen)),
            }
        };
        let Some((failed, chosen)) = failed else { continue };
        end_attempt(pass, finish::outcome_of(&failed.error));
        if let Some(attempt) = pass.session.attempts_mut().last_mut().filter(|_| failed.blames_peer) {
            // nginx's $upstream_status: what the client would be told if there were no other peer.
            attempt.status.get_or_insert(failed.error.status());
        }
        if !failed.blames_peer {
            return Err(failed.error);
        }
        chosen.report(true);
        if !next.allows_error(&failed.error, body, failed.sent) {
            return Err(failed.error);
        }
        log::warn!("{}: {}; trying the next peer", pass.session.route().name(), failed.error);
    }
}

async fn choose(pass: &mut Pass<'_>, upstream: &Arc<Upstream>, next: &NextUpstream) -> Result<Chosen> {
    match pass.upstream_peer().await? {
        Some(peer) => Ok(Chosen::named(peer)),
        None => upstream.choose(next.peers_tried(), &pass.session).map_err(|error| next.last_error(error)),
    }
}

/// An attempt that did not come to a header.
pub(crate) struct Failed {
    pub(crate) error: Error,
    /// Some of the request may have reached the upstream.
    pub(crate) sent: bool,
    /// It was a pooled connection, and nothing was received on it.
    pub(crate) stale_connection: bool,
    /// It is the peer's fault, not the request's or the client's.
    pub(crate) blames_peer: bool,
}

impl Failed {
    /// A failure before anything was sent that no other peer would cure.
    fn ours(error: Error) -> Self {
        Failed { error, sent: false, stale_connection: false, blames_peer: false }
    }
}

/// An attempt that came to a header.
struct Answered {
    received: Received,
    wire: Box<dyn Wire>,
}

/// Phases 2 to 4 with one peer.
async fn attempt(
    pass: &mut Pass<'_>,
    upstream: &Arc<Upstream>,
    chosen: &Chosen,
    body: &mut RequestBody,
    client: &mut ClientBody,
    fresh: bool,
) -> Result<Answered, Failed> {
    pass.session.attempts_mut().push(Attempt::new(&chosen.peer));
    let request = start::upstream_request(pass, upstream, &chosen.peer, body).await.map_err(Failed::ours)?;
    let mut wire = connect(pass, upstream, &chosen.peer, request, body.length(), client, fresh).await?;
    if body.rewind().is_err() {
        let text = "the request body is gone, it was streamed to an earlier peer";
        return Err(Failed::ours(Error::new(ErrorKind::Internal, text)));
    }
    let received = match exchange_headers(pass, &mut *wire, body, client).await {
        Ok(received) => received,
        Err(error) => {
            let blames_peer = error.is_upstream();
            let stale_connection = blames_peer && wire.is_reused() && !wire.has_received() && !error.is_timeout();
            return Err(Failed { error, sent: wire.has_sent(), stale_connection, blames_peer });
        }
    };
    Ok(Answered { received, wire })
}

enum Judged {
    PassOn(Box<Response>),
    TryNext,
}

/// Phase 4's decision: is this answer for the client, or does its status move on to the next peer?
fn judge(
    pass: &mut Pass<'_>,
    next: &mut NextUpstream,
    chosen: Chosen,
    answered: Answered,
    body: &mut RequestBody,
) -> Result<Judged> {
    let Answered { received, mut wire } = answered;
    let header = match received {
        Received::Upgraded(header) => {
            end_attempt(pass, finish::status_class(101));
            chosen.report(false);
            return Ok(Judged::PassOn(Box::new(Response::Upgraded(header, Tunnel::new(wire, chosen)))));
        }
        Received::Header(header) => header,
    };
    let status = header.status.as_u16();
    if next.allows_status(status, body, wire.has_sent()) {
        end_attempt(pass, finish::status_class(status));
        chosen.report(!matches!(status, 403 | 404));
        if wire.take_early().is_ok_and(|early| early.done) {
            // A miss, say: that is no reason to lose the connection.
            wire.release();
        }
        return Ok(Judged::TryNext);
    }
    let route = pass.session.route_arc().clone();
    let is_head = pass.session.request().method == Method::HEAD;
    let limits = pass.session.limits();
    let response = ResponseBody::take_over(&route, is_head, header, wire, chosen, body.hand_over(), limits);
    Ok(Judged::PassOn(Box::new(response)))
}

/// The running attempt is over without a body for the client.
fn end_attempt(pass: &mut Pass<'_>, outcome: &'static str) {
    if let Some(attempt) = pass.session.attempts_mut().last_mut() {
        attempt.outcome = Some(outcome);
        attempt.response_time = Some(Instant::now() - attempt.started);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::Millpond;
    use crate::conf::Conf;
    use crate::pipe::Limits;
    use crate::session::Session;
    use bytes::Bytes;
    use pingora_http::RequestHeader;
    use std::future::poll_fn;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    /// An origin that answers one request on one connection.
    async fn origin(answer: &'static str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                stream.read_buf(&mut request).await.unwrap();
            }
            stream.write_all(answer.as_bytes()).await.unwrap();
            // The rest of the answer comes when there is none: the connection stays open until the test is over.
            stream.read_to_end(&mut request).await.unwrap();
        });
        address
    }

    #[tokio::test]
    async fn an_exchange_needs_no_client() {
        let address = origin("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n").await;
        let conf = Conf::from_value(serde_json::json!({
            "upstreams": { "app": { "servers": [address] } },
            "services": [{ "name": "none", "listen": ["127.0.0.1:1"], "routes": [{ "upstream": "app" }] }],
        }));
        let service = Millpond::new().services(&conf.unwrap()).unwrap().remove(0);
        let route = service.routes[0].clone();
        let upstream = route.upstream().unwrap().clone();
        let request = RequestHeader::build("GET", b"/page", None).unwrap();
        let limits = Limits::new(1 << 20, 0, std::env::temp_dir());
        let session = Session::without_client(request, service.clone(), route.clone(), limits);
        let mut pass = Pass::new(session, &route.chain);
        let mut body = RequestBody::None(crate::protocol::BodyLength::None);
        let mut client = ClientBody::new(&route.conf, false);

        let response = exchange(&mut pass, &upstream, &mut body, &mut client).await.unwrap();
        let Response::Message(header, response) = response else { panic!("no message") };
        assert_eq!(header.status, 200);
        assert_eq!(read(response).await, "hello");
    }

    async fn read(mut response: ResponseBody) -> Bytes {
        let mut all = crate::bufs::Bufs::new();
        while !all.is_last() {
            all.append(poll_fn(|cx| response.poll_run(cx)).await.unwrap());
        }
        all.take_all()
    }
}
