//! [`Wire`]: one attempt's connection, whatever is spoken on it.

use super::request_body::RequestBody;
use crate::error::Result;
use crate::pipe::PipeWriter;
use crate::protocol::Parsed;
use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use pingora_core::protocols::Stream;
use std::task::{Context, Poll};

/// How far one step of the body came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Something came; ask again.
    More,
    /// The message is complete.
    Done,
}

/// What of the body came along with the header.
pub(crate) struct Early {
    /// Body bytes, with spare capacity for more.
    pub(crate) body: BytesMut,
    /// The message is complete.
    pub(crate) done: bool,
}

/// An upstream's side of an exchange. The engine polls it; it does the I/O, with time limits of its own.
///
/// [`ByteStream`](super::send_request::ByteStream) drives a [`Codec`](crate::protocol::Codec) over a raw stream;
/// HTTP/2 streams bring their own framing.
pub(crate) trait Wire: Send {
    /// Phase 3: send what the upstream takes. Ready when the request is written whole, also when asked again; a failure
    /// to write is kept for [`poll_header`](Self::poll_header), since an answer may have come before it.
    fn poll_send(&mut self, cx: &mut Context<'_>, body: &mut RequestBody) -> Poll<Result<()>>;

    /// Phase 4: the next header, an interim one perhaps.
    fn poll_header(&mut self, cx: &mut Context<'_>) -> Poll<Result<Parsed>>;

    /// After the header: what came of the body with it.
    fn take_early(&mut self) -> Result<Early>;

    /// Phase 5: read once, into the pipe.
    fn poll_body(&mut self, cx: &mut Context<'_>, pipe: &mut PipeWriter) -> Poll<Result<Step>>;

    /// After the end of the message.
    fn trailers(&mut self) -> Option<HeaderMap>;

    /// The message is complete: give the connection back if it can serve again, or close it.
    fn release(self: Box<Self>);

    /// After [`Parsed::Upgraded`]: the raw connection, and what has been read beyond the header.
    fn into_tunnel(self: Box<Self>) -> Option<(Stream, Bytes)>;

    /// A pooled connection?
    fn is_reused(&self) -> bool;

    /// May the upstream have seen any of the request?
    fn has_sent(&self) -> bool;

    /// Has anything been received?
    fn has_received(&self) -> bool;
}
