//! By the value of `hash_key` on a ring of 160 points for each unit of weight, nginx's `hash … consistent`
//! (`ngx_http_upstream_get_chash_peer`), which is ketama's: when a peer comes or goes, only its own keys move.

use super::Free;
use crate::peers::member::Member;
use pingora_core::protocols::l4::socket::SocketAddr as PeerAddress;
use pingora_ketama::{Bucket, Continuum};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;

/// The points of a group's primary peers.
pub(crate) struct Ring {
    points: Continuum,
    members: HashMap<SocketAddr, usize>,
}

impl Ring {
    pub(super) fn new(members: &[Arc<Member>]) -> Self {
        let mut places = HashMap::new();
        let mut buckets = Vec::new();
        for (index, member) in members.iter().enumerate().filter(|(_, member)| !member.backup) {
            let place = place(member.peer.address());
            // An address that is listed twice has the points of its first place.
            if let Entry::Vacant(vacant) = places.entry(place) {
                vacant.insert(index);
                buckets.push(Bucket::new(place, u32::try_from(member.rules.weight).unwrap_or(1).max(1)));
            }
        }
        Ring { points: Continuum::new(&buckets), members: places }
    }

    /// The first free peer from the key's point on.
    pub(super) fn choose(&self, members: &[Arc<Member>], key: &str, free: &Free<'_>) -> Option<usize> {
        let mut refused = Vec::new();
        for place in self.points.node_iter(key.as_bytes()) {
            let index = *self.members.get(place)?;
            if refused.contains(&index) {
                continue;
            }
            if free(members.get(index)?) {
                return Some(index);
            }
            refused.push(index);
            if refused.len() == self.members.len() {
                break;
            }
        }
        None
    }
}

/// The ring knows Internet addresses only: a Unix socket is given one that depends on nothing but its path.
fn place(address: &PeerAddress) -> SocketAddr {
    match address {
        PeerAddress::Inet(address) => *address,
        PeerAddress::Unix(address) => {
            let mut hasher = DefaultHasher::new();
            address.as_pathname().hash(&mut hasher);
            SocketAddr::from((Ipv6Addr::from_bits(u128::from(hasher.finish())), 0))
        }
    }
}
