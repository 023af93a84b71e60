//! An upstream's answer over HTTP/1 reads the same, whatever it is and in whatever pieces it arrives.
//!
//! `cargo fuzz run http1_response fuzz/corpus/http1_response fuzz/seeds/http1_response`

#![no_main]

use libfuzzer_sys::fuzz_target;
use millpond::protocol::http1::Http1;
use pingora_http::RequestHeader;

#[path = "../../src/protocol/split_check.rs"]
mod split_check;

fuzz_target!(|wire: &[u8]| {
    for method in ["GET", "HEAD"] {
        let mut request = RequestHeader::build(method, b"/", None).expect("a valid request");
        request.insert_header("Upgrade", "websocket").expect("a valid header");
        split_check::check(&Http1, &request, wire, &[1]);
        split_check::check(&Http1, &request, wire, &[wire.len() / 2, 3]);
    }
});
