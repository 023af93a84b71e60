//! Phase 2: a pooled or new connection to the chosen peer.

use super::Failed;
use super::http2;
use super::send_request::{ByteStream, Created, Limits};
use super::wire::Wire;
use crate::chain::Pass;
use crate::client::ClientBody;
use crate::error::{Error, ErrorKind, Result};
use crate::peers::pool::{Connection, Usage};
use crate::peers::{Peer, Upstream};
use crate::protocol::BodyLength;
use pingora_core::protocols::Stream;
use pingora_core::protocols::http::v2::client::Http2Session;
use pingora_core::upstreams::peer::Peer as _;
use pingora_http::RequestHeader;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

/// What a connection attempt gives.
pub(crate) enum Connected {
    /// A stream for a codec.
    Stream(Connection, bool),
    /// An HTTP/2 stream.
    Http2(Box<Http2Session>, bool),
}

impl Connected {
    pub(super) fn new_stream(stream: Stream) -> Self {
        Connected::Stream(Connection { stream, usage: Usage::new() }, false)
    }
}

/// Make the request in its protocol's words, and open the attempt's wire. `fresh`: not from the pool. The client is watched,
/// and read, meanwhile.
pub(crate) async fn connect(
    pass: &mut Pass<'_>,
    upstream: &Arc<Upstream>,
    peer: &Peer,
    request: RequestHeader,
    length: BodyLength,
    client: &mut ClientBody,
    fresh: bool,
) -> Result<Box<dyn Wire>, Failed> {
    let timeouts = pass.session.route().conf().timeouts;
    let header_size = pass.session.route().conf().buffering.buffer_size;
    // Where HTTP/2 is possible, the words are known only once the peer has chosen its own.
    let created = match upstream.connectors.http2 {
        None => Some(Created::new(&pass.session, upstream, &request, length).map_err(Failed::ours)?),
        Some(_) => None,
    };
    // Only what was told the same may be used again.
    let group = (!fresh).then(|| pass.session.route().protocol.connection_group());
    let connected = while_reading(pass, client, open(upstream, peer, timeouts.connect, group)).await?;
    note_connected(pass, upstream, matches!(connected, Connected::Stream(_, true) | Connected::Http2(_, true)));
    let limits = Limits { send: timeouts.send, read: timeouts.read, header_size };
    match connected {
        Connected::Stream(connection, reused) => {
            let created = match created {
                Some(created) => created,
                None => Created::new(&pass.session, upstream, &request, length).map_err(Failed::ours)?,
            };
            Ok(Box::new(ByteStream::new(created, connection, reused, upstream, peer, limits)))
        }
        Connected::Http2(session, reused) => {
            let wire = http2::Http2Wire::new(session, reused, upstream, peer, request, length, limits);
            Ok(Box::new(wire.map_err(|error| refused(error, reused))?))
        }
    }
}

/// An HTTP/2 connection takes no further stream: a pooled one may have been closed since, which says nothing about the
/// peer.
fn refused(error: Error, reused: bool) -> Failed {
    let blames_peer = error.is_upstream();
    Failed { sent: false, stale_connection: reused && blames_peer, blames_peer, error }
}

fn note_connected(pass: &mut Pass<'_>, upstream: &Upstream, reused: bool) {
    if let Some(attempt) = pass.session.attempts_mut().last_mut() {
        let took = Instant::now() - attempt.started;
        attempt.reused = reused;
        attempt.connect_time = Some(took);
        if !reused {
            upstream.metrics.connected(took);
        }
    }
}

/// Run `connecting` while the client's body is read, and its leaving noticed.
async fn while_reading(
    pass: &mut Pass<'_>,
    client: &mut ClientBody,
    connecting: impl Future<Output = Result<Connected>>,
) -> Result<Connected, Failed> {
    let mut connecting = pin!(connecting);
    loop {
        let event = poll_fn(|cx| {
            if let Poll::Ready(connected) = connecting.as_mut().poll(cx) {
                return Poll::Ready(Ok(connected));
            }
            client.poll_read(cx, &mut pass.session).map(Err)
        })
        .await;
        match event {
            Ok(Ok(connected)) => return Ok(connected),
            Ok(Err(error)) => {
                return Err(Failed { error, sent: false, stale_connection: false, blames_peer: true });
            }
            Err(run) => {
                let mut run = run.map_err(Failed::ours)?;
                pass.request_body_filter(&mut run).await.map_err(Failed::ours)?;
                client.pass_on(run);
            }
        }
    }
}

/// A pooled connection of this group, if one is named, or a new one.
async fn open(upstream: &Upstream, peer: &Peer, limit: Duration, group: Option<u64>) -> Result<Connected> {
    if let Some(group) = group
        && let Some(connected) = pooled(upstream, peer, group).await?
    {
        return Ok(connected);
    }
    match pingora_timeout::timeout(limit, connect_new(upstream, peer)).await {
        Ok(connected) => connected.map_err(|error| connect_error(peer, error)),
        Err(_) => {
            let text = format!("connecting to {peer}: no connection after {limit:?}");
            Err(Error::new(ErrorKind::ConnectTimeout, text))
        }
    }
}

async fn pooled(upstream: &Upstream, peer: &Peer, group: u64) -> Result<Option<Connected>> {
    let connectors = &upstream.connectors;
    if let Some(connector) = &connectors.http2
        && let Ok(Some(session)) = connector.reused_http_session(peer).await
    {
        return Ok(Some(Connected::Http2(Box::new(session), true)));
    }
    Ok(upstream.pool.take(peer.reuse_hash(), group).map(|connection| Connected::Stream(connection, true)))
}

async fn connect_new(upstream: &Upstream, peer: &Peer) -> pingora_core::Result<Connected> {
    match &upstream.connectors.http2 {
        Some(connector) => http2::connect(connector, peer).await,
        None => Ok(Connected::new_stream(upstream.connectors.transport.new_stream(peer).await?)),
    }
}

fn connect_error(peer: &Peer, error: Box<pingora_core::Error>) -> Error {
    use pingora_core::ErrorType::*;
    let kind = match error.etype() {
        ConnectTimedout | TLSHandshakeTimedout => ErrorKind::ConnectTimeout,
        _ => ErrorKind::Connect,
    };
    Error::because(kind, format!("connecting to {peer}"), error)
}
