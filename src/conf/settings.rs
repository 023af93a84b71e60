//! [`SettingsError`]: settings that only the maker of a filter or a protocol can judge.

use super::errors::{ConfError, Place, shown};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Why nothing can be made of some settings.
pub(crate) struct SettingsError {
    /// The key inside them; empty: all of it.
    key: String,
    text: String,
}

impl SettingsError {
    /// Read settings.
    ///
    /// # Errors
    /// serde's, with the key it came to.
    pub(crate) fn read<C: DeserializeOwned>(settings: &Value) -> Result<C, Self> {
        serde_path_to_error::deserialize(settings)
            .map_err(|error| SettingsError { key: error.path().to_string(), text: error.inner().to_string() })
    }

    /// They can be read, and make no sense.
    pub(crate) fn whole(text: String) -> Self {
        SettingsError { key: String::new(), text }
    }

    /// The same as all errors of a configuration are said; `settings` stand at `path`. serde's own messages have both
    /// halves in them.
    pub(crate) fn at(&self, path: &str, settings: &Value, place: Option<Place>) -> ConfError {
        let (path, value) = match self.key.as_str() {
            "" | "." => (path.to_owned(), Some(settings)),
            key => (format!("{path}.{key}"), key.split('.').try_fold(settings, |value, key| value.get(key))),
        };
        let (found, expected) = match self.text.split_once(", expected ") {
            Some((found, expected)) => (found.trim_start_matches("invalid type: ").to_owned(), expected.to_owned()),
            None => (value.map_or_else(|| "this".to_owned(), shown), self.text.replace("missing field", "the key")),
        };
        ConfError { file: String::new(), path, found, expected, place }
    }
}
