//! `redirect`: answer with the address of another place.
//!
//! ```yaml
//! - redirect: { to: "https://$host$request_uri", status: 308 }
//! - redirect: { to: "/new/$1", status: 301 }        # what the route's path_regex captured
//! ```
//!
//! Every request that comes to it is answered. `status` is 301, 302, 303, 307 or 308; 307 and 308 keep the method and
//! the body, and 301 and 308 may be remembered for ever.
//!
//! A stranger cannot choose the place: the host ends where `to` says, and a `to` without one stays on this host,
//! whatever the variables hold (`//elsewhere` and `/\elsewhere` are hosts to browsers). What cannot stand in an address
//! is encoded, so that no header can be smuggled in, and a capture, which has been decoded, is encoded again as one
//! value: in a path it brings no query, in a query no further argument. `$host` is what the client asked for: name
//! yours where clients may not be trusted.

use millpond::paths;
use millpond::prelude::*;
use millpond::template::{Variable, Variables};
use percent_encoding::{AsciiSet, CONTROLS, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use std::borrow::Cow;

/// What the configuration says.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RedirectConf {
    /// The place: `https://host/path`, or a path on this host. With variables.
    pub to: String,
    /// The status of the answer.
    #[serde(default = "permanent")]
    pub status: u16,
}

fn permanent() -> u16 {
    308
}

/// The filter.
///
/// ```
/// use millpond::filters::redirect::{Redirect, RedirectConf};
///
/// let to = |to: &str| Redirect::new(RedirectConf { to: to.to_owned(), status: 308 });
/// assert!(to("https://example.com/$1").is_ok());
/// assert!(to("https://example.com$1").is_err(), "a capture could go on: .evil.com");
/// ```
pub struct Redirect {
    site: Option<Site>,
    path: Template,
    /// With its question mark.
    query: Template,
    status: StatusCode,
}

/// Scheme and host, where `to` names them.
struct Site {
    scheme: Template,
    host: Template,
}

/// What is not part of an address (RFC 3986); a `%` is taken for one that encodes.
const UNSAFE: &AsciiSet =
    &CONTROLS.add(b' ').add(b'"').add(b'<').add(b'>').add(b'\\').add(b'^').add(b'`').add(b'{').add(b'|').add(b'}');

/// What begins a path, so that the host is over.
const PATHS: [&str; 7] = ["/", "?", "#", "$request_uri", "${request_uri}", "$uri", "${uri}"];

impl Redirect {
    /// Make it from its configuration.
    ///
    /// # Errors
    /// `to` is no template, or leaves it to its variables where the host ends; `status` is not one that redirects.
    pub fn new(conf: RedirectConf) -> Result<Self> {
        let expected = |text: String| Error::new(ErrorKind::Filter, text);
        let status = StatusCode::from_u16(conf.status).ok();
        let status = status.filter(|status| [301, 302, 303, 307, 308].contains(&status.as_u16()));
        let status =
            status.ok_or_else(|| expected(format!("301, 302, 303, 307 or 308 as `status`, not {}", conf.status)))?;
        let (site, path) = match conf.to.split_once("://") {
            Some((scheme, rest)) if !scheme.contains(['/', '?', '#']) => {
                let end = PATHS.iter().filter_map(|begin| rest.find(begin)).min().unwrap_or(rest.len());
                let (host, path) = rest.split_at(end);
                let site = Site { scheme: template(scheme)?, host: template(host)? };
                (Some(site), path)
            }
            _ => (None, conf.to.as_str()),
        };
        if !site.as_ref().is_none_or(Site::is_settled) || (site.is_none() && path.is_empty()) {
            return Err(expected(format!(
                "a path, or http, https or $scheme and a host with a `/` behind it as `to`, not {:?}",
                conf.to
            )));
        }
        let (path, query) = path.split_at(path.find('?').unwrap_or(path.len()));
        Ok(Redirect { site, path: template(path)?, query: template(query)?, status })
    }
}

/// A name that is no variable is one of the route's captures.
fn template(text: &str) -> Result<Template> {
    serde_json::from_value(serde_json::Value::from(text))
        .map_err(|error| Error::because(ErrorKind::Filter, "a template as `to`", error))
}

impl Site {
    /// A name that a stranger could lengthen is not one to redirect to.
    fn is_settled(&self) -> bool {
        let scheme = matches!(self.scheme.to_string().as_str(), "http" | "https" | "${scheme}");
        let host = self.host.to_string();
        // A port behind a name does not make it less of a stranger's; behind the colons of an IPv6 address is no port.
        let (name, port) = host.rsplit_once(':').filter(|(_, port)| !port.contains(']')).unwrap_or((&host, ""));
        let of_ours = ["${host}", "${server_addr}"].iter().any(|ours| name.ends_with(ours));
        let has_port = port == "${server_port}" || port.bytes().all(|byte| byte.is_ascii_digit());
        scheme && has_port && !name.is_empty() && (!name.ends_with('}') || of_ours)
    }

    /// `https://host`.
    fn render(&self, session: &Session<'_>) -> Result<String> {
        let host = self.host.render(session);
        let of_hosts = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:[]".contains(&byte);
        if host.is_empty() || !host.bytes().all(of_hosts) {
            return Err(Error::new(ErrorKind::BadRequest, format!("redirect: {host:?} is no host")));
        }
        Ok(format!("{}://{host}", self.scheme.render(session)))
    }
}

impl UpstreamPhases for Redirect {
    type Ctx = ();

    fn new_ctx(&self) {}

    async fn request_filter(&self, session: &mut Session<'_>, _ctx: &mut ()) -> Result<Flow> {
        let site = self.site.as_ref().map(|site| site.render(session)).transpose()?;
        let (in_path, in_query) = (Encoded { session, in_query: false }, Encoded { session, in_query: true });
        let path = format!("{}{}", self.path.render(&in_path), self.query.render(&in_query));
        let place = match site {
            Some(site) => format!("{site}{}", behind_host(&path)),
            None => format!("/{}", utf8_percent_encode(path.trim_start_matches(['/', '\\']), UNSAFE)),
        };
        let mut answer = ResponseHeader::build(self.status, Some(2))?;
        answer.insert_header("Location", place)?;
        session.respond_with(answer, Bytes::new())?;
        Ok(Flow::Done)
    }
}

/// The request's values, with its captures encoded.
struct Encoded<'a> {
    session: &'a Session<'a>,
    in_query: bool,
}

impl Variables for Encoded<'_> {
    fn value(&self, variable: &Variable) -> Option<Cow<'_, str>> {
        let value = self.session.value(variable)?;
        Some(match variable {
            Variable::Capture(_) if self.in_query => utf8_percent_encode(&value, NON_ALPHANUMERIC).to_string().into(),
            Variable::Capture(_) => paths::encode(value.as_bytes()).into(),
            _ => value,
        })
    }
}

/// Whatever it is, it is not a part of the host.
fn behind_host(path: &str) -> String {
    let slash = if path.is_empty() || path.starts_with(['/', '?', '#']) { "" } else { "/" };
    format!("{slash}{}", utf8_percent_encode(path, UNSAFE))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redirect(to: &str) -> Result<Redirect> {
        Redirect::new(RedirectConf { to: to.to_owned(), status: 308 })
    }

    #[test]
    fn the_host_ends_where_the_text_says() {
        for good in [
            "https://$host$request_uri",
            "$scheme://www.example.com/x",
            "https://$1.example.com${uri}?$args",
            "https://example.com",
            "https://$host:$server_port/",
            "https://[::1]:8443/$1",
            "/login?next=https://$host$request_uri",
            "/",
            "$request_uri",
        ] {
            assert!(redirect(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "https://example.com$1",
            "https://$http_x$uri",
            "ftp://a/",
            "$1://a/",
            "https:///a",
            "https://a.$arg_b",
            "https://$1:443/",
            "https://$arg_b:$server_port/",
            "https://$arg_b$server_port/",
            "https://$arg_b:/",
            "https://$arg_b:${arg_c}3/",
        ] {
            assert!(redirect(bad).is_err(), "{bad}");
        }
        assert_eq!(behind_host("/a\r\nSet-Cookie: b\u{e9}%20"), "/a%0D%0ASet-Cookie:%20b%C3%A9%20");
        assert_eq!(behind_host("*"), "/*");
    }
}
