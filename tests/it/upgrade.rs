//! Another process takes the listeners over: `millpond -u -c FILE`, then `kill -QUIT OLDPID`.

use crate::support::http2::{Http2, finish};
use crate::support::io::Io;
use crate::support::proxy::{MILLPOND, Process};
use crate::support::*;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use tokio::net::UnixStream;

/// `/large` is 4 MiB, all else is short.
async fn origin() -> Origin {
    Origin::start(|mut conn| async move {
        while let Some(request) = conn.request().await {
            if request.target == "/large" {
                conn.send_head(4 * MIB).await;
                conn.send_pattern(4 * MIB).await;
            } else {
                conn.send(reply(200, "ok")).await;
            }
        }
    })
    .await
}

/// The socket over which the listeners go, and a short grace period.
fn upgradable(setup: Setup) -> Setup {
    let server = json!({
        "upgrade_sock": setup.files.dir().join("upgrade.sock"),
        "grace_period_seconds": 5,
        "graceful_shutdown_timeout_seconds": 1,
    });
    setup.top(json!({ "server": server }))
}

/// The documented pair's first half; the new process waits for the listeners when this returns.
async fn start_new(proxy: &Proxy) -> Process {
    let file = proxy.files.dir().join("proxy.yaml");
    let mut new = Process::spawn(Command::new(MILLPOND).arg("-u").arg("-c").arg(&file));
    let socket = proxy.files.dir().join("upgrade.sock");
    let waits = async || (socket.exists() || new.child.try_wait().unwrap().is_some()).then_some(());
    eventually("the new process waits for the listeners", waits).await;
    new
}

/// One request after the other on a connection that is kept as long as the proxy keeps it. Panics at the first that fails.
async fn keep_alive(proxy: Arc<Proxy>, stop: Arc<AtomicBool>, closed: Arc<AtomicUsize>) -> usize {
    let (mut client, mut done) = (proxy.connect().await, 0);
    while !stop.load(Relaxed) {
        let response = client.get("/").await;
        assert_eq!((response.status, response.broken.as_deref()), (200, None));
        done += 1;
        if response.header("connection") == Some("close") {
            closed.fetch_add(1, Relaxed);
            client = proxy.connect().await;
        }
    }
    done
}

/// One connection for each request.
async fn connections(proxy: Arc<Proxy>, stop: Arc<AtomicBool>) -> usize {
    let mut done = 0;
    while !stop.load(Relaxed) {
        let response = proxy.connect().await.request("GET", "/", "Connection: close\r\n").await;
        assert_eq!((response.status, response.broken.as_deref()), (200, None));
        done += 1;
    }
    done
}

/// A download that takes about so many seconds; how much came.
async fn download(proxy: &Proxy, seconds: u64) -> tokio::task::JoinHandle<u64> {
    let mut client = proxy.connect().await;
    client.send_request("GET", "/large", "").await;
    let head = client.head().await;
    tokio::spawn(async move { client.pattern_at(&head, 4 * MIB / seconds).await })
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_under_load_fails_no_request() {
    let origin = origin().await;
    let setup = upgradable(Proxy::to(&origin).tls(&[&Certificate::new("test")]));
    let proxy = Arc::new(setup.start().await);
    let (stop, closed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut clients: Vec<_> =
        (0..3).map(|_| tokio::spawn(keep_alive(proxy.clone(), stop.clone(), closed.clone()))).collect();
    clients.extend((0..2).map(|_| tokio::spawn(connections(proxy.clone(), stop.clone()))));
    let downloads = [download(&proxy, 3).await, download(&proxy, 4).await];
    let mut silent = proxy.connect().await;
    assert_eq!(silent.get("/").await.status, 200);
    let mut unused = proxy.connect().await;
    let mut http2 = Http2::connect_tls(proxy.ports.tls, "test").await;
    let stream = http2.get_head("/large").await;

    let mut new = start_new(&proxy).await;
    proxy.signal("QUIT");
    proxy.wait_log(&["upgrade", "the new process serves"]).await;
    assert!(new.listens_at(&[proxy.ports.http, proxy.ports.tls, proxy.ports.admin]).await, "{}", new.log());
    for client in [&mut silent, &mut unused] {
        let last = client.get("/").await;
        assert_eq!((last.status, last.header("connection")), (200, Some("close")), "it is served, and told to go");
        assert!(client.closed().await);
    }
    assert_eq!(finish(stream).await.body.len() as u64, 4 * MIB);
    // Nobody has waited for it yet: what is left of it is a zombie.
    let stat = format!("/proc/{}/stat", proxy.pid());
    let ended = async || std::fs::read_to_string(&stat).unwrap().contains(") Z ").then_some(());
    eventually("the old process ends", ended).await;
    stop.store(true, Relaxed);
    for client in clients {
        assert!(client.await.expect("no request fails") > 10);
    }
    for download in downloads {
        assert_eq!(download.await.expect("no download fails"), 4 * MIB);
    }
    assert!(closed.load(Relaxed) >= 3, "each connection of the old process was ended by an answer that said so");
    assert!(proxy.metric("requests_total", &[("status", "200")]).await.unwrap() > 10.0, "the new process has served");
    assert!(new.child.try_wait().unwrap().is_none());
    assert!(!proxy.files.dir().join("upgrade.sock").exists());
}

#[tokio::test]
async fn unix_sockets_and_the_next_upgrade_too() {
    let origin = origin().await;
    let setup = upgradable(Proxy::to(&origin));
    let socket = setup.files.dir().join("web.sock");
    let service = json!({ "name": "socket", "listen": [format!("unix:{}", socket.display())], "routes": [{ "upstream": "app" }] });
    let mut proxy = setup.start().await;
    // A second service is a change of the listeners, for which an upgrade is the way.
    let file = proxy.files.dir().join("proxy.yaml");
    let mut conf: Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    conf["services"].as_array_mut().unwrap().push(service);
    std::fs::write(&file, conf.to_string()).unwrap();

    let first = start_new(&proxy).await;
    proxy.signal("QUIT");
    let status = eventually("the old process ends", async || proxy.ended()).await;
    assert!(status.success(), "{status}");
    assert_eq!(over(&socket).await.get("/").await.text(), "ok");

    let second = start_new(&proxy).await;
    quit(&first);
    eventually("the second handover", async || first.log().contains("the new process serves").then_some(())).await;
    let mut first = first;
    let ended = async || first.child.try_wait().unwrap();
    assert!(eventually("the second process ends", ended).await.success());
    assert_eq!(over(&socket).await.get("/").await.text(), "ok");
    assert_eq!(proxy.connect().await.get("/").await.text(), "ok");
    drop(second);
}

async fn over(socket: &Path) -> Client {
    Client::on(Io::Unix(UnixStream::connect(socket).await.unwrap()))
}

fn quit(process: &Process) {
    let status = Command::new("kill").arg("-QUIT").arg(process.child.id().to_string()).status().unwrap();
    assert!(status.success());
}

#[tokio::test]
async fn an_old_process_that_nobody_replaces_goes_on() {
    let origin = origin().await;
    let proxy = upgradable(Proxy::to(&origin)).start().await;
    proxy.signal("QUIT");
    proxy.wait_log(&["nobody takes the listeners", "upgrade.sock", "goes on serving"]).await;
    assert_eq!(proxy.connect().await.get("/").await.text(), "ok");
    let _new = start_new(&proxy).await;
    proxy.signal("QUIT");
    proxy.wait_log(&["upgrade", "the new process serves"]).await;
    assert_eq!(proxy.connect().await.get("/").await.text(), "ok");
}

#[tokio::test]
async fn an_old_process_goes_on_when_the_new_one_ends_instead_of_serving() {
    let origin = origin().await;
    let proxy = upgradable(Proxy::to(&origin)).start().await;
    let taken = Origin::http(|_| reply(200, "taken")).await;
    let file = proxy.files.dir().join("proxy.yaml");
    let mut conf: Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    conf["services"][0]["listen"].as_array_mut().unwrap().push(json!(taken.address()));
    std::fs::write(&file, conf.to_string()).unwrap();
    let mut new = start_new(&proxy).await;
    proxy.signal("QUIT");
    eventually("the new process cannot listen", async || new.log().contains("in use").then_some(())).await;
    new.child.kill().unwrap();
    proxy.wait_log(&["the new process has ended instead of serving", "goes on serving"]).await;
    assert_eq!(proxy.connect().await.get("/").await.text(), "ok");
    assert_eq!(proxy.connect().await.get("/").await.text(), "ok");
}

#[tokio::test]
async fn sigint_ends_a_graceful_end() {
    let origin = origin().await;
    let server = json!({ "server": { "grace_period_seconds": 3600 } });
    let mut proxy = Proxy::to(&origin).top(server).start().await;
    let mut download = proxy.connect().await;
    download.send_request("GET", "/large", "").await;
    download.head().await;
    proxy.signal("TERM");
    let told = async || Io::connect(proxy.ports.http).await.is_err().then_some(());
    eventually("it does not listen any more", told).await;
    proxy.signal("INT");
    eventually("it ends", async || proxy.ended()).await;
}
