//! A canary splitter: a share of the clients, always the same ones, is served by the next version.
//!
//! ```sh
//! cargo run --example canary -- -c examples/canary.yaml
//! ```
//!
//! Whoever sends `X-Canary: always` or `never` decides; else the client's address does. A canary that cannot be reached
//! costs nobody anything: the next attempt goes to the group that the route names, which needs two servers for that: a
//! request has as many tries as the group has.

use millpond::prelude::*;
use serde::Deserialize;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::process::ExitCode;

/// What stands behind `canary:` in the configuration.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CanaryConf {
    /// `IP:PORT` or `unix:PATH`.
    address: String,
    /// The share of clients, 0 to 100.
    percent: u64,
}

struct Canary(CanaryConf);

impl Canary {
    fn new(conf: CanaryConf) -> Result<Self> {
        match conf.percent {
            0..=100 => Ok(Canary(conf)),
            other => Err(Error::new(ErrorKind::Filter, format!("a percentage from 0 to 100, not {other}"))),
        }
    }

    fn is_for(&self, session: &Session<'_>) -> bool {
        let asked = session.request().headers.get("x-canary").map(HeaderValue::as_bytes);
        match asked {
            Some(b"always") => true,
            Some(b"never") => false,
            _ => {
                let mut hasher = DefaultHasher::new();
                session.remote_addr().map(|address| address.ip()).hash(&mut hasher);
                hasher.finish() % 100 < self.0.percent
            }
        }
    }
}

impl UpstreamPhases for Canary {
    type Ctx = ();

    fn new_ctx(&self) {}

    /// Called for each attempt: only the first goes to the canary.
    async fn upstream_peer(&self, session: &mut Session<'_>, _ctx: &mut ()) -> Result<Option<Peer>> {
        if !session.attempts().is_empty() || !self.is_for(session) {
            return Ok(None);
        }
        session.route().upstream().map(|upstream| upstream.peer(&self.0.address)).transpose()
    }

    async fn response_filter(
        &self,
        session: &mut Session<'_>,
        response: &mut ResponseHeader,
        _ctx: &mut (),
    ) -> Result<Header> {
        let served = session.attempts().last().is_some_and(|attempt| *attempt.address == *self.0.address);
        response.insert_header("x-served-by", if served { "canary" } else { "stable" })?;
        Ok(Header::Pass)
    }
}

fn main() -> ExitCode {
    Millpond::new().filter("canary", Canary::new).run()
}
