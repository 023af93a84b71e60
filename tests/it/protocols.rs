//! What the engine does for every protocol, seen on one that nobody speaks (`probe_protocol.rs`).

use crate::examples::example;
use crate::support::origin::Conn;
use crate::support::*;

/// A proxy that speaks the probe protocol to `origin`.
fn probe(origin: &Origin) -> Setup {
    Proxy::to(origin).program(example("probe_protocol")).upstream(json!({ "protocol": "probe" }))
}

/// A server that greets, and answers each question with what `answer` says.
async fn server(answer: impl Fn(&str) -> String + Clone + Send + Sync + 'static) -> Origin {
    Origin::start(move |conn| serve(conn, answer.clone())).await
}

async fn serve(mut conn: Conn, answer: impl Fn(&str) -> String) {
    assert_eq!(conn.line(b"\n").await.as_deref(), Some("HELLO"));
    conn.send("OK\n").await;
    while let Some(question) = conn.line(b"\n").await {
        conn.send(answer(&question)).await;
    }
}

fn reply_probe(fields: &str, body: &str) -> String {
    format!("{fields}\nSize: {}\n\n{body}", body.len())
}

#[tokio::test]
async fn a_new_connection_is_greeted_and_a_pooled_one_is_not() {
    let origin = server(|question| reply_probe("Status: 201\nX-A: b", question)).await;
    let proxy = probe(&origin).route(json!({ "match": { "path": "/a" }, "uri": "/b" })).start().await;
    let mut client = proxy.connect().await;
    for _ in 0..3 {
        let answer = client.get("/a/%63").await;
        assert_eq!((answer.status, answer.header("x-a")), (201, Some("b")));
        assert_eq!(answer.text(), "ASK GET /b/c keep");
    }
    assert_eq!(origin.connections(), 1);
}

#[tokio::test]
async fn a_codec_is_told_that_its_connection_will_not_be_kept() {
    let origin = server(|question| reply_probe("Status: 200", question)).await;
    let proxy = probe(&origin).upstream(json!({ "keepalive": { "connections": 0 } })).start().await;
    let mut client = proxy.connect().await;
    for _ in 0..2 {
        assert_eq!(client.get("/").await.text(), "ASK GET / close");
    }
    assert_eq!(origin.connections(), 2);
}

#[tokio::test]
async fn no_body_goes_with_head_204_and_304_whatever_a_codec_yields() {
    let origin = server(|question| match question.contains("304") {
        true => reply_probe("Status: 304", "body"),
        false if question.contains("204") => reply_probe("Status: 204", "body"),
        false => reply_probe("Status: 200\nContent-Length: 4", "body"),
    })
    .await;
    let proxy = probe(&origin).start().await;
    let mut client = proxy.connect().await;
    let head = client.request("HEAD", "/", "").await;
    assert_eq!((head.status, head.header("content-length"), head.text().as_str()), (200, Some("4"), ""));
    for (path, status) in [("/204", 204), ("/304", 304)] {
        let answer = client.get(path).await;
        assert_eq!((answer.status, answer.text().as_str()), (status, ""));
    }
    assert_eq!(client.get("/").await.text(), "body");
    assert_eq!(origin.connections(), 1, "these answers were whole: their connection can be used again");
}

#[tokio::test]
async fn more_than_the_content_length_is_cut_off_and_less_is_a_broken_message() {
    let origin = server(|question| match question.contains("long") {
        true => reply_probe("Status: 200\nContent-Length: 4", "body and more"),
        false => reply_probe("Status: 200\nContent-Length: 9", "body"),
    })
    .await;
    let proxy = probe(&origin).start().await;
    let mut client = proxy.connect().await;
    assert_eq!(client.get("/long").await.text(), "body");
    assert_eq!(client.get("/long").await.text(), "body");
    assert_eq!(origin.connections(), 2, "nobody knows where the first answer ends");
    client.send_request("GET", "/short", "").await;
    let head = client.head().await;
    assert_eq!(head.header("content-length"), Some("9"));
    assert_eq!(client.rest().await, b"body", "what came goes out");
    proxy.wait_log(&["5 bytes before its Content-Length"]).await;
}

#[tokio::test]
async fn a_header_that_no_client_could_be_sent_is_invalid() {
    for fields in
        ["Status: 101", "Status: 100", "Status: 600", "Content-Length: x", "Content-Length: 1\nContent-Length: 1"]
    {
        let bad = server(move |_| reply_probe(fields, "x")).await;
        let good = server(|_| reply_probe("Status: 200", "good")).await;
        let upstream = json!({ "servers": [bad.address(), good.address()] });
        let proxy = probe(&bad).upstream(upstream.clone()).start().await;
        assert_eq!(proxy.connect().await.get("/").await.status, 502, "{fields}");
        let when = json!({ "next_upstream": { "when": ["invalid_header"] } });
        let proxy = probe(&bad).upstream(upstream).route(when).start().await;
        assert_eq!(proxy.connect().await.get("/").await.text(), "good", "{fields}");
    }
}

#[tokio::test]
async fn a_status_moves_on_to_the_next_upstream_and_keeps_the_connection() {
    let miss = server(|_| reply_probe("Status: 404", "miss")).await;
    let hit = server(|_| reply_probe("Status: 200", "hit")).await;
    let upstream = json!({ "servers": [miss.address(), hit.address()] });
    let when = json!({ "next_upstream": { "when": ["http_404"] } });
    let proxy = probe(&miss).upstream(upstream).route(when).start().await;
    let mut client = proxy.connect().await;
    for _ in 0..4 {
        assert_eq!(client.get("/").await.text(), "hit");
    }
    assert_eq!((miss.connections(), hit.connections()), (1, 1));
}

#[tokio::test]
async fn a_header_may_come_behind_what_a_codec_consumes() {
    let origin = server(|_| format!("{}{}", "-\n".repeat(500), reply_probe("Status: 200", "body"))).await;
    let proxy = probe(&origin).route(json!({ "buffering": { "buffer_size": "1100" } })).start().await;
    assert_eq!(proxy.connect().await.get("/").await.text(), "body");
}

#[tokio::test]
async fn a_header_that_never_ends_is_cut_off() {
    for endless in ["X: y\n", "-\n"] {
        let origin = server(|_| endless.repeat(4000)).await;
        let proxy = probe(&origin).route(json!({ "buffering": { "buffer_size": "4KiB" } })).start().await;
        assert_eq!(proxy.connect().await.get("/").await.status, 502, "{endless}");
        proxy.wait_log(&["a header larger than 4096 bytes"]).await;
    }
}

#[tokio::test]
async fn a_last_word_is_said_when_the_client_leaves() {
    let last_word = std::sync::Arc::new(std::sync::Mutex::new(None));
    let heard = last_word.clone();
    let origin = Origin::start(move |mut conn| {
        let heard = heard.clone();
        async move {
            conn.line(b"\n").await;
            conn.send("OK\n").await;
            conn.line(b"\n").await;
            conn.send("Status: 200\nSize: 9\n\nbo").await;
            let word = conn.line(b"\n").await;
            *heard.lock().unwrap() = word;
        }
    })
    .await;
    let proxy = probe(&origin).start().await;
    let mut client = proxy.connect().await;
    client.send_request("GET", "/", "").await;
    client.head().await;
    drop(client);
    origin.wait("the connection is given up", |seen| seen.connections == 1 && seen.open == 0).await;
    assert_eq!(last_word.lock().unwrap().as_deref(), Some("ABORT"));
}
