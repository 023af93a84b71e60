//! Listeners: what Pingora needs to accept a service's clients.

use crate::conf::{Address, Listen};
use crate::pipe::Limits;
use crate::proxy::Proxy;
use crate::routes::Service;
use arc_swap::ArcSwap;
use pingora_core::apps::HttpServerOptions;
use pingora_core::listeners::tls::TlsSettings;
use pingora_core::listeners::{L4BufferSettings, ListenerConfig};
use pingora_core::protocols::http::v2::server::default_h2_options;
use pingora_core::server::Server;
use pingora_proxy::http_proxy_service_with_name;
use std::sync::Arc;

/// A header shares a write with a small body, or with the first block of a larger one; larger pieces pass by this buffer.
const WRITE_BUFFER: usize = 18 * 1024;
/// TLS reads a record in two steps; a buffer makes that one system call.
const TLS_READ_BUFFER: usize = 16 * 1024;
/// What an HTTP/2 stream may hold in the connection: it comes on top of the pipe.
const HTTP2_SEND_BUFFER: usize = 64 * 1024;

/// Add a service with its listeners. Plain-text HTTP/2 is decided per Pingora service, hence two where listeners differ.
///
/// # Errors
/// A certificate that Pingora cannot use.
pub(crate) fn add_services(
    server: &mut Server,
    place: &Arc<ArcSwap<Service>>,
    limits: &Arc<Limits>,
) -> Result<(), String> {
    let service = place.load();
    let (http2, http1): (Vec<_>, Vec<_>) = service.conf.listen.iter().partition(|listen| plain_http2(listen));
    for (listeners, h2c) in [(http1, false), (http2, true)] {
        if listeners.is_empty() {
            continue;
        }
        let proxy = Proxy { service: place.clone(), limits: limits.clone() };
        let mut running = http_proxy_service_with_name(&server.configuration, proxy, service.name());
        if let Some(app) = running.app_logic_mut() {
            let mut options = HttpServerOptions::default();
            options.h2c = h2c;
            app.server_options = Some(options);
            let mut http2 = default_h2_options();
            http2.max_send_buffer_size(HTTP2_SEND_BUFFER);
            app.h2_options = Some(http2);
        }
        for listen in listeners {
            running.add_listener(listener(listen)?);
        }
        server.add_service(running);
    }
    Ok(())
}

fn plain_http2(listen: &Listen) -> bool {
    listen.h2 && listen.tls.is_empty()
}

/// A plain-text listener.
pub(crate) fn plain(address: &Address) -> ListenerConfig {
    let listener = match address {
        Address::Inet(address) => ListenerConfig::tcp(address.to_string()),
        Address::Unix(path) => ListenerConfig::uds(path.to_string_lossy()),
    };
    listener.l4_buffer(L4BufferSettings::new(0, WRITE_BUFFER))
}

fn listener(listen: &Listen) -> Result<ListenerConfig, String> {
    let listener = plain(&listen.address);
    if listen.tls.is_empty() {
        return Ok(listener);
    }
    let mut settings = tls_settings(listen)?;
    if listen.h2 {
        settings.enable_h2();
    }
    Ok(listener.tls(settings).l4_buffer(L4BufferSettings::new(TLS_READ_BUFFER, WRITE_BUFFER)))
}

fn tls_settings(listen: &Listen) -> Result<TlsSettings, String> {
    match listen.tls.as_slice() {
        [only] => {
            let (cert, key) = (only.cert_file.to_string_lossy(), only.key_file.to_string_lossy());
            TlsSettings::intermediate(&cert, &key).map_err(|error| format!("listener {}: {error}", listen.address))
        }
        several => sni::settings(several),
    }
}

/// Several certificates on one listener.
#[cfg(not(feature = "rustls"))]
mod sni {
    use crate::conf::Certificate;
    use crate::peers::cert;
    use async_trait::async_trait;
    use pingora_core::listeners::TlsAccept;
    use pingora_core::listeners::tls::TlsSettings;
    use pingora_core::protocols::tls::TlsRef;
    use pingora_core::tls::ext;
    use pingora_core::tls::ssl::NameType;
    use pingora_core::utils::tls::CertKey;

    pub(super) fn settings(certificates: &[Certificate]) -> Result<TlsSettings, String> {
        let mut certs = Vec::with_capacity(certificates.len());
        for certificate in certificates {
            let cert = cert::read(&certificate.cert_file, &certificate.key_file)?;
            certs.push((names(&cert), cert));
        }
        TlsSettings::with_callbacks(Box::new(ByName(certs))).map_err(|error| error.to_string())
    }

    /// Certificates with the names they are for; the first serves those that fit none.
    struct ByName(Vec<(Vec<String>, CertKey)>);

    fn names(cert: &CertKey) -> Vec<String> {
        let alternative = cert.leaf().subject_alt_names();
        alternative
            .iter()
            .flat_map(|names| names.iter())
            .filter_map(|name| name.dnsname().map(str::to_ascii_lowercase))
            .collect()
    }

    fn fits(pattern: &str, name: &str) -> bool {
        match pattern.strip_prefix("*.") {
            Some(domain) => name.split_once('.').is_some_and(|(_, rest)| rest == domain),
            None => pattern == name,
        }
    }

    #[async_trait]
    impl TlsAccept for ByName {
        async fn certificate_callback(&self, tls: &mut TlsRef) {
            let name = tls.servername(NameType::HOST_NAME).unwrap_or_default().to_ascii_lowercase();
            let fitting = self.0.iter().find(|(names, _)| names.iter().any(|pattern| fits(pattern, &name)));
            let Some((_, cert)) = fitting.or(self.0.first()) else { return };
            let used = ext::ssl_use_certificate(tls, cert.leaf())
                .and_then(|()| ext::ssl_use_private_key(tls, cert.key()))
                .and_then(|()| cert.intermediates().iter().try_for_each(|chain| ext::ssl_add_chain_cert(tls, chain)));
            if let Err(error) = used {
                log::error!("TLS certificate for {name:?}: {error}");
            }
        }
    }

    #[cfg(test)]
    mod tests {
        use super::fits;

        #[test]
        fn a_wildcard_stands_for_one_label() {
            assert!(fits("*.example.com", "a.example.com"));
            assert!(!fits("*.example.com", "a.b.example.com"));
            assert!(!fits("*.example.com", "example.com"));
        }
    }
}

#[cfg(feature = "rustls")]
mod sni {
    use crate::conf::Certificate;
    use pingora_core::listeners::tls::TlsSettings;

    pub(super) fn settings(_: &[Certificate]) -> Result<TlsSettings, String> {
        Err("several certificates on one listener need the openssl or boringssl feature".to_owned())
    }
}
