//! Filters that say who may ask for what: `allow_deny`.

use crate::config::refuses_filter;
use crate::support::*;
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
    replace("deny 127.0.0.1\ndeny localhost\n");
    eventually("the mistake is found", async || {
        assert_eq!(client.get("/").await.status, 200, "the old list stays");
        proxy.log().contains("list.txt:2: expected an address").then_some(())
    })
    .await;
    fs::remove_file(&list).unwrap();
    eventually("it is gone", async || {
        assert_eq!(client.get("/").await.status, 200);
        proxy.log().contains("No such file").then_some(())
    })
    .await;
    replace("deny 127.0.0.0/8\n");
    eventually("the last list is used", async || (client.get("/").await.status == 403).then_some(())).await;
    let reloads = async |result| proxy.metric("allow_deny_reloads_total", &[("result", result)]).await;
    assert_eq!((reloads("success").await, reloads("failure").await), (Some(2.0), Some(2.0)));
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
