//! The header block of an answer (RFC 3875 6; nginx's `ngx_http_fastcgi_process_header` and
//! `ngx_http_scgi_process_header`).
//!
//! Lines end with CR LF or LF. `Status: 404 Not Found` says the status; without it a `Location` makes it 302, and nothing
//! makes it 200. A status line of HTTP in front of the headers does as well.

use crate::error::{Error, ErrorKind, Result};
use bytes::Bytes;
use http::header::LOCATION;
use http::{HeaderValue, StatusCode};
use pingora_http::ResponseHeader;

/// As many as in an answer over HTTP.
const MAX_HEADERS: usize = 256;

/// Looks for the end of a header block that grows, at each byte once.
#[derive(Debug, Default)]
pub(crate) struct HeaderEnd {
    line_start: usize,
    scanned: usize,
}

impl HeaderEnd {
    /// The length of the block, its empty line included, once `text` has all of it. Called again with the same text and
    /// more behind it.
    pub(crate) fn find(&mut self, text: &[u8]) -> Option<usize> {
        loop {
            let Some(line_end) = memchr::memchr(b'\n', text.get(self.scanned..)?) else {
                self.scanned = text.len();
                return None;
            };
            let line_end = self.scanned + line_end;
            let empty = matches!(text.get(self.line_start..line_end), Some(b"" | b"\r"));
            (self.scanned, self.line_start) = (line_end + 1, line_end + 1);
            if empty {
                return Some(self.scanned);
            }
        }
    }
}

/// Make sense of a whole block, its empty line included. Hop-by-hop headers and `Content-Length` stay in it, for the
/// engine to judge.
///
/// # Errors
/// [`ErrorKind::InvalidHeader`].
pub(crate) fn parse_header(block: &Bytes) -> Result<ResponseHeader> {
    let (line, fields) = split_status_line(block)?;
    let mut slots = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let parsed = match httparse::parse_headers(&fields, &mut slots) {
        Ok(httparse::Status::Complete((length, parsed))) if length == fields.len() => parsed,
        Ok(_) => return Err(invalid("a malformed header")),
        Err(error) => return Err(malformed(error)),
    };
    let mut status = line;
    let mut response = ResponseHeader::build(200, Some(parsed.len())).map_err(malformed)?;
    for field in parsed {
        if !field.name.eq_ignore_ascii_case("status") {
            let value = HeaderValue::from_maybe_shared(fields.slice_ref(field.value)).map_err(malformed)?;
            response.append_header(fields.slice_ref(field.name.as_bytes()), value).map_err(malformed)?;
        } else if status.replace(Status::parse(field.value)?).is_some() {
            return Err(invalid("more than one status"));
        }
    }
    match status {
        Some(status) => status.set(&mut response)?,
        None if response.headers.contains_key(LOCATION) => response.set_status(StatusCode::FOUND).map_err(malformed)?,
        None => {}
    }
    Ok(response)
}

/// What says the status of an answer.
struct Status {
    code: u16,
    reason: String,
}

impl Status {
    /// `404 Not Found`, `404`.
    fn parse(text: &[u8]) -> Result<Self> {
        let wrong = || invalid(&format!("the status \"{}\"", text.escape_ascii()));
        let text = std::str::from_utf8(text).ok().filter(|text| !text.contains(char::is_control)).ok_or_else(wrong)?;
        let (code, reason) = text.split_once(' ').unwrap_or((text, ""));
        let digits = code.len() == 3 && code.bytes().all(|byte| byte.is_ascii_digit());
        let code = code.parse().ok().filter(|_| digits).ok_or_else(wrong)?;
        Ok(Status { code, reason: reason.trim().to_owned() })
    }

    fn set(self, response: &mut ResponseHeader) -> Result<()> {
        response.set_status(self.code).map_err(malformed)?;
        if self.reason.is_empty() {
            return Ok(());
        }
        response.set_reason_phrase(Some(&self.reason)).map_err(malformed)
    }
}

/// A status line, if there is one, and what is behind it.
fn split_status_line(block: &Bytes) -> Result<(Option<Status>, Bytes)> {
    if !block.starts_with(b"HTTP/1.") {
        return Ok((None, block.clone()));
    }
    let end = memchr::memchr(b'\n', block).map_or(block.len(), |at| at + 1);
    let (line, _) = block.split_at(end);
    let words = memchr::memchr(b' ', line).and_then(|space| line.get(space + 1..)).unwrap_or_default();
    Ok((Some(Status::parse(words.trim_ascii_end())?), block.slice(end..)))
}

fn malformed(cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::because(ErrorKind::InvalidHeader, "the application sent a malformed header", cause)
}

fn invalid(what: &str) -> Error {
    Error::new(ErrorKind::InvalidHeader, format!("the application sent {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(block: &'static str) -> Result<ResponseHeader> {
        parse_header(&Bytes::from_static(block.as_bytes()))
    }

    #[test]
    fn the_status_is_said_or_follows() {
        for (block, status, reason) in [
            ("Status: 404 Not Here\r\nA: b\r\n\r\n", 404, "Not Here"),
            ("status: 201\nA: b\n\n", 201, "Created"),
            ("Location: /a\r\n\r\n", 302, "Found"),
            ("Status: 301 Moved\r\nLocation: /a\r\n\r\n", 301, "Moved"),
            ("Location: /a\r\nStatus: 200 OK\r\n\r\n", 200, "OK"),
            ("Content-Type: text/x\r\n\r\n", 200, "OK"),
            ("\r\n", 200, "OK"),
            ("HTTP/1.1 503 Busy\r\nA: b\r\n\r\n", 503, "Busy"),
        ] {
            let header = parse(block).unwrap();
            assert_eq!((header.status.as_u16(), header.get_reason_phrase()), (status, Some(reason)), "{block:?}");
            assert!(!header.headers.contains_key("status"), "{block:?}");
        }
    }

    #[test]
    fn headers_come_through_as_they_are() {
        let header =
            parse("Set-Cookie: a=b\r\nSet-Cookie: c=d\nX-Odd: \u{fc} x \r\nContent-Length: 5\r\n\r\n").unwrap();
        let cookies: Vec<_> = header.headers.get_all("set-cookie").iter().collect();
        assert_eq!(cookies, ["a=b", "c=d"]);
        assert_eq!(header.headers["x-odd"].as_bytes(), "\u{fc} x".as_bytes());
        assert_eq!(header.headers["content-length"], "5");
    }

    #[test]
    fn what_is_no_header_is_invalid() {
        for block in [
            "Status: 20\r\n\r\n",
            "Status: 2000\r\n\r\n",
            "Status: +20 x\r\n\r\n",
            "Status: abc\r\n\r\n",
            "Status: \r\n\r\n",
            "Status: 200\r\nStatus: 200\r\n\r\n",
            "HTTP/1.1 200 OK\r\nStatus: 200\r\n\r\n",
            "HTTP/1.1\r\n\r\n",
            "no colon\r\n\r\n",
            " folded: x\r\n\r\n",
            "A: b\r\n folded\r\n\r\n",
            "A b: c\r\n\r\n",
            "A: b\0c\r\n\r\n",
            "A: b\rc\r\n\r\n",
        ] {
            assert_eq!(parse(block).err().map(|error| error.kind()), Some(ErrorKind::InvalidHeader), "{block:?}");
        }
    }

    #[test]
    fn the_end_is_found_wherever_the_text_is_cut() {
        for (text, end) in
            [("A: b\r\n\r\nbody", Some(8)), ("A: b\n\nbody", Some(6)), ("\r\nbody", Some(2)), ("\nA: b", Some(1))]
        {
            assert_eq!(HeaderEnd::default().find(text.as_bytes()), end, "{text:?}");
            let mut header_end = HeaderEnd::default();
            let found = (0..=text.len()).find_map(|length| header_end.find(&text.as_bytes()[..length]));
            assert_eq!(found, end, "{text:?}");
        }
        assert_eq!(HeaderEnd::default().find(b"A: b\r\nC: d\r\n\r"), None);
    }
}
