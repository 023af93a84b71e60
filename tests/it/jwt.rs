//! The filter `jwt`.

use crate::config::refuses_filter;
use crate::support::*;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode, get_current_timestamp};
use parking_lot::Mutex;
use std::sync::Arc;

/// A key of an issuer.
struct Signer {
    id: &'static str,
    key: EncodingKey,
}

impl Signer {
    fn new(id: &'static str) -> Self {
        let pair = rcgen::KeyPair::generate().unwrap();
        Signer { id, key: EncodingKey::from_ec_der(&pair.serialize_der()) }
    }

    fn sign(&self, claims: Value) -> String {
        let header = Header { kid: Some(self.id.to_owned()), ..Header::new(Algorithm::ES256) };
        encode(&header, &claims, &self.key).unwrap()
    }

    /// A token that is good for a while.
    fn good(&self, claims: Value) -> String {
        let mut all = json!({ "exp": get_current_timestamp() + 600, "iss": "me", "aud": ["shop", "blog"] });
        all.as_object_mut().unwrap().extend(claims.as_object().unwrap().clone());
        self.sign(all)
    }

    fn public(&self) -> Value {
        let mut jwk = Jwk::from_encoding_key(&self.key, Algorithm::ES256).unwrap();
        jwk.common.key_id = Some(self.id.to_owned());
        serde_json::to_value(jwk).unwrap()
    }
}

fn set(signers: &[&Signer]) -> String {
    json!({ "keys": signers.iter().map(|signer| signer.public()).collect::<Vec<_>>() }).to_string()
}

/// A proxy whose keys are in a file of its own.
async fn with_file(app: &Origin, keys: &str, extra: Value) -> Proxy {
    let setup = Proxy::to(app);
    let file = setup.files.dir().join("keys.json");
    std::fs::write(&file, keys).unwrap();
    let mut conf = json!({ "jwks_file": file });
    conf.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    setup.route(json!({ "filters": [{ "jwt": conf }] })).start().await
}

async fn status(client: &mut Client, token: &str) -> u16 {
    client.request("GET", "/", &format!("Authorization: Bearer {token}\r\n")).await.status
}

async fn app() -> Origin {
    Origin::http(|_| reply(200, "hello")).await
}

#[tokio::test]
async fn only_good_tokens_pass() {
    let (app, signer, stranger) = (app().await, Signer::new("a"), Signer::new("a"));
    let conf = json!({ "issuer": "me", "audience": "shop" });
    let proxy = with_file(&app, &set(&[&signer]), conf).await;
    let mut client = proxy.connect().await;
    assert_eq!(status(&mut client, &signer.good(json!({}))).await, 200);
    let now = get_current_timestamp();
    let bad = [
        ("expired", signer.good(json!({ "exp": now - 1 }))),
        ("without an end", signer.sign(json!({ "iss": "me", "aud": "shop" }))),
        ("not yet", signer.good(json!({ "nbf": now + 600 }))),
        ("another issuer", signer.good(json!({ "iss": "you" }))),
        ("for others", signer.good(json!({ "aud": "bank" }))),
        ("for nobody", signer.sign(json!({ "exp": now + 600, "iss": "me" }))),
        ("a stranger's key of the same name", stranger.good(json!({}))),
        ("no token", "x.y.z".to_owned()),
        ("a long one", "x".repeat(17 << 10)),
    ];
    for (what, token) in bad {
        assert_eq!(status(&mut client, &token).await, 401, "{what}");
    }
    let none = client.get("/").await;
    assert_eq!((none.status, none.header("www-authenticate")), (401, Some("Bearer")));
    let wrong = client.request("GET", "/", "Authorization: Bearer x\r\n").await;
    assert_eq!(wrong.header("www-authenticate"), Some("Bearer error=\"invalid_token\""));
    assert_eq!(app.requests().len(), 1);
}

/// The classic attacks: no signature, and the public key as a secret.
#[tokio::test]
async fn the_token_does_not_choose_how_it_is_checked() {
    let (app, signer) = (app().await, Signer::new("a"));
    let proxy = with_file(&app, &set(&[&signer]), json!({})).await;
    let mut client = proxy.connect().await;
    let claims = json!({ "exp": get_current_timestamp() + 600 });
    let header = Header { kid: Some("a".to_owned()), ..Header::new(Algorithm::HS256) };
    let public = signer.public().to_string();
    let forged = encode(&header, &claims, &EncodingKey::from_secret(public.as_bytes())).unwrap();
    assert_eq!(status(&mut client, &forged).await, 401);
    // {"alg":"none"}.{"exp":9999999999}.
    assert_eq!(status(&mut client, "eyJhbGciOiJub25lIn0.eyJleHAiOjk5OTk5OTk5OTl9.").await, 401);
    let only_rsa = with_file(&app, &set(&[&signer]), json!({ "algorithms": ["RS256"] })).await;
    assert_eq!(status(&mut only_rsa.connect().await, &signer.good(json!({}))).await, 401);
}

#[tokio::test]
async fn claims_replace_what_the_client_says() {
    let (app, signer) = (app().await, Signer::new("a"));
    let copy = json!({ "copy_claims": { "sub": "X-User", "roles": "X-Roles", "none": "X-None" }, "cookie": "session" });
    let proxy = with_file(&app, &set(&[&signer]), copy).await;
    let mut client = proxy.connect().await;
    let token = signer.good(json!({ "sub": "alice", "roles": ["a", "b"] }));
    let headers = format!("Cookie: x=1; session={token}\r\nX-User: root\r\nX-None: root\r\n");
    assert_eq!(client.request("GET", "/", &headers).await.status, 200);
    let request = app.only_request();
    let sent = ["x-user", "x-roles", "x-none"].map(|name| request.header(name));
    assert_eq!(sent, [Some("alice"), Some("[\"a\",\"b\"]"), None]);
    let token = signer.good(json!({ "sub": "alice\r\nX-Admin: 1" }));
    assert_eq!(client.request("GET", "/", &format!("Cookie: session={token}\r\n")).await.status, 401);
}

#[tokio::test]
async fn a_key_that_is_not_known_yet_is_asked_for() {
    let (old, new) = (Signer::new("old"), Signer::new("new"));
    let published = Arc::new(Mutex::new(set(&[&old])));
    let keys = Origin::http({
        let published = published.clone();
        move |_| reply(200, &published.lock())
    })
    .await;
    let app = app().await;
    let url = format!("http://{}/keys?v=1", keys.address());
    let proxy = Proxy::to(&app).route(json!({ "filters": [{ "jwt": { "jwks_url": url } }] })).start().await;
    let mut client = proxy.connect().await;
    for _ in 0..3 {
        assert_eq!(status(&mut client, &old.good(json!({}))).await, 200);
    }
    let request = keys.only_request();
    assert_eq!((request.target.as_str(), request.header("host")), ("/keys?v=1", Some(keys.address())));
    assert_eq!(request.header("authorization"), None, "the client's token is not the issuer's business");
    *published.lock() = set(&[&new]);
    // Not more often than every ten seconds, whatever strangers send.
    assert_eq!(status(&mut client, &new.good(json!({}))).await, 401);
    assert_eq!(keys.requests().len(), 1);
    // A new filter asks anew.
    proxy.reload(|_| {}).await;
    assert_eq!(status(&mut client, &new.good(json!({}))).await, 200);
    assert_eq!(status(&mut client, &old.good(json!({}))).await, 401);
}

#[tokio::test]
async fn keys_may_come_from_a_route_and_may_not_come_at_all() {
    let (app, signer) = (app().await, Signer::new("a"));
    let text = set(&[&signer]);
    let keys = Origin::http(move |_| reply(200, &text)).await;
    let routes = |servers: Value| {
        let filters = json!([{ "jwt": { "jwks_url": "/keys", "timeout": "300ms" } }]);
        Proxy::to(&app).top(json!({ "upstreams": { "keys": { "servers": servers } } })).routes(json!([
            { "upstream": "app", "filters": filters },
            { "match": { "path_exact": "/keys" }, "internal": true, "upstream": "keys" },
        ]))
    };
    let proxy = routes(json!([keys.address()])).start().await;
    assert_eq!(status(&mut proxy.connect().await, &signer.good(json!({}))).await, 200);
    let silent = Origin::start(async |mut conn| {
        conn.request().await;
        conn.closed().await;
    })
    .await;
    let proxy = routes(json!([silent.address()])).start().await;
    assert_eq!(status(&mut proxy.connect().await, &signer.good(json!({}))).await, 503);
    proxy.wait_log(&["jwt: the keys: not there within 300ms"]).await;
}

#[tokio::test]
async fn a_changed_file_is_read_again_and_a_broken_one_is_not_used() {
    let (app, old, new) = (app().await, Signer::new("old"), Signer::new("new"));
    let proxy = with_file(&app, &set(&[&old]), json!({})).await;
    let mut client = proxy.connect().await;
    let file = proxy.files.dir().join("keys.json");
    std::fs::write(&file, "{}").unwrap();
    eventually("the broken file is found", async || {
        assert_eq!(status(&mut client, &old.good(json!({}))).await, 200);
        proxy.log().contains("what it said before stays in use").then_some(())
    })
    .await;
    std::fs::write(&file, set(&[&new])).unwrap();
    eventually("the new key is used", async || (status(&mut client, &new.good(json!({}))).await == 200).then_some(()))
        .await;
    assert_eq!(status(&mut client, &old.good(json!({}))).await, 401);
}

#[test]
fn what_has_no_keys_is_refused() {
    refuses_filter("jwt: {}", "either `jwks_file` or `jwks_url`");
    refuses_filter("jwt: { jwks_file: /nonexistent }", "a file that can be read as `jwks_file`: /nonexistent");
    refuses_filter("jwt: { jwks_url: 'ftp://example.com/keys' }", "a URL such as https://example.com/keys");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), r#"{ "keys": [] }"#).unwrap();
    let file = file.path().display();
    refuses_filter(
        &format!("jwt: {{ jwks_file: {file} }}"),
        &format!("{file}: expected a set of keys (JWKS) with at least one"),
    );
}
