//! Internal redirects, nginx's `ngx_http_internal_redirect`: another route of the same service answers in place of the
//! one that the client's request matched. `X-Accel-Redirect` asks for one, and so does a page of `error_pages` that is
//! a path.

use crate::chain::Pass;
use crate::client::ClientBody;
use crate::conf::IgnoredHeader;
use crate::error::{Error, ErrorKind, Result};
use crate::paths;
use crate::session::Session;
use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName};
use http::{Method, StatusCode};
use pingora_http::{RequestHeader, ResponseHeader};

/// nginx: `NGX_HTTP_MAX_URI_CHANGES`.
const MAX_REDIRECTS: usize = 10;

/// What an internal redirect is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    XAccelRedirect,
    ErrorPage,
}

/// `X-Accel-*` speak to the proxy, not to the client: obey the ones that are not ignored, remove all. Gives the
/// `X-Accel-Redirect`, which as in nginx may come with any status.
pub(crate) fn take_accel(session: &mut Session<'_>, header: &mut ResponseHeader) -> Option<Bytes> {
    let obeyed = |name: &str, ignored| {
        let value = header.headers.get(name)?;
        (!session.route().conf.ignore_headers.contains(&ignored)).then(|| Bytes::copy_from_slice(value.as_bytes()))
    };
    let rate = obeyed("x-accel-limit-rate", IgnoredHeader::XAccelLimitRate);
    let redirect = obeyed("x-accel-redirect", IgnoredHeader::XAccelRedirect);
    if let Some(rate) = rate.and_then(|rate| std::str::from_utf8(&rate).ok()?.parse().ok()) {
        session.set_limit_rate(rate);
    }
    let accel: Vec<_> = header.headers.keys().filter(|name| name.as_str().starts_with("x-accel-")).cloned().collect();
    for name in accel {
        header.remove_header(&name);
    }
    redirect
}

/// Turn the session to `target`, a path with or without a query, and its chain to the route that answers it.
///
/// # Errors
/// An `X-Accel-Redirect` that leads nowhere (502), a path that no route matches (404), or one redirect too many (500).
pub(crate) fn redirect(pass: &mut Pass<'_>, body: &mut ClientBody, target: &[u8], why: Why) -> Result<()> {
    let uri = paths::redirect_target(target).map_err(|reason| {
        let found = String::from_utf8_lossy(target);
        let text = format!("X-Accel-Redirect: found {found:?}, expected a path such as /files/1: {reason}");
        Error::new(ErrorKind::InvalidHeader, text)
    })?;
    if pass.session.redirects() >= MAX_REDIRECTS {
        let text = format!("more than {MAX_REDIRECTS} internal redirects, the last one to {uri}");
        return Err(Error::new(ErrorKind::Internal, text));
    }
    let request = redirected(&pass.session, &uri, why)?;
    let Some((route, captures)) = pass.session.service().find_route(&request) else {
        return Err(Error::new(ErrorKind::NoRoute, format!("no route matches the internal redirect to {uri}")));
    };
    // A redirect has no body. What the client still sends is read behind the response.
    body.abandon();
    pass.session.redirect(request, route, captures);
    pass.redirected();
    Ok(())
}

/// The request of a redirect: the one before it, for another path, without a body. As in nginx it is a GET, or still a
/// HEAD.
pub(crate) fn redirected(session: &Session<'_>, uri: &str, why: Why) -> Result<RequestHeader> {
    use header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, HOST, TRAILER, TRANSFER_ENCODING};
    use header::{IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE, RANGE, UPGRADE};
    let mut request = session.request().clone();
    // The path alone: HTTP/2, and requests in absolute form, say the host beside it.
    match session.host().map(str::to_owned) {
        Some(host) => request.insert_header(HOST, host)?,
        None => drop(request.remove_header(&HOST)),
    }
    request.set_raw_path(uri.as_bytes())?;
    if request.method != Method::HEAD {
        request.set_method(Method::GET);
    }
    let mut gone = vec![CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, TRAILER, TRANSFER_ENCODING];
    if why == Why::ErrorPage {
        // They are about what the client has asked for, and a part of a page, or none, is no error page.
        gone.extend([IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE, RANGE, UPGRADE]);
    }
    for name in &gone {
        request.remove_header(name);
    }
    Ok(request)
}

/// What of redirecting responses survives onto the final one; of several the first counts. In nginx it is what
/// `ngx_http_upstream_headers_in` marks with `redirect`.
#[derive(Debug, Default)]
pub(crate) struct Kept(HeaderMap);

impl Kept {
    pub(crate) fn take_from(&mut self, header: &ResponseHeader) {
        use header::{ACCEPT_RANGES, CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_TYPE, EXPIRES, SET_COOKIE};
        for name in [CONTENT_TYPE, CONTENT_DISPOSITION, CACHE_CONTROL, EXPIRES, ACCEPT_RANGES, SET_COOKIE] {
            // Cookies of several responses do not exclude each other.
            if name == SET_COOKIE || !self.0.contains_key(&name) {
                for value in header.headers.get_all(&name) {
                    self.0.append(name.clone(), value.clone());
                }
            }
        }
    }

    /// They replace what the final response has, but for cookies, which it may have beside them. On an error only
    /// cookies survive: the others tell of the content that did not come, and an error must not be cached for as long.
    ///
    /// # Errors
    /// The header cannot take them.
    pub(crate) fn put_onto(&self, header: &mut ResponseHeader) -> Result<()> {
        let failed = header.status.is_client_error() || header.status.is_server_error();
        for name in self.0.keys() {
            let cookie = *name == header::SET_COOKIE;
            if !cookie && (failed || is_multipart(name, header)) {
                continue;
            }
            if !cookie {
                header.remove_header(name);
            }
            for value in self.0.get_all(name) {
                header.append_header(name.clone(), value.clone())?;
            }
        }
        Ok(())
    }
}

/// Several ranges of the content: this `Content-Type` says how they are separated.
fn is_multipart(name: &HeaderName, header: &ResponseHeader) -> bool {
    let ranges = |value: &http::HeaderValue| value.as_bytes().starts_with(b"multipart/byteranges");
    *name == header::CONTENT_TYPE
        && header.status == StatusCode::PARTIAL_CONTENT
        && header.headers.get(header::CONTENT_TYPE).is_some_and(ranges)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(status: u16, fields: &[(&'static str, &'static str)]) -> ResponseHeader {
        let mut header = ResponseHeader::build(status, None).unwrap();
        for (name, value) in fields {
            header.append_header(*name, *value).unwrap();
        }
        header
    }

    /// The header of `name` after a redirect from `first`.
    fn after(first: &[(&'static str, &'static str)], mut last: ResponseHeader, name: &str) -> Vec<String> {
        let mut kept = Kept::default();
        kept.take_from(&response(200, first));
        kept.put_onto(&mut last).unwrap();
        last.headers.get_all(name).iter().map(|value| value.to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn a_kept_header_replaces_and_cookies_add_up() {
        let first = [("content-type", "application/pdf"), ("set-cookie", "a=1"), ("set-cookie", "b=2"), ("etag", "x")];
        let last = || response(200, &[("content-type", "text/plain"), ("set-cookie", "c=3"), ("expires", "0")]);
        assert_eq!(after(&first, last(), "content-type"), ["application/pdf"]);
        assert_eq!(after(&first, last(), "set-cookie"), ["c=3", "a=1", "b=2"]);
        assert_eq!(after(&first, last(), "expires"), ["0"]);
        assert_eq!(after(&first, last(), "etag"), [""; 0]);
    }

    #[test]
    fn of_several_redirects_the_first_counts() {
        let mut kept = Kept::default();
        kept.take_from(&response(200, &[("cache-control", "private"), ("cache-control", "max-age=1")]));
        kept.take_from(&response(200, &[("cache-control", "public"), ("expires", "0")]));
        let mut last = response(200, &[]);
        kept.put_onto(&mut last).unwrap();
        let values = last.headers.get_all("cache-control").iter().collect::<Vec<_>>();
        assert_eq!(values, ["private", "max-age=1"]);
        assert_eq!(last.headers["expires"], "0");
    }

    #[test]
    fn an_error_is_not_cached_like_the_content_it_is_not() {
        let first = [("cache-control", "max-age=31536000"), ("set-cookie", "a=1")];
        assert_eq!(after(&first, response(404, &[]), "cache-control"), [""; 0]);
        assert_eq!(after(&first, response(404, &[]), "set-cookie"), ["a=1"]);
        assert_eq!(after(&first, response(304, &[]), "cache-control"), ["max-age=31536000"]);
    }

    #[test]
    fn several_ranges_stay_several_ranges() {
        let ranges = "multipart/byteranges; boundary=x";
        let first = [("content-type", "application/pdf")];
        assert_eq!(after(&first, response(206, &[("content-type", ranges)]), "content-type"), [ranges]);
        assert_eq!(after(&first, response(206, &[("content-type", "x/y")]), "content-type"), ["application/pdf"]);
    }
}
