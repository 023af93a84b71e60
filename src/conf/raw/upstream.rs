//! `upstreams:`.

use super::{HealthCheck, seconds};
use crate::conf::units::{Size, Time};
use crate::conf::{Balance, HTTP, HttpVersion, Secret};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A group of servers that are interchangeable.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Upstream {
    /// What the servers speak: `http`, `memcached`, or another protocol that this binary has. Default: `http`.
    pub protocol: ProtocolName,
    /// At least one: `IP:port`, `name:port`, `unix:/path`, or a mapping with more. A name is looked up when the file is
    /// loaded, and again whenever the answer has expired; each of its addresses is a server.
    pub servers: Vec<Server>,
    /// How a server is chosen: `round_robin`, smooth and weighted; `least_conn`, the fewest requests for its weight;
    /// `random`, the better of two; `ip_hash`, by the client's address; `hash`, by `hash_key`, consistent. Default:
    /// `round_robin`.
    pub balance: Balance,
    /// What `balance: hash` goes by, a template: `$request_uri`. Default: absent, required with `balance: hash`.
    pub hash_key: Option<String>,
    /// Connections that are kept for the next request.
    pub keepalive: Keepalive,
    /// HTTP to the servers: `1`, `2`, or `auto` for what TLS negotiates. Default: `1`.
    pub http_version: HttpVersion,
    /// HTTP/2 to the servers.
    pub http2: Http2,
    /// TLS to the servers. Default: absent, plain text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<UpstreamTls>,
    /// Who we are to servers that ask for it, databases. Default: absent.
    pub user: Option<String>,
    /// Our password there; no message shows it. Default: absent.
    pub password: Option<Secret>,
    /// A file with the password instead; a line's end behind it is no part of it. Default: absent.
    pub password_file: Option<String>,
    /// The database that is used there, a name or a number. Default: absent, the servers' own.
    pub database: Option<Database>,
    /// Asking the servers now and then how they are. Default: absent, requests alone find out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health_check: Option<HealthCheck>,
}

/// A database, by its name or its number.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum Database {
    /// Redis has numbers.
    Number(u32),
    /// Others have names.
    Name(String),
}

/// The name of a protocol.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(transparent)]
pub struct ProtocolName(pub String);

impl Default for ProtocolName {
    fn default() -> Self {
        ProtocolName(HTTP.to_owned())
    }
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

impl Server {
    pub(in crate::conf) fn address(&self) -> &str {
        match self {
            Server::Address(address) => address,
            Server::Full(options) => &options.address,
        }
    }
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
    /// How long it takes to its full weight when it serves again, or joins; 0: none. Default: `0s`.
    pub slow_start: Time,
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
            slow_start: seconds(0),
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
    /// Requests on one connection, which is closed after them. Default: `1000`.
    pub requests: u32,
    /// How long one is used since it was opened; then it is closed behind its request. Default: `1h`.
    pub time: Time,
}

impl Default for Keepalive {
    fn default() -> Self {
        Keepalive { connections: 128, timeout: seconds(60), requests: 1000, time: seconds(3600) }
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
