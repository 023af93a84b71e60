//! The client leaves: the upstream is told at once, or not at all.

use crate::support::http2::{Http2, get};
use crate::support::*;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// How soon the upstream's connection has to be closed.
const SOON: Duration = Duration::from_millis(200);

/// An origin whose script sends `before`, then waits for the proxy to close and tells when it did.
async fn waiting(before: &'static str) -> (Origin, mpsc::UnboundedReceiver<Instant>) {
    let (tell, closed) = mpsc::unbounded_channel();
    let origin = Origin::start(move |mut conn| {
        let tell = tell.clone();
        async move {
            conn.request().await;
            conn.send(before).await;
            tell.send(conn.closed().await).unwrap();
        }
    })
    .await;
    (origin, closed)
}

async fn closed_soon(mut closed: mpsc::UnboundedReceiver<Instant>, left: Instant) {
    let closed = within("the upstream's connection is closed", closed.recv()).await.unwrap();
    let took = closed.saturating_duration_since(left);
    assert!(took < SOON, "closed {took:?} after the client left");
}

async fn logged_499(proxy: &Proxy) {
    assert_eq!(proxy.access_log(1).await[0].field("status"), "499");
    let counted = async || proxy.metric("client_aborts_total", &[("service", "web")]).await.filter(|n| *n == 1.0);
    eventually("the abort is counted", counted).await;
}

#[tokio::test]
async fn timed_a_client_that_leaves_while_waiting_for_the_header_closes_the_upstream() {
    let (origin, closed) = waiting("").await;
    let proxy = Proxy::to(&origin).start().await;
    let mut client = proxy.connect().await;
    client.send_request("GET", "/", "").await;
    origin.wait("the request", |seen| seen.requests.len() == 1).await;
    drop(client);
    closed_soon(closed, Instant::now()).await;
    logged_499(&proxy).await;
    let labels = [("upstream", "app"), ("outcome", "aborted")];
    assert_eq!(proxy.metric("upstream_attempts_total", &labels).await, Some(1.0));
}

#[tokio::test]
async fn timed_a_client_that_resets_while_waiting_for_the_header_closes_the_upstream() {
    let (origin, closed) = waiting("").await;
    let proxy = Proxy::to(&origin).start().await;
    let mut client = proxy.connect().await;
    client.send_request("GET", "/", "").await;
    origin.wait("the request", |seen| seen.requests.len() == 1).await;
    client.reset();
    closed_soon(closed, Instant::now()).await;
    logged_499(&proxy).await;
}

#[tokio::test]
async fn timed_a_client_that_leaves_while_the_upstream_is_silent_mid_body_closes_it() {
    for buffered in [true, false] {
        let (origin, closed) = waiting("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nsome of it").await;
        let proxy = Proxy::to(&origin).route(json!({ "buffering": { "enabled": buffered } })).start().await;
        let mut client = proxy.connect().await;
        client.send_request("GET", "/", "").await;
        let head = client.head().await;
        client.body_piece(&mut client::framing(&head, "GET")).await.unwrap();
        drop(client);
        closed_soon(closed, Instant::now()).await;
        logged_499(&proxy).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn timed_a_client_that_leaves_while_the_upstream_is_held_back_closes_it() {
    for buffering in [json!({ "enabled": false }), json!({ "max_temp_file_size": 0 })] {
        let (tell, closed) = mpsc::unbounded_channel();
        let origin = Origin::start(move |mut conn| {
            let tell = tell.clone();
            async move {
                conn.request().await;
                conn.send_head(64 * MIB).await;
                assert!(conn.send_pattern(64 * MIB).await.is_none(), "the proxy took everything");
                tell.send(Instant::now()).unwrap();
            }
        })
        .await;
        let proxy = Proxy::to(&origin).route(json!({ "buffering": buffering })).start().await;
        let mut client = proxy.connect().await;
        client.send_request("GET", "/", "").await;
        client.head().await;
        client.reset();
        closed_soon(closed, Instant::now()).await;
        logged_499(&proxy).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_while_its_file_is_drained_frees_it() {
    let origin = Origin::start(|mut conn| async move {
        while conn.request().await.is_some() {
            conn.send_head(32 * MIB).await;
            conn.send_pattern(32 * MIB).await;
        }
    })
    .await;
    let proxy = Proxy::to(&origin).start().await;
    let mut client = proxy.connect().await;
    client.send_request("GET", "/", "").await;
    client.head().await;
    eventually("a spill", async || (proxy.temp_file_bytes() > 0).then_some(())).await;
    client.reset();
    eventually("the temporary file is gone", async || proxy.temp_files().is_empty().then_some(())).await;
    logged_499(&proxy).await;
    let held = async || proxy.metric("pipe_memory_bytes", &[]).await.filter(|held| *held == 0.0);
    eventually("nothing is held", held).await;
}

#[tokio::test]
async fn with_ignore_client_abort_the_exchange_runs_to_its_end() {
    let (tell, mut finished) = mpsc::unbounded_channel();
    let (go_on, gate) = tokio::sync::watch::channel(false);
    let origin = Origin::start(move |mut conn| {
        let (tell, mut gate) = (tell.clone(), gate.clone());
        async move {
            while let Some(request) = conn.request().await {
                if request.target == "/slow" {
                    gate.wait_for(|open| *open).await.unwrap();
                }
                conn.send_head(MIB).await;
                tell.send(conn.send_pattern(MIB).await.is_some()).unwrap();
            }
        }
    })
    .await;
    let proxy = Proxy::to(&origin).route(json!({ "ignore_client_abort": true })).start().await;
    let mut client = proxy.connect().await;
    client.send_request("GET", "/slow", "").await;
    origin.wait("the request", |seen| seen.requests.len() == 1).await;
    drop(client);
    // Something that comes after the abort: whoever closes on it has closed by now.
    let mut other = proxy.connect().await;
    other.send_request("GET", "/other", "").await;
    assert_eq!(other.response().await.body.len() as u64, MIB);
    assert_eq!(within("the other one", finished.recv()).await, Some(true));
    go_on.send(true).unwrap();
    assert_eq!(within("the abandoned one", finished.recv()).await, Some(true), "the upstream could send everything");
    let lines = proxy.access_log(2).await;
    let slow = lines.iter().find(|line| line.field("request_uri") == "/slow").unwrap();
    assert_eq!(slow.field("status"), "499");
    assert_eq!(slow.field("upstream_status"), "200");
}

#[tokio::test]
async fn timed_an_http2_stream_that_is_reset_closes_the_upstream() {
    let (origin, closed) = waiting("").await;
    let proxy = Proxy::to(&origin).tls(&[&Certificate::new("test")]).start().await;
    let mut client = Http2::connect_tls(proxy.ports.tls, "test").await;
    let (answer, mut stream) = client.open(get("/"), true).await;
    origin.wait("the request", |seen| seen.requests.len() == 1).await;
    stream.send_reset(h2::Reason::CANCEL);
    drop(answer);
    closed_soon(closed, Instant::now()).await;
    logged_499(&proxy).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_mid_upload_leaves_nothing_behind() {
    let (origin, mut closed) = waiting("").await;
    let route = json!({ "request_buffering": false, "client_max_body_size": 0 });
    let proxy = Proxy::to(&origin).route(route).start().await;
    let mut client = proxy.connect().await;
    client.send_request("POST", "/", &format!("Content-Length: {MIB}\r\n")).await;
    client.send(pattern::body(1000)).await;
    origin.wait("the request", |seen| seen.requests.len() == 1).await;
    drop(client);
    within("the upstream's connection is closed", closed.recv()).await.unwrap();
    logged_499(&proxy).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_mid_upload_of_a_buffered_body_leaves_no_file() {
    let (origin, _closed) = waiting("").await;
    let proxy = Proxy::to(&origin).route(json!({ "client_max_body_size": 0 })).start().await;
    let mut client = proxy.connect().await;
    client.send_request("POST", "/", &format!("Content-Length: {}\r\n", 4 * MIB)).await;
    client.send(pattern::body(2 * MIB)).await;
    eventually("the body goes to a file", async || (!proxy.temp_files().is_empty()).then_some(())).await;
    drop(client);
    eventually("the file is gone", async || proxy.temp_files().is_empty().then_some(())).await;
    assert_eq!(origin.connections(), 0);
    logged_499(&proxy).await;
}

#[tokio::test]
async fn many_aborts_leak_no_file_descriptor() {
    let (origin, mut closed) = waiting("").await;
    let proxy = Proxy::to(&origin).start().await;
    let mut before = 0;
    for round in 0..50 {
        let mut client = proxy.connect().await;
        client.send_request("GET", "/", "").await;
        origin.wait("the request", |seen| seen.requests.len() == round + 1).await;
        drop(client);
        within("the upstream's connection is closed", closed.recv()).await.unwrap();
        if round == 0 {
            proxy.access_log(1).await;
            before = proxy.fds();
        }
    }
    proxy.access_log(50).await;
    eventually("as many descriptors as before", async || (proxy.fds() <= before + 2).then_some(())).await;
}

#[tokio::test]
async fn a_client_that_leaves_is_no_reason_to_repeat_a_request_on_another_connection() {
    let origin = Origin::start(|mut conn| async move {
        conn.request().await;
        conn.send(reply(200, "one")).await;
        conn.request().await;
        conn.closed().await;
    })
    .await;
    let proxy = Proxy::to(&origin).start().await;
    let mut client = proxy.connect().await;
    assert_eq!(client.get("/").await.text(), "one");
    client.send_request("GET", "/", "").await;
    origin.wait("the request on the pooled connection", |seen| seen.requests.len() == 2).await;
    drop(client);
    let line = &proxy.access_log(2).await[1];
    assert_eq!((line.field("status"), line.field("upstream_addr")), ("499", origin.address()));
    assert_eq!(origin.connections(), 1);
}

#[tokio::test]
async fn with_ignore_client_abort_nobody_waits_for_a_request_body_that_will_never_come() {
    let (tell, mut closed) = mpsc::unbounded_channel();
    let origin = Origin::start(move |mut conn| {
        let tell = tell.clone();
        async move {
            conn.head().await;
            conn.send("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nsome of it").await;
            conn.closed().await;
            tell.send(()).unwrap();
        }
    })
    .await;
    let route = json!({ "ignore_client_abort": true, "request_buffering": false });
    let proxy = Proxy::to(&origin).route(route).start().await;
    let mut client = proxy.connect().await;
    client.send_request("POST", "/", "Content-Length: 10\r\n").await;
    client.send("some").await;
    client.head().await;
    drop(client);
    within("the upstream's connection is closed", closed.recv()).await.unwrap();
    logged_499(&proxy).await;
}
