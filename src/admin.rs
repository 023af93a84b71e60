//! The operator's pages: `/metrics`, `/status`, `/status.json`, `/healthz`, and what changes something by `POST`.
//!
//! Changes are for clients on this machine (`admin.allow_changes` lets others in), and never for a page that somebody
//! looks at in a browser there: its requests have an `Origin`.

use crate::conf::{self, Address};
use crate::listen;
use crate::metrics;
use crate::peers::State;
use crate::reload::{Refused, Running};
use async_trait::async_trait;
use http::{Response, StatusCode};
use percent_encoding::percent_decode_str;
use pingora_core::apps::http_app::ServeHttp;
use pingora_core::protocols::http::ServerSession;
use pingora_core::server::Server;
use pingora_core::services::listening::Service as Listening;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a request may send at most, in bytes.
const BODY_MAX: usize = 64 * 1024;
/// How long its body may take.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

struct Admin {
    started: Instant,
    /// A Unix socket: its clients are those who may open it.
    on_socket: bool,
    running: Arc<Running>,
}

/// Add the admin listener.
pub(crate) fn add_service(server: &mut Server, conf: &conf::Admin, running: &Arc<Running>) {
    let on_socket = matches!(conf.listen, Address::Unix(_));
    let admin = Admin { started: Instant::now(), on_socket, running: running.clone() };
    let mut service = Listening::new("admin".to_owned(), admin);
    service.threads = Some(1);
    service.add_listener(listen::plain(&conf.listen));
    server.add_service(service);
}

/// What is asked for.
enum Page {
    Health,
    Metrics,
    Status,
    StatusJson,
    Reload,
    /// What the operator wants of an upstream's peers: of one, or of all of them.
    Peers {
        upstream: String,
        /// Its address, or its name in the file.
        peer: Option<String>,
    },
}

/// The body of a change to [`Page::Peers`].
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    state: State,
}

/// `None`: not UTF-8.
fn decoded(text: &str) -> Option<String> {
    Some(percent_decode_str(text).decode_utf8().ok()?.into_owned())
}

impl Page {
    fn find(path: &str) -> Option<Self> {
        Some(match path {
            "/healthz" => Page::Health,
            "/metrics" => Page::Metrics,
            "/status" => Page::Status,
            "/status.json" => Page::StatusJson,
            "/reload" => Page::Reload,
            _ => return Self::find_peers(path),
        })
    }

    /// `/upstreams/NAME` and `/upstreams/NAME/peers/ADDR`. A Unix socket's address has slashes, encoded or not.
    fn find_peers(path: &str) -> Option<Self> {
        let path = path.strip_prefix("/upstreams/")?;
        let (upstream, peer) = match path.split_once("/peers/") {
            Some((upstream, peer)) => (upstream, Some(decoded(peer)?)),
            None => (path, None),
        };
        let named = !upstream.is_empty() && !upstream.contains('/') && peer.as_deref() != Some("");
        Some(Page::Peers { upstream: decoded(upstream)?, peer }).filter(|_| named)
    }

    /// The methods it has, as `Allow` names them.
    fn allow(&self) -> &'static str {
        match self {
            Page::Reload | Page::Peers { .. } => "POST",
            Page::Health | Page::Metrics | Page::Status | Page::StatusJson => "GET, HEAD",
        }
    }
}

const PAGES: &str =
    "/metrics /status /status.json /healthz, and POST /reload /upstreams/NAME /upstreams/NAME/peers/ADDRESS";

#[async_trait]
impl ServeHttp for Admin {
    async fn response(&self, session: &mut ServerSession) -> Response<Vec<u8>> {
        self.answer(session).await.unwrap_or_else(|refused| {
            // What is left of the request is not read.
            session.set_keepalive(None);
            refused.answer()
        })
    }
}

impl Admin {
    async fn answer(&self, session: &mut ServerSession) -> Result<Response<Vec<u8>>, Refusal> {
        let request = session.req_header();
        let page = Page::find(request.uri.path()).ok_or_else(|| refuse(StatusCode::NOT_FOUND, PAGES))?;
        if !page.allow().split(", ").any(|method| method == request.method.as_str()) {
            return Err(Refusal {
                status: StatusCode::METHOD_NOT_ALLOWED,
                text: format!("only {}", page.allow()),
                allow: Some(page.allow()),
            });
        }
        match page {
            Page::Health => Ok(text(StatusCode::OK, "ok\n")),
            Page::Metrics => {
                Ok(answer(StatusCode::OK, "text/plain; version=0.0.4", metrics::page(&self.running.limits)))
            }
            Page::Status => Ok(text(StatusCode::OK, self.status_text())),
            Page::StatusJson => Ok(json(&self.status())),
            Page::Reload => {
                self.may_change(session)?;
                read_body(session).await?;
                self.reload().await
            }
            Page::Peers { upstream, peer } => {
                self.may_change(session)?;
                let wanted = read_body(session).await?;
                self.set_state(&upstream, peer.as_deref(), &wanted)
            }
        }
    }

    /// Is this somebody who may change something?
    fn may_change(&self, session: &ServerSession) -> Result<(), Refusal> {
        let from_page = session.req_header().headers.contains_key(http::header::ORIGIN);
        let client = session.client_addr().and_then(|client| client.as_inet()).map(|client| client.ip());
        may_change(from_page, client, self.on_socket || self.running.allows_changes())
    }

    async fn reload(&self) -> Result<Response<Vec<u8>>, Refusal> {
        let running = self.running.clone();
        match tokio::task::spawn_blocking(move || running.reload()).await {
            Ok(Ok(needs_upgrade)) if needs_upgrade.is_empty() => Ok(json(&json!({ "result": "success" }))),
            Ok(Ok(needs_upgrade)) => Ok(json(&json!({ "result": "success", "needs_upgrade": needs_upgrade }))),
            Ok(Err(Refused::NoFile)) => {
                Err(refuse(StatusCode::CONFLICT, "this configuration was made in code, there is no file to read again"))
            }
            Ok(Err(Refused::Wrong(errors))) => Err(refuse(StatusCode::UNPROCESSABLE_ENTITY, errors)),
            Err(error) => Err(refuse(StatusCode::INTERNAL_SERVER_ERROR, format!("reading the file: {error}"))),
        }
    }
}

impl Admin {
    fn set_state(&self, name: &str, peer: Option<&str>, wanted: &[u8]) -> Result<Response<Vec<u8>>, Refusal> {
        let wanted: Wanted = serde_json::from_slice(wanted).map_err(|error| {
            let expected = r#"expected {"state": "up"}, {"state": "drain"} or {"state": "down"}"#;
            refuse(StatusCode::BAD_REQUEST, format!("{expected}: {error}"))
        })?;
        let upstreams = self.running.upstreams();
        let Some(upstream) = upstreams.iter().find(|upstream| upstream.name() == name) else {
            let known: Vec<_> = upstreams.iter().map(|upstream| upstream.name()).collect();
            return Err(not_found(format!("no upstream {name}"), &known.join(", ")));
        };
        if upstream.set_state(peer, wanted.state) > 0 {
            return Ok(json(&upstream.status()));
        }
        let (group, peer) = (upstream.group(), peer.unwrap_or("at all"));
        let known: Vec<_> = group.members().iter().map(|member| &**member.peer.address_text()).collect();
        Err(not_found(format!("upstream {name} has no peer {peer}"), &known.join(", ")))
    }
}

fn not_found(what: String, known: &str) -> Refusal {
    refuse(StatusCode::NOT_FOUND, format!("{what}; there are: {known}"))
}

/// Why a request is not done.
struct Refusal {
    status: StatusCode,
    text: String,
    /// The methods it could have had.
    allow: Option<&'static str>,
}

fn refuse(status: StatusCode, text: impl Into<String>) -> Refusal {
    Refusal { status, text: text.into(), allow: None }
}

impl Refusal {
    fn answer(self) -> Response<Vec<u8>> {
        let mut response = text(self.status, self.text + "\n");
        if let Some(allow) = self.allow {
            response.headers_mut().insert(http::header::ALLOW, http::HeaderValue::from_static(allow));
        }
        response
    }
}

/// `client`: its address, if it has one; `allowed`: wherever it is.
fn may_change(from_page: bool, client: Option<IpAddr>, allowed: bool) -> Result<(), Refusal> {
    let loopback = client.is_some_and(|client| client.to_canonical().is_loopback());
    match (from_page, allowed || loopback) {
        (true, _) => Err(refuse(StatusCode::FORBIDDEN, "not for pages in a browser")),
        (false, false) => {
            Err(refuse(StatusCode::FORBIDDEN, "only from this machine, unless admin.allow_changes is true"))
        }
        (false, true) => Ok(()),
    }
}

/// The whole body of a request.
async fn read_body(session: &mut ServerSession) -> Result<Vec<u8>, Refusal> {
    match tokio::time::timeout(BODY_TIMEOUT, read_limited(session)).await {
        Ok(read) => read,
        Err(_) => Err(refuse(StatusCode::REQUEST_TIMEOUT, "the body takes too long")),
    }
}

async fn read_limited(session: &mut ServerSession) -> Result<Vec<u8>, Refusal> {
    let mut body = Vec::new();
    loop {
        match session.read_request_body().await {
            Ok(Some(piece)) if body.len() + piece.len() <= BODY_MAX => body.extend_from_slice(&piece),
            Ok(Some(_)) => {
                return Err(refuse(StatusCode::PAYLOAD_TOO_LARGE, format!("a body of more than {BODY_MAX} bytes")));
            }
            Ok(None) => return Ok(body),
            Err(error) => return Err(refuse(StatusCode::BAD_REQUEST, format!("the body cannot be read: {error}"))),
        }
    }
}

fn text(status: StatusCode, text: impl Into<String>) -> Response<Vec<u8>> {
    answer(status, "text/plain; charset=utf-8", text.into().into_bytes())
}

fn json(value: &Value) -> Response<Vec<u8>> {
    answer(StatusCode::OK, "application/json", format!("{value}\n").into_bytes())
}

fn answer(status: StatusCode, content_type: &'static str, body: Vec<u8>) -> Response<Vec<u8>> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let length = http::HeaderValue::from(response.body().len());
    let headers = response.headers_mut();
    headers.insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    headers.insert(http::header::CONTENT_LENGTH, length);
    response
}

impl Admin {
    fn status(&self) -> Value {
        let running: Vec<_> = self.running.services.iter().map(|service| service.load_full()).collect();
        let upstreams = self.running.upstreams();
        let upstreams: BTreeMap<_, _> = upstreams.iter().map(|upstream| (upstream.name(), upstream.status())).collect();
        let services: Vec<_> = running
            .iter()
            .map(|service| {
                let routes: Vec<_> = service.routes.iter().map(|route| route.name()).collect();
                json!({ "name": service.name(), "routes": routes })
            })
            .collect();
        let limits = &self.running.limits;
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "uptime_seconds": self.started.elapsed().as_secs(),
            "pipe": { "memory_bytes": limits.memory_bytes(), "temp_file_bytes": limits.temp_file_bytes() },
            "services": services,
            "upstreams": upstreams,
        })
    }

    fn status_text(&self) -> String {
        serde_json::to_string_pretty(&self.status()).unwrap_or_default() + "\n"
    }
}

#[cfg(test)]
mod tests {
    use super::{Page, may_change};
    use std::net::IpAddr;

    #[test]
    fn changes_are_for_clients_on_this_machine_and_never_for_pages() {
        let client = |text: &str| Some(text.parse::<IpAddr>().unwrap());
        for here in ["127.0.0.1", "127.1.2.3", "::1", "::ffff:127.0.0.1"] {
            assert!(may_change(false, client(here), false).is_ok(), "{here}");
            assert!(may_change(true, client(here), true).is_err(), "{here}");
        }
        for elsewhere in [client("10.0.0.1"), client("2001:db8::1"), client("::ffff:10.0.0.1"), None] {
            assert!(may_change(false, elsewhere, false).is_err(), "{elsewhere:?}");
            assert!(may_change(false, elsewhere, true).is_ok(), "{elsewhere:?}");
        }
    }

    fn peers(path: &str) -> Option<(String, Option<String>)> {
        match Page::find(path) {
            Some(Page::Peers { upstream, peer }) => Some((upstream, peer)),
            _ => None,
        }
    }

    #[test]
    fn a_peer_is_all_that_follows_encoded_or_not() {
        let found = |upstream: &str, peer: Option<&str>| Some((upstream.to_owned(), peer.map(str::to_owned)));
        assert_eq!(peers("/upstreams/app"), found("app", None));
        assert_eq!(peers("/upstreams/a%20b"), found("a b", None));
        assert_eq!(peers("/upstreams/app/peers/127.0.0.1:80"), found("app", Some("127.0.0.1:80")));
        assert_eq!(peers("/upstreams/app/peers/%5B::1%5D:80"), found("app", Some("[::1]:80")));
        for socket in ["unix:/run/app.sock", "unix%3A%2Frun%2Fapp.sock"] {
            assert_eq!(peers(&format!("/upstreams/app/peers/{socket}")), found("app", Some("unix:/run/app.sock")));
        }
        for other in ["/upstreams/", "/upstreams/a/b", "/upstreams//peers/x", "/upstreams/app/peers/", "/upstreams/%ff"]
        {
            assert_eq!(peers(other), None, "{other}");
        }
    }
}
