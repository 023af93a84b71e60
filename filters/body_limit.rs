//! `body_limit`: no request body larger than this, else 413.
//!
//! ```yaml
//! - body_limit: { max: 1MiB }
//! ```
//!
//! A body that says its length is refused before any of it is read, a client that waits for `100 Continue` before it
//! has sent any; the others are counted while they come, and an upstream that has been sent the beginning never sees
//! the end. The route's `client_max_body_size` holds too: this filter is for a smaller limit around several routes, or
//! where another filter decides about it.
//!
//! `millpond_body_limit_rejected_total` counts by service and route.
//!
//! The same in code, under a name of one's own:
//!
//! ```
//! use millpond::conf::units::Size;
//! use millpond::filters::body_limit::{BodyLimit, BodyLimitConf};
//! use millpond::prelude::*;
//!
//! let millpond = Millpond::new().filter("small", |_: ()| Ok(BodyLimit::new(BodyLimitConf { max: Size(1024) })));
//! ```

use millpond::conf::units::Size;
use millpond::prelude::*;
use once_cell::sync::Lazy;
use prometheus::{IntCounterVec, Opts};
use serde::Deserialize;

/// What the configuration says.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BodyLimitConf {
    /// The largest body that passes, in bytes; 0: none does.
    pub max: Size,
}

/// The filter.
pub struct BodyLimit {
    max: u64,
}

impl BodyLimit {
    /// Make it from its configuration.
    pub fn new(conf: BodyLimitConf) -> Self {
        BodyLimit { max: conf.max.0 }
    }

    fn check(&self, length: u64, session: &Session<'_>) -> Result<()> {
        if length <= self.max {
            return Ok(());
        }
        REJECTED.with_label_values(&[session.service().name(), session.route().name()]).inc();
        let text = format!("body_limit: the request body is larger than {} bytes", self.max);
        Err(Error::new(ErrorKind::BodyTooLarge, text))
    }
}

impl UpstreamPhases for BodyLimit {
    /// Bytes so far.
    type Ctx = u64;

    fn new_ctx(&self) -> u64 {
        0
    }

    async fn request_filter(&self, session: &mut Session<'_>, _ctx: &mut u64) -> Result<Flow> {
        // One that is no number has been refused before.
        let length = session.request().headers.get("content-length").and_then(|length| length.to_str().ok());
        if let Some(length) = length.and_then(|length| length.trim().parse().ok()) {
            self.check(length, session)?;
        }
        Ok(Flow::Continue)
    }

    async fn request_body_filter(&self, session: &mut Session<'_>, body: &mut Bufs, ctx: &mut u64) -> Result<()> {
        *ctx += body.len() as u64;
        self.check(*ctx, session)
    }
}

static REJECTED: Lazy<IntCounterVec> = Lazy::new(|| {
    let opts = Opts::new("millpond_body_limit_rejected_total", "Request bodies that body_limit found too large.");
    let counter = IntCounterVec::new(opts, &["service", "route"]).expect("the names are sound");
    // A copy of this file in the same process has registered it first: it is the one that is shown.
    let _ = prometheus::register(Box::new(counter.clone()));
    counter
});
