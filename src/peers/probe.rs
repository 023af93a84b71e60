//! One health check of one peer: a new connection, made as for a request, and over it a request of its own.

use super::{Peer, Upstream};
use crate::conf::{HealthCheck, HttpProbe, Probe};
use bytes::BytesMut;
use http::header::{CONNECTION, CONTENT_LENGTH, HOST, USER_AGENT};
use http::{Method, Uri, Version};
use pingora_core::connectors::http::v2::{H2HandshakeSettings, handshake};
use pingora_core::protocols::http::client::HttpSession;
use pingora_core::protocols::http::v1;
use pingora_core::protocols::{ALPN, Stream};
use pingora_core::upstreams::peer::Peer as _;
use pingora_core::{Error, ErrorType};
use pingora_http::{RequestHeader, ResponseHeader};
use std::borrow::Cow;
use tokio::time::{Instant, timeout_at};

/// How much of a response is read.
const BODY_MAX: usize = 64 << 10;
/// How much of each part of an error is logged, in characters.
const REASON_MAX: usize = 200;
const AGENT: &str = concat!("millpond/", env!("CARGO_PKG_VERSION"), " (health check)");

/// Check the peer within `conf.timeout`. What was found, for the log.
///
/// # Errors
/// What is wrong with the peer.
pub(super) async fn probe(upstream: &Upstream, peer: &Peer, conf: &HealthCheck) -> Result<String, String> {
    let deadline = Instant::now() + conf.timeout;
    let limit = |what| format!("{what} within {:?}", conf.timeout);
    let connect = upstream.connectors.transport.new_stream(peer);
    let stream = match timeout_at(deadline, connect).await {
        Ok(connected) => connected.map_err(|error| format!("connecting: {}", reason(&error)))?,
        Err(_) => return Err(limit("no connection")),
    };
    match &conf.probe {
        Probe::Tcp => {
            close(deadline, stream).await;
            Ok("a connection".to_owned())
        }
        Probe::Http(http) => {
            let asked = format!("{} {}", http.method, http.path);
            let found = match timeout_at(deadline, ask(upstream, peer, http, stream, deadline)).await {
                Ok(Ok(found)) => found,
                Ok(Err(error)) => Err(reason(&error)),
                Err(_) => Err(limit("no whole answer")),
            };
            found.map(|found| format!("{asked}: {found}")).map_err(|wrong| format!("{asked}: {wrong}"))
        }
    }
}

/// The outer error: there was no response. The inner one: it is not as it should be.
async fn ask(
    upstream: &Upstream,
    peer: &Peer,
    probe: &HttpProbe,
    stream: Stream,
    deadline: Instant,
) -> pingora_core::Result<Result<String, String>> {
    let mut session = open(peer, stream).await?;
    let request = Box::new(request(upstream, peer, probe, matches!(session, HttpSession::H2(_)))?);
    match &mut session {
        HttpSession::H2(stream) => stream.write_request_header(request, true)?,
        session => session.write_request_header(request).await?,
    }
    let header = read_header(&mut session).await?;
    let mut found = probe.judge_header(&header);
    if found.is_ok()
        && let Err(wrong) = probe.judge_body(&read_body(&mut session).await?)
    {
        found = Err(wrong);
    }
    // A peer that is slow to be closed has answered all the same: the time that is left is not to run out here.
    let _ = timeout_at(deadline, session.shutdown()).await;
    Ok(found)
}

/// HTTP as requests would speak it, but on a connection that nobody else uses: Pingora's HTTP/2 connector would put
/// it into its pool.
async fn open(peer: &Peer, stream: Stream) -> pingora_core::Result<HttpSession> {
    let least = peer.get_peer_options().map_or(1, |options| options.alpn.get_min_http_version());
    let http2 = match stream.selected_alpn_proto() {
        Some(agreed) => agreed == ALPN::H2,
        None => !peer.tls() && least == 2,
    };
    if !http2 {
        return Ok(HttpSession::H1(v1::client::HttpSession::new_with_options(stream, peer)));
    }
    let mut settings = H2HandshakeSettings::new();
    settings.max_streams = 1;
    let stream = handshake(stream, settings).await?.spawn_stream().await?;
    let refused = || Error::explain(ErrorType::H2Error, "the connection takes no stream");
    stream.map(HttpSession::H2).ok_or_else(refused)
}

fn request(upstream: &Upstream, peer: &Peer, probe: &HttpProbe, http2: bool) -> pingora_core::Result<RequestHeader> {
    let mut request = RequestHeader::build(probe.method.clone(), probe.path.as_bytes(), None)?;
    request.insert_header(USER_AGENT, AGENT)?;
    request.insert_header(HOST, upstream.host(peer))?;
    for (name, value) in &probe.headers {
        request.insert_header(name.clone(), value.clone())?;
    }
    if matches!(probe.method, Method::POST | Method::PUT | Method::PATCH) {
        request.insert_header(CONTENT_LENGTH, 0)?;
    }
    match http2 {
        true => with_authority(&mut request, peer.tls())?,
        false => request.insert_header(CONNECTION, "close")?,
    }
    Ok(request)
}

/// HTTP/2 has pseudo-headers for the host and the scheme.
fn with_authority(request: &mut RequestHeader, tls: bool) -> pingora_core::Result<()> {
    let host = request.remove_header(&HOST);
    let uri = Uri::builder()
        .scheme(if tls { "https" } else { "http" })
        .authority(host.as_ref().map_or(&b"localhost"[..], |host| host.as_bytes()))
        .path_and_query(request.raw_path())
        .build()
        .map_err(|error| Error::because(ErrorType::InvalidHTTPHeader, "a Host that HTTP/2 cannot carry", error))?;
    request.set_uri(uri);
    request.set_version(Version::HTTP_2);
    Ok(())
}

/// The final header; interim ones are read over.
async fn read_header(session: &mut HttpSession) -> pingora_core::Result<ResponseHeader> {
    loop {
        session.read_response_header().await?;
        match session.response_header() {
            Some(header) if header.status.is_informational() && header.status != 101 => {}
            Some(header) => return Ok(header.clone()),
            None => return Err(Error::explain(ErrorType::InvalidHTTPHeader, "no header")),
        }
    }
}

/// To its end, so that a broken answer is seen to be one, or up to [`BODY_MAX`].
async fn read_body(session: &mut HttpSession) -> pingora_core::Result<BytesMut> {
    let mut body = BytesMut::new();
    while body.len() < BODY_MAX
        && let Some(chunk) = session.read_response_body().await?
    {
        body.extend_from_slice(&chunk);
    }
    body.truncate(BODY_MAX);
    Ok(body)
}

/// TLS says good-bye; servers log those who do not.
async fn close(deadline: Instant, mut stream: Stream) {
    let _ = timeout_at(deadline, tokio::io::AsyncWriteExt::shutdown(&mut stream)).await;
}

impl HttpProbe {
    /// Is the header as it should be? What was looked at, or what is wrong.
    fn judge_header(&self, header: &ResponseHeader) -> Result<String, String> {
        let status = header.status.as_u16();
        if !self.statuses.iter().any(|statuses| statuses.contains(status)) {
            let expected: Vec<String> = self.statuses.iter().map(ToString::to_string).collect();
            return Err(format!("status {status}, expected {}", expected.join(", ")));
        }
        for (name, pattern) in &self.header_patterns {
            let mut values = header.headers.get_all(name).iter().peekable();
            if values.peek().is_none() {
                return Err(format!("no header {name}"));
            }
            if !values.any(|value| pattern.0.is_match(value.as_bytes())) {
                return Err(format!("header {name} has nothing that matches {:?}", pattern.0.as_str()));
            }
        }
        Ok(format!("status {status}"))
    }

    fn judge_body(&self, body: &[u8]) -> Result<(), String> {
        match &self.body_pattern {
            Some(pattern) if !pattern.0.is_match(body) => {
                Err(format!("the body has nothing that matches {:?}", pattern.0.as_str()))
            }
            _ => Ok(()),
        }
    }
}

/// What Pingora's error says, without the addresses that its layers repeat: the log line has them. Nor is the whole header
/// of a peer that speaks something else for the log.
fn reason(error: &Error) -> String {
    let mut parts = vec![error.root_etype().as_str().to_owned()];
    let mut layer = Some(error);
    while let Some(error) = layer {
        parts.extend(error.context.as_ref().map(|context| context.as_str().to_owned()));
        layer = error.cause.as_ref().and_then(|cause| cause.downcast_ref::<Box<Error>>()).map(|inner| &**inner);
    }
    let root = error.root_cause();
    if !root.is::<Error>() {
        parts.push(root.to_string());
    }
    parts.retain(|part| !part.starts_with("Fail to connect to") && !part.starts_with("local address"));
    parts.iter().map(|part| shortened(part)).collect::<Vec<_>>().join(": ").replace('\n', " ")
}

fn shortened(part: &str) -> Cow<'_, str> {
    match part.char_indices().nth(REASON_MAX) {
        Some((end, _)) => format!("{}...", &part[..end]).into(),
        None => part.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_fits_into_a_log_line() {
        let header = "buf: ".to_owned() + &"\u{e9}".repeat(100_000);
        let cause = std::io::Error::other("too many headers");
        let error = Error::because(ErrorType::InvalidHTTPHeader, header, cause);
        let reason = reason(&error);
        assert!(reason.starts_with("InvalidHTTPHeader: buf: \u{e9}\u{e9}"), "{reason}");
        assert!(reason.ends_with("...: too many headers"), "{reason}");
        assert!(reason.chars().count() < 300, "{reason}");
    }
}
