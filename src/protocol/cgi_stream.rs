//! [`CgiStream`]: what SCGI and uwsgi have in common. A request is a block of variables with the body behind it, on a
//! connection of its own; the answer is a header block with the body behind it, until its `Content-Length` or the end of
//! the connection.

use super::cgi::{HeaderEnd, parse_header};
use super::{BodyLength, Codec, Input, Parsed, Request};
use crate::error::{Error, ErrorKind, Result};
use crate::headers::parse_content_length;
use bytes::{Bytes, BytesMut};
use http::header::CONTENT_LENGTH;
use std::sync::Arc;

/// How a protocol says the variables of a request.
pub(super) trait Variables: Send + Sync + 'static {
    /// The protocol, in messages.
    const NAME: &'static str;

    /// Append them to `out`; the body has this length.
    ///
    /// # Errors
    /// They cannot be said.
    fn write(&self, request: &Request<'_>, length: u64, out: &mut BytesMut) -> Result<()>;
}

/// One request and its answer.
pub(super) struct CgiStream<V> {
    variables: Arc<V>,
    /// Bytes of the request body to be sent.
    unsent: u64,
    header_end: HeaderEnd,
    /// Bytes of the answer's body to come, if it said how many.
    left: Option<u64>,
}

impl<V> CgiStream<V> {
    pub(super) fn new(variables: Arc<V>) -> Self {
        CgiStream { variables, unsent: 0, header_end: HeaderEnd::default(), left: None }
    }
}

impl<V: Variables> Codec for CgiStream<V> {
    fn create_request(&mut self, request: &Request<'_>, out: &mut BytesMut) -> Result<()> {
        self.unsent = match request.body_length() {
            BodyLength::None => 0,
            BodyLength::Known(length) => length,
            BodyLength::Unknown => {
                let text = format!("{} has to know the length of a request body", V::NAME);
                return Err(Error::with_status(411, text));
            }
        };
        self.variables.write(request, self.unsent, out)
    }

    /// What goes beyond the announced length is not written: the application would take it for something else.
    fn request_body(&mut self, mut chunk: Bytes, _last: bool, out: &mut Vec<Bytes>) {
        chunk.truncate(usize::try_from(self.unsent).unwrap_or(usize::MAX));
        self.unsent -= chunk.len() as u64;
        out.push(chunk);
    }

    fn process_header(&mut self, received: &[u8]) -> Result<Parsed> {
        let Some(end) = self.header_end.find(received) else { return Ok(Parsed::Partial) };
        let (block, _) = received.split_at(end);
        let header = parse_header(&Bytes::copy_from_slice(block))?;
        self.left = header.headers.get(CONTENT_LENGTH).and_then(|length| parse_content_length(length.as_bytes()));
        Ok(Parsed::Done(header, end))
    }

    fn input_filter(&mut self, raw: &mut [u8]) -> Result<Input> {
        let Some(left) = &mut self.left else { return Ok(Input { body: raw.len(), done: false }) };
        let body = usize::try_from(*left).map_or(raw.len(), |left| left.min(raw.len()));
        *left -= body as u64;
        Ok(Input { body, done: *left == 0 })
    }

    /// Without a `Content-Length` that is how a body ends, also that of an application which has died.
    fn end_of_input(&mut self) -> Result<()> {
        match self.left {
            None => Ok(()),
            Some(left) => {
                let text = format!("the {} application closed {left} bytes before the end of its answer", V::NAME);
                Err(Error::new(ErrorKind::Truncated, text))
            }
        }
    }
}
