//! [`Template`]: a text with nginx's `$variables` in it, parsed once and rendered per request.
//!
//! `$name` and `${name}` stand for a [`Variable`], `$$` for a dollar. `$1` to `$9` and `$name` also reach what the
//! route's `path_regex` captured.

use crate::conf::near;
use crate::paths;
use http::HeaderName;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

/// A text with variables.
///
/// Deserialised inside a filter's configuration, any name that is no variable is taken for a capture of the route's
/// `path_regex`, which the filter cannot know; [`FromStr`] and [`Template::parse`] are strict.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Template {
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Literal(String),
    Variable(Variable),
}

/// What a template can name. The comment gives the name in a configuration file, where it is not the obvious one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Variable {
    /// The client's address, without the port.
    RemoteAddr,
    /// The client's port.
    RemotePort,
    /// The user that a filter has authenticated.
    RemoteUser,
    /// The address that the client connected to, without the port.
    ServerAddr,
    /// The port that the client connected to.
    ServerPort,
    /// The request's host, lower case, without the port.
    Host,
    /// The path as it now stands, filters may have changed it. Decoded and normal only where no URL is made of it: in
    /// `hash_key` and in the settings of protocols.
    Uri,
    /// The query without `?`.
    Args,
    /// `$arg_NAME`: one argument of the query, as it was sent.
    Arg(String),
    /// Path and query as the client sent them.
    RequestUri,
    /// The request's method.
    RequestMethod,
    /// `http` or `https`.
    Scheme,
    /// `on` if the client connected by TLS, else nothing.
    Https,
    /// `$server_protocol`: `HTTP/1.1`, `HTTP/2.0`.
    ServerProtocol,
    /// `$http_NAME`: a header of the request; `_` stands for `-`.
    Http(HeaderName),
    /// The id of the request.
    RequestId,
    /// The response's status.
    Status,
    /// Body bytes sent to the client.
    BodyBytesSent,
    /// Seconds since the request began, with milliseconds.
    RequestTime,
    /// The name of the service.
    Service,
    /// The name of the route.
    Route,
    /// `$time_iso8601`.
    TimeIso8601,
    /// `$time_local`: the common log format's time.
    TimeLocal,
    /// Seconds since 1970, with milliseconds.
    Msec,
    /// The peers tried, `a, b`.
    UpstreamAddr,
    /// Their statuses.
    UpstreamStatus,
    /// Seconds each took to be connected.
    UpstreamConnectTime,
    /// Seconds each took to send its header.
    UpstreamHeaderTime,
    /// Seconds until each was free again.
    UpstreamResponseTime,
    /// Bytes received from each.
    UpstreamBytesReceived,
    /// `$1` to `$9` or `$name`: what the route's `path_regex` captured.
    Capture(String),
}

/// Variables without a free part in their name.
const NAMES: [(&str, Variable); 28] = [
    ("remote_addr", Variable::RemoteAddr),
    ("remote_port", Variable::RemotePort),
    ("remote_user", Variable::RemoteUser),
    ("server_addr", Variable::ServerAddr),
    ("server_port", Variable::ServerPort),
    ("host", Variable::Host),
    ("uri", Variable::Uri),
    ("args", Variable::Args),
    ("request_uri", Variable::RequestUri),
    ("request_method", Variable::RequestMethod),
    ("scheme", Variable::Scheme),
    ("https", Variable::Https),
    ("server_protocol", Variable::ServerProtocol),
    ("request_id", Variable::RequestId),
    ("status", Variable::Status),
    ("body_bytes_sent", Variable::BodyBytesSent),
    ("request_time", Variable::RequestTime),
    ("service", Variable::Service),
    ("route", Variable::Route),
    ("time_iso8601", Variable::TimeIso8601),
    ("time_local", Variable::TimeLocal),
    ("msec", Variable::Msec),
    ("upstream_addr", Variable::UpstreamAddr),
    ("upstream_status", Variable::UpstreamStatus),
    ("upstream_connect_time", Variable::UpstreamConnectTime),
    ("upstream_header_time", Variable::UpstreamHeaderTime),
    ("upstream_response_time", Variable::UpstreamResponseTime),
    ("upstream_bytes_received", Variable::UpstreamBytesReceived),
];

/// Where a template finds its values: a request.
pub trait Variables {
    /// The value now, `None` if there is none (yet).
    fn value(&self, variable: &Variable) -> Option<Cow<'_, str>>;
}

/// No values: for texts without variables, and for tests.
impl Variables for () {
    fn value(&self, _: &Variable) -> Option<Cow<'_, str>> {
        None
    }
}

/// Why a text is no template.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// A name that is neither a variable nor a capture.
    #[error("unknown variable ${name}{}", near::question(.near))]
    Unknown {
        /// The name, without `$`.
        name: String,
        /// Names that look like it.
        near: Vec<String>,
    },
    /// A `$` with nothing behind it that could be a name.
    #[error("a `$` without a name at byte {0}; write `$$` for a dollar")]
    LoneDollar(usize),
    /// A `${` without its `}`.
    #[error("`${{` without `}}` at byte {0}")]
    Unclosed(usize),
}

impl Template {
    /// Parse `text`. `captures` are the names, and the numbers as text, of the groups of the route's `path_regex`.
    ///
    /// # Errors
    /// An unknown name, or a `$` that begins none.
    pub fn parse(text: &str, captures: &[String]) -> Result<Self, TemplateError> {
        Self::parse_with(text, |name| match captures.iter().any(|capture| capture == name) {
            true => Some(Variable::Capture(name.to_owned())),
            false => None,
        })
    }

    /// Nothing to render: an empty text.
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// The text, if there is no variable in it.
    pub fn literal(&self) -> Option<&str> {
        match self.parts.as_slice() {
            [] => Some(""),
            [Part::Literal(text)] => Some(text),
            _ => None,
        }
    }

    /// The text with the values in it; a missing value is empty. A literal, or a single variable, is not copied.
    pub fn render<'a>(&'a self, vars: &'a dyn Variables) -> Cow<'a, str> {
        self.render_or(vars, "")
    }

    /// The same with `missing` for a missing value, as access logs write `-`.
    pub fn render_or<'a>(&'a self, vars: &'a dyn Variables, missing: &'a str) -> Cow<'a, str> {
        match self.parts.as_slice() {
            [] => Cow::Borrowed(""),
            [part] => part.render(vars, missing),
            parts => Cow::Owned(parts.iter().map(|part| part.render(vars, missing)).collect()),
        }
    }

    /// The text as the path and query of a request: what cannot be sent is encoded. A capture, which has been decoded,
    /// is encoded again as one value: in the path it brings no query, in the query no further argument.
    pub(crate) fn render_target(&self, vars: &dyn Variables) -> String {
        let mut target = String::new();
        for part in &self.parts {
            let value = part.render(vars, "");
            target += &match part {
                Part::Variable(Variable::Capture(_)) if target.contains('?') => paths::encode_value(&value),
                Part::Variable(Variable::Capture(_)) => paths::encode(value.as_bytes()),
                Part::Literal(_) | Part::Variable(_) => paths::encode_query(value.as_bytes()),
            };
        }
        target
    }

    /// The variables in it, in order.
    pub fn variables(&self) -> impl Iterator<Item = &Variable> {
        self.parts.iter().filter_map(|part| match part {
            Part::Variable(variable) => Some(variable),
            Part::Literal(_) => None,
        })
    }

    /// `unknown` decides about names that are no variable.
    fn parse_with(text: &str, unknown: impl Fn(&str) -> Option<Variable>) -> Result<Self, TemplateError> {
        let mut template = Template::default();
        let mut rest = text;
        while let Some(dollar) = rest.find('$') {
            template.push_literal(&rest[..dollar]);
            let offset = text.len() - rest.len() + dollar;
            let (token, behind) = split_token(&rest[dollar + 1..], offset)?;
            match token {
                Token::Dollar => template.push_literal("$"),
                Token::Name(name) => template.parts.push(Part::Variable(resolve(name, &unknown)?)),
            }
            rest = behind;
        }
        template.push_literal(rest);
        Ok(template)
    }

    fn push_literal(&mut self, text: &str) {
        if text.is_empty() {
            return;
        }
        match self.parts.last_mut() {
            Some(Part::Literal(last)) => last.push_str(text),
            _ => self.parts.push(Part::Literal(text.to_owned())),
        }
    }
}

impl Part {
    fn render<'a>(&'a self, vars: &'a dyn Variables, missing: &'a str) -> Cow<'a, str> {
        match self {
            Part::Literal(text) => Cow::Borrowed(text),
            Part::Variable(variable) => vars.value(variable).unwrap_or(Cow::Borrowed(missing)),
        }
    }
}

impl Variable {
    /// The variable of this name, without `$`; captures are not variables in this sense.
    pub fn from_name(name: &str) -> Option<Self> {
        if let Some((_, variable)) = NAMES.iter().find(|(known, _)| *known == name) {
            return Some(variable.clone());
        }
        if let Some(argument) = name.strip_prefix("arg_").filter(|rest| !rest.is_empty()) {
            return Some(Variable::Arg(argument.to_owned()));
        }
        header_name(name.strip_prefix("http_")?).map(Variable::Http)
    }
}

/// nginx's way from a variable to a header: lower case, `-` for `_`.
fn header_name(name: &str) -> Option<HeaderName> {
    HeaderName::from_str(&name.replace('_', "-")).ok()
}

enum Token<'a> {
    Dollar,
    Name(&'a str),
}

/// Cut what stands behind a `$` off the front of `text`.
fn split_token(text: &str, offset: usize) -> Result<(Token<'_>, &str), TemplateError> {
    if let Some(rest) = text.strip_prefix('$') {
        return Ok((Token::Dollar, rest));
    }
    if let Some(braced) = text.strip_prefix('{') {
        let (name, rest) = braced.split_once('}').ok_or(TemplateError::Unclosed(offset))?;
        return Ok((Token::Name(name), rest));
    }
    let end = match text.bytes().next() {
        Some(b'0'..=b'9') => 1, // as in nginx, a number is one digit: `$1st` is `$1` and `st`
        _ => text.bytes().take_while(|byte| byte.is_ascii_alphanumeric() || *byte == b'_').count(),
    };
    match text.split_at(end) {
        ("", _) => Err(TemplateError::LoneDollar(offset)),
        (name, rest) => Ok((Token::Name(name), rest)),
    }
}

/// A variable wins over a capture of the same name.
fn resolve(name: &str, unknown: impl Fn(&str) -> Option<Variable>) -> Result<Variable, TemplateError> {
    Variable::from_name(name).or_else(|| unknown(name)).ok_or_else(|| TemplateError::Unknown {
        name: name.to_owned(),
        near: near::matches(name, NAMES.iter().map(|(known, _)| *known)),
    })
}

/// Could a regular expression have a group of this name or number?
fn capture(name: &str) -> Option<Variable> {
    let plausible = match name.as_bytes() {
        [digit] if digit.is_ascii_digit() => true,
        [first, rest @ ..] => {
            (first.is_ascii_alphabetic() || *first == b'_')
                && rest.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'_')
        }
        [] => false,
    };
    plausible.then(|| Variable::Capture(name.to_owned()))
}

/// Strict, and without captures.
impl FromStr for Template {
    type Err = TemplateError;

    fn from_str(text: &str) -> Result<Self, TemplateError> {
        Template::parse(text, &[])
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.parts.iter().try_for_each(|part| match part {
            Part::Literal(text) => f.write_str(&text.replace('$', "$$")),
            Part::Variable(variable) => write!(f, "${{{variable}}}"),
        })
    }
}

/// The name, without `$`.
impl fmt::Display for Variable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Variable::Arg(name) => write!(f, "arg_{name}"),
            Variable::Http(name) => write!(f, "http_{}", name.as_str().replace('-', "_")),
            Variable::Capture(name) => f.write_str(name),
            plain => match NAMES.iter().find(|(_, known)| known == plain) {
                Some((name, _)) => f.write_str(name),
                None => Err(fmt::Error),
            },
        }
    }
}

impl<'de> Deserialize<'de> for Template {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Template::parse_with(&text, capture).map_err(serde::de::Error::custom)
    }
}

impl Serialize for Template {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl schemars::JsonSchema for Template {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Template".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Request;

    impl Variables for Request {
        fn value(&self, variable: &Variable) -> Option<Cow<'_, str>> {
            match variable {
                Variable::Host => Some("example.com".into()),
                Variable::Http(name) if name == "user-agent" => Some("curl".into()),
                Variable::Capture(name) => Some(format!("<{name}>").into()),
                _ => None,
            }
        }
    }

    fn parse(text: &str) -> Result<Template, TemplateError> {
        Template::parse(text, &["1".into(), "name".into()])
    }

    #[test]
    fn variables_stand_for_values_and_a_missing_one_for_nothing() {
        let template = parse("a-$host-${http_user_agent}x$$ $status!").unwrap();
        assert_eq!(template.render(&Request), "a-example.com-curlx$ !");
        assert_eq!(template.render_or(&Request, "-"), "a-example.com-curlx$ -!");
    }

    #[test]
    fn a_number_is_one_digit_as_in_nginx() {
        assert_eq!(parse("/$1st/$name").unwrap().render(&Request), "/<1>st/<name>");
    }

    #[test]
    fn literals_and_single_variables_are_borrowed() {
        for text in ["plain", "", "$host"] {
            let template = parse(text).unwrap();
            assert!(matches!(template.render(&Request), Cow::Borrowed(_)), "{text}");
        }
    }

    #[test]
    fn every_name_finds_its_variable_and_back() {
        for (name, variable) in NAMES {
            assert_eq!(Variable::from_name(name).as_ref(), Some(&variable));
            assert_eq!(variable.to_string(), name);
        }
        let template = parse("${arg_a}${http_x_a}$$${http_b}${1}").unwrap();
        assert_eq!(template.to_string(), "${arg_a}${http_x_a}$$${http_b}${1}");
        assert_eq!(template.variables().count(), 4);
    }

    #[test]
    fn an_unknown_name_is_an_error_with_a_suggestion() {
        let error = parse("$remote_adr").unwrap_err();
        assert_eq!(error.to_string(), "unknown variable $remote_adr, did you mean remote_addr?");
        assert!(parse("$2").is_err());
        assert_eq!(parse("a $ b").unwrap_err(), TemplateError::LoneDollar(2));
        assert_eq!(parse("é${host").unwrap_err(), TemplateError::Unclosed(2));
        assert!("$name".parse::<Template>().is_err());
        assert!(matches!(parse("${}"), Err(TemplateError::Unknown { .. })));
    }

    #[test]
    fn a_filter_may_name_captures_it_cannot_know() {
        let template: Template = serde_json::from_str(r#""$user/$7""#).unwrap();
        assert_eq!(template.render(&Request), "<user>/<7>");
        assert!(serde_json::from_str::<Template>(r#""${a b}""#).is_err());
    }
}
