//! [`Scgi`]: applications behind SCGI.
//!
//! | HTTP | SCGI |
//! |---|---|
//! | the request | a netstring of the variables of CGI/1.1, `CONTENT_LENGTH` and `SCGI` in front |
//! | its body, read whole first if its length is not known | the bytes behind that |
//! | the response header | a CGI header block or one of HTTP: the status is its status line's, that of `Status`, 302
//! with a `Location`, else 200 |
//! | the response body | the bytes behind that, until `Content-Length`, or the end of the connection |
//! | 502 (`next_upstream`: `invalid_header`) | what is no header |
//! | a broken message | the connection ends before `Content-Length` |
//!
//! As nginx's `scgi_pass`. A connection serves one request.

use super::cgi::{OwnParams, Params, Script};
use super::cgi_stream::{CgiStream, Variables};
use super::{Codec, Protocol, Request};
use crate::error::{Error, Result};
use bytes::{BufMut, BytesMut};
use serde::Deserialize;
use std::sync::Arc;

/// A route's `scgi`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScgiConf {
    /// Variables that are added, or replace the usual ones; an empty value removes.
    #[serde(default)]
    params: OwnParams,
}

/// SCGI, as one route speaks it.
pub struct Scgi(Arc<Netstring>);

impl Scgi {
    /// With a route's settings.
    pub fn new(conf: ScgiConf) -> Self {
        Scgi(Arc::new(Netstring(Params::new(Script::Application, conf.params))))
    }
}

impl Protocol for Scgi {
    fn codec(&self) -> Box<dyn Codec> {
        Box::new(CgiStream::new(self.0.clone()))
    }

    /// `CONTENT_LENGTH` says it.
    fn needs_body_length(&self) -> bool {
        true
    }
}

/// `LENGTH:NAME 0 VALUE 0 … ,`
struct Netstring(Params);

impl Variables for Netstring {
    const NAME: &'static str = "SCGI";

    fn write(&self, request: &Request<'_>, length: u64, out: &mut BytesMut) -> Result<()> {
        let (mut list, mut has_nul) = (BytesMut::with_capacity(1024), false);
        let mut put = |name: &[u8], value: &[u8]| {
            has_nul |= [name, value].iter().any(|text| memchr::memchr(0, text).is_some());
            for text in [name, value] {
                list.put_slice(text);
                list.put_u8(0);
            }
        };
        // The specification wants the first one there, always; the second says which specification.
        put(b"CONTENT_LENGTH", length.to_string().as_bytes());
        put(b"SCGI", b"1");
        self.0.each(request, |name, value| {
            if !matches!(name, b"CONTENT_LENGTH" | b"SCGI") {
                put(name, value);
            }
        })?;
        if has_nul {
            return Err(Error::with_status(400, "a NUL in a variable of SCGI, where it would end the value"));
        }
        out.put_slice(format!("{}:", list.len()).as_bytes());
        out.put_slice(&list);
        out.put_u8(b',');
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::BodyLength;
    use super::super::split_check::{Answer, End, check, check_seeds};
    use super::*;
    use crate::error::ErrorKind;
    use bytes::Bytes;
    use pingora_http::RequestHeader;
    use proptest::prelude::*;

    fn scgi(params: &str) -> Scgi {
        Scgi::new(serde_json::from_str(&format!(r#"{{ "params": {params} }}"#)).unwrap())
    }

    fn request(method: &str) -> RequestHeader {
        RequestHeader::build(method, b"/a%20b?c", None).unwrap()
    }

    fn written(params: &str, length: BodyLength) -> Result<String> {
        let mut out = BytesMut::new();
        scgi(params).codec().create_request(&Request::new(&request("POST"), length, &()), &mut out)?;
        Ok(String::from_utf8(out.to_vec()).unwrap())
    }

    fn answer(wire: &str) -> Answer {
        check(&scgi("{}"), &request("GET"), wire.as_bytes(), &[1])
    }

    #[test]
    fn the_length_comes_first_and_is_always_there() {
        for (length, first) in [(BodyLength::None, "0"), (BodyLength::Known(27), "27")] {
            let text = written("{}", length).unwrap();
            let (size, list) = text.split_once(':').unwrap();
            let list = list.strip_suffix(',').unwrap();
            assert_eq!(size.parse::<usize>().unwrap(), list.len());
            assert!(list.starts_with(&format!("CONTENT_LENGTH\0{first}\0SCGI\x001\0")), "{list:?}");
            assert_eq!(list.matches("CONTENT_LENGTH").count(), 1, "{list:?}");
            assert!(list.contains("\0PATH_INFO\0/a b\0") && list.contains("\0QUERY_STRING\0c\0"), "{list:?}");
        }
        assert_eq!(written("{}", BodyLength::Unknown).unwrap_err().status(), 411);
        let own = written(r#"{ "SCGI": "2", "APP": "x" }"#, BodyLength::None).unwrap();
        assert!(own.contains("SCGI\x001\0") && !own.contains("SCGI\x002\0") && own.contains("\0APP\0x\0"), "{own:?}");
    }

    #[test]
    fn no_more_of_a_body_is_sent_than_was_announced() {
        let (mut codec, mut out) = (scgi("{}").codec(), Vec::new());
        let header = request("POST");
        codec.create_request(&Request::new(&header, BodyLength::Known(3), &()), &mut BytesMut::new()).unwrap();
        codec.request_body(Bytes::from_static(b"ab"), false, &mut out);
        codec.request_body(Bytes::from_static(b"cd"), true, &mut out);
        assert_eq!(out.concat(), b"abc");
    }

    #[test]
    fn an_answer_ends_with_its_length_or_the_connection() {
        let table = [
            ("Status: 404 Not Found\r\n\r\nmiss", "miss", End::Closed),
            ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", "ok", End::Done),
            ("Content-Length: 2\n\nokay", "ok", End::Done),
            ("Content-Length: 0\r\n\r\n", "", End::Done),
            ("Content-Length: 3\r\n\r\nok", "ok", End::Failed(ErrorKind::Truncated)),
            ("no header\r\n\r\n", "", End::Failed(ErrorKind::InvalidHeader)),
            ("\0\r\n\r\n", "", End::Failed(ErrorKind::InvalidHeader)),
        ];
        for (wire, body, end) in table {
            let answer = answer(wire);
            assert_eq!((answer.body.as_slice(), &answer.end), (body.as_bytes(), &end), "{wire:?}");
            assert!(!answer.keepalive);
        }
        assert!(answer("Location: /x\r\n\r\n").headers[0].contains(" 302 "));
    }

    #[test]
    fn what_fuzzing_has_found_reads_the_same_in_pieces() {
        check_seeds("cgi_response", &scgi("{}"), &[request("GET")]);
    }

    proptest! {
        #[test]
        fn pieces_make_no_difference(
            lines in prop::collection::vec("(Status: [0-9]{3}|Content-Length: [0-9]{1,2}|X: y|:|\\PC{0,6})(\r\n|\n)", 0..4),
            body in prop::collection::vec(any::<u8>(), 0..40),
            sizes in prop::collection::vec(1_usize..9, 1..6),
        ) {
            let wire = [lines.concat().as_bytes(), b"\r\n", &body].concat();
            check(&scgi("{}"), &request("GET"), &wire, &sizes);
        }
    }
}
