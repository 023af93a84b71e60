//! Filters that start requests of their own: `auth_request`, `fallback`, `mirror`, `include`.

use crate::support::client::{Framing, framing};
use crate::support::http2::Http2;
use crate::support::origin::Refusing;
use crate::support::*;
use std::sync::Arc;
use tokio::sync::{Barrier, Notify};

/// An origin that answers everything with this.
async fn answering(answer: impl Into<String>) -> Origin {
    let answer = answer.into();
    Origin::http(move |_| answer.clone()).await
}

/// An origin that reads requests and never answers.
async fn silent() -> Origin {
    Origin::start(async |mut conn| {
        conn.request().await;
        conn.closed().await;
    })
    .await
}

/// The route `other` at `/other`, internal, and everything else to `app` through `filter`.
fn beside(app: &Origin, other: &Origin, filter: Value) -> Setup {
    Proxy::to(app).top(json!({ "upstreams": { "other": { "servers": [other.address()] } } })).routes(json!([
        { "name": "app", "upstream": "app", "filters": [filter] },
        {
            "name": "other", "match": { "path": "/other" }, "internal": true, "upstream": "other",
            "set_headers": { "X-Original": "$request_method $request_uri" }, "timeouts": { "read": "200ms" },
        },
    ]))
}

fn auth() -> Value {
    json!({ "auth_request": { "uri": "/other/auth", "copy_headers": ["X-User"], "copy_to_client": ["Set-Cookie"] } })
}

#[tokio::test]
async fn auth_request_lets_pass_and_says_who_it_is() {
    let app = answering(reply(200, "hello")).await;
    let other = Origin::http(|request| {
        let user = if request.target.ends_with("auth") { "X-User: alice\r\nSet-Cookie: s=1\r\n" } else { "" };
        format!("HTTP/1.1 204 No Content\r\n{user}\r\n")
    })
    .await;
    let proxy = beside(&app, &other, auth()).start().await;
    let mut client = proxy.connect().await;
    let headers = "X-User: root\r\nAuthorization: Bearer 1\r\nContent-Length: 4\r\n";
    client.send_request("POST", "/page?a=1", headers).await;
    client.send("body").await;
    let response = client.response().await;
    assert_eq!((response.status, response.text().as_str()), (200, "hello"));
    assert_eq!(response.header("set-cookie"), Some("s=1"));
    let request = app.only_request();
    assert_eq!((request.header("x-user"), request.body.as_slice()), (Some("alice"), &b"body"[..]));
    let question = other.only_request();
    assert_eq!((question.method.as_str(), question.target.as_str()), ("GET", "/other/auth"));
    assert_eq!(question.header("x-original"), Some("POST /page?a=1"));
    assert_eq!(question.header("authorization"), Some("Bearer 1"));
    assert_eq!((question.header("content-length"), question.body.len()), (None, 0));
}

#[tokio::test]
async fn a_client_cannot_name_itself_where_the_answer_names_nobody() {
    let (app, other) = (answering(reply(200, "")).await, answering("HTTP/1.1 204 No Content\r\n\r\n").await);
    let proxy = beside(&app, &other, auth()).start().await;
    assert_eq!(proxy.connect().await.request("GET", "/", "X-User: root\r\n").await.status, 200);
    assert_eq!(app.only_request().header("x-user"), None);
}

#[tokio::test]
async fn each_request_is_asked_for_anew() {
    let app = answering(reply(200, "secret")).await;
    let other = Origin::http(|request| match request.header("authorization") {
        Some("good") => "HTTP/1.1 204 No Content\r\n\r\n".into(),
        _ => {
            let challenge = "WWW-Authenticate: Basic realm=\"a\"\r\nWWW-Authenticate: Bearer\r\n";
            format!("HTTP/1.1 401 Unauthorized\r\n{challenge}X-Other: 1\r\nContent-Length: 7\r\n\r\nsign in")
        }
    })
    .await;
    let proxy = beside(&app, &other, auth()).start().await;
    let mut client = proxy.connect().await;
    for _ in 0..2 {
        assert_eq!(client.request("GET", "/", "Authorization: good\r\n").await.text(), "secret");
        let refused = client.request("GET", "/", "Authorization: bad\r\n").await;
        assert_eq!((refused.status, refused.header("x-other")), (401, None));
        let challenges = refused.head.headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case("www-authenticate"));
        assert_eq!(challenges.count(), 2);
    }
    assert_eq!((app.requests().len(), other.requests().len()), (2, 4));
    assert_eq!(other.connections(), 1, "the connection is kept");
}

#[tokio::test]
async fn every_other_answer_and_none_is_a_500() {
    let app = answering(reply(200, "secret")).await;
    for (answer, status) in [(403, 403), (404, 500), (302, 500), (500, 500)] {
        let other = answering(format!("HTTP/1.1 {answer} X\r\nContent-Length: 0\r\n\r\n")).await;
        let proxy = beside(&app, &other, auth()).start().await;
        assert_eq!(proxy.connect().await.get("/").await.status, status, "{answer}");
    }
    let proxy = beside(&app, &silent().await, auth()).start().await;
    assert_eq!(proxy.connect().await.get("/").await.status, 500, "never");
    proxy.wait_log(&["filter auth_request", "no answer"]).await;
    let dead = Refusing::new();
    let setup = beside(&app, &app, auth()).top(json!({ "upstreams": { "other": { "servers": [dead.address()] } } }));
    assert_eq!(setup.start().await.connect().await.get("/").await.status, 500, "dead");
    assert_eq!(app.requests().len(), 0);
}

#[tokio::test]
async fn a_question_ends_with_the_client_that_it_is_asked_for() {
    let (app, other) = (answering(reply(200, "")).await, silent().await);
    let slow = json!({ "timeouts": { "read": "60s" } });
    let proxy = beside(&app, &other, auth()).top(json!({ "defaults": slow })).start().await;
    proxy.reload(|config| config["services"][0]["routes"][1]["timeouts"] = json!({ "read": "60s" })).await;
    let mut client = proxy.connect().await;
    client.send_request("GET", "/", "").await;
    other.wait("the question", |seen| seen.requests.len() == 1).await;
    client.reset();
    other.wait("its end", |seen| seen.open == 0).await;
}

#[tokio::test]
async fn a_subrequest_is_counted_and_logged_with_its_parents_id() {
    let (app, other) = (answering(reply(200, "")).await, answering("HTTP/1.1 204 No Content\r\n\r\n").await);
    let log = json!({ "access_log": { "format": "json" } });
    let proxy = beside(&app, &other, auth()).top(log).start().await;
    assert_eq!(proxy.connect().await.get("/page").await.status, 200);
    let lines = proxy.access_log(2).await;
    let lines: Vec<Value> = lines.iter().map(|line| serde_json::from_str(line.text()).unwrap()).collect();
    let sub = lines.iter().find(|line| line["subrequest"] == true).unwrap();
    let main = lines.iter().find(|line| line.get("subrequest").is_none()).unwrap();
    assert_eq!((&sub["request_id"], &sub["route"]), (&main["request_id"], &json!("other")));
    assert!(main["request_id"].is_string());
    assert_eq!((&sub["request_uri"], &sub["status"]), (&json!("/other/auth"), &json!(204)));
    assert_eq!(sub["attempts"][0]["address"], other.address());
    let count = proxy.metric("requests_total", &[("route", "other"), ("status", "204")]).await;
    assert_eq!(count, Some(1.0));
    assert_eq!(proxy.metric("requests_in_flight", &[]).await, Some(0.0));
}

#[tokio::test]
async fn a_filter_of_the_service_asks_once() {
    let (app, other) = (answering(reply(200, "")).await, answering("HTTP/1.1 204 No Content\r\n\r\n").await);
    let proxy = Proxy::to(&app)
        .top(json!({ "upstreams": { "other": { "servers": [other.address()] } } }))
        .service(json!({ "filters": [auth()] }))
        .routes(json!([
            { "name": "app", "upstream": "app" },
            { "name": "other", "match": { "path": "/other" }, "upstream": "other", "filters": [auth()] },
        ]))
        .start()
        .await;
    assert_eq!(proxy.connect().await.get("/").await.status, 200);
    assert_eq!(other.requests().len(), 1);
}

fn fallback() -> Value {
    json!({ "fallback": { "when": [502, 503, 504], "uri": "/other/sorry?of=$uri" } })
}

#[tokio::test]
async fn another_route_answers_for_an_upstream_that_fails() {
    let app = answering("HTTP/1.1 503 X\r\nX-First: 1\r\nContent-Length: 7\r\n\r\nbroken!").await;
    let other = answering("HTTP/1.1 200 OK\r\nX-Second: 2\r\nContent-Length: 5\r\n\r\nsorry").await;
    let proxy = beside(&app, &other, fallback()).start().await;
    let mut client = proxy.connect().await;
    for _ in 0..2 {
        let response = client.post("POST", "/page", b"body").await;
        assert_eq!((response.status, response.text().as_str()), (200, "sorry"));
        assert_eq!((response.header("x-first"), response.header("x-second")), (None, Some("2")));
    }
    let request = &other.requests()[0];
    assert_eq!((request.method.as_str(), request.target.as_str()), ("GET", "/other/sorry?of=/page"));
    let response = client.request("HEAD", "/page", "").await;
    assert_eq!((response.status, response.header("content-length")), (200, Some("5")));
    assert_eq!(other.requests()[2].method, "HEAD");
}

#[tokio::test]
async fn a_fallback_answers_for_a_dead_upstream_over_http2_too() {
    let dead = Refusing::new();
    let other = answering(reply(200, "sorry")).await;
    let setup = beside(&other, &other, fallback()).upstream(json!({ "servers": [dead.address()] }));
    let proxy = setup.tls(&[&Certificate::new("test")]).start().await;
    assert_eq!(proxy.connect().await.get("/").await.text(), "sorry");
    let answer = Http2::connect_tls(proxy.ports.tls, "test").await.get("/").await;
    assert_eq!((answer.status.as_u16(), answer.body.as_slice()), (200, &b"sorry"[..]));
    assert!(answer.broken.is_none());
}

#[tokio::test]
async fn a_long_fallback_comes_whole_and_at_the_clients_speed() {
    const LENGTH: u64 = 24 << 20;
    let app = answering(reply(503, "")).await;
    let other = Origin::start(async |mut conn| {
        while conn.request().await.is_some() {
            conn.send_head(LENGTH).await;
            conn.send_pattern(LENGTH).await;
        }
    })
    .await;
    let proxy = beside(&app, &other, fallback()).start().await;
    let before = proxy.memory();
    let mut client = proxy.connect().await;
    client.send_request("GET", "/", "").await;
    let head = client.head().await;
    assert_eq!(client.pattern_at(&head, 16 << 20).await, LENGTH);
    assert!(proxy.memory() < before + (6 << 20), "{} bytes more", proxy.memory() - before);
}

#[tokio::test]
async fn the_first_answer_stays_where_the_other_fails_too() {
    let app = answering(reply(503, "broken!")).await;
    for other in [answering(reply(502, "")).await, silent().await] {
        let proxy = beside(&app, &other, fallback()).start().await;
        let response = proxy.connect().await.get("/").await;
        assert_eq!((response.status, response.text().as_str()), (503, "broken!"));
        proxy.wait_log(&["fallback"]).await;
    }
    let other = answering(reply(200, "sorry")).await;
    let keep = json!({ "fallback": { "when": [503], "uri": "/other", "keep_status": true } });
    let response = beside(&app, &other, keep).start().await.connect().await.get("/").await;
    assert_eq!((response.status, response.text().as_str()), (503, "sorry"));
}

fn mirror(extra: Value) -> Value {
    let mut conf = json!({ "upstream": "other" });
    conf.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    json!({ "mirror": conf })
}

#[tokio::test]
async fn a_mirror_gets_copies_with_their_bodies() {
    let (app, other) = (answering(reply(200, "answer")).await, answering(reply(500, "not for you")).await);
    let proxy = beside(&app, &other, mirror(json!({}))).start().await;
    let mut client = proxy.connect().await;
    let body = vec![b'x'; 300_000];
    assert_eq!(client.post("PUT", "/a?b=c", &body).await.text(), "answer");
    assert_eq!(client.request("GET", "/d", "X-Custom: 1\r\n").await.text(), "answer");
    other
        .wait("both copies", |seen| {
            seen.requests.iter().filter(|r| r.target == "/d" || r.body.len() == 300_000).count() == 2
        })
        .await;
    let requests = other.requests();
    let put = requests.iter().find(|request| request.method == "PUT").unwrap();
    assert_eq!((put.target.as_str(), put.header("content-length")), ("/a?b=c", Some("300000")));
    assert!(put.body == body);
    let copy = requests.iter().find(|request| request.method == "GET").unwrap();
    assert_eq!((copy.target.as_str(), copy.header("x-custom")), ("/d", Some("1")));
    eventually("both are counted", async || {
        let labels = [("upstream", "other"), ("result", "sent")];
        (proxy.metric("mirror_requests_total", &labels).await == Some(2.0)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_mirror_that_never_answers_delays_nobody() {
    let (app, other) = (answering(reply(200, "answer")).await, silent().await);
    let proxy = beside(&app, &other, mirror(json!({ "max": 2 }))).start().await;
    let mut client = proxy.connect().await;
    for _ in 0..20 {
        assert_eq!(client.post("POST", "/", b"body").await.text(), "answer");
    }
    let dropped = proxy.metric("mirror_requests_total", &[("result", "dropped")]).await;
    assert_eq!(dropped, Some(18.0), "two are under way");
    let dead = Refusing::new();
    proxy.reload(|config| config["upstreams"]["other"]["servers"] = json!([dead.address()])).await;
    assert_eq!(client.post("POST", "/", b"body").await.text(), "answer");
    eventually("the copy has failed", async || {
        (proxy.metric("mirror_requests_total", &[("result", "failed")]).await >= Some(1.0)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_mirror_of_no_upstream_is_refused() {
    let app = answering(reply(200, "")).await;
    let setup = Proxy::to(&app).route(json!({ "filters": [{ "mirror": { "upstream": "ap" } }] }));
    let file = setup.files.dir().join("x.yaml");
    std::fs::write(&file, setup.resolved(&Ports::free()).to_string()).unwrap();
    let output = Proxy::run(&["-t", "-c", file.to_str().unwrap()]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(text.contains("services[0].routes[0].filters[0].mirror"), "{text}");
    assert!(text.contains("the name of an upstream, one of app, did you mean app?"), "{text}");
}

/// A page with includes from an origin that sends it in these pieces.
async fn page(pieces: &'static [&'static str]) -> Origin {
    Origin::start(move |mut conn| async move {
        while conn.request().await.is_some() {
            conn.send("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nTransfer-Encoding: chunked\r\n\r\n").await;
            for piece in pieces {
                conn.send(format!("{:x}\r\n{piece}\r\n", piece.len())).await;
            }
            conn.send("0\r\n\r\n").await;
        }
    })
    .await
}

fn include() -> Value {
    json!({ "include": { "on_error": "[gone]" } })
}

/// The rest of a body.
async fn rest(client: &mut Client, framing: &mut Framing) -> String {
    let mut rest = Vec::new();
    while let Some(piece) = client.body_piece(framing).await.unwrap() {
        rest.extend(piece);
    }
    String::from_utf8(rest).unwrap()
}

#[tokio::test]
async fn includes_are_fetched_side_by_side_and_stand_in_order() {
    let go = Arc::new(Notify::new());
    let app = Origin::start({
        let go = go.clone();
        move |mut conn| {
            let go = go.clone();
            async move {
                conn.request().await;
                conn.send("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 151\r\n\r\n").await;
                conn.send("<p>one <!--# include virtual=\"/other/1\" --> two <!--# incl").await;
                go.notified().await;
                conn.send(
                    "ude virtual=\"/other/2\" --> three <esi:include src=\"/other/3\"/> end <!--# echo x --><!-- x -->",
                )
                .await;
            }
        }
    })
    .await;
    let together = Arc::new(Barrier::new(3));
    let other = Origin::start(move |mut conn| {
        let together = together.clone();
        async move {
            while let Some(request) = conn.request().await {
                // None of them is answered before all are there.
                together.wait().await;
                conn.send(reply(200, &format!("({})", request.target))).await;
            }
        }
    })
    .await;
    let proxy = beside(&app, &other, include()).start().await;
    let mut client = proxy.connect().await;
    client.send_request("GET", "/", "").await;
    let head = client.head().await;
    assert_eq!(head.header("content-length"), None);
    let mut framing = framing(&head, "GET");
    assert_eq!(client.body_piece(&mut framing).await.unwrap().unwrap(), b"<p>one ");
    go.notify_one();
    let expected = "(/other/1) two (/other/2) three (/other/3) end <!--# echo x --><!-- x -->";
    assert_eq!(rest(&mut client, &mut framing).await, expected);
}

#[tokio::test]
async fn what_stands_before_an_include_does_not_wait_for_it() {
    let app = page(&["before <!--# include virtual=\"/other\" --> after"]).await;
    let go = Arc::new(Notify::new());
    let other = Origin::start({
        let go = go.clone();
        move |mut conn| {
            let go = go.clone();
            async move {
                conn.request().await;
                go.notified().await;
                conn.send(reply(200, "inside")).await;
            }
        }
    })
    .await;
    let setup = beside(&app, &other, include());
    let proxy = setup.start().await;
    proxy.reload(|config| config["services"][0]["routes"][1]["timeouts"] = json!({})).await;
    let mut client = proxy.connect().await;
    client.send_request("GET", "/", "").await;
    let head = client.head().await;
    let mut framing = framing(&head, "GET");
    let first = client.body_piece(&mut framing).await.unwrap().unwrap();
    assert_eq!(first, b"before ");
    go.notify_one();
    assert_eq!(rest(&mut client, &mut framing).await, "inside after");
}

#[tokio::test]
async fn an_include_that_fails_leaves_the_page_whole() {
    let app = page(&["a<!--# include virtual=\"/other\" -->b<!--# include virtual=\"elsewhere\" -->c"]).await;
    for other in [answering(reply(404, "x")).await, silent().await] {
        let proxy = beside(&app, &other, include()).start().await;
        assert_eq!(proxy.connect().await.get("/").await.text(), "a[gone]b[gone]c");
        proxy.wait_log(&["include /other: "]).await;
        proxy.wait_log(&["include elsewhere: "]).await;
    }
}

#[tokio::test]
async fn an_included_page_that_breaks_breaks_the_page() {
    let app = page(&["a<!--# include virtual=\"/other\" -->b"]).await;
    let other = Origin::once("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf").await;
    let proxy = beside(&app, &other, include()).start().await;
    let mut client = proxy.connect().await;
    client.send_request("GET", "/", "").await;
    let all = String::from_utf8(client.rest().await).unwrap();
    assert!(all.contains("half") && !all.ends_with("0\r\n\r\n"), "{all}");
}

#[tokio::test]
async fn includes_are_nested_no_deeper_than_they_may_be() {
    let app = page(&["<!--# include virtual=\"/page\" -->."]).await;
    let proxy = Proxy::to(&app).route(json!({ "filters": [include()] })).start().await;
    assert_eq!(proxy.connect().await.get("/").await.text(), "<!--# include virtual=\"/page\" -->....");
    assert_eq!(app.requests().len(), 4);
}

/// Whoever can write into a page must not be able to write requests.
#[tokio::test]
async fn a_page_cannot_put_more_than_a_path_into_a_request() {
    let app = page(&[
        "<!--# include virtual=\"/other/a b?c d\" --><!--# include virtual=\"/other HTTP/1.1\r\nX: y\" -->",
        "<!--# include virtual=\"http://127.0.0.1/other\" -->.",
    ])
    .await;
    let other = Origin::http(|request| reply(200, &request.target)).await;
    let proxy = beside(&app, &other, include()).start().await;
    assert_eq!(proxy.connect().await.get("/").await.text(), "/other/a%20b?c%20d[gone][gone].");
    assert_eq!(other.requests().len(), 1);
}

#[tokio::test]
async fn the_copy_of_an_upgrade_is_an_ordinary_request() {
    let (app, other) = (answering(reply(200, "")).await, answering(reply(200, "")).await);
    let proxy = beside(&app, &other, mirror(json!({}))).start().await;
    let headers = "Connection: Upgrade\r\nUpgrade: websocket\r\n";
    assert_eq!(proxy.connect().await.request("GET", "/", headers).await.status, 200);
    other.wait("the copy", |seen| seen.requests.len() == 1).await;
    assert_eq!(other.only_request().header("upgrade"), None);
    assert_eq!(app.only_request().header("upgrade"), Some("websocket"));
}

/// What one filter finds out is known to the subrequests of the next.
#[tokio::test]
async fn each_subrequest_knows_what_is_known_by_then() {
    let (app, other) = (answering(reply(200, "")).await, answering("HTTP/1.1 204 No Content\r\n\r\n").await);
    let id = json!({ "request_id": { "trust_incoming": true } });
    let copies = json!({ "mirror": { "upstream": "app" } });
    let proxy = beside(&app, &other, Value::Null)
        .routes(json!([
            { "upstream": "app", "filters": [copies, id, auth()] },
            { "match": { "path": "/other" }, "upstream": "other", "set_headers": { "X-Id": "$request_id" } },
        ]))
        .start()
        .await;
    assert_eq!(proxy.connect().await.request("GET", "/", "X-Request-Id: mine\r\n").await.status, 200);
    assert_eq!(other.only_request().header("x-id"), Some("mine"));
}

#[tokio::test]
async fn a_fallback_for_an_empty_answer_reaches_an_http2_client() {
    let (app, other) = (answering(reply(503, "")).await, answering(reply(200, "sorry")).await);
    let proxy = beside(&app, &other, fallback()).tls(&[&Certificate::new("test")]).start().await;
    let answer = Http2::connect_tls(proxy.ports.tls, "test").await.get("/").await;
    assert_eq!((answer.status.as_u16(), answer.body.as_slice()), (200, &b"sorry"[..]));
    assert!(answer.broken.is_none());
}

#[tokio::test]
async fn no_coded_bytes_get_into_a_page() {
    let app = page(&["a<!--# include virtual=\"/other\" -->b<!--# include virtual=\"/other/always\" -->c"]).await;
    let other = Origin::http(|request| match request.header("accept-encoding") {
        None if request.target == "/other" => reply(200, "text"),
        _ => "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\ngzip".into(),
    })
    .await;
    let proxy = beside(&app, &other, include()).start().await;
    let response = proxy.connect().await.request("GET", "/", "Accept-Encoding: gzip\r\n").await;
    assert_eq!(response.text(), "atextb[gone]c");
}

#[tokio::test]
async fn a_fallback_does_not_wait_for_the_answer_it_replaces() {
    let app = Origin::start(async |mut conn| {
        conn.request().await;
        conn.send("HTTP/1.1 503 X\r\nContent-Length: 7\r\n\r\n").await;
        conn.closed().await;
    })
    .await;
    let other = answering(reply(200, "sorry")).await;
    let proxy = beside(&app, &other, fallback()).start().await;
    assert_eq!(proxy.connect().await.get("/").await.text(), "sorry");
    app.wait("the end of the first exchange", |seen| seen.open == 0).await;
}

#[tokio::test]
async fn a_fallback_does_not_fail_with_the_answer_it_replaces() {
    let app = Origin::once("HTTP/1.1 503 X\r\nContent-Length: 7\r\n\r\n").await;
    let other = answering(reply(200, "sorry")).await;
    let proxy = beside(&app, &other, fallback()).start().await;
    assert_eq!(proxy.connect().await.get("/").await.text(), "sorry");
}

#[tokio::test]
async fn the_beginning_of_a_fallback_does_not_wait_for_its_rest() {
    let app = answering(reply(503, "")).await;
    let go = Arc::new(Notify::new());
    let other = Origin::start({
        let go = go.clone();
        move |mut conn| {
            let go = go.clone();
            async move {
                conn.request().await;
                conn.send("HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf").await;
                go.notified().await;
                conn.send("rest").await;
            }
        }
    })
    .await;
    let proxy = beside(&app, &other, fallback()).start().await;
    proxy.reload(|config| config["services"][0]["routes"][1]["timeouts"] = json!({})).await;
    let mut client = proxy.connect().await;
    client.send_request("GET", "/", "").await;
    let head = client.head().await;
    let mut framing = framing(&head, "GET");
    assert_eq!(client.body_piece(&mut framing).await.unwrap().unwrap(), b"half");
    go.notify_one();
    assert_eq!(rest(&mut client, &mut framing).await, "rest");
}

async fn endless() -> Origin {
    Origin::start(async |mut conn| {
        conn.request().await;
        conn.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n").await;
        conn.closed().await;
    })
    .await
}

#[tokio::test]
async fn a_subrequest_ends_with_the_client_that_left_in_its_middle() {
    let broken = answering(reply(503, "")).await;
    let tag = "a<!--# include virtual=\"/other\" -->";
    let text = |rest: &str| format!("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n{tag}{rest}");
    let app = Origin::once(text("b")).await;
    // More than may wait behind an include that is not answered.
    let long = Origin::once(text(&"b".repeat(300_000))).await;
    let cases = [
        (&broken, fallback(), endless().await),
        (&app, include(), endless().await),
        (&long, include(), silent().await),
    ];
    for (app, filter, other) in cases {
        let proxy = beside(app, &other, filter).tls(&[&Certificate::new("test")]).start().await;
        proxy.reload(|config| config["services"][0]["routes"][1]["timeouts"] = json!({})).await;
        let mut client = proxy.connect().await;
        client.send_request("GET", "/", "").await;
        client.head().await;
        other.wait("the subrequest", |seen| seen.requests.len() == 1).await;
        client.reset();
        other.wait("its end", |seen| seen.open == 0).await;
        let mut client = Http2::connect_tls(proxy.ports.tls, "test").await;
        let answer = client.get_head("/").await;
        other.wait("the subrequest", |seen| seen.requests.len() == 2).await;
        drop(answer);
        other.wait("its end", |seen| seen.open == 0).await;
        eventually("nothing is in flight", async || {
            (proxy.metric("requests_in_flight", &[]).await == Some(0.0)).then_some(())
        })
        .await;
    }
}

/// Each of them is polled by the one around it, and the stack of a thread ends somewhere.
#[tokio::test]
async fn a_route_that_asks_itself_does_not_end_the_process() {
    let app = answering(reply(503, "broken!")).await;
    let filter = json!({ "fallback": { "when": [503], "uri": "/sorry" } });
    let proxy = Proxy::to(&app).route(json!({ "filters": [filter] })).start().await;
    let response = proxy.connect().await.get("/").await;
    assert_eq!((response.status, response.text().as_str()), (503, "broken!"));
    let app = page(&["<!--# include virtual=\"/page\" -->."]).await;
    let filter = json!({ "include": { "max_depth": 255, "on_error": "[gone]" } });
    let proxy = Proxy::to(&app).route(json!({ "filters": [filter] })).start().await;
    assert_eq!(proxy.connect().await.get("/").await.text(), "[gone]...........");
}

#[tokio::test]
async fn a_copy_is_asked_for_with_what_the_routes_path_captured() {
    let (app, other) = (answering(reply(200, "")).await, answering(reply(200, "")).await);
    let proxy = Proxy::to(&app)
        .top(json!({ "upstreams": { "other": { "servers": [other.address()] } } }))
        .route(json!({ "match": { "path_regex": "^/a/(.*)$" }, "uri": "/b/$1", "filters": [mirror(json!({}))] }))
        .start()
        .await;
    assert_eq!(proxy.connect().await.get("/a/x").await.status, 200);
    other.wait("the copy", |seen| seen.requests.len() == 1).await;
    assert_eq!(app.only_request().target, "/b/x");
    assert_eq!(other.only_request().target, "/b/x");
    assert_eq!(other.only_request().header("content-length"), None);
    assert_eq!(proxy.connect().await.post("POST", "/a/y", b"").await.status, 200);
    other.wait("another copy", |seen| seen.requests.len() == 2).await;
    assert_eq!(other.requests()[1].header("content-length"), Some("0"));
}

#[tokio::test]
async fn a_mirror_of_the_service_asks_for_what_each_route_was_asked_for() {
    let (app, other) = (answering(reply(200, "")).await, answering(reply(200, "")).await);
    let proxy = Proxy::to(&app)
        .top(json!({ "upstreams": { "other": { "servers": [other.address()] } } }))
        .service(json!({ "filters": [mirror(json!({}))] }))
        .routes(json!([
            { "match": { "path": "/api/" }, "uri": "/v2/", "upstream": "app" },
            { "match": { "path": "/pictures" }, "upstream": "app" },
        ]))
        .start()
        .await;
    let mut client = proxy.connect().await;
    for path in ["/api/x", "/pictures/1"] {
        assert_eq!(client.get(path).await.status, 200);
    }
    other.wait("the copies", |seen| seen.requests.len() == 2).await;
    let mut paths: Vec<String> = other.requests().into_iter().map(|request| request.target).collect();
    paths.sort();
    assert_eq!(paths, ["/api/x", "/pictures/1"]);
}

#[tokio::test]
async fn a_copy_is_framed_as_the_request_is() {
    let (app, other) = (answering(reply(200, "")).await, answering(reply(200, "")).await);
    let proxy = beside(&app, &other, mirror(json!({}))).tls(&[&Certificate::new("test")]).start().await;
    let mut client = proxy.connect().await;
    for (method, headers) in [("GET", ""), ("POST", "Content-Length: 0\r\n"), ("DELETE", "")] {
        assert_eq!(client.request(method, "/", headers).await.status, 200);
    }
    client.send_request("PUT", "/", "Transfer-Encoding: chunked\r\n").await;
    client.send("0\r\n\r\n").await;
    assert_eq!(client.response().await.status, 200);
    let mut client = Http2::connect_tls(proxy.ports.tls, "test").await;
    assert_eq!(client.get("/2").await.status, 200);
    other.wait("the copies", |seen| seen.requests.len() == 5).await;
    let framing = |origin: &Origin| {
        let mut framing: Vec<_> = origin
            .requests()
            .iter()
            .map(|request| {
                let header = |name| request.header(name).map(str::to_owned);
                (request.method.clone(), request.target.clone(), header("content-length"), header("transfer-encoding"))
            })
            .collect();
        framing.sort();
        framing
    };
    assert_eq!(framing(&other), framing(&app));
}

/// As in nginx, where a redirect comes by the access phase again.
#[tokio::test]
async fn an_internal_redirect_is_asked_for_by_the_route_it_leads_to() {
    let app = Origin::http(|request| match request.target.as_str() {
        "/a" => "HTTP/1.1 200 OK\r\nX-Accel-Redirect: /files/a\r\nContent-Length: 0\r\n\r\n".into(),
        target => reply(200, target),
    })
    .await;
    let other =
        Origin::http(|request| reply(if request.header("cookie") == Some("good") { 200 } else { 403 }, "")).await;
    let proxy = Proxy::to(&app)
        .top(json!({ "upstreams": { "other": { "servers": [other.address()] } } }))
        .routes(json!([
            { "upstream": "app" },
            { "match": { "path": "/files" }, "internal": true, "upstream": "app", "filters": [auth()] },
            { "match": { "path": "/other" }, "internal": true, "upstream": "other" },
        ]))
        .start()
        .await;
    let mut client = proxy.connect().await;
    assert_eq!(client.request("GET", "/a", "Cookie: good\r\n").await.text(), "/files/a");
    assert_eq!(client.request("GET", "/a", "Cookie: bad\r\n").await.status, 403);
}
