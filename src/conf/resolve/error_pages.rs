//! `error_pages:`.

use super::Resolver;
use crate::conf::source::{item_path, key_path};
use crate::conf::units::Size;
use crate::conf::{ErrorPage, ErrorPages, Matches, PathMatch, Route, raw};
use crate::paths;
use bytes::Bytes;
use http::{HeaderValue, Method};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// What a file may have: it stays in memory.
const LARGEST_FILE: Size = Size(1 << 20);

impl Resolver {
    /// The error pages of each of a service's `routes`, which are at `path`.
    pub(super) fn routes_error_pages(&mut self, service: &raw::Service, routes: &mut [Route], path: &str) {
        for (index, raw) in service.routes.iter().enumerate() {
            let path = item_path(path, index);
            let pages = self.error_pages(raw, &service.name, routes, &path);
            if let Some(route) = routes.get_mut(index) {
                route.error_pages = pages;
            }
        }
    }

    /// Those of one route, or of the defaults. `routes` are all of the service `service`: a page may be with one of them.
    pub(super) fn error_pages(&mut self, raw: &raw::Route, service: &str, routes: &[Route], path: &str) -> ErrorPages {
        let mut pages = ErrorPages::default();
        for (key, text) in &raw.error_pages {
            let path = self.origin(path, &key_path("error_pages", key));
            match key.parse() {
                Ok(statuses) => {
                    if let Some(page) = self.error_page(text, service, routes, &path) {
                        pages.insert(statuses, page);
                    }
                }
                Err(()) => self.wrong(&path, key, "a status from 300 to 599 but 304, which has no page, or 4xx or 5xx"),
            }
        }
        pages
    }

    fn error_page(&mut self, text: &str, service: &str, routes: &[Route], path: &str) -> Option<ErrorPage> {
        if let Some(page) = self.pages.get(text) {
            return Some(page.clone());
        }
        let file = self.base.join(text);
        if file.is_file() {
            let page = self.page_file(text, &file, path)?;
            self.pages.insert(text.to_owned(), page.clone());
            return Some(page);
        }
        let target = paths::redirect_target(text.as_bytes()).ok();
        let target = target.filter(|target| routes.iter().any(|route| leads_to(&route.matches, target)));
        if target.is_none() {
            let file = file.display();
            let expected =
                format!("a file that exists ({file}), or a path that a route of the service {service} matches");
            self.wrong(path, text, expected);
        }
        target.map(ErrorPage::Path)
    }

    fn page_file(&mut self, text: &str, file: &Path, path: &str) -> Option<ErrorPage> {
        let mut body = Vec::new();
        let read = File::open(file).and_then(|file| file.take(LARGEST_FILE.0 + 1).read_to_end(&mut body));
        match read {
            Ok(_) if body.len() as u64 <= LARGEST_FILE.0 => {
                Some(ErrorPage::File { content_type: content_type(file), body: Bytes::from(body) })
            }
            Ok(_) => {
                self.wrong(path, text, format!("a file of at most {LARGEST_FILE}"));
                None
            }
            Err(error) => {
                self.wrong(path, text, format!("a readable file ({}: {error})", file.display()));
                None
            }
        }
    }
}

/// Could a GET of `target` take this route, with some host?
fn leads_to(matches: &Matches, target: &str) -> bool {
    let path = paths::normalize(paths::split_query(target.as_bytes()).0).unwrap_or_default();
    let path = String::from_utf8_lossy(&path);
    let fits = match &matches.path {
        PathMatch::Prefix(prefix) => path.starts_with(prefix.as_str()),
        PathMatch::Exact(exact) => path == exact.as_str(),
        PathMatch::Regex(regex) => regex.is_match(&path),
    };
    fits && (matches.methods.is_empty() || matches.methods.contains(&Method::GET))
}

/// By the file's extension. Texts are taken for UTF-8.
fn content_type(file: &Path) -> HeaderValue {
    let guessed = mime_guess::from_path(file).first_or_octet_stream();
    let charset = if guessed.type_() == mime_guess::mime::TEXT { "; charset=utf-8" } else { "" };
    let unknown = || HeaderValue::from_static("application/octet-stream");
    HeaderValue::try_from(format!("{}{charset}", guessed.essence_str())).unwrap_or_else(|_| unknown())
}
