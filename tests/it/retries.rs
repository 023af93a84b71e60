//! Which peer, which next one, and when none: design §6.

use crate::support::origin::{Refusing, Unreachable};
use crate::support::*;
use std::time::{Duration, Instant};

/// An origin that says its name.
async fn named(name: &'static str) -> Origin {
    Origin::http(move |_| reply(200, name)).await
}

/// An origin that answers with this status and its name.
async fn answering(status: u16, name: &'static str) -> Origin {
    Origin::http(move |_| reply(status, name)).await
}

/// The first server fails, the second is asked after it.
fn first_then(first: &str, second: &Origin) -> Value {
    json!([first, { "address": second.address(), "backup": true }])
}

#[tokio::test]
async fn a_refused_connection_moves_on_and_both_attempts_are_logged() {
    let (refusing, good) = (Refusing::new(), named("good").await);
    let proxy = Proxy::to_all(first_then(&refusing.address(), &good)).start().await;
    assert_eq!(proxy.connect().await.get("/").await.text(), "good");
    let line = &proxy.access_log(1).await[0];
    assert_eq!(line.field("upstream_addr"), format!("{}, {}", refusing.address(), good.address()));
    assert_eq!(line.field("upstream_status"), "502, 200");
}

#[tokio::test]
async fn a_refused_connection_and_no_other_peer_is_a_502() {
    let refusing = Refusing::new();
    let proxy = Proxy::to_all(json!([refusing.address()])).start().await;
    assert_eq!(proxy.connect().await.get("/").await.status, 502);
    proxy.wait_log(&[&refusing.address()]).await;
}

#[tokio::test]
async fn a_post_that_could_not_connect_moves_on() {
    let (refusing, good) = (Refusing::new(), named("good").await);
    let proxy = Proxy::to_all(first_then(&refusing.address(), &good)).start().await;
    assert_eq!(proxy.connect().await.post("POST", "/", b"body").await.text(), "good");
    assert_eq!(good.only_request().body, b"body");
}

#[tokio::test]
async fn a_connection_closed_before_the_header_moves_on() {
    let (closing, good) = (Origin::once("").await, named("good").await);
    let proxy = Proxy::to_all(first_then(closing.address(), &good)).start().await;
    assert_eq!(proxy.connect().await.get("/").await.text(), "good");
}

#[tokio::test]
async fn posts_that_were_sent_do_not_move_on() {
    for method in ["POST", "PATCH", "LOCK"] {
        let (closing, good) = (Origin::once("").await, named("good").await);
        let proxy = Proxy::to_all(first_then(closing.address(), &good)).start().await;
        assert_eq!(proxy.connect().await.post(method, "/", b"body").await.status, 502, "{method}");
        assert_eq!(good.connections(), 0, "{method}");
    }
}

#[tokio::test]
async fn puts_and_deletes_that_were_sent_move_on() {
    for method in ["PUT", "DELETE"] {
        let (closing, good) = (Origin::once("").await, named("good").await);
        let proxy = Proxy::to_all(first_then(closing.address(), &good)).start().await;
        assert_eq!(proxy.connect().await.post(method, "/", b"body").await.text(), "good", "{method}");
        assert_eq!(good.only_request().body, b"body");
    }
}

#[tokio::test]
async fn non_idempotent_lets_a_sent_post_move_on() {
    let (closing, good) = (Origin::once("").await, named("good").await);
    let proxy = Proxy::to_all(first_then(closing.address(), &good))
        .route(json!({ "next_upstream": { "non_idempotent": true } }))
        .start()
        .await;
    assert_eq!(proxy.connect().await.post("POST", "/", b"body").await.text(), "good");
    assert_eq!(good.only_request().body, b"body");
}

#[tokio::test]
async fn a_request_whose_streamed_body_has_been_sent_does_not_move_on() {
    let closing = Origin::start(|mut conn| async move {
        conn.head().await;
        conn.exactly(2).await;
    })
    .await;
    let good = named("good").await;
    let proxy =
        Proxy::to_all(first_then(closing.address(), &good)).route(json!({ "request_buffering": false })).start().await;
    let mut client = proxy.connect().await;
    client.send_request("PUT", "/", "Content-Length: 4\r\n").await;
    client.send("bo").await;
    assert_eq!(client.response().await.status, 502);
    assert_eq!(good.connections(), 0);
}

#[tokio::test]
async fn an_error_that_is_not_listed_does_not_move_on() {
    let (closing, good) = (Origin::once("").await, named("good").await);
    let proxy = Proxy::to_all(first_then(closing.address(), &good))
        .route(json!({ "next_upstream": { "when": ["http_503"] } }))
        .start()
        .await;
    assert_eq!(proxy.connect().await.get("/").await.status, 502);
    assert_eq!(good.connections(), 0);
}

#[tokio::test]
async fn an_empty_list_never_moves_on() {
    let (refusing, good) = (Refusing::new(), named("good").await);
    let proxy = Proxy::to_all(first_then(&refusing.address(), &good))
        .route(json!({ "next_upstream": { "when": [] } }))
        .start()
        .await;
    assert_eq!(proxy.connect().await.get("/").await.status, 502);
    assert_eq!(good.connections(), 0);
}

#[tokio::test]
async fn an_invalid_header_moves_on_when_listed_and_only_then() {
    for (when, status) in [(json!(["invalid_header"]), 200), (json!(["error", "timeout"]), 502)] {
        let (garbage, good) = (Origin::once("HTTP/1.1 what\r\nnonsense\r\n\r\n").await, named("good").await);
        let proxy = Proxy::to_all(first_then(garbage.address(), &good))
            .route(json!({ "next_upstream": { "when": when } }))
            .start()
            .await;
        assert_eq!(proxy.connect().await.get("/").await.status, status, "{when}");
    }
}

#[tokio::test]
async fn a_read_timeout_moves_on_when_listed_and_only_then() {
    for (when, status) in [(json!(["timeout"]), 200), (json!(["error"]), 504)] {
        let silent = Origin::start(|mut conn| async move {
            conn.closed().await;
        })
        .await;
        let good = named("good").await;
        let proxy = Proxy::to_all(first_then(silent.address(), &good))
            .route(json!({ "next_upstream": { "when": when }, "timeouts": { "read": "300ms" } }))
            .start()
            .await;
        assert_eq!(proxy.connect().await.get("/").await.status, status, "{when}");
        silent.wait("the silent connection is closed", |seen| seen.open == 0).await;
    }
}

#[tokio::test]
async fn a_connect_timeout_moves_on() {
    let (unreachable, good) = (Unreachable::new().await, named("good").await);
    let proxy = Proxy::to_all(first_then(&unreachable.address(), &good))
        .route(json!({ "timeouts": { "connect": "300ms" } }))
        .start()
        .await;
    assert_eq!(proxy.connect().await.get("/").await.text(), "good");
    assert_eq!(proxy.access_log(1).await[0].field("upstream_status"), "504, 200");
}

#[tokio::test]
async fn a_listed_status_moves_on() {
    for status in [403, 404, 429, 500, 502, 503, 504] {
        let (bad, good) = (answering(status, "bad").await, named("good").await);
        let proxy = Proxy::to_all(first_then(bad.address(), &good))
            .route(json!({ "next_upstream": { "when": [format!("http_{status}")] } }))
            .start()
            .await;
        assert_eq!(proxy.connect().await.get("/").await.text(), "good", "{status}");
        assert_eq!(proxy.access_log(1).await[0].field("upstream_status"), format!("{status}, 200"));
    }
}

#[tokio::test]
async fn a_status_that_is_not_listed_is_the_answer() {
    let (bad, good) = (answering(503, "bad").await, named("good").await);
    let proxy = Proxy::to_all(first_then(bad.address(), &good)).start().await;
    let response = proxy.connect().await.get("/").await;
    assert_eq!((response.status, response.text().as_str()), (503, "bad"));
    assert_eq!(good.connections(), 0);
}

#[tokio::test]
async fn when_the_last_peer_answers_a_listed_status_too_that_answer_passes_as_it_is() {
    let (bad, worse) = (answering(503, "bad").await, answering(503, "worse").await);
    let proxy = Proxy::to_all(first_then(bad.address(), &worse))
        .route(json!({ "next_upstream": { "when": ["http_503"] } }))
        .start()
        .await;
    let response = proxy.connect().await.get("/").await;
    assert_eq!((response.status, response.text().as_str()), (503, "worse"));
}

#[tokio::test]
async fn tries_counts_the_first_attempt() {
    let (one, two) = (Refusing::new(), Refusing::new());
    for (tries, status) in [(2, 502), (3, 200)] {
        let good = named("good").await;
        let backup = json!({ "address": good.address(), "backup": true });
        let proxy = Proxy::to_all(json!([one.address(), two.address(), backup]))
            .route(json!({ "next_upstream": { "tries": tries } }))
            .start()
            .await;
        assert_eq!(proxy.connect().await.get("/").await.status, status, "{tries} tries");
        let attempts = proxy.access_log(1).await[0].field("upstream_addr").split(", ").count();
        assert_eq!(attempts, tries as usize);
    }
}

#[tokio::test]
async fn no_attempt_starts_once_the_time_is_used_up() {
    let silent = Origin::start(|mut conn| async move {
        conn.closed().await;
    })
    .await;
    let good = named("good").await;
    let proxy = Proxy::to_all(first_then(silent.address(), &good))
        .route(json!({ "next_upstream": { "timeout": "200ms" }, "timeouts": { "read": "500ms" } }))
        .start()
        .await;
    assert_eq!(proxy.connect().await.get("/").await.status, 504);
    assert_eq!(good.connections(), 0);
}

#[tokio::test]
async fn nothing_moves_on_once_the_client_has_seen_a_byte() {
    let dying = Origin::once("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf.").await;
    let good = named("good").await;
    let proxy = Proxy::to_all(first_then(dying.address(), &good)).start().await;
    let response = proxy.connect().await.get("/").await;
    assert_eq!((response.status, response.body.as_slice()), (200, &b"half."[..]));
    assert!(response.broken.is_some());
    assert_eq!(good.connections(), 0);
}

#[tokio::test]
async fn round_robin_shares_by_weight_and_smoothly() {
    let (heavy, light, third) = (named("a").await, named("b").await, named("c").await);
    let proxy = Proxy::to_all(json!([
        { "address": heavy.address(), "weight": 5 }, light.address(), third.address(),
    ]))
    .start()
    .await;
    let mut client = proxy.connect().await;
    let mut order = String::new();
    for _ in 0..70 {
        order += &client.get("/").await.text();
    }
    let count = |name| order.matches(name).count();
    assert_eq!((count("a"), count("b"), count("c")), (50, 10, 10), "{order}");
    assert!(!order.contains("aaaaa"), "spread evenly, as nginx does: {order}");
}

#[tokio::test]
async fn down_serves_nothing() {
    let (down, good) = (named("down").await, named("good").await);
    let proxy = Proxy::to_all(json!([{ "address": down.address(), "down": true }, good.address()])).start().await;
    let mut client = proxy.connect().await;
    for _ in 0..4 {
        assert_eq!(client.get("/").await.text(), "good");
    }
    assert_eq!(down.connections(), 0);
}

#[tokio::test]
async fn a_backup_serves_only_when_no_other_can() {
    let (good, backup) = (named("good").await, named("backup").await);
    let proxy = Proxy::to_all(first_then(good.address(), &backup)).start().await;
    let mut client = proxy.connect().await;
    for _ in 0..4 {
        assert_eq!(client.get("/").await.text(), "good");
    }
    assert_eq!(backup.connections(), 0);
}

#[tokio::test]
async fn a_peer_that_failed_rests() {
    let (closing, good) = (Origin::once("").await, named("good").await);
    let proxy = Proxy::to_all(json!([
        { "address": closing.address(), "max_fails": 2, "fail_timeout": "60s" }, good.address(),
    ]))
    .start()
    .await;
    let mut client = proxy.connect().await;
    for _ in 0..12 {
        assert_eq!(client.get("/").await.text(), "good");
    }
    assert_eq!(closing.connections(), 2, "after max_fails failures it is left alone");
    let up = async |peer: &str| proxy.metric("upstream_peer_up", &[("upstream", "app"), ("peer", peer)]).await;
    assert_eq!(up(closing.address()).await, Some(0.0));
    assert_eq!(up(good.address()).await, Some(1.0));
}

#[tokio::test]
async fn a_peer_that_has_rested_is_tried_again() {
    let (closing, good) = (Origin::once("").await, named("good").await);
    let proxy = Proxy::to_all(json!([
        { "address": closing.address(), "max_fails": 1, "fail_timeout": "1s" }, good.address(),
    ]))
    .start()
    .await;
    let mut client = proxy.connect().await;
    let start = Instant::now();
    eventually("the resting peer gets another try", async || {
        assert_eq!(client.get("/").await.text(), "good");
        (closing.connections() >= 2).then_some(())
    })
    .await;
    assert!(start.elapsed() >= Duration::from_millis(900), "not before fail_timeout: {:?}", start.elapsed());
}

#[tokio::test]
async fn max_fails_0_never_lets_a_peer_rest() {
    let (closing, good) = (Origin::once("").await, named("good").await);
    let proxy = Proxy::to_all(json!([{ "address": closing.address(), "max_fails": 0 }, good.address()])).start().await;
    let mut client = proxy.connect().await;
    for _ in 0..12 {
        assert_eq!(client.get("/").await.text(), "good");
    }
    assert!(closing.connections() > 2);
}

#[tokio::test]
async fn all_resting_is_a_502_at_once() {
    let (one, two) = (Refusing::new(), Refusing::new());
    let proxy = Proxy::to_all(json!([one.address(), two.address()])).start().await;
    let mut client = proxy.connect().await;
    assert_eq!(client.get("/").await.status, 502);
    assert_eq!(client.get("/").await.status, 502);
    let second = &proxy.access_log(2).await[1];
    assert!(!second.field("upstream_addr").contains(&one.address()), "nobody is asked: {second:?}");
}

#[tokio::test]
async fn the_only_peer_never_rests() {
    let origin = Origin::start(|mut conn| async move {
        if let Some(request) = conn.request().await
            && request.target == "/good"
        {
            conn.send(reply(200, "good")).await;
        }
    })
    .await;
    let proxy = Proxy::to(&origin).start().await;
    let mut client = proxy.connect().await;
    for _ in 0..3 {
        assert_eq!(client.get("/bad").await.status, 502);
    }
    assert_eq!(client.get("/good").await.text(), "good");
}

#[tokio::test]
async fn a_pooled_connection_that_the_upstream_closed_costs_nothing() {
    let origin = Origin::start(|mut conn| async move {
        // The first request is served; the second is taken and the connection closed, as by an idle timeout that
        // races with it.
        if conn.request().await.is_some() {
            conn.send(reply(200, "good")).await;
            conn.request().await;
        }
    })
    .await;
    let proxy = Proxy::to(&origin).route(json!({ "next_upstream": { "tries": 1 } })).start().await;
    let mut client = proxy.connect().await;
    for _ in 0..4 {
        assert_eq!(client.get("/").await.text(), "good");
    }
}

#[tokio::test]
async fn keepalive_0_keeps_no_connection() {
    let origin = named("good").await;
    let proxy = Proxy::to(&origin).upstream(json!({ "keepalive": { "connections": 0 } })).start().await;
    let mut client = proxy.connect().await;
    for connections in 1..=3 {
        assert_eq!(client.get("/").await.text(), "good");
        assert_eq!(origin.connections(), connections);
    }
    origin.wait("all are closed", |seen| seen.open == 0).await;
}

#[tokio::test]
async fn max_conns_sends_the_next_request_elsewhere() {
    let busy = Origin::start(|mut conn| async move {
        conn.request().await;
        conn.closed().await;
    })
    .await;
    let other = named("other").await;
    let proxy = Proxy::to_all(json!([
        { "address": busy.address(), "weight": 100, "max_conns": 1 }, other.address(),
    ]))
    .start()
    .await;
    let mut waiting = proxy.connect().await;
    waiting.send_request("GET", "/", "").await;
    busy.wait("the first request", |seen| seen.requests.len() == 1).await;
    let mut client = proxy.connect().await;
    for _ in 0..5 {
        assert_eq!(client.get("/").await.text(), "other");
    }
    assert_eq!(busy.connections(), 1);
}

#[tokio::test]
async fn attempts_are_counted_by_outcome() {
    let (refusing, good) = (Refusing::new(), named("good").await);
    let proxy = Proxy::to_all(first_then(&refusing.address(), &good)).start().await;
    assert_eq!(proxy.connect().await.get("/").await.text(), "good");
    proxy.access_log(1).await;
    let refused = refusing.address();
    let attempts = async |peer: &str, outcome: &str| {
        let labels = [("upstream", "app"), ("peer", peer), ("outcome", outcome)];
        proxy.metric("upstream_attempts_total", &labels).await
    };
    assert_eq!(attempts(&refused, "connect_error").await, Some(1.0));
    assert_eq!(attempts(good.address(), "2xx").await, Some(1.0));
}
