//! [`ErasedPhases`]: filters of unlike types in one chain, and how it is found out which hooks each of them uses.

use super::{Context, HOOKS, HookFuture};
use crate::bufs::Bufs;
use crate::error::{Error, Result};
use crate::peers::Peer;
use crate::phases::{Flow, Header, UpstreamPhases};
use crate::session::Session;
use pingora_http::{RequestHeader, ResponseHeader};

/// [`UpstreamPhases`] without its type, for a chain of unlike filters.
pub(super) trait ErasedPhases: Send + Sync {
    /// Which hooks this filter uses, in the order of [`HOOK_NAMES`](super::HOOK_NAMES).
    fn hooks(&self) -> [bool; HOOKS];
    fn new_ctx(&self) -> Box<Context>;
    fn request_filter<'a>(&'a self, s: &'a mut Session<'_>, c: &'a mut Context) -> HookFuture<'a, Result<Flow>>;
    fn request_body_filter<'a>(
        &'a self,
        s: &'a mut Session<'_>,
        b: &'a mut Bufs,
        c: &'a mut Context,
    ) -> HookFuture<'a, Result<()>>;
    fn upstream_peer<'a>(&'a self, s: &'a mut Session<'_>, c: &'a mut Context) -> HookFuture<'a, Result<Option<Peer>>>;
    fn upstream_request_filter<'a>(
        &'a self,
        s: &'a mut Session<'_>,
        r: &'a mut RequestHeader,
        c: &'a mut Context,
    ) -> HookFuture<'a, Result<()>>;
    fn upstream_response_filter<'a>(
        &'a self,
        s: &'a mut Session<'_>,
        r: &'a mut ResponseHeader,
        c: &'a mut Context,
    ) -> HookFuture<'a, Result<()>>;
    fn response_filter<'a>(
        &'a self,
        s: &'a mut Session<'_>,
        r: &'a mut ResponseHeader,
        c: &'a mut Context,
    ) -> HookFuture<'a, Result<Header>>;
    fn body_filter<'a>(
        &'a self,
        s: &'a mut Session<'_>,
        b: &'a mut Bufs,
        c: &'a mut Context,
    ) -> HookFuture<'a, Result<()>>;
    fn logging<'a>(&'a self, s: &'a mut Session<'_>, e: Option<&'a Error>, c: &'a mut Context) -> HookFuture<'a, ()>;
}

/// The size of what a hook returns, without calling it: a default returns a future without a size.
fn used<A, R>(_hook: impl FnOnce(A) -> R) -> bool {
    size_of::<R>() > 0
}

/// A filter's own context. The chain makes them, in the order of its filters, and hands each filter its own.
fn own<P: UpstreamPhases>(context: &mut Context) -> &mut P::Ctx {
    context.downcast_mut().expect("a chain keeps contexts in the order of its filters")
}

impl<P: UpstreamPhases> ErasedPhases for P {
    fn hooks(&self) -> [bool; HOOKS] {
        type S<'a> = &'a mut Session<'a>;
        [
            used(|(p, s, c): (&P, S<'_>, &mut P::Ctx)| p.request_filter(s, c)),
            used(|(p, s, b, c): (&P, S<'_>, &mut Bufs, &mut P::Ctx)| p.request_body_filter(s, b, c)),
            used(|(p, s, c): (&P, S<'_>, &mut P::Ctx)| p.upstream_peer(s, c)),
            used(|(p, s, r, c): (&P, S<'_>, &mut RequestHeader, &mut P::Ctx)| p.upstream_request_filter(s, r, c)),
            used(|(p, s, r, c): (&P, S<'_>, &mut ResponseHeader, &mut P::Ctx)| p.upstream_response_filter(s, r, c)),
            used(|(p, s, r, c): (&P, S<'_>, &mut ResponseHeader, &mut P::Ctx)| p.response_filter(s, r, c)),
            used(|(p, s, b, c): (&P, S<'_>, &mut Bufs, &mut P::Ctx)| p.body_filter(s, b, c)),
            used(|(p, s, e, c): (&P, S<'_>, Option<&Error>, &mut P::Ctx)| p.logging(s, e, c)),
        ]
    }

    fn new_ctx(&self) -> Box<Context> {
        Box::new(UpstreamPhases::new_ctx(self))
    }

    fn request_filter<'a>(&'a self, s: &'a mut Session<'_>, c: &'a mut Context) -> HookFuture<'a, Result<Flow>> {
        Box::pin(UpstreamPhases::request_filter(self, s, own::<P>(c)))
    }

    fn request_body_filter<'a>(
        &'a self,
        s: &'a mut Session<'_>,
        b: &'a mut Bufs,
        c: &'a mut Context,
    ) -> HookFuture<'a, Result<()>> {
        Box::pin(UpstreamPhases::request_body_filter(self, s, b, own::<P>(c)))
    }

    fn upstream_peer<'a>(&'a self, s: &'a mut Session<'_>, c: &'a mut Context) -> HookFuture<'a, Result<Option<Peer>>> {
        Box::pin(UpstreamPhases::upstream_peer(self, s, own::<P>(c)))
    }

    fn upstream_request_filter<'a>(
        &'a self,
        s: &'a mut Session<'_>,
        r: &'a mut RequestHeader,
        c: &'a mut Context,
    ) -> HookFuture<'a, Result<()>> {
        Box::pin(UpstreamPhases::upstream_request_filter(self, s, r, own::<P>(c)))
    }

    fn upstream_response_filter<'a>(
        &'a self,
        s: &'a mut Session<'_>,
        r: &'a mut ResponseHeader,
        c: &'a mut Context,
    ) -> HookFuture<'a, Result<()>> {
        Box::pin(UpstreamPhases::upstream_response_filter(self, s, r, own::<P>(c)))
    }

    fn response_filter<'a>(
        &'a self,
        s: &'a mut Session<'_>,
        r: &'a mut ResponseHeader,
        c: &'a mut Context,
    ) -> HookFuture<'a, Result<Header>> {
        Box::pin(UpstreamPhases::response_filter(self, s, r, own::<P>(c)))
    }

    fn body_filter<'a>(
        &'a self,
        s: &'a mut Session<'_>,
        b: &'a mut Bufs,
        c: &'a mut Context,
    ) -> HookFuture<'a, Result<()>> {
        Box::pin(UpstreamPhases::body_filter(self, s, b, own::<P>(c)))
    }

    fn logging<'a>(&'a self, s: &'a mut Session<'_>, e: Option<&'a Error>, c: &'a mut Context) -> HookFuture<'a, ()> {
        Box::pin(UpstreamPhases::logging(self, s, e, own::<P>(c)))
    }
}
