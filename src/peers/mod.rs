//! Upstream groups: which peer is tried next, and what is remembered of each.
//!
//! ```text
//! Upstream    a group by its name: settings, connectors, pool, and the peers as they are now
//! group       those peers; another group takes its place when they change
//! member      one peer in its group, and what outlives a reload
//! standing    failures, health, weight: nginx's rules
//! balance     how the next peer is chosen
//! pool        idle connections
//! discovery   where named servers are now
//! health      asking the peers now and then how they are; probe: one such question
//! ```

mod balance;
pub(crate) mod cert;
pub(crate) mod discovery;
mod group;
pub(crate) mod health;
mod member;
mod peer;
pub(crate) mod pool;
mod probe;
mod standing;

pub(crate) use member::{Member, State};
pub use peer::Peer;
pub(crate) use standing::Health;

use crate::conf;
use crate::error::{Error, ErrorKind, Result};
use crate::metrics::UpstreamMetrics;
use crate::paths::Decoded;
use crate::session::Session;
use arc_swap::ArcSwap;
use balance::Key;
use group::{Addresses, Group};
use parking_lot::Mutex;
use peer::Connectors;
use pingora_core::server::configuration::ServerConf;
use pingora_core::upstreams::peer::Peer as _;
use pool::Pool;
use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::Notify;

/// A named group of peers with its connections and settings.
pub struct Upstream {
    pub(crate) conf: conf::Upstream,
    pub(crate) connectors: Arc<Connectors>,
    pub(crate) pool: Arc<Pool>,
    pub(crate) metrics: UpstreamMetrics,
    /// Where the peers are now. Locked while the group is made anew.
    addresses: Mutex<Addresses>,
    group: ArcSwap<Group>,
    /// Another group has taken the place of the last one. For the health checks.
    group_changed: Notify,
}

/// The peer of one attempt. Dropping it gives its place under `max_conns` back.
pub(crate) struct Chosen {
    pub(crate) peer: Peer,
    /// Its place in the group; `None` for a peer that a filter named.
    member: Option<(Arc<Upstream>, Arc<Member>)>,
}

impl Upstream {
    /// Make the connectors of a group and read its certificates. Peers that the group had `before` keep what is known
    /// of them, and their connections if these are made in the same way. Nothing changes for them until it
    /// [begins](Self::begin).
    ///
    /// # Errors
    /// A certificate, key or CA file cannot be read; the text says which.
    pub(crate) fn new(conf: conf::Upstream, server: &ServerConf, before: Option<&Upstream>) -> Result<Self, String> {
        let inherited = before.filter(|before| same_connections(&before.conf, &conf));
        let metrics = UpstreamMetrics::new(&conf.name, conf.servers.iter().map(|server| server.name.as_str()));
        let (connectors, pool) = match inherited {
            Some(before) => (before.connectors.clone(), before.pool.clone()),
            None => (Arc::new(Connectors::new(&conf, server)?), Arc::new(Pool::new(conf.keepalive, metrics.idle()))),
        };
        let addresses = conf.servers.iter().map(|server| server.addresses.clone()).collect();
        let group_before = before.map(|before| before.group.load_full());
        let group = Group::new(&conf, &addresses, &connectors, group_before.as_deref());
        Ok(Upstream {
            connectors,
            pool,
            metrics,
            addresses: Mutex::new(addresses),
            group: ArcSwap::from_pointee(group),
            group_changed: Notify::new(),
            conf,
        })
    }

    /// It is in use from now on.
    pub(crate) fn begin(&self) {
        self.pool.configure(self.conf.keepalive);
        for member in self.group.load().members() {
            member.begin();
            if self.conf.health_check.is_none() {
                // It may have been asked for before; nobody would ever find that the peer is well again.
                member.set_health(Health::Unchecked);
            }
        }
        self.show_peers();
    }

    /// Another upstream has taken this one's place, or nothing has: what only it holds is let go of. Requests in flight
    /// go on.
    pub(crate) fn retire(&self, successor: Option<&Upstream>) {
        // A lookup that is under way finds no place for its answer: the pool is the successor's.
        self.addresses.lock().clear();
        match successor {
            Some(successor) if Arc::ptr_eq(&self.pool, &successor.pool) => successor.close_unused(&self.group()),
            _ => self.pool.shut(),
        }
        let stays = |name: &str| {
            successor.is_some_and(|successor| successor.conf.servers.iter().any(|server| server.name == name))
        };
        self.metrics.forget_peers(|name| !stays(name));
    }

    /// The group's name in the configuration; a metrics label.
    pub fn name(&self) -> &str {
        &self.conf.name
    }

    /// A peer that is not in the group, reached with the group's settings (TLS, HTTP version, pool).
    ///
    /// # Errors
    /// `address` is neither `IP:PORT` nor `unix:PATH`.
    pub fn peer(&self, address: &str) -> Result<Peer> {
        let parsed = address.parse::<conf::Address>().map_err(|error| {
            Error::new(ErrorKind::Internal, format!("a peer's address: found {address:?}, {error}"))
        })?;
        Ok(self.connectors.peer(&parsed, address))
    }

    /// What names the upstream to `peer`, as a `Host`: its TLS name, else the peer's name, else (a Unix socket)
    /// `localhost`.
    pub(crate) fn host(&self, peer: &Peer) -> String {
        match &self.conf.tls {
            Some(tls) if !tls.server_name.is_empty() => tls.server_name.clone(),
            _ if peer.name().starts_with("unix:") => "localhost".to_owned(),
            _ => peer.name().to_string(),
        }
    }

    /// The peers as they are now.
    pub(crate) fn group(&self) -> Arc<Group> {
        self.group.load_full()
    }

    /// The name of the entry `server` has these addresses now. Peers that stay keep what is known of them.
    pub(crate) fn set_addresses(&self, server: usize, found: Vec<SocketAddr>) {
        let found: Vec<_> = found.into_iter().map(conf::Address::Inet).collect();
        let now: Vec<String> = found.iter().map(ToString::to_string).collect();
        let mut addresses = self.addresses.lock();
        match addresses.get_mut(server) {
            Some(known) if *known != found => *known = found,
            _ => return,
        }
        let before = self.group.load_full();
        self.group.store(Arc::new(Group::new(&self.conf, &addresses, &self.connectors, Some(&before))));
        self.group_changed.notify_one();
        self.close_unused(&before);
        drop(addresses);
        self.show_peers();
        log::info!("upstream {}: {} is now at {}", self.name(), self.conf.servers[server].name, now.join(", "));
    }

    /// Close the idle connections to peers that are not to be used, or were in the group `before` and are no more.
    fn close_unused(&self, before: &Group) {
        let keys = |group: &Group, used: bool| -> HashSet<u64> {
            let members = group.members().iter().filter(|member| !used || member.state() == State::Up);
            members.map(|member| member.peer.reuse_hash()).collect()
        };
        let group = self.group.load();
        let known = &keys(before, false) | &keys(&group, false);
        self.pool.close(&known - &keys(&group, true));
    }

    /// The operator wants this of the peers with that address or name, or of all of them. Says how many these are. What
    /// is wanted of a name is also wanted of addresses that it gets later.
    pub(crate) fn set_state(&self, peer: Option<&str>, state: State) -> usize {
        // No other group is made meanwhile, whose new peers would miss it.
        let addresses = self.addresses.lock();
        let group = self.group.load();
        let mut found = 0;
        for member in group.named(peer) {
            found += 1;
            let of_server = peer.is_none_or(|peer| peer == &**member.peer.name());
            if member.set_state(state, of_server) {
                log::info!("upstream {}: peer {} is set to {state:?}", self.name(), member.peer);
            }
        }
        drop(addresses);
        if found > 0 {
            self.close_unused(&group);
            self.show_peers();
        }
        found
    }

    /// A verdict of the health checks. `true` if it is news.
    pub(crate) fn set_health(&self, member: &Member, health: Health) -> bool {
        let changed = member.set_health(health);
        if changed {
            self.show_server(member.server);
        }
        changed
    }

    /// The peers and how they stand, for the operator.
    pub(crate) fn status(&self) -> serde_json::Value {
        let now = Instant::now();
        let peers: Vec<_> = self.group.load().members().iter().map(|member| member.status(now)).collect();
        serde_json::json!({ "balance": self.conf.balance, "idle": self.pool.len(), "peers": peers })
    }

    /// What metrics say of the peers. Called now and then, since a peer's rest ends without an event.
    pub(crate) fn show_peers(&self) {
        (0..self.conf.servers.len()).for_each(|server| self.show_server(server));
    }

    /// A name is up while one of its addresses is; so is an entry that is listed twice.
    fn show_server(&self, server: usize) {
        let now = Instant::now();
        let name = &self.conf.servers[server].name;
        let up = self.group.load().members().iter().any(|member| **member.peer.name() == **name && member.is_up(now));
        self.metrics.peer_up(server, up);
    }

    /// How many peers may be tried for one request at the most.
    pub(crate) fn tries(&self) -> u32 {
        self.group.load().members().iter().filter(|member| member.state() == State::Up).count() as u32
    }

    /// What the choice for this request goes by.
    fn key(&self, session: &Session<'_>) -> Key {
        match (self.conf.balance, &self.conf.hash_key) {
            (conf::Balance::Hash, Some(key)) => Key::Text(key.render(&Decoded(session)).into_owned()),
            (conf::Balance::IpHash, _) => Key::Address(session.remote_addr().map(|address| address.ip())),
            _ => Key::None,
        }
    }

    /// Choose a peer that is not among `tried`.
    ///
    /// # Errors
    /// [`ErrorKind::NoLivePeer`] when every peer is down, resting, full or tried.
    pub(crate) fn choose(self: &Arc<Self>, tried: &[Arc<Member>], session: &Session<'_>) -> Result<Chosen> {
        let key = self.key(session);
        let group = self.group.load();
        let member = group
            .choose(tried, &key)
            .ok_or_else(|| Error::new(ErrorKind::NoLivePeer, format!("upstream {}: no live peer", self.name())))?;
        self.metrics.active(1);
        Ok(Chosen { peer: member.peer.clone(), member: Some((self.clone(), member.clone())) })
    }
}

/// Would the two make the same connections to a peer?
fn same_connections(a: &conf::Upstream, b: &conf::Upstream) -> bool {
    let made =
        |conf: &conf::Upstream| (conf.http_version, conf.http2, conf.keepalive.connections > 0, conf.keepalive.timeout);
    made(a) == made(b) && a.protocol == b.protocol && a.tls == b.tls
}

impl Chosen {
    /// A peer that a filter named.
    pub(crate) fn named(peer: Peer) -> Self {
        Chosen { peer, member: None }
    }

    /// Its place in the group, to be left out by the next choice.
    pub(crate) fn member(&self) -> Option<&Arc<Member>> {
        self.member.as_ref().map(|(_, member)| member)
    }

    /// Remember a failure (or, with `false`, a success) of this peer.
    pub(crate) fn report(&self, failed: bool) {
        let Some((upstream, member)) = &self.member else { return };
        let mut standing = member.standing();
        let changed = match failed {
            true => {
                standing.fail(&member.rules);
                true
            }
            false => standing.succeed(&member.rules),
        };
        drop(standing);
        if changed {
            upstream.show_server(member.server);
        }
    }
}

impl Drop for Chosen {
    fn drop(&mut self) {
        if let Some((upstream, member)) = &self.member {
            member.leave();
            upstream.metrics.active(-1);
        }
    }
}
