//! A FastCGI application's answer reads the same, whatever it is and in whatever pieces it arrives.
//!
//! `cargo fuzz run fastcgi_response fuzz/corpus/fastcgi_response fuzz/seeds/fastcgi_response`

#![no_main]

use libfuzzer_sys::fuzz_target;
use millpond::protocol::fastcgi::{FastCgi, FastCgiConf};
use pingora_http::RequestHeader;

#[path = "../../src/protocol/split_check.rs"]
mod split_check;

fuzz_target!(|wire: &[u8]| {
    let fastcgi = FastCgi::new(FastCgiConf::default(), "fuzz").expect("valid settings");
    let request = RequestHeader::build("GET", b"/", None).expect("a valid request");
    split_check::check(&fastcgi, &request, wire, &[1]);
    split_check::check(&fastcgi, &request, wire, &[wire.len() / 2, 3]);
});
