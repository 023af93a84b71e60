//! `error_pages` and `intercept_errors`: what a client is told when something has failed.

use crate::examples::example;
use crate::support::http2::{Http2, finish};
use crate::support::origin::Refusing;
use crate::support::*;
use std::fs;

const PAGE: &str = "<h1>Back soon</h1>";

/// The same with a file `page.html` beside the configuration.
fn with_page(setup: Setup) -> Setup {
    fs::write(setup.files.dir().join("page.html"), PAGE).unwrap();
    setup
}

/// A proxy whose upstream refuses connections, with `page.html` for its 502.
fn refused(refusing: &Refusing) -> Setup {
    with_page(Proxy::to_all(json!([refusing.address()]))).route(json!({ "error_pages": { "502": "page.html" } }))
}

/// `/pages/` is answered by `pages`, everything else by the upstream `app`, whose 4xx and 5xx become `/pages/STATUS`.
fn paged(app: &str, pages: &str) -> Setup {
    let error_pages = json!({ "404": "/pages/404?from=app", "413": "/pages/413", "502": "/pages/502" });
    Proxy::to_all(json!([app])).top(json!({ "upstreams": { "pages": { "servers": [pages] } } })).routes(json!([
        { "name": "app", "upstream": "app", "intercept_errors": true, "client_max_body_size": "1KiB",
          "error_pages": error_pages },
        { "name": "pages", "match": { "path": "/pages/" }, "internal": true, "upstream": "pages" },
    ]))
}

#[tokio::test]
async fn a_file_is_sent_with_the_status_of_the_error() {
    let refusing = Refusing::new();
    let proxy = refused(&refusing).start().await;
    let mut client = proxy.connect().await;
    // The connection stays: all of it on one.
    for _ in 0..2 {
        let response = client.get("/").await;
        assert_eq!((response.status, response.text().as_str()), (502, PAGE));
        assert_eq!(response.header("content-type"), Some("text/html; charset=utf-8"));
    }
    let response = client.request("HEAD", "/", "").await;
    assert_eq!((response.status, response.header("content-length")), (502, Some("18")));
    let post = client.post("POST", "/", b"body").await;
    assert_eq!((post.status, post.text().as_str()), (502, PAGE));
}

#[tokio::test]
async fn http2_clients_get_it_too() {
    let refusing = Refusing::new();
    let certificate = Certificate::new("test");
    let proxy = refused(&refusing).tls(&[&certificate]).start().await;
    let mut client = Http2::connect_tls(proxy.ports.tls, "test").await;
    for _ in 0..2 {
        let answer = client.get("/").await;
        assert_eq!((answer.status.as_u16(), answer.body.as_slice()), (502, PAGE.as_bytes()));
        assert_eq!(answer.headers["content-length"], "18");
    }
    let (answer, _) = client.open(http::Request::head("https://test/").body(()).unwrap(), true).await;
    let answer = finish(within("an answer", answer).await.unwrap()).await;
    assert_eq!((answer.status.as_u16(), answer.body.len()), (502, 0));
}

#[tokio::test]
async fn a_file_is_read_when_the_configuration_is() {
    let refusing = Refusing::new();
    let proxy = refused(&refusing).start().await;
    let mut client = proxy.connect().await;
    fs::write(proxy.files.dir().join("page.html"), "changed").unwrap();
    assert_eq!(client.get("/").await.text(), PAGE);
    proxy.signal("HUP");
    proxy.wait_log(&["reload:", "is in use"]).await;
    assert_eq!(client.get("/").await.text(), "changed");
}

#[tokio::test]
async fn a_route_answers_with_the_status_of_the_error() {
    let (refusing, pages) = (Refusing::new(), Origin::http(|_| reply(200, "sorry")).await);
    let proxy = paged(&refusing.address(), pages.address()).start().await;
    let mut client = proxy.connect().await;
    let headers = "Content-Length: 4\r\nContent-Type: a/b\r\nRange: bytes=0-1\r\nIf-None-Match: *\r\nX-Own: 1\r\n";
    client.send_request("POST", "/a?b", headers).await;
    client.send("body").await;
    let response = client.response().await;
    assert_eq!((response.status, response.text().as_str()), (502, "sorry"));
    let request = pages.only_request();
    assert_eq!((request.method.as_str(), request.target.as_str()), ("GET", "/pages/502"));
    assert_eq!((request.header("host"), request.header("x-own")), (Some("test"), Some("1")));
    for name in ["content-length", "content-type", "transfer-encoding", "range", "if-none-match"] {
        assert_eq!(request.header(name), None, "{name}");
    }
    let response = client.request("HEAD", "/", "").await;
    assert_eq!((response.status, pages.requests()[1].method.as_str()), (502, "HEAD"));
}

#[tokio::test]
async fn one_request_is_logged_and_counted_under_its_own_route() {
    let (refusing, pages) = (Refusing::new(), Origin::http(|_| reply(200, "sorry")).await);
    let proxy = paged(&refusing.address(), pages.address()).start().await;
    proxy.connect().await.post("POST", "/a?b", b"body").await;
    let lines = proxy.access_log(1).await;
    let fields = ["request_method", "request_uri", "status", "body_bytes_sent", "route"];
    assert_eq!(fields.map(|name| lines[0].field(name)), ["POST", "/a?b", "502", "5", "app"]);
    let addresses = format!("{} : {}", refusing.address(), pages.address());
    assert_eq!(lines[0].field("upstream_addr"), addresses);
    assert_eq!(lines[0].field("upstream_status"), "502 : 200");
    assert_eq!(proxy.metric("requests_total", &[]).await, Some(1.0));
    assert_eq!(proxy.metric("requests_total", &[("route", "app"), ("method", "POST")]).await, Some(1.0));
    assert_eq!(proxy.metric("requests_in_flight", &[]).await, Some(0.0));
    for (upstream, outcome) in [("app", "connect_error"), ("pages", "2xx")] {
        let labels = [("upstream", upstream), ("outcome", outcome)];
        assert_eq!(proxy.metric("upstream_attempts_total", &labels).await, Some(1.0), "{upstream}");
    }
    assert_eq!(proxy.metric("upstream_attempts_total", &[]).await, Some(2.0));
}

#[tokio::test]
async fn an_upstreams_errors_are_intercepted_only_on_demand_and_with_a_page() {
    let origin = Origin::http(|request| reply(request.target[1..].parse().unwrap(), "the upstream's own")).await;
    let route = |intercept: bool| json!({ "intercept_errors": intercept, "error_pages": { "5xx": "page.html" } });
    for intercept in [false, true] {
        let proxy = with_page(Proxy::to(&origin)).route(route(intercept)).start().await;
        let mut client = proxy.connect().await;
        for (status, has_page) in [(200, false), (404, false), (500, true), (503, true)] {
            let response = client.get(&format!("/{status}")).await;
            let expected = if intercept && has_page { PAGE } else { "the upstream's own" };
            assert_eq!((response.status, response.text().as_str()), (status, expected));
        }
    }
    assert_eq!(origin.connections(), 2, "an answer that came whole leaves its connection fit for the next request");
}

#[tokio::test]
async fn an_intercepted_body_is_not_waited_for_and_its_connection_closed() {
    let origin = Origin::start(|mut conn| async move {
        while conn.request().await.is_some() {
            let status = if conn.id == 0 { 500 } else { 200 };
            let rest = if conn.id == 0 { 1000 } else { 0 };
            conn.send(format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\nhello", 5 + rest)).await;
        }
    })
    .await;
    let route = json!({ "intercept_errors": true, "error_pages": { "500": "page.html" } });
    let proxy = with_page(Proxy::to(&origin)).route(route).start().await;
    let mut client = proxy.connect().await;
    assert_eq!(client.get("/").await.text(), PAGE);
    origin.wait("the connection is closed", |seen| seen.open == 0).await;
    assert_eq!(client.get("/").await.text(), "hello");
    // It was left, it has not failed.
    let labels = [("upstream", "app"), ("outcome", "5xx")];
    assert_eq!(proxy.metric("upstream_attempts_total", &labels).await, Some(1.0));
}

#[tokio::test]
async fn of_an_intercepted_401_the_challenges_stay() {
    let origin = Origin::http(|request| {
        let headers = "WWW-Authenticate: Basic\r\nWWW-Authenticate: Bearer\r\nX-Other: 1\r\nContent-Length: 0";
        format!("HTTP/1.1 {} X\r\n{headers}\r\n\r\n", &request.target[1..])
    })
    .await;
    let route = json!({ "intercept_errors": true, "error_pages": { "4xx": "page.html" } });
    let proxy = with_page(Proxy::to(&origin)).route(route).start().await;
    let mut client = proxy.connect().await;
    for (status, expected) in [(401, vec!["Basic", "Bearer"]), (403, vec![])] {
        let response = client.get(&format!("/{status}")).await;
        let challenges = response.head.headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case("www-authenticate"));
        assert_eq!(challenges.map(|(_, value)| value.as_str()).collect::<Vec<_>>(), expected);
        assert_eq!((response.text().as_str(), response.header("x-other")), (PAGE, None));
    }
}

#[tokio::test]
async fn when_the_page_fails_too_the_first_error_is_told() {
    let (app, refusing) = (Origin::http(|_| reply(404, "the upstream's own")).await, Refusing::new());
    let proxy = paged(app.address(), &refusing.address()).start().await;
    let mut client = proxy.connect().await;
    for _ in 0..2 {
        let response = client.get("/").await;
        assert_eq!((response.status, response.text().as_str()), (404, "404 Not Found\n"));
    }
    proxy.wait_log(&["web/pages: the error page for 404, /pages/404?from=app:", &refusing.address()]).await;
    assert_eq!(proxy.access_log(1).await[0].field("status"), "404");
}

#[tokio::test]
async fn an_error_page_has_no_error_page() {
    let origin = Origin::http(|request| reply(404, &request.target)).await;
    let route = json!({ "intercept_errors": true, "error_pages": { "404": "/missing" } });
    let proxy = Proxy::to(&origin).route(route).start().await;
    let response = proxy.connect().await.get("/a").await;
    assert_eq!((response.status, response.text().as_str()), (404, "/missing"));
    assert_eq!(origin.requests().len(), 2);
}

#[tokio::test]
async fn without_a_route_the_pages_of_the_defaults_are_used() {
    let origin = Origin::http(|_| reply(200, "hello")).await;
    let setup = with_page(Proxy::to(&origin)).top(json!({ "defaults": { "error_pages": { "404": "page.html" } } }));
    let proxy = setup
        .routes(json!([{ "match": { "path": "/a" }, "upstream": "app", "error_pages": { "404": "/a" } }]))
        .start()
        .await;
    let response = proxy.connect().await.get("/b").await;
    assert_eq!((response.status, response.text().as_str()), (404, PAGE));
}

#[tokio::test]
async fn a_body_that_is_too_large_is_answered_with_its_page_before_it_is_read() {
    let (app, pages) = (Origin::http(|_| reply(200, "")).await, Origin::http(|_| reply(200, "smaller, please")).await);
    let proxy = paged(app.address(), pages.address()).start().await;
    // More than the sockets' buffers hold: it can only be read behind the answer.
    let body = vec![b'x'; 4 * MIB as usize];
    let (mut client, length) = (proxy.connect().await, body.len());
    client.send_request("POST", "/", &format!("Content-Length: {length}\r\n")).await;
    let response = client.response().await;
    assert_eq!((response.status, response.text().as_str()), (413, "smaller, please"));
    client.send(&body).await;
    client.shutdown().await;
    assert!(client.closed().await);
    assert_eq!((app.requests().len(), pages.only_request().body.len()), (0, 0));
}

#[tokio::test]
async fn a_malformed_request_gets_its_page() {
    let origin = Origin::http(|_| reply(200, "hello")).await;
    let route = json!({ "error_pages": { "400": "page.html" } });
    let proxy = with_page(Proxy::to(&origin)).route(route).start().await;
    let mut client = proxy.connect().await;
    client.send("GET / HTTP/1.1\r\n\r\n").await;
    let response = client.response().await;
    assert_eq!((response.status, response.text().as_str()), (400, PAGE));
    assert_eq!(origin.requests().len(), 0);
}

#[tokio::test]
async fn what_filters_answer_and_how_they_fail_have_pages() {
    let origin = Origin::http(|_| reply(200, "hello")).await;
    for filter in [
        json!({ "answer": { "status": 403 } }),
        json!({ "fail": { "hook": "request_filter", "status": 403 } }),
        json!({ "fail": { "hook": "upstream_response_filter", "status": 403 } }),
    ] {
        let route = json!({ "filters": [filter], "error_pages": { "403": "page.html" } });
        let proxy = with_page(Proxy::to(&origin)).program(example("probe_filters")).route(route).start().await;
        let response = proxy.connect().await.get("/").await;
        assert_eq!((response.status, response.text().as_str()), (403, PAGE), "{filter}");
    }
}

#[tokio::test]
async fn the_body_of_a_request_that_a_filter_has_answered_does_not_reach_its_page() {
    let (app, pages) = (Origin::http(|_| reply(200, "")).await, Origin::http(|_| reply(200, "sorry")).await);
    let proxy = paged(app.address(), pages.address())
        .program(example("probe_filters"))
        .routes(json!([
            { "upstream": "app", "client_max_body_size": "1KiB", "filters": [{ "answer": { "status": 403 } }],
              "error_pages": { "403": "/pages/403" } },
            { "match": { "path": "/pages/" }, "upstream": "pages" },
        ]))
        .start()
        .await;
    let mut client = proxy.connect().await;
    client.send_request("POST", "/", "Transfer-Encoding: chunked\r\n").await;
    client.send(format!("{:x}\r\n{}\r\n", 4096, "x".repeat(4096))).await;
    let response = client.response().await;
    assert_eq!((response.status, response.text().as_str()), (403, "sorry"));
    assert_eq!(pages.only_request().header("transfer-encoding"), None);
}

#[tokio::test]
async fn a_filter_that_fails_on_the_page_leads_to_the_built_in_one() {
    let refusing = Refusing::new();
    let filters = json!([{ "trace": { "name": "a" } }, { "fail": { "hook": "response_filter", "status": 403 } }]);
    let proxy = refused(&refusing).program(example("probe_filters")).route(json!({ "filters": filters })).start().await;
    let response = proxy.connect().await.get("/").await;
    assert_eq!((response.status, response.text().as_str()), (502, "502 Bad Gateway\n"));
    // It fails on the built-in page too, which then goes out without the filters.
    assert_eq!(response.header("x-calls"), None);
}

#[tokio::test]
async fn a_client_that_has_left_gets_no_page() {
    let app = Origin::start(|mut conn| async move {
        conn.request().await;
        conn.closed().await;
    })
    .await;
    let pages = Origin::http(|_| reply(200, "sorry")).await;
    let proxy = paged(app.address(), pages.address()).start().await;
    let mut client = proxy.connect().await;
    client.send_request("GET", "/", "").await;
    app.wait("a request", |seen| seen.requests.len() == 1).await;
    drop(client);
    assert_eq!(proxy.access_log(1).await[0].field("status"), "499");
    assert_eq!(pages.connections(), 0);
}

#[tokio::test]
async fn a_client_that_leaves_before_its_page_is_there_is_a_499() {
    let refusing = Refusing::new();
    let pages = Origin::start(|mut conn| async move {
        conn.request().await;
        conn.closed().await;
    })
    .await;
    let proxy = paged(&refusing.address(), pages.address()).start().await;
    let mut client = proxy.connect().await;
    client.send_request("GET", "/", "").await;
    pages.wait("a request", |seen| seen.requests.len() == 1).await;
    drop(client);
    assert_eq!(proxy.access_log(1).await[0].field("status"), "499");
    pages.wait("the connection is closed", |seen| seen.open == 0).await;
}

#[tokio::test]
async fn an_answer_that_breaks_off_gets_no_page() {
    let app = Origin::once("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf").await;
    let pages = Origin::http(|_| reply(200, "sorry")).await;
    let proxy = paged(app.address(), pages.address()).start().await;
    let response = proxy.connect().await.get("/").await;
    assert_eq!((response.status, response.body.as_slice()), (200, &b"half"[..]));
    assert!(response.broken.is_some());
    assert_eq!(pages.connections(), 0);
}

#[tokio::test]
async fn a_page_can_be_told_what_it_is_for() {
    let (refusing, pages) = (Refusing::new(), Origin::http(|_| reply(200, "sorry")).await);
    let headers = json!({ "X-Status": "$status", "X-Uri": "$uri", "X-Request-Uri": "$request_method $request_uri" });
    let proxy = paged(&refusing.address(), pages.address())
        .top(json!({ "defaults": { "set_headers": headers } }))
        .start()
        .await;
    proxy.connect().await.post("POST", "/a?b=c", b"body").await;
    let request = pages.only_request();
    let values = ["x-status", "x-uri", "x-request-uri"].map(|name| request.header(name));
    assert_eq!(values, [Some("502"), Some("/pages/502"), Some("POST /a?b=c")]);
}

#[test]
fn a_page_that_is_not_there_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("proxy.yaml");
    fs::write(folder.path().join("large.html"), vec![b'x'; MIB as usize + 1]).unwrap();
    let text = "
upstreams: { app: { servers: [ 127.0.0.1:8080 ] } }
services:
  - name: web
    listen: [ 127.0.0.1:8000 ]
    routes:
      - match: { path: /app/ }
        upstream: app
        error_pages: { 502: absent.html, 503: /pages/503, 504: large.html, 200: /app/x, 404: /app/404, 4xx: 'http://x/' }
";
    fs::write(&file, text).unwrap();
    let output = Proxy::run(&["-t", "-c", file.to_str().unwrap()]);
    let errors = String::from_utf8(output.stderr).unwrap();
    let either = format!("expected a file that exists ({}", folder.path().display());
    for (key, found, expected) in [
        ("502", "absent.html", &*either),
        ("502", "absent.html", "or a path that a route of the service web matches"),
        (
            "503",
            "/pages/503",
            "expected a file that exists (/pages/503), or a path that a route of the service web matches",
        ),
        ("504", "large.html", "expected a file of at most 1MiB"),
        ("200", "200", "expected a status from 300 to 599"),
        ("4xx", "http://x/", &*either),
    ] {
        let place = format!("services[0].routes[0].error_pages.{key}: found \"{found}\"");
        let named = errors.lines().any(|line| line.contains(&place) && line.contains(expected));
        assert!(named, "{place}, {expected}:\n{errors}");
    }
    assert!(!errors.contains("error_pages.404"), "{errors}");
}
