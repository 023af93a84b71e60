//! A configuration before it means anything: the tree of its values, and where in the file each of them stands.

use super::errors::{ConfError, ConfErrors, Place, shown};
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use serde_saphyr::Spanned;
use std::collections::HashMap;
use std::fmt;

/// The tree, and what is needed to speak about it.
pub(super) struct Source {
    pub(super) file: String,
    pub(super) value: Value,
    pub(super) places: Places,
    errors: Vec<ConfError>,
}

/// Where each key of a file stands.
#[derive(Clone, Debug, Default)]
pub(crate) struct Places(HashMap<String, Place>);

/// Finds the value of an environment variable.
pub(super) type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

impl Source {
    /// Read YAML 1.2. A duplicate key, or bad syntax, ends it at once: there is no tree to look for more in.
    pub(super) fn parse(text: &str, file: &str) -> Result<Self, ConfErrors> {
        let options = serde_saphyr::options! {
            strict_booleans: true,
            with_snippet: false,
        };
        let mut source = Source::from_value(Value::Null, file);
        match serde_saphyr::from_str_with_options::<Spanned<Node>>(text, options) {
            Ok(node) => {
                source.value = source.flatten(node, String::new());
                Ok(source)
            }
            Err(error) => Err(ConfErrors(vec![syntax_error(&error, file)])),
        }
    }

    /// The same without a file.
    pub(super) fn from_value(value: Value, file: &str) -> Self {
        Source { file: file.to_owned(), value, places: Places::default(), errors: Vec::new() }
    }

    /// Note that something is wrong, unless something already was, there or around it. A key that is not in the file is
    /// placed at the nearest one above it that is.
    pub(super) fn error(&mut self, path: &str, found: impl Into<String>, expected: impl Into<String>) {
        if self.errors.iter().any(|error| is_within(path, &error.path)) {
            return;
        }
        self.errors.push(ConfError {
            file: self.file.clone(),
            path: path.to_owned(),
            found: found.into(),
            expected: expected.into(),
            place: self.place(path),
        });
    }

    /// Has something been found wrong at `path`, inside it, or around it?
    pub(super) fn is_wrong(&self, path: &str) -> bool {
        self.errors.iter().any(|error| is_within(&error.path, path) || is_within(path, &error.path))
    }

    /// Does the file itself have this key, with a value?
    pub(super) fn has(&self, path: &str) -> bool {
        let mut value = &self.value;
        for step in steps(path) {
            let next = match step.parse::<usize>() {
                Ok(index) if value.is_array() => value.get(index),
                _ => value.get(step),
            };
            match next {
                Some(next) => value = next,
                None => return false,
            }
        }
        !value.is_null()
    }

    /// Everything that was noted, in the order of the file.
    pub(super) fn into_errors(self) -> ConfErrors {
        let mut errors = self.errors;
        errors.sort_by_key(|error| error.place);
        ConfErrors(errors)
    }

    /// `good`, if nothing was noted.
    pub(super) fn into_result<T>(self, good: T) -> Result<T, ConfErrors> {
        if self.errors.is_empty() { Ok(good) } else { Err(self.into_errors()) }
    }

    /// Replace `${NAME}` in all strings. Only upper case names are the environment's, the others are variables of a
    /// request. A string that is one `${NAME}` and nothing else may become a number or a truth value.
    pub(super) fn expand_env(&mut self, env: Env<'_>) {
        let mut value = std::mem::take(&mut self.value);
        self.expand(&mut value, "", env);
        self.value = value;
    }

    fn expand(&mut self, value: &mut Value, path: &str, env: Env<'_>) {
        match value {
            Value::String(text) => {
                if let Some(expanded) = self.expand_text(text, path, env) {
                    *value = expanded;
                }
            }
            Value::Array(items) => {
                for (index, item) in items.iter_mut().enumerate() {
                    self.expand(item, &item_path(path, index), env);
                }
            }
            Value::Object(map) => {
                for (key, item) in map {
                    self.expand(item, &key_path(path, key), env);
                }
            }
            _ => {}
        }
    }

    fn expand_text(&mut self, text: &str, path: &str, env: Env<'_>) -> Option<Value> {
        let mut expanded = String::with_capacity(text.len());
        let (mut rest, mut unset) = (text, Vec::new());
        while let Some((before, name, behind)) = split_env(rest) {
            expanded.push_str(before);
            match env(name) {
                Some(value) => expanded.push_str(&value),
                None => unset.push(name),
            }
            rest = behind;
        }
        let is_secret = path.ends_with(".password");
        if !unset.is_empty() {
            let found = if is_secret { "what is not shown".to_owned() } else { shown(&text.into()) };
            self.error(path, found, format!("the environment to have {}", unset.join(" and ")));
        }
        if rest.len() == text.len() {
            return None;
        }
        expanded.push_str(rest);
        // Digits are a password too.
        let alone = !is_secret && matches!(split_env(text), Some(("", _, "")));
        Some(if alone { scalar(expanded) } else { Value::String(expanded) })
    }

    /// Where this key stands, or the nearest one above it that is in the file.
    pub(super) fn place(&self, path: &str) -> Option<Place> {
        self.places.find(path)
    }

    fn flatten(&mut self, node: Spanned<Node>, path: String) -> Value {
        let (line, column) = (node.referenced.line(), node.referenced.column());
        let value = match node.value {
            Node::Scalar(value) => value,
            Node::List(items) => {
                let items = items.into_iter().enumerate();
                Value::Array(items.map(|(index, item)| self.flatten(item, item_path(&path, index))).collect())
            }
            Node::Mapping(entries) => {
                let mut map = Map::new();
                for (key, item) in entries {
                    let item = self.flatten(item, key_path(&path, &key));
                    map.insert(key, item);
                }
                Value::Object(map)
            }
        };
        self.places.0.insert(path, Place { line, column });
        value
    }
}

impl Places {
    /// Where this key stands, or the nearest one above it that is in the file.
    pub(crate) fn find(&self, path: &str) -> Option<Place> {
        let mut path = path;
        loop {
            if let Some(place) = self.0.get(path) {
                return Some(*place);
            }
            path = match path.rfind(['.', '[']) {
                Some(end) => &path[..end],
                None if path.is_empty() => return None,
                None => "",
            };
        }
    }
}

/// `path.key`.
pub(super) fn key_path(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// `path[index]`.
pub(super) fn item_path(path: &str, index: usize) -> String {
    format!("{path}[{index}]")
}

/// Is `path` the same as `outer`, or inside it?
fn is_within(path: &str, outer: &str) -> bool {
    path.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

fn steps(path: &str) -> impl Iterator<Item = &str> {
    path.split(['.', '[', ']']).filter(|step| !step.is_empty())
}

/// The text before the first `${NAME}`, the name, and the text behind.
fn split_env(text: &str) -> Option<(&str, &str, &str)> {
    let mut from = 0;
    while let Some(start) = text[from..].find("${").map(|at| at + from) {
        from = start + 2;
        if let Some((name, behind)) = text[from..].split_once('}')
            && is_env_name(name)
        {
            return Some((&text[..start], name, behind));
        }
    }
    None
}

fn is_env_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|byte| byte.is_ascii_uppercase() || byte == b'_')
        && bytes.all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_')
}

/// What a plain scalar of this text would be in YAML.
fn scalar(text: String) -> Value {
    match (text.as_str(), text.parse::<u64>()) {
        ("true", _) => Value::Bool(true),
        ("false", _) => Value::Bool(false),
        (_, Ok(number)) if number.to_string() == text => number.into(),
        _ => Value::String(text),
    }
}

fn syntax_error(error: &serde_saphyr::Error, file: &str) -> ConfError {
    let place = error.location().map(|location| Place { line: location.line(), column: location.column() });
    let (found, expected) = match error.without_snippet() {
        serde_saphyr::Error::DuplicateMappingKey { key: Some(key), .. } => (format!("{key} again"), "each key once"),
        other => (reason(other), "well-formed YAML"),
    };
    ConfError { file: file.to_owned(), path: String::new(), found, expected: expected.into(), place }
}

/// The reader's words; the place is told apart.
fn reason(error: &serde_saphyr::Error) -> String {
    let message = error.render_with_formatter(&serde_saphyr::UserMessageFormatter);
    message.split(" at line ").next().unwrap_or_default().to_owned()
}

/// Any YAML value, its children with their places.
enum Node {
    Scalar(Value),
    List(Vec<Spanned<Node>>),
    Mapping(Vec<(String, Spanned<Node>)>),
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Scalar(Value::Null))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Node, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Node::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Node::Mapping(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn env(name: &str) -> Option<String> {
        [("PORT", "8080"), ("HOST", "app")].iter().find(|(known, _)| *known == name).map(|(_, v)| (*v).to_owned())
    }

    #[test]
    fn values_know_their_places() {
        let mut source = Source::parse("a: 1\nb:\n  - c: [x, true]\n  - ~\n", "x.yaml").unwrap();
        assert_eq!(source.value, json!({ "a": 1, "b": [{ "c": ["x", true] }, null] }));
        assert_eq!(source.place("b[0].c[1]"), Some(Place { line: 3, column: 12 }));
        assert_eq!(source.place("b[0].missing.key"), source.place("b[0]"));
        assert!(source.has("b[0].c[1]") && !source.has("b[0].d") && !source.has("b[2]"));
        source.error("b[0].c", "x", "y");
        source.error("b[0].c[1]", "x", "y");
        assert_eq!(source.errors.len(), 1);
        assert!(
            source.is_wrong("b[0]") && source.is_wrong("b") && source.is_wrong("b[0].c[1]") && !source.is_wrong("b[1]")
        );
    }

    #[test]
    fn yes_and_on_are_strings_as_in_yaml_1_2() {
        assert_eq!(
            Source::parse("a: [yes, on, no, off]", "").unwrap().value,
            json!({ "a": ["yes", "on", "no", "off"] })
        );
    }

    #[test]
    fn a_duplicate_key_is_an_error_with_its_place() {
        let errors = Source::parse("a: 1\nb: 2\na: 3\n", "x.yaml").err().unwrap();
        let expected = "x.yaml:3:1: found a again, expected each key once";
        assert_eq!(errors.to_string(), expected);
        let errors = Source::parse("a: [1\nb: 2\n", "x.yaml").err().unwrap();
        assert!(errors.to_string().ends_with(", expected well-formed YAML"), "{errors}");
        assert!(!errors.to_string().contains("at line"), "{errors}");
    }

    #[test]
    fn upper_case_names_come_from_the_environment_and_others_stay() {
        let mut source = Source::from_value(json!({ "a": "${HOST}:${PORT}$x${request_id}${x}", "b": "${PORT}" }), "");
        source.expand_env(&env);
        assert_eq!(source.value, json!({ "a": "app:8080$x${request_id}${x}", "b": 8080 }));
    }

    #[test]
    fn a_password_of_digits_stays_a_text() {
        let mut source = Source::from_value(json!({ "db": { "password": "${PORT}", "user": "${HOST}" } }), "");
        source.expand_env(&env);
        assert_eq!(source.value, json!({ "db": { "password": "8080", "user": "app" } }));
    }

    #[test]
    fn an_unset_environment_variable_is_an_error() {
        let mut source = Source::parse("a:\n  - x${NOPE}y${NOT_THIS}\n", "x.yaml").unwrap();
        source.expand_env(&env);
        let errors = source.into_result(()).unwrap_err();
        let expected = "expected the environment to have NOPE and NOT_THIS";
        assert_eq!(errors.to_string(), format!("x.yaml:2:5: a[0]: found \"x${{NOPE}}y${{NOT_THIS}}\", {expected}"));
    }
}
