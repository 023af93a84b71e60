//! `upstreams.NAME.health_check`.

use super::seconds;
use crate::conf::CheckType;
use crate::conf::units::{Statuses, Time};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Asking the servers now and then how they are.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct HealthCheck {
    /// `http`, a request; `tcp`, a connection, TLS's handshake included. Default: `http`.
    #[serde(rename = "type")]
    pub kind: CheckType,
    /// What is asked for. Default: `/`.
    pub path: String,
    /// The request's method. Default: `GET`.
    pub method: String,
    /// Headers of the request. Default: none but `Host`, the server's name, and `User-Agent`.
    pub headers: BTreeMap<String, String>,
    /// What the response has to be like, all of it.
    #[serde(rename = "match")]
    pub matches: HealthMatch,
    /// From one check of a server to the next. Default: `5s`.
    pub interval: Time,
    /// Each check is delayed by up to so much, at random. Default: a tenth of the interval.
    pub jitter: Option<Time>,
    /// For the whole of a check, the connection included. Default: `1s`.
    pub timeout: Time,
    /// So many passed checks in a row bring a server back. Default: `2`.
    pub rise: u32,
    /// So many failed checks in a row take a server out. Default: `3`.
    pub fall: u32,
}

/// What the response to a health check has to be like.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct HealthMatch {
    /// One of these statuses: `200`, or `200-399`. Default: `[200-399]`.
    pub status: Vec<Statuses>,
    /// Headers that have to be there, and for each a regular expression that is found in its value. Default: none.
    pub headers: BTreeMap<String, String>,
    /// A regular expression that is found in the first 64 KiB of the body. Default: absent.
    pub body: Option<String>,
}

impl Default for HealthCheck {
    fn default() -> Self {
        HealthCheck {
            kind: CheckType::Http,
            path: "/".into(),
            method: "GET".into(),
            headers: BTreeMap::new(),
            matches: HealthMatch::default(),
            interval: seconds(5),
            jitter: None,
            timeout: seconds(1),
            rise: 2,
            fall: 3,
        }
    }
}

impl Default for HealthMatch {
    fn default() -> Self {
        HealthMatch { status: vec![Statuses { from: 200, to: 399 }], headers: BTreeMap::new(), body: None }
    }
}
