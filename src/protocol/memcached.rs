//! [`Memcached`]: values of a memcached server as resources, over its text protocol.
//!
//! | HTTP | memcached |
//! |---|---|
//! | `GET`, `HEAD` | `get KEY` |
//! | with `writes`: `PUT` with a `Content-Length` (else 411) | `set KEY FLAGS EXPTIME BYTES` |
//! | with `writes`: `DELETE` | `delete KEY` |
//! | any other method: 405 | – |
//! | 200, `Content-Length`, `Content-Type` by the path's extension | `VALUE KEY FLAGS BYTES` |
//! | `Content-Encoding: gzip`, in both directions | the flag `gzip_flag` |
//! | 204 | `STORED`, `DELETED` |
//! | 404 | `END` at once: a miss; `NOT_FOUND` |
//! | 409, 413, 507 | `NOT_STORED` or `EXISTS`, `object too large`, `out of memory storing object`: the server is well |
//! | 502 (`next_upstream`: `error`) | `ERROR Too many open connections` |
//! | 502 (`next_upstream`: `invalid_header`) | any other error, and what is no answer to the command |
//! | a broken message | what is behind the value is not the end of the answer |
//!
//! As nginx's `memcached_pass`, but for `writes`, and that the response has the whole pipe, however large the value.

use super::counted::Counted;
use super::{BodyLength, Codec, Input, Parsed, Protocol, Request};
use crate::conf::units::Time;
use crate::error::{Error, ErrorKind, Result};
use crate::template::Template;
use bytes::{BufMut, Bytes, BytesMut};
use http::{Method, header};
use pingora_http::ResponseHeader;
use serde::Deserialize;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// What the server allows (`KEY_MAX_LENGTH`). Of a `set` with a longer key it would take the value for commands.
const LONGEST_KEY: usize = 250;

/// The most that `memcached -I` can be told to take. Of a `set` with a length that is no `int` the server would take
/// the value for commands.
const LARGEST_VALUE: u64 = 1 << 30;

/// What is behind a value.
const TRAILER: &[u8] = b"\r\nEND\r\n";

/// Of an answer that is none so much goes to the log.
const LONGEST_ERROR: usize = 256;

/// A route's `memcached`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemcachedConf {
    /// The key to look for. Control characters, spaces and `%` in it are escaped as in a URL, as nginx does. Longer
    /// than 250 bytes: 414.
    pub key: Template,
    /// The bit of a value's flags, from 0, that says it is compressed. Default: none.
    #[serde(default)]
    pub gzip_flag: Option<GzipFlag>,
    /// May clients `PUT` and `DELETE` values? Default: `false`.
    #[serde(default)]
    pub writes: bool,
    /// How long a value lives that is put. Default: `0s`, until it is deleted or the server needs its room.
    #[serde(default)]
    pub expire: Expire,
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

/// How long a value lives, to the second; zero: until it is deleted.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(try_from = "Time")]
pub struct Expire(Duration);

impl TryFrom<Time> for Expire {
    type Error = String;

    fn try_from(Time(expire): Time) -> Result<Self, String> {
        const LONGEST: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
        match expire.subsec_nanos() == 0 && expire <= LONGEST {
            true => Ok(Expire(expire)),
            false => Err(format!("{expire:?}, expected whole seconds, 10 years at most")),
        }
    }
}

impl Expire {
    /// The `exptime` of a value that is put `now`: seconds from then on, but what is longer than 30 days memcached
    /// reads as seconds since 1970 (`realtime()`), in 32 bits with a sign.
    fn exptime(self, now: SystemTime) -> u64 {
        const LONGEST_RELATIVE: u64 = 30 * 24 * 60 * 60;
        let seconds = self.0.as_secs();
        if seconds <= LONGEST_RELATIVE {
            return seconds;
        }
        let since_1970 = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        (since_1970 + seconds).min(i32::MAX as u64)
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
        let (key, verb, value) = (BytesMut::new(), Verb::Get(""), Counted::NONE);
        Box::new(Command { conf: self.0.clone(), key, verb, value })
    }
}

/// One command and its answer.
struct Command {
    conf: Arc<MemcachedConf>,
    key: BytesMut,
    verb: Verb,
    value: Counted,
}

enum Verb {
    /// The answer's `Content-Type`.
    Get(&'static str),
    /// So many bytes of the value are still to be sent.
    Set(u64),
    Delete,
}

impl Codec for Command {
    fn create_request(&mut self, request: &Request<'_>, out: &mut BytesMut) -> Result<()> {
        self.key = key(request.render(&self.conf.key).as_bytes())?;
        match request.header().method {
            Method::GET | Method::HEAD => {
                let by_extension = mime_guess::from_path(request.header().uri.path()).first_raw();
                self.verb = Verb::Get(by_extension.unwrap_or("application/octet-stream"));
                self.write_command("get", "", out);
            }
            Method::PUT if self.conf.writes => {
                let (flags, length) = (self.flags(request)?, value_length(request)?);
                let exptime = self.conf.expire.exptime(SystemTime::now());
                self.verb = Verb::Set(length);
                self.write_command("set", &format!(" {flags} {exptime} {length}"), out);
            }
            Method::DELETE if self.conf.writes => {
                self.verb = Verb::Delete;
                self.write_command("delete", "", out);
            }
            _ if self.conf.writes => return Err(Error::method_not_allowed("GET, HEAD, PUT, DELETE")),
            _ => return Err(Error::method_not_allowed("GET, HEAD")),
        }
        Ok(())
    }

    fn request_body(&mut self, mut chunk: Bytes, last: bool, out: &mut Vec<Bytes>) {
        let Verb::Set(left) = &mut self.verb else { return };
        // More than was announced would be taken for commands.
        chunk.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
        *left -= chunk.len() as u64;
        out.push(chunk);
        if last && *left == 0 {
            out.push(Bytes::from_static(b"\r\n"));
        }
    }

    fn process_header(&mut self, received: &[u8]) -> Result<Parsed> {
        let Some(end) = memchr::memchr(b'\n', received) else { return Ok(Parsed::Partial) };
        let (line, _) = received.split_at(end);
        let line = line.strip_suffix(b"\r").ok_or_else(|| invalid(line))?;
        Ok(Parsed::Done(self.answer(line)?, end + 1))
    }

    fn input_filter(&mut self, raw: &mut [u8]) -> Result<Input> {
        self.value.input_filter(raw, "memcached")
    }

    fn keepalive(&self) -> bool {
        self.value.is_exact()
    }
}

impl Command {
    fn write_command(&self, name: &str, arguments: &str, out: &mut BytesMut) {
        for word in [name.as_bytes(), b" ", &self.key, arguments.as_bytes(), b"\r\n"] {
            out.put_slice(word);
        }
    }

    /// The flags of a value that is put: whoever reads it has to know how it is coded.
    fn flags(&self, request: &Request<'_>) -> Result<u32> {
        let mut codings = request.header().headers.get_all(header::CONTENT_ENCODING).iter();
        match (codings.next().map(|coding| coding.as_bytes()), codings.next(), self.conf.gzip_flag) {
            (None, ..) => Ok(0),
            (Some(coding), None, _) if coding.eq_ignore_ascii_case(b"identity") => Ok(0),
            (Some(coding), None, Some(GzipFlag(bit))) if coding.eq_ignore_ascii_case(b"gzip") => Ok(1 << bit),
            _ => Err(Error::with_status(415, "a PUT with a Content-Encoding that a value's flags cannot say")),
        }
    }

    fn answer(&mut self, line: &[u8]) -> Result<ResponseHeader> {
        match (&self.verb, line) {
            (Verb::Get(_), b"END") | (Verb::Delete, b"NOT_FOUND") => without_body(404),
            (Verb::Get(content_type), _) if line.starts_with(b"VALUE ") => self.hit(line, content_type),
            // Before it has the value it cannot have stored it.
            (Verb::Set(0), b"STORED") | (Verb::Delete, b"DELETED") => without_body(204),
            (Verb::Set(_), b"NOT_STORED" | b"EXISTS") => refused(409, line),
            (Verb::Set(_), b"SERVER_ERROR object too large for cache") => refused(413, line),
            (Verb::Set(_), b"SERVER_ERROR out of memory storing object") => refused(507, line),
            (_, b"ERROR Too many open connections") => Err(failed(ErrorKind::Unavailable, line)),
            _ => Err(invalid(line)),
        }
    }

    /// `VALUE KEY FLAGS BYTES`.
    fn hit(&mut self, line: &[u8], content_type: &'static str) -> Result<ResponseHeader> {
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
        self.value = Counted::new(length, TRAILER);
        let mut header = ResponseHeader::build(200, Some(3))?;
        header.insert_header(header::CONTENT_LENGTH, length)?;
        header.insert_header(header::CONTENT_TYPE, content_type)?;
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

/// How long the value is that is to be put.
fn value_length(request: &Request<'_>) -> Result<u64> {
    if request.header().headers.contains_key(header::CONTENT_RANGE) {
        return Err(Error::with_status(400, "a PUT of a part only (RFC 9110 14.5)"));
    }
    match request.body_length() {
        BodyLength::Known(length @ 0..=LARGEST_VALUE) => Ok(length),
        BodyLength::Known(length) => {
            Err(Error::with_status(413, format!("{length} bytes are more than a value of memcached may have")))
        }
        BodyLength::None | BodyLength::Unknown => Err(Error::with_status(411, "a PUT to memcached without a length")),
    }
}

fn without_body(status: u16) -> Result<ResponseHeader> {
    let mut header = ResponseHeader::build(status, Some(1))?;
    if status != 204 {
        header.insert_header(header::CONTENT_LENGTH, 0)?;
    }
    Ok(header)
}

/// What a client can bring about with a value says nothing about the peer, which must not rest for it: that is a status
/// of its own.
fn refused(status: u16, line: &[u8]) -> Result<ResponseHeader> {
    log::warn!("memcached refused a value, the client gets {status}: {}", shown(line));
    without_body(status)
}

fn number(digits: &[u8]) -> Option<u64> {
    crate::headers::parse_content_length(digits)
}

fn invalid(line: &[u8]) -> Error {
    failed(ErrorKind::InvalidHeader, line)
}

fn failed(kind: ErrorKind, line: &[u8]) -> Error {
    Error::new(kind, format!("memcached answered \"{}\"", shown(line)))
}

fn shown(line: &[u8]) -> std::slice::EscapeAscii<'_> {
    line.get(..LONGEST_ERROR).unwrap_or(line).escape_ascii()
}

#[cfg(test)]
mod tests {
    use super::super::split_check::{Answer, End, check, check_seeds};
    use super::*;
    use pingora_http::RequestHeader;
    use proptest::prelude::*;

    const METHODS: &str = "GET, HEAD, PUT, DELETE";

    fn memcached(key: &str) -> Memcached {
        let conf = serde_json::json!({ "key": key, "gzip_flag": 1, "writes": true, "expire": "90s" });
        Memcached::new(serde_json::from_value(conf).unwrap())
    }

    fn request(method: &str) -> RequestHeader {
        RequestHeader::build(method, b"/a.png", None).unwrap()
    }

    fn answer(method: &str, wire: &str) -> Answer {
        check(&memcached("k y"), &request(method), wire.as_bytes(), &[1])
    }

    /// All that goes over the wire.
    fn sent(key: &str, header: &RequestHeader, length: BodyLength, chunks: &[&'static str]) -> Result<String> {
        crate::protocol::sent::sent(&memcached(key), header, length, chunks)
    }

    /// What the answer to a PUT of two bytes makes of it, when so much of the value has been sent.
    fn put(sent: &'static str, wire: &str) -> Result<u16> {
        let mut codec = memcached("k").codec();
        codec.create_request(&Request::new(&request("PUT"), BodyLength::Known(2), &()), &mut BytesMut::new()).unwrap();
        codec.request_body(Bytes::from_static(sent.as_bytes()), true, &mut Vec::new());
        match codec.process_header(wire.as_bytes())? {
            Parsed::Done(header, _) => Ok(header.status.as_u16()),
            other => panic!("no header: {other:?}"),
        }
    }

    #[test]
    fn what_fuzzing_has_found_reads_the_same_in_pieces() {
        check_seeds("memcached", &memcached("k"), &["GET", "DELETE"].map(request));
    }

    #[test]
    fn a_value_ends_with_its_trailer() {
        let table = [
            ("VALUE k%20y 0 5\r\nhello\r\nEND\r\n", "hello", End::Done, true),
            ("VALUE k%20y 2 0\r\n\r\nEND\r\n", "", End::Done, true),
            ("VALUE k%20y 0 7\r\n\r\nEND\r\n\r\nEND\r\n", "\r\nEND\r\n", End::Done, true),
            ("END\r\n", "", End::Done, true),
            ("END\r\nEND\r\n", "", End::Done, false),
            ("VALUE k%20y 0 5\r\nhello\r\nEND\r\nx", "hello", End::Done, false),
            ("VALUE k%20y 0 5\r\nhell", "hell", End::Failed(ErrorKind::Truncated), false),
            // The last byte waits: with it the client would have a whole message.
            ("VALUE k%20y 0 5\r\nhello", "hell", End::Failed(ErrorKind::Truncated), false),
            ("VALUE k%20y 0 5\r\nhello\r\nEN", "hell", End::Failed(ErrorKind::Truncated), false),
            ("VALUE k%20y 0 4\r\nhello\r\nEND\r\n", "", End::Failed(ErrorKind::InvalidBody), false),
        ];
        for (wire, body, end, keepalive) in table {
            let answer = answer("GET", wire);
            assert_eq!((answer.body.as_slice(), &answer.end), (body.as_bytes(), &end), "{wire:?}");
            assert!(end != End::Done || answer.keepalive == keepalive, "{wire:?}");
        }
    }

    #[test]
    fn what_is_no_answer_is_an_invalid_header() {
        let lines = [
            "VALUE other 0 5",
            "VALUE k%20y 0",
            "VALUE k%20y 0 -1",
            "VALUE k%20y x 5",
            "VALUE k%20y 0 99999999999999999999",
            "VALUE  k%20y 0 5",
            "VALUE k%20y 0 5 1",
            "value k%20y 0 5",
            "SERVER_ERROR out of memory",
            "CLIENT_ERROR bad command line format",
            "ERROR",
            "STORED",
            "NOT_FOUND",
            "",
            "HTTP/1.1 200 OK",
        ];
        for line in lines {
            assert_eq!(answer("GET", &format!("{line}\r\n")).end, End::Failed(ErrorKind::InvalidHeader), "{line}");
        }
        assert_eq!(answer("GET", "END\n").end, End::Failed(ErrorKind::InvalidHeader));
        assert_eq!(answer("DELETE", "END\r\n").end, End::Failed(ErrorKind::InvalidHeader));
        assert_eq!(answer("GET", "ERROR Too many open connections\r\n").end, End::Failed(ErrorKind::Unavailable));
    }

    #[test]
    fn headers_say_what_the_value_is() {
        let header = &answer("GET", "VALUE k%20y 2 0\r\n\r\nEND\r\n").headers[0];
        for field in ["content-length: 0", "content-type: image/png", "content-encoding: gzip"] {
            assert!(header.to_ascii_lowercase().contains(field), "{field}: {header}");
        }
        let plain = &answer("GET", "VALUE k%20y 5 0\r\n\r\nEND\r\n").headers[0];
        assert!(!plain.to_ascii_lowercase().contains("content-encoding"), "{plain}");
    }

    #[test]
    fn a_key_cannot_be_a_command() {
        assert_eq!(key(b"a b\r\n\0%\x7f\xff").unwrap(), &b"a%20b%0D%0A%00%25\x7f\xff"[..]);
        assert_eq!(key(b"").unwrap_err().status(), 400);
        assert_eq!(key(&[b'a'; 251]).unwrap_err().status(), 414);
        assert_eq!(key(&[b'a'; 250]).unwrap().len(), 250);
        assert_eq!(key(&[b' '; 84]).unwrap_err().status(), 414);
    }

    #[test]
    fn commands_are_one_line_and_a_value_of_the_length_in_it() {
        let line = |method: &str| sent("k y", &request(method), BodyLength::Known(2), &["xy", ""]).unwrap();
        assert_eq!(line("GET"), "get k%20y\r\n");
        assert_eq!(line("HEAD"), "get k%20y\r\n");
        assert_eq!(line("DELETE"), "delete k%20y\r\n");
        assert_eq!(line("PUT"), "set k%20y 0 90 2\r\nxy\r\n");
        let put =
            |length, chunks: &[&'static str]| sent("k", &request("PUT"), BodyLength::Known(length), chunks).unwrap();
        assert_eq!(put(5, &["he", "llo"]), "set k 0 90 5\r\nhello\r\n");
        assert_eq!(put(0, &[""]), "set k 0 90 0\r\n\r\n");
        assert_eq!(put(2, &["he\r\n", "flush_all\r\n"]), "set k 0 90 2\r\nhe\r\n", "no more than was announced");
        assert_eq!(put(9, &["he", ""]), "set k 0 90 9\r\nhe", "and no end behind less");
    }

    #[test]
    fn the_coding_of_a_value_is_in_its_flags() {
        let put = |coding: &str| {
            let mut header = request("PUT");
            header.insert_header("Content-Encoding", coding).unwrap();
            sent("k", &header, BodyLength::Known(0), &[""])
        };
        assert_eq!(put("GZIP").unwrap(), "set k 2 90 0\r\n\r\n");
        assert_eq!(put("identity").unwrap(), "set k 0 90 0\r\n\r\n");
        assert_eq!(put("br").unwrap_err().status(), 415);
        assert_eq!(put("gzip, br").unwrap_err().status(), 415);
    }

    #[test]
    fn what_cannot_be_said_is_refused() {
        let refusal = |key: &str, method: &str, length| sent(key, &request(method), length, &[""]).unwrap_err();
        assert_eq!(refusal("", "GET", BodyLength::None).status(), 400);
        assert_eq!(refusal("k", "PUT", BodyLength::Unknown).status(), 411);
        assert_eq!(refusal("k", "PUT", BodyLength::None).status(), 411);
        assert_eq!(refusal("k", "PUT", BodyLength::Known(LARGEST_VALUE + 1)).status(), 413);
        assert_eq!(refusal("k", "POST", BodyLength::Known(1)).allow(), Some(METHODS));
        let read_only = Memcached::new(serde_json::from_str(r#"{ "key": "k" }"#).unwrap());
        for method in ["PUT", "DELETE"] {
            let (header, mut out) = (request(method), BytesMut::new());
            let created = read_only.codec().create_request(&Request::new(&header, BodyLength::Known(1), &()), &mut out);
            assert_eq!(created.unwrap_err().allow(), Some("GET, HEAD"));
        }
    }

    #[test]
    fn what_becomes_of_a_value() {
        assert_eq!(put("xy", "STORED\r\n").unwrap(), 204);
        assert_eq!(put("x", "STORED\r\n").unwrap_err().kind(), ErrorKind::InvalidHeader, "it cannot have it yet");
        assert_eq!(put("xy", "NOT_STORED\r\n").unwrap(), 409);
        assert_eq!(put("xy", "EXISTS\r\n").unwrap(), 409);
        assert_eq!(put("x", "SERVER_ERROR object too large for cache\r\n").unwrap(), 413);
        assert_eq!(put("xy", "SERVER_ERROR out of memory storing object\r\n").unwrap(), 507);
        assert_eq!(put("xy", "END\r\n").unwrap_err().kind(), ErrorKind::InvalidHeader);
        assert!(answer("DELETE", "DELETED\r\n").headers[0].contains(" 204 "));
        assert!(answer("DELETE", "NOT_FOUND\r\n").headers[0].contains(" 404 "));
    }

    #[test]
    fn more_than_thirty_days_are_a_point_in_time() {
        const DAY: u64 = 24 * 60 * 60;
        let at = |now, expire| {
            Expire(Duration::from_secs(expire)).exptime(SystemTime::UNIX_EPOCH + Duration::from_secs(now))
        };
        assert_eq!(at(1_700_000_000, 0), 0);
        assert_eq!(at(1_700_000_000, 30 * DAY), 30 * DAY);
        assert_eq!(at(1_700_000_000, 30 * DAY + 1), 1_700_000_000 + 30 * DAY + 1);
        assert_eq!(at(2_147_000_000, 31 * DAY), i32::MAX as u64);
    }

    #[test]
    fn settings_that_make_no_sense_are_refused() {
        let conf = |text: &str| serde_json::from_str::<MemcachedConf>(text).map_err(|error| error.to_string());
        assert_eq!(conf(r#"{ "key": "k", "expire": "1h" }"#).unwrap().expire, Expire(Duration::from_secs(3600)));
        assert!(conf(r#"{ "key": "k", "expire": "1500ms" }"#).unwrap_err().contains("whole seconds"));
        assert!(conf(r#"{ "key": "k", "expire": "11y" }"#).unwrap_err().contains("10 years"));
        assert!(conf(r#"{ "key": "k", "gzip_flag": 32 }"#).unwrap_err().contains("0 to 31"));
        assert!(conf(r#"{ "expire": "1s" }"#).unwrap_err().contains("key"));
    }

    /// Answers, and pieces of such, one after the other.
    fn wires() -> impl Strategy<Value = Vec<u8>> {
        const LINES: [&str; 8] =
            ["END\r\n", "DELETED\r\n", "NOT_FOUND\r\n", "ERROR\r\n", "VALUE k 2 3\r\n", "\r", "\n", "END"];
        let value = prop::collection::vec(any::<u8>(), 0..40).prop_map(|value| {
            let line = format!("VALUE k 0 {}\r\n", value.len());
            [line.as_bytes(), &value, TRAILER].concat()
        });
        let piece = prop_oneof![
            value,
            prop::sample::select(&LINES[..]).prop_map(|text| text.as_bytes().to_vec()),
            prop::collection::vec(any::<u8>(), 0..4),
        ];
        prop::collection::vec(piece, 0..4).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn pieces_make_no_difference(wire in wires(), sizes in prop::collection::vec(1_usize..9, 1..6), method in 0_usize..3) {
            check(&memcached("k"), &request(["GET", "HEAD", "DELETE"][method]), &wire, &sizes);
        }
    }
}
