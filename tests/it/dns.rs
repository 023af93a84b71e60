//! Servers that are named: looked up when the file is loaded, and again while the proxy runs.

use crate::support::dns::{NameServer, Says, at};
use crate::support::origin::same_port;
use crate::support::*;
use std::sync::Arc;
use tokio::sync::Notify;

/// Origins at 127.0.0.1 and so on, with one port; each answers with its last number.
async fn origins(count: u8) -> (Vec<Origin>, u16) {
    let listeners = same_port(count).await;
    let port = listeners[0].local_addr().unwrap().port();
    let origins = listeners
        .into_iter()
        .zip(1..)
        .map(|(listener, number): (_, u8)| Origin::http_on(listener, move |_| reply(200, &number.to_string())));
    (origins.collect(), port)
}

/// A proxy to `app.test`, of which this name server knows.
fn named(dns: &NameServer, port: u16) -> Setup {
    Proxy::to_all(json!([format!("app.test:{port}")])).top(json!({ "resolver": { "servers": [dns.address] } }))
}

fn address(last: u8, port: u16) -> String {
    format!("127.0.0.{last}:{port}")
}

#[tokio::test]
async fn each_address_of_a_name_is_a_server() {
    let (origins, port) = origins(3).await;
    let dns = NameServer::start(at(&[3, 1, 2])).await;
    let proxy = named(&dns, port).start().await;
    let mut client = proxy.connect().await;
    for _ in 0..9 {
        assert_eq!(client.get("/").await.status, 200);
    }
    for (origin, last) in origins.iter().zip(1..) {
        assert_eq!(origin.requests().len(), 3, "{}", origin.address());
        let status = proxy.peer_status(&address(last, port)).await.unwrap();
        assert_eq!(status["name"], format!("app.test:{port}"));
    }
    let peer = format!("app.test:{port}");
    assert_eq!(proxy.metric("upstream_peer_up", &[("peer", &peer)]).await, Some(1.0), "by its name in the file");
}

#[tokio::test]
async fn a_new_answer_changes_the_servers_and_requests_in_flight_go_on() {
    let listeners = same_port(2).await;
    let port = listeners[0].local_addr().unwrap().port();
    let go_on = Arc::new(Notify::new());
    let mut listeners = listeners.into_iter();
    let slow = {
        let go_on = go_on.clone();
        Origin::on(listeners.next().unwrap(), move |mut conn| {
            let go_on = go_on.clone();
            async move {
                conn.request().await;
                conn.send_head(4).await;
                conn.send("ol").await;
                go_on.notified().await;
                conn.send("d!").await;
                conn.closed().await;
            }
        })
    };
    let _new = Origin::http_on(listeners.next().unwrap(), |_| reply(200, "new"));
    let dns = NameServer::start(at(&[1])).await;
    let proxy = named(&dns, port).start().await;
    let mut in_flight = proxy.connect().await;
    in_flight.send_request("GET", "/", "").await;
    slow.wait("the request", |seen| seen.requests.len() == 1).await;

    dns.says(at(&[2]));
    proxy.wait_log(&[&format!("upstream app: app.test:{port} is now at {}", address(2, port))]).await;
    let mut client = proxy.connect().await;
    for _ in 0..4 {
        assert_eq!(client.get("/").await.text(), "new");
    }
    assert_eq!(proxy.peer_status(&address(1, port)).await, None);
    assert_eq!(proxy.peer_status(&address(2, port)).await.unwrap()["up"], true);

    go_on.notify_one();
    assert_eq!(in_flight.response().await.text(), "old!");
    // Its connection serves no further request.
    slow.wait("the connection is closed", |seen| seen.open == 0).await;
    let logged = proxy.access_log(5).await;
    assert_eq!(logged[0].field("upstream_addr"), address(2, port), "the address, not the name");
}

#[tokio::test]
async fn an_address_that_stays_keeps_its_connection() {
    let (origins, port) = origins(2).await;
    let dns = NameServer::start(at(&[1])).await;
    let proxy = named(&dns, port).start().await;
    let mut client = proxy.connect().await;
    client.get("/").await;
    dns.says(at(&[2, 1]));
    proxy.wait_log(&["is now at", &address(1, port), &address(2, port)]).await;
    for _ in 0..4 {
        client.get("/").await;
    }
    assert_eq!((origins[0].connections(), origins[1].requests().len()), (1, 2));
}

#[tokio::test]
async fn a_failing_name_server_changes_nothing_and_is_told_of_once() {
    let (_origins, port) = origins(2).await;
    let dns = NameServer::start(at(&[1])).await;
    let proxy = named(&dns, port).top(json!({ "resolver": { "valid": "100ms" } })).start().await;
    let failed = |says, told: &'static str| {
        dns.says(says);
        let proxy = &proxy;
        async move {
            proxy.wait_log(&["upstream app: looking up app.test: ", told, "stay as they are"]).await;
            assert_eq!(proxy.connect().await.get("/").await.text(), "1");
        }
    };
    failed(Says::ServFail, "SERVFAIL").await;
    // A lookup that fails asks three times: two lookups more have failed.
    dns.asked_again(8).await;
    failed(Says::NxDomain, "NXDOMAIN").await;
    failed(at(&[]), "it has no address").await;
    for reason in ["SERVFAIL", "NXDOMAIN", "no address"] {
        assert_eq!(proxy.log().matches(reason).count(), 1, "{reason}");
    }
    dns.says(at(&[2]));
    proxy.wait_log(&["app.test can be looked up again"]).await;
    assert_eq!(proxy.connect().await.get("/").await.text(), "2");
}

#[tokio::test]
async fn valid_goes_before_the_answers_own_time() {
    let (_origins, port) = origins(2).await;
    let a_day = |last| Says::Addresses(vec![[127, 0, 0, last].into()], 86400);
    let dns = NameServer::start(a_day(1)).await;
    let proxy = named(&dns, port).top(json!({ "resolver": { "valid": "100ms" } })).start().await;
    assert_eq!(proxy.connect().await.get("/").await.text(), "1");
    dns.says(a_day(2));
    proxy.wait_log(&["is now at", &address(2, port)]).await;
    assert_eq!(proxy.connect().await.get("/").await.text(), "2");
}

#[tokio::test]
async fn a_reload_looks_up_anew() {
    let (_origins, port) = origins(2).await;
    let a_day = |last| Says::Addresses(vec![[127, 0, 0, last].into()], 86400);
    let dns = NameServer::start(a_day(1)).await;
    let proxy = named(&dns, port).start().await;
    // When the file was loaded, and when the proxy started.
    dns.wait("two lookups", |count| count >= 2).await;
    dns.says(a_day(2));
    proxy.reload(|_| {}).await;
    assert_eq!(proxy.connect().await.get("/").await.text(), "2");
    let other = NameServer::start(a_day(1)).await;
    proxy.reload(|config| config["resolver"]["servers"] = json!([other.address])).await;
    assert_eq!(proxy.connect().await.get("/").await.text(), "1");
}

#[tokio::test]
async fn a_new_address_is_checked_at_once() {
    let (origins, port) = origins(2).await;
    let dns = NameServer::start(at(&[1])).await;
    let check = json!({ "interval": "1h", "jitter": "10ms" });
    let proxy = named(&dns, port).upstream(json!({ "health_check": check })).start().await;
    origins[0].wait("the first check", |seen| seen.requests.len() == 1).await;
    dns.says(at(&[1, 2]));
    origins[1].wait("a check", |seen| seen.requests.len() == 1).await;
    let healthy = async || proxy.peer_status(&address(2, port)).await.filter(|status| status["health"] == "up");
    eventually("a verdict", healthy).await;
    assert_eq!(origins[0].requests().len(), 1, "it stays, and is not asked again");
}

/// Run `-t` on a file with a server of this name.
async fn test(dns: &NameServer, timeout: &str, servers: Value) -> String {
    let resolver = json!({ "servers": [dns.address], "timeout": timeout });
    let setup = Proxy::to_all(servers).top(json!({ "resolver": resolver }));
    let file = setup.files.dir().join("test.yaml");
    std::fs::write(&file, setup.resolved(&Ports::free()).to_string()).unwrap();
    let run = move || Proxy::run(&["-t", "-c", file.to_str().unwrap()]);
    let output = tokio::task::spawn_blocking(run).await.unwrap();
    String::from_utf8(output.stderr).unwrap()
}

#[tokio::test]
async fn a_name_that_cannot_be_looked_up_is_an_error_of_the_file() {
    let reasons = [
        (Says::NxDomain, "10s", "there is no such name, NXDOMAIN"),
        (Says::ServFail, "10s", "the name server failed, SERVFAIL"),
        (at(&[]), "10s", "it has no address"),
        (Says::Silence, "300ms", "no name server answered within 300ms"),
    ];
    for (says, timeout, reason) in reasons {
        let dns = NameServer::start(says).await;
        let told = test(&dns, timeout, json!(["127.0.0.1:80", "app.test:80"])).await;
        let expected = format!(
            r#"upstreams.app.servers[1]: found "app.test:80", expected a name that can be looked up ({reason})"#
        );
        assert!(told.contains(&expected), "{told}");
    }
    let dns = NameServer::start(at(&[1])).await;
    assert_eq!(test(&dns, "10s", json!(["app.test:80"])).await, "");
}

#[tokio::test]
async fn what_is_wanted_of_a_name_is_wanted_of_its_later_addresses() {
    let (origins, port) = origins(4).await;
    let dns = NameServer::start(at(&[1, 2])).await;
    let proxy = named(&dns, port).start().await;
    let set = async |peer: &str, state: &str| {
        let (path, body) = (format!("/upstreams/app/peers/{peer}"), json!({ "state": state }).to_string());
        let mut admin = Client::connect(proxy.ports.admin).await;
        assert_eq!(admin.post("POST", &path, body.as_bytes()).await.status, 200);
    };
    let state = async |last| proxy.peer_status(&address(last, port)).await.unwrap()["state"].clone();
    set(&format!("app.test:{port}"), "drain").await;
    dns.says(at(&[2, 3]));
    proxy.wait_log(&["is now at", &address(2, port), &address(3, port)]).await;
    assert_eq!(state(3).await, "drain");
    assert_eq!(proxy.connect().await.get("/").await.status, 502);
    assert_eq!(origins[2].connections(), 0);

    // Of one address it is wanted of that one alone.
    set(&format!("app.test:{port}"), "up").await;
    set(&address(2, port), "down").await;
    set(&address(3, port), "down").await;
    dns.says(at(&[3, 4]));
    proxy.wait_log(&["is now at", &address(3, port), &address(4, port)]).await;
    assert_eq!((state(3).await, state(4).await), (json!("down"), json!("up")));
    assert_eq!(proxy.connect().await.get("/").await.text(), "4");
}

#[tokio::test]
async fn signals_during_a_long_reload_are_one() {
    let (_origins, port) = origins(1).await;
    let dns = NameServer::start(at(&[1])).await;
    let resolver = json!({ "resolver": { "timeout": "1s", "valid": "1h" } });
    let proxy = named(&dns, port).top(resolver).start().await;
    let reloads = async |result| proxy.metric("config_reloads_total", &[("result", result)]).await.unwrap_or_default();
    dns.says(Says::Silence);
    (0..20).for_each(|_| proxy.signal("HUP"));
    eventually("two reloads have failed", async || (reloads("failure").await >= 2.0).then_some(())).await;
    dns.says(at(&[1]));
    let answer = Client::connect(proxy.ports.admin).await.post("POST", "/reload", b"").await;
    assert_eq!(answer.status, 200);
    // One of the signals may have come between the first two reloads.
    let count = reloads("failure").await + reloads("success").await;
    assert!(count <= 4.0, "{count} reloads of 20 signals and a POST");
}
