//! [`Millpond`]: register filters, read the command line, run.

use crate::access_log::{self, Log};
use crate::admin;
use crate::certificates;
use crate::chain::{Chain, Filter};
use crate::conf::{self, Conf, ConfError, ConfErrors, SettingsError, near};
use crate::error::Result;
use crate::listen;
use crate::metrics::RouteMetrics;
use crate::peers::Upstream;
use crate::phases::UpstreamPhases;
use crate::protocol::http1::Http1;
use crate::protocol::{self, Protocol, Protocols, Scope};
use crate::reload::Running;
use crate::routes::{Route, Service};
use crate::scope::{FilterScope, Site};
use crate::supervisor::Supervisor;
use crate::upgrade::{Signals, Sockets};
use clap::Parser;
use pingora_core::server::configuration::Opt;
use pingora_core::server::{RunArgs, Server};
use serde::de::DeserializeOwned;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

type Factory = Box<dyn Fn(&serde_json::Value, &FilterScope<'_>) -> Result<Arc<Filter>, SettingsError> + Send + Sync>;

/// A proxy binary: the stock one, or with filters and protocols of your own.
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
    protocols: Protocols,
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
    /// A proxy with the ready-made filters and protocols.
    pub fn new() -> Self {
        let empty = Millpond { factories: BTreeMap::new(), protocols: Protocols::default(), conf: None };
        protocol::register(crate::filters::register(empty))
    }

    /// Register a filter by name. `make` is called for each place in the configuration that names it, with what is
    /// configured there; it is called again when the configuration is tested.
    ///
    /// An `Err` refuses the configuration; its text says what was expected. A later registration under the same name
    /// replaces the earlier one.
    pub fn filter<C, P>(self, name: &str, make: impl Fn(C) -> Result<P> + Send + Sync + 'static) -> Self
    where
        C: DeserializeOwned,
        P: UpstreamPhases,
    {
        self.filter_in(name, move |conf, _| make(conf))
    }

    /// [`filter`](Self::filter) for one that needs to know where it stands, say to reach an upstream.
    pub fn filter_in<C, P>(
        mut self,
        name: &str,
        make: impl Fn(C, &FilterScope<'_>) -> Result<P> + Send + Sync + 'static,
    ) -> Self
    where
        C: DeserializeOwned,
        P: UpstreamPhases,
    {
        let filter_name = name.to_owned();
        let factory: Factory = Box::new(move |value, scope| {
            let conf = SettingsError::read(value)?;
            let phases = make(conf, scope).map_err(|error| SettingsError::whole(error.to_string()))?;
            Ok(Filter::new(&filter_name, phases))
        });
        self.factories.insert(name.to_owned(), factory);
        self
    }

    /// Register a protocol by name: what `upstreams.NAME.protocol` says of servers that speak it. `make` is called for
    /// each route that leads to such an upstream, with what the route has for it (`protocol: { NAME: {...} }`; nothing
    /// there is `{}`), and the [`Scope`] it is made for; it is called again when the configuration is tested.
    ///
    /// An `Err` refuses the configuration; its text says what was expected. A later registration under the same name
    /// replaces the earlier one.
    pub fn protocol<C, P>(
        mut self,
        name: &str,
        make: impl Fn(C, &Scope<'_>) -> Result<P> + Send + Sync + 'static,
    ) -> Self
    where
        C: DeserializeOwned,
        P: Protocol,
    {
        let factory: protocol::Factory = Box::new(move |settings, scope| {
            let conf = SettingsError::read(settings)?;
            let protocol = make(conf, scope).map_err(|error| SettingsError::whole(error.to_string()))?;
            Ok(Arc::new(protocol))
        });
        self.protocols.add(name, factory);
        self
    }

    /// Run with this configuration instead of a file; the command line is not read.
    pub fn conf(mut self, conf: Conf) -> Self {
        self.conf = Some(conf);
        self
    }

    /// Read the command line and the configuration, and serve until a signal ends the process: SIGTERM gracefully,
    /// SIGINT at once, SIGQUIT when another process has taken over. SIGHUP reads the file again. Returns early only for
    /// `-t`, `schema`, and errors, which are printed.
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
        // Whatever its folder is later (`-d`), the file is read again, and its relative paths start there.
        let file = if args.test { Ok(args.conf.clone()) } else { std::path::absolute(&args.conf) };
        let file = file.unwrap_or_else(|_| args.conf.clone());
        let conf = match Conf::load(&file) {
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
        self.serve(conf, Some(file), options)
    }

    /// What runs, made of what is configured. Of the groups `in_use` those that have not changed stay; of the others
    /// the peers that stay keep what is known of them.
    ///
    /// # Errors
    /// Filters and protocols that do not exist or refuse their configuration, certificates that cannot be read: all of
    /// them.
    pub(crate) fn build(&self, conf: &Conf, in_use: &[Arc<Upstream>]) -> Result<Built, ConfErrors> {
        let mut errors = Vec::new();
        let mut site = Site {
            upstreams: BTreeMap::new(),
            origins: RefCell::default(),
            protocols: &self.protocols,
            server: &conf.server,
            in_use,
        };
        for (name, upstream) in &conf.upstreams {
            errors.extend(self.protocols.check(upstream).err());
            match site.group(upstream) {
                Ok(upstream) => {
                    site.upstreams.insert(name.clone(), upstream);
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
        let certificates = read_certificates(conf, &mut errors);
        let services =
            conf.services.iter().map(|service| Arc::new(self.service(service, &site, &mut errors))).collect();
        for error in &mut errors {
            error.file.clone_from(&conf.file);
            error.place = error.place.or_else(|| conf.places.find(&error.path));
        }
        match errors.is_empty() {
            true => {
                let upstreams = site.upstreams.into_values().chain(site.origins.into_inner().into_values()).collect();
                Ok(Built { services, upstreams, certificates })
            }
            false => Err(ConfErrors(errors)),
        }
    }

    /// The services of a configuration that are not going to run, for [`Walk`](crate::chain::Walk).
    pub(crate) fn services(&self, conf: &Conf) -> Result<Vec<Arc<Service>>, ConfErrors> {
        self.build(conf, &[]).map(|built| built.services)
    }

    fn service(&self, conf: &conf::Service, site: &Site<'_>, errors: &mut Vec<ConfError>) -> Service {
        // Not its `uri`, which is about its own path.
        let first = conf::Route { uri: None, ..conf.routes[0].clone() };
        let outer = self.filters(&conf.filters, (&conf.name, &first), site, errors);
        let mut routes = Vec::with_capacity(conf.routes.len());
        for route in &conf.routes {
            let own = self.filters(&route.filters, (&conf.name, route), site, errors);
            let upstream = route.upstream.as_ref().and_then(|name| site.upstreams.get(name)).cloned();
            routes.push(Arc::new(Route {
                chain: Arc::new(Chain::new(outer.iter().chain(&own).cloned())),
                own_chain: Arc::new(Chain::new(own)),
                protocol: self.route_protocol(&conf.name, route, upstream.as_deref(), errors),
                upstream,
                metrics: RouteMetrics::new(&conf.name, &route.name),
                conf: route.clone(),
            }));
        }
        let no_route = Arc::new(nowhere(conf, outer));
        Service { conf: conf.clone(), routes, no_route }
    }

    fn filters(
        &self,
        filters: &[conf::Filter],
        (service, route): (&str, &conf::Route),
        site: &Site<'_>,
        errors: &mut Vec<ConfError>,
    ) -> Vec<Arc<Filter>> {
        let mut made = Vec::with_capacity(filters.len());
        for filter in filters {
            let Some(factory) = self.factories.get(&filter.name) else {
                errors.push(self.unknown_filter(filter));
                continue;
            };
            let scope = FilterScope { filter: &filter.name, service, route, site };
            match factory(&filter.conf, &scope) {
                Ok(filter) => made.push(filter),
                Err(error) => errors.push(error.at(&filter.path, &filter.conf, filter.place)),
            }
        }
        made
    }

    /// What the route speaks to its upstream; HTTP where there is none, which nobody will notice.
    fn route_protocol(
        &self,
        service: &str,
        route: &conf::Route,
        upstream: Option<&Upstream>,
        errors: &mut Vec<ConfError>,
    ) -> Arc<dyn Protocol> {
        if let (Some(protocol), Some(upstream)) = (&route.protocol, upstream) {
            let scope = Scope::new(service, &route.name, &upstream.conf);
            match self.protocols.make(protocol, &scope) {
                Ok(Some(made)) => return made,
                Ok(None) => {} // told at the upstream
                Err(error) => errors.push(error),
            }
        }
        Arc::new(Http1)
    }

    fn unknown_filter(&self, filter: &conf::Filter) -> ConfError {
        let known: Vec<&str> = self.factories.keys().map(String::as_str).collect();
        let near = near::question(&near::matches(&filter.name, known.iter().copied()));
        let expected = format!("one of {}{near}", known.join(", "));
        ConfError {
            file: String::new(),
            path: filter.path.clone(),
            found: format!("the unknown filter {}", filter.name),
            expected,
            place: filter.place,
        }
    }

    fn serve(self, conf: Conf, file: Option<PathBuf>, options: Opt) -> ExitCode {
        start_logging();
        keep_memory_small();
        let built = match self.build(&conf, &[]) {
            Ok(built) => built,
            Err(errors) => return refuse(&errors),
        };
        let running = Running::new(&conf, built, file.map(|file| (self, file)));
        match start(&conf, Arc::new(running), options) {
            Ok((server, signals)) => {
                server.run(RunArgs { shutdown_signal: Box::new(signals) });
                // What still runs now has had its time.
                std::process::exit(0)
            }
            Err(text) => {
                log::error!("{text}");
                eprintln!("millpond: {text}");
                ExitCode::FAILURE
            }
        }
    }
}

/// The route of requests that match none: the service's filters see their 404, which is sent with the time limits of
/// the service's first route and the error pages of the defaults.
fn nowhere(service: &conf::Service, filters: Vec<Arc<Filter>>) -> Route {
    let mut conf = service.routes[0].clone();
    conf.name = "-".to_owned();
    conf.upstream = None;
    conf.internal = false;
    conf.error_pages = service.error_pages.clone();
    Route {
        chain: Arc::new(Chain::new(filters)),
        own_chain: Arc::default(),
        upstream: None,
        protocol: Arc::new(Http1),
        metrics: RouteMetrics::new(&service.name, &conf.name),
        conf,
    }
}

/// A configuration turned into what runs.
pub(crate) struct Built {
    pub(crate) services: Vec<Arc<Service>>,
    pub(crate) upstreams: Vec<Arc<Upstream>>,
    /// Of each listener with TLS.
    pub(crate) certificates: BTreeMap<conf::Address, certificates::Chosen>,
}

/// The certificates of all listeners. They were right when the configuration was resolved, and may have been replaced
/// since.
fn read_certificates(conf: &Conf, errors: &mut Vec<ConfError>) -> BTreeMap<conf::Address, certificates::Chosen> {
    let mut read = BTreeMap::new();
    for (index, service) in conf.services.iter().enumerate() {
        for listen in service.listen.iter().filter(|listen| !listen.tls.is_empty()) {
            match certificates::Chosen::read(&listen.tls) {
                Ok(chosen) => {
                    read.insert(listen.address.clone(), chosen);
                }
                Err(text) => errors.push(ConfError {
                    file: String::new(),
                    path: format!("services[{index}].listen"),
                    found: text,
                    expected: "certificates and their keys".to_owned(),
                    place: None,
                }),
            }
        }
    }
    read
}

/// Everything that can fail fails before the listeners are taken over from an old process: it goes on then.
fn start(conf: &Conf, running: Arc<Running>, options: Opt) -> Result<(Server, Signals), String> {
    access_log::use_log(conf.access_log.as_ref().map(Log::open).transpose()?);
    make_temp_path(&conf.temp_path);
    let upgrade = options.upgrade;
    let mut server = Server::new_with_opt_and_conf(options, conf.server_conf());
    for service in &running.services {
        listen::add_services(&mut server, service, &running)?;
    }
    if let Some(conf) = &conf.admin {
        admin::add_service(&mut server, conf, &running);
    }
    let signals = Signals { sockets: Sockets::default(), upgrade_sock: server.configuration.upgrade_sock.clone() };
    log::info!("millpond {} starts with {} services", env!("CARGO_PKG_VERSION"), running.services.len());
    server.add_service(Supervisor { running, sockets: signals.sockets.clone() });
    if upgrade {
        log::info!("upgrade: waiting for the listeners at {}, send SIGQUIT to the old process", signals.upgrade_sock);
    }
    server.bootstrap();
    Ok((server, signals))
}

/// Make the folder of the temporary files, for this user alone, if it is not there. Without it responses wait upstream
/// where they would go to the disk; none fails.
pub(crate) fn make_temp_path(path: &Path) {
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

/// With transparent huge pages each thread's few buffers are rounded up to 2 MiB: 17 MiB instead of 8 at rest, and
/// steps of 2 MiB from there (measured with mimalloc), where the configuration promises its buffers and little more.
fn keep_memory_small() {
    if let Err(error) = nix::sys::prctl::set_thp_disable(true) {
        log::debug!("transparent huge pages stay as the system has them: {error}");
    }
}

/// The process's log goes to standard error; `RUST_LOG` chooses what is in it.
fn start_logging() {
    // Pingora calls it an error that the listeners of an old process are not there yet.
    const FILTER: &str = "info,pingora_core=warn,pingora_core::server::transfer_fd=off,pingora_proxy=warn";
    let filter = env_logger::Env::default().default_filter_or(FILTER);
    // A binary that has a logger of its own keeps it.
    let _ = env_logger::Builder::from_env(filter).format_timestamp_millis().try_init();
}
