//! [`Uwsgi`]: applications behind uWSGI's own protocol, the lower-case uwsgi.
//!
//! | HTTP | uwsgi |
//! |---|---|
//! | the request | a packet of the variables of CGI/1.1, with `modifier1` and `modifier2` |
//! | more than 64 KiB of variables: 431 | – |
//! | its body, read whole first if its length is not known | the bytes behind the packet |
//! | the response header | one of HTTP, or a CGI header block |
//! | the response body | the bytes behind that, until `Content-Length`, or the end of the connection |
//! | 502 (`next_upstream`: `invalid_header`) | what is no header |
//! | 502 (`next_upstream`: `error`) | closing at once: uWSGI does so if the packet is larger than its `buffer-size` (4 KiB) |
//! | a broken message | the connection ends before `Content-Length` |
//!
//! As nginx's `uwsgi_pass`. A connection serves one request.

use super::cgi::{OwnParams, Params, Script};
use super::cgi_stream::{CgiStream, Variables};
use super::{Codec, Protocol, Request};
use crate::error::{Error, Result};
use bytes::{BufMut, BytesMut};
use serde::Deserialize;
use std::sync::Arc;

/// The packet's header: `modifier1`, the size of what follows (16 bits, little endian), `modifier2`.
const HEADER: usize = 4;

/// A route's `uwsgi`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UwsgiConf {
    /// Variables that are added, or replace the usual ones; an empty value removes.
    #[serde(default)]
    params: OwnParams,
    /// Which of uWSGI's plugins is asked. Default: 0, Python.
    #[serde(default)]
    modifier1: u8,
    /// What the plugin makes of it. Default: 0.
    #[serde(default)]
    modifier2: u8,
}

/// uwsgi, as one route speaks it.
pub struct Uwsgi(Arc<Packet>);

impl Uwsgi {
    /// With a route's settings.
    pub fn new(conf: UwsgiConf) -> Self {
        let params = Params::new(Script::Application, conf.params);
        Uwsgi(Arc::new(Packet { params, modifier1: conf.modifier1, modifier2: conf.modifier2 }))
    }
}

impl Protocol for Uwsgi {
    fn codec(&self) -> Box<dyn Codec> {
        Box::new(CgiStream::new(self.0.clone()))
    }

    /// `CONTENT_LENGTH` says it.
    fn needs_body_length(&self) -> bool {
        true
    }
}

struct Packet {
    params: Params,
    modifier1: u8,
    modifier2: u8,
}

impl Variables for Packet {
    const NAME: &'static str = "uwsgi";

    fn write(&self, request: &Request<'_>, length: u64, out: &mut BytesMut) -> Result<()> {
        let start = out.len();
        out.put_slice(&[self.modifier1, 0, 0, self.modifier2]);
        let mut fits = put(out, b"CONTENT_LENGTH", length.to_string().as_bytes());
        self.params.each(request, |name, value| {
            if name != b"CONTENT_LENGTH" {
                fits = fits && put(out, name, value);
            }
        })?;
        let size = u16::try_from(out.len() - start - HEADER).ok().filter(|_| fits);
        let size = size.ok_or_else(|| {
            Error::with_status(431, "the headers and params of a request are more than a packet of uwsgi holds, 64 KiB")
        })?;
        if let Some(field) = out.get_mut(start + 1..start + 3) {
            field.copy_from_slice(&size.to_le_bytes());
        }
        Ok(())
    }
}

/// A pair of counted texts; `false` if the count has no room for one of them.
fn put(out: &mut BytesMut, name: &[u8], value: &[u8]) -> bool {
    let (Ok(name_size), Ok(value_size)) = (u16::try_from(name.len()), u16::try_from(value.len())) else { return false };
    out.put_u16_le(name_size);
    out.put_slice(name);
    out.put_u16_le(value_size);
    out.put_slice(value);
    true
}

#[cfg(test)]
mod tests {
    use super::super::BodyLength;
    use super::super::split_check::{End, check};
    use super::*;
    use pingora_http::RequestHeader;
    use std::collections::BTreeMap;

    fn uwsgi(settings: &str) -> Uwsgi {
        Uwsgi::new(serde_json::from_str(settings).unwrap())
    }

    fn written(settings: &str, request: &RequestHeader, length: BodyLength) -> Result<BytesMut> {
        let mut out = BytesMut::new();
        uwsgi(settings).codec().create_request(&Request::new(request, length, &()), &mut out)?;
        Ok(out)
    }

    /// The pairs of a packet, which has to be whole.
    fn variables(packet: &[u8]) -> BTreeMap<String, String> {
        fn text(rest: &mut &[u8]) -> String {
            let (size, behind) = rest.split_at(2);
            let (text, behind) = behind.split_at(u16::from_le_bytes(size.try_into().unwrap()).into());
            *rest = behind;
            String::from_utf8(text.to_vec()).unwrap()
        }
        let (mut rest, mut all) = (packet, BTreeMap::new());
        while !rest.is_empty() {
            assert_eq!(all.insert(text(&mut rest), text(&mut rest)), None);
        }
        all
    }

    #[test]
    fn a_packet_counts_what_is_in_it() {
        let request = RequestHeader::build("POST", b"/a%20b?c", None).unwrap();
        let settings = r#"{ "params": { "APP": "x" }, "modifier1": 5, "modifier2": 7 }"#;
        let out = written(settings, &request, BodyLength::Known(9)).unwrap();
        let (header, packet) = out.split_at(HEADER);
        assert_eq!((header[0], header[3]), (5, 7));
        assert_eq!(usize::from(u16::from_le_bytes([header[1], header[2]])), packet.len());
        let variables = variables(packet);
        for (name, value) in
            [("CONTENT_LENGTH", "9"), ("PATH_INFO", "/a b"), ("QUERY_STRING", "c"), ("APP", "x"), ("SCRIPT_NAME", "")]
        {
            assert_eq!(variables.get(name).map(String::as_str), Some(value), "{name}");
        }
    }

    #[test]
    fn more_than_a_packet_holds_is_refused() {
        for headers in [vec![70_000], vec![30_000, 30_000, 30_000], vec![66_000]] {
            let mut request = RequestHeader::build("GET", b"/", None).unwrap();
            for (index, size) in headers.into_iter().enumerate() {
                request.insert_header(format!("x-{index}"), "v".repeat(size)).unwrap();
            }
            assert_eq!(written("{}", &request, BodyLength::None).unwrap_err().status(), 431);
        }
        let mut request = RequestHeader::build("GET", b"/", None).unwrap();
        request.insert_header("x", "v".repeat(60_000)).unwrap();
        assert!(written("{}", &request, BodyLength::None).is_ok());
        assert_eq!(written("{}", &request, BodyLength::Unknown).unwrap_err().status(), 411);
    }

    #[test]
    fn an_answer_is_one_of_http() {
        let request = RequestHeader::build("GET", b"/", None).unwrap();
        let answer = check(&uwsgi("{}"), &request, b"HTTP/1.0 201 Made\r\nContent-Length: 2\r\n\r\nok", &[1]);
        assert_eq!((answer.body.as_slice(), answer.end), (b"ok".as_slice(), End::Done));
        assert!(answer.headers[0].contains(" 201 "), "{:?}", answer.headers);
    }

    #[test]
    fn settings_that_make_no_sense_are_refused() {
        for settings in [r#"{ "modifier1": 256 }"#, r#"{ "modifier": 1 }"#, r#"{ "params": { "": "x" } }"#] {
            assert!(serde_json::from_str::<UwsgiConf>(settings).is_err(), "{settings}");
        }
    }
}
