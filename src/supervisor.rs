//! The one background service: what has to be done now and then for the upstreams, and reading the configuration again.

use crate::reload::Running;
use async_trait::async_trait;
use pingora_core::server::ShutdownWatch;
use pingora_core::services::background::BackgroundService;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval};

/// How often idle connections, and the peers' standing, are looked over.
const SWEEP: Duration = Duration::from_secs(1);

/// See the module.
pub(crate) struct Supervisor {
    pub(crate) running: Arc<Running>,
}

#[async_trait]
impl BackgroundService for Supervisor {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let mut sweep = interval(SWEEP);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut hangup = match signal(SignalKind::hangup()) {
            Ok(hangup) => hangup,
            Err(error) => {
                log::error!("SIGHUP cannot be listened to, the configuration stays as it is: {error}");
                return;
            }
        };
        loop {
            tokio::select! {
                _ = hangup.recv() => {
                    let running = self.running.clone();
                    tokio::task::spawn_blocking(move || running.reload());
                }
                _ = shutdown.changed() => return,
                _ = sweep.tick() => self.running.upstreams().iter().for_each(|upstream| {
                    upstream.pool.sweep();
                    upstream.show_peers();
                }),
            }
        }
    }
}
