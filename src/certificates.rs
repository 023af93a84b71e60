//! The certificates of a listener: chosen by the client's server name (SNI), replaced while it listens.
//!
//! A listener asks for its certificate at each handshake, so what a reload has read is used for the next connection;
//! those that are open keep what they were greeted with.

use crate::conf::Certificate;
use arc_swap::ArcSwap;
use pingora_core::listeners::tls::TlsSettings;
use std::collections::HashMap;
use std::sync::Arc;
use tls::Identity;

/// What one listener has at this moment, shared with its handshakes.
#[derive(Clone)]
pub(crate) struct Certificates(Arc<ArcSwap<Chosen>>);

/// Certificates that are ready for use, and which of them a name is shown.
pub(crate) struct Chosen {
    /// Never empty; the first is for names that fit none.
    identities: Vec<Identity>,
    names: Names,
}

impl Chosen {
    /// Read certificates with their keys. Not for async threads.
    ///
    /// # Errors
    /// A file cannot be read, or a key does not fit its certificate; the text names the files.
    pub(crate) fn read(certificates: &[Certificate]) -> Result<Self, String> {
        let (mut identities, mut names) = (Vec::with_capacity(certificates.len()), Names::default());
        for (index, certificate) in certificates.iter().enumerate() {
            let identity = tls::read(certificate)?;
            tls::names(&identity).iter().for_each(|name| names.add(name, index));
            identities.push(identity);
        }
        match identities.is_empty() {
            true => Err("no certificate".to_owned()),
            false => Ok(Chosen { identities, names }),
        }
    }

    /// The one for a name that was asked for; `None`: none was.
    fn find(&self, name: Option<&str>) -> Option<&Identity> {
        let index = name.and_then(|name| self.names.find(name)).unwrap_or(0);
        self.identities.get(index)
    }
}

impl Certificates {
    /// To begin with.
    pub(crate) fn new(chosen: Chosen) -> Self {
        Certificates(Arc::new(ArcSwap::from_pointee(chosen)))
    }

    /// From the next handshake on.
    pub(crate) fn replace(&self, chosen: Chosen) {
        self.0.store(Arc::new(chosen));
    }

    /// What Pingora needs to show them.
    ///
    /// # Errors
    /// The TLS library refuses its own defaults.
    pub(crate) fn settings(&self) -> Result<TlsSettings, String> {
        tls::settings(self.clone())
    }
}

/// Which certificate has a name: exact before wildcard, the earlier certificate before the later.
#[derive(Default)]
struct Names {
    exact: HashMap<String, usize>,
    /// By what follows the star.
    wildcard: HashMap<String, usize>,
}

impl Names {
    fn add(&mut self, name: &str, index: usize) {
        let name = name.to_ascii_lowercase();
        let (names, name) = match name.strip_prefix("*.") {
            Some(domain) => (&mut self.wildcard, domain.to_owned()),
            None => (&mut self.exact, name),
        };
        names.entry(name).or_insert(index);
    }

    /// RFC 6125 6.4.3: a star stands for one whole label, the first.
    fn find(&self, name: &str) -> Option<usize> {
        let name = name.to_ascii_lowercase();
        let wildcard = || name.split_once('.').and_then(|(_, domain)| self.wildcard.get(domain));
        self.exact.get(&name).or_else(wildcard).copied()
    }
}

/// Is this a pair that a listener can use?
///
/// # Errors
/// A file cannot be read, or the key does not fit the certificate; the text names the files.
pub(crate) fn check(certificate: &Certificate) -> Result<(), String> {
    tls::read(certificate).map(drop)
}

/// The key belongs to another certificate.
fn mismatch(certificate: &Certificate) -> String {
    let (cert, key) = (certificate.cert_file.display(), certificate.key_file.display());
    format!("{key} is not the key of the certificate {cert}")
}

/// OpenSSL and BoringSSL.
#[cfg(not(feature = "rustls"))]
mod tls {
    use super::{Certificates, mismatch};
    use crate::conf::Certificate;
    use crate::peers::cert;
    use async_trait::async_trait;
    use pingora_core::listeners::TlsAccept;
    use pingora_core::listeners::tls::TlsSettings;
    use pingora_core::protocols::tls::TlsRef;
    use pingora_core::tls::ext;
    use pingora_core::tls::ssl::NameType;
    use pingora_core::utils::tls::{CertKey, get_common_name};

    pub(super) type Identity = CertKey;

    pub(super) fn read(certificate: &Certificate) -> Result<Identity, String> {
        let identity = cert::read(&certificate.cert_file, &certificate.key_file)?;
        let public = identity.leaf().public_key();
        let public = public.map_err(|error| format!("{}: {error}", certificate.cert_file.display()))?;
        match public.public_eq(identity.key()) {
            true => Ok(identity),
            false => Err(mismatch(certificate)),
        }
    }

    /// Its alternative names; the common name of one that has none.
    pub(super) fn names(identity: &Identity) -> Vec<String> {
        let alternative = identity.leaf().subject_alt_names();
        let names: Vec<String> = alternative
            .iter()
            .flat_map(|names| names.iter())
            .filter_map(|name| name.dnsname().map(str::to_owned))
            .collect();
        match names.is_empty() {
            true => get_common_name(identity.leaf()).into_iter().collect(),
            false => names,
        }
    }

    pub(super) fn settings(certificates: Certificates) -> Result<TlsSettings, String> {
        TlsSettings::with_callbacks(Box::new(certificates)).map_err(|error| error.to_string())
    }

    #[async_trait]
    impl TlsAccept for Certificates {
        async fn certificate_callback(&self, tls: &mut TlsRef) {
            let chosen = self.0.load_full();
            let Some(identity) = chosen.find(tls.servername(NameType::HOST_NAME)) else { return };
            let used = ext::ssl_use_certificate(tls, identity.leaf())
                .and_then(|()| ext::ssl_use_private_key(tls, identity.key()))
                .and_then(|()| identity.intermediates().iter().try_for_each(|cert| ext::ssl_add_chain_cert(tls, cert)));
            if let Err(error) = used {
                log::error!("TLS certificate: {error}");
            }
        }
    }
}

#[cfg(feature = "rustls")]
mod tls {
    use super::{Certificates, mismatch};
    use crate::conf::Certificate;
    use pingora_core::listeners::tls::TlsSettings;
    use pingora_core::tls::sign::CertifiedKey;
    use pingora_core::tls::{
        ClientHello, CryptoProvider, ResolvesServerCert, RusTlsError, install_default_crypto_provider,
        load_certs_and_key_files,
    };
    use pingora_core::utils::tls::{CertKey, get_common_name};
    use std::fmt;
    use std::sync::Arc;

    pub(super) type Identity = Arc<CertifiedKey>;

    pub(super) fn read(certificate: &Certificate) -> Result<Identity, String> {
        let (cert, key) = (certificate.cert_file.to_string_lossy(), certificate.key_file.to_string_lossy());
        let wrong = |error: &dyn fmt::Display| format!("{cert}, {key}: {error}");
        let read = load_certs_and_key_files(&cert, &key).map_err(|error| wrong(&error))?;
        let (chain, secret) = read.ok_or_else(|| wrong(&"no PEM certificate, or no private key"))?;
        install_default_crypto_provider();
        let provider = CryptoProvider::get_default().ok_or_else(|| wrong(&"no cryptography"))?;
        match CertifiedKey::from_der(chain, secret, provider) {
            Ok(identity) => Ok(Arc::new(identity)),
            Err(RusTlsError::InconsistentKeys(_)) => Err(mismatch(certificate)),
            Err(error) => Err(wrong(&error)),
        }
    }

    /// Its alternative names; the common name of one that has none.
    pub(super) fn names(identity: &Identity) -> Vec<String> {
        let chain = identity.cert.iter().map(|cert| cert.to_vec()).collect();
        let parsed = CertKey::new(chain, Vec::new());
        let alternative = parsed.leaf().borrow_cert().subject_alternative_name().ok().flatten();
        // The type of a name is x509-parser's, which Pingora does not export; its text is what there is to look at.
        let names: Vec<String> = alternative
            .iter()
            .flat_map(|names| &names.value.general_names)
            .map(|name| name.to_string())
            .filter_map(|name| name.strip_prefix("DNSName(")?.strip_suffix(')').map(str::to_owned))
            .collect();
        match names.is_empty() {
            true => get_common_name(parsed.leaf()).into_iter().collect(),
            false => names,
        }
    }

    pub(super) fn settings(certificates: Certificates) -> Result<TlsSettings, String> {
        // The files are not read: the resolver is asked.
        let mut settings = TlsSettings::intermediate("", "").map_err(|error| error.to_string())?;
        settings.set_cert_resolver(Arc::new(certificates));
        Ok(settings)
    }

    impl ResolvesServerCert for Certificates {
        fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
            self.0.load().find(hello.server_name()).cloned()
        }
    }

    impl fmt::Debug for Certificates {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("Certificates")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Names;

    fn names(certificates: &[&[&str]]) -> Names {
        let mut names = Names::default();
        for (index, certificate) in certificates.iter().enumerate() {
            certificate.iter().for_each(|name| names.add(name, index));
        }
        names
    }

    #[test]
    fn a_wildcard_stands_for_one_label() {
        let names = names(&[&["*.example.com"]]);
        assert_eq!(names.find("a.example.com"), Some(0));
        assert_eq!(names.find("a.b.example.com"), None);
        assert_eq!(names.find("example.com"), None);
    }

    #[test]
    fn an_exact_name_is_before_a_wildcard_and_an_earlier_certificate_before_a_later() {
        let names = names(&[&["*.example.com"], &["a.example.com"], &["a.example.com", "*.example.com"]]);
        assert_eq!(names.find("a.example.com"), Some(1));
        assert_eq!(names.find("b.example.com"), Some(0));
    }

    #[test]
    fn case_makes_no_difference() {
        assert_eq!(names(&[&["Example.COM"]]).find("eXample.com"), Some(0));
    }
}
