//! An upstream's answer over HTTP/1 reads the same, whatever it is and in whatever pieces it arrives.
//!
//! `cargo fuzz run http1_response fuzz/corpus/http1_response fuzz/seeds/http1_response`

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../src/protocol/http1/split_check.rs"]
mod split_check;

fuzz_target!(|wire: &[u8]| {
    for method in ["GET", "HEAD"] {
        split_check::check(method, wire, &[1]);
        split_check::check(method, wire, &[wire.len() / 2, 3]);
    }
});
