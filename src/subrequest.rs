//! Requests that filters make: nginx's subrequests. Each is an exchange of its own, with its own attempts, pipe, time
//! limits, metrics and log line, and passes the filters of the route that it goes to.
//!
//! ```no_run
//! # use millpond::prelude::*;
//! # async fn f(session: &mut Session<'_>) -> Result<()> {
//! let request = session.request_for("/stock?id=7")?;
//! let mut answer = session.subrequest(request, &Target::route())?.send().await?;
//! if answer.header().status == StatusCode::OK {
//!     let text = answer.collect(64 * 1024).await?;
//! }
//! # Ok(()) }
//! ```

use crate::answer::{Answer, answer};
use crate::bufs::Bufs;
use crate::chain::{Chain, Pass};
use crate::client::ClientBody;
use crate::conf::Captures;
use crate::error::{Error, ErrorKind, Result};
use crate::error_pages::log_failure;
use crate::exchange::process_body::ResponseBody;
use crate::pipe::{Limits, Spool};
use crate::protocol::BodyLength;
use crate::routes::{Route, Service};
use crate::session::{Parent, Session};
use bytes::{Bytes, BytesMut};
use futures::FutureExt;
use futures::channel::oneshot;
use futures::future::Shared;
use http::header::CONTENT_LENGTH;
use parking_lot::Mutex;
use pingora_http::{RequestHeader, ResponseHeader};
use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::task::JoinHandle;

/// Where a subrequest goes.
#[derive(Clone)]
pub struct Target(Option<Arc<Route>>);

impl Target {
    /// To the route of the service that matches the request's host, path and method; it may be `internal`.
    pub fn route() -> Self {
        Target(None)
    }

    /// To an upstream, see [`FilterScope::upstream`](crate::scope::FilterScope::upstream).
    pub(crate) fn upstream(route: Arc<Route>) -> Self {
        Target(Some(route))
    }
}

/// A request of a filter's own, not yet sent. It is free of the session that made it.
pub struct Subrequest {
    request: RequestHeader,
    body: Option<Spool>,
    service: Arc<Service>,
    route: Arc<Route>,
    chain: Arc<Chain>,
    captures: Captures,
    limits: Arc<Limits>,
    parent: Arc<Parent>,
}

impl Subrequest {
    /// `captures` are those of the request that it is made for: an upstream is asked with that one's `uri`.
    pub(crate) fn new(
        request: RequestHeader,
        target: &Target,
        captures: &Captures,
        service: Arc<Service>,
        limits: Arc<Limits>,
        parent: Arc<Parent>,
    ) -> Result<Self> {
        let (route, captures) = match &target.0 {
            Some(route) => (route.clone(), captures.clone()),
            None => service.find_route(&request).ok_or_else(|| {
                let text = format!("no route matches the subrequest {} {}", request.method, request.uri);
                Error::new(ErrorKind::NoRoute, text)
            })?,
        };
        let chain = route.own_chain.clone();
        Ok(Subrequest { request, body: None, service, route, chain, captures, limits, parent })
    }

    /// Send a body with it. Without one, the request has none.
    pub fn body(mut self, body: Spool) -> Self {
        self.body = Some(body);
        self
    }

    /// Send it, and wait for the header of the answer. Dropped before its end, the exchange is broken off.
    ///
    /// # Errors
    /// There is no answer: no peer, a time limit, a filter of the route has failed. [`Error::status`] is what a client
    /// would have been told.
    pub async fn send(self) -> Result<Subresponse> {
        if self.parent.is_nested() {
            // In a task, for the stack's sake: see `Parent::is_nested`.
            return self.spawn().response().await;
        }
        self.run().await
    }

    async fn run(self) -> Result<Subresponse> {
        // The copy of a request that says it has an empty body says so too.
        let says_empty = self.request.headers.get(CONTENT_LENGTH).is_some_and(|length| length == "0");
        let empty = if says_empty { BodyLength::Known(0) } else { BodyLength::None };
        let length = self.body.as_ref().map_or(empty, |body| BodyLength::Known(body.len()));
        let Subrequest { request, body, service, route, chain, captures, limits, parent } = self;
        let session = Session::of_parent(request, body, service, route.clone(), captures, limits, parent);
        let mut pass = Pass::new(session, &chain);
        match begin(&mut pass, &route, length).await {
            Ok(begun) => Ok(begun.into_response(pass)),
            Err(error) => {
                log_failure(&pass.session, &error);
                pass.session.outcome.status = error.status();
                finish(pass, Some(&error)).await;
                Err(error)
            }
        }
    }

    /// Send it in a task of its own, beside whatever else is done meanwhile.
    pub fn spawn(self) -> Fetch {
        let (over, ready) = oneshot::channel::<()>();
        let task = tokio::spawn(async move {
            let answered = self.run().await;
            drop(over);
            answered
        });
        Fetch { task, ready: ready.shared() }
    }
}

/// A subrequest under way in a task of its own; dropped, it is broken off.
pub struct Fetch {
    task: JoinHandle<Result<Subresponse>>,
    ready: Shared<oneshot::Receiver<()>>,
}

impl Fetch {
    /// Wait for the header of the answer.
    ///
    /// # Errors
    /// As [`Subrequest::send`].
    pub async fn response(mut self) -> Result<Subresponse> {
        match (&mut self.task).await {
            Ok(response) => response,
            Err(error) => Err(Error::because(ErrorKind::Internal, "the task of a subrequest", error)),
        }
    }

    /// Is there an answer, or an error, to be had without waiting?
    pub fn is_ready(&self) -> bool {
        self.ready.clone().now_or_never().is_some()
    }

    /// Done when there is an answer, or an error: for
    /// [`Session::resume_body_when`](crate::session::Session::resume_body_when).
    pub fn ready(&self) -> impl Future<Output = ()> + Send + Sync + 'static {
        let ready = self.ready.clone();
        async move {
            // Cancelled or not, there is nothing more to wait for.
            let _ = ready.await;
        }
    }
}

impl Drop for Fetch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Phases 1 to 4, and the header through the filters.
async fn begin(pass: &mut Pass<'static>, route: &Arc<Route>, length: BodyLength) -> Result<Begun> {
    let mut nobody = ClientBody::new(&route.conf, false);
    let (header, source) = match answer(pass, &mut nobody, length).await? {
        Answer::Local(header, text) => (header, Source::Whole(Bufs::from_chunk(text, true))),
        Answer::Message(header, ResponseBody::Whole { body, upstream, .. }) => {
            upstream.note(&mut pass.session);
            (header, Source::Whole(body))
        }
        Answer::Message(header, body) => (header, Source::Piped(body)),
        Answer::Failed(failure) => {
            let (header, text) = failure.built_in(&pass.session)?;
            (header, Source::Whole(Bufs::from_chunk(text, true)))
        }
        Answer::Upgraded(..) => return Err(Error::new(ErrorKind::Internal, "a subrequest cannot switch protocols")),
    };
    pass.session.outcome.status = header.status.as_u16();
    let mut begun = Begun { header: pass.response_filter(header).await?, source, first: None };
    while begun.header.is_none() {
        let mut run = poll_fn(|cx| begun.source.poll_run(cx, pass)).await?;
        begun.header = filter(pass, &mut run).await?;
        begun.first = Some(run);
    }
    Ok(begun)
}

/// An answer whose header has come out of the filters, perhaps with a first run of its body.
struct Begun {
    header: Option<ResponseHeader>,
    source: Source,
    first: Option<Bufs>,
}

impl Begun {
    fn into_response(self, mut pass: Pass<'static>) -> Subresponse {
        let header = self.header.unwrap_or_else(|| unreachable!("an answer begins with its header"));
        pass.session.outcome.status = header.status.as_u16();
        pass.session.outcome.header_sent = true;
        let body = Body { pass: Some(pass), source: self.source, first: self.first };
        Subresponse { header, body: Mutex::new(body) }
    }
}

enum Source {
    Whole(Bufs),
    Piped(ResponseBody),
}

impl Source {
    /// The next run, as it comes from the upstream, or an empty one for a filter that has more to say.
    fn poll_run(&mut self, cx: &mut Context<'_>, pass: &mut Pass<'_>) -> Poll<Result<Bufs>> {
        if pass.poll_resume(cx).is_ready() {
            return Poll::Ready(Ok(Bufs::new()));
        }
        if !pass.may_read() {
            return Poll::Pending;
        }
        match self {
            Source::Whole(body) => Poll::Ready(Ok(std::mem::replace(body, Bufs::end_of_body()))),
            Source::Piped(body) => body.poll_run(cx),
        }
    }
}

async fn filter(pass: &mut Pass<'static>, run: &mut Bufs) -> Result<Option<ResponseHeader>> {
    match pass.is_resumed() {
        true => pass.resume(run).await,
        false => pass.body_filter(run).await,
    }
}

/// The answer to a subrequest: its header, and its body as it comes.
pub struct Subresponse {
    header: ResponseHeader,
    // It is only ever reached through `&mut`: the lock makes it `Sync`, so that filters can keep it in their contexts.
    body: Mutex<Body>,
}

struct Body {
    /// `None` behind the end.
    pass: Option<Pass<'static>>,
    source: Source,
    first: Option<Bufs>,
}

impl Subresponse {
    /// The header, as it came out of the route's filters.
    pub fn header(&self) -> &ResponseHeader {
        &self.header
    }

    /// The next bytes of the body; `None` behind its end. The upstream is read on only as far as the route's buffers
    /// permit while nobody asks.
    ///
    /// # Errors
    /// The body is incomplete.
    pub async fn next(&mut self) -> Result<Option<Bufs>> {
        let body = self.body.get_mut();
        while body.pass.is_some() {
            let run = match body.next_run().await {
                Ok(run) => run,
                Err(error) => {
                    body.end(Some(&error)).await;
                    return Err(error);
                }
            };
            if run.is_last() {
                body.end(None).await;
            }
            if !run.is_empty() {
                return Ok(Some(run));
            }
        }
        Ok(None)
    }

    /// All of the body, if it is not longer than `limit` bytes.
    ///
    /// # Errors
    /// It is longer, or incomplete.
    pub async fn collect(&mut self, limit: usize) -> Result<Bytes> {
        let mut all = BytesMut::new();
        while let Some(mut run) = self.next().await? {
            if all.len() + run.len() > limit {
                let text = format!("the answer to a subrequest is longer than {limit} bytes");
                return Err(Error::new(ErrorKind::Filter, text));
            }
            all.extend_from_slice(&run.take_all());
        }
        Ok(all.freeze())
    }
}

impl Body {
    async fn next_run(&mut self) -> Result<Bufs> {
        let Some(pass) = &mut self.pass else { return Ok(Bufs::end_of_body()) };
        let run = match self.first.take() {
            Some(run) => run,
            None => {
                let mut run = poll_fn(|cx| self.source.poll_run(cx, pass)).await?;
                filter(pass, &mut run).await?;
                run
            }
        };
        pass.session.outcome.body_bytes_sent += run.len() as u64;
        Ok(run)
    }

    async fn end(&mut self, error: Option<&Error>) {
        let Some(mut pass) = self.pass.take() else { return };
        if let Source::Piped(body) = std::mem::replace(&mut self.source, Source::Whole(Bufs::end_of_body())) {
            body.note(&mut pass.session);
        }
        finish(pass, error).await;
    }
}

impl Drop for Body {
    /// Left before its end: what the upstream has sent so far is counted all the same.
    fn drop(&mut self) {
        if let (Some(pass), Source::Piped(body)) =
            (&mut self.pass, std::mem::replace(&mut self.source, Source::Whole(Bufs::new())))
        {
            body.note(&mut pass.session);
        }
    }
}

/// Phase 6; counting and logging come with the session's end.
async fn finish(mut pass: Pass<'static>, error: Option<&Error>) {
    pass.session.end_redirects();
    pass.logging(error).await;
    pass.session.outcome.error = error.map(|error| Error::new(error.kind(), error.to_string()));
}
