//! The store of `rate_limit`: buckets in a Redis that several proxies share.
//!
//! One task per store connects, and connects again when the connection is lost; requests only ever use what is there.
//! The clock is Redis's own, and a script counts a request in one step: neither the number of proxies nor their clocks
//! matter.

use super::{Limit, RateLimitConf, Taken};
use millpond::conf::Secret;
use millpond::prelude::*;
use once_cell::sync::Lazy;
use prometheus::{IntGaugeVec, Opts};
use redis::aio::MultiplexedConnection;
use redis::{Client, ConnectionAddr, RedisError, Script};
use sha2::{Digest, Sha256};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

/// From the first attempt to connect again to the next, and to those after many.
const BACK_OFF: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(5)];

/// The same arithmetic as `Limit::take`, in microseconds, which a Lua number holds exactly for any date. Its reply:
/// whether the request passes, and how long before its turn it came. A bucket expires when it is empty.
const TAKE: &str = r"
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local interval, tolerance = tonumber(ARGV[1]), tonumber(ARGV[2])
local empty_at = tonumber(redis.call('GET', KEYS[1]) or now)
-- A clock that was set back must not keep anybody out.
local ahead = math.min(math.max(empty_at - now, 0), tolerance + interval)
if ahead > tolerance then
  return {0, math.ceil(ahead)}
end
local after = ahead + interval
redis.call('SET', KEYS[1], string.format('%.3f', now + after), 'PX', math.ceil(after / 1000))
return {1, math.ceil(ahead)}
";

/// Buckets in a Redis.
pub(super) struct Store {
    /// `host:port`, for the log and the metric; what else the URL has is secret.
    address: String,
    client: Client,
    script: Script,
    /// Keeps the buckets of different limits apart.
    scope: String,
    timeout: Duration,
    link: watch::Sender<Link>,
    started: AtomicBool,
}

/// The connection.
#[derive(Clone)]
enum Link {
    /// The first attempt to connect is not over.
    New,
    Up(MultiplexedConnection, Instant),
    Away,
}

impl Store {
    /// Nothing is connected before the first request.
    ///
    /// # Errors
    /// `url` is not one of a Redis, without TLS. The text does not repeat it, there may be a password in it.
    pub(super) fn new(url: &Secret, conf: &RateLimitConf) -> Result<Arc<Self>> {
        let expected = || {
            let text = "redis://[user:password@]host:port[/database] as `store`; what is there is not shown";
            Error::new(ErrorKind::Filter, text)
        };
        let client = Client::open(url.expose()).map_err(|_| expected())?;
        let ConnectionAddr::Tcp(host, port) = &client.get_connection_info().addr else { return Err(expected()) };
        let scope = match &conf.zone {
            Some(zone) => format!("{zone} {}", Limit::new(conf.rate, conf.burst).interval),
            None => format!("{} {} {}", conf.key, conf.rate, conf.burst),
        };
        Ok(Arc::new(Store {
            address: format!("{host}:{port}"),
            script: Script::new(TAKE),
            scope,
            timeout: conf.store_timeout.0,
            link: watch::Sender::new(Link::New),
            started: AtomicBool::new(false),
            client,
        }))
    }

    /// Count a request; `None` while the store is away.
    pub(super) async fn take(self: &Arc<Self>, key: &str, limit: Limit) -> Option<Taken> {
        let (connection, since) = self.connection().await?;
        match self.run(connection, key, limit).await {
            Ok(taken) => Some(taken),
            Err(why) => {
                self.lost(since, &why);
                None
            }
        }
    }

    /// What there is; the first request has it made, and those that come meanwhile wait for it.
    async fn connection(self: &Arc<Self>) -> Option<(MultiplexedConnection, Instant)> {
        if !self.started.swap(true, Ordering::Relaxed) {
            tokio::spawn(tend(Arc::downgrade(self), self.link.subscribe()));
        }
        let mut link = self.link.subscribe();
        let known = timeout(self.timeout, link.wait_for(|link| !matches!(link, Link::New))).await;
        match &*known.ok()?.ok()? {
            Link::Up(connection, since) => Some((connection.clone(), *since)),
            Link::New | Link::Away => None,
        }
    }

    async fn run(&self, mut connection: MultiplexedConnection, key: &str, limit: Limit) -> Result<Taken, String> {
        let micros = |nanos: u64| nanos as f64 / 1000.0;
        let mut call = self.script.key(bucket(&self.scope, key));
        call.arg(micros(limit.interval)).arg(micros(limit.tolerance));
        let reply = timeout(self.timeout, call.invoke_async::<(bool, u64)>(&mut connection)).await;
        match reply {
            Ok(Ok((passed, ahead))) => Ok(Taken { passed, ahead: ahead.saturating_mul(1000) }),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("no answer for {:?}", self.timeout)),
        }
    }

    /// The connection made at `since` is of no use any more. Of all the requests that notice, one says so.
    fn lost(&self, since: Instant, why: &str) {
        let was_up = self.link.send_if_modified(|link| {
            let same = matches!(link, Link::Up(_, up) if *up == since);
            if same {
                *link = Link::Away;
            }
            same
        });
        if was_up {
            self.log_away(why);
        }
    }

    fn log_away(&self, why: &str) {
        UP.with_label_values(&[&self.address]).set(0);
        log::warn!("rate_limit: the store {}: {why}; every proxy limits by itself until it is back", self.address);
    }

    /// A connection on which a request has been counted: a Redis that is loading, full or read-only is away, too.
    async fn connect(&self) -> Result<MultiplexedConnection, String> {
        let connecting = timeout(self.timeout, self.client.get_multiplexed_async_connection()).await;
        let connected = connecting.map_err(|_| format!("not connected within {:?}", self.timeout))?;
        let connection = connected.map_err(|error: RedisError| error.to_string())?;
        let probe = Limit { interval: 1_000_000, tolerance: 0, burst: 0 };
        self.run(connection.clone(), "", probe).await?;
        Ok(connection)
    }
}

/// Connect, and again whenever the connection is lost, as long as there is a store.
async fn tend(store: Weak<Store>, mut link: watch::Receiver<Link>) {
    let mut back_off = BACK_OFF[0];
    loop {
        let Some(held) = store.upgrade() else { return };
        let first = matches!(*link.borrow(), Link::New);
        let up = match held.connect().await {
            Ok(connection) => {
                UP.with_label_values(&[&held.address]).set(1);
                log::info!("rate_limit: the store {} is there", held.address);
                held.link.send_replace(Link::Up(connection, Instant::now()));
                true
            }
            Err(why) => {
                if first {
                    held.link.send_replace(Link::Away);
                    held.log_away(&why);
                }
                false
            }
        };
        drop(held);
        if up {
            let since = Instant::now();
            if link.wait_for(|link| matches!(link, Link::Away)).await.is_err() {
                return;
            }
            if since.elapsed() > 2 * BACK_OFF[1] {
                back_off = BACK_OFF[0];
                continue;
            }
        }
        // The proxies that a Redis has left do not all come back at once.
        sleep(back_off.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
        back_off = (2 * back_off).min(BACK_OFF[1]);
    }
}

/// The name of a bucket: a key from a request may be of any length, and nobody's business.
fn bucket(scope: &str, key: &str) -> String {
    let mut hash = Sha256::new();
    hash.update((scope.len() as u64).to_be_bytes());
    hash.update(scope);
    hash.update(key);
    let hex: String = hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    format!("millpond:rate_limit:{hex}")
}

static UP: Lazy<IntGaugeVec> = Lazy::new(|| {
    let opts = Opts::new("millpond_rate_limit_store_up", "1: the store of rate_limit answers.");
    let gauge = IntGaugeVec::new(opts, &["store"]).expect("the names are sound");
    // A copy of this file in the same process has registered it first: it is the one that is shown.
    let _ = prometheus::register(Box::new(gauge.clone()));
    gauge
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_has_a_name_of_its_own_that_does_not_tell_its_key() {
        let name = bucket("zone", "secret");
        assert!(name.starts_with("millpond:rate_limit:") && !name.contains("secret"), "{name}");
        assert_eq!(name.len(), "millpond:rate_limit:".len() + 32);
        assert_eq!(name, bucket("zone", "secret"));
        assert_ne!(name, bucket("zones", "ecret"));
    }

    #[tokio::test]
    async fn a_store_that_is_not_there_costs_no_request_more_than_the_first() {
        let mut conf = RateLimitConf::new("1/s".parse().unwrap());
        conf.store_timeout = millpond::conf::units::Time(Duration::from_secs(60));
        // Port 1 is refused at once.
        let store = Store::new(&Secret::new("redis://:s3cret@127.0.0.1:1/3"), &conf).unwrap();
        assert_eq!(store.address, "127.0.0.1:1");
        let limit = Limit { interval: 1, tolerance: 0, burst: 0 };
        assert_eq!(store.take("a", limit).await, None);
        assert!(matches!(*store.link.borrow(), Link::Away));
        assert_eq!(store.take("a", limit).await, None);
    }
}
