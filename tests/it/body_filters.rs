//! The filters that look at bodies, `body_limit`, `body_rate` and `log_body`, and `fault`.

use crate::support::http2::{Http2, get};
use crate::support::*;
use std::time::{Duration, Instant};

async fn quick() -> Origin {
    Origin::http(|_| reply(200, "done")).await
}

/// A proxy with this one filter.
fn with(origin: &Origin, filter: Value) -> Setup {
    Proxy::to(origin).route(json!({ "filters": [filter] }))
}

/// A body of one chunk, and its end.
fn chunked(body: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", body.len()).as_bytes(), body, b"\r\n0\r\n\r\n"].concat()
}

const CHUNKED: &str = "Transfer-Encoding: chunked\r\n";

#[tokio::test]
async fn body_limit_refuses_what_is_too_large_and_nothing_else() {
    let origin = quick().await;
    let proxy = with(&origin, json!({ "body_limit": { "max": "1KiB" } })).start().await;
    let (fits, too_large) = (pattern::body(1024), pattern::body(1025));
    let mut client = proxy.connect().await;
    assert_eq!(client.get("/").await.status, 200);
    assert_eq!(client.post("POST", "/", &fits).await.status, 200);
    client.send_request("POST", "/", CHUNKED).await;
    client.send(chunked(&fits)).await;
    assert_eq!(client.response().await.status, 200);
    assert_eq!(proxy.connect().await.post("POST", "/", &too_large).await.status, 413);
    client.send_request("POST", "/", CHUNKED).await;
    client.send(chunked(&too_large)).await;
    assert_eq!(client.response().await.status, 413);
    let seen = origin.requests();
    assert_eq!(seen.len(), 3, "no upstream sees what is refused");
    assert_eq!(seen[2].body, fits);
    let labels = [("service", "web"), ("route", "/")];
    assert_eq!(proxy.metric("body_limit_rejected_total", &labels).await, Some(2.0));
}

#[tokio::test]
async fn body_limit_answers_a_client_that_waits_to_be_told_to_go_on() {
    let origin = quick().await;
    let proxy = with(&origin, json!({ "body_limit": { "max": "1KiB" } })).start().await;
    let mut client = proxy.connect().await;
    client.send_request("POST", "/", "Expect: 100-continue\r\nContent-Length: 1025\r\n").await;
    assert_eq!(client.head().await.status, 413, "and not 100");
    assert_eq!(origin.requests().len(), 0);
}

#[tokio::test]
async fn body_limit_never_ends_a_streamed_body_that_is_too_large() {
    let origin = Origin::start(|mut conn| async move {
        // A body that ends is a request, and answered.
        while conn.request().await.is_some() {
            conn.send(reply(200, "complete")).await;
        }
    })
    .await;
    let filter = json!({ "body_limit": { "max": "1KiB" } });
    let proxy = with(&origin, filter).route(json!({ "request_buffering": false })).start().await;
    let mut client = proxy.connect().await;
    client.send_request("POST", "/", CHUNKED).await;
    client.send("3e8\r\n").await;
    client.send(pattern::body(1000)).await;
    client.send("\r\n").await;
    origin.wait("the request is there", |seen| seen.requests.len() == 1).await;
    client.send(chunked(&pattern::body(25))).await;
    assert_eq!(client.response().await.status, 413);
    origin.wait("the upstream's connection is closed", |seen| seen.open == 0).await;
    assert_eq!(origin.only_request().body, b"");
}

#[tokio::test]
async fn timed_body_rate_paces_a_body_and_loses_nothing() {
    let origin = quick().await;
    let filter = json!({ "body_rate": { "rate": "200KiB/s", "after": "100KiB" } });
    let proxy = with(&origin, filter).start().await;
    let (body, start) = (pattern::body(300 * KIB), Instant::now());
    assert_eq!(proxy.connect().await.post("POST", "/", &body).await.status, 200);
    assert!(start.elapsed() >= Duration::from_secs(1), "{:?}", start.elapsed());
    assert!(origin.only_request().body == body, "the body differs");
}

#[tokio::test]
async fn timed_body_rate_paces_a_streamed_body() {
    let origin = quick().await;
    let filter = json!({ "body_rate": { "rate": "200KiB" } });
    let proxy = with(&origin, filter).route(json!({ "request_buffering": false })).start().await;
    let (body, start) = (pattern::body(200 * KIB), Instant::now());
    assert_eq!(proxy.connect().await.post("POST", "/", &body).await.status, 200);
    assert!(start.elapsed() >= Duration::from_secs(1), "{:?}", start.elapsed());
    assert!(origin.only_request().body == body, "the body differs");
}

#[tokio::test]
async fn fault_answers_the_percentage_that_it_is_told_to() {
    let origin = quick().await;
    for (percent, status) in [(100, 503), (0, 200)] {
        let proxy = with(&origin, json!({ "fault": { "status": 503, "percent": percent } })).start().await;
        let mut client = proxy.connect().await;
        for _ in 0..5 {
            assert_eq!(client.get("/").await.status, status);
        }
        let injected = proxy.metric("fault_injected_total", &[("route", "/"), ("fault", "status")]).await;
        assert_eq!(injected, (percent == 100).then_some(5.0));
    }
    assert_eq!(origin.requests().len(), 5);
}

#[tokio::test]
async fn timed_fault_delays() {
    let origin = quick().await;
    let proxy = with(&origin, json!({ "fault": { "delay": "300ms" } })).start().await;
    let start = Instant::now();
    assert_eq!(proxy.connect().await.get("/").await.text(), "done");
    assert!(start.elapsed() >= Duration::from_millis(300), "{:?}", start.elapsed());
}

#[tokio::test]
async fn fault_aborts_without_an_answer() {
    let origin = quick().await;
    let setup = with(&origin, json!({ "fault": { "abort": true } })).tls(&[&Certificate::new("test")]);
    let proxy = setup.start().await;
    let mut client = proxy.connect().await;
    client.send_request("GET", "/", "").await;
    assert!(client.closed().await, "not a byte");
    let mut client = Http2::connect_tls(proxy.ports.tls, "test").await;
    let (answer, _) = client.open(get("/"), true).await;
    let error = within("the stream's end", answer).await.unwrap_err();
    assert!(error.is_reset(), "{error:?}");
    for line in proxy.access_log(2).await {
        assert_eq!(line.field("status"), "499");
    }
    assert_eq!(origin.requests().len(), 0);
}

#[tokio::test]
async fn log_body_logs_what_may_be_read() {
    let answer = r#"{"token":"s3cret-2","n":[1,2]}"#;
    let origin = Origin::http(move |_| {
        format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{answer}", answer.len())
    })
    .await;
    let filter = json!({ "log_body": { "max": "1KiB", "redact": ["password", "token"] } });
    let proxy = with(&origin, filter).start().await;
    let headers = "Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 54\r\n";
    let mut client = proxy.connect().await;
    client.send_request("POST", "/login?password=s3cret-0", headers).await;
    client.send("user=joe&password=s3cret-1&text=\r\n[x INFO x] forged\x1b[m").await;
    assert_eq!(client.response().await.text(), answer, "it only looks");
    proxy
        .wait_log(&["log_body", "web//", "request POST /login: 54 bytes", r"user=joe&password=***&text=\r\n[x INFO"])
        .await;
    proxy.wait_log(&["log_body", "response 200: 30 bytes", r#"{"token":"***","n":[1,2]}"#]).await;
    let log = proxy.log();
    assert!(!log.contains("s3cret"), "{log}");
    assert!(!log.lines().any(|line| line.starts_with("[x INFO")), "{log}");
    assert_eq!(origin.only_request().body.len(), 54);
}

#[tokio::test]
async fn log_body_keeps_to_its_limit_and_its_sample() {
    let origin = quick().await;
    let proxy = with(&origin, json!({ "log_body": { "max": 10 } })).start().await;
    assert_eq!(proxy.connect().await.post("POST", "/", &b"0123456789abcdef".repeat(10_000)).await.status, 200);
    proxy.wait_log(&["160000 bytes, no Content-Type, the first 10: 0123456789"]).await;
    assert!(!proxy.log().contains("789a"), "{}", proxy.log());
    let mut client = proxy.connect().await;
    client.send_request("POST", "/", "Content-Encoding: gzip\r\nContent-Length: 6\r\n").await;
    client.send("zipped").await;
    assert_eq!(client.response().await.status, 200);
    proxy.wait_log(&["request POST /: 6 bytes, no Content-Type, gzip"]).await;
    assert!(!proxy.log().contains("zipped"), "{}", proxy.log());
    let proxy = with(&origin, json!({ "log_body": { "sample": 0 } })).start().await;
    assert_eq!(proxy.connect().await.post("POST", "/", b"unseen").await.status, 200);
    proxy.access_log(1).await;
    assert!(!proxy.log().contains("log_body"), "{}", proxy.log());
}
