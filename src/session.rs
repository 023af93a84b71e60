//! [`Session`]: what a filter sees of a request.

mod parent;
mod redirects;

use crate::conf::Captures;
use crate::error::{Error, ErrorKind, Result};
use crate::peers::Peer;
use crate::pipe::{Limits, PipeStats, Spool};
use crate::routes::{Route, Service};
use bytes::Bytes;
use http::StatusCode;
use once_cell::sync::OnceCell;
pub(crate) use parent::{Parent, Resume};
use pingora_core::protocols::l4::socket::SocketAddr as PeerAddress;
use pingora_http::{RequestHeader, ResponseHeader};
use redirects::Redirects;
use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

/// One request, from its first filter to its log line.
///
/// It is deliberately not Pingora's session and does not deref to it: a filter cannot write past the chain, and a
/// request without a client (a subrequest) looks the same.
pub struct Session<'a> {
    client: Option<&'a mut pingora_proxy::Session>,
    /// The request of a session without a client.
    own_request: Option<Box<RequestHeader>>,
    own_body: Option<Box<Spool>>,
    /// What a subrequest knows of the request that it belongs to.
    parent: Option<Arc<Parent>>,
    /// How many subrequests the client's request has started, nested ones included.
    subrequests: OnceCell<Arc<AtomicUsize>>,
    limits: Arc<Limits>,
    service: Arc<Service>,
    /// The one in force: after an internal redirect, the redirect's.
    route: Arc<Route>,
    captures: Captures,
    redirects: Option<Box<Redirects>>,
    started: Instant,
    request_id: OnceCell<String>,
    remote_user: Option<String>,
    /// What the client asked for, where a filter has changed that.
    original_uri: Option<String>,
    extensions: http::Extensions,
    attempts: Vec<Attempt>,
    answer: Option<Answer>,
    held_header: Option<ResponseHeader>,
    resume: Option<Resume>,
    /// What an upstream or a filter has asked for; `None`: the route's.
    limit_rate: Option<u64>,
    pub(crate) outcome: Outcome,
    pub(crate) buffered: PipeStats,
}

/// A response made here rather than upstream.
pub(crate) struct Answer {
    pub(crate) header: ResponseHeader,
    pub(crate) body: Bytes,
}

/// What became of the request, for the log and the metrics.
#[derive(Default)]
pub(crate) struct Outcome {
    /// The status the client was sent, or would have been.
    pub(crate) status: u16,
    /// The header has gone out.
    pub(crate) header_sent: bool,
    /// An error page is on its way: whatever happens to it, no other one but the built-in one follows.
    pub(crate) error_page: bool,
    /// Body bytes that the client's connection accepted, framing excluded.
    pub(crate) body_bytes_sent: u64,
    /// Request body bytes read from the client.
    pub(crate) body_bytes_read: u64,
    pub(crate) error: Option<Error>,
    /// When the upstream was done with the response.
    pub(crate) upstream_free_at: Option<Instant>,
    /// The session has been counted and logged.
    pub(crate) finished: bool,
}

/// One try at one peer.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// The peer's address: `IP:port` or `unix:/path`.
    pub address: Arc<str>,
    /// The same as the configuration, or a filter, wrote it.
    pub(crate) peer: Arc<str>,
    /// The status of the peer's answer, if there was one.
    pub status: Option<u16>,
    /// How it ended, in the words of `millpond_upstream_attempts_total`; `None` while it runs.
    pub outcome: Option<&'static str>,
    /// A pooled connection was used.
    pub reused: bool,
    /// From the start of the attempt until the connection was there.
    pub connect_time: Option<Duration>,
    /// From the start of the attempt until the response header was complete.
    pub header_time: Option<Duration>,
    /// From the start of the attempt until the upstream was free.
    pub response_time: Option<Duration>,
    /// Response body bytes received, framing excluded.
    pub bytes_received: u64,
    pub(crate) started: Instant,
}

impl Attempt {
    pub(crate) fn new(peer: &Peer) -> Self {
        Attempt {
            address: peer.address_text().clone(),
            peer: peer.name().clone(),
            status: None,
            outcome: None,
            reused: false,
            connect_time: None,
            header_time: None,
            response_time: None,
            bytes_received: 0,
            started: Instant::now(),
        }
    }
}

impl<'a> Session<'a> {
    pub(crate) fn new(
        client: &'a mut pingora_proxy::Session,
        service: Arc<Service>,
        route: Arc<Route>,
        captures: Captures,
        started: Instant,
        limits: Arc<Limits>,
    ) -> Self {
        let mut session = Self::unmade(service, route, started, limits);
        session.client = Some(client);
        session.captures = captures;
        session
    }

    /// A session for a request that no client has made.
    pub(crate) fn without_client(
        request: RequestHeader,
        service: Arc<Service>,
        route: Arc<Route>,
        limits: Arc<Limits>,
    ) -> Session<'static> {
        route.metrics.begun();
        let mut session = Session::unmade(service, route, Instant::now(), limits);
        session.own_request = Some(Box::new(request));
        session
    }

    /// A session that still lacks its request.
    fn unmade(service: Arc<Service>, route: Arc<Route>, started: Instant, limits: Arc<Limits>) -> Self {
        Session {
            limit_rate: None,
            client: None,
            own_request: None,
            own_body: None,
            parent: None,
            subrequests: OnceCell::new(),
            limits,
            resume: None,
            service,
            route,
            captures: Captures::default(),
            redirects: None,
            started,
            request_id: OnceCell::new(),
            remote_user: None,
            original_uri: None,
            extensions: http::Extensions::new(),
            attempts: Vec::new(),
            answer: None,
            held_header: None,
            outcome: Outcome::default(),
            buffered: PipeStats::default(),
        }
    }

    /// The request as the client sent it, with the changes that filters made to it. Between an internal redirect
    /// (`X-Accel-Redirect`, a page of `error_pages`) and the end of the response: the redirect's, a GET (a HEAD stays
    /// one) without a body for its path, otherwise with the client's headers.
    pub fn request(&self) -> &RequestHeader {
        self.redirected_request().unwrap_or_else(|| self.client_request())
    }

    /// The client's own request, whatever internal redirects came behind it.
    ///
    /// # Panics
    /// Never: a session has a client or a request of its own.
    pub fn client_request(&self) -> &RequestHeader {
        match (&self.client, &self.own_request) {
            (Some(client), _) => client.req_header(),
            (None, Some(request)) => request,
            (None, None) => unreachable!("a session has a client or a request of its own"),
        }
    }

    /// The same, to be changed. Every later attempt, filter and log line sees the change; what a single upstream is to
    /// be sent is better changed in `upstream_request_filter`. How the client framed its body is settled before.
    pub fn request_mut(&mut self) -> &mut RequestHeader {
        let redirected = self.redirects.as_mut().and_then(|redirects| redirects.request_mut());
        match (redirected, &mut self.client, &mut self.own_request) {
            (Some(request), _, _) => request,
            (None, Some(client), _) => client.req_header_mut(),
            (None, None, Some(request)) => request,
            (None, None, None) => unreachable!("a session has a client or a request of its own"),
        }
    }

    /// Ask the upstream for another path or query than the client did. Unlike one made with
    /// [`request_mut`](Self::request_mut), this change leaves `$request_uri` as it was.
    pub fn set_uri(&mut self, uri: http::Uri) {
        if self.original_uri.is_none() && !self.is_redirected() {
            self.original_uri = crate::variables::request_uri(self.client_request()).map(Cow::into_owned);
        }
        self.request_mut().set_uri(uri);
    }

    pub(crate) fn original_uri(&self) -> Option<&str> {
        self.original_uri.as_deref()
    }

    /// Pingora's session with the client, to look at: TLS digest, addresses, protocol. `None` in a subrequest.
    pub fn client(&self) -> Option<&pingora_proxy::Session> {
        self.client.as_deref()
    }

    pub(crate) fn client_mut(&mut self) -> Option<&mut pingora_proxy::Session> {
        self.client.as_deref_mut()
    }

    /// The client's address; `None` over a Unix socket. A subrequest has that of its parent.
    pub fn remote_addr(&self) -> Option<SocketAddr> {
        if let Some(parent) = &self.parent {
            return parent.remote_addr;
        }
        match self.client()?.client_addr()? {
            PeerAddress::Inet(address) => Some(*address),
            PeerAddress::Unix(_) => None,
        }
    }

    /// The host the client asked for, as it wrote it: `:authority` in HTTP/2, else `Host`.
    pub fn host(&self) -> Option<&str> {
        crate::headers::host(self.request())
    }

    /// Did the client connect by TLS?
    pub fn is_tls(&self) -> bool {
        if let Some(parent) = &self.parent {
            return parent.is_tls;
        }
        self.client().and_then(|client| client.digest()).is_some_and(|digest| digest.ssl_digest.is_some())
    }

    /// The route whose settings are in force: the one that was chosen for the client's request. Between an internal
    /// redirect and the end of the response it is the redirect's; in `logging`, and for metrics and the access log, it
    /// is the client's again.
    pub fn route(&self) -> &Route {
        &self.route
    }

    pub(crate) fn route_arc(&self) -> &Arc<Route> {
        &self.route
    }

    /// The service that took the request.
    pub fn service(&self) -> &Service {
        &self.service
    }

    /// What the `path_regex` of [`route`](Self::route) captured: by number (`"1"`) or name.
    pub fn capture(&self, name: &str) -> Option<&str> {
        self.captures.value(name)
    }

    /// When the request's header had been read.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// The request's id: 32 hexadecimal digits, made when first asked for, or what a filter
    /// [set](Self::set_request_id).
    pub fn request_id(&self) -> &str {
        self.request_id.get_or_init(new_request_id)
    }

    /// Give the request an id from elsewhere.
    pub fn set_request_id(&mut self, id: impl Into<String>) {
        self.request_id = OnceCell::with_value(id.into());
    }

    /// Who asks, as a filter has found out: `$remote_user`.
    pub fn remote_user(&self) -> Option<&str> {
        self.remote_user.as_deref()
    }

    /// Say who asks, once that is certain.
    pub fn set_remote_user(&mut self, user: impl Into<String>) {
        self.remote_user = Some(user.into());
    }

    pub(crate) fn known_request_id(&self) -> Option<&str> {
        self.request_id.get().map(String::as_str)
    }

    /// A place for filters to leave things for each other, by type.
    pub fn extensions(&mut self) -> &mut http::Extensions {
        &mut self.extensions
    }

    /// The tries at peers so far, the running one included.
    pub fn attempts(&self) -> &[Attempt] {
        &self.attempts
    }

    pub(crate) fn attempts_mut(&mut self) -> &mut Vec<Attempt> {
        &mut self.attempts
    }

    /// How the response was buffered; known in `logging`, nothing before.
    pub fn buffered(&self) -> &PipeStats {
        &self.buffered
    }

    /// The status that was, or is about to be, sent to the client; 0 before there is one.
    pub fn status(&self) -> u16 {
        self.outcome.status
    }

    /// Body bytes that the client's connection has accepted.
    pub fn body_bytes_sent(&self) -> u64 {
        self.outcome.body_bytes_sent
    }

    /// Bytes per second to the client; 0: no limit. The route's `limit_rate`, or what the upstream asked for.
    pub fn limit_rate(&self) -> u64 {
        self.limit_rate.unwrap_or(self.route.conf.limit_rate)
    }

    /// Set the client's rate for this response, in bytes per second; before it begins.
    pub fn set_limit_rate(&mut self, rate: u64) {
        self.limit_rate = Some(rate);
    }

    /// Answer the request here, with a short text. Only in `request_filter`, followed by `Ok(Flow::Done)`.
    ///
    /// # Errors
    /// `status` is no HTTP status of a final answer.
    pub fn respond(&mut self, status: u16, body: impl Into<Bytes>) -> Result<()> {
        let mut header = response_header(status)?;
        header.insert_header(http::header::CONTENT_TYPE, "text/plain; charset=utf-8")?;
        self.respond_with(header, body)
    }

    /// Answer the request here with a header of one's own; `Content-Length` is set from the body.
    ///
    /// # Errors
    /// The header cannot take a `Content-Length`.
    pub fn respond_with(&mut self, mut header: ResponseHeader, body: impl Into<Bytes>) -> Result<()> {
        let body = body.into();
        header.set_content_length(body.len())?;
        self.answer = Some(Answer { header, body });
        Ok(())
    }

    pub(crate) fn take_answer(&mut self) -> Option<Answer> {
        self.answer.take()
    }

    /// In `body_filter` after this filter's `response_filter` returned `Header::Hold`: the header it holds, to be
    /// changed until the first byte or the end is emitted. `None` otherwise.
    pub fn held_header(&mut self) -> Option<&mut ResponseHeader> {
        self.held_header.as_mut()
    }

    pub(crate) fn set_held_header(&mut self, header: ResponseHeader) {
        self.held_header = Some(header);
    }

    pub(crate) fn take_held_header(&mut self) -> Option<ResponseHeader> {
        self.held_header.take()
    }
}

impl Drop for Session<'_> {
    /// Whatever ends a request, a panic or a dropped connection included, it is counted and logged exactly once.
    fn drop(&mut self) {
        crate::exchange::finish::count_and_log(self);
    }
}

fn new_request_id() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

/// A header for an answer made here.
pub(crate) fn response_header(status: u16) -> Result<ResponseHeader> {
    let status = StatusCode::from_u16(status)
        .ok()
        .filter(|status| !status.is_informational())
        .ok_or_else(|| Error::new(ErrorKind::Internal, format!("{status} is no status of an answer")))?;
    Ok(ResponseHeader::build(status, Some(4))?)
}
