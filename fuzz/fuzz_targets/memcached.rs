//! An answer of memcached reads the same, whatever it is and in whatever pieces it arrives.
//!
//! `cargo fuzz run memcached fuzz/corpus/memcached fuzz/seeds/memcached`

#![no_main]

use libfuzzer_sys::fuzz_target;
use millpond::protocol::memcached::Memcached;
use pingora_http::RequestHeader;
use serde_json::json;
use std::sync::LazyLock;

#[path = "../../src/protocol/split_check.rs"]
mod split_check;

static MEMCACHED: LazyLock<Memcached> = LazyLock::new(|| {
    let settings = json!({ "key": "k", "gzip_flag": 1, "writes": true });
    Memcached::new(serde_json::from_value(settings).expect("valid settings"))
});

fuzz_target!(|wire: &[u8]| {
    for method in ["GET", "DELETE"] {
        let request = RequestHeader::build(method, b"/", None).expect("a valid request");
        split_check::check(&*MEMCACHED, &request, wire, &[1]);
        split_check::check(&*MEMCACHED, &request, wire, &[wire.len() / 2, 3]);
    }
});
