//! An answer in CGI's form, as SCGI and uwsgi applications give it, reads the same, whatever it is and in whatever
//! pieces it arrives.
//!
//! `cargo fuzz run cgi_response fuzz/corpus/cgi_response fuzz/seeds/cgi_response`

#![no_main]

use libfuzzer_sys::fuzz_target;
use millpond::protocol::scgi::{Scgi, ScgiConf};
use pingora_http::RequestHeader;

#[path = "../../src/protocol/split_check.rs"]
mod split_check;

fuzz_target!(|wire: &[u8]| {
    let scgi = Scgi::new(ScgiConf::default());
    let request = RequestHeader::build("GET", b"/", None).expect("a valid request");
    split_check::check(&scgi, &request, wire, &[1]);
    split_check::check(&scgi, &request, wire, &[wire.len() / 2, 3]);
});
