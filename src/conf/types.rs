//! What a configuration means, once it is known to be right.

use super::error_pages::ErrorPages;
use super::errors::Place;
use super::health_check::HealthCheck;
use super::route_table::{Matches, RouteTable};
use super::secret::Secret;
use super::source::Places;
use super::words::{Balance, Condition, HttpVersion, IgnoredHeader};
use crate::template::Template;
use http::HeaderName;
use pingora_core::server::configuration::ServerConf;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// A configuration that cannot be wrong.
#[derive(Clone, Debug)]
pub struct Conf {
    /// The file it was read from, for errors; empty if it was built in code.
    pub file: String,
    /// Pingora's part. [`server_conf`](Self::server_conf) makes a copy to give to a `Server`.
    pub server: Arc<ServerConf>,
    /// The operator's pages.
    pub admin: Option<Admin>,
    /// The access log.
    pub access_log: Option<AccessLog>,
    /// The folder of the temporary files.
    pub temp_path: PathBuf,
    /// Bytes of memory all responses together may take beyond one block each.
    pub buffer_memory_max: u64,
    /// Bytes all temporary files together may take.
    pub temp_files_max: u64,
    /// The upstreams by name.
    pub upstreams: BTreeMap<String, Upstream>,
    /// The services, in the order of the file.
    pub services: Vec<Service>,
    /// Where its keys stand, for what is found wrong when it is put to use.
    pub(crate) places: Places,
}

/// Where the operator looks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    /// Where its pages are.
    pub listen: Address,
    /// Clients that are not on this machine may change something too.
    pub allow_changes: bool,
}

/// The access log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessLog {
    /// The file that lines are appended to.
    pub path: PathBuf,
    /// How a line looks.
    pub format: LogFormat,
}

/// How a line of the access log looks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object.
    Json,
    /// The combined log format of nginx and Apache.
    Combined,
    /// The user's own.
    Template(Template),
}

/// An address to listen on or to connect to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Address {
    /// TCP.
    Inet(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

/// A group of servers that are interchangeable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// Its name.
    pub name: String,
    /// What its servers speak, by the name it is registered by: [`HTTP`], or another.
    pub protocol: String,
    /// Never empty.
    pub servers: Vec<Server>,
    /// How one is chosen.
    pub balance: Balance,
    /// What `balance: hash` goes by; there if and only if that is so.
    pub hash_key: Option<Template>,
    /// The pool.
    pub keepalive: Keepalive,
    /// The HTTP version.
    pub http_version: HttpVersion,
    /// HTTP/2.
    pub http2: Http2,
    /// TLS; `None`: plain text.
    pub tls: Option<UpstreamTls>,
    /// Who we are to a database.
    pub login: Login,
    /// The database to use, where the protocol knows databases; `None`: the servers' own.
    pub database: Option<String>,
    /// `None`: nobody asks how the servers are.
    pub health_check: Option<HealthCheck>,
    /// How the names of its servers are looked up.
    pub resolver: NameResolver,
}

/// Who we are to a server that asks for it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Login {
    /// The user; never without a password.
    pub user: Option<String>,
    /// The password.
    pub password: Option<Secret>,
}

/// How names are looked up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameResolver {
    /// Name servers; empty: those of `/etc/resolv.conf`.
    pub servers: Vec<SocketAddr>,
    /// How long an answer is good, never zero; `None`: as long as its records say.
    pub valid: Option<Duration>,
    /// How long a lookup may take; never zero.
    pub timeout: Duration,
}

/// One entry in the servers of an upstream: a peer, or several if it is a name with several addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// Where it is; never empty. A name's addresses are those it had when the file was loaded.
    pub addresses: Vec<Address>,
    /// Its address as it is written in the file.
    pub name: String,
    /// The name and the port, if it is a name that can get other addresses.
    pub host: Option<(String, u16)>,
    /// Its share, at least 1.
    pub weight: u32,
    /// So many failures within `fail_timeout` rest it; 0: never.
    pub max_fails: u32,
    /// In which failures are counted, and for which it then rests.
    pub fail_timeout: Duration,
    /// Requests at one time, at each address; 0: unlimited.
    pub max_conns: u32,
    /// How long it takes to its full weight when it serves again, or joins.
    pub slow_start: Duration,
    /// Serve only when no other can.
    pub backup: bool,
    /// Out of use.
    pub down: bool,
}

/// An upstream's pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// Idle connections at most; 0: no pool.
    pub connections: u32,
    /// How long one may be idle.
    pub timeout: Duration,
    /// Requests on one connection, at least 1.
    pub requests: u32,
    /// How long one is used since it was opened.
    pub time: Duration,
}

/// HTTP/2 to an upstream. The connection's window is `streams × window`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Http2 {
    /// Requests at one time on a connection, at least 1.
    pub streams: u32,
    /// A stream's window in bytes.
    pub window: u32,
}

/// TLS to an upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamTls {
    /// The name that is asked for (SNI), and checked with `verify`; empty: none, then `verify` is off.
    pub server_name: String,
    /// Check the certificate and its name.
    pub verify: bool,
    /// The authorities to trust; `None`: the system's.
    pub ca_file: Option<PathBuf>,
    /// Our own certificate, if and only if there is a `key_file`.
    pub cert_file: Option<PathBuf>,
    /// Its key.
    pub key_file: Option<PathBuf>,
    /// Made of what was in the files, so that a reload sees when they have been replaced.
    pub files_hash: u64,
}

/// Listeners with their routes.
#[derive(Clone, Debug)]
pub struct Service {
    /// Its name, unique.
    pub name: String,
    /// Never empty.
    pub listen: Vec<Listen>,
    /// Filters outside every route's own, the outermost first.
    pub filters: Vec<Filter>,
    /// The routes, in the order of the file, never empty.
    pub routes: Vec<Route>,
    /// The error pages of requests that no route matches: those of the defaults.
    pub error_pages: ErrorPages,
    /// Finds the index of one of `routes`.
    pub table: RouteTable,
}

/// One listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// Where.
    pub address: Address,
    /// Certificates, the first for names that fit none; empty: plain text.
    pub tls: Vec<Certificate>,
    /// HTTP/2: by ALPN with TLS, with prior knowledge without.
    pub h2: bool,
}

/// A certificate with its key, both readable when the file was loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// The chain, PEM.
    pub cert_file: PathBuf,
    /// The key, PEM.
    pub key_file: PathBuf,
}

/// A filter, its settings not yet read: only its factory knows them.
#[derive(Clone, Debug, PartialEq)]
pub struct Filter {
    /// The name it is registered by.
    pub name: String,
    /// Its settings.
    pub conf: Value,
    /// The key of its settings in the file, for errors.
    pub path: String,
    /// Where that key stands, if it stands in a file.
    pub place: Option<Place>,
}

/// The protocol that needs no registration, and has no settings.
pub const HTTP: &str = "http";

/// The protocols whose settings are keys of a route; those of others stand under its `protocol`.
pub const PROTOCOL_KEYS: [&str; 5] = ["fastcgi", "memcached", "redis", "scgi", "uwsgi"];

/// What a route's upstream speaks, with the route's settings of it, not yet read: only its maker knows them.
#[derive(Clone, Debug, PartialEq)]
pub struct Protocol {
    /// The name it is registered by.
    pub name: String,
    /// Its settings; empty if there are none.
    pub conf: Value,
    /// The key of its settings in the file, for errors.
    pub path: String,
    /// Where that key stands, or should stand, if the route stands in a file.
    pub place: Option<Place>,
}

/// What is done with some requests.
#[derive(Clone, Debug)]
pub struct Route {
    /// Its name, unique in the service: a metrics label.
    pub name: String,
    /// The requests it is for.
    pub matches: Matches,
    /// An upstream that exists; `None` if a filter answers.
    pub upstream: Option<String>,
    /// What that upstream speaks; `None` without one.
    pub protocol: Option<Protocol>,
    /// What stands in place of the matched prefix, or of the whole path.
    pub uri: Option<Template>,
    /// The `Host` of the upstream's request.
    pub host: HostHeader,
    /// Headers of the upstream's request; an empty value removes.
    pub set_headers: Vec<(HeaderName, Template)>,
    /// Headers of the upstream's response that the client does not see.
    pub hide_headers: Vec<HeaderName>,
    /// Filters, the outermost first.
    pub filters: Vec<Filter>,
    /// Bytes a filter may hold back of a body.
    pub filter_hold_max: u64,
    /// How a response is stored on its way.
    pub buffering: Buffering,
    /// Read the whole request body before an upstream is asked.
    pub request_buffering: bool,
    /// Bytes held of a request body in memory.
    pub client_body_buffer_size: u64,
    /// The longest request body in bytes; `None`: unlimited.
    pub client_max_body_size: Option<u64>,
    /// Let the upstream finish although the client has gone.
    pub ignore_client_abort: bool,
    /// When to try the next server.
    pub next_upstream: NextUpstream,
    /// How long to wait for the upstream.
    pub timeouts: Timeouts,
    /// How long to wait for the client.
    pub client: Client,
    /// Bytes per second to the client; 0: no limit.
    pub limit_rate: u64,
    /// Protocols that may be tunnelled, lower case.
    pub upgrade: Vec<String>,
    /// Error pages are for an upstream's answers too, not only for the proxy's own errors.
    pub intercept_errors: bool,
    /// What is sent in place of the built-in error pages.
    pub error_pages: ErrorPages,
    /// Only internal redirects lead to it.
    pub internal: bool,
    /// Headers of the upstream's that are not obeyed.
    pub ignore_headers: BTreeSet<IgnoredHeader>,
}

/// The `Host` of the upstream's request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostHeader {
    /// The client's.
    Preserve,
    /// The server's name as it is written in the file.
    Upstream,
    /// This.
    Literal(Template),
}

/// How a response is stored between the upstream and the client, all sizes in bytes.
///
/// `size ≤ busy_buffers_size < number × size`, `number ≥ 2`, `buffer_size ≥ 1024`, `temp_file_write_size ≥ size`, and
/// `max_temp_file_size` is 0 or at least `size`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffering {
    /// Read the upstream at its own speed.
    pub enabled: bool,
    /// For the upstream's header; and all there is when not `enabled`.
    pub buffer_size: usize,
    /// Blocks of memory.
    pub number: usize,
    /// The size of each.
    pub size: usize,
    /// What may be on its way to the client.
    pub busy_buffers_size: usize,
    /// What may be stored on disk at one time; 0: nothing.
    pub max_temp_file_size: u64,
    /// What is written to disk at a time.
    pub temp_file_write_size: usize,
}

/// When to try the next server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NextUpstream {
    /// Reasons; empty: never.
    pub when: BTreeSet<Condition>,
    /// Attempts at most; 0: one per live server.
    pub tries: u32,
    /// No further attempt begins after this time; zero: no limit.
    pub timeout: Duration,
    /// Also repeat POST, LOCK and PATCH that may have reached a server.
    pub non_idempotent: bool,
}

/// How long to wait for the upstream; never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// For a connection.
    pub connect: Duration,
    /// Between two writes.
    pub send: Duration,
    /// Between two reads.
    pub read: Duration,
}

/// How long to wait for the client; zero only for `keepalive_timeout`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client {
    /// Between two reads of its body.
    pub body_timeout: Duration,
    /// Between two writes.
    pub send_timeout: Duration,
    /// For its next request on a connection; zero: close after each.
    pub keepalive_timeout: Duration,
}

impl Conf {
    /// A copy of Pingora's part, which is not `Clone`, to give to a `Server`.
    pub fn server_conf(&self) -> ServerConf {
        let copy = serde_json::to_value(self.server.as_ref()).and_then(serde_json::from_value);
        copy.expect("ServerConf reads what it has written: it did when this configuration was resolved")
    }
}

impl std::str::FromStr for Address {
    type Err = String;

    /// `IP:PORT` or `unix:PATH`.
    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("unix:") {
            Some(path) if !path.is_empty() => Ok(Address::Unix(path.into())),
            _ => text.parse().map(Address::Inet).map_err(|_| "expected IP:PORT or unix:PATH".to_owned()),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Inet(address) => address.fmt(f),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}
