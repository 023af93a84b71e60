//! What upstreams send, whole, broken and contradictory, and what the client may believe of it.

use crate::support::http2::Http2;
use crate::support::*;
use std::sync::Arc;
use tokio::sync::Notify;

/// An origin that answers every connection's first request with these bytes and closes, and a proxy to it.
async fn answered(bytes: impl Into<Vec<u8>>) -> (Origin, Proxy) {
    let origin = Origin::once(bytes).await;
    let proxy = Proxy::to(&origin).start().await;
    (origin, proxy)
}

/// An origin that answers with these bytes and keeps the connection, should the proxy use it again.
async fn kept(bytes: &'static str) -> (Origin, Proxy) {
    let origin = Origin::http(move |_| bytes.to_owned()).await;
    let proxy = Proxy::to(&origin).start().await;
    (origin, proxy)
}

async fn is_broken(answer: &str, body: &str) {
    let (origin, proxy) = answered(answer).await;
    let mut client = proxy.connect().await;
    let response = client.get("/").await;
    assert_eq!(response.status, 200);
    assert!(response.broken.is_some(), "a broken body is never passed off as complete: {response:?}");
    assert_eq!(String::from_utf8(response.body).unwrap(), body, "what came before is delivered");
    assert!(client.closed().await);
    proxy.wait_log(&[origin.address()]).await;
    assert_eq!(proxy.access_log(1).await[0].field("status"), "200");
}

#[tokio::test]
async fn half_a_content_length_body_is_a_broken_message() {
    is_broken("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf.", "half.").await;
}

#[tokio::test]
async fn no_byte_of_a_content_length_body_is_a_broken_message() {
    is_broken("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n", "").await;
}

#[tokio::test]
async fn an_end_within_a_chunk_is_a_broken_message() {
    is_broken("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nwhole\r\n5\r\nha", "wholeha").await;
}

#[tokio::test]
async fn an_end_between_chunks_is_a_broken_message() {
    is_broken("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nwhole\r\n", "whole").await;
}

#[tokio::test]
async fn an_end_within_the_last_chunk_is_a_broken_message() {
    is_broken("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nwhole\r\n0\r\n", "whole").await;
}

#[tokio::test]
async fn a_large_truncated_body_is_a_broken_message_for_a_slow_client() {
    let origin = Origin::start(|mut conn| async move {
        conn.request().await;
        conn.send_head(16 * MIB).await;
        conn.send_pattern(8 * MIB).await;
    })
    .await;
    let proxy = Proxy::to(&origin).start().await;
    let mut client = proxy.connect().await;
    client.send_request("GET", "/", "").await;
    let head = client.head().await;
    origin.wait("the origin has closed", |seen| seen.connections == 1 && seen.open == 0).await;
    let mut framing = client::framing(&head, "GET");
    let mut pattern = Pattern::default();
    let broken = loop {
        match client.body_piece(&mut framing).await {
            Ok(piece) => pattern.check(&piece.expect("the message does not end")),
            Err(why) => break why,
        }
    };
    assert_eq!(pattern.offset, 8 * MIB, "{broken}: what was stored is delivered");
}

#[tokio::test]
async fn a_truncated_body_resets_the_stream_over_http2() {
    let origin = Origin::once("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf.").await;
    let proxy = Proxy::to(&origin).tls(&[&Certificate::new("test")]).start().await;
    let mut client = Http2::connect_tls(proxy.ports.tls, "test").await;
    let answer = client.get("/").await;
    assert_eq!(answer.status, 200);
    assert!(answer.broken.is_some_and(|error| error.is_reset()), "{:?}", answer.body);
    let origin = Origin::once("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nwhole\r\n").await;
    let proxy = Proxy::to(&origin).tls(&[&Certificate::new("test")]).start().await;
    let answer = Http2::connect_tls(proxy.ports.tls, "test").await.get("/").await;
    assert!(answer.broken.is_some_and(|error| error.is_reset()), "{:?}", answer.body);
}

#[tokio::test]
async fn a_reset_by_the_upstream_is_a_broken_message() {
    let now = Arc::new(Notify::new());
    let reset = now.clone();
    let origin = Origin::start(move |mut conn| {
        let reset = reset.clone();
        async move {
            conn.request().await;
            conn.send("HTTP/1.1 200 OK\r\n\r\nuntil the end").await;
            reset.notified().await;
            conn.reset();
        }
    })
    .await;
    let proxy = Proxy::to(&origin).start().await;
    let mut client = proxy.connect().await;
    client.send_request("GET", "/", "").await;
    let head = client.head().await;
    let mut framing = client::framing(&head, "GET");
    assert_eq!(client.body_piece(&mut framing).await.unwrap().unwrap(), b"until the end");
    now.notify_one();
    assert!(client.body_piece(&mut framing).await.is_err(), "a reset is no end of a close-delimited body");
}

#[tokio::test]
async fn a_close_delimited_body_reaches_an_http11_client_complete_and_framed() {
    let (origin, proxy) = answered("HTTP/1.1 200 OK\r\n\r\nuntil the end").await;
    let mut client = proxy.connect().await;
    for _ in 0..2 {
        let response = client.get("/").await;
        assert_eq!(response.header("transfer-encoding"), Some("chunked"));
        assert_eq!(response.text(), "until the end");
    }
    assert_eq!(origin.connections(), 2);
}

#[tokio::test]
async fn a_close_delimited_body_reaches_an_http10_client_until_the_close() {
    let (_origin, proxy) = answered("HTTP/1.1 200 OK\r\n\r\nuntil the end").await;
    let mut client = proxy.connect().await;
    client.send("GET / HTTP/1.0\r\nHost: test\r\n\r\n").await;
    let response = client.response().await;
    assert_eq!(response.header("transfer-encoding"), None);
    assert_eq!(response.text(), "until the end");
}

#[tokio::test]
async fn a_chunked_body_reaches_an_http10_client_without_chunks() {
    let (_origin, proxy) =
        kept("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n").await;
    let mut client = proxy.connect().await;
    client.send("GET / HTTP/1.0\r\nHost: test\r\n\r\n").await;
    let response = client.response().await;
    assert_eq!(response.header("transfer-encoding"), None);
    assert_eq!(response.text(), "abcde");
}

#[tokio::test]
async fn an_http10_upstream_is_understood_and_its_connection_not_reused() {
    let origin = Origin::http(|_| "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok".into()).await;
    let proxy = Proxy::to(&origin).start().await;
    let mut client = proxy.connect().await;
    assert_eq!(client.get("/").await.text(), "ok");
    assert_eq!(client.get("/").await.text(), "ok");
    assert_eq!(origin.connections(), 2);
}

/// The client gets exactly `body`, and the connection serves no second request.
async fn excess_is_dropped(answer: &'static str, body: &str) {
    let (origin, proxy) = kept(answer).await;
    let mut client = proxy.connect().await;
    for connections in 1..=2 {
        let response = client.get("/").await;
        assert_eq!(response.text(), body);
        assert_eq!(client.leftover(), b"", "nothing behind the message");
        assert_eq!(origin.connections(), connections, "a connection with excess bytes is never used again");
    }
}

#[tokio::test]
async fn bytes_beyond_content_length_are_dropped_with_the_connection() {
    excess_is_dropped("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbodyHTTP/1.1 200 OK\r\n\r\n", "body").await;
}

#[tokio::test]
async fn bytes_beyond_the_last_chunk_are_dropped_with_the_connection() {
    excess_is_dropped("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\nx", "body").await;
}

#[tokio::test]
async fn bytes_behind_an_empty_body_are_dropped_with_the_connection() {
    excess_is_dropped("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nx", "").await;
}

#[tokio::test]
async fn bytes_behind_a_204_are_dropped_with_the_connection() {
    excess_is_dropped("HTTP/1.1 204 No Content\r\n\r\nx", "").await;
}

#[tokio::test]
async fn bytes_that_arrive_on_an_idle_connection_close_it() {
    let origin = Origin::start(|mut conn| async move {
        while let Some(request) = conn.request().await {
            conn.send(reply(200, "mine")).await;
            if request.target == "/first" {
                conn.send("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison").await;
            }
        }
    })
    .await;
    let proxy = Proxy::to(&origin).start().await;
    assert_eq!(proxy.connect().await.get("/first").await.text(), "mine");
    for _ in 0..3 {
        assert_eq!(proxy.connect().await.get("/second").await.text(), "mine");
    }
}

/// The upstream's answer is refused as a whole: 502, and the connection is closed.
async fn is_502(answer: &'static str) {
    let (origin, proxy) = kept(answer).await;
    let mut client = proxy.connect().await;
    for connections in 1..=2 {
        assert_eq!(client.get("/").await.status, 502, "{answer:?}");
        origin.wait("the connection is closed", |seen| seen.connections == connections && seen.open == 0).await;
    }
    proxy.wait_log(&[origin.address()]).await;
}

#[tokio::test]
async fn content_length_and_transfer_encoding_together_are_a_502() {
    is_502("HTTP/1.1 200 OK\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n").await;
}

#[tokio::test]
async fn two_content_lengths_are_a_502() {
    is_502("HTTP/1.1 200 OK\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nbody").await;
}

#[tokio::test]
async fn a_list_of_content_lengths_is_a_502() {
    is_502("HTTP/1.1 200 OK\r\nContent-Length: 4, 5\r\n\r\nbody").await;
}

#[tokio::test]
async fn an_invalid_content_length_is_a_502() {
    is_502("HTTP/1.1 200 OK\r\nContent-Length: +4\r\n\r\nbody").await;
}

#[tokio::test]
async fn a_content_length_beyond_all_numbers_is_a_502() {
    is_502("HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999999\r\n\r\nbody").await;
}

#[tokio::test]
async fn two_transfer_encodings_are_a_502() {
    is_502("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n").await;
}

#[tokio::test]
async fn an_unknown_transfer_encoding_is_a_502() {
    is_502("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nbody").await;
}

#[tokio::test]
async fn an_unsolicited_101_is_a_502() {
    is_502("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n").await;
}

#[tokio::test]
async fn garbage_instead_of_a_header_is_a_502() {
    is_502("SSH-2.0-OpenSSH_9.2\r\n\r\n").await;
}

#[tokio::test]
async fn a_status_that_is_no_number_is_a_502() {
    is_502("HTTP/1.1 OK\r\nContent-Length: 0\r\n\r\n").await;
}

#[tokio::test]
async fn a_header_line_without_a_colon_is_a_502() {
    is_502("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nnonsense\r\n\r\n").await;
}

#[tokio::test]
async fn a_header_larger_than_buffer_size_is_a_502_and_one_within_it_passes() {
    let origin = Origin::http(|request| {
        let length: usize = request.target[1..].parse().unwrap();
        format!("HTTP/1.1 200 OK\r\nX-Long: {}\r\nContent-Length: 2\r\n\r\nok", "x".repeat(length))
    })
    .await;
    let proxy = Proxy::to(&origin).route(json!({ "buffering": { "buffer_size": "8KiB" } })).start().await;
    let mut client = proxy.connect().await;
    let response = client.get("/8000").await;
    assert_eq!(response.header("x-long").map(str::len), Some(8000));
    assert_eq!(response.text(), "ok");
    assert_eq!(client.get("/9000").await.status, 502);
}

#[tokio::test]
async fn a_connection_closed_before_the_header_is_a_502() {
    let (_origin, proxy) = answered("").await;
    assert_eq!(proxy.connect().await.get("/").await.status, 502);
}

#[tokio::test]
async fn a_connection_closed_within_the_header_is_a_502() {
    let (_origin, proxy) = answered("HTTP/1.1 200 OK\r\nContent-Le").await;
    assert_eq!(proxy.connect().await.get("/").await.status, 502);
}

/// The offence is met in the body: the message is broken and the connection closed, not reused.
async fn is_a_bad_chunk(answer: &'static str) {
    let (origin, proxy) = kept(answer).await;
    let mut client = proxy.connect().await;
    client.send_request("GET", "/", "").await;
    // The header may have been on its way when the offence was met, or not.
    if let Some(head) = client.try_head().await.filter(|head| head.status != 502) {
        let mut framing = client::framing(&head, "GET");
        while let Ok(piece) = client.body_piece(&mut framing).await {
            assert!(piece.is_some(), "{answer:?} was accepted");
        }
    }
    origin.wait("the connection is closed", |seen| seen.connections == 1 && seen.open == 0).await;
}

#[tokio::test]
async fn a_chunk_size_that_is_no_number_breaks_the_message() {
    is_a_bad_chunk("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\nxyz\r\n").await;
}

#[tokio::test]
async fn a_chunk_longer_than_its_size_breaks_the_message() {
    is_a_bad_chunk("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nbody\r\n0\r\n\r\n").await;
}

#[tokio::test]
async fn a_chunk_size_beyond_all_numbers_breaks_the_message() {
    is_a_bad_chunk("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\nbody\r\n").await;
}

#[tokio::test]
async fn a_negative_chunk_size_breaks_the_message() {
    is_a_bad_chunk("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-4\r\nbody\r\n0\r\n\r\n").await;
}

#[tokio::test]
async fn chunk_extensions_and_trailers_do_not_disturb_and_the_connection_is_reused() {
    let answer = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\
                  4;name=\"value\"\r\nbody\r\n1\r\n!\r\n0\r\nX-Trailer: late\r\n\r\n";
    let (origin, proxy) = kept(answer).await;
    let mut client = proxy.connect().await;
    for _ in 0..2 {
        assert_eq!(client.get("/").await.text(), "body!");
    }
    assert_eq!(origin.connections(), 1);
}

#[tokio::test]
async fn trailers_of_an_http1_upstream_reach_an_http2_client() {
    let answer = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n\
                  4\r\nbody\r\n0\r\nX-Sum: 42\r\n\r\n";
    let origin = Origin::http(move |_| answer.to_owned()).await;
    let proxy = Proxy::to(&origin).tls(&[&Certificate::new("test")]).start().await;
    let answer = Http2::connect_tls(proxy.ports.tls, "test").await.get("/").await;
    assert!(answer.broken.is_none(), "{:?}", answer.broken);
    assert_eq!(answer.body, b"body");
    assert_eq!(answer.trailers.expect("trailers")["x-sum"], "42");
}

#[tokio::test]
async fn one_byte_at_a_time_comes_out_as_one_message() {
    let origin = Origin::start(|mut conn| async move {
        while conn.request().await.is_some() {
            let answer = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n";
            for byte in answer.bytes() {
                conn.send([byte]).await;
                tokio::task::yield_now().await;
            }
        }
    })
    .await;
    let proxy = Proxy::to(&origin).start().await;
    let mut client = proxy.connect().await;
    assert_eq!(client.get("/").await.text(), "body");
    assert_eq!(client.get("/").await.text(), "body");
    assert_eq!(origin.connections(), 1);
}

/// No body, whatever the headers say, and the connections on both sides go on.
async fn is_bodiless(method: &str, answer: &'static str, status: u16) {
    let (origin, proxy) = kept(answer).await;
    let mut client = proxy.connect().await;
    for _ in 0..2 {
        let response = client.request(method, "/", "").await;
        assert_eq!((response.status, response.broken), (status, None));
        assert_eq!(client.leftover(), b"");
    }
    assert_eq!(origin.connections(), 1);
}

#[tokio::test]
async fn an_answer_to_head_keeps_its_content_length_and_has_no_body() {
    is_bodiless("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", 200).await;
    let (_origin, proxy) = kept("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n").await;
    let response = proxy.connect().await.request("HEAD", "/", "").await;
    assert_eq!(response.header("content-length"), Some("1000"));
}

#[tokio::test]
async fn a_chunked_answer_to_head_has_no_body() {
    is_bodiless("HEAD", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", 200).await;
}

#[tokio::test]
async fn a_204_has_no_body() {
    is_bodiless("GET", "HTTP/1.1 204 No Content\r\n\r\n", 204).await;
}

#[tokio::test]
async fn a_304_has_no_body_though_it_names_a_length() {
    is_bodiless("GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 1000\r\nETag: \"x\"\r\n\r\n", 304).await;
}

#[tokio::test]
async fn interim_answers_do_not_stand_for_the_final_one() {
    let answer = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n\
                  HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfinal";
    let (origin, proxy) = kept(answer).await;
    let mut client = proxy.connect().await;
    for _ in 0..2 {
        let response = client.get("/").await;
        assert_eq!(response.status, 200);
        assert_eq!(response.text(), "final");
    }
    assert_eq!(origin.connections(), 1);
}

#[tokio::test]
async fn connection_close_from_the_upstream_ends_its_connection_not_the_clients() {
    let (origin, proxy) = kept("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok").await;
    let mut client = proxy.connect().await;
    for _ in 0..2 {
        let response = client.get("/").await;
        assert_ne!(response.header("connection"), Some("close"));
        assert_eq!(response.text(), "ok");
    }
    assert_eq!(origin.connections(), 2);
}

#[tokio::test]
async fn hop_by_hop_headers_of_the_upstream_stay_there() {
    let answer = "HTTP/1.1 200 OK\r\nConnection: keep-alive, X-Internal\r\nX-Internal: secret\r\n\
                  Keep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\nUpgrade: h2c\r\nX-Kept: yes\r\n\
                  Content-Length: 2\r\n\r\nok";
    let (_origin, proxy) = kept(answer).await;
    let response = proxy.connect().await.get("/").await;
    for name in ["x-internal", "keep-alive", "proxy-connection", "upgrade"] {
        assert_eq!(response.header(name), None, "{name}");
    }
    assert_eq!(response.header("x-kept"), Some("yes"));
}
