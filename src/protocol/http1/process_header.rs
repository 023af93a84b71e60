//! Reading the answer's header: nginx's `process_header`.

use super::invalid_header;
use crate::error::{Error, ErrorKind, Result};
use crate::headers::{list, parse_content_length};
use bytes::Bytes;
use http::{HeaderValue, Version};
use httparse::{ParserConfig, Status};
use pingora_http::ResponseHeader;
use std::mem::MaybeUninit;

/// As many as Pingora takes from a client. The slots are not initialised, so the number costs nothing.
const MAX_HEADERS: usize = 256;

/// A parsed header, and what follows from it.
pub(super) struct Head {
    pub(super) response: ResponseHeader,
    pub(super) framing: Framing,
    /// Version and `Connection` allow another request on this connection.
    pub(super) persistent: bool,
}

/// How the headers say the body ends. Method and status may still say that there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    Length(u64),
    Chunked,
    UntilClose,
}

/// Refuse at the first bytes what will never be HTTP/1, rather than wait for an empty line from an SSH server. An empty
/// line in front of the status line is refused too: it would be left over from the answer before.
pub(super) fn check_start(received: &[u8]) -> Result<()> {
    const START: &[u8] = b"HTTP/1.";
    let start = received.get(..START.len()).unwrap_or(received);
    if START.starts_with(start) {
        return Ok(());
    }
    Err(invalid_header(format!("\"{}\" where HTTP/1 was expected", start.escape_ascii())))
}

/// Looks for the empty line that ends a header, at each byte once, however slowly they trickle in.
///
/// A line may end with a bare LF, as in nginx (RFC 9112 2.2).
#[derive(Default)]
pub(super) struct HeaderEnd {
    /// The empty line does not begin in front of this offset.
    scanned: usize,
}

impl HeaderEnd {
    /// The header with its empty line, when it is complete; and start anew for the header behind it.
    pub(super) fn find<'a>(&mut self, received: &'a [u8]) -> Option<&'a [u8]> {
        let unseen = received.get(self.scanned..)?;
        for line_end in memchr::memchr_iter(b'\n', unseen) {
            let empty_line = match unseen.get(line_end + 1..)? {
                [b'\n', ..] => 1,
                [b'\r', b'\n', ..] => 2,
                [] | [b'\r'] => {
                    self.scanned += line_end;
                    return None;
                }
                _ => continue,
            };
            let end = self.scanned + line_end + 1 + empty_line;
            self.scanned = 0;
            return received.get(..end);
        }
        self.scanned = received.len();
        None
    }
}

/// Parse a complete header. Names and values stay slices of `block`.
pub(super) fn parse(block: &Bytes) -> Result<Head> {
    let mut slots = [const { MaybeUninit::uninit() }; MAX_HEADERS];
    let mut parsed = httparse::Response::new(&mut []);
    match ParserConfig::default().parse_response_with_uninit_headers(&mut parsed, block, &mut slots) {
        // Should the two ideas of where a header ends ever differ, the body must not begin at either.
        Ok(Status::Complete(end)) if end == block.len() => {}
        Ok(_) => return Err(invalid_header("a malformed header")),
        Err(error) => return Err(malformed(error)),
    }
    let version = if parsed.version == Some(0) { Version::HTTP_10 } else { Version::HTTP_11 };
    let mut response = start_response(&parsed, version)?;
    let mut message = MessageHeaders::default();
    for field in parsed.headers.iter() {
        message.note(field)?;
        let value = HeaderValue::from_maybe_shared(block.slice_ref(field.value)).map_err(malformed)?;
        response.append_header(block.slice_ref(field.name.as_bytes()), value).map_err(malformed)?;
    }
    Ok(Head { response, framing: message.framing(version)?, persistent: message.persistent(version) })
}

fn start_response(parsed: &httparse::Response, version: Version) -> Result<ResponseHeader> {
    let Some(status @ 100..=599) = parsed.code else {
        return Err(invalid_header(format!("the status {}", parsed.code.unwrap_or_default())));
    };
    let mut response = ResponseHeader::build(status, Some(parsed.headers.len())).map_err(malformed)?;
    response.set_version(version);
    response.set_reason_phrase(parsed.reason).map_err(malformed)?;
    Ok(response)
}

fn malformed(cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::because(ErrorKind::InvalidHeader, "the upstream sent a malformed header", cause)
}

/// The headers that are about the message and the connection, gathered while all of them are copied.
#[derive(Default)]
struct MessageHeaders {
    content_length: Option<u64>,
    chunked: bool,
    close: bool,
    keep_alive: bool,
}

impl MessageHeaders {
    fn note(&mut self, field: &httparse::Header) -> Result<()> {
        match field.name.len() {
            10 if field.name.eq_ignore_ascii_case("connection") => self.note_connection(field.value),
            14 if field.name.eq_ignore_ascii_case("content-length") => self.note_content_length(field.value)?,
            17 if field.name.eq_ignore_ascii_case("transfer-encoding") => self.note_transfer_encoding(field.value)?,
            _ => {}
        }
        Ok(())
    }

    fn note_connection(&mut self, value: &[u8]) {
        for option in list([value]) {
            self.close |= option.eq_ignore_ascii_case(b"close");
            self.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
        }
    }

    fn note_content_length(&mut self, value: &[u8]) -> Result<()> {
        let length = parse_content_length(value)
            .ok_or_else(|| invalid_header(format!("an invalid Content-Length: {}", value.escape_ascii())))?;
        match self.content_length.replace(length) {
            None => Ok(()),
            Some(_) => Err(invalid_header("more than one Content-Length")),
        }
    }

    fn note_transfer_encoding(&mut self, value: &[u8]) -> Result<()> {
        if !value.eq_ignore_ascii_case(b"chunked") {
            return Err(invalid_header(format!("an unknown Transfer-Encoding: {}", value.escape_ascii())));
        }
        if self.chunked {
            return Err(invalid_header("more than one Transfer-Encoding"));
        }
        self.chunked = true;
        Ok(())
    }

    fn framing(&self, version: Version) -> Result<Framing> {
        match (self.chunked, self.content_length) {
            (true, Some(_)) => Err(invalid_header("both Content-Length and Transfer-Encoding")),
            (true, None) if version == Version::HTTP_10 => Err(invalid_header("Transfer-Encoding in HTTP/1.0")),
            (true, None) => Ok(Framing::Chunked),
            (false, Some(length)) => Ok(Framing::Length(length)),
            (false, None) => Ok(Framing::UntilClose),
        }
    }

    /// RFC 9112 9.3.
    fn persistent(&self, version: Version) -> bool {
        !self.close && (self.keep_alive || version == Version::HTTP_11)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_fields(fields: &str) -> Result<Head> {
        parse(&Bytes::from(format!("HTTP/1.1 200 OK\r\n{fields}\r\n")))
    }

    #[test]
    fn case_order_reason_and_version_are_kept() {
        let block =
            b"HTTP/1.0 404 Nobody Home\r\nX-oDD:  a b \t\r\nset-cookie: 1\r\nSet-Cookie: \xff\r\nEmpty:\r\n\r\n";
        let head = parse(&Bytes::from_static(block)).unwrap();
        let mut wire = Vec::new();
        head.response.header_to_h1_wire(&mut wire);
        assert_eq!(wire, b"X-oDD: a b\r\nset-cookie: 1\r\nSet-Cookie: \xff\r\nEmpty: \r\n");
        assert_eq!(head.response.get_reason_phrase(), Some("Nobody Home"));
        assert_eq!((head.response.status.as_u16(), head.response.version), (404, Version::HTTP_10));
        assert_eq!((head.framing, head.persistent), (Framing::UntilClose, false));
    }

    #[test]
    fn a_missing_reason_stays_missing() {
        for line in ["HTTP/1.1 200", "HTTP/1.1 200 "] {
            let head = parse(&Bytes::from(format!("{line}\r\n\r\n"))).unwrap();
            assert_eq!(head.response.get_reason_phrase(), Some(""));
        }
    }

    #[test]
    fn a_malformed_start_line_is_refused() {
        for line in [
            "HTTP/1.1 099 Low",
            "HTTP/1.1 600 High",
            "HTTP/1.1 20 Short",
            "HTTP/1.1 2000 Long",
            "HTTP/1.1 +20 Sign",
            "HTTP/1.1  200 Two spaces",
            "HTTP/1.1\t200 Tab",
            "HTTP/1.2 200 Version",
            "HTTP/1.1 200 Control\x01",
            "HTTP/1.1 200 Return\rX",
            " HTTP/1.1 200 Space",
        ] {
            let error = parse(&Bytes::from(format!("{line}\r\n\r\n"))).err().map(|error| error.kind());
            assert_eq!(error, Some(ErrorKind::InvalidHeader), "{line:?}");
        }
    }

    #[test]
    fn ambiguous_framing_and_malformed_headers_are_refused() {
        for fields in [
            "Content-Length: 5\r\nContent-Length: 5\r\n",
            "Content-Length: 5\r\nContent-Length: 6\r\n",
            "Content-Length: 5, 5\r\n",
            "Content-Length: +5\r\n",
            "Content-Length: -5\r\n",
            "Content-Length: 0x5\r\n",
            "Content-Length: 5 5\r\n",
            "Content-Length:\r\n",
            "Content-Length: 18446744073709551616\r\n",
            "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
            "Transfer-Encoding: chunked, chunked\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
            "Transfer-Encoding: identity\r\n",
            "Transfer-Encoding: chunked;q=1\r\n",
            "Transfer-Encoding:\r\n",
            "Content-Length : 5\r\n",
            "X: a\r\n b\r\n",
            "X: a\0b\r\n",
            "X: a\rb\r\n",
            "X: a\x7fb\r\n",
            "No colon\r\n",
            ": no name\r\n",
            "N\u{e4}me: x\r\n",
        ] {
            let error = parse_fields(fields).err().map(|error| error.kind());
            assert_eq!(error, Some(ErrorKind::InvalidHeader), "{fields:?}");
        }
        let old = parse(&Bytes::from_static(b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"));
        assert!(old.err().unwrap().to_string().contains("Transfer-Encoding in HTTP/1.0"));
    }

    #[test]
    fn as_many_headers_as_pingora_takes() {
        assert!(parse_fields(&"X: y\r\n".repeat(MAX_HEADERS)).is_ok());
        let error = parse_fields(&"X: y\r\n".repeat(MAX_HEADERS + 1)).err().unwrap();
        assert!(error.to_string().ends_with("too many headers"), "{error}");
    }

    #[test]
    fn what_cannot_be_http1_is_refused_at_once() {
        for start in ["", "H", "HTTP/1.", "HTTP/1.1 200"] {
            assert!(check_start(start.as_bytes()).is_ok(), "{start:?}");
        }
        for start in ["S", "\r\n", "HTTP/2", "http/1.1", "<html>"] {
            assert_eq!(check_start(start.as_bytes()).unwrap_err().kind(), ErrorKind::InvalidHeader, "{start:?}");
        }
    }

    #[test]
    fn the_end_is_found_without_looking_back_twice() {
        for (wire, end) in [("a\r\nb\r\n\r\nrest", 8), ("a\nb\n\nrest", 5), ("a\n\r\nrest", 4), ("a\r\n\nrest", 4)] {
            let mut header_end = HeaderEnd::default();
            for len in 0..end {
                assert_eq!(header_end.find(&wire.as_bytes()[..len]), None, "{wire:?} {len}");
                assert!(header_end.scanned + 2 >= len);
            }
            assert_eq!(header_end.find(wire.as_bytes()).map(<[u8]>::len), Some(end));
            assert_eq!(header_end.scanned, 0);
        }
        assert_eq!(HeaderEnd::default().find(b"a\r\nb\r\n\rc\r\n"), None);
    }
}
