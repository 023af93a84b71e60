//! The configuration: from a YAML file to types that cannot be wrong.
//!
//! ```text
//! file ─► source (values and their places, ${ENV}) ─► check (against the schema) ─► defaults: merged under every route
//!      ─► raw (the file's shape) ─► resolve (meaning, cross checks) ─► Conf
//! ```
//! Each step notes what is wrong and goes on; [`ConfErrors`] has all of it.

mod check;
mod error_pages;
mod errors;
mod health_check;
pub(crate) mod near;
pub mod raw;
mod resolve;
mod route_table;
mod secret;
mod settings;
mod source;
mod types;
pub mod units;
mod words;

pub use error_pages::{ErrorPage, ErrorPages, Statuses};
pub use errors::{ConfError, ConfErrors, Place};
pub use health_check::{HealthCheck, HttpProbe, Pattern, Probe};
pub use route_table::{Captures, HostMatch, Matches, PathMatch, RouteMatch, RouteTable};
pub use secret::Secret;
pub(crate) use settings::SettingsError;
pub use types::*;
pub use words::{Balance, CheckType, Condition, HttpVersion, IgnoredHeader};

use serde_json::{Map, Value};
use source::{Env, Source};
use std::path::Path;

impl Conf {
    /// Read and resolve a file. Names of servers are looked up, and certificates are read: it may take a moment, call
    /// it outside the async threads.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn load(path: &Path) -> Result<Self, ConfErrors> {
        let file = path.display().to_string();
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&text, &file),
            Err(error) => {
                let mut source = Source::from_value(Value::Null, &file);
                source.error("", error.to_string(), "a configuration file");
                Err(source.into_errors())
            }
        }
    }

    /// The same from a text. `file` is its name in messages; relative paths in the text start at its folder.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn parse(text: &str, file: &str) -> Result<Self, ConfErrors> {
        Self::from_source(Source::parse(text, file)?, &|name| std::env::var(name).ok())
    }

    /// The same from a value, for a proxy that is built in code: `json!` of the file's keys, or a serialised
    /// [`raw::Conf`].
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn from_value(value: Value) -> Result<Self, ConfErrors> {
        Self::from_source(Source::from_value(value, ""), &|name| std::env::var(name).ok())
    }

    /// The JSON Schema of the file.
    pub fn schema() -> schemars::Schema {
        schemars::schema_for!(raw::Conf)
    }

    fn from_source(mut source: Source, env: Env<'_>) -> Result<Self, ConfErrors> {
        if source.value.is_null() {
            source.value = Value::Object(Map::new()); // an empty file
        }
        source.expand_env(env);
        let mut value = check::check(&mut source, Self::schema().as_value());
        inherit(&mut value);
        match serde_path_to_error::deserialize::<_, raw::Conf>(&value) {
            Ok(raw) => resolve::resolve(&raw, source),
            Err(error) => {
                source.error(&error.path().to_string(), error.inner().to_string(), "what the schema allows");
                Err(source.into_errors())
            }
        }
    }
}

/// Merge `defaults` under every route.
fn inherit(conf: &mut Value) {
    let Some(defaults) = conf.get("defaults").cloned() else { return };
    let services = conf.get_mut("services").and_then(Value::as_array_mut).into_iter().flatten();
    for route in services.filter_map(|service| service.get_mut("routes")?.as_array_mut()).flatten() {
        merge_under(route, &defaults);
    }
}

/// Mappings are merged key by key; anything else that `value` has, it keeps.
fn merge_under(value: &mut Value, defaults: &Value) {
    let (Value::Object(map), Value::Object(defaults)) = (value, defaults) else { return };
    for (key, default) in defaults {
        match map.get_mut(key) {
            Some(value) => merge_under(value, default),
            None => {
                map.insert(key.clone(), default.clone());
            }
        }
    }
}

/// A filter's settings when it has none: `- request_id:` is the same as `- request_id: {}`.
fn settings(value: &Value) -> Value {
    if value.is_null() { Value::Object(Map::new()) } else { value.clone() }
}

#[cfg(test)]
mod tests;
