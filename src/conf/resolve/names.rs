//! The names of servers: all of them are looked up at once, before the upstreams are resolved.

use super::Resolver;
use super::files::host_and_port;
use crate::conf::source::{item_path, key_path};
use crate::conf::{NameResolver, raw};
use crate::dns::{self, Answer};
use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// What the lookups came to.
pub(super) struct Names {
    pub(super) resolver: NameResolver,
    pub(super) answers: HashMap<String, Result<Answer, String>>,
}

impl Default for Names {
    fn default() -> Self {
        let resolver = NameResolver { servers: Vec::new(), valid: None, timeout: Duration::from_secs(5) };
        Names { resolver, answers: HashMap::new() }
    }
}

impl Resolver {
    pub(super) fn look_up_names(&mut self, raw: &raw::Conf) {
        let resolver = self.name_resolver(&raw.resolver);
        let servers = raw.upstreams.values().flat_map(|upstream| &upstream.servers);
        let names: BTreeSet<&str> =
            servers.filter_map(|server| name_and_port(server.address())).map(|(n, _)| n).collect();
        // With a wrong resolver there is enough to say.
        let answers = match self.source.is_wrong("resolver") {
            true => HashMap::new(),
            false => dns::lookup_blocking(&resolver, &names.into_iter().collect::<Vec<_>>()),
        };
        self.names = Names { resolver, answers };
    }

    fn name_resolver(&mut self, raw: &raw::NameResolver) -> NameResolver {
        let servers = raw.servers.iter().enumerate();
        NameResolver {
            servers: servers
                .filter_map(|(index, server)| self.name_server(server, &item_path("resolver.servers", index)))
                .collect(),
            valid: raw.valid.map(|valid| self.positive(valid, &key_path("resolver", "valid"))),
            timeout: self.positive(raw.timeout, &key_path("resolver", "timeout")),
        }
    }

    fn name_server(&mut self, text: &str, path: &str) -> Option<SocketAddr> {
        const PORT: u16 = 53;
        let address = text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, PORT));
        let address = address.or_else(|_| text.parse::<SocketAddr>()).ok().filter(|address| address.port() != 0);
        if address.is_none() {
            self.wrong(path, text, "the address of a name server such as 10.0.0.2, 10.0.0.2:53 or [fd00::2]:53");
        }
        address
    }
}

/// A server's name and port, if it has a name.
pub(super) fn name_and_port(address: &str) -> Option<(&str, u16)> {
    host_and_port(address).filter(|(host, _)| host.parse::<IpAddr>().is_err())
}
