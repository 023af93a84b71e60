//! `X-Accel-Redirect` and routes that are `internal`.

use crate::examples::example;
use crate::support::http2::Http2;
use crate::support::origin::Refusing;
use crate::support::*;

/// An answer that redirects to `target`, with these further header lines.
fn to(target: &str, headers: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nX-Accel-Redirect: {target}\r\n{headers}Content-Length: 5\r\n\r\nfirst")
}

/// `/files/` is internal, everything else goes to the upstream `app`.
fn redirecting(app: &str, files: &str) -> Setup {
    Proxy::to_all(json!([app])).top(json!({ "upstreams": { "files": { "servers": [files] } } })).routes(json!([
        { "name": "app", "upstream": "app" },
        { "name": "files", "match": { "path": "/files/" }, "internal": true, "upstream": "files" },
    ]))
}

/// An origin that answers with its requests' targets.
async fn files() -> Origin {
    Origin::http(|request| reply(200, &request.target)).await
}

#[tokio::test]
async fn another_route_answers_without_the_clients_body() {
    let (app, files) = (Origin::http(|_| to("/files/a?b=c", "X-Accel-Charset: utf-8\r\n")).await, files().await);
    let proxy = redirecting(app.address(), files.address()).start().await;
    let mut client = proxy.connect().await;
    for method in ["GET", "OPTIONS"] {
        let response = client.request(method, "/download", "Range: bytes=0-\r\n").await;
        assert_eq!((response.status, response.text().as_str()), (200, "/files/a?b=c"), "{method}");
        let accel = response.head.headers.iter().find(|(name, _)| name.to_ascii_lowercase().starts_with("x-accel"));
        assert_eq!(accel, None);
    }
    assert_eq!(client.post("POST", "/download", b"body").await.text(), "/files/a?b=c");
    // A first answer that came whole leaves its connection as good as it was.
    assert_eq!((app.connections(), files.connections()), (1, 1));
    assert_eq!(client.request("HEAD", "/download", "").await.header("content-length"), Some("12"));
    let requests = files.requests();
    let methods: Vec<&str> = requests.iter().map(|request| request.method.as_str()).collect();
    assert_eq!(methods, ["GET", "GET", "GET", "HEAD"]);
    assert_eq!((requests[0].header("host"), requests[0].header("range")), (Some("test"), Some("bytes=0-")));
    let body = ["content-length", "transfer-encoding", "content-type"];
    assert_eq!(body.map(|name| requests[2].header(name)), [None; 3]);
}

#[tokio::test]
async fn some_headers_of_the_first_answer_survive() {
    let first = "Content-Type: a/b\r\nContent-Disposition: attachment\r\nCache-Control: private\r\nExpires: 0\r\n\
                 Accept-Ranges: none\r\nSet-Cookie: a=1\r\nETag: \"first\"\r\nX-Other: first\r\n";
    let app = Origin::http(|_| to("/files/a", first)).await;
    let files = Origin::http(|_| {
        let headers = "Content-Type: text/plain\r\nCache-Control: public\r\nSet-Cookie: b=2\r\nETag: \"second\"\r\n";
        format!("HTTP/1.1 203 Second\r\n{headers}Content-Length: 6\r\n\r\nsecond")
    })
    .await;
    let proxy = redirecting(app.address(), files.address()).start().await;
    let response = proxy.connect().await.get("/").await;
    assert_eq!((response.status, response.text().as_str()), (203, "second"));
    for (name, value) in [
        ("content-type", Some("a/b")),
        ("content-disposition", Some("attachment")),
        ("cache-control", Some("private")),
        ("expires", Some("0")),
        ("accept-ranges", Some("none")),
        ("etag", Some("\"second\"")),
        ("x-other", None),
    ] {
        assert_eq!(response.header(name), value, "{name}");
    }
    let cookies = response.head.headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case("set-cookie"));
    assert_eq!(cookies.map(|(_, value)| value.as_str()).collect::<Vec<_>>(), ["b=2", "a=1"]);
}

#[tokio::test]
async fn the_first_upstream_is_left_at_once_and_its_connection_not_used_again() {
    let app = Origin::start(|mut conn| async move {
        while conn.request().await.is_some() {
            let head = "HTTP/1.1 500 First\r\nX-Accel-Redirect: /files/a\r\nContent-Length: 100000000\r\n\r\n";
            conn.send(head).await;
            conn.send_pattern(64 * KIB).await;
        }
    })
    .await;
    let (files, app_address) = (files().await, app.address().to_owned());
    let proxy = redirecting(&app_address, files.address()).start().await;
    let mut client = proxy.connect().await;
    for connections in 1..=2 {
        let response = client.get("/").await;
        assert_eq!((response.status, response.text().as_str()), (200, "/files/a"));
        app.wait("it is closed", |seen| seen.open == 0 && seen.connections == connections).await;
        // Counted by now.
        proxy.access_log(connections).await;
    }
    let labels = [("upstream", "app"), ("outcome", "5xx")];
    assert_eq!(proxy.metric("upstream_attempts_total", &labels).await, Some(2.0));
}

#[tokio::test]
async fn a_body_that_the_first_upstream_did_not_want_is_nobodys() {
    let app = Origin::start(|mut conn| async move {
        while conn.head().await.is_some() {
            conn.send(to("/files/a", "")).await;
            conn.closed().await;
        }
    })
    .await;
    let files = files().await;
    let proxy = redirecting(app.address(), files.address())
        .top(json!({ "defaults": { "request_buffering": false, "client_max_body_size": 0 } }))
        .start()
        .await;
    let body = vec![b'x'; 4 * MIB as usize];
    let mut client = proxy.connect().await;
    client.send_request("POST", "/", &format!("Content-Length: {}\r\n", body.len())).await;
    client.send(&body[..1000]).await;
    assert_eq!(client.response().await.text(), "/files/a");
    client.send(&body[1000..]).await;
    client.shutdown().await;
    assert!(client.closed().await);
    assert_eq!(files.only_request().body.len(), 0);
}

#[tokio::test]
async fn it_is_one_request_with_an_exchange_at_each_upstream() {
    let (app, files) = (Origin::http(|_| to("/files/a", "")).await, files().await);
    let proxy = redirecting(app.address(), files.address()).start().await;
    proxy.connect().await.post("POST", "/download?x", b"body").await;
    let lines = proxy.access_log(1).await;
    assert_eq!(lines.len(), 1);
    let fields = ["request_method", "request_uri", "status", "route", "upstream_status"];
    assert_eq!(fields.map(|name| lines[0].field(name)), ["POST", "/download?x", "200", "app", "200 : 200"]);
    assert_eq!(lines[0].field("upstream_addr"), format!("{} : {}", app.address(), files.address()));
    let of_route = |route| [("route", route), ("method", "POST"), ("status", "200")];
    assert_eq!(proxy.metric("requests_total", &of_route("app")).await, Some(1.0));
    assert_eq!(proxy.metric("requests_total", &[]).await, Some(1.0));
    for upstream in ["app", "files"] {
        let labels = [("upstream", upstream), ("outcome", "2xx")];
        assert_eq!(proxy.metric("upstream_attempts_total", &labels).await, Some(1.0), "{upstream}");
    }
}

#[tokio::test]
async fn filters_stand_around_a_redirect_like_the_skins_of_an_onion() {
    let (app, files) = (Origin::http(|_| to("/files/a", "")).await, files().await);
    let trace = |name: &str| json!([{ "trace": { "name": name } }]);
    let proxy = redirecting(app.address(), files.address())
        .program(example("probe_filters"))
        .service(json!({ "filters": trace("s") }))
        .routes(json!([
            { "upstream": "app", "filters": trace("a") },
            { "match": { "path": "/files/" }, "upstream": "files", "filters": trace("f") },
        ]))
        .start()
        .await;
    let response = proxy.connect().await.get("/").await;
    let first = "s:request a:request s:peer a:peer s:upstream_request a:upstream_request a:upstream_response \
                 s:upstream_response";
    // What is sent to another upstream is none of the first route's business, the answer is.
    let second =
        "f:request s:peer f:peer s:upstream_request f:upstream_request f:upstream_response s:upstream_response";
    let response_hooks = "f:response a:response s:response";
    assert_eq!(response.header("x-calls"), Some(format!("{first} {second} {response_hooks}").as_str()));
    let body = "f:body a:body s:body f:logging a:logging s:logging";
    proxy.wait_log(&[&format!("calls: {first} {second} {response_hooks} {body}")]).await;
    let traces = |origin: &Origin| {
        let head = origin.only_request().headers;
        head.into_iter()
            .filter(|(name, _)| name.eq_ignore_ascii_case("x-trace"))
            .map(|(_, value)| value)
            .collect::<String>()
    };
    assert_eq!((traces(&app), traces(&files)), ("sa".to_owned(), "sf".to_owned()));
}

#[tokio::test]
async fn filters_behind_the_one_that_answered_only_log() {
    let files = files().await;
    let trace = |name: &str| json!({ "trace": { "name": name } });
    let proxy = redirecting(files.address(), files.address())
        .program(example("probe_filters"))
        .routes(json!([
            { "upstream": "app", "filters": [trace("a"), { "answer": { "status": 403 } }, trace("b")],
              "error_pages": { "403": "/files/403" } },
            { "match": { "path": "/files/" }, "upstream": "files", "filters": [trace("f")] },
        ]))
        .start()
        .await;
    let response = proxy.connect().await.get("/").await;
    assert_eq!((response.status, response.text().as_str()), (403, "/files/403"));
    let calls = "a:request f:request f:peer f:upstream_request f:upstream_response f:response a:response f:body a:body \
                 b:logging f:logging a:logging";
    proxy.wait_log(&[&format!("calls: {calls}")]).await;
}

#[tokio::test]
async fn the_services_request_id_is_on_the_final_answer_and_at_both_upstreams() {
    let (app, files) = (Origin::http(|_| to("/files/a", "")).await, files().await);
    let filters = json!({ "filters": [{ "request_id": {} }] });
    let proxy = redirecting(app.address(), files.address()).service(filters).start().await;
    let response = proxy.connect().await.get("/").await;
    let id = response.header("x-request-id").unwrap();
    assert_eq!(app.only_request().header("x-request-id"), Some(id));
    assert_eq!(files.only_request().header("x-request-id"), Some(id));
}

#[tokio::test]
async fn the_settings_are_those_of_the_target() {
    let app = Origin::http(|_| to("/files/a%20b?c", "")).await;
    let files =
        Origin::http(|_| "HTTP/1.1 200 OK\r\nX-Hidden: 1\r\nX-Shown: 1\r\nContent-Length: 0\r\n\r\n".into()).await;
    let proxy = redirecting(app.address(), files.address())
        .routes(json!([
            { "upstream": "app", "host": "app.test", "hide_headers": ["X-Shown"], "set_headers": { "X-App": "1" } },
            { "match": { "path": "/files/" }, "upstream": "files", "host": "files.test", "hide_headers": ["X-Hidden"],
              "uri": "/store/", "set_headers": { "X-Uris": "$uri $request_uri" } },
        ]))
        .start()
        .await;
    let response = proxy.connect().await.get("/download").await;
    assert_eq!((response.header("x-hidden"), response.header("x-shown")), (None, Some("1")));
    let request = files.only_request();
    assert_eq!((request.target.as_str(), request.header("host")), ("/store/a%20b?c", Some("files.test")));
    assert_eq!((request.header("x-uris"), request.header("x-app")), (Some("/files/a%20b /download"), None));
}

#[tokio::test]
async fn http2_clients_are_redirected_too() {
    let (app, files) = (Origin::http(|_| to("/files/a", "")).await, files().await);
    let certificate = Certificate::new("test");
    let proxy = redirecting(app.address(), files.address()).tls(&[&certificate]).start().await;
    let mut client = Http2::connect_tls(proxy.ports.tls, "test").await;
    let answer = client.get("/download").await;
    assert_eq!((answer.status.as_u16(), answer.body.as_slice()), (200, &b"/files/a"[..]));
    assert_eq!(files.only_request().header("host"), Some("test"));
}

#[tokio::test]
async fn a_redirect_loop_ends_after_ten() {
    let app = Origin::http(|_| to("/again", "")).await;
    let proxy = Proxy::to(&app).start().await;
    let mut client = proxy.connect().await;
    for requests in [11, 22] {
        assert_eq!(client.get("/").await.status, 500);
        assert_eq!(app.requests().len(), requests);
    }
    proxy.wait_log(&["more than 10 internal redirects, the last one to /again"]).await;
}

#[tokio::test]
async fn a_redirect_to_what_is_no_path_is_a_502_that_is_logged() {
    let app = Origin::http(|request| to(request.header("x-to").unwrap(), "")).await;
    let proxy = Proxy::to(&app).start().await;
    let mut client = proxy.connect().await;
    for target in ["http://elsewhere/", "@named", "/../etc/passwd", "/a/%2e%2e/../b", "/%zz", "a"] {
        assert_eq!(client.request("GET", "/", &format!("X-To: {target}\r\n")).await.status, 502, "{target}");
        proxy.wait_log(&["X-Accel-Redirect: found", target, "expected a path", app.address()]).await;
    }
    assert_eq!(app.requests().len(), 6);
}

#[tokio::test]
async fn a_redirect_that_no_route_matches_is_a_404() {
    let app = Origin::http(|_| to("/files/a", "")).await;
    let routes = json!([{ "match": { "path": "/app/" }, "upstream": "app" }]);
    let proxy = Proxy::to(&app).routes(routes).start().await;
    assert_eq!(proxy.connect().await.get("/app/").await.status, 404);
    proxy.wait_log(&["no route matches the internal redirect to /files/a"]).await;
}

#[tokio::test]
async fn an_error_of_the_target_has_the_targets_page() {
    let (app, refusing) = (Origin::http(|_| to("/files/a", "")).await, Refusing::new());
    let proxy = redirecting(app.address(), &refusing.address())
        .routes(json!([
            { "match": { "path_exact": "/sorry" }, "upstream": "app", "uri": "/a" },
            { "match": { "path": "/files/" }, "upstream": "files", "error_pages": { "502": "/page" } },
            { "upstream": "app", "ignore_headers": [], "error_pages": { "502": "/sorry" } },
            { "match": { "path_exact": "/page" }, "upstream": "app", "ignore_headers": ["X-Accel-Redirect"] },
        ]))
        .start()
        .await;
    let response = proxy.connect().await.get("/").await;
    assert_eq!((response.status, response.text().as_str()), (502, "first"));
    let targets: Vec<String> = app.requests().into_iter().map(|request| request.target).collect();
    assert_eq!(targets, ["/", "/page"]);
    let addresses = [app.address(), &refusing.address(), app.address()].join(" : ");
    assert_eq!(proxy.access_log(1).await[0].field("upstream_addr"), addresses);
}

#[tokio::test]
async fn a_client_finds_nothing_where_only_redirects_lead() {
    let (app, files) = (Origin::http(|_| reply(200, "app")).await, files().await);
    let filters = json!({ "filters": [{ "request_id": {} }] });
    let proxy = redirecting(app.address(), files.address()).service(filters).start().await;
    let mut client = proxy.connect().await;
    for target in ["/files/a", "/%66iles/a", "//files/./a"] {
        let response = client.get(target).await;
        assert_eq!((response.status, response.header("x-request-id").is_some()), (404, true), "{target}");
    }
    assert_eq!((app.connections(), files.connections()), (0, 0));
    assert_eq!(proxy.access_log(1).await[0].field("route"), "files");
}

#[tokio::test]
async fn an_ignored_redirect_is_an_answer_like_others() {
    let (app, files) = (Origin::http(|_| to("/files/a", "")).await, files().await);
    let proxy = redirecting(app.address(), files.address())
        .top(json!({ "defaults": { "ignore_headers": ["X-Accel-Redirect"] } }))
        .start()
        .await;
    let response = proxy.connect().await.get("/").await;
    assert_eq!((response.text().as_str(), response.header("x-accel-redirect")), ("first", None));
    assert_eq!(files.connections(), 0);
}

#[tokio::test]
async fn timed_a_rate_that_the_first_answer_asks_for_holds_for_the_file() {
    let app = Origin::http(|_| to("/files/a", "X-Accel-Limit-Rate: 20000\r\n")).await;
    let files = Origin::http(|_| reply(200, &"x".repeat(40_000))).await;
    let proxy = redirecting(app.address(), files.address()).start().await;
    let started = std::time::Instant::now();
    assert_eq!(proxy.connect().await.get("/").await.text().len(), 40_000);
    assert!(started.elapsed().as_millis() >= 900, "{:?}", started.elapsed());
}
