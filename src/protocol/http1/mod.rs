//! [`Http1`]: HTTP/1 to an upstream (RFC 9112), strict about framing.
//!
//! ```text
//! create_request.rs   the request line, the headers, the framing of the request body
//! process_header.rs   the status line and the headers, and what they say about the body and the connection
//! chunked.rs          the chunked transfer coding, decoded in place, and its trailers
//! ```
//!
//! What an upstream says about framing is taken by the letter: a doubled, listed or malformed `Content-Length`, a
//! `Transfer-Encoding` other than one `chunked`, or both of them, is an invalid header. Guessing is how the end of one
//! response gets mistaken for the start of the next.

mod chunked;
mod create_request;
mod process_header;

use self::chunked::Chunked;
use self::create_request::RequestBody;
use self::process_header::{Framing, Head, HeaderEnd};
use super::{Codec, Input, Parsed, Protocol, Request};
use crate::error::{Error, ErrorKind, Result};
use crate::headers;
use bytes::{Bytes, BytesMut};
use http::header::UPGRADE;
use http::{HeaderMap, HeaderValue, Method, Version};
use pingora_http::ResponseHeader;

/// Interim answers (1xx) to one request. A real upstream sends one or two; an endless row of them would hold the
/// request forever, as each of them restarts the read timer.
const MAX_INTERIM: u8 = 16;

/// HTTP/1.1 to an upstream; answers in HTTP/1.0 are understood.
#[derive(Clone, Copy, Debug, Default)]
pub struct Http1;

impl Protocol for Http1 {
    fn codec(&self) -> Box<dyn Codec> {
        Box::new(Http1Codec::default())
    }
}

/// One request and its answer.
#[derive(Default)]
struct Http1Codec {
    /// The answer to HEAD has no body, whatever its headers say.
    head: bool,
    /// The request's `Upgrade` headers: a 101 must name one of their protocols.
    asked: Vec<HeaderValue>,
    request_body: RequestBody,
    header_end: HeaderEnd,
    interim: u8,
    body: Body,
    /// What version and `Connection` of the answer say about the connection.
    persistent: bool,
    /// Bytes came behind the end of the message.
    excess: bool,
}

/// What is still to come of the answer's body.
#[derive(Default)]
enum Body {
    /// The header is not complete, so nobody knows.
    #[default]
    Unknown,
    /// So many bytes, zero when it is complete.
    Length(u64),
    /// Chunks.
    Chunked(Chunked),
    /// Everything until the upstream closes.
    UntilClose,
}

impl Codec for Http1Codec {
    fn create_request(&mut self, request: &Request<'_>, out: &mut BytesMut) -> Result<()> {
        let (header, body) = (request.header(), request.body_length());
        self.head = header.method == Method::HEAD;
        self.asked = header.headers.get_all(UPGRADE).iter().cloned().collect();
        self.request_body = RequestBody::new(body);
        create_request::write_header(header, body, out)
    }

    fn request_body(&mut self, chunk: Bytes, last: bool, out: &mut Vec<Bytes>) {
        self.request_body.frame(chunk, last, out);
    }

    fn process_header(&mut self, received: &[u8]) -> Result<Parsed> {
        process_header::check_start(received)?;
        let Some(block) = self.header_end.find(received) else {
            return Ok(Parsed::Partial);
        };
        let head = process_header::parse(&Bytes::copy_from_slice(block))?;
        match head.response.status.as_u16() {
            101 => self.upgraded(head, block.len()),
            100..=199 => self.interim(head, block.len()),
            _ => Ok(self.header_done(head, block.len())),
        }
    }

    fn input_filter(&mut self, raw: &mut [u8]) -> Result<Input> {
        let (body, used, done) = match &mut self.body {
            Body::Unknown => return Err(Error::new(ErrorKind::Internal, "a body was read before its header")),
            Body::Length(left) => {
                let body = usize::try_from(*left).map_or(raw.len(), |left| left.min(raw.len()));
                *left -= body as u64;
                (body, body, *left == 0)
            }
            Body::Chunked(chunked) => {
                let decoded = chunked.decode(raw)?;
                (decoded.body, decoded.used, chunked.is_done())
            }
            Body::UntilClose => (raw.len(), raw.len(), false),
        };
        self.excess |= used < raw.len();
        Ok(Input { body, done })
    }

    fn end_of_input(&mut self) -> Result<()> {
        let missing = match &self.body {
            Body::Unknown => {
                return Err(Error::new(ErrorKind::Closed, "the upstream closed before the response header"));
            }
            Body::UntilClose | Body::Length(0) => return Ok(()),
            Body::Length(left) => format!("{left} bytes before the end of the body"),
            Body::Chunked(chunked) => match chunked.missing() {
                Some(missing) => missing,
                None => return Ok(()),
            },
        };
        Err(Error::new(ErrorKind::Truncated, format!("the upstream closed {missing}")))
    }

    fn keepalive(&self) -> bool {
        let complete = match &self.body {
            Body::Length(left) => *left == 0,
            Body::Chunked(chunked) => chunked.is_done(),
            Body::Unknown | Body::UntilClose => false,
        };
        complete && self.persistent && !self.excess
    }

    fn trailers(&mut self) -> Option<HeaderMap> {
        match &mut self.body {
            Body::Chunked(chunked) => chunked.take_trailers(),
            Body::Unknown | Body::Length(_) | Body::UntilClose => None,
        }
    }
}

impl Http1Codec {
    fn interim(&mut self, head: Head, len: usize) -> Result<Parsed> {
        if self.interim == MAX_INTERIM {
            return Err(invalid_header(format!("more than {MAX_INTERIM} interim answers")));
        }
        self.interim += 1;
        Ok(Parsed::Interim(head.response, len))
    }

    fn upgraded(&mut self, head: Head, len: usize) -> Result<Parsed> {
        if !self.asked_for(&head.response) {
            return Err(invalid_header("an unsolicited 101"));
        }
        self.body = Body::UntilClose;
        Ok(Parsed::Upgraded(head.response, len))
    }

    /// RFC 9110 7.8: an upstream must not switch to a protocol that it was not asked for.
    fn asked_for(&self, response: &ResponseHeader) -> bool {
        let asked = |protocol: &[u8]| headers::list(&self.asked).any(|asked| asked.eq_ignore_ascii_case(protocol));
        let named = || headers::list(response.headers.get_all(UPGRADE));
        response.version == Version::HTTP_11 && named().next().is_some() && named().all(asked)
    }

    /// RFC 9112 6.3, "Message Body Length".
    fn header_done(&mut self, head: Head, len: usize) -> Parsed {
        self.persistent = head.persistent;
        self.body = match head.framing {
            _ if self.head || matches!(head.response.status.as_u16(), 204 | 304) => Body::Length(0),
            Framing::Length(length) => Body::Length(length),
            Framing::Chunked => Body::Chunked(Chunked::default()),
            Framing::UntilClose => Body::UntilClose,
        };
        Parsed::Done(head.response, len)
    }
}

fn invalid_header(what: impl AsRef<str>) -> Error {
    Error::new(ErrorKind::InvalidHeader, format!("the upstream sent {}", what.as_ref()))
}

#[cfg(test)]
mod tests {
    use super::super::BodyLength;
    use super::super::split_check::{self, Answer, End};
    use super::*;
    use pingora_http::RequestHeader;
    use proptest::prelude::*;

    fn request(method: &str) -> RequestHeader {
        let mut request = RequestHeader::build(method, b"/", None).unwrap();
        request.insert_header("Upgrade", "websocket").unwrap();
        request
    }

    fn check(method: &str, wire: &[u8], sizes: &[usize]) -> Answer {
        split_check::check(&Http1, &request(method), wire, sizes)
    }

    /// How an answer to GET ends, read whole and byte by byte.
    fn get(wire: &str) -> Answer {
        check("GET", wire.as_bytes(), &[1])
    }

    #[test]
    fn a_body_ends_where_its_header_says() {
        // (answer, body, how it ends, whether the connection can be kept)
        let table = [
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "hello", End::Done, true),
            ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "", End::Done, true),
            ("HTTP/1.1 200\r\nCONTENT-LENGTH:5 \r\n\r\nhello", "hello", End::Done, true),
            ("HTTP/1.1 200 OK\nContent-Length: 2\n\nhi", "hi", End::Done, true),
            ("HTTP/1.1 200 OK\r\n\r\nuntil the end", "until the end", End::Closed, false),
            ("HTTP/1.1 200 OK\r\n\r\n", "", End::Closed, false),
            ("HTTP/1.1 204 No Content\r\n\r\n", "", End::Done, true),
            ("HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", "", End::Done, true),
            ("HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n", "", End::Done, true),
            ("HTTP/1.1 599 Odd\r\nContent-Length: 0\r\n\r\n", "", End::Done, true),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n", "hi", End::Done, true),
            ("HTTP/1.1 200 OK\r\nConnection: x, Close\r\nContent-Length: 0\r\n\r\n", "", End::Done, false),
            ("HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi", "hi", End::Done, false),
            ("HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 2\r\n\r\nhi", "hi", End::Done, true),
            (
                "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
                "",
                End::Done,
                false,
            ),
        ];
        for (wire, body, end, keepalive) in table {
            let answer = get(wire);
            let expected = (body.as_bytes(), &end, keepalive);
            assert_eq!((answer.body.as_slice(), &answer.end, answer.keepalive), expected, "{wire:?}");
        }
    }

    #[test]
    fn the_answer_to_head_has_no_body() {
        for framing in ["Content-Length: 5", "Transfer-Encoding: chunked", "X: y"] {
            let wire = format!("HTTP/1.1 200 OK\r\n{framing}\r\n\r\n");
            let answer = check("HEAD", wire.as_bytes(), &[1]);
            assert_eq!((answer.end, answer.keepalive), (End::Done, true), "{framing}");
        }
    }

    #[test]
    fn bytes_behind_the_end_are_dropped_and_close_the_connection() {
        let bodies = [
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi!",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n\r\n",
        ];
        for wire in bodies {
            let answer = get(wire);
            let found = (answer.body.as_slice(), answer.end, answer.keepalive);
            assert_eq!(found, (b"hi".as_slice(), End::Done, false), "{wire:?}");
        }
        let answer = check("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", &[1]);
        assert_eq!((answer.body.len(), answer.end, answer.keepalive), (0, End::Done, false));
    }

    #[test]
    fn a_body_that_ends_too_early_says_how_much_is_missing() {
        let table = [
            ("Content-Length: 5\r\n\r\nhel", "2 bytes before the end of the body"),
            ("Transfer-Encoding: chunked\r\n\r\n5\r\nhel", "in the middle of a chunk, 2 bytes before its end"),
            ("Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n", "before the last chunk"),
            ("Transfer-Encoding: chunked\r\n\r\n0\r\n", "behind the last chunk, in the trailers"),
        ];
        for (wire, text) in table {
            let wire = format!("HTTP/1.1 200 OK\r\n{wire}");
            assert_eq!(get(&wire).end, End::Failed(ErrorKind::Truncated), "{wire:?}");
            let mut codec = Http1.codec();
            let (header, body) = wire.split_at(wire.find("\r\n\r\n").unwrap() + 4);
            codec.process_header(header.as_bytes()).unwrap();
            codec.input_filter(&mut body.as_bytes().to_vec()).unwrap();
            assert_eq!(codec.end_of_input().unwrap_err().to_string(), format!("the upstream closed {text}"));
        }
    }

    #[test]
    fn an_interim_answer_goes_before_the_header_but_not_endlessly() {
        let interim = "HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n";
        let header = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
        let answer = get(&(interim.repeat(16) + header));
        assert_eq!((answer.headers.len(), answer.end), (17, End::Done));
        let answer = get(&(interim.repeat(17) + header));
        assert_eq!((answer.headers.len(), answer.end), (16, End::Failed(ErrorKind::InvalidHeader)));
    }

    #[test]
    fn a_101_must_name_a_protocol_that_was_asked_for() {
        let table = [
            ("HTTP/1.1 101 Switching Protocols\r\nUpgrade: WebSocket\r\n\r\n", true),
            ("HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n", false),
            ("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket, h2c\r\n\r\n", false),
            ("HTTP/1.1 101 Switching Protocols\r\nUpgrade:\r\n\r\n", false),
            ("HTTP/1.1 101 Switching Protocols\r\n\r\n", false),
            ("HTTP/1.0 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n", false),
        ];
        for (wire, upgraded) in table {
            let expected = if upgraded { End::Upgraded } else { End::Failed(ErrorKind::InvalidHeader) };
            assert_eq!(get(wire).end, expected, "{wire:?}");
        }
        let mut codec = Http1.codec();
        let request = RequestHeader::build("GET", b"/", None).unwrap();
        codec.create_request(&Request::new(&request, BodyLength::None, &()), &mut BytesMut::new()).unwrap();
        let error = codec.process_header(table[0].0.as_bytes()).unwrap_err();
        assert_eq!(error.to_string(), "the upstream sent an unsolicited 101");
    }

    #[test]
    fn trailers_come_behind_the_body() {
        let answer = get("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nGrpc-Status: 0\r\n\r\n");
        assert_eq!(answer.trailers.unwrap()["grpc-status"], "0");
        assert!(answer.keepalive);
    }

    #[test]
    fn what_fuzzing_has_found_reads_the_same_in_pieces() {
        split_check::check_seeds("http1_response", &Http1, &["GET", "HEAD"].map(request));
    }

    /// A valid answer, the body that is in it, and whether it allows another request.
    fn answers() -> impl Strategy<Value = (Vec<u8>, Vec<u8>, bool)> {
        let headers = prop::collection::vec("[A-Za-z-]{1,12}x: [ -~]{0,20}\r\n", 0..8);
        let chunks = prop::collection::vec((prop::collection::vec(any::<u8>(), 1..70), "(|;[a-z]{0,5})"), 0..6);
        (headers, chunks, any::<bool>(), any::<bool>(), "(|X-Sum: [a-z]{1,5}\r\n)").prop_map(
            |(headers, chunks, chunked, close, trailer)| {
                let body: Vec<u8> = chunks.iter().flat_map(|(chunk, _)| chunk.clone()).collect();
                let mut wire = format!("HTTP/1.1 200 OK\r\n{}", headers.concat()).into_bytes();
                wire.extend_from_slice(if close { b"Connection: close\r\n" } else { b"" });
                if chunked {
                    wire.extend_from_slice(b"Transfer-Encoding: chunked\r\n\r\n");
                    for (chunk, extension) in &chunks {
                        wire.extend_from_slice(format!("{:X}{extension}\r\n", chunk.len()).as_bytes());
                        wire.extend_from_slice(chunk);
                        wire.extend_from_slice(b"\r\n");
                    }
                    wire.extend_from_slice(format!("0\r\n{trailer}\r\n").as_bytes());
                } else {
                    wire.extend_from_slice(format!("Content-Length: {}\r\n\r\n", body.len()).as_bytes());
                    wire.extend_from_slice(&body);
                }
                (wire, body, !close)
            },
        )
    }

    proptest! {
        #[test]
        fn a_valid_answer_reads_the_same_however_it_is_split(
            (wire, body, keepalive) in answers(),
            sizes in prop::collection::vec(1_usize..60, 1..8),
        ) {
            let answer = check("GET", &wire, &sizes);
            prop_assert_eq!(&answer, &split_check::read(&Http1, &request("GET"), &wire, &[1]));
            prop_assert_eq!((answer.body, answer.end, answer.keepalive), (body, End::Done, keepalive));
        }

        #[test]
        fn one_changed_byte_never_makes_it_depend_on_the_split(
            (mut wire, _, _) in answers(),
            place in any::<prop::sample::Index>(),
            byte in prop::sample::select(&b"\r\n\0 :;,0fF\x7f\xffx"[..]),
            sizes in prop::collection::vec(1_usize..60, 1..8),
        ) {
            let place = place.index(wire.len());
            wire[place] = byte;
            check("GET", &wire, &sizes);
        }

        #[test]
        fn random_bytes_never_panic(
            wire in prop::collection::vec(any::<u8>(), 0..300),
            sizes in prop::collection::vec(1_usize..60, 1..8),
        ) {
            check("GET", &wire, &sizes);
            for start in ["HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"] {
                check("GET", &[start.as_bytes(), &wire].concat(), &sizes);
            }
        }

        #[test]
        fn a_request_body_in_chunks_is_read_back(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..6),
        ) {
            let mut request_body = RequestBody::new(BodyLength::Unknown);
            let mut framed = Vec::new();
            for chunk in &chunks {
                request_body.frame(Bytes::copy_from_slice(chunk), false, &mut framed);
            }
            request_body.frame(Bytes::new(), true, &mut framed);
            let mut wire = framed.concat();
            let mut chunked = Chunked::default();
            let decoded = chunked.decode(&mut wire).unwrap();
            prop_assert_eq!(&wire[..decoded.body], chunks.concat());
            prop_assert!(chunked.is_done() && decoded.used == wire.len());
        }
    }
}
