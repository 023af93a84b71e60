//! Filters that change where a request goes, or what an answer says: `redirect`, `rewrite`, `edit_json`.

use crate::config::refuses_filter;
use crate::support::*;

async fn hello() -> Origin {
    Origin::http(|_| reply(200, "hello")).await
}

fn filter(name: &str, settings: Value) -> Value {
    json!({ "filters": [{ name: settings }] })
}

#[tokio::test]
async fn a_redirect_answers_with_another_place() {
    let origin = hello().await;
    for (settings, target, expected) in [
        (json!({ "to": "https://$host$request_uri" }), "/a%20b?c=d", (308, "https://test/a%20b?c=d")),
        (json!({ "to": "https://new.test/$1", "status": 301 }), "/old/x", (301, "https://new.test/x")),
        (json!({ "to": "/new/$1", "status": 302 }), "/old/x%0d%0aSet-Cookie:a", (302, "/new/x%0D%0ASet-Cookie:a")),
        (json!({ "to": "/n/$1?t=$1" }), "/old/a%26b%3f%2520", (308, "/n/a&b%3F%2520?t=a%26b%3F%2520")),
        (json!({ "to": "$request_uri", "status": 307 }), "//evil.test/", (307, "/evil.test/")),
        (json!({ "to": "/$1", "status": 303 }), "/old//evil.test/", (303, "/evil.test/")),
        (json!({ "to": "$arg_next" }), "/?next=https://evil.test/", (308, "/https://evil.test/")),
        (json!({ "to": "/$arg_next" }), "/?next=\\evil.test", (308, "/evil.test")),
    ] {
        let routes = json!([
            { "match": { "path_regex": "(?s)^/old/(.*)$" }, "upstream": "app", "filters": [{ "redirect": settings }] },
            { "upstream": "app", "filters": [{ "redirect": settings }] },
        ]);
        let proxy = Proxy::to(&origin).routes(routes).start().await;
        let answer = proxy.connect().await.get(target).await;
        assert_eq!((answer.status, answer.header("location")), (expected.0, Some(expected.1)), "{target}");
        assert_eq!(answer.header("set-cookie"), None);
        assert_eq!(answer.text(), "");
    }
    assert_eq!(origin.requests().len(), 0);
}

#[test]
fn what_redirect_and_rewrite_cannot_use_is_refused() {
    refuses_filter("redirect: { to: \"https://example.com$1\" }", "a host with a `/` behind it as `to`");
    refuses_filter("redirect: { to: /, status: 200 }", "301, 302, 303, 307 or 308 as `status`, not 200");
    refuses_filter("rewrite: { regex: \"(\", to: / }", "a regular expression as `regex`");
    refuses_filter("rewrite: { regex: \"^/a\", to: b }", "a path that begins with a slash as `to`, not \"b\"");
    refuses_filter("rewrite: { regex: \"^/a\", to: /$1 }", "unknown variable $1");
    refuses_filter("edit_json: {}", "at least one place to `set` or to `remove`");
    refuses_filter("edit_json: { remove: [ secret ] }", "a JSON Pointer that begins with a slash, not \"secret\"");
    refuses_filter("edit_json: { set: { /a: \"$\" } }", "a `$` without a name");
}

#[tokio::test]
async fn rewrite_changes_the_path_for_the_upstream() {
    let origin = hello().await;
    for (settings, target, expected) in [
        (json!({ "regex": "^/a/(.*)", "to": "/b/$1" }), "/a/x%20y?q=%31", "/b/x%20y?q=%31"),
        (json!({ "regex": "^/a/(.*)", "to": "/b/$1?v=1&$args" }), "/a/x?q=1", "/b/x?v=1&q=1"),
        (
            json!({ "regex": "^/a/(?<id>.*)", "to": "/b?id=$id&m=$request_method" }),
            "/a/1%26x=2",
            "/b?id=1%26x%3D2&m=GET",
        ),
        (json!({ "regex": "^/a/(.*)", "to": "/b/$1" }), "/%61/../a//x%3Fy", "/b/x%3Fy"),
        (json!({ "regex": "^/a/(.*)", "to": "/b/$1" }), "/c/%61?q", "/c/%61?q"),
        (json!({ "regex": "^", "to": "/site$uri" }), "/a/x%20y%25?q=%31", "/site/a/x%20y%25?q=%31"),
        (json!({ "regex": "^/a/(.*)", "to": "/b/$1" }), "/a/x%0d%0aX-Evil:1", "/b/x%0D%0AX-Evil:1"),
    ] {
        let seen = origin.requests().len();
        let proxy = Proxy::to(&origin).route(filter("rewrite", settings.clone())).start().await;
        assert_eq!(proxy.connect().await.get(target).await.status, 200, "{settings} {target}");
        assert_eq!(origin.requests()[seen].target, expected, "{settings} {target}");
        assert_eq!(origin.requests()[seen].header("x-evil"), None);
        assert_eq!(proxy.access_log(1).await[0].field("request_uri"), target, "the log has what the client sent");
    }
}

#[tokio::test]
async fn the_routes_uri_replaces_its_prefix_and_nothing_else_of_a_new_path() {
    let origin = hello().await;
    for (to, expected) in [("/api/b/$1", "/v2/b/secret?x"), ("/users/$1", "/users/secret?x"), ("/b", "/b?x")] {
        let seen = origin.requests().len();
        let route = json!({
            "match": { "path": "/api/" }, "uri": "/v2/",
            "filters": [{ "rewrite": { "regex": "^/api/(.*)", "to": to } }],
        });
        let proxy = Proxy::to(&origin).route(route).start().await;
        assert_eq!(proxy.connect().await.get("/api/secret?x").await.status, 200, "{to}");
        assert_eq!(origin.requests()[seen].target, expected, "{to}");
    }
}

/// An origin that answers with this text, as JSON.
async fn json_origin(body: &'static str) -> Origin {
    Origin::http(move |request| {
        let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json; charset=utf-8\r\nETag: \"a\"\r\nRepr-Digest: sha-256=:x=:";
        let body = if request.method == "HEAD" { "" } else { body };
        format!("{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    })
    .await
}

#[tokio::test]
async fn edit_json_sets_and_removes_and_says_the_new_length() {
    let origin = json_origin(r#"{"z": 1, "user": {"name": "ann", "secret": "x"}, "list": [1, 2, 3]}"#).await;
    let settings = json!({
        "set": { "/user/path": "$request_method $uri", "/list/-": 4, "/n": null },
        "remove": ["/user/secret", "/list/0", "/list/1", "/none"],
    });
    let proxy = Proxy::to(&origin).route(filter("edit_json", settings)).start().await;
    let mut client = proxy.connect().await;
    for _ in 0..2 {
        let answer = client.get("/a").await;
        let expected = r#"{"z":1,"user":{"name":"ann","path":"GET /a"},"list":[3,4],"n":null}"#;
        assert_eq!(answer.text(), expected);
        assert_eq!(answer.header("content-length"), Some(expected.len().to_string().as_str()));
        assert_eq!((answer.header("etag"), answer.header("repr-digest")), (None, None), "they name other bytes");
    }
    let head = client.request("HEAD", "/a", "").await;
    assert_eq!((head.status, head.header("content-length"), client.leftover()), (200, None, &b""[..]));
}

#[tokio::test]
async fn edit_json_waits_for_the_end_of_a_body_in_pieces() {
    let origin = Origin::start(|mut conn| async move {
        conn.request().await;
        conn.send("HTTP/1.1 200 OK\r\nContent-Type: a/problem+json\r\nTransfer-Encoding: chunked\r\n\r\n").await;
        for byte in r#"{"a": "\u00e9", "b": [true]}"#.bytes() {
            conn.send(format!("1\r\n{}\r\n", byte as char)).await;
            tokio::task::yield_now().await;
        }
        conn.send("0\r\n\r\n").await;
    })
    .await;
    let proxy = Proxy::to(&origin).route(filter("edit_json", json!({ "remove": ["/b"] }))).start().await;
    let answer = proxy.connect().await.get("/").await;
    assert_eq!((answer.text().as_str(), answer.header("content-length")), ("{\"a\":\"é\"}", Some("10")));
}

#[tokio::test]
async fn what_cannot_be_edited_passes_or_fails() {
    for (body, settings) in [
        ("{\"a\": 1", json!({ "remove": ["/a"] })),
        ("", json!({ "remove": ["/a"] })),
        ("{\"a\": 1, \"b\": 2}", json!({ "remove": ["/a"], "max": 10 })),
    ] {
        let origin = json_origin(body).await;
        let proxy = Proxy::to(&origin).route(filter("edit_json", settings.clone())).start().await;
        let answer = proxy.connect().await.get("/").await;
        assert_eq!((answer.text().as_str(), answer.header("etag")), (body, Some("\"a\"")), "unchanged");
        let mut failing = settings;
        failing["on_error"] = "fail".into();
        let proxy = Proxy::to(&origin).route(filter("edit_json", failing)).start().await;
        assert_eq!(proxy.connect().await.get("/").await.status, 502, "{body}");
    }
}

#[tokio::test]
async fn a_body_of_unknown_length_that_is_too_long_passes_whole() {
    let body = format!("[{}0]", "1, ".repeat(50_000));
    let sent = body.clone();
    let origin = Origin::start(move |mut conn| {
        let sent = sent.clone();
        async move {
            conn.request().await;
            conn.send("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n").await;
            conn.send(sent).await;
        }
    })
    .await;
    let filters = filter("edit_json", json!({ "remove": ["/0"], "max": "1GiB" }));
    let proxy = Proxy::to(&origin).route(filters).route(json!({ "filter_hold_max": "64KiB" })).start().await;
    assert!(proxy.connect().await.get("/").await.text() == body, "the body differs");
}

#[tokio::test]
async fn a_truncated_body_is_not_edited_into_a_whole_one() {
    let origin =
        Origin::once("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 20\r\n\r\n{\"a\": 1}").await;
    let proxy = Proxy::to(&origin).route(filter("edit_json", json!({ "remove": ["/a"] }))).start().await;
    let answer = proxy.connect().await.get("/").await;
    assert!(answer.broken.is_some() || answer.status == 502, "{answer:?}");
}
