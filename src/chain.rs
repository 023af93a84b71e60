//! The stack of filters of a route, and one request's way through it.
//!
//! [`Chain`] is built once, from values of any type that implements [`UpstreamPhases`], and knows for each hook which
//! filters use it. `Pass` is one request's way: the session, each filter's context, and how far the response header
//! has come. Request hooks run first filter to last, response hooks last to first.

mod erased;
mod redirected;
mod resumed;
mod walk;

use crate::bufs::Bufs;
use crate::error::{Error, ErrorKind, Result};
use crate::metrics::FilterTimes;
use crate::peers::Peer;
use crate::phases::{Flow, Header, UpstreamPhases};
use crate::session::Session;
use erased::ErasedPhases;
use futures::FutureExt;
use pingora_http::{RequestHeader, ResponseHeader};
use resumed::Resumption;
use std::any::Any;
use std::future::Future;
use std::ops::Range;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
pub use walk::Walk;

type Context = dyn Any + Send + Sync;
type HookFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// One request in so many has its filters' times measured, so that the clock costs the others nothing.
const TIMED_ONE_IN: usize = 16;

/// A stack of filters, outermost first.
#[derive(Default)]
pub struct Chain {
    filters: Vec<Arc<Filter>>,
    uses: [Vec<usize>; HOOKS],
    requests: AtomicUsize,
}

/// A named filter, ready to be placed in chains.
pub struct Filter {
    name: String,
    phases: Box<dyn ErasedPhases>,
    times: FilterTimes,
}

impl Filter {
    /// Wrap `phases`; `name` is what logs and `millpond_filter_seconds` call it.
    pub fn new<P: UpstreamPhases>(name: impl Into<String>, phases: P) -> Arc<Self> {
        let name = name.into();
        let times = FilterTimes::new(&name, &HOOK_NAMES);
        Arc::new(Filter { name, phases: Box::new(phases), times })
    }
}

const HOOKS: usize = 8;
const HOOK_NAMES: [&str; HOOKS] = [
    "request_filter",
    "request_body_filter",
    "upstream_peer",
    "upstream_request_filter",
    "upstream_response_filter",
    "response_filter",
    "body_filter",
    "logging",
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Hook {
    Request,
    RequestBody,
    UpstreamPeer,
    UpstreamRequest,
    UpstreamResponse,
    Response,
    Body,
    Logging,
}

impl Chain {
    /// Stack `filters`, the first one outermost.
    pub fn new(filters: impl IntoIterator<Item = Arc<Filter>>) -> Self {
        let filters: Vec<_> = filters.into_iter().collect();
        let mut uses: [Vec<usize>; HOOKS] = Default::default();
        for (index, filter) in filters.iter().enumerate() {
            for (hook, used) in filter.phases.hooks().into_iter().enumerate() {
                if used {
                    uses[hook].push(index);
                }
            }
        }
        Chain { filters, uses, requests: AtomicUsize::new(0) }
    }

    /// How many filters are stacked.
    pub fn len(&self) -> usize {
        self.filters.len()
    }

    /// No filters at all?
    pub fn is_empty(&self) -> bool {
        self.filters.is_empty()
    }

    fn users(&self, hook: Hook) -> &[usize] {
        &self.uses[hook as usize]
    }

    /// Does any filter look at request bodies?
    pub(crate) fn filters_request_body(&self) -> bool {
        !self.users(Hook::RequestBody).is_empty()
    }
}

/// One request's way through a chain.
pub(crate) struct Pass<'s> {
    pub(crate) session: Session<'s>,
    chain: Arc<Chain>,
    contexts: Vec<Box<Context>>,
    /// Filters `0..entered` have seen the request, and so see the response.
    entered: usize,
    /// Of these, the own filters of routes that redirected elsewhere: what is sent to upstreams is not theirs any more.
    past: Range<usize>,
    /// Filters that had not been entered at an internal redirect, with their contexts: only `logging` is left for them.
    passed_over: Vec<(Arc<Filter>, Box<Context>)>,
    /// The header on its way outwards, while a filter holds it.
    held: Option<HeldHeader>,
    /// Body bytes taken in since the last one was given out.
    withheld: usize,
    timed: bool,
    /// Filters that have more to say than they were given, the innermost first.
    resumptions: Vec<Resumption>,
    /// The filters have failed on the error page too; they see no more of the response.
    left: bool,
    /// A filter has ended the request body, or answered: no filter sees more of that body.
    request_body_over: bool,
}

struct HeldHeader {
    /// The filter that holds it.
    by: usize,
    header: ResponseHeader,
}

impl<'s> Pass<'s> {
    pub(crate) fn new(session: Session<'s>, chain: &Arc<Chain>) -> Self {
        let timed = !chain.is_empty() && chain.requests.fetch_add(1, Ordering::Relaxed).is_multiple_of(TIMED_ONE_IN);
        Pass {
            session,
            chain: chain.clone(),
            contexts: chain.filters.iter().map(|filter| filter.phases.new_ctx()).collect(),
            entered: 0,
            past: 0..0,
            passed_over: Vec::new(),
            held: None,
            withheld: 0,
            timed,
            resumptions: Vec::new(),
            left: false,
            request_body_over: false,
        }
    }

    /// Phase 1, for the filters that have not been entered yet. `Done` when one has answered; its answer waits in the
    /// session.
    pub(crate) async fn request_filter(&mut self) -> Result<Flow> {
        let chain = self.chain.clone();
        let from = self.entered;
        for &index in chain.users(Hook::Request).iter().filter(|index| **index >= from) {
            self.entered = index + 1;
            let hook = guarded(&chain.filters[index], Hook::Request, self.timed, |phases| {
                phases.request_filter(&mut self.session, &mut *self.contexts[index])
            });
            if hook.await? == Flow::Done {
                self.request_body_over = true;
                return Ok(Flow::Done);
            }
        }
        self.entered = chain.filters.len();
        Ok(Flow::Continue)
    }

    /// A run of the request body on its way inwards. What comes behind the end that a filter has set is thrown away.
    pub(crate) async fn request_body_filter(&mut self, body: &mut Bufs) -> Result<()> {
        if self.request_body_over {
            body.take();
            return Ok(());
        }
        let chain = self.chain.clone();
        for &index in chain.users(Hook::RequestBody) {
            let was_last = body.is_last();
            guarded(&chain.filters[index], Hook::RequestBody, self.timed, |phases| {
                phases.request_body_filter(&mut self.session, body, &mut *self.contexts[index])
            })
            .await?;
            check_end(was_last, body, &chain.filters[index], Hook::RequestBody)?;
            if body.is_empty() && !body.is_last() {
                break;
            }
        }
        self.request_body_over = body.is_last();
        Ok(())
    }

    pub(crate) async fn upstream_peer(&mut self) -> Result<Option<Peer>> {
        let (chain, past) = (self.chain.clone(), self.past.clone());
        for &index in chain.users(Hook::UpstreamPeer).iter().filter(|index| !past.contains(index)) {
            let peer = guarded(&chain.filters[index], Hook::UpstreamPeer, self.timed, |phases| {
                phases.upstream_peer(&mut self.session, &mut *self.contexts[index])
            })
            .await?;
            if peer.is_some() {
                return Ok(peer);
            }
        }
        Ok(None)
    }

    pub(crate) async fn upstream_request_filter(&mut self, request: &mut RequestHeader) -> Result<()> {
        let (chain, past) = (self.chain.clone(), self.past.clone());
        for &index in chain.users(Hook::UpstreamRequest).iter().filter(|index| !past.contains(index)) {
            guarded(&chain.filters[index], Hook::UpstreamRequest, self.timed, |phases| {
                phases.upstream_request_filter(&mut self.session, request, &mut *self.contexts[index])
            })
            .await?;
        }
        Ok(())
    }

    pub(crate) async fn upstream_response_filter(&mut self, response: &mut ResponseHeader) -> Result<()> {
        let (chain, past) = (self.chain.clone(), self.past.clone());
        for &index in chain.users(Hook::UpstreamResponse).iter().rev().filter(|index| !past.contains(index)) {
            guarded(&chain.filters[index], Hook::UpstreamResponse, self.timed, |phases| {
                phases.upstream_response_filter(&mut self.session, response, &mut *self.contexts[index])
            })
            .await?;
        }
        Ok(())
    }

    /// Phase 4: start the header on its way outwards. `Some` when it passed every filter; else one holds it.
    pub(crate) async fn response_filter(&mut self, header: ResponseHeader) -> Result<Option<ResponseHeader>> {
        self.held = None;
        self.resumptions.clear();
        self.session.take_held_header();
        self.withheld = 0;
        self.header_outwards(header, self.reach()).await
    }

    /// The same for a header that no body follows, a 101: nobody can hold it.
    pub(crate) async fn response_filter_alone(&mut self, header: ResponseHeader) -> Result<ResponseHeader> {
        let mut passed = self.response_filter(header).await?;
        loop {
            match (passed, self.held.take()) {
                (Some(header), _) => return Ok(header),
                (None, Some(held)) => passed = self.header_outwards(held.header, held.by).await?,
                (None, None) => return Err(Error::new(ErrorKind::Internal, "the header is gone")),
            }
        }
    }

    /// Filters `0..reach` see the response.
    fn reach(&self) -> usize {
        if self.left { 0 } else { self.entered }
    }

    /// The header goes on outwards from filter `below`, which has let it go.
    async fn header_outwards(&mut self, mut header: ResponseHeader, below: usize) -> Result<Option<ResponseHeader>> {
        let chain = self.chain.clone();
        for &index in chain.users(Hook::Response).iter().rev().filter(|index| **index < below) {
            let hook = guarded(&chain.filters[index], Hook::Response, self.timed, |phases| {
                phases.response_filter(&mut self.session, &mut header, &mut *self.contexts[index])
            });
            let passed = hook.await?;
            self.note_resumption(index, &mut Bufs::new());
            if passed == Header::Hold {
                self.held = Some(HeldHeader { by: index, header });
                return Ok(None);
            }
        }
        Ok(Some(header))
    }

    /// Phase 5: a run of body chunks on its way outwards. Gives the header when a filter let it go with this run.
    pub(crate) async fn body_filter(&mut self, body: &mut Bufs) -> Result<Option<ResponseHeader>> {
        if self.chain.users(Hook::Body).is_empty() && self.held.is_none() {
            return Ok(None);
        }
        let taken_in = body.len();
        let released = self.body_outwards(body, self.reach()).await?;
        self.watch_withheld(taken_in, body)?;
        Ok(released)
    }

    /// The run goes outwards through the filters `0..below`.
    async fn body_outwards(&mut self, body: &mut Bufs, below: usize) -> Result<Option<ResponseHeader>> {
        let mut released = None;
        let chain = self.chain.clone();
        // A filter that holds the header without a body_filter of its own lets go of it with the first run.
        let mut position = below;
        while position > 0 {
            position -= 1;
            if let Some(held) = self.held.take_if(|held| held.by == position) {
                self.session.set_held_header(held.header);
            }
            if chain.users(Hook::Body).contains(&position) {
                let was_last = body.is_last();
                guarded(&chain.filters[position], Hook::Body, self.timed, |phases| {
                    phases.body_filter(&mut self.session, body, &mut *self.contexts[position])
                })
                .await?;
                check_end(was_last, body, &chain.filters[position], Hook::Body)?;
                self.note_resumption(position, body);
            }
            let header = self.session.take_held_header();
            if body.is_empty() && !body.is_last() {
                self.held = header.map(|header| HeldHeader { by: position, header }).or(self.held.take());
                break;
            }
            if let Some(header) = header {
                released = self.header_outwards(header, position).await?;
            }
        }
        Ok(released)
    }

    /// What filters hold is bounded: fail when more than `filter_hold_max` bytes went in since one came out.
    fn watch_withheld(&mut self, taken_in: usize, body: &Bufs) -> Result<()> {
        self.withheld = if body.is_empty() { self.withheld + taken_in } else { 0 };
        let limit = self.session.route().conf().filter_hold_max;
        if self.withheld as u64 > limit {
            let text = format!("the filters hold back more than {limit} bytes of the body (filter_hold_max)");
            return Err(Error::new(ErrorKind::Filter, text));
        }
        Ok(())
    }

    /// Is the response header with a filter that has not let it go yet?
    pub(crate) fn holds_header(&self) -> bool {
        self.held.is_some()
    }

    /// Will a request body be looked at by a filter?
    pub(crate) fn filters_request_body(&self) -> bool {
        self.chain.filters_request_body()
    }

    /// No filter sees anything any more but `logging`: they have failed on the error page.
    pub(crate) fn leave_filters(&mut self) {
        self.left = true;
        self.held = None;
    }

    /// Phase 6, for every filter of the chain, and those that a redirect passed over.
    pub(crate) async fn logging(&mut self, error: Option<&Error>) {
        let mut passed_over = std::mem::take(&mut self.passed_over);
        for (filter, context) in passed_over.iter_mut().rev() {
            log_in(filter, &mut self.session, error, &mut **context).await;
        }
        let chain = self.chain.clone();
        for &index in chain.users(Hook::Logging).iter().rev() {
            log_in(&chain.filters[index], &mut self.session, error, &mut *self.contexts[index]).await;
        }
    }
}

async fn log_in(filter: &Filter, session: &mut Session<'_>, error: Option<&Error>, context: &mut Context) {
    let hook = async { filter.phases.logging(session, error, context).await };
    if AssertUnwindSafe(hook).catch_unwind().await.is_err() {
        log::error!("filter {}: panic in logging", filter.name);
    }
}

/// The end of a body comes once: a filter that takes it away would leave the message without one for ever.
fn check_end(was_last: bool, body: &Bufs, filter: &Filter, hook: Hook) -> Result<()> {
    if was_last && !body.is_last() {
        let text = format!("filter {}: {} took the end of the body away", filter.name, HOOK_NAMES[hook as usize]);
        return Err(Error::new(ErrorKind::Filter, text));
    }
    Ok(())
}

/// Run a hook: a panic becomes an error, both are given the filter's name, time is measured.
async fn guarded<'a, T>(
    filter: &'a Filter,
    hook: Hook,
    timed: bool,
    call: impl FnOnce(&'a dyn ErasedPhases) -> HookFuture<'a, Result<T>>,
) -> Result<T> {
    let started = timed.then(std::time::Instant::now);
    let outcome = AssertUnwindSafe(async { call(&*filter.phases).await }).catch_unwind().await;
    if let Some(started) = started {
        filter.times.observe(hook as usize, started.elapsed());
    }
    match outcome {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(error.in_filter(&filter.name)),
        Err(panic) => {
            let text = format!("filter {}: panic in {}: {}", filter.name, HOOK_NAMES[hook as usize], said(&*panic));
            Err(Error::new(ErrorKind::Filter, text))
        }
    }
}

fn said(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}
