//! `body_rate`: take request bodies no faster than this, however fast the client could send.
//!
//! ```yaml
//! - body_rate: { rate: 1MiB, after: 64KiB }
//! ```
//!
//! What comes too early waits here, and the client behind it: nothing is lost and nothing fails, `client.body_timeout`
//! counts only while the client is waited for. A client that was slower than the rate may make up for at most a second
//! of it. With `request_buffering: false` the response waits, too, while the request does.
//!
//! The same in code, under a name of one's own:
//!
//! ```
//! use millpond::conf::units::{Rate, Size};
//! use millpond::filters::body_rate::{BodyRate, BodyRateConf};
//! use millpond::prelude::*;
//!
//! let millpond = Millpond::new().filter("uploads", |rate: Rate| BodyRate::new(BodyRateConf { rate, after: Size(0) }));
//! ```

use millpond::conf::units::{Rate, Size};
use millpond::prelude::*;
use serde::Deserialize;
use std::time::{Duration, Instant};

/// What the configuration says.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BodyRateConf {
    /// Bytes per second of each request body; at least 1.
    pub rate: Rate,
    /// So many bytes pass at once before the rate is held to.
    #[serde(default)]
    pub after: Size,
}

/// The filter.
pub struct BodyRate {
    rate: u64,
    after: u64,
}

impl BodyRate {
    /// Make it from its configuration.
    ///
    /// # Errors
    /// The rate is 0.
    pub fn new(conf: BodyRateConf) -> Result<Self> {
        if conf.rate.0 == 0 {
            return Err(Error::new(ErrorKind::Filter, "at least 1 byte per second as `rate`, not 0"));
        }
        Ok(BodyRate { rate: conf.rate.0, after: conf.after.0 })
    }
}

/// How much lateness a client may make up for.
const CREDIT: Duration = Duration::from_secs(1);

/// How far a body has come.
#[derive(Default)]
pub struct Pace {
    passed: u64,
    /// When the rate allows the next byte.
    due: Option<Instant>,
}

impl UpstreamPhases for BodyRate {
    type Ctx = Pace;

    fn new_ctx(&self) -> Pace {
        Pace::default()
    }

    async fn request_body_filter(&self, _session: &mut Session<'_>, body: &mut Bufs, ctx: &mut Pace) -> Result<()> {
        let due = ctx.count(body.len() as u64, self.rate, self.after, Instant::now());
        tokio::time::sleep_until(due.into()).await;
        Ok(())
    }
}

impl Pace {
    /// When these `bytes` may go on.
    fn count(&mut self, bytes: u64, rate: u64, after: u64, now: Instant) -> Instant {
        let free = after.saturating_sub(self.passed).min(bytes);
        self.passed += bytes;
        let takes = Duration::from_secs_f64((bytes - free) as f64 / rate as f64);
        let from = self.due.map_or(now, |due| due.max(now.checked_sub(CREDIT).unwrap_or(now)));
        *self.due.insert(from + takes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// When runs of 100 bytes that come at these milliseconds go on, at 1000 bytes a second.
    fn paced(after: u64, coming: &[u64]) -> Vec<u64> {
        let (start, mut pace) = (Instant::now(), Pace::default());
        let at = |ms: u64| start + Duration::from_millis(ms);
        let due = coming.iter().map(|ms| pace.count(100, 1000, after, at(*ms)).max(at(*ms)) - start);
        due.map(|due| due.as_millis() as u64).collect()
    }

    #[test]
    fn bytes_go_on_at_the_rate() {
        assert_eq!(paced(0, &[0, 0, 0, 250]), [100, 200, 300, 400]);
        assert_eq!(paced(150, &[0, 0, 0]), [0, 50, 150], "the first are free");
    }

    #[test]
    fn a_pause_is_made_up_for_as_far_as_the_credit_goes() {
        let mut coming = vec![0];
        coming.extend([10_000; 12]);
        let paced = paced(0, &coming);
        assert_eq!(&paced[..2], [100, 10_000]);
        assert_eq!(&paced[10..], [10_000, 10_100, 10_200]);
    }
}
