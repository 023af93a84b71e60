//! The admin listener's pages that change something.

use crate::support::io::Io;
use crate::support::proxy::{MILLPOND, Process};
use crate::support::*;
use std::fs;
use std::process::Command;
use tokio::net::UnixStream;

async fn hello() -> Origin {
    Origin::http(|_| reply(200, "hello")).await
}

async fn admin(proxy: &Proxy) -> Client {
    Client::connect(proxy.ports.admin).await
}

/// What the status page says of the first peer.
async fn first_peer(proxy: &Proxy) -> Value {
    let status = admin(proxy).await.get("/status.json").await.text();
    serde_json::from_str::<Value>(&status).unwrap()["upstreams"]["app"]["peers"][0].clone()
}

#[tokio::test]
async fn a_page_has_its_methods_and_says_which() {
    let origin = hello().await;
    let proxy = Proxy::to(&origin).start().await;
    for (method, path, allow) in [
        ("POST", "/metrics", "GET, HEAD"),
        ("DELETE", "/status.json", "GET, HEAD"),
        ("GET", "/reload", "POST"),
        ("PUT", "/reload", "POST"),
        ("GET", "/upstreams/app", "POST"),
        ("GET", "/upstreams/app/peers/127.0.0.1:1", "POST"),
    ] {
        let response = admin(&proxy).await.request(method, path, "").await;
        assert_eq!((response.status, response.header("allow")), (405, Some(allow)), "{method} {path}");
    }
    let head = admin(&proxy).await.request("HEAD", "/healthz", "").await;
    assert_eq!((head.status, head.body.len()), (200, 0));
    let unknown = admin(&proxy).await.post("POST", "/upstreams/", b"").await;
    assert_eq!(unknown.status, 404);
    assert!(unknown.text().contains("/upstreams/NAME/peers/ADDRESS"));
}

#[tokio::test]
async fn a_page_in_a_browser_changes_nothing() {
    let origin = hello().await;
    let proxy = Proxy::to(&origin).top(json!({ "admin": { "allow_changes": true } })).start().await;
    let body = r#"{"state": "down"}"#;
    for path in ["/reload", "/upstreams/app"] {
        let mut client = admin(&proxy).await;
        let headers = format!("Origin: http://evil.test\r\nContent-Length: {}\r\n", body.len());
        client.send_request("POST", path, &headers).await;
        client.send(body).await;
        let response = client.response().await;
        assert_eq!(response.status, 403, "{path}");
        assert!(response.text().contains("browser"));
    }
    assert_eq!(proxy.metric("config_reloads_total", &[]).await, None);
    assert_eq!(first_peer(&proxy).await["state"], "up");
}

#[tokio::test]
async fn a_body_that_is_too_long_is_refused() {
    let origin = hello().await;
    let proxy = Proxy::to(&origin).start().await;
    let response = admin(&proxy).await.post("POST", "/reload", &[b' '; 64 * 1024 + 1]).await;
    assert_eq!(response.status, 413);
    let mut chunked = admin(&proxy).await;
    chunked.send_request("POST", "/upstreams/app", "Transfer-Encoding: chunked\r\n").await;
    for _ in 0..9 {
        chunked.send(format!("2000\r\n{}\r\n", " ".repeat(0x2000))).await;
    }
    assert_eq!(chunked.response().await.status, 413);
    let fits = admin(&proxy).await.post("POST", "/reload", &[b' '; 64 * 1024]).await;
    assert_eq!(fits.status, 200);
}

#[tokio::test]
async fn a_unix_socket_is_for_those_who_may_open_it() {
    let origin = hello().await;
    let setup = Proxy::to(&origin);
    let socket = setup.files.dir().join("admin.sock");
    let setup = setup.top(json!({ "admin": { "listen": format!("unix:{}", socket.display()) } }));
    let (ports, file) = (Ports::free(), setup.files.dir().join("proxy.yaml"));
    fs::write(&file, setup.resolved(&ports).to_string()).unwrap();
    let mut process = Process::spawn(Command::new(MILLPOND).arg("-c").arg(&file));
    assert!(process.listens_at(&[ports.http]).await, "{}", process.log());
    let connected = async || UnixStream::connect(&socket).await.ok();
    let stream = eventually("the admin socket", connected).await;
    assert_eq!(Client::on(Io::Unix(stream)).post("POST", "/reload", b"").await.text(), "{\"result\":\"success\"}\n");
}

#[tokio::test]
async fn a_drained_peer_ends_what_it_has_and_gets_nothing_more() {
    let slow = Origin::start(|mut conn| async move {
        while conn.request().await.is_some() {
            conn.send_head(4).await;
            conn.send("slow").await;
        }
    })
    .await;
    let other = hello().await;
    let proxy = Proxy::to_all(json!([slow.address(), other.address()])).start().await;
    let mut client = proxy.connect().await;
    for _ in 0..4 {
        client.get("/").await;
    }
    slow.wait("an idle connection", |seen| seen.open == 1 && seen.requests.len() == 2).await;

    let path = format!("/upstreams/app/peers/{}", slow.address());
    let answer = admin(&proxy).await.post("POST", &path, br#"{"state": "drain"}"#).await;
    let status: Value = serde_json::from_str(&answer.text()).unwrap();
    assert_eq!((&status["peers"][0]["state"], &status["peers"][0]["up"]), (&json!("drain"), &json!(false)));
    assert_eq!(status["peers"][1]["state"], "up");
    slow.wait("its idle connection closed", |seen| seen.open == 0).await;
    for _ in 0..4 {
        assert_eq!(client.get("/").await.text(), "hello");
    }
    assert_eq!(slow.requests().len(), 2);
    assert_eq!(proxy.metric("upstream_peer_up", &[("peer", slow.address())]).await, Some(0.0));
    proxy.wait_log(&["upstream app", slow.address(), "Drain"]).await;

    let encoded = path.replace(':', "%3A");
    assert_eq!(admin(&proxy).await.post("POST", &encoded, br#"{"state":"up"}"#).await.status, 200);
    for _ in 0..2 {
        client.get("/").await;
    }
    assert_eq!(slow.requests().len(), 3);
}

#[tokio::test]
async fn a_whole_upstream_can_be_taken_out_of_use_and_a_reload_leaves_it_so() {
    let origin = hello().await;
    let proxy = Proxy::to(&origin).start().await;
    let state = async |state: &str| {
        let body = json!({ "state": state }).to_string();
        admin(&proxy).await.post("POST", "/upstreams/app", body.as_bytes()).await.status
    };
    assert_eq!(state("down").await, 200);
    assert_eq!(proxy.connect().await.get("/").await.status, 502);
    assert_eq!(admin(&proxy).await.post("POST", "/reload", b"").await.status, 200);
    assert_eq!(first_peer(&proxy).await["state"], "down");
    assert_eq!(state("up").await, 200);
    assert_eq!(proxy.connect().await.get("/").await.text(), "hello");
}

#[tokio::test]
async fn what_is_not_there_or_not_understood_is_said() {
    let origin = hello().await;
    let proxy = Proxy::to(&origin).start().await;
    let post = async |path: &str, body: &str| {
        let response = admin(&proxy).await.post("POST", path, body.as_bytes()).await;
        (response.status, response.text())
    };
    let up = r#"{"state": "up"}"#;
    let (status, text) = post("/upstreams/nope", up).await;
    assert!(status == 404 && text.contains("nope") && text.contains("app"), "{status} {text}");
    let (status, text) = post("/upstreams/app/peers/127.0.0.1:1", up).await;
    assert!(status == 404 && text.contains("127.0.0.1:1") && text.contains(origin.address()), "{status} {text}");
    for body in ["", "drain", "{}", r#"{"state": "sideways"}"#, r#"{"state": "up", "x": 1}"#] {
        let (status, text) = post("/upstreams/app", body).await;
        assert!(status == 400 && text.contains(r#"{"state": "drain"}"#), "{body}: {status} {text}");
    }
}

#[tokio::test]
async fn an_upstream_that_no_route_uses_is_on_the_status_page() {
    let origin = hello().await;
    let unused = json!({ "upstreams": { "unused": { "servers": ["127.0.0.1:9"] } } });
    let proxy = Proxy::to(&origin).top(unused).start().await;
    let status: Value = serde_json::from_str(&admin(&proxy).await.get("/status.json").await.text()).unwrap();
    assert_eq!(status["upstreams"]["unused"]["peers"][0]["address"], "127.0.0.1:9");
}
