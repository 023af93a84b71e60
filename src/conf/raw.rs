//! The configuration file's shape, key for key. The comments and defaults here are those of the JSON Schema.
//!
//! Every key may be absent; what has to be there is checked when the file is resolved. Nothing here is known to be
//! right: that is what [`Conf`](super::Conf) is for.

use super::units::{Rate, Size, Time};
use super::{Balance, Condition, HttpVersion, IgnoredHeader, Protocol};
use pingora_core::server::configuration::ServerConf;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::time::Duration;

const fn seconds(seconds: u64) -> Time {
    Time(Duration::from_secs(seconds))
}

/// The whole file.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Conf {
    /// Pingora's `ServerConf`, key for key. `grace_period_seconds` defaults to 30: slow clients live that long in a
    /// shutdown. Default: one thread per service.
    #[schemars(schema_with = "server_schema")]
    pub server: Map<String, Value>,
    /// The pages `/metrics`, `/status`, `/status.json` and `/healthz`. Default: absent, no such listener.
    pub admin: Option<Admin>,
    /// One line per request. Default: absent, none.
    pub access_log: Option<AccessLog>,
    /// The folder of the temporary files. Default: `/var/tmp/millpond`.
    pub temp_path: String,
    /// Memory all responses together may take beyond one block each. Default: `1GiB`.
    pub buffer_memory_max: Size,
    /// Disk space all temporary files together may take. Default: `16GiB`.
    pub temp_files_max: Size,
    /// The upstreams by name. Default: none.
    pub upstreams: BTreeMap<String, Upstream>,
    /// What every route inherits, with the same keys. Mappings are merged key by key, lists are replaced. Default: `{}`.
    pub defaults: Route,
    /// What is listened on, and where it goes. Default: none.
    pub services: Vec<Service>,
}

impl Default for Conf {
    fn default() -> Self {
        Conf {
            server: Map::new(),
            admin: None,
            access_log: None,
            temp_path: "/var/tmp/millpond".into(),
            buffer_memory_max: Size(1 << 30),
            temp_files_max: Size(16 << 30),
            upstreams: BTreeMap::new(),
            defaults: Route::default(),
            services: Vec::new(),
        }
    }
}

/// The keys of `server:`, read off Pingora's own defaults.
fn server_schema(_: &mut SchemaGenerator) -> Schema {
    let properties: Map<String, Value> = server_defaults().into_iter().map(server_key).collect();
    json_schema!({ "type": "object", "additionalProperties": false, "properties": properties })
}

fn server_key((key, default): (String, Value)) -> (String, Value) {
    let kind = match default {
        Value::Bool(_) => "boolean",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        _ => return (key, serde_json::json!({ "default": default })),
    };
    let mut schema = serde_json::json!({ "type": kind, "default": default });
    if kind == "integer" {
        schema["minimum"] = 0.into();
    }
    (key, schema)
}

/// `server:` with nothing in it.
pub(super) fn server_defaults() -> Map<String, Value> {
    let conf = ServerConf { grace_period_seconds: Some(30), ..ServerConf::default() };
    match serde_json::to_value(conf) {
        Ok(Value::Object(defaults)) => defaults,
        _ => Map::new(),
    }
}

/// Where the operator looks.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Admin {
    /// `IP:port` or `unix:/path`. Required.
    pub listen: String,
}

/// The access log.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AccessLog {
    /// The file that lines are appended to. Default: `/dev/stdout`.
    pub path: String,
    /// `json`, `combined`, or a template of variables. Default: `json`.
    pub format: String,
}

impl Default for AccessLog {
    fn default() -> Self {
        AccessLog { path: "/dev/stdout".into(), format: "json".into() }
    }
}

/// A group of servers that are interchangeable.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Upstream {
    /// What the servers speak: `http`. Default: `http`.
    pub protocol: Protocol,
    /// At least one: `IP:port`, `name:port`, `unix:/path`, or a mapping with more. A name is looked up when the file is
    /// loaded, and each of its addresses is a server.
    pub servers: Vec<Server>,
    /// How a server is chosen: `round_robin`, smooth and weighted. Default: `round_robin`.
    pub balance: Balance,
    /// Connections that are kept for the next request.
    pub keepalive: Keepalive,
    /// HTTP to the servers: `1`, `2`, or `auto` for what TLS negotiates. Default: `1`.
    pub http_version: HttpVersion,
    /// HTTP/2 to the servers.
    pub http2: Http2,
    /// TLS to the servers. Default: absent, plain text.
    pub tls: Option<UpstreamTls>,
}

/// One server of an upstream: its address, or a mapping.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum Server {
    /// `IP:port`, `name:port` or `unix:/path`.
    Address(String),
    /// The address and more.
    Full(ServerOptions),
}

/// One server with its settings.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ServerOptions {
    /// `IP:port`, `name:port` or `unix:/path`. Required.
    pub address: String,
    /// Its share of the requests. Default: `1`.
    pub weight: u32,
    /// So many failures within `fail_timeout` rest it; 0: never. Default: `1`.
    pub max_fails: u32,
    /// In which failures are counted, and for which it then rests. Default: `10s`.
    pub fail_timeout: Time,
    /// Requests at one time; 0: unlimited. Default: `0`.
    pub max_conns: u32,
    /// Serve only when no other can. Default: `false`.
    pub backup: bool,
    /// Out of use. Default: `false`.
    pub down: bool,
}

impl Default for ServerOptions {
    fn default() -> Self {
        ServerOptions {
            address: String::new(),
            weight: 1,
            max_fails: 1,
            fail_timeout: seconds(10),
            max_conns: 0,
            backup: false,
            down: false,
        }
    }
}

/// An upstream's pool.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Keepalive {
    /// Idle connections at most; 0: no pool. Default: `128`.
    pub connections: u32,
    /// How long one may be idle. Default: `60s`.
    pub timeout: Time,
}

impl Default for Keepalive {
    fn default() -> Self {
        Keepalive { connections: 128, timeout: seconds(60) }
    }
}

/// HTTP/2 to an upstream.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Http2 {
    /// Requests at one time on a connection. Default: `32`.
    pub streams: u32,
    /// What a server may send ahead of us, per request; the connection's window is so many times larger. Default:
    /// `256KiB`.
    pub window: Size,
}

impl Default for Http2 {
    fn default() -> Self {
        Http2 { streams: 32, window: Size(256 << 10) }
    }
}

/// TLS to an upstream.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct UpstreamTls {
    /// The name that is asked for (SNI) and that the certificate must have. Default: the servers' own name, required if
    /// they are addresses.
    pub server_name: Option<String>,
    /// Check the certificate and its name. Default: `true`.
    pub verify: bool,
    /// The authorities to trust, PEM. Default: absent, the system's.
    pub ca_file: Option<String>,
    /// Our own certificate, PEM, with `key_file`. Default: absent.
    pub cert_file: Option<String>,
    /// Its key, PEM. Default: absent.
    pub key_file: Option<String>,
}

impl Default for UpstreamTls {
    fn default() -> Self {
        UpstreamTls { server_name: None, verify: true, ca_file: None, cert_file: None, key_file: None }
    }
}

/// Listeners with their routes.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Service {
    /// Its name in metrics and logs. Required, unique.
    pub name: String,
    /// At least one: `IP:port`, `unix:/path`, or a mapping with more.
    pub listen: Vec<Listen>,
    /// Filters outside every route's own, the outermost first. Default: none.
    pub filters: Vec<Map<String, Value>>,
    /// At least one. The order matters for `path_regex` only.
    pub routes: Vec<Route>,
}

/// One listener: its address, or a mapping.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum Listen {
    /// `IP:port` or `unix:/path`.
    Address(String),
    /// The address and more.
    Full(ListenOptions),
}

/// One listener with its settings.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ListenOptions {
    /// `IP:port` or `unix:/path`. Required.
    pub address: String,
    /// Certificates; the client's server name (SNI) chooses one, the first is for all others. Default: none, plain text.
    pub tls: Vec<Certificate>,
    /// HTTP/2: negotiated with TLS, with prior knowledge without. Default: with TLS.
    pub h2: Option<bool>,
}

/// A certificate with its key.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Certificate {
    /// The chain, PEM, leaf first. Required.
    pub cert_file: String,
    /// The key, PEM. Required.
    pub key_file: String,
}

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
    /// What the upstream is asked for in place of the matched prefix, or of the whole path with `path_exact` and
    /// `path_regex`; a template, the captures are `$1` or `$name`. Default: absent, the path as it came.
    pub uri: Option<String>,
    /// The `Host` of the upstream's request: `preserve`, `upstream` (the server's name as it is written), or a template.
    /// Default: `preserve`.
    pub host: String,
    /// Headers of the upstream's request, by templates; an empty value removes. Default: none.
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
    /// Headers of the upstream's that are not obeyed: `X-Accel-Buffering`, `X-Accel-Limit-Rate`. Default: none.
    pub ignore_headers: Vec<IgnoredHeader>,
}

impl Default for Route {
    fn default() -> Self {
        Route {
            name: None,
            matches: Match::default(),
            upstream: None,
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
