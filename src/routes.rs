//! What a configuration becomes when it runs: services with their routes, chains and upstreams.

use crate::chain::Chain;
use crate::conf::{self, Captures};
use crate::headers;
use crate::metrics::RouteMetrics;
use crate::paths;
use crate::peers::Upstream;
use crate::protocol::Protocol;
use pingora_http::RequestHeader;
use std::sync::Arc;

/// A service: its routes, and how to choose among them.
pub struct Service {
    pub(crate) conf: conf::Service,
    pub(crate) routes: Vec<Arc<Route>>,
    /// What requests without a route are answered and counted under.
    pub(crate) no_route: Arc<Route>,
}

impl Service {
    /// Its name in the configuration, and in metrics.
    pub fn name(&self) -> &str {
        &self.conf.name
    }

    /// The route for a request, and what its `path_regex` captured. A path that cannot be made sense of is refused
    /// before any of its route is used.
    pub(crate) fn find_route(&self, request: &RequestHeader) -> Option<(Arc<Route>, Captures)> {
        let host = headers::without_port(headers::host(request).unwrap_or(""));
        let path = paths::normalize(request.uri.path().as_bytes()).unwrap_or_default();
        let found = self.conf.table.find(host, &String::from_utf8_lossy(&path), &request.method)?;
        Some((self.routes.get(found.index)?.clone(), found.captures))
    }
}

/// A route: its settings, its filters, its upstream.
pub struct Route {
    pub(crate) conf: conf::Route,
    /// The service's filters and its own: a client's way.
    pub(crate) chain: Arc<Chain>,
    /// Its own: the way of redirects and subrequests, which come from inside the service's.
    pub(crate) own_chain: Arc<Chain>,
    pub(crate) upstream: Option<Arc<Upstream>>,
    /// What that upstream speaks, as this route speaks it.
    pub(crate) protocol: Arc<dyn Protocol>,
    pub(crate) metrics: RouteMetrics,
}

impl Route {
    /// Its name in the configuration, or what was made of its `match`; a metrics label.
    pub fn name(&self) -> &str {
        &self.conf.name
    }

    /// Its settings, `defaults` applied.
    pub fn conf(&self) -> &conf::Route {
        &self.conf
    }

    /// The upstream it passes requests to, unless its filters answer them all.
    pub fn upstream(&self) -> Option<&Arc<Upstream>> {
        self.upstream.as_ref()
    }
}
