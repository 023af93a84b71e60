//! [`Millpond`]: register filters, read the command line, run.

use crate::admin;
use crate::chain::{Chain, Filter};
use crate::conf::{self, Conf, ConfError, ConfErrors, near, shown};
use crate::error::Result;
use crate::listen;
use crate::metrics::RouteMetrics;
use crate::peers::Upstream;
use crate::phases::UpstreamPhases;
use crate::pipe::Limits;
use crate::reload::Running;
use crate::routes::{Route, Service};
use crate::supervisor::Supervisor;
use clap::Parser;
use pingora_core::server::Server;
use pingora_core::server::configuration::Opt;
use pingora_core::services::background::background_service;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

type Factory = Box<dyn Fn(&serde_json::Value) -> Result<Arc<Filter>, FilterConfError> + Send + Sync>;

/// Why a filter cannot be made from its configuration.
pub(crate) struct FilterConfError {
    /// The key inside the filter's configuration; empty: all of it.
    pub(crate) key: String,
    pub(crate) text: String,
}

/// A proxy binary: the stock one, or with filters of your own.
///
/// ```no_run
/// use millpond::prelude::*;
///
/// #[derive(serde::Deserialize)]
/// #[serde(deny_unknown_fields)]
/// struct Conf {
///     agent: String,
/// }
///
/// struct Block(Conf);
///
/// impl UpstreamPhases for Block {
///     type Ctx = ();
///     fn new_ctx(&self) {}
///
///     async fn request_filter(&self, session: &mut Session<'_>, _ctx: &mut ()) -> Result<Flow> {
///         let agent = session.request().headers.get("user-agent");
///         if agent.is_some_and(|agent| agent.as_bytes() == self.0.agent.as_bytes()) {
///             session.respond(403, "not you\n")?;
///             return Ok(Flow::Done);
///         }
///         Ok(Flow::Continue)
///     }
/// }
///
/// fn main() -> std::process::ExitCode {
///     Millpond::new().filter("block", |conf: Conf| Ok(Block(conf))).run()
/// }
/// ```
pub struct Millpond {
    factories: BTreeMap<String, Factory>,
    conf: Option<Conf>,
}

/// The command line.
#[derive(Parser)]
#[command(name = "millpond", version, about = "A reverse proxy on Pingora with nginx's upstream mechanism")]
struct Args {
    /// The configuration file
    #[arg(short, long, value_name = "FILE", default_value = "conf/quickstart.yaml")]
    conf: PathBuf,
    /// Test the configuration and exit
    #[arg(short, long)]
    test: bool,
    /// Run in the background
    #[arg(short, long)]
    daemon: bool,
    /// Take the listeners over from a running process
    #[arg(short, long)]
    upgrade: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Print the JSON Schema of the configuration file
    Schema,
}

impl Default for Millpond {
    fn default() -> Self {
        Self::new()
    }
}

impl Millpond {
    /// A proxy with the ready-made filters.
    pub fn new() -> Self {
        crate::filters::register(Millpond { factories: BTreeMap::new(), conf: None })
    }

    /// Register a filter by name. `make` is called for each place in the configuration that names it, with what is
    /// configured there; it is called again when the configuration is tested.
    ///
    /// An `Err` refuses the configuration; its text says what was expected. A later registration under the same name
    /// replaces the earlier one.
    pub fn filter<C, P>(mut self, name: &str, make: impl Fn(C) -> Result<P> + Send + Sync + 'static) -> Self
    where
        C: DeserializeOwned,
        P: UpstreamPhases,
    {
        let filter_name = name.to_owned();
        let factory: Factory = Box::new(move |value| {
            let conf = serde_path_to_error::deserialize(value)
                .map_err(|error| FilterConfError { key: error.path().to_string(), text: error.inner().to_string() })?;
            let phases = make(conf).map_err(|error| FilterConfError { key: String::new(), text: error.to_string() })?;
            Ok(Filter::new(&filter_name, phases))
        });
        self.factories.insert(name.to_owned(), factory);
        self
    }

    /// Run with this configuration instead of a file; the command line is not read.
    pub fn conf(mut self, conf: Conf) -> Self {
        self.conf = Some(conf);
        self
    }

    /// Read the command line and the configuration, and serve until a signal ends the process: SIGTERM gracefully, SIGINT
    /// at once, SIGQUIT when another process has taken over. SIGHUP reads the file again. Returns early only for `-t`, `schema`, and errors, which are
    /// printed.
    pub fn run(mut self) -> ExitCode {
        if let Some(conf) = self.conf.take() {
            return self.serve(conf, None, Opt::default());
        }
        let args = Args::parse();
        if let Some(Command::Schema) = args.command {
            let schema = serde_json::to_string_pretty(&Conf::schema()).unwrap_or_default();
            // Whoever reads only the beginning of it is welcome to.
            let _ = writeln!(std::io::stdout(), "{schema}");
            return ExitCode::SUCCESS;
        }
        let conf = match Conf::load(&args.conf) {
            Ok(conf) => conf,
            Err(errors) => return refuse(&errors),
        };
        if args.test {
            return match self.build(&conf, &[]) {
                Ok(_) => {
                    println!("{}: the configuration is good", args.conf.display());
                    ExitCode::SUCCESS
                }
                Err(errors) => refuse(&errors),
            };
        }
        let options = Opt { upgrade: args.upgrade, daemon: args.daemon, ..Opt::default() };
        self.serve(conf, Some(args.conf), options)
    }

    /// What runs, made of what is configured. Of the groups `in_use` those that have not changed stay; of the others the
    /// peers that stay keep what is known of them.
    ///
    /// # Errors
    /// Filters that do not exist or refuse their configuration, certificates that cannot be read: all of them.
    pub(crate) fn build(&self, conf: &Conf, in_use: &[Arc<Upstream>]) -> Result<Built, ConfErrors> {
        let mut errors = Vec::new();
        let mut upstreams = BTreeMap::new();
        for (name, upstream) in &conf.upstreams {
            let before = in_use.iter().find(|in_use| in_use.name() == name);
            let made = match before {
                Some(before) if before.conf == *upstream => Ok(before.clone()),
                before => Upstream::new(upstream.clone(), &conf.server, before.map(|before| &**before)).map(Arc::new),
            };
            match made {
                Ok(upstream) => {
                    upstreams.insert(name.clone(), upstream);
                }
                Err(text) => errors.push(ConfError {
                    file: String::new(),
                    path: format!("upstreams.{name}.tls"),
                    found: text,
                    expected: "files that can be read".to_owned(),
                    place: None,
                }),
            }
        }
        let services =
            conf.services.iter().map(|service| Arc::new(self.service(service, &upstreams, &mut errors))).collect();
        errors.iter_mut().for_each(|error| error.file.clone_from(&conf.file));
        match errors.is_empty() {
            true => Ok(Built { services, upstreams: upstreams.into_values().collect() }),
            false => Err(ConfErrors(errors)),
        }
    }

    /// The services of a configuration that are not going to run, for [`Walk`](crate::chain::Walk).
    pub(crate) fn services(&self, conf: &Conf) -> Result<Vec<Arc<Service>>, ConfErrors> {
        self.build(conf, &[]).map(|built| built.services)
    }

    fn service(
        &self,
        conf: &conf::Service,
        upstreams: &BTreeMap<String, Arc<Upstream>>,
        errors: &mut Vec<ConfError>,
    ) -> Service {
        let outer = self.filters(&conf.filters, errors);
        let mut routes = Vec::with_capacity(conf.routes.len());
        for route in &conf.routes {
            let own = self.filters(&route.filters, errors);
            let upstream = route.upstream.as_ref().and_then(|name| upstreams.get(name)).cloned();
            routes.push(Arc::new(Route {
                chain: Arc::new(Chain::new(outer.iter().cloned().chain(own))),
                upstream,
                metrics: RouteMetrics::new(&conf.name, &route.name),
                conf: route.clone(),
            }));
        }
        let no_route = Arc::new(nowhere(conf, outer));
        Service { conf: conf.clone(), routes, no_route }
    }

    fn filters(&self, filters: &[conf::Filter], errors: &mut Vec<ConfError>) -> Vec<Arc<Filter>> {
        let mut made = Vec::with_capacity(filters.len());
        for filter in filters {
            let Some(factory) = self.factories.get(&filter.name) else {
                errors.push(self.unknown_filter(filter));
                continue;
            };
            match factory(&filter.conf) {
                Ok(filter) => made.push(filter),
                Err(error) => errors.push(error.at(filter)),
            }
        }
        made
    }

    fn unknown_filter(&self, filter: &conf::Filter) -> ConfError {
        let known: Vec<&str> = self.factories.keys().map(String::as_str).collect();
        let near = near::question(&near::matches(&filter.name, known.iter().copied()));
        let expected = format!("one of {}{near}", known.join(", "));
        wrong(filter, filter.path.clone(), format!("the unknown filter {}", filter.name), expected)
    }

    fn serve(self, conf: Conf, file: Option<PathBuf>, options: Opt) -> ExitCode {
        start_logging();
        keep_memory_small();
        let built = match self.build(&conf, &[]) {
            Ok(built) => built,
            Err(errors) => return refuse(&errors),
        };
        let running = Running::new(built.services, built.upstreams, file.map(|file| (self, file)));
        match start(&conf, Arc::new(running), options) {
            Ok(server) => server.run_forever(),
            Err(text) => {
                log::error!("{text}");
                eprintln!("millpond: {text}");
                ExitCode::FAILURE
            }
        }
    }
}

/// The route of requests that match none: the service's filters see their 404, which is sent with the time limits of the
/// service's first route and the error pages of the defaults.
fn nowhere(service: &conf::Service, filters: Vec<Arc<Filter>>) -> Route {
    let mut conf = service.routes[0].clone();
    conf.name = "-".to_owned();
    conf.upstream = None;
    conf.internal = false;
    conf.error_pages = service.error_pages.clone();
    Route {
        chain: Arc::new(Chain::new(filters)),
        upstream: None,
        metrics: RouteMetrics::new(&service.name, &conf.name),
        conf,
    }
}

/// An error that only the filter's maker could know of.
fn wrong(filter: &conf::Filter, path: String, found: String, expected: String) -> ConfError {
    ConfError { file: String::new(), path, found, expected, place: filter.place }
}

impl FilterConfError {
    /// The same as all errors of a configuration are said. serde's own messages have both halves in them.
    fn at(&self, filter: &conf::Filter) -> ConfError {
        let (path, value) = match self.key.as_str() {
            "" | "." => (filter.path.clone(), Some(&filter.conf)),
            key => {
                (format!("{}.{key}", filter.path), key.split('.').try_fold(&filter.conf, |value, key| value.get(key)))
            }
        };
        let (found, expected) = match self.text.split_once(", expected ") {
            Some((found, expected)) => (found.trim_start_matches("invalid type: ").to_owned(), expected.to_owned()),
            None => (value.map_or_else(|| "this".to_owned(), shown), self.text.replace("missing field", "the key")),
        };
        wrong(filter, path, found, expected)
    }
}

/// A configuration turned into what runs.
pub(crate) struct Built {
    pub(crate) services: Vec<Arc<Service>>,
    pub(crate) upstreams: Vec<Arc<Upstream>>,
}

fn start(conf: &Conf, running: Arc<Running>, options: Opt) -> Result<Server, String> {
    if let Some(access_log) = &conf.access_log {
        crate::access_log::open(access_log)
            .map_err(|error| format!("access_log.path: {}: {error}", access_log.path.display()))?;
    }
    make_temp_path(&conf.temp_path);
    let memory_max = usize::try_from(conf.buffer_memory_max).unwrap_or(usize::MAX);
    let limits = Limits::new(memory_max, conf.temp_files_max, conf.temp_path.clone());
    let mut server = Server::new_with_opt_and_conf(options, conf.server_conf());
    server.bootstrap();
    for service in &running.services {
        listen::add_services(&mut server, service, &limits)?;
    }
    if let Some(conf) = &conf.admin {
        admin::add_service(&mut server, conf, &limits, &running);
    }
    log::info!("millpond {} starts with {} services", env!("CARGO_PKG_VERSION"), running.services.len());
    server.add_service(background_service("supervisor", Supervisor { running }));
    Ok(server)
}

/// Make the folder of the temporary files, for this user alone, if it is not there. Without it responses wait upstream
/// where they would go to the disk; none fails.
fn make_temp_path(path: &Path) {
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    if let Err(error) = made {
        log::warn!("temp_path {}: {error}; nothing can be stored on disk", path.display());
    }
}

/// Say what is wrong with a configuration; nothing has been started.
fn refuse(errors: &ConfErrors) -> ExitCode {
    eprintln!("{errors}");
    ExitCode::FAILURE
}

/// With transparent huge pages each thread's few buffers are rounded up to 2 MiB: 17 MiB instead of 8 at rest, and steps
/// of 2 MiB from there (measured with mimalloc), where the configuration promises its buffers and little more.
fn keep_memory_small() {
    if let Err(error) = nix::sys::prctl::set_thp_disable(true) {
        log::debug!("transparent huge pages stay as the system has them: {error}");
    }
}

/// The process's log goes to standard error; `RUST_LOG` chooses what is in it.
fn start_logging() {
    let filter = env_logger::Env::default().default_filter_or("info,pingora_core=warn,pingora_proxy=warn");
    // A binary that has a logger of its own keeps it.
    let _ = env_logger::Builder::from_env(filter).format_timestamp_millis().try_init();
}
