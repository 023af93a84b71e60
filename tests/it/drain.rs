//! Peers taken out and put back while the proxy runs, with `POST /upstreams/NAME[/peers/ADDR]` on the admin listener.

use crate::support::load::{Answer, Load};
use crate::support::origin::Conn;
use crate::support::*;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::Semaphore;

/// An origin that says its name; `/held` waits until it is let go.
async fn named(name: &'static str, go: &Arc<Semaphore>) -> Origin {
    let go = go.clone();
    Origin::start(move |mut conn: Conn| {
        let go = go.clone();
        async move {
            while let Some(request) = conn.request().await {
                if request.target == "/held" {
                    go.acquire().await.unwrap().forget();
                }
                conn.send(reply(200, name)).await;
            }
        }
    })
    .await
}

/// Three origins, `a`, `b` and `c`, and a proxy in front of them.
struct Group {
    go: Arc<Semaphore>,
    origins: [Origin; 3],
    proxy: Proxy,
}

impl Group {
    async fn start() -> Self {
        let go = Arc::new(Semaphore::new(0));
        let origins = [named("a", &go).await, named("b", &go).await, named("c", &go).await];
        let addresses = origins.each_ref().map(Origin::address);
        let proxy = Proxy::to_all(json!(addresses)).start().await;
        Group { go, origins, proxy }
    }

    /// Where the state of this peer is set.
    fn path(&self, peer: usize) -> String {
        format!("/upstreams/app/peers/{}", self.origins[peer].address())
    }

    /// What `/status.json` says of this key of each peer.
    async fn status(&self, key: &str) -> Vec<Value> {
        let page = Client::connect(self.proxy.ports.admin).await.get("/status.json").await.text();
        let status: Value = serde_json::from_str(&page).unwrap();
        let peers = status["upstreams"]["app"]["peers"].as_array().unwrap();
        let place = |origin: &Origin| peers.iter().find(|peer| peer["address"] == origin.address());
        self.origins.iter().map(|origin| place(origin).expect("the peer is listed")[key].clone()).collect()
    }

    /// Who answers so many requests, one after the other.
    async fn answering(&self, requests: usize) -> String {
        let (mut client, mut names) = (self.proxy.connect().await, Vec::new());
        for _ in 0..requests {
            names.push(client.get("/").await.text());
        }
        names.sort();
        names.dedup();
        names.concat()
    }

    /// Wait until this peer has no connection.
    async fn wait_closed(&self, peer: usize) {
        self.origins[peer].wait("its connections are closed", |seen| seen.open == 0).await;
    }
}

async fn post(proxy: &Proxy, path: &str, body: &str) -> client::Response {
    Client::connect(proxy.ports.admin).await.post("POST", path, body.as_bytes()).await
}

async fn set(proxy: &Proxy, path: &str, state: &str) {
    let answer = post(proxy, path, &json!({ "state": state }).to_string()).await;
    assert_eq!(answer.status, 200, "{path}: {}", String::from_utf8_lossy(&answer.body));
}

#[tokio::test]
async fn a_peer_drained_under_load_costs_no_request_and_gets_none() {
    let group = Group::start().await;
    let load = Load::start(group.proxy.ports.http, "/", 500, 50);
    load.wait_for_more(300).await;
    set(&group.proxy, &group.path(1), "drain").await;
    let drained = Instant::now();
    assert_eq!(group.status("state").await, ["up", "drain", "up"]);
    load.wait_for_more(300).await;
    group.wait_closed(1).await;
    set(&group.proxy, &group.path(1), "up").await;
    let up = Instant::now();
    let served_again = |answer: &Answer| answer.sent > up && answer.peer == "b";
    load.wait("it serves again", |answers| answers.iter().any(served_again)).await;
    let answers = load.stop().await;
    let failed: Vec<_> = answers.iter().filter(|answer| !answer.is_good()).collect();
    assert!(failed.is_empty(), "{} of {} requests failed: {failed:?}", failed.len(), answers.len());
    let late = |answer: &&Answer| answer.sent > drained && answer.came < up && answer.peer == "b";
    assert_eq!(answers.iter().find(late).map(|late| late.sent - drained), None, "a request after the drain");
    assert!(answers.iter().filter(|answer| answer.sent > drained && answer.came < up).count() > 200);
}

#[tokio::test]
async fn requests_in_flight_finish_on_a_peer_that_is_drained_or_down() {
    for state in ["drain", "down"] {
        let group = Group::start().await;
        let mut waiting = group.proxy.connect().await;
        waiting.send_request("GET", "/held", "").await;
        group.origins[0].wait("the request", |seen| seen.requests.len() == 1).await;
        set(&group.proxy, &group.path(0), state).await;
        assert_eq!(group.status("active").await[0], 1);
        assert_eq!(group.answering(8).await, "bc", "{state}");
        assert_eq!(group.origins[0].requests().len(), 1);
        group.go.add_permits(1);
        assert_eq!(waiting.response().await.text(), "a", "{state}");
        group.wait_closed(0).await;
    }
}

#[tokio::test]
async fn idle_connections_of_a_peer_are_closed_when_it_is_drained_or_down() {
    for state in ["drain", "down"] {
        let group = Group::start().await;
        assert_eq!(group.answering(6).await, "abc");
        assert!(group.origins.iter().all(|origin| origin.connections() == 1));
        set(&group.proxy, &group.path(2), state).await;
        group.wait_closed(2).await;
        assert_eq!(group.answering(6).await, "ab");
        assert!(group.origins[..2].iter().all(|origin| origin.connections() == 1), "the others keep theirs");
    }
}

#[tokio::test]
async fn the_state_is_seen_and_can_be_taken_back() {
    let group = Group::start().await;
    assert_eq!(group.status("state").await, ["up", "up", "up"]);
    for state in ["drain", "down"] {
        set(&group.proxy, &group.path(0), state).await;
        assert_eq!(group.status("state").await, [state, "up", "up"]);
        assert_eq!(group.status("up").await, [false, true, true]);
        let shown = group.proxy.metric("upstream_peer_up", &[("peer", group.origins[0].address())]).await;
        assert_eq!(shown, Some(0.0), "{state}");
        assert_eq!(group.answering(6).await, "bc");
        set(&group.proxy, &group.path(0), "up").await;
        assert_eq!(group.status("up").await, [true, true, true]);
        assert_eq!(group.answering(6).await, "abc");
    }
}

#[tokio::test]
async fn a_whole_upstream_can_be_drained() {
    let group = Group::start().await;
    assert_eq!(group.answering(6).await, "abc");
    set(&group.proxy, "/upstreams/app", "drain").await;
    assert_eq!(group.status("state").await, ["drain"; 3]);
    assert_eq!(group.proxy.connect().await.get("/").await.status, 502);
    for peer in 0..3 {
        group.wait_closed(peer).await;
    }
    set(&group.proxy, &group.path(1), "up").await;
    assert_eq!(group.answering(3).await, "b");
    set(&group.proxy, "/upstreams/app", "up").await;
    assert_eq!(group.answering(6).await, "abc");
}

#[tokio::test]
async fn a_backup_serves_for_peers_that_are_drained() {
    let go = Arc::new(Semaphore::new(0));
    let (a, backup) = (named("a", &go).await, named("backup", &go).await);
    let servers = json!([a.address(), { "address": backup.address(), "backup": true }]);
    let proxy = Proxy::to_all(servers).start().await;
    assert_eq!(proxy.connect().await.get("/").await.text(), "a");
    set(&proxy, &format!("/upstreams/app/peers/{}", a.address()), "drain").await;
    assert_eq!(proxy.connect().await.get("/").await.text(), "backup");
}

#[tokio::test]
async fn the_state_outlives_a_reload_that_keeps_the_peer() {
    let group = Group::start().await;
    set(&group.proxy, &group.path(0), "drain").await;
    set(&group.proxy, &group.path(1), "down").await;
    group.proxy.reload(|config| config["upstreams"]["app"]["balance"] = json!("least_conn")).await;
    assert_eq!(group.status("state").await, ["drain", "down", "up"]);
    assert_eq!(group.answering(6).await, "c");
    // A peer that leaves and comes back is a new one.
    let without: Vec<_> = group.origins[1..].iter().map(Origin::address).collect();
    group.proxy.reload(|config| config["upstreams"]["app"]["servers"] = json!(without)).await;
    let with: Vec<_> = group.origins.iter().map(Origin::address).collect();
    group.proxy.reload(|config| config["upstreams"]["app"]["servers"] = json!(with)).await;
    assert_eq!(group.status("state").await, ["up", "down", "up"]);
}

#[tokio::test]
async fn what_is_not_there_is_a_404_and_what_is_no_state_a_400() {
    let group = Group::start().await;
    let drain = json!({ "state": "drain" }).to_string();
    for path in
        ["/upstreams/nope", "/upstreams/nope/peers/127.0.0.1:1", "/upstreams/app/peers/127.0.0.1:1", "/upstreams"]
    {
        assert_eq!(post(&group.proxy, path, &drain).await.status, 404, "{path}");
    }
    for body in ["", "drain", "{}", r#"{ "state": "asleep" }"#, r#"{ "state": "up", "wait": true }"#] {
        let answer = post(&group.proxy, &group.path(0), body).await;
        assert_eq!(answer.status, 400, "{body}: {}", String::from_utf8_lossy(&answer.body));
    }
    assert_eq!(group.status("state").await, ["up", "up", "up"], "nothing has changed");
    let get = Client::connect(group.proxy.ports.admin).await.get("/upstreams/app").await;
    assert!(matches!(get.status, 404 | 405), "only a POST changes anything: {}", get.status);
}
