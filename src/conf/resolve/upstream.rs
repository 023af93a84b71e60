//! `upstreams:`.

use super::Resolver;
use super::names::name_and_port;
use crate::conf::source::{item_path, key_path};
use crate::conf::{Balance, HTTP, Http2, HttpVersion, Keepalive, Server, Upstream, UpstreamTls, raw};
use crate::template::Template;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;

/// nginx's ring has 160 points for each unit of weight; each costs 8 bytes.
const MAX_RING_WEIGHT: u64 = 10_000;

impl Resolver {
    pub(super) fn upstreams(&mut self, raw: &raw::Conf) -> BTreeMap<String, Upstream> {
        let upstreams = raw.upstreams.iter();
        upstreams.map(|(name, upstream)| (name.clone(), self.upstream(name, upstream))).collect()
    }

    fn upstream(&mut self, name: &str, raw: &raw::Upstream) -> Upstream {
        let path = key_path("upstreams", name);
        let servers = self.servers(&raw.servers, &key_path(&path, "servers"));
        let tls_path = key_path(&path, "tls");
        self.fits_balance(raw, &servers, &path);
        Upstream {
            name: name.to_owned(),
            protocol: raw.protocol.0.clone(),
            balance: raw.balance,
            hash_key: self.hash_key(raw, &path),
            keepalive: self.keepalive(&raw.keepalive, &key_path(&path, "keepalive")),
            http_version: self.http_version(raw, &path),
            http2: self.http2(&raw.http2, &key_path(&path, "http2")),
            tls: raw.tls.as_ref().map(|tls| self.upstream_tls(tls, &servers, &tls_path)),
            login: self.login(raw, &path),
            database: self.database(raw, &path),
            health_check: raw.health_check.as_ref().map(|check| self.health_check(check, &raw.protocol.0, &path)),
            resolver: self.names.resolver.clone(),
            servers,
        }
    }

    fn hash_key(&mut self, raw: &raw::Upstream, path: &str) -> Option<Template> {
        let path = key_path(path, "hash_key");
        match (&raw.hash_key, raw.balance) {
            (Some(key), Balance::Hash) => self.template(key, &[], &path),
            (None, Balance::Hash) => {
                self.error(&path, "nothing", "what `balance: hash` goes by, such as $request_uri");
                None
            }
            (Some(key), _) => {
                self.wrong(&path, key, "nothing, it is for `balance: hash`");
                None
            }
            (None, _) => None,
        }
    }

    /// What only some ways of choosing can do. As in nginx, a hash knows no changing weights.
    fn fits_balance(&mut self, raw: &raw::Upstream, servers: &[Server], path: &str) {
        let hashed = matches!(raw.balance, Balance::Hash | Balance::IpHash);
        for (index, server) in servers.iter().enumerate().filter(|_| hashed) {
            if !server.slow_start.is_zero() {
                let path = key_path(&item_path(&key_path(path, "servers"), index), "slow_start");
                self.error(&path, format!("{:?}", server.slow_start), "0s, the default, with a `balance` by hash");
            }
        }
        let weight: u64 = servers.iter().map(|server| u64::from(server.weight)).sum();
        if raw.balance == Balance::Hash && weight > MAX_RING_WEIGHT {
            let expected = format!("weights of at most {MAX_RING_WEIGHT} in sum with `balance: hash`");
            self.error(&key_path(path, "servers"), weight.to_string(), expected);
        }
    }

    fn servers(&mut self, raw: &[raw::Server], path: &str) -> Vec<Server> {
        if raw.is_empty() {
            self.error(path, "nothing", "at least one server");
        }
        let servers = raw.iter().enumerate();
        servers.map(|(index, server)| self.server(server, &item_path(path, index))).collect()
    }

    fn server(&mut self, raw: &raw::Server, path: &str) -> Server {
        let (options, address_path) = match raw {
            raw::Server::Address(address) => {
                (&raw::ServerOptions { address: address.clone(), ..Default::default() }, path.to_owned())
            }
            raw::Server::Full(options) => (options, key_path(path, "address")),
        };
        if options.weight == 0 {
            self.error(&key_path(path, "weight"), "0", "at least 1; `down: true` takes a server out of use");
        }
        if options.max_fails > 0 {
            self.positive(options.fail_timeout, &key_path(path, "fail_timeout"));
        }
        Server {
            addresses: self.server_addresses(&options.address, &address_path),
            name: options.address.clone(),
            host: name_and_port(&options.address).map(|(name, port)| (name.to_owned(), port)),
            weight: options.weight,
            max_fails: options.max_fails,
            fail_timeout: options.fail_timeout.0,
            max_conns: options.max_conns,
            slow_start: options.slow_start.0,
            backup: options.backup,
            down: options.down,
        }
    }

    fn keepalive(&mut self, raw: &raw::Keepalive, path: &str) -> Keepalive {
        if raw.connections > 0 {
            self.positive(raw.timeout, &key_path(path, "timeout"));
            self.positive(raw.time, &key_path(path, "time"));
            if raw.requests == 0 {
                self.error(&key_path(path, "requests"), "0", "at least 1; `connections: 0` keeps no pool");
            }
        }
        Keepalive { connections: raw.connections, timeout: raw.timeout.0, requests: raw.requests, time: raw.time.0 }
    }

    /// Only HTTP has versions.
    fn http_version(&mut self, raw: &raw::Upstream, path: &str) -> HttpVersion {
        if raw.protocol.0 != HTTP && raw.http_version != HttpVersion::default() {
            let expected = format!("none with the protocol {}", raw.protocol.0);
            self.error(&key_path(path, "http_version"), "a version of HTTP", expected);
        }
        raw.http_version
    }

    /// HTTP/2 windows are 31 bits (RFC 9113 6.9.1), the connection's is `streams × window`.
    fn http2(&mut self, raw: &raw::Http2, path: &str) -> Http2 {
        const LARGEST: u64 = (1 << 31) - 1;
        if raw.streams == 0 {
            self.error(&key_path(path, "streams"), "0", "at least 1");
        }
        let connection = u64::from(raw.streams).saturating_mul(raw.window.0);
        if raw.window.0 == 0 || connection > LARGEST {
            let expected = "a size from 1 byte on whose product with `streams` is below 2GiB";
            self.error(&key_path(path, "window"), raw.window.to_string(), expected);
        }
        Http2 { streams: raw.streams, window: u32::try_from(raw.window.0).unwrap_or(u32::MAX) }
    }

    fn upstream_tls(&mut self, raw: &raw::UpstreamTls, servers: &[Server], path: &str) -> UpstreamTls {
        let mut file = |text: &Option<String>, key: &str, label: &str| {
            text.as_ref().map(|text| self.pem(text, label, &key_path(path, key)))
        };
        let ca_file = file(&raw.ca_file, "ca_file", "CERTIFICATE");
        let cert_file = file(&raw.cert_file, "cert_file", "CERTIFICATE");
        let key_file = file(&raw.key_file, "key_file", "PRIVATE KEY");
        match (&cert_file, &key_file) {
            (Some(_), None) => self.error(&key_path(path, "key_file"), "nothing", "the key of `cert_file`"),
            (None, Some(_)) => self.error(&key_path(path, "cert_file"), "nothing", "the certificate of `key_file`"),
            _ => {}
        }
        let server_name = match &raw.server_name {
            // Pingora verifies nothing where there is no name.
            Some(name) if name.is_empty() && raw.verify => {
                self.error(&key_path(path, "server_name"), "an empty name", "the name in the servers' certificates");
                String::new()
            }
            Some(name) => name.clone(),
            None => self.common_name(servers, raw.verify, &key_path(path, "server_name")),
        };
        let files_hash = files_hash([&ca_file, &cert_file, &key_file]);
        UpstreamTls { server_name, verify: raw.verify, ca_file, cert_file, key_file, files_hash }
    }

    /// The name all servers have in the file.
    fn common_name(&mut self, servers: &[Server], verify: bool, path: &str) -> String {
        let names: BTreeSet<&str> = servers.iter().map(host_name).collect();
        match names.into_iter().collect::<Vec<_>>().as_slice() {
            [name] if !name.is_empty() => (*name).to_owned(),
            _ => {
                if verify && !servers.is_empty() {
                    let expected = "the name in the servers' certificates, as the servers do not share a name";
                    self.error(path, "nothing", expected);
                }
                String::new()
            }
        }
    }
}

fn files_hash(files: [&Option<PathBuf>; 3]) -> u64 {
    let mut hasher = DefaultHasher::new();
    for file in files {
        file.as_ref().and_then(|file| std::fs::read(file).ok()).hash(&mut hasher);
    }
    hasher.finish()
}

/// The host name a server has in the file; empty if it has only an address.
fn host_name(server: &Server) -> &str {
    server.host.as_ref().map_or("", |(name, _)| name)
}
