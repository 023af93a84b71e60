//! Who we are to the servers of an upstream, and the database that is used there.

use super::Resolver;
use crate::conf::source::key_path;
use crate::conf::{HTTP, Login, PROTOCOL_KEYS, Secret, raw};

impl Resolver {
    pub(super) fn login(&mut self, raw: &raw::Upstream, path: &str) -> Login {
        let has = [raw.user.is_some(), raw.password.is_some(), raw.password_file.is_some()];
        for (key, _) in ["user", "password", "password_file"].into_iter().zip(has).filter(|(_, has)| *has) {
            self.asks_for(key, raw, path);
        }
        let password_path = key_path(path, "password");
        let password = match (&raw.password, &raw.password_file) {
            (Some(_), Some(_)) => {
                self.error(
                    &key_path(path, "password_file"),
                    "a second password",
                    "either `password` or `password_file`",
                );
                None
            }
            (Some(password), None) => {
                if password.expose().is_empty() {
                    self.error(&password_path, "nothing", "a password");
                }
                Some(password.clone())
            }
            (None, Some(file)) => self.secret_file(file, &key_path(path, "password_file")),
            (None, None) => {
                if raw.user.is_some() {
                    self.error(&password_path, "nothing", "the password of `user`");
                }
                None
            }
        };
        Login { user: raw.user.clone(), password }
    }

    pub(super) fn database(&mut self, raw: &raw::Upstream, path: &str) -> Option<String> {
        let database = match raw.database.as_ref()? {
            raw::Database::Number(number) => number.to_string(),
            raw::Database::Name(name) => name.clone(),
        };
        self.asks_for("database", raw, path);
        if raw.protocol.0 == "redis" && database.parse::<u32>().is_err() {
            self.wrong(&key_path(path, "database"), &database, "a number, Redis has no names for databases");
        }
        Some(database)
    }

    /// Complains where the protocol has no place for such a thing. Those of other binaries may have.
    fn asks_for(&mut self, key: &str, raw: &raw::Upstream, path: &str) {
        let protocol = raw.protocol.0.as_str();
        if protocol == HTTP || protocol != "redis" && PROTOCOL_KEYS.contains(&protocol) {
            let expected = format!("none with the protocol {protocol}");
            self.error(&key_path(path, key), format!("a {}", key.replace('_', " ")), expected);
        }
    }

    fn secret_file(&mut self, text: &str, path: &str) -> Option<Secret> {
        let file = self.folder(text, path);
        match std::fs::read_to_string(&file) {
            Ok(content) => {
                let line = content.strip_suffix('\n').unwrap_or(&content);
                let line = line.strip_suffix('\r').unwrap_or(line);
                if line.is_empty() {
                    self.wrong(path, text, "a file with a password, this one is empty");
                }
                Some(Secret::new(line))
            }
            Err(error) => {
                self.wrong(path, text, format!("a readable file ({}: {error})", file.display()));
                None
            }
        }
    }
}
