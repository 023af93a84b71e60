//! What `health_check` means, once it is known to be right.

use super::units::Statuses;
use http::{HeaderName, HeaderValue, Method};
use regex::bytes::Regex;
use std::time::Duration;

/// How the servers of an upstream are asked how they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// What a check is.
    pub probe: Probe,
    /// From one check of a server to the next; never zero.
    pub interval: Duration,
    /// Each check is delayed by up to so much.
    pub jitter: Duration,
    /// For the whole of a check; never zero.
    pub timeout: Duration,
    /// Passed checks in a row that bring a server back, at least 1.
    pub rise: u32,
    /// Failed checks in a row that take a server out, at least 1.
    pub fall: u32,
}

/// What one check does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    /// Connect, with the TLS handshake if the upstream has TLS.
    Tcp,
    /// The same, and send a request.
    Http(Box<HttpProbe>),
}

/// The request of a check, and what has to come of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpProbe {
    /// Begins with `/`; may have a query.
    pub path: String,
    /// Its method.
    pub method: Method,
    /// Its headers, beside those that every check has.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// The response has one of these; never empty.
    pub statuses: Vec<Statuses>,
    /// The response has these headers, and the patterns are found in their values.
    pub header_patterns: Vec<(HeaderName, Pattern)>,
    /// This is found in the body.
    pub body_pattern: Option<Pattern>,
}

/// A regular expression; equal to another if it is written in the same way.
#[derive(Clone, Debug)]
pub struct Pattern(pub Regex);

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

impl Eq for Pattern {}
