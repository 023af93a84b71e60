//! [`Pool`]: idle connections of one upstream, kept for the next request: nginx's `keepalive`.
//!
//! Pingora's pool spawns a task for each idle connection, and now and then cannot get a connection back from it in time
//! and closes it ("failed to acquire reusable stream": a third of all runs of twelve requests one after the other lost
//! one). Here a connection is tested when it is taken, and those that the upstream has closed, or that have been idle for
//! too long, are swept out once a second.

use futures::FutureExt;
use parking_lot::Mutex;
use pingora_core::protocols::Stream;
use prometheus::IntGauge;
use std::collections::VecDeque;
use std::time::{Duration, Instant};
use tokio::io::AsyncReadExt;

/// Idle connections, the one that was used last at the end.
pub(crate) struct Pool {
    idle: Mutex<VecDeque<Idle>>,
    /// So many at most; 0: none.
    connections: usize,
    /// How long one is kept.
    timeout: Duration,
    gauge: IntGauge,
}

struct Idle {
    /// What makes two connections interchangeable.
    key: u64,
    stream: Stream,
    since: Instant,
}

impl Pool {
    pub(super) fn new(connections: u32, timeout: Duration, gauge: IntGauge) -> Self {
        Pool { idle: Mutex::default(), connections: connections as usize, timeout, gauge }
    }

    /// A connection that is open and silent. The one used last is the likeliest to be.
    pub(crate) fn take(&self, key: u64) -> Option<Stream> {
        loop {
            let mut taken = {
                let mut idle = self.idle.lock();
                let index = idle.iter().rposition(|idle| idle.key == key)?;
                let taken = idle.remove(index)?;
                self.gauge.set(idle.len() as i64);
                taken
            };
            // Those that are too old are swept out.
            if is_open(&mut taken.stream) {
                return Some(taken.stream);
            }
        }
    }

    /// Keep a connection that may serve again. If that is one too many, the one unused for the longest time is closed.
    pub(crate) fn put(&self, key: u64, stream: Stream) {
        if self.connections == 0 {
            return;
        }
        let closed = {
            let mut idle = self.idle.lock();
            idle.push_back(Idle { key, stream, since: Instant::now() });
            let closed = if idle.len() > self.connections { idle.pop_front() } else { None };
            self.gauge.set(idle.len() as i64);
            closed
        };
        drop(closed);
    }

    /// Close what has been idle for too long, or was closed by the upstream.
    pub(crate) fn sweep(&self) {
        let mut kept = VecDeque::new();
        let mut idle = self.idle.lock();
        let mut closed = Vec::new();
        for mut one in idle.drain(..) {
            if one.since.elapsed() < self.timeout && is_open(&mut one.stream) {
                kept.push_back(one);
            } else {
                closed.push(one);
            }
        }
        *idle = kept;
        self.gauge.set(idle.len() as i64);
        drop(idle);
        drop(closed);
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
    use tokio::io::{AsyncWriteExt, DuplexStream, duplex};

    fn pool(connections: u32, timeout: Duration) -> Pool {
        Pool::new(connections, timeout, IntGauge::new("idle", "idle").unwrap())
    }

    fn connection() -> (DuplexStream, Stream) {
        let (far, near) = duplex(64);
        (far, Box::new(near))
    }

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn a_connection_serves_its_own_key_only() {
        let pool = pool(4, LONG);
        let (_far, near) = connection();
        pool.put(1, near);
        assert!(pool.take(2).is_none());
        assert!(pool.take(1).is_some());
        assert!(pool.take(1).is_none());
    }

    #[tokio::test]
    async fn a_closed_connection_and_one_that_speaks_unasked_are_not_used() {
        let pool = pool(4, LONG);
        let (far, near) = connection();
        pool.put(1, near);
        drop(far);
        assert!(pool.take(1).is_none());
        let (mut far, near) = connection();
        pool.put(1, near);
        far.write_all(b"?").await.unwrap();
        assert!(pool.take(1).is_none());
    }

    #[tokio::test]
    async fn one_too_many_closes_the_oldest() {
        let pool = pool(1, LONG);
        let (mut first, near) = connection();
        pool.put(1, near);
        let (_second, near) = connection();
        pool.put(1, near);
        assert_eq!(first.read(&mut [0]).await.unwrap(), 0);
        assert_eq!(pool.gauge.get(), 1);
    }

    #[tokio::test]
    async fn what_is_idle_for_too_long_or_closed_is_swept_out() {
        let pool = pool(4, LONG);
        let (far, near) = connection();
        pool.put(1, near);
        let (_open, near) = connection();
        pool.put(1, near);
        drop(far);
        pool.sweep();
        assert_eq!(pool.gauge.get(), 1);
        let brief = super::tests::pool(4, Duration::ZERO);
        let (_open, near) = connection();
        brief.put(1, near);
        brief.sweep();
        assert_eq!(brief.gauge.get(), 0);
    }

    #[tokio::test]
    async fn no_pool_keeps_nothing() {
        let pool = pool(0, LONG);
        let (mut far, near) = connection();
        pool.put(1, near);
        assert_eq!(far.read(&mut [0]).await.unwrap(), 0);
    }
}
