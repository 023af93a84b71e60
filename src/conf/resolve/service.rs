//! `services:`, their listeners and filters.

use super::Resolver;
use crate::certificates;
use crate::conf::source::{item_path, key_path};
use crate::conf::{Certificate, Filter, Listen, Matches, Route, RouteTable, Service, raw, settings};
use serde_json::{Map, Value};
use std::collections::{HashMap, HashSet};

impl Resolver {
    pub(super) fn services(&mut self, raw: &raw::Conf) -> Vec<Service> {
        if raw.services.is_empty() {
            self.error("services", "nothing", "at least one service");
        }
        let of_one_route =
            [("name", raw.defaults.name.is_some()), ("match", raw.defaults.matches != Default::default())];
        for (key, _) in of_one_route.iter().filter(|(_, given)| *given) {
            self.error(&key_path("defaults", key), format!("the key {key}"), "it in the routes, where it belongs");
        }
        let mut names = HashMap::new();
        let services = raw.services.iter().enumerate();
        services
            .map(|(index, service)| {
                let path = item_path("services", index);
                self.unique(&mut names, &service.name, &key_path(&path, "name"));
                self.service(service, raw, &path)
            })
            .collect()
    }

    fn service(&mut self, service: &raw::Service, raw: &raw::Conf, path: &str) -> Service {
        if service.name.is_empty() {
            self.error(&key_path(path, "name"), "nothing", "a name for metrics and logs");
        }
        let routes_path = key_path(path, "routes");
        let mut routes = self.routes(service, raw, &routes_path);
        self.routes_error_pages(service, &mut routes, &routes_path);
        Service {
            name: service.name.clone(),
            listen: self.listen(&service.listen, &key_path(path, "listen")),
            filters: self.filters(&service.filters, &key_path(path, "filters")),
            error_pages: self.error_pages(&raw.defaults, &service.name, &routes, "defaults"),
            table: RouteTable::new(routes.iter().map(|route| &route.matches)),
            routes,
        }
    }

    fn routes(&mut self, service: &raw::Service, raw: &raw::Conf, path: &str) -> Vec<Route> {
        if service.routes.is_empty() {
            self.error(path, "nothing", "at least one route");
        }
        let (mut matches, mut names) = (HashMap::new(), HashMap::new());
        let mut routes = Vec::new();
        for (index, raw_route) in service.routes.iter().enumerate() {
            let path = item_path(path, index);
            let has_filters = !service.filters.is_empty() || !raw_route.filters.is_empty();
            let route = self.route(raw_route, raw, has_filters, &path);
            // a match that could not be read, and the name made of it, say nothing about others
            let readable = !self.source.is_wrong(&key_path(&path, "match"));
            let duplicate = readable && self.is_duplicate(&mut matches, &route, &path);
            if !duplicate && (readable || raw_route.name.is_some()) {
                self.unique(&mut names, &route.name, &key_path(&path, "name"));
            }
            routes.push(route);
        }
        routes
    }

    /// Is there another route for the same requests?
    fn is_duplicate(&mut self, matches: &mut HashMap<String, String>, route: &Route, path: &str) -> bool {
        let made = made_name(&route.matches);
        let Some(other) = matches.insert(made.clone(), path.to_owned()) else { return false };
        self.error(&key_path(path, "match"), made, format!("other requests than those of {other}"));
        true
    }

    /// Note `name`; nobody before may have had it.
    fn unique(&mut self, names: &mut HashMap<String, String>, name: &str, path: &str) {
        if name.is_empty() {
            return;
        }
        if let Some(other) = names.insert(name.to_owned(), path.to_owned()) {
            self.wrong(path, name, format!("a name of its own, {other} has it already"));
        }
    }

    fn listen(&mut self, raw: &[raw::Listen], path: &str) -> Vec<Listen> {
        if raw.is_empty() {
            self.error(path, "nothing", "at least one address");
        }
        let listeners = raw.iter().enumerate();
        listeners.filter_map(|(index, listen)| self.one_listen(listen, &item_path(path, index))).collect()
    }

    fn one_listen(&mut self, raw: &raw::Listen, path: &str) -> Option<Listen> {
        let options = match raw {
            raw::Listen::Address(address) => {
                return self.listener(address, path).map(|address| Listen { address, tls: Vec::new(), h2: false });
            }
            raw::Listen::Full(options) => options,
        };
        let tls_path = key_path(path, "tls");
        let certificates = options.tls.iter().enumerate();
        let tls: Vec<Certificate> =
            certificates.map(|(index, raw)| self.certificate(raw, &item_path(&tls_path, index))).collect();
        let address = self.listener(&options.address, &key_path(path, "address"))?;
        Some(Listen { address, h2: options.h2.unwrap_or(!tls.is_empty()), tls })
    }

    fn certificate(&mut self, raw: &raw::Certificate, path: &str) -> Certificate {
        let [cert, key] = ["cert_file", "key_file"].map(|file| key_path(path, file));
        let certificate = Certificate {
            cert_file: self.pem(&raw.cert_file, "CERTIFICATE", &cert),
            key_file: self.pem(&raw.key_file, "PRIVATE KEY", &key),
        };
        let readable = !self.source.is_wrong(&cert) && !self.source.is_wrong(&key);
        if readable && let Err(text) = certificates::check(&certificate) {
            self.error(path, text, "a certificate and its key");
        }
        certificate
    }

    pub(super) fn filters(&mut self, raw: &[Map<String, Value>], path: &str) -> Vec<Filter> {
        let filters = raw.iter().enumerate();
        filters.filter_map(|(index, filter)| self.filter(filter, &item_path(path, index))).collect()
    }

    fn filter(&mut self, raw: &Map<String, Value>, path: &str) -> Option<Filter> {
        let mut entries = raw.iter();
        match (entries.next(), entries.next()) {
            (Some((name, conf)), None) => {
                let path = key_path(path, name);
                let place = self.source.place(&path);
                Some(Filter { name: name.clone(), conf: settings(conf), path, place })
            }
            _ => {
                let found = format!("a mapping of {} keys", raw.len());
                self.error(path, found, "one filter: its name and its settings, { NAME: {} }");
                None
            }
        }
    }
}

/// The name of a route that has none. Routes with the same made name are for the same requests.
pub(super) fn made_name(matches: &Matches) -> String {
    use crate::conf::{HostMatch, PathMatch};
    let methods: HashSet<&str> = matches.methods.iter().map(|method| method.as_str()).collect();
    let mut methods: Vec<&str> = methods.into_iter().collect();
    methods.sort_unstable();
    let host = match &matches.host {
        HostMatch::Any => String::new(),
        HostMatch::Exact(name) => name.clone(),
        HostMatch::Suffix(suffix) => format!("*{suffix}"),
    };
    let path = match &matches.path {
        PathMatch::Prefix(path) => path.clone(),
        PathMatch::Exact(path) => format!("={path}"),
        PathMatch::Regex(regex) => format!("~{regex}"),
    };
    let space = if methods.is_empty() { "" } else { " " };
    format!("{}{space}{host}{path}", methods.join(","))
}
