//! `concurrency_limit`: at most so many requests of one key at a time, as nginx's `limit_conn`.
//!
//! ```yaml
//! - concurrency_limit: { key: $remote_addr, max: 10, status: 503 }
//! ```
//!
//! A request counts from this filter on until its last byte is out or it has failed, a tunnel until it is closed. A
//! request whose key is empty is not limited; one that is redirected internally stays one request. Every place in the
//! configuration counts for itself and anew after a reload, unless it names a `zone`: places with the same zone count
//! together, and a reload changes nothing about that.
//!
//! Memory grows with the requests in flight, and not with the keys that were ever seen.
//! `millpond_concurrency_limit_rejected_total` counts, by service and route, what was turned away.
//!
//! The same in code, under a name of one's own:
//!
//! ```
//! use millpond::filters::concurrency_limit::{ConcurrencyLimit, ConcurrencyLimitConf};
//! use millpond::prelude::*;
//!
//! let millpond = Millpond::new().filter("one_at_a_time", |key: Template| {
//!     ConcurrencyLimit::new(ConcurrencyLimitConf { key, max: 1, status: 429, zone: None })
//! });
//! ```

use ahash::RandomState;
use millpond::prelude::*;
use once_cell::sync::Lazy;
use parking_lot::Mutex;
use prometheus::{IntCounterVec, Opts};
use serde::Deserialize;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Weak};

/// What the configuration says.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConcurrencyLimitConf {
    /// What requests are counted by.
    #[serde(default = "remote_addr")]
    pub key: Template,
    /// So many requests of one key may be in flight; at least 1.
    pub max: u32,
    /// What the others are answered: 400 to 599.
    #[serde(default = "service_unavailable")]
    pub status: u16,
    /// Count together with all places that have the same zone.
    #[serde(default)]
    pub zone: Option<String>,
}

fn remote_addr() -> Template {
    "$remote_addr".parse().expect("the name of a variable")
}

fn service_unavailable() -> u16 {
    503
}

/// The filter.
pub struct ConcurrencyLimit {
    key: Template,
    max: u32,
    status: u16,
    counts: Arc<Counts>,
}

impl ConcurrencyLimit {
    /// Make it from its configuration.
    ///
    /// # Errors
    /// `max` is 0, or `status` is no error's.
    pub fn new(conf: ConcurrencyLimitConf) -> Result<Self> {
        if conf.max == 0 {
            return Err(Error::new(ErrorKind::Filter, "at least 1 as `max`, not 0"));
        }
        if !(400..=599).contains(&conf.status) {
            let text = format!("a status from 400 to 599 as `status`, not {}", conf.status);
            return Err(Error::new(ErrorKind::Filter, text));
        }
        let counts = conf.zone.map_or_else(Arc::default, zone);
        Ok(ConcurrencyLimit { key: conf.key, max: conf.max, status: conf.status, counts })
    }
}

impl UpstreamPhases for ConcurrencyLimit {
    /// Counted as long as it is there: however a request ends, it is dropped with the rest of its state.
    type Ctx = Option<InFlight>;

    fn new_ctx(&self) -> Self::Ctx {
        None
    }

    async fn request_filter(&self, session: &mut Session<'_>, ctx: &mut Self::Ctx) -> Result<Flow> {
        let key = self.key.render(session);
        if key.is_empty() {
            return Ok(Flow::Continue);
        }
        let key = self.counts.hash(&key);
        let counted = session.extensions().get_or_insert_default::<Counted>();
        let place = (Arc::as_ptr(&self.counts).addr(), key);
        if counted.0.contains(&place) {
            return Ok(Flow::Continue);
        }
        *ctx = InFlight::enter(&self.counts, key, self.max);
        if ctx.is_some() {
            counted.0.push(place);
            return Ok(Flow::Continue);
        }
        REJECTED.with_label_values(&[session.service().name(), session.route().name()]).inc();
        session.respond(self.status, "too many requests at a time\n")?;
        Ok(Flow::Done)
    }
}

/// Where a request is being counted, and by which keys: behind an internal redirect it comes by again, and is still
/// one.
#[derive(Clone, Default)]
struct Counted(Vec<(usize, u128)>);

/// One request that is being counted, until it is dropped.
pub struct InFlight {
    counts: Arc<Counts>,
    key: u128,
}

impl InFlight {
    /// `None`: as many as may be are in flight.
    fn enter(counts: &Arc<Counts>, key: u128, max: u32) -> Option<Self> {
        let mut shard = counts.shard(key).lock();
        let count = shard.entry(key).or_insert(0);
        if *count >= max {
            return None;
        }
        *count += 1;
        Some(InFlight { counts: counts.clone(), key })
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let mut shard = self.counts.shard(self.key).lock();
        if let Entry::Occupied(mut count) = shard.entry(self.key) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

/// Threads that count at once meet at one in so many places only.
const SHARDS: usize = 16;

/// How many requests of each key are in flight. Of a key only a hash of 128 bits is kept, seeded anew in each process:
/// nobody can make two keys meet, or a long one take room.
#[derive(Default)]
struct Counts {
    hashers: [RandomState; 2],
    shards: [Mutex<HashMap<u128, u32, RandomState>>; SHARDS],
}

impl Counts {
    fn hash(&self, key: &str) -> u128 {
        let [high, low] = [0, 1].map(|half| u128::from(self.hashers[half].hash_one(key)));
        high << 64 | low
    }

    fn shard(&self, key: u128) -> &Mutex<HashMap<u128, u32, RandomState>> {
        &self.shards[(key % SHARDS as u128) as usize]
    }
}

/// The counts of a zone, which live as long as a filter has them.
fn zone(name: String) -> Arc<Counts> {
    static ZONES: Lazy<Mutex<HashMap<String, Weak<Counts>>>> = Lazy::new(Mutex::default);
    let mut zones = ZONES.lock();
    zones.retain(|_, counts| counts.strong_count() > 0);
    if let Some(counts) = zones.get(&name).and_then(Weak::upgrade) {
        return counts;
    }
    let counts = Arc::default();
    zones.insert(name, Arc::downgrade(&counts));
    counts
}

static REJECTED: Lazy<IntCounterVec> = Lazy::new(|| {
    let name = "millpond_concurrency_limit_rejected_total";
    let opts = Opts::new(name, "Requests turned away by concurrency_limit.");
    let counter = IntCounterVec::new(opts, &["service", "route"]).expect("the names are sound");
    // A copy of this file in the same process has registered it first: it is the one that is shown.
    let _ = prometheus::register(Box::new(counter.clone()));
    counter
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_counted_until_its_request_is_dropped_and_then_forgotten() {
        let counts = Arc::<Counts>::default();
        let enter = |key| InFlight::enter(&counts, counts.hash(key), 2);
        let (first, second) = (enter("a"), enter("a"));
        assert!(first.is_some() && second.is_some());
        assert!(enter("a").is_none());
        assert!(enter("b").is_some(), "another key");
        drop(first);
        let third = enter("a");
        assert!(third.is_some());
        assert!(enter("a").is_none());
        drop((second, third));
        assert!(counts.shards.iter().all(|shard| shard.lock().is_empty()));
    }

    #[test]
    fn a_zone_is_shared_while_somebody_has_it() {
        let first = zone("z".to_owned());
        assert!(Arc::ptr_eq(&first, &zone("z".to_owned())));
        assert!(!Arc::ptr_eq(&first, &zone("y".to_owned())));
        let enter = |counts: &Arc<Counts>| InFlight::enter(counts, counts.hash("a"), 1);
        let held = enter(&first);
        drop(first);
        assert!(enter(&zone("z".to_owned())).is_none(), "a request in flight keeps it");
        drop(held);
        assert!(enter(&zone("z".to_owned())).is_some());
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let make = |conf: &str| ConcurrencyLimit::new(serde_json::from_str(conf).unwrap()).map(drop);
        assert!(make(r#"{ "max": 1 }"#).is_ok());
        assert!(make(r#"{ "max": 0 }"#).is_err());
        assert!(make(r#"{ "max": 1, "status": 200 }"#).is_err());
        assert!(serde_json::from_str::<ConcurrencyLimitConf>(r#"{ "key": "a" }"#).is_err(), "max has no default");
    }
}
