//! [`Memcached`]: values of a memcached server as responses, over its text protocol.
//!
//! | HTTP | memcached |
//! |---|---|
//! | `GET`, `HEAD` | `get KEY`; any other method is a 405 |
//! | 200, `Content-Length`, `Content-Type` by the path's extension | `VALUE KEY FLAGS BYTES` |
//! | `Content-Encoding: gzip` | the flag `gzip_flag` |
//! | 404 | `END` at once: a miss |
//! | 502 (`next_upstream`: `invalid_header`) | anything else: `ERROR`, `SERVER_ERROR …`, a value of another key |
//! | a broken message | what is behind the value is not the end of the answer |
//!
//! As nginx's `memcached_pass`, but for one thing: the response has the whole pipe, however large the value.

use super::{Codec, Input, Parsed, Protocol, Request};
use crate::error::{Error, ErrorKind, Result};
use crate::template::Template;
use bytes::{BufMut, BytesMut};
use http::{Method, header};
use pingora_http::ResponseHeader;
use serde::Deserialize;
use std::sync::Arc;

/// What the server allows (`KEY_MAX_LENGTH`).
const LONGEST_KEY: usize = 250;

/// What is behind a value.
const TRAILER: &[u8] = b"\r\nEND\r\n";

/// A route's `memcached`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemcachedConf {
    /// The key to look for. Control characters, spaces and `%` in it are escaped as in a URL, as nginx does. Longer than
    /// 250 bytes: 414.
    pub key: Template,
    /// The bit of a value's flags, from 0, that says it is compressed. Default: none.
    #[serde(default)]
    pub gzip_flag: Option<GzipFlag>,
}

/// The number of a bit: 0 to 31.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(try_from = "u32")]
pub struct GzipFlag(u32);

impl TryFrom<u32> for GzipFlag {
    type Error = String;

    fn try_from(bit: u32) -> Result<Self, String> {
        if bit < 32 { Ok(GzipFlag(bit)) } else { Err(format!("{bit}, expected a bit's number from 0 to 31")) }
    }
}

/// memcached, as one route speaks it.
pub struct Memcached(Arc<MemcachedConf>);

impl Memcached {
    /// With a route's settings.
    pub fn new(conf: MemcachedConf) -> Self {
        Memcached(Arc::new(conf))
    }
}

impl Protocol for Memcached {
    fn codec(&self) -> Box<dyn Codec> {
        let (key, content_type) = (BytesMut::new(), "");
        Box::new(Get { conf: self.0.clone(), key, content_type, left: 0, trailer: b"", excess: false })
    }
}

/// One `get` and its answer.
struct Get {
    conf: Arc<MemcachedConf>,
    key: BytesMut,
    content_type: &'static str,
    /// Bytes of the value to come.
    left: u64,
    /// What has to come behind the value, as far as it has not come yet.
    trailer: &'static [u8],
    /// Bytes came behind the end of the answer.
    excess: bool,
}

impl Codec for Get {
    fn create_request(&mut self, request: &Request<'_>, out: &mut BytesMut) -> Result<()> {
        if !matches!(request.header().method, Method::GET | Method::HEAD) {
            return Err(Error::method_not_allowed("GET, HEAD"));
        }
        self.key = key(request.render(&self.conf.key).as_bytes())?;
        let by_extension = mime_guess::from_path(request.header().uri.path()).first_raw();
        self.content_type = by_extension.unwrap_or("application/octet-stream");
        out.put_slice(b"get ");
        out.put_slice(&self.key);
        out.put_slice(b"\r\n");
        Ok(())
    }

    fn process_header(&mut self, received: &[u8]) -> Result<Parsed> {
        let Some(end) = memchr::memchr(b'\n', received) else { return Ok(Parsed::Partial) };
        let (line, _) = received.split_at(end);
        let line = line.strip_suffix(b"\r").ok_or_else(|| invalid(line))?;
        let header = if line == b"END" { self.miss()? } else { self.hit(line)? };
        Ok(Parsed::Done(header, end + 1))
    }

    fn input_filter(&mut self, raw: &mut [u8]) -> Result<Input> {
        let body = usize::try_from(self.left).map_or(raw.len(), |left| left.min(raw.len()));
        self.left -= body as u64;
        let behind = raw.get(body..).unwrap_or_default();
        let (end, excess) = behind.split_at(behind.len().min(self.trailer.len()));
        self.trailer = self.trailer.strip_prefix(end).ok_or_else(|| {
            Error::new(ErrorKind::InvalidBody, format!("memcached sent \"{}\" behind a value", end.escape_ascii()))
        })?;
        self.excess |= !excess.is_empty();
        Ok(Input { body, done: self.left == 0 && self.trailer.is_empty() })
    }

    fn keepalive(&self) -> bool {
        !self.excess
    }
}

impl Get {
    fn miss(&self) -> Result<ResponseHeader> {
        let mut header = ResponseHeader::build(404, Some(2))?;
        header.insert_header(header::CONTENT_LENGTH, 0)?;
        Ok(header)
    }

    /// `VALUE KEY FLAGS BYTES`.
    fn hit(&mut self, line: &[u8]) -> Result<ResponseHeader> {
        let mut words = line.split(|byte| *byte == b' ');
        let (Some(b"VALUE"), Some(key), Some(flags), Some(length), None) =
            (words.next(), words.next(), words.next(), words.next(), words.next())
        else {
            return Err(invalid(line));
        };
        let (Some(flags), Some(length)) = (number(flags), number(length)) else { return Err(invalid(line)) };
        if key != self.key {
            return Err(invalid(line));
        }
        self.left = length;
        self.trailer = TRAILER;
        let mut header = ResponseHeader::build(200, Some(4))?;
        header.insert_header(header::CONTENT_LENGTH, length)?;
        header.insert_header(header::CONTENT_TYPE, self.content_type)?;
        if self.conf.gzip_flag.is_some_and(|GzipFlag(bit)| flags >> bit & 1 == 1) {
            header.insert_header(header::CONTENT_ENCODING, "gzip")?;
        }
        Ok(header)
    }
}

/// nginx's `NGX_ESCAPE_MEMCACHED`: what would end a word or a line cannot be in a key.
fn key(text: &[u8]) -> Result<BytesMut> {
    let mut key = BytesMut::with_capacity(text.len());
    for byte in text {
        match byte {
            0..=b' ' | b'%' => key.put_slice(format!("%{byte:02X}").as_bytes()),
            byte => key.put_u8(*byte),
        }
    }
    match key.len() {
        0 => Err(Error::with_status(400, "the key for memcached is empty")),
        1..=LONGEST_KEY => Ok(key),
        length => Err(Error::with_status(414, format!("the key for memcached has {length} bytes"))),
    }
}

fn number(digits: &[u8]) -> Option<u64> {
    crate::headers::parse_content_length(digits)
}

fn invalid(line: &[u8]) -> Error {
    Error::new(ErrorKind::InvalidHeader, format!("memcached answered \"{}\"", line.escape_ascii()))
}

#[cfg(test)]
mod tests {
    use super::super::split_check::{Answer, End, check};
    use super::*;
    use pingora_http::RequestHeader;

    fn memcached() -> Memcached {
        Memcached::new(serde_json::from_str(r#"{ "key": "k y", "gzip_flag": 1 }"#).unwrap())
    }

    fn answer(wire: &str) -> Answer {
        check(&memcached(), &RequestHeader::build("GET", b"/a.png", None).unwrap(), wire.as_bytes(), &[1])
    }

    #[test]
    fn a_value_ends_with_its_trailer() {
        let table = [
            ("VALUE k%20y 0 5\r\nhello\r\nEND\r\n", "hello", End::Done, true),
            ("VALUE k%20y 2 0\r\n\r\nEND\r\n", "", End::Done, true),
            ("END\r\n", "", End::Done, true),
            ("END\r\nEND\r\n", "", End::Done, false),
            ("VALUE k%20y 0 5\r\nhello\r\nEND\r\nx", "hello", End::Done, false),
            ("VALUE k%20y 0 5\r\nhell", "hell", End::Failed(ErrorKind::Truncated), false),
            ("VALUE k%20y 0 5\r\nhello\r\nEN", "hello", End::Failed(ErrorKind::Truncated), false),
            ("VALUE k%20y 0 4\r\nhello\r\nEND\r\n", "", End::Failed(ErrorKind::InvalidBody), false),
            ("VALUE other 0 5\r\nhello\r\nEND\r\n", "", End::Failed(ErrorKind::InvalidHeader), false),
            ("SERVER_ERROR out of memory\r\n", "", End::Failed(ErrorKind::InvalidHeader), false),
            ("END\n", "", End::Failed(ErrorKind::InvalidHeader), false),
        ];
        for (wire, body, end, keepalive) in table {
            let answer = answer(wire);
            assert_eq!((answer.body.as_slice(), &answer.end), (body.as_bytes(), &end), "{wire:?}");
            assert!(end != End::Done || answer.keepalive == keepalive, "{wire:?}");
        }
    }

    #[test]
    fn headers_say_what_the_value_is() {
        let header = &answer("VALUE k%20y 2 0\r\n\r\nEND\r\n").headers[0];
        for field in ["content-length: 0", "content-type: image/png", "content-encoding: gzip"] {
            assert!(header.to_ascii_lowercase().contains(field), "{field}: {header}");
        }
    }

    #[test]
    fn a_key_cannot_be_a_command() {
        assert_eq!(key(b"a b\r\n\0%\x7f\xff").unwrap(), &b"a%20b%0D%0A%00%25\x7f\xff"[..]);
        assert_eq!(key(b"").unwrap_err().status(), 400);
        assert_eq!(key(&[b'a'; 251]).unwrap_err().status(), 414);
        assert_eq!(key(&[b'a'; 250]).unwrap().len(), 250);
    }
}
