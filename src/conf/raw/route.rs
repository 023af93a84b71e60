//! A route, or `defaults:`.

use super::seconds;
use crate::conf::units::{Rate, Size, Time};
use crate::conf::{Condition, IgnoredHeader};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// Which requests, and what is done with them.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Route {
    /// Its name in metrics and logs, unique in the service. Default: made from `match`, `example.com/api/`.
    pub name: Option<String>,
    /// The requests it is for. Default: every request.
    #[serde(rename = "match")]
    pub matches: Match,
    /// The upstream's name. Default: none, a filter has to answer.
    pub upstream: Option<String>,
    /// For an upstream that speaks FastCGI. Default: absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fastcgi: Option<Map<String, Value>>,
    /// For an upstream that speaks memcached. Default: absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memcached: Option<Map<String, Value>>,
    /// For an upstream that speaks Redis. Default: absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redis: Option<Map<String, Value>>,
    /// For an upstream that speaks SCGI. Default: absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scgi: Option<Map<String, Value>>,
    /// For an upstream that speaks uwsgi. Default: absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uwsgi: Option<Map<String, Value>>,
    /// For upstreams that speak a protocol of this binary's own: its name with its settings. Default: none.
    pub protocol: BTreeMap<String, Map<String, Value>>,
    /// What the upstream is asked for in place of the matched prefix, or of the whole path with `path_exact` and
    /// `path_regex`; a template, the captures are `$1` or `$name`. Default: absent, the path as it came.
    pub uri: Option<String>,
    /// The `Host` of the upstream's request: `preserve`, `upstream` (the server's name as it is written), or a
    /// template. Default: `preserve`.
    pub host: String,
    /// Headers of the upstream's request, by templates; an empty value removes. Those for one hop only (`Connection`,
    /// `Upgrade`) are seen to in any case, and left out. Default: none.
    pub set_headers: BTreeMap<String, String>,
    /// Headers of the upstream's response that the client does not see. Default: none.
    pub hide_headers: Vec<String>,
    /// Filters, the outermost first: each a name with its settings. Default: none.
    pub filters: Vec<Map<String, Value>>,
    /// What a filter may hold back of a body. Default: `1MiB`.
    pub filter_hold_max: Size,
    /// How a response is stored on its way.
    pub buffering: Buffering,
    /// Read the whole request body before an upstream is asked. Default: `true`.
    pub request_buffering: bool,
    /// What is held of a request body in memory, the rest goes to a temporary file. Default: `16KiB`.
    pub client_body_buffer_size: Size,
    /// The longest request body; 0: unlimited. Default: `1MiB`.
    pub client_max_body_size: Size,
    /// Let the upstream finish although the client has gone. Default: `false`.
    pub ignore_client_abort: bool,
    /// When to try the next server.
    pub next_upstream: NextUpstream,
    /// How long to wait for the upstream.
    pub timeouts: Timeouts,
    /// How long to wait for the client.
    pub client: Client,
    /// Bytes per second to the client; 0: no limit. Default: `0`.
    pub limit_rate: Rate,
    /// Protocols that may be tunnelled when an upstream agrees to them. Default: `[websocket]`.
    pub upgrade: Vec<String>,
    /// Also put an error page in place of an upstream's answer from 300 on, if its status has one. Default: `false`.
    pub intercept_errors: bool,
    /// Error pages by status: `502`, or all of `4xx` and `5xx`. Each is a file that is there when the configuration is
    /// loaded, else a path that begins with `/` and is answered by a route of the same service. Default: none.
    pub error_pages: BTreeMap<String, String>,
    /// Only `X-Accel-Redirect` and `error_pages` lead to it; a client that asks for it gets 404. Default: `false`.
    pub internal: bool,
    /// Headers of the upstream's that are not obeyed: `X-Accel-Buffering`, `X-Accel-Limit-Rate`, `X-Accel-Redirect`.
    /// Default: none.
    pub ignore_headers: Vec<IgnoredHeader>,
}

impl Default for Route {
    fn default() -> Self {
        Route {
            name: None,
            matches: Match::default(),
            upstream: None,
            fastcgi: None,
            memcached: None,
            redis: None,
            scgi: None,
            uwsgi: None,
            protocol: BTreeMap::new(),
            uri: None,
            host: "preserve".into(),
            set_headers: BTreeMap::new(),
            hide_headers: Vec::new(),
            filters: Vec::new(),
            filter_hold_max: Size(1 << 20),
            buffering: Buffering::default(),
            request_buffering: true,
            client_body_buffer_size: Size(16 << 10),
            client_max_body_size: Size(1 << 20),
            ignore_client_abort: false,
            next_upstream: NextUpstream::default(),
            timeouts: Timeouts::default(),
            client: Client::default(),
            limit_rate: Rate(0),
            upgrade: vec!["websocket".into()],
            intercept_errors: false,
            error_pages: BTreeMap::new(),
            internal: false,
            ignore_headers: Vec::new(),
        }
    }
}

/// The requests a route is for. One of the three paths at most; without any of them, every path.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Match {
    /// `example.com`, or `*.example.com` for everything below it. Default: absent, every host.
    pub host: Option<String>,
    /// A prefix of the path; of several the longest wins.
    pub path: Option<String>,
    /// The whole path; wins over the others.
    pub path_exact: Option<String>,
    /// A regular expression somewhere in the path; the first in the file wins, also over prefixes.
    pub path_regex: Option<String>,
    /// The methods; another method looks at the next route. Default: empty, all of them.
    pub method: Vec<String>,
}

/// How a response is stored between the upstream and the client.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Buffering {
    /// Read the upstream at its own speed. Default: `true`.
    pub enabled: bool,
    /// For the upstream's header; and all there is when `enabled` is false. Default: `16KiB`.
    pub buffer_size: Size,
    /// The memory of one response.
    pub buffers: Buffers,
    /// What may be on its way to the client. Default: `64KiB`.
    pub busy_buffers_size: Size,
    /// What a response may store on disk at one time; 0: nothing. Default: `1GiB`.
    pub max_temp_file_size: Size,
    /// What is written to disk at a time. Default: `64KiB`.
    pub temp_file_write_size: Size,
}

impl Default for Buffering {
    fn default() -> Self {
        Buffering {
            enabled: true,
            buffer_size: Size(16 << 10),
            buffers: Buffers::default(),
            busy_buffers_size: Size(64 << 10),
            max_temp_file_size: Size(1 << 30),
            temp_file_write_size: Size(64 << 10),
        }
    }
}

/// The memory of one response: `number × size`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Buffers {
    /// How many blocks. Default: `16`.
    pub number: u32,
    /// How large each is. Default: `16KiB`.
    pub size: Size,
}

impl Default for Buffers {
    fn default() -> Self {
        Buffers { number: 16, size: Size(16 << 10) }
    }
}

/// When to try the next server.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct NextUpstream {
    /// `error`, `timeout`, `invalid_header`, `http_403`, `http_404`, `http_429`, `http_500`, `http_502`, `http_503`,
    /// `http_504`; empty: never. Default: `[error, timeout]`.
    pub when: Vec<Condition>,
    /// Attempts at most; 0: one per live server. Default: `0`.
    pub tries: u32,
    /// No further attempt begins after this time; 0: no limit. Default: `0s`.
    pub timeout: Time,
    /// Also repeat POST, LOCK and PATCH that may have reached a server. Default: `false`.
    pub non_idempotent: bool,
}

impl Default for NextUpstream {
    fn default() -> Self {
        NextUpstream {
            when: vec![Condition::Error, Condition::Timeout],
            tries: 0,
            timeout: seconds(0),
            non_idempotent: false,
        }
    }
}

/// How long to wait for the upstream.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Timeouts {
    /// For a connection. Default: `60s`.
    pub connect: Time,
    /// Between two writes. Default: `60s`.
    pub send: Time,
    /// Between two reads. Default: `60s`.
    pub read: Time,
}

impl Default for Timeouts {
    fn default() -> Self {
        Timeouts { connect: seconds(60), send: seconds(60), read: seconds(60) }
    }
}

/// How long to wait for the client.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Client {
    /// Between two reads of its body. Default: `60s`.
    pub body_timeout: Time,
    /// Between two writes. Default: `60s`.
    pub send_timeout: Time,
    /// For its next request on a connection; 0: close after each. Default: `75s`.
    pub keepalive_timeout: Time,
}

impl Default for Client {
    fn default() -> Self {
        Client { body_timeout: seconds(60), send_timeout: seconds(60), keepalive_timeout: seconds(75) }
    }
}
