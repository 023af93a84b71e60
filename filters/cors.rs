//! `cors`: which other sites' pages may use what is here (the Fetch standard's CORS protocol).
//!
//! ```yaml
//! - cors: { origins: ["https://app.example.com", "https://*.example.org"], methods: [GET, PUT], headers: [X-Token],
//!           credentials: true, max_age: 1h }
//! ```
//!
//! A preflight (OPTIONS with `Origin` and `Access-Control-Request-Method`) is answered here: 204 when the origin may do
//! what it asks for, else 403. Any other request goes on, whoever it is from: it is the browser that keeps the answer
//! from a page that is not allowed to see it. What the upstream says in `Access-Control-*` of its own is replaced.
//!
//! Put it outside of filters that turn away requests without credentials: a preflight never has any.

use millpond::conf::units::Time;
use millpond::prelude::*;
use serde::Deserialize;
use std::time::Duration;

/// What the configuration says.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CorsConf {
    /// Origins: `https://app.example.com:8443`, `https://*.example.com` for the names below it, or `*`.
    pub origins: Vec<Origin>,
    /// Methods beside GET, HEAD and POST; `*`: any.
    pub methods: Vec<String>,
    /// Request headers beside those that need no permission; `*`: any.
    pub headers: Vec<String>,
    /// Response headers that pages may read beside the usual ones.
    pub expose: Vec<String>,
    /// May requests carry cookies and passwords, and pages see the answers? Never with the origin `*`.
    pub credentials: bool,
    /// How long a browser may remember the answer to a preflight.
    pub max_age: Time,
}

impl Default for CorsConf {
    fn default() -> Self {
        CorsConf {
            origins: Vec::new(),
            methods: Vec::new(),
            headers: Vec::new(),
            expose: Vec::new(),
            credentials: false,
            max_age: Time(Duration::from_secs(3600)),
        }
    }
}

/// Some of the origins there are.
#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Origin {
    /// Every one.
    Any,
    /// This one.
    One(String),
    /// Those whose host is below a name: what stands before it, and the name with its dot and the port.
    Below(String, String),
}

impl TryFrom<String> for Origin {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let text = text.to_ascii_lowercase();
        if text == "*" {
            return Ok(Origin::Any);
        }
        let (scheme, host) = text.split_once("://").unwrap_or_default();
        let below = host.strip_prefix("*.").unwrap_or(host);
        let sound = !scheme.is_empty() && !below.is_empty() && !below.contains(['*', '/', '@', ' ', '?', '#']);
        match sound {
            false => {
                Err(format!("`*`, or an origin such as https://example.com or https://*.example.com, not {text:?}"))
            }
            true if below.len() < host.len() => Ok(Origin::Below(format!("{scheme}://"), format!(".{below}"))),
            true => Ok(Origin::One(text)),
        }
    }
}

impl Origin {
    fn holds(&self, origin: &str) -> bool {
        match self {
            Origin::Any => true,
            Origin::One(one) => origin.eq_ignore_ascii_case(one),
            Origin::Below(scheme, name) => {
                let origin = origin.to_ascii_lowercase();
                let label = origin.strip_prefix(scheme.as_str()).and_then(|host| host.strip_suffix(name.as_str()));
                let of_names = |byte: u8| byte.is_ascii_alphanumeric() || b"-.".contains(&byte);
                label.is_some_and(|label| !label.is_empty() && label.bytes().all(of_names))
            }
        }
    }
}

/// The filter.
///
/// ```
/// use millpond::filters::cors::{Cors, CorsConf, Origin};
///
/// let anybody = CorsConf { origins: vec![Origin::Any], ..CorsConf::default() };
/// assert!(Cors::new(anybody).is_ok());
/// let anybody_with_cookies = CorsConf { origins: vec![Origin::Any], credentials: true, ..CorsConf::default() };
/// assert!(Cors::new(anybody_with_cookies).is_err());
/// ```
pub struct Cors {
    conf: CorsConf,
    any_origin: bool,
    expose: Option<HeaderValue>,
}

/// They need no permission.
const SIMPLE_METHODS: [&str; 3] = ["GET", "HEAD", "POST"];
const SIMPLE_HEADERS: [&str; 4] = ["accept", "accept-language", "content-language", "content-type"];

impl Cors {
    /// Make it from its configuration.
    ///
    /// # Errors
    /// `origins` is empty, or has `*` although `credentials` are allowed; a method or a header has no possible name.
    pub fn new(conf: CorsConf) -> Result<Self> {
        let expected = |text: String| Error::new(ErrorKind::Filter, text);
        let any_origin = conf.origins.contains(&Origin::Any);
        if conf.origins.is_empty() {
            return Err(expected("at least one of `origins`".to_owned()));
        }
        if any_origin && conf.credentials {
            return Err(expected("`origins` by name, not `*`, as `credentials` are allowed to them".to_owned()));
        }
        if let Some(name) = conf.methods.iter().find(|name| Method::from_bytes(name.as_bytes()).is_err()) {
            return Err(expected(format!("names of methods as `methods`, not {name:?}")));
        }
        let names = conf.headers.iter().chain(&conf.expose);
        if let Some(name) = names.into_iter().find(|name| HeaderName::from_bytes(name.as_bytes()).is_err()) {
            return Err(expected(format!("names of headers as `headers` and `expose`, not {name:?}")));
        }
        let expose = (!conf.expose.is_empty()).then(|| HeaderValue::from_str(&conf.expose.join(", ")));
        let expose = expose.transpose().map_err(|error| expected(error.to_string()))?;
        Ok(Cors { conf, any_origin, expose })
    }
}

impl UpstreamPhases for Cors {
    type Ctx = ();

    fn new_ctx(&self) {}

    async fn request_filter(&self, session: &mut Session<'_>, _ctx: &mut ()) -> Result<Flow> {
        let request = session.request();
        let asked_for = request.headers.get("access-control-request-method");
        let (Some(_), Some(method), true) = (origin(request), asked_for, request.method == Method::OPTIONS) else {
            return Ok(Flow::Continue);
        };
        let headers = request.headers.get("access-control-request-headers");
        let allowed = self.allowed_origin(request).is_some() && self.allows(method, headers);
        let answer = if allowed { self.preflight(method, headers)? } else { refusal()? };
        session.respond_with(answer, Bytes::new())?;
        Ok(Flow::Done)
    }

    async fn response_filter(
        &self,
        session: &mut Session<'_>,
        response: &mut ResponseHeader,
        _ctx: &mut (),
    ) -> Result<Header> {
        for name in ["origin", "credentials"] {
            response.remove_header(&format!("access-control-allow-{name}"));
        }
        response.remove_header("access-control-expose-headers");
        if !self.any_origin {
            response.append_header("Vary", "Origin")?;
        }
        let Some(origin) = self.allowed_origin(session.request()) else { return Ok(Header::Pass) };
        response.insert_header("Access-Control-Allow-Origin", origin)?;
        if self.conf.credentials {
            response.insert_header("Access-Control-Allow-Credentials", "true")?;
        }
        if let Some(expose) = &self.expose {
            response.insert_header("Access-Control-Expose-Headers", expose.clone())?;
        }
        Ok(Header::Pass)
    }
}

fn origin(request: &RequestHeader) -> Option<&HeaderValue> {
    request.headers.get("origin")
}

fn refusal() -> Result<ResponseHeader> {
    Ok(ResponseHeader::build(StatusCode::FORBIDDEN, None)?)
}

impl Cors {
    /// What `Access-Control-Allow-Origin` is to say.
    fn allowed_origin(&self, request: &RequestHeader) -> Option<HeaderValue> {
        if self.any_origin {
            return Some(HeaderValue::from_static("*"));
        }
        let origin = origin(request)?;
        let text = origin.to_str().ok()?;
        self.conf.origins.iter().any(|allowed| allowed.holds(text)).then(|| origin.clone())
    }

    /// May a page use this method with these headers?
    fn allows(&self, method: &HeaderValue, headers: Option<&HeaderValue>) -> bool {
        let Ok(method) = method.to_str() else { return false };
        let Ok(headers) = headers.map_or(Ok(""), |headers| headers.to_str()) else { return false };
        let listed =
            |list: &[String], name: &str| list.iter().any(|known| known == "*" || known.eq_ignore_ascii_case(name));
        let header_allowed = |name: &str| {
            name.is_empty()
                || SIMPLE_HEADERS.iter().any(|simple| simple.eq_ignore_ascii_case(name))
                || listed(&self.conf.headers, name)
        };
        let method_allowed =
            SIMPLE_METHODS.contains(&method) || self.conf.methods.iter().any(|known| known == "*" || known == method);
        method_allowed && headers.split(',').map(str::trim).all(header_allowed)
    }

    /// The permission for what was asked: no list of everything that is allowed, which `*` could not be beside
    /// credentials.
    fn preflight(&self, method: &HeaderValue, headers: Option<&HeaderValue>) -> Result<ResponseHeader> {
        let mut answer = ResponseHeader::build(StatusCode::NO_CONTENT, Some(8))?;
        answer.insert_header("Access-Control-Allow-Methods", method.clone())?;
        if let Some(headers) = headers {
            answer.insert_header("Access-Control-Allow-Headers", headers.clone())?;
        }
        answer.insert_header("Access-Control-Max-Age", self.conf.max_age.0.as_secs().to_string())?;
        answer.insert_header("Vary", "Access-Control-Request-Method, Access-Control-Request-Headers")?;
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(text: &str) -> Origin {
        text.to_owned().try_into().unwrap()
    }

    #[test]
    fn a_wildcard_holds_the_names_below_and_nothing_else() {
        let below = origin("https://*.Example.com:8443");
        assert!(below.holds("https://a.example.com:8443") && below.holds("https://a.b.EXAMPLE.com:8443"));
        for other in [
            "https://example.com:8443",
            "https://.example.com:8443",
            "https://a.example.com",
            "http://a.example.com:8443",
            "https://evilexample.com:8443",
            "https://evil.com/.example.com:8443",
            "https://evil.com@a.example.com:8443",
            "https://a.example.com:8443.evil.com",
            "null",
        ] {
            assert!(!below.holds(other), "{other}");
        }
        assert!(origin("https://example.com").holds("https://example.com"));
        assert!(!origin("https://example.com").holds("https://example.com.evil.com"));
    }

    #[test]
    fn what_is_no_origin_is_refused() {
        for text in ["null", "example.com", "https://", "https://*", "https://*.", "https://a.*.com", "https://a/", ""]
        {
            assert!(Origin::try_from(text.to_owned()).is_err(), "{text}");
        }
    }
}
