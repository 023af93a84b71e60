//! Active health checks: the peers of an upstream are asked now and then how they are, whether requests come or not.
//!
//! pingora-load-balancing has health checks, for its own `Backends`. Its `HttpHealthCheck` is shown the response's header
//! only, connects to a template of an `HttpPeer` (not with this upstream's settings and names), has no limit on the whole
//! of a check, and reports that a peer has changed but not why; its checks run in rounds, in which all peers wait for the
//! slowest. None of this can be set, so the checks are made here, on the connections that requests would get.

use super::member::{Member, State};
use super::probe::probe;
use super::standing::Health;
use super::{Peer, Upstream};
use crate::conf;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep, sleep_until};

/// Check the peers of the upstream, each at its own pace, those that join it as soon as they do. Goes on until it is
/// dropped; does nothing if no `health_check` is configured.
pub(crate) async fn watch(upstream: Arc<Upstream>) {
    let Some(conf) = &upstream.conf.health_check else { return };
    let mut watched: Vec<Arc<Member>> = Vec::new();
    let mut watches = FuturesUnordered::new();
    let mut first_delay = conf.jitter;
    loop {
        for member in upstream.group().members() {
            if !watched.iter().any(|known| known.is(member)) {
                watched.push(member.clone());
                watches.push(watch_peer(&upstream, conf, member.clone(), at_random(first_delay)));
            }
        }
        // Those that join later are wanted now.
        first_delay = Duration::ZERO;
        tokio::select! {
            () = upstream.group_changed.notified() => {}
            Some(gone) = watches.next() => watched.retain(|known| !known.is(&gone)),
        }
    }
}

/// Check a peer for as long as it is in the group, never twice at a time.
async fn watch_peer(
    upstream: &Upstream,
    conf: &conf::HealthCheck,
    member: Arc<Member>,
    delay: Duration,
) -> Arc<Member> {
    let mut streak = Streak::default();
    sleep(delay).await;
    while upstream.group().members().iter().any(|current| current.is(&member)) {
        let next = Instant::now() + conf.interval + at_random(conf.jitter);
        match member.state() {
            State::Down => streak = Streak::default(),
            State::Up | State::Drain => {
                let result = probe(upstream, &member.peer, conf).await;
                note(upstream, conf, &member, &mut streak, result);
            }
        }
        sleep_until(next).await;
    }
    member
}

/// What a check has found: counted, and said if it changes the verdict.
fn note(
    upstream: &Upstream,
    conf: &conf::HealthCheck,
    member: &Member,
    streak: &mut Streak,
    result: Result<String, String>,
) {
    upstream.metrics.checked(member.server, result.is_ok());
    let before = member.health();
    let health = streak.verdict(before, result.is_ok(), conf);
    let changed = upstream.set_health(member, health);
    let peer: &Peer = &member.peer;
    let name = upstream.name();
    match (changed, health, result) {
        (true, Health::Down, Err(reason)) => log::warn!("upstream {name}: peer {peer} is down: {reason}"),
        (true, Health::Up, Ok(found)) if before == Health::Down => {
            log::info!("upstream {name}: peer {peer} is up: {found}");
        }
        (_, _, Err(reason)) => log::debug!("upstream {name}: peer {peer}: a check failed: {reason}"),
        (_, _, Ok(found)) => log::trace!("upstream {name}: peer {peer}: {found}"),
    }
}

/// How many checks in a row have spoken against the verdict there is.
#[derive(Debug, Default)]
struct Streak(u32);

impl Streak {
    /// The verdict after one more check. Without one there was before, the first check that passes is enough.
    fn verdict(&mut self, before: Health, passed: bool, conf: &conf::HealthCheck) -> Health {
        let speaks_against = passed == (before == Health::Down);
        self.0 = if speaks_against { self.0 + 1 } else { 0 };
        let verdict = match before {
            Health::Down if self.0 >= conf.rise => Health::Up,
            Health::Up | Health::Unchecked if self.0 >= conf.fall => Health::Down,
            Health::Unchecked if passed => Health::Up,
            before => before,
        };
        if verdict != before {
            self.0 = 0;
        }
        verdict
    }
}

/// Anything up to `limit`.
fn at_random(limit: Duration) -> Duration {
    limit.mul_f64(fastrand::f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONF: conf::HealthCheck = conf::HealthCheck {
        probe: conf::Probe::Tcp,
        interval: Duration::from_secs(5),
        jitter: Duration::ZERO,
        timeout: Duration::from_secs(1),
        rise: 2,
        fall: 3,
    };

    /// The verdicts after each of these checks: `+` passed, `-` failed.
    fn verdicts(before: Health, checks: &str) -> Vec<Health> {
        let (mut streak, mut health) = (Streak::default(), before);
        let mut verdict = |check| {
            health = streak.verdict(health, check == '+', &CONF);
            health
        };
        checks.chars().map(&mut verdict).collect()
    }

    #[test]
    fn so_many_failures_in_a_row_take_a_peer_out() {
        use Health::*;
        assert_eq!(verdicts(Up, "--+---"), [Up, Up, Up, Up, Up, Down]);
        assert_eq!(verdicts(Unchecked, "---"), [Unchecked, Unchecked, Down]);
    }

    #[test]
    fn so_many_passes_in_a_row_bring_it_back() {
        use Health::*;
        assert_eq!(verdicts(Down, "+-++"), [Down, Down, Down, Up]);
        assert_eq!(verdicts(Down, "++--+---"), [Down, Up, Up, Up, Up, Up, Up, Down]);
    }

    #[test]
    fn without_a_verdict_the_first_pass_is_one() {
        assert_eq!(verdicts(Health::Unchecked, "-+"), [Health::Unchecked, Health::Up]);
    }
}
