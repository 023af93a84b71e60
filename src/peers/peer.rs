//! A peer as Pingora's connectors see it, and the connectors of one upstream.

use crate::conf;
use ahash::AHasher;
use pingora_core::connectors::{ConnectorOptions, TransportConnector, http::v2};
use pingora_core::protocols::ALPN;
use pingora_core::protocols::l4::socket::SocketAddr;
use pingora_core::server::configuration::ServerConf;
use pingora_core::upstreams::peer::{Peer as PingoraPeer, PeerOptions};
use pingora_core::utils::tls::CertKey;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

/// One server to connect to, with all that a connection to it depends on. Cheap to clone.
///
/// Filters get one from [`Upstream::peer`](super::Upstream::peer).
#[derive(Clone)]
pub struct Peer(Arc<Inner>);

struct Inner {
    address: SocketAddr,
    address_text: Arc<str>,
    name: Arc<str>,
    tls: bool,
    server_name: String,
    client_cert: Option<Arc<CertKey>>,
    options: PeerOptions,
    /// Computed once: the pool asks for it at every request.
    reuse_hash: u64,
}

impl Peer {
    /// The address as the configuration, or the filter, wrote it.
    pub fn name(&self) -> &Arc<str> {
        &self.0.name
    }

    /// Where connections go.
    pub fn address(&self) -> &SocketAddr {
        &self.0.address
    }

    /// The same as text: `IP:port` or `unix:/path`. It differs from the [`name`](Self::name) where that is looked up.
    pub fn address_text(&self) -> &Arc<str> {
        &self.0.address_text
    }

    /// The same place under the same name?
    pub(super) fn is_same(&self, other: &Peer) -> bool {
        self.0.name == other.0.name && self.0.address_text == other.0.address_text
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.name)?;
        match self.0.name == self.0.address_text {
            true => Ok(()),
            false => write!(f, " ({})", self.0.address_text),
        }
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Peer({self})")
    }
}

impl PingoraPeer for Peer {
    fn address(&self) -> &SocketAddr {
        &self.0.address
    }

    fn tls(&self) -> bool {
        self.0.tls
    }

    fn sni(&self) -> &str {
        &self.0.server_name
    }

    fn reuse_hash(&self) -> u64 {
        self.0.reuse_hash
    }

    fn get_peer_options(&self) -> Option<&PeerOptions> {
        Some(&self.0.options)
    }

    fn get_client_cert_key(&self) -> Option<&Arc<CertKey>> {
        self.0.client_cert.as_ref()
    }

    /// The pool is keyed by the address already; asking the kernel again would cost a system call per request.
    fn matches_fd<V: std::os::fd::AsRawFd>(&self, _fd: V) -> bool {
        true
    }
}

/// The connectors of one upstream. Each upstream has its own, since its TLS settings are part of what makes two
/// connections interchangeable.
pub(crate) struct Connectors {
    /// Raw streams for the codecs.
    pub(crate) transport: TransportConnector,
    /// HTTP/2 streams, when the upstream may speak it.
    pub(crate) http2: Option<v2::Connector>,
    /// How long an idle connection is kept; `None`: not at all.
    pub(crate) idle_timeout: Option<Duration>,
    tls: bool,
    server_name: String,
    client_cert: Option<Arc<CertKey>>,
    options: PeerOptions,
}

impl Connectors {
    pub(super) fn new(conf: &conf::Upstream, server: &ServerConf) -> Result<Self, String> {
        let mut connector = ConnectorOptions::from_server_conf(server);
        connector.keepalive_pool_size = conf.keepalive.connections as usize;
        let mut options = PeerOptions::new();
        let mut client_cert = None;
        if let Some(tls) = &conf.tls {
            if let Some(ca_file) = &tls.ca_file {
                connector.ca_file = Some(ca_file.to_string_lossy().into_owned());
            }
            options.verify_cert = tls.verify;
            options.verify_hostname = tls.verify;
            if let (Some(cert), Some(key)) = (&tls.cert_file, &tls.key_file) {
                client_cert = Some(Arc::new(super::cert::read(cert, key)?));
            }
        }
        options.alpn = match conf.http_version {
            conf::HttpVersion::Http1 => ALPN::H1,
            conf::HttpVersion::Http2 => ALPN::H2,
            conf::HttpVersion::Auto => ALPN::H2H1,
        };
        options.max_h2_streams = conf.http2.streams as usize;
        options.h2_stream_window_size = Some(conf.http2.window);
        options.h2_connection_window_size = Some(connection_window(&conf.http2));
        let idle_timeout = (conf.keepalive.connections > 0).then_some(conf.keepalive.timeout);
        options.idle_timeout = idle_timeout;
        let http2 =
            (conf.http_version != conf::HttpVersion::Http1).then(|| v2::Connector::new(Some(connector.clone())));
        Ok(Connectors {
            transport: TransportConnector::new(Some(connector)),
            http2,
            idle_timeout,
            tls: conf.tls.is_some(),
            server_name: conf.tls.as_ref().map(|tls| tls.server_name.clone()).unwrap_or_default(),
            client_cert,
            options,
        })
    }

    /// The peer at `address`, reached with this upstream's settings.
    pub(super) fn peer(&self, address: &conf::Address, name: &str) -> Peer {
        let address_text: Arc<str> = address.to_string().into();
        let address = match address {
            conf::Address::Inet(address) => SocketAddr::Inet(*address),
            conf::Address::Unix(path) => {
                let address = std::os::unix::net::SocketAddr::from_pathname(path);
                SocketAddr::Unix(address.expect("the configuration has checked the path of every socket"))
            }
        };
        let mut hasher = AHasher::default();
        address.hash(&mut hasher);
        Peer(Arc::new(Inner {
            reuse_hash: hasher.finish(),
            address,
            name: if *name == *address_text { address_text.clone() } else { name.into() },
            address_text,
            tls: self.tls,
            server_name: self.server_name.clone(),
            client_cert: self.client_cert.clone(),
            options: self.options.clone(),
        }))
    }
}

/// So large that all streams together can be stalled by slow clients without blocking one that is not.
fn connection_window(http2: &conf::Http2) -> u32 {
    const MAX: u32 = (1 << 31) - 1;
    http2.streams.saturating_mul(http2.window).min(MAX)
}
