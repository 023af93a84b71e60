//! [`Params`]: a request as the variables of CGI/1.1 (RFC 3875 4.1), with those that nginx adds.

use super::script::Script;
use crate::error::Result;
use crate::protocol::{BodyLength, Request};
use crate::template::{Template, Variable};
use bytes::BytesMut;
use http::HeaderName;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, COOKIE};
use serde::Deserialize;
use std::collections::BTreeMap;

const SERVER_SOFTWARE: &str = concat!("millpond/", env!("CARGO_PKG_VERSION"));

/// The variables of one route.
#[derive(Clone, Debug)]
pub(crate) struct Params {
    script: Script,
    own: OwnParams,
}

/// A route's `params`: variables of its own by name. They are added to the usual ones, or replace them; one whose value
/// is empty is not sent at all.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(try_from = "BTreeMap<String, Template>")]
pub(crate) struct OwnParams(BTreeMap<String, Template>);

impl TryFrom<BTreeMap<String, Template>> for OwnParams {
    type Error = String;

    fn try_from(params: BTreeMap<String, Template>) -> Result<Self, String> {
        for (name, value) in &params {
            if name.is_empty() || name.contains(|c: char| c.is_ascii_control() || c == '=') {
                return Err(format!("{name:?}, expected the name of a variable"));
            }
            if name == "CONTENT_LENGTH" {
                return Err("CONTENT_LENGTH, expected another variable: this one is the body's own".into());
            }
            if value.to_string().contains('\0') {
                return Err(format!("a NUL in {name}, expected a value without it"));
            }
        }
        Ok(OwnParams(params))
    }
}

impl Params {
    /// The usual variables about `script`, and the route's own.
    pub(crate) fn new(script: Script, own: OwnParams) -> Self {
        Params { script, own }
    }

    /// Call `each` with the name and the value of every variable, `CONTENT_LENGTH` first: it is there if there is a body
    /// of known length. No name comes twice, and no value has a NUL in it.
    ///
    /// # Errors
    /// 404: there is no script in the path. 400: what a filter made of the path is none.
    pub(crate) fn each(&self, request: &Request<'_>, each: impl FnMut(&[u8], &[u8])) -> Result<()> {
        let mut usual = Usual { own: &self.own.0, each };
        if let BodyLength::Known(length) = request.body_length() {
            usual.put("CONTENT_LENGTH", length.to_string().as_bytes());
        }
        usual.request(request);
        usual.script(&self.script, &request.path()?)?;
        usual.connection(request);
        usual.headers(request);
        for (name, value) in &self.own.0 {
            let value = request.render(value);
            if !value.is_empty() {
                (usual.each)(name.as_bytes(), value.as_bytes());
            }
        }
        Ok(())
    }
}

/// The usual variables, unless the route has its own.
struct Usual<'a, F> {
    own: &'a BTreeMap<String, Template>,
    each: F,
}

impl<F: FnMut(&[u8], &[u8])> Usual<'_, F> {
    fn put(&mut self, name: &str, value: &[u8]) {
        if self.own.is_empty() || !self.own.contains_key(name) {
            (self.each)(name.as_bytes(), value);
        }
    }

    fn request(&mut self, request: &Request<'_>) {
        let header = request.header();
        self.put("REQUEST_METHOD", header.method.as_str().as_bytes());
        self.put("QUERY_STRING", request.query().unwrap_or_default().as_bytes());
        self.put_variable("REQUEST_URI", request, &Variable::RequestUri, "");
        self.put_variable("SERVER_PROTOCOL", request, &Variable::ServerProtocol, "HTTP/1.1");
        if let Some(content_type) = header.headers.get(CONTENT_TYPE) {
            self.put("CONTENT_TYPE", content_type.as_bytes());
        }
    }

    fn script(&mut self, script: &Script, path: &[u8]) -> Result<()> {
        let found = script.find(path)?;
        self.put("SCRIPT_NAME", &found.name);
        self.put("PATH_INFO", found.path_info);
        self.put("DOCUMENT_URI", path);
        if let Script::File { root, .. } = script {
            self.put("SCRIPT_FILENAME", &root.join(&found.name));
            self.put("DOCUMENT_ROOT", root.as_bytes());
            if !found.path_info.is_empty() {
                self.put("PATH_TRANSLATED", &root.join(found.path_info));
            }
        }
        Ok(())
    }

    fn connection(&mut self, request: &Request<'_>) {
        let https = request.variable(&Variable::Https);
        let (scheme, port) = if https.is_some() { ("https", "443") } else { ("http", "80") };
        self.put("GATEWAY_INTERFACE", b"CGI/1.1");
        self.put("SERVER_SOFTWARE", SERVER_SOFTWARE.as_bytes());
        self.put("REQUEST_SCHEME", scheme.as_bytes());
        if let Some(https) = https {
            self.put("HTTPS", https.as_bytes());
        }
        self.put_variable("SERVER_NAME", request, &Variable::Host, "localhost");
        self.put_variable("SERVER_PORT", request, &Variable::ServerPort, port);
        self.put_variable("SERVER_ADDR", request, &Variable::ServerAddr, "");
        self.put_variable("REMOTE_ADDR", request, &Variable::RemoteAddr, "");
        self.put_variable("REMOTE_PORT", request, &Variable::RemotePort, "");
        // PHP, if built with --enable-force-cgi-redirect, wants to know that a server has sent it here.
        self.put("REDIRECT_STATUS", b"200");
    }

    /// `otherwise`: if there is no such value; empty: no variable.
    fn put_variable(&mut self, name: &str, request: &Request<'_>, variable: &Variable, otherwise: &str) {
        let value = request.variable(variable);
        let value = value.as_deref().unwrap_or(otherwise);
        if !value.is_empty() {
            self.put(name, value.as_bytes());
        }
    }

    /// `HTTP_NAME` for each header; several of one name are one variable (RFC 3875 4.1.18).
    fn headers(&mut self, request: &Request<'_>) {
        let fields = &request.header().headers;
        let (mut variable, mut joined) = (String::with_capacity(64), BytesMut::new());
        for name in fields.keys().filter(|name| becomes_variable(name)) {
            variable.clear();
            variable.push_str("HTTP_");
            variable.extend(name.as_str().chars().map(|c| if c == '-' { '_' } else { c.to_ascii_uppercase() }));
            let mut values = fields.get_all(name).iter().map(|value| value.as_bytes());
            let first = values.next().unwrap_or_default();
            let Some(second) = values.next() else {
                self.put(&variable, first);
                continue;
            };
            joined.clear();
            joined.extend_from_slice(first);
            for value in std::iter::once(second).chain(values) {
                // RFC 9113 8.2.3: HTTP/2 clients may cut a Cookie into pieces.
                joined.extend_from_slice(if name == COOKIE { b"; " } else { b", " });
                joined.extend_from_slice(value);
            }
            self.put(&variable, &joined);
        }
    }
}

/// Not `Proxy`, which programs would take for the setting `HTTP_PROXY` ("httpoxy"), nor what has a variable of its own. A
/// name with an underscore would pose as another header (nginx's `underscores_in_headers off`); with anything but letters,
/// digits and hyphens it is none to nginx (`ignore_invalid_headers`).
fn becomes_variable(name: &HeaderName) -> bool {
    let plain = name.as_str().bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    plain && name != "proxy" && name != CONTENT_TYPE && name != CONTENT_LENGTH
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::template::Variables;
    use pingora_http::RequestHeader;
    use std::borrow::Cow;

    struct Client;

    impl Variables for Client {
        fn value(&self, variable: &Variable) -> Option<Cow<'_, str>> {
            Some(match variable {
                Variable::Https => "on".into(),
                Variable::RemoteAddr => "192.0.2.1".into(),
                Variable::Host => "example.com".into(),
                Variable::RequestUri => "/index.php/a%20b?c=d".into(),
                _ => return None,
            })
        }
    }

    fn params(settings: serde_json::Value, root: Option<&str>) -> Params {
        let script = match root {
            Some(root) => {
                let root = serde_json::from_value(root.into()).unwrap();
                Script::File { root, index: crate::protocol::cgi::Index::default(), split: None }
            }
            None => Script::Application,
        };
        Params::new(script, serde_json::from_value(settings).unwrap())
    }

    fn request(path: &str, headers: &[(&'static str, &str)]) -> RequestHeader {
        let mut request = RequestHeader::build("GET", path.as_bytes(), None).unwrap();
        for (name, value) in headers {
            request.append_header(*name, *value).unwrap();
        }
        request
    }

    fn listed(params: &Params, request: &RequestHeader, body: BodyLength) -> Vec<(String, String)> {
        let mut list = Vec::new();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let request = Request::new(request, body, &Client);
        params.each(&request, |name, value| list.push((text(name), text(value)))).unwrap();
        list
    }

    fn value(list: &[(String, String)], name: &str) -> Option<String> {
        let mut values = list.iter().filter(|(key, _)| key == name);
        let first = values.next().map(|(_, value)| value.clone());
        assert!(values.next().is_none(), "{name} comes twice");
        first
    }

    #[test]
    fn the_usual_variables_are_there() {
        let request = request("/index.php/a%20b?c=d", &[("content-type", "text/x"), ("accept", "*/*")]);
        let list = listed(&params(serde_json::json!({}), Some("/srv/")), &request, BodyLength::Known(7));
        assert_eq!(list[0], ("CONTENT_LENGTH".into(), "7".into()));
        for (name, expected) in [
            ("REQUEST_METHOD", "GET"),
            ("QUERY_STRING", "c=d"),
            ("REQUEST_URI", "/index.php/a%20b?c=d"),
            ("DOCUMENT_URI", "/index.php/a b"),
            ("SCRIPT_NAME", "/index.php"),
            ("SCRIPT_FILENAME", "/srv/index.php"),
            ("PATH_INFO", "/a b"),
            ("PATH_TRANSLATED", "/srv/a b"),
            ("DOCUMENT_ROOT", "/srv"),
            ("CONTENT_TYPE", "text/x"),
            ("SERVER_PROTOCOL", "HTTP/1.1"),
            ("REQUEST_SCHEME", "https"),
            ("HTTPS", "on"),
            ("GATEWAY_INTERFACE", "CGI/1.1"),
            ("SERVER_SOFTWARE", SERVER_SOFTWARE),
            ("REMOTE_ADDR", "192.0.2.1"),
            ("SERVER_NAME", "example.com"),
            ("SERVER_PORT", "443"),
            ("REDIRECT_STATUS", "200"),
            ("HTTP_ACCEPT", "*/*"),
        ] {
            assert_eq!(value(&list, name).as_deref(), Some(expected), "{name}");
        }
        assert_eq!(value(&list, "HTTP_CONTENT_TYPE"), None);
    }

    #[test]
    fn without_a_root_the_path_is_the_applications() {
        let list = listed(&params(serde_json::json!({}), None), &request("/a/b.php", &[]), BodyLength::None);
        assert_eq!(value(&list, "SCRIPT_NAME").as_deref(), Some(""));
        assert_eq!(value(&list, "PATH_INFO").as_deref(), Some("/a/b.php"));
        for name in ["SCRIPT_FILENAME", "DOCUMENT_ROOT", "CONTENT_LENGTH", "CONTENT_TYPE"] {
            assert_eq!(value(&list, name), None, "{name}");
        }
    }

    #[test]
    fn a_header_cannot_pose_as_another_or_as_a_setting() {
        let headers = [
            ("proxy", "http://evil"),
            ("x_forwarded_for", "evil"),
            ("x.forwarded.for", "evil"),
            ("x-forwarded-for", "one"),
            ("x-forwarded-for", "two"),
            ("cookie", "a=b"),
            ("cookie", "c=d"),
        ];
        let list = listed(&params(serde_json::json!({}), None), &request("/", &headers), BodyLength::None);
        assert_eq!(value(&list, "HTTP_X_FORWARDED_FOR").as_deref(), Some("one, two"));
        assert_eq!(value(&list, "HTTP_COOKIE").as_deref(), Some("a=b; c=d"));
        assert!(list.iter().all(|(name, value)| name != "HTTP_PROXY" && value != "evil"), "{list:?}");
    }

    #[test]
    fn a_route_adds_replaces_and_removes() {
        let own = serde_json::json!({ "SERVER_NAME": "own", "HTTP_ACCEPT": "", "APP_HOST": "x-$host" });
        let list = listed(&params(own, None), &request("/", &[("accept", "*/*")]), BodyLength::None);
        assert_eq!(value(&list, "SERVER_NAME").as_deref(), Some("own"));
        assert_eq!(value(&list, "APP_HOST").as_deref(), Some("x-example.com"));
        assert_eq!(value(&list, "HTTP_ACCEPT"), None);
    }

    #[test]
    fn variables_that_make_no_sense_are_refused() {
        for own in [
            r#"{"": "x"}"#,
            r#"{"A=B": "x"}"#,
            r#"{"A\u0000": "x"}"#,
            r#"{"A": "\u0000"}"#,
            r#"{"CONTENT_LENGTH": "1"}"#,
        ] {
            assert!(serde_json::from_str::<OwnParams>(own).is_err(), "{own}");
        }
    }
}
