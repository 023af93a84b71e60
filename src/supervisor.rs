//! The one background service: what has to be done now and then for the upstreams.

use crate::peers::Upstream;
use async_trait::async_trait;
use pingora_core::server::ShutdownWatch;
use pingora_core::services::background::BackgroundService;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{MissedTickBehavior, interval};

/// How often idle connections are looked over.
const SWEEP: Duration = Duration::from_secs(1);

/// See the module.
pub(crate) struct Supervisor {
    pub(crate) upstreams: Vec<Arc<Upstream>>,
}

#[async_trait]
impl BackgroundService for Supervisor {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let mut sweep = interval(SWEEP);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = shutdown.changed() => return,
                _ = sweep.tick() => self.upstreams.iter().for_each(|upstream| upstream.pool.sweep()),
            }
        }
    }
}
