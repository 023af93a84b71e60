//! Time limits on both sides: between two operations, and only while really waiting for the other end.

use crate::support::http2::{Http2Origin, send_all};
use crate::support::origin::Unreachable;
use crate::support::*;
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;
use tokio::time::sleep;

/// An origin that takes requests and never answers.
async fn silent() -> Origin {
    Origin::start(|mut conn| async move {
        conn.closed().await;
    })
    .await
}

/// Long enough for the limit of `limit`, and not for a limit that is another one.
fn about(limit: Duration, took: Duration) {
    assert!(took >= limit.mul_f64(0.9) && took < limit + Duration::from_secs(3), "{took:?} for a limit of {limit:?}");
}

#[tokio::test]
async fn a_connection_that_is_not_established_in_time_is_a_504() {
    let unreachable = Unreachable::new().await;
    let route = json!({ "timeouts": { "connect": "500ms" } });
    let proxy = Proxy::to_all(json!([unreachable.address()])).route(route).start().await;
    let start = Instant::now();
    assert_eq!(proxy.connect().await.get("/").await.status, 504);
    about(Duration::from_millis(500), start.elapsed());
    proxy.wait_log(&[&unreachable.address()]).await;
}

#[tokio::test]
async fn a_header_that_does_not_come_in_time_is_a_504() {
    let origin = silent().await;
    let proxy = Proxy::to(&origin).route(json!({ "timeouts": { "read": "500ms" } })).start().await;
    let start = Instant::now();
    assert_eq!(proxy.connect().await.get("/").await.status, 504);
    about(Duration::from_millis(500), start.elapsed());
    origin.wait("the upstream's connection is closed", |seen| seen.open == 0).await;
    // A request is counted behind its answer, and logged behind that.
    proxy.access_log(1).await;
    let labels = [("upstream", "app"), ("outcome", "timeout")];
    assert_eq!(proxy.metric("upstream_attempts_total", &labels).await, Some(1.0));
}

#[tokio::test]
async fn the_read_limit_is_between_two_reads() {
    let origin = Origin::start(|mut conn| async move {
        conn.request().await;
        conn.send_head(15).await;
        for byte in "slow but steady".bytes() {
            conn.send([byte]).await;
            sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    let proxy = Proxy::to(&origin).route(json!({ "timeouts": { "read": "1s" } })).start().await;
    let start = Instant::now();
    assert_eq!(proxy.connect().await.get("/").await.text(), "slow but steady");
    assert!(start.elapsed() > Duration::from_secs(1), "the answer took longer than the limit");
}

#[tokio::test]
async fn a_body_that_stops_is_a_broken_message_with_all_that_came() {
    for buffered in [true, false] {
        let origin = Origin::start(|mut conn| async move {
            conn.request().await;
            conn.send_head(1000).await;
            conn.send("some of it").await;
            conn.closed().await;
        })
        .await;
        let proxy = Proxy::to(&origin)
            .route(json!({ "timeouts": { "read": "500ms" }, "buffering": { "enabled": buffered } }))
            .start()
            .await;
        let start = Instant::now();
        let response = proxy.connect().await.get("/").await;
        about(Duration::from_millis(500), start.elapsed());
        assert_eq!((response.status, response.body.as_slice()), (200, &b"some of it"[..]));
        assert!(response.broken.is_some());
        origin.wait("the upstream's connection is closed", |seen| seen.open == 0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_stalls_never_trips_the_read_limit() {
    for buffering in [json!({ "enabled": false }), json!({ "max_temp_file_size": 0 })] {
        let origin = Origin::start(|mut conn| async move {
            conn.request().await;
            conn.send_head(32 * MIB).await;
            conn.send_pattern(32 * MIB).await;
        })
        .await;
        let proxy =
            Proxy::to(&origin).route(json!({ "timeouts": { "read": "300ms" }, "buffering": buffering })).start().await;
        let mut client = proxy.connect().await;
        client.send_request("GET", "/", "").await;
        let head = client.head().await;
        // The client's stall is the test.
        sleep(Duration::from_secs(1)).await;
        assert_eq!(client.pattern(&head).await, 32 * MIB, "{buffering}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_stops_taking_the_request_is_a_504() {
    let origin = Origin::start(|mut conn| async move {
        conn.head().await;
        std::future::pending::<()>().await;
    })
    .await;
    let proxy =
        Proxy::to(&origin).route(json!({ "timeouts": { "send": "500ms" }, "client_max_body_size": 0 })).start().await;
    let response = proxy.connect().await.post("PUT", "/", &pattern::body(64 * MIB)).await;
    assert_eq!(response.status, 504);
}

#[tokio::test]
async fn a_client_that_stops_sending_its_body_is_told_so_and_reaches_no_upstream() {
    let origin = Origin::http(|_| reply(200, "")).await;
    let proxy = Proxy::to(&origin).route(json!({ "client": { "body_timeout": "500ms" } })).start().await;
    let start = Instant::now();
    let mut client = proxy.connect().await;
    client.send_request("POST", "/", "Content-Length: 10\r\n").await;
    client.send("half").await;
    assert_eq!(client.response().await.status, 408);
    about(Duration::from_millis(500), start.elapsed());
    assert!(client.closed().await);
    // Not its connections: a port that another test has given up may still be looked for by that test's proxy.
    assert!(origin.requests().is_empty());
    assert_eq!(proxy.access_log(1).await[0].field("status"), "408");
}

#[tokio::test]
async fn a_client_that_stops_sending_a_streamed_body_takes_the_upstreams_connection_with_it() {
    let origin = silent().await;
    let route = json!({ "client": { "body_timeout": "500ms" }, "request_buffering": false });
    let proxy = Proxy::to(&origin).route(route).start().await;
    let mut client = proxy.connect().await;
    client.send_request("POST", "/", "Content-Length: 10\r\n").await;
    client.send("half").await;
    origin.wait("the upstream is asked", |seen| seen.connections == 1).await;
    origin.wait("and its connection closed", |seen| seen.open == 0).await;
    assert_eq!(client.response().await.status, 408);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_takes_nothing_for_too_long_loses_its_connection() {
    let origin = Origin::start(|mut conn| async move {
        conn.request().await;
        conn.send_head(32 * MIB).await;
        conn.send_pattern(32 * MIB).await;
    })
    .await;
    let proxy = Proxy::to(&origin).route(json!({ "client": { "send_timeout": "500ms" } })).start().await;
    let mut client = proxy.connect().await;
    client.send_request("GET", "/", "").await;
    client.head().await;
    // Logged when it is over, and the client has read nothing meanwhile.
    proxy.access_log(1).await;
    eventually("the temporary file is gone", async || proxy.temp_files().is_empty().then_some(())).await;
    assert!((client.rest().await.len() as u64) < 32 * MIB);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_slow_but_steady_keeps_its_connection() {
    let origin = Origin::start(|mut conn| async move {
        conn.request().await;
        conn.send_head(8 * MIB).await;
        conn.send_pattern(8 * MIB).await;
    })
    .await;
    let proxy = Proxy::to(&origin).route(json!({ "client": { "send_timeout": "1s" } })).start().await;
    let mut client = proxy.connect().await;
    client.send_request("GET", "/", "").await;
    let head = client.head().await;
    let start = Instant::now();
    assert_eq!(client.pattern_at(&head, 3 * MIB).await, 8 * MIB);
    assert!(start.elapsed() > Duration::from_secs(2), "it took longer than the limit");
}

#[tokio::test]
async fn an_idle_client_connection_is_closed_after_keepalive_timeout() {
    let origin = Origin::http(|_| reply(200, "ok")).await;
    let proxy = Proxy::to(&origin).route(json!({ "client": { "keepalive_timeout": "1s" } })).start().await;
    let mut client = proxy.connect().await;
    assert_eq!(client.get("/").await.text(), "ok");
    let start = Instant::now();
    assert!(client.closed().await);
    about(Duration::from_secs(1), start.elapsed());
}

#[tokio::test]
async fn an_idle_upstream_connection_is_closed_after_its_timeout() {
    let origin = Origin::http(|_| reply(200, "ok")).await;
    let proxy = Proxy::to(&origin).upstream(json!({ "keepalive": { "timeout": "1s" } })).start().await;
    assert_eq!(proxy.connect().await.get("/").await.text(), "ok");
    let start = Instant::now();
    origin.wait("the idle connection is closed", |seen| seen.open == 0).await;
    about(Duration::from_secs(1), start.elapsed());
}

#[tokio::test]
async fn a_client_that_takes_none_of_many_small_pieces_loses_its_connection_too() {
    let origin = Origin::start(|mut conn| async move {
        conn.request().await;
        conn.send_head(1 << 40).await;
        // Slow enough for each piece to be flushed by itself.
        let mut tick = tokio::time::interval(Duration::from_millis(3));
        while conn.send([b'x'; 1400]).await {
            tick.tick().await;
        }
    })
    .await;
    let route = json!({ "client": { "send_timeout": "500ms" }, "buffering": { "max_temp_file_size": 0 } });
    let proxy = Proxy::to(&origin).route(route).start().await;
    let mut client = proxy.connect().await;
    client.send_request("GET", "/", "").await;
    client.head().await;
    proxy.wait_log(&["to the client: nothing for 500ms"]).await;
    origin.wait("the upstream's connection is closed", |seen| seen.open == 0).await;
}

#[tokio::test]
async fn an_http2_upstream_that_answers_and_takes_no_more_of_the_request_still_has_the_read_limit() {
    let origin = Http2Origin::start(None, |_request, mut respond| async move {
        let mut send = respond.send_response(http::Response::new(()), false).unwrap();
        assert!(send_all(&mut send, b"some", false).await);
        // The request is held, and nothing of it read.
        std::future::poll_fn(|cx| send.poll_reset(cx)).await.unwrap();
    })
    .await;
    let proxy = Proxy::to_all(json!([origin.address()]))
        .upstream(json!({ "http_version": 2 }))
        .route(json!({ "request_buffering": false, "timeouts": { "send": "300ms", "read": "600ms" } }))
        .start()
        .await;
    let mut client = proxy.connect().await;
    client.send_request("POST", "/", "Content-Length: 1000000\r\n").await;
    let (_reading, mut writing) = client.split();
    tokio::spawn(async move { writing.write_all(&[0; 1_000_000]).await.is_ok() });
    proxy.wait_log(&["reading the body", "600ms"]).await;
}
