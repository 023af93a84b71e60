//! Headers that are about the connection and not about the message: what a proxy takes out, and what it must check.

use crate::error::{Error, ErrorKind, Result};
use crate::paths;
use crate::protocol::BodyLength;
use http::Version;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use pingora_http::{RequestHeader, ResponseHeader};

/// What the hop-by-hop headers said, once they are gone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct HopByHop {
    /// `TE: trailers`: this side understands trailers. May be said again to HTTP/2.
    pub(crate) te_trailers: bool,
    /// The protocols of `Upgrade`, in lower case, if `Connection: upgrade` went with it; else none.
    pub(crate) upgrade: Vec<String>,
}

/// Remove from a request what never passes a proxy (RFC 9110 7.6.1): `Connection`, every header that it names, and the
/// older ones that it should name. Called once per request, before a filter sees it.
///
/// `Host` and `Content-Length` stay even if `Connection` names them: without them the request would mean something
/// else.
pub(crate) fn strip_hop_by_hop(request: &mut RequestHeader) -> HopByHop {
    strip(request)
}

/// The same for an upstream's response; called once per attempt.
pub(crate) fn strip_hop_by_hop_response(response: &mut ResponseHeader) -> HopByHop {
    strip(response)
}

/// How long the body of a client's request is. Called once per request, in phase 1, before anything is routed or read.
///
/// `raw_h1` is an HTTP/1 request's header as it came, and `None` for HTTP/2. It is looked at only when there is a
/// `Transfer-Encoding`: Pingora has then already removed the `Content-Length` that it must not stand beside.
///
/// # Errors
/// [`ErrorKind::BadRequest`]: the framing is malformed or ambiguous (RFC 9112 6.3). The request must reach no upstream,
/// and its connection must be closed, as nobody can tell where the next request begins.
pub(crate) fn request_framing(raw_h1: Option<&[u8]>, request: &RequestHeader) -> Result<BodyLength> {
    if request.headers.contains_key(header::TRANSFER_ENCODING) {
        check_transfer_encoding(raw_h1, request)?;
        return Ok(BodyLength::Unknown);
    }
    let mut lengths = request.headers.get_all(header::CONTENT_LENGTH).iter();
    match (lengths.next(), lengths.next()) {
        (None, _) if raw_h1.is_some() => Ok(BodyLength::None),
        (None, _) => Ok(BodyLength::Unknown),
        (Some(length), None) => parse_content_length(length.as_bytes())
            .map(BodyLength::Known)
            .ok_or_else(|| bad_request("an invalid Content-Length")),
        (Some(_), Some(_)) => Err(bad_request("more than one Content-Length")),
    }
}

/// The host that the client asked for, as it wrote it: `:authority` in HTTP/2 and in absolute form, else `Host`.
pub(crate) fn host(request: &RequestHeader) -> Option<&str> {
    match request.uri.authority() {
        Some(authority) => Some(authority.as_str()),
        None => request.headers.get(header::HOST)?.to_str().ok(),
    }
}

/// `host` without its port, if it has one.
pub(crate) fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

/// Where a client's request goes must be clear: its target is a path, `*`, or in absolute form, and an HTTP/1.1 request
/// has a `Host` that can be read (RFC 9112 3.2).
///
/// # Errors
/// [`ErrorKind::BadRequest`].
pub(crate) fn check_target(request: &RequestHeader) -> Result<()> {
    let target = request.raw_path();
    let begins_with = |start: &[u8]| target.get(..start.len()).is_some_and(|is| is.eq_ignore_ascii_case(start));
    if target != b"*" && ![&b"/"[..], b"http://", b"https://"].into_iter().any(begins_with) {
        return Err(bad_request("a target that is not a path"));
    }
    paths::normalize(request.uri.path().as_bytes())?;
    match request.headers.get(header::HOST) {
        None if request.version == Version::HTTP_11 => Err(bad_request("no Host")),
        Some(host) if host.to_str().is_err() => Err(bad_request("a malformed Host")),
        _ => Ok(()),
    }
}

/// The members of a header that is a comma-separated list, over all of its lines, without white space and empty members
/// (RFC 9110 5.6.1).
pub(crate) fn list<'a, V>(values: impl IntoIterator<Item = &'a V>) -> impl Iterator<Item = &'a [u8]>
where
    V: AsRef<[u8]> + ?Sized + 'a,
{
    let members = values.into_iter().flat_map(|value| value.as_ref().split(|&byte| byte == b','));
    members.map(<[u8]>::trim_ascii).filter(|member| !member.is_empty())
}

/// A `Content-Length` by the letter: digits and nothing else, neither a sign nor a list.
pub(crate) fn parse_content_length(value: &[u8]) -> Option<u64> {
    if value.is_empty() {
        return None;
    }
    value.iter().try_fold(0_u64, |length, byte| match byte {
        b'0'..=b'9' => length.checked_mul(10)?.checked_add(u64::from(byte - b'0')),
        _ => None,
    })
}

/// Is this a header for the next hop only, in any case? `Connection` may name more of them.
pub(crate) fn is_hop_by_hop(name: &[u8]) -> bool {
    let same = |other: &str| name.eq_ignore_ascii_case(other.as_bytes());
    match name.len() {
        2 => same("te"),
        7 => same("trailer") || same("upgrade"),
        10 => same("connection") || same("keep-alive"),
        16 => same("proxy-connection"),
        17 => same("transfer-encoding"),
        _ => false,
    }
}

/// What requests and responses have in common here.
trait Fields {
    fn fields(&self) -> &HeaderMap;
    fn remove(&mut self, name: &HeaderName) -> Option<HeaderValue>;
}

impl Fields for RequestHeader {
    fn fields(&self) -> &HeaderMap {
        &self.headers
    }

    fn remove(&mut self, name: &HeaderName) -> Option<HeaderValue> {
        self.remove_header(name)
    }
}

impl Fields for ResponseHeader {
    fn fields(&self) -> &HeaderMap {
        &self.headers
    }

    fn remove(&mut self, name: &HeaderName) -> Option<HeaderValue> {
        self.remove_header(name)
    }
}

/// Most messages have `Connection` at most: one pass over the names finds what there is to do.
fn strip(message: &mut impl Fields) -> HopByHop {
    let mut doomed: Vec<HeaderName> =
        message.fields().keys().filter(|name| is_hop_by_hop(name.as_str().as_bytes())).cloned().collect();
    if doomed.is_empty() {
        return HopByHop::default();
    }
    let said = read(message.fields());
    let named = list(message.fields().get_all(header::CONNECTION)).filter_map(|name| HeaderName::from_bytes(name).ok());
    doomed.extend(named.filter(|name| *name != header::HOST && *name != header::CONTENT_LENGTH));
    for name in &doomed {
        message.remove(name);
    }
    said
}

fn read(fields: &HeaderMap) -> HopByHop {
    let says = |name, option: &[u8]| list(fields.get_all(name)).any(|member| member.eq_ignore_ascii_case(option));
    let mut said = HopByHop { te_trailers: says(header::TE, b"trailers"), upgrade: Vec::new() };
    if says(header::CONNECTION, b"upgrade") {
        let protocols = list(fields.get_all(header::UPGRADE));
        said.upgrade.extend(protocols.map(|protocol| String::from_utf8_lossy(protocol).to_ascii_lowercase()));
    }
    said
}

fn check_transfer_encoding(raw_h1: Option<&[u8]>, request: &RequestHeader) -> Result<()> {
    let Some(raw) = raw_h1 else {
        return Err(bad_request("Transfer-Encoding in HTTP/2"));
    };
    if request.version == Version::HTTP_10 {
        return Err(bad_request("Transfer-Encoding in HTTP/1.0"));
    }
    let mut codings = request.headers.get_all(header::TRANSFER_ENCODING).iter();
    let coding = codings.next().map(HeaderValue::as_bytes).unwrap_or_default();
    if !coding.trim_ascii().eq_ignore_ascii_case(b"chunked") {
        return Err(bad_request("a Transfer-Encoding other than chunked"));
    }
    if codings.next().is_some() {
        return Err(bad_request("more than one Transfer-Encoding"));
    }
    check_raw_lines(raw)
}

/// Pingora's parser refuses malformed lines too; it is checked again because its tolerance may change, and a line that
/// two parsers read differently is how a `Content-Length` is hidden.
fn check_raw_lines(raw: &[u8]) -> Result<()> {
    let lines = raw.split(|&byte| byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    // The parser skips empty lines in front of the request line.
    let mut lines = lines.skip_while(|line| line.is_empty());
    lines.next();
    lines.take_while(|line| !line.is_empty()).try_for_each(check_raw_line)
}

fn check_raw_line(line: &[u8]) -> Result<()> {
    let Some(colon) = memchr::memchr(b':', line) else {
        return Err(bad_request("a header line without a colon"));
    };
    let name = line.split_at(colon).0;
    if name.eq_ignore_ascii_case(b"content-length") {
        return Err(bad_request("both Content-Length and Transfer-Encoding"));
    }
    // White space in a name: in front, a folded line; behind, a header that others may not recognise.
    match HeaderName::from_bytes(name) {
        Ok(_) => Ok(()),
        Err(_) => Err(bad_request("a malformed header name")),
    }
}

fn bad_request(what: &str) -> Error {
    Error::new(ErrorKind::BadRequest, format!("the client sent {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(fields: &[(&'static str, &str)]) -> RequestHeader {
        let mut request = RequestHeader::build("GET", b"/", None).unwrap();
        for (name, value) in fields {
            request.append_header(*name, *value).unwrap();
        }
        request
    }

    /// As Pingora hands it over: parsed, `Content-Length` taken out if `Transfer-Encoding` is there too.
    fn framing(fields: &str) -> Result<BodyLength> {
        let raw = format!("POST / HTTP/1.1\r\n{fields}\r\n");
        let mut slots = [httparse::EMPTY_HEADER; 16];
        let mut parsed = httparse::Request::new(&mut slots);
        let _ = parsed.parse(raw.as_bytes());
        let mut request = RequestHeader::build("POST", b"/", None).unwrap();
        for field in parsed.headers.iter().filter(|field| !field.name.is_empty()) {
            request.append_header(field.name.to_owned(), field.value).unwrap();
        }
        if request.headers.contains_key("transfer-encoding") {
            request.remove_header("content-length");
        }
        request_framing(Some(raw.as_bytes()), &request)
    }

    #[test]
    fn hop_by_hop_headers_and_what_connection_names_are_gone() {
        let mut request = request(&[
            ("Host", "h"),
            ("Connection", "close, X-One ,,HOST"),
            ("connection", "x-two, content-length, bad name"),
            ("X-One", "1"),
            ("X-Two", "2"),
            ("x-two", "2"),
            ("Content-Length", "5"),
            ("Keep-Alive", "5"),
            ("Proxy-Connection", "close"),
            ("Trailer", "X"),
            ("Transfer-Encoding", "chunked"),
            ("Upgrade", "websocket"),
            ("X-Three", "3"),
        ]);
        assert_eq!(strip_hop_by_hop(&mut request), HopByHop::default());
        let mut left: Vec<&str> = request.headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["content-length", "host", "x-three"]);
    }

    #[test]
    fn what_was_asked_for_is_told() {
        let asking = [("TE", "gzip, Trailers"), ("Upgrade", "WebSocket, h2c"), ("Connection", "keep-alive, Upgrade")];
        let said = strip_hop_by_hop(&mut request(&asking));
        assert_eq!(said, HopByHop { te_trailers: true, upgrade: vec!["websocket".into(), "h2c".into()] });
        let said = strip_hop_by_hop(&mut request(&[("TE", "gzip"), ("Host", "h")]));
        assert_eq!(said, HopByHop::default());
    }

    #[test]
    fn a_response_is_stripped_too() {
        let mut response = ResponseHeader::build(101, None).unwrap();
        response.append_header("Upgrade", "websocket").unwrap();
        response.append_header("Connection", "upgrade, x-a").unwrap();
        response.append_header("X-A", "1").unwrap();
        response.append_header("Server", "s").unwrap();
        assert_eq!(strip_hop_by_hop_response(&mut response).upgrade, ["websocket"]);
        assert_eq!(response.headers.keys().collect::<Vec<_>>(), ["server"]);
    }

    #[test]
    fn framing_of_an_http1_request() {
        for (fields, length) in [
            ("", BodyLength::None),
            ("Content-Length: 0\r\n", BodyLength::Known(0)),
            ("content-length: 42\r\n", BodyLength::Known(42)),
            ("Transfer-Encoding: chunked\r\n", BodyLength::Unknown),
            ("transfer-encoding:\tCHUNKED \r\nX-Content-Length: 5\r\nX: Content-Length: 5\r\n", BodyLength::Unknown),
        ] {
            assert_eq!(framing(fields).unwrap(), length, "{fields:?}");
        }
    }

    #[test]
    fn ambiguous_or_malformed_framing_of_a_request_is_refused() {
        for fields in [
            "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: chunked\r\ncontent-LENGTH:5\r\n",
            "Transfer-Encoding: chunked\nContent-Length: 5\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
            "Transfer-Encoding: chunked, identity\r\n",
            "Transfer-Encoding: xchunked\r\n",
            "Transfer-Encoding:\r\n",
            "Content-Length: 5\r\nContent-Length: 5\r\n",
            "Content-Length: 5, 5\r\n",
            "Content-Length: +5\r\n",
            "Content-Length:\r\n",
            "Content-Length: 18446744073709551616\r\n",
            "Content-Length: 99999999999999999999\r\n",
            "Transfer-Encoding: chunked\r\nContent-Length : 5\r\n",
            "Transfer-Encoding: chunked\r\nX: a\r\n b: c\r\n",
            "Transfer-Encoding: chunked\r\nno colon\r\n",
        ] {
            assert_eq!(framing(fields).err().map(|error| error.status()), Some(400), "{fields:?}");
        }
    }

    #[test]
    fn an_empty_line_in_front_of_the_request_hides_nothing() {
        let raw = b"\r\n\r\nPOST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n";
        let request = request(&[("Transfer-Encoding", "chunked")]);
        assert!(request_framing(Some(raw), &request).is_err());
    }

    #[test]
    fn a_host_loses_its_port_but_not_its_ipv6_colons() {
        for (host, name) in [("h.test:8080", "h.test"), ("h.test", "h.test"), ("[::1]", "[::1]"), ("[::1]:80", "[::1]")]
        {
            assert_eq!(without_port(host), name);
        }
    }

    #[test]
    fn framing_of_other_versions() {
        assert_eq!(request_framing(None, &request(&[])).unwrap(), BodyLength::Unknown);
        assert_eq!(request_framing(None, &request(&[("content-length", "7")])).unwrap(), BodyLength::Known(7));
        assert!(request_framing(None, &request(&[("transfer-encoding", "chunked")])).is_err());
        let mut old = request(&[("transfer-encoding", "chunked")]);
        old.set_version(Version::HTTP_10);
        assert!(request_framing(Some(b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"), &old).is_err());
    }
}
