//! [`FilterScope`]: where a filter stands, for those that need to know when they are made.

use crate::chain::Chain;
use crate::conf::{self, Conf};
use crate::error::{Error, ErrorKind, Result};
use crate::metrics::RouteMetrics;
use crate::peers::Upstream;
use crate::protocol::{Protocols, Scope};
use crate::routes::Route;
use crate::subrequest::Target;
use pingora_core::server::configuration::ServerConf;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Where a filter stands in the configuration, and what it can reach from there: the second argument of what
/// [`Millpond::filter_in`](crate::Millpond::filter_in) is given.
pub struct FilterScope<'a> {
    pub(crate) filter: &'a str,
    pub(crate) service: &'a str,
    /// The route it stands in; a filter of the service has the settings of the service's first route, but for its `uri`.
    pub(crate) route: &'a conf::Route,
    pub(crate) site: &'a Site<'a>,
}

/// What all filters of a configuration can reach.
pub(crate) struct Site<'a> {
    pub(crate) upstreams: BTreeMap<String, Arc<Upstream>>,
    /// Those that filters have named by URL.
    pub(crate) origins: RefCell<BTreeMap<String, Arc<Upstream>>>,
    pub(crate) protocols: &'a Protocols,
    pub(crate) server: &'a ServerConf,
    /// Groups of the configuration that is to be replaced: those that have not changed stay.
    pub(crate) in_use: &'a [Arc<Upstream>],
}

impl Site<'_> {
    /// A group that runs already, or a new one.
    pub(crate) fn group(&self, conf: &conf::Upstream) -> Result<Arc<Upstream>, String> {
        match self.in_use.iter().find(|in_use| in_use.name() == conf.name) {
            Some(before) if before.conf == *conf => Ok(before.clone()),
            before => Upstream::new(conf.clone(), self.server, before.map(|before| &**before)).map(Arc::new),
        }
    }
}

impl FilterScope<'_> {
    /// The service's name.
    pub fn service(&self) -> &str {
        self.service
    }

    /// A target of subrequests: the upstream `name`, with the settings of the filter's own route (time limits,
    /// buffering, `uri`, `set_headers`) and none of its filters. Metrics and the log call the route `FILTER:NAME`.
    ///
    /// # Errors
    /// There is no such upstream, or the route has wrong settings for its protocol; the text says what was expected.
    pub fn upstream(&self, name: &str) -> Result<Target> {
        let upstream = self.site.upstreams.get(name).ok_or_else(|| {
            let known: Vec<&str> = self.site.upstreams.keys().map(String::as_str).collect();
            let near = conf::near::question(&conf::near::matches(name, known.iter().copied()));
            Error::new(ErrorKind::Filter, format!("the name of an upstream, one of {}{near}", known.join(", ")))
        })?;
        let conf = self.route.clone();
        self.target(conf, upstream)
    }

    /// A target of subrequests: the server of an `http://` or `https://` URL, and the path and query to ask it for. The
    /// route's time limits and buffering hold, but not its `uri`, `host` and `set_headers`. The upstream is called
    /// `https://HOST:PORT` in metrics and in the log.
    ///
    /// # Errors
    /// It is no such URL; the text says what was expected.
    pub fn origin(&self, url: &str) -> Result<(Target, String)> {
        let expected = || {
            let text = format!("a URL such as https://example.com/keys, not {url:?}");
            Error::new(ErrorKind::Filter, text)
        };
        let uri: http::Uri = url.parse().map_err(|_| expected())?;
        let (Some(scheme @ ("http" | "https")), Some(host)) = (uri.scheme_str(), uri.host()) else {
            return Err(expected());
        };
        let port = uri.port_u16().unwrap_or(if scheme == "https" { 443 } else { 80 });
        let name = format!("{scheme}://{host}:{port}");
        let upstream = self.origin_group(&name, &format!("{host}:{port}"), scheme == "https")?;
        let mut conf = self.route.clone();
        conf.uri = None;
        conf.host = conf::HostHeader::Upstream;
        conf.set_headers.clear();
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        Ok((self.target(conf, &upstream)?, path.to_owned()))
    }

    fn origin_group(&self, name: &str, server: &str, tls: bool) -> Result<Arc<Upstream>> {
        if let Some(known) = self.site.origins.borrow().get(name) {
            return Ok(known.clone());
        }
        let mut settings = serde_json::json!({ "servers": [server] });
        if tls {
            settings["tls"] = serde_json::json!({});
        }
        let conf = Conf::from_value(serde_json::json!({
            "upstreams": { name: settings },
            "services": [{ "name": "-", "listen": ["127.0.0.1:0"], "routes": [{ "upstream": name }] }],
        }));
        let wrong = |text: String| Error::new(ErrorKind::Filter, format!("a URL of a server that can be used: {text}"));
        let conf = conf.map_err(|errors| wrong(errors.to_string()))?;
        let upstream = self.site.group(&conf.upstreams[name]).map_err(wrong)?;
        self.site.origins.borrow_mut().insert(name.to_owned(), upstream.clone());
        Ok(upstream)
    }

    fn target(&self, mut conf: conf::Route, upstream: &Arc<Upstream>) -> Result<Target> {
        conf.name = format!("{}:{}", self.filter, upstream.name());
        conf.upstream = Some(upstream.name().to_owned());
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
        let made = self.site.protocols.make(protocol, &Scope::new(self.service, route, &upstream.conf));
        let made = made.map_err(|error| Error::new(ErrorKind::Filter, error.expected))?;
        made.ok_or_else(|| {
            Error::new(ErrorKind::Filter, format!("an upstream that speaks a known protocol, not {name}"))
        })
    }
}
