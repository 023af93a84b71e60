//! `fault`: delays and errors on purpose, to see what clients and other routes make of them.
//!
//! ```yaml
//! - fault: { delay: 1s, status: 503, percent: 5 }
//! ```
//!
//! Of the requests, `percent` are delayed by `delay`, and then answered with `status`, or with `abort: true` not
//! answered at all: the connection is closed (HTTP/2: the stream reset), and the request logged as 499. With `delay`
//! alone they go on.
//!
//! `millpond_fault_injected_total` counts by service, route and fault (`delay`, `status`, `abort`).
//!
//! The same in code, under a name of one's own:
//!
//! ```
//! use millpond::conf::units::Time;
//! use millpond::filters::fault::{Fault, FaultConf};
//! use millpond::prelude::*;
//!
//! let millpond = Millpond::new().filter("slow", |delay: Time| {
//!     Fault::new(FaultConf { delay: Some(delay), ..FaultConf::default() })
//! });
//! ```

use millpond::conf::units::Time;
use millpond::prelude::*;
use once_cell::sync::Lazy;
use prometheus::{IntCounterVec, Opts};
use serde::Deserialize;

/// What the configuration says: one of `delay`, `status` and `abort` at least, not both of the latter.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FaultConf {
    /// Wait so long first.
    pub delay: Option<Time>,
    /// Answer with this: 200 to 599.
    pub status: Option<u16>,
    /// Do not answer, close the connection.
    pub abort: bool,
    /// How many of the requests, out of a hundred: 0 to 100, with fractions.
    pub percent: f64,
}

impl Default for FaultConf {
    fn default() -> Self {
        FaultConf { delay: None, status: None, abort: false, percent: 100.0 }
    }
}

/// The filter.
pub struct Fault {
    conf: FaultConf,
}

impl Fault {
    /// Make it from its configuration.
    ///
    /// # Errors
    /// There is nothing to do, or two things at once; `percent` or `status` is out of range.
    pub fn new(conf: FaultConf) -> Result<Self> {
        let expected = |text: String| Err(Error::new(ErrorKind::Filter, text));
        if !(0.0..=100.0).contains(&conf.percent) {
            return expected(format!("0 to 100 as `percent`, not {}", conf.percent));
        }
        if let Some(status) = conf.status.filter(|status| !(200..=599).contains(status)) {
            return expected(format!("a status from 200 to 599 as `status`, not {status}"));
        }
        match (&conf.delay, conf.status, conf.abort) {
            (None, None, false) => expected("one of `delay`, `status` and `abort`".to_owned()),
            (_, Some(_), true) => expected("either `status` or `abort`".to_owned()),
            _ => Ok(Fault { conf }),
        }
    }
}

impl UpstreamPhases for Fault {
    type Ctx = ();

    fn new_ctx(&self) {}

    async fn request_filter(&self, session: &mut Session<'_>, _ctx: &mut ()) -> Result<Flow> {
        if !hits(self.conf.percent, fastrand::f64()) {
            return Ok(Flow::Continue);
        }
        let count = |session: &Session<'_>, fault| {
            INJECTED.with_label_values(&[session.service().name(), session.route().name(), fault]).inc();
        };
        if let Some(Time(delay)) = self.conf.delay {
            count(session, "delay");
            session.unless_client_leaves(tokio::time::sleep(delay)).await?;
        }
        if self.conf.abort {
            count(session, "abort");
            // As if the client had gone: nobody is answered.
            return Err(Error::new(ErrorKind::ClientGone, "fault: aborted on purpose"));
        }
        let Some(status) = self.conf.status else { return Ok(Flow::Continue) };
        count(session, "status");
        session.respond(status, "a fault on purpose\n")?;
        Ok(Flow::Done)
    }
}

/// Is a request that has drawn this number, from 0 to 1, among the `percent`?
fn hits(percent: f64, drawn: f64) -> bool {
    drawn * 100.0 < percent
}

static INJECTED: Lazy<IntCounterVec> = Lazy::new(|| {
    let opts = Opts::new("millpond_fault_injected_total", "Faults that were injected; fault: delay, status, abort.");
    let counter = IntCounterVec::new(opts, &["service", "route", "fault"]).expect("the names are sound");
    // A copy of this file in the same process has registered it first: it is the one that is shown.
    let _ = prometheus::register(Box::new(counter.clone()));
    counter
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_is_what_was_asked_for() {
        let mut random = fastrand::Rng::with_seed(1);
        let mut share = |percent| (0..100_000).filter(|_| hits(percent, random.f64())).count();
        assert_eq!(share(0.0), 0);
        assert_eq!(share(100.0), 100_000);
        assert!((4_800..5_200).contains(&share(5.0)));
        assert!((50..150).contains(&share(0.1)));
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let make = |conf: &str| Fault::new(serde_json::from_str(conf).unwrap()).map(drop);
        for right in [r#"{ "delay": "1s" }"#, r#"{ "status": 503, "percent": 0.5 }"#, r#"{ "abort": true }"#] {
            assert!(make(right).is_ok(), "{right}");
        }
        for wrong in [
            "{}",
            r#"{ "percent": 5 }"#,
            r#"{ "status": 503, "abort": true }"#,
            r#"{ "status": 100 }"#,
            r#"{ "status": 503, "percent": 101 }"#,
            r#"{ "status": 503, "percent": -1 }"#,
        ] {
            assert!(make(wrong).is_err(), "{wrong}");
        }
    }
}
