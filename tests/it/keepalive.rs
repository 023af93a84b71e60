//! Idle connections to upstreams: how many, for how long, for how much, and for whom.

use crate::support::*;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

/// An origin that tells which connection a request came on.
async fn counting() -> Origin {
    Origin::http(|request| reply(200, &request.connection.to_string())).await
}

/// A proxy with these settings of `keepalive`.
async fn keeping(origin: &Origin, keepalive: Value) -> Proxy {
    Proxy::to(origin).upstream(json!({ "keepalive": keepalive })).start().await
}

/// The connection that serves the next request.
async fn connection(client: &mut Client, target: &str) -> usize {
    client.get(target).await.text().parse().unwrap()
}

/// Wait until so many connections lie idle.
async fn wait_idle(proxy: &Proxy, count: usize) {
    eventually(&format!("{count} idle connections"), async || {
        let idle = proxy.metric("upstream_connections", &[("upstream", "app"), ("state", "idle")]).await;
        (idle == Some(count as f64)).then_some(())
    })
    .await;
}

/// An origin that answers when it is let go, and tells which connection was used.
async fn held(go: &Arc<Semaphore>) -> Origin {
    let go = go.clone();
    Origin::start(move |mut conn| {
        let go = go.clone();
        async move {
            while conn.request().await.is_some() {
                go.acquire().await.unwrap().forget();
                conn.send(reply(200, &conn.id.to_string())).await;
            }
        }
    })
    .await
}

/// So many requests at once, each on a connection of its own; all are back in the pool, or closed, afterwards.
async fn several_at_once(proxy: &Proxy, origin: &Origin, go: &Semaphore, count: usize) {
    let mut clients = Vec::new();
    for _ in 0..count {
        let mut client = proxy.connect().await;
        client.send_request("GET", "/", "").await;
        clients.push(client);
    }
    origin.wait("all requests", |seen| seen.requests.len() == count).await;
    go.add_permits(count);
    for client in &mut clients {
        assert_eq!(client.response().await.status, 200);
    }
}

#[tokio::test]
async fn a_connection_serves_so_many_requests_and_is_closed() {
    let origin = counting().await;
    let proxy = keeping(&origin, json!({ "requests": 3 })).await;
    let mut client = proxy.connect().await;
    for number in 0..9 {
        assert_eq!(connection(&mut client, "/").await, number / 3, "request {number}");
    }
    origin.wait("all have had their three", |seen| seen.open == 0).await;
    assert_eq!(origin.connections(), 3);
}

#[tokio::test]
async fn a_connection_is_used_for_so_long_and_closed() {
    let origin = counting().await;
    let proxy = keeping(&origin, json!({ "time": "400ms", "requests": 1_000_000 })).await;
    let mut client = proxy.connect().await;
    let mut begin = Instant::now();
    for next in 1..=2 {
        let (mut sent, mut used) = (begin, 0);
        eventually("another connection", async || {
            sent = Instant::now();
            used += 1;
            (connection(&mut client, "/").await == next).then_some(())
        })
        .await;
        let age = begin.elapsed();
        assert!(age >= Duration::from_millis(400), "closed after {age:?}");
        assert!(used > 2, "it served for a while");
        begin = sent;
    }
    origin.wait("the old ones are closed", |seen| seen.open <= 1).await;
}

#[tokio::test]
async fn timed_an_idle_connection_is_closed_after_its_timeout() {
    let origin = counting().await;
    let proxy = keeping(&origin, json!({ "timeout": "600ms" })).await;
    let mut client = proxy.connect().await;
    assert_eq!(connection(&mut client, "/").await, 0);
    let idle_since = Instant::now();
    origin.wait("the idle connection is closed", |seen| seen.open == 0).await;
    let idle = idle_since.elapsed();
    assert!((Duration::from_millis(590)..Duration::from_millis(2100)).contains(&idle), "closed after {idle:?}");
    assert_eq!(connection(&mut client, "/").await, 1);
}

#[tokio::test]
async fn use_keeps_a_connection_open_past_its_idle_timeout() {
    let origin = counting().await;
    let proxy = keeping(&origin, json!({ "timeout": "1s", "requests": 1_000_000 })).await;
    let mut client = proxy.connect().await;
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(2500) {
        assert_eq!(connection(&mut client, "/").await, 0);
    }
}

#[tokio::test]
async fn no_more_connections_are_kept_than_asked_for() {
    let go = Arc::new(Semaphore::new(0));
    let origin = held(&go).await;
    let proxy = keeping(&origin, json!({ "connections": 2 })).await;
    several_at_once(&proxy, &origin, &go, 5).await;
    origin.wait("three are closed", |seen| seen.open == 2).await;
    wait_idle(&proxy, 2).await;
    go.add_permits(2);
    let mut client = proxy.connect().await;
    client.get("/").await.text();
    client.get("/").await.text();
    assert_eq!(origin.connections(), 5, "the two that were kept are used");
}

#[tokio::test]
async fn the_connection_that_was_used_last_is_used_next() {
    let go: [_; 3] = std::array::from_fn(|_| Arc::new(Semaphore::new(0)));
    let gates = go.clone();
    let origin = Origin::start(move |mut conn| {
        let gate = gates[conn.id].clone();
        async move {
            while conn.request().await.is_some() {
                gate.acquire().await.unwrap().forget();
                conn.send(reply(200, &conn.id.to_string())).await;
            }
        }
    })
    .await;
    let proxy = keeping(&origin, json!({})).await;
    let mut clients = Vec::new();
    for count in 1..=3 {
        let mut client = proxy.connect().await;
        client.send_request("GET", "/", "").await;
        origin.wait("its request", |seen| seen.requests.len() == count).await;
        clients.push(client);
    }
    // They come back in this order: the first one last.
    for (returned, connection) in [2, 1, 0].into_iter().enumerate() {
        go[connection].add_permits(1);
        assert_eq!(clients[connection].response().await.text(), connection.to_string());
        wait_idle(&proxy, returned + 1).await;
    }
    go[0].add_permits(10);
    let mut client = proxy.connect().await;
    for _ in 0..10 {
        assert_eq!(connection(&mut client, "/").await, 0);
        wait_idle(&proxy, 3).await;
    }
}

#[tokio::test]
async fn a_pool_is_its_upstreams_alone() {
    let origin = counting().await;
    let proxy = Proxy::to(&origin)
        .top(json!({ "upstreams": { "other": { "servers": [origin.address()] } } }))
        .routes(json!([
            { "match": { "path": "/other/" }, "upstream": "other" },
            { "match": { "path": "/" }, "upstream": "app" },
        ]))
        .start()
        .await;
    let mut client = proxy.connect().await;
    let first = [connection(&mut client, "/").await, connection(&mut client, "/other/").await];
    assert_eq!(first, [0, 1], "the same server, and yet another connection");
    for _ in 0..4 {
        assert_eq!(connection(&mut client, "/other/").await, 1);
        assert_eq!(connection(&mut client, "/").await, 0);
    }
}

/// An origin that serves one request on each connection, and closes when it has read the second, as by an idle timeout
/// that races with it.
async fn closing_on_the_second() -> Origin {
    Origin::start(|mut conn| async move {
        if conn.request().await.is_some() {
            conn.send(reply(200, "closing")).await;
            conn.request().await;
        }
    })
    .await
}

#[tokio::test]
async fn a_pooled_connection_closed_just_then_is_no_failure_of_the_peer() {
    let (closing, other) = (closing_on_the_second().await, counting().await);
    // Only the first is asked: the other one is a backup.
    let proxy = Proxy::to_all(json!([closing.address(), { "address": other.address(), "backup": true }])).start().await;
    let mut client = proxy.connect().await;
    for requests in 1..=5 {
        assert_eq!(client.get("/").await.text(), "closing", "request {requests}");
    }
    assert_eq!((closing.connections(), other.connections()), (5, 0));
    assert_eq!(proxy.metric("upstream_peer_up", &[("peer", closing.address())]).await, Some(1.0));
    let page = Client::connect(proxy.ports.admin).await.get("/status.json").await.text();
    let status: Value = serde_json::from_str(&page).unwrap();
    assert_eq!(status["upstreams"]["app"]["peers"][0]["fails"], 0);
}

#[tokio::test]
async fn a_fresh_connection_that_is_closed_too_is_a_failure() {
    let dying = Origin::start(|mut conn| async move {
        if conn.request().await.is_some() && conn.id == 0 {
            conn.send(reply(200, "dying")).await;
            conn.request().await;
        }
    })
    .await;
    let other = Origin::http(|_| reply(200, "other")).await;
    let proxy = Proxy::to_all(json!([dying.address(), { "address": other.address(), "backup": true }])).start().await;
    let mut client = proxy.connect().await;
    assert_eq!(client.get("/").await.text(), "dying");
    assert_eq!(client.get("/").await.text(), "other");
    assert_eq!(dying.connections(), 2, "one fresh connection is tried, no more");
    assert_eq!(proxy.metric("upstream_peer_up", &[("peer", dying.address())]).await, Some(0.0));
}

#[tokio::test]
async fn a_post_on_a_pooled_connection_closed_just_then_is_not_repeated() {
    let (closing, other) = (closing_on_the_second().await, counting().await);
    let proxy = Proxy::to_all(json!([closing.address(), { "address": other.address(), "backup": true }])).start().await;
    let mut client = proxy.connect().await;
    assert_eq!(client.get("/").await.text(), "closing");
    assert_eq!(client.post("POST", "/", b"body").await.status, 502);
    let posts = closing.requests().iter().filter(|request| request.method == "POST").count();
    assert_eq!((posts, other.connections()), (1, 0));
}

#[tokio::test]
async fn a_reload_keeps_the_connections_of_peers_that_stay() {
    let (origin, leaves) = (counting().await, counting().await);
    let proxy = Proxy::to_all(json!([origin.address(), leaves.address()])).start().await;
    let mut client = proxy.connect().await;
    for _ in 0..2 {
        assert_eq!(connection(&mut client, "/").await, 0);
    }
    proxy.reload(|config| config["upstreams"]["app"]["servers"] = json!([origin.address()])).await;
    leaves.wait("the connection to the peer that left is closed", |seen| seen.open == 0).await;
    for _ in 0..3 {
        assert_eq!(connection(&mut client, "/").await, 0);
    }
    assert_eq!(origin.connections(), 1);
}
