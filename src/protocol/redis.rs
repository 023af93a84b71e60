//! [`Redis`]: the strings of a Redis server as resources, over RESP 2.
//!
//! | HTTP | Redis |
//! |---|---|
//! | `GET`, `HEAD` | `GET key` |
//! | `PUT` with a `Content-Length` (else 411) | `SET key value`, with `PX` where the route has a `ttl` |
//! | `DELETE` | `DEL key` |
//! | any other method: 405 | – |
//! | 200, `Content-Length`, `Content-Type` by the path's extension | a bulk string |
//! | 204 | `OK` to `SET`, a number above 0 to `DEL` |
//! | 404 | the null bulk string, 0 to `DEL` |
//! | 403, 409, 507 | `NOPERM`, `WRONGTYPE`, `OOM`: about this key, the server is well |
//! | 502 (`next_upstream`: `error`) | `LOADING`, `MASTERDOWN`, `CLUSTERDOWN`, `READONLY`, `BUSY`, `MISCONF`, too many
//! clients |
//! | 502 (`next_upstream`: `invalid_header`) | any other error, and what is no answer to the command |
//! | a broken message | what is behind the value is not its end |
//!
//! Keys and values go over as counted strings: no byte in them can be a command. A new connection is told user,
//! password and database first, and no command goes out before that was accepted: it would be carried out in another
//! database.

use super::counted::Counted;
use super::{BodyLength, Codec, Input, Parsed, Protocol, Request};
use crate::conf::units::Time;
use crate::conf::{Login, Upstream};
use crate::error::{Error, ErrorKind, Result};
use crate::headers::parse_content_length;
use crate::template::Template;
use bytes::{BufMut, Bytes, BytesMut};
use http::{Method, header};
use pingora_http::ResponseHeader;
use serde::Deserialize;
use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

/// More would be a mistake, or an attempt to fill the server's memory with names.
const LONGEST_KEY: usize = 64 * 1024;

/// What a server takes (`proto-max-bulk-len`), unless told otherwise.
const LARGEST_VALUE: u64 = 512 << 20;

/// The methods that have a command.
const METHODS: &str = "GET, HEAD, PUT, DELETE";

/// Of an error reply so much goes to the log.
const LONGEST_ERROR: usize = 256;

/// A route's `redis`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RedisConf {
    /// The key, of 1 byte (else 400) to 64 KiB (else 414). There is nothing in it to be escaped.
    pub key: Template,
    /// How long a value lives that is put here. Default: `0s`, until it is deleted.
    #[serde(default)]
    pub ttl: Ttl,
    /// The database. Default: the upstream's `database`, or 0.
    #[serde(default)]
    pub database: Option<u32>,
}

/// How long a value lives, to the millisecond; zero: until it is deleted.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(try_from = "Time")]
pub struct Ttl(Duration);

impl TryFrom<Time> for Ttl {
    type Error = String;

    fn try_from(Time(ttl): Time) -> Result<Self, String> {
        /// Redis adds the present to it, in 64 bits.
        const LONGEST: Duration = Duration::from_secs(1000 * 366 * 24 * 60 * 60);
        let exact = ttl.subsec_nanos() % 1_000_000 == 0;
        match exact && ttl <= LONGEST {
            true => Ok(Ttl(ttl)),
            false => Err(format!("{ttl:?}, expected whole milliseconds, 1000 years at most")),
        }
    }
}

/// Redis, as one route speaks it.
pub struct Redis(Arc<Settings>);

struct Settings {
    key: Template,
    ttl: Duration,
    login: Login,
    database: u32,
    /// Of connections that were told these two.
    group: u64,
}

impl Redis {
    /// With a route's settings, and what its upstream says of user, password and database.
    ///
    /// # Errors
    /// The upstream's database is no number.
    pub fn new(conf: RedisConf, upstream: &Upstream) -> Result<Self> {
        let database = match (&conf.database, &upstream.database) {
            (Some(number), _) => *number,
            (None, None) => 0,
            (None, Some(name)) => name.parse().map_err(|_| {
                let text = format!("{name:?} as the database of upstream {}, expected a number", upstream.name);
                Error::new(ErrorKind::Internal, text)
            })?,
        };
        Ok(Self::with(conf.key, conf.ttl.0, upstream.login.clone(), database))
    }

    fn with(key: Template, ttl: Duration, login: Login, database: u32) -> Self {
        let mut hasher = DefaultHasher::new();
        (&login, database).hash(&mut hasher);
        Redis(Arc::new(Settings { key, ttl, login, database, group: hasher.finish() }))
    }
}

impl Protocol for Redis {
    fn codec(&self) -> Box<dyn Codec> {
        Box::new(Command {
            settings: self.0.clone(),
            verb: Verb::Get,
            greetings: VecDeque::new(),
            content_type: "",
            value: Counted::NONE,
        })
    }

    /// Whoever is logged in, and the database that is selected, stay with the connection.
    fn connection_group(&self) -> u64 {
        self.0.group
    }
}

/// One command and its reply.
struct Command {
    settings: Arc<Settings>,
    verb: Verb,
    /// What the new connection was told, and has not yet answered.
    greetings: VecDeque<Greeting>,
    content_type: &'static str,
    value: Counted,
}

enum Verb {
    Get,
    /// So many bytes of the value are still to be written, then this.
    Set(u64, Bytes),
    Del,
}

#[derive(Clone, Copy)]
enum Greeting {
    Auth,
    Select,
}

impl Codec for Command {
    fn create_request(&mut self, request: &Request<'_>, out: &mut BytesMut) -> Result<()> {
        let key = request.render(&self.settings.key);
        match key.len() {
            0 => return Err(Error::with_status(400, "the key for Redis is empty")),
            1..=LONGEST_KEY => {}
            length => return Err(Error::with_status(414, format!("the key for Redis has {length} bytes"))),
        }
        match request.header().method {
            Method::GET | Method::HEAD => {
                let by_extension = mime_guess::from_path(request.header().uri.path()).first_raw();
                self.content_type = by_extension.unwrap_or("application/octet-stream");
                write_command(out, &[b"GET", key.as_bytes()]);
            }
            Method::PUT => {
                let length = value_length(request)?;
                self.verb = Verb::Set(length, write_set(key.as_bytes(), length, self.settings.ttl, out));
            }
            Method::DELETE => {
                self.verb = Verb::Del;
                write_command(out, &[b"DEL", key.as_bytes()]);
            }
            _ => return Err(Error::method_not_allowed(METHODS)),
        }
        Ok(())
    }

    fn new_connection(&mut self, out: &mut BytesMut) {
        let Settings { login, database, .. } = &*self.settings;
        if let Some(password) = &login.password {
            let user = login.user.as_ref().map(|user| user.as_bytes());
            let words = [Some(b"AUTH".as_slice()), user, Some(password.expose().as_bytes())];
            write_command(out, &words.into_iter().flatten().collect::<Vec<_>>());
            self.greetings.push_back(Greeting::Auth);
        }
        if *database != 0 {
            write_command(out, &[b"SELECT", database.to_string().as_bytes()]);
            self.greetings.push_back(Greeting::Select);
        }
    }

    fn is_greeted(&self) -> bool {
        self.greetings.is_empty()
    }

    fn request_body(&mut self, mut chunk: Bytes, last: bool, out: &mut Vec<Bytes>) {
        let Verb::Set(left, end) = &mut self.verb else { return };
        // More than was announced would be taken for commands.
        chunk.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
        *left -= chunk.len() as u64;
        out.push(chunk);
        if last && *left == 0 {
            out.push(std::mem::take(end));
        }
    }

    fn process_header(&mut self, received: &[u8]) -> Result<Parsed> {
        let Some(end) = memchr::memchr(b'\n', received) else { return Ok(Parsed::Partial) };
        let (line, _) = received.split_at(end);
        let line = line.strip_suffix(b"\r").ok_or_else(|| invalid(line))?;
        if let Some(greeting) = self.greetings.pop_front() {
            self.greeted(greeting, line)?;
            return Ok(Parsed::Consumed(end + 1));
        }
        Ok(Parsed::Done(self.reply(line)?, end + 1))
    }

    fn input_filter(&mut self, raw: &mut [u8]) -> Result<Input> {
        self.value.input_filter(raw, "Redis")
    }

    fn keepalive(&self) -> bool {
        self.value.is_exact()
    }
}

impl Command {
    /// A reply to what a new connection was told.
    fn greeted(&self, greeting: Greeting, line: &[u8]) -> Result<()> {
        match line {
            b"+OK" => Ok(()),
            [b'-', text @ ..] => Err(match greeting {
                Greeting::Auth => failed("AUTH", self.without_secrets(text)),
                Greeting::Select => failed("SELECT", text),
            }),
            // A liar could have the password here.
            _ => {
                Err(Error::new(ErrorKind::InvalidHeader, "Redis answered AUTH or SELECT with neither OK nor an error"))
            }
        }
    }

    /// A server that does not know `AUTH` repeats what it was told: then only the error's name is left.
    fn without_secrets<'a>(&self, text: &'a [u8]) -> &'a [u8] {
        let password = self.settings.login.password.as_ref().map_or("", |password| password.expose());
        let repeats = |part: &[u8]| memchr::memmem::find(text, part).is_some();
        match repeats(b"args") || repeats(password.as_bytes()) {
            true => code(text),
            false => text,
        }
    }

    fn reply(&mut self, line: &[u8]) -> Result<ResponseHeader> {
        match (&self.verb, line) {
            (_, [b'-', text @ ..]) => self.refused(text),
            (Verb::Get, b"$-1") => without_body(404),
            (Verb::Get, [b'$', length @ ..]) => self.value(parse_content_length(length).ok_or_else(|| invalid(line))?),
            (Verb::Set(..), b"+OK") => without_body(204),
            (Verb::Del, [b':', number @ ..]) => match parse_content_length(number) {
                Some(0) => without_body(404),
                Some(_) => without_body(204),
                None => Err(invalid(line)),
            },
            _ => Err(invalid(line)),
        }
    }

    fn value(&mut self, length: u64) -> Result<ResponseHeader> {
        self.value = Counted::new(length, b"\r\n");
        let mut header = ResponseHeader::build(200, Some(2))?;
        header.insert_header(header::CONTENT_LENGTH, length)?;
        header.insert_header(header::CONTENT_TYPE, self.content_type)?;
        Ok(header)
    }

    /// An error in place of a reply. What a client can bring about with a key or a value says nothing about the peer,
    /// which must not rest for it: that is a status of its own.
    fn refused(&self, text: &[u8]) -> Result<ResponseHeader> {
        let status = match code(text) {
            b"NOPERM" => 403,
            b"WRONGTYPE" => 409,
            b"OOM" => 507,
            _ => return Err(failed(self.verb.name(), text)),
        };
        log::warn!("Redis refused {}, the client gets {status}: {}", self.verb.name(), shown(text));
        without_body(status)
    }
}

impl Verb {
    fn name(&self) -> &'static str {
        match self {
            Verb::Get => "GET",
            Verb::Set(..) => "SET",
            Verb::Del => "DEL",
        }
    }
}

/// An error reply that is no status for the client.
fn failed(command: &str, text: &[u8]) -> Error {
    let unavailable = match code(text) {
        b"LOADING" | b"MASTERDOWN" | b"CLUSTERDOWN" | b"READONLY" | b"BUSY" | b"MISCONF" => true,
        _ => text.starts_with(b"ERR max number of clients"),
    };
    let kind = if unavailable { ErrorKind::Unavailable } else { ErrorKind::InvalidHeader };
    Error::new(kind, format!("Redis refused {command}: {}", shown(text)))
}

/// The first word of an error, its name by convention.
fn code(text: &[u8]) -> &[u8] {
    text.split(|byte| *byte == b' ').next().unwrap_or_default()
}

fn shown(text: &[u8]) -> std::slice::EscapeAscii<'_> {
    text.get(..LONGEST_ERROR).unwrap_or(text).escape_ascii()
}

fn invalid(line: &[u8]) -> Error {
    Error::new(ErrorKind::InvalidHeader, format!("Redis answered \"{}\"", shown(line)))
}

fn without_body(status: u16) -> Result<ResponseHeader> {
    let mut header = ResponseHeader::build(status, Some(1))?;
    if status != 204 {
        header.insert_header(header::CONTENT_LENGTH, 0)?;
    }
    Ok(header)
}

/// How long the value is that is to be put.
fn value_length(request: &Request<'_>) -> Result<u64> {
    if request.header().headers.contains_key(header::CONTENT_RANGE) {
        return Err(Error::with_status(400, "a PUT of a part only (RFC 9110 14.5)"));
    }
    match request.body_length() {
        BodyLength::Known(length @ 0..=LARGEST_VALUE) => Ok(length),
        BodyLength::Known(length) => {
            Err(Error::with_status(413, format!("{length} bytes are more than a value of Redis may have")))
        }
        BodyLength::None | BodyLength::Unknown => Err(Error::with_status(411, "a PUT to Redis without a length")),
    }
}

/// `SET` up to where the value begins; returns what goes behind the value.
fn write_set(key: &[u8], length: u64, ttl: Duration, out: &mut BytesMut) -> Bytes {
    let mut end = BytesMut::from(b"\r\n".as_slice());
    if !ttl.is_zero() {
        write_word(&mut end, b"PX");
        write_word(&mut end, ttl.as_millis().to_string().as_bytes());
    }
    write_count(out, b'*', if ttl.is_zero() { 3 } else { 5 });
    write_word(out, b"SET");
    write_word(out, key);
    write_count(out, b'$', length);
    end.freeze()
}

fn write_command(out: &mut BytesMut, words: &[&[u8]]) {
    write_count(out, b'*', words.len() as u64);
    words.iter().for_each(|word| write_word(out, word));
}

/// A bulk string.
fn write_word(out: &mut BytesMut, word: &[u8]) {
    write_count(out, b'$', word.len() as u64);
    out.put_slice(word);
    out.put_slice(b"\r\n");
}

fn write_count(out: &mut BytesMut, kind: u8, count: u64) {
    out.put_u8(kind);
    out.put_slice(count.to_string().as_bytes());
    out.put_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::super::split_check::{Answer, End, check, check_seeds};
    use super::*;
    use crate::conf::Secret;
    use pingora_http::RequestHeader;
    use proptest::prelude::*;

    fn redis(key: &str, login: Login, database: u32) -> Redis {
        let key = serde_json::from_value(key.into()).unwrap();
        Redis::with(key, Duration::from_millis(1500), login, database)
    }

    fn plain(key: &str) -> Redis {
        redis(key, Login::default(), 0)
    }

    fn guarded() -> Redis {
        redis("k", Login { user: Some("joe".into()), password: Some(Secret::new("hunter2")) }, 3)
    }

    fn request(method: &str) -> RequestHeader {
        RequestHeader::build(method, b"/a.png", None).unwrap()
    }

    /// The reply to a GET, or another method.
    fn answer(method: &str, wire: &str) -> Answer {
        check(&plain("k"), &request(method), wire.as_bytes(), &[1])
    }

    /// All that goes over the wire, the greeting in front.
    fn sent(redis: &Redis, method: &str, length: BodyLength, chunks: &[&'static str]) -> Result<String> {
        crate::protocol::sent::sent(redis, &request(method), length, chunks)
    }

    #[test]
    fn what_fuzzing_has_found_reads_the_same_in_pieces() {
        for redis in [plain("k"), guarded()] {
            check_seeds("redis", &redis, &["GET", "DELETE"].map(request));
        }
    }

    fn header(wire: &[u8]) -> Result<Parsed> {
        let mut codec = guarded().codec();
        codec.create_request(&Request::new(&request("GET"), BodyLength::None, &()), &mut BytesMut::new()).unwrap();
        codec.new_connection(&mut BytesMut::new());
        codec.process_header(wire)
    }

    #[test]
    fn a_value_ends_where_it_says() {
        let table = [
            ("$5\r\nhello\r\n", "hello", End::Done, true),
            ("$0\r\n\r\n", "", End::Done, true),
            ("$-1\r\n", "", End::Done, true),
            ("$-1\r\n$-1\r\n", "", End::Done, false),
            ("$5\r\nhello\r\n+", "hello", End::Done, false),
            ("-WRONGTYPE no\r\n", "", End::Done, true),
            ("$5\r\nhell", "hell", End::Failed(ErrorKind::Truncated), false),
            ("$5\r\nhello", "hell", End::Failed(ErrorKind::Truncated), false),
            ("$5\r\nhello\r", "hell", End::Failed(ErrorKind::Truncated), false),
            ("$99999999999999\r\nhello", "hello", End::Failed(ErrorKind::Truncated), false),
            ("$4\r\nhello\r\n", "", End::Failed(ErrorKind::InvalidBody), false),
            ("$5\r\nhello\n\r", "", End::Failed(ErrorKind::InvalidBody), false),
        ];
        for (wire, body, end, keepalive) in table {
            let answer = answer("GET", wire);
            assert_eq!((answer.body.as_slice(), &answer.end), (body.as_bytes(), &end), "{wire:?}");
            assert!(end != End::Done || answer.keepalive == keepalive, "{wire:?}");
        }
    }

    #[test]
    fn what_is_no_reply_is_an_invalid_header() {
        let lines = [
            "$-2",
            "$-0",
            "$+5",
            "$",
            "$5x",
            "$ 5",
            "$99999999999999999999",
            "+OK",
            ":1",
            "*1",
            "_",
            "",
            "HTTP/1.1 200 OK",
        ];
        for line in lines {
            assert_eq!(answer("GET", &format!("{line}\r\n")).end, End::Failed(ErrorKind::InvalidHeader), "{line}");
        }
        assert_eq!(answer("GET", "$5\nhello\r\n").end, End::Failed(ErrorKind::InvalidHeader));
        assert_eq!(answer("DELETE", ":-1\r\n").end, End::Failed(ErrorKind::InvalidHeader));
        assert_eq!(answer("DELETE", "+OK\r\n").end, End::Failed(ErrorKind::InvalidHeader));
    }

    #[test]
    fn errors_tell_the_key_from_the_server() {
        let status = |text: &str| answer("GET", &format!("-{text}\r\n")).headers.pop().unwrap();
        assert!(status("WRONGTYPE Operation against a key").contains(" 409 "));
        assert!(status("NOPERM no permission").contains(" 403 "));
        assert!(status("OOM command not allowed").contains(" 507 "));
        let kind = |text: &str| answer("GET", &format!("-{text}\r\n")).end;
        let unavailable = End::Failed(ErrorKind::Unavailable);
        assert_eq!(kind("LOADING Redis is loading the dataset in memory"), unavailable);
        assert_eq!(kind("CLUSTERDOWN Hash slot not served"), unavailable);
        assert_eq!(kind("ERR max number of clients reached"), unavailable);
        assert_eq!(kind("ERR syntax error"), End::Failed(ErrorKind::InvalidHeader));
        assert_eq!(kind("MOVED 3999 127.0.0.1:6381"), End::Failed(ErrorKind::InvalidHeader));
    }

    #[test]
    fn commands_are_counted_strings() {
        let get = sent(&plain("a\r\nDEL b"), "GET", BodyLength::None, &[""]).unwrap();
        assert_eq!(get, "*2\r\n$3\r\nGET\r\n$8\r\na\r\nDEL b\r\n");
        let del = sent(&plain("k"), "DELETE", BodyLength::None, &[""]).unwrap();
        assert_eq!(del, "*2\r\n$3\r\nDEL\r\n$1\r\nk\r\n");
        let set = sent(&plain("k"), "PUT", BodyLength::Known(5), &["he", "llo", ""]).unwrap();
        assert_eq!(set, "*5\r\n$3\r\nSET\r\n$1\r\nk\r\n$5\r\nhello\r\n$2\r\nPX\r\n$4\r\n1500\r\n");
    }

    #[test]
    fn a_body_of_another_length_than_announced_is_no_command() {
        let set = sent(&plain("k"), "PUT", BodyLength::Known(2), &["he\r\n", "*1"]).unwrap();
        assert!(set.ends_with("$2\r\nhe\r\n$2\r\nPX\r\n$4\r\n1500\r\n"), "{set:?}");
        let set = sent(&plain("k"), "PUT", BodyLength::Known(9), &["he", ""]).unwrap();
        assert!(set.ends_with("$9\r\nhe"), "{set:?}");
    }

    #[test]
    fn what_cannot_be_said_is_refused() {
        let status = |key: &str, method: &str, length| sent(&plain(key), method, length, &[""]).unwrap_err();
        assert_eq!(status("", "GET", BodyLength::None).status(), 400);
        assert_eq!(status(&"k".repeat(LONGEST_KEY + 1), "GET", BodyLength::None).status(), 414);
        assert_eq!(status("k", "PUT", BodyLength::Unknown).status(), 411);
        assert_eq!(status("k", "PUT", BodyLength::None).status(), 411);
        assert_eq!(status("k", "PUT", BodyLength::Known(LARGEST_VALUE + 1)).status(), 413);
        assert_eq!(status("k", "POST", BodyLength::Known(1)).allow(), Some(METHODS));
    }

    #[test]
    fn a_new_connection_is_told_who_we_are_before_anything_else() {
        let wire = sent(&guarded(), "GET", BodyLength::None, &[""]).unwrap();
        let greeting = "*3\r\n$4\r\nAUTH\r\n$3\r\njoe\r\n$7\r\nhunter2\r\n*2\r\n$6\r\nSELECT\r\n$1\r\n3\r\n";
        assert!(wire.starts_with(greeting), "{wire:?}");
        let mut codec = guarded().codec();
        codec.new_connection(&mut BytesMut::new());
        for greeted in [false, true] {
            assert!(matches!(codec.process_header(b"+OK\r\n+OK\r\n"), Ok(Parsed::Consumed(5))));
            assert_eq!(codec.is_greeted(), greeted);
        }
    }

    #[test]
    fn a_password_is_in_no_message() {
        let replies = [
            "-WRONGPASS invalid username-password pair",
            "-ERR unknown command 'AUTH', with args beginning with: 'joe' 'hunt",
            "-ERR no, hunter2",
            "+hunter2",
        ];
        for reply in replies {
            let error = header(format!("{reply}\r\n").as_bytes()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidHeader);
            assert!(!format!("{error} {error:?}").contains("hunt"), "{error}");
        }
        assert!(header(b"-WRONGPASS x\r\n").unwrap_err().to_string().contains("WRONGPASS x"));
    }

    #[test]
    fn connections_are_shared_by_those_who_told_them_the_same() {
        let group = |redis: Redis| redis.connection_group();
        assert_eq!(group(plain("a")), group(plain("b")));
        assert_ne!(group(plain("a")), group(redis("a", Login::default(), 1)));
        assert_ne!(group(guarded()), group(redis("k", Login::default(), 3)));
    }

    #[test]
    fn settings_that_make_no_sense_are_refused() {
        let conf = |text: &str| serde_json::from_str::<RedisConf>(text);
        assert_eq!(conf(r#"{ "key": "k", "ttl": "1500ms" }"#).unwrap().ttl, Ttl(Duration::from_millis(1500)));
        assert!(conf(r#"{ "key": "k", "ttl": "10us" }"#).unwrap_err().to_string().contains("whole milliseconds"));
        assert!(conf(r#"{ "ttl": "1s" }"#).unwrap_err().to_string().contains("key"));
        assert!(conf(r#"{ "key": "k", "db": 1 }"#).is_err());
    }

    /// Replies, and pieces of such, one after the other.
    fn wires() -> impl Strategy<Value = Vec<u8>> {
        let bulk = prop::collection::vec(any::<u8>(), 0..40).prop_map(|value| {
            let mut wire = format!("${}\r\n", value.len()).into_bytes();
            wire.extend(value);
            wire.extend(b"\r\n");
            wire
        });
        let piece = prop_oneof![
            bulk,
            prop::sample::select(vec![
                "$-1\r\n",
                "-ERR x\r\n",
                "-OOM\r\n",
                ":1\r\n",
                "+OK\r\n",
                "\r",
                "\n",
                "$3\r\n",
                "$"
            ])
            .prop_map(|text| text.as_bytes().to_vec()),
            prop::collection::vec(any::<u8>(), 0..4),
        ];
        prop::collection::vec(piece, 0..4).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn pieces_make_no_difference(wire in wires(), sizes in prop::collection::vec(1_usize..9, 1..6), method in 0_usize..4) {
            let method = ["GET", "HEAD", "DELETE", "GET"][method];
            check(&plain("k"), &request(method), &wire, &sizes);
        }
    }
}
