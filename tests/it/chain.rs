//! The chain, with filters written as a user would write them: `probe_filters.rs`.

use crate::examples::example;
use crate::support::*;
use std::sync::Arc;
use tokio::sync::Notify;

/// A proxy in front of `origin` whose route has these filters.
fn chain(origin: &Origin, filters: Value) -> Setup {
    Proxy::to(origin).program(example("probe_filters")).route(json!({ "filters": filters }))
}

/// An origin that answers every request with this body.
async fn saying(body: &'static str) -> Origin {
    Origin::http(move |_| reply(200, body)).await
}

/// Exactly so many log lines contain `word` once all have been read.
async fn logged(proxy: &Proxy, count: usize, word: &str) {
    let lines = || proxy.log().lines().filter(|line| line.contains(word)).count();
    eventually(word, async || (lines() >= count).then_some(())).await;
    assert_eq!(lines(), count, "{word}:\n{}", proxy.log());
}

#[tokio::test]
async fn the_chain_is_an_onion_and_extensions_are_shared() {
    let origin = saying("hello").await;
    let filters = json!([{ "trace": { "name": "b" } }, { "trace": { "name": "c" } }]);
    let setup = chain(&origin, filters).service(json!({ "filters": [{ "trace": { "name": "a" } }] }));
    let proxy = setup.start().await;
    let response = proxy.connect().await.post("POST", "/", b"x").await;
    let inwards = "a:request b:request c:request a:request_body b:request_body c:request_body a:peer b:peer c:peer \
                   a:upstream_request b:upstream_request c:upstream_request";
    let header = "c:upstream_response b:upstream_response a:upstream_response c:response b:response a:response";
    assert_eq!(response.header("x-calls"), Some(format!("{inwards} {header}").as_str()));
    let body = "c:body b:body a:body c:logging b:logging a:logging";
    proxy.wait_log(&[&format!("calls: {inwards} {header} {body}")]).await;
    let names: String = origin
        .only_request()
        .headers
        .iter()
        .filter(|(name, _)| name.eq_ignore_ascii_case("x-trace"))
        .map(|(_, value)| value.as_str())
        .collect();
    assert_eq!(names, "abc");
}

#[tokio::test]
async fn a_held_header_can_be_changed_until_the_body_is_seen() {
    let origin = Origin::start(|mut conn| async move {
        while conn.request().await.is_some() {
            conn.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nmore\r\n").await;
            conn.send("5\r\n than\r\n4\r\n one\r\n0\r\n\r\n").await;
        }
    })
    .await;
    let filters = json!([{ "trace": { "name": "outer" } }, { "measure": {} }, { "witness": {} }]);
    let proxy = chain(&origin, filters).start().await;
    let mut client = proxy.connect().await;
    for _ in 0..2 {
        let response = client.get("/").await;
        assert_eq!((response.header("x-length"), response.text().as_str()), (Some("13"), "more than one"));
    }
    // The filter inside sees the body first, and not the header that another one holds.
    logged(&proxy, 2, "saw_header=false").await;
}

#[tokio::test]
async fn a_held_header_of_a_message_without_a_body_goes_out_with_its_end() {
    let origin = Origin::http(|request| match request.method.as_str() {
        "HEAD" => "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n".into(),
        _ => "HTTP/1.1 204 No Content\r\n\r\n".into(),
    })
    .await;
    let proxy = chain(&origin, json!([{ "measure": {} }])).start().await;
    let mut client = proxy.connect().await;
    for (method, status) in [("HEAD", 200), ("DELETE", 204), ("HEAD", 200)] {
        let response = client.request(method, "/", "").await;
        assert_eq!((response.status, response.header("x-length")), (status, Some("0")));
        assert_eq!(response.broken, None);
    }
}

#[tokio::test]
async fn the_end_of_a_message_without_a_body_is_seen_once() {
    let origin = Origin::http(|request| match request.method.as_str() {
        "HEAD" => "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n".into(),
        _ => "HTTP/1.1 204 No Content\r\n\r\n".into(),
    })
    .await;
    let proxy = chain(&origin, json!([{ "trace": { "name": "a" } }])).start().await;
    let mut client = proxy.connect().await;
    for method in ["HEAD", "DELETE"] {
        assert_eq!(client.request(method, "/", "").await.broken, None);
    }
    logged(&proxy, 2, "a:upstream_response a:response a:body a:logging").await;
}

#[tokio::test]
async fn two_filters_may_hold_the_header_one_after_the_other() {
    let origin = saying("hello").await;
    let proxy = chain(&origin, json!([{ "hoard": { "header": true } }, { "measure": {} }])).start().await;
    let response = proxy.connect().await.get("/").await;
    assert_eq!((response.header("x-length"), response.text().as_str()), (Some("5"), "hello"));
}

#[tokio::test]
async fn a_filter_emits_many_chunks_or_none() {
    let origin = Origin::start(|mut conn| async move {
        while conn.request().await.is_some() {
            conn.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n123\r\n").await;
            conn.send("5\r\na1b2c\r\n2\r\n..\r\n1\r\nd\r\n0\r\n\r\n").await;
        }
    })
    .await;
    let proxy = chain(&origin, json!([{ "letters": {} }])).start().await;
    let mut client = proxy.connect().await;
    for _ in 0..2 {
        assert_eq!(client.get("/").await.text(), "abcd");
    }
}

#[tokio::test]
async fn a_body_that_is_ended_early_is_complete_and_its_upstream_is_let_go() {
    let origin = Origin::start(|mut conn| async move {
        conn.request().await;
        conn.send("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhello world").await;
        conn.closed().await;
    })
    .await;
    let proxy = chain(&origin, json!([{ "trace": { "name": "outer" } }, { "cut": { "after": 5 } }])).start().await;
    let mut client = proxy.connect().await;
    for connections in 1..=2 {
        assert_eq!(client.get("/").await.text(), "hello", "a complete message, on a connection that lives on");
        origin.wait("the upstream's connection closed", |seen| seen.connections == connections && seen.open == 0).await;
    }
}

#[tokio::test]
async fn a_local_answer_passes_the_hooks_of_the_filters_entered_so_far() {
    let origin = saying("").await;
    let filters = json!([{ "trace": { "name": "a" } }, { "answer": { "status": 418 } }, { "trace": { "name": "b" } }]);
    let proxy = chain(&origin, filters).start().await;
    let mut client = proxy.connect().await;
    for _ in 0..2 {
        // The body is nobody's: it is read off the connection, and no filter sees it.
        let response = client.post("POST", "/", b"unwanted").await;
        assert_eq!((response.status, response.header("x-calls")), (418, Some("a:request a:response")));
        assert_eq!(response.text(), "answered");
    }
    assert_eq!(origin.connections(), 0);
    logged(&proxy, 2, "calls: a:request a:response a:body b:logging a:logging").await;
}

#[tokio::test]
async fn a_request_without_a_route_passes_the_services_filters() {
    let origin = saying("").await;
    let proxy = Proxy::to(&origin)
        .program(example("probe_filters"))
        .service(json!({ "filters": [{ "trace": { "name": "a" } }] }))
        .route(json!({ "match": { "path": "/here/" }, "filters": [{ "trace": { "name": "b" } }] }))
        .start()
        .await;
    let response = proxy.connect().await.get("/elsewhere").await;
    assert_eq!((response.status, response.header("x-calls")), (404, Some("a:request a:response")));
}

#[tokio::test]
async fn a_panic_in_a_hook_is_a_500_and_a_log_line_that_names_the_filter() {
    let origin = saying("hello").await;
    for hook in [
        "request_filter",
        "request_body_filter",
        "upstream_peer",
        "upstream_request_filter",
        "upstream_response_filter",
        "response_filter",
    ] {
        let proxy = chain(&origin, json!([{ "trace": { "name": "a" } }, { "fail": { "hook": hook } }])).start().await;
        for _ in 0..2 {
            let response = proxy.connect().await.post("POST", "/", b"x").await;
            assert_eq!((response.status, response.broken), (500, None), "{hook}");
        }
        proxy.wait_log(&["ERROR", &format!("filter fail: panic in {hook}: as configured")]).await;
        logged(&proxy, 2, "a:logging").await;
    }
}

#[tokio::test]
async fn a_panic_behind_the_header_breaks_the_message() {
    let origin = saying("hello").await;
    let proxy = chain(&origin, json!([{ "witness": {} }, { "fail": { "hook": "body_filter" } }])).start().await;
    let mut client = proxy.connect().await;
    client.send_request("GET", "/", "").await;
    let received = String::from_utf8(client.rest().await).unwrap();
    assert!(!received.contains("hello") && !received.contains("500"), "{received}");
    proxy.wait_log(&["ERROR", "filter fail: panic in body_filter: as configured"]).await;
    logged(&proxy, 1, "witness: status=200 sent=0 error=Some(500)").await;
}

#[tokio::test]
async fn a_panic_in_logging_keeps_nobody_from_logging() {
    let origin = saying("hello").await;
    let proxy = chain(&origin, json!([{ "witness": {} }, { "fail": { "hook": "logging" } }])).start().await;
    assert_eq!(proxy.connect().await.get("/").await.text(), "hello");
    proxy.wait_log(&["ERROR", "filter fail: panic in logging"]).await;
    logged(&proxy, 1, "witness: status=200 sent=5 error=None").await;
}

#[tokio::test]
async fn an_error_with_a_status_is_that_status_and_names_the_filter() {
    let origin = saying("hello").await;
    for (hook, status) in [("request_filter", 403), ("upstream_request_filter", 429), ("response_filter", 503)] {
        let proxy = chain(&origin, json!([{ "fail": { "hook": hook, "status": status } }])).start().await;
        let response = proxy.connect().await.get("/").await;
        assert_eq!((response.status, response.broken), (status, None), "{hook}");
        proxy.wait_log(&["filter fail: as configured"]).await;
    }
}

#[tokio::test]
async fn a_filter_that_holds_back_too_much_is_a_500() {
    let origin = Origin::start(|mut conn| async move {
        conn.request().await;
        conn.send_head(1 << 20).await;
        conn.send_pattern(1 << 20).await;
    })
    .await;
    let hoard = json!([{ "hoard": { "header": true } }]);
    let proxy = chain(&origin, hoard).route(json!({ "filter_hold_max": "64KiB" })).start().await;
    let response = proxy.connect().await.get("/").await;
    assert_eq!((response.status, response.broken), (500, None));
    proxy.wait_log(&["ERROR", "filter_hold_max"]).await;
    let hoard = json!([{ "hoard": { "header": false } }]);
    let proxy = chain(&origin, hoard).route(json!({ "filter_hold_max": "64KiB" })).start().await;
    let mut client = proxy.connect().await;
    client.send_request("GET", "/", "").await;
    let received = client.rest().await;
    assert!(!received.starts_with(b"HTTP/1.1 500") && received.len() < 1000, "the header was on its way already");
}

#[tokio::test]
async fn nothing_of_an_answer_that_failed_is_in_the_error_page() {
    let origin = Origin::once("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 10\r\n\r\nol").await;
    let filters = json!([{ "measure": {} }, { "sub": { "replace": { "old": "new" } } }]);
    let proxy = chain(&origin, filters).start().await;
    let response = proxy.connect().await.get("/").await;
    assert_eq!((response.status, response.text().as_str()), (502, "502 Bad Gateway\n"));
}

#[tokio::test]
async fn what_a_filter_may_hold_it_gets_out_again() {
    let origin = Origin::start(|mut conn| async move {
        conn.request().await;
        conn.send_head(MIB).await;
        conn.send_pattern(MIB).await;
    })
    .await;
    let proxy = chain(&origin, json!([{ "hoard": { "header": true } }])).start().await;
    let mut client = proxy.connect().await;
    client.send_request("GET", "/", "").await;
    let head = client.head().await;
    assert_eq!(client.pattern(&head).await, MIB);
}

#[tokio::test]
async fn a_filter_that_takes_the_end_of_a_body_away_is_an_error_and_no_endless_wait() {
    let origin = saying("hello").await;
    for (request, hook) in [(false, "body_filter"), (true, "request_body_filter")] {
        for buffering in [true, false] {
            let filters = json!([{ "swallow_end": { "request": request } }]);
            let proxy = chain(&origin, filters).route(json!({ "request_buffering": buffering })).start().await;
            assert_eq!(proxy.connect().await.post("POST", "/", b"x").await.status, 500);
            proxy.wait_log(&[&format!("filter swallow_end: {hook} took the end of the body away")]).await;
        }
    }
}

#[tokio::test]
async fn a_filter_names_the_peer() {
    let (origin, other) = (saying("the group's").await, saying("the filter's").await);
    let proxy = chain(&origin, json!([{ "pick": { "address": other.address() } }])).start().await;
    let mut client = proxy.connect().await;
    for _ in 0..2 {
        assert_eq!(client.get("/").await.text(), "the filter's");
    }
    assert_eq!((origin.connections(), other.connections()), (0, 1), "the connection is kept and used again");
    let log = proxy.access_log(2).await;
    assert_eq!(log[0].field("upstream_addr"), other.address());
    assert!(!proxy.metrics().await.contains(other.address()), "what a filter made up is no label");
    let labels = [("upstream", "app"), ("peer", "other"), ("outcome", "2xx")];
    assert_eq!(proxy.metric("upstream_attempts_total", &labels).await, Some(2.0));
}

#[tokio::test]
async fn a_filter_changes_the_request_body() {
    let origin = saying("").await;
    for buffering in [true, false] {
        let setup = chain(&origin, json!([{ "shout": {} }])).route(json!({ "request_buffering": buffering }));
        let proxy = setup.start().await;
        let mut client = proxy.connect().await;
        assert_eq!(client.post("POST", "/", b"hello").await.status, 200);
        assert_eq!(client.post("POST", "/", b"again").await.status, 200);
        assert_eq!(client.get("/").await.status, 200);
        let bodies: Vec<_> = origin.requests().iter().rev().take(3).map(|request| request.body.clone()).collect();
        assert_eq!(bodies, [&b""[..], b"AGAIN!", b"HELLO!"], "request_buffering: {buffering}");
    }
}

#[tokio::test]
async fn behind_the_end_that_a_filter_sets_nothing_of_a_request_body_is_sent() {
    let origin = saying("").await;
    for buffering in [true, false] {
        let setup = chain(&origin, json!([{ "shout": {} }, { "trace": { "name": "a" } }]));
        let proxy = setup.route(json!({ "request_buffering": buffering })).start().await;
        let mut client = proxy.connect().await;
        client.send_request("POST", "/", "Transfer-Encoding: chunked\r\n").await;
        client.send("5\r\nfirst\r\n4\r\n.and\r\n").await;
        client.send("5\r\nafter\r\n0\r\n\r\n").await;
        assert_eq!(client.response().await.status, 200);
        let requests = origin.requests();
        assert_eq!(requests.last().unwrap().body, b"FIRST!", "request_buffering: {buffering}");
        proxy.wait_log(&["calls:", "a:logging"]).await;
        assert_eq!(proxy.log().matches("a:request_body").count(), 1, "{}", proxy.log());
    }
}

#[tokio::test]
async fn logging_is_called_once_however_a_request_ends() {
    let gone = Arc::new(Notify::new());
    let origin = Origin::start(move |mut conn| {
        let gone = gone.clone();
        async move {
            while let Some(request) = conn.request().await {
                match request.target.as_str() {
                    "/half" => {
                        conn.send_head(10).await;
                        conn.send("half").await;
                        return;
                    }
                    "/silent" => {
                        conn.closed().await;
                        gone.notify_one();
                        return;
                    }
                    _ => drop(conn.send(reply(200, "hello")).await),
                }
            }
        }
    })
    .await;
    let proxy = chain(&origin, json!([{ "witness": {} }])).start().await;
    assert_eq!(proxy.connect().await.get("/").await.text(), "hello");
    proxy.access_log(1).await;
    assert!(proxy.connect().await.get("/half").await.broken.is_some());
    proxy.access_log(2).await;
    let mut client = proxy.connect().await;
    client.send_request("GET", "/silent", "").await;
    origin.wait("the request", |seen| seen.requests.iter().any(|request| request.target == "/silent")).await;
    drop(client);
    proxy.access_log(3).await;
    logged(&proxy, 3, "witness:").await;
    for line in
        ["status=200 sent=5 error=None", "status=200 sent=4 error=Some(502)", "status=499 sent=0 error=Some(499)"]
    {
        logged(&proxy, 1, line).await;
    }
}
