//! What a session keeps of internal redirects: the request that is served meanwhile, and the way back to the client's own.

use super::{Attempt, Session};
use crate::conf::Captures;
use crate::routes::Route;
use pingora_http::RequestHeader;
use std::sync::Arc;

/// A request's way through internal redirects; most requests have none.
pub(super) struct Redirects {
    /// What is served in place of the client's request; `None` once that is over.
    request: Option<RequestHeader>,
    /// What the client's request matched.
    client: (Arc<Route>, Captures),
    /// The routes that have been left, each with the number of attempts by then.
    left: Vec<(Arc<Route>, usize)>,
}

impl Redirects {
    pub(super) fn request_mut(&mut self) -> Option<&mut RequestHeader> {
        self.request.as_mut()
    }
}

impl Session<'_> {
    pub(super) fn redirected_request(&self) -> Option<&RequestHeader> {
        self.redirects.as_ref()?.request.as_ref()
    }

    /// Is an internal redirect served now?
    pub(crate) fn is_redirected(&self) -> bool {
        self.redirected_request().is_some()
    }

    /// How many internal redirects there were.
    pub(crate) fn redirects(&self) -> usize {
        self.redirects.as_ref().map_or(0, |redirects| redirects.left.len())
    }

    /// From now on `request` is served, by `route`.
    pub(crate) fn redirect(&mut self, request: RequestHeader, route: Arc<Route>, captures: Captures) {
        let from = std::mem::replace(&mut self.route, route);
        let captures = std::mem::replace(&mut self.captures, captures);
        let attempts = self.attempts.len();
        let redirects = self.redirects.get_or_insert_with(|| {
            Box::new(Redirects { request: None, client: (from.clone(), captures), left: Vec::new() })
        });
        redirects.left.push((from, attempts));
        redirects.request = Some(request);
    }

    /// The response is out, or will never be: what is left to be done, counting and logging, is about the client's own
    /// request.
    pub(crate) fn end_redirects(&mut self) {
        let attempts = self.attempts.len();
        let Some(redirects) = &mut self.redirects else { return };
        if redirects.request.take().is_none() {
            return;
        }
        let (route, captures) = redirects.client.clone();
        redirects.left.push((std::mem::replace(&mut self.route, route), attempts));
        self.captures = captures;
    }

    /// The route that the client's own request matched: what it is counted and logged under.
    pub(crate) fn client_route(&self) -> &Route {
        self.redirects.as_ref().map_or(&self.route, |redirects| &redirects.client.0)
    }

    /// The attempts of each exchange with an upstream, in order, with the route that made them.
    pub(crate) fn exchanges(&self) -> impl Iterator<Item = (&Route, &[Attempt])> {
        let left = self.redirects.iter().flat_map(|redirects| &redirects.left);
        let ends = left.map(|(route, end)| (&**route, *end)).chain([(&*self.route, self.attempts.len())]);
        let mut begin = 0;
        let exchanges = ends.map(move |(route, end)| {
            let attempts = self.attempts.get(begin..end).unwrap_or_default();
            begin = end;
            (route, attempts)
        });
        exchanges.filter(|(_, attempts)| !attempts.is_empty())
    }
}
