//! Requests that two parsers could read differently: refused with 400, or made unambiguous, but never passed on.

use crate::support::*;

async fn proxy() -> (Origin, Proxy) {
    let origin = Origin::http(|request| reply(200, &request.target)).await;
    let proxy = Proxy::to(&origin).start().await;
    (origin, proxy)
}

/// 400, the connection is closed, and no upstream hears of it.
async fn is_400(request: &str) {
    let (origin, proxy) = proxy().await;
    let mut client = proxy.connect().await;
    client.send(request).await;
    let response = client.response().await;
    assert_eq!(response.status, 400, "{request:?}");
    let rest = client.rest().await;
    assert!(!String::from_utf8_lossy(&rest).contains("HTTP/1.1 200"), "the rest was taken for a request: {request:?}");
    assert_eq!(origin.connections(), 0, "{request:?}");
}

#[tokio::test]
async fn content_length_and_transfer_encoding_together() {
    is_400("POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n").await;
    is_400("POST / HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n").await;
}

#[tokio::test]
async fn two_different_content_lengths() {
    is_400("POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nbody!").await;
    is_400("POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 4, 5\r\n\r\nbody!").await;
}

#[tokio::test]
async fn invalid_content_lengths() {
    for length in ["+4", "-4", "4 4", "0x4", "4;", "four", "99999999999999999999999"] {
        is_400(&format!("POST / HTTP/1.1\r\nHost: t\r\nContent-Length: {length}\r\n\r\nbody")).await;
    }
}

#[tokio::test]
async fn transfer_encodings_that_are_not_just_chunked() {
    for encoding in
        ["xchunked", "chunked, identity", "gzip, chunked", "identity", "\"chunked\"", "chunked\r\nTransfer-Encoding: x"]
    {
        let (origin, proxy) = proxy().await;
        let mut client = proxy.connect().await;
        client.send(format!("POST / HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: {encoding}\r\n\r\n0\r\n\r\n")).await;
        let status = client.response().await.status;
        assert!(status == 400 || status == 501, "{encoding:?}: {status}");
        assert_eq!(origin.connections(), 0, "{encoding:?}");
    }
}

#[tokio::test]
async fn transfer_encoding_from_an_http10_client() {
    is_400("POST / HTTP/1.0\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n").await;
}

#[tokio::test]
async fn a_space_before_the_colon() {
    is_400("POST / HTTP/1.1\r\nHost: t\r\nContent-Length : 4\r\n\r\nbody").await;
    is_400("POST / HTTP/1.1\r\nHost: t\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n").await;
}

#[tokio::test]
async fn malformed_lines() {
    is_400("GET / HTTP/1.1\r\nHost: t\r\nno colon\r\n\r\n").await;
    is_400("GET / HTTP/1.1\r\nHost: t\r\n: no name\r\n\r\n").await;
    is_400("GET / HTTP/1.1\r\nHost: t\r\nX: a\0b\r\n\r\n").await;
    is_400("GET /\r\n\r\n").await;
    is_400("nonsense\r\n\r\n").await;
}

#[tokio::test]
async fn two_hosts() {
    is_400("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n").await;
}

#[tokio::test]
async fn bad_chunks_in_a_request_never_become_a_complete_one() {
    for body in
        ["x\r\nbody\r\n0\r\n\r\n", "3\r\nbody\r\n0\r\n\r\n", "fffffffffffffffff\r\nbody\r\n", "-1\r\nb\r\n0\r\n\r\n"]
    {
        is_400(&format!("POST / HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n{body}")).await;
    }
}

#[tokio::test]
async fn bad_chunks_in_a_streamed_request_break_it_for_the_upstream() {
    let origin = Origin::start(|mut conn| async move {
        // A complete request would be answered with 200.
        if conn.request().await.is_some() {
            conn.send(reply(200, "taken in")).await;
        }
    })
    .await;
    let proxy = Proxy::to(&origin).route(json!({ "request_buffering": false })).start().await;
    let mut client = proxy.connect().await;
    client.send("POST / HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\nxyz\r\n").await;
    assert_eq!(client.response().await.status, 400);
}

#[tokio::test]
async fn a_request_body_cut_short_never_becomes_a_complete_one() {
    for (buffered, framing) in [(true, "Content-Length: 10"), (false, "Content-Length: 10")] {
        let origin = Origin::start(|mut conn| async move {
            assert!(conn.request().await.is_none(), "a request that was cut short looks complete");
        })
        .await;
        let proxy = Proxy::to(&origin).route(json!({ "request_buffering": buffered })).start().await;
        let mut client = proxy.connect().await;
        client.send(format!("POST / HTTP/1.1\r\nHost: t\r\n{framing}\r\n\r\nhalf")).await;
        client.shutdown().await;
        client.rest().await;
        assert_eq!(proxy.access_log(1).await.len(), 1);
        if buffered {
            assert_eq!(origin.connections(), 0);
        }
        origin.wait("the upstream's connection is closed", |seen| seen.open == 0).await;
        assert!(origin.requests().iter().all(|request| request.body.is_empty()));
    }
}

#[tokio::test]
async fn what_follows_a_body_is_the_next_request_and_nothing_else() {
    let (origin, proxy) = proxy().await;
    let mut client = proxy.connect().await;
    client.send("POST /one HTTP/1.1\r\nHost: t\r\nContent-Length: 4\r\n\r\nbody").await;
    client.send("GET /two HTTP/1.1\r\nHost: t\r\n\r\n").await;
    assert_eq!(client.response().await.text(), "/one");
    assert_eq!(client.response().await.text(), "/two");
    let requests = origin.requests();
    assert_eq!(requests.len(), 2);
    assert_eq!(requests[0].body, b"body");
    assert_eq!(requests[1].body, b"");
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let (_origin, proxy) = proxy().await;
    let mut client = proxy.connect().await;
    client.send("GET /1 HTTP/1.1\r\nHost: t\r\n\r\n".repeat(3).replacen("/1", "/0", 1)).await;
    for target in ["/0", "/1", "/1"] {
        assert_eq!(client.response().await.text(), target);
    }
}

#[tokio::test]
async fn headers_named_by_connection_stay_here() {
    let (origin, proxy) = proxy().await;
    let headers = "Connection: close, X-Secret\r\nX-Secret: s\r\nX-Kept: k\r\n";
    assert_eq!(proxy.connect().await.request("GET", "/", headers).await.status, 200);
    let request = origin.only_request();
    assert_eq!(request.header("x-secret"), None);
    assert_eq!(request.header("x-kept"), Some("k"));
    assert!(request.header("connection").is_none_or(|value| !value.to_lowercase().contains("secret")));
}

#[tokio::test]
async fn hop_by_hop_headers_of_the_client_stay_here() {
    let (origin, proxy) = proxy().await;
    let headers = "Keep-Alive: 5\r\nProxy-Connection: keep-alive\r\nTE: trailers\r\nUpgrade: h2c\r\n";
    assert_eq!(proxy.connect().await.request("GET", "/", headers).await.status, 200);
    let request = origin.only_request();
    for name in ["keep-alive", "proxy-connection", "te", "upgrade", "transfer-encoding", "content-length"] {
        assert_eq!(request.header(name), None, "{name} passed");
    }
}

#[tokio::test]
async fn connection_cannot_name_a_header_the_proxy_sets() {
    let origin = Origin::http(|_| reply(200, "")).await;
    let proxy = Proxy::to(&origin).route(json!({ "set_headers": { "X-Real-IP": "$remote_addr" } })).start().await;
    let headers = "Connection: X-Real-IP, Host\r\nX-Real-IP: 6.6.6.6\r\n";
    assert_eq!(proxy.connect().await.request("GET", "/", headers).await.status, 200);
    let request = origin.only_request();
    assert_eq!(request.header("x-real-ip"), Some("127.0.0.1"));
    assert_eq!(request.header("host"), Some("test"));
}

#[tokio::test]
async fn a_chunked_request_has_exactly_one_framing_upstream() {
    for buffered in [true, false] {
        let origin = Origin::http(|_| reply(200, "")).await;
        let proxy = Proxy::to(&origin).route(json!({ "request_buffering": buffered })).start().await;
        let mut client = proxy.connect().await;
        client.send_request("POST", "/", "Transfer-Encoding: chunked\r\n").await;
        client.send("4;ext=1\r\nbody\r\n1\r\n!\r\n0\r\nX-Trailer: t\r\n\r\n").await;
        assert_eq!(client.response().await.status, 200);
        let request = origin.only_request();
        assert_eq!(request.body, b"body!");
        assert!(request.header("content-length").is_some() != request.header("transfer-encoding").is_some());
        assert_eq!(client.get("/").await.status, 200, "the connection goes on");
    }
}

#[tokio::test]
async fn a_target_that_is_not_a_path() {
    for target in ["admin/x", "ftp://t/x", "t:80"] {
        is_400(&format!("GET {target} HTTP/1.1\r\nHost: t\r\n\r\n")).await;
    }
}

#[tokio::test]
async fn no_host_or_one_that_cannot_be_read() {
    is_400("GET / HTTP/1.1\r\n\r\n").await;
    is_400("GET / HTTP/1.1\r\nHost: caf\u{e9}\r\n\r\n").await;
}
