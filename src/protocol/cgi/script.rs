//! [`Script`]: which part of a path is the script, and which is for the script to make sense of.
//!
//! Whoever splits a path wrongly lets clients run what they have uploaded: asked for a script that is not there, PHP
//! (`cgi.fix_pathinfo`, on by default) drops segments from the end of the path until it comes to a file, and runs that
//! one. `/upload.jpg/x.php`, taken for the script `x.php`, runs `upload.jpg`. A proxy does not see the files, so without a
//! `split_path_info` of its own a route is strict about names:
//! - A script has the extension of `index`. It is the first segment of the path with that extension; what is behind it is
//!   `PATH_INFO`.
//! - A path without one gets `index` if it ends with a slash, and is not found (404) otherwise: neither `/upload.jpg` nor
//!   `/upload` ever reaches the application.
//! - No segment in front of the script may look like a file, that is, have the extension of a known type: 404.
//!
//! PHP-FPM's `security.limit_extensions` (by default `.php` and `.phar`) is the second lock on the same door.

use crate::error::{Error, Result};
use regex::bytes::{Regex, RegexBuilder};
use serde::Deserialize;
use std::borrow::Cow;

/// Where scripts come from.
#[derive(Clone, Debug)]
pub(crate) enum Script {
    /// The application is the only one there is, and all of the path is for it: `SCRIPT_NAME` is empty.
    Application,
    /// Scripts are files below `root`.
    #[cfg_attr(all(not(feature = "fastcgi"), not(test)), expect(dead_code, reason = "FastCGI's alone"))]
    File {
        /// `DOCUMENT_ROOT`.
        root: Root,
        /// What is behind a slash at the end.
        index: Index,
        /// nginx's `fastcgi_split_path_info`; without it, the rules above.
        split: Option<Split>,
    },
}

/// A path, split.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Found<'p> {
    /// `SCRIPT_NAME`.
    pub(crate) name: Cow<'p, [u8]>,
    /// `PATH_INFO`, perhaps empty.
    pub(crate) path_info: &'p [u8],
}

impl Script {
    /// Split a path that is decoded and normal.
    ///
    /// # Errors
    /// 404: there is no script in it.
    pub(crate) fn find<'p>(&self, path: &'p [u8]) -> Result<Found<'p>> {
        match self {
            Script::Application => Ok(Found { name: Cow::Borrowed(b""), path_info: path }),
            Script::File { index, split: Some(split), .. } => Ok(split.apply(path, index)),
            Script::File { index, split: None, .. } => by_extension(path, index),
        }
    }
}

/// The rules of the [module](self).
fn by_extension<'p>(path: &'p [u8], index: &Index) -> Result<Found<'p>> {
    let mut end = 0;
    for segment in path.split_inclusive(|byte| *byte == b'/') {
        end += segment.len();
        let name = segment.strip_suffix(b"/").unwrap_or(segment);
        if index.is_script(name) {
            let (script, path_info) = path.split_at(end - (segment.len() - name.len()));
            return Ok(Found { name: Cow::Borrowed(script), path_info });
        }
        if name.len() < segment.len() && looks_like_a_file(name) {
            let name = name.escape_ascii();
            return Err(Error::with_status(404, format!("\"{name}\" in front of a script looks like a file")));
        }
    }
    if !path.ends_with(b"/") {
        let extension = index.extension().unwrap_or_default();
        return Err(Error::with_status(
            404,
            format!("no script, no segment of the path has the extension {extension}"),
        ));
    }
    Ok(Found { name: Cow::Owned([path, index.0.as_bytes()].concat()), path_info: b"" })
}

fn looks_like_a_file(name: &[u8]) -> bool {
    mime_guess::from_path(&*String::from_utf8_lossy(name)).first_raw().is_some()
}

/// The folder of the scripts, without a slash at the end.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(try_from = "String")]
pub(crate) struct Root(String);

impl Root {
    /// The path of what is at `path` below it.
    pub(crate) fn join(&self, path: &[u8]) -> Vec<u8> {
        [self.0.as_bytes(), path].concat()
    }

    /// `DOCUMENT_ROOT`.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        if self.0.is_empty() { b"/" } else { self.0.as_bytes() }
    }
}

impl TryFrom<String> for Root {
    type Error = String;

    fn try_from(path: String) -> Result<Self, String> {
        if !path.starts_with('/') || path.contains('\0') {
            return Err(format!("{path:?}, expected an absolute path, as the application sees it"));
        }
        Ok(Root(path.trim_end_matches('/').to_owned()))
    }
}

/// The name of a script.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(try_from = "String")]
pub(crate) struct Index(String);

impl Index {
    /// With its dot; `None` if it has none.
    pub(crate) fn extension(&self) -> Option<&str> {
        let dot = self.0.rfind('.').filter(|dot| *dot > 0)?;
        self.0.get(dot..).filter(|extension| extension.len() > 1)
    }

    /// Is this the name of a file with the same extension?
    fn is_script(&self, name: &[u8]) -> bool {
        let extension = self.extension().map(str::as_bytes);
        extension.is_some_and(|extension| name.len() > extension.len() && name.ends_with(extension))
    }
}

impl Default for Index {
    fn default() -> Self {
        Index("index.php".into())
    }
}

impl TryFrom<String> for Index {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        if name.is_empty() || name.contains(['/', '\0']) {
            return Err(format!("{name:?}, expected the name of a file, such as index.php"));
        }
        Ok(Index(name))
    }
}

/// nginx's `fastcgi_split_path_info`: two groups, the script and what is behind it.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Split(Regex);

impl Split {
    /// A path that does not match is a script from end to end.
    fn apply<'p>(&self, path: &'p [u8], index: &Index) -> Found<'p> {
        let groups = self.0.captures(path);
        let group = |number| groups.as_ref().and_then(|groups| groups.get(number)).map(|group| group.as_bytes());
        let (script, path_info) = (group(1).unwrap_or(path), group(2).unwrap_or_default());
        let name = match script.ends_with(b"/") {
            true => Cow::Owned([script, index.0.as_bytes()].concat()),
            false => Cow::Borrowed(script),
        };
        Found { name, path_info }
    }
}

impl TryFrom<String> for Split {
    type Error = String;

    /// A `.` is any byte: a path with a line feed must not slip through (CVE-2019-11043 began with one that did).
    fn try_from(regex: String) -> Result<Self, String> {
        let built = RegexBuilder::new(&regex).unicode(false).dot_matches_new_line(true).build();
        match built {
            Ok(built) if built.captures_len() == 3 => Ok(Split(built)),
            Ok(_) => Err(format!("{regex:?}, expected a regular expression with two groups, script and path info")),
            Err(error) => Err(format!("{regex:?}, expected a regular expression: {error}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(split: Option<&str>) -> Script {
        let split = split.map(|regex| Split::try_from(regex.to_owned()).unwrap());
        Script::File { root: Root::try_from("/srv/".to_owned()).unwrap(), index: Index::default(), split }
    }

    fn found(script: &Script, path: &str) -> Option<(String, String)> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        script.find(path.as_bytes()).ok().map(|found| (text(&found.name), text(found.path_info)))
    }

    #[test]
    fn the_first_script_in_a_path_is_the_one() {
        for (path, name, path_info) in [
            ("/", "/index.php", ""),
            ("/wp-admin/", "/wp-admin/index.php", ""),
            ("/index.php", "/index.php", ""),
            ("/index.php/a/b", "/index.php", "/a/b"),
            ("/index.php/", "/index.php", "/"),
            ("/index.php/a.jpg/x.php", "/index.php", "/a.jpg/x.php"),
            ("/index.php/\nPHP", "/index.php", "/\nPHP"),
            ("/v1.0/api.php/users", "/v1.0/api.php", "/users"),
        ] {
            assert_eq!(found(&files(None), path), Some((name.into(), path_info.into())), "{path}");
        }
    }

    #[test]
    fn an_upload_is_no_script() {
        for path in
            ["/upload.jpg/x.php", "/upload.jpg/", "/a.pdf/b/c.php/d", "/upload.jpg", "/upload", "/.php", "/x.PHP"]
        {
            assert_eq!(files(None).find(path.as_bytes()).unwrap_err().status(), 404, "{path}");
        }
    }

    #[test]
    fn a_split_of_ones_own_is_as_in_nginx() {
        let script = files(Some("^(.+?[.]cgi)(/.*)$"));
        for (path, name, path_info) in [
            ("/a.cgi/b", "/a.cgi", "/b"),
            ("/a.cgi/b\nc", "/a.cgi", "/b\nc"),
            ("/a.cgi", "/a.cgi", ""),
            ("/dir/", "/dir/index.php", ""),
            ("/upload.jpg", "/upload.jpg", ""),
        ] {
            assert_eq!(found(&script, path), Some((name.into(), path_info.into())), "{path:?}");
        }
        let path = b"/\xff.cgi/\xfe";
        assert_eq!(script.find(path).unwrap().path_info, b"/\xfe", "no text, and a path all the same");
    }

    #[test]
    fn settings_that_make_no_sense_are_refused() {
        assert!(Root::try_from("srv".to_owned()).is_err());
        assert!(Index::try_from("a/b.php".to_owned()).is_err());
        assert!(Index::try_from(String::new()).is_err());
        assert!(Split::try_from("^(.+)$".to_owned()).is_err());
        assert!(Split::try_from("^(".to_owned()).is_err());
    }

    #[test]
    fn a_root_may_be_the_whole_disk() {
        let root = Root::try_from("/".to_owned()).unwrap();
        assert_eq!((root.as_bytes(), root.join(b"/a.php").as_slice()), (&b"/"[..], &b"/a.php"[..]));
    }
}
