//! The `compress` filter: what is compressed, for whom, and that a stream stays a stream.

use crate::config;
use crate::support::http2::Http2;
use crate::support::*;
use std::io::{Read, Write};
use std::sync::Arc;
use tokio::sync::Notify;

const HTML: &str = "Content-Type: text/html; charset=utf-8";

fn page() -> String {
    "<p>a line that is much like the others</p>\n".repeat(100)
}

/// An origin whose answers have these header lines beside their `Content-Length`.
async fn origin(headers: &'static str) -> Origin {
    Origin::http(move |request| {
        let body = page();
        let head = format!("HTTP/1.1 200 OK\r\n{headers}\r\nContent-Length: {}\r\n\r\n", body.len());
        if request.method == "HEAD" { head } else { head + &body }
    })
    .await
}

fn compress(settings: Value) -> Value {
    json!({ "filters": [{ "compress": settings }] })
}

/// A proxy in front of such an origin, with the filter's defaults.
async fn proxy(headers: &'static str) -> (Origin, Proxy) {
    let origin = origin(headers).await;
    let proxy = Proxy::to(&origin).route(compress(json!({}))).start().await;
    (origin, proxy)
}

fn decoded(coding: &str, body: &[u8]) -> String {
    let mut decoder: Box<dyn Read> = match coding {
        "zstd" => Box::new(zstd::stream::read::Decoder::new(body).unwrap()),
        "br" => Box::new(brotli::Decompressor::new(body, 4096)),
        "gzip" => Box::new(flate2::read::GzDecoder::new(body)),
        other => panic!("nobody asked for {other}"),
    };
    let mut text = String::new();
    decoder.read_to_string(&mut text).unwrap();
    text
}

#[tokio::test]
async fn the_client_chooses_the_coding() {
    let (_origin, proxy) = proxy(HTML).await;
    let mut client = proxy.connect().await;
    for (accepts, coding) in [
        ("gzip, deflate, br, zstd", "zstd"),
        ("gzip, deflate, br", "br"),
        ("gzip;q=1, br;q=0.5", "gzip"),
        ("*;q=0.1, zstd;q=0", "br"),
    ] {
        let response = client.request("GET", "/", &format!("Accept-Encoding: {accepts}\r\n")).await;
        assert_eq!(response.broken, None);
        assert_eq!(response.header("content-encoding"), Some(coding), "{accepts}");
        assert_eq!(response.header("vary"), Some("Accept-Encoding"));
        assert!(response.body.len() < page().len() / 4, "{}", response.body.len());
        assert_eq!(decoded(coding, &response.body), page());
    }
    for accepts in ["", "Accept-Encoding: identity, gzip;q=0\r\n", "Accept-Encoding: deflate\r\n"] {
        let response = client.request("GET", "/", accepts).await;
        assert_eq!(response.header("content-encoding"), None, "{accepts}");
        assert_eq!(response.header("vary"), Some("Accept-Encoding"), "caches must know that there are others");
        assert_eq!(response.header("content-length"), Some(page().len().to_string().as_str()));
        assert_eq!(response.text(), page());
    }
    assert_eq!(proxy.metric("compress_responses_total", &[("coding", "br")]).await, Some(2.0));
    let bytes = async |direction| {
        proxy.metric("compress_bytes_total", &[("coding", "gzip"), ("direction", direction)]).await.unwrap()
    };
    assert_eq!(bytes("in").await as usize, page().len());
    assert!(bytes("out").await > 0.0 && bytes("out").await < bytes("in").await / 4.0);
}

#[tokio::test]
async fn what_is_not_to_be_compressed_passes_unchanged() {
    for headers in [
        "Content-Type: image/png",
        "Content-Type: text/html\r\nContent-Encoding: br",
        "Content-Type: text/html\r\nCache-Control: max-age=1, No-Transform",
        "Content-Type: text/html\r\nContent-Range: bytes 0-99/200",
        "X-Untyped: yes",
    ] {
        let (_origin, proxy) = proxy(headers).await;
        let response = proxy.connect().await.request("GET", "/", "Accept-Encoding: gzip\r\n").await;
        assert_eq!(response.text(), page(), "{headers}");
        assert_eq!(response.header("vary"), None, "{headers}");
    }
    let origin = Origin::http(|_| reply(200, "short").replace("Content-", "Content-Type: text/html\r\nContent-")).await;
    let proxy = Proxy::to(&origin).route(compress(json!({}))).start().await;
    let response = proxy.connect().await.request("GET", "/", "Accept-Encoding: gzip\r\n").await;
    assert_eq!((response.text().as_str(), response.header("vary")), ("short", None));
}

#[tokio::test]
async fn the_request_may_forbid_it_too() {
    let (_origin, proxy) = proxy(HTML).await;
    let headers = "Accept-Encoding: gzip\r\nCache-Control: no-transform\r\n";
    assert_eq!(proxy.connect().await.request("GET", "/", headers).await.text(), page());
}

#[tokio::test]
async fn validators_and_ranges_follow_the_change() {
    let headers = "Content-Type: text/css\r\nETag: \"v1\"\r\nAccept-Ranges: bytes\r\nVary: Origin\r\nContent-MD5: x";
    let (_origin, proxy) = proxy(headers).await;
    let mut client = proxy.connect().await;
    let response = client.request("GET", "/", "Accept-Encoding: gzip\r\n").await;
    assert_eq!(response.header("etag"), Some("W/\"v1\""));
    assert_eq!((response.header("accept-ranges"), response.header("content-md5")), (None, None));
    assert_eq!(response.header("content-length"), None);
    let vary: Vec<_> = response.head.headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case("vary")).collect();
    assert_eq!(vary.len(), 2, "{vary:?}");
    let response = client.get("/").await;
    assert_eq!((response.header("etag"), response.header("accept-ranges")), (Some("\"v1\""), Some("bytes")));
}

#[tokio::test]
async fn a_head_has_the_header_that_a_get_would_have() {
    let (_origin, proxy) = proxy(HTML).await;
    let mut client = proxy.connect().await;
    for _ in 0..2 {
        let response = client.request("HEAD", "/", "Accept-Encoding: br\r\n").await;
        assert_eq!(response.header("content-encoding"), Some("br"));
        assert_eq!(response.header("content-length"), None);
        assert_eq!(client.leftover(), b"");
    }
}

#[tokio::test]
async fn bodiless_answers_stay_bodiless() {
    let origin = Origin::http(|request| match request.target.as_str() {
        "/304" => "HTTP/1.1 304 Not Modified\r\nContent-Type: text/html\r\nETag: \"a\"\r\n\r\n".into(),
        _ => "HTTP/1.1 204 No Content\r\nContent-Type: text/html\r\n\r\n".into(),
    })
    .await;
    let proxy = Proxy::to(&origin).route(compress(json!({}))).start().await;
    let mut client = proxy.connect().await;
    for target in ["/304", "/204", "/304"] {
        let response = client.request("GET", target, "Accept-Encoding: gzip\r\n").await;
        assert_eq!((response.broken, response.head.header("content-encoding")), (None, None), "{target}");
        assert_eq!(client.leftover(), b"");
    }
}

#[tokio::test]
async fn an_old_client_gets_what_it_can_count() {
    let (_origin, proxy) = proxy(HTML).await;
    let mut client = proxy.connect().await;
    client.send("GET / HTTP/1.0\r\nHost: test\r\nAccept-Encoding: gzip\r\n\r\n").await;
    let response = client.response().await;
    assert_eq!((response.header("content-encoding"), response.text()), (None, page()));
    assert_eq!(response.header("vary"), Some("Accept-Encoding"));
}

/// Read until `text` is what the pieces received so far are decoded to.
async fn until(client: &mut Client, framing: &mut client::Framing, body: &mut Vec<u8>, text: &str) {
    loop {
        let mut decoder = flate2::write::GzDecoder::new(Vec::new());
        decoder.write_all(body).unwrap();
        decoder.flush().unwrap();
        let seen = String::from_utf8(decoder.get_mut().clone()).unwrap();
        assert!(text.starts_with(&seen), "{seen}");
        if seen == text {
            return;
        }
        body.extend(client.body_piece(framing).await.unwrap().expect("more events"));
    }
}

#[tokio::test]
async fn an_event_stream_is_compressed_and_still_flows() {
    let go_on = Arc::new(Notify::new());
    let wait = go_on.clone();
    let origin = Origin::start(move |mut conn| {
        let wait = wait.clone();
        async move {
            conn.request().await;
            conn.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n").await;
            for event in 0..3 {
                conn.send(format!("data: {event}\n\n")).await;
                wait.notified().await;
            }
        }
    })
    .await;
    let proxy = Proxy::to(&origin).route(compress(json!({}))).start().await;
    let mut client = proxy.connect().await;
    client.send_request("GET", "/", "Accept-Encoding: gzip\r\n").await;
    let head = client.head().await;
    assert_eq!(head.header("content-encoding"), Some("gzip"));
    let (mut framing, mut body, mut text) = (client::framing(&head, "GET"), Vec::new(), String::new());
    for event in 0..3 {
        text += &format!("data: {event}\n\n");
        until(&mut client, &mut framing, &mut body, &text).await;
        go_on.notify_one();
    }
    while let Some(piece) = client.body_piece(&mut framing).await.unwrap() {
        body.extend(piece);
    }
    assert_eq!(decoded("gzip", &body), text);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_body_frees_its_upstream_and_arrives_whole() {
    let origin = Origin::start(|mut conn| async move {
        conn.request().await;
        conn.send("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n").await;
        for part in 0..200 {
            conn.send(format!("{part} {}", page())).await;
        }
    })
    .await;
    let proxy = Proxy::to(&origin).route(compress(json!({ "algorithms": ["zstd"], "level": 1 }))).start().await;
    let mut client = proxy.connect().await;
    client.send_request("GET", "/", "Accept-Encoding: zstd\r\n").await;
    origin.wait("the upstream is free", |seen| seen.connections == 1 && seen.open == 0).await;
    let response = client.response().await;
    assert_eq!(response.broken, None);
    let whole: String = (0..200).map(|part| format!("{part} {}", page())).collect();
    assert!(decoded("zstd", &response.body) == whole, "the body differs");
}

#[tokio::test]
async fn a_broken_body_is_no_whole_one() {
    let start = format!("HTTP/1.1 200 OK\r\n{HTML}\r\nContent-Length: 5000\r\n\r\n{}", page());
    let origin = Origin::once(start).await;
    let proxy = Proxy::to(&origin).route(compress(json!({}))).start().await;
    let response = proxy.connect().await.request("GET", "/", "Accept-Encoding: gzip\r\n").await;
    assert!(response.broken.is_some());
}

#[tokio::test]
async fn over_http2_too() {
    let origin = origin(HTML).await;
    let proxy = Proxy::to(&origin).route(compress(json!({}))).tls(&[&Certificate::new("test")]).start().await;
    let mut client = Http2::connect_tls(proxy.ports.tls, "test").await;
    for method in ["GET", "HEAD", "GET"] {
        let request = http::Request::builder().method(method).uri("https://test/").header("accept-encoding", "br");
        let (answer, _) = client.open(request.body(()).unwrap(), true).await;
        let answer = http2::finish(within("an answer", answer).await.unwrap()).await;
        assert_eq!(answer.headers["content-encoding"], "br", "{method}");
        assert!(answer.broken.is_none());
        let expected = if method == "GET" { page() } else { String::new() };
        let body = if answer.body.is_empty() { String::new() } else { decoded("br", &answer.body) };
        assert_eq!(body, expected, "{method}");
    }
}

#[test]
fn its_mistakes_are_named() {
    for (settings, report) in [
        ("{ algorithms: [deflate] }", "expected one of `zstd`, `br`, `gzip`"),
        ("{ algorithms: [] }", "at least one of zstd, br and gzip as `algorithms`"),
        ("{ level: 10 }", "a `level` from 1 to 9, not 10"),
        ("{ min_length: 1k }", "a size such as 16KiB"),
    ] {
        config::refuses_filter(&format!("compress: {settings}"), report);
    }
}
