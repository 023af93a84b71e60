//! Reading the configuration again: what is taken over, what is refused, and that nobody notices.

use crate::support::client::Response;
use crate::support::http2::Http2;
use crate::support::*;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

/// Change the proxy's file.
fn rewrite(proxy: &Proxy, change: impl FnOnce(&mut Value)) {
    let file = proxy.files.dir().join("proxy.yaml");
    let mut conf = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    change(&mut conf);
    fs::write(&file, conf.to_string()).unwrap();
}

async fn reload(proxy: &Proxy) -> Response {
    Client::connect(proxy.ports.admin).await.post("POST", "/reload", b"").await
}

/// It was taken over as a whole.
async fn reloaded(proxy: &Proxy) {
    let response = reload(proxy).await;
    assert_eq!((response.status, response.text().as_str()), (200, "{\"result\":\"success\"}\n"));
}

/// It was refused, for this reason.
async fn refused(proxy: &Proxy) -> String {
    let response = reload(proxy).await;
    assert_eq!(response.status, 422, "{response:?}");
    response.text()
}

/// Answers with the request's `X-Config`.
async fn echo() -> Origin {
    Origin::http(|request| reply(200, request.header("x-config").unwrap_or("none"))).await
}

fn set_config(conf: &mut Value, value: &str) {
    conf["services"][0]["routes"][0]["set_headers"] = json!({ "X-Config": value });
}

#[tokio::test]
async fn a_good_file_is_used_from_the_next_request_on_and_a_broken_one_is_explained() {
    let origin = echo().await;
    let proxy = Proxy::to(&origin).start().await;
    let mut client = proxy.connect().await;
    assert_eq!(client.get("/").await.text(), "none");
    rewrite(&proxy, |conf| set_config(conf, "second"));
    reloaded(&proxy).await;
    assert_eq!(client.get("/").await.text(), "second");
    rewrite(&proxy, |conf| {
        set_config(conf, "third");
        conf["buffer_memory_max"] = json!("much");
        conf["services"][0]["routes"][0]["upstream"] = json!("nope");
    });
    let text = refused(&proxy).await;
    for word in ["proxy.yaml", "buffer_memory_max", "\"much\"", "services[0].routes[0].upstream", "\"nope\""] {
        assert!(text.contains(word), "no {word} in {text}");
    }
    assert_eq!(client.get("/").await.text(), "second");
    assert_eq!(proxy.metric("config_reloads_total", &[("result", "success")]).await, Some(1.0));
    assert_eq!(proxy.metric("config_reloads_total", &[("result", "failure")]).await, Some(1.0));
}

/// Filters are made when upstreams are, after the rest of the file was found to be good.
#[tokio::test]
async fn a_refused_file_shows_no_peers_of_its_own() {
    let origin = echo().await;
    let proxy = Proxy::to(&origin).start().await;
    let new = Ports::free().http.to_string();
    rewrite(&proxy, |conf| {
        conf["upstreams"]["new"] = json!({ "servers": [new] });
        conf["services"][0]["routes"][0]["filters"] = json!([{ "no_such_filter": {} }]);
    });
    assert!(refused(&proxy).await.contains("no_such_filter"));
    assert_eq!(proxy.metric("upstream_peer_up", &[("upstream", "new")]).await, None);
    rewrite(&proxy, |conf| conf["services"][0]["routes"][0]["filters"] = json!([]));
    reloaded(&proxy).await;
    assert_eq!(proxy.metric("upstream_peer_up", &[("upstream", "new"), ("peer", &new)]).await, Some(1.0));
}

#[tokio::test]
async fn a_changed_listener_is_refused_with_the_way_to_change_it() {
    let origin = echo().await;
    let proxy = Proxy::to(&origin).tls(&[&Certificate::new("test")]).start().await;
    let good = fs::read_to_string(proxy.files.dir().join("proxy.yaml")).unwrap();
    let (http, tls) = (proxy.ports.http, proxy.ports.tls);
    let is = |address: std::net::SocketAddr, what: &str| format!("service web: the listener {address} {what}");
    type Case<'a> = (fn(&mut Value), &'a [String]);
    let cases: [Case<'_>; 6] = [
        (|conf| conf["services"][0]["name"] = json!("site"), &["web is gone".into(), "site is new".into()]),
        (
            |conf| conf["services"][0]["listen"][0] = json!("127.0.0.1:1"),
            &[is(http, "is gone"), "127.0.0.1:1 is new".into()],
        ),
        (|conf| conf["services"][0]["listen"][1]["tls"] = json!([]), &[is(tls, "has no TLS any more")]),
        (|conf| conf["services"][0]["listen"][1]["h2"] = json!(false), &[is(tls, "has no HTTP/2 any more")]),
        (
            |conf| {
                let address = conf["services"][0]["listen"][0].clone();
                let tls = conf["services"][0]["listen"][1]["tls"].clone();
                conf["services"][0]["listen"][0] = json!({ "address": address, "tls": tls, "h2": false });
            },
            &[is(http, "has TLS now")],
        ),
        (
            |conf| {
                let address = conf["services"][0]["listen"][0].clone();
                conf["services"][0]["listen"][0] = json!({ "address": address, "h2": true });
            },
            &[is(http, "has HTTP/2 now")],
        ),
    ];
    for (change, reports) in cases {
        rewrite(&proxy, change);
        let text = refused(&proxy).await;
        let how = [
            format!("-u -c {}", proxy.files.dir().join("proxy.yaml").display()),
            format!("kill -QUIT {}", proxy.pid()),
        ];
        for word in reports.iter().chain(&how) {
            assert!(text.contains(word), "no {word:?} in {text}");
        }
        fs::write(proxy.files.dir().join("proxy.yaml"), &good).unwrap();
    }
    rewrite(&proxy, |conf| conf["services"][0]["listen"].as_array_mut().unwrap().reverse());
    reloaded(&proxy).await;
}

#[tokio::test]
async fn what_belongs_to_the_process_is_named_and_the_rest_is_used() {
    let origin = echo().await;
    let proxy = Proxy::to(&origin).start().await;
    rewrite(&proxy, |conf| {
        set_config(conf, "second");
        conf["server"]["threads"] = json!(1);
        conf["server"]["grace_period_seconds"] = json!(7);
        conf["admin"]["listen"] = json!("127.0.0.1:1");
    });
    let response: Value = serde_json::from_str(&reload(&proxy).await.text()).unwrap();
    assert_eq!(response["result"], "success");
    assert_eq!(response["needs_upgrade"], json!(["server.threads", "server.grace_period_seconds", "admin.listen"]));
    proxy.wait_log(&["server.threads", "admin.listen", "-u"]).await;
    assert_eq!(proxy.connect().await.get("/").await.text(), "second");
    rewrite(&proxy, |conf| drop(conf.as_object_mut().unwrap().remove("admin")));
    let response: Value = serde_json::from_str(&reload(&proxy).await.text()).unwrap();
    assert_eq!(response["needs_upgrade"], json!(["server.threads", "server.grace_period_seconds", "admin"]));
}

#[tokio::test]
async fn certificates_are_replaced_under_an_open_connection() {
    let origin = echo().await;
    let (first, second) = (Certificate::new("one.test"), Certificate::new("one.test"));
    let (wild, exact) = (Certificate::new("*.two.test"), Certificate::new("a.two.test"));
    let proxy = Proxy::to(&origin).tls(&[&first]).start().await;
    let shown = async |name: &str, certificate: &Certificate| {
        let client = Client::connect_tls(proxy.ports.tls, name).await;
        assert!(client.io().peer_certificate().as_deref() == Some(certificate.der()), "another certificate for {name}");
    };
    let mut open = Client::connect_tls(proxy.ports.tls, "one.test").await;
    let mut open2 = Http2::connect_tls(proxy.ports.tls, "one.test").await;
    assert_eq!(open.get("/").await.status, 200);

    second.write(proxy.files.dir(), "server0");
    shown("one.test", &first).await;
    reloaded(&proxy).await;
    shown("one.test", &second).await;
    assert!(open.io().peer_certificate().as_deref() == Some(first.der()));
    assert_eq!(open.get("/").await.status, 200, "the connection stays");
    assert_eq!(open2.get("/").await.status, 200, "this one too");

    let files = [(&wild, "wild"), (&exact, "exact")].map(|(certificate, name)| {
        let (cert_file, key_file) = certificate.write(proxy.files.dir(), name);
        json!({ "cert_file": cert_file, "key_file": key_file })
    });
    rewrite(&proxy, |conf| conf["services"][0]["listen"][1]["tls"].as_array_mut().unwrap().extend(files));
    reloaded(&proxy).await;
    for (name, certificate) in [
        ("one.test", &second),
        ("b.two.test", &wild),
        ("a.two.test", &exact),
        ("c.b.two.test", &second),
        ("x.test", &second),
    ] {
        shown(name, certificate).await;
    }

    let (cert_file, key_file) = Certificate::new("one.test").write(proxy.files.dir(), "other");
    fs::copy(key_file, proxy.files.dir().join("server0.key")).unwrap();
    let text = refused(&proxy).await;
    for word in ["server0.pem", "server0.key", "services[0].listen[1].tls[0]", "is not the key of"] {
        assert!(text.contains(word), "no {word} in {text}");
    }
    shown("one.test", &second).await;
    fs::copy(cert_file, proxy.files.dir().join("server0.pem")).unwrap();
    reloaded(&proxy).await;
}

#[tokio::test]
async fn limits_and_the_folder_of_temporary_files_are_taken_over() {
    let origin = Origin::start(|mut conn| async move {
        conn.request().await;
        conn.send_head(32 * MIB).await;
        conn.send_pattern(32 * MIB).await;
    })
    .await;
    let setup = Proxy::to(&origin);
    let nowhere = setup.files.dir().join("unused");
    let limits = json!({ "buffer_memory_max": 0, "temp_files_max": 0, "temp_path": nowhere });
    let proxy = setup.top(limits).start().await;
    let mut stalled = proxy.connect().await;
    stalled.send_request("GET", "/", "").await;
    let head = stalled.head().await;
    assert_eq!(proxy.temp_files(), [0; 0]);
    rewrite(&proxy, |conf| {
        conf["buffer_memory_max"] = json!("1MiB");
        conf["temp_files_max"] = json!("64MiB");
        conf["temp_path"] = json!(proxy.files.temp());
    });
    reloaded(&proxy).await;
    let mut spilled = proxy.connect().await;
    spilled.send_request("GET", "/", "").await;
    let spilled_head = spilled.head().await;
    let stored = async || Some(proxy.temp_file_bytes()).filter(|bytes| *bytes > 8 * MIB);
    eventually("a large file in the new folder", stored).await;
    assert_eq!(stalled.pattern(&head).await, 32 * MIB);
    assert_eq!(spilled.pattern(&spilled_head).await, 32 * MIB);
}

#[tokio::test]
async fn the_access_log_is_opened_again_and_may_change() {
    let origin = echo().await;
    let proxy = Proxy::to(&origin).start().await;
    let (path, rotated) = (proxy.files.dir().join("access.log"), proxy.files.dir().join("access.log.1"));
    let lines = async |path: &std::path::Path, count: usize| {
        let all =
            async || fs::read_to_string(path).ok().filter(|text| text.lines().count() >= count && text.ends_with('\n'));
        eventually(&format!("{count} lines in {}", path.display()), all).await
    };
    let mut client = proxy.connect().await;
    client.get("/one").await;
    lines(&path, 1).await;
    fs::rename(&path, &rotated).unwrap();
    client.get("/two").await;
    assert!(lines(&rotated, 2).await.contains("/two"), "a renamed file is written on until it is opened again");
    assert!(!path.exists());
    proxy.signal("HUP");
    proxy.wait_log(&["reload", "is in use"]).await;
    client.get("/three").await;
    assert!(lines(&path, 1).await.contains("/three"));
    assert_eq!(fs::read_to_string(&rotated).unwrap().lines().count(), 2);

    let other = proxy.files.dir().join("other.log");
    rewrite(&proxy, |conf| conf["access_log"] = json!({ "path": other, "format": "$uri" }));
    reloaded(&proxy).await;
    client.get("/four").await;
    assert_eq!(lines(&other, 1).await, "/four\n");
    rewrite(&proxy, |conf| drop(conf.as_object_mut().unwrap().remove("access_log")));
    reloaded(&proxy).await;
    client.get("/five").await;
    rewrite(&proxy, |conf| conf["access_log"] = json!({ "path": other, "format": "$uri" }));
    reloaded(&proxy).await;
    client.get("/six").await;
    assert_eq!(lines(&other, 2).await, "/four\n/six\n");

    rewrite(&proxy, |conf| conf["access_log"] = json!({ "path": "/nonexistent/access.log" }));
    let text = refused(&proxy).await;
    assert!(text.contains("access_log.path: /nonexistent/access.log"), "{text}");
    client.get("/seven").await;
    assert_eq!(lines(&other, 3).await, "/four\n/six\n/seven\n");
}

#[tokio::test]
async fn a_key_of_another_certificate_never_starts_a_server() {
    let dir = tempfile::tempdir().unwrap();
    let (cert_file, _) = Certificate::new("test").write(dir.path(), "one");
    let (_, key_file) = Certificate::new("test").write(dir.path(), "two");
    let listen = json!({ "address": "127.0.0.1:8443", "tls": [{ "cert_file": cert_file, "key_file": key_file }] });
    let conf = json!({
        "upstreams": { "app": { "servers": ["127.0.0.1:1"] } },
        "services": [{ "name": "web", "listen": [listen], "routes": [{ "upstream": "app" }] }],
    });
    let file = dir.path().join("proxy.yaml");
    fs::write(&file, conf.to_string()).unwrap();
    let output = Proxy::run(&["-t", "-c", file.to_str().unwrap()]);
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success());
    for word in ["proxy.yaml:1:", "one.pem", "two.key", "services[0].listen[0].tls[0]"] {
        assert!(text.contains(word), "no {word} in {text}");
    }
}

fn threads(proxy: &Proxy) -> usize {
    fs::read_dir(format!("/proc/{}/task", proxy.pid())).unwrap().count()
}

/// Requests without a pause on connections that are kept, until they are told to stop. Panics at the first that fails.
async fn load(proxy: &Proxy, stop: Arc<AtomicBool>, done: Arc<AtomicUsize>) {
    let mut client = proxy.connect().await;
    while !stop.load(Relaxed) {
        let response = client.get("/").await;
        assert_eq!((response.status, response.broken.as_deref()), (200, None));
        done.fetch_add(1, Relaxed);
    }
}

/// One good and one broken file; what is in use is the good one.
async fn reload_twice(proxy: &Proxy, number: usize) {
    rewrite(proxy, |conf| {
        conf.as_object_mut().unwrap().remove("nonsense");
        set_config(conf, &format!("number {number}"));
        // Every other time the upstream's connections are made in another way, so that it is replaced whole.
        conf["upstreams"]["app"]["keepalive"] = json!({ "timeout": format!("{}s", 60 + number % 2) });
    });
    reloaded(proxy).await;
    rewrite(proxy, |conf| conf["nonsense"] = json!(number));
    assert!(refused(proxy).await.contains("nonsense"));
    assert_eq!(proxy.connect().await.get("/").await.text(), format!("number {number}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_reloads_under_load_fail_no_request_and_leak_nothing() {
    const CLIENTS: usize = 4;
    let origin = echo().await;
    let certificate = Certificate::new("test");
    let proxy = Arc::new(Proxy::to(&origin).tls(&[&certificate]).start().await);
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let (proxy, stop, done) = (proxy.clone(), stop.clone(), done.clone());
            tokio::spawn(async move { load(&proxy, stop, done).await })
        })
        .collect();
    // The allocator's pages fill up for the first hundred or two; what leaks goes on growing.
    for number in 0..20 {
        reload_twice(&proxy, number).await;
    }
    let (threads_before, fds) = (threads(&proxy), proxy.fds());
    let mut growth = Vec::new();
    while growth.last().is_none_or(|grown| *grown > MIB) {
        assert!(growth.len() < 5, "each hundred reloads took so many bytes more: {growth:?}");
        let memory = proxy.memory();
        for number in 0..50 {
            reload_twice(&proxy, number).await;
        }
        growth.push(proxy.memory().saturating_sub(memory));
    }
    // A connection to the admin listener, or to the proxy, may just be on its way out, and one to the origin in the
    // making.
    let fds_now = async || Some(proxy.fds()).filter(|now| *now <= fds + CLIENTS);
    eventually("no more descriptors than before", fds_now).await;
    assert!(threads(&proxy) <= threads_before + 1, "{} threads, {threads_before} before", threads(&proxy));
    origin.wait("the connections of replaced upstreams closed", |seen| seen.open <= 2 * CLIENTS).await;

    let during = done.load(Relaxed);
    assert!(during >= 100, "{during} requests are no load");
    stop.store(true, Relaxed);
    for client in clients {
        client.await.expect("no request fails");
    }
    let count = Some((20 + 50 * growth.len()) as f64);
    for result in ["success", "failure"] {
        assert_eq!(proxy.metric("config_reloads_total", &[("result", result)]).await, count, "{result}");
    }
    let in_flight = proxy.metric("requests_in_flight", &[("service", "web")]).await;
    assert_eq!(in_flight, Some(0.0));
}

#[tokio::test]
async fn authorities_that_are_replaced_in_their_file_are_used() {
    let (trusted, other) = (Certificate::new("app.internal"), Certificate::new("app.internal"));
    let origin = Origin::https(&trusted, |_| reply(200, "ok")).await;
    let setup = Proxy::to(&origin);
    let (ca_file, _) = other.write(setup.files.dir(), "ca");
    let proxy = setup.upstream(json!({ "tls": { "server_name": "app.internal", "ca_file": ca_file } })).start().await;
    assert_eq!(proxy.connect().await.get("/").await.status, 502);
    trusted.write(proxy.files.dir(), "ca");
    reloaded(&proxy).await;
    assert_eq!(proxy.connect().await.get("/").await.text(), "ok");
}

#[tokio::test]
async fn other_limits_of_kept_connections_are_used() {
    let origin = Origin::http(|_| reply(200, "ok")).await;
    let proxy = Proxy::to(&origin).start().await;
    let mut client = proxy.connect().await;
    client.get("/").await;
    client.get("/").await;
    assert_eq!(origin.connections(), 1);
    rewrite(&proxy, |conf| conf["upstreams"]["app"]["keepalive"] = json!({ "requests": 1 }));
    reloaded(&proxy).await;
    for _ in 0..3 {
        client.get("/").await;
    }
    assert_eq!(origin.connections(), 3, "the one that was kept is used once more, the others once");
}

#[tokio::test]
async fn a_server_that_is_gone_is_gone_from_the_metrics() {
    let [stays, goes] = [Origin::http(|_| reply(200, "")).await, Origin::http(|_| reply(200, "")).await];
    let proxy = Proxy::to_all(json!([stays.address(), goes.address()])).start().await;
    let up = async |origin: &Origin| proxy.metric("upstream_peer_up", &[("peer", origin.address())]).await;
    assert_eq!((up(&stays).await, up(&goes).await), (Some(1.0), Some(1.0)));
    rewrite(&proxy, |conf| conf["upstreams"]["app"]["servers"] = json!([stays.address()]));
    reloaded(&proxy).await;
    assert_eq!((up(&stays).await, up(&goes).await), (Some(1.0), None));
}
