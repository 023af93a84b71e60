//! The peer with the fewest requests for its weight (`ngx_http_upstream_get_least_conn_peer`).

use super::{Free, bears_less, round_robin};
use crate::peers::member::Member;
use std::sync::Arc;
use std::time::Instant;

/// Several that bear as little take turns by round robin.
pub(super) fn choose(members: &[Arc<Member>], free: &Free<'_>, now: Instant) -> Option<usize> {
    // Looked at once: the requests of other threads end meanwhile.
    let burdens: Vec<_> = members.iter().map(|member| free(member).then(|| burden(member, now))).collect();
    let least = burdens.iter().flatten().copied().reduce(|a, b| if bears_less(b, a) { b } else { a })?;
    let mut bears_least = burdens.iter().enumerate().filter_map(|(index, burden)| {
        let burden = (*burden)?;
        (!bears_less(least, burden)).then_some(index)
    });
    let first = bears_least.next()?;
    let others: Vec<_> = bears_least.collect();
    if others.is_empty() {
        return Some(first);
    }
    let candidates: Vec<_> = std::iter::once(first).chain(others).collect();
    let members: Vec<_> = candidates.iter().map(|index| members[*index].clone()).collect();
    round_robin::choose(&members, &|_| true, now).and_then(|turn| candidates.get(turn).copied())
}

fn burden(member: &Member, now: Instant) -> (u32, i64) {
    (member.active(), member.standing().capacity(&member.rules, now))
}
