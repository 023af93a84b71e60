//! Phase 1's end: the request that an attempt sends, a fresh copy each time.

use super::request_body::RequestBody;
use crate::chain::Pass;
use crate::conf::{HTTP, HostHeader, PathMatch};
use crate::error::{Error, ErrorKind, Result};
use crate::headers;
use crate::paths;
use crate::peers::{Peer, Upstream};
use crate::protocol::BodyLength;
use crate::session::Session;
use http::Version;
use http::header::{EXPECT, HOST, HeaderValue, UPGRADE};
use pingora_http::RequestHeader;
use std::sync::Arc;

/// The request for `peer`: hop-by-hop headers dropped, the route's `uri`, `host` and `set_headers` applied, then the
/// filters' `upstream_request_filter`.
pub(super) async fn upstream_request(
    pass: &mut Pass<'_>,
    upstream: &Arc<Upstream>,
    peer: &Peer,
    body: &RequestBody,
) -> Result<RequestHeader> {
    let session = &pass.session;
    let mut request = session.request().clone();
    let hop_by_hop = headers::strip_hop_by_hop(&mut request);
    request.remove_header(&EXPECT);
    request.remove_header(&http::header::CONTENT_LENGTH);
    let may_switch = upstream.conf.protocol == HTTP && keep_upgrade(session, &mut request, &hop_by_hop.upgrade, body)?;
    if hop_by_hop.te_trailers && upstream.connectors.http2.is_some() {
        request.insert_header(http::header::TE, "trailers")?;
    }
    set_host(session, upstream, peer, &mut request)?;
    set_uri(session, &mut request)?;
    for (name, value) in &session.route().conf().set_headers {
        let value = value.render(session);
        if value.is_empty() {
            request.remove_header(name);
        } else {
            request.insert_header(name.clone(), header_value(&value)?)?;
        }
    }
    pass.upstream_request_filter(&mut request).await?;
    if !may_switch {
        // By `set_headers` or a filter: an upstream that agreed would switch a client that cannot follow.
        request.remove_header(&UPGRADE);
    }
    Ok(request)
}

/// The first requested protocol that the route tunnels goes on; without one, the request is an ordinary one, and
/// `false`.
fn keep_upgrade(
    session: &Session<'_>,
    request: &mut RequestHeader,
    requested: &[String],
    body: &RequestBody,
) -> Result<bool> {
    let allowed = &session.route().conf().upgrade;
    if let Some(protocol) = requested.iter().find(|protocol| allowed.contains(protocol))
        && matches!(body.length(), BodyLength::None)
        // RFC 9110 7.8: an HTTP/1.0 client cannot be switched.
        && session.request().version == Version::HTTP_11
    {
        request.insert_header(UPGRADE, header_value(protocol)?)?;
        return Ok(true);
    }
    Ok(false)
}

fn set_host(session: &Session<'_>, upstream: &Upstream, peer: &Peer, request: &mut RequestHeader) -> Result<()> {
    let preserve = session.route().conf().host == HostHeader::Preserve;
    if preserve && request.uri.authority().is_none() && request.headers.contains_key(HOST) {
        return Ok(());
    }
    let host = match &session.route().conf().host {
        HostHeader::Preserve => match session.host() {
            Some(host) => host.to_owned(),
            None => upstream.host(peer),
        },
        HostHeader::Upstream => upstream.host(peer),
        HostHeader::Literal(host) => host.render(session).into_owned(),
    };
    request.insert_header(HOST, header_value(&host)?)?;
    Ok(())
}

/// `uri` replaces the matched prefix; with an exact path or a regular expression it replaces the whole path. A path
/// that a filter has made and that does not begin with the prefix stays, as with nginx's `rewrite … break`.
fn set_uri(session: &Session<'_>, request: &mut RequestHeader) -> Result<()> {
    let conf = session.route().conf();
    // In HTTP/2, and in absolute form, the target has more than path and query.
    let is_path = request.uri.authority().is_none() && request.raw_path().starts_with(b"/");
    let target = match request.uri.path_and_query() {
        Some(path) if !is_path => path.as_str().as_bytes(),
        _ => request.raw_path(),
    };
    let target = match &conf.uri {
        None if is_path => return Ok(()),
        None => target.to_vec(),
        Some(uri) => {
            let (path, query) = paths::split_query(target);
            match behind_prefix(&conf.matches.path, path)? {
                Some(rest) => with_query(uri.render_target(session) + &rest, query),
                None => target.to_vec(),
            }
        }
    };
    request.set_raw_path(&target)?;
    Ok(())
}

/// What of the path stays; `None`: a filter has made another path of it, and there is no prefix to be replaced.
fn behind_prefix(matched: &PathMatch, path: &[u8]) -> Result<Option<String>> {
    match matched {
        PathMatch::Prefix(prefix) => Ok(paths::normalize(path)?.strip_prefix(prefix.as_bytes()).map(paths::encode)),
        PathMatch::Exact(_) | PathMatch::Regex(_) => Ok(Some(String::new())),
    }
}

/// The client's query behind one that the target has already is the rest of it.
fn with_query(target: String, query: &[u8]) -> Vec<u8> {
    match query.strip_prefix(b"?") {
        Some(more) if target.contains('?') => [target.as_bytes(), b"&", more].concat(),
        _ => [target.as_bytes(), query].concat(),
    }
}

fn header_value(value: &str) -> Result<HeaderValue> {
    HeaderValue::from_str(value)
        .map_err(|error| Error::because(ErrorKind::Internal, format!("a header's value: found {value:?}"), error))
}
