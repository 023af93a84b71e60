//! Writing the request: nginx's `create_request`, and the framing of the body that follows.

use crate::error::{Error, ErrorKind, Result};
use crate::headers::is_hop_by_hop;
use crate::protocol::BodyLength;
use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Method, header};
use pingora_http::{HeaderNameVariant, RequestHeader};

/// Append everything in front of the body to `out`. Framing and `Connection` are ours, whatever `request` says of them.
pub(super) fn write_header(request: &RequestHeader, body: BodyLength, out: &mut BytesMut) -> Result<()> {
    write_request_line(request, out)?;
    write_headers(request, out)?;
    if request.headers.contains_key(header::UPGRADE) {
        out.extend_from_slice(b"Connection: upgrade\r\n");
    }
    match body {
        BodyLength::None => {}
        BodyLength::Known(length) => out.extend_from_slice(format!("Content-Length: {length}\r\n").as_bytes()),
        BodyLength::Unknown => out.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
    }
    out.extend_from_slice(b"\r\n");
    Ok(())
}

fn write_request_line(request: &RequestHeader, out: &mut BytesMut) -> Result<()> {
    if request.method == Method::CONNECT {
        // A success would make the connection a tunnel, which nobody here expects.
        return Err(Error::with_status(405, "CONNECT cannot be proxied to an upstream"));
    }
    let target = request.raw_path();
    if !is_target(target) {
        return Err(cannot_send("a space or a control byte in the request target", target));
    }
    out.extend_from_slice(request.method.as_str().as_bytes());
    out.extend_from_slice(b" ");
    out.extend_from_slice(target);
    out.extend_from_slice(b" HTTP/1.1\r\n");
    Ok(())
}

/// Bytes beyond ASCII are let through, as in nginx; what ends a word or a line is not.
fn is_target(target: &[u8]) -> bool {
    !target.is_empty() && target.iter().all(|&byte| byte > b' ' && byte != 0x7f)
}

/// The headers in their original case. A value may have come here by an unchecked constructor, so it is checked: a line
/// break in it would let a client write a header of its own, or a whole request.
fn write_headers(request: &RequestHeader, out: &mut BytesMut) -> Result<()> {
    let mut refused = None;
    request.map(|name, value| {
        let name = match &name {
            HeaderNameVariant::Case(name) => name.as_slice(),
            HeaderNameVariant::Titled(name) => name.as_bytes(),
        };
        if !is_ours(name) {
            if breaks_line(name) || breaks_line(value.as_bytes()) {
                refused = Some(cannot_send("a line break or a NUL in a header", name));
            }
            write_field(name, value, out);
        }
        Ok(())
    })?;
    refused.map_or(Ok(()), Err)
}

/// Does the codec write this header itself, or not at all? `Upgrade` is only there if the engine wants it to be.
fn is_ours(name: &[u8]) -> bool {
    let hop_by_hop = is_hop_by_hop(name) && !name.eq_ignore_ascii_case(b"upgrade");
    hop_by_hop || name.eq_ignore_ascii_case(b"content-length")
}

fn breaks_line(bytes: &[u8]) -> bool {
    memchr::memchr3(b'\r', b'\n', b'\0', bytes).is_some()
}

fn write_field(name: &[u8], value: &HeaderValue, out: &mut BytesMut) {
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value.as_bytes());
    out.extend_from_slice(b"\r\n");
}

fn cannot_send(what: &str, culprit: &[u8]) -> Error {
    Error::new(ErrorKind::BadRequest, format!("{what}: {}", culprit.escape_ascii()))
}

/// How the rest of the request body is framed.
#[derive(Debug, Default)]
pub(super) enum RequestBody {
    /// At most so many bytes, as they are. What goes beyond is not written: the upstream would read it as a request.
    Length(u64),
    /// Each piece is a chunk.
    Chunked,
    /// Nothing more.
    #[default]
    Ended,
}

impl RequestBody {
    pub(super) fn new(length: BodyLength) -> Self {
        match length {
            BodyLength::None => RequestBody::Ended,
            BodyLength::Known(length) => RequestBody::Length(length),
            BodyLength::Unknown => RequestBody::Chunked,
        }
    }

    pub(super) fn frame(&mut self, mut chunk: Bytes, last: bool, out: &mut Vec<Bytes>) {
        match self {
            RequestBody::Length(left) => {
                chunk.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= chunk.len() as u64;
                out.extend(Some(chunk).filter(|chunk| !chunk.is_empty()));
            }
            RequestBody::Chunked => write_chunk(chunk, last, out),
            RequestBody::Ended => {}
        }
        if last {
            *self = RequestBody::Ended;
        }
    }
}

/// An empty chunk is not written in the middle of a body: it would end it.
fn write_chunk(chunk: Bytes, last: bool, out: &mut Vec<Bytes>) {
    let end: &'static [u8] = match (chunk.is_empty(), last) {
        (true, false) => return,
        (true, true) => b"0\r\n\r\n",
        (false, false) => b"\r\n",
        (false, true) => b"\r\n0\r\n\r\n",
    };
    if !chunk.is_empty() {
        out.push(format!("{:x}\r\n", chunk.len()).into());
        out.push(chunk);
    }
    out.push(Bytes::from_static(end));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(request: &RequestHeader, body: BodyLength) -> Result<String> {
        let mut out = BytesMut::new();
        write_header(request, body, &mut out)?;
        Ok(String::from_utf8_lossy(&out).into_owned())
    }

    fn framed(length: BodyLength, chunks: &[&'static str]) -> String {
        let mut body = RequestBody::new(length);
        let mut out = Vec::new();
        for (number, chunk) in chunks.iter().enumerate() {
            body.frame(Bytes::from_static(chunk.as_bytes()), number + 1 == chunks.len(), &mut out);
        }
        body.frame(Bytes::from_static(b"after the end"), true, &mut out);
        String::from_utf8(out.concat()).unwrap()
    }

    #[test]
    fn framing_is_ours_and_the_case_of_names_is_the_clients() {
        let mut request = RequestHeader::build("POST", b"/a?b=\xff", None).unwrap();
        for (name, value) in [
            ("HOST", "example.com"),
            ("content-length", "999"),
            ("Transfer-encoding", "gzip"),
            ("Connection", "close, X-Odd"),
            ("Keep-Alive", "1"),
            ("Proxy-Connection", "close"),
            ("TE", "trailers"),
            ("Trailer", "X"),
            ("x-ODD", "stays"),
        ] {
            request.append_header(name, value).unwrap();
        }
        let start = "POST /a?b=\u{fffd} HTTP/1.1\r\nHOST: example.com\r\nx-ODD: stays\r\n";
        for (length, framing) in [
            (BodyLength::None, ""),
            (BodyLength::Known(0), "Content-Length: 0\r\n"),
            (BodyLength::Known(u64::MAX), "Content-Length: 18446744073709551615\r\n"),
            (BodyLength::Unknown, "Transfer-Encoding: chunked\r\n"),
        ] {
            assert_eq!(written(&request, length).unwrap(), format!("{start}{framing}\r\n"));
        }
    }

    #[test]
    fn an_upgrade_that_was_left_in_is_asked_for() {
        let mut request = RequestHeader::build_no_case("GET", b"/", None).unwrap();
        request.insert_header("upgrade", "websocket").unwrap();
        request.insert_header("connection", "close").unwrap();
        let expected = "GET / HTTP/1.1\r\nupgrade: websocket\r\nConnection: upgrade\r\n\r\n";
        assert_eq!(written(&request, BodyLength::None).unwrap(), expected);
    }

    #[test]
    fn a_target_or_a_header_that_would_break_its_line_is_refused() {
        for target in [&b""[..], b"/a b", b"/a\tb", b"/a\r\nX: y", b"/\0", b"/\x7f", b"http://h/ HTTP/1.1"] {
            assert!(!is_target(target), "{target:?}");
        }
        assert!(is_target(b"/a?b=\xff|%20\"<>"));
        assert!(breaks_line(b"a\rb") && breaks_line(b"a\nb") && breaks_line(b"a\0b") && !breaks_line(b"a\tb\xff"));
        // Pingora looks only at the path behind an authority.
        for target in [&b"http://h x/"[..], b"http://h\r\nX: y/", b"http://h\0/"] {
            let request = RequestHeader::build("GET", target, None).unwrap();
            assert_eq!(written(&request, BodyLength::None).unwrap_err().kind(), ErrorKind::BadRequest, "{target:?}");
        }
        let connect = RequestHeader::build("CONNECT", b"a:1", None).unwrap();
        assert_eq!(written(&connect, BodyLength::None).unwrap_err().status(), 405);
    }

    #[test]
    fn a_body_is_framed_and_never_longer_than_announced() {
        assert_eq!(framed(BodyLength::None, &["x"]), "");
        assert_eq!(framed(BodyLength::Known(5), &["hel", "", "lo"]), "hello");
        assert_eq!(framed(BodyLength::Known(5), &["hello", " and more", "more"]), "hello");
        assert_eq!(framed(BodyLength::Known(u64::MAX), &["hello"]), "hello");
        assert_eq!(
            framed(BodyLength::Unknown, &["hello, world, ", "", "bye"]),
            "e\r\nhello, world, \r\n3\r\nbye\r\n0\r\n\r\n"
        );
        assert_eq!(framed(BodyLength::Unknown, &["a", ""]), "1\r\na\r\n0\r\n\r\n");
        assert_eq!(framed(BodyLength::Unknown, &[""]), "0\r\n\r\n");
    }
}
