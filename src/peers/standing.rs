//! [`Standing`]: what is known of one peer, nginx's `ngx_http_upstream_rr_peer_t`: its failures, its health, its weight.

use std::time::{Duration, Instant};

/// Weights are counted in so many parts of one, so that they can grow slowly.
pub(super) const PARTS: i64 = 1000;

/// The settings that a peer's standing is judged by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    pub(super) weight: i64,
    /// 0: it is never rested.
    pub(super) max_fails: u32,
    pub(super) fail_timeout: Duration,
    pub(super) slow_start: Duration,
}

/// What the health checks have found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Health {
    /// There was no verdict yet, or nobody asks.
    #[default]
    Unchecked,
    Up,
    Down,
}

/// What is remembered of a peer from one request to the next.
#[derive(Debug, Default)]
pub(super) struct Standing {
    /// Weight that failures have cost; one comes back with each choice.
    lost: i64,
    /// Smooth weighted round robin's credit, in [`PARTS`].
    pub(super) current_weight: i64,
    fails: u32,
    /// The last failure.
    accessed: Option<Instant>,
    /// The same, or the last time it was tried since.
    checked: Option<Instant>,
    health: Health,
    /// It serves (again) since then; `None`: from the start.
    serves_since: Option<Instant>,
}

impl Standing {
    /// It has served so badly that it is left alone for a while.
    fn rests(&self, rules: &Rules, now: Instant) -> bool {
        rules.max_fails > 0
            && self.fails >= rules.max_fails
            && self.checked.is_some_and(|checked| now.saturating_duration_since(checked) <= rules.fail_timeout)
    }

    /// May it be chosen, as far as its failures and its health go?
    pub(super) fn is_up(&self, rules: &Rules, now: Instant) -> bool {
        self.health != Health::Down && !self.rests(rules, now)
    }

    pub(super) fn fails(&self) -> u32 {
        self.fails
    }

    pub(super) fn health(&self) -> Health {
        self.health
    }

    /// Its weight now, in [`PARTS`]: less after failures, and at first in its slow start.
    pub(super) fn weight(&self, rules: &Rules, now: Instant) -> i64 {
        self.grown((rules.weight - self.lost).max(0) * PARTS, rules, now)
    }

    /// What its requests are measured by: the same without regard to failures, and at least one part.
    pub(super) fn capacity(&self, rules: &Rules, now: Instant) -> i64 {
        self.grown(rules.weight * PARTS, rules, now).max(1)
    }

    /// What there is of `weight` in a slow start.
    fn grown(&self, weight: i64, rules: &Rules, now: Instant) -> i64 {
        match self.serves_since {
            Some(since) if !rules.slow_start.is_zero() => {
                let share = now.saturating_duration_since(since).as_secs_f64() / rules.slow_start.as_secs_f64();
                if share < 1.0 { ((weight as f64 * share) as i64).max(1) } else { weight }
            }
            _ => weight,
        }
    }

    /// It was looked at in a choice: its weight recovers.
    pub(super) fn recover(&mut self) {
        self.lost = (self.lost - 1).max(0);
    }

    /// It was chosen: nobody else is to try a peer that has only just rested.
    pub(super) fn chosen(&mut self, rules: &Rules, now: Instant) {
        if self.checked.is_some_and(|checked| now.saturating_duration_since(checked) > rules.fail_timeout) {
            self.checked = Some(now);
        }
    }

    /// An attempt has failed.
    pub(super) fn fail(&mut self, rules: &Rules) {
        let now = Instant::now();
        self.fails = self.fails.saturating_add(1);
        self.accessed = Some(now);
        self.checked = Some(now);
        if rules.max_fails > 0 {
            let loss = (rules.weight / i64::from(rules.max_fails)).max(1);
            self.lost = (self.lost + loss).min(rules.weight);
        }
    }

    /// An attempt has succeeded. `true` if that ended a rest.
    pub(super) fn succeed(&mut self, rules: &Rules) -> bool {
        if self.fails == 0 || self.accessed >= self.checked {
            return false;
        }
        let rested = rules.max_fails > 0 && self.fails >= rules.max_fails;
        self.fails = 0;
        if rested {
            self.serves_again();
        }
        rested
    }

    /// A verdict of the health checks. `true` if it is another one than before.
    pub(super) fn set_health(&mut self, health: Health) -> bool {
        let before = std::mem::replace(&mut self.health, health);
        if before == Health::Down && health == Health::Up {
            // What requests have found out since counts for less than the check.
            self.fails = 0;
            self.serves_again();
        }
        before != health
    }

    /// From now on it serves: the slow start begins.
    pub(super) fn serves_again(&mut self) {
        self.serves_since = Some(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: Rules =
        Rules { weight: 10, max_fails: 2, fail_timeout: Duration::from_secs(10), slow_start: Duration::from_secs(100) };

    #[test]
    fn so_many_failures_rest_a_peer_for_its_fail_timeout() {
        let mut peer = Standing::default();
        peer.fail(&RULES);
        assert!(peer.is_up(&RULES, Instant::now()));
        peer.fail(&RULES);
        let now = Instant::now();
        assert!(!peer.is_up(&RULES, now));
        assert!(!peer.is_up(&RULES, now + Duration::from_secs(9)));
        assert!(peer.is_up(&RULES, now + Duration::from_secs(11)));
    }

    #[test]
    fn one_request_tries_a_peer_that_has_rested() {
        let mut peer = Standing::default();
        peer.fail(&RULES);
        peer.fail(&RULES);
        let later = Instant::now() + Duration::from_secs(11);
        peer.chosen(&RULES, later);
        assert!(!peer.is_up(&RULES, later));
        assert!(peer.succeed(&RULES));
        assert!(peer.is_up(&RULES, later));
    }

    #[test]
    fn a_success_forgets_failures_only_after_the_fail_timeout() {
        let mut peer = Standing::default();
        peer.fail(&RULES);
        peer.succeed(&RULES);
        peer.fail(&RULES);
        assert!(!peer.is_up(&RULES, Instant::now()));
    }

    #[test]
    fn failures_cost_weight_that_comes_back() {
        let mut peer = Standing::default();
        let now = Instant::now();
        peer.fail(&RULES);
        assert_eq!(peer.weight(&RULES, now), 5 * PARTS);
        (0..5).for_each(|_| peer.recover());
        assert_eq!(peer.weight(&RULES, now), 10 * PARTS);
    }

    #[test]
    fn weight_grows_evenly_in_the_slow_start() {
        let mut peer = Standing::default();
        peer.serves_again();
        let since = peer.serves_since.unwrap();
        assert_eq!(peer.weight(&RULES, since), 1);
        assert_eq!(peer.weight(&RULES, since + Duration::from_secs(50)), 5 * PARTS);
        assert_eq!(peer.weight(&RULES, since + Duration::from_secs(100)), 10 * PARTS);
    }

    #[test]
    fn an_unhealthy_peer_starts_slowly_when_it_is_healthy_again() {
        let mut peer = Standing::default();
        assert!(peer.set_health(Health::Down));
        assert!(!peer.is_up(&RULES, Instant::now()));
        assert!(peer.set_health(Health::Up));
        assert!(peer.is_up(&RULES, Instant::now()));
        assert!(peer.weight(&RULES, Instant::now()) < PARTS);
        assert!(!peer.set_health(Health::Up));
    }
}
