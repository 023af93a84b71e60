//! `forwarded`: tell the upstream who asked, and how.
//!
//! ```yaml
//! - forwarded: {}                    # X-Forwarded-For, -Proto, -Host
//! - forwarded: { rfc7239: true }     # Forwarded, instead
//! ```
//!
//! The client's address is appended to what an earlier proxy wrote; `trust_incoming: false` begins anew, for a proxy that
//! faces strangers.

use millpond::prelude::*;
use serde::Deserialize;
use std::net::IpAddr;

/// What the configuration says.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ForwardedConf {
    /// Write `Forwarded` (RFC 7239) instead of the three `X-Forwarded-*`.
    pub rfc7239: bool,
    /// Keep what the client sent in these headers and append to it.
    pub trust_incoming: bool,
}

impl Default for ForwardedConf {
    fn default() -> Self {
        ForwardedConf { rfc7239: false, trust_incoming: true }
    }
}

/// The filter.
pub struct Forwarded {
    conf: ForwardedConf,
}

const X_FORWARDED: [&str; 3] = ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-host"];

impl Forwarded {
    /// Make it from its configuration.
    pub fn new(conf: ForwardedConf) -> Self {
        Forwarded { conf }
    }
}

impl UpstreamPhases for Forwarded {
    type Ctx = ();

    fn new_ctx(&self) {}

    async fn upstream_request_filter(
        &self,
        session: &mut Session<'_>,
        request: &mut RequestHeader,
        _ctx: &mut (),
    ) -> Result<()> {
        let proto = if session.is_tls() { "https" } else { "http" };
        let host = session.host();
        // Over a Unix socket there is no address to tell.
        let address = session.remote_addr().map(|address| address.ip());
        if self.conf.rfc7239 {
            X_FORWARDED.iter().for_each(|name| drop(request.remove_header(*name)));
            let element = element(address, proto, host);
            return self.append(request, "Forwarded", &element);
        }
        request.remove_header("forwarded");
        let address = address.map_or_else(|| "unix:".to_owned(), |address| address.to_string());
        self.append(request, "X-Forwarded-For", &address)?;
        if !(self.conf.trust_incoming && request.headers.contains_key("x-forwarded-proto")) {
            request.insert_header("X-Forwarded-Proto", proto)?;
        }
        if let Some(host) = host
            && !(self.conf.trust_incoming && request.headers.contains_key("x-forwarded-host"))
        {
            request.insert_header("X-Forwarded-Host", host)?;
        }
        Ok(())
    }
}

impl Forwarded {
    /// `name: what came, value`: several headers of a list become one.
    fn append(&self, request: &mut RequestHeader, name: &'static str, value: &str) -> Result<()> {
        let mut list = Vec::new();
        if self.conf.trust_incoming {
            for incoming in request.headers.get_all(name) {
                list.extend_from_slice(incoming.as_bytes());
                list.extend_from_slice(b", ");
            }
        }
        list.extend_from_slice(value.as_bytes());
        let value = HeaderValue::from_bytes(&list)
            .map_err(|error| Error::because(ErrorKind::Filter, format!("forwarded: the value of {name}"), error))?;
        request.insert_header(name, value)?;
        Ok(())
    }
}

/// One element of `Forwarded`. What is no token is quoted (RFC 7239 section 4).
fn element(address: Option<IpAddr>, proto: &str, host: Option<&str>) -> String {
    let node = match address {
        Some(IpAddr::V4(address)) => address.to_string(),
        Some(IpAddr::V6(address)) => format!("\"[{address}]\""),
        None => "unknown".to_owned(),
    };
    match host {
        Some(host) => format!("for={node};host={};proto={proto}", quoted(host)),
        None => format!("for={node};proto={proto}"),
    }
}

fn quoted(value: &str) -> String {
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if !value.is_empty() && value.bytes().all(token) {
        return value.to_owned();
    }
    format!("\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_element_is_quoted_where_rfc_7239_wants_it() {
        let v6 = "2001:db8::17".parse().unwrap();
        assert_eq!(
            element(Some(v6), "https", Some("example.com:8443")),
            "for=\"[2001:db8::17]\";host=\"example.com:8443\";proto=https"
        );
        assert_eq!(element(None, "http", Some("example.com")), "for=unknown;host=example.com;proto=http");
    }
}
