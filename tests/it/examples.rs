//! The examples, run as their documentation says.

use crate::support::proxy::{MILLPOND, Process};
use crate::support::*;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Built beside the binary under test.
fn example(name: &str) -> PathBuf {
    let path = Path::new(MILLPOND).parent().unwrap().join("examples").join(name);
    assert!(path.exists(), "{} is not built: cargo build --examples", path.display());
    path
}

/// Start an example that is told where to listen by its arguments, on ports that are free.
async fn start(name: &str, arguments: impl Fn(&Ports) -> Vec<String>) -> (Process, Ports) {
    for _ in 0..10 {
        let ports = Ports::free();
        let mut process = Process::spawn(Command::new(example(name)).args(arguments(&ports)));
        if process.listens_at(&[ports.http]).await {
            return (process, ports);
        }
        assert!(process.log().contains("in use"), "{name} ended:\n{}", process.log());
    }
    panic!("no free ports");
}

#[tokio::test(flavor = "multi_thread")]
async fn quickstart_serves_pages_downloads_and_metrics() {
    let (process, ports) = start("quickstart", |ports| vec![ports.http.to_string(), ports.admin.to_string()]).await;
    let mut client = Client::connect(ports.http).await;
    assert_eq!(client.get("/").await.status, 200);
    let printed = async || (process.log().matches("curl ").count() >= 4).then_some(());
    eventually("four curl lines to try", printed).await;
    let metrics = Client::connect(ports.admin).await.get("/metrics").await;
    assert!(metrics.text().contains("millpond_requests_total"));
}

#[tokio::test]
async fn custom_filter_takes_a_file_like_the_stock_binary() {
    let origin = Origin::http(|_| reply(200, "hello")).await;
    let filters = json!({ "filters": [{ "block_bots": { "agents": ["badbot"] } }] });
    let proxy = Proxy::to(&origin).program(example("custom_filter")).route(filters).start().await;
    let mut client = proxy.connect().await;
    assert_eq!(client.request("GET", "/", "User-Agent: a person\r\n").await.text(), "hello");
    assert_eq!(client.request("GET", "/", "User-Agent: badbot/1.0\r\n").await.status, 403);
    assert_eq!(origin.requests().len(), 1);
}

#[tokio::test]
async fn code_only_needs_no_file() {
    let origin = Origin::http(|_| reply(200, "hello")).await;
    let address = origin.address().to_owned();
    let (_process, ports) = start("code_only", move |ports| vec![ports.http.to_string(), address.clone()]).await;
    assert_eq!(Client::connect(ports.http).await.get("/").await.text(), "hello");
}
