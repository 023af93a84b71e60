//! The configuration file's shape, key for key. The comments and defaults here are those of the JSON Schema.
//!
//! Every key may be absent; what has to be there is checked when the file is resolved. Nothing here is known to be
//! right: that is what [`Conf`](super::Conf) is for.
//!
//! A value of these types, serialised, has all keys, its routes too: what `defaults` has is then not merged into them.

mod health_check;
mod route;
mod upstream;

pub use health_check::{HealthCheck, HealthMatch};
pub use route::{Buffering, Buffers, Client, Match, NextUpstream, Route, Timeouts};
pub use upstream::{Database, Http2, Keepalive, ProtocolName, Server, ServerOptions, Upstream, UpstreamTls};

use super::units::{Size, Time};
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
    /// shutdown; `max_blocking_threads` to 8: disk jobs at one time. Default: one thread per service.
    #[schemars(schema_with = "server_schema")]
    pub server: Map<String, Value>,
    /// The pages `/metrics`, `/status`, `/status.json` and `/healthz`. Default: absent, no such listener.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub admin: Option<Admin>,
    /// One line per request. Default: absent, none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access_log: Option<AccessLog>,
    /// The folder of the temporary files. Default: `/var/tmp/millpond`.
    pub temp_path: String,
    /// Memory all responses together may take beyond one block each. Default: `1GiB`.
    pub buffer_memory_max: Size,
    /// Disk space all temporary files together may take. Default: `16GiB`.
    pub temp_files_max: Size,
    /// Who knows the addresses of named servers.
    pub resolver: NameResolver,
    /// The upstreams by name. Default: none.
    pub upstreams: BTreeMap<String, Upstream>,
    /// What every route inherits: a route's keys but `name` and `match`. Mappings are merged key by key, lists are
    /// replaced. Default: `{}`.
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
            resolver: NameResolver::default(),
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
        schema["minimum"] = u8::from(key == "threads").into();
    }
    (key, schema)
}

/// `server:` with nothing in it.
pub(super) fn server_defaults() -> Map<String, Value> {
    let conf = ServerConf { grace_period_seconds: Some(30), max_blocking_threads: Some(8), ..ServerConf::default() };
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
    /// Let clients that are not on this machine reload the configuration and drain peers too. A Unix socket's clients
    /// always may. Default: false.
    pub allow_changes: bool,
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

/// Who knows the addresses of named servers, and for how long an answer is good.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct NameResolver {
    /// Name servers, `IP` or `IP:port`. `/etc/hosts` is asked first all the same. Default: none, those of
    /// `/etc/resolv.conf`.
    pub servers: Vec<String>,
    /// How long an answer is good. Default: absent, as long as its records say (TTL).
    pub valid: Option<Time>,
    /// How long a lookup may take. Default: `5s`.
    pub timeout: Time,
}

impl Default for NameResolver {
    fn default() -> Self {
        NameResolver { servers: Vec::new(), valid: None, timeout: seconds(5) }
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
    /// Certificates; the client's server name (SNI) chooses one, the first is for all others. Default: none, plain
    /// text.
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
