//! Active health checks.

use crate::support::origin::Refusing;
use crate::support::*;
use http::{Response, StatusCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// Quick checks, with these keys more.
fn check(more: Value) -> Value {
    let mut check = json!({ "interval": "50ms", "rise": 2, "fall": 2, "timeout": "10s" });
    check.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({ "health_check": check })
}

/// Wait until the health checks' verdict on this server is `health`.
async fn has_health(proxy: &Proxy, address: &str, health: &str) {
    let what = format!("{address} is {health}");
    eventually(&what, async || proxy.peer_status(address).await.filter(|status| status["health"] == health)).await;
}

async fn well() -> Origin {
    Origin::http(|_| reply(200, "well")).await
}

#[tokio::test]
async fn an_ill_server_gets_no_request_until_it_is_well_again() {
    let is_well = Arc::new(AtomicBool::new(true));
    let origin = {
        let is_well = is_well.clone();
        let answer = move |request: &origin::Request| match request.target.as_str() {
            "/healthz" if !is_well.load(Relaxed) => reply(503, "ill"),
            _ => reply(200, "one"),
        };
        Origin::http(answer).await
    };
    let other = Origin::http(|_| reply(200, "other")).await;
    let servers = json!([origin.address(), other.address()]);
    let proxy = Proxy::to_all(servers).upstream(check(json!({ "path": "/healthz" }))).start().await;
    has_health(&proxy, origin.address(), "up").await;
    let peer = [("peer", origin.address())];

    is_well.store(false, Relaxed);
    let peer_is = |state: &str| format!("upstream app: peer {} is {state}: GET /healthz: ", origin.address());
    proxy.wait_log(&["WARN", &peer_is("down"), "status 503, expected 200-399"]).await;
    assert_eq!(proxy.metric("upstream_peer_up", &peer).await, Some(0.0));
    let status = proxy.peer_status(origin.address()).await.unwrap();
    assert_eq!((&status["health"], &status["up"], &status["state"]), (&json!("down"), &json!(false), &json!("up")));
    let mut client = proxy.connect().await;
    for _ in 0..6 {
        assert_eq!(client.get("/").await.text(), "other");
    }
    let checks = async |result| {
        let labels = [("upstream", "app"), ("peer", origin.address()), ("result", result)];
        proxy.metric("upstream_health_checks_total", &labels).await.unwrap()
    };
    assert!(checks("pass").await >= 1.0 && checks("fail").await >= 2.0);

    is_well.store(true, Relaxed);
    proxy.wait_log(&["INFO", &peer_is("up"), "status 200"]).await;
    assert_eq!(proxy.metric("upstream_peer_up", &peer).await, Some(1.0));
    let bodies = [client.get("/").await.text(), client.get("/").await.text()];
    assert!(bodies.contains(&"one".to_owned()), "{bodies:?}");
    assert_eq!(proxy.log().matches("is down").count(), 1, "a change is told once");
}

#[tokio::test]
async fn with_all_servers_ill_the_answer_is_a_502() {
    let origin = Origin::http(|_| reply(500, "ill")).await;
    let proxy = Proxy::to(&origin).upstream(check(json!({}))).start().await;
    has_health(&proxy, origin.address(), "down").await;
    assert_eq!(proxy.connect().await.get("/").await.status, 502);
}

#[tokio::test]
async fn the_log_says_what_is_wrong_with_a_server() {
    let answer = |head: &str, body: &str| {
        format!("HTTP/1.1 200 OK\r\n{head}Content-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
    };
    let json_type = "Content-Type: application/json\r\n";
    let good = Origin::once(answer(json_type, r#"{"status": "ok"}"#)).await;
    let cases = [
        (answer(json_type, "no"), r#"the body has nothing that matches "\"status\": \"ok\"""#),
        (answer("", r#"{"status": "ok"}"#), "no header content-type"),
        (answer("Content-Type: text/html\r\n", ""), r#"header content-type has nothing that matches "json""#),
        (answer(json_type, "x").replace("200", "204"), "status 204, expected 200-203, 301"),
        (answer(json_type, "half").replace("h: 4", "h: 10"), "ConnectionClosed"),
        ("SSH-2.0-x\r\n\r\n".to_owned(), "InvalidHTTPHeader"),
    ];
    let mut origins = Vec::new();
    for (answer, reason) in cases {
        origins.push((Origin::once(answer).await, reason));
    }
    let refusing = Refusing::new();

    let mut servers = vec![json!(good.address()), json!(refusing.address())];
    servers.extend(origins.iter().map(|(origin, _)| json!(origin.address())));
    let matches = json!({ "status": ["200-203", 301], "headers": { "Content-Type": "json" },
        "body": r#""status": "ok""# });
    let conf = check(json!({ "match": matches }));
    let proxy = Proxy::to_all(servers.into()).upstream(conf).start().await;
    for (origin, reason) in &origins {
        proxy.wait_log(&[&format!("peer {} is down: GET /: ", origin.address()), reason]).await;
    }
    proxy.wait_log(&[&format!("peer {} is down: connecting: ", refusing.address()), "refused"]).await;
    has_health(&proxy, good.address(), "up").await;
    assert_eq!(proxy.connect().await.get("/").await.text(), r#"{"status": "ok"}"#);
}

#[tokio::test]
async fn an_answer_that_does_not_come_in_time_is_a_failure() {
    let silent = Origin::start(|mut conn| async move {
        conn.closed().await;
    })
    .await;
    let stalled = Origin::start(|mut conn| async move {
        conn.request().await;
        conn.send_head(10).await;
        conn.closed().await;
    })
    .await;
    let unreachable = origin::Unreachable::new().await;
    let servers = json!([silent.address(), stalled.address(), unreachable.address()]);
    let proxy = Proxy::to_all(servers).upstream(check(json!({ "timeout": "300ms" }))).start().await;
    for address in [silent.address(), stalled.address()] {
        proxy.wait_log(&[&format!("peer {address} is down: GET /: no whole answer within 300ms")]).await;
    }
    proxy.wait_log(&[&format!("peer {} is down: no connection within 300ms", unreachable.address())]).await;
}

#[tokio::test]
async fn a_check_is_a_request_on_a_connection_of_its_own() {
    let origin = well().await;
    let headers = json!({ "Host": "app.internal", "X-Check": "1" });
    let conf = check(json!({ "path": "/a?b=1", "method": "POST", "headers": headers }));
    let proxy = Proxy::to(&origin).upstream(conf).start().await;
    origin.wait("two checks", |seen| seen.requests.len() >= 2).await;
    let requests = origin.requests();
    let request = &requests[0];
    assert_eq!((request.method.as_str(), request.target.as_str()), ("POST", "/a?b=1"));
    assert_eq!((request.header("host"), request.header("x-check")), (Some("app.internal"), Some("1")));
    assert_eq!((request.header("connection"), request.header("content-length")), (Some("close"), Some("0")));
    let agent = format!("millpond/{} (health check)", env!("CARGO_PKG_VERSION"));
    assert_eq!(request.header("user-agent"), Some(agent.as_str()));
    assert_ne!(request.connection, requests[1].connection);

    proxy
        .reload(|config| {
            let check = &mut config["upstreams"]["app"]["health_check"];
            *check = json!({ "interval": "50ms", "method": "HEAD" });
        })
        .await;
    origin.wait("a check of the new kind", |seen| seen.requests.last().unwrap().method == "HEAD").await;
    let requests = origin.requests();
    let request = requests.last().unwrap();
    assert_eq!(request.header("host"), Some(origin.address()), "by default the server's name");
    has_health(&proxy, origin.address(), "up").await;
}

#[tokio::test]
async fn tcp_asks_for_a_connection_only() {
    let mute = Origin::start(|mut conn| async move {
        conn.closed().await;
    })
    .await;
    let refusing = Refusing::new();
    let address = refusing.address();
    let servers = json!([mute.address(), address]);
    let proxy = Proxy::to_all(servers).upstream(check(json!({ "type": "tcp" }))).start().await;
    proxy.wait_log(&[&format!("peer {address} is down: connecting: "), "refused"]).await;
    has_health(&proxy, mute.address(), "up").await;
    assert_eq!(mute.requests().len(), 0);
    let _origin = Origin::http_on(refusing.listen(), |_| reply(200, "well"));
    proxy.wait_log(&[&format!("peer {address} is up: a connection")]).await;
}

#[tokio::test]
async fn checks_verify_the_certificate_as_requests_do() {
    let (certificate, other) = (Certificate::new("app.internal"), Certificate::new("app.internal"));
    for kind in ["http", "tcp"] {
        let trusted = Origin::https(&certificate, |_| reply(200, "well")).await;
        let untrusted = Origin::https(&other, |_| reply(200, "well")).await;
        let setup = Proxy::to_all(json!([trusted.address(), untrusted.address()]));
        let (ca_file, _) = certificate.write(setup.files.dir(), "ca");
        let tls = json!({ "tls": { "server_name": "app.internal", "ca_file": ca_file } });
        let proxy = setup.upstream(tls).upstream(check(json!({ "type": kind }))).start().await;
        proxy.wait_log(&[&format!("peer {} is down: connecting: ", untrusted.address()), "certificate"]).await;
        has_health(&proxy, trusted.address(), "up").await;
        assert!(trusted.requests().iter().all(|request| request.header("host") == Some("app.internal")));
    }
}

#[tokio::test]
async fn checks_speak_http2_where_requests_do() {
    let certificate = Certificate::new("app.internal");
    for certificate in [Some(&certificate), None] {
        let origin = http2::Http2Origin::start(certificate, |request, mut respond| async move {
            let known = request.uri().authority().is_some_and(|authority| authority == "app.internal");
            let status = if known && request.uri().path() == "/healthz" { StatusCode::OK } else { StatusCode::GONE };
            let mut stream =
                respond.send_response(Response::builder().status(status).body(()).unwrap(), false).unwrap();
            http2::send_all(&mut stream, b"well", true).await;
        })
        .await;
        let setup = Proxy::to_all(json!([origin.address()])).upstream(json!({ "http_version": 2 }));
        let setup = match certificate {
            Some(certificate) => {
                let (ca_file, _) = certificate.write(setup.files.dir(), "ca");
                setup.upstream(json!({ "tls": { "server_name": "app.internal", "ca_file": ca_file } }))
            }
            None => setup,
        };
        let matches = json!({ "status": [200], "body": "^well$" });
        let conf = json!({ "path": "/healthz", "match": matches, "headers": { "Host": "app.internal" } });
        let proxy = setup.upstream(check(conf)).start().await;
        has_health(&proxy, origin.address(), "up").await;
        let more = async || (origin.connections() >= 4).then_some(());
        eventually("a connection for each check", more).await;
        assert_eq!(proxy.metric("upstream_health_checks_total", &[("result", "fail")]).await, None);
    }
}

#[tokio::test]
async fn a_slow_server_delays_no_other_and_has_one_check_at_a_time() {
    let slow = Origin::start(|mut conn| async move {
        conn.closed().await;
    })
    .await;
    let quick = well().await;
    let servers = json!([slow.address(), quick.address()]);
    let proxy = Proxy::to_all(servers).upstream(check(json!({ "timeout": "1h" }))).start().await;
    quick.wait("many checks", |seen| seen.requests.len() >= 10).await;
    assert_eq!(slow.connections(), 1);
    assert_eq!(proxy.peer_status(slow.address()).await.unwrap()["health"], "unchecked");
}

#[tokio::test]
async fn a_server_out_of_use_is_not_checked() {
    let (down, quick) = (well().await, well().await);
    let servers = json!([{ "address": down.address(), "down": true }, quick.address()]);
    let proxy = Proxy::to_all(servers).upstream(check(json!({}))).start().await;
    quick.wait("many checks", |seen| seen.requests.len() >= 10).await;
    assert_eq!(down.connections(), 0);
    assert_eq!(proxy.peer_status(down.address()).await.unwrap()["health"], "unchecked");
}

#[tokio::test]
async fn a_reload_begins_and_ends_the_checks() {
    let origin = Origin::http(|request| reply(if request.target == "/healthz" { 500 } else { 200 }, "")).await;
    let proxy = Proxy::to(&origin).start().await;
    let conf = check(json!({ "path": "/healthz" }))["health_check"].clone();
    proxy.reload(|config| config["upstreams"]["app"]["health_check"] = conf).await;
    has_health(&proxy, origin.address(), "down").await;
    // What is known of the server stays with it, though its group is made anew.
    proxy.reload(|config| config["upstreams"]["app"]["keepalive"] = json!({ "requests": 7 })).await;
    assert_eq!(proxy.connect().await.get("/").await.status, 502);

    proxy.reload(|config| drop(config["upstreams"]["app"].as_object_mut().unwrap().remove("health_check"))).await;
    has_health(&proxy, origin.address(), "unchecked").await;
    assert_eq!(proxy.metric("upstream_peer_up", &[("peer", origin.address())]).await, Some(1.0));
    let mut client = proxy.connect().await;
    assert_eq!(client.get("/").await.status, 200);
    origin.wait("all checks have ended", |seen| seen.open <= 1).await;
    let requests = origin.requests().len();
    for _ in 0..50 {
        assert_eq!(client.get("/").await.status, 200);
    }
    assert_eq!(origin.requests().len(), requests + 50, "nobody else asks");
}
