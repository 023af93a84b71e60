//! [`UpstreamPhases`]: the callbacks of a filter, in the order in which a request meets them.
//!
//! ```text
//!                 client                                   request hooks run first filter to last,
//!                   │  ▲                                   response hooks last to first: an onion
//!  1 start          │  │
//!     request_filter, request_body_filter                  once; once per run of body chunks
//!  2 connect        │  │
//!     upstream_peer                                        once per attempt
//!  3 send request   │  │
//!     upstream_request_filter                              once per attempt, on a fresh copy of the request
//!  4 receive header │  │
//!     upstream_response_filter                             once per attempt that got a header
//!     response_filter                                      once, also for local answers and error pages (see there)
//!  5 process body   │  │
//!     body_filter                                          once per run of body chunks
//!  6 finish         ▼  │
//!     logging                                              once, whatever happened
//!                upstream
//! ```

use crate::bufs::Bufs;
use crate::error::{Error, Result};
use crate::peers::Peer;
use crate::session::Session;
use pingora_http::{RequestHeader, ResponseHeader};
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll};

/// What [`UpstreamPhases::request_filter`] wants to happen next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// The next filter, and at the end the upstream.
    Continue,
    /// This filter has answered, with [`Session::respond`]. No further filter and no upstream sees the request; the answer
    /// passes the response hooks of the filters entered so far, this one's included.
    Done,
}

/// What [`UpstreamPhases::response_filter`] wants done with the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// Give it to the next filter.
    Pass,
    /// Keep it until this filter's `body_filter` emits a byte or the end. Until then that `body_filter` may change it with
    /// [`Session::held_header`], and the filters outside this one see nothing.
    Hold,
}

/// A filter module: callbacks into the life of a request, each with a default that does nothing and costs nothing.
///
/// Write the ones you need as plain `async fn`. One value of the filter serves all requests of its place in a chain;
/// [`Ctx`](Self::Ctx) is its memory for one request, and stays across attempts.
///
/// After an internal redirect (`X-Accel-Redirect`, a page of `error_pages`) another route answers. The filters that have been
/// entered stay around it and see its answer; its own are entered inside of them, each anew with a context of its own. Of
/// those around it, the first route's own see nothing of the further attempts: no `upstream_*` hook is called for them.
///
/// An `Err` from any hook but [`logging`](Self::logging) fails the request with [`Error::status`], or, once the header is
/// out, breaks the message. A panic is caught, logged with the filter's name, and answers 500.
///
/// ```
/// use millpond::prelude::*;
///
/// /// Turns away clients that name themselves a bot.
/// struct BlockBots;
///
/// impl UpstreamPhases for BlockBots {
///     type Ctx = ();
///     fn new_ctx(&self) {}
///
///     async fn request_filter(&self, session: &mut Session<'_>, _ctx: &mut ()) -> Result<Flow> {
///         let agent = session.request().headers.get("user-agent");
///         if agent.is_some_and(|agent| agent.as_bytes().ends_with(b"bot")) {
///             session.respond(403, "no bots\n")?;
///             return Ok(Flow::Done);
///         }
///         Ok(Flow::Continue)
///     }
/// }
/// ```
pub trait UpstreamPhases: Send + Sync + 'static {
    /// This filter's state for one request. `()` allocates nothing.
    type Ctx: Send + Sync + 'static;

    /// Called once per request, before any hook of any filter.
    fn new_ctx(&self) -> Self::Ctx;

    /// Phase 1, once: look at the request, change it with [`Session::request_mut`], or answer it.
    fn request_filter(
        &self,
        session: &mut Session<'_>,
        ctx: &mut Self::Ctx,
    ) -> impl Future<Output = Result<Flow>> + Send {
        let _ = (session, ctx);
        Unused::<Result<Flow>>::new()
    }

    /// Phase 1 or, with `request_buffering: false`, 3: for each run of request body chunks, the last of them with
    /// [`Bufs::is_last`]. Not called for a request without a body.
    fn request_body_filter(
        &self,
        session: &mut Session<'_>,
        body: &mut Bufs,
        ctx: &mut Self::Ctx,
    ) -> impl Future<Output = Result<()>> + Send {
        let _ = (session, body, ctx);
        Unused::<Result<()>>::new()
    }

    /// Phase 2, once per attempt: name the peer to try. The first filter that names one wins; with `None` from all of them
    /// the route's `upstream` decides.
    fn upstream_peer(
        &self,
        session: &mut Session<'_>,
        ctx: &mut Self::Ctx,
    ) -> impl Future<Output = Result<Option<Peer>>> + Send {
        let _ = (session, ctx);
        Unused::<Result<Option<Peer>>>::new()
    }

    /// Phase 3, once per attempt: change what this upstream is sent. `request` is a fresh copy, without hop-by-hop headers,
    /// with the route's `host` and `set_headers` applied; framing is added behind this hook.
    fn upstream_request_filter(
        &self,
        session: &mut Session<'_>,
        request: &mut RequestHeader,
        ctx: &mut Self::Ctx,
    ) -> impl Future<Output = Result<()>> + Send {
        let _ = (session, request, ctx);
        Unused::<Result<()>>::new()
    }

    /// Phase 4, once per attempt that received a header, before `next_upstream` judges its status.
    fn upstream_response_filter(
        &self,
        session: &mut Session<'_>,
        response: &mut ResponseHeader,
        ctx: &mut Self::Ctx,
    ) -> impl Future<Output = Result<()>> + Send {
        let _ = (session, response, ctx);
        Unused::<Result<()>>::new()
    }

    /// Phase 4, for the answer that goes to the client, wherever it comes from: an upstream, a filter, an error page.
    /// Whoever will change the length of the body removes `Content-Length` here.
    ///
    /// Once, but for an answer that fails while a filter holds its header: an error page follows, and begins anew. What
    /// `ctx` keeps of the first body is to be dropped then.
    fn response_filter(
        &self,
        session: &mut Session<'_>,
        response: &mut ResponseHeader,
        ctx: &mut Self::Ctx,
    ) -> impl Future<Output = Result<Header>> + Send {
        let _ = (session, response, ctx);
        Unused::<Result<Header>>::new()
    }

    /// Phase 5, for each run of body chunks, the last of them with [`Bufs::is_last`]; always after this filter's
    /// `response_filter`. A message without a body is one empty last run.
    fn body_filter(
        &self,
        session: &mut Session<'_>,
        body: &mut Bufs,
        ctx: &mut Self::Ctx,
    ) -> impl Future<Output = Result<()>> + Send {
        let _ = (session, body, ctx);
        Unused::<Result<()>>::new()
    }

    /// Phase 6, exactly once, after the last byte or the failure. `error` is what the client could not be told otherwise.
    fn logging(
        &self,
        session: &mut Session<'_>,
        error: Option<&Error>,
        ctx: &mut Self::Ctx,
    ) -> impl Future<Output = ()> + Send {
        let _ = (session, error, ctx);
        Unused::<()>::new()
    }
}

/// The answer of a hook that a filter leaves alone.
pub(crate) trait Neutral {
    fn neutral() -> Self;
}

impl Neutral for () {
    fn neutral() {}
}

impl Neutral for Result<()> {
    fn neutral() -> Self {
        Ok(())
    }
}

impl Neutral for Result<Flow> {
    fn neutral() -> Self {
        Ok(Flow::Continue)
    }
}

impl Neutral for Result<Header> {
    fn neutral() -> Self {
        Ok(Header::Pass)
    }
}

impl Neutral for Result<Option<Peer>> {
    fn neutral() -> Self {
        Ok(None)
    }
}

/// The future of a default hook. It has no size, and an `async fn` that captures its arguments has one: that is how the
/// chain tells which hooks a filter uses, and never visits the others.
struct Unused<T>(PhantomData<fn() -> T>);

impl<T> Unused<T> {
    fn new() -> Self {
        Unused(PhantomData)
    }
}

impl<T: Neutral> Future for Unused<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<T> {
        Poll::Ready(T::neutral())
    }
}
