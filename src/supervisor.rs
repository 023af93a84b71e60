//! The one background service: what has to be done now and then for the upstreams, and reading the configuration again.

use crate::dns::Dns;
use crate::peers::{Upstream, discovery, health};
use crate::reload::Running;
use crate::upgrade::{CONFIRMATION, Sockets};
use async_trait::async_trait;
use pingora_core::server::{ListenFds, ShutdownWatch};
use pingora_core::services::Service;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
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
        // Listened to from the start: one that comes just after the end has begun must not be missed.
        let interrupt = signal(SignalKind::interrupt());
        tokio::select! {
            () = self.supervise() => {}
            _ = shutdown.changed() => {}
        }
        end_at_once_on(interrupt).await;
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
        let hangup = match signal(SignalKind::hangup()) {
            Ok(hangup) => hangup,
            Err(error) => {
                log::error!("SIGHUP cannot be listened to, the configuration stays as it is: {error}");
                return;
            }
        };
        let mut tended = Tended::default();
        tended.are_now(self.running.upstreams());
        let mut reloads = pin!(reload_on(hangup, self.running.clone()));
        loop {
            tokio::select! {
                () = &mut reloads => {}
                () = self.running.changed.notified() => tended.are_now(self.running.upstreams()),
                _ = sweep.tick() => self.running.upstreams().iter().for_each(|upstream| {
                    upstream.pool.sweep();
                    upstream.show_peers();
                }),
            }
        }
    }
}

/// Read the file again at each signal, for ever. Signals that come while it is read are one: name servers that do not answer
/// make a reading long, and one more sees all that was changed meanwhile.
async fn reload_on(mut hangup: Signal, running: Arc<Running>) {
    while hangup.recv().await.is_some() {
        let running = running.clone();
        // What comes of it is in the log.
        let _ = tokio::task::spawn_blocking(move || running.reload().is_ok()).await;
    }
}

/// The upstreams in use, each with what is done for it in the background; that ends when it is dropped.
#[derive(Default)]
struct Tended(Vec<(Arc<Upstream>, Tasks)>);

#[derive(Default)]
struct Tasks {
    health: JoinSet<()>,
    discovery: JoinSet<()>,
}

impl Tended {
    /// These are in use now. Those that were before go on being checked; all names are looked up anew, since the
    /// system's name servers may be others now.
    fn are_now(&mut self, upstreams: Vec<Arc<Upstream>>) {
        let mut before = std::mem::take(&mut self.0);
        for upstream in upstreams {
            let known = before.iter().position(|(known, _)| Arc::ptr_eq(known, &upstream));
            let mut tasks = match known {
                Some(known) => before.swap_remove(known).1,
                None => Tasks::checking(&upstream),
            };
            tasks.discover(&upstream);
            self.0.push((upstream, tasks));
        }
    }
}

impl Tasks {
    fn checking(upstream: &Arc<Upstream>) -> Self {
        let mut tasks = Tasks::default();
        if upstream.conf.health_check.is_some() {
            tasks.health.spawn(health::watch(upstream.clone()));
        }
        tasks
    }

    fn discover(&mut self, upstream: &Arc<Upstream>) {
        self.discovery = JoinSet::new();
        if !discovery::is_needed(upstream) {
            return;
        }
        match Dns::new(&upstream.conf.resolver) {
            Ok(dns) => {
                self.discovery.spawn(discovery::follow(upstream.clone(), dns));
            }
            Err(error) => log::error!("upstream {}: names cannot be looked up: {error}", upstream.name()),
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
async fn end_at_once_on(interrupt: std::io::Result<Signal>) {
    if let Ok(mut interrupt) = interrupt {
        interrupt.recv().await;
        log::info!("SIGINT: what is in flight is broken off");
        std::process::exit(0);
    }
}
