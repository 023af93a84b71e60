//! A reply of Redis reads the same, whatever it is and in whatever pieces it arrives.
//!
//! `cargo fuzz run redis fuzz/corpus/redis fuzz/seeds/redis`

#![no_main]

use libfuzzer_sys::fuzz_target;
use millpond::conf::Conf;
use millpond::protocol::redis::Redis;
use pingora_http::RequestHeader;
use serde_json::{Value, json};
use std::sync::LazyLock;

#[path = "../../src/protocol/split_check.rs"]
mod split_check;

static PLAIN: LazyLock<Redis> = LazyLock::new(|| redis(json!({})));
static GUARDED: LazyLock<Redis> = LazyLock::new(|| redis(json!({ "password": "secret", "database": 3 })));

/// With these settings of the upstream.
fn redis(settings: Value) -> Redis {
    let mut upstream = json!({ "protocol": "redis", "servers": ["127.0.0.1:1"] });
    upstream.as_object_mut().expect("a mapping").extend(settings.as_object().expect("a mapping").clone());
    let route = json!({ "upstream": "db", "redis": { "key": "k" } });
    let service = json!({ "name": "web", "listen": ["127.0.0.1:0"], "routes": [route] });
    let conf = Conf::from_value(json!({ "upstreams": { "db": upstream }, "services": [service] })).expect("a valid file");
    let settings = serde_json::from_value(json!({ "key": "k" })).expect("valid settings");
    Redis::new(settings, &conf.upstreams["db"]).expect("valid settings")
}

fuzz_target!(|wire: &[u8]| {
    for method in ["GET", "DELETE"] {
        let request = RequestHeader::build(method, b"/", None).expect("a valid request");
        for redis in [&*PLAIN, &*GUARDED] {
            split_check::check(redis, &request, wire, &[1]);
            split_check::check(redis, &request, wire, &[wire.len() / 2, 3]);
        }
    }
});
