//! Phase 6: the connection back to its pool or closed, and the request counted and logged exactly once.

use super::send_request::ByteStream;
use crate::access_log;
use crate::error::{Error, ErrorKind};
use crate::metrics;
use crate::session::Session;
use pingora_core::upstreams::peer::Peer as _;
use std::time::Instant;

/// A message is complete: its connection goes back to the pool only if the request was written whole, the response read
/// whole, and the codec has nothing against it.
pub(super) fn release(mut wire: ByteStream) {
    let reusable = wire.request_written() && wire.message_done && !wire.excess && wire.codec.keepalive();
    if let Some(connection) = wire.connection.take_if(|_| reusable) {
        wire.upstream.pool.put(wire.peer.reuse_hash(), wire.group, connection);
    }
}

/// How `millpond_upstream_attempts_total` calls an answer.
pub(crate) fn status_class(status: u16) -> &'static str {
    match status {
        100..=199 => "1xx",
        200..=299 => "2xx",
        300..=399 => "3xx",
        400..=499 => "4xx",
        _ => "5xx",
    }
}

/// How `millpond_upstream_attempts_total` calls a failure.
pub(crate) fn outcome_of(error: &Error) -> &'static str {
    match error.kind() {
        ErrorKind::Connect | ErrorKind::NoLivePeer => "connect_error",
        ErrorKind::Unavailable => status_class(503),
        ErrorKind::InvalidHeader | ErrorKind::InvalidBody => "invalid_header",
        ErrorKind::ConnectTimeout | ErrorKind::SendTimeout | ErrorKind::ReadTimeout => "timeout",
        ErrorKind::Send | ErrorKind::Closed | ErrorKind::Truncated => "reset",
        _ => "aborted",
    }
}

/// Count and log a request; called when its session goes, however it goes.
pub(crate) fn count_and_log(session: &mut Session<'_>) {
    if std::mem::replace(&mut session.outcome.finished, true) {
        return;
    }
    session.end_redirects();
    if session.outcome.status == 0 {
        // Dropped on the way: the client's connection went, or the process is stopping.
        session.outcome.status = 499;
    }
    for attempt in session.attempts_mut().iter_mut().filter(|attempt| attempt.outcome.is_none()) {
        attempt.outcome = Some("aborted");
        attempt.response_time = Some(Instant::now() - attempt.started);
    }
    metrics::count(session);
    access_log::log(session);
}
