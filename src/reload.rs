//! Reading the configuration again while it is in use (`SIGHUP`).

use crate::app::Millpond;
use crate::conf::{Conf, Service as ServiceConf};
use crate::metrics;
use crate::peers::Upstream;
use crate::routes::Service;
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use std::path::PathBuf;
use std::sync::Arc;

/// What runs, and may be replaced while it runs. Requests keep what they started with.
pub(crate) struct Running {
    /// In the order of the configuration; their names and listeners stay.
    pub(crate) services: Vec<Arc<ArcSwap<Service>>>,
    upstreams: Mutex<Vec<Arc<Upstream>>>,
    /// Where it came from; `None`: from code.
    file: Option<(Millpond, PathBuf)>,
}

impl Running {
    pub(crate) fn new(
        services: Vec<Arc<Service>>,
        upstreams: Vec<Arc<Upstream>>,
        file: Option<(Millpond, PathBuf)>,
    ) -> Self {
        upstreams.iter().for_each(|upstream| upstream.begin());
        let services = services.into_iter().map(|service| Arc::new(ArcSwap::new(service))).collect();
        Running { services, upstreams: Mutex::new(upstreams), file }
    }

    /// The groups that are in use now.
    pub(crate) fn upstreams(&self) -> Vec<Arc<Upstream>> {
        self.upstreams.lock().clone()
    }

    /// Read the file again and use it from the next request on, or say in the log why not: then nothing changes. It reads
    /// files and looks names up, so it is called outside the async threads.
    pub(crate) fn reload(&self) {
        let Some((millpond, path)) = &self.file else {
            log::warn!("reload: this configuration was made in code, there is no file to read again");
            return;
        };
        let reloaded =
            Conf::load(path).map_err(|errors| errors.to_string()).and_then(|conf| self.replace(millpond, &conf));
        metrics::reloaded(reloaded.is_ok());
        match reloaded {
            Ok(()) => log::info!("reload: {} is in use", path.display()),
            Err(text) => log::error!("reload: nothing has changed\n{text}"),
        }
    }

    fn replace(&self, millpond: &Millpond, conf: &Conf) -> Result<(), String> {
        let current: Vec<_> = self.services.iter().map(|service| service.load_full()).collect();
        let kept = |(service, conf): (&Arc<Service>, &ServiceConf)| {
            service.conf.name == conf.name && service.conf.listen == conf.listen
        };
        if current.len() != conf.services.len() || !current.iter().zip(&conf.services).all(kept) {
            return Err(
                "services and listeners cannot change while they are in use: start a new process with -u".to_owned()
            );
        }
        let built = millpond.build(conf, &self.upstreams()).map_err(|errors| errors.to_string())?;
        for (place, service) in self.services.iter().zip(built.services) {
            place.store(service);
        }
        let before = std::mem::replace(&mut *self.upstreams.lock(), built.upstreams.clone());
        hand_over(&before, &built.upstreams);
        Ok(())
    }
}

/// Groups that are new begin, those that have been replaced let go.
fn hand_over(before: &[Arc<Upstream>], now: &[Arc<Upstream>]) {
    let among =
        |upstream: &Arc<Upstream>, others: &[Arc<Upstream>]| others.iter().any(|other| Arc::ptr_eq(other, upstream));
    now.iter().filter(|upstream| !among(upstream, before)).for_each(|upstream| upstream.begin());
    for gone in before.iter().filter(|upstream| !among(upstream, now)) {
        gone.retire(now.iter().find(|upstream| upstream.name() == gone.name()).map(|upstream| &**upstream));
    }
}
