//! [`FilterScope`]: where a filter stands, for those that need to know when they are made.

use crate::chain::Chain;
use crate::conf;
use crate::error::{Error, ErrorKind, Result};
use crate::metrics::RouteMetrics;
use crate::peers::Upstream;
use crate::protocol::{Protocols, Scope};
use crate::routes::Route;
use crate::subrequest::Target;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Where a filter stands in the configuration, and what it can reach from there: the second argument of what
/// [`Millpond::filter_in`](crate::Millpond::filter_in) is given.
pub struct FilterScope<'a> {
    pub(crate) filter: &'a str,
    pub(crate) service: &'a str,
    /// The route it stands in; a filter of the service has the settings of the service's first route.
    pub(crate) route: &'a conf::Route,
    pub(crate) upstreams: &'a BTreeMap<String, Arc<Upstream>>,
    pub(crate) protocols: &'a Protocols,
}

impl FilterScope<'_> {
    /// The service's name.
    pub fn service(&self) -> &str {
        self.service
    }

    /// A target of subrequests: the upstream `name`, with the settings of the filter's own route (time limits, buffering,
    /// `uri`, `set_headers`) and none of its filters. Metrics and the log call the route `FILTER:NAME`.
    ///
    /// # Errors
    /// There is no such upstream, or the route has wrong settings for its protocol; the text says what was expected.
    pub fn upstream(&self, name: &str) -> Result<Target> {
        let upstream = self.upstreams.get(name).ok_or_else(|| {
            let known: Vec<&str> = self.upstreams.keys().map(String::as_str).collect();
            let near = conf::near::question(&conf::near::matches(name, known.iter().copied()));
            Error::new(ErrorKind::Filter, format!("the name of an upstream, one of {}{near}", known.join(", ")))
        })?;
        let mut conf = self.route.clone();
        conf.name = format!("{}:{name}", self.filter);
        conf.upstream = Some(name.to_owned());
        let chain = Arc::new(Chain::default());
        Ok(Target::upstream(Arc::new(Route {
            own_chain: chain.clone(),
            chain,
            protocol: self.protocol(upstream, &conf.name)?,
            upstream: Some(upstream.clone()),
            metrics: RouteMetrics::new(self.service, &conf.name),
            conf,
        })))
    }

    /// What the upstream speaks: as the route has it set, if its own upstream speaks the same.
    fn protocol(&self, upstream: &Upstream, route: &str) -> Result<Arc<dyn crate::protocol::Protocol>> {
        let name = &upstream.conf.protocol;
        let bare = conf::Protocol { name: name.clone(), conf: serde_json::json!({}), path: String::new(), place: None };
        let protocol = self.route.protocol.as_ref().filter(|protocol| protocol.name == *name).unwrap_or(&bare);
        let made = self.protocols.make(protocol, &Scope::new(self.service, route, &upstream.conf));
        let made = made.map_err(|error| Error::new(ErrorKind::Filter, error.expected))?;
        made.ok_or_else(|| {
            Error::new(ErrorKind::Filter, format!("an upstream that speaks a known protocol, not {name}"))
        })
    }
}
