//! The filters that limit what a client may do: how many requests, how large, how fast.

use crate::support::http2::{Http2, get};
use crate::support::load::Load;
use crate::support::servers::{installed, redis, redis_at};
use crate::support::*;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

/// An origin that answers each request when the test says so.
async fn waiting() -> (Origin, Arc<Semaphore>) {
    let go_on = Arc::new(Semaphore::new(0));
    let wait = go_on.clone();
    let origin = Origin::start(move |mut conn| {
        let wait = wait.clone();
        async move {
            while conn.request().await.is_some() {
                wait.acquire().await.unwrap().forget();
                conn.send(reply(200, "done")).await;
            }
        }
    })
    .await;
    (origin, go_on)
}

/// A proxy with this one filter.
fn with(origin: &Origin, filter: Value) -> Setup {
    Proxy::to(origin).route(json!({ "filters": [filter] }))
}

/// Requests that wait at the origin, one for each of these headers.
async fn in_flight(proxy: &Proxy, origin: &Origin, headers: &[&str]) -> Vec<Client> {
    let before = origin.requests().len();
    let mut clients = Vec::new();
    for header in headers {
        let mut client = proxy.connect().await;
        client.send_request("GET", "/", header).await;
        clients.push(client);
    }
    origin.wait("the requests are there", |seen| seen.requests.len() == before + headers.len()).await;
    clients
}

/// Send requests until one is answered 200: what is counted is let go of behind the answer that a client sees.
async fn until_let_in(proxy: &Proxy, headers: &str) {
    eventually("a place is free", async || {
        (proxy.connect().await.request("GET", "/", headers).await.status == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn concurrency_limit_counts_requests_in_flight_by_key() {
    let (origin, go_on) = waiting().await;
    let filter = json!({ "concurrency_limit": { "key": "$http_x_key", "max": 2 } });
    let proxy = with(&origin, filter).start().await;
    let mut waiting = in_flight(&proxy, &origin, &["X-Key: a\r\n", "X-Key: a\r\n", "X-Key: b\r\n", "", "", ""]).await;
    let response = proxy.connect().await.request("GET", "/", "X-Key: a\r\n").await;
    assert_eq!(response.status, 503);
    let labels = [("service", "web"), ("route", "/")];
    assert_eq!(proxy.metric("concurrency_limit_rejected_total", &labels).await, Some(1.0));
    go_on.add_permits(1000);
    for client in &mut waiting {
        assert_eq!(client.response().await.status, 200);
    }
    until_let_in(&proxy, "X-Key: a\r\n").await;
}

#[tokio::test]
async fn concurrency_limit_lets_go_of_requests_that_fail() {
    let (origin, _) = waiting().await;
    let filter = json!({ "concurrency_limit": { "max": 2, "status": 429 } });
    let proxy = with(&origin, filter).start().await;
    let waiting = in_flight(&proxy, &origin, &["", ""]).await;
    assert_eq!(proxy.connect().await.get("/").await.status, 429);
    waiting.into_iter().for_each(Client::reset);
    // What is counted is let go of when the proxy has seen its client leave.
    let mut tries = 0;
    eventually("both places are free at once", async || {
        let (mut first, mut second) = (proxy.connect().await, proxy.connect().await);
        tries += 1;
        let target = format!("/{tries}");
        first.send_request("GET", &target, "").await;
        second.send_request("GET", &target, "").await;
        let both = origin.wait("both", |seen| seen.requests.iter().filter(|r| r.target == target).count() == 2);
        // The origin answers nobody: an answer is a 429, and leaves the place of the other one to the next try.
        tokio::select! {
            () = both => Some(()),
            _ = first.head() => None,
            _ = second.head() => None,
        }
    })
    .await;
}

#[tokio::test]
async fn concurrency_limit_counts_the_streams_of_one_connection() {
    let (origin, go_on) = waiting().await;
    let setup = with(&origin, json!({ "concurrency_limit": { "max": 2 } })).tls(&[&Certificate::new("test")]);
    let proxy = setup.start().await;
    let mut client = Http2::connect_tls(proxy.ports.tls, "test").await;
    let [(first, _), (second, _)] = [client.open(get("/"), true).await, client.open(get("/"), true).await];
    origin.wait("both requests are there", |seen| seen.requests.len() == 2).await;
    assert_eq!(client.get("/").await.status, 503);
    go_on.add_permits(2);
    for answer in [first, second] {
        assert_eq!(within("an answer", answer).await.unwrap().status(), 200);
    }
}

#[tokio::test]
async fn concurrency_limit_counts_a_zone_together_and_across_a_reload() {
    let (origin, go_on) = waiting().await;
    let route = |path: &str| {
        let filter = json!({ "concurrency_limit": { "max": 1, "zone": "all" } });
        json!({ "match": { "path": path }, "upstream": "app", "filters": [filter] })
    };
    let proxy = Proxy::to(&origin).routes(json!([route("/a"), route("/b")])).start().await;
    let mut first = proxy.connect().await;
    first.send_request("GET", "/a", "").await;
    origin.wait("the request is there", |seen| seen.requests.len() == 1).await;
    assert_eq!(proxy.connect().await.get("/b").await.status, 503);
    proxy.reload(|conf| conf["services"][0]["routes"][0]["set_headers"] = json!({ "X-New": "1" })).await;
    assert_eq!(proxy.connect().await.get("/b").await.status, 503);
    go_on.add_permits(1000);
    assert_eq!(first.response().await.status, 200);
}

#[tokio::test]
async fn an_internal_redirect_is_no_second_request() {
    let origin = Origin::http(|request| match request.target.as_str() {
        "/a" => "HTTP/1.1 200 OK\r\nX-Accel-Redirect: /b\r\nContent-Length: 0\r\n\r\n".into(),
        target => reply(200, target),
    })
    .await;
    for filter in [json!({ "concurrency_limit": { "max": 1 } }), json!({ "rate_limit": { "rate": "1/h" } })] {
        let proxy = with(&origin, filter.clone()).start().await;
        let answer = proxy.connect().await.get("/a").await;
        assert_eq!((answer.status, answer.text().as_str()), (200, "/b"), "{filter}");
    }
    let limits =
        json!([{ "concurrency_limit": { "max": 1, "zone": "z" } }, { "rate_limit": { "rate": "1/h", "zone": "z" } }]);
    let route = |path: &str| json!({ "match": { "path": path }, "upstream": "app", "filters": limits });
    let proxy = Proxy::to(&origin).routes(json!([route("/a"), route("/b")])).start().await;
    let mut client = proxy.connect().await;
    assert_eq!([client.get("/a").await.status, client.get("/b").await.status], [200, 429]);
}

/// An origin that answers at once.
async fn quick() -> Origin {
    Origin::http(|_| reply(200, "done")).await
}

#[tokio::test]
async fn rate_limit_lets_a_burst_pass_and_says_when_to_come_back() {
    let origin = quick().await;
    let filter = json!({ "rate_limit": { "key": "$http_x_key", "rate": "1/h", "burst": 2 } });
    let proxy = with(&origin, filter).start().await;
    let mut client = proxy.connect().await;
    for key in ["X-Key: a\r\n", "X-Key: b\r\n"] {
        for _ in 0..3 {
            let response = client.request("GET", "/", key).await;
            assert_eq!((response.status, response.header("ratelimit-limit")), (200, None));
        }
        let response = client.request("GET", "/", key).await;
        assert_eq!(response.status, 429);
        assert_eq!(response.header("ratelimit-limit"), Some("3"));
        assert_eq!(response.header("ratelimit-remaining"), Some("0"));
        let seconds = |name| response.header(name).unwrap().parse::<u64>().unwrap();
        assert!((3540..=3600).contains(&seconds("retry-after")), "{response:?}");
        assert!((10740..=10800).contains(&seconds("ratelimit-reset")), "{response:?}");
    }
    for _ in 0..10 {
        assert_eq!(client.get("/").await.status, 200, "without a key there is no limit");
    }
    let labels = [("service", "web"), ("route", "/"), ("outcome", "rejected")];
    assert_eq!(proxy.metric("rate_limit_requests_total", &labels).await, Some(2.0));
    assert_eq!(origin.requests().len(), 16);
}

#[tokio::test]
async fn rate_limit_tells_what_is_left_also_behind_an_error_page() {
    let origin = quick().await;
    let filter = json!({ "rate_limit": { "rate": "1/h", "burst": 1, "headers": true, "status": 503 } });
    let proxy = with(&origin, filter).route(json!({ "error_pages": { "503": "/sorry" } })).start().await;
    let mut client = proxy.connect().await;
    for (remaining, status) in [("1", 200), ("0", 200), ("0", 503)] {
        let response = client.get("/").await;
        assert_eq!((response.status, response.header("ratelimit-remaining")), (status, Some(remaining)));
        assert_eq!(response.header("retry-after").is_some(), status == 503);
    }
}

#[tokio::test]
async fn timed_rate_limit_delays_what_is_ahead() {
    let origin = quick().await;
    let filter = json!({ "rate_limit": { "rate": "10/s", "burst": 5, "delay": true } });
    let proxy = with(&origin, filter).start().await;
    let start = Instant::now();
    let mut client = proxy.connect().await;
    for _ in 0..5 {
        assert_eq!(client.get("/").await.status, 200);
    }
    assert!(start.elapsed() >= Duration::from_millis(400), "{:?}", start.elapsed());
    let labels = [("outcome", "delayed")];
    assert_eq!(proxy.metric("rate_limit_requests_total", &labels).await, Some(4.0));
}

#[tokio::test]
async fn a_client_that_leaves_while_it_is_delayed_is_let_go() {
    let origin = quick().await;
    for delay in
        [json!({ "rate_limit": { "rate": "1/h", "burst": 1, "delay": true } }), json!({ "fault": { "delay": "1h" } })]
    {
        let limits = json!([{ "concurrency_limit": { "max": 1 } }, delay]);
        let proxy = Proxy::to(&origin).route(json!({ "filters": limits })).start().await;
        let first = usize::from(delay.get("rate_limit").is_some());
        for _ in 0..first {
            assert_eq!(proxy.connect().await.get("/").await.status, 200);
            until_in_flight(&proxy, 0.0).await;
        }
        let mut client = proxy.connect().await;
        client.send_request("GET", "/", "").await;
        until_in_flight(&proxy, 1.0).await;
        client.reset();
        until_in_flight(&proxy, 0.0).await;
        assert_eq!(proxy.access_log(first + 1).await[first].field("status"), "499", "{delay}");
    }
}

async fn until_in_flight(proxy: &Proxy, requests: f64) {
    eventually("so many requests are in flight", async || {
        (proxy.metric("requests_in_flight", &[("service", "web")]).await == Some(requests)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn rate_limit_in_a_zone_goes_on_after_a_reload() {
    let origin = quick().await;
    let filter = json!({ "rate_limit": { "rate": "1/h", "zone": "all" } });
    let proxy = with(&origin, filter).start().await;
    assert_eq!(proxy.connect().await.get("/").await.status, 200);
    proxy.reload(|conf| conf["services"][0]["routes"][0]["set_headers"] = json!({ "X-New": "1" })).await;
    assert_eq!(proxy.connect().await.get("/").await.status, 429);
}

#[tokio::test]
async fn a_zone_whose_rate_is_raised_keeps_nobody_out_at_the_old_one() {
    let origin = quick().await;
    let proxy = with(&origin, json!({ "rate_limit": { "rate": "1/h", "zone": "all" } })).start().await;
    let mut client = proxy.connect().await;
    assert_eq!([client.get("/").await.status, client.get("/").await.status], [200, 429]);
    let rate = "/services/0/routes/0/filters/0/rate_limit/rate";
    proxy.reload(|conf| *conf.pointer_mut(rate).unwrap() = "1000000/s".into()).await;
    assert_eq!(client.get("/").await.status, 200);
}

#[tokio::test]
async fn rate_limit_keeps_the_password_of_its_store_to_itself() {
    let origin = quick().await;
    let limit = |store: &str| json!({ "rate_limit": { "rate": "1/h", "store": store } });
    let proxy = with(&origin, limit("redis://:s3cret@127.0.0.1:1/0")).start().await;
    assert_eq!(proxy.connect().await.get("/").await.status, 200);
    proxy.wait_log(&["the store 127.0.0.1:1", "by itself"]).await;
    assert!(!proxy.log().contains("s3cret"), "{}", proxy.log());
    let file = proxy.files.dir().join("wrong.yaml");
    let conf = with(&origin, limit("http://:s3cret@127.0.0.1:1")).resolved(&Ports::free());
    std::fs::write(&file, conf.to_string()).unwrap();
    let output = Proxy::run(&["-t", "-c", file.to_str().unwrap()]);
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("redis://[user:password@]host:port") && !text.contains("s3cret"), "{text}");
}

/// All that the proxies of one store let pass of what is asked without a pause, and how long it took.
async fn passed_by(proxies: &[&Proxy], answers: usize) -> (usize, Duration) {
    let (start, last) = (Instant::now(), Arc::new(Mutex::new((0, Instant::now()))));
    let clients = proxies.iter().flat_map(|proxy| [proxy.ports.http; 3]).map(|addr| {
        let last = last.clone();
        async move {
            let mut client = Client::connect(addr).await;
            while last.lock().unwrap().0 < answers {
                match client.get("/").await.status {
                    200 => {
                        let mut last = last.lock().unwrap();
                        *last = (last.0 + 1, Instant::now());
                    }
                    status => assert_eq!(status, 429),
                }
            }
        }
    });
    futures::future::join_all(clients).await;
    let (passed, at) = *last.lock().unwrap();
    (passed, at - start)
}

#[tokio::test(flavor = "multi_thread")]
async fn timed_rate_limit_with_a_store_limits_two_proxies_as_one() {
    if !installed("redis-server") {
        return;
    }
    let (origin, redis) = (quick().await, redis(&["--requirepass", "s3cret"]).await);
    let store = format!("redis://:s3cret@{}/1", redis.addr);
    let filter = json!({ "rate_limit": { "rate": "100/s", "burst": 50, "store": store } });
    let [one, other] = [with(&origin, filter.clone()).start().await, with(&origin, filter).start().await];
    let (passed, took) = passed_by(&[&one, &other], 500).await;
    let expected = 51.0 + 100.0 * took.as_secs_f64();
    eprintln!("{passed} passed in {took:?}, {expected:.1} expected");
    assert!((passed as f64 - expected).abs() <= expected * 0.02, "{passed} passed in {took:?}, not {expected}");
    for proxy in [&one, &other] {
        let rejected = proxy.metric("rate_limit_requests_total", &[("outcome", "rejected")]).await;
        assert!(rejected.is_some_and(|count| count > 0.0), "both were asked for more");
        assert_eq!(proxy.metric("rate_limit_store_up", &[("store", &redis.addr.to_string())]).await, Some(1.0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rate_limit_without_its_store_fails_no_request_and_takes_it_up_again() {
    if !installed("redis-server") {
        return;
    }
    let (origin, first) = (quick().await, redis(&[]).await);
    let addr = first.addr;
    let filter = json!({ "rate_limit": {
        "key": "$uri", "rate": "1000/h", "burst": 10000, "store": format!("redis://{addr}"),
    } });
    let [one, other] = [with(&origin, filter.clone()).start().await, with(&origin, filter).start().await];
    let loads = [&one, &other].map(|proxy| Load::start(proxy.ports.http, "/load", 200, 4));
    for load in &loads {
        load.wait_for_more(100).await;
    }
    drop(first);
    for load in &loads {
        load.wait_for_more(200).await;
    }
    let again = redis_at(addr).await;
    let labels = [("store", &*addr.to_string())];
    for proxy in [&one, &other] {
        eventually("the store is taken up again", async || {
            (proxy.metric("rate_limit_store_up", &labels).await == Some(1.0)).then_some(())
        })
        .await;
    }
    for load in &loads {
        load.wait_for_more(100).await;
    }
    for load in loads {
        let bad: Vec<_> = load.stop().await.into_iter().filter(|answer| !answer.is_good()).collect();
        assert!(bad.is_empty(), "{bad:?}");
    }
    for proxy in [&one, &other] {
        let lines = proxy.log().lines().filter(|line| line.contains("by itself")).count();
        assert_eq!(lines, 1, "it is said once:\n{}", proxy.log());
    }
    let mut direct = TcpStream::connect(again.addr).await.unwrap();
    direct.write_all(b"DBSIZE\r\n").await.unwrap();
    let mut keys = [0; 2];
    within("Redis answers", direct.read_exact(&mut keys)).await.unwrap();
    assert!(keys[0] == b':' && keys[1] != b'0', "the store is used: {keys:?}");
}

#[tokio::test]
async fn rate_limit_goes_on_when_its_store_says_nothing() {
    let (origin, silent) = (
        quick().await,
        Origin::start(|mut conn| async move {
            conn.closed().await;
        })
        .await,
    );
    let store = format!("redis://{}", silent.address());
    let filter = json!({ "rate_limit": { "rate": "1/h", "burst": 1, "store": store, "store_timeout": "50ms" } });
    let proxy = with(&origin, filter).start().await;
    let mut client = proxy.connect().await;
    for status in [200, 200, 429] {
        assert_eq!(client.get("/").await.status, status);
    }
    proxy.wait_log(&["rate_limit", silent.address(), "within 50ms"]).await;
}
