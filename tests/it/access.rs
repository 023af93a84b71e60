//! Filters that say who may ask for what: `allow_deny`, `basic_auth`, `cors`.

use crate::config::refuses_filter;
use crate::support::*;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use std::fs;

async fn hello() -> Origin {
    Origin::http(|_| reply(200, "hello")).await
}

fn filter(name: &str, settings: Value) -> Value {
    json!({ "filters": [{ name: settings }] })
}

#[tokio::test]
async fn the_most_specific_network_decides() {
    let origin = hello().await;
    for (settings, status) in [
        (json!({ "allow": ["127.0.0.0/8"], "deny": ["0.0.0.0/0"] }), 200),
        (json!({ "allow": ["10.0.0.0/8"], "deny": ["0.0.0.0/0"] }), 403),
        (json!({ "allow": ["10.0.0.0/8"], "deny": ["all"] }), 403),
        (json!({ "allow": ["127.0.0.0/8"], "deny": ["127.0.0.1"] }), 403),
        (json!({ "deny": ["::/0"] }), 200),
        (json!({}), 200),
    ] {
        let proxy = Proxy::to(&origin).route(filter("allow_deny", settings.clone())).start().await;
        let forged = "X-Forwarded-For: 10.0.0.1\r\n";
        assert_eq!(proxy.connect().await.request("GET", "/", forged).await.status, status, "{settings}");
        assert_eq!(proxy.metric("allow_deny_denied_total", &[]).await, Some(f64::from(u8::from(status == 403))));
    }
    assert_eq!(origin.requests().len(), 3, "who is denied reaches no upstream");
}

#[tokio::test]
async fn a_changed_list_is_read_and_a_broken_one_is_not_used() {
    let origin = hello().await;
    let setup = Proxy::to(&origin);
    let list = setup.files.dir().join("list.txt");
    let replace = |text: &str| {
        fs::write(list.with_extension("new"), text).unwrap();
        fs::rename(list.with_extension("new"), &list).unwrap();
    };
    replace("deny 127.0.0.1\n");
    let proxy = setup.route(filter("allow_deny", json!({ "file": list }))).start().await;
    let mut client = proxy.connect().await;
    assert_eq!(client.get("/").await.status, 403);

    replace("# nobody\n");
    eventually("the new list is used", async || (client.get("/").await.status == 200).then_some(())).await;
    replace("deny 127.0.0.0/8\n");
    eventually("the third list is used", async || (client.get("/").await.status == 403).then_some(())).await;
    replace("allow 127.0.0.1\ndeny localhost\n");
    eventually("the mistake is found", async || {
        assert_eq!(client.get("/").await.status, 403, "the old list stays");
        proxy.log().contains("list.txt:2: expected an address").then_some(())
    })
    .await;
    fs::remove_file(&list).unwrap();
    eventually("it is gone", async || {
        assert_eq!(client.get("/").await.status, 403, "the old list stays");
        proxy.log().contains("No such file").then_some(())
    })
    .await;
    replace("# nobody\n");
    eventually("the last list is used", async || (client.get("/").await.status == 200).then_some(())).await;
    let reloads =
        async |result| proxy.metric("file_reloads_total", &[("filter", "allow_deny"), ("result", result)]).await;
    assert_eq!((reloads("success").await, reloads("failure").await), (Some(3.0), Some(2.0)));
}

#[test]
fn what_allow_deny_cannot_use_is_refused() {
    refuses_filter("allow_deny: { deny: [ 10.0.0.0/33 ] }", "an address, a network such as 10.0.0.0/8");
    refuses_filter("allow_deny: { file: /nonexistent/list }", "a file that can be read as `file`: /nonexistent/list");
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), "deny 1.2.3.4\ndny 1.2.3.5\n").unwrap();
    let report = format!("{}:2: expected `allow NETWORK` or `deny NETWORK`", file.path().display());
    refuses_filter(&format!("allow_deny: {{ file: {} }}", file.path().display()), &report);
}

/// Of `secret`: `htpasswd -nbB -C 4`.
const ANN: &str = "ann:$2y$04$jKcOiTdxTfwDzRt7drgmJOvLUMe9aCC8wWYJ1Cyc3QECfOhW.fEDC\n";

fn basic(credentials: &str) -> String {
    format!("Authorization: Basic {}\r\n", BASE64_STANDARD.encode(credentials))
}

/// A proxy that asks for credentials, its origin, and the file.
async fn guarded() -> (Origin, Proxy, std::path::PathBuf) {
    let origin = hello().await;
    let setup = Proxy::to(&origin).top(json!({ "access_log": { "format": "$status $remote_user" } }));
    let file = setup.files.dir().join("htpasswd");
    fs::write(&file, ANN).unwrap();
    let settings = json!({ "realm": "say \"friend\"", "htpasswd_file": file });
    let proxy = setup.route(filter("basic_auth", settings)).start().await;
    (origin, proxy, file)
}

#[tokio::test]
async fn basic_auth_lets_in_who_knows_a_password() {
    let (origin, proxy, _) = guarded().await;
    let mut client = proxy.connect().await;
    let challenge = Some(r#"Basic realm="say \"friend\"", charset="UTF-8""#);
    let refused = client.get("/").await;
    assert_eq!((refused.status, refused.header("www-authenticate")), (401, challenge));
    for wrong in ["ann:secre", "ann:", "bob:secret", ":secret", "ann"] {
        let refused = client.request("GET", "/", &basic(wrong)).await;
        assert_eq!((refused.status, refused.header("www-authenticate")), (401, challenge), "{wrong}");
    }
    assert_eq!(origin.requests().len(), 0);
    for _ in 0..3 {
        let answer = client.request("GET", "/", &basic("ann:secret")).await;
        assert_eq!((answer.status, answer.header("www-authenticate")), (200, None));
    }
    assert_eq!(
        client.request("GET", "/", &basic("ann:secre")).await.status,
        401,
        "what is remembered is the right one"
    );
    for (result, count) in [("missing", 2.0), ("wrong", 5.0), ("right", 1.0), ("known", 2.0)] {
        assert_eq!(proxy.metric("basic_auth_total", &[("result", result)]).await, Some(count), "{result}");
    }
    let log = eventually("the access log", async || {
        let log = fs::read_to_string(proxy.files.dir().join("access.log")).unwrap_or_default();
        (log.lines().count() == 10).then_some(log)
    })
    .await;
    assert_eq!(log.lines().filter(|line| *line == "200 ann").count(), 3, "{log}");
    assert!(!proxy.log().contains("secre"), "no credentials in the log");
}

#[tokio::test]
async fn a_changed_htpasswd_file_is_read_and_a_broken_one_is_not_used() {
    let (_origin, proxy, file) = guarded().await;
    let mut client = proxy.connect().await;
    assert_eq!(client.request("GET", "/", &basic("ann:secret")).await.status, 200);
    let replace = |text: &str| {
        fs::write(file.with_extension("new"), text).unwrap();
        fs::rename(file.with_extension("new"), &file).unwrap();
    };
    replace("bob:{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=\n");
    eventually("ann is no user any more", async || {
        (client.request("GET", "/", &basic("ann:secret")).await.status == 401).then_some(())
    })
    .await;
    assert_eq!(client.request("GET", "/", &basic("bob:secret")).await.status, 200);
    replace("ann:clear-text\n");
    eventually("the mistake is found", async || {
        assert_eq!(client.request("GET", "/", &basic("bob:secret")).await.status, 200);
        proxy.log().contains("htpasswd:1: expected for \"ann\" a hash").then_some(())
    })
    .await;
    assert!(!proxy.log().contains("clear-text"));
}

#[tokio::test]
async fn an_error_page_for_401_still_asks_for_credentials() {
    let origin = hello().await;
    let setup = Proxy::to(&origin);
    let (file, page) = (setup.files.dir().join("htpasswd"), setup.files.dir().join("401.html"));
    fs::write(&file, ANN).unwrap();
    fs::write(&page, "who are you?").unwrap();
    let proxy = setup
        .route(filter("basic_auth", json!({ "realm": "r", "htpasswd_file": file })))
        .route(json!({ "error_pages": { "401": page } }))
        .start()
        .await;
    let refused = proxy.connect().await.get("/").await;
    assert_eq!((refused.status, refused.text().as_str()), (401, "who are you?"));
    assert!(refused.header("www-authenticate").is_some());
}

#[test]
fn what_basic_auth_cannot_use_is_refused() {
    refuses_filter(
        "basic_auth: { realm: x, htpasswd_file: /nonexistent }",
        "a file that can be read as `htpasswd_file`",
    );
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), "ann:secret\n").unwrap();
    let (file, report) = (file.path().display(), format!("{}:1: expected for \"ann\" a hash", file.path().display()));
    refuses_filter(&format!("basic_auth: {{ realm: x, htpasswd_file: {file} }}"), &report);
    fs::write(file.to_string(), "").unwrap();
    refuses_filter(&format!("basic_auth: {{ realm: \"a\\n\", htpasswd_file: {file} }}"), "without control characters");
}

fn preflight(origin: &str, method: &str, headers: &str) -> String {
    format!(
        "Origin: {origin}\r\nAccess-Control-Request-Method: {method}\r\nAccess-Control-Request-Headers: {headers}\r\n"
    )
}

/// A proxy for pages of these origins.
async fn shared() -> (Origin, Proxy) {
    let origin =
        Origin::http(|_| reply(200, "hello").replace("\r\nContent", "\r\nAccess-Control-Allow-Origin: *\r\nContent"))
            .await;
    let settings = json!({
        "origins": ["https://app.test", "https://*.example.test"], "methods": ["PUT"], "headers": ["X-Token"],
        "expose": ["X-Total"], "credentials": true, "max_age": "10m",
    });
    let proxy = Proxy::to(&origin).route(filter("cors", settings)).start().await;
    (origin, proxy)
}

#[tokio::test]
async fn a_preflight_is_answered_for_those_who_may() {
    let (origin, proxy) = shared().await;
    let mut client = proxy.connect().await;
    for (from, method, headers, status) in [
        ("https://app.test", "PUT", "x-token, content-type", 204),
        ("https://a.b.example.test", "GET", "", 204),
        ("https://app.test", "DELETE", "", 403),
        ("https://app.test", "PUT", "x-other", 403),
        ("https://app.test.evil", "GET", "", 403),
        ("https://example.test", "GET", "", 403),
        ("null", "GET", "", 403),
    ] {
        let answer = client.request("OPTIONS", "/", &preflight(from, method, headers)).await;
        assert_eq!(answer.status, status, "{from} {method} {headers}");
        assert_eq!(client.leftover(), b"");
        if status == 204 {
            assert_eq!(answer.header("access-control-allow-origin"), Some(from));
            assert_eq!(answer.header("access-control-allow-methods"), Some(method));
            assert_eq!(answer.header("access-control-allow-headers"), Some(headers));
            assert_eq!(answer.header("access-control-allow-credentials"), Some("true"));
            assert_eq!(answer.header("access-control-max-age"), Some("600"));
        }
    }
    assert_eq!(origin.requests().len(), 0);
    assert_eq!(client.request("OPTIONS", "/", "Origin: https://app.test\r\n").await.text(), "hello", "no preflight");
}

#[tokio::test]
async fn other_answers_say_who_may_see_them() {
    let (_origin, proxy) = shared().await;
    let mut client = proxy.connect().await;
    let answer = client.request("GET", "/", "Origin: https://app.test\r\n").await;
    assert_eq!(answer.header("access-control-allow-origin"), Some("https://app.test"));
    assert_eq!(answer.header("access-control-expose-headers"), Some("X-Total"));
    assert_eq!(answer.header("vary"), Some("Origin"));
    for headers in ["Origin: https://evil.test\r\n", ""] {
        let answer = client.request("GET", "/", headers).await;
        assert_eq!((answer.text().as_str(), answer.header("vary")), ("hello", Some("Origin")));
        assert_eq!(answer.header("access-control-allow-origin"), None, "the upstream's is gone too");
        assert_eq!(answer.header("access-control-allow-credentials"), None);
    }
}

#[tokio::test]
async fn for_everybody_is_without_credentials() {
    let origin = hello().await;
    let proxy = Proxy::to(&origin).route(filter("cors", json!({ "origins": ["*"] }))).start().await;
    let answer = proxy.connect().await.get("/").await;
    assert_eq!((answer.header("access-control-allow-origin"), answer.header("vary")), (Some("*"), None));
    refuses_filter("cors: { origins: [ \"*\" ], credentials: true }", "`origins` by name, not `*`");
    refuses_filter("cors: {}", "at least one of `origins`");
    refuses_filter("cors: { origins: [ example.com ] }", "an origin such as https://example.com");
    refuses_filter("cors: { origins: [ \"*\" ], headers: [ a b ] }", "names of headers");
}
