//! How to speak to an upstream: [`Protocol`] and its per-attempt [`Codec`], in nginx's words.
//!
//! A byte-stream protocol is a *sans-I/O* codec: bytes in, header and body out. It owns no socket and knows no clock; the
//! engine connects, writes, reads, times out, retries, pools and buffers for it, whatever it speaks. HTTP/1 is the first
//! of them, and has no privileges.
//!
//! # One attempt
//!
//! ```text
//! create_request ─► the request as bytes          an error is the client's: no peer is asked, none is blamed
//! new_connection ─► what goes in front of it      only on a connection that is not from the pool
//! is_greeted     ─► may the request follow?       not before the answer to that, if it depends on it
//! request_body   ─► the framed body               as it comes; once with `last`
//!        ┌────────────────────────────────────────────────────────────────────────────────────────────┐
//!        │ from here on both directions are independent: an answer may be complete before its request │
//!        └────────────────────────────────────────────────────────────────────────────────────────────┘
//! process_header ◄─ bytes received                after each read until `Done`; an error: the next upstream, or 502
//! input_filter   ◄─ bytes received behind it      turned into body bytes in place until `done`; an error: the client
//!                                                 sees a broken message
//! end_of_input   ◄─ the upstream closed           is that how this body ends?
//! keepalive      ─► may the connection serve another request?
//! trailers       ─► headers behind the body
//! abort          ─► a last word                   on a connection that is given up in the middle of all this
//! ```
//!
//! Each attempt has a codec of its own: nginx's `reinit_request` is a fresh one.
//!
//! # What the engine does for every protocol
//!
//! - What is hop-by-hop (RFC 9110 7.6.1) is taken out of the request before `create_request`, and out of the header that
//!   `process_header` gives. A header may have a `Content-Length`, or no framing at all: how the client's message is
//!   framed is the engine's affair.
//! - A `Content-Length` is kept to: more body than it says is cut off and the connection closed, less is a truncated
//!   message; one that is no number, or two of them, are an invalid header.
//! - The client gets no body with the answer to a HEAD, with a 204 or a 304, whatever the codec yields.
//! - A final status is 200 to 599, anything else is an invalid header.
//! - `buffer_size` limits the header, `timeouts` all of it, and `next_upstream` knows the statuses (`http_404` is nginx's
//!   `not_found`) and errors (`invalid_header` is its `invalid_response`) of all protocols.
//!
//! # A protocol of one's own
//!
//! Give it a name and a type for its settings in a route; `upstreams.NAME.protocol` then says which servers speak it:
//!
//! ```no_run
//! # use millpond::protocol::{Codec, Protocol};
//! # use millpond::prelude::*;
//! # #[derive(serde::Deserialize)] struct Finger {}
//! # impl Protocol for Finger { fn codec(&self) -> Box<dyn Codec> { unimplemented!() } }
//! Millpond::new().protocol("finger", |conf: Finger, _scope| Ok(conf)).run();
//! ```
//! ```yaml
//! upstreams: { people: { protocol: finger, servers: [ 127.0.0.1:79 ] } }
//! # ... and in a route: { upstream: people, protocol: { finger: { user: $1 } } }
//! ```
//! `examples/custom_protocol.rs` is a whole one. Its codec is best tested with every split of its input.

#[cfg(any(feature = "fastcgi", feature = "scgi", feature = "uwsgi"))]
pub(crate) mod cgi;
#[cfg(any(feature = "scgi", feature = "uwsgi"))]
mod cgi_stream;
#[cfg(any(feature = "memcached", feature = "redis"))]
mod counted;
#[cfg(feature = "fastcgi")]
pub mod fastcgi;
pub mod http1;
#[cfg(feature = "memcached")]
pub mod memcached;
#[cfg(feature = "redis")]
pub mod redis;
mod registry;
mod request;
#[cfg(feature = "scgi")]
pub mod scgi;
#[cfg(all(test, any(feature = "memcached", feature = "redis")))]
mod sent;
#[cfg(test)]
pub(crate) mod split_check;
#[cfg(feature = "uwsgi")]
pub mod uwsgi;

pub use registry::Scope;
pub(crate) use registry::{Factory, Protocols};
pub use request::{BodyLength, Request};

use crate::app::Millpond;
use crate::conf::HTTP;
use crate::error::{Error, ErrorKind, Result};
use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use pingora_http::ResponseHeader;

/// A protocol as one route speaks it, its settings included. One value serves all requests of the route.
pub trait Protocol: Send + Sync + 'static {
    /// The state of one attempt. Called for each, before a connection is looked for.
    fn codec(&self) -> Box<dyn Codec>;

    /// Has the length of a request body to be known before it is sent? One that does not say it is then read whole
    /// first, `request_buffering` or not, as nginx does for FastCGI, SCGI and uwsgi. By default it has not.
    fn needs_body_length(&self) -> bool {
        false
    }

    /// What [`Codec::new_connection`] tells a connection stays with it: an idle one is only used by routes of its upstream
    /// with the same number here. By default all of them are interchangeable.
    fn connection_group(&self) -> u64 {
        0
    }
}

/// The protocol's state for one attempt. The [module](self) has the order of the calls.
pub trait Codec: Send {
    /// Append the request up to where its body begins to `out`. Called once, first of all; nothing has been connected.
    ///
    /// # Errors
    /// The request cannot be said in this protocol. No other peer is tried, the client gets the error's status: make it
    /// with [`Error::with_status`] (411, 414, …) or [`Error::method_not_allowed`].
    fn create_request(&mut self, request: &Request<'_>, out: &mut BytesMut) -> Result<()>;

    /// Append to `out` what a new connection has to be told before its first request: credentials, say. Called at most
    /// once, after `create_request`; what the upstream answers to it comes to `process_header` first.
    fn new_connection(&mut self, _out: &mut BytesMut) {}

    /// Has the upstream answered to [`new_connection`](Self::new_connection), so that the request may follow? Asked until
    /// it is so, after each [`Parsed::Consumed`]. By default the request follows at once.
    fn is_greeted(&self) -> bool {
        true
    }

    /// Frame one chunk of the request body, to be written in order. `last` ends the body, perhaps with an empty chunk.
    /// Called at least once. By default a body is not sent.
    fn request_body(&mut self, _chunk: Bytes, _last: bool, _out: &mut Vec<Bytes>) {}

    /// Look for a complete header at the start of `received`: all that was received so far and not consumed. Called first
    /// with nothing, perhaps before the request has been sent, and then after each read. When `buffer_size` bytes have
    /// come and this still gives no header, the engine answers 502.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidHeader`]: a reason for the next upstream, else 502.
    fn process_header(&mut self, received: &[u8]) -> Result<Parsed>;

    /// Turn raw bytes behind the header into body bytes, in place: on return the first [`Input::body`] bytes of `raw` are
    /// body. All of `raw` counts as consumed; what is incomplete (half a chunk size, say) is kept by the codec. Called
    /// with everything behind the header, first even if that is nothing: a message without a body is `done` by that.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidBody`]: the client sees a broken message. Body bytes in front of the offence are lost.
    fn input_filter(&mut self, raw: &mut [u8]) -> Result<Input>;

    /// The upstream closed its side behind the header, before [`Input::done`]. By default that breaks the message.
    ///
    /// # Errors
    /// [`ErrorKind::Truncated`], unless closing is how this body ends.
    fn end_of_input(&mut self) -> Result<()> {
        Err(Error::new(ErrorKind::Truncated, "the upstream closed before the end of its answer"))
    }

    /// After [`Input::done`]: may the connection serve another request? Not if the upstream said otherwise, or sent a byte
    /// too many. That the request was written whole is the engine's to know. By default it may not.
    fn keepalive(&self) -> bool {
        false
    }

    /// After [`Input::done`]: the trailers behind the body, if the protocol has any.
    fn trailers(&mut self) -> Option<HeaderMap> {
        None
    }

    /// The connection is given up between the request and the end of the answer: the client has gone, say. What is
    /// appended to `out` is written if that is possible at once, and the connection is closed. By default it is just
    /// closed. It is not asked when a piece of the request has been written in part.
    fn abort(&mut self, _out: &mut BytesMut) {}
}

/// What [`Codec::process_header`] found.
#[derive(Debug)]
pub enum Parsed {
    /// The header is not complete; read on.
    Partial,
    /// So many bytes, more than none, are done with: an answer to [`Codec::new_connection`], or a part of the header that
    /// the codec has taken over. It is called again with what is behind them. They count for `buffer_size`.
    Consumed(usize),
    /// The same of what is no part of a header and does not count for `buffer_size`: framing, messages for the log.
    Skipped(usize),
    /// An interim answer (HTTP's 1xx without 101) of so many bytes; another header follows.
    Interim(ResponseHeader, usize),
    /// The header, of so many bytes. Framing and hop-by-hop headers may still be in it, for the engine to judge.
    Done(ResponseHeader, usize),
    /// The upstream agreed to switch protocols, as the request's `Upgrade` asked it: behind these bytes the connection is
    /// a tunnel. HTTP only.
    Upgraded(ResponseHeader, usize),
}

/// What [`Codec::input_filter`] made of its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Input {
    /// So many body bytes now stand at the front of the buffer.
    pub body: usize,
    /// The message is complete.
    pub done: bool,
}

/// HTTP has no settings.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct NoSettings {}

/// Register HTTP, and the protocols that this build has.
pub(crate) fn register(millpond: Millpond) -> Millpond {
    let millpond = millpond.protocol(HTTP, |_: NoSettings, _| Ok(http1::Http1));
    #[cfg(feature = "fastcgi")]
    let millpond = millpond
        .protocol("fastcgi", |conf, scope| fastcgi::FastCgi::new(conf, &format!("{}/{}", scope.service, scope.route)));
    #[cfg(feature = "memcached")]
    let millpond = millpond.protocol("memcached", |conf, _| Ok(memcached::Memcached::new(conf)));
    #[cfg(feature = "redis")]
    let millpond = millpond.protocol("redis", |conf, scope| redis::Redis::new(conf, scope.upstream));
    #[cfg(feature = "scgi")]
    let millpond = millpond.protocol("scgi", |conf, _| Ok(scgi::Scgi::new(conf)));
    #[cfg(feature = "uwsgi")]
    let millpond = millpond.protocol("uwsgi", |conf, _| Ok(uwsgi::Uwsgi::new(conf)));
    millpond
}
