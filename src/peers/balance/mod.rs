//! How the next peer is chosen, each way in nginx's manner: `ngx_http_upstream_round_robin`, `least_conn`, `random two`,
//! `ip_hash` and `hash … consistent`.
//!
//! pingora-load-balancing chooses among plain addresses: it knows no failures, no backups, no `max_conns`, no weights
//! that change, so only its ring is used here (pingora-ketama, which is nginx's). Backups serve only when no other peer
//! can, and are always chosen by round robin.

mod hash;
mod ip_hash;
mod least_conn;
mod random;
mod round_robin;

use super::member::Member;
use crate::conf;
use hash::Ring;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

/// What a choice goes by, beside the peers themselves.
#[derive(Debug)]
pub(crate) enum Key {
    /// Nothing.
    None,
    /// The client's address, if it has one.
    Address(Option<IpAddr>),
    /// The value of `hash_key`.
    Text(String),
}

/// The way of one group.
pub(super) enum Balancer {
    RoundRobin,
    LeastConn,
    Random,
    IpHash,
    Hash(Ring),
}

/// May a peer be chosen?
type Free<'a> = dyn Fn(&Member) -> bool + 'a;

impl Balancer {
    pub(super) fn new(balance: conf::Balance, members: &[Arc<Member>]) -> Self {
        match balance {
            conf::Balance::RoundRobin => Balancer::RoundRobin,
            conf::Balance::LeastConn => Balancer::LeastConn,
            conf::Balance::Random => Balancer::Random,
            conf::Balance::IpHash => Balancer::IpHash,
            conf::Balance::Hash => Balancer::Hash(Ring::new(members)),
        }
    }

    /// The index of a peer for which `free` holds.
    pub(super) fn choose(&self, members: &[Arc<Member>], key: &Key, free: &Free<'_>, now: Instant) -> Option<usize> {
        let primary = |member: &Member| !member.backup && free(member);
        let backup = |member: &Member| member.backup && free(member);
        let chosen = match (self, key) {
            (Balancer::LeastConn, _) => least_conn::choose(members, &primary, now),
            (Balancer::Random, _) => random::choose(members, &primary, now),
            (Balancer::IpHash, Key::Address(address)) => ip_hash::choose(members, *address, &primary),
            (Balancer::Hash(ring), Key::Text(key)) => ring.choose(members, key, &primary),
            _ => None,
        };
        chosen
            .or_else(|| round_robin::choose(members, &primary, now))
            .or_else(|| round_robin::choose(members, &backup, now))
    }
}

/// Does `a` with its weight bear less than `b` with its own? Each is the number of requests, and the weight.
fn bears_less(a: (u32, i64), b: (u32, i64)) -> bool {
    i128::from(a.0) * i128::from(b.1) < i128::from(b.0) * i128::from(a.1)
}

#[cfg(test)]
mod tests;
