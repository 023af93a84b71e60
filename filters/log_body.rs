//! `log_body`: a look at request and response bodies in the process's log, to find out what clients and upstreams say.
//!
//! ```yaml
//! - log_body: { sample: 0.01, max: 4KiB, redact: [password] }
//! ```
//!
//! Of the requests, the share `sample` is logged, at most `max` bytes of each body, under the target
//! `millpond::log_body` (level info). The values of fields named in `redact` become `***`, in JSON at any depth and in
//! forms, whatever the case of their names; when in doubt, too much is hidden rather than too little. Control
//! characters are escaped: one line stays one line. Of bodies that are no text (by `Content-Type`;
//! `multipart/form-data` among them) and of those with a `Content-Encoding` only the size is logged.
//!
//! Bodies hold what no header would tell. Put it where it is needed, for as long as it is.
//!
//! The same in code, under a name of one's own:
//!
//! ```
//! use millpond::filters::log_body::{LogBody, LogBodyConf};
//! use millpond::prelude::*;
//!
//! let millpond = Millpond::new().filter("look", |redact: Vec<String>| {
//!     LogBody::new(LogBodyConf { redact, ..LogBodyConf::default() })
//! });
//! ```

use millpond::conf::units::Size;
use millpond::prelude::*;
use serde::Deserialize;
use std::borrow::Cow;
use std::fmt::Write;

/// What the configuration says.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogBodyConf {
    /// Which share of the requests: 0 to 1.
    pub sample: f64,
    /// So many bytes of each body.
    pub max: Size,
    /// Fields whose values are hidden.
    pub redact: Vec<String>,
}

impl Default for LogBodyConf {
    fn default() -> Self {
        let redact =
            ["password", "passwd", "secret", "client_secret", "token", "access_token", "refresh_token", "api_key"];
        LogBodyConf { sample: 1.0, max: Size(4096), redact: redact.map(str::to_owned).to_vec() }
    }
}

/// The filter.
pub struct LogBody {
    sample: f64,
    max: usize,
    redact: Vec<String>,
}

const TARGET: &str = "millpond::log_body";

impl LogBody {
    /// Make it from its configuration.
    ///
    /// # Errors
    /// `sample` is not 0 to 1, or `max` is more than 1 MiB, of which each request in flight could hold two.
    pub fn new(conf: LogBodyConf) -> Result<Self> {
        let expected = |text: String| Err(Error::new(ErrorKind::Filter, text));
        if !(0.0..=1.0).contains(&conf.sample) {
            return expected(format!("0 to 1 as `sample`, not {}", conf.sample));
        }
        match usize::try_from(conf.max.0) {
            Ok(max) if max <= 1 << 20 => Ok(LogBody { sample: conf.sample, max, redact: conf.redact }),
            _ => expected(format!("at most 1MiB as `max`, not {}", conf.max)),
        }
    }
}

/// What has been seen of one request, if it is in the sample.
#[derive(Default)]
pub struct Seen {
    request: Option<Body>,
    response: Option<Body>,
}

/// The beginning of a body.
struct Body {
    media: String,
    encoding: Option<String>,
    kept: Vec<u8>,
    length: u64,
}

impl UpstreamPhases for LogBody {
    type Ctx = Option<Box<Seen>>;

    fn new_ctx(&self) -> Self::Ctx {
        let wanted = log::log_enabled!(target: TARGET, log::Level::Info) && fastrand::f64() < self.sample;
        wanted.then(Box::default)
    }

    async fn request_body_filter(&self, session: &mut Session<'_>, body: &mut Bufs, ctx: &mut Self::Ctx) -> Result<()> {
        if let Some(seen) = ctx {
            seen.request.get_or_insert_with(|| Body::new(&session.request().headers)).append(body, self.max);
        }
        Ok(())
    }

    async fn response_filter(
        &self,
        _session: &mut Session<'_>,
        response: &mut ResponseHeader,
        ctx: &mut Self::Ctx,
    ) -> Result<Header> {
        if let Some(seen) = ctx {
            // Also when an error page follows a body that has failed.
            seen.response = Some(Body::new(&response.headers));
        }
        Ok(Header::Pass)
    }

    async fn body_filter(&self, _session: &mut Session<'_>, body: &mut Bufs, ctx: &mut Self::Ctx) -> Result<()> {
        if let Some(response) = ctx.as_mut().and_then(|seen| seen.response.as_mut()) {
            response.append(body, self.max);
        }
        Ok(())
    }

    async fn logging(&self, session: &mut Session<'_>, _error: Option<&Error>, ctx: &mut Self::Ctx) {
        let Some(seen) = ctx else { return };
        let place = format!("{}/{} {}", session.service().name(), session.route().name(), session.request_id());
        if let Some(body) = &seen.request {
            let (method, path) = (&session.client_request().method, escaped(session.client_request().uri.path()));
            log::info!(target: TARGET, "{place}: request {method} {path}: {}", body.line(&self.redact));
        }
        if let Some(body) = &seen.response {
            log::info!(target: TARGET, "{place}: response {}: {}", session.status(), body.line(&self.redact));
        }
    }
}

impl Body {
    fn new(headers: &HeaderMap) -> Self {
        let value = |name| headers.get(name).map(|value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()));
        let media = value("content-type").unwrap_or_default();
        let media = media.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        let encoding = value("content-encoding").filter(|encoding| !encoding.eq_ignore_ascii_case("identity"));
        Body { media, encoding: encoding.map(Cow::into_owned), kept: Vec::new(), length: 0 }
    }

    fn append(&mut self, body: &Bufs, max: usize) {
        self.length += body.len() as u64;
        if self.encoding.is_some() || !self.is_text() {
            return;
        }
        for chunk in body.iter() {
            let room = max.saturating_sub(self.kept.len());
            self.kept.extend_from_slice(&chunk[..room.min(chunk.len())]);
        }
    }

    /// May it be read? What says nothing of itself is taken for text, too.
    fn is_text(&self) -> bool {
        let (family, kind) = self.media.split_once('/').unwrap_or((&self.media, ""));
        const KINDS: [&str; 7] =
            ["json", "x-ndjson", "xml", "javascript", "x-javascript", "graphql", "x-www-form-urlencoded"];
        match family {
            "" | "text" => true,
            "application" => KINDS.contains(&kind) || kind.ends_with("+json") || kind.ends_with("+xml"),
            _ => false,
        }
    }

    /// What is logged of it.
    fn line(&self, redact: &[String]) -> String {
        let media = if self.media.is_empty() { "no Content-Type" } else { &self.media };
        let mut line = format!("{} bytes, {}", self.length, escaped(media));
        if let Some(encoding) = &self.encoding {
            // Writing to a text cannot fail.
            let _ = write!(line, ", {}", escaped(encoding));
        }
        if self.kept.is_empty() {
            return line;
        }
        if (self.kept.len() as u64) < self.length {
            let _ = write!(line, ", the first {}", self.kept.len());
        }
        let text = String::from_utf8_lossy(&self.kept);
        let text = match self.media.as_str() {
            "application/x-www-form-urlencoded" => redact_form(&text, redact),
            _ => redact_json(&text, redact),
        };
        line + ": " + &escaped(&text)
    }
}

const HIDDEN: &str = "***";

fn is_named(name: &str, redact: &[String]) -> bool {
    redact.iter().any(|hidden| hidden.eq_ignore_ascii_case(name))
}

/// `a=1&password=***`. `user[password]` and `password[0]` are named `password`, too.
fn redact_form(text: &str, redact: &[String]) -> String {
    let field = |field: &str| {
        let Some((name, _)) = field.split_once('=') else { return field.to_owned() };
        let plain = name.replace('+', " ");
        let plain = percent_encoding::percent_decode_str(&plain).decode_utf8_lossy();
        let mut parts = plain.split(['[', ']']).chain([plain.trim()]);
        match parts.any(|part| is_named(part.trim(), redact)) {
            true => format!("{name}={HIDDEN}"),
            false => field.to_owned(),
        }
    };
    text.split('&').map(field).collect::<Vec<_>>().join("&")
}

/// `{"password":"***"}`, in anything that has JSON in it: what is cut off, several documents, events, JSON inside of a
/// JSON string. So every quote may begin a name, and nothing is parsed that does not follow such a name and a colon.
fn redact_json(text: &str, redact: &[String]) -> String {
    let (mut out, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(quote) = rest.find('"') {
        let depth = backslashes(&rest[..quote]);
        let behind = &rest[quote + 1..];
        match behind.find('"').and_then(|end| value_of(&behind[..end], &behind[end + 1..], redact)) {
            Some(value) => {
                out.push_str(&rest[..rest.len() - value.len()]);
                let quotes = format!("{}\"", "\\".repeat(depth));
                let _ = write!(out, "{quotes}{HIDDEN}{quotes}");
                rest = behind_value(value, depth);
            }
            None => {
                out.push_str(&rest[..=quote]);
                rest = behind;
            }
        }
    }
    out + rest
}

/// The text from the value on, if it belongs to a name that is to be hidden.
fn value_of<'t>(name: &str, behind: &'t str, redact: &[String]) -> Option<&'t str> {
    let name = name.trim_end_matches('\\');
    let unescaped: Option<String> = serde_json::from_str(&format!("\"{name}\"")).ok();
    if !is_named(unescaped.as_deref().unwrap_or(name), redact) {
        return None;
    }
    Some(behind.trim_start().strip_prefix(':')?.trim_start())
}

/// What follows a value whose document stands inside of so many strings.
fn behind_value(value: &str, depth: usize) -> &str {
    let opening = value.trim_start_matches('\\');
    match opening.chars().next() {
        Some('"') => behind_string(&opening[1..], depth),
        Some('{' | '[') if depth == 0 => behind_nested(value),
        // Inside of a string it is hard to say where it ends: nothing of the rest is shown.
        Some('{' | '[') | None => "",
        Some(_) => &value[value.find([',', '}', ']', ' ', '\n', '\r', '\t', '"', '\\']).unwrap_or(value.len())..],
    }
}

/// A quote that is not escaped ends the string; inside of a string, one that is escaped no more than the opening one.
fn behind_string(text: &str, depth: usize) -> &str {
    let ends = |(at, _): &(usize, &str)| match backslashes(&text[..*at]) {
        escapes if depth == 0 => escapes % 2 == 0,
        escapes => escapes <= depth,
    };
    text.match_indices('"').find(ends).map_or("", |(at, _)| &text[at + 1..])
}

/// An object or a list ends where its brackets do.
fn behind_nested(mut text: &str) -> &str {
    let mut open = 0_usize;
    while let Some(at) = text.find(['"', '{', '}', '[', ']']) {
        let (bracket, behind) = (text.as_bytes()[at], &text[at + 1..]);
        text = behind;
        match bracket {
            b'"' => text = behind_string(behind, 0),
            b'{' | b'[' => open += 1,
            _ => open = open.saturating_sub(1),
        }
        if open == 0 {
            return text;
        }
    }
    ""
}

/// How many there are at the end.
fn backslashes(text: &str) -> usize {
    text.len() - text.trim_end_matches('\\').len()
}

/// Nothing in it ends a line, moves a cursor or turns the direction of writing.
fn escaped(text: &str) -> Cow<'_, str> {
    let dangerous = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
    };
    if !text.contains(dangerous) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match dangerous(c) {
            true => out.extend(c.escape_default()),
            false => out.push(c),
        }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Vec<String> {
        vec!["password".to_owned(), "token".to_owned()]
    }

    fn json(text: &str) -> String {
        redact_json(text, &names())
    }

    #[test]
    fn fields_of_json_are_hidden() {
        for (body, logged) in [
            (r#"{"user":"joe","password":"x"}"#, r#"{"user":"joe","password":"***"}"#),
            (r#"{ "Password" : "a\"b\\" , "n": 1 }"#, r#"{ "Password" : "***" , "n": 1 }"#),
            (r#"{"token":123,"n":1}"#, r#"{"token":"***","n":1}"#),
            (r#"{"token":null}"#, r#"{"token":"***"}"#),
            (r#"[{"token":["a","]",{"b":"c"}]},{"n":1}]"#, r#"[{"token":"***"},{"n":1}]"#),
            (r#"{"a":{"password":{"x":"}","y":[1]}},"n":1}"#, r#"{"a":{"password":"***"},"n":1}"#),
            (r#"{"pass\u0077ord":"x"}"#, r#"{"pass\u0077ord":"***"}"#),
            (r#"{"say":"the \"password\"","passwords":"x"}"#, r#"{"say":"the \"password\"","passwords":"x"}"#),
            (
                "data: {\"token\":\"x\"}\n\ndata: {\"token\":\"y\"}",
                "data: {\"token\":\"***\"}\n\ndata: {\"token\":\"***\"}",
            ),
        ] {
            assert_eq!(json(body), logged);
        }
    }

    #[test]
    fn a_field_is_hidden_wherever_the_body_is_cut() {
        let body = r#"{"a":[1,"x"],"password":"s3cret \"s3cret","token":{"b":["s3cret",1]},"#.to_owned()
            + r#""n":"t\"{\"password\":\"s3cret\"}"}"#;
        for end in 0..=body.len() {
            assert!(!json(&body[..end]).contains("s3c"), "{}", json(&body[..end]));
        }
    }

    #[test]
    fn json_inside_of_a_string_is_hidden_too() {
        assert_eq!(
            json(r#"{"body":"{\"password\":\"x\\\"y\",\"n\":1}","n":2}"#),
            r#"{"body":"{\"password\":\"***\",\"n\":1}","n":2}"#
        );
        assert!(!json(r#"{"body":"{\"password\":[\"s3cret\",\"s3cret\"]}"}"#).contains("s3cret"));
    }

    #[test]
    fn fields_of_forms_are_hidden() {
        let form = |text| redact_form(text, &names());
        assert_eq!(form("user=joe&password=x%26y&n=1"), "user=joe&password=***&n=1");
        assert_eq!(form("PassWord=x&p%61ssword=x&user[password]=x"), "PassWord=***&p%61ssword=***&user[password]=***");
        assert_eq!(
            form("password[]=x&user[password][0]=x&a[token][b]=x"),
            "password[]=***&user[password][0]=***&a[token][b]=***"
        );
        assert_eq!(form("password"), "password");
        assert_eq!(form("passwords=1"), "passwords=1");
    }

    #[test]
    fn a_line_cannot_be_forged() {
        assert_eq!(
            escaped("a\r\n[error] forged\x1b[2J\u{2028}\u{202e}"),
            r"a\r\n[error] forged\u{1b}[2J\u{2028}\u{202e}"
        );
        assert!(matches!(escaped("käse 🧀 \\n"), Cow::Borrowed(_)));
    }

    fn body(headers: &[(&'static str, &'static str)], chunks: &[&'static str], max: usize) -> String {
        let headers =
            headers.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
        let mut body = Body::new(&headers.collect());
        chunks
            .iter()
            .for_each(|chunk| body.append(&Bufs::from_chunk(Bytes::from_static(chunk.as_bytes()), false), max));
        body.line(&names())
    }

    #[test]
    fn a_body_is_cut_or_only_measured() {
        assert_eq!(body(&[], &["hello ", "world"], 100), "11 bytes, no Content-Type: hello world");
        let json = [("content-type", "application/vnd.x+JSON; charset=utf-8")];
        assert_eq!(body(&json, &["{\"a\":", "1}"], 6), "7 bytes, application/vnd.x+json, the first 6: {\"a\":1");
        for media in ["image/png", "application/octet-stream", "multipart/form-data; boundary=x"] {
            let line = body(&[("content-type", media)], &["hello"], 100);
            assert!(line.starts_with("5 bytes, ") && !line.contains("hello"), "{line}");
        }
        let zipped = [("content-type", "text/plain"), ("content-encoding", "gzip")];
        assert_eq!(body(&zipped, &["hello"], 100), "5 bytes, text/plain, gzip");
    }
}
