//! Which route, and what it makes of a request: design §5.

use crate::support::*;

/// An origin that answers with the path it was asked for.
async fn mirror() -> Origin {
    Origin::http(|request| reply(200, &request.target)).await
}

/// A proxy whose routes name themselves in a header.
async fn named(origin: &Origin, matches: Value) -> Proxy {
    let route = |(name, found): (String, &Value)| {
        let filters = json!([{ "headers": { "response": { "set": { "X-Route": name } } } }]);
        json!({ "match": found, "upstream": "app", "filters": filters })
    };
    let names = (0..).map(|number| format!("r{number}"));
    let routes: Value = names.zip(matches.as_array().unwrap()).map(route).collect();
    Proxy::to(origin).routes(routes).start().await
}

async fn asks(proxy: &Proxy, method: &str, host: &str, path: &str) -> String {
    let mut client = proxy.connect().await;
    client.send(format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")).await;
    let response = client.response_to(method).await;
    match response.status {
        200 => response.header("x-route").unwrap_or("none").to_owned(),
        status => status.to_string(),
    }
}

#[tokio::test]
async fn exact_then_regex_in_order_then_the_longest_prefix() {
    let origin = mirror().await;
    let proxy = named(
        &origin,
        json!([
            { "path": "/" }, { "path": "/images/" }, { "path": "/images/big/" }, { "path_exact": "/images/a.png" },
            { "path_regex": "\\.png$" }, { "path_regex": "^/images/.*" },
        ]),
    )
    .await;
    for (path, route) in [
        ("/", "r0"),
        ("/other", "r0"),
        ("/images/a.png", "r3"),
        ("/images/b.png", "r4"),
        ("/x.png?q=1", "r4"),
        ("/images/c.gif", "r5"),
        ("/images", "r0"),
    ] {
        assert_eq!(asks(&proxy, "GET", "test", path).await, route, "{path}");
    }
    let proxy = named(&origin, json!([{ "path": "/a/" }, { "path": "/a/b/" }, { "path": "/" }])).await;
    for (path, route) in [("/a/x", "r0"), ("/a/b/x", "r1"), ("/a/b", "r0"), ("/c", "r2")] {
        assert_eq!(asks(&proxy, "GET", "test", path).await, route, "{path}");
    }
}

#[tokio::test]
async fn host_exact_then_suffix_then_none() {
    let origin = mirror().await;
    let proxy = named(&origin, json!([{}, { "host": "*.example.com" }, { "host": "www.example.com" }])).await;
    for (host, route) in [
        ("www.example.com", "r2"),
        ("WWW.Example.COM", "r2"),
        ("www.example.com:8080", "r2"),
        ("a.example.com", "r1"),
        ("a.b.example.com", "r1"),
        ("example.com", "r0"),
        ("other.test", "r0"),
        ("evilexample.com", "r0"),
    ] {
        assert_eq!(asks(&proxy, "GET", host, "/").await, route, "{host}");
    }
}

#[tokio::test]
async fn methods_limit_a_route() {
    let origin = mirror().await;
    let proxy = named(&origin, json!([{ "path": "/", "method": ["GET", "HEAD"] }])).await;
    assert_eq!(asks(&proxy, "GET", "test", "/").await, "r0");
    assert_eq!(asks(&proxy, "DELETE", "test", "/").await, "404");
}

#[tokio::test]
async fn no_route_is_a_404_without_an_upstream() {
    let origin = mirror().await;
    let proxy = named(&origin, json!([{ "path": "/only/" }])).await;
    assert_eq!(asks(&proxy, "GET", "test", "/else").await, "404");
    assert_eq!(origin.connections(), 0);
    assert_eq!(proxy.access_log(1).await[0].field("status"), "404");
}

#[tokio::test]
async fn uri_replaces_the_matched_prefix_and_keeps_the_query() {
    let origin = mirror().await;
    let proxy = Proxy::to(&origin).route(json!({ "match": { "path": "/api/" }, "uri": "/v2/" })).start().await;
    let mut client = proxy.connect().await;
    assert_eq!(client.get("/api/users?a=1&b=%2F").await.text(), "/v2/users?a=1&b=%2F");
    assert_eq!(client.get("/api/").await.text(), "/v2/");
}

#[tokio::test]
async fn a_capture_in_uri_stays_one_value() {
    let origin = mirror().await;
    for (uri, target, expected) in [
        ("/v2/$1", "/a/x%20y", "/v2/x%20y"),
        ("/v2/$1", "/a/x%3Fadmin=1", "/v2/x%3Fadmin=1"),
        ("/v2/$1", "/a/x%2541", "/v2/x%2541"),
        ("/v2/$1", "/a/x%0d%0aX-Evil:%201", "/v2/x%0D%0AX-Evil:%201"),
        ("/v2/$1", "/a/%C3%A9", "/v2/%C3%A9"),
        ("/v2?q=$1", "/a/b&c=%23", "/v2?q=b%26c%3D%23"),
        ("/v2?q=$1", "/a/7?x=1&y=?", "/v2?q=7&x=1&y=?"),
        ("/v2$uri?r=$http_x_free", "/a/x%20y", "/v2/a/x%20y?r=a%20b"),
    ] {
        let route = json!({ "match": { "path_regex": "(?s)^/a/(.*)$" }, "upstream": "app", "uri": uri });
        let proxy = Proxy::to(&origin).routes(json!([route])).start().await;
        let answer = proxy.connect().await.request("GET", target, "X-Free: a b\r\n").await;
        assert_eq!((answer.status, answer.text().as_str()), (200, expected), "{uri} {target}");
    }
}

#[tokio::test]
async fn without_uri_the_target_passes_as_it_came() {
    let origin = mirror().await;
    let proxy = Proxy::to(&origin).start().await;
    let mut client = proxy.connect().await;
    for target in ["/a%20b//c/../d?x=%26", "/?", "/a;b=c", "/%C3%A9"] {
        assert_eq!(client.get(target).await.text(), target);
    }
}

#[tokio::test]
async fn host_is_preserved_replaced_or_the_upstreams() {
    let origin = mirror().await;
    for (host, expected) in [
        (json!("preserve"), "test".to_owned()),
        (json!("upstream"), origin.address().to_owned()),
        (json!("literal.test"), "literal.test".to_owned()),
    ] {
        let proxy = Proxy::to(&origin).route(json!({ "host": host })).start().await;
        assert_eq!(proxy.connect().await.get("/").await.status, 200);
        assert_eq!(origin.requests().last().unwrap().header("host"), Some(expected.as_str()), "{host}");
    }
}

#[tokio::test]
async fn set_headers_sets_with_variables_and_removes_with_nothing() {
    let origin = mirror().await;
    let set = json!({
        "X-Real-IP": "$remote_addr", "X-All": "$scheme://$host$request_uri $arg_q $http_x_in $route", "X-Gone": "",
    });
    let proxy = Proxy::to(&origin).route(json!({ "set_headers": set })).start().await;
    let headers = "X-In: in\r\nX-Gone: secret\r\nX-Real-IP: 6.6.6.6\r\n";
    assert_eq!(proxy.connect().await.request("GET", "/p?q=v&r=w", headers).await.status, 200);
    let request = origin.only_request();
    assert_eq!(request.header("x-real-ip"), Some("127.0.0.1"));
    assert!(request.header("x-all").unwrap().starts_with("http://test/p?q=v&r=w v in"), "{}", request.head);
    assert_eq!(request.header("x-gone"), None);
}

#[tokio::test]
async fn captures_of_the_path_are_variables() {
    let origin = mirror().await;
    let route = json!({
        "match": { "path_regex": "^/u/(?<user>[a-z]+)/([0-9]+)$" }, "set_headers": { "X-User": "$user $2" },
    });
    let proxy = Proxy::to(&origin).route(route).start().await;
    assert_eq!(proxy.connect().await.get("/u/ann/42").await.status, 200);
    assert_eq!(origin.only_request().header("x-user"), Some("ann 42"));
}

#[tokio::test]
async fn hide_headers_hides() {
    let origin = Origin::http(|_| {
        "HTTP/1.1 200 OK\r\nX-Powered-By: PHP\r\nServer: origin/1.0\r\nX-Accel-Expires: 5\r\nContent-Length: 0\r\n\r\n"
            .into()
    })
    .await;
    let proxy = Proxy::to(&origin).route(json!({ "hide_headers": ["X-Powered-By"] })).start().await;
    let response = proxy.connect().await.get("/").await;
    assert_eq!(response.header("x-powered-by"), None);
    assert_eq!(response.header("x-accel-expires"), None);
    assert_eq!(response.header("server"), Some("origin/1.0"), "the upstream's Server passes");
}

#[tokio::test]
async fn defaults_are_inherited_and_can_be_overridden() {
    let origin = mirror().await;
    let proxy = Proxy::to(&origin)
        .top(json!({ "defaults": { "client_max_body_size": 10, "set_headers": { "X-Default": "yes" } } }))
        .routes(json!([
            { "match": { "path": "/small/" }, "upstream": "app" },
            { "match": { "path": "/large/" }, "upstream": "app", "client_max_body_size": 100 },
        ]))
        .start()
        .await;
    let body = [b'x'; 50];
    assert_eq!(proxy.connect().await.post("POST", "/small/", &body).await.status, 413);
    assert_eq!(proxy.connect().await.post("POST", "/large/", &body).await.status, 200);
    assert_eq!(origin.only_request().header("x-default"), Some("yes"));
}

#[tokio::test]
async fn an_absolute_form_target_reaches_the_upstream_as_a_path() {
    let origin = Origin::http(|request| reply(200, &request.target)).await;
    let routes = json!([{ "upstream": "app" }, { "match": { "path": "/api/" }, "upstream": "app", "uri": "/v2/" }]);
    let proxy = Proxy::to(&origin).routes(routes).start().await;
    let mut client = proxy.connect().await;
    for (target, path) in [("/a?b", "/a?b"), ("", "/"), ("?b", "/?b"), ("/api/x?b", "/v2/x?b")] {
        assert_eq!(client.get(&format!("http://test{target}")).await.text(), path, "{target}");
    }
}

#[tokio::test]
async fn a_path_in_disguise_finds_the_route_of_the_path_it_is() {
    let origin = Origin::http(|request| reply(200, &request.target)).await;
    let admin = json!({ "match": { "path": "/admin" }, "set_headers": { "X-Guard": "yes" }, "upstream": "app" });
    let api = json!({ "match": { "path": "/api/" }, "uri": "/v2/", "upstream": "app" });
    let proxy = Proxy::to(&origin).routes(json!([admin, api, { "upstream": "app" }])).start().await;
    let mut client = proxy.connect().await;
    for path in ["/admin", "/%61dmin", "//admin", "/x/../admin", "/./admin/y"] {
        client.get(path).await;
        let request = origin.requests().pop().unwrap();
        assert_eq!(request.header("x-guard"), Some("yes"), "{path}");
        assert_eq!(request.target, path, "without `uri` the target goes on as it came");
    }
    assert_eq!(client.get("/api//a%20b/../c%3Fd?e=%2F").await.text(), "/v2/c%3Fd?e=%2F");
    for path in ["/../admin", "/%00", "/%zz"] {
        let mut client = proxy.connect().await;
        assert_eq!(client.get(path).await.status, 400, "{path}");
    }
}
