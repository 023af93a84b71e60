//! Two peers at random by their weights, and of them the one with fewer requests for its weight (nginx's `random two
//! least_conn`): nearly as even as `least_conn`, without all proxies running to the same idle peer.

use super::{Free, bears_less};
use crate::peers::member::Member;
use std::sync::Arc;
use std::time::Instant;

/// A peer that may be drawn.
#[derive(Clone, Copy)]
struct Lot {
    index: usize,
    active: u32,
    weight: i64,
}

pub(super) fn choose(members: &[Arc<Member>], free: &Free<'_>, now: Instant) -> Option<usize> {
    let mut lots: Vec<_> = members
        .iter()
        .enumerate()
        .filter(|(_, member)| free(member))
        .map(|(index, member)| {
            let weight = member.standing().capacity(&member.rules, now);
            Lot { index, active: member.active(), weight }
        })
        .collect();
    let first = draw(&mut lots)?;
    let Some(second) = draw(&mut lots) else { return Some(first.index) };
    let second_is_better = bears_less((second.active, second.weight), (first.active, first.weight));
    Some(if second_is_better { second.index } else { first.index })
}

/// Take one out.
fn draw(lots: &mut Vec<Lot>) -> Option<Lot> {
    let total: i64 = lots.iter().map(|lot| lot.weight).sum();
    if total <= 0 {
        return None;
    }
    let mut point = fastrand::i64(0..total);
    let drawn = lots.iter().position(|lot| {
        point -= lot.weight;
        point < 0
    })?;
    Some(lots.swap_remove(drawn))
}
