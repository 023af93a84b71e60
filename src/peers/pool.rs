//! [`Pool`]: idle connections of one upstream, kept for the next request: nginx's `keepalive`.
//!
//! Pingora's pool spawns a task for each idle connection, and now and then cannot get a connection back from it in time
//! and closes it ("failed to acquire reusable stream": a third of all runs of twelve requests one after the other lost
//! one). Here a connection is tested when it is taken, and those that the upstream has closed, or that have been idle for
//! too long, are swept out once a second.

use crate::conf::Keepalive;
use futures::FutureExt;
use parking_lot::Mutex;
use pingora_core::protocols::Stream;
use prometheus::IntGauge;
use std::collections::{HashSet, VecDeque};
use std::time::Instant;
use tokio::io::AsyncReadExt;

/// Idle connections, the one that was used last at the end.
pub(crate) struct Pool {
    inner: Mutex<Inner>,
    gauge: IntGauge,
}

struct Inner {
    idle: VecDeque<Idle>,
    limits: Keepalive,
    /// Peers that are not to be used: what comes back from them is closed.
    closed: HashSet<u64>,
}

struct Idle {
    /// The peer that it leads to.
    key: u64,
    /// What it was told: only connections of one group are interchangeable.
    group: u64,
    connection: Connection,
    since: Instant,
}

/// A connection to a peer, and what it has served.
pub(crate) struct Connection {
    pub(crate) stream: Stream,
    pub(crate) usage: Usage,
}

/// How much a connection was used.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    opened: Instant,
    requests: u32,
}

impl Usage {
    /// Of a connection that was opened just now.
    pub(crate) fn new() -> Self {
        Usage { opened: Instant::now(), requests: 0 }
    }
}

impl Pool {
    pub(super) fn new(limits: Keepalive, gauge: IntGauge) -> Self {
        let inner = Inner { idle: VecDeque::new(), limits, closed: HashSet::new() };
        Pool { inner: Mutex::new(inner), gauge }
    }

    /// Other limits, from the next connection on that comes back, or that is swept.
    pub(super) fn configure(&self, limits: Keepalive) {
        self.inner.lock().limits = limits;
    }

    /// A connection that is open and silent. The one used last is the likeliest to be.
    pub(crate) fn take(&self, key: u64, group: u64) -> Option<Connection> {
        loop {
            let mut taken = {
                let idle = &mut self.inner.lock().idle;
                let index = idle.iter().rposition(|idle| idle.key == key && idle.group == group)?;
                let taken = idle.remove(index)?;
                self.gauge.set(idle.len() as i64);
                taken
            };
            // Those that are too old are swept out.
            if is_open(&mut taken.connection.stream) {
                return Some(taken.connection);
            }
        }
    }

    /// Keep a connection that has served once more, and may again. If that is one too many, the one unused for the longest
    /// time is closed.
    pub(crate) fn put(&self, key: u64, group: u64, mut connection: Connection) {
        let now = Instant::now();
        connection.usage.requests = connection.usage.requests.saturating_add(1);
        let closed = {
            let mut inner = self.inner.lock();
            if inner.is_spent(connection.usage, now) || inner.closed.contains(&key) {
                drop(inner);
                return;
            }
            inner.idle.push_back(Idle { key, group, connection, since: now });
            let one_too_many = inner.idle.len() > inner.limits.connections as usize;
            let closed = if one_too_many { inner.idle.pop_front() } else { None };
            self.gauge.set(inner.idle.len() as i64);
            closed
        };
        drop(closed);
    }

    /// Close what has been idle for too long, has been used for long enough, or was closed by the upstream.
    pub(crate) fn sweep(&self) {
        self.close_those(|inner, one| {
            one.since.elapsed() >= inner.limits.timeout
                || inner.is_spent(one.connection.usage, Instant::now())
                || !is_open(&mut one.connection.stream)
        });
    }

    /// The peers with these keys are not to be used from now on, all others are.
    pub(super) fn close(&self, keys: HashSet<u64>) {
        self.inner.lock().closed = keys;
        self.close_those(|inner, one| inner.closed.contains(&one.key));
    }

    /// Keep nothing any more.
    pub(super) fn shut(&self) {
        self.inner.lock().limits.connections = 0;
        self.close_those(|_, _| true);
    }

    /// How many connections wait.
    pub(super) fn len(&self) -> usize {
        self.inner.lock().idle.len()
    }

    fn close_those(&self, close: impl Fn(&Inner, &mut Idle) -> bool) {
        let mut inner = self.inner.lock();
        let (mut kept, mut closed) = (VecDeque::new(), Vec::new());
        for mut one in std::mem::take(&mut inner.idle) {
            match close(&inner, &mut one) {
                true => closed.push(one),
                false => kept.push_back(one),
            }
        }
        self.gauge.set(kept.len() as i64);
        inner.idle = kept;
        drop(inner);
        drop(closed);
    }
}

impl Inner {
    /// No request is to follow on a connection that was used so much.
    fn is_spent(&self, usage: Usage, now: Instant) -> bool {
        self.limits.connections == 0
            || usage.requests >= self.limits.requests
            || now.saturating_duration_since(usage.opened) >= self.limits.time
    }
}

/// An idle connection on which something can be read was closed, or has a byte too many on it.
fn is_open(stream: &mut Stream) -> bool {
    let mut byte = [0];
    tokio::task::unconstrained(stream.read(&mut byte)).now_or_never().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::io::{AsyncWriteExt, DuplexStream, duplex};

    const LONG: Duration = Duration::from_secs(60);
    const LIMITS: Keepalive = Keepalive { connections: 4, timeout: LONG, requests: 1000, time: LONG };

    fn pool(limits: Keepalive) -> Pool {
        Pool::new(limits, IntGauge::new("idle", "idle").unwrap())
    }

    fn connection() -> (DuplexStream, Connection) {
        let (far, near) = duplex(64);
        (far, Connection { stream: Box::new(near), usage: Usage::new() })
    }

    async fn is_closed(far: &mut DuplexStream) -> bool {
        far.read(&mut [0]).now_or_never().is_some_and(|read| read.unwrap() == 0)
    }

    #[tokio::test]
    async fn a_connection_serves_its_own_key_only() {
        let pool = pool(LIMITS);
        let (_far, near) = connection();
        pool.put(1, 0, near);
        assert!(pool.take(2, 0).is_none());
        assert!(pool.take(1, 1).is_none());
        assert!(pool.take(1, 0).is_some());
        assert!(pool.take(1, 0).is_none());
    }

    #[tokio::test]
    async fn a_closed_connection_and_one_that_speaks_unasked_are_not_used() {
        let pool = pool(LIMITS);
        let (far, near) = connection();
        pool.put(1, 0, near);
        drop(far);
        assert!(pool.take(1, 0).is_none());
        let (mut far, near) = connection();
        pool.put(1, 0, near);
        far.write_all(b"?").await.unwrap();
        assert!(pool.take(1, 0).is_none());
    }

    #[tokio::test]
    async fn one_too_many_closes_the_oldest() {
        let pool = pool(Keepalive { connections: 1, ..LIMITS });
        let (mut first, near) = connection();
        pool.put(1, 0, near);
        let (_second, near) = connection();
        pool.put(1, 0, near);
        assert!(is_closed(&mut first).await);
        assert_eq!(pool.gauge.get(), 1);
    }

    #[tokio::test]
    async fn what_is_idle_for_too_long_or_closed_is_swept_out() {
        let pool = pool(LIMITS);
        let (far, near) = connection();
        pool.put(1, 0, near);
        let (_open, near) = connection();
        pool.put(1, 0, near);
        drop(far);
        pool.sweep();
        assert_eq!(pool.gauge.get(), 1);
        pool.configure(Keepalive { timeout: Duration::ZERO, ..LIMITS });
        pool.sweep();
        assert_eq!(pool.gauge.get(), 0);
    }

    #[tokio::test]
    async fn no_pool_keeps_nothing() {
        let pool = pool(Keepalive { connections: 0, ..LIMITS });
        let (mut far, near) = connection();
        pool.put(1, 0, near);
        assert!(is_closed(&mut far).await);
    }

    #[tokio::test]
    async fn a_connection_is_closed_after_its_last_request() {
        let pool = pool(Keepalive { requests: 2, ..LIMITS });
        let (mut far, near) = connection();
        pool.put(1, 0, near);
        pool.put(1, 0, pool.take(1, 0).unwrap());
        assert!(is_closed(&mut far).await);
    }

    #[tokio::test]
    async fn a_connection_is_not_used_for_longer_than_its_time() {
        let pool = pool(LIMITS);
        let (mut waits, near) = connection();
        pool.put(1, 0, near);
        pool.configure(Keepalive { time: Duration::ZERO, ..LIMITS });
        let (mut comes_back, near) = connection();
        pool.put(1, 0, near);
        assert!(is_closed(&mut comes_back).await);
        pool.sweep();
        assert!(is_closed(&mut waits).await);
    }

    #[tokio::test]
    async fn the_connections_of_a_closed_peer_go_and_do_not_come_back() {
        let pool = pool(LIMITS);
        let ((mut idle, near), (mut busy, late), (_other, stays)) = (connection(), connection(), connection());
        pool.put(1, 0, near);
        pool.put(2, 0, stays);
        pool.close(HashSet::from([1]));
        assert!(is_closed(&mut idle).await);
        pool.put(1, 0, late);
        assert!(is_closed(&mut busy).await);
        assert!(pool.take(2, 0).is_some());
        pool.close(HashSet::new());
        let (_again, near) = connection();
        pool.put(1, 0, near);
        assert!(pool.take(1, 0).is_some());
    }
}
