//! [`ErrorPages`]: what a client is sent in place of the built-in error pages.

use bytes::Bytes;
use http::HeaderValue;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// Error pages by status.
#[derive(Clone, Debug, Default)]
pub struct ErrorPages(BTreeMap<Statuses, ErrorPage>);

/// The statuses that a page is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Statuses {
    /// This one, from 300 to 599.
    One(u16),
    /// All of one class: `4` for `4xx`, `5` for `5xx`.
    Class(u16),
}

/// An error page. The status of the answer stays that of the error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ErrorPage {
    /// A file, as it was when the configuration was loaded.
    File {
        /// From the file's extension.
        content_type: HeaderValue,
        /// What is in it.
        body: Bytes,
    },
    /// Path and query of an internal redirect, in a form that can be sent.
    Path(String),
}

impl ErrorPages {
    /// The page for an answer with this status. One for the status itself wins over one for its class.
    pub fn find(&self, status: u16) -> Option<&ErrorPage> {
        self.0.get(&Statuses::One(status)).or_else(|| self.0.get(&Statuses::Class(status / 100)))
    }

    pub(super) fn insert(&mut self, statuses: Statuses, page: ErrorPage) {
        self.0.insert(statuses, page);
    }
}

/// `502`, `5xx`. 304 is none: it has no body.
impl FromStr for Statuses {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "4xx" => Ok(Statuses::Class(4)),
            "5xx" => Ok(Statuses::Class(5)),
            _ => match text.parse() {
                Ok(304) => Err(()),
                Ok(status @ 300..=599) => Ok(Statuses::One(status)),
                _ => Err(()),
            },
        }
    }
}

/// For the log: what a file has in it is not said.
impl fmt::Display for ErrorPage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ErrorPage::File { content_type, body } => {
                write!(f, "a file of {} bytes ({})", body.len(), content_type.to_str().unwrap_or_default())
            }
            ErrorPage::Path(path) => f.write_str(path),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_wins_over_its_class() {
        let mut pages = ErrorPages::default();
        for statuses in ["5xx", "404", "502"] {
            pages.insert(statuses.parse().unwrap(), ErrorPage::Path(format!("/{statuses}")));
        }
        let found = [502, 503, 404, 403].map(|status| pages.find(status).map(ErrorPage::to_string));
        assert_eq!(found, [Some("/502"), Some("/5xx"), Some("/404"), None].map(|page| page.map(str::to_owned)));
    }

    #[test]
    fn what_is_no_error_has_no_page() {
        for text in ["", "200", "299", "304", "600", "3xx", "5XX", "50", "502 503", "-502"] {
            assert!(text.parse::<Statuses>().is_err(), "{text}");
        }
    }
}
