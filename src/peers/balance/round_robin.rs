//! Smooth weighted round robin (`ngx_http_upstream_get_peer`).

use super::Free;
use crate::peers::member::Member;
use std::sync::Arc;
use std::time::Instant;

/// Each free peer earns its weight, the one with the most credit pays for all.
pub(super) fn choose(members: &[Arc<Member>], free: &Free<'_>, now: Instant) -> Option<usize> {
    let mut total = 0;
    let mut best: Option<(usize, i64)> = None;
    for (index, member) in members.iter().enumerate().filter(|(_, member)| free(member)) {
        let mut standing = member.standing();
        let weight = standing.weight(&member.rules, now);
        standing.recover();
        standing.current_weight += weight;
        total += weight;
        if best.is_none_or(|(_, most)| standing.current_weight > most) {
            best = Some((index, standing.current_weight));
        }
    }
    let (index, _) = best?;
    members[index].standing().current_weight -= total;
    Some(index)
}
