//! The file against its schema: unknown keys and values that cannot be read, all of them.
//!
//! serde would stop at the first. What is wrong is noted and left out, so that the rest can be deserialised and checked
//! further.

use super::errors::shown;
use super::source::{Source, item_path, key_path};
use super::{near, secret, units};
use serde_json::{Map, Value};

/// Check the whole of `source` and return what is good of it.
pub(super) fn check(source: &mut Source, schema: &Value) -> Value {
    let value = source.value.clone();
    let mut checker = Checker { source, root: schema };
    checker.value(value, schema, "").unwrap_or_else(|| Value::Object(Map::new()))
}

struct Checker<'a> {
    source: &'a mut Source,
    root: &'a Value,
}

impl<'a> Checker<'a> {
    /// `None` if nothing of the value can be used.
    fn value(&mut self, value: Value, schema: &'a Value, path: &str) -> Option<Value> {
        // a mapping may be absent, but a key with nothing behind it has more likely lost it
        let lost = value.is_null() && self.has_mapping(schema);
        let Some(schema) = self.variant(&value, schema).filter(|_| !lost) else {
            self.source.error(path, self.found(&value, schema), self.expected(schema, lost));
            return None;
        };
        if let Some(complaint) = complaint(&value, schema) {
            self.source.error(path, shown(&value), complaint);
            return None;
        }
        Some(match value {
            Value::Object(map) => Value::Object(self.mapping(map, schema, path)),
            Value::Array(items) => Value::Array(self.list(items, schema, path)),
            scalar => scalar,
        })
    }

    fn mapping(&mut self, map: Map<String, Value>, schema: &'a Value, path: &str) -> Map<String, Value> {
        let mut good = Map::new();
        for (key, value) in map {
            let path = key_path(path, &key);
            let Some(child) = child_schema(schema, &key) else {
                self.unknown_key(schema, &key, &path);
                continue;
            };
            let value = match child {
                Some(child) => self.value(value, child, &path),
                None => Some(value),
            };
            good.extend(value.map(|value| (key, value)));
        }
        good
    }

    fn unknown_key(&mut self, schema: &Value, key: &str, path: &str) {
        let known: Vec<&str> = properties(schema).map(|(name, _)| name.as_str()).collect();
        let expected = match near::matches(key, known.iter().copied()) {
            near if near.is_empty() => format!("one of the keys {}", known.join(", ")),
            near => format!("a key that exists{}", near::question(&near)),
        };
        self.source.error(path, format!("the unknown key {key}"), expected);
    }

    /// An entry that cannot be used leaves an empty mapping, so that the others keep their places, or nothing.
    fn list(&mut self, items: Vec<Value>, schema: &'a Value, path: &str) -> Vec<Value> {
        let Some(item_schema) = schema.get("items") else { return items };
        let mut good = Vec::new();
        for (index, item) in items.into_iter().enumerate() {
            match self.value(item, item_schema, &item_path(path, index)) {
                Some(item) => good.push(item),
                None if self.has_mapping(item_schema) => good.push(Value::Object(Map::new())),
                None => {}
            }
        }
        good
    }

    fn has_mapping(&self, schema: &'a Value) -> bool {
        self.variants(schema).into_iter().any(|variant| types(variant).contains(&"object"))
    }

    /// The schema that applies to a value of this type, behind references and alternatives.
    fn variant(&self, value: &Value, schema: &'a Value) -> Option<&'a Value> {
        self.variants(schema).into_iter().find(|variant| has_type(value, variant))
    }

    fn variants(&self, schema: &'a Value) -> Vec<&'a Value> {
        let reference = schema.get("$ref").and_then(Value::as_str);
        let name = reference.and_then(|reference| reference.strip_prefix("#/$defs/"));
        if let Some(target) = name.and_then(|name| self.root.get("$defs")?.get(name)) {
            return self.variants(target);
        }
        match schema.get("anyOf").and_then(Value::as_array) {
            Some(all) => all.iter().flat_map(|variant| self.variants(variant)).collect(),
            None => vec![schema],
        }
    }

    /// The value, unless it is a secret.
    fn found(&self, value: &Value, schema: &'a Value) -> String {
        let mut variants = self.variants(schema).into_iter();
        match variants.any(|variant| variant.get("format").is_some_and(|format| format == secret::FORMAT)) {
            true if !value.is_null() => "what is not shown".to_owned(),
            _ => shown(value),
        }
    }

    fn expected(&self, schema: &'a Value, lost: bool) -> String {
        let mut all: Vec<String> = self.variants(schema).into_iter().filter_map(description).collect();
        all.dedup();
        format!("{}{}", all.join(" or "), if lost { ", {} for an empty one" } else { "" })
    }
}

/// `None` if the key is unknown, `Some(None)` if it may be anything.
fn child_schema<'a>(schema: &'a Value, key: &str) -> Option<Option<&'a Value>> {
    if let Some((_, child)) = properties(schema).find(|(name, _)| *name == key) {
        return Some(Some(child));
    }
    match schema.get("additionalProperties") {
        Some(Value::Bool(false)) => None,
        Some(child @ Value::Object(_)) => Some(Some(child)),
        _ => Some(None),
    }
}

pub(super) fn properties(schema: &Value) -> impl Iterator<Item = (&String, &Value)> {
    schema.get("properties").and_then(Value::as_object).into_iter().flatten()
}

fn types(schema: &Value) -> Vec<&str> {
    match schema.get("type") {
        Some(Value::String(name)) => vec![name],
        Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    }
}

fn has_type(value: &Value, schema: &Value) -> bool {
    let types = types(schema);
    let is = |name: &str| types.contains(&name);
    types.is_empty()
        || match value {
            Value::Null => is("null"),
            Value::Bool(_) => is("boolean"),
            Value::Number(number) => is("number") || is("integer") && !number.is_f64(),
            Value::String(_) => is("string"),
            Value::Array(_) => is("array"),
            Value::Object(_) => is("object"),
        }
}

/// What a value of the right type still gets wrong.
fn complaint(value: &Value, schema: &Value) -> Option<String> {
    if let Some(words) = schema.get("enum").and_then(Value::as_array) {
        return (!words.iter().any(|word| units::same_word(word, value))).then(|| one_of(words, value));
    }
    let format = schema.get("format").and_then(Value::as_str);
    if value.is_null() {
        return None;
    }
    if let Some(expected) = format.and_then(|format| units::complaint(format, value)) {
        return Some(expected.to_owned());
    }
    let number = value.as_i64().or(value.as_u64().map(|_| i64::MAX))?;
    let largest = if format == Some("uint32") { i64::from(u32::MAX) } else { i64::MAX };
    let limit = |name: &str| schema.get(name).and_then(Value::as_i64);
    let (least, most) = (limit("minimum").unwrap_or(i64::MIN), limit("maximum").unwrap_or(largest));
    (number < least || number > most).then(|| format!("a number from {least} to {most}"))
}

fn one_of(words: &[Value], value: &Value) -> String {
    let words: Vec<String> = words.iter().map(units::bare).collect();
    let near = near::matches(&units::bare(value), words.iter().map(String::as_str));
    match words.as_slice() {
        [only] => only.clone(),
        words => format!("one of {}{}", words.join(", "), near::question(&near)),
    }
}

fn description(schema: &Value) -> Option<String> {
    let format = schema.get("format").and_then(Value::as_str);
    if let Some(expected) = format.and_then(|format| units::complaint(format, &Value::Null)) {
        return Some(expected.to_owned());
    }
    let names = types(schema).into_iter().filter_map(|name| match name {
        "boolean" => Some("true or false"),
        "integer" | "number" => Some("a number"),
        "string" => Some("a string"),
        "array" => Some("a list"),
        "object" => Some("a mapping"),
        _ => None,
    });
    let names: Vec<&str> = names.collect();
    (!names.is_empty()).then(|| names.join(" or "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn schema() -> Value {
        json!({
            "type": "object",
            "additionalProperties": false,
            "properties": {
                "size": { "type": ["string", "integer"], "format": "size" },
                "count": { "type": "integer", "format": "uint32", "minimum": 0 },
                "word": { "enum": ["one", "two"] },
                "words": { "type": "array", "items": { "enum": ["one", "two"] } },
                "list": { "type": "array", "items": { "$ref": "#/$defs/Item" } },
                "free": { "type": "object", "additionalProperties": true },
                "absent": { "type": ["string", "null"] },
                "maybe": { "anyOf": [{ "$ref": "#/$defs/Inner" }, { "type": "null" }] },
            },
            "$defs": {
                "Item": { "anyOf": [{ "type": "string" }, { "$ref": "#/$defs/Inner" }] },
                "Inner": {
                    "type": "object",
                    "additionalProperties": false,
                    "properties": { "flag": { "type": "boolean" } },
                },
            },
        })
    }

    fn run(value: Value) -> (Value, Vec<String>) {
        let mut source = Source::from_value(value, "");
        let good = check(&mut source, &schema());
        let errors = source.into_result(()).err().unwrap_or_default();
        (good, errors.0.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn what_is_right_passes_unchanged() {
        let value = json!({ "size": "16KiB", "count": 3, "word": "one", "list": ["a", { "flag": true }],
            "free": { "any": [null] }, "maybe": {}, "absent": null });
        assert_eq!(run(value.clone()), (value, vec![]));
    }

    #[test]
    fn everything_wrong_is_reported_and_the_rest_kept() {
        let (good, errors) = run(json!({ "size": "16KB5", "cuont": 3, "count": -1, "word": "tow", "zzz": 1,
            "words": ["one", "three", "two"],
            "list": [1, "a", { "flag": "x" }], "maybe": "x" }));
        assert_eq!(good, json!({ "words": ["one", "two"], "list": [{}, "a", {}] }));
        let expected = [
            r#"size: found "16KB5", expected a size such as 16KiB"#,
            "cuont: found the unknown key cuont, expected a key that exists, did you mean count?",
            "count: found -1, expected a number from 0 to 4294967295",
            r#"word: found "tow", expected one of one, two, did you mean two?"#,
            "zzz: found the unknown key zzz, expected one of the keys size, count, word, words, list, free, absent, maybe",
            r#"words[1]: found "three", expected one of one, two"#,
            "list[0]: found 1, expected a string or a mapping",
            r#"list[2].flag: found "x", expected true or false"#,
            r#"maybe: found "x", expected a mapping"#,
        ];
        assert_eq!(errors, expected);
    }

    #[test]
    fn a_key_without_a_value_is_an_error() {
        assert_eq!(run(json!({ "size": null })).1, ["size: found nothing, expected a size such as 16KiB"]);
        assert_eq!(run(json!({ "maybe": null })).1, ["maybe: found nothing, expected a mapping, {} for an empty one"]);
    }
}
