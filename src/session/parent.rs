//! What subrequests have to do with sessions: what a child knows of its parent, and a filter that has more to say than
//! it was given.

use super::Session;
use crate::client::poll_left;
use crate::error::{Error, ErrorKind, Result};
use crate::headers;
use crate::internal_redirect::{Why, redirected};
use crate::paths;
use crate::pipe::{Limits, Spool};
use crate::subrequest::{Subrequest, Target};
use crate::variables;
use http::Method;
use once_cell::sync::OnceCell;
use pingora_http::RequestHeader;
use std::borrow::Cow;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;

/// How deep subrequests may be nested. nginx has 50 (`NGX_HTTP_MAX_SUBREQUESTS`), but here a body is polled by the one
/// around it, on the stack of one thread: without optimization a level of includes takes 100 KiB of its 2 MiB.
const MAX_DEPTH: usize = 10;
/// How many a client's request may start in all.
const MAX_SUBREQUESTS: usize = 1000;

/// What a subrequest knows of the request that it belongs to: it is served for the same client.
#[derive(Clone, Debug)]
pub(crate) struct Parent {
    pub(super) remote_addr: Option<SocketAddr>,
    server_addr: Option<SocketAddr>,
    pub(super) is_tls: bool,
    /// What the client asked for: nginx's `$request_uri` and `$request_method` of the main request.
    request_uri: Option<String>,
    remote_user: Option<String>,
    method: Method,
    request_id: String,
    /// 1 for the subrequests of a client's request.
    depth: usize,
    /// Of the client's request.
    subrequests: Arc<AtomicUsize>,
}

impl Parent {
    /// Is it for the subrequests of a subrequest? Each would be polled by the one around it, and until its header is
    /// there that takes more of the stack than ten levels have.
    pub(crate) fn is_nested(&self) -> bool {
        self.depth > 1
    }
}

/// When a filter wants its `body_filter` to be called again.
pub(crate) enum Resume {
    Now,
    When(Pin<Box<dyn Future<Output = ()> + Send + Sync>>),
}

impl Session<'_> {
    /// A session for `request`, which a filter has made. Its route's filters see it as they see a client's.
    pub(crate) fn of_parent(
        request: RequestHeader,
        body: Option<Spool>,
        service: Arc<crate::routes::Service>,
        route: Arc<crate::routes::Route>,
        captures: crate::conf::Captures,
        limits: Arc<Limits>,
        parent: Arc<Parent>,
    ) -> Session<'static> {
        let mut session = Session::without_client(request, service, route, limits);
        session.captures = captures;
        session.own_body = body.map(Box::new);
        session.set_request_id(parent.request_id.clone());
        session.remote_user.clone_from(&parent.remote_user);
        session.subrequests = OnceCell::with_value(parent.subrequests.clone());
        session.parent = Some(parent);
        session
    }

    /// Is it served for another request rather than for a client?
    pub fn is_subrequest(&self) -> bool {
        self.parent.is_some()
    }

    /// 0 for a client's request, 1 for its subrequests, and so on.
    pub fn subrequest_depth(&self) -> usize {
        self.parent.as_ref().map_or(0, |parent| parent.depth)
    }

    /// The header of a request that a filter makes: a GET for `uri`, a path with or without a query, with the client's
    /// headers but for those about its body, parts of the answer (`Range`) or copies that it has (`If-None-Match`).
    ///
    /// # Errors
    /// `uri` is no path.
    pub fn request_for(&self, uri: &str) -> Result<RequestHeader> {
        let target = paths::redirect_target(uri.as_bytes()).map_err(|reason| {
            let text = format!("the uri of a subrequest: found {uri:?}, expected a path such as /auth: {reason}");
            Error::new(ErrorKind::Filter, text)
        })?;
        let mut request = redirected(self, &target, Why::ErrorPage)?;
        request.set_method(Method::GET);
        Ok(request)
    }

    /// A request of a filter's own to another route of the service, or to an upstream. It is sent by
    /// [`Subrequest::send`] or [`Subrequest::spawn`]; what this gives is free of the session, so that several can run
    /// at once. It is served for the same client (`$remote_addr`, `$request_uri` and `$request_id` are this request's),
    /// by its route's own filters: the service's stand around this request already.
    ///
    /// # Errors
    /// Its target cannot be sent, no route is there for it, subrequests are nested more than 10 deep, or the client's
    /// request has started 1,000 of them.
    pub fn subrequest(&self, mut request: RequestHeader, target: &Target) -> Result<Subrequest> {
        headers::check_target(&request)?;
        // There is nobody to talk to behind a switch of protocols.
        request.remove_header(&http::header::UPGRADE);
        let parent = self.describe();
        if parent.depth > MAX_DEPTH {
            let text = format!("subrequests are nested more than {MAX_DEPTH} deep, the last one is {}", request.uri);
            return Err(Error::new(ErrorKind::Internal, text));
        }
        if parent.subrequests.fetch_add(1, Ordering::Relaxed) >= MAX_SUBREQUESTS {
            let text = format!("more than {MAX_SUBREQUESTS} subrequests, the last one is {}", request.uri);
            return Err(Error::new(ErrorKind::Internal, text));
        }
        let (service, limits) = (self.service.clone(), self.limits.clone());
        Subrequest::new(request, target, &self.captures, service, limits, Arc::new(parent))
    }

    /// Do `work` for the request, a subrequest say, as long as the client is there. While its request body has not been
    /// read, and with `ignore_client_abort`, it is not watched.
    ///
    /// # Errors
    /// The client has left, and the work is dropped.
    pub async fn unless_client_leaves<T>(&mut self, work: impl Future<Output = T>) -> Result<T> {
        let watched = !self.route.conf.ignore_client_abort;
        let Some(client) = self.client_mut().filter(|_| watched) else { return Ok(work.await) };
        if !client.is_body_done() {
            return Ok(work.await);
        }
        let mut work = pin!(work);
        poll_fn(|cx| match work.as_mut().poll(cx) {
            Poll::Ready(done) => Poll::Ready(Ok(done)),
            Poll::Pending => poll_left(cx, client).map(Err),
        })
        .await
    }

    /// Did a body come with the request? Only then `request_body_filter` is called.
    pub fn has_body(&mut self) -> bool {
        let own = self.own_body.is_some();
        self.client_mut().map_or(own, |client| !client.is_body_empty())
    }

    fn describe(&self) -> Parent {
        Parent {
            remote_addr: self.remote_addr(),
            server_addr: self.server_addr(),
            is_tls: self.is_tls(),
            request_uri: self.asked_uri().map(Cow::into_owned),
            remote_user: self.remote_user().map(str::to_owned),
            method: self.asked_method().clone(),
            request_id: self.request_id().to_owned(),
            depth: self.subrequest_depth() + 1,
            subrequests: self.subrequests.get_or_init(Arc::default).clone(),
        }
    }

    /// An empty store for a body, with the memory that the route grants request bodies (`client_body_buffer_size`) and
    /// a temporary file for the rest.
    pub fn spool(&self) -> Spool {
        let memory = usize::try_from(self.route.conf.client_body_buffer_size).unwrap_or(usize::MAX);
        Spool::new(memory, &self.limits)
    }

    /// In `body_filter`, by a filter that has more to say than this run: call it again, with an empty run, when the
    /// client has taken this one. Until then no more of the response is read; the end of the body waits for it too. In
    /// `response_filter`, by one that has something to say before the body: call its `body_filter` first with an empty
    /// run.
    pub fn resume_body(&mut self) {
        self.resume = Some(Resume::Now);
    }

    /// The same when `ready` is done, or the next run is there, if that is sooner.
    pub fn resume_body_when(&mut self, ready: impl Future<Output = ()> + Send + Sync + 'static) {
        self.resume = Some(Resume::When(Box::pin(ready)));
    }

    pub(crate) fn take_resume(&mut self) -> Option<Resume> {
        self.resume.take()
    }

    pub(crate) fn take_own_body(&mut self) -> Option<Spool> {
        self.own_body.take().map(|body| *body)
    }

    pub(crate) fn limits(&self) -> &Arc<Limits> {
        &self.limits
    }

    /// Where the client's connection was accepted; nothing over a Unix socket.
    pub(crate) fn server_addr(&self) -> Option<SocketAddr> {
        match &self.parent {
            Some(parent) => parent.server_addr,
            None => self.client()?.server_addr()?.as_inet().copied(),
        }
    }

    /// What the client asked for, path and query, whatever filters made of it, and of a subrequest its parent's client.
    pub(crate) fn asked_uri(&self) -> Option<Cow<'_, str>> {
        match &self.parent {
            Some(parent) => parent.request_uri.as_deref().map(Cow::Borrowed),
            None => match self.original_uri() {
                Some(uri) => Some(uri.into()),
                None => variables::request_uri(self.client_request()),
            },
        }
    }

    /// The client's method.
    pub(crate) fn asked_method(&self) -> &Method {
        self.parent.as_ref().map_or(&self.client_request().method, |parent| &parent.method)
    }
}
