//! uWSGI behind the proxy, over SCGI and over uwsgi, and applications that lie.

use crate::support::origin::Conn;
use crate::support::servers::{Uwsgi, installed, uwsgi};
use crate::support::*;
use std::fs;

const APPLICATION: &str = r#"
import json, os, time

def application(env, start):
    def answer(status, body, *headers):
        start(status, [("Content-Type", "text/plain"), ("Content-Length", str(len(body))), *headers])
        return [body]

    def pieces():
        yield b"first "
        while not os.path.exists("go"):
            time.sleep(0.01)
        yield b"second"

    def dies(length):
        yield b"x" * 100
        os.kill(os.getpid(), 9)

    path = env["PATH_INFO"]
    if path == "/env":
        return answer("200 OK", json.dumps({key: value for key, value in env.items() if type(value) is str}).encode())
    if path == "/echo":
        return answer("201 Made", env["wsgi.input"].read(int(env["CONTENT_LENGTH"] or 0)))
    if path == "/redirect":
        return answer("303 See Other", b"", ("Location", "/elsewhere"))
    if path == "/cookies":
        return answer("200 OK", b"", ("Set-Cookie", "a=b; Path=/"), ("Set-Cookie", "c=d"))
    if path == "/pieces":
        start("200 OK", [])
        return pieces()
    if path == "/dies":
        start("200 OK", [("Content-Length", "200")])
        return dies(200)
    if path == "/large":
        with open("large", "rb") as large:
            return answer("200 OK", large.read())
    return answer("404 Not Found", b"nothing here")
"#;

/// Each protocol with the address where uWSGI speaks it.
fn sockets(server: &Uwsgi) -> [(&'static str, String); 2] {
    [("scgi", server.scgi.to_string()), ("uwsgi", server.server.addr.to_string())]
}

fn setup(protocol: &str, address: &str) -> Setup {
    Proxy::to_all(json!([address])).upstream(json!({ "protocol": protocol }))
}

async fn start() -> Option<Uwsgi> {
    if !installed("uwsgi") {
        return None;
    }
    Some(uwsgi(APPLICATION).await)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_gets_the_usual_variables_and_its_own() {
    let Some(server) = start().await else { return };
    for (protocol, address) in sockets(&server) {
        let settings = json!({ "params": { "APP_HOST": "<$host>", "HTTP_X_REMOVED": "", "HTTPS": "on" } });
        let proxy = setup(protocol, &address).route(json!({ protocol: settings })).start().await;
        let headers = "X-One: 1\r\nX-Two: a\r\nX-Two: b\r\nX-Removed: x\r\nProxy: evil\r\nX_Odd: evil\r\n";
        let answer = proxy.connect().await.request("GET", "/env?a=b%20c", headers).await;
        assert_eq!((answer.status, answer.header("content-type")), (200, Some("text/plain")), "{protocol}");
        let env: Value = serde_json::from_str(&answer.text()).unwrap();
        let port = proxy.ports.http.port().to_string();
        for (name, value) in [
            ("REQUEST_METHOD", "GET"),
            ("PATH_INFO", "/env"),
            ("SCRIPT_NAME", ""),
            ("QUERY_STRING", "a=b%20c"),
            ("REQUEST_URI", "/env?a=b%20c"),
            ("SERVER_PROTOCOL", "HTTP/1.1"),
            ("SERVER_NAME", "test"),
            ("SERVER_PORT", port.as_str()),
            ("REMOTE_ADDR", "127.0.0.1"),
            ("HTTP_HOST", "test"),
            ("HTTP_X_ONE", "1"),
            ("HTTP_X_TWO", "a, b"),
            ("APP_HOST", "<test>"),
            ("HTTPS", "on"),
        ] {
            assert_eq!(env[name], value, "{protocol}: {name}");
        }
        for name in ["HTTP_PROXY", "HTTP_X_ODD", "HTTP_X_REMOVED"] {
            assert_eq!(env[name], Value::Null, "{protocol}: {name}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_come_through_as_the_application_made_them() {
    let Some(server) = start().await else { return };
    for (protocol, address) in sockets(&server) {
        let proxy = setup(protocol, &address).start().await;
        let mut client = proxy.connect().await;
        let missing = client.get("/missing").await;
        assert_eq!((missing.status, missing.text().as_str()), (404, "nothing here"), "{protocol}");
        let redirect = client.get("/redirect").await;
        assert_eq!((redirect.status, redirect.header("location")), (303, Some("/elsewhere")));
        let cookies = client.get("/cookies").await;
        let set: Vec<&str> =
            cookies.head.headers.iter().filter(|(name, _)| name == "Set-Cookie").map(|(_, v)| &**v).collect();
        assert_eq!(set, ["a=b; Path=/", "c=d"]);
        let head = client.request("HEAD", "/env", "").await;
        assert_eq!((head.status, head.body.len()), (200, 0));
        assert!(head.header("content-length").is_some_and(|length| length != "0"));
        let echo = client.post("POST", "/echo", &pattern::body(MIB / 2)).await;
        assert_eq!((echo.status, echo.body.len() as u64), (201, MIB / 2));
        assert!(echo.body == pattern::body(MIB / 2));
        assert_eq!(client.post("POST", "/echo", b"").await.text(), "");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_piece_arrives_when_the_application_sends_it() {
    let Some(server) = start().await else { return };
    for (protocol, address) in sockets(&server) {
        let proxy = setup(protocol, &address).start().await;
        let mut client = proxy.connect().await;
        client.send_request("GET", "/pieces", "").await;
        let head = client.head().await;
        let mut framing = client::framing(&head, "GET");
        let mut text = Vec::new();
        while text != b"first " {
            text.extend(client.body_piece(&mut framing).await.unwrap().expect("more"));
            assert!(b"first ".starts_with(&text), "{protocol}: {text:?}");
        }
        let go = server.server.dir.path().join("go");
        fs::write(&go, "").unwrap();
        while let Some(piece) = client.body_piece(&mut framing).await.unwrap() {
            text.extend(piece);
        }
        assert_eq!(text, b"first second");
        fs::remove_file(go).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_upload_arrives_whole_stored_or_streamed() {
    let Some(server) = start().await else { return };
    let body = pattern::body(20 * MIB);
    for (protocol, address) in sockets(&server) {
        for buffering in [true, false] {
            let route = json!({ "request_buffering": buffering, "client_max_body_size": 0 });
            let proxy = setup(protocol, &address).route(route).start().await;
            let echo = proxy.connect().await.post("POST", "/echo", &body).await;
            assert_eq!((echo.status, echo.body.len()), (201, body.len()), "{protocol} {buffering}");
            assert!(echo.body == body, "{protocol} {buffering}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_of_unknown_length_is_read_whole_first() {
    let Some(server) = start().await else { return };
    for (protocol, address) in sockets(&server) {
        for buffering in [true, false] {
            let proxy = setup(protocol, &address).route(json!({ "request_buffering": buffering })).start().await;
            let mut client = proxy.connect().await;
            client.send_request("POST", "/echo", "Transfer-Encoding: chunked\r\n").await;
            client.send("5\r\nhello\r\n7\r\n, again\r\n0\r\n\r\n").await;
            let echo = client.response().await;
            assert_eq!((echo.status, echo.text().as_str()), (201, "hello, again"), "{protocol} {buffering}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_reads_nothing_does_not_hold_the_application() {
    let Some(server) = start().await else { return };
    fs::write(server.server.dir.path().join("large"), pattern::body(32 * MIB)).unwrap();
    let mut readers = Vec::new();
    for (protocol, address) in sockets(&server) {
        let proxy = setup(protocol, &address).start().await;
        let before = proxy.memory();
        let mut client = proxy.connect().await;
        client.send_request("GET", "/large", "").await;
        let head = client.head().await;
        let taken = async || (proxy.temp_file_bytes() > 20 * MIB).then_some(());
        eventually("the proxy has taken the answer although the client has read nothing", taken).await;
        let grown = proxy.memory().saturating_sub(before);
        assert!(grown < 16 * 16 * KIB + 256 * KIB + 4 * MIB, "{protocol}: memory grew by {grown} bytes");
        readers.push((proxy, client, head));
    }
    for (_, client, head) in &mut readers {
        assert_eq!(client.pattern(head).await, 32 * MIB);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_that_dies_in_its_answer_breaks_the_message() {
    let Some(server) = start().await else { return };
    for (protocol, address) in sockets(&server) {
        let proxy = setup(protocol, &address).start().await;
        let answer = proxy.connect().await.get("/dies").await;
        assert_eq!(answer.status, 200, "{protocol}");
        assert!(answer.broken.is_some(), "{protocol}: {answer:?}");
    }
}

/// Read the variables of a request; `None` if the proxy leaves.
async fn variables(protocol: &str, conn: &mut Conn) -> Option<Vec<u8>> {
    if protocol == "scgi" {
        let length: usize = conn.line(b":").await?.parse().unwrap();
        let list = conn.exactly(length + 1).await?;
        assert_eq!(list.last(), Some(&b','));
        return Some(list);
    }
    let header = conn.exactly(4).await?;
    conn.exactly(u16::from_le_bytes([header[1], header[2]]).into()).await
}

/// An application that gives each request this answer, and closes.
async fn liar(protocol: &'static str, answer: &'static str) -> Origin {
    Origin::start(move |mut conn| async move {
        if variables(protocol, &mut conn).await.is_some() {
            conn.send(answer).await;
        }
    })
    .await
}

const PROTOCOLS: [&str; 2] = ["scgi", "uwsgi"];

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_header_is_a_502() {
    let answers = [
        "",
        "Status: 200",
        "Status: 2000\r\n\r\n",
        "garbage\r\n\r\n",
        "Status: 100\r\n\r\n",
        "Content-Length: -1\r\n\r\n",
        "Content-Length: 99999999999999999999999\r\n\r\n",
        "Content-Length: 1\r\nContent-Length: 2\r\n\r\nx",
    ];
    for protocol in PROTOCOLS {
        for answer in answers {
            let origin = liar(protocol, answer).await;
            let proxy = setup(protocol, origin.address()).start().await;
            assert_eq!(proxy.connect().await.get("/").await.status, 502, "{protocol}: {answer:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_length_that_is_wrong_is_kept_to() {
    for protocol in PROTOCOLS {
        let short = liar(protocol, "Content-Length: 9\r\n\r\nhello").await;
        let answer = setup(protocol, short.address()).start().await.connect().await.get("/").await;
        assert!(answer.status == 200 && answer.broken.is_some(), "{protocol}: {answer:?}");
        let long = liar(protocol, "Content-Length: 5\r\n\r\nhello, forged").await;
        let answer = setup(protocol, long.address()).start().await.connect().await.get("/").await;
        assert_eq!(answer.text(), "hello", "{protocol}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_that_closes_or_is_silent_is_passed_over() {
    for protocol in PROTOCOLS {
        let closing = liar(protocol, "").await;
        let silent = Origin::start(|mut conn| async move {
            conn.closed().await;
        })
        .await;
        let ready = liar(protocol, "Status: 200 OK\r\n\r\nready").await;
        let timeouts = json!({ "timeouts": { "read": "200ms" } });
        let servers = json!([closing.address(), silent.address(), ready.address()]);
        let proxy =
            Proxy::to_all(servers).upstream(json!({ "protocol": protocol })).route(timeouts.clone()).start().await;
        assert_eq!(proxy.connect().await.get("/").await.text(), "ready", "{protocol}");
        let [line] = &proxy.access_log(1).await[..] else { panic!("one line") };
        assert_eq!(line.field("upstream_status"), "502, 504, 200", "{protocol}");
        let alone = setup(protocol, silent.address()).route(timeouts).start().await;
        assert_eq!(alone.connect().await.get("/").await.status, 504, "{protocol}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_with_more_variables_than_a_packet_holds_is_refused() {
    let origin = liar("uwsgi", "Status: 200 OK\r\n\r\n").await;
    let settings = json!({ "uwsgi": { "params": { "BIG": "$http_x$http_x$http_x" } } });
    let proxy = setup("uwsgi", origin.address()).route(settings).start().await;
    let mut client = proxy.connect().await;
    assert_eq!(client.request("GET", "/", &format!("X: {}\r\n", "v".repeat(30_000))).await.status, 431);
    assert_eq!(client.request("GET", "/", "X: v\r\n").await.status, 200);
    assert_eq!(origin.connections(), 1, "the one that could be said");
    proxy.wait_log(&["more than a packet of uwsgi holds"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn modifiers_are_the_packets() {
    let origin = Origin::start(|mut conn| async move {
        let Some(header) = conn.exactly(4).await else { return };
        conn.send(format!("Status: 200 OK\r\n\r\n{} {}", header[0], header[3])).await;
    })
    .await;
    let settings = json!({ "uwsgi": { "modifier1": 5, "modifier2": 7 } });
    let proxy = setup("uwsgi", origin.address()).route(settings).start().await;
    assert_eq!(proxy.connect().await.get("/").await.text(), "5 7");
}
