//! Reading the configuration again while it is in use: `SIGHUP`, or `POST /reload` on the admin listener.
//!
//! Routes, filters, upstreams, certificates, limits and the access log are replaced; requests in flight keep what they
//! started with. Listeners and Pingora's own settings belong to the process: for them another one has to take over
//! ([`upgrade`](crate::upgrade)).

use crate::access_log::{self, Log};
use crate::app::{Built, Millpond, make_temp_path};
use crate::certificates::Certificates;
use crate::conf::{self, Address, Conf, Listen};
use crate::listen;
use crate::metrics;
use crate::peers::Upstream;
use crate::pipe::Limits;
use crate::routes::Service;
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use pingora_core::server::configuration::ServerConf;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use tokio::sync::Notify;

/// What runs, and may be replaced while it runs. Requests keep what they started with.
pub(crate) struct Running {
    /// Their names and listeners stay.
    pub(crate) services: Vec<Arc<ArcSwap<Service>>>,
    pub(crate) limits: Arc<Limits>,
    upstreams: Mutex<Vec<Arc<Upstream>>>,
    /// Other groups have come into use. For the supervisor, who looks after them.
    pub(crate) changed: Notify,
    /// Of the listeners with TLS.
    certificates: BTreeMap<Address, Certificates>,
    allow_changes: AtomicBool,
    started_with: StartedWith,
    /// Where it came from; `None`: from code.
    file: Option<(Millpond, PathBuf)>,
    /// Held while the file is read and used: two readings must not mix.
    reloading: Mutex<()>,
}

/// What cannot be replaced.
struct StartedWith {
    server: Arc<ServerConf>,
    admin: Option<Address>,
}

/// Why nothing has changed.
#[derive(Debug)]
pub(crate) enum Refused {
    /// The configuration was made in code.
    NoFile,
    /// What is wrong with the file, one thing a line.
    Wrong(String),
}

impl Running {
    pub(crate) fn new(conf: &Conf, built: Built, file: Option<(Millpond, PathBuf)>) -> Self {
        built.upstreams.iter().for_each(|upstream| upstream.begin());
        let (memory, files) = (memory_max(conf), conf.temp_files_max);
        Running {
            services: built.services.into_iter().map(|service| Arc::new(ArcSwap::new(service))).collect(),
            limits: Limits::new(memory, files, conf.temp_path.clone()),
            upstreams: Mutex::new(built.upstreams),
            changed: Notify::new(),
            certificates: built.certificates.into_iter().map(|(at, chosen)| (at, Certificates::new(chosen))).collect(),
            allow_changes: allow_changes(conf).into(),
            started_with: StartedWith { server: conf.server.clone(), admin: admin(conf).cloned() },
            file,
            reloading: Mutex::default(),
        }
    }

    /// The groups that are in use now.
    pub(crate) fn upstreams(&self) -> Vec<Arc<Upstream>> {
        self.upstreams.lock().clone()
    }

    /// `admin.allow_changes`.
    pub(crate) fn allows_changes(&self) -> bool {
        self.allow_changes.load(Relaxed)
    }

    /// Those of a listener with TLS.
    pub(crate) fn certificates(&self, listener: &Address) -> Option<&Certificates> {
        self.certificates.get(listener)
    }

    /// The names under which Pingora keeps the listeners, the admin's too.
    pub(crate) fn listeners(&self) -> BTreeSet<String> {
        let services = self.services.iter().map(|service| service.load_full());
        let of_services = services.flat_map(|service| service.conf.listen.clone()).map(|listen| listen.address);
        of_services.chain(self.started_with.admin.clone()).map(|address| listen::name(&address)).collect()
    }

    /// Read the file again and use it from the next request on. The answer is what of it needs an upgrade to be used, by
    /// key; the log says the same. It reads files and may look names up, so it is called outside the async threads.
    ///
    /// # Errors
    /// Nothing has changed.
    pub(crate) fn reload(&self) -> Result<Vec<String>, Refused> {
        let Some((millpond, path)) = &self.file else {
            log::warn!("reload: this configuration was made in code, there is no file to read again");
            return Err(Refused::NoFile);
        };
        let _one_at_a_time = self.reloading.lock();
        let reloaded =
            Conf::load(path).map_err(|errors| errors.to_string()).and_then(|conf| self.replace(millpond, conf, path));
        metrics::reloaded(reloaded.is_ok());
        match &reloaded {
            Ok(needs_upgrade) => {
                log::info!("reload: {} is in use", path.display());
                if !needs_upgrade.is_empty() {
                    log::warn!("reload: {} stays as it is: {}", needs_upgrade.join(", "), how_to_upgrade(path));
                }
            }
            Err(text) => log::error!("reload: nothing has changed\n{text}"),
        }
        reloaded.map_err(Refused::Wrong)
    }

    /// All that can fail comes first.
    fn replace(&self, millpond: &Millpond, mut conf: Conf, path: &Path) -> Result<Vec<String>, String> {
        let changed = self.changed_listeners(&conf);
        if !changed.is_empty() {
            let (changed, how) = (changed.join("\n"), how_to_upgrade(path));
            return Err(format!("{changed}\nservices and listeners cannot change while they are in use: {how}"));
        }
        let needs_upgrade = self.needs_upgrade(&conf);
        // Some of it is about connections to upstreams, and would be used for those that have changed only.
        conf.server = self.started_with.server.clone();
        let built = millpond.build(&conf, &self.upstreams()).map_err(|errors| errors.to_string())?;
        let log = conf.access_log.as_ref().map(Log::open).transpose()?;
        make_temp_path(&conf.temp_path);
        self.take(built);
        self.limits.set(memory_max(&conf), conf.temp_files_max, conf.temp_path.clone());
        self.allow_changes.store(allow_changes(&conf), Relaxed);
        access_log::use_log(log);
        Ok(needs_upgrade)
    }

    fn take(&self, built: Built) {
        let before = std::mem::replace(&mut *self.upstreams.lock(), built.upstreams.clone());
        begin(&before, &built.upstreams);
        for service in built.services {
            if let Some(place) = self.services.iter().find(|place| place.load().name() == service.name()) {
                place.store(service);
            }
        }
        for (listener, chosen) in built.certificates {
            if let Some(certificates) = self.certificates.get(&listener) {
                certificates.replace(chosen);
            }
        }
        retire(&before, &built.upstreams);
        self.changed.notify_one();
    }

    /// What differs in the services and listeners, one thing a line.
    fn changed_listeners(&self, conf: &Conf) -> Vec<String> {
        let running: Vec<_> = self.services.iter().map(|service| service.load_full()).collect();
        let gone = running.iter().filter(|service| !conf.services.iter().any(|new| new.name == service.name()));
        let mut changed: Vec<_> = gone.map(|service| format!("the service {} is gone", service.name())).collect();
        for service in &conf.services {
            match running.iter().find(|running| running.name() == service.name) {
                Some(running) => changed.extend(listeners_between(&running.conf, service)),
                None => changed.push(format!("the service {} is new", service.name)),
            }
        }
        changed
    }

    /// The keys that are used by the next process only.
    fn needs_upgrade(&self, conf: &Conf) -> Vec<String> {
        let (old, new) = (json_of(&self.started_with.server), json_of(&conf.server));
        let keys = new.as_object().into_iter().flat_map(|server| server.iter());
        let server = keys.filter(|(key, value)| old.get(key) != Some(value)).map(|(key, _)| format!("server.{key}"));
        let admin = match (&self.started_with.admin, admin(conf)) {
            (Some(_), None) | (None, Some(_)) => Some("admin".to_owned()),
            (old, new) => (old.as_ref() != new).then(|| "admin.listen".to_owned()),
        };
        server.chain(admin).collect()
    }
}

/// Groups that are new begin, before the first request comes to one.
fn begin(before: &[Arc<Upstream>], now: &[Arc<Upstream>]) {
    now.iter().filter(|upstream| !is_among(upstream, before)).for_each(|upstream| upstream.begin());
}

/// Groups that have been replaced let go.
fn retire(before: &[Arc<Upstream>], now: &[Arc<Upstream>]) {
    for gone in before.iter().filter(|upstream| !is_among(upstream, now)) {
        gone.retire(now.iter().find(|upstream| upstream.name() == gone.name()).map(|upstream| &**upstream));
    }
}

fn is_among(upstream: &Arc<Upstream>, others: &[Arc<Upstream>]) -> bool {
    others.iter().any(|other| Arc::ptr_eq(other, upstream))
}

/// How the listeners of a service differ. Other certificates are no difference.
fn listeners_between(old: &conf::Service, new: &conf::Service) -> Vec<String> {
    let find =
        |listeners: &[Listen], one: &Listen| listeners.iter().find(|other| other.address == one.address).cloned();
    let mut between = Vec::new();
    for listen in old.listen.iter().filter(|listen| find(&new.listen, listen).is_none()) {
        between.push(format!("service {}: the listener {} is gone", old.name, listen.address));
    }
    for listen in &new.listen {
        let what = match find(&old.listen, listen) {
            None => "is new",
            Some(old) if old.tls.is_empty() && !listen.tls.is_empty() => "has TLS now",
            Some(old) if !old.tls.is_empty() && listen.tls.is_empty() => "has no TLS any more",
            Some(old) if old.h2 != listen.h2 && listen.h2 => "has HTTP/2 now",
            Some(old) if old.h2 != listen.h2 => "has no HTTP/2 any more",
            Some(_) => continue,
        };
        between.push(format!("service {}: the listener {} {what}", new.name, listen.address));
    }
    between
}

fn how_to_upgrade(path: &Path) -> String {
    let program = std::env::args().next().unwrap_or_else(|| "millpond".to_owned());
    format!("start a new process, {program} -u -c {}, then kill -QUIT {}", path.display(), std::process::id())
}

fn memory_max(conf: &Conf) -> usize {
    usize::try_from(conf.buffer_memory_max).unwrap_or(usize::MAX)
}

fn allow_changes(conf: &Conf) -> bool {
    conf.admin.as_ref().is_some_and(|admin| admin.allow_changes)
}

fn admin(conf: &Conf) -> Option<&Address> {
    conf.admin.as_ref().map(|admin| &admin.listen)
}

/// To compare it key by key.
fn json_of(server: &ServerConf) -> Value {
    serde_json::to_value(server).unwrap_or_default()
}
