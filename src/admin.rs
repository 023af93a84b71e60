//! The operator's pages: `/metrics`, `/status`, `/status.json`, `/healthz`.

use crate::conf;
use crate::listen;
use crate::metrics;
use crate::pipe::Limits;
use crate::reload::Running;
use async_trait::async_trait;
use http::{Method, Response, StatusCode};
use pingora_core::apps::http_app::ServeHttp;
use pingora_core::protocols::http::ServerSession;
use pingora_core::server::Server;
use pingora_core::services::listening::Service as Listening;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

struct Admin {
    started: Instant,
    limits: Arc<Limits>,
    running: Arc<Running>,
}

/// Add the admin listener.
pub(crate) fn add_service(server: &mut Server, conf: &conf::Admin, limits: &Arc<Limits>, running: &Arc<Running>) {
    let admin = Admin { started: Instant::now(), limits: limits.clone(), running: running.clone() };
    let mut service = Listening::new("admin".to_owned(), admin);
    service.threads = Some(1);
    service.add_listener(listen::plain(&conf.listen));
    server.add_service(service);
}

#[async_trait]
impl ServeHttp for Admin {
    async fn response(&self, session: &mut ServerSession) -> Response<Vec<u8>> {
        let request = session.req_header();
        if !matches!(request.method, Method::GET | Method::HEAD) {
            return answer(StatusCode::METHOD_NOT_ALLOWED, "text/plain", b"only GET and HEAD\n".to_vec());
        }
        match request.uri.path() {
            "/healthz" => answer(StatusCode::OK, "text/plain", b"ok\n".to_vec()),
            "/metrics" => answer(StatusCode::OK, "text/plain; version=0.0.4", metrics::page(&self.limits)),
            "/status.json" => answer(StatusCode::OK, "application/json", format!("{}\n", self.status()).into_bytes()),
            "/status" => answer(StatusCode::OK, "text/plain; charset=utf-8", self.status_text().into_bytes()),
            _ => answer(StatusCode::NOT_FOUND, "text/plain", b"/metrics /status /status.json /healthz\n".to_vec()),
        }
    }
}

fn answer(status: StatusCode, content_type: &'static str, body: Vec<u8>) -> Response<Vec<u8>> {
    let mut response = Response::new(Vec::new());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    headers.insert(http::header::CONTENT_LENGTH, http::HeaderValue::from(body.len()));
    *response.body_mut() = body;
    response
}

impl Admin {
    fn status(&self) -> Value {
        let running: Vec<_> = self.running.services.iter().map(|service| service.load_full()).collect();
        let upstreams: BTreeMap<_, _> = running
            .iter()
            .flat_map(|service| &service.routes)
            .filter_map(|route| route.upstream.as_ref())
            .map(|upstream| (upstream.name(), upstream.status()))
            .collect();
        let services: Vec<_> = running
            .iter()
            .map(|service| {
                let routes: Vec<_> = service.routes.iter().map(|route| route.name()).collect();
                json!({ "name": service.name(), "routes": routes })
            })
            .collect();
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "uptime_seconds": self.started.elapsed().as_secs(),
            "pipe": { "memory_bytes": self.limits.memory_bytes(), "temp_file_bytes": self.limits.temp_file_bytes() },
            "services": services,
            "upstreams": upstreams,
        })
    }

    fn status_text(&self) -> String {
        serde_json::to_string_pretty(&self.status()).unwrap_or_default() + "\n"
    }
}
