//! `rate_limit`: at most so many requests of one key in a time, as nginx's `limit_req`.
//!
//! ```yaml
//! - rate_limit: { key: $remote_addr, rate: 10/s, burst: 20, delay: false, store: "redis://127.0.0.1:6379" }
//! ```
//!
//! A leaky bucket: requests run out of it at `rate`, and up to `burst` of them may be ahead of it. With `delay: false`
//! those pass at once (nginx's `nodelay`), with `delay: true` each when its turn comes. The others are answered 429
//! with `Retry-After`, and `RateLimit-Limit`, `-Remaining` and `-Reset` (draft-ietf-httpapi-ratelimit-headers up to
//! -07, of its forms the one that is deployed most); with `headers: true` what passes has those three too. A request
//! whose key is empty is not limited; one that is redirected internally is counted once.
//!
//! Every place in the configuration limits for itself and anew after a reload, unless it names a `zone`. Up to
//! `max_keys` keys are remembered, and for no longer than they are ahead of the rate; when there are more, the one that
//! has not been seen for longest is forgotten.
//!
//! With a `store` all proxies with the same `zone` and `rate` (without a zone: the same `key`, `rate` and `burst`)
//! limit as one. While the store is away each of them limits by itself with the same numbers; no request fails because
//! of it.
//!
//! `millpond_rate_limit_requests_total` counts by service, route and outcome (`delayed`, `rejected`) what did not pass
//! at once, `millpond_rate_limit_store_up` says which stores are there.
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

#[path = "rate_limit_local.rs"]
mod local;
#[cfg(feature = "rate_limit_redis")]
#[path = "rate_limit_redis.rs"]
mod redis_store;

pub use local::Taken;
use local::{Limit, NANOS, Table, zone};
use millpond::conf::Secret;
use millpond::conf::units::Time;
use millpond::prelude::*;
use once_cell::sync::Lazy;
use prometheus::{IntCounterVec, Opts};
use serde::Deserialize;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

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
    /// Limit together with all places that have the same zone and rate, and go on with it after a reload.
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
    /// `max_keys` or `store_timeout` is 0, `status` is no error's, the rate takes more than a year to make `burst`
    /// good, or `store` is no URL of a Redis.
    pub fn new(conf: RateLimitConf) -> Result<Self> {
        let expected = |text: String| Err(Error::new(ErrorKind::Filter, text));
        if !(400..=599).contains(&conf.status) {
            return expected(format!("a status from 400 to 599 as `status`, not {}", conf.status));
        }
        if conf.max_keys == 0 {
            return expected("at least 1 as `max_keys`, not 0".to_owned());
        }
        if conf.store_timeout.0.is_zero() {
            return expected("more than 0 as `store_timeout`".to_owned());
        }
        let limit = Limit::new(conf.rate, conf.burst);
        if limit.tolerance > 366 * 24 * 3600 * NANOS {
            return expected(format!("a `burst` that {} makes good within a year, not {}", conf.rate, conf.burst));
        }
        if cfg!(not(feature = "rate_limit_redis")) && conf.store.is_some() {
            return expected("no `store`: this binary was built without the feature rate_limit_redis".to_owned());
        }
        let table = match &conf.zone {
            Some(name) => zone(name, limit, conf.max_keys),
            None => Table::new(conf.max_keys),
        };
        Ok(RateLimit {
            limit,
            table,
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

/// Where a request has been counted, and by which keys: behind an internal redirect it comes by again, and is still
/// one.
#[derive(Clone, Default)]
struct Counted(Vec<(usize, u128)>);

impl UpstreamPhases for RateLimit {
    /// What the client is to be told.
    type Ctx = Option<Taken>;

    fn new_ctx(&self) -> Self::Ctx {
        None
    }

    async fn request_filter(&self, session: &mut Session<'_>, ctx: &mut Self::Ctx) -> Result<Flow> {
        let key = self.conf.key.render(session).into_owned();
        if key.is_empty() {
            return Ok(Flow::Continue);
        }
        let counted = session.extensions().get_or_insert_default::<Counted>();
        let place = (Arc::as_ptr(&self.table).addr(), self.table.hash(&key));
        if counted.0.contains(&place) {
            return Ok(Flow::Continue);
        }
        counted.0.push(place);
        let taken = self.take(&key).await;
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
            session.unless_client_leaves(tokio::time::sleep(Duration::from_nanos(taken.ahead))).await?;
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

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let make = |conf: &str| RateLimit::new(serde_json::from_str(conf).unwrap()).map(drop);
        assert!(make(r#"{ "rate": "1/s", "burst": 1000 }"#).is_ok());
        for wrong in [
            r#"{ "rate": "1/s", "status": 200 }"#,
            r#"{ "rate": "1/s", "max_keys": 0 }"#,
            r#"{ "rate": "1/s", "store_timeout": "0s" }"#,
            r#"{ "rate": "1/h", "burst": 4000000000 }"#,
            r#"{ "rate": "1/s", "store": "http://user:s3cret@127.0.0.1" }"#,
            r#"{ "rate": "1/s", "store": "rediss://127.0.0.1" }"#,
        ] {
            let error = make(wrong).unwrap_err().to_string();
            assert!(!error.contains("s3cret"), "{error}");
        }
    }
}
