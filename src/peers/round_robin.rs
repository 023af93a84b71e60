//! Smooth weighted round robin with nginx's failure counting (`ngx_http_upstream_get_peer`, `free_round_robin_peer`).

use crate::conf::Server;
use std::time::{Duration, Instant};

/// The balancing state of a group.
pub(super) struct RoundRobin {
    peers: Vec<Standing>,
}

struct Standing {
    weight: i64,
    /// Lowered by failures, grows back by one with each choice.
    effective_weight: i64,
    current_weight: i64,
    max_fails: u32,
    fail_timeout: Duration,
    fails: u32,
    /// The last failure, and the last time the peer was tried since.
    accessed: Option<Instant>,
    checked: Option<Instant>,
    backup: bool,
    down: bool,
}

impl RoundRobin {
    pub(super) fn new(servers: &[Server]) -> Self {
        // A peer without company is never rested: there is nothing better to try.
        let alone = servers.len() == 1;
        let peers = servers
            .iter()
            .map(|server| Standing {
                weight: i64::from(server.weight),
                effective_weight: i64::from(server.weight),
                current_weight: 0,
                max_fails: if alone { 0 } else { server.max_fails },
                fail_timeout: server.fail_timeout,
                fails: 0,
                accessed: None,
                checked: None,
                backup: server.backup,
                down: server.down,
            })
            .collect();
        RoundRobin { peers }
    }

    /// The next peer among those for which `free` holds: a primary one, or else a backup.
    pub(super) fn choose(&mut self, free: impl Fn(usize) -> bool) -> Option<usize> {
        self.choose_among(false, &free).or_else(|| self.choose_among(true, &free))
    }

    fn choose_among(&mut self, backup: bool, free: &impl Fn(usize) -> bool) -> Option<usize> {
        let mut total = 0;
        let mut best: Option<usize> = None;
        for index in 0..self.peers.len() {
            let peer = &mut self.peers[index];
            if peer.backup != backup || peer.down || peer.rests() || !free(index) {
                continue;
            }
            peer.current_weight += peer.effective_weight;
            total += peer.effective_weight;
            if peer.effective_weight < peer.weight {
                peer.effective_weight += 1;
            }
            if best.is_none_or(|best| self.peers[index].current_weight > self.peers[best].current_weight) {
                best = Some(index);
            }
        }
        let peer = &mut self.peers[best?];
        peer.current_weight -= total;
        if peer.checked.is_some_and(|checked| checked.elapsed() > peer.fail_timeout) {
            peer.checked = Some(Instant::now());
        }
        best
    }

    /// What an attempt at peer `index` came to.
    pub(super) fn report(&mut self, index: usize, failed: bool) {
        let peer = &mut self.peers[index];
        if failed {
            let now = Instant::now();
            peer.fails += 1;
            peer.accessed = Some(now);
            peer.checked = Some(now);
            if peer.max_fails > 0 {
                let loss = (peer.weight / i64::from(peer.max_fails)).max(1);
                peer.effective_weight = (peer.effective_weight - loss).max(0);
            }
        } else if peer.accessed < peer.checked {
            peer.fails = 0;
        }
    }

    /// May peer `index` be chosen, as far as its failures go?
    pub(super) fn is_up(&self, index: usize) -> bool {
        let peer = &self.peers[index];
        !peer.down && !peer.rests()
    }
}

impl Standing {
    fn rests(&self) -> bool {
        self.max_fails > 0
            && self.fails >= self.max_fails
            && self.checked.is_some_and(|checked| checked.elapsed() <= self.fail_timeout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conf::Address;

    fn group(weights: &[u32]) -> RoundRobin {
        let servers: Vec<_> = weights.iter().map(|weight| server(*weight)).collect();
        RoundRobin::new(&servers)
    }

    fn server(weight: u32) -> Server {
        Server {
            address: Address::Unix("/none".into()),
            name: "unix:/none".to_owned(),
            weight,
            max_fails: 1,
            fail_timeout: Duration::from_secs(10),
            max_conns: 0,
            backup: false,
            down: false,
        }
    }

    #[test]
    fn picks_are_spread_as_nginx_spreads_them() {
        let mut group = group(&[5, 1, 1]);
        let picks: Vec<_> = (0..7).filter_map(|_| group.choose(|_| true)).collect();
        assert_eq!(picks, [0, 0, 1, 0, 2, 0, 0]);
    }

    #[test]
    fn ten_thousand_picks_match_the_weights() {
        let mut group = group(&[5, 3, 2]);
        let mut picks = [0; 3];
        for _ in 0..10_000 {
            picks[group.choose(|_| true).unwrap()] += 1;
        }
        assert_eq!(picks, [5_000, 3_000, 2_000]);
    }

    #[test]
    fn a_failed_peer_rests_and_the_others_serve() {
        let mut group = group(&[1, 1]);
        group.report(0, true);
        assert!(!group.is_up(0));
        assert!((0..4).all(|_| group.choose(|_| true) == Some(1)));
    }

    #[test]
    fn a_peer_alone_is_never_rested() {
        let mut group = group(&[1]);
        group.report(0, true);
        assert_eq!(group.choose(|_| true), Some(0));
    }

    #[test]
    fn a_peer_is_tried_again_after_its_fail_timeout() {
        let mut servers = vec![server(1), server(1)];
        servers[0].fail_timeout = Duration::ZERO;
        let mut group = RoundRobin::new(&servers);
        group.report(0, true);
        let rested = Instant::now();
        while rested.elapsed().is_zero() {}
        assert!((0..2).any(|_| group.choose(|_| true) == Some(0)));
    }

    #[test]
    fn backups_serve_only_when_no_other_can() {
        let mut servers = vec![server(1), server(1)];
        servers[1].backup = true;
        let mut group = RoundRobin::new(&servers);
        assert_eq!(group.choose(|_| true), Some(0));
        group.report(0, true);
        assert_eq!(group.choose(|_| true), Some(1));
    }
}
