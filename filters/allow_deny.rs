//! `allow_deny`: who may ask, by the address that the connection comes from.
//!
//! ```yaml
//! - allow_deny: { allow: [10.0.0.0/8, 2001:db8::/32], deny: [all], file: /etc/millpond/deny.txt }
//! ```
//!
//! The most specific network that holds the address decides, at a tie `deny`; an address in none of them may ask. Who may
//! not is answered 403. `all` is every client; mind that `0.0.0.0/0` is IPv4 alone, and `::/0` IPv6 alone. An IPv4 client of
//! an IPv6 socket (`::ffff:10.0.0.1`) counts as IPv4. `unix:` is a client of a Unix socket, which has no address: it may ask
//! unless `unix:` or `all` is denied, and not allowed more specifically. A subrequest without a client passes.
//!
//! The address is that of the connection, not of `X-Forwarded-For`, which a client may invent.
//!
//! The file has a line for each network, `allow NETWORK` or `deny NETWORK`, as nginx with or without a `;`, and comments
//! behind `#`. It is looked at again when a request comes, at most once a second, and read when it has changed; a file with
//! a mistake changes nothing, and the log names its line. A lookup takes one step for each length of prefix that is in use,
//! however many networks there are.

use arc_swap::ArcSwap;
use ipnet::IpNet;
use millpond::prelude::*;
use once_cell::sync::Lazy;
use parking_lot::Mutex;
use prometheus::{IntCounter, IntCounterVec, Opts};
use serde::Deserialize;
use std::collections::HashMap;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{fs, io};

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

/// How often the file is looked at.
const CHECK_EVERY: Duration = Duration::from_secs(1);

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

static RELOADS: Lazy<IntCounterVec> = Lazy::new(|| {
    let opts =
        Opts::new("millpond_allow_deny_reloads_total", "Times a changed file was read; result: success, failure.");
    registered(IntCounterVec::new(opts, &["result"]))
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
    rules: Arc<LiveRules>,
}

impl AllowDeny {
    /// Make it from its configuration. Its file is read here.
    ///
    /// # Errors
    /// The file cannot be read, or one of its lines is no rule.
    pub fn new(conf: AllowDenyConf) -> Result<Self> {
        let rules = LiveRules::new(conf).map_err(|text| Error::new(ErrorKind::Filter, text))?;
        Lazy::force(&DENIED);
        Lazy::force(&RELOADS);
        Ok(AllowDeny { rules: Arc::new(rules) })
    }
}

impl UpstreamPhases for AllowDeny {
    type Ctx = ();

    fn new_ctx(&self) {}

    async fn request_filter(&self, session: &mut Session<'_>, _ctx: &mut ()) -> Result<Flow> {
        if session.client().is_none() {
            return Ok(Flow::Continue);
        }
        self.rules.refresh().await;
        let address = session.remote_addr().map(|address| address.ip());
        match self.rules.now.load().verdict(address) {
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

/// What is configured, and what the file now says.
struct LiveRules {
    configured: Vec<(Network, Verdict)>,
    now: ArcSwap<Rules>,
    file: Option<RuleFile>,
}

/// The file, and when it was looked at.
struct RuleFile {
    path: PathBuf,
    seen: Mutex<Seen>,
}

struct Seen {
    stamp: Option<Stamp>,
    at: Instant,
}

/// Device, inode, length, and time of the last change: another file, or the same one written again, has another one.
type Stamp = (u64, u64, u64, i64, i64);

impl LiveRules {
    fn new(conf: AllowDenyConf) -> Result<Self, String> {
        let allow = conf.allow.into_iter().map(|network| (network, Verdict::Allow));
        let deny = conf.deny.into_iter().map(|network| (network, Verdict::Deny));
        let configured: Vec<_> = allow.chain(deny).collect();
        let (mut rules, mut file) = (configured.clone(), None);
        if let Some(path) = conf.file {
            let wrong = |error: io::Error| format!("a file that can be read as `file`: {}: {error}", path.display());
            // Whatever the working folder is later.
            let path = std::path::absolute(&path).map_err(wrong)?;
            let (stamp, text) = read(&path).map_err(wrong)?;
            rules.extend(parse(&text, &path)?);
            file = Some(RuleFile { path, seen: Mutex::new(Seen { stamp: Some(stamp), at: Instant::now() }) });
        }
        Ok(LiveRules { configured, now: ArcSwap::from_pointee(Rules::new(rules)), file })
    }

    /// Look at the file if it is time to; the request that finds it so waits for it, off the async threads.
    async fn refresh(self: &Arc<Self>) {
        let Some(file) = &self.file else { return };
        {
            let mut seen = file.seen.lock();
            if seen.at.elapsed() < CHECK_EVERY {
                return;
            }
            seen.at = Instant::now();
        }
        let rules = self.clone();
        if let Err(error) = tokio::task::spawn_blocking(move || rules.read_again()).await {
            log::error!("allow_deny: reading the file: {error}");
        }
    }

    fn read_again(&self) {
        let Some(file) = &self.file else { return };
        let stamp = fs::metadata(&file.path).ok().map(|metadata| stamp(&metadata));
        if std::mem::replace(&mut file.seen.lock().stamp, stamp) == stamp {
            return;
        }
        let path = file.path.display();
        let rules = match read(&file.path) {
            // If it has changed since, the next look will tell.
            Ok((_, text)) => parse(&text, &file.path),
            Err(error) => Err(format!("{path}: {error}")),
        };
        match rules {
            Ok(rules) => {
                log::info!("allow_deny: {path} has changed: {} rules", rules.len());
                RELOADS.with_label_values(&["success"]).inc();
                self.now.store(Arc::new(Rules::new(self.configured.iter().copied().chain(rules))));
            }
            Err(text) => {
                log::error!("allow_deny: {text}; what it said before stays in use");
                RELOADS.with_label_values(&["failure"]).inc();
            }
        }
    }
}

fn stamp(metadata: &fs::Metadata) -> Stamp {
    (metadata.dev(), metadata.ino(), metadata.len(), metadata.ctime(), metadata.ctime_nsec())
}

fn read(path: &Path) -> io::Result<(Stamp, String)> {
    let file = fs::File::open(path)?;
    let stamp = stamp(&file.metadata()?);
    Ok((stamp, io::read_to_string(file)?))
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
