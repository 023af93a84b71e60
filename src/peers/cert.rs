//! Reading a certificate and its key, for whichever TLS library Pingora was built with.

use pingora_core::utils::tls::CertKey;
use std::path::Path;

#[cfg(not(feature = "rustls"))]
fn read_file(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))
}

/// The certificate chain and key of `tls.cert_file` and `tls.key_file`.
#[cfg(not(feature = "rustls"))]
pub(crate) fn read(cert_file: &Path, key_file: &Path) -> Result<CertKey, String> {
    use pingora_core::tls::{pkey::PKey, x509::X509};
    let certs = X509::stack_from_pem(&read_file(cert_file)?)
        .map_err(|error| format!("{}: not a PEM certificate: {error}", cert_file.display()))?;
    let key = PKey::private_key_from_pem(&read_file(key_file)?)
        .map_err(|error| format!("{}: not a PEM private key: {error}", key_file.display()))?;
    if certs.is_empty() {
        return Err(format!("{}: holds no certificate", cert_file.display()));
    }
    Ok(CertKey::new(certs, key))
}

/// The certificate chain and key of `tls.cert_file` and `tls.key_file`.
#[cfg(feature = "rustls")]
pub(crate) fn read(cert_file: &Path, key_file: &Path) -> Result<CertKey, String> {
    let (cert_path, key_path) = (cert_file.to_string_lossy(), key_file.to_string_lossy());
    match pingora_core::tls::load_certs_and_key_files(&cert_path, &key_path) {
        Ok(Some((certs, key))) => {
            Ok(CertKey::new(certs.iter().map(|cert| cert.to_vec()).collect(), key.secret_der().to_vec()))
        }
        Ok(None) => Err(format!("{cert_path}, {key_path}: no PEM certificate, or no private key")),
        Err(error) => Err(format!("{cert_path}, {key_path}: {error}")),
    }
}
