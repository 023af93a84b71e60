//! Request paths as routes see them.

use crate::error::{Error, ErrorKind, Result};
use crate::template::{Variable, Variables};
use percent_encoding::{AsciiSet, CONTROLS, NON_ALPHANUMERIC, percent_encode, utf8_percent_encode};
use std::borrow::Cow;

/// What a path must not carry as it is: nginx's `NGX_ESCAPE_URI`.
const UNSAFE: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'#').add(b'%').add(b'<').add(b'>').add(b'?');

/// What a query must not carry as it is, so that it can be sent.
const UNSAFE_IN_QUERY: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'#').add(b'<').add(b'>');

/// The path by which a route is chosen, nginx's `$uri`: decoded, with slashes merged and dot segments resolved
/// (`ngx_http_parse_complex_uri`), so that `/%61dmin` and `//admin` are `/admin`. What is sent upstream stays as it
/// came, unless the route has a `uri`.
///
/// # Errors
/// [`ErrorKind::BadRequest`]: a `%` without two digits, a NUL, or a path that climbs above its root.
pub fn normalize(path: &[u8]) -> Result<Cow<'_, [u8]>> {
    normal(path).map_err(|what| Error::new(ErrorKind::BadRequest, format!("the request's path: {what}")))
}

/// Where an internal redirect leads, in a form that can be sent: the path decoded, normal, and encoded again; the query
/// as it is. nginx's `ngx_http_parse_unsafe_uri`, but for dot segments, which are resolved.
///
/// # Errors
/// What is wrong with it, for a message.
pub(crate) fn redirect_target(text: &[u8]) -> Result<String, &'static str> {
    if !text.starts_with(b"/") {
        return Err("it does not begin with /");
    }
    if text.iter().any(u8::is_ascii_control) {
        return Err("it has a control character");
    }
    let (path, query) = split_query(text);
    Ok(format!("{}{}", encode(&normal(path)?), encode_query(query)))
}

/// A target's path, and its query with the question mark.
pub(crate) fn split_query(target: &[u8]) -> (&[u8], &[u8]) {
    let query = target.iter().position(|byte| *byte == b'?').unwrap_or(target.len());
    target.split_at(query)
}

fn normal(path: &[u8]) -> Result<Cow<'_, [u8]>, &'static str> {
    let plain = !path.contains(&b'%') && !path.windows(2).any(|pair| matches!(pair, b"//" | b"/."));
    if plain {
        return Ok(path.into());
    }
    let decoded = decode(path)?;
    let mut segments: Vec<&[u8]> = Vec::new();
    let mut open = true;
    for segment in decoded.split(|byte| *byte == b'/').skip(1) {
        open = matches!(segment, b"" | b"." | b"..");
        match segment {
            b"" | b"." => {}
            b".." => {
                segments.pop().ok_or("it climbs above its root")?;
            }
            segment => segments.push(segment),
        }
    }
    let mut normal = Vec::with_capacity(decoded.len());
    for segment in segments {
        normal.push(b'/');
        normal.extend_from_slice(segment);
    }
    if open || normal.is_empty() {
        normal.push(b'/');
    }
    Ok(normal.into())
}

/// A part of a [normal](normalize) path in a form that can be sent.
pub fn encode(path: &[u8]) -> String {
    percent_encode(path, UNSAFE).to_string()
}

/// A request's values where no URL is made of them: keys, and variables of applications. `$uri` is nginx's there,
/// decoded and normal, so that all that is one path for a route is one key. Bytes that are no UTF-8 stay encoded.
pub(crate) struct Decoded<'a>(pub(crate) &'a dyn Variables);

impl Variables for Decoded<'_> {
    fn value(&self, variable: &Variable) -> Option<Cow<'_, str>> {
        let value = self.0.value(variable)?;
        if *variable != Variable::Uri {
            return Some(value);
        }
        match normal(value.as_bytes()) {
            Ok(Cow::Owned(path)) => Some(readable(&path).into()),
            // Nothing was to be done; or a filter has made something else of the path.
            Ok(Cow::Borrowed(_)) | Err(_) => Some(value),
        }
    }
}

/// As text; what is none is `%FF`.
fn readable(path: &[u8]) -> String {
    let mut text = String::with_capacity(path.len());
    for chunk in path.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(percent_encode(chunk.invalid(), NON_ALPHANUMERIC));
    }
    text
}

/// A query, encoded already, in a form that can be sent: what must not stand in one is encoded, a `%` is not.
pub fn encode_query(query: &[u8]) -> String {
    percent_encode(query, UNSAFE_IN_QUERY).to_string()
}

/// A text as one value in a query, in a form that can be sent.
pub(crate) fn encode_value(value: &str) -> String {
    utf8_percent_encode(value, NON_ALPHANUMERIC).to_string()
}

fn decode(path: &[u8]) -> Result<Vec<u8>, &'static str> {
    let mut decoded = Vec::with_capacity(path.len());
    let mut bytes = path.iter();
    while let Some(byte) = bytes.next() {
        let byte = match byte {
            b'%' => {
                let digit = |byte: Option<&u8>| char::from(*byte?).to_digit(16);
                match (digit(bytes.next()), digit(bytes.next())) {
                    (Some(high), Some(low)) if high + low > 0 => (high * 16 + low) as u8,
                    _ => return Err("a `%` that is not followed by two digits, or is a NUL"),
                }
            }
            byte => *byte,
        };
        decoded.push(byte);
    }
    Ok(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normal(path: &str) -> String {
        String::from_utf8(normalize(path.as_bytes()).unwrap().into_owned()).unwrap()
    }

    #[test]
    fn paths_become_what_nginx_makes_of_them() {
        for (path, expected) in [
            ("/a/b", "/a/b"),
            ("/a/", "/a/"),
            ("/", "/"),
            ("/%61dmin", "/admin"),
            ("//admin//x", "/admin/x"),
            ("/a/./b/../c", "/a/c"),
            ("/a/..", "/"),
            ("/a/b/..", "/a/"),
            ("/a/.", "/a/"),
            ("/a%2Fb", "/a/b"),
            ("/..a/.b/", "/..a/.b/"),
        ] {
            assert_eq!(normal(path), expected, "{path}");
        }
    }

    /// A request with nothing but this path.
    struct Path(&'static str);

    impl Variables for Path {
        fn value(&self, _: &Variable) -> Option<Cow<'_, str>> {
            Some(self.0.into())
        }
    }

    #[test]
    fn a_key_has_the_path_decoded() {
        for (path, expected) in [
            ("/a/b", "/a/b"),
            ("/%61//b/../c", "/a/c"),
            ("/a%20b%0D%0A%25", "/a b\r\n%"),
            ("/caf%C3%A9", "/caf\u{e9}"),
            ("/%FF%61%C3", "/%FFa%C3"),
            ("/%zz", "/%zz"),
        ] {
            let path = Path(path);
            assert_eq!(Decoded(&path).value(&Variable::Uri).unwrap(), expected, "{}", path.0);
            assert_eq!(Decoded(&path).value(&Variable::RequestUri).unwrap(), path.0);
        }
    }

    #[test]
    fn what_is_no_path_is_refused() {
        for path in ["/%", "/%4", "/%zz", "/%00", "/../a", "/a/../../b", "/%2e%2e/a"] {
            assert!(normalize(path.as_bytes()).is_err(), "{path}");
        }
    }

    #[test]
    fn an_encoded_path_decodes_to_itself() {
        let path = b"/a b/\xff?#%\"";
        assert_eq!(normalize(encode(path).as_bytes()).unwrap(), &path[..]);
    }

    #[test]
    fn a_redirects_target_can_be_sent() {
        for (text, expected) in [
            ("/a", "/a"),
            ("/a?b=%41&c?", "/a?b=%41&c?"),
            ("/a//./b/../c d", "/a/c%20d"),
            ("/%61%3Fb%25", "/a%3Fb%25"),
            ("/\u{e9}?\u{e9} #", "/%C3%A9?%C3%A9%20%23"),
            ("//host/a", "/host/a"),
        ] {
            assert_eq!(redirect_target(text.as_bytes()).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_leads_nowhere_is_refused() {
        for text in
            ["", "a", "http://h/a", "@named", "?a", "/../a", "/a/%2e%2e/%2e%2e/b", "/%0", "/%00", "/a\tb", "/a?\r\n"]
        {
            assert!(redirect_target(text.as_bytes()).is_err(), "{text:?}");
        }
    }
}
