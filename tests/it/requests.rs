//! Request bodies: stored or streamed, limited, replayed, answered early.

use crate::support::http2::{Http2, finish, send_all};
use crate::support::*;
use http::Request as HttpRequest;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Notify, mpsc};

/// An origin that takes any body and says how long it was.
async fn taking() -> Origin {
    Origin::http(|request| reply(200, &request.body.len().to_string())).await
}

fn upload(length: u64) -> String {
    format!("POST / HTTP/1.1\r\nHost: test\r\nContent-Length: {length}\r\n\r\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_buffered_body_opens_no_upstream_connection_until_it_is_in() {
    let origin = taking().await;
    let proxy = Proxy::to(&origin).route(json!({ "client_max_body_size": "32MiB" })).start().await;
    let body = pattern::body(20 * MIB);
    let mut client = proxy.connect().await;
    client.send(upload(20 * MIB)).await;
    client.send(&body[..body.len() - 1]).await;
    // The kernel holds a part of it; the rest has reached the proxy.
    let arrived = async || (proxy.temp_file_bytes() > 8 * MIB).then_some(());
    eventually("the body goes to a temporary file", arrived).await;
    assert_eq!(std::fs::read_dir(proxy.files.temp()).unwrap().count(), 0, "no name in the directory");
    assert_eq!(origin.connections(), 0);
    client.send(&body[body.len() - 1..]).await;
    assert_eq!(client.response().await.text(), (20 * MIB).to_string());
    let request = origin.only_request();
    assert!(request.body == body, "the body differs");
    assert_eq!(request.header("content-length"), Some((20 * MIB).to_string().as_str()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_streamed_body_reaches_the_upstream_as_it_comes() {
    let (tell, mut pieces) = mpsc::unbounded_channel();
    let origin = Origin::start(move |mut conn| {
        let tell = tell.clone();
        async move {
            conn.head().await.unwrap();
            for _ in 0..5 {
                tell.send(conn.exactly(1000).await.unwrap()).unwrap();
            }
            conn.send(reply(200, "thanks")).await;
        }
    })
    .await;
    let proxy = Proxy::to(&origin).route(json!({ "request_buffering": false })).start().await;
    let body = pattern::body(5000);
    let mut client = proxy.connect().await;
    client.send(upload(5000)).await;
    for piece in body.chunks(1000) {
        client.send(piece).await;
        assert_eq!(within("the piece reaches the upstream", pieces.recv()).await.unwrap(), piece);
    }
    assert_eq!(client.response().await.text(), "thanks");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_body_needs_no_file() {
    let origin = Origin::start(|mut conn| async move {
        conn.request().await;
        conn.closed().await;
    })
    .await;
    let proxy = Proxy::to(&origin).route(json!({ "client_body_buffer_size": "64KiB" })).start().await;
    let mut client = proxy.connect().await;
    client.send(upload(60_000)).await;
    client.send(pattern::body(60_000)).await;
    origin.wait("the body", |seen| seen.requests.first().is_some_and(|request| request.body.len() == 60_000)).await;
    assert_eq!(proxy.temp_files(), Vec::<u64>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bodys_file_is_gone_once_the_response_header_is_out() {
    let origin = Origin::start(|mut conn| async move {
        conn.request().await;
        conn.send_head(4).await;
        conn.closed().await;
    })
    .await;
    let proxy = Proxy::to(&origin).route(json!({ "client_max_body_size": 0 })).start().await;
    let mut client = proxy.connect().await;
    client.send(upload(4 * MIB)).await;
    client.send(pattern::body(4 * MIB)).await;
    assert_eq!(client.head().await.status, 200);
    let gone = async || proxy.temp_files().is_empty().then_some(());
    eventually("the request body's file is gone, although the exchange goes on", gone).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn too_large_by_content_length_is_a_413_before_the_body_is_sent() {
    for buffered in [true, false] {
        let origin = taking().await;
        let route = json!({ "client_max_body_size": "1MiB", "request_buffering": buffered });
        let proxy = Proxy::to(&origin).route(route).start().await;
        let mut client = proxy.connect().await;
        client.send(upload(MIB + 1)).await;
        assert_eq!(client.response().await.status, 413);
        assert_eq!(origin.connections(), 0);
        assert_eq!(proxy.access_log(1).await[0].field("status"), "413");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_default_limit_is_one_mebibyte() {
    let origin = taking().await;
    let proxy = Proxy::to(&origin).start().await;
    assert_eq!(proxy.connect().await.post("POST", "/", &pattern::body(MIB)).await.text(), MIB.to_string());
    let mut client = proxy.connect().await;
    client.send(upload(MIB + 1)).await;
    assert_eq!(client.response().await.status, 413);
}

#[tokio::test(flavor = "multi_thread")]
async fn too_large_by_counting_is_a_413_that_the_uploader_can_read() {
    let origin = taking().await;
    let proxy = Proxy::to(&origin).route(json!({ "client_max_body_size": "64KiB" })).start().await;
    let mut client = proxy.connect().await;
    client.send_request("POST", "/", "Transfer-Encoding: chunked\r\n").await;
    let body = pattern::body(2 * MIB);
    for piece in body.chunks(16 * 1024) {
        client.send(format!("{:x}\r\n", piece.len())).await;
        client.send(piece).await;
        client.send("\r\n").await;
    }
    client.send("0\r\n\r\n").await;
    assert_eq!(client.response().await.status, 413);
    assert_eq!(origin.connections(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_streamed_body_too_large_by_counting_is_never_complete_upstream() {
    let origin = taking().await;
    let route = json!({ "client_max_body_size": "64KiB", "request_buffering": false });
    let proxy = Proxy::to(&origin).route(route).start().await;
    let mut client = proxy.connect().await;
    client.send_request("POST", "/", "Transfer-Encoding: chunked\r\n").await;
    client.send(format!("{:x}\r\n", 128 * KIB)).await;
    client.send(pattern::body(128 * KIB)).await;
    client.send("\r\n0\r\n\r\n").await;
    assert_eq!(client.response().await.status, 413);
    origin.wait("the upstream's connection is closed", |seen| seen.open == 0).await;
    assert!(origin.requests().iter().all(|request| request.body.is_empty()), "it looked complete");
}

#[tokio::test(flavor = "multi_thread")]
async fn zero_is_no_limit() {
    let origin = taking().await;
    let proxy = Proxy::to(&origin).route(json!({ "client_max_body_size": 0 })).start().await;
    let response = proxy.connect().await.post("POST", "/", &pattern::body(3 * MIB)).await;
    assert_eq!(response.text(), (3 * MIB).to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_buffered_body_is_replayed_whole_on_the_next_peer() {
    let failing = Origin::once("").await;
    let origin = taking().await;
    let proxy = Proxy::to_all(json!([failing.address(), { "address": origin.address(), "backup": true }]))
        .route(json!({ "client_max_body_size": 0 }))
        .start()
        .await;
    let body = pattern::body(8 * MIB);
    let response = proxy.connect().await.post("PUT", "/", &body).await;
    assert_eq!(response.text(), (8 * MIB).to_string());
    assert!(failing.only_request().body == body, "the first peer got all of it");
    assert!(origin.only_request().body == body, "and so did the second");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunked_body_is_replayed_too() {
    let failing = Origin::once("").await;
    let origin = taking().await;
    let proxy =
        Proxy::to_all(json!([failing.address(), { "address": origin.address(), "backup": true }])).start().await;
    let mut client = proxy.connect().await;
    client.send_request("PUT", "/", "Transfer-Encoding: chunked\r\n").await;
    client.send("4\r\nbody\r\n1\r\n!\r\n0\r\n\r\n").await;
    assert_eq!(client.response().await.text(), "5");
    assert_eq!(origin.only_request().body, b"body!");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_early_answer_reaches_an_uploading_client_and_the_connection_is_closed() {
    let origin = Origin::start(|mut conn| async move {
        conn.head().await;
        conn.send(reply(403, "no uploads")).await;
        // Reads nothing more, so that the upload stalls; closed() would drain it.
        std::future::pending::<()>().await;
    })
    .await;
    let route = json!({ "request_buffering": false, "client_max_body_size": 0 });
    let proxy = Proxy::to(&origin).route(route).start().await;
    let mut client = proxy.connect().await;
    client.send(upload(64 * MIB)).await;
    let response = client.response().await;
    assert_eq!((response.status, response.text().as_str()), (403, "no uploads"));

    let mut other = proxy.connect().await;
    other.send_request("GET", "/next", "").await;
    origin.wait("the next request uses a new connection", |seen| seen.connections == 2).await;
    assert_eq!(other.response().await.status, 403);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_early_answer_while_64_mib_are_on_their_way_does_not_deadlock() {
    let (tell, mut closed) = mpsc::unbounded_channel();
    let origin = Origin::start(move |mut conn| {
        let tell = tell.clone();
        async move {
            conn.head().await;
            conn.exactly(MIB as usize).await;
            conn.send_head(8 * MIB).await;
            conn.send_pattern(8 * MIB).await;
            conn.closed().await;
            tell.send(()).unwrap();
        }
    })
    .await;
    let route = json!({ "request_buffering": false, "client_max_body_size": 0 });
    let proxy = Proxy::to(&origin).route(route).start().await;
    let mut client = proxy.connect().await;
    client.send(upload(64 * MIB)).await;
    let (mut reader, mut writer) = client.split();
    let sending = tokio::spawn(async move {
        let body = pattern::body(64 * MIB);
        // The proxy may stop taking it once the answer is out.
        let _ = writer.write_all(&body).await;
        writer
    });
    let mut answer = Vec::new();
    let mut piece = vec![0; 64 * 1024];
    let end = loop {
        let read = within("the answer", reader.read(&mut piece)).await.unwrap();
        assert!(read > 0, "closed after {} bytes", answer.len());
        answer.extend_from_slice(&piece[..read]);
        let head = answer.windows(4).position(|window| window == b"\r\n\r\n");
        if let Some(head) = head.filter(|head| answer.len() - head - 4 >= 8 * MIB as usize) {
            break head + 4;
        }
    };
    assert!(answer[end..] == pattern::body(8 * MIB), "the answer differs");
    drop(reader);
    within("the upstream's half-written connection is closed", closed.recv()).await.unwrap();
    sending.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_mebibytes_pass_both_ways_at_once() {
    let origin = Origin::start(|mut conn| async move {
        conn.head().await;
        conn.send_head(64 * MIB).await;
        let mut io = conn.into_io();
        let mut piece = vec![0; 64 * 1024];
        let mut left = 64 * MIB;
        while left > 0 {
            let read = io.read(&mut piece).await.unwrap();
            io.write_all(&piece[..read]).await.unwrap();
            left -= read as u64;
        }
    })
    .await;
    let route = json!({ "request_buffering": false, "client_max_body_size": 0 });
    let proxy = Proxy::to(&origin).route(route).start().await;
    let mut client = proxy.connect().await;
    client.send(upload(64 * MIB)).await;
    let (reader, mut writer) = client.split();
    let sending = tokio::spawn(async move {
        let mut offset = 0;
        while offset < 64 * MIB {
            let piece = pattern::bytes(offset, 64 * MIB - offset);
            writer.write_all(piece).await.unwrap();
            offset += piece.len() as u64;
        }
        writer
    });
    let mut reader = tokio::io::BufReader::new(reader);
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(within("the head", reader.read_u8()).await.unwrap());
    }
    let (mut pattern, mut piece) = (Pattern::default(), vec![0; 64 * 1024]);
    while pattern.offset < 64 * MIB {
        let read = within("the body", reader.read(&mut piece)).await.unwrap();
        assert!(read > 0, "closed after {} bytes", pattern.offset);
        pattern.check(&piece[..read]);
    }
    sending.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_expects_100_continue_gets_it_and_the_connection_goes_on() {
    for buffered in [true, false] {
        let origin = taking().await;
        let proxy = Proxy::to(&origin).route(json!({ "request_buffering": buffered })).start().await;
        let mut client = proxy.connect().await;
        for _ in 0..2 {
            client.send_request("POST", "/", "Content-Length: 4\r\nExpect: 100-continue\r\n").await;
            assert_eq!(client.head().await.status, 100);
            client.send("body").await;
            assert_eq!(client.response().await.text(), "4");
        }
        assert_eq!(origin.requests().len(), 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_too_large_is_refused_instead_of_100_continue() {
    let origin = taking().await;
    let proxy = Proxy::to(&origin).start().await;
    let mut client = proxy.connect().await;
    client.send_request("POST", "/", &format!("Content-Length: {}\r\nExpect: 100-continue\r\n", 2 * MIB)).await;
    assert_eq!(client.head().await.status, 413);
    assert_eq!(origin.connections(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_over_http2_are_stored_and_streamed_too() {
    for buffered in [true, false] {
        let origin = taking().await;
        let route = json!({ "request_buffering": buffered, "client_max_body_size": 0 });
        let proxy = Proxy::to(&origin).route(route).tls(&[&Certificate::new("test")]).start().await;
        let mut client = Http2::connect_tls(proxy.ports.tls, "test").await;
        let request = HttpRequest::post("https://test/").body(()).unwrap();
        let (answer, mut stream) = client.open(request, false).await;
        let body = pattern::body(4 * MIB);
        assert!(send_all(&mut stream, &body, true).await);
        let answer = finish(within("the answer", answer).await.unwrap()).await;
        assert_eq!(answer.body, (4 * MIB).to_string().as_bytes());
        assert!(origin.only_request().body == body, "the body differs");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_streamed_http2_body_reaches_the_upstream_before_its_end() {
    let got_half = Arc::new(Notify::new());
    let tell = got_half.clone();
    let origin = Origin::start(move |mut conn| {
        let tell = tell.clone();
        async move {
            conn.head().await;
            assert_eq!(conn.chunk().await, Some(Some(b"half".to_vec())));
            tell.notify_one();
            let mut rest = Vec::new();
            while let Some(Some(chunk)) = conn.chunk().await {
                rest.extend(chunk);
            }
            conn.send(reply(200, std::str::from_utf8(&rest).unwrap())).await;
        }
    })
    .await;
    let route = json!({ "request_buffering": false });
    let proxy = Proxy::to(&origin).route(route).tls(&[&Certificate::new("test")]).start().await;
    let mut client = Http2::connect_tls(proxy.ports.tls, "test").await;
    let request = HttpRequest::post("https://test/").body(()).unwrap();
    let (answer, mut stream) = client.open(request, false).await;
    assert!(send_all(&mut stream, b"half", false).await);
    within("half a body at the upstream", got_half.notified()).await;
    assert!(send_all(&mut stream, b"rest", true).await);
    assert_eq!(finish(within("the answer", answer).await.unwrap()).await.body, b"rest");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_body_is_no_chunked_body() {
    let origin = taking().await;
    let proxy = Proxy::to(&origin).start().await;
    assert_eq!(proxy.connect().await.post("POST", "/", b"").await.text(), "0");
    assert_eq!(origin.only_request().header("content-length"), Some("0"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_goes_with_any_method() {
    let origin = taking().await;
    let proxy = Proxy::to(&origin).start().await;
    let mut client = proxy.connect().await;
    for method in ["GET", "DELETE", "PATCH", "PROPFIND"] {
        assert_eq!(client.post(method, "/", b"body").await.text(), "4", "{method}");
    }
    assert_eq!(origin.requests().iter().map(|request| request.method.as_str()).next_back(), Some("PROPFIND"));
}

#[tokio::test]
async fn a_body_that_only_the_close_can_end_is_announced_so_to_an_http10_client() {
    let origin =
        Origin::http(|_| "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n".into()).await;
    let proxy = Proxy::to(&origin).start().await;
    let mut client = proxy.connect().await;
    client.send("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").await;
    let response = client.response().await;
    assert_eq!((response.header("connection"), response.text().as_str()), (Some("close"), "abc"));
}

#[tokio::test]
async fn connections_to_upstreams_come_from_the_configured_address() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = json!({ "client_bind_to_ipv4": ["127.0.0.77"] });
    let servers = json!([listener.local_addr().unwrap()]);
    let proxy = Proxy::to_all(servers).top(json!({ "server": server })).start().await;
    proxy.connect().await.send_request("GET", "/", "").await;
    let (_, from) = within("a connection to the upstream", listener.accept()).await.unwrap();
    assert_eq!(from.ip().to_string(), "127.0.0.77");
}
