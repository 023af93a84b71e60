//! One route.

use super::Resolver;
use super::files::regex_reason;
use super::service::made_name;
use crate::conf::source::{item_path, key_path};
use crate::conf::units::Size;
use crate::conf::{
    Buffering, Client, ErrorPages, HostHeader, HostMatch, Matches, NextUpstream, PathMatch, Route, Timeouts, near, raw,
};
use crate::template::Template;
use http::{HeaderName, Method, header};
use regex::Regex;
use std::collections::BTreeMap;
use std::str::FromStr;

/// What a single buffer may take at most.
const LARGEST_BUFFER: Size = Size(1 << 30);

impl Resolver {
    /// `has_filters`: does the route's chain have any, which could answer without an upstream?
    pub(super) fn route(&mut self, route: &raw::Route, raw: &raw::Conf, has_filters: bool, path: &str) -> Route {
        let matches = self.matches(&route.matches, &key_path(path, "match"));
        let captures = matches.path.capture_names();
        Route {
            name: route.name.clone().unwrap_or_else(|| made_name(&matches)),
            upstream: self.route_upstream(route, raw, has_filters, path),
            protocol: self.route_protocol(route, raw, path),
            uri: self.uri(route, &captures, path),
            host: self.host_header(&route.host, &captures, path),
            set_headers: self.set_headers(&route.set_headers, &captures, path),
            hide_headers: self.hide_headers(&route.hide_headers, path),
            filters: self.filters(&route.filters, &self.origin(path, "filters")),
            filter_hold_max: route.filter_hold_max.0,
            buffering: self.buffering(&route.buffering, path),
            request_buffering: route.request_buffering,
            client_body_buffer_size: self.buffer(route.client_body_buffer_size, path, "client_body_buffer_size", 1),
            client_max_body_size: Some(route.client_max_body_size.0).filter(|size| *size > 0),
            ignore_client_abort: route.ignore_client_abort,
            next_upstream: next_upstream(&route.next_upstream),
            timeouts: self.timeouts(&route.timeouts, path),
            client: self.client(&route.client, path),
            limit_rate: route.limit_rate.0,
            upgrade: self.upgrade(&route.upgrade, path),
            intercept_errors: route.intercept_errors,
            // They may lead to other routes: these have to be known first.
            error_pages: ErrorPages::default(),
            internal: route.internal,
            ignore_headers: route.ignore_headers.iter().copied().collect(),
            matches,
        }
    }

    /// The key in the file that a route's setting comes from: its own, or that of the defaults.
    pub(super) fn origin(&self, path: &str, key: &str) -> String {
        let (own, inherited) = (key_path(path, key), key_path("defaults", key));
        if !self.source.has(&own) && self.source.has(&inherited) { inherited } else { own }
    }

    /// Is it set in the file at all?
    fn is_set(&self, path: &str, key: &str) -> bool {
        self.source.has(&self.origin(path, key))
    }

    fn matches(&mut self, raw: &raw::Match, path: &str) -> Matches {
        let host = raw.host.as_ref().and_then(|host| self.host_match(host, &key_path(path, "host")));
        let methods = raw.method.iter().enumerate();
        let method_path = key_path(path, "method");
        let methods =
            methods.filter_map(|(index, method)| self.method(method, &item_path(&method_path, index))).collect();
        Matches { host: host.unwrap_or_default(), path: self.path_match(raw, path), methods }
    }

    fn host_match(&mut self, text: &str, path: &str) -> Option<HostMatch> {
        let host = text.to_ascii_lowercase();
        let (suffix, name) = match host.strip_prefix("*.") {
            Some(name) => (true, name),
            None => (false, host.as_str()),
        };
        let v6 = name.starts_with('[') && name.ends_with(']') && !suffix;
        let named = !name.is_empty() && !name.contains(|c: char| matches!(c, ':' | '/' | '*') || c.is_whitespace());
        if !named && !v6 {
            self.wrong(path, text, "a host without a port such as example.com or *.example.com");
            return None;
        }
        let name = name.strip_suffix('.').unwrap_or(name);
        Some(if suffix { HostMatch::Suffix(format!(".{name}")) } else { HostMatch::Exact(name.to_owned()) })
    }

    pub(super) fn method(&mut self, text: &str, path: &str) -> Option<Method> {
        let capitals = text.to_ascii_uppercase();
        match Method::from_str(text) {
            Ok(method) if capitals == text => Some(method),
            _ => {
                self.wrong(path, text, "a method in capitals such as GET");
                None
            }
        }
    }

    fn path_match(&mut self, raw: &raw::Match, path: &str) -> PathMatch {
        let given = [("path", &raw.path), ("path_exact", &raw.path_exact), ("path_regex", &raw.path_regex)];
        let mut given = given.into_iter().filter_map(|(key, text)| Some((key, text.as_ref()?)));
        let Some((key, text)) = given.next() else { return PathMatch::default() };
        if let Some((second, text)) = given.next() {
            self.wrong(&key_path(path, second), text, format!("only one kind of path, {key} is there already"));
        }
        let path = key_path(path, key);
        match key {
            "path_regex" => self.path_regex(text, &path),
            _ => {
                if !text.starts_with('/') && (key, text.as_str()) != ("path_exact", "*") {
                    self.wrong(&path, text, "a path that begins with /");
                }
                if key == "path" { PathMatch::Prefix(text.clone()) } else { PathMatch::Exact(text.clone()) }
            }
        }
    }

    fn path_regex(&mut self, text: &str, path: &str) -> PathMatch {
        match Regex::new(text) {
            Ok(regex) => PathMatch::Regex(regex),
            Err(error) => {
                self.wrong(path, text, format!("a regular expression ({})", regex_reason(&error)));
                PathMatch::default()
            }
        }
    }

    fn route_upstream(&mut self, route: &raw::Route, raw: &raw::Conf, has_filters: bool, path: &str) -> Option<String> {
        let path = self.origin(path, "upstream");
        let Some(name) = &route.upstream else {
            if !has_filters {
                self.error(&path, "nothing", "the name of an upstream, or filters that answer");
            }
            return None;
        };
        let is_declared = raw.upstreams.contains_key(name) || self.source.is_wrong(&key_path("upstreams", name));
        if !is_declared {
            let near = near::matches(name, raw.upstreams.keys().map(String::as_str));
            let all: Vec<&str> = raw.upstreams.keys().map(String::as_str).collect();
            let known = if all.is_empty() { "there is none".to_owned() } else { all.join(", ") };
            self.wrong(&path, name, format!("the name of an upstream ({known}){}", near::question(&near)));
        }
        Some(name.clone())
    }

    fn uri(&mut self, route: &raw::Route, captures: &[String], path: &str) -> Option<Template> {
        let text = route.uri.as_ref()?;
        let path = self.origin(path, "uri");
        if !text.starts_with(['/', '$']) {
            self.wrong(&path, text, "a path that begins with / or with a variable");
        }
        self.template(text, captures, &path)
    }

    fn host_header(&mut self, text: &str, captures: &[String], path: &str) -> HostHeader {
        let path = self.origin(path, "host");
        match text {
            "preserve" => HostHeader::Preserve,
            "upstream" => HostHeader::Upstream,
            "" => {
                self.wrong(&path, text, "preserve, upstream, or a host");
                HostHeader::Preserve
            }
            literal => self.template(literal, captures, &path).map_or(HostHeader::Preserve, HostHeader::Literal),
        }
    }

    fn set_headers(
        &mut self,
        raw: &BTreeMap<String, String>,
        captures: &[String],
        path: &str,
    ) -> Vec<(HeaderName, Template)> {
        let mut headers = Vec::new();
        for (name, text) in raw {
            let path = self.origin(path, &key_path("set_headers", name));
            if let (Some(name), Some(value)) = (self.header(name, &path), self.template(text, captures, &path)) {
                if [header::CONTENT_LENGTH, header::TRANSFER_ENCODING].contains(&name) {
                    self.error(&path, name.as_str(), "a header that does not frame the body");
                }
                headers.push((name, value));
            }
        }
        headers
    }

    fn hide_headers(&mut self, raw: &[String], path: &str) -> Vec<HeaderName> {
        let path = self.origin(path, "hide_headers");
        let names = raw.iter().enumerate();
        names.filter_map(|(index, name)| self.header(name, &item_path(&path, index))).collect()
    }

    pub(super) fn header(&mut self, name: &str, path: &str) -> Option<HeaderName> {
        let parsed = HeaderName::from_str(name).ok();
        if parsed.is_none() {
            self.wrong(path, name, "the name of a header");
        }
        parsed
    }

    fn upgrade(&mut self, raw: &[String], path: &str) -> Vec<String> {
        let path = self.origin(path, "upgrade");
        for (index, protocol) in raw.iter().enumerate() {
            // a protocol may have a version, `name/1`; both are tokens (RFC 9110 7.8), as header names are
            if protocol.split('/').any(|token| HeaderName::from_str(token).is_err()) {
                self.wrong(&item_path(&path, index), protocol, "a protocol such as websocket");
            }
        }
        raw.iter().map(|protocol| protocol.to_ascii_lowercase()).collect()
    }

    fn buffering(&mut self, raw: &raw::Buffering, path: &str) -> Buffering {
        let size = self.buffer(raw.buffers.size, path, "buffering.buffers.size", 1);
        let number = raw.buffers.number;
        if number < 2 {
            self.error(&self.origin(path, "buffering.buffers.number"), number.to_string(), "at least 2");
        }
        Buffering {
            enabled: raw.enabled,
            buffer_size: bytes(self.buffer(raw.buffer_size, path, "buffering.buffer_size", 1024)),
            number: bytes(number.into()),
            size: bytes(size),
            busy_buffers_size: bytes(self.busy_buffers_size(raw, path)),
            max_temp_file_size: self.max_temp_file_size(raw, path),
            temp_file_write_size: bytes(self.temp_file_write_size(raw, path)),
        }
    }

    /// The limits of a size follow from other sizes: with one of them unreadable, nothing is said about the others.
    fn check_size(&mut self, size: Size, path: &str, key: &str, good: bool, expected: String) {
        let unreadable = [path, "defaults"].iter().any(|at| self.source.is_wrong(&key_path(at, "buffering")));
        if !good && !unreadable {
            self.error(&self.origin(path, key), size.to_string(), expected);
        }
    }

    /// Left alone it fits itself to smaller buffers.
    fn busy_buffers_size(&mut self, raw: &raw::Buffering, path: &str) -> u64 {
        const KEY: &str = "buffering.busy_buffers_size";
        let (size, busy) = (raw.buffers.size.0, raw.busy_buffers_size.0);
        let all = size.saturating_mul(raw.buffers.number.into());
        if !self.is_set(path, KEY) {
            return busy.min(all.saturating_sub(size)).max(size);
        }
        let expected = format!("from {} (buffers.size) to less than {} (buffers.number × size)", Size(size), Size(all));
        self.check_size(raw.busy_buffers_size, path, KEY, (size..all).contains(&busy), expected);
        busy
    }

    fn max_temp_file_size(&mut self, raw: &raw::Buffering, path: &str) -> u64 {
        let (size, max) = (raw.buffers.size, raw.max_temp_file_size);
        let expected = format!("0, or at least {size} (buffers.size)");
        self.check_size(max, path, "buffering.max_temp_file_size", max.0 == 0 || max >= size, expected);
        max.0
    }

    /// Left alone it fits itself to larger buffers.
    fn temp_file_write_size(&mut self, raw: &raw::Buffering, path: &str) -> u64 {
        const KEY: &str = "buffering.temp_file_write_size";
        let (size, write) = (raw.buffers.size, raw.temp_file_write_size);
        if !self.is_set(path, KEY) {
            return write.max(size).0;
        }
        let good = write >= size && write <= LARGEST_BUFFER;
        self.check_size(write, path, KEY, good, format!("from {size} (buffers.size) to {LARGEST_BUFFER}"));
        write.0
    }

    fn buffer(&mut self, size: Size, path: &str, key: &str, least: u64) -> u64 {
        if size.0 < least || size > LARGEST_BUFFER {
            let expected = format!("a size from {} to {LARGEST_BUFFER}", Size(least));
            self.error(&self.origin(path, key), size.to_string(), expected);
        }
        size.0
    }

    fn timeouts(&mut self, raw: &raw::Timeouts, path: &str) -> Timeouts {
        Timeouts {
            connect: self.positive(raw.connect, &self.origin(path, "timeouts.connect")),
            send: self.positive(raw.send, &self.origin(path, "timeouts.send")),
            read: self.positive(raw.read, &self.origin(path, "timeouts.read")),
        }
    }

    fn client(&mut self, raw: &raw::Client, path: &str) -> Client {
        Client {
            body_timeout: self.positive(raw.body_timeout, &self.origin(path, "client.body_timeout")),
            send_timeout: self.positive(raw.send_timeout, &self.origin(path, "client.send_timeout")),
            keepalive_timeout: raw.keepalive_timeout.0,
        }
    }
}

fn next_upstream(raw: &raw::NextUpstream) -> NextUpstream {
    NextUpstream {
        when: raw.when.iter().copied().collect(),
        tries: raw.tries,
        timeout: raw.timeout.0,
        non_idempotent: raw.non_idempotent,
    }
}

/// Checked to be at most [`LARGEST_BUFFER`].
fn bytes(size: u64) -> usize {
    usize::try_from(size).unwrap_or(usize::MAX)
}
