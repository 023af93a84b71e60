//! Prometheus metrics, all with the prefix `millpond_`. Label values come from the configuration or a closed set, never
//! from a request.

use crate::pipe::{Limits, PipeStats};
use crate::session::{Attempt, Session};
use once_cell::sync::{Lazy, OnceCell};
use parking_lot::RwLock;
use prometheus::{
    Counter, CounterVec, Encoder, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    TextEncoder, register_counter_vec, register_histogram_vec, register_int_counter_vec, register_int_gauge,
    register_int_gauge_vec,
};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// From a cached answer to a minute's wait.
const SECONDS: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];
/// A filter takes nanoseconds, or it waits for something.
const FILTER_SECONDS: &[f64] = &[1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0];

struct Metrics {
    requests_total: IntCounterVec,
    request_duration_seconds: HistogramVec,
    requests_in_flight: IntGaugeVec,
    upstream_attempts_total: IntCounterVec,
    upstream_connect_seconds: HistogramVec,
    upstream_header_seconds: HistogramVec,
    upstream_response_seconds: HistogramVec,
    upstream_connections: IntGaugeVec,
    upstream_peer_up: IntGaugeVec,
    upstream_health_checks_total: IntCounterVec,
    pipe_memory_bytes: IntGauge,
    pipe_temp_file_bytes: IntGauge,
    pipe_spills_total: IntCounterVec,
    pipe_disk_errors_total: IntCounterVec,
    pipe_backpressure_seconds_total: CounterVec,
    upstream_freed_early_seconds: HistogramVec,
    client_aborts_total: IntCounterVec,
    filter_seconds: HistogramVec,
    config_reloads_total: IntCounterVec,
    file_reloads_total: IntCounterVec,
    build_info: IntGaugeVec,
}

macro_rules! metric {
    ($register:ident, $name:literal, $help:literal $(, $more:expr)*) => {
        $register!(concat!("millpond_", $name), $help $(, $more)*).expect("a metric is registered once, under one name")
    };
}

static METRICS: Lazy<Metrics> = Lazy::new(|| Metrics {
    requests_total: metric!(
        register_int_counter_vec,
        "requests_total",
        "Requests finished.",
        &["service", "route", "method", "status"]
    ),
    request_duration_seconds: metric!(
        register_histogram_vec,
        "request_duration_seconds",
        "From the request's header to its last byte at the client.",
        &["service", "route"],
        SECONDS.to_vec()
    ),
    requests_in_flight: metric!(register_int_gauge_vec, "requests_in_flight", "Requests being served.", &["service"]),
    upstream_attempts_total: metric!(
        register_int_counter_vec,
        "upstream_attempts_total",
        "Tries at peers, by what they came to.",
        &["upstream", "peer", "outcome"]
    ),
    upstream_connect_seconds: metric!(
        register_histogram_vec,
        "upstream_connect_seconds",
        "Time until a new connection was there.",
        &["upstream"],
        SECONDS.to_vec()
    ),
    upstream_header_seconds: metric!(
        register_histogram_vec,
        "upstream_header_seconds",
        "Time until the response header was complete.",
        &["upstream"],
        SECONDS.to_vec()
    ),
    upstream_response_seconds: metric!(
        register_histogram_vec,
        "upstream_response_seconds",
        "Time until the upstream was free.",
        &["upstream"],
        SECONDS.to_vec()
    ),
    upstream_connections: metric!(
        register_int_gauge_vec,
        "upstream_connections",
        "Connections to upstreams; active: serving a request, idle: in the pool.",
        &["upstream", "state"]
    ),
    upstream_peer_up: metric!(
        register_int_gauge_vec,
        "upstream_peer_up",
        "1: may be chosen. 0: resting after failures, unhealthy, drained or down.",
        &["upstream", "peer"]
    ),
    upstream_health_checks_total: metric!(
        register_int_counter_vec,
        "upstream_health_checks_total",
        "Active health checks of peers; result: pass, fail.",
        &["upstream", "peer", "result"]
    ),
    pipe_memory_bytes: metric!(register_int_gauge, "pipe_memory_bytes", "Memory held by all pipes and stored bodies."),
    pipe_temp_file_bytes: metric!(register_int_gauge, "pipe_temp_file_bytes", "Length of all temporary files."),
    pipe_spills_total: metric!(
        register_int_counter_vec,
        "pipe_spills_total",
        "Writes of response data to a temporary file.",
        &["route"]
    ),
    pipe_disk_errors_total: metric!(
        register_int_counter_vec,
        "pipe_disk_errors_total",
        "Times the disk refused response data, which then waited upstream.",
        &["route"]
    ),
    pipe_backpressure_seconds_total: metric!(
        register_counter_vec,
        "pipe_backpressure_seconds_total",
        "Time during which an upstream was held back.",
        &["route"]
    ),
    upstream_freed_early_seconds: metric!(
        register_histogram_vec,
        "upstream_freed_early_seconds",
        "How long before the client's end the upstream was free.",
        &["route"],
        SECONDS.to_vec()
    ),
    client_aborts_total: metric!(
        register_int_counter_vec,
        "client_aborts_total",
        "Requests whose client left before the end.",
        &["service"]
    ),
    filter_seconds: metric!(
        register_histogram_vec,
        "filter_seconds",
        "Time in a filter's hook, of one request in 16.",
        &["filter", "phase"],
        FILTER_SECONDS.to_vec()
    ),
    config_reloads_total: metric!(
        register_int_counter_vec,
        "config_reloads_total",
        "Times the configuration was read again.",
        &["result"]
    ),
    file_reloads_total: metric!(
        register_int_counter_vec,
        "file_reloads_total",
        "Times a filter's file had changed and was read again.",
        &["filter", "result"]
    ),
    build_info: metric!(register_int_gauge_vec, "build_info", "The version that runs.", &["version"]),
});

/// Counters by a small set of keys that are met again and again: finding one by its labels costs more.
struct Counters<K>(RwLock<Vec<(K, IntCounter)>>);

impl<K: PartialEq> Counters<K> {
    fn new() -> Self {
        Counters(RwLock::new(Vec::new()))
    }

    fn inc(&self, key: K, find: impl FnOnce() -> IntCounter) {
        if let Some((_, counter)) = self.0.read().iter().find(|(known, _)| *known == key) {
            return counter.inc();
        }
        let counter = find();
        counter.inc();
        self.0.write().push((key, counter));
    }
}

/// The handles of one route.
pub(crate) struct RouteMetrics {
    requests: Counters<(&'static str, u16)>,
    duration: Histogram,
    in_flight: IntGauge,
    spills: IntCounter,
    disk_errors: IntCounter,
    backpressure: Counter,
    freed_early: Histogram,
    aborts: IntCounter,
}

impl RouteMetrics {
    pub(crate) fn new(service: &str, route: &str) -> Self {
        RouteMetrics {
            requests: Counters::new(),
            duration: METRICS.request_duration_seconds.with_label_values(&[service, route]),
            in_flight: METRICS.requests_in_flight.with_label_values(&[service]),
            spills: METRICS.pipe_spills_total.with_label_values(&[route]),
            disk_errors: METRICS.pipe_disk_errors_total.with_label_values(&[route]),
            backpressure: METRICS.pipe_backpressure_seconds_total.with_label_values(&[route]),
            freed_early: METRICS.upstream_freed_early_seconds.with_label_values(&[route]),
            aborts: METRICS.client_aborts_total.with_label_values(&[service]),
        }
    }

    /// What a pipe has done since it was last asked.
    pub(crate) fn piped(&self, now: &PipeStats, before: &PipeStats) {
        self.spills.inc_by(now.spills - before.spills);
        self.disk_errors.inc_by(now.disk_errors - before.disk_errors);
        self.backpressure.inc_by(now.backpressure.saturating_sub(before.backpressure).as_secs_f64());
    }

    /// A request has begun; it is counted out again by [`count`].
    pub(crate) fn begun(&self) {
        self.in_flight.inc();
    }
}

/// The handles of one upstream.
pub(crate) struct UpstreamMetrics {
    name: String,
    attempts: Counters<(Option<usize>, &'static str)>,
    connect: Histogram,
    header: Histogram,
    response: Histogram,
    active: IntGauge,
    idle: IntGauge,
    peers: Vec<Arc<str>>,
    /// Made when the upstream is in use: a configuration that is refused in the end must not show peers that are down.
    peers_up: OnceCell<Vec<IntGauge>>,
}

impl UpstreamMetrics {
    /// `peers`: the servers as they are written in the configuration.
    pub(crate) fn new<'a>(name: &str, peers: impl Iterator<Item = &'a str>) -> Self {
        let peers: Vec<Arc<str>> = peers.map(Arc::from).collect();
        UpstreamMetrics {
            attempts: Counters::new(),
            connect: METRICS.upstream_connect_seconds.with_label_values(&[name]),
            header: METRICS.upstream_header_seconds.with_label_values(&[name]),
            response: METRICS.upstream_response_seconds.with_label_values(&[name]),
            active: METRICS.upstream_connections.with_label_values(&[name, "active"]),
            idle: METRICS.upstream_connections.with_label_values(&[name, "idle"]),
            peers_up: OnceCell::new(),
            peers,
            name: name.to_owned(),
        }
    }

    /// A new connection took so long.
    pub(crate) fn connected(&self, took: Duration) {
        self.connect.observe(took.as_secs_f64());
    }

    /// How many connections wait in the pool.
    pub(crate) fn idle(&self) -> IntGauge {
        self.idle.clone()
    }

    /// A peer was chosen, or given back.
    pub(crate) fn active(&self, change: i64) {
        self.active.add(change);
    }

    /// May a peer of the group be chosen? Only for an upstream that is, or was, in use.
    pub(crate) fn peer_up(&self, member: usize, up: bool) {
        let gauge = |peer: &Arc<str>| METRICS.upstream_peer_up.with_label_values(&[&*self.name, peer]);
        let gauges = self.peers_up.get_or_init(|| self.peers.iter().map(gauge).collect());
        if let Some(gauge) = gauges.get(member) {
            gauge.set(i64::from(up));
        }
    }

    /// A health check of a peer has ended. It is a rare thing: the counter is looked up.
    pub(crate) fn checked(&self, member: usize, passed: bool) {
        if let Some(peer) = self.peers.get(member) {
            let result = if passed { "pass" } else { "fail" };
            METRICS.upstream_health_checks_total.with_label_values(&[&*self.name, peer, result]).inc();
        }
    }

    /// Peers that are no longer configured are not to be shown for ever as they were.
    pub(crate) fn forget_peers(&self, gone: impl Fn(&str) -> bool) {
        for peer in self.peers.iter().filter(|peer| gone(peer)) {
            // Listed twice, it is gone already.
            let _ = METRICS.upstream_peer_up.remove_label_values(&[&self.name, peer]);
        }
    }

    fn attempt(&self, attempt: &Attempt) {
        let outcome = attempt.outcome.unwrap_or("aborted");
        // A peer that a filter named may come from a request.
        let peer = self.peers.iter().position(|peer| *peer == attempt.peer);
        let label = peer.map_or("other", |peer| &*self.peers[peer]);
        self.attempts
            .inc((peer, outcome), || METRICS.upstream_attempts_total.with_label_values(&[&self.name, label, outcome]));
        if let Some(took) = attempt.header_time {
            self.header.observe(took.as_secs_f64());
        }
        if let Some(took) = attempt.response_time {
            self.response.observe(took.as_secs_f64());
        }
    }
}

/// The times of one filter's hooks.
pub(crate) struct FilterTimes(Vec<Histogram>);

impl FilterTimes {
    pub(crate) fn new(filter: &str, phases: &[&str]) -> Self {
        FilterTimes(phases.iter().map(|phase| METRICS.filter_seconds.with_label_values(&[filter, *phase])).collect())
    }

    pub(crate) fn observe(&self, hook: usize, took: Duration) {
        if let Some(times) = self.0.get(hook) {
            times.observe(took.as_secs_f64());
        }
    }
}

/// The configuration was read again, and is in use or was refused.
pub(crate) fn reloaded(in_use: bool) {
    METRICS.config_reloads_total.with_label_values(&[if in_use { "success" } else { "failure" }]).inc();
}

/// A filter's file had changed: it is in use, or was refused.
pub(crate) fn file_reloaded(filter: &str, in_use: bool) {
    METRICS.file_reloads_total.with_label_values(&[filter, if in_use { "success" } else { "failure" }]).inc();
}

/// Count a finished request.
pub(crate) fn count(session: &Session<'_>) {
    let (route, outcome) = (session.route(), &session.outcome);
    let status = http::StatusCode::from_u16(outcome.status).unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR);
    let method = known_method(session.request().method.as_str());
    let labels = [session.service().name(), route.name(), method, status.as_str()];
    let metrics = &route.metrics;
    metrics.requests.inc((method, outcome.status), || METRICS.requests_total.with_label_values(&labels));
    metrics.in_flight.dec();
    let now = Instant::now();
    metrics.duration.observe(now.saturating_duration_since(session.started()).as_secs_f64());
    if outcome.status == 499 {
        metrics.aborts.inc();
    }
    if let Some(free_at) = outcome.upstream_free_at {
        metrics.freed_early.observe(now.saturating_duration_since(free_at).as_secs_f64());
    }
    for (route, attempts) in session.exchanges() {
        if let Some(upstream) = route.upstream() {
            attempts.iter().for_each(|attempt| upstream.metrics.attempt(attempt));
        }
    }
}

/// The method as a label: a client may invent any.
fn known_method(method: &str) -> &'static str {
    const KNOWN: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT"];
    KNOWN.into_iter().find(|known| *known == method).unwrap_or("OTHER")
}

/// The page of `/metrics`.
pub(crate) fn page(limits: &Limits) -> Vec<u8> {
    METRICS.build_info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
    METRICS.pipe_memory_bytes.set(i64::try_from(limits.memory_bytes()).unwrap_or(i64::MAX));
    METRICS.pipe_temp_file_bytes.set(i64::try_from(limits.temp_file_bytes()).unwrap_or(i64::MAX));
    let mut page = Vec::new();
    if let Err(error) = TextEncoder::new().encode(&prometheus::gather(), &mut page) {
        log::error!("encoding the metrics: {error}");
    }
    page
}
