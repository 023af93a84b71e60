//! A proxy binary with a filter of one's own: how often each path prefix was asked for, told in a response header.
//!
//! ```sh
//! cargo run --example custom_filter -- -c examples/custom_filter.yaml
//! ```

use millpond::prelude::*;
use serde::Deserialize;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};

/// What stands behind `visits:` in the configuration.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct VisitsConf {
    header: String,
    prefix: String,
}

/// One value serves all requests of its place in a chain.
struct Visits {
    conf: VisitsConf,
    count: AtomicU64,
}

impl UpstreamPhases for Visits {
    /// What a single request needs between its hooks.
    type Ctx = Option<u64>;

    fn new_ctx(&self) -> Self::Ctx {
        None
    }

    async fn request_filter(&self, session: &mut Session<'_>, visit: &mut Self::Ctx) -> Result<Flow> {
        if session.request().uri.path().starts_with(&self.conf.prefix) {
            *visit = Some(self.count.fetch_add(1, Ordering::Relaxed) + 1);
        }
        Ok(Flow::Continue)
    }

    async fn response_filter(
        &self,
        _session: &mut Session<'_>,
        response: &mut ResponseHeader,
        visit: &mut Self::Ctx,
    ) -> Result<Header> {
        if let Some(visit) = visit {
            response.insert_header(self.conf.header.clone(), *visit)?;
        }
        Ok(Header::Pass)
    }
}

fn main() -> ExitCode {
    Millpond::new().filter("visits", |conf| Ok(Visits { conf, count: AtomicU64::new(0) })).run()
}
