//! The filters that limit what a client may do: how many requests, how large, how fast.

use crate::support::*;
use std::sync::Arc;
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
    let (origin, go_on) = waiting().await;
    let filter = json!({ "concurrency_limit": { "max": 2, "status": 429 } });
    let proxy = with(&origin, filter).start().await;
    let waiting = in_flight(&proxy, &origin, &["", ""]).await;
    assert_eq!(proxy.connect().await.get("/").await.status, 429);
    waiting.into_iter().for_each(Client::reset);
    go_on.add_permits(1000);
    until_let_in(&proxy, "").await;
    assert_eq!(in_flight(&proxy, &origin, &["", ""]).await.len(), 2, "both places are free again");
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
