//! The peer with the fewest requests for its weight (`ngx_http_upstream_get_least_conn_peer`).

use super::{Free, bears_less, round_robin};
use crate::peers::member::Member;
use std::sync::Arc;
use std::time::Instant;

/// Several that bear as little take turns by round robin.
pub(super) fn choose(members: &[Arc<Member>], free: &Free<'_>, now: Instant) -> Option<usize> {
    let burdens = members.iter().filter(|member| free(member)).map(|member| burden(member, now));
    let least = burdens.reduce(|a, b| if bears_less(b, a) { b } else { a })?;
    // Requests of other threads may end meanwhile, and begin only after this choice: nobody bears more than just now.
    round_robin::choose(members, &|member| free(member) && !bears_less(least, burden(member, now)), now)
}

fn burden(member: &Member, now: Instant) -> (u32, i64) {
    (member.active(), member.standing().capacity(&member.rules, now))
}
