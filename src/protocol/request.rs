//! [`Request`]: what a protocol is told of a request.

use crate::error::Result;
use crate::paths::{self, Decoded};
use crate::template::{Template, Variable, Variables};
use pingora_http::RequestHeader;
use std::borrow::Cow;

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

/// What [`Codec::create_request`](super::Codec::create_request) is told: the request as it is to be sent, and whose it
/// is.
pub struct Request<'a> {
    header: &'a RequestHeader,
    body: BodyLength,
    variables: Decoded<'a>,
    keepalive: bool,
}

impl<'a> Request<'a> {
    /// For tests of codecs: a request on a connection that will not be kept. Where no template needs a value, `&()`
    /// will do for `variables`.
    pub fn new(header: &'a RequestHeader, body: BodyLength, variables: &'a dyn Variables) -> Self {
        Request { header, body, variables: Decoded(variables), keepalive: false }
    }

    /// The same on a connection that may be kept behind it.
    pub fn keepalive(mut self, keepalive: bool) -> Self {
        self.keepalive = keepalive;
        self
    }

    /// The header: the client's without what is hop-by-hop or frames the body, with the route's `uri`, `host` and
    /// `set_headers`, and what filters made of it.
    pub fn header(&self) -> &'a RequestHeader {
        self.header
    }

    /// The length of the body. With `request_buffering` it always is known.
    pub fn body_length(&self) -> BodyLength {
        self.body
    }

    /// The path that is asked for, decoded, with slashes merged and dot segments resolved.
    ///
    /// # Errors
    /// What a route's `uri` or a filter made of it is no path.
    pub fn path(&self) -> Result<Cow<'a, [u8]>> {
        paths::normalize(self.header.uri.path().as_bytes())
    }

    /// The query that is asked for, without `?`.
    pub fn query(&self) -> Option<&'a str> {
        self.header.uri.query()
    }

    /// A text of the protocol's settings with the values of the client's request, and what its path captured. `$uri` is
    /// nginx's here: decoded, with slashes merged and dot segments resolved.
    pub fn render<'s>(&'s self, template: &'s Template) -> Cow<'s, str> {
        template.render(&self.variables)
    }

    /// One value of the client's request: addresses, scheme, names. `None` if there is none.
    pub fn variable(&self, variable: &Variable) -> Option<Cow<'_, str>> {
        self.variables.value(variable)
    }

    /// Will the connection be kept behind this request, if the codec has nothing against it? Not with
    /// `keepalive.connections: 0`.
    pub fn keeps_connection(&self) -> bool {
        self.keepalive
    }
}
