//! Where named servers are: `/etc/hosts`, then DNS.
//!
//! hickory asks the name servers; nothing is cached here, since whoever asks comes back when the answer has expired.
//! It reads `/etc/hosts` only when it is made, and answers one address family from there and the other by DNS: so the
//! file is read here, anew for each lookup, and what it says of a name is all there is, as with glibc.

use crate::conf::NameResolver;
use futures::future::{join, join_all};
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::{Query, ResponseCode};
use hickory_resolver::proto::rr::{Name, RecordType};
use hickory_resolver::{Hosts, Resolver, TokioResolver, system_conf};
use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

/// How long a line of `/etc/hosts` is good: an edit is seen after so long.
const HOSTS_VALID: Duration = Duration::from_secs(60);
/// Records may say that they expire at once, or in a hundred years.
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// What a lookup found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    /// Never empty, sorted, without duplicates.
    pub(crate) addresses: Vec<IpAddr>,
    /// After so long it is to be looked up again.
    pub(crate) valid: Duration,
}

impl Answer {
    fn new(addresses: impl IntoIterator<Item = IpAddr>, valid: Duration) -> Option<Self> {
        // In order, so that the same addresses are the same answer: name servers shuffle them.
        let addresses: BTreeSet<IpAddr> = addresses.into_iter().collect();
        let addresses: Vec<IpAddr> = addresses.into_iter().collect();
        (!addresses.is_empty()).then_some(Answer { addresses, valid })
    }

    /// The addresses with this port.
    pub(crate) fn at(&self, port: u16) -> Vec<SocketAddr> {
        self.addresses.iter().map(|address| SocketAddr::new(*address, port)).collect()
    }
}

/// Looks names up. It belongs to the runtime in which it is used first.
pub(crate) struct Dns {
    resolver: TokioResolver,
    conf: NameResolver,
}

impl Dns {
    /// `/etc/resolv.conf` is read now, if `conf` names no servers.
    ///
    /// # Errors
    /// hickory cannot use what it finds there.
    pub(crate) fn new(conf: &NameResolver) -> Result<Self, String> {
        let (config, mut options) = match conf.servers.as_slice() {
            [] => system_conf::read_system_conf().unwrap_or_else(|error| {
                log::debug!("/etc/resolv.conf: {error}; the name server is 127.0.0.1, as resolv.conf(5) says");
                servers(&[SocketAddr::from((Ipv4Addr::LOCALHOST, 53))])
            }),
            named => servers(named),
        };
        options.timeout = conf.timeout;
        options.cache_size = 0;
        options.use_hosts_file = ResolveHosts::Never;
        let builder = Resolver::builder_with_config(config, TokioRuntimeProvider::default()).with_options(options);
        let resolver = builder.build().map_err(|error| error.to_string())?;
        Ok(Dns { resolver, conf: conf.clone() })
    }

    /// The addresses of `host` now, of both families.
    ///
    /// # Errors
    /// There is none, or nobody knows; the text says why.
    pub(crate) async fn lookup(&self, host: &str) -> Result<Answer, String> {
        let name = Name::from_str_relaxed(host).map_err(|error| error.to_string())?;
        let mut answer = match self.in_hosts(name.clone()).await {
            Some(answer) => answer,
            None => self.in_dns(name).await?,
        };
        if let Some(valid) = self.conf.valid {
            answer.valid = valid;
        }
        Ok(answer)
    }

    async fn in_hosts(&self, name: Name) -> Option<Answer> {
        let lookup = move || {
            let hosts = Hosts::from_system().ok()?;
            let find = |kind| hosts.lookup_static_host(&Query::query(name.clone(), kind));
            let found = [find(RecordType::A), find(RecordType::AAAA)];
            Answer::new(found.iter().flatten().flat_map(addresses), HOSTS_VALID)
        };
        // The file may be long, as those that block advertisements are.
        tokio::task::spawn_blocking(lookup).await.ok().flatten()
    }

    /// Either family will do: there are networks on which a question for the other one is never answered.
    async fn in_dns(&self, name: Name) -> Result<Answer, String> {
        let (v4, v6) = join(self.ask(name.clone(), RecordType::A), self.ask(name, RecordType::AAAA)).await;
        let found: Vec<&Lookup> = [&v4, &v6].into_iter().flatten().collect();
        let expires = found.iter().map(|lookup| lookup.valid_until()).min();
        let valid = expires.map_or(SHORTEST, |expires| expires.saturating_duration_since(Instant::now()));
        let answer = Answer::new(found.into_iter().flat_map(addresses), valid.clamp(SHORTEST, LONGEST));
        answer.ok_or_else(|| match (v4, v6) {
            (Err(error), Ok(_)) | (Ok(_), Err(error)) => self.reason(&error),
            (Err(error), Err(other)) => self.reason(if is_negative(&error) { &other } else { &error }),
            (Ok(_), Ok(_)) => "it has no address".to_owned(),
        })
    }

    /// hickory's own limit is for one try; this one is for all of them.
    async fn ask(&self, name: Name, kind: RecordType) -> Result<Lookup, NetError> {
        let answer = tokio::time::timeout(self.conf.timeout, self.resolver.lookup(name, kind)).await;
        answer.unwrap_or(Err(NetError::Timeout))
    }

    fn reason(&self, error: &NetError) -> String {
        match error {
            NetError::Dns(DnsError::NoRecordsFound(none)) => match none.response_code {
                ResponseCode::NXDomain => "there is no such name, NXDOMAIN".to_owned(),
                _ => "it has no address".to_owned(),
            },
            NetError::Dns(DnsError::ResponseCode(ResponseCode::ServFail)) => {
                "the name server failed, SERVFAIL".to_owned()
            }
            NetError::Dns(DnsError::ResponseCode(code)) => format!("the name server says {code}"),
            NetError::Timeout => format!("no name server answered within {:?}", self.conf.timeout),
            other => other.to_string(),
        }
    }
}

/// Look all of `hosts` up at once, while a configuration is loaded: called from async code and from none, so it has a
/// thread and a runtime of its own.
pub(crate) fn lookup_blocking(conf: &NameResolver, hosts: &[&str]) -> HashMap<String, Result<Answer, String>> {
    if hosts.is_empty() {
        return HashMap::new();
    }
    let answers = std::thread::scope(|scope| scope.spawn(|| lookup_all(conf, hosts)).join());
    let answers = answers.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    let answers = answers.unwrap_or_else(|error| vec![Err(error); hosts.len()]);
    hosts.iter().map(|host| (*host).to_owned()).zip(answers).collect()
}

fn lookup_all(conf: &NameResolver, hosts: &[&str]) -> Result<Vec<Result<Answer, String>>, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| error.to_string())?.block_on(async {
        let dns = Dns::new(conf)?;
        Ok(join_all(hosts.iter().map(|host| dns.lookup(host))).await)
    })
}

/// Name servers that are asked for names as they are: search domains are the system's.
fn servers(addresses: &[SocketAddr]) -> (ResolverConfig, ResolverOpts) {
    let connection = |mut connection: ConnectionConfig, port| {
        connection.port = port;
        connection
    };
    let servers = addresses.iter().map(|address| {
        let ways = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|way| connection(way, address.port()));
        NameServerConfig::new(address.ip(), true, ways.into())
    });
    (ResolverConfig::from_parts(None, Vec::new(), servers.collect()), ResolverOpts::default())
}

fn addresses(lookup: &Lookup) -> impl Iterator<Item = IpAddr> {
    lookup.answers().iter().filter_map(|record| record.data.ip_addr())
}

/// The name server knows that there is nothing.
fn is_negative(error: &NetError) -> bool {
    matches!(error, NetError::Dns(DnsError::NoRecordsFound(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conf(servers: Vec<SocketAddr>) -> NameResolver {
        NameResolver { servers, valid: None, timeout: Duration::from_millis(200) }
    }

    #[test]
    fn equal_sets_of_addresses_are_equal_answers() {
        let [a, b, c] = ["10.0.0.2", "10.0.0.10", "::1"].map(|text| text.parse::<IpAddr>().unwrap());
        let answer = Answer::new([c, b, a, b], SHORTEST).unwrap();
        assert_eq!(answer, Answer::new([a, b, c], SHORTEST).unwrap());
        assert_eq!(
            answer.at(80).iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["10.0.0.2:80", "10.0.0.10:80", "[::1]:80"]
        );
        assert_eq!(Answer::new([], SHORTEST), None);
    }

    /// Nobody answers there: it is bound, and never read.
    #[tokio::test]
    async fn a_name_of_this_machine_needs_no_name_server_and_any_other_does() {
        let silent = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let conf = conf(vec![silent.local_addr().unwrap()]);
        let answers = lookup_blocking(&conf, &["localhost", "app.test"]);
        let local = answers["localhost"].as_ref().unwrap();
        assert!(local.addresses.iter().all(IpAddr::is_loopback), "{local:?}");
        assert_eq!(answers["app.test"].as_ref().unwrap_err(), "no name server answered within 200ms");
    }

    #[tokio::test]
    async fn names_with_an_underscore_are_looked_up_and_what_is_no_name_is_refused() {
        let silent = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let dns = Dns::new(&conf(vec![silent.local_addr().unwrap()])).unwrap();
        assert_eq!(dns.lookup("my_app").await.unwrap_err(), "no name server answered within 200ms");
        assert_ne!(dns.lookup("a..b").await.unwrap_err(), "no name server answered within 200ms");
    }
}
