//! The examples, run as their documentation says.

use crate::support::proxy::{MILLPOND, Process};
use crate::support::*;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Built beside the binary under test.
pub fn example(name: &str) -> PathBuf {
    let path = Path::new(MILLPOND).parent().unwrap().join("examples").join(name);
    assert!(path.exists(), "{} is not built: cargo build --examples", path.display());
    path
}

/// Start an example on ports that are free.
async fn start(name: &str, prepare: impl Fn(&Ports, &mut Command)) -> (Process, Ports) {
    for _ in 0..10 {
        let ports = Ports::free();
        let mut command = Command::new(example(name));
        prepare(&ports, &mut command);
        let mut process = Process::spawn(&mut command);
        if process.listens_at(&[ports.http]).await {
            return (process, ports);
        }
        assert!(process.log().contains("in use"), "{name} ended:\n{}", process.log());
    }
    panic!("no free ports");
}

#[tokio::test(flavor = "multi_thread")]
async fn quickstart_serves_a_page_a_download_and_metrics() {
    let (process, ports) = start("quickstart", |ports, command| {
        let addresses = [("LISTEN", ports.http), ("ADMIN", ports.admin), ("ORIGIN", ports.tls)];
        command.envs(addresses.map(|(name, address)| (name, address.to_string())));
    })
    .await;
    assert_eq!(process.log().lines().filter(|line| line.contains("curl ") && line.contains("http://")).count(), 4);

    let mut client = Client::connect(ports.http).await;
    let page = client.get("/").await;
    assert!(page.header("x-request-id").is_some());
    assert!(page.text().contains("href=\"/download\""), "sub has made the address a relative one");

    let mut slow = Client::connect(ports.http).await;
    slow.send_request("GET", "/download", "").await;
    let head = slow.head().await;
    assert_eq!(head.header("content-length"), Some((100 * MIB).to_string().as_str()));
    let mut admin = Client::connect(ports.admin).await;
    eventually("the metrics show the upstream freed, although the client reads nothing", async || {
        let metrics = admin.get("/metrics").await.text();
        let active = metrics.lines().find(|line| line.contains("connections{") && line.contains("active")).unwrap();
        active.ends_with(" 0").then_some(())
    })
    .await;
}

#[tokio::test]
async fn custom_filter_takes_a_file_like_the_stock_binary() {
    let origin = Origin::http(|_| reply(200, "hello")).await;
    let filters = json!({ "filters": [{ "visits": { "header": "X-Visit", "prefix": "/pages/" } }] });
    let proxy = Proxy::to(&origin).program(example("custom_filter")).route(filters).start().await;
    let mut client = proxy.connect().await;
    for (path, visit) in [("/pages/a", Some("1")), ("/other", None), ("/pages/b", Some("2"))] {
        let response = client.get(path).await;
        assert_eq!((response.status, response.header("x-visit")), (200, visit), "{path}");
    }
}

#[test]
fn custom_filter_is_short_and_its_file_is_good() {
    let source = std::fs::read_to_string("examples/custom_filter.rs").unwrap();
    assert!(source.lines().count() <= 60);
    let output = Command::new(example("custom_filter")).args(["-t", "-c", "examples/custom_filter.yaml"]).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
async fn canary_serves_its_share_and_costs_nobody_anything() {
    let (stable, next) = (Origin::http(|_| reply(200, "stable")).await, Origin::http(|_| reply(200, "next")).await);
    let second = Origin::http(|_| reply(200, "stable")).await;
    let canary = |address: &str, percent: u64| {
        let filters = json!([{ "canary": { "address": address, "percent": percent } }]);
        // As many tries as the group has servers, the canary's among them.
        let servers = json!([stable.address(), second.address()]);
        Proxy::to_all(servers).program(example("canary")).route(json!({ "filters": filters }))
    };
    for (percent, share) in [(0, "stable"), (100, "next")] {
        let proxy = canary(next.address(), percent).start().await;
        let mut client = proxy.connect().await;
        assert_eq!(client.get("/").await.text(), share);
        assert_eq!(client.request("GET", "/", "X-Canary: always\r\n").await.header("x-served-by"), Some("canary"));
        assert_eq!(client.request("GET", "/", "X-Canary: never\r\n").await.header("x-served-by"), Some("stable"));
    }
    let dead = crate::support::origin::Refusing::new();
    let proxy = canary(&dead.address(), 100).start().await;
    let response = proxy.connect().await.get("/").await;
    assert_eq!((response.text().as_str(), response.header("x-served-by")), ("stable", Some("stable")));
    let output = Command::new(example("canary")).args(["-t", "-c", "examples/canary.yaml"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// A finger server: it knows everybody by what it was asked.
async fn finger() -> Origin {
    Origin::start(async |mut conn| {
        if let Some(question) = conn.line(b"\r\n").await {
            conn.send(format!("Login: {question}")).await;
        }
    })
    .await
}

#[tokio::test]
async fn custom_protocol_speaks_to_its_upstream_as_to_any_other() {
    let origin = finger().await;
    let proxy = Proxy::to(&origin)
        .program(example("custom_protocol"))
        .upstream(json!({ "protocol": "finger" }))
        .route(json!({ "match": { "path_regex": "^/~([^/]+)$" }, "protocol": { "finger": { "user": "$1" } } }))
        .start()
        .await;
    let mut client = proxy.connect().await;
    let answer = client.get("/~ada").await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "Login: ada"));
    assert_eq!(answer.header("content-type"), Some("text/plain; charset=utf-8"));
    for path in ["/~a%0d%0ab", "/~a@b"] {
        assert_eq!(client.get(path).await.status, 400, "{path}");
    }
    client.send_request("POST", "/~ada", "").await;
    let refused = client.response().await;
    assert_eq!((refused.status, refused.header("allow")), (405, Some("GET, HEAD")));
    assert_eq!(origin.connections(), 1, "what cannot be asked troubles no server");
}

#[test]
fn custom_protocol_is_short_and_its_file_is_good() {
    let source = std::fs::read_to_string("examples/custom_protocol.rs").unwrap();
    assert!(source.lines().count() <= 80);
    let output = Command::new(example("custom_protocol")).args(["-t", "-c", "examples/custom_protocol.yaml"]).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
async fn code_only_needs_no_file() {
    let origin = Origin::http(|_| reply(200, "hello")).await;
    let (_process, ports) = start("code_only", |ports, command| {
        command.arg(ports.http.to_string()).arg(origin.address());
    })
    .await;
    assert_eq!(Client::connect(ports.http).await.get("/").await.text(), "hello");
}
