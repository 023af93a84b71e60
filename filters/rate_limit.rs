//! `rate_limit`: at most so many requests of one key in a time, as nginx's `limit_req`.
//!
//! ```yaml
//! - rate_limit: { key: $remote_addr, rate: 10/s, burst: 20, delay: false, store: "redis://127.0.0.1:6379" }
//! ```
//!
//! A leaky bucket: requests run out of it at `rate`, and up to `burst` of them may be ahead of it. With `delay: false` those
//! pass at once (nginx's `nodelay`), with `delay: true` each when its turn comes. The others are answered 429 with
//! `Retry-After`, and `RateLimit-Limit`, `-Remaining` and `-Reset` (draft-ietf-httpapi-ratelimit-headers up to -07, of its
//! forms the one that is deployed most); with `headers: true` what passes has those three too. A request whose key is empty
//! is not limited.
//!
//! Every place in the configuration limits for itself and anew after a reload, unless it names a `zone`. Up to `max_keys`
//! keys are remembered, and for no longer than they are ahead of the rate; when there are more, the one that has not been
//! seen for longest is forgotten.
//!
//! With a `store` all proxies with the same `zone` (without one: the same `key`, `rate` and `burst`) limit as one. While
//! the store is away each of them limits by itself with the same numbers; no request fails because of it.
//!
//! `millpond_rate_limit_requests_total` counts by service, route and outcome (`delayed`, `rejected`) what did not pass at
//! once, `millpond_rate_limit_store_up` says which stores are there.
//!
//! The same in code, under a name of one's own:
//!
//! ```
//! use millpond::filters::rate_limit::{RateLimit, RateLimitConf};
//! use millpond::prelude::*;
//!
//! let millpond = Millpond::new().filter("logins", |key: Template| {
//!     RateLimit::new(RateLimitConf { key, burst: 5, delay: true, ..RateLimitConf::new("1/s".parse()?) })
//! });
//! ```

#[cfg(feature = "rate_limit_redis")]
#[path = "rate_limit_redis.rs"]
mod redis_store;

use ahash::RandomState;
use lru::LruCache;
use millpond::conf::Secret;
use millpond::conf::units::Time;
use millpond::prelude::*;
use once_cell::sync::Lazy;
use parking_lot::Mutex;
use prometheus::{IntCounterVec, Opts};
use serde::Deserialize;
use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// What the configuration says.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimitConf {
    /// What requests are counted by.
    #[serde(default = "remote_addr")]
    pub key: Template,
    /// How many of one key: `10/s`, `100/m`, `1000/h`.
    pub rate: Rate,
    /// So many may be ahead of the rate.
    #[serde(default)]
    pub burst: u32,
    /// Those that are ahead wait for their turn.
    #[serde(default)]
    pub delay: bool,
    /// What is answered to the others: 400 to 599.
    #[serde(default = "too_many_requests")]
    pub status: u16,
    /// `RateLimit-*` on what passes, too.
    #[serde(default)]
    pub headers: bool,
    /// How many keys are remembered, at 100 bytes each or less; at least 1.
    #[serde(default = "max_keys")]
    pub max_keys: usize,
    /// Limit together with all places that have the same zone, and go on with it after a reload.
    #[serde(default)]
    pub zone: Option<String>,
    /// Limit together with other proxies: `redis://[user:password@]host:port[/database]`.
    #[serde(default)]
    pub store: Option<Secret>,
    /// The store is away when it has not answered for so long.
    #[serde(default = "store_timeout")]
    pub store_timeout: Time,
}

impl RateLimitConf {
    /// The defaults, which all of the keys but `rate` have.
    pub fn new(rate: Rate) -> Self {
        RateLimitConf {
            key: remote_addr(),
            rate,
            burst: 0,
            delay: false,
            status: too_many_requests(),
            headers: false,
            max_keys: max_keys(),
            zone: None,
            store: None,
            store_timeout: store_timeout(),
        }
    }
}

fn remote_addr() -> Template {
    "$remote_addr".parse().expect("the name of a variable")
}

fn too_many_requests() -> u16 {
    429
}

fn max_keys() -> usize {
    1 << 16
}

fn store_timeout() -> Time {
    Time(Duration::from_millis(200))
}

/// Requests in a time: `10/s`, `100/m`, `1000/h`; at most a million a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Rate {
    requests: u32,
    seconds: u32,
}

impl FromStr for Rate {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parse = || {
            let (requests, unit) = text.trim().split_once('/')?;
            let seconds = match unit {
                "s" => 1,
                "m" => 60,
                "h" => 3600,
                _ => return None,
            };
            let requests = requests.parse().ok()?;
            (1..=1_000_000 * seconds).contains(&requests).then_some(Rate { requests, seconds })
        };
        let wrong = || format!("found {text:?}, expected requests in a time such as 10/s, 100/m or 1000/h");
        parse().ok_or_else(|| Error::new(ErrorKind::Filter, wrong()))
    }
}

impl TryFrom<String> for Rate {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = match self.seconds {
            1 => "s",
            60 => "m",
            _ => "h",
        };
        write!(f, "{}/{unit}", self.requests)
    }
}

/// The filter.
pub struct RateLimit {
    conf: RateLimitConf,
    limit: Limit,
    table: Arc<Table>,
    #[cfg(feature = "rate_limit_redis")]
    store: Option<Arc<redis_store::Store>>,
}

impl RateLimit {
    /// Make it from its configuration.
    ///
    /// # Errors
    /// `max_keys` is 0, `status` is no error's, the rate takes more than a year to make `burst` good, or `store` is no URL
    /// of a Redis.
    pub fn new(conf: RateLimitConf) -> Result<Self> {
        let expected = |text: String| Err(Error::new(ErrorKind::Filter, text));
        if !(400..=599).contains(&conf.status) {
            return expected(format!("a status from 400 to 599 as `status`, not {}", conf.status));
        }
        if conf.max_keys == 0 {
            return expected("at least 1 as `max_keys`, not 0".to_owned());
        }
        let limit = Limit::new(conf.rate, conf.burst);
        if limit.tolerance > 366 * 24 * 3600 * NANOS {
            return expected(format!("a `burst` that {} makes good within a year, not {}", conf.rate, conf.burst));
        }
        if cfg!(not(feature = "rate_limit_redis")) && conf.store.is_some() {
            return expected("no `store`: this binary was built without the feature rate_limit_redis".to_owned());
        }
        Ok(RateLimit {
            limit,
            table: conf.zone.as_deref().map_or_else(|| Table::new(conf.max_keys), |name| zone(name, conf.max_keys)),
            #[cfg(feature = "rate_limit_redis")]
            store: conf.store.as_ref().map(|url| redis_store::Store::new(url, &conf)).transpose()?,
            conf,
        })
    }

    /// Count a request, in the store if there is one and it answers.
    async fn take(&self, key: &str) -> Taken {
        #[cfg(feature = "rate_limit_redis")]
        if let Some(store) = &self.store
            && let Some(taken) = store.take(key, self.limit).await
        {
            return taken;
        }
        self.table.take(key, self.limit)
    }
}

impl UpstreamPhases for RateLimit {
    /// What the client is to be told.
    type Ctx = Option<Taken>;

    fn new_ctx(&self) -> Self::Ctx {
        None
    }

    async fn request_filter(&self, session: &mut Session<'_>, ctx: &mut Self::Ctx) -> Result<Flow> {
        let key = self.conf.key.render(session);
        if key.is_empty() {
            return Ok(Flow::Continue);
        }
        let taken = self.take(&key).await;
        drop(key);
        if !taken.passed || self.conf.headers {
            *ctx = Some(taken);
        }
        let count = |outcome| {
            REQUESTS.with_label_values(&[session.service().name(), session.route().name(), outcome]).inc();
        };
        if !taken.passed {
            count("rejected");
            session.respond(self.conf.status, "too many requests\n")?;
            return Ok(Flow::Done);
        }
        if self.conf.delay && taken.ahead > 0 {
            count("delayed");
            tokio::time::sleep(Duration::from_nanos(taken.ahead)).await;
        }
        Ok(Flow::Continue)
    }

    async fn response_filter(
        &self,
        _session: &mut Session<'_>,
        response: &mut ResponseHeader,
        ctx: &mut Self::Ctx,
    ) -> Result<Header> {
        if let Some(taken) = ctx {
            let told = self.limit.told(*taken);
            response.insert_header("RateLimit-Limit", told.limit)?;
            response.insert_header("RateLimit-Remaining", told.remaining)?;
            response.insert_header("RateLimit-Reset", told.reset)?;
            if let Some(seconds) = told.retry_after {
                response.insert_header("Retry-After", seconds)?;
            }
        }
        Ok(Header::Pass)
    }
}

const NANOS: u64 = 1_000_000_000;

/// nginx's leaky bucket counted in time, which is GCRA: a bucket is the moment at which it will be empty. All times are
/// nanoseconds.
#[derive(Clone, Copy)]
struct Limit {
    /// From one request to the next, at the rate.
    interval: u64,
    /// A request may come so early.
    tolerance: u64,
    burst: u32,
}

/// A request has been counted, or rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    passed: bool,
    /// How long before its turn the request came, in nanoseconds.
    ahead: u64,
}

/// What a client is told: numbers of requests, and seconds.
#[derive(Debug, PartialEq, Eq)]
struct Told {
    limit: u64,
    remaining: u64,
    reset: u64,
    retry_after: Option<u64>,
}

impl Limit {
    fn new(rate: Rate, burst: u32) -> Self {
        let interval = u64::from(rate.seconds) * NANOS / u64::from(rate.requests);
        Limit { interval, tolerance: interval.saturating_mul(u64::from(burst)), burst }
    }

    /// Count a request into the bucket that will be `empty_at`, unless it comes too early.
    fn take(&self, empty_at: &mut u64, now: u64) -> Taken {
        let ahead = empty_at.saturating_sub(now);
        let passed = ahead <= self.tolerance;
        if passed {
            *empty_at = now + ahead + self.interval;
        }
        Taken { passed, ahead }
    }

    fn told(&self, taken: Taken) -> Told {
        let reset = if taken.passed { taken.ahead + self.interval } else { taken.ahead };
        let too_early = taken.ahead.saturating_sub(self.tolerance);
        Told {
            limit: u64::from(self.burst) + 1,
            remaining: self.tolerance.saturating_sub(taken.ahead) / self.interval,
            reset: reset.div_ceil(NANOS),
            retry_after: (!taken.passed).then(|| too_early.div_ceil(NANOS).max(1)),
        }
    }
}

/// Threads that count at once meet at one in so many places only.
const SHARDS: usize = 16;

/// The buckets of the keys that are ahead of the rate. Of a key only a hash of 128 bits is kept, seeded anew in each
/// process: nobody can make two keys meet, or a long one take room.
struct Table {
    started: Instant,
    hashers: [RandomState; 2],
    shards: [Mutex<LruCache<u128, u64, RandomState>>; SHARDS],
    max_keys: AtomicUsize,
}

impl Table {
    fn new(max_keys: usize) -> Arc<Self> {
        Arc::new(Table {
            started: Instant::now(),
            hashers: Default::default(),
            shards: std::array::from_fn(|_| Mutex::new(LruCache::unbounded_with_hasher(RandomState::new()))),
            max_keys: AtomicUsize::new(max_keys),
        })
    }

    fn take(&self, key: &str, limit: Limit) -> Taken {
        let now = u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX / 2);
        self.take_at(key, limit, now)
    }

    fn take_at(&self, key: &str, limit: Limit, now: u64) -> Taken {
        let [high, low] = [0, 1].map(|half| u128::from(self.hashers[half].hash_one(key)));
        let key = high << 64 | low;
        // With fewer keys than shards some of these stay empty.
        let max_keys = self.max_keys.load(Ordering::Relaxed);
        let mut shard = self.shards[(key % SHARDS.min(max_keys) as u128) as usize].lock();
        // nginx's ngx_http_limit_req_expire: each request takes two of the forgotten out, so that they never pile up.
        for _ in 0..2 {
            match shard.peek_lru() {
                Some((_, empty_at)) if *empty_at <= now => drop(shard.pop_lru()),
                _ => break,
            }
        }
        if let Some(empty_at) = shard.get_mut(&key) {
            return limit.take(empty_at, now);
        }
        while shard.len() >= max_keys.div_ceil(SHARDS) {
            shard.pop_lru();
        }
        let mut empty_at = now;
        let taken = limit.take(&mut empty_at, now);
        shard.put(key, empty_at);
        taken
    }
}

/// The table of a zone, which lives as long as a filter has it.
fn zone(name: &str, max_keys: usize) -> Arc<Table> {
    static ZONES: Lazy<Mutex<HashMap<String, Weak<Table>>>> = Lazy::new(Mutex::default);
    let mut zones = ZONES.lock();
    zones.retain(|_, table| table.strong_count() > 0);
    if let Some(table) = zones.get(name).and_then(Weak::upgrade) {
        table.max_keys.store(max_keys, Ordering::Relaxed);
        return table;
    }
    let table = Table::new(max_keys);
    zones.insert(name.to_owned(), Arc::downgrade(&table));
    table
}

static REQUESTS: Lazy<IntCounterVec> = Lazy::new(|| {
    let name = "millpond_rate_limit_requests_total";
    let opts = Opts::new(name, "Requests that rate_limit did not let pass at once; outcome: delayed, rejected.");
    let counter = IntCounterVec::new(opts, &["service", "route", "outcome"]).expect("the names are sound");
    // A copy of this file in the same process has registered it first: it is the one that is shown.
    let _ = prometheus::register(Box::new(counter.clone()));
    counter
});

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn limit(rate: &str, burst: u32) -> Limit {
        Limit::new(rate.parse().unwrap(), burst)
    }

    #[test]
    fn rates_are_requests_in_a_time() {
        let interval = |text: &str| text.parse::<Rate>().map(|rate| Limit::new(rate, 0).interval).ok();
        assert_eq!(interval("10/s"), Some(100 * MS));
        assert_eq!(interval("60/m"), Some(NANOS));
        assert_eq!(interval("1/h"), Some(3600 * NANOS));
        for wrong in ["10", "0/s", "-1/s", "1/d", "1/", "/s", "1000001/s", "1.5/s", "10r/s"] {
            assert_eq!(interval(wrong), None, "{wrong}");
        }
    }

    /// What nginx does with `rate=10r/s burst=2`, request by request.
    #[test]
    fn a_bucket_leaks_at_the_rate_and_takes_a_burst() {
        let (limit, mut bucket) = (limit("10/s", 2), 0);
        let mut take = |ms: u64| limit.take(&mut bucket, ms * MS);
        assert_eq!(take(0), Taken { passed: true, ahead: 0 });
        assert_eq!(take(0), Taken { passed: true, ahead: 100 * MS });
        assert_eq!(take(0), Taken { passed: true, ahead: 200 * MS });
        assert_eq!(take(50), Taken { passed: false, ahead: 250 * MS });
        assert_eq!(take(99), Taken { passed: false, ahead: 201 * MS });
        assert_eq!(take(100), Taken { passed: true, ahead: 200 * MS }, "what was rejected was not counted");
        assert_eq!(take(1000), Taken { passed: true, ahead: 0 }, "what is not used is not saved");
        assert_eq!(take(1000), Taken { passed: true, ahead: 100 * MS });
    }

    #[test]
    fn without_a_burst_requests_keep_their_distance() {
        let (limit, mut bucket) = (limit("10/s", 0), 0);
        let passed = [0, 0, 99, 100, 150, 200].map(|ms| limit.take(&mut bucket, ms * MS).passed);
        assert_eq!(passed, [true, false, false, true, false, true]);
    }

    #[test]
    fn a_client_is_told_what_is_left_and_when_to_come_back() {
        let (limit, mut bucket) = (limit("1/m", 1), 0);
        let mut told = |seconds: u64| limit.told(limit.take(&mut bucket, seconds * NANOS));
        assert_eq!(told(0), Told { limit: 2, remaining: 1, reset: 60, retry_after: None });
        assert_eq!(told(0), Told { limit: 2, remaining: 0, reset: 120, retry_after: None });
        assert_eq!(told(10), Told { limit: 2, remaining: 0, reset: 110, retry_after: Some(50) });
        assert_eq!(told(60), Told { limit: 2, remaining: 0, reset: 120, retry_after: None });
    }

    #[test]
    fn each_key_has_its_bucket() {
        let (table, limit) = (Table::new(100), limit("1/s", 0));
        let passed = ["a", "b", "a", "b"].map(|key| table.take_at(key, limit, 5).passed);
        assert_eq!(passed, [true, true, false, false]);
        assert!(table.take_at("a", limit, 5 + NANOS).passed);
    }

    fn keys(table: &Table) -> usize {
        table.shards.iter().map(|shard| shard.lock().len()).sum()
    }

    #[test]
    fn keys_are_bounded_and_the_longest_unseen_goes_first() {
        for max_keys in [1, 10, 1000] {
            let table = Table::new(max_keys);
            for number in 0..10_000 {
                table.take_at(&number.to_string(), limit("1/h", 0), 0);
            }
            assert!(keys(&table) <= max_keys.next_multiple_of(SHARDS), "{max_keys}");
            assert!(!table.take_at("9999", limit("1/h", 0), 1).passed, "the last one is remembered");
            assert!(table.take_at("0", limit("1/h", 0), 1).passed, "the first one is not");
        }
    }

    #[test]
    fn keys_that_are_not_ahead_are_forgotten() {
        let table = Table::new(100_000);
        for number in 0..10_000 {
            table.take_at(&number.to_string(), limit("1/s", 0), 0);
        }
        assert_eq!(keys(&table), 10_000);
        for number in 0..20_000 {
            table.take_at(&format!("later {number}"), limit("1000000/s", 0), NANOS + number * MS);
        }
        assert!(keys(&table) <= 2 * SHARDS, "{}", keys(&table));
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let make = |conf: &str| RateLimit::new(serde_json::from_str(conf).unwrap()).map(drop);
        assert!(make(r#"{ "rate": "1/s", "burst": 1000 }"#).is_ok());
        for wrong in [
            r#"{ "rate": "1/s", "status": 200 }"#,
            r#"{ "rate": "1/s", "max_keys": 0 }"#,
            r#"{ "rate": "1/h", "burst": 4000000000 }"#,
            r#"{ "rate": "1/s", "store": "http://user:s3cret@127.0.0.1" }"#,
            r#"{ "rate": "1/s", "store": "rediss://127.0.0.1" }"#,
        ] {
            let error = make(wrong).unwrap_err().to_string();
            assert!(!error.contains("s3cret"), "{error}");
        }
    }
}
