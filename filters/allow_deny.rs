//! `allow_deny`: who may ask, by the address that the connection comes from.
//!
//! ```yaml
//! - allow_deny: { allow: [10.0.0.0/8, 2001:db8::/32], deny: [all], file: /etc/millpond/deny.txt }
//! ```
//!
//! The most specific network that holds the address decides, at a tie `deny`; an address in none of them may ask. Who
//! may not is answered 403. `all` is every client; mind that `0.0.0.0/0` is IPv4 alone, and `::/0` IPv6 alone. An IPv4
//! client of an IPv6 socket (`::ffff:10.0.0.1`) counts as IPv4. `unix:` is a client of a Unix socket, which has no
//! address: it may ask unless `unix:` or `all` is denied, and not allowed more specifically. A subrequest without a
//! client passes.
//!
//! The address is that of the connection, not of `X-Forwarded-For`, which a client may invent.
//!
//! The file has a line for each network, `allow NETWORK` or `deny NETWORK`, as nginx with or without a `;`, and
//! comments behind `#`. It is looked at again when a request comes, at most once a second, and read when it has
//! changed; a file with a mistake changes nothing, and the log names its line. A lookup takes one step for each length
//! of prefix that is in use, however many networks there are.

use ipnet::IpNet;
use millpond::prelude::*;
use once_cell::sync::Lazy;
use prometheus::IntCounter;
use serde::Deserialize;
use std::collections::HashMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

/// What the configuration says.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AllowDenyConf {
    /// Networks and addresses that may ask.
    pub allow: Vec<Network>,
    /// Networks and addresses that may not.
    pub deny: Vec<Network>,
    /// More of both.
    pub file: Option<PathBuf>,
}

/// Some of the clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Network {
    /// Every client.
    All,
    /// The clients of Unix sockets.
    Unix,
    /// Those with an address in this network.
    Net(IpNet),
}

impl FromStr for Network {
    type Err = String;

    /// An IPv4 network that is written as IPv6 is an IPv4 one; bits behind the prefix mean nothing, as in nginx.
    fn from_str(text: &str) -> Result<Self, String> {
        let net = match text {
            "all" => return Ok(Network::All),
            "unix:" => return Ok(Network::Unix),
            text => text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)),
        };
        let wrong = || format!("an address, a network such as 10.0.0.0/8, `unix:` or `all`, not {text:?}");
        let net = net.map_err(|_| wrong())?;
        let address = net.addr().to_canonical();
        let mapped = net.addr().is_ipv6() && address.is_ipv4() && net.prefix_len() >= 96;
        match mapped {
            true => Ok(Network::Net(IpNet::new(address, net.prefix_len() - 96).map_err(|_| wrong())?.trunc())),
            false => Ok(Network::Net(net.trunc())),
        }
    }
}

impl TryFrom<String> for Network {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// May they ask? The order settles a tie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    Allow,
    Deny,
}

static DENIED: Lazy<IntCounter> = Lazy::new(|| {
    let name = "millpond_allow_deny_denied_total";
    registered(IntCounter::new(name, "Requests denied by address."))
});

/// Where `/metrics` finds it, unless another copy of this file is there.
fn registered<C: prometheus::core::Collector + Clone + 'static>(metric: prometheus::Result<C>) -> C {
    let metric = metric.expect("names and labels are well formed");
    if let Err(error) = prometheus::register(Box::new(metric.clone())) {
        log::warn!("allow_deny's metrics: {error}");
    }
    metric
}

/// The filter.
///
/// ```
/// use millpond::filters::allow_deny::{AllowDeny, AllowDenyConf, Network};
///
/// let conf = AllowDenyConf { allow: vec!["10.0.0.0/8".parse()?], deny: vec![Network::All], file: None };
/// let filter = AllowDeny::new(conf).map_err(|error| error.to_string())?;
/// # Ok::<(), String>(())
/// ```
pub struct AllowDeny {
    /// What is configured, unless there is a file, whose rules come on top.
    configured: Arc<Rules>,
    file: Option<LiveFile<Rules>>,
}

impl AllowDeny {
    /// Make it from its configuration. Its file is read here.
    ///
    /// # Errors
    /// The file cannot be read, or one of its lines is no rule.
    pub fn new(conf: AllowDenyConf) -> Result<Self> {
        Lazy::force(&DENIED);
        let allow = conf.allow.into_iter().map(|network| (network, Verdict::Allow));
        let deny = conf.deny.into_iter().map(|network| (network, Verdict::Deny));
        let configured: Vec<_> = allow.chain(deny).collect();
        let rules = Arc::new(Rules::new(configured.iter().copied()));
        let more = move |text: &str, path: &Path| {
            parse(text, path).map(|more| Rules::new(configured.iter().copied().chain(more)))
        };
        let file = conf.file.map(|path| LiveFile::read("allow_deny", "file", &path, more)).transpose()?;
        Ok(AllowDeny { configured: rules, file })
    }
}

impl UpstreamPhases for AllowDeny {
    type Ctx = ();

    fn new_ctx(&self) {}

    async fn request_filter(&self, session: &mut Session<'_>, _ctx: &mut ()) -> Result<Flow> {
        if session.client().is_none() {
            return Ok(Flow::Continue);
        }
        let rules = match &self.file {
            Some(file) => file.current().await,
            None => self.configured.clone(),
        };
        let address = session.remote_addr().map(|address| address.ip());
        match rules.verdict(address) {
            Verdict::Allow => Ok(Flow::Continue),
            Verdict::Deny => {
                DENIED.inc();
                let who = address.map_or_else(|| "unix:".to_owned(), |address| address.to_string());
                Err(Error::with_status(403, format!("{who} is denied")))
            }
        }
    }
}

/// Networks by the length of their prefix, the longest first.
#[derive(Debug, Default)]
struct Rules {
    v4: Vec<(u8, HashMap<IpAddr, Verdict>)>,
    v6: Vec<(u8, HashMap<IpAddr, Verdict>)>,
    unix: Option<Verdict>,
    all: Option<Verdict>,
}

impl Rules {
    fn new(rules: impl IntoIterator<Item = (Network, Verdict)>) -> Self {
        let mut made = Rules::default();
        for (network, verdict) in rules {
            match network {
                Network::All => made.all = made.all.max(Some(verdict)),
                Network::Unix => made.unix = made.unix.max(Some(verdict)),
                Network::Net(net) => made.add(net, verdict),
            }
        }
        made
    }

    fn add(&mut self, net: IpNet, verdict: Verdict) {
        let lengths = if net.addr().is_ipv4() { &mut self.v4 } else { &mut self.v6 };
        let length = net.prefix_len();
        let at = lengths.binary_search_by(|(other, _)| length.cmp(other)).unwrap_or_else(|at| {
            lengths.insert(at, (length, HashMap::new()));
            at
        });
        let stored = lengths[at].1.entry(net.addr()).or_insert(verdict);
        *stored = verdict.max(*stored);
    }

    /// `None`: a client of a Unix socket.
    fn verdict(&self, address: Option<IpAddr>) -> Verdict {
        let found = match address.map(|address| address.to_canonical()) {
            None => self.unix,
            Some(address) => {
                let lengths = if address.is_ipv4() { &self.v4 } else { &self.v6 };
                lengths.iter().find_map(|(length, nets)| {
                    let net = IpNet::new(address, *length).ok()?;
                    nets.get(&net.network()).copied()
                })
            }
        };
        found.or(self.all).unwrap_or(Verdict::Allow)
    }
}

/// The rules of a file.
fn parse(text: &str, path: &Path) -> Result<Vec<(Network, Verdict)>, String> {
    let lines = text.lines().enumerate().map(|(index, line)| (index + 1, line.split('#').next().unwrap_or("").trim()));
    let rules = lines
        .filter(|(_, line)| !line.is_empty())
        .map(|(number, line)| rule(line).map_err(|text| format!("{}:{number}: expected {text}", path.display())));
    rules.collect()
}

fn rule(line: &str) -> Result<(Network, Verdict), String> {
    let line = line.strip_suffix(';').unwrap_or(line);
    let (verdict, network) = match line.split_once(char::is_whitespace) {
        Some(("allow", network)) => (Verdict::Allow, network),
        Some(("deny", network)) => (Verdict::Deny, network),
        _ => return Err(format!("`allow NETWORK` or `deny NETWORK`, not {line:?}")),
    };
    Ok((network.trim().parse()?, verdict))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(text: &str) -> Rules {
        Rules::new(parse(text, Path::new("rules")).unwrap())
    }

    fn denied(rules: &Rules, address: &str) -> bool {
        rules.verdict((address != "unix:").then(|| address.parse().unwrap())) == Verdict::Deny
    }

    #[test]
    fn the_most_specific_network_decides_and_at_a_tie_deny() {
        let rules = rules(
            "# comment\n deny all;\nallow 10.0.0.0/8 # ours\ndeny 10.1.0.0/16\n\nallow 10.1.2.3\n\
             allow 192.0.2.0/24\ndeny 192.0.2.77/24\nallow 2001:db8::/32\ndeny 2001:db8:1::/48",
        );
        for (address, expected) in [
            ("10.200.0.1", false),
            ("10.1.2.4", true),
            ("10.1.2.3", false),
            ("::ffff:10.1.2.3", false),
            ("192.0.2.1", true),
            ("8.8.8.8", true),
            ("2001:db8::1", false),
            ("2001:db8:1::1", true),
            ("::1", true),
            ("unix:", true),
        ] {
            assert_eq!(denied(&rules, address), expected, "{address}");
        }
    }

    #[test]
    fn an_address_in_no_network_may_ask() {
        let rules = rules("deny 0.0.0.0/0\nallow unix:");
        assert!(denied(&rules, "127.0.0.1") && denied(&rules, "::ffff:127.0.0.1"));
        assert!(!denied(&rules, "::1") && !denied(&rules, "unix:"));
        assert!(!denied(&Rules::default(), "127.0.0.1"));
    }

    #[test]
    fn an_ipv4_network_may_be_written_as_ipv6() {
        assert_eq!("::ffff:10.9.9.9/104".parse(), Ok(Network::Net("10.0.0.0/8".parse().unwrap())));
        assert_eq!("::ffff:10.9.9.9".parse(), Ok(Network::Net("10.9.9.9/32".parse().unwrap())));
        assert_eq!("::/0".parse(), Ok(Network::Net("::/0".parse().unwrap())));
    }

    #[test]
    fn a_mistake_is_named_with_its_line() {
        for (text, expected) in [
            (
                "allow 10.0.0.0/8\nblock 1.2.3.4",
                "rules:2: expected `allow NETWORK` or `deny NETWORK`, not \"block 1.2.3.4\"",
            ),
            (
                "deny 10.0.0.0/33",
                "rules:1: expected an address, a network such as 10.0.0.0/8, `unix:` or `all`, not \"10.0.0.0/33\"",
            ),
            ("deny", "rules:1: expected `allow NETWORK` or `deny NETWORK`, not \"deny\""),
        ] {
            assert_eq!(parse(text, Path::new("rules")).unwrap_err(), expected);
        }
    }

    #[test]
    fn a_hundred_thousand_networks_are_looked_up_as_fast_as_one() {
        let text: String = (0..100_000_u32).map(|i| format!("deny {}/32\n", std::net::Ipv4Addr::from(i * 7))).collect();
        let rules = rules(&text);
        assert_eq!(rules.v4.len(), 1, "one step");
        assert!(denied(&rules, "0.0.0.7") && !denied(&rules, "0.0.0.8"));
    }
}
