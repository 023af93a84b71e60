//! [`RouteTable`]: which route a request takes.

use http::Method;
use regex::Regex;
use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

/// Which requests a route is for.
#[derive(Clone, Debug, Default)]
pub struct Matches {
    /// The host.
    pub host: HostMatch,
    /// The path.
    pub path: PathMatch,
    /// The methods; empty: all of them.
    pub methods: Vec<Method>,
}

/// The hosts a route is for; names are lower case.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum HostMatch {
    /// Every host.
    #[default]
    Any,
    /// This one.
    Exact(String),
    /// Every host that ends with this, which begins with a dot: `.example.com`.
    Suffix(String),
}

/// The paths a route is for.
#[derive(Clone, Debug)]
pub enum PathMatch {
    /// Every path that begins with this.
    Prefix(String),
    /// This path.
    Exact(String),
    /// Every path in which this is found.
    Regex(Regex),
}

impl Default for PathMatch {
    fn default() -> Self {
        PathMatch::Prefix("/".into())
    }
}

/// All routes of a service, arranged for the choice.
///
/// The choice is nginx's. Of the hosts: the exact one, then the longest `*.suffix`, then routes without a host. Within
/// a host: the exact path, then the regular expressions in the order of the file, then the longest prefix. Unlike
/// nginx, the next candidate is looked at, the next host's included, when a method does not fit or no path does.
#[derive(Clone, Debug, Default)]
pub struct RouteTable {
    exact: HashMap<String, Paths>,
    /// The longest first.
    suffixes: Vec<(String, Paths)>,
    any: Paths,
    methods: Vec<Vec<Method>>,
}

/// The routes of one host, by their indexes.
#[derive(Clone, Debug, Default)]
struct Paths {
    exact: HashMap<String, Vec<usize>>,
    regexes: Vec<PathRegex>,
    /// The longest first.
    prefixes: Vec<(String, usize)>,
}

#[derive(Clone, Debug)]
struct PathRegex {
    regex: Regex,
    /// Of its groups, the whole match included.
    names: Arc<[Option<String>]>,
    index: usize,
}

/// The route a request takes.
#[derive(Clone, Debug)]
pub struct RouteMatch {
    /// Its index in the service's routes.
    pub index: usize,
    /// What its regular expression captured.
    pub captures: Captures,
}

/// What a `path_regex` captured. Without any, nothing is allocated.
#[derive(Clone, Debug, Default)]
pub struct Captures(Option<Box<Groups>>);

#[derive(Clone, Debug)]
struct Groups {
    names: Arc<[Option<String>]>,
    values: Vec<Option<String>>,
}

impl RouteTable {
    /// Arrange the routes, in the order of the file.
    pub fn new<'a>(routes: impl IntoIterator<Item = &'a Matches>) -> Self {
        let mut table = RouteTable::default();
        for (index, matches) in routes.into_iter().enumerate() {
            table.methods.push(matches.methods.clone());
            table.paths_mut(&matches.host).add(&matches.path, index);
        }
        table.suffixes.sort_by_key(|(suffix, _)| std::cmp::Reverse(suffix.len()));
        let hosts = table.exact.values_mut().chain(table.suffixes.iter_mut().map(|(_, paths)| paths));
        for paths in hosts.chain([&mut table.any]) {
            paths.prefixes.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.len()));
        }
        table
    }

    /// The route for a request. `host` is without a port, in any case; `path` is without the query.
    pub fn find(&self, host: &str, path: &str, method: &Method) -> Option<RouteMatch> {
        let host = host.strip_suffix('.').unwrap_or(host);
        let host: Cow<'_, str> = match host.bytes().any(|byte| byte.is_ascii_uppercase()) {
            true => host.to_ascii_lowercase().into(),
            false => host.into(),
        };
        let suffixes = self.suffixes.iter().filter(|(suffix, _)| host.ends_with(suffix));
        let named = self.exact.get(host.as_ref()).into_iter().chain(suffixes.map(|(_, paths)| paths));
        named.chain([&self.any]).find_map(|paths| paths.find(path, |index| self.allows(index, method)))
    }

    fn allows(&self, index: usize, method: &Method) -> bool {
        self.methods.get(index).is_some_and(|methods| methods.is_empty() || methods.contains(method))
    }

    fn paths_mut(&mut self, host: &HostMatch) -> &mut Paths {
        let suffix = match host {
            HostMatch::Any => return &mut self.any,
            HostMatch::Exact(name) => return self.exact.entry(name.clone()).or_default(),
            HostMatch::Suffix(suffix) => suffix,
        };
        let at = self.suffixes.iter().position(|(known, _)| known == suffix).unwrap_or(self.suffixes.len());
        if at == self.suffixes.len() {
            self.suffixes.push((suffix.clone(), Paths::default()));
        }
        &mut self.suffixes[at].1
    }
}

impl Paths {
    fn add(&mut self, path: &PathMatch, index: usize) {
        match path {
            PathMatch::Exact(path) => self.exact.entry(path.clone()).or_default().push(index),
            PathMatch::Prefix(prefix) => self.prefixes.push((prefix.clone(), index)),
            PathMatch::Regex(regex) => {
                let names = regex.capture_names().map(|name| name.map(str::to_owned)).collect();
                self.regexes.push(PathRegex { regex: regex.clone(), names, index });
            }
        }
    }

    fn find(&self, path: &str, allowed: impl Fn(usize) -> bool) -> Option<RouteMatch> {
        let exact = self.exact.get(path).into_iter().flatten().copied().find(|index| allowed(*index));
        let found = exact.map(RouteMatch::plain).or_else(|| {
            let mut regexes = self.regexes.iter().filter(|regex| allowed(regex.index));
            regexes.find_map(|regex| regex.find(path))
        });
        found.or_else(|| {
            let mut prefixes = self.prefixes.iter();
            let fitting = prefixes.find(|(prefix, index)| path.starts_with(prefix.as_str()) && allowed(*index));
            fitting.map(|(_, index)| RouteMatch::plain(*index))
        })
    }
}

impl PathRegex {
    fn find(&self, path: &str) -> Option<RouteMatch> {
        if self.names.len() < 2 {
            return self.regex.is_match(path).then(|| RouteMatch::plain(self.index));
        }
        let groups = self.regex.captures(path)?;
        let values = groups.iter().map(|group| group.map(|group| group.as_str().to_owned())).collect();
        let captures = Captures(Some(Box::new(Groups { names: self.names.clone(), values })));
        Some(RouteMatch { index: self.index, captures })
    }
}

impl RouteMatch {
    fn plain(index: usize) -> Self {
        RouteMatch { index, captures: Captures::default() }
    }
}

impl PathMatch {
    /// The names a template may use for what is captured: numbers, and the groups' own.
    pub fn capture_names(&self) -> Vec<String> {
        let PathMatch::Regex(regex) = self else { return Vec::new() };
        let numbers = (1..regex.captures_len()).map(|number| number.to_string());
        numbers.chain(regex.capture_names().flatten().map(str::to_owned)).collect()
    }
}

impl Captures {
    /// What the group of this name, or of this number as text, captured.
    pub fn value(&self, name: &str) -> Option<&str> {
        let groups = self.0.as_ref()?;
        let index = match name.parse::<usize>() {
            Ok(number) => number,
            Err(_) => groups.names.iter().position(|known| known.as_deref() == Some(name))?,
        };
        groups.values.get(index)?.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exact(path: &str) -> PathMatch {
        PathMatch::Exact(path.into())
    }

    fn prefix(path: &str) -> PathMatch {
        PathMatch::Prefix(path.into())
    }

    fn regex(path: &str) -> PathMatch {
        PathMatch::Regex(Regex::new(path).unwrap())
    }

    fn table(routes: &[(&str, PathMatch, &[Method])]) -> RouteTable {
        let matches: Vec<Matches> = routes
            .iter()
            .map(|(host, path, methods)| {
                let host = match (*host, host.strip_prefix('*')) {
                    ("", _) => HostMatch::Any,
                    (_, Some(suffix)) => HostMatch::Suffix(suffix.into()),
                    (name, None) => HostMatch::Exact(name.into()),
                };
                Matches { host, path: path.clone(), methods: methods.to_vec() }
            })
            .collect();
        RouteTable::new(&matches)
    }

    fn find(table: &RouteTable, host: &str, path: &str) -> Option<usize> {
        table.find(host, path, &Method::GET).map(|found| found.index)
    }

    #[test]
    fn exact_then_regex_in_file_order_then_the_longest_prefix() {
        let table = table(&[
            ("", prefix("/"), &[]),
            ("", prefix("/a/b/"), &[]),
            ("", prefix("/a/"), &[]),
            ("", regex("x$"), &[]),
            ("", regex("^/a/.*x"), &[]),
            ("", exact("/a/x"), &[]),
        ]);
        let paths = ["/a/x", "/a/yx", "/a/b/c", "/a/c", "/", "/a/xy"];
        assert_eq!(paths.map(|path| find(&table, "h", path)), [5, 3, 1, 2, 0, 4].map(Some));
    }

    #[test]
    fn exact_host_then_the_longest_suffix_then_none() {
        let table = table(&[
            ("", prefix("/"), &[]),
            ("*.example.com", prefix("/"), &[]),
            ("*.b.example.com", prefix("/"), &[]),
            ("a.example.com", prefix("/"), &[]),
        ]);
        let hosts = ["A.Example.com", "x.example.com", "a.b.example.com", "example.com", "a.example.com."];
        assert_eq!(hosts.map(|host| find(&table, host, "/")), [3, 1, 2, 0, 3].map(Some));
    }

    #[test]
    fn the_next_candidate_is_looked_at_when_the_method_does_not_fit() {
        let table = table(&[
            ("", prefix("/"), &[]),
            ("h", exact("/a"), &[Method::POST]),
            ("h", exact("/a"), &[Method::PUT]),
            ("h", regex("a"), &[Method::POST]),
            ("h", prefix("/a"), &[Method::DELETE]),
        ]);
        let found = |method| table.find("h", "/a", &method).map(|found| found.index);
        assert_eq!(found(Method::PUT), Some(2));
        assert_eq!(found(Method::DELETE), Some(4));
        assert_eq!(found(Method::GET), Some(0));
    }

    #[test]
    fn nothing_fits() {
        assert_eq!(find(&table(&[("h", prefix("/"), &[])]), "other", "/"), None);
        assert_eq!(find(&table(&[("", prefix("/a"), &[])]), "", ""), None);
    }

    #[test]
    fn captures_have_numbers_and_names() {
        let path = regex("^/(?<user>[a-z]+)/(x)?([0-9]*)");
        assert_eq!(path.capture_names(), ["1", "2", "3", "user"]);
        let captures = table(&[("", path, &[])]).find("", "/joe/7", &Method::GET).unwrap().captures;
        let values = ["0", "1", "user", "2", "3", "4", "nobody"].map(|name| captures.value(name));
        let expected = [Some("/joe/7"), Some("joe"), Some("joe"), None, Some("7"), None, None];
        assert_eq!(values, expected);
        assert_eq!(Captures::default().value("1"), None);
    }
}
