//! How to speak to an upstream: [`Protocol`] and its per-attempt [`Codec`], in nginx's words.
//!
//! A byte-stream protocol is a *sans-I/O* codec: bytes in, header and body out. It owns no socket and knows no clock; the
//! engine connects, writes, reads, times out, retries, pools and buffers for it. HTTP/1 is the first of them.
//!
//! ```text
//! create_request ─► bytes to send            request_body ─► framed body to send
//! process_header ◄─ bytes received           input_filter ◄─ bytes received, turned into body bytes in place
//! end_of_input   ◄─ the upstream closed      keepalive    ─► may this connection serve another request?
//! ```

pub mod http1;

use crate::error::Result;
use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use pingora_http::{RequestHeader, ResponseHeader};

/// A protocol that an upstream speaks. One value serves all requests; [`codec`](Self::codec) makes the state of one attempt.
pub trait Protocol: Send + Sync + 'static {
    /// The name it has in `upstreams.NAME.protocol`.
    fn name(&self) -> &'static str;

    /// Called once per attempt, before anything is sent (nginx: `create_request` and `reinit_request` in one: an attempt
    /// always starts from fresh state).
    fn codec(&self) -> Box<dyn Codec>;
}

/// How long the request body is, as far as is known before it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyLength {
    /// There is no body, and no `Content-Length` either.
    None,
    /// So many bytes, which may be zero.
    Known(u64),
    /// Not known: it ends when it ends.
    Unknown,
}

/// The protocol's state for one attempt.
///
/// Call order: `create_request`, then `request_body` for each chunk and once with `last`; and, from the moment the first
/// bytes come, `process_header` until it is done, then `input_filter` for everything behind the header, even if that is
/// nothing (a message without a body is finished by an empty call). The two directions are independent of each other: the
/// answer may be complete before the request has been sent.
pub trait Codec: Send {
    /// Append the request up to where its body begins to `out`. `request` has no hop-by-hop and no framing headers.
    ///
    /// # Errors
    /// The request cannot be said in this protocol. No other peer is tried, the client gets the error's status.
    fn create_request(&mut self, request: &RequestHeader, body: BodyLength, out: &mut BytesMut) -> Result<()>;

    /// Frame one chunk of the request body, to be written in order. `last` ends the body, perhaps with an empty chunk.
    fn request_body(&mut self, chunk: Bytes, last: bool, out: &mut Vec<Bytes>);

    /// Look for a complete header at the start of `received` (all that was received so far and not consumed). Called after
    /// each read; when a buffer of `buffer_size` is full and this still is [`Parsed::Partial`], the engine answers 502.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidHeader`](crate::error::ErrorKind::InvalidHeader): a reason for the next upstream, else 502.
    fn process_header(&mut self, received: &[u8]) -> Result<Parsed>;

    /// Turn raw bytes behind the header into body bytes, in place: on return the first [`Input::body`] bytes of `raw` are
    /// body. All of `raw` counts as consumed; what is incomplete (half a chunk size, say) is kept by the codec.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidBody`](crate::error::ErrorKind::InvalidBody): the client sees a broken message. Body bytes in
    /// front of the offence are lost.
    fn input_filter(&mut self, raw: &mut [u8]) -> Result<Input>;

    /// The upstream closed its side before [`Input::done`].
    ///
    /// # Errors
    /// [`ErrorKind::Truncated`](crate::error::ErrorKind::Truncated), unless closing is how this body ends.
    fn end_of_input(&mut self) -> Result<()>;

    /// After [`Input::done`]: may the connection serve another request? Not if the upstream said otherwise, or sent a byte
    /// too many. That the request was written whole is the engine's to know.
    fn keepalive(&self) -> bool;

    /// After [`Input::done`]: the trailers behind the body, if the protocol has any.
    fn trailers(&mut self) -> Option<HeaderMap> {
        None
    }
}

/// What [`Codec::process_header`] found.
#[derive(Debug)]
pub enum Parsed {
    /// The header is not complete; read on.
    Partial,
    /// An interim answer (HTTP's 1xx without 101) of so many bytes; another header follows.
    Interim(ResponseHeader, usize),
    /// The header, of so many bytes. Framing and hop-by-hop headers are still in it, for the engine to judge.
    Done(ResponseHeader, usize),
    /// The upstream agreed to switch protocols: behind these bytes the connection is a tunnel.
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
