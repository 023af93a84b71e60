//! TLS and HTTP/2 on both sides, gRPC's way of using it, Unix sockets.

use crate::support::http2::{Http2, Http2Origin, finish, get, send_all};
use crate::support::*;
use bytes::Bytes;
use http::{HeaderMap, Request as HttpRequest, Response as HttpResponse};
use tokio::sync::mpsc;

async fn hello() -> Origin {
    Origin::http(|request| reply(200, &format!("hello {}", request.target))).await
}

/// An HTTP/2 origin that answers with the request's body, `te` and authority as headers, and a trailer.
async fn echo(certificate: Option<&Certificate>) -> Http2Origin {
    Http2Origin::start(certificate, |request, mut respond| async move {
        let (head, mut stream) = request.into_parts();
        let value = |name: &str| head.headers.get(name).map_or("none", |value| value.to_str().unwrap()).to_owned();
        let answer = HttpResponse::builder()
            .header("x-te", value("te"))
            .header("x-host", value("host"))
            .header("x-authority", head.uri.authority().map_or("none", |authority| authority.as_str()))
            .header("x-method", head.method.as_str())
            .body(())
            .unwrap();
        let mut send = respond.send_response(answer, false).unwrap();
        while let Some(piece) = stream.data().await {
            let Ok(piece) = piece else { return };
            stream.flow_control().release_capacity(piece.len()).unwrap();
            if !send_all(&mut send, &piece, false).await {
                return;
            }
        }
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", "0".parse().unwrap());
        // The stream may have been reset by a client that has seen enough.
        let _ = send.send_trailers(trailers);
    })
    .await
}

fn http2(origin: &Http2Origin) -> Setup {
    Proxy::to_all(json!([origin.address()])).upstream(json!({ "http_version": 2 }))
}

#[tokio::test]
async fn https_from_the_client_over_http11() {
    let origin = hello().await;
    let certificate = Certificate::new("test");
    let proxy = Proxy::to(&origin).tls(&[&certificate]).start().await;
    let mut client = Client::connect_tls(proxy.ports.tls, "test").await;
    assert!(client.io().peer_certificate().as_deref() == Some(certificate.der()));
    assert_eq!(client.get("/a").await.text(), "hello /a");
    assert_eq!(client.get("/b").await.text(), "hello /b");
}

#[tokio::test]
async fn the_certificate_is_chosen_by_the_name_asked_for() {
    let origin = hello().await;
    let (one, two) = (Certificate::new("one.test"), Certificate::new("two.test"));
    let proxy = Proxy::to(&origin).tls(&[&one, &two]).start().await;
    for (name, certificate) in [("one.test", &one), ("two.test", &two), ("unknown.test", &one)] {
        let client = Client::connect_tls(proxy.ports.tls, name).await;
        assert!(client.io().peer_certificate().as_deref() == Some(certificate.der()), "another certificate for {name}");
    }
}

#[tokio::test]
async fn https_to_the_upstream_with_its_certificate_verified() {
    let certificate = Certificate::new("app.internal");
    let origin = Origin::https(&certificate, |_| reply(200, "secret")).await;
    let setup = Proxy::to(&origin);
    let (ca_file, _) = certificate.write(setup.files.dir(), "ca");
    let tls = json!({ "server_name": "app.internal", "ca_file": ca_file });
    let proxy = setup.upstream(json!({ "tls": tls })).start().await;
    let mut client = proxy.connect().await;
    assert_eq!(client.get("/").await.text(), "secret");
    assert_eq!(client.get("/").await.text(), "secret");
    assert_eq!(origin.connections(), 1, "TLS connections are pooled too");
}

#[tokio::test]
async fn the_upstream_is_asked_for_server_name() {
    let certificate = Certificate::new("app.internal");
    let (tell, mut names) = mpsc::unbounded_channel();
    let origin = Origin::start_tls(certificate.acceptor(&["http/1.1"], None), move |mut conn| {
        tell.send(conn.io().tls().unwrap().0).unwrap();
        async move {
            conn.request().await;
            conn.send(reply(200, "ok")).await;
        }
    })
    .await;
    let tls = json!({ "server_name": "app.internal", "verify": false });
    let proxy = Proxy::to(&origin).upstream(json!({ "tls": tls })).start().await;
    assert_eq!(proxy.connect().await.get("/").await.text(), "ok");
    assert_eq!(names.recv().await.unwrap().as_deref(), Some("app.internal"));
}

#[tokio::test]
async fn a_certificate_of_another_authority_is_a_502() {
    let (certificate, other) = (Certificate::new("app.internal"), Certificate::new("app.internal"));
    let origin = Origin::https(&certificate, |_| reply(200, "secret")).await;
    let setup = Proxy::to(&origin);
    let (ca_file, _) = other.write(setup.files.dir(), "ca");
    let tls = json!({ "server_name": "app.internal", "ca_file": ca_file });
    let proxy = setup.upstream(json!({ "tls": tls })).start().await;
    assert_eq!(proxy.connect().await.get("/").await.status, 502);
    assert_eq!(origin.requests().len(), 0);
    proxy.wait_log(&[origin.address()]).await;
}

#[tokio::test]
async fn a_certificate_for_another_name_is_a_502() {
    let certificate = Certificate::new("other.internal");
    let origin = Origin::https(&certificate, |_| reply(200, "secret")).await;
    let setup = Proxy::to(&origin);
    let (ca_file, _) = certificate.write(setup.files.dir(), "ca");
    let tls = json!({ "server_name": "app.internal", "ca_file": ca_file });
    let proxy = setup.upstream(json!({ "tls": tls })).start().await;
    assert_eq!(proxy.connect().await.get("/").await.status, 502);
}

#[tokio::test]
async fn the_proxy_shows_its_own_certificate_when_asked() {
    let (certificate, mine) = (Certificate::new("app.internal"), Certificate::new("proxy.internal"));
    let origin = Origin::start_tls(certificate.acceptor(&["http/1.1"], Some(&mine)), |mut conn| async move {
        conn.request().await;
        conn.send(reply(200, "known")).await;
    })
    .await;
    for known in [true, false] {
        let setup = Proxy::to(&origin);
        let (ca_file, _) = certificate.write(setup.files.dir(), "ca");
        let (cert_file, key_file) = mine.write(setup.files.dir(), "mine");
        let mut tls = json!({ "server_name": "app.internal", "ca_file": ca_file });
        if known {
            tls["cert_file"] = json!(cert_file);
            tls["key_file"] = json!(key_file);
        }
        let proxy = setup.upstream(json!({ "tls": tls })).start().await;
        let expected = if known { 200 } else { 502 };
        assert_eq!(proxy.connect().await.get("/").await.status, expected);
    }
}

#[tokio::test]
async fn http2_from_the_client_with_many_streams_at_once() {
    let origin = hello().await;
    let proxy = Proxy::to(&origin).tls(&[&Certificate::new("test")]).start().await;
    let mut client = Http2::connect_tls(proxy.ports.tls, "test").await;
    let mut answers = Vec::new();
    for number in 0..50 {
        answers.push(client.open(get(&format!("/{number}")), true).await.0);
    }
    for (number, answer) in answers.into_iter().enumerate() {
        let answer = finish(within("an answer", answer).await.unwrap()).await;
        assert_eq!(answer.body, format!("hello /{number}").as_bytes());
        assert!(answer.broken.is_none());
    }
}

#[tokio::test]
async fn an_http2_request_reaches_an_http1_upstream_with_a_host() {
    let origin = hello().await;
    let proxy = Proxy::to(&origin).tls(&[&Certificate::new("test")]).start().await;
    let answer = Http2::connect_tls(proxy.ports.tls, "test").await.get("/path?a=1").await;
    assert_eq!(answer.body, b"hello /path?a=1");
    assert_eq!(origin.only_request().header("host"), Some("test"));
}

#[tokio::test]
async fn http2_answers_have_no_connection_headers_and_survive_head_204_304() {
    let origin = Origin::http(|request| match request.target.as_str() {
        "/204" => "HTTP/1.1 204 No Content\r\n\r\n".into(),
        "/304" => "HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n".into(),
        _ if request.method == "HEAD" => {
            "HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nContent-Length: 9\r\n\r\n".into()
        }
        _ => "HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nKeep-Alive: 5\r\nContent-Length: 2\r\n\r\nok".into(),
    })
    .await;
    let proxy = Proxy::to(&origin).tls(&[&Certificate::new("test")]).start().await;
    let mut client = Http2::connect_tls(proxy.ports.tls, "test").await;
    for (path, status) in [("/", 200), ("/204", 204), ("/304", 304)] {
        let answer = client.get(path).await;
        assert!(answer.broken.is_none(), "{path}: {:?}", answer.broken);
        assert_eq!(answer.status, status);
        assert!(!answer.headers.contains_key("connection") && !answer.headers.contains_key("keep-alive"));
    }
    let head = HttpRequest::head("https://test/").body(()).unwrap();
    let (answer, _) = client.open(head, true).await;
    let answer = finish(within("an answer", answer).await.unwrap()).await;
    assert_eq!((answer.headers["content-length"].to_str().unwrap(), answer.body.len()), ("9", 0));
    assert!(answer.broken.is_none());
    let logged = proxy.access_log(4).await;
    let statuses: Vec<_> = logged.iter().map(|line| line.field("status")).collect();
    assert_eq!(statuses, ["200", "204", "304", "200"], "nobody left before the end");
}

#[tokio::test]
async fn an_http2_upstream_serves_an_http1_client() {
    let origin = echo(None).await;
    let proxy = http2(&origin).start().await;
    let mut client = proxy.connect().await;
    let response = client.post("POST", "/", b"there and back").await;
    assert_eq!(response.text(), "there and back");
    assert_eq!(response.header("x-authority"), Some("test"));
    assert_eq!(response.header("x-host"), Some("none"), "Host became the authority");
    assert_eq!(client.get("/").await.text(), "", "the client's connection goes on");
    assert_eq!(origin.connections(), 1);
}

#[tokio::test]
async fn an_http2_upstream_over_tls_is_agreed_on_by_alpn() {
    for version in [json!(2), json!("auto")] {
        let certificate = Certificate::new("app.internal");
        let origin = echo(Some(&certificate)).await;
        let tls = json!({ "server_name": "app.internal", "verify": false });
        let proxy = http2(&origin).upstream(json!({ "tls": tls, "http_version": version })).start().await;
        assert_eq!(proxy.connect().await.post("POST", "/", b"hi").await.text(), "hi", "{version}");
    }
}

#[tokio::test]
async fn auto_falls_back_to_http11() {
    let certificate = Certificate::new("app.internal");
    let origin = Origin::https(&certificate, |_| reply(200, "one")).await;
    let tls = json!({ "server_name": "app.internal", "verify": false });
    let proxy = Proxy::to(&origin).upstream(json!({ "tls": tls, "http_version": "auto" })).start().await;
    assert_eq!(proxy.connect().await.get("/").await.text(), "one");
}

#[tokio::test(flavor = "multi_thread")]
async fn large_bodies_pass_through_an_http2_upstream() {
    let origin = echo(None).await;
    for buffered in [true, false] {
        let route = json!({ "request_buffering": buffered, "client_max_body_size": 0 });
        let proxy = http2(&origin).route(route).tls(&[&Certificate::new("test")]).start().await;
        let body = pattern::body(8 * MIB);
        let (answer, mut stream) = {
            let mut client = Http2::connect_tls(proxy.ports.tls, "test").await;
            client.open(HttpRequest::post("https://test/").body(()).unwrap(), false).await
        };
        let sent = body.clone();
        let sending = tokio::spawn(async move { send_all(&mut stream, &sent, true).await });
        let answer = finish(within("an answer", answer).await.unwrap()).await;
        assert!(answer.broken.is_none() && answer.body == body, "{buffered}: {:?}", answer.broken);
        assert!(sending.await.unwrap());
    }
}

#[tokio::test]
async fn grpc_passes_end_to_end_with_its_trailers() {
    let origin = echo(None).await;
    let route = json!({ "request_buffering": false });
    let proxy = http2(&origin).route(route).tls(&[&Certificate::new("test")]).start().await;
    let mut client = Http2::connect_tls(proxy.ports.tls, "test").await;
    let request = HttpRequest::post("https://test/pkg.Service/Method")
        .header("te", "trailers")
        .header("content-type", "application/grpc")
        .body(())
        .unwrap();
    let (answer, mut stream) = client.open(request, false).await;
    let answer = within("the header, before the request's end", answer).await.unwrap();
    assert_eq!(answer.headers()["x-te"], "trailers");
    let mut body = answer.into_body();
    for message in [&b"\0\0\0\0\x03one"[..], b"\0\0\0\0\x03two"] {
        assert!(send_all(&mut stream, message, false).await);
        let piece = within("the echo of one message", body.data()).await.unwrap().unwrap();
        body.flow_control().release_capacity(piece.len()).unwrap();
        assert_eq!(piece, message, "messages pass both ways one by one");
    }
    stream.send_data(Bytes::new(), true).unwrap();
    while let Some(piece) = within("the end", body.data()).await {
        assert_eq!(piece.unwrap(), "");
    }
    let trailers = within("trailers", body.trailers()).await.unwrap().expect("trailers");
    assert_eq!(trailers["grpc-status"], "0");
}

#[tokio::test]
async fn a_trailers_only_answer_stays_one() {
    let origin = Http2Origin::start(None, |_, mut respond| async move {
        let answer = HttpResponse::builder().header("grpc-status", "5").body(()).unwrap();
        respond.send_response(answer, true).unwrap();
    })
    .await;
    let proxy = http2(&origin).tls(&[&Certificate::new("test")]).start().await;
    let answer = Http2::connect_tls(proxy.ports.tls, "test").await.get("/").await;
    assert!(answer.broken.is_none(), "{:?}", answer.broken);
    assert_eq!(answer.headers["grpc-status"], "5");
    assert_eq!(answer.body, b"");
}

#[tokio::test]
async fn a_stream_reset_by_the_upstream_mid_body_is_a_broken_message() {
    let origin = Http2Origin::start(None, |_, mut respond| async move {
        let mut send = respond.send_response(HttpResponse::new(()), false).unwrap();
        assert!(send_all(&mut send, b"half", false).await);
        send.send_reset(h2::Reason::INTERNAL_ERROR);
    })
    .await;
    let proxy = http2(&origin).tls(&[&Certificate::new("test")]).start().await;
    let response = proxy.connect().await.get("/").await;
    assert!(response.status == 502 || response.broken.is_some(), "{response:?}");
    let answer = Http2::connect_tls(proxy.ports.tls, "test").await.get("/").await;
    assert!(answer.status == 502 || answer.broken.is_some(), "{answer:?}");
}

#[tokio::test]
async fn a_stream_refused_before_its_header_is_a_502() {
    let origin = Http2Origin::start(None, |_, mut respond| async move {
        respond.send_reset(h2::Reason::INTERNAL_ERROR);
    })
    .await;
    let proxy = http2(&origin).start().await;
    assert_eq!(proxy.connect().await.get("/").await.status, 502);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_slow_client_does_not_block_the_others_on_its_http2_upstream_connection() {
    let origin = Http2Origin::start(None, |request, mut respond| async move {
        let mut send = respond.send_response(HttpResponse::new(()), false).unwrap();
        let length = request.uri().path()[1..].parse().unwrap();
        send_all(&mut send, &pattern::body(length), true).await;
    })
    .await;
    let route = json!({ "buffering": { "enabled": false } });
    let proxy = http2(&origin).route(route).start().await;
    let mut slow = proxy.connect().await;
    slow.send_request("GET", &format!("/{}", 16 * MIB), "").await;
    let head = slow.head().await;
    for _ in 0..10 {
        assert_eq!(proxy.connect().await.get("/100000").await.body, pattern::body(100_000));
    }
    assert_eq!(slow.pattern(&head).await, 16 * MIB);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_client_does_not_hold_the_stream_of_an_http2_upstream() {
    let (tell, mut done) = mpsc::unbounded_channel();
    let origin = Http2Origin::start(None, move |_, mut respond| {
        let tell = tell.clone();
        async move {
            let mut send = respond.send_response(HttpResponse::new(()), false).unwrap();
            assert!(send_all(&mut send, &pattern::body(32 * MIB), true).await);
            tell.send(()).unwrap();
        }
    })
    .await;
    let proxy = http2(&origin).start().await;
    let mut slow = proxy.connect().await;
    slow.send_request("GET", "/", "").await;
    let head = slow.head().await;
    within("the upstream has sent everything", done.recv()).await.unwrap();
    assert_eq!(slow.pattern(&head).await, 32 * MIB);
}

#[tokio::test]
async fn a_unix_socket_upstream() {
    let dir = tempfile::tempdir().unwrap();
    let origin = Origin::start_unix(&dir.path().join("app.sock"), |mut conn| async move {
        while conn.request().await.is_some() {
            conn.send(reply(200, "by socket")).await;
        }
    })
    .await;
    let proxy = Proxy::to(&origin).start().await;
    let mut client = proxy.connect().await;
    assert_eq!(client.get("/").await.text(), "by socket");
    assert_eq!(client.get("/").await.text(), "by socket");
    assert_eq!(origin.connections(), 1, "pooled too");
    assert!(proxy.access_log(2).await[0].field("upstream_addr").contains("app.sock"));
}

#[tokio::test]
async fn a_trailers_only_answer_stays_one_behind_a_filter() {
    let origin = Http2Origin::start(None, |_, mut respond| async move {
        let answer = HttpResponse::builder().header("grpc-status", "5").body(()).unwrap();
        respond.send_response(answer, true).unwrap();
    })
    .await;
    let route = json!({ "filters": [{ "sub": { "replace": { "old": "new" } } }] });
    let proxy = http2(&origin).route(route).tls(&[&Certificate::new("test")]).start().await;
    let answer = Http2::connect_tls(proxy.ports.tls, "test").await.get_head("/").await;
    assert_eq!(answer.headers()["grpc-status"], "5");
    assert!(answer.body().is_end_stream());
}
