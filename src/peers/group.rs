//! [`Group`]: the peers of an upstream as they are now, and the choice among them. A group never changes; when its peers
//! do (a reload, an answer of DNS), another takes its place, and peers that stay keep their [`Record`](super::member).

use super::balance::{Balancer, Key};
use super::member::Member;
use super::peer::Connectors;
use crate::conf;
use parking_lot::Mutex;
use std::cell::LazyCell;
use std::sync::Arc;
use std::time::Instant;

pub(crate) struct Group {
    members: Vec<Arc<Member>>,
    balancer: Balancer,
    /// Held from the look at the peers until the chosen one is taken: two threads must not both find its last place free.
    choosing: Mutex<()>,
}

/// Where the peers of a group are: for each entry of `servers` its addresses.
pub(super) type Addresses = Vec<Vec<conf::Address>>;

impl Group {
    /// The peers of `conf` at `addresses`; those that were in the group `before` continue.
    pub(super) fn new(
        conf: &conf::Upstream,
        addresses: &Addresses,
        connectors: &Connectors,
        before: Option<&Group>,
    ) -> Self {
        let alone = addresses.iter().map(Vec::len).sum::<usize>() == 1;
        let mut known: Vec<_> = before.map(|before| before.members.iter().collect()).unwrap_or_default();
        let mut members = Vec::new();
        for (index, (server, addresses)) in conf.servers.iter().zip(addresses).enumerate() {
            for address in addresses {
                let peer = connectors.peer(address, &server.name);
                let mut member = Member::new(peer, index, server, alone);
                let same = |known: &&Arc<Member>| known.peer.is_same(&member.peer);
                match (known.iter().position(same).map(|place| known.swap_remove(place)), before) {
                    (Some(known), _) => member.continues(known),
                    (None, Some(before)) => member.joins(&before.members),
                    (None, None) => {}
                }
                members.push(Arc::new(member));
            }
        }
        let balancer = Balancer::new(conf.balance, &members);
        Group { members, balancer, choosing: Mutex::new(()) }
    }

    pub(crate) fn members(&self) -> &[Arc<Member>] {
        &self.members
    }

    /// Take a peer that is not among `tried`: a primary one, or else a backup. It is to be [left](Member::leave) again.
    pub(super) fn choose(&self, tried: &[Arc<Member>], key: &Key) -> Option<&Arc<Member>> {
        let now = LazyCell::new(Instant::now);
        let free = |member: &Member| member.is_free(*now) && !tried.iter().any(|tried| tried.is(member));
        let _choosing = self.choosing.lock();
        let index = self.balancer.choose(&self.members, key, &free, *now)?;
        let member = self.members.get(index)?;
        member.standing().chosen(&member.rules, *now);
        member.enter();
        Some(member)
    }

    /// The peers with this address, or this name in the configuration; all of them without one.
    pub(super) fn named<'a>(&'a self, name: Option<&'a str>) -> impl Iterator<Item = &'a Arc<Member>> {
        self.members.iter().filter(move |member| {
            name.is_none_or(|name| name == &**member.peer.name() || name == &**member.peer.address_text())
        })
    }
}
