//! Request paths as routes see them.

use crate::error::{Error, ErrorKind, Result};
use percent_encoding::{AsciiSet, CONTROLS, percent_encode};
use std::borrow::Cow;

/// What a path must not carry as it is: nginx's `NGX_ESCAPE_URI`.
const UNSAFE: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'#').add(b'%').add(b'<').add(b'>').add(b'?');

/// The path by which a route is chosen, nginx's `$uri`: decoded, with slashes merged and dot segments resolved
/// (`ngx_http_parse_complex_uri`), so that `/%61dmin` and `//admin` are `/admin`. What is sent upstream stays as it came,
/// unless the route has a `uri`.
///
/// # Errors
/// [`ErrorKind::BadRequest`]: a `%` without two digits, a NUL, or a path that climbs above its root.
pub(crate) fn normalize(path: &[u8]) -> Result<Cow<'_, [u8]>> {
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
                segments.pop().ok_or_else(|| bad("it climbs above its root"))?;
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

/// A part of a normal path in a form that can be sent.
pub(crate) fn encode(path: &[u8]) -> String {
    percent_encode(path, UNSAFE).to_string()
}

fn decode(path: &[u8]) -> Result<Vec<u8>> {
    let mut decoded = Vec::with_capacity(path.len());
    let mut bytes = path.iter();
    while let Some(byte) = bytes.next() {
        let byte = match byte {
            b'%' => {
                let digit = |byte: Option<&u8>| char::from(*byte?).to_digit(16);
                match (digit(bytes.next()), digit(bytes.next())) {
                    (Some(high), Some(low)) if high + low > 0 => (high * 16 + low) as u8,
                    _ => return Err(bad("a `%` that is not followed by two digits, or is a NUL")),
                }
            }
            byte => *byte,
        };
        decoded.push(byte);
    }
    Ok(decoded)
}

fn bad(what: &str) -> Error {
    Error::new(ErrorKind::BadRequest, format!("the request's path: {what}"))
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
}
