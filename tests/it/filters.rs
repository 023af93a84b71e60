//! The ready-made filters, and the chain they stand in.

use crate::support::http2::{Http2, get};
use crate::support::*;
use http::Request as HttpRequest;
use std::sync::Arc;
use tokio::sync::Notify;

/// An origin that answers with an HTML page.
async fn page(body: &'static str) -> Origin {
    Origin::http(move |_| {
        format!("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    })
    .await
}

fn filters(value: Value) -> Value {
    json!({ "filters": value })
}

#[tokio::test]
async fn headers_sets_adds_and_removes_on_the_request() {
    let origin = page("").await;
    let headers = json!({ "request": {
        "set": { "X-Set": "new", "X-Addr": "$remote_addr", "X-What": "$request_method $uri?$args" },
        "add": { "X-Add": "second" },
        "remove": ["X-Gone"],
    } });
    let proxy = Proxy::to(&origin).route(filters(json!([{ "headers": headers }]))).start().await;
    let sent = "X-Set: old\r\nX-Set: older\r\nX-Add: first\r\nX-Gone: secret\r\nX-Kept: kept\r\n";
    assert_eq!(proxy.connect().await.request("GET", "/path?a=1", sent).await.status, 200);
    let request = origin.only_request();
    assert_eq!(request.header("x-set"), Some("new"), "set replaces all of them");
    assert_eq!(request.header("x-addr"), Some("127.0.0.1"));
    assert_eq!(request.header("x-what"), Some("GET /path?a=1"));
    assert_eq!(request.header("x-gone"), None);
    assert_eq!(request.header("x-kept"), Some("kept"));
    let added: Vec<_> = request.headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case("x-add")).collect();
    assert_eq!(added.len(), 2, "{added:?}");
}

#[tokio::test]
async fn headers_sets_adds_and_removes_on_the_response() {
    let origin = Origin::http(|_| {
        "HTTP/1.1 200 OK\r\nX-Set: old\r\nX-Gone: secret\r\nX-Kept: kept\r\nContent-Length: 0\r\n\r\n".into()
    })
    .await;
    let headers = json!({ "response": {
        "set": { "X-Set": "status $status" }, "add": { "X-Add": "added" }, "remove": ["X-Gone"],
    } });
    let proxy = Proxy::to(&origin).route(filters(json!([{ "headers": headers }]))).start().await;
    let response = proxy.connect().await.get("/").await;
    assert_eq!(response.header("x-set"), Some("status 200"));
    assert_eq!(response.header("x-add"), Some("added"));
    assert_eq!(response.header("x-gone"), None);
    assert_eq!(response.header("x-kept"), Some("kept"));
}

#[tokio::test]
async fn error_pages_pass_the_response_hooks() {
    let refusing = origin::Refusing::new();
    let headers = json!({ "response": { "set": { "X-Filtered": "yes" } } });
    let proxy =
        Proxy::to_all(json!([refusing.address()])).route(filters(json!([{ "headers": headers }]))).start().await;
    let response = proxy.connect().await.get("/").await;
    assert_eq!((response.status, response.header("x-filtered")), (502, Some("yes")));
}

#[tokio::test]
async fn request_hooks_run_inwards_and_response_hooks_outwards() {
    let origin = page("").await;
    let headers = |number: &str| {
        let add = json!({ "add": { "X-Trace": number } });
        json!({ "headers": { "request": add, "response": add } })
    };
    let proxy = Proxy::to(&origin)
        .service(json!({ "filters": [headers("1")] }))
        .route(filters(json!([headers("2"), headers("3")])))
        .start()
        .await;
    let response = proxy.connect().await.get("/").await;
    let trace = |headers: &[(String, String)]| -> String {
        let ours = headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case("x-trace"));
        ours.map(|(_, value)| value.as_str()).collect()
    };
    assert_eq!(trace(&origin.only_request().headers), "123", "the service's first, then the route's in order");
    assert_eq!(trace(&response.head.headers), "321", "the outermost last");
}

#[tokio::test]
async fn forwarded_tells_who_asked_for_what() {
    let origin = page("").await;
    let proxy = Proxy::to(&origin).route(filters(json!([{ "forwarded": {} }]))).start().await;
    assert_eq!(proxy.connect().await.request("GET", "/", "").await.status, 200);
    let request = origin.only_request();
    assert_eq!(request.header("x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(request.header("x-forwarded-proto"), Some("http"));
    assert_eq!(request.header("x-forwarded-host"), Some("test"));
}

#[tokio::test]
async fn forwarded_over_tls_says_https() {
    let origin = page("").await;
    let route = filters(json!([{ "forwarded": {} }]));
    let proxy = Proxy::to(&origin).route(route).tls(&[&Certificate::new("test")]).start().await;
    assert_eq!(Http2::connect_tls(proxy.ports.tls, "test").await.get("/").await.status, 200);
    assert_eq!(origin.only_request().header("x-forwarded-proto"), Some("https"));
    assert_eq!(origin.only_request().header("x-forwarded-host"), Some("test"));
}

#[tokio::test]
async fn forwarded_in_the_form_of_rfc_7239() {
    let origin = page("").await;
    let proxy = Proxy::to(&origin).route(filters(json!([{ "forwarded": { "rfc7239": true } }]))).start().await;
    assert_eq!(proxy.connect().await.request("GET", "/", "").await.status, 200);
    let request = origin.only_request();
    let forwarded = request.header("forwarded").expect("a Forwarded header").to_lowercase();
    for part in ["for=127.0.0.1", "proto=http", "host=test"] {
        assert!(forwarded.split([';', ',']).any(|pair| pair.trim().replace('"', "") == part), "{part} in {forwarded}");
    }
}

#[tokio::test]
async fn request_id_is_the_same_for_the_upstream_and_the_client() {
    let origin = page("").await;
    let proxy = Proxy::to(&origin).route(filters(json!([{ "request_id": {} }]))).start().await;
    let mut client = proxy.connect().await;
    let first = client.request("GET", "/", "X-Request-Id: forged\r\n").await;
    let second = client.get("/").await;
    let seen = origin.requests();
    let id = first.header("x-request-id").expect("an id");
    assert_ne!(id, "forged", "an incoming id is not trusted");
    assert_eq!(seen[0].header("x-request-id"), Some(id));
    assert_ne!(second.header("x-request-id"), Some(id), "each request has its own");
}

#[tokio::test]
async fn a_trusted_incoming_request_id_is_kept() {
    let origin = page("").await;
    let conf = json!({ "header": "X-Trace", "trust_incoming": true });
    let proxy = Proxy::to(&origin).route(filters(json!([{ "request_id": conf }]))).start().await;
    let response = proxy.connect().await.request("GET", "/", "X-Trace: from-outside-1\r\n").await;
    assert_eq!(response.header("x-trace"), Some("from-outside-1"));
    assert_eq!(origin.only_request().header("x-trace"), Some("from-outside-1"));
}

#[tokio::test]
async fn sub_replaces_and_reframes() {
    let origin = page("<p>old, and the old and oldest</p>").await;
    let proxy =
        Proxy::to(&origin).route(filters(json!([{ "sub": { "replace": { "old": "brand new" } } }]))).start().await;
    let mut client = proxy.connect().await;
    for _ in 0..2 {
        let response = client.get("/").await;
        assert_eq!(response.text(), "<p>brand new, and the brand new and brand newest</p>");
    }
}

#[tokio::test]
async fn sub_replaces_across_chunk_borders() {
    let origin = Origin::start(|mut conn| async move {
        conn.request().await;
        conn.send("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nTransfer-Encoding: chunked\r\n\r\n").await;
        for byte in "a needle in a hayneedleneedl stack, needle".bytes() {
            conn.send(format!("1\r\n{}\r\n", byte as char)).await;
            tokio::task::yield_now().await;
        }
        conn.send("0\r\n\r\n").await;
    })
    .await;
    let proxy = Proxy::to(&origin).route(filters(json!([{ "sub": { "replace": { "needle": "pin" } } }]))).start().await;
    assert_eq!(proxy.connect().await.get("/").await.text(), "a pin in a haypinneedl stack, pin");
}

#[tokio::test]
async fn sub_holds_back_no_more_than_what_may_become_a_match() {
    let go_on = Arc::new(Notify::new());
    let wait = go_on.clone();
    let origin = Origin::start(move |mut conn| {
        let wait = wait.clone();
        async move {
            conn.request().await;
            conn.send("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\nbefore nee").await;
            wait.notified().await;
            conn.send("dle after").await;
        }
    })
    .await;
    let proxy = Proxy::to(&origin).route(filters(json!([{ "sub": { "replace": { "needle": "pin" } } }]))).start().await;
    let mut client = proxy.connect().await;
    client.send_request("GET", "/", "").await;
    let head = client.head().await;
    let mut framing = client::framing(&head, "GET");
    let mut body = Vec::new();
    while body.len() < "before ".len() {
        body.extend(client.body_piece(&mut framing).await.unwrap().unwrap());
    }
    assert_eq!(String::from_utf8_lossy(&body), "before ", "it streams");
    go_on.notify_one();
    while let Some(piece) = client.body_piece(&mut framing).await.unwrap() {
        body.extend(piece);
    }
    assert_eq!(String::from_utf8(body).unwrap(), "before pin after");
}

#[tokio::test]
async fn sub_once_and_only_in_its_types() {
    let origin = page("old old").await;
    let proxy = Proxy::to(&origin)
        .route(filters(json!([{ "sub": { "replace": { "old": "new" }, "once": true } }])))
        .start()
        .await;
    assert_eq!(proxy.connect().await.get("/").await.text(), "new old");
    let proxy = Proxy::to(&origin)
        .route(filters(json!([{ "sub": { "replace": { "old": "new" }, "types": ["text/css"] } }])))
        .start()
        .await;
    let response = proxy.connect().await.get("/").await;
    assert_eq!(response.text(), "old old");
    assert_eq!(response.header("content-length"), Some("7"), "what it leaves alone keeps its length");
}

#[tokio::test(flavor = "multi_thread")]
async fn sub_streams_a_large_body_to_a_client_that_pauses() {
    let origin = Origin::start(|mut conn| async move {
        conn.request().await;
        conn.send("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n").await;
        for _ in 0..24 {
            conn.send("0123456old89abcd".repeat(8 * 1024)).await;
        }
    })
    .await;
    let proxy = Proxy::to(&origin).route(filters(json!([{ "sub": { "replace": { "old": "NEW" } } }]))).start().await;
    let mut client = proxy.connect().await;
    client.send_request("GET", "/", "").await;
    origin.wait("the upstream is free", |seen| seen.connections == 1 && seen.open == 0).await;
    let response = client.response().await;
    assert_eq!(response.broken, None);
    assert!(response.body == "0123456NEW89abcd".repeat(8 * 1024 * 24).as_bytes(), "the body differs");
}

#[tokio::test]
async fn sub_leaves_head_and_304_alone() {
    let origin = Origin::http(|request| match request.method.as_str() {
        "HEAD" => "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 10\r\n\r\n".into(),
        _ => "HTTP/1.1 304 Not Modified\r\nContent-Type: text/html\r\n\r\n".into(),
    })
    .await;
    let proxy = Proxy::to(&origin).route(filters(json!([{ "sub": { "replace": { "a": "bb" } } }]))).start().await;
    let mut client = proxy.connect().await;
    for (method, status) in [("HEAD", 200), ("GET", 304), ("HEAD", 200)] {
        let response = client.request(method, "/", "").await;
        assert_eq!((response.status, response.broken), (status, None));
        assert_eq!(client.leftover(), b"");
    }
}

#[tokio::test]
async fn filters_work_the_same_over_http2() {
    let origin = page("old").await;
    let chain = json!([{ "request_id": {} }, { "sub": { "replace": { "old": "newer" } } }]);
    let proxy = Proxy::to(&origin).route(filters(chain)).tls(&[&Certificate::new("test")]).start().await;
    let mut client = Http2::connect_tls(proxy.ports.tls, "test").await;
    let answer = client.get("/").await;
    assert_eq!(answer.body, b"newer");
    assert!(answer.headers.contains_key("x-request-id"));
    let (answer, _) = client.open(HttpRequest::head("https://test/").body(()).unwrap(), true).await;
    assert!(http2::finish(within("an answer", answer).await.unwrap()).await.broken.is_none());
    let (answer, _) = client.open(get("/"), true).await;
    assert_eq!(http2::finish(within("an answer", answer).await.unwrap()).await.body, b"newer");
}

#[tokio::test]
async fn a_truncated_upstream_stays_a_broken_message_behind_a_filter() {
    let origin = Origin::once("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 10\r\n\r\nold").await;
    let proxy = Proxy::to(&origin).route(filters(json!([{ "sub": { "replace": { "old": "new" } } }]))).start().await;
    assert!(proxy.connect().await.get("/").await.broken.is_some());
}
