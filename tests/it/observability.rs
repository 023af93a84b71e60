//! Metrics, status pages and the access log: design §7.

use crate::support::*;
use std::fs;

async fn hello() -> Origin {
    Origin::http(|_| reply(200, "hello")).await
}

/// The access log in this format after one request.
async fn logged(format: &str) -> String {
    let origin = hello().await;
    let setup = Proxy::to(&origin);
    let path = setup.files.dir().join("other.log");
    let log = json!({ "path": path, "format": format });
    let proxy = setup.top(json!({ "access_log": log })).start().await;
    let headers = "User-Agent: test/1.0\r\nReferer: http://from.test/\"quoted\"\r\n";
    assert_eq!(proxy.connect().await.request("GET", "/path?a=1", headers).await.status, 200);
    let whole = async || fs::read_to_string(&path).ok().filter(|text| text.ends_with('\n'));
    let text = eventually("a line in the access log", whole).await;
    text.replace(origin.address(), "ORIGIN")
}

#[tokio::test]
async fn the_json_access_log_has_each_attempt() {
    let line: Value = serde_json::from_str(&logged("json").await).unwrap();
    assert_eq!(line["status"], 200);
    assert_eq!(line["method"], "GET");
    assert_eq!(line["request_uri"], "/path?a=1");
    assert_eq!(line["body_bytes_sent"], 5);
    assert_eq!(line["remote_addr"], "127.0.0.1");
    assert_eq!(line["user_agent"], "test/1.0");
    assert!(line["request_time"].is_number());
    assert_eq!(line["attempts"][0]["address"], "ORIGIN");
    assert_eq!(line["attempts"][0]["status"], 200);
    for time in ["connect_time", "header_time", "response_time"] {
        assert!(line["attempts"][0][time].is_number(), "{time}: {line}");
    }
}

#[tokio::test]
async fn the_combined_access_log_is_apaches() {
    let line = logged("combined").await;
    assert!(line.starts_with("127.0.0.1 - - ["), "{line}");
    assert!(line.contains("] \"GET /path?a=1 HTTP/1.1\" 200 5 \"http://from.test/"), "{line}");
    assert!(line.contains("\"test/1.0\""), "{line}");
    assert!(!line.contains("/\"quoted\""), "a quote in a header cannot end a field: {line}");
}

#[tokio::test]
async fn a_template_access_log_has_the_variables_asked_for() {
    let format = "$request_method $uri $args $arg_a $status $upstream_addr $upstream_status $http_user_agent";
    assert_eq!(logged(format).await, "GET /path a=1 1 200 ORIGIN 200 test/1.0\n");
    let times = logged("$request_time $upstream_connect_time $upstream_header_time $upstream_response_time").await;
    for time in times.split_whitespace() {
        assert!(time.parse::<f64>().is_ok(), "{times}");
    }
}

#[tokio::test]
async fn a_line_break_in_a_request_is_no_line_break_in_the_log() {
    let origin = hello().await;
    let proxy = Proxy::to(&origin).start().await;
    let mut client = proxy.connect().await;
    client.get("/a%0Ab").await;
    client.get("/second").await;
    let lines = proxy.access_log(2).await;
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[1].field("request_uri"), "/second");
}

#[tokio::test]
async fn requests_are_counted_by_service_route_method_and_status() {
    let origin = hello().await;
    let proxy = Proxy::to(&origin).start().await;
    let mut client = proxy.connect().await;
    for _ in 0..3 {
        client.get("/").await;
    }
    client.post("POST", "/", b"body").await;
    proxy.access_log(4).await;
    let count = async |method: &str| {
        let labels = [("service", "web"), ("method", method), ("status", "200")];
        proxy.metric("requests_total", &labels).await
    };
    assert_eq!(count("GET").await, Some(3.0));
    assert_eq!(count("POST").await, Some(1.0));
    assert_eq!(proxy.metric("request_duration_seconds_count", &[("service", "web")]).await, Some(4.0));
    assert_eq!(proxy.metric("upstream_header_seconds_count", &[("upstream", "app")]).await, Some(4.0));
    assert_eq!(proxy.metric("upstream_response_seconds_count", &[("upstream", "app")]).await, Some(4.0));
    assert_eq!(proxy.metric("upstream_connect_seconds_count", &[("upstream", "app")]).await, Some(1.0));
    let version = [("version", env!("CARGO_PKG_VERSION"))];
    assert_eq!(proxy.metric("build_info", &version).await, Some(1.0));
}

#[tokio::test]
async fn requests_in_flight_are_those_in_flight() {
    let origin = Origin::start(|mut conn| async move {
        conn.request().await;
        conn.closed().await;
    })
    .await;
    let proxy = Proxy::to(&origin).start().await;
    let mut client = proxy.connect().await;
    client.send_request("GET", "/", "").await;
    origin.wait("the request", |seen| seen.requests.len() == 1).await;
    let in_flight = async || proxy.metric("requests_in_flight", &[("service", "web")]).await;
    assert_eq!(in_flight().await, Some(1.0));
    drop(client);
    proxy.access_log(1).await;
    eventually("none in flight", async || in_flight().await.filter(|count| *count == 0.0)).await;
}

#[tokio::test]
async fn label_values_never_come_from_a_request() {
    let origin = hello().await;
    let proxy = Proxy::to(&origin).start().await;
    for number in 0..5 {
        let mut client = proxy.connect().await;
        client.request(&format!("INVENTED{number}"), &format!("/secret{number}"), "X-Label: zzz\r\n").await;
    }
    proxy.access_log(5).await;
    let page = proxy.metrics().await;
    for word in ["INVENTED", "secret", "zzz"] {
        assert!(!page.contains(word), "{word} became a label");
    }
    assert_eq!(proxy.metric("requests_total", &[("status", "200")]).await, Some(5.0));
}

#[tokio::test]
async fn the_metrics_page_is_prometheus_text() {
    let origin = hello().await;
    let proxy = Proxy::to(&origin).start().await;
    proxy.connect().await.get("/").await;
    proxy.access_log(1).await;
    let response = Client::connect(proxy.ports.admin).await.get("/metrics").await;
    assert!(response.header("content-type").unwrap().starts_with("text/plain"));
    let page = response.text();
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        let (sample, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line}"));
        assert!(!sample.is_empty() && value.parse::<f64>().is_ok(), "{line}");
    }
    assert!(page.contains("# TYPE millpond_requests_total counter"));
    assert!(page.contains("# TYPE millpond_request_duration_seconds histogram"));
    assert!(page.contains("# TYPE millpond_pipe_memory_bytes gauge"));
}

#[tokio::test]
async fn the_admin_listener_says_that_it_is_well() {
    let origin = hello().await;
    let proxy = Proxy::to(&origin).start().await;
    let mut admin = Client::connect(proxy.ports.admin).await;
    assert_eq!(admin.get("/healthz").await.status, 200);
    let status = admin.get("/status.json").await;
    let status: Value = serde_json::from_str(&status.text()).unwrap();
    assert!(status.is_object());
    let page = admin.get("/status").await;
    assert_eq!(page.status, 200);
    assert!(page.text().contains(origin.address()), "the peers are on the status page");
    assert_eq!(admin.get("/nothing").await.status, 404);
}

#[tokio::test]
async fn the_admin_pages_are_not_on_the_services_listeners() {
    let origin = hello().await;
    let proxy = Proxy::to(&origin).start().await;
    assert_eq!(proxy.connect().await.get("/metrics").await.text(), "hello");
}

#[tokio::test]
async fn upstream_connections_in_use_are_counted() {
    let origin = Origin::start(|mut conn| async move {
        conn.request().await;
        conn.closed().await;
    })
    .await;
    let proxy = Proxy::to(&origin).start().await;
    let mut client = proxy.connect().await;
    client.send_request("GET", "/", "").await;
    origin.wait("the request", |seen| seen.requests.len() == 1).await;
    let active = async || proxy.metric("upstream_connections", &[("upstream", "app"), ("state", "active")]).await;
    assert_eq!(active().await, Some(1.0));
    drop(client);
    eventually("none in use", async || active().await.filter(|count| *count == 0.0)).await;
}
