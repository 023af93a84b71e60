//! [`MediaTypes`]: which responses a filter is for.

use http::header::CONTENT_TYPE;
use pingora_http::ResponseHeader;
use serde::Deserialize;

/// Media types in a filter's configuration, each `type/subtype`, `type/*`, `*+suffix` or `*`: nginx's
/// `sub_filter_types` and its like.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "Vec<String>")]
pub struct MediaTypes(Vec<String>);

impl MediaTypes {
    /// These.
    pub fn new<'t>(types: impl IntoIterator<Item = &'t str>) -> Self {
        MediaTypes(types.into_iter().map(str::to_ascii_lowercase).collect())
    }

    /// Is the response's `Content-Type` one of them? Its parameters do not matter; only `*` fits a response without
    /// one.
    pub fn contain(&self, response: &ResponseHeader) -> bool {
        let content_type = response.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
        let media = content_type.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
        self.0.iter().any(|wanted| match (wanted.strip_suffix("/*"), wanted.strip_prefix("*+")) {
            (Some(family), _) => media.split('/').next() == Some(family),
            (_, Some(suffix)) => media.rsplit_once('+').is_some_and(|(_, found)| found == suffix),
            _ => wanted == "*" || *wanted == media,
        })
    }

    /// None at all?
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<Vec<String>> for MediaTypes {
    fn from(types: Vec<String>) -> Self {
        MediaTypes::new(types.iter().map(String::as_str))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_a_family_or_all() {
        let contains = |types: &[&str], content_type: &str| {
            let mut response = ResponseHeader::build(200, None).unwrap();
            response.insert_header(CONTENT_TYPE, content_type).unwrap();
            MediaTypes::new(types.iter().copied()).contain(&response)
        };
        assert!(contains(&["Text/HTML"], "text/html; charset=utf-8"));
        assert!(contains(&["text/*"], "TEXT/plain"));
        assert!(!contains(&["text/*", "application/json"], "application/javascript"));
        assert!(contains(&["*+xml"], "image/svg+xml"));
        assert!(!contains(&["*+xml"], "application/xml"));
        assert!(contains(&["*"], ""));
        assert!(!contains(&["text/*"], ""));
    }
}
