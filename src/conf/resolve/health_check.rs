//! `upstreams.NAME.health_check`.

use super::Resolver;
use super::files::regex_reason;
use crate::conf::source::key_path;
use crate::conf::{CheckType, HTTP, HealthCheck, HttpProbe, Pattern, Probe, raw};
use http::{HeaderName, HeaderValue, Method, header};
use regex::bytes::Regex;
use std::collections::BTreeMap;

/// By default checks of several proxies, and of several servers, do not stay in step for long.
const DEFAULT_JITTER: u32 = 10;

impl Resolver {
    /// `protocol`: what the servers speak; `upstream`: the key of the upstream.
    pub(super) fn health_check(&mut self, raw: &raw::HealthCheck, protocol: &str, upstream: &str) -> HealthCheck {
        let path = key_path(upstream, "health_check");
        let interval = self.positive(raw.interval, &key_path(&path, "interval"));
        HealthCheck {
            probe: match raw.kind {
                CheckType::Tcp => self.tcp_probe(raw, &path),
                CheckType::Http => self.http_probe(raw, protocol, &path),
            },
            interval,
            jitter: raw.jitter.map_or(interval / DEFAULT_JITTER, |jitter| jitter.0),
            timeout: self.positive(raw.timeout, &key_path(&path, "timeout")),
            rise: self.at_least_one(raw.rise, &key_path(&path, "rise")),
            fall: self.at_least_one(raw.fall, &key_path(&path, "fall")),
        }
    }

    fn at_least_one(&mut self, number: u32, path: &str) -> u32 {
        if number == 0 {
            self.error(path, "0", "at least 1");
        }
        number
    }

    fn tcp_probe(&mut self, raw: &raw::HealthCheck, path: &str) -> Probe {
        let default = raw::HealthCheck::default();
        let given = [
            ("path", raw.path != default.path),
            ("method", raw.method != default.method),
            ("headers", raw.headers != default.headers),
            ("match", raw.matches != default.matches),
        ];
        for (key, _) in given.into_iter().filter(|(_, given)| *given) {
            self.error(&key_path(path, key), "a setting", "nothing, it is for `type: http`");
        }
        Probe::Tcp
    }

    fn http_probe(&mut self, raw: &raw::HealthCheck, protocol: &str, path: &str) -> Probe {
        if protocol != HTTP {
            self.wrong(&key_path(path, "type"), HTTP, format!("tcp, since the servers speak {protocol}"));
        }
        let is_path = raw.path.starts_with('/') && raw.path.bytes().all(|byte| byte.is_ascii_graphic());
        if !is_path || raw.path.contains('#') {
            self.wrong(&key_path(path, "path"), &raw.path, "a path that begins with /, encoded as in a request");
        }
        let match_path = key_path(path, "match");
        if raw.matches.status.is_empty() && !self.source.is_wrong(&match_path) {
            self.error(&key_path(&match_path, "status"), "an empty list", "at least one status");
        }
        Probe::Http(Box::new(HttpProbe {
            path: raw.path.clone(),
            method: self.method(&raw.method, &key_path(path, "method")).unwrap_or(Method::GET),
            headers: self.check_headers(&raw.headers, &key_path(path, "headers")),
            statuses: raw.matches.status.clone(),
            header_patterns: self.header_patterns(&raw.matches.headers, &key_path(&match_path, "headers")),
            body_pattern: raw.matches.body.as_ref().and_then(|t| self.pattern(t, &key_path(&match_path, "body"))),
        }))
    }

    fn check_headers(&mut self, raw: &BTreeMap<String, String>, path: &str) -> Vec<(HeaderName, HeaderValue)> {
        const OURS: [HeaderName; 3] = [header::CONTENT_LENGTH, header::TRANSFER_ENCODING, header::CONNECTION];
        let mut headers = Vec::new();
        for (name, text) in raw {
            let path = key_path(path, name);
            let Some(name) = self.header(name, &path) else { continue };
            if OURS.contains(&name) {
                self.error(&path, name.as_str(), "a header that does not frame the message");
            }
            match HeaderValue::from_str(text) {
                Ok(value) => headers.push((name, value)),
                Err(_) => self.wrong(&path, text, "a header's value, which is one line of visible characters"),
            }
        }
        headers
    }

    fn header_patterns(&mut self, raw: &BTreeMap<String, String>, path: &str) -> Vec<(HeaderName, Pattern)> {
        let mut patterns = Vec::new();
        for (name, text) in raw {
            let path = key_path(path, name);
            if let (Some(name), Some(pattern)) = (self.header(name, &path), self.pattern(text, &path)) {
                patterns.push((name, pattern));
            }
        }
        patterns
    }

    fn pattern(&mut self, text: &str, path: &str) -> Option<Pattern> {
        match Regex::new(text) {
            Ok(regex) => Some(Pattern(regex)),
            Err(error) => {
                self.wrong(path, text, format!("a regular expression ({})", regex_reason(&error)));
                None
            }
        }
    }
}
