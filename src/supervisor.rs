//! The one background service: what has to be done now and then for the upstreams, and reading the configuration again.

use crate::reload::Running;
use crate::upgrade::{CONFIRMATION, Sockets};
use async_trait::async_trait;
use pingora_core::server::{ListenFds, ShutdownWatch};
use pingora_core::services::Service;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval};

/// How often idle connections, and the peers' standing, are looked over.
const SWEEP: Duration = Duration::from_secs(1);

/// See the module.
pub(crate) struct Supervisor {
    pub(crate) running: Arc<Running>,
    pub(crate) sockets: Sockets,
}

/// Not a `BackgroundService`: those do not see the listening sockets.
#[async_trait]
impl Service for Supervisor {
    async fn start_service(&mut self, sockets: Option<ListenFds>, mut shutdown: ShutdownWatch, _: usize) {
        if let Some(sockets) = sockets {
            self.sockets.set(sockets);
        }
        tokio::spawn(serve_or_end(self.sockets.clone(), self.running.clone()));
        tokio::select! {
            () = self.supervise() => {}
            _ = shutdown.changed() => {}
        }
        end_at_once_on_interrupt().await;
    }

    fn name(&self) -> &str {
        "supervisor"
    }

    fn threads(&self) -> Option<usize> {
        Some(1)
    }

    /// What comes with the listeners of an old process.
    fn listen_addresses(&self) -> Option<Vec<String>> {
        Some(vec![CONFIRMATION.to_owned()])
    }
}

impl Supervisor {
    async fn supervise(&self) {
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
                    // What comes of it is in the log.
                    tokio::task::spawn_blocking(move || running.reload().is_ok());
                }
                _ = sweep.tick() => self.running.upstreams().iter().for_each(|upstream| {
                    upstream.pool.sweep();
                    upstream.show_peers();
                }),
            }
        }
    }
}

/// A process that does not listen where it should ends, so that somebody sees it; an old process then goes on.
async fn serve_or_end(sockets: Sockets, running: Arc<Running>) {
    if let Err(text) = sockets.established(&running.listeners()).await {
        log::error!("{text}");
        std::process::exit(1);
    }
}

/// Pingora listens to signals up to the first that ends the process, and a graceful end may take long.
async fn end_at_once_on_interrupt() {
    if let Ok(mut interrupt) = signal(SignalKind::interrupt()) {
        interrupt.recv().await;
        log::info!("SIGINT: what is in flight is broken off");
        std::process::exit(0);
    }
}
