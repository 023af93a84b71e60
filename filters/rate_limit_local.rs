//! What `rate_limit` counts with: the arithmetic of a bucket, and the table of buckets in this process.

use super::Rate;
use ahash::RandomState;
use lru::LruCache;
use once_cell::sync::Lazy;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Instant;

pub(super) const NANOS: u64 = 1_000_000_000;

/// nginx's leaky bucket counted in time, which is GCRA: a bucket is the moment at which it will be empty. All times are
/// nanoseconds.
#[derive(Clone, Copy)]
pub(super) struct Limit {
    /// From one request to the next, at the rate.
    pub(super) interval: u64,
    /// A request may come so early.
    pub(super) tolerance: u64,
    pub(super) burst: u32,
}

/// A request has been counted, or rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    pub(super) passed: bool,
    /// How long before its turn the request came, in nanoseconds.
    pub(super) ahead: u64,
}

/// What a client is told: numbers of requests, and seconds.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) limit: u64,
    pub(super) remaining: u64,
    pub(super) reset: u64,
    pub(super) retry_after: Option<u64>,
}

impl Limit {
    pub(super) fn new(rate: Rate, burst: u32) -> Self {
        let interval = u64::from(rate.seconds) * NANOS / u64::from(rate.requests);
        Limit { interval, tolerance: interval.saturating_mul(u64::from(burst)), burst }
    }

    /// Count a request into the bucket that will be `empty_at`, unless it comes too early.
    pub(super) fn take(&self, empty_at: &mut u64, now: u64) -> Taken {
        let ahead = empty_at.saturating_sub(now);
        let passed = ahead <= self.tolerance;
        if passed {
            *empty_at = now + ahead + self.interval;
        }
        Taken { passed, ahead }
    }

    pub(super) fn told(&self, taken: Taken) -> Told {
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
pub(super) struct Table {
    started: Instant,
    hashers: [RandomState; 2],
    shards: [Mutex<LruCache<u128, u64, RandomState>>; SHARDS],
    max_keys: AtomicUsize,
}

impl Table {
    pub(super) fn new(max_keys: usize) -> Arc<Self> {
        Arc::new(Table {
            started: Instant::now(),
            hashers: Default::default(),
            shards: std::array::from_fn(|_| Mutex::new(LruCache::unbounded_with_hasher(RandomState::new()))),
            max_keys: AtomicUsize::new(max_keys),
        })
    }

    pub(super) fn take(&self, key: &str, limit: Limit) -> Taken {
        let now = u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX / 2);
        self.take_at(key, limit, now)
    }

    pub(super) fn hash(&self, key: &str) -> u128 {
        let [high, low] = [0, 1].map(|half| u128::from(self.hashers[half].hash_one(key)));
        high << 64 | low
    }

    fn take_at(&self, key: &str, limit: Limit, now: u64) -> Taken {
        let key = self.hash(key);
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

/// The table of a zone, which lives as long as a filter has it. As in nginx a zone has one rate: its buckets are times,
/// and what one rate makes an hour of is no hour at another.
pub(super) fn zone(name: &str, limit: Limit, max_keys: usize) -> Arc<Table> {
    /// By name and interval.
    type Zones = HashMap<(String, u64), Weak<Table>>;
    static ZONES: Lazy<Mutex<Zones>> = Lazy::new(Mutex::default);
    let zone = (name.to_owned(), limit.interval);
    let mut zones = ZONES.lock();
    zones.retain(|_, table| table.strong_count() > 0);
    if let Some(table) = zones.get(&zone).and_then(Weak::upgrade) {
        table.max_keys.store(max_keys, Ordering::Relaxed);
        return table;
    }
    let table = Table::new(max_keys);
    zones.insert(zone, Arc::downgrade(&table));
    table
}

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
}
