//! May there be a further attempt? nginx's `ngx_http_upstream_next` and `proxy_next_upstream`.

use super::request_body::RequestBody;
use crate::chain::Pass;
use crate::conf;
use crate::error::{Error, ErrorKind};
use crate::peers::{Member, Upstream};
use crate::routes::Route;
use http::Method;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The rules and the count of one exchange.
pub(crate) struct NextUpstream {
    route: Arc<Route>,
    tried: Vec<Arc<Member>>,
    tries_left: u32,
    /// Where there is a time limit.
    started: Option<Instant>,
    idempotent: bool,
    /// The last attempt ran into a time limit: if no peer is left, that is what the client is told.
    timed_out: bool,
}

impl NextUpstream {
    pub(crate) fn new(pass: &Pass<'_>, upstream: &Upstream) -> Self {
        let route = pass.session.route_arc().clone();
        let conf = &route.conf.next_upstream;
        let peers = upstream.tries().max(1);
        let tries = if conf.tries == 0 { peers } else { conf.tries.min(peers) };
        let lock = pass.session.request().method.as_str() == "LOCK";
        let idempotent = !lock && !matches!(pass.session.request().method, Method::POST | Method::PATCH);
        let started = (conf.timeout > Duration::ZERO).then(Instant::now);
        NextUpstream { route, tried: Vec::new(), tries_left: tries, started, idempotent, timed_out: false }
    }

    fn conf(&self) -> &conf::NextUpstream {
        &self.route.conf.next_upstream
    }

    /// A peer is about to be tried.
    pub(crate) fn tried(&mut self, member: Option<&Arc<Member>>) {
        self.tries_left = self.tries_left.saturating_sub(1);
        self.tried.extend(member.cloned());
    }

    /// The members of the group that have had their try.
    pub(crate) fn peers_tried(&self) -> &[Arc<Member>] {
        &self.tried
    }

    /// May the request be sent again, as far as it is concerned?
    pub(crate) fn may_repeat(&self, body: &RequestBody, sent: bool) -> bool {
        (self.idempotent || self.conf().non_idempotent || !sent) && body.can_rewind()
    }

    fn budget_left(&self) -> bool {
        let in_time = self.started.is_none_or(|started| started.elapsed() < self.conf().timeout);
        self.tries_left > 0 && in_time
    }

    /// May another peer be tried after this failure?
    pub(crate) fn allows_error(&mut self, error: &Error, body: &RequestBody, sent: bool) -> bool {
        self.timed_out = error.is_timeout();
        let listed = match error.kind() {
            ErrorKind::InvalidHeader => self.conf().when.contains(&conf::Condition::InvalidHeader),
            _ if error.is_timeout() => self.conf().when.contains(&conf::Condition::Timeout),
            _ => self.conf().when.contains(&conf::Condition::Error),
        };
        listed && self.budget_left() && self.may_repeat(body, sent)
    }

    /// Does an answer with this status move on to another peer, rather than to the client?
    pub(crate) fn allows_status(&self, status: u16, body: &RequestBody, sent: bool) -> bool {
        self.conf().when.contains(&conf::Condition::Status(status)) && self.budget_left() && self.may_repeat(body, sent)
    }

    /// What to say when no further peer can be chosen: after a time limit, 504; else what `choosing` says.
    pub(crate) fn last_error(&self, choosing: Error) -> Error {
        if self.timed_out {
            return Error::new(ErrorKind::ReadTimeout, format!("{choosing}, the last one tried was too slow"));
        }
        choosing
    }
}
