//! Listeners: what Pingora needs to accept a service's clients.

use crate::conf::{Address, Listen};
use crate::proxy::Proxy;
use crate::reload::Running;
use crate::routes::Service;
use arc_swap::ArcSwap;
use async_trait::async_trait;
use pingora_core::apps::{HttpServerApp, HttpServerOptions, ReusedHttpStream};
use pingora_core::listeners::{L4BufferSettings, ListenerConfig};
use pingora_core::protocols::http::ServerSession;
use pingora_core::protocols::http::v2::server::{H2Options, default_h2_options};
use pingora_core::server::configuration::ServerConf;
use pingora_core::server::{Server, ShutdownWatch};
use pingora_core::services::listening::Service as Listening;
use pingora_proxy::{HttpProxy, http_proxy};
use std::sync::Arc;
use std::time::Duration;

/// A header shares a write with a small body, or with the first block of a larger one; larger pieces pass by this buffer.
const WRITE_BUFFER: usize = 18 * 1024;
/// TLS reads a record in two steps; a buffer makes that one system call.
const TLS_READ_BUFFER: usize = 16 * 1024;
/// What an HTTP/2 stream may hold in the connection: it comes on top of the pipe.
const HTTP2_SEND_BUFFER: usize = 64 * 1024;
/// How long a connection may wait for its next request after the process has been told to end; at most half of the grace
/// period. Who has been silent for so long is not about to send one.
const LAST_REQUEST: Duration = Duration::from_secs(5);

/// Add a service with its listeners. Plain-text HTTP/2 is decided per Pingora service, hence two where listeners differ.
///
/// # Errors
/// The TLS library refuses its own defaults.
pub(crate) fn add_services(
    server: &mut Server,
    place: &Arc<ArcSwap<Service>>,
    running: &Arc<Running>,
) -> Result<(), String> {
    let service = place.load();
    let (http2, http1): (Vec<_>, Vec<_>) = service.conf.listen.iter().partition(|listen| plain_http2(listen));
    for (listeners, h2c) in [(http1, false), (http2, true)] {
        if listeners.is_empty() {
            continue;
        }
        let proxy = Proxy { service: place.clone(), limits: running.limits.clone() };
        let mut listening = Listening::new(service.name().to_owned(), Patient::new(&server.configuration, proxy, h2c));
        for listen in listeners {
            listening.add_listener(listener(listen, running)?);
        }
        server.add_service(listening);
    }
    Ok(())
}

/// The proxy, which does not turn away the last request of a connection.
///
/// When it has been told to end, Pingora closes all connections that wait for a request, those just accepted too, and a
/// client that sends one at that moment loses it. Here they have [`LAST_REQUEST`], and the answer says that it was the
/// last one. (HTTP/2 has a way to say so at once, which Pingora uses.)
struct Patient {
    proxy: Arc<HttpProxy<Proxy>>,
    patience: Duration,
}

impl Patient {
    fn new(conf: &Arc<ServerConf>, proxy: Proxy, h2c: bool) -> Self {
        let mut proxy = http_proxy(conf, proxy);
        let mut options = HttpServerOptions::default();
        options.h2c = h2c;
        proxy.server_options = Some(options);
        let mut http2 = default_h2_options();
        http2.max_send_buffer_size(HTTP2_SEND_BUFFER);
        proxy.h2_options = Some(http2);
        let grace = Duration::from_secs(conf.grace_period_seconds.unwrap_or_default());
        Patient { proxy: Arc::new(proxy), patience: LAST_REQUEST.min(grace / 2) }
    }
}

#[async_trait]
impl HttpServerApp for Patient {
    async fn process_new_http(
        self: &Arc<Self>,
        session: ServerSession,
        shutdown: &ShutdownWatch,
    ) -> Option<ReusedHttpStream> {
        self.proxy.process_new_http(session, shutdown).await
    }

    fn h2_options(&self) -> Option<H2Options> {
        self.proxy.h2_options()
    }

    fn server_options(&self) -> Option<&HttpServerOptions> {
        self.proxy.server_options()
    }

    /// Called when nothing is accepted any more.
    async fn http_cleanup(&self) {
        tokio::time::sleep(self.patience).await;
        self.proxy.http_cleanup().await;
    }
}

fn plain_http2(listen: &Listen) -> bool {
    listen.h2 && listen.tls.is_empty()
}

/// A plain-text listener.
pub(crate) fn plain(address: &Address) -> ListenerConfig {
    let listener = match address {
        Address::Inet(_) => ListenerConfig::tcp(name(address)),
        Address::Unix(_) => ListenerConfig::uds(name(address)),
    };
    listener.l4_buffer(L4BufferSettings::new(0, WRITE_BUFFER))
}

/// The name that Pingora knows a listener by.
pub(crate) fn name(address: &Address) -> String {
    match address {
        Address::Inet(address) => address.to_string(),
        Address::Unix(path) => path.to_string_lossy().into_owned(),
    }
}

fn listener(listen: &Listen, running: &Running) -> Result<ListenerConfig, String> {
    let listener = plain(&listen.address);
    let Some(certificates) = running.certificates(&listen.address) else { return Ok(listener) };
    let mut settings = certificates.settings().map_err(|error| format!("listener {}: {error}", listen.address))?;
    if listen.h2 {
        settings.enable_h2();
    }
    Ok(listener.tls(settings).l4_buffer(L4BufferSettings::new(TLS_READ_BUFFER, WRITE_BUFFER)))
}
