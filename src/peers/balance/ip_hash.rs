//! By the client's address, with nginx's own numbers (`ngx_http_upstream_get_ip_hash_peer`): the same client goes to the
//! same peer as behind nginx, as long as the peers are listed in the same order.

use super::Free;
use crate::peers::member::Member;
use std::net::IpAddr;
use std::sync::Arc;

/// So often another peer is looked for before the choice goes on by round robin.
const TRIES: usize = 20;

/// The first three octets of an IPv4 address decide, the whole of an IPv6 address; all clients of a Unix socket are one.
/// Peers that cannot be chosen keep their clients, who come back when the peer does.
pub(super) fn choose(members: &[Arc<Member>], address: Option<IpAddr>, free: &Free<'_>) -> Option<usize> {
    let octets = match address {
        Some(IpAddr::V4(address)) => address.octets()[..3].to_vec(),
        Some(IpAddr::V6(address)) => address.octets().to_vec(),
        None => vec![0; 3],
    };
    let primary: Vec<_> = members.iter().enumerate().filter(|(_, member)| !member.backup).collect();
    let total: i64 = primary.iter().map(|(_, member)| member.rules.weight).sum();
    let mut hash: i64 = 89;
    for _ in 0..TRIES {
        hash = octets.iter().fold(hash, |hash, octet| (hash * 113 + i64::from(*octet)) % 6271);
        let mut point = hash.checked_rem(total)?;
        let (index, member) = primary.iter().find(|(_, member)| {
            point -= member.rules.weight;
            point < 0
        })?;
        if free(member) {
            return Some(*index);
        }
    }
    None
}
