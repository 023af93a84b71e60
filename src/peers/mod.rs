//! Upstream groups: which peer is tried next, and what is remembered of its failures.
//!
//! The rules are those of nginx's `ngx_http_upstream_round_robin`: smooth weighted round robin, `max_fails` within
//! `fail_timeout`, backups only when no other peer can serve. pingora-load-balancing has no passive failure counting, no
//! backups and no `max_conns`, so it is not used for this.

pub(crate) mod cert;
mod peer;
mod pool;
mod round_robin;

pub use peer::Peer;

use crate::conf;
use crate::error::{Error, ErrorKind, Result};
use crate::metrics::UpstreamMetrics;
use parking_lot::Mutex;
use peer::Connectors;
use pool::Pool;
use round_robin::RoundRobin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// A named group of peers with its connections and settings.
pub struct Upstream {
    pub(crate) conf: conf::Upstream,
    pub(crate) connectors: Connectors,
    pub(crate) pool: Pool,
    pub(crate) metrics: UpstreamMetrics,
    members: Vec<Member>,
    balance: Mutex<RoundRobin>,
}

struct Member {
    peer: Peer,
    max_conns: u32,
    /// Attempts that hold a connection to it.
    active: AtomicU32,
}

/// The peer of one attempt. Dropping it gives its place under `max_conns` back.
pub(crate) struct Chosen {
    pub(crate) peer: Peer,
    /// Its place in the group; `None` for a peer that a filter named.
    member: Option<(Arc<Upstream>, usize)>,
}

impl Upstream {
    /// Make the connectors of a group and read its certificates.
    ///
    /// # Errors
    /// A certificate, key or CA file cannot be read; the text says which.
    pub fn new(conf: conf::Upstream) -> Result<Self, String> {
        let connectors = Connectors::new(&conf)?;
        let members = conf
            .servers
            .iter()
            .map(|server| Member {
                peer: connectors.peer(&server.address, &server.name),
                max_conns: server.max_conns,
                active: AtomicU32::new(0),
            })
            .collect::<Vec<_>>();
        let metrics = UpstreamMetrics::new(&conf.name, members.iter().map(|member| member.peer.name()));
        let balance = Mutex::new(RoundRobin::new(&conf.servers));
        let pool = Pool::new(conf.keepalive.connections, conf.keepalive.timeout, metrics.idle());
        let upstream = Upstream { connectors, pool, metrics, members, balance, conf };
        upstream.show_peers();
        Ok(upstream)
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

    /// The peers and how they stand, for the operator.
    pub(crate) fn status(&self) -> serde_json::Value {
        let balance = self.balance.lock();
        let peers: Vec<_> = self
            .members
            .iter()
            .enumerate()
            .map(|(index, member)| {
                serde_json::json!({
                    "address": &**member.peer.name(),
                    "up": balance.is_up(index),
                    "active": member.active.load(Ordering::Relaxed),
                })
            })
            .collect();
        serde_json::json!({ "peers": peers })
    }

    /// What metrics say of the peers. Called now and then, since a peer's rest ends without an event.
    pub(crate) fn show_peers(&self) {
        let balance = self.balance.lock();
        (0..self.members.len()).for_each(|index| self.metrics.peer_up(index, balance.is_up(index)));
    }

    /// How many peers may be tried for one request at the most.
    pub(crate) fn tries(&self) -> u32 {
        self.conf.servers.iter().filter(|server| !server.down).count() as u32
    }

    /// Choose a peer that is not among `tried`.
    ///
    /// # Errors
    /// [`ErrorKind::NoLivePeer`] when every peer is down, resting, full or tried.
    pub(crate) fn choose(self: &Arc<Self>, tried: &[usize]) -> Result<Chosen> {
        let full = |index: usize| {
            let member = &self.members[index];
            member.max_conns > 0 && member.active.load(Ordering::Relaxed) >= member.max_conns
        };
        // Locked until the place is taken: two threads must not both find the last one free.
        let mut balance = self.balance.lock();
        let index = balance
            .choose(|index| !tried.contains(&index) && !full(index))
            .ok_or_else(|| Error::new(ErrorKind::NoLivePeer, format!("upstream {}: no live peer", self.name())))?;
        self.members[index].active.fetch_add(1, Ordering::Relaxed);
        self.metrics.active(1);
        Ok(Chosen { peer: self.members[index].peer.clone(), member: Some((self.clone(), index)) })
    }
}

impl Chosen {
    /// A peer that a filter named.
    pub(crate) fn named(peer: Peer) -> Self {
        Chosen { peer, member: None }
    }

    /// Its index, to be left out by the next choice.
    pub(crate) fn index(&self) -> Option<usize> {
        self.member.as_ref().map(|(_, index)| *index)
    }

    /// Remember a failure (or, with `false`, a success) of this peer.
    pub(crate) fn report(&self, failed: bool) {
        let Some((upstream, index)) = &self.member else { return };
        let mut balance = upstream.balance.lock();
        balance.report(*index, failed);
        upstream.metrics.peer_up(*index, balance.is_up(*index));
    }
}

impl Drop for Chosen {
    fn drop(&mut self) {
        if let Some((upstream, index)) = &self.member {
            upstream.members[*index].active.fetch_sub(1, Ordering::Relaxed);
            upstream.metrics.active(-1);
        }
    }
}
