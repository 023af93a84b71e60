//! `rewrite`: another path for the upstream, as nginx's `rewrite … break`.
//!
//! ```yaml
//! - rewrite: { regex: "^/a/(.*)", to: "/b/$1" }
//! - rewrite: { regex: "^/user/(?<id>[0-9]+)$", to: "/users?id=$id&$args" }
//! ```
//!
//! The regular expression is tried on the path by which routes are chosen: decoded, with slashes merged and dot
//! segments resolved; a `.` matches any character. `$1` to `$9` and `$name` in `to` are its groups; other variables may
//! stand there too. What does not match stays as it came, byte for byte.
//!
//! The query is kept, unless `to` has a `?`: then it is what stands behind. nginx would append the old one; write
//! `&$args`. A group is one value, in a path and in a query: no text of a client becomes a further argument or header.
//!
//! `$request_uri` stays what the client sent. The route does not change; a second `rewrite` sees what the first one
//! made. With a `uri`, the route replaces its prefix of the new path; one without the prefix is sent as it is.

use millpond::paths;
use millpond::prelude::*;
use millpond::template::{Variable, Variables};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use regex::{Captures, Regex, RegexBuilder};
use serde::Deserialize;
use std::borrow::Cow;

/// What the configuration says.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RewriteConf {
    /// What the path must match.
    pub regex: String,
    /// What it becomes.
    pub to: String,
}

/// The filter.
///
/// ```
/// use millpond::filters::rewrite::{Rewrite, RewriteConf};
///
/// let rewrite = |to: &str| Rewrite::new(RewriteConf { regex: "^/a/(.*)".to_owned(), to: to.to_owned() });
/// assert!(rewrite("/b/$1").is_ok());
/// assert!(rewrite("/b/$2").is_err(), "there is no second group");
/// ```
pub struct Rewrite {
    regex: Regex,
    path: Template,
    query: Option<Template>,
}

impl Rewrite {
    /// Make it from its configuration.
    ///
    /// # Errors
    /// `regex` is no regular expression; `to` does not begin with a slash, or has a variable that is neither known nor
    /// a group.
    pub fn new(conf: RewriteConf) -> Result<Self> {
        let expected = |text: String| Error::new(ErrorKind::Filter, text);
        let regex = RegexBuilder::new(&conf.regex).dot_matches_new_line(true).build();
        let regex = regex.map_err(|error| expected(format!("a regular expression as `regex`: {error}")))?;
        if !conf.to.starts_with('/') {
            return Err(expected(format!("a path that begins with a slash as `to`, not {:?}", conf.to)));
        }
        let names = regex.capture_names().enumerate();
        let groups: Vec<String> =
            names.flat_map(|(number, name)| [Some(number.to_string()), name.map(str::to_owned)]).flatten().collect();
        let template = |text: &str| {
            Template::parse(text, &groups).map_err(|error| expected(format!("a template as `to`: {error}")))
        };
        let (path, query) =
            conf.to.split_once('?').map_or((conf.to.as_str(), None), |(path, query)| (path, Some(query)));
        let (path, query) = (template(path)?, query.map(template).transpose()?);
        Ok(Rewrite { path, query, regex })
    }

    /// The new path and query, if the path matches.
    fn rewritten(&self, path: &str, query: Option<&str>, others: &dyn Variables) -> Option<String> {
        let groups = self.regex.captures(path)?;
        let in_path = Groups { groups: &groups, path, in_query: false, others };
        let new = self.path.render(&in_path);
        // Two slashes would begin a host for some.
        let new = paths::encode(format!("/{}", new.trim_start_matches('/')).as_bytes());
        let in_query = Groups { groups: &groups, path, in_query: true, others };
        let query = match &self.query {
            Some(query) => paths::encode_query(query.render(&in_query).as_bytes()),
            None => query.unwrap_or_default().to_owned(),
        };
        Some(if query.is_empty() { new } else { format!("{new}?{query}") })
    }
}

/// What `to` can name.
struct Groups<'a> {
    groups: &'a Captures<'a>,
    /// Decoded: as a part of the new path it is encoded again.
    path: &'a str,
    in_query: bool,
    others: &'a dyn Variables,
}

impl Variables for Groups<'_> {
    fn value(&self, variable: &Variable) -> Option<Cow<'_, str>> {
        let name = match variable {
            Variable::Capture(name) => name,
            Variable::Uri if !self.in_query => return Some(self.path.into()),
            _ => return self.others.value(variable),
        };
        let group = match name.parse() {
            Ok(number) => self.groups.get(number),
            Err(_) => self.groups.name(name),
        };
        let text = group?.as_str();
        Some(if self.in_query { utf8_percent_encode(text, NON_ALPHANUMERIC).into() } else { text.into() })
    }
}

impl UpstreamPhases for Rewrite {
    type Ctx = ();

    fn new_ctx(&self) {}

    async fn request_filter(&self, session: &mut Session<'_>, _ctx: &mut ()) -> Result<Flow> {
        let uri = &session.request().uri;
        let path = paths::normalize(uri.path().as_bytes())?;
        // A path that is no text is none that a pattern describes.
        let Ok(path) = std::str::from_utf8(&path) else { return Ok(Flow::Continue) };
        let Some(rewritten) = self.rewritten(path, uri.query(), session) else { return Ok(Flow::Continue) };
        let mut parts = uri.clone().into_parts();
        let failed = |error: http::Error| Error::because(ErrorKind::BadRequest, "rewrite: the new path", error);
        parts.path_and_query = Some(rewritten.parse().map_err(|error| failed(http::Error::from(error)))?);
        let uri = http::Uri::from_parts(parts).map_err(|error| failed(error.into()))?;
        session.set_uri(uri);
        Ok(Flow::Continue)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewritten(regex: &str, to: &str, path: &str, query: Option<&str>) -> Option<String> {
        Rewrite::new(RewriteConf { regex: regex.to_owned(), to: to.to_owned() }).unwrap().rewritten(path, query, &())
    }

    #[test]
    fn groups_are_single_values_wherever_they_stand() {
        for (regex, to, path, expected) in [
            ("^/a/(.*)", "/b/$1", "/a/x/y", "/b/x/y?q=1"),
            ("^/a/(.*)", "/b/$1", "/a/x?y#z %20\r\n\u{e9}", "/b/x%3Fy%23z%20%2520%0D%0A%C3%A9?q=1"),
            ("^/a/(?<id>.*)", "/b?id=$id&x=${1}", "/a/1&admin=1#", "/b?id=1%26admin%3D1%23&x=1%26admin%3D1%23"),
            ("^/a(.*)", "/$1", "/a/evil.com", "/evil.com?q=1"),
            ("^/a", "/b?", "/a", "/b"),
            ("^", "/b$uri", "/a b%/c", "/b/a%20b%25/c?q=1"),
            ("(a)|(b)", "/$1-$2", "/b", "/-b?q=1"),
        ] {
            assert_eq!(rewritten(regex, to, path, Some("q=1")).as_deref(), Some(expected), "{path}");
        }
        assert_eq!(rewritten("^/a$", "/b", "/ab", None), None);
    }

    #[test]
    fn mistakes_are_refused() {
        for (regex, to) in [("(", "/"), ("a", "b"), ("a", "/$1"), ("(a)", "/$2"), ("a", "/$nonsense"), ("a", "/?$")] {
            assert!(Rewrite::new(RewriteConf { regex: regex.into(), to: to.into() }).is_err(), "{regex} {to}");
        }
    }
}
